"""Captions of all origins in one table: what goes with what, and what is no video or no caption."""

from __future__ import annotations

import io
import wave
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the tiny captioner is exported")
pytest.importorskip("transformers", reason="as above")
pytest.importorskip("onnxruntime")

from captioned import CLIPS, make_videos, run
from media import make_video
from tiny_bundle import make_text_bundle
from tiny_captioner import install_captioner, silent_captioner

from memcli.errors import ExitCode


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    return make_videos(tmp_path / "videos")


def test_a_table_without_generated_captions_goes_with_any_captioner(
    memcli_home: Path, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One may be installed, or replaced, after rows failed for want of it."""
    make_text_bundle(memcli_home)
    file = videos.parent / "c.csv"
    file.write_text("path,caption\na.mp4,given a\nb.mp4,given b\n")
    code, first = run(videos, "tiny-text", "--captions", file)
    assert code == ExitCode.SOME_INPUTS_FAILED
    assert {row["captioner"] for row in first.values()} == {""}
    bundle = install_captioner(memcli_home)
    code, rows = run(videos, "tiny-text", "--captions", file, "--retry-failed")
    assert code == ExitCode.OK
    label = f"{bundle.name} {bundle.hash}"
    assert [rows[name]["captioner"] for name in CLIPS] == ["", "", label]
    assert rows["a.mp4"] == first["a.mp4"]
    install_captioner(memcli_home, "other", question="What is this?")
    capsys.readouterr()
    options = ("--captions", file, "--captioner", "other")
    assert run(videos, "tiny-text", *options)[0] == ExitCode.USAGE
    assert run(videos, "tiny-text")[0] == ExitCode.USAGE
    error = capsys.readouterr().err
    assert "made with a file of captions (" in error
    assert "this run has no file of captions" in error
    assert "None" not in error


def test_a_captioner_that_said_nothing_does_not_bind_the_table(
    memcli_home: Path, videos: Path
) -> None:
    make_text_bundle(memcli_home)
    silent_captioner(memcli_home, "silent")
    code, rows = run(videos, "tiny-text", "--captioner", "silent")
    assert code == ExitCode.SOME_INPUTS_FAILED
    assert {row["error_code"] for row in rows.values()} == {"no-caption"}
    install_captioner(memcli_home, "other")
    code, rows = run(videos, "tiny-text", "--captioner", "other", "--retry-failed")
    assert code == ExitCode.OK
    assert {row["captioner"].split()[0] for row in rows.values()} == {"other"}
    assert run(videos, "tiny-text", "--captioner", "silent")[0] == ExitCode.USAGE
    for name in CLIPS:  # another file now, with captions of its own: no made one is left
        make_video(videos / name, frames=9)
        (videos / f"{name}.txt").write_text("beside it")
    assert run(videos, "tiny-text", "--captioner", "other")[0] == ExitCode.OK
    assert run(videos, "tiny-text", "--captioner", "silent")[0] == ExitCode.OK


def test_files_without_captions_beside_videos_are_said(memcli_home: Path, videos: Path) -> None:
    make_text_bundle(memcli_home)
    install_captioner(memcli_home)
    (videos / "a.txt").write_text("")
    (videos / "b.srt").mkdir()
    (videos / "b.txt").write_text("beside b")
    code, rows = run(videos, "tiny-text")
    assert code == ExitCode.OK
    assert rows["a.mp4"]["caption_note"] == "not used: a.txt is empty"
    assert [rows["a.mp4"]["caption_source"], rows["b.mp4"]["caption_source"]] == [
        "generated",
        "sidecar",
    ]
    assert rows["b.mp4"]["caption_note"] == rows["c.mkv"]["caption_note"] == ""


def test_what_is_no_video_has_no_score(memcli_home: Path, videos: Path) -> None:
    """A model of captions alone decodes nothing, and yet must not score a text or a song."""
    make_text_bundle(memcli_home)
    for name in "abc":
        (videos / f"{name}.txt").write_text(f"beside {name}")
    (videos / "fake.mp4").write_text("no video")
    (videos / "fake.txt").write_text("beside it")
    (videos / "song.wav").write_bytes(sound())
    (videos / "song.txt").write_text("beside it")
    (videos / "notes.md").write_text("nobody's")
    code, rows = run(videos / "*", "tiny-text", output=videos.parent / "t.csv")
    assert code == ExitCode.SOME_INPUTS_FAILED
    assert {name: row["error_code"] for name, row in rows.items()} == {
        **dict.fromkeys(CLIPS, ""),
        "fake.mp4": "not-media",
        "song.wav": "no-video",
        "notes.md": "not-media",
    }
    named = [videos / name for name in ("a.mp4", "a.txt", "b.mp4", "b.txt")]
    code, rows = run(named[0], "tiny-text", *named[1:], output=videos.parent / "u.csv")
    assert (code, sorted(rows)) == (ExitCode.OK, ["a.mp4", "b.mp4"])


def sound() -> bytes:
    stream = io.BytesIO()
    with wave.open(stream, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(8000)
        out.writeframes(bytes(1600))
    return stream.getvalue()


def test_captions_are_not_required_of_what_cannot_be_scored(
    memcli_home: Path, videos: Path
) -> None:
    make_text_bundle(memcli_home)
    for name in "abc":
        (videos / f"{name}.txt").write_text("beside")
    (videos / "empty.mp4").write_bytes(b"")
    (videos / "song.wav").write_bytes(sound())
    code, rows = run(videos, "tiny-text", "--captions", "require")
    assert code == ExitCode.SOME_INPUTS_FAILED
    assert (rows["empty.mp4"]["error_code"], rows["a.mp4"]["status"]) == ("empty", "ok")
    assert rows["song.wav"]["error_code"] == "no-video"
