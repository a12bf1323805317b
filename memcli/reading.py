"""From a video and its captions to the inputs of a graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from memcli.spec import FramePrep, Sampling

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from memcli.captions import CaptionSource
    from memcli.engines.base import Array
    from memcli.engines.cuda import DeviceArray
    from memcli.tokens import TokenBatch, Tokeniser
    from memcli.video import Clip
    from memcli.video.nvdec import Nvdec

    Tokens = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Prepared:
    """A video as the engine takes it: frames, captions or both."""

    clip: Clip | None
    captions: tuple[str, ...] = ()
    tokens: TokenBatch | None = None
    """Of one video: [1, C, L]."""


class Reader:
    """Reads what a model looks at. `read` may be called from several threads, `feeds` from one."""

    def __init__(
        self,
        prep: FramePrep | None,
        frames: int,
        sampling: Sampling,
        tokeniser: Tokeniser | None,
        captions: CaptionSource | None,
    ):
        """`prep` of None: no frames; `tokeniser` of None: no captions."""
        self._prep = prep
        self._frames = frames
        self._sampling: Sampling = sampling
        self._tokeniser = tokeniser
        self._captions = captions
        self.nvdec: Nvdec | None = None
        """Decodes the videos that it takes; None: the CPU decodes all."""
        self.captions_cut = 0
        """Captions so far that were longer than the model takes."""

    def read(self, path: str, deadline: float | None, cancelled: Callable[[], bool]) -> Prepared:
        """One video. Raises VideoError; a missing caption is noticed before frames are decoded."""
        captions: tuple[str, ...] = ()
        tokens = None
        if self._tokeniser is not None and self._captions is not None:
            _check_file(path)  # what is wrong with the file is said first
            captions = self._captions.of(path)
            tokens = self._tokeniser.encode([captions])
        if self._prep is None:
            return Prepared(None, captions, tokens)
        from memcli.video import read_clip

        clip = read_clip(
            path,
            self._prep,
            frames=self._frames,
            sampling=self._sampling,
            deadline=deadline,
            cancelled=cancelled,
            nvdec=self.nvdec,
        )
        return Prepared(clip, captions, tokens)

    def feeds(self, videos: Sequence[Prepared]) -> dict[str, Array | DeviceArray]:
        """The graph's inputs of a batch of videos: `frames` uint8 [B, T, H, W, 3], on the GPU if
        some of them are there already, and `input_ids` and `attention_mask` int64 [B, C, L],
        padded to the longest."""
        import numpy as np

        feeds: dict[str, Array | DeviceArray] = {}
        clips = [video.clip for video in videos if video.clip is not None]
        resizer = None if self.nvdec is None else self.nvdec.resizer
        if resizer is not None and any(clip.device_frames is not None for clip in clips):
            feeds["frames"] = resizer.gather(clips)
        elif clips:
            first = clips[0].frames[None]
            feeds["frames"] = first if len(clips) == 1 else np.stack([c.frames for c in clips])
        tokens = [video.tokens for video in videos if video.tokens is not None]
        if tokens and self._tokeniser is not None:
            self.captions_cut += sum(one.cut for one in tokens)
            pad_id = self._tokeniser.prep.pad_id
            feeds["input_ids"] = padded([one.input_ids for one in tokens], pad_id)
            feeds["attention_mask"] = padded([one.attention_mask for one in tokens], 0)
        return feeds


def padded(arrays: Sequence[Tokens], value: int) -> Tokens:
    """Token arrays [1, C, L] of several videos as one [B, C, L], filled up with `value`."""
    import numpy as np

    count, length = (max(array.shape[axis] for array in arrays) for axis in (1, 2))
    whole = np.full((len(arrays), count, length), value, dtype=np.int64)
    for row, array in zip(whole, arrays, strict=True):
        row[: array.shape[1], : array.shape[2]] = array[0]
    return whole


def _check_file(path: str) -> None:
    """Raise VideoError unless there is such a file: models of captions alone need it too."""
    from memcli.video.files import open_descriptor

    with open_descriptor(path):
        pass
