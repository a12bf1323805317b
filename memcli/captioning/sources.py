"""Where a video's captions come from: a file of captions, a file beside the video, the captioner.

Beside `clip.mp4` these are looked for, in this order: `clip.mp4.txt`, `clip.txt`, `clip.mp4.srt`,
`clip.srt`. Each line of a `.txt` is one caption; all the text of a `.srt` is one.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from memcli.captions import Captions, CaptionSource
from memcli.errors import UsageError, VideoError, VideoErrorCode
from memcli.inputs import SIDECAR_SUFFIXES
from memcli.spec import MAX_CAPTION_LENGTH, MAX_CAPTIONS
from memcli.text import decodable, plural, printable

CaptionMode = Literal["prefer", "require", "generate", "none"]
"""prefer: given, else from beside the video, else by the captioner if there is one; require: given
or from beside the video, for every video; generate: by the captioner only; none: no captions."""
MODES: tuple[CaptionMode, ...] = get_args(CaptionMode)
Origin = Literal["given", "sidecar", "generated", "none"]
"""What a row says of its captions."""
MAX_SIDECAR_BYTES = 4 << 20
_LISTED = 3
_KINDS = ((stat.S_ISDIR, "is a folder"), (stat.S_ISFIFO, "is a pipe"))
_TIMES = re.compile(r"\s*\d+:\d\d:\d\d[,.]\d+\s*-->")
_MARKUP = re.compile(r"<[^<>]{0,200}>|\{\\[^{}]{0,200}\}")


@dataclass(frozen=True)
class Found:
    """The captions of a video, and where they are from."""

    texts: tuple[str, ...]
    origin: Origin | None
    """None: there are none, and the captioner may make one."""
    note: str | None = None
    """Which files beside the video are not used, and why; one line."""


@dataclass(frozen=True)
class Beside:
    """What the files beside a video say of it."""

    texts: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    """Files of the right name without captions in them, and why, as far as they were looked at."""

    @property
    def note(self) -> str | None:
        """The same in one line; None if there is nothing to say."""
        return f"not used: {', '.join(self.unused)}" if self.unused else None


class CaptionFinder:
    """Finds the captions that are there already. Threads may share it."""

    def __init__(self, given: CaptionSource | None, mode: CaptionMode):
        self._given = given
        self._mode = mode

    def find(self, video: str) -> Found:
        """Captions that a video has.

        Raises VideoError (NO_CAPTION): several entries of the file fit equally well, the file
        beside the video cannot be read, or, of a source of captions that is no file, there is none.
        """
        if self._mode == "none":
            return Found((), "none")
        if self._mode == "generate":
            return Found((), None)
        given = self._given
        if isinstance(given, Captions):
            if given.fitting(video):
                return Found(given.of(video), "given")
        elif given is not None:
            return Found(given.of(video), "given")
        beside = read_sidecar(video)
        return Found(beside.texts, "sidecar" if beside.texts else None, beside.note)

    def missing(self, found: Found) -> VideoError:
        """Why there is no caption of a video that has none, as was found, and gets none."""
        note = f" ({found.note})" if found.note else ""
        where = f" of it in {printable(self._given.name)}, none" if self._given is not None else ""
        return VideoError(
            VideoErrorCode.NO_CAPTION,
            f"no caption{where} beside it{note}, and no captioner to make one",
        )


def check_required(
    given: CaptionSource | None,
    videos: Sequence[str],
    *,
    whole: bool,
    failing: Container[str] = (),
) -> None:
    """Raise UsageError unless every video has captions and every name in the file has a video.

    `whole` of False: these videos are one part of many, so that names may be of others. Those in
    `failing` cannot be scored anyway, and need none. The error
    counts what is wrong and names the first three of each kind.
    """
    finder = CaptionFinder(given, "require")
    missing, unreadable = [], []
    for video in videos:
        if video in failing:
            continue
        try:
            found = finder.find(video)
        except VideoError as error:
            unreadable.append(f"{video} ({error.what})")
        else:
            if found.origin is None:
                missing.append(f"{video} ({found.note})" if found.note else video)
    unknown = given.unused(videos) if whole and isinstance(given, Captions) else []
    problems = [
        _count(missing, "video", "has no caption", "have no caption"),
        _count(unreadable, "video", "has none that is clear", "have none that is clear"),
        _count(unknown, "name", "fits no video", "fit no video"),
    ]
    if any(problems):
        raise UsageError(
            "; ".join(filter(None, problems)),
            where=given.name if given is not None else None,
            next_step="Complete the captions, or leave out --captions require.",
        )


def _count(names: Sequence[str], noun: str, one: str, many: str) -> str:
    if not names:
        return ""
    first = ", ".join(printable(name) for name in names[:_LISTED])
    more = ", ..." if len(names) > _LISTED else ""
    return f"{plural(len(names), noun)} {one if len(names) == 1 else many}: {first}{more}"


def has_sidecar(video: str) -> bool:
    """Whether a file of captions is beside a video; it is not read."""
    return any(os.path.isfile(path) for path in sidecar_paths(video))  # noqa: PTH113


def any_sidecar(videos: Iterable[str]) -> bool:
    """Whether one of the videos has a file of captions beside it."""
    return any(map(has_sidecar, videos))


def sidecar_paths(video: str) -> list[str]:
    """Where captions of a video may be, beside it, in the order in which they are looked for."""
    stem = os.path.splitext(video)[0]  # noqa: PTH122 (Path would change undecodable names)
    bases = (video,) if stem == video else (video, stem)
    return [base + suffix for suffix in SIDECAR_SUFFIXES for base in bases]


def read_sidecar(video: str) -> Beside:
    """Captions from beside a video: those of the first file that has any.

    Raises VideoError (NO_CAPTION) for a file that cannot be read, is no UTF-8 text, or is larger
    than sense.
    """
    unused: list[str] = []
    for path in sidecar_paths(video):
        data = _read(path)
        if data is None:
            continue
        name = printable(os.path.basename(path))  # noqa: PTH119
        if isinstance(data, str):
            unused.append(f"{name} {data}")
            continue
        text = _decoded(data, path)
        lines = srt_text(text) if path.endswith(".srt") else text.split("\n")
        texts = tuple(decodable(line.strip()) for line in lines if line.strip())
        if len(texts) > MAX_CAPTIONS:
            raise _unusable(path, f"has more than {MAX_CAPTIONS} captions: one a line")
        if any(len(text) > MAX_CAPTION_LENGTH for text in texts):
            raise _unusable(path, f"has a caption of more than {MAX_CAPTION_LENGTH:,} characters")
        if texts:
            return Beside(texts, tuple(unused))
        unused.append(f"{name} has no subtitles in it" if text.strip() else f"{name} is empty")
    return Beside((), tuple(unused))


def srt_text(text: str) -> list[str]:
    """The words of a file of subtitles in one line, without numbers, times and markup."""
    words: list[str] = []
    for block in re.split(r"\n\s*\n", text.replace("\r\n", "\n").replace("\r", "\n")):
        lines = block.strip().split("\n")
        times = next((n for n, line in enumerate(lines[:2]) if _TIMES.match(line)), None)
        if times is not None:
            words += (_MARKUP.sub("", line).strip() for line in lines[times + 1 :])
    whole = " ".join(filter(None, words))
    # Subtitles of a film are longer than any model reads: what is over is cut here already.
    return [whole[:MAX_CAPTION_LENGTH]]


def _read(path: str) -> bytes | str | None:
    """The content of a file; None if there is none; else what it is in place of a file."""
    try:
        # A pipe of that name must not hold up the run.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return "is a link to nothing" if os.path.islink(path) else None  # noqa: PTH114
    except (OSError, ValueError) as error:
        code = getattr(error, "errno", None)
        if code == errno.ENAMETOOLONG:
            return None  # no file can have this name: the video's own is nearly as long
        if code == errno.ENXIO:
            return "is a socket"
        reason = getattr(error, "strerror", None) or str(error)
        raise _unusable(path, f"cannot be read: {reason}") from error
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        return next((said for test, said in _KINDS if test(mode)), "is a device")
    with os.fdopen(descriptor, "rb") as stream:
        data = stream.read(MAX_SIDECAR_BYTES + 1)
    if len(data) > MAX_SIDECAR_BYTES:
        raise _unusable(path, f"is larger than {MAX_SIDECAR_BYTES >> 20} MiB")
    return data


def _decoded(data: bytes, path: str) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise _unusable(path, "is UTF-16, not UTF-8: save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _unusable(path, f"is not UTF-8 in line {line}: save it as UTF-8") from error
    if "\0" in text:
        raise _unusable(path, "is no text: it has a zero byte")
    return text


def _unusable(path: str, reason: str) -> VideoError:
    name = printable(os.path.basename(path))  # noqa: PTH119
    return VideoError(
        VideoErrorCode.NO_CAPTION, f"the file of captions beside it, {name}, {reason}"
    )
