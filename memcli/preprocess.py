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


class FramePreparer:
    """Executes a FramePrep on decoded frames. Keeps its swscale context: use one per thread."""

    def __init__(self, prep: FramePrep):
        self.prep = prep
        self._reformatter = VideoReformatter()
        self._flags = _FILTERS[prep.filter] | _EXACT
        top = (prep.resize_height - prep.crop_height) // 2
        left = (prep.resize_width - prep.crop_width) // 2
        self._crop = np.s_[top : top + prep.crop_height, left : left + prep.crop_width]

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
        width, height = prep.resize_width, prep.resize_height
        if rotation % 180:
            width, height = height, width
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
            result[..., channel] = rows[self._crop]
        return result


def prepare_image(rgb: npt.NDArray[np.uint8], prep: FramePrep) -> npt.NDArray[np.uint8]:
    """A picture through the same path as a frame.

    Takes RGB uint8 [H, W, 3], returns uint8 [crop_height, crop_width, 3].
    """
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
    return FramePreparer(prep).prepare(frame)
