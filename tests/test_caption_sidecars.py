"""Captions written beside videos, on file systems and beside files of all kinds."""

from __future__ import annotations

import csv
import errno
import os
import socket
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
    before = read_sidecar(str(tmp_path / "a.mp4"))
    beside = Sidecars([])
    beside.write(str(tmp_path / "a.mp4"), "a dog")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (beside.written, beside.kept) == (0, 1)
    assert read_sidecar(str(tmp_path / "a.mp4")) == before


@pytest.mark.parametrize("length", [250, 255])
def test_long_names_have_captions_beside_them_or_none(tmp_path: Path, length: int) -> None:
    video = str(tmp_path / ("a" * (length - 4) + ".mp4"))
    assert CaptionFinder(None, "prefer").find(video) is None
    Path(video.removesuffix(".mp4") + ".txt").write_text("beside")
    assert read_sidecar(video) == ("beside",)
    assert read_sidecar(str(tmp_path / ("b" * length))) == ()


def test_a_socket_is_no_caption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("a.txt")
        assert read_sidecar("a.mp4") == ()


@pytest.mark.parametrize("caption", ["=1+1", "+ two", "- a dog", "@home", "'quoted'", "a dog"])
def test_captions_of_a_table_are_what_was_said(tmp_path: Path, caption: str) -> None:
    path = tmp_path / "c.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("path", "caption"), ("a.mp4", csv_cell(caption))])
    assert read_captions(path).of("a.mp4") == (caption,)
