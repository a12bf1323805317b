"""`memcli caption`: tables and files of captions, resumed and interrupted like scores."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="the tiny captioner is exported")
pytest.importorskip("transformers", reason="as above")
pytest.importorskip("onnxruntime")

from cli import memcli_command, table
from media import make_video
from tiny_captioner import break_captioner, install_captioner, silent_captioner

from memcli import app
from memcli.caption_rows import MEASURED_COLUMNS, Sidecars
from memcli.captioning.cache import captions_dir
from memcli.captions import read_captions
from memcli.errors import ExitCode


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    make_video(folder / "a.mp4", frames=5)
    make_video(folder / "b.mkv", frames=8)
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


@pytest.fixture
def videos(originals: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    folder.mkdir()
    for path in originals.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def caption(*arguments: Any, output: Path) -> tuple[int, dict[str, dict[str, Any]]]:
    """Exit code, and rows by name."""
    words = ["caption", *arguments, "--threads", "1", "--quiet", "-o", output]
    code = app.run([os.fspath(one) if isinstance(one, Path) else str(one) for one in words])
    rows = table(output) if output.suffix == ".csv" and output.exists() else []
    kept = [{k: v for k, v in row.items() if k not in MEASURED_COLUMNS} for row in rows]
    return code, {Path(row["path"]).name: row for row in kept}


def test_a_table_that_score_reads(memcli_home: Path, videos: Path, tmp_path: Path) -> None:
    bundle = install_captioner(memcli_home)
    code, rows = caption(videos, output=tmp_path / "c.csv")
    assert code == ExitCode.SOME_INPUTS_FAILED
    assert sorted(rows) == ["a.mp4", "b.mkv", "broken.mp4"]
    row = rows["a.mp4"]
    assert (row["status"], row["caption_source"]) == ("ok", "generated")
    assert (row["captioner"], row["sampling"]) == (f"{bundle.name} {bundle.hash}", "exact")
    assert (row["width"], row["height"], row["frames_used"]) == ("96", "64", "2")
    assert int(row["tokens"]) > 0
    assert (rows["broken.mp4"]["error_code"], rows["broken.mp4"]["caption"]) == ("not-media", "")
    given = read_captions(tmp_path / "c.csv")
    assert given.of(str(videos / "a.mp4")) == (row["caption"],)
    assert caption(videos, output=tmp_path / "c.jsonl")[0] == ExitCode.SOME_INPUTS_FAILED
    lines = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    assert [line["caption"] is None for line in lines] == [False, False, True]
    assert set(read_captions(tmp_path / "c.jsonl").entries) == {
        str(videos / name) for name in ("a.mp4", "b.mkv")
    }


def test_resuming_and_other_settings(
    memcli_home: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = install_captioner(memcli_home)
    output = tmp_path / "c.csv"
    first = caption(videos, output=output)
    break_captioner(bundle)
    journal = (tmp_path / "c.csv.journal").read_text()
    assert caption(videos, output=output) == first
    assert (tmp_path / "c.csv.journal").read_text() == journal
    assert caption(videos, "--no-resume", output=output) == first  # kept captions
    assert caption(videos, "--sampling", "keyframe", output=output)[0] == ExitCode.USAGE
    assert "sampling exact; this run has sampling keyframe" in capsys.readouterr().err
    for path in captions_dir().iterdir():
        path.unlink()
    assert caption(videos, "--no-resume", output=output)[0] == ExitCode.NOT_USABLE


def test_files_beside_the_videos(
    memcli_home: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install_captioner(memcli_home)
    (videos / "b.mp4").write_bytes((videos / "a.mp4").read_bytes())
    (videos / "a.txt").write_text("mine")
    _, rows = caption(videos, "--sidecars", output=tmp_path / "c.csv")
    beside = {path.name: path.read_text() for path in videos.glob("*.txt")}
    assert beside.pop("a.txt") == "mine"
    assert sorted(beside) == ["b.mkv.txt", "b.mp4.txt"]  # both are called b
    for name, text in beside.items():
        said = rows[name.removesuffix(".txt")]["caption"]
        assert text.endswith("\n")
        assert text[:-1] == said or said == f"'{text[:-1]}"
    assert sorted(path.suffix for path in videos.iterdir()).count(".txt") == 3
    words = ["caption", str(videos), "--sidecars", "--threads", "1", "--no-resume"]
    capsys.readouterr()
    assert app.run([*words, "-o", str(tmp_path / "c.csv")]) == ExitCode.SOME_INPUTS_FAILED
    assert "beside the videos: 0 files written; 1 already there" in capsys.readouterr().err


def test_files_beside_the_videos_may_be_asked_for_later(
    memcli_home: Path, videos: Path, tmp_path: Path
) -> None:
    bundle = install_captioner(memcli_home)
    output = tmp_path / "c.jsonl"
    caption(videos, output=output)
    assert not list(videos.glob("*.txt"))
    break_captioner(bundle)
    caption(videos, "--sidecars", output=output)
    said = [json.loads(line) for line in output.read_text().splitlines()]
    assert {path.name: path.read_text() for path in videos.glob("*.txt")} == {
        Path(row["path"]).with_suffix(".txt").name: row["caption"] + "\n"
        for row in said
        if row["caption"]
    }
    assert len(list(videos.glob("*.txt"))) == 2


def test_a_place_where_no_file_can_be_written(tmp_path: Path) -> None:
    video = str(tmp_path / "absent" / "a.mp4")
    assert Sidecars([video]).write(video, "a dog") == (
        "a.txt cannot be written: No such file or directory"
    )


def test_a_caption_that_cannot_be_written_is_in_its_row(
    memcli_home: Path, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The others go on; the next run writes it, if it can, without captioning again."""
    bundle = install_captioner(memcli_home)
    long = videos / ("a" * 252 + ".ts")
    (videos / "broken.mp4").unlink()
    (videos / "a.mp4").rename(long)
    output = tmp_path / "c.csv"
    code, rows = caption(videos, "--sidecars", output=output)
    reason = f"{long.stem}.txt cannot be written: File name too long"
    assert code == ExitCode.SOME_INPUTS_FAILED
    assert [rows[long.name][name] for name in ("status", "sidecar_error")] == ["ok", reason]
    assert [rows["b.mkv"][name] for name in ("status", "sidecar_error")] == ["ok", ""]
    assert (videos / "b.txt").exists()
    break_captioner(bundle)
    words = ["caption", str(videos), "--sidecars", "--threads", "1", "-o", str(output)]
    capsys.readouterr()
    assert app.run(words) == ExitCode.SOME_INPUTS_FAILED
    error = capsys.readouterr().err
    assert f"not written beside the videos: 1 caption, which the table has\n  {long}: " in error
    assert "already there" not in error
    journal = (tmp_path / "c.csv.journal").read_bytes()
    assert caption(videos, output=output) == (ExitCode.OK, rows)
    assert (tmp_path / "c.csv.journal").read_bytes() == journal


