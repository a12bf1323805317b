"""The journal of epochs: nothing is lost, nothing is scored twice, nothing stale is kept."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from memcli.errors import OutputError, OutputMismatchError
from memcli.journal import FileIdentity, Journal, journal_path
from memcli.recognition.journal import EpochJournal, identity_of
from memcli.recognition.rows import EpochRow, label_of

SETTINGS = {"model": "tiny-eeg", "precision": "fp32", "event": None}
ROW = EpochRow(
    path="a.fif",
    subject="1",
    epoch=0,
    onset_s=1.5,
    event="clip",
    status="ok",
    probability=0.5,
    recognised=True,
    flags=None,
    label=1,
    model="tiny-eeg",
    bundle="tiny-eeg@0",
    engine="onnxruntime 1",
    device="cpu",
    precision="fp32",
    note=None,
    contributions=[0.25, -0.25],
)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "t.csv"


@pytest.fixture
def recording(tmp_path: Path) -> str:
    path = tmp_path / "a.fif"
    path.write_bytes(b"1234")
    return str(path)


def open_journal(table: Path) -> EpochJournal:
    return EpochJournal.open(table, SETTINGS, resume=True)


def write(journal: EpochJournal, path: str, *epochs: int, **changes: object) -> None:
    for epoch in epochs:
        row = replace(ROW, path=path, epoch=epoch, **changes)
        journal.write(path, identity_of(path), row)


def fail(journal: EpochJournal, path: str) -> None:
    row = replace(ROW, path=path, epoch=None, status="failed", probability=None, error="no")
    journal.write(path, identity_of(path), row)


def test_an_interrupted_recording_goes_on_where_it_stopped(table: Path, recording: str) -> None:
    with open_journal(table) as journal:
        write(journal, recording, 2, 0)
    with open_journal(table) as journal:
        assert not journal.finished(recording, retry_failed=False)
        assert journal.scored(recording, identity_of(recording)) == {0, 2}
        write(journal, recording, 1)
        journal.complete(recording, identity_of(recording))
    with open_journal(table) as journal:
        assert journal.finished(recording, retry_failed=False)
        assert journal.finished(recording, retry_failed=True)
        assert [row.epoch for row in journal.rows()] == [0, 1, 2]
        assert next(journal.rows()) == replace(ROW, path=recording)
        assert len(journal) == 3


def test_rows_of_a_changed_recording_are_dropped(table: Path, recording: str) -> None:
    with open_journal(table) as journal:
        write(journal, recording, 0, 1, 2)
        journal.complete(recording, identity_of(recording))
        Path(recording).write_bytes(b"12345")
        assert not journal.finished(recording, retry_failed=False)
        assert journal.scored(recording, identity_of(recording)) == frozenset()
        write(journal, recording, 0, probability=0.9)
        assert [(row.epoch, row.probability) for row in journal.rows()] == [(0, 0.9)]
    with open_journal(table) as journal:
        assert [(row.epoch, row.probability) for row in journal.rows()] == [(0, 0.9)]


def test_a_failed_recording_keeps_its_epochs_and_is_retried_on_request(
    table: Path, recording: str
) -> None:
    with open_journal(table) as journal:
        write(journal, recording, 0, 1)
        fail(journal, recording)
        assert [row.epoch for row in journal.rows()] == [0, 1, None]
    with open_journal(table) as journal:
        assert journal.finished(recording, retry_failed=False)
        assert journal.failed(recording)
        assert not journal.finished(recording, retry_failed=True)
        assert journal.scored(recording, identity_of(recording)) == {0, 1}
        journal.complete(recording, identity_of(recording))
        assert not journal.failed(recording)
        assert [row.epoch for row in journal.rows()] == [0, 1]


def test_a_failed_epoch_is_scored_again_on_request(table: Path, recording: str) -> None:
    with open_journal(table) as journal:
        write(journal, recording, 0)
        write(journal, recording, 1, status="failed", probability=None)
        journal.complete(recording, identity_of(recording))
        assert journal.finished(recording, retry_failed=False)
        assert not journal.finished(recording, retry_failed=True)
        assert journal.scored(recording, identity_of(recording)) == {0}


def test_every_truncation_leaves_the_whole_rows(table: Path, recording: str) -> None:
    with open_journal(table) as journal:
        write(journal, recording, 0, 1)
        journal.complete(recording, identity_of(recording))
    data = journal_path(table).read_bytes()
    for size in range(0, len(data), 7):
        journal_path(table).write_bytes(data[:size])
        with open_journal(table) as journal:
            assert len(journal) == min(2, max(0, data[:size].count(b"\n") - 1))
            assert not journal.finished(recording, retry_failed=False)


def test_paths_sort_before_epochs(table: Path, tmp_path: Path) -> None:
    names = [str(tmp_path / name) for name in ("b", "a!", "a")]
    with open_journal(table) as journal:
        for name in names:
            write(journal, name, 10, 9)
        rows = [(Path(row.path).name, row.epoch) for row in journal.rows()]
    assert rows == [("a", 9), ("a", 10), ("a!", 9), ("a!", 10), ("b", 9), ("b", 10)]


@pytest.mark.parametrize(
    ("name", "beside"),
    [
        ("r.vhdr", "r.eeg"),
        ("r.vhdr", "r.vmrk"),
        ("r.set", "r.fdt"),
        ("r_raw.fif", "r_raw-1.fif"),
        ("sub-1_eeg.set", "sub-1_events.tsv"),
        ("sub-1_eeg.vhdr", "sub-1_eeg.json"),
        ("e.npy", "e.json"),
    ],
)
def test_files_beside_a_recording_are_part_of_it(tmp_path: Path, name: str, beside: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"head")
    alone = identity_of(str(path))
    (tmp_path / beside).write_bytes(b"data")
    with_data = identity_of(str(path))
    (tmp_path / beside).write_bytes(b"other data")
    assert len({alone, with_data, identity_of(str(path))}) == 3
    assert identity_of(str(tmp_path / "absent.fif")) is None


def test_a_table_beside_a_recording_is_not_part_of_it(tmp_path: Path) -> None:
    """It may be the one that is being written."""
    path = tmp_path / "r.fif"
    path.write_bytes(b"head")
    alone = identity_of(str(path))
    for name in ("r.csv", "r.json", "r.jsonl", "r.parquet"):
        (tmp_path / name).write_bytes(b"rows")
    assert identity_of(str(path)) == alone


def test_a_full_disk_leaves_a_valid_journal(
    table: Path, recording: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with open_journal(table) as journal:
        write(journal, recording, 0)
        before = journal_path(table).read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", full)
            with pytest.raises(OutputError, match="No space left"):
                write(journal, recording, 1)
            with pytest.raises(OutputError, match="No space left"):
                journal.complete(recording, identity_of(recording))
        assert journal_path(table).read_bytes() == before
        assert not journal.finished(recording, retry_failed=False)
        assert len(journal) == 1


def test_journals_of_videos_and_of_epochs_do_not_mix(table: Path, recording: str) -> None:
    Journal.open(table, {"model": "resmem", "frames": 16}, resume=True).close()
    with pytest.raises(OutputMismatchError, match="model resmem"):
        open_journal(table)


def test_damaged_lines_cost_only_themselves(table: Path, recording: str) -> None:
    with open_journal(table) as journal:
        write(journal, recording, 0, 1, 2)
    lines = journal_path(table).read_bytes().splitlines(keepends=True)
    lines[2] = b'{"key": "x", "file": 7, "part": "y", "row": []}\n'
    journal_path(table).write_bytes(b"".join(lines))
    with open_journal(table) as journal:
        assert [row.epoch for row in journal.rows()] == [0, 2]
        assert FileIdentity.of(recording) == identity_of(recording)


@pytest.mark.parametrize(
    ("value", "label"),
    [(1, 1), (0, 0), (1.0, 1), ("1", 1), ("0.0", 0), (True, 1), (2, None), ("yes", None)],
)
def test_labels_however_they_are_spelled(value: object, label: int | None) -> None:
    assert label_of({"label": value}) == label
    assert label_of({}) is None
    assert label_of({"label": None}) is None
    assert label_of({"label": float("nan")}) is None
