"""`memcli dataset check`, as a user runs it."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from cli import memcli_here
from media import make_video

from memcli.app import run

LISTS = "path,score,caption,split,fold,group\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        make_video(tmp_path / f"{name}.mp4", frames=6)
    (tmp_path / "list.csv").write_text(
        f"{LISTS}a.mp4,0.5,x,train,0,F\na.mp4,,y,,,\nb.mp4,1,z,train,1,G\n"
    )
    return tmp_path


def test_a_sound_dataset(folder: Path) -> None:
    done = memcli_here("dataset", "check", folder, "--decode", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    lines = [line.split(None, 1) for line in done.stdout.splitlines() if line]
    parts = {words[0]: words[1] for words in lines}
    size = sum(path.stat().st_size for path in folder.glob("*.mp4")) / 1e6
    assert parts["csv:"].startswith("anything else")
    assert parts["videos"] == f"2, 2 with a score; files of 2 ({size:.1f} MB)"
    assert parts["train"] == parts["videos"]
    assert parts["raw"] == "mean 0.7500, 0.5000 to 1.0000, 2 videos (default)"
    assert parts["captions"] == "1 for 1, 2 for 1 videos"
    assert parts["folds"] == "2, of 1, 1 videos"
    assert parts["groups"] == "2"
    assert done.stdout.endswith("no problem found\n")


def test_errors_are_grouped_counted_and_placed(folder: Path) -> None:
    rows = "".join(f"{number}.mp4,7,x,train,0,F\n" for number in range(25))
    (folder / "list.csv").write_text(f"{LISTS}a.mp4,0.5,x,train,0,F\n{rows}b.mp4,1,,train,0,F\n")
    done = memcli_here("dataset", "check", folder, cwd=folder)
    assert (done.returncode, done.stderr) == (1, "")
    table = folder / "list.csv"
    lines = done.stdout.splitlines()
    place = lines.index("25 errors: score outside [0, 1]")
    assert lines[place + 1] == f"  {table}:3: raw score of '0.mp4' is 7, not in [0, 1]"
    assert lines[place + 21] == "  and 5 more (--json lists them all)"
    assert "25 errors: no video file" in lines
    assert f"  {table}:28: 'b.mp4' has no caption" in lines
    assert lines[-1] == "51 errors, 0 warnings"


def test_warnings_alone_are_no_failure(folder: Path) -> None:
    for path in folder.glob("*.mp4"):
        path.unlink()
    done = memcli_here("dataset", "check", folder, cwd=folder)
    assert done.returncode == 0
    assert "2 warnings: no video file" in done.stdout


def test_json_has_every_problem(folder: Path) -> None:
    rows = "".join(f"{number}.mp4,0.25,x,train,0,F\n" for number in range(30))
    (folder / "list.csv").write_text(f"{LISTS}a.mp4,0.75,x,train,0,F\n{rows}")
    done = memcli_here("dataset", "check", folder / "list.csv", "--json", cwd=folder)
    assert done.returncode == 1
    report = json.loads(done.stdout)
    problems = report.pop("problems")
    assert len(problems) == 30
    assert problems[0] == {
        "severity": "error",
        "kind": "missing-video",
        "what": "'0.mp4' has no video file",
        "file": str(folder / "list.csv"),
        "line": 3,
    }
    assert report == {
        "dataset": "csv",
        "root": str(folder / "list.csv"),
        "videos": 31,
        "files": 1,
        "splits": {"train": 31},
        "targets": {
            "raw": {"videos": 31, "mean": pytest.approx(8.25 / 31), "min": 0.25, "max": 0.75}
        },
        "default_target": "raw",
        "captions_per_video": {"1": 31},
        "features": {},
    }


def test_decode_finds_what_does_not_decode(folder: Path) -> None:
    whole = (folder / "b.mp4").read_bytes()
    (folder / "b.mp4").write_bytes(whole[: len(whole) // 2])
    assert memcli_here("dataset", "check", folder, cwd=folder).returncode == 0
    done = memcli_here("dataset", "check", folder, "--decode", cwd=folder)
    assert done.returncode == 1
    assert "1 error: video does not decode" in done.stdout
    assert f"  {folder / 'list.csv'}:4: {folder / 'b.mp4'}: " in done.stdout


def test_decode_keeps_to_the_processors_of_the_process(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from memcli.commands import dataset as command

    threads = set()

    def decode(*_: object) -> None:
        threads.add(threading.get_ident())
        time.sleep(0.01)

    rows = "".join(f"{number}.mp4,0.5\n" for number in range(10))
    for number in range(10):
        shutil.copy(folder / "a.mp4", folder / f"{number}.mp4")
    (folder / "list.csv").write_text(f"path,score\n{rows}")
    monkeypatch.setattr(command, "_decode", decode)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    assert run(["dataset", "check", str(folder), "--decode"]) == 0
    assert len(threads) == 1


@pytest.mark.parametrize("words", [[], ["--dataset", "videomem"], ["--dataset", "lamem"]])
def test_no_dataset_is_a_usage_error(tmp_path: Path, words: list[str]) -> None:
    done = memcli_here("dataset", "check", tmp_path, *words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    as_json = memcli_here("dataset", "check", tmp_path, *words, "--json", cwd=tmp_path)
    assert as_json.returncode == 2
    assert json.loads(as_json.stderr)["exit_code"] == 2


def test_foreign_names_cannot_steer_the_terminal(folder: Path) -> None:
    bad = "\x1b[2J\u202ec"
    (folder / "list.csv").write_text(f'path,score,group\n"{bad}.mp4","{bad}","{bad}"\na.mp4,1,\n')
    done = memcli_here("dataset", "check", folder, cwd=folder)
    assert done.returncode == 1
    assert all(line.isprintable() for line in done.stdout.splitlines())


def test_a_check_without_decoding_imports_nothing_heavy(folder: Path) -> None:
    code = (
        "import sys\nfrom memcli.app import run\n"
        f"run(['dataset', 'check', {os.fspath(folder)!r}])\n"
        "heavy = {'torch', 'numpy', 'av', 'sklearn', 'pandas', 'transformers', 'lightning'}\n"
        "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
