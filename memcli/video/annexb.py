"""What H.264 and HEVC say about themselves in a packet with start codes (Annex B)."""

from __future__ import annotations

from collections.abc import Iterator

_START = b"\0\0\1"
_H264_IDR, _H264_SEI, _H264_SLICE = 5, 6, 1
_HEVC_IRAP = range(16, 24)
_HEVC_SLICES = range(32)
_RECOVERY_POINT = 6


def starts_afresh(codec: str, data: bytes) -> bool:
    """Whether decoding can start exactly at this packet, whatever came before.

    H.264: an IDR picture, or a recovery point that is reached at once (H.264, D.2.8). HEVC: an
    IRAP picture. For other codecs the container's word is all there is.
    """
    if codec == "h264":
        for unit in _units(data):
            kind = unit[0] & 31
            if kind == _H264_IDR or (kind == _H264_SEI and _recovers_at_once(unit[1:])):
                return True
            if kind == _H264_SLICE:
                return False
        return False
    if codec == "hevc":
        kinds = [(unit[0] >> 1) & 63 for unit in _units(data)]
        first = next((kind for kind in kinds if kind in _HEVC_SLICES), None)
        return first is not None and first in _HEVC_IRAP
    return True


def _units(data: bytes) -> Iterator[bytes]:
    """The NAL units, each at most its first 4 KiB: headers are wanted, no pictures."""
    place = data.find(_START)
    while place >= 0:
        begin = place + len(_START)
        place = data.find(_START, begin)
        unit = data[begin : min(begin + 4096, place if place >= 0 else len(data))]
        if unit:
            yield unit


def _recovers_at_once(message: bytes) -> bool:
    """Whether an SEI unit holds a recovery point of zero frames: ue(v) of 0 is a single 1 bit."""
    place = 0
    while place + 1 < len(message):
        numbers = []
        for _ in range(2):  # type and size, each a run of 255 and a last byte
            number = 0
            while place < len(message) and message[place] == 255:
                number += 255
                place += 1
            if place >= len(message):
                return False
            numbers.append(number + message[place])
            place += 1
        kind, size = numbers
        if kind == _RECOVERY_POINT and place < len(message):
            return bool(message[place] & 0x80)
        place += size
    return False
