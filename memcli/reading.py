"""From a video and its captions to the inputs of a graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from memcli.captioning.cache import MadeCaption
from memcli.errors import VideoError, VideoErrorCode
from memcli.spec import FramePrep, Sampling

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from memcli.caption_maker import CaptionFrames, CaptionMaker
    from memcli.captioning.sources import CaptionFinder, Origin
    from memcli.engines.base import Array
    from memcli.engines.cuda import DeviceArray
    from memcli.journal import FileIdentity
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
    origin: Origin | None = None
    """Where the captions are from; None for models that read none."""
    wanted: CaptionFrames | None = None
    """What the captioner is to see; None once there are captions."""
    made: MadeCaption | None = None
    """What the captioner said, also if that is of no use."""
    problem: str | None = None
    """Why there is no caption although there should be one."""
    note: str | None = None
    """Which files beside the video are not used, and why."""


class Reader:
    """Reads what a model looks at. `read` may be called from several threads, `feeds` from one."""

    def __init__(
        self,
        prep: FramePrep | None,
        frames: int,
        sampling: Sampling,
        tokeniser: Tokeniser | None,
        finder: CaptionFinder | None,
        maker: CaptionMaker | None = None,
    ):
        """`prep` of None: no frames; `tokeniser` or `finder` of None: no captions; `maker` of None:
        no captions but those that the finder finds."""
        self._prep = prep
        self._frames = frames
        self._sampling: Sampling = sampling
        self._tokeniser = tokeniser
        self._finder = finder
        self._maker = maker
        self.nvdec: Nvdec | None = None
        """Decodes the videos that it takes; None: the CPU decodes all."""
        self.captions_cut = 0
        """Captions so far that were longer than the model takes."""

    def read(
        self,
        path: str,
        deadline: float | None,
        cancelled: Callable[[], bool],
        identity: FileIdentity | None = None,
    ) -> Prepared:
        """One video, without captions but with what the captioner is to see (`wanted`) if they are
        to be made. `identity` is the file's, for captions that are kept. Raises VideoError; a
        missing caption is noticed before frames are decoded."""
        video = Prepared(None)
        if self._tokeniser is not None and self._finder is not None:
            if self._prep is None:
                _check_video(path, deadline)  # nothing else may look at its content
            else:
                _check_file(path)  # what is wrong with the file is said first
            video = self._text(self._finder, path, deadline, cancelled, identity)
        if self._prep is None:
            return video
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
        return replace(video, clip=clip)

    def _text(
        self,
        finder: CaptionFinder,
        path: str,
        deadline: float | None,
        cancelled: Callable[[], bool],
        identity: FileIdentity | None,
    ) -> Prepared:
        found = finder.find(path)
        if found.origin is not None:
            return self._said(Prepared(None, found.texts, origin=found.origin, note=found.note))
        if self._maker is None:
            raise finder.missing(found)
        made = self._maker.read(path, identity, deadline, cancelled)
        if not isinstance(made, MadeCaption):
            return Prepared(None, wanted=made, note=found.note)
        video = self._with(Prepared(None, note=found.note), made)
        if isinstance(video, VideoError):
            raise video
        return video

    def caption(
        self, videos: Sequence[Prepared], cancelled: Callable[[], bool]
    ) -> list[Prepared | VideoError]:
        """Videos with the captions that they want; an error where the captioner gave none and the
        model sees nothing else. One thread at a time."""
        if self._maker is None:
            raise AssertionError("videos want captions only where there is a captioner")
        wanted = [video.wanted for video in videos if video.wanted is not None]
        made = self._maker.make(wanted, cancelled)
        return [self._with(video, one) for video, one in zip(videos, made, strict=True)]

    def without_caption(self) -> Prepared:
        """A video that has neither frames nor a caption."""
        return self._said(Prepared(None))

    def _with(self, video: Prepared, made: MadeCaption) -> Prepared | VideoError:
        problem = made.problem
        texts: tuple[str, ...] = (made.text,)
        origin: Origin = "generated"
        if problem is not None:
            texts, origin = (), "none"
            if self._prep is None:
                return VideoError(VideoErrorCode.NO_CAPTION, problem)
        return self._said(
            replace(video, captions=texts, origin=origin, wanted=None, made=made, problem=problem)
        )

    def _said(self, video: Prepared) -> Prepared:
        if self._tokeniser is None:
            return video
        return replace(video, tokens=self._tokeniser.encode([video.captions]))

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
    """Raise VideoError unless there is such a file."""
    from memcli.video.files import open_descriptor

    with open_descriptor(path):
        pass


def _check_video(path: str, deadline: float | None) -> None:
    """Raise VideoError unless a file opens as a video, as `memcli.video.check_video` does: a model
    of captions alone must not score a text, a song or a download that failed."""
    from memcli.video import check_video

    check_video(path, deadline=deadline)
