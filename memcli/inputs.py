"""From what the user names (files, folders, globs, lists) to the videos to score."""

from __future__ import annotations

import csv
import glob
import io
import os
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from memcli.errors import UsageError, VideoErrorCode
from memcli.walk import walk

# A folder is searched for these names. Audio containers are among them: a clip that turns out to
# have no picture deserves a row that says so rather than silence.
AUDIO_SUFFIXES = frozenset(
    {".aac", ".flac", ".m4a", ".mka", ".mp3", ".oga", ".ogg", ".opus", ".wav", ".wma"}
)
VIDEO_SUFFIXES = AUDIO_SUFFIXES | {
    f".{name}"
    for names in (
        "3g2 3gp amv asf avi divx dv f4v flv gif gifv h264 h265 hevc ivf m1v m2ts m2v m4v mj2",
        "mjpeg mjpg mk3d mkv mov mp4 mpe mpeg mpg mpv mts mxf nut obu ogm ogv qt rm rmvb ts vob",
        "webm wmv wtv y4m",
    )
    for name in names.split()
}
SIDECAR_SUFFIXES = (".txt", ".srt")
"""Of captions beside a video."""
LIST_SUFFIXES = frozenset({".txt", ".csv"})
_PATH_COLUMNS = ("path", "video", "filename", "file")
STDIN = "-"


@dataclass(frozen=True)
class Source:
    """One video to score, or a place that cannot even be looked at."""

    path: str
    """As it is shown and stored; undecodable bytes are carried as surrogates."""
    error: tuple[VideoErrorCode, str] | None = None

    @property
    def key(self) -> str:
        """The same for every spelling of a path: absolute, without `.` and `..`."""
        return os.path.abspath(self.path)  # noqa: PTH100 (Path would keep `..`)


@dataclass(frozen=True)
class Sources:
    """The videos to score, in order and each once."""

    items: list[Source]
    left_out: int
    """Files in searched folders whose names are neither those of videos nor of captions beside
    them."""


def collect(
    paths: Sequence[str | os.PathLike[str]], shard: tuple[int, int] | None = None
) -> Sources:
    """Find the videos that `paths` name.

    A path is a video, a folder (searched recursively), a glob, a list (`.txt`, one path a line;
    `.csv` with a `path` column) or `-` (paths on standard input, by line or NUL). `shard` (i, n)
    keeps the i-th of n parts, i from 1; the parts are the same on every machine that sees the same
    names. Captions beside a video that are named with it, as `*` does, are no videos of their own.
    Raises UsageError for a path that does not exist, and if nothing is found.
    """
    if not paths:
        raise UsageError("no video given", next_step="Name files or folders: memcli score VIDEOS")
    search = _Search(paths)
    found: dict[str, Source] = {}
    for path in paths:
        for source in search.named(os.fspath(path)):
            found.setdefault(source.key, source)
    if not found:
        if list(paths) == [STDIN]:
            raise UsageError(
                "standard input held no paths",
                next_step="Pipe some into it: find DIR -name '*.mp4' | memcli score -",
            )
        others = "file has another name" if search.left_out == 1 else "files have other names"
        left_out = f" ({search.left_out:,} {others})" if search.left_out else ""
        raise UsageError(
            f"no video found{left_out}",
            where=", ".join(os.fspath(path) for path in paths),
            next_step="Name a video file itself to score it whatever its name is.",
        )
    items = list(found.values())
    if shard is not None:
        items = [source for source in items if _shard_of(source.path, shard[1]) == shard[0]]
    return Sources(items=items, left_out=search.left_out)


def parse_shard(text: str) -> tuple[int, int]:
    """`2/8` to (2, 8). Raises UsageError unless 1 <= I <= N."""
    first, _, second = text.partition("/")
    if first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second):
        return int(first), int(second)
    raise UsageError(f"not a shard: {text!r}", next_step="Write I/N with 1 <= I <= N, e.g. 2/8.")


def _shard_of(path: str, count: int) -> int:
    # CRC-32 of the name: stable over machines, runs and additions to the folder.
    return zlib.crc32(os.fsencode(path)) % count + 1


