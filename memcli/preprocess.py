"""THE transforms that execute a FramePrep, for scoring, training and calibration alike.

One pass of FFmpeg's swscale takes a frame from whatever the decoder gives (4:2:0, 10 bit, palette,
alpha) to RGB planes at the model's size; numpy crops and interleaves them. Alpha is dropped, not
blended, and interlaced frames are taken as they are.

The flags are chosen for agreement with PIL, which the models were trained with: swscale's
BILINEAR widens its triangle when it shrinks, as PIL's does. FULL_CHR_H_INT and FULL_CHR_H_INP
keep chroma at full width on the way to RGB; without them two neighbours share one chroma sample
and every channel comes out 1 to 2.5 of 255 too dark. Mean absolute difference to decoding at full
size and PIL's bilinear at 256 x 256: 0.05 to 0.5 of 255 on video (without: 1.8 to 2.9).
ACCURATE_RND and BITEXACT make the result the same on every processor and cost nothing here.
Planes, because swscale writes them with SIMD and packed RGB of full chroma without: 0.65 ms
against 1.25 ms for a 720p frame, with the interleaving.

Bicubic is swscale's, whose cubic has a = -0.6 where PIL's has -0.5 (PyAV cannot set it): on filmed
video at 224 x 224, normalised, the cosine to PIL's is 0.9995 to 1.

Colour: matrix and range are those of the stream. Where it does not say, FFmpeg's default holds,
whatever the size: BT.601, limited range (full for the yuvj formats).
"""

from __future__ import annotations

import av
import numpy as np
import numpy.typing as npt
from av.video.reformatter import VideoReformatter

from memcli.spec import FramePrep

# Values of libswscale's SWS_* flags; PyAV's Interpolation lacks some in older releases.
_FILTERS = {"bilinear": 0x2, "bicubic": 0x4}
_FULL_CHROMA = 0x2000 | 0x4000
_ACCURATE_RND = 0x40000
_BITEXACT = 0x80000
_EXACT = _FULL_CHROMA | _ACCURATE_RND | _BITEXACT
_MOST_ASPECT = 32
_MOST_LONG = 16384


class FramePreparer:
    """Executes a FramePrep on decoded frames. Keeps its swscale context: use one per thread."""

    def __init__(self, prep: FramePrep):
        self.prep = prep
        self._reformatter = VideoReformatter()
        self._flags = _FILTERS[prep.filter] | _EXACT

    def prepare(
        self, frame: av.VideoFrame, rotation: int = 0, out: npt.NDArray[np.uint8] | None = None
    ) -> npt.NDArray[np.uint8]:
        """One frame as the model takes it: uint8 [crop_height, crop_width, 3], C-contiguous.

        `rotation` is the counter-clockwise turn to apply, 0, 90, 180 or 270 degrees. The frame is
        turned after scaling, so for a quarter turn it is scaled to the sides exchanged. `out`, of
        the same shape, takes the result instead of a new array.
        Raises av.FFmpegError for a pixel format that swscale cannot read.
        """
        prep = self.prep
        turned = rotation % 180 != 0
        shown = (frame.height, frame.width) if turned else (frame.width, frame.height)
        resized = resized_size(prep, *shown)
        width, height = reversed(resized) if turned else resized
        left, top = (resized[0] - prep.crop_width) // 2, (resized[1] - prep.crop_height) // 2
        crop = np.s_[top : top + prep.crop_height, left : left + prep.crop_width]
        planes = self._reformatter.reformat(
            frame,
            width=width,
            height=height,
            format="gbrp",
            interpolation=self._flags,
            threads=1,  # by default one per processor; the decode workers are the parallelism
        ).planes
        result = np.empty(prep.frame_shape(), dtype=np.uint8) if out is None else out
        for plane, channel in zip(planes, (1, 2, 0), strict=True):  # green, blue, red
            size = plane.line_size
            rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, size)[:height, :width]
            if rotation:
                rows = np.rot90(rows, rotation // 90)
            result[..., channel] = rows[crop]
        return result


def resized_size(prep: FramePrep, width: int, height: int) -> tuple[int, int]:
    """Width and height to which a frame of `width` x `height`, as shown, is resized.

    With fit "shortest" the longer side is rounded down, as by transformers' CLIPImageProcessor.
    It is at most 32 times the shorter one and 16,384: frames of a more extreme shape, which would
    need gigabytes, are squeezed.
    """
    if prep.fit == "stretch":
        return prep.resize_width, prep.resize_height
    side = prep.resize_width
    most = max(side, min(_MOST_ASPECT * side, _MOST_LONG))
    longest = min(side * max(width, height) // min(width, height), most)
    return (side, longest) if width <= height else (longest, side)


def prepare_image(rgb: npt.NDArray[np.uint8], prep: FramePrep) -> npt.NDArray[np.uint8]:
    """A picture through the same path as a frame.

    Takes RGB uint8 [H, W, 3], returns uint8 [crop_height, crop_width, 3].
    """
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
    return FramePreparer(prep).prepare(frame)
