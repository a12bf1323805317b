"""Rows of `memcli caption`, and the captions beside the videos."""

from __future__ import annotations

import errno
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from memcli.captioning.sources import sidecar_paths
from memcli.errors import OutputError
from memcli.journal import RowJournal
from memcli.results import Layout, Status


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


CAPTIONS: Layout[CaptionRow] = Layout(CaptionRow, ())
MEASURED_COLUMNS = ("decode_ms", "caption_ms")
"""Columns that differ between two runs over the same files."""


class CaptionJournal(RowJournal[CaptionRow]):
    """The journal of `memcli caption`."""

    row_type = CaptionRow

    def rows_of(self, keys: Iterable[str]) -> Iterator[CaptionRow]:
        """The newest rows of finished files, in their order."""
        return self._rows_at(self._entries[key].offset for key in keys)


class Sidecars:
    """Writes captions beside videos: `clip.txt`, or `clip.mp4.txt` where two videos of a run share
    `clip`. Captions that are there already, in whichever file, stay what the video has."""

    def __init__(self, videos: Iterable[str]):
        self._sharing = Counter(os.path.splitext(video)[0] for video in videos)  # noqa: PTH122
        self.written = 0
        self.kept = 0
        """Files that were there already, with something else in them."""

    def write(self, video: str, caption: str) -> None:
        """Write the caption of a video. Raises OutputError if the disk does not take it."""
        stem = os.path.splitext(video)[0]  # noqa: PTH122 (Path would change undecodable names)
        path = f"{video if self._sharing[stem] > 1 else stem}.txt"
        content = f"{caption}\n".encode()
        for other in sidecar_paths(video):
            found = _content(other)
            if found is not None:
                self.kept += found != content
                return
        try:
            _place(path, content)
        except FileExistsError:
            self.kept += 1
        except OSError as error:
            raise OutputError(
                f"the caption cannot be written: {error.strerror or error}",
                where=path,
                next_step="Run it again without --sidecars, or where it may write.",
            ) from error
        else:
            self.written += 1


_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""What a file system says that has no hard links: FAT, exFAT, many network shares."""


def _write_new(path: str, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
    except BaseException:
        os.unlink(path)  # noqa: PTH108 (a torn caption would stay for good)
        raise


def _content(path: str) -> bytes | None:
    with suppress(OSError, ValueError):
        if os.path.isfile(path):  # noqa: PTH113
            with open(path, "rb") as stream:  # noqa: PTH123
                return stream.read()
    return None


def _place(path: str, content: bytes) -> None:
    """A new file that is whole from the start; another's of that name is never replaced."""
    descriptor, temporary = tempfile.mkstemp(dir=os.path.dirname(path) or ".")  # noqa: PTH120
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
        os.chmod(temporary, 0o644)  # noqa: PTH101
        try:
            os.link(temporary, path)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            _write_new(path, content)
    finally:
        os.unlink(temporary)  # noqa: PTH108
