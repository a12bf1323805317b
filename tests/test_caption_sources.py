"""Captions that are there already: files beside videos, modes, what is required."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memcli.captioning.sources import (
    CaptionFinder,
    Found,
    check_required,
    has_sidecar,
    read_sidecar,
    sidecar_paths,
    srt_text,
)
from memcli.captions import captions_from
from memcli.errors import UsageError, VideoError

SRT = """\ufeff1
00:00:01,000 --> 00:00:02,500
<i>a dog</i>
{\\an8}runs, 3 times

2
00:00:03.000 --> 00:00:04.000 X1:1
and 24 --> 12 barks
"""


@pytest.fixture
def video(tmp_path: Path) -> str:
    return str(tmp_path / "clip.mp4")


def beside(video: str, suffix: str, content: str | bytes) -> None:
    data = content if isinstance(content, bytes) else content.encode()
    Path(video.removesuffix(".mp4") + suffix).write_bytes(data)


def test_text_has_a_caption_a_line(video: str) -> None:
    assert read_sidecar(video).texts == ()
    assert not has_sidecar(video)
    beside(video, ".txt", "\ufeffa dog runs\r\n\n  two cats \n")
    assert has_sidecar(video)
    assert read_sidecar(video).texts == ("a dog runs", "two cats")


def test_subtitles_are_one_caption(video: str) -> None:
    beside(video, ".srt", SRT.replace("\n", "\r\n"))
    assert read_sidecar(video).texts == ("a dog runs, 3 times and 24 --> 12 barks",)
    beside(video, ".txt", " \n")  # nothing in it: the next is looked at
    assert read_sidecar(video).texts[0].startswith("a dog")
    beside(video, ".txt", "text first")
    assert read_sidecar(video).texts == ("text first",)
    beside(video, ".mp4.txt", "the whole name first")
    assert read_sidecar(video).texts == ("the whole name first",)


@given(st.text())
def test_any_subtitles_are_one_line(text: str) -> None:
    (line,) = srt_text(text)
    assert "\n" not in line
    assert "\r" not in line


def test_places_beside_a_video() -> None:
    assert sidecar_paths("a/b.c.mp4") == [
        "a/b.c.mp4.txt",
        "a/b.c.txt",
        "a/b.c.mp4.srt",
        "a/b.c.srt",
    ]
    assert sidecar_paths("a.d/b") == ["a.d/b.txt", "a.d/b.srt"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("a dog".encode("utf-16"), "clip.txt, is UTF-16, not UTF-8: save it as UTF-8"),
        (b"a dog\ncaf\xe9\n", "is not UTF-8 in line 2: save it as UTF-8"),
        (b"a\0b", "has a zero byte"),
        (b"a dog\n" * 65, "more than 64 captions"),
        (b"a" * 10_001, "more than 10,000 characters"),
        (b" " * (4 << 20) + b"a", "larger than 4 MiB"),
    ],
)
def test_what_cannot_be_read_is_said(video: str, content: bytes, reason: str) -> None:
    beside(video, ".txt", content)
    with pytest.raises(VideoError) as caught:
        CaptionFinder(None, "prefer").find(video)
    assert reason in caught.value.what
    assert caught.value.code.value == "no-caption"


def test_a_pipe_or_folder_of_that_name_is_no_caption(video: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "clip.txt")
    (tmp_path / "clip.mp4.txt").mkdir()
    beside(video, ".srt", SRT)
    assert read_sidecar(video).texts[0].startswith("a dog")


def test_given_captions_go_before_those_beside_a_video(video: str) -> None:
    captions = captions_from({"clip.mp4": ["given", "twice"]})
    beside(video, ".txt", "beside")
    assert CaptionFinder(captions, "prefer").find(video) == Found(("given", "twice"), "given")
    other = captions_from({"other.mp4": "given"})
    for mode in ("prefer", "require"):
        assert CaptionFinder(other, mode).find(video) == Found(("beside",), "sidecar")
        assert CaptionFinder(None, mode).find(video) == Found(("beside",), "sidecar")
        assert CaptionFinder(other, mode).find("elsewhere.mp4").origin is None
    assert CaptionFinder(None, "generate").find(video).origin is None
    assert CaptionFinder(None, "none").find(video) == Found((), "none")


def test_two_entries_that_fit_are_no_choice(video: str) -> None:
    captions = captions_from({"a/clip.mp4": "one", "b/clip.mp4": "two"})
    beside(video, ".txt", "beside")
    with pytest.raises(VideoError, match="which are of this video"):
        CaptionFinder(captions, "prefer").find(video)


def test_captions_of_a_program_are_all_there_are(video: str) -> None:
    class Source:
        name = digest = "a program's"

        def of(self, video: str) -> tuple[str, ...]:
            raise KeyError(video)

    beside(video, ".txt", "beside")
    with pytest.raises(KeyError):
        CaptionFinder(Source(), "prefer").find(video)


def test_required_captions_are_counted(tmp_path: Path) -> None:
    videos = [str(tmp_path / f"{name}.mp4") for name in "abcdefg"]
    captions = captions_from(
        {"a.mp4": "x", "c/b.mp4": "x", "d/b.mp4": "x", "y.mp4": "x", "z.mp4": "x"}
    )
    with pytest.raises(UsageError) as caught:
        check_required(captions, videos, whole=True)
    text = str(caught.value)
    assert "5 videos have no caption: " in text
    first = [f"{tmp_path}/{name}.mp4" for name in "cde"]
    assert f"{', '.join(first)}, ...;" in text
    assert f"1 video has none that is clear: {tmp_path}/b.mp4 (" in text
    assert "2 names fit no video: y.mp4, z.mp4" in text
    with pytest.raises(UsageError) as caught:
        check_required(captions, videos[:2], whole=False)
    assert "fit no video" not in str(caught.value)
    check_required(captions, videos[:1], whole=False)
    for name in "abcdefg":
        (tmp_path / f"{name}.txt").write_text("beside")
    check_required(None, videos, whole=True)
