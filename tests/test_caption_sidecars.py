"""Captions written beside videos, on file systems and beside files of all kinds."""

from __future__ import annotations

import csv
import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from memcli.caption_rows import Sidecars
from memcli.captioning.sources import CaptionFinder, read_sidecar
from memcli.captions import read_captions
from memcli.errors import OutputError
from memcli.text import csv_cell


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK])
def test_hard_links_are_not_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def link(*_: str) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", link)
    video = str(tmp_path / "a.mp4")
    beside = Sidecars([video])
    beside.write(video, "a dog")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.txt", "a dog\n")]
    assert beside.written == 1


def test_a_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(OutputError, match="No space left"):
        Sidecars([]).write(str(tmp_path / "a.mp4"), "a dog")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.srt", "a.mp4.srt", "a.mp4.txt", "a.txt"])
def test_nothing_is_written_beside_captions(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("1\n00:00:00,000 --> 00:00:01,000\nmine\n")
    before = read_sidecar(str(tmp_path / "a.mp4")).texts
    beside = Sidecars([])
    beside.write(str(tmp_path / "a.mp4"), "a dog")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (beside.written, beside.kept) == (0, 1)
    assert read_sidecar(str(tmp_path / "a.mp4")).texts == before


@pytest.mark.parametrize("length", [250, 255])
def test_long_names_have_captions_beside_them_or_none(tmp_path: Path, length: int) -> None:
    video = str(tmp_path / ("a" * (length - 4) + ".mp4"))
    assert CaptionFinder(None, "prefer").find(video).origin is None
    Path(video.removesuffix(".mp4") + ".txt").write_text("beside")
    assert read_sidecar(video).texts == ("beside",)
    assert read_sidecar(str(tmp_path / ("b" * length))).texts == ()


def test_a_socket_is_no_caption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("a.txt")
        assert read_sidecar("a.mp4").texts == ()


@pytest.mark.parametrize("caption", ["=1+1", "+ two", "- a dog", "@home", "'quoted'", "a dog"])
def test_captions_of_a_table_are_what_was_said(tmp_path: Path, caption: str) -> None:
    path = tmp_path / "c.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("path", "caption"), ("a.mp4", csv_cell(caption))])
    assert read_captions(path).of("a.mp4") == (caption,)


def test_two_videos_of_a_name_never_share_a_caption(tmp_path: Path) -> None:
    """Also where this run, or this part of it, has but one of them."""
    for name in ("b.mp4", "b.MKV", "c.mp4", "c.jpg"):
        (tmp_path / name).write_bytes(b"")
    for name in ("b.mp4", "c.mp4"):
        video = str(tmp_path / name)
        assert Sidecars([video]).write(video, f"of {name}") is None
    assert (tmp_path / "b.mp4.txt").read_text() == "of b.mp4\n"
    assert (tmp_path / "c.txt").read_text() == "of c.mp4\n"
    assert read_sidecar(str(tmp_path / "b.MKV")).texts == ()


def test_a_file_without_captions_is_no_hindrance(tmp_path: Path) -> None:
    video = str(tmp_path / "a.mp4")
    (tmp_path / "a.txt").write_text(" \n")
    beside = Sidecars([video])
    assert beside.write(video, "a dog") is None
    assert (beside.written, beside.kept) == (1, 0)
    assert read_sidecar(video).texts == ("a dog",)
    assert (tmp_path / "a.txt").read_text() == " \n"
    (tmp_path / "a.mp4.txt").write_text("")
    assert beside.write(video, "a dog") == "a.mp4.txt is there, without captions in it"
    assert (beside.written, beside.kept) == (1, 0)


def test_a_name_that_is_too_long_is_said(tmp_path: Path) -> None:
    video = str(tmp_path / ("a" * 252 + ".ts"))
    problem = Sidecars([video]).write(video, "a dog")
    assert problem == f"{'a' * 252}.txt cannot be written: File name too long"
    assert not list(tmp_path.iterdir())


def test_files_have_the_permissions_that_new_files_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def chmod(*_: object) -> None:
        raise PermissionError(errno.EPERM, "a share")

    monkeypatch.setattr(os, "chmod", chmod)
    video = str(tmp_path / "a.mp4")
    before = os.umask(0o077)
    try:
        assert Sidecars([video]).write(video, "a dog") is None
    finally:
        os.umask(before)
    (path,) = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_of_any_size_may_be_there(tmp_path: Path) -> None:
    with (tmp_path / "a.txt").open("wb") as stream:
        stream.truncate(1 << 40)
    beside = Sidecars([])
    assert beside.write(str(tmp_path / "a.mp4"), "a dog") is None
    assert (beside.written, beside.kept) == (0, 1)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: path.write_text(""), "a.txt is empty"),
        (lambda path: path.write_text("\n \n"), "a.txt is empty"),
        (lambda path: path.mkdir(), "a.txt is a folder"),
        (lambda path: os.mkfifo(path), "a.txt is a pipe"),
        (lambda path: path.symlink_to("nowhere"), "a.txt is a link to nothing"),
        (lambda path: path.with_suffix(".srt").write_text("a dog"), "a.srt has no subtitles in it"),
    ],
)
def test_what_is_no_caption_is_said(
    tmp_path: Path, make: Callable[[Path], object], said: str
) -> None:
    make(tmp_path / "a.txt")
    finder = CaptionFinder(None, "prefer")
    found = finder.find(str(tmp_path / "a.mp4"))
    assert (found.texts, found.origin, found.note) == ((), None, f"not used: {said}")
    assert f"beside it (not used: {said}), and no captioner" in finder.missing(found).what
    (tmp_path / "a.mp4.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\na dog\n")
    found = finder.find(str(tmp_path / "a.mp4"))
    assert (found.texts, found.origin) == (("a dog",), "sidecar")
    assert found.note == (None if said.startswith("a.srt") else f"not used: {said}")
