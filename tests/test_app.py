"""Exit codes and streams: what goes away, what breaks, and what the code says then."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from cli import memcli, memcli_command, table
from media import make_video
from tiny_bundle import make_tiny_bundle

from memcli import app, results
from memcli.errors import ExitCode
from memcli.progress import say

TINY = ("--model", "tiny", "--engine", "onnxruntime")


@pytest.fixture
def clips(memcli_home: Path, tmp_path: Path) -> Path:
    make_tiny_bundle(memcli_home)
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(6):
        make_video(folder / f"{number}.mp4", frames=3)
    return folder


@pytest.mark.parametrize("stream", ["stderr", "stdout"])
@pytest.mark.parametrize("option", [[], ["--json"]])
def test_a_reader_that_goes_away_does_not_end_the_run(
    clips: Path, tmp_path: Path, stream: str, option: list[str]
) -> None:
    process = subprocess.Popen(
        memcli_command("score", clips, *TINY, *option),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    pipe = getattr(process, stream)
    pipe.close()
    setattr(process, stream, None)
    process.communicate(timeout=60)
    assert process.returncode == ExitCode.OK
    assert len(table(tmp_path / "scores.csv")) == 6


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_messages_to_a_full_disk_do_not_end_the_run(clips: Path, tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            memcli_command("score", clips, *TINY), cwd=tmp_path, stderr=full, stdout=subprocess.PIPE
        )
    assert done.returncode == ExitCode.OK
    assert len(table(tmp_path / "scores.csv")) == 6


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "words", [["--help"], ["score", "--help"], ["models"], ["models", "--json"], ["--version"]]
)
def test_standard_output_on_a_full_disk_is_named(words: list[str], unbuffered: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            memcli_command(*words),
            stdout=full,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )
    assert done.returncode == ExitCode.NOT_USABLE
    assert b"standard output cannot be written: No space left on device" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENAMETOOLONG, ExitCode.USAGE), (errno.EACCES, ExitCode.NOT_USABLE)]
)
def test_a_path_that_the_system_refuses_is_no_internal_error(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], number: int, code: ExitCode
) -> None:
    def refused(*_: object) -> int:
        raise OSError(number, os.strerror(number), "long/" * 1000)

    monkeypatch.setattr(app, "_invoke", refused)
    assert app.run(["models"]) == code
    shown = capfd.readouterr().err
    assert shown.startswith("error: long/long/")
    assert shown.endswith(f": {os.strerror(number)}\n")
    assert len(shown) < 300


def test_another_failing_file_is_not_taken_for_standard_output(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(app, "_invoke", broken)
    assert app.run([]) == ExitCode.NOT_USABLE
    assert "internal error (OSError: [Errno 28]" in capfd.readouterr().err


def test_a_closed_standard_output(tmp_path: Path) -> None:
    words = " ".join(memcli_command("models", "--help"))
    done = subprocess.run(["sh", "-c", f"{words} >&-"], stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (ExitCode.OK, b"")


@pytest.mark.parametrize(("word", "hint"), [("-x.mp4", True), ("-x", False)])
def test_a_file_that_looks_like_an_option(
    word: str, hint: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    assert app.run(["score", word]) == ExitCode.USAGE
    shown = capfd.readouterr().err
    assert "No such option" in shown
    assert (f"write ./{word}" in shown) == hint


def test_help_to_a_closed_pipe(tmp_path: Path) -> None:
    process = subprocess.Popen(
        memcli_command("score", "--help"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    _, stderr = process.communicate(timeout=60)
    assert b"Traceback" not in stderr


def test_a_bug_is_one_message_without_traceback(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> int:
        raise ZeroDivisionError("oops\x1b[31m")

    monkeypatch.setattr(app, "_invoke", broken)
    assert app.run([]) == ExitCode.NOT_USABLE
    shown = capfd.readouterr().err
    assert "internal error (ZeroDivisionError: oops\\x1b[31m)" in shown
    assert "Traceback" not in shown


def test_ctrl_c_outside_a_run(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_arguments: list[str], state: app.State) -> int:
        state.as_json = True
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "_invoke", interrupted)
    assert app.run([]) == ExitCode.INTERRUPTED
    assert capfd.readouterr().err == '{"event": "error", "text": "interrupted", "exit_code": 130}\n'


def test_a_message_cannot_forge_another(capfd: pytest.CaptureFixture[str]) -> None:
    say("name\x1b]0;title\x07\rerror")
    assert capfd.readouterr().err == "name\\x1b]0;title\\x07\\rerror\n"


def test_a_table_that_cannot_be_written_names_the_reason_and_the_way_on(
    clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def no_room(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results.os, "fsync", no_room)
    output = tmp_path / "t.csv"
    monkeypatch.setattr("memcli.journal.Journal.sync", lambda _: None)
    arguments = ["score", str(clips), *TINY, "--curve", "-o", str(output)]
    assert app.run(arguments) == ExitCode.NOT_USABLE
    shown = capfd.readouterr().err
    assert "the table cannot be written: No space left on device" in shown
    assert "Its rows are safe in the journal" in shown
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "t.csv.journal"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(tmp_path: Path, shell: str) -> None:
    done = memcli("completion", shell, cwd=tmp_path)
    assert done.returncode == 0
    assert "_MEMCLI_COMPLETE" in done.stdout
    words = memcli(
        cwd=tmp_path,
        _MEMCLI_COMPLETE="bash_complete",
        COMP_WORDS="memcli mo",
        COMP_CWORD="1",
    )
    assert "models" in words.stdout


def test_version(tmp_path: Path) -> None:
    import memcli as package

    done = subprocess.run([sys.executable, "-m", "memcli", "--version"], capture_output=True)
    assert package.__version__ in done.stdout.decode()
