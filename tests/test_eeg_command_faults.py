"""`memcli eeg` killed, interrupted, out of disk: nothing is lost, nothing is scored twice."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cli import memcli, memcli_command
from tiny_eeg import make_eeg_bundle, make_recording

from memcli.errors import ExitCode
from memcli.recognition.rows import MEASURED_COLUMNS

pytest.importorskip("mne")
TINY = ("--model", "tiny-eeg", "--engine", "onnxruntime", "--readers", "1", "--batch-size", "2")
EPOCHS = 60
RECORDINGS = 3


def rows_of(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return [{k: v for k, v in row.items() if k not in MEASURED_COLUMNS} for row in rows]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    for number in range(RECORDINGS):
        levels = [float((7 * epoch + number) % 90 - 45) for epoch in range(EPOCHS)]
        make_recording(folder / f"{number}_raw.fif", levels, seed=number)
    (folder / "broken_raw.fif").write_bytes(b"\0" * 1000)
    return folder


@pytest.fixture(autouse=True)
def bundle(memcli_home: Path, many: Path, tmp_path: Path) -> None:
    make_eeg_bundle(memcli_home)


def start(many: Path, cwd: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        memcli_command("eeg", many, *TINY, "--quiet"),
        cwd=cwd,
        stderr=subprocess.PIPE,
        # A job in the background ignores SIGINT and hands that on; a user's terminal does not.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
    )


def wait_for_rows(journal: Path, count: int, process: "subprocess.Popen[bytes]") -> None:
    limit = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < limit:
        if journal.exists() and journal.read_bytes().count(b"\n") > count:
            return
        time.sleep(0.002)


def test_kills_then_resume_equal_an_uninterrupted_run(many: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    assert memcli("eeg", many, *TINY, cwd=whole).returncode == ExitCode.SOME_INPUTS_FAILED
    moment = random.Random(4)
    journal = killed / "recognition.csv.journal"
    kills = 0
    for number in range(3):
        process = start(many, killed)
        wait_for_rows(journal, number * 40 + moment.randrange(9), process)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 2  # the other was done before the signal came
    done = memcli("eeg", many, *TINY, cwd=killed)
    assert done.returncode == ExitCode.SOME_INPUTS_FAILED, done.stderr
    assert rows_of(killed / "recognition.csv") == rows_of(whole / "recognition.csv")
    lines = [json.loads(line) for line in journal.read_text().splitlines()[1:]]
    scored = Counter((line["key"], line.get("part")) for line in lines if "row" in line)
    assert len(scored) == RECORDINGS * EPOCHS + 1
    assert set(scored.values()) == {1}  # no epoch was scored twice


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_its_rows(many: Path, tmp_path: Path, number: int) -> None:
    process = start(many, tmp_path)
    wait_for_rows(tmp_path / "recognition.csv.journal", 5, process)
    process.send_signal(number)
    assert process.wait(60) == ExitCode.INTERRUPTED
    assert process.stderr is not None
    assert b"Traceback" not in process.stderr.read()
    kept = len(rows_of(tmp_path / "recognition.csv"))
    assert 5 <= kept < RECORDINGS * EPOCHS + 1
    done = memcli("eeg", many, *TINY, "--json", cwd=tmp_path)
    assert done.returncode == ExitCode.SOME_INPUTS_FAILED
    summary = json.loads(done.stderr.splitlines()[-1])
    assert len(rows_of(tmp_path / "recognition.csv")) == RECORDINGS * EPOCHS + 1
    assert summary["epochs"] + summary["failed"] == RECORDINGS * EPOCHS + 1 - kept


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
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
    done = memcli("eeg", many, *TINY, cwd=small_disk)
    assert done.returncode == ExitCode.NOT_USABLE, done.stderr
    assert "No space left on device" in done.stderr
    assert "Make room and run the same command again" in done.stderr
    assert "Traceback" not in done.stderr
    journal = (small_disk / "recognition.csv.journal").read_bytes()
    assert journal.endswith(b"\n")
    kept = journal.count(b"\n") - 1
    assert kept > 3
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    again = memcli("eeg", many, *TINY, "--json", cwd=small_disk)
    assert again.returncode == ExitCode.SOME_INPUTS_FAILED, again.stderr
    assert len(rows_of(small_disk / "recognition.csv")) == RECORDINGS * EPOCHS + 1
