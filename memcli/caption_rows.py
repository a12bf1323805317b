"""Rows of `memcli caption`, and the captions beside the videos."""

from __future__ import annotations

import errno
import os
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from memcli.captioning.sources import read_sidecar
from memcli.errors import OutputError, VideoError
from memcli.inputs import VIDEO_SUFFIXES
from memcli.journal import RowJournal
from memcli.results import Layout, Status
from memcli.text import printable


@dataclass(frozen=True)
class CaptionRow:
    """The caption of one video. Fields that do not apply are None (an empty cell)."""

    path: str
    status: Status
    caption: str | None
    caption_source: str | None
    """generated; None if it failed."""
    captioner: str
    """Name and hash of what made it."""
    device: str
    precision: str
    sampling: str
    weights_license: str
    tokens: int | None = None
    """Tokens of the caption."""
    cut: bool | None = None
    """It had more to say than the captioner's `max_new_tokens`."""
    duration_s: float | None = None
    width: int | None = None
    height: int | None = None
    frames_used: int | None = None
    """Distinct frames the caption rests on."""
    error_code: str | None = None
    error: str | None = None
    """Why it failed, or what is damaged in a partial one."""
    decoder: str | None = None
    decode_ms: float | None = None
    caption_ms: float | None = None
    """Its share of its batch's time; nearly none if it was kept from an earlier run."""
    sidecar_error: str | None = None
    """Why the caption could not be written beside the video; the caption itself is good."""


CAPTIONS: Layout[CaptionRow] = Layout(CaptionRow, ())
MEASURED_COLUMNS = ("decode_ms", "caption_ms")
"""Columns that differ between two runs over the same files."""


class CaptionJournal(RowJournal[CaptionRow]):
    """The journal of `memcli caption`."""

    row_type = CaptionRow

    def rows_of(self, keys: Iterable[str]) -> Iterator[CaptionRow]:
        """The newest rows of finished files, in their order."""
        return self._rows_at(self._entries[key].offset for key in keys)

    def amend(self, key: str, row: CaptionRow) -> None:
        """Put a row in the place of a finished file's. Raises OutputError."""
        self.write(key, self._entries[key].identity, row)


class Sidecars:
    """Writes captions beside videos: `clip.txt`, or `clip.mp4.txt` where another video of the run
    or the folder is called `clip` too. Captions that are there already, in whichever file, stay
    what the video has; a file without captions in it stays, too, and does not count."""

    def __init__(self, videos: Iterable[str]):
        self._run = Counter(_stem(video) for video in videos)
        self._folders: dict[str, Counter[str]] = {}
        self.written = 0
        self.kept = 0
        """Files that were there already, with other captions in them."""

    def write(self, video: str, caption: str) -> str | None:
        """Write the caption of a video. Gives None, or in one line why that place does not take it.

        Raises OutputError if the disk is full or fails: it would take no other either.
        """
        try:
            beside = read_sidecar(video)
        except VideoError:  # captions, as far as their owner is concerned
            self.kept += 1
            return None
        if beside.texts:
            self.kept += beside.texts != (caption,)
            return None
        stem = _stem(video)
        bases = [video] if self._is_shared(video) else list(dict.fromkeys((stem, video)))
        for base in bases:
            try:
                _place(f"{base}.txt", f"{caption}\n".encode())
            except FileExistsError:
                continue
            except OSError as error:
                reason = error.strerror or str(error)
                if error.errno in _DISK:
                    raise OutputError(
                        f"the caption cannot be written: {reason}",
                        where=f"{base}.txt",
                        next_step="Make room, or run it again without --sidecars.",
                    ) from error
                return f"{_shown(base)} cannot be written: {reason}"
            self.written += 1
            return None
        return f"{_shown(bases[-1])} is there, without captions in it"

    def _is_shared(self, video: str) -> bool:
        """Whether another video has the name but for its ending."""
        stem = _stem(video)
        folder, name = os.path.split(stem)
        if self._run[stem] > 1:
            return True
        if folder not in self._folders:
            self._folders[folder] = _videos_in(folder)
        itself = os.path.splitext(video)[1].lower() in VIDEO_SUFFIXES  # noqa: PTH122
        return self._folders[folder][name] > itself


def _stem(path: str) -> str:
    return os.path.splitext(path)[0]  # noqa: PTH122 (Path would change undecodable names)


def _shown(base: str) -> str:
    return printable(f"{os.path.basename(base)}.txt")  # noqa: PTH119


def _videos_in(folder: str) -> Counter[str]:
    """How many files of a folder have the names of videos, by name without ending."""
    try:
        names = os.listdir(folder or ".")  # noqa: PTH208 (names, in one go)
    except OSError:
        return Counter()
    split = (os.path.splitext(name) for name in names)  # noqa: PTH122
    return Counter(stem for stem, suffix in split if suffix.lower() in VIDEO_SUFFIXES)


_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EIO)
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""What a file system says that has no hard links: FAT, exFAT, many network shares."""


def _write_new(path: str, content: bytes) -> None:
    """A file that was not there. Raises FileExistsError, OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
    except BaseException:
        os.unlink(path)  # noqa: PTH108 (a torn caption would stay for good)
        raise


def _place(path: str, content: bytes) -> None:
    """A new file that is whole from the start; another's of that name is never replaced."""
    name = f".memcli-{secrets.token_hex(8)}.tmp"
    temporary = os.path.join(os.path.dirname(path), name)  # noqa: PTH118, PTH120
    _write_new(temporary, content)
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _write_new(path, content)
    finally:
        os.unlink(temporary)  # noqa: PTH108
