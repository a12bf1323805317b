"""Nothing is lost, nothing is scored twice."""

import json
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import pytest

from memcli.errors import ExitCode, OutputError, OutputMismatchError, UsageError
from memcli.journal import FileIdentity, Journal, journal_path
from memcli.results import Row

SETTINGS = {"model": "tiny", "precision": "fp32", "frames": 16}
ROW = Row(
    path="a.mp4",
    status="ok",
    score=0.5,
    model="tiny",
    bundle="tiny@0",
    engine="onnxruntime 1",
    device="cpu",
    precision="fp32",
    sampling="exact",
    weights_license="none",
)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "scores.csv"


@pytest.fixture
def video(tmp_path: Path) -> str:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"1234")
    return str(path)


def open_journal(table: Path, **changes: object) -> Journal:
    return Journal.open(table, {**SETTINGS, **changes}, resume=True)


def write(journal: Journal, path: str, **changes: object) -> None:
    journal.write(path, FileIdentity.of(path), replace(ROW, path=path, **changes))


def test_rows_come_back_sorted_and_newest_first(table: Path, video: str) -> None:
    with open_journal(table) as journal:
        write(journal, "/z.mp4")
        write(journal, video, score=0.1)
        write(journal, video, score=0.9)
        rows = list(journal.rows())
    assert [(row.path, row.score) for row in rows] == [(video, 0.9), ("/z.mp4", 0.5)]
    with open_journal(table) as journal:
        assert list(journal.rows()) == rows


def test_finished_files_are_known_until_they_change(table: Path, video: str) -> None:
    with open_journal(table) as journal:
        assert not journal.finished(video, retry_failed=False)
        write(journal, video)
    with open_journal(table) as journal:
        assert journal.finished(video, retry_failed=False)
        assert journal.finished(video, retry_failed=True)
        Path(video).write_bytes(b"12345")
        assert not journal.finished(video, retry_failed=False)


def test_failed_files_are_retried_on_request(table: Path, video: str) -> None:
    with open_journal(table) as journal:
        write(journal, video, status="failed", score=None, error="no")
        assert journal.finished(video, retry_failed=False)
        assert not journal.finished(video, retry_failed=True)


def test_a_failure_of_a_missing_file_is_finished_until_it_appears(
    table: Path, tmp_path: Path
) -> None:
    path = str(tmp_path / "later.mp4")
    with open_journal(table) as journal:
        write(journal, path, status="failed", score=None, error="missing")
        assert journal.finished(path, retry_failed=False)
        Path(path).write_bytes(b"here")
        assert not journal.finished(path, retry_failed=False)


def test_every_truncation_leaves_the_whole_rows(table: Path, video: str) -> None:
    with open_journal(table) as journal:
        for score in (0.1, 0.2, 0.3):
            journal.write(f"/{score}.mp4", None, replace(ROW, path=f"/{score}.mp4", score=score))
    data = journal_path(table).read_bytes()
    for size in range(len(data)):
        journal_path(table).write_bytes(data[:size])
        with open_journal(table) as journal:
            whole = max(0, data[:size].count(b"\n") - 1)
            assert len(journal) == whole
            write(journal, video)
        with open_journal(table) as journal:
            assert len(journal) == whole + 1


def test_an_interrupt_between_writing_and_remembering_loses_nothing(
    table: Path, video: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwrite

    def interrupted(descriptor: int, data: memoryview, offset: int) -> int:
        real(descriptor, data, offset)
        raise KeyboardInterrupt

    with open_journal(table) as journal:
        write(journal, "/first.mp4")
        monkeypatch.setattr(os, "pwrite", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write(journal, video)
        monkeypatch.setattr(os, "pwrite", real)
        journal.load()
        assert {row.path for row in journal.rows()} == {"/first.mp4", video}
        write(journal, "/third.mp4")
    with open_journal(table) as journal:
        assert len(list(journal.rows())) == 3


def test_a_damaged_line_costs_only_itself(table: Path) -> None:
    with open_journal(table) as journal:
        for name in "abc":
            journal.write(f"/{name}", None, replace(ROW, path=f"/{name}"))
    lines = journal_path(table).read_bytes().splitlines(keepends=True)
    lines[2] = b"\0" * 50 + b"\n"
    journal_path(table).write_bytes(b"".join(lines))
    with open_journal(table) as journal:
        assert [row.path for row in journal.rows()] == ["/a", "/c"]


def test_other_settings_are_refused_by_name(table: Path) -> None:
    open_journal(table).close()
    before = journal_path(table).read_bytes()
    with pytest.raises(OutputMismatchError, match=r"precision fp32; .* precision int8") as caught:
        open_journal(table, precision="int8")
    assert caught.value.exit_code == ExitCode.USAGE
    assert journal_path(table).read_bytes() == before


def test_another_schema_is_refused(table: Path) -> None:
    open_journal(table).close()
    header = json.loads(journal_path(table).read_text())
    header["schema"] = 99
    journal_path(table).write_text(json.dumps(header) + "\n")
    with pytest.raises(OutputMismatchError, match="schema 99"):
        open_journal(table)


@pytest.mark.parametrize("content", [b"hello\n", b"{}\n", b"[1]\n", b"\xff\xfe\n", b"some text"])
def test_foreign_files_are_left_alone(table: Path, content: bytes) -> None:
    journal_path(table).write_bytes(content)
    with pytest.raises(OutputMismatchError, match="not a memcli journal"):
        open_journal(table)
    assert journal_path(table).read_bytes() == content


def test_a_table_without_journal_is_not_overwritten(table: Path) -> None:
    table.write_text("precious\n")
    with pytest.raises(OutputMismatchError, match="no memcli journal"):
        open_journal(table)
    Journal.open(table, SETTINGS, resume=False).close()


def test_two_runs_cannot_write_one_table(table: Path) -> None:
    with open_journal(table):
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as pool:
            message = pool.apply(_try_open, (table,))
    assert "another memcli run" in message


def _try_open(table: Path) -> str:
    try:
        open_journal(table).close()
    except UsageError as error:
        return str(error)
    return "opened"


def test_unwritable_places_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written here"):
        open_journal(tmp_path / "absent" / "scores.csv")
    with pytest.raises(UsageError, match="this is a folder"):
        open_journal(tmp_path)


@pytest.mark.parametrize("taken", [0, 1, 17])
def test_full_disk_leaves_a_valid_journal(
    table: Path, video: str, monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    """The disk takes some bytes of a row, then none: the row is dropped, the error says so."""
    real = os.pwrite
    with open_journal(table) as journal:
        write(journal, "/first.mp4")
        before = journal_path(table).read_bytes()
        room = taken

        def pwrite(descriptor: int, data: memoryview, offset: int) -> int:
            nonlocal room
            if not room:
                raise OSError(28, "No space left on device")
            written = real(descriptor, data[:room], offset)
            room -= written
            return written

        monkeypatch.setattr(os, "pwrite", pwrite)
        with pytest.raises(OutputError, match="No space left") as caught:
            write(journal, video)
        assert "Make room" in str(caught.value)
        assert journal_path(table).read_bytes() == before
        monkeypatch.setattr(os, "pwrite", real)
        write(journal, video)
        assert len(list(journal.rows())) == 2


def test_names_of_any_bytes_survive(table: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9 \n\x1b[31m \"'.mp4")
    with open_journal(table) as journal:
        write(journal, name)
    with open_journal(table) as journal:
        assert [row.path for row in journal.rows()] == [name]