def test_a_row_of_an_earlier_run_is_mended(
    memcli_home: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from memcli import caption_rows

    def refused(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    install_captioner(memcli_home)
    output = tmp_path / "c.csv"
    with monkeypatch.context() as patched:
        patched.setattr(caption_rows, "_place", refused)
        code, rows = caption(videos / "a.mp4", "--sidecars", output=output)
    assert code == ExitCode.SOME_INPUTS_FAILED
    assert rows["a.mp4"]["sidecar_error"] == "a.txt cannot be written: Permission denied"
    code, rows = caption(videos / "a.mp4", "--sidecars", output=output)
    assert code == ExitCode.OK
    assert rows["a.mp4"]["sidecar_error"] == ""
    assert (videos / "a.txt").exists()


def test_a_captioner_that_says_nothing(memcli_home: Path, videos: Path, tmp_path: Path) -> None:
    silent_captioner(memcli_home)
    code, rows = caption(videos / "a.mp4", "--sidecars", output=tmp_path / "c.csv")
    assert code == ExitCode.SOME_INPUTS_FAILED
    row = rows["a.mp4"]
    assert (row["status"], row["error_code"]) == ("failed", "no-caption")
    assert row["error"] == "the captioner gave no caption"
    assert not list(videos.glob("*.txt"))


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ([], ExitCode.NOT_USABLE, "no captioner is installed\n  Make one:"),
        (["--captioner", "256m"], ExitCode.NOT_USABLE, "memcli export captioner --size 256m "),
        (["--captioner", "SmolVLM2-2.2B"], ExitCode.NOT_USABLE, "captioner --size 2.2b "),
        (["--captioner", "absent"], ExitCode.NOT_USABLE, "no captioner 'absent' here"),
        (["--device", "tpu"], ExitCode.USAGE, "no device 'tpu'"),
        (["--device", "cuda:x"], ExitCode.USAGE, "no device 'cuda:x'"),
        (["--no-resume", "--retry-failed"], ExitCode.USAGE, "--retry-failed needs"),
        (["--shard", "3/2"], ExitCode.USAGE, "not a shard"),
    ],
)
def test_bad_requests(
    originals: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    code: ExitCode,
    message: str,
) -> None:
    assert caption(originals, *options, output=tmp_path / "c.csv") == (code, {})
    error = capsys.readouterr().err
    assert message in error
    assert "--captions" not in error  # which is an option of score


def test_on_error_fail_stops(memcli_home: Path, videos: Path, tmp_path: Path) -> None:
    install_captioner(memcli_home)
    code, rows = caption(videos / "broken.mp4", "--on-error", "fail", output=tmp_path / "c.csv")
    assert code == ExitCode.SOME_INPUTS_FAILED
    assert list(rows) == ["broken.mp4"]


def test_an_interrupt_keeps_what_is_done(memcli_home: Path, tmp_path: Path) -> None:
    """Also in the midst of a batch: the captioner ends with its step."""
    bundle = install_captioner(memcli_home)
    folder = tmp_path / "many"
    folder.mkdir()
    content = make_video(tmp_path / "one.mp4", frames=4).read_bytes()
    for number in range(300):
        (folder / f"{number:03}.mp4").write_bytes(content)
    words = ("caption", folder, "--threads", "1", "--batch-size", "2", "--quiet")
    process = subprocess.Popen(
        memcli_command(*words, "-o", "c.csv"),
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler) and None,
    )
    journal = tmp_path / "c.csv.journal"
    limit = time.monotonic() + 60
    while time.monotonic() < limit and process.poll() is None:
        if journal.exists() and journal.read_bytes().count(b"\n") > 3:
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == ExitCode.INTERRUPTED
    assert process.stderr is not None
    assert b"Traceback" not in process.stderr.read()
    rows = table(tmp_path / "c.csv")
    assert 3 <= len(rows) < 300
    (kept,) = captions_dir().iterdir()
    made = kept.read_text().splitlines()
    assert len(rows) <= len(made) < 300
    assert kept.name.startswith(bundle.hash)
