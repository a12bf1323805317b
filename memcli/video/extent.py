"""Whether a file ends before the end that its own headers state.

Bytes are compared, not lengths of time: stated durations cover sound that outlasts the video, are
rounded, and lie in files that are otherwise sound; sizes of boxes and chunks must be right for a
file to be read at all.

MP4, Matroska, WebM, AVI and FLV state sizes. MPEG-TS, MPEG-PS, GIF and raw streams state none and
can be cut anywhere: of them nothing can be known. Nor of recordings that were never finished,
whose sizes are marked as unknown, and of a cut exactly between two fragments of an MP4 or two
clusters of a live WebM.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

from memcli.text import plural
from memcli.video.files import from_os_error
from memcli.video.types import Guard

if TYPE_CHECKING:
    from memcli.video.source import OpenVideo

_MOST_ELEMENTS = 1_000_000  # looked at per file; about a second
# Boxes at the top level (ISO/IEC 14496-12, QuickTime). Others are what came behind the video.
_BOXES = frozenset(
    b"ftyp styp moov mdat imda moof mfra sidx ssix prft emsg free skip wide uuid meta udta pdin "
    b"pnot PICT junk".split()
)
_EBML, _SEGMENT = 0x1A45DFA3, 0x18538067
_SEGMENT_ELEMENTS = frozenset(  # RFC 9559, section 5.1
    {
        0x114D9B74,  # SeekHead
        0x1549A966,  # Info
        0x1654AE6B,  # Tracks
        0x1043A770,  # Chapters
        0x1F43B675,  # Cluster
        0x1C53BB6B,  # Cues
        0x1941A469,  # Attachments
        0x1254C367,  # Tags
        0xEC,  # Void
        0xBF,  # CRC-32
    }
)
_RIFF_SLACK = 8  # some writers count the eight bytes of the chunk's own header, too


def missing_end(fd: int, guard: Guard) -> str | None:
    """What a file lacks at its end by the sizes that its headers state, in one line; else None.

    Raises VideoError (READ) where the file cannot be read, and what `guard` raises.
    """
    try:
        size = os.fstat(fd).st_size
        stated = _stated_size(fd, size, guard)
    except OSError as error:
        raise from_os_error(error) from error
    if stated is None or stated <= size:
        return None
    return f"the file ends early: {size:,} of at least {stated:,} bytes are in it"


def missing_frames(video: OpenVideo) -> str | None:
    """What an MP4 lacks by the table of its frames, in one line; None for all other formats."""
    if not video.container.format.name.startswith("mov"):
        return None
    size = os.fstat(video.fd).st_size
    missing = sum(entry.pos + entry.size > size for entry in video.stream.index_entries)
    return f"{plural(missing, 'listed frame')} missing" if missing else None


def lacks_index(fd: int, guard: Guard) -> bool:
    """Whether an MP4 ends before or in the box that says where its frames are, which recorders
    and encoders write last.

    Raises VideoError (READ) where the file cannot be read, and what `guard` raises.
    """
    try:
        size = os.fstat(fd).st_size
        boxes = list(_boxes(fd, size, guard))
    except OSError as error:
        raise from_os_error(error) from error
    whole = {kind for kind, end in boxes if end <= size}
    began = {kind for kind, _ in boxes} & {b"mdat", b"moov"}
    return bool(began) and not whole & {b"moov", b"moof"} and boxes[-1][1] >= size


def _stated_size(fd: int, size: int, guard: Guard) -> int | None:
    """The length of the file by its headers; where it is more than `size`, at least a part of it.

    None where they do not say.
    """
    head = os.pread(fd, 16, 0)
    if head[4:8] in _BOXES:
        return _end_of_boxes(fd, size, guard)
    if head.startswith(_EBML.to_bytes(4, "big")):
        return _end_of_matroska(fd, size, guard)
    if head.startswith(b"RIFF"):
        return _end_of_riff(fd, size, guard)
    if head.startswith(b"FLV"):
        return _flv_file_size(fd)
    return None


def _end_of_boxes(fd: int, size: int, guard: Guard) -> int | None:
    return next((end for _, end in _boxes(fd, size, guard) if end > size), None)


def _boxes(fd: int, size: int, guard: Guard) -> Iterator[tuple[bytes, int]]:
    """Kind and end of the boxes at the top level, up to the first that is not one of them."""
    place = 0
    for _ in range(_MOST_ELEMENTS):
        guard.check()
        head = os.pread(fd, 16, place)
        kind = head[4:8]
        if kind not in _BOXES:
            return
        length = int.from_bytes(head[:4], "big")
        smallest = 8
        if length == 1:  # it did not fit 32 bits
            length = int.from_bytes(head[8:16], "big")
            smallest = 16
        if length == 0:  # up to the end of the file, wherever that is
            yield kind, size
            return
        if length < smallest:
            return
        place += length
        yield kind, place
        if place > size:
            return


def _end_of_matroska(fd: int, size: int, guard: Guard) -> int | None:
    element = _element(fd, 0)
    if element is None or element[2] is None:
        return None
    element = _element(fd, element[1] + element[2])
    if element is None or element[0] != _SEGMENT:
        return None
    _, place, length = element
    if length is not None:
        return place + length
    for _ in range(_MOST_ELEMENTS):  # a live recording: its parts may say how long they are
        guard.check()
        element = _element(fd, place)
        if element is None or element[0] not in _SEGMENT_ELEMENTS or element[2] is None:
            break
        place = element[1] + element[2]
        if place > size:
            return place
    return None


def _element(fd: int, place: int) -> tuple[int, int, int | None] | None:
    """Id of an EBML element (RFC 8794), where its content starts, and its size if it is known."""
    head = os.pread(fd, 12, place)
    if not head or not head[0] & 0xF0:  # an id has up to four bytes
        return None
    id_bytes = 9 - head[0].bit_length()
    rest = head[id_bytes:]
    if not rest or not rest[0]:
        return None
    size_bytes = 9 - rest[0].bit_length()
    if len(rest) < size_bytes:
        return None
    ones = (1 << 7 * size_bytes) - 1
    length = int.from_bytes(rest[:size_bytes], "big") & ones
    name = int.from_bytes(head[:id_bytes], "big")
    return name, place + id_bytes + size_bytes, None if length == ones else length


def _end_of_riff(fd: int, size: int, guard: Guard) -> int | None:
    """AVI files over 1 GB are several RIFF chunks in a row (OpenDML)."""
    place = 0
    for _ in range(_MOST_ELEMENTS):
        guard.check()
        head = os.pread(fd, 8, place)
        length = int.from_bytes(head[4:], "little")
        if not head.startswith(b"RIFF") or length in (0, 0xFFFFFFFF):  # never finished
            break
        place += 8 + length + length % 2
        if place > size + _RIFF_SLACK:
            return place
    return None


def _flv_file_size(fd: int) -> int | None:
    """`filesize` of the script data at the start: a name with its length, a mark, a float64."""
    name = b"\0\x08filesize\0"
    head = os.pread(fd, 4096, 0)
    place = head.find(name) + len(name)
    if place < len(name) or place + 8 > len(head):
        return None
    (stated,) = struct.unpack_from(">d", head, place)
    return int(stated) if 0 < stated < 1 << 62 else None