class _Search:
    def __init__(self, paths: Sequence[str | os.PathLike[str]]) -> None:
        self.left_out = 0
        self._captions = beside_videos([os.fspath(path) for path in paths])

    def named(self, path: str) -> Iterator[Source]:
        """What an argument of the command names."""
        if path == STDIN:
            yield from self.listed(_read_stdin(), base="")
        elif os.path.isdir(path):  # noqa: PTH112
            yield from self.folder(path)
        elif os.path.lexists(path):
            if path in self._captions and not _is_list(path):
                return
            if Path(path).suffix.lower() in LIST_SUFFIXES and Path(path).is_file():
                yield from self.listed(_read_list(path), base=os.path.dirname(path))  # noqa: PTH120
            else:
                yield Source(path)
        elif glob.has_magic(path):
            matches = sorted(glob.glob(path, recursive=True))  # noqa: PTH207 (keeps the spelling)
            if not matches:
                raise UsageError("nothing matches this pattern", where=path)
            captions = beside_videos(matches)
            for match in matches:
                if match in captions:
                    continue
                yield from self.folder(match) if Path(match).is_dir() else [Source(match)]
        else:
            raise UsageError(
                "no such file or folder", where=path, next_step="Check the spelling of the path."
            )

    def listed(self, paths: Iterable[str], base: str) -> Iterator[Source]:
        """Paths from a list: what is missing there becomes a row, not the end of the run."""
        for path in paths:
            full = os.path.join(base, path)  # noqa: PTH118
            yield from self.folder(full) if Path(full).is_dir() else [Source(full)]

    def folder(self, top: str) -> Iterator[Source]:
        """Videos below `top`, sorted; links are followed, each folder is entered once."""
        for visited in walk(top):
            if visited.problem is not None:
                code = VideoErrorCode.PERMISSION if visited.denied else VideoErrorCode.READ
                yield Source(visited.path, error=(code, visited.problem))
                continue
            captions = beside_videos([entry.name for entry in visited.files])
            for entry in visited.files:
                if Path(entry.name).suffix.lower() in VIDEO_SUFFIXES:
                    yield Source(entry.path)
                elif entry.name not in captions:
                    self.left_out += 1
            empty = not visited.files and not visited.folders
            if empty and Path(visited.path).suffix.lower() in VIDEO_SUFFIXES:
                yield Source(visited.path)  # called clip.mp4: its row says what it is


def beside_videos(paths: Sequence[str]) -> set[str]:
    """Those of some paths, or of the names in a folder, that are captions beside a video among
    them: `clip.txt` and `clip.mp4.txt` with `clip.mp4`."""
    texts = [path for path in paths if path.endswith(SIDECAR_SUFFIXES)]
    if not texts:
        return set()
    bases: set[str] = set()
    for path in paths:
        stem, suffix = os.path.splitext(path)  # noqa: PTH122 (keeps the spelling)
        if suffix.lower() in VIDEO_SUFFIXES:
            bases |= {path, stem}
    return {path for path in texts if os.path.splitext(path)[0] in bases}  # noqa: PTH122


def _is_list(path: str) -> bool:
    """Whether a file has the name of a list, and paths in it."""
    if Path(path).suffix.lower() not in LIST_SUFFIXES or not Path(path).is_file():
        return False
    try:
        return any(_read_list(path))
    except UsageError:
        return False


def _read_stdin() -> Iterator[str]:
    data = sys.stdin.buffer.read()
    separator = b"\0" if b"\0" in data else b"\n"
    for line in data.split(separator):
        name = line if separator == b"\0" else line.rstrip(b"\r")
        if name:
            yield os.fsdecode(name)


def _read_list(path: str) -> Iterator[str]:
    try:
        text = Path(path).read_bytes().decode("utf-8-sig", "surrogateescape")
    except OSError as error:
        raise UsageError(f"this list cannot be read: {error.strerror}", where=path) from error
    if path.lower().endswith(".csv"):
        yield from _csv_paths(path, text)
        return
    lines = [line.rstrip("\r") for line in text.split("\n")]  # other breaks may be in names
    paths = [line for line in lines if line.strip() and not line.startswith("#")]
    folder = Path(path).parent
    if paths and not any(os.path.lexists(folder / line) for line in paths):
        raise UsageError(
            "none of its lines names a file: not a list of videos?",
            where=path,
            next_step="A .txt or .csv file is read as a list of paths; leave it out if it is none.",
        )
    yield from paths


def _csv_paths(path: str, text: str) -> Iterator[str]:
    reader = csv.DictReader(io.StringIO(text, newline=""))
    names = {name.strip().lower(): name for name in reader.fieldnames or [] if name}
    column = next((names[name] for name in _PATH_COLUMNS if name in names), None)
    if column is None:
        raise UsageError(
            "this list has no column of paths",
            where=path,
            next_step=f"Its first line must name one of: {', '.join(_PATH_COLUMNS)}.",
        )
    try:
        for row in reader:
            if value := (row[column] or "").strip():
                yield value
    except csv.Error as error:
        raise UsageError(f"line {reader.line_num}: {error}", where=path) from error
