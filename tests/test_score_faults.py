"""Killed, interrupted, out of disk: nothing is lost, nothing is scored twice."""

import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from cli import memcli, memcli_command, memcli_here, table
from media import make_video
from tiny_bundle import make_tiny_bundle

from memcli import app
from memcli.errors import ExitCode
from memcli.journal import FileIdentity

TINY = ("--model", "tiny", "--engine", "onnxruntime", "--workers", "2")


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips that take a while together: 3 contents under 60 names, every tenth broken."""
    folder = tmp_path_factory.mktemp("many")
    sources = [make_video(folder / f"source{n}.mp4", frames=20 + 9 * n) for n in range(3)]
    contents = [source.read_bytes() for source in sources]
    for number in range(60):
        content = contents[number % 3]
        if number % 10 == 7:
            content = content[: 100 * (number % 5)]
        (folder / f"{number:02}.mp4").write_bytes(content)
    return folder


@pytest.fixture(autouse=True)
def bundle(memcli_home: Path, tmp_path: Path) -> None:
    make_tiny_bundle(memcli_home)
    clip = make_video(tmp_path / "warm.mp4", frames=2)
    assert memcli_here("score", clip, *TINY, "-o", "warm.csv", cwd=tmp_path).returncode == 0


def start(many: Path, cwd: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        memcli_command("score", many, *TINY, "--quiet"),
        cwd=cwd,
        stderr=subprocess.PIPE,
        # A job in the background ignores SIGINT and hands that on; a user's terminal does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
    )


def wait_for_rows(journal: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    limit = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < limit:
        if journal.exists() and journal.read_bytes().count(b"\n") > count:
            return
        time.sleep(0.002)


def test_ten_kills_then_resume_equal_an_uninterrupted_run(many: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    assert memcli("score", many, *TINY, cwd=whole).returncode == ExitCode.SOME_INPUTS_FAILED
    random_moment = random.Random(4)
    journal = killed / "scores.csv.journal"
    kills = 0
    for number in range(10):
        process = start(many, killed)
        wait_for_rows(journal, number * 5 + random_moment.randrange(4), process)
        time.sleep(random_moment.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 5  # the others were done before the signal came
    done = memcli("score", many, *TINY, cwd=killed)
    assert done.returncode == ExitCode.SOME_INPUTS_FAILED, done.stderr
    assert table(killed / "scores.csv") == table(whole / "scores.csv")
    lines = journal.read_text().splitlines()[1:]
    scored = Counter(line.split('"', 4)[3] for line in lines)
    assert len(scored) == 63
    assert set(scored.values()) == {1}  # no video was scored twice


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_its_rows(many: Path, tmp_path: Path, number: int) -> None:
    process = start(many, tmp_path)
    wait_for_rows(tmp_path / "scores.csv.journal", 3, process)
    process.send_signal(number)
    assert process.wait(60) == ExitCode.INTERRUPTED
    assert process.stderr is not None
    assert b"Traceback" not in process.stderr.read()
    rows = table(tmp_path / "scores.csv")
    assert 3 <= len(rows) < 63
    done = memcli("score", many, *TINY, cwd=tmp_path)
    assert done.returncode == ExitCode.SOME_INPUTS_FAILED
    assert f"{len(rows)} videos already in scores.csv" in done.stderr
    assert len(table(tmp_path / "scores.csv")) == 63


def test_a_second_ctrl_c_right_after_the_first_keeps_the_table(many: Path, tmp_path: Path) -> None:
    process = start(many, tmp_path)
    wait_for_rows(tmp_path / "scores.csv.journal", 3, process)
    for _ in range(4):  # some while it stops, some while it leaves
        process.send_signal(signal.SIGINT)
        time.sleep(0.05)
    assert process.wait(60) == ExitCode.INTERRUPTED
    assert 3 <= len(table(tmp_path / "scores.csv")) < 63


def test_two_runs_do_not_write_one_table(many: Path, tmp_path: Path) -> None:
    process = start(many, tmp_path)
    wait_for_rows(tmp_path / "scores.csv.journal", 1, process)
    process.send_signal(signal.SIGSTOP)  # so that it still holds the table, however slow we are
    second = memcli("score", many, *TINY, cwd=tmp_path)
    process.kill()
    process.wait()
    assert second.returncode == ExitCode.USAGE
    assert "another memcli run is writing this table" in second.stderr


def test_a_file_whose_metadata_hang_is_given_up(
    many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a network mount whose server is gone: even `stat` does not come back."""
    hanging = threading.Event()
    real = FileIdentity.of

    def identity(path: str) -> FileIdentity | None:
        if path.endswith("07.mp4"):
            hanging.wait(60)
        return real(path)

    monkeypatch.setattr(FileIdentity, "of", identity)
    output = tmp_path / "t.csv"
    arguments = ["score", str(many), *TINY, "--quiet", "--file-timeout", "1", "-o", str(output)]
    started = time.monotonic()
    code = app.run(arguments)
    hanging.set()
    assert code == ExitCode.SOME_INPUTS_FAILED
    assert time.monotonic() - started < 40
    rows = {Path(row["path"]).name: row["error_code"] for row in table(output)}
    assert len(rows) == 63
    assert [name for name, error in rows.items() if error == "timeout"] == ["07.mp4"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Path:
    """A file system with room for some rows only."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    options = ["-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or mount is None or subprocess.run([mount, *options]).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_stops_with_a_valid_journal(many: Path, small_disk: Path) -> None:
    done = memcli("score", many, *TINY, cwd=small_disk)
    assert done.returncode == ExitCode.NOT_USABLE, done.stderr
    assert "No space left on device" in done.stderr
    assert "Make room and run the same command again" in done.stderr
    assert "Traceback" not in done.stderr
    journal = (small_disk / "scores.csv.journal").read_bytes()
    kept = journal.count(b"\n") - 1
    assert journal.endswith(b"\n")
    assert kept > 3
    subprocess.run(["mount", "-o", "remount,size=1m", str(small_disk)], check=True)
    again = memcli("score", many, *TINY, cwd=small_disk)
    assert f"{kept} videos already in scores.csv" in again.stderr
    assert len(table(small_disk / "scores.csv")) == 63


@pytest.mark.slow
def test_ten_thousand_tiny_files(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(10_000):
        (folder / f"{number}.mp4").write_bytes(b"")
    done = memcli("score", folder, *TINY, cwd=tmp_path)
    assert done.returncode == ExitCode.SOME_INPUTS_FAILED
    assert "10,000 failed" in done.stderr
    assert "and 9,980 more" in done.stderr
    assert len(table(tmp_path / "scores.csv")) == 10_000
