"""Captions that were made are kept: a second model or run does not make them again.

One file per captioner and sampling, `$MEMCLI_HOME/captions/HASH-SAMPLING.jsonl`, one JSON object a
line. The hash covers files, prompt, frames and generation settings (`CaptionerBundle.hash`); within
the file a video is known by path, size and modification time. Several processes may add at once; a
line that a crash tore or the disk damaged is dropped, and its video captioned again. The file may
be deleted or begun anew at any time: the place of a line is remembered, and its video compared.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import threading
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from memcli.closing import Closeable
from memcli.home import home
from memcli.text import printable

_BLOCK_BYTES = 1 << 20
_SHOWN = 80
_TRIES = 8


def captions_dir() -> Path:
    """Captions that were made on this machine."""
    return home() / "captions"


@dataclass(frozen=True)
class VideoKey:
    """A video as far as its metadata tell: a changed file has another."""

    path: str
    """Absolute, without `.` and `..`."""
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class MadeCaption:
    """What a captioner said of a video, and what it saw of it."""

    text: str
    tokens: int
    looping: bool
    cut: bool
    """It was longer than the captioner's `max_new_tokens`."""
    duration_s: float | None
    width: int
    height: int
    frames_used: int
    damage: str | None
    decoder: str
    """What decoded it: cpu or nvdec."""
    failure: str | None = None
    """Why the captioner could not compute it; such a one is not kept."""

    @property
    def problem(self) -> str | None:
        """Why it is not to be used, in one line; None if it is."""
        if self.failure is not None:
            return self.failure
        if self.looping:
            return f"the captioner repeated itself: {printable(self.text[:_SHOWN]) or 'at once'}"
        return None if self.text else "the captioner gave no caption"


class CaptionCache(Closeable):
    """The captions of one captioner. Threads may share it."""

    def __init__(self, captioner: str, sampling: str, folder: Path | None = None):
        """`captioner` is its hash. Nothing is created before the first caption is added."""
        self.path = (folder or captions_dir()) / f"{captioner}-{sampling}.jsonl"
        self.problem: str | None = None
        """Why captions are not kept, since the first that could not be written."""
        self._lock = threading.Lock()
        self._stream: BinaryIO | None = None
        """The file that the places are of. It is held open, so that no other gets its number."""
        self._places: dict[VideoKey, int] = {}
        self._seen = 0

    def get(self, key: VideoKey) -> MadeCaption | None:
        """The caption of a video, also if another process has just made it; None without one."""
        with self._lock:
            try:
                return self._find(key)
            except (OSError, ValueError):  # a disk that fails
                self._forget()
                return None

    def add(self, key: VideoKey, caption: MadeCaption) -> None:
        """Keep a caption. Where that fails `problem` says why; the run is none the worse for it."""
        line = {"path": key.path, "size": key.size, "mtime_ns": key.mtime_ns, **asdict(caption)}
        del line["failure"]
        with self._lock:
            if self.problem is not None:
                return
            try:
                self._append(json.dumps(line).encode("ascii") + b"\n")
            except OSError as error:
                self.problem = error.strerror or str(error)

    def close(self) -> None:
        """Free the file."""
        with self._lock:
            self._forget()

    def _append(self, line: bytes) -> None:
        for _ in range(_TRIES):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            descriptor = os.open(self.path, flags, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if not self._is_there(descriptor):
                    continue  # deleted since it was opened: a line in it would be lost
                end = os.fstat(descriptor).st_size
                if end and os.pread(descriptor, 1, end - 1) != b"\n":
                    line = b"\n" + line  # a torn line must not take this one with it
                if os.write(descriptor, line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return
            finally:
                os.close(descriptor)
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))

    def _is_there(self, descriptor: int) -> bool:
        """Whether an open file is the one that has the name now."""
        try:
            return os.path.samestat(os.fstat(descriptor), self.path.stat())
        except FileNotFoundError:
            return False

    def _find(self, key: VideoKey) -> MadeCaption | None:
        self._follow()
        for _ in range(2):
            if key not in self._places:
                self._look()
            place = self._places.get(key)
            if place is None or self._stream is None:
                return None
            self._stream.seek(place)
            value = _parsed(self._stream.readline())
            if _key(value) == key:
                return _caption(value)
            self._forget()  # written over: what is where is to be found out anew
            self._follow()
        return None

    def _follow(self) -> None:
        """Turn to the file that is there now; of another, or a longer one, nothing is known."""
        if self._stream is not None:
            held = self._stream.fileno()
            if self._is_there(held) and os.fstat(held).st_size >= self._seen:
                return
            self._forget()
        with suppress(FileNotFoundError, NotADirectoryError):
            self._stream = self.path.open("rb")

    def _forget(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream = None
        self._places.clear()
        self._seen = 0

    def _look(self) -> None:
        """Take up what was added since, by whomever."""
        stream = self._stream
        if stream is None or os.fstat(stream.fileno()).st_size <= self._seen:
            return
        stream.seek(self._seen)
        while block := stream.readlines(_BLOCK_BYTES):
            for line in block:
                if not line.endswith(b"\n"):
                    return  # torn, or being written at this moment
                if (key := _key(_parsed(line))) is not None:
                    self._places[key] = self._seen
                self._seen += len(line)


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _key(value: dict[str, Any]) -> VideoKey | None:
    """The video of a line; None for one that cannot be used."""
    try:
        key = VideoKey(value["path"], value["size"], value["mtime_ns"])
    except KeyError:
        return None
    return key if _is_whole(key, VideoKey) and _caption(value) is not None else None


def _caption(value: dict[str, Any]) -> MadeCaption | None:
    names = [name for name in MadeCaption.__dataclass_fields__ if name != "failure"]
    if any(name not in value for name in names):
        return None
    caption = MadeCaption(**{name: value[name] for name in names})
    return caption if _is_whole(caption, MadeCaption) else None


def _is_whole(value: Any, kind: type[Any]) -> bool:
    """Whether every field has the type that it is declared with."""
    fields = kind.__annotations__
    return all(type(getattr(value, name)).__name__ in _TYPES[said] for name, said in fields.items())


_TYPES = {
    "str": ("str",),
    "int": ("int",),
    "bool": ("bool",),
    "str | None": ("str", "NoneType"),
    "float | None": ("float", "int", "NoneType"),
}
