"""Real inputs for int8: reading them, and what of them chooses and what checks."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from memcli.engines.verify import ATTENTION_MASK, INPUT, INPUT_IDS
from memcli.errors import ModelError, UsageError, VideoError
from memcli.inputs import collect
from memcli.spec import MAX_FRAMES

if TYPE_CHECKING:
    import numpy.typing as npt

    from memcli.export.calibration_captions import CalibrationCaptions
    from memcli.spec import FramePrep, ModelSpec

    Clip = npt.NDArray[np.uint8]
    Feeds = Mapping[str, npt.NDArray[Any]]

T = TypeVar("T")
MAX_CLIPS = 64
MIN_HOLDOUT_CLIPS = 12
MIN_HOLDOUT_FRAMES = 64
GATE_CLIPS = 64
"""Real clips that the gate has at least: of fewer videos, several segments of each are clips."""
MAX_GATE_FRAMES = 768
"""In all clips together, where scores are of frames: a large encoder takes 0.1 s for each."""
MIN_CALIBRATION_FRAMES = 64
MAX_CALIBRATION_FRAMES = 96
MIN_CALIBRATION_CAPTIONS = 64
MIN_HOLDOUT_CAPTIONS = 64
_CLIP_FRAMES = 4
"""Frames of a clip to calibrate with, and frames in one batch: many videos say more about the range
of an activation than many frames of a few."""
_FILE_TIMEOUT_S = 60.0
SYNTHETIC_CAPTIONS = "synthetic captions"
"""`CalibrationCaptions.source` of those that we made."""


@dataclass(frozen=True)
class CalibrationSet:
    """Inputs to choose ranges and layers with, and inputs that only the final gate sees."""

    batches: tuple[Feeds, ...]
    """A few frames or captions each."""
    holdout: tuple[Feeds, ...]
    """One clip each, all of the same number of frames."""
    videos: int = 0
    """That the clips of the holdout are of."""
    captions: str = ""
    """Where the captions come from; empty for a model that reads none."""
    epochs: str = ""
    """Where epochs of EEG come from; empty for a model of videos."""
    real: bool = True
    """Whether the holdout has anything of the user: videos or captions."""


@dataclass(frozen=True)
class CalibrationClips:
    """Clips uint8 [T, H, W, 3]; several of one video lie side by side."""

    calibration: list[Clip]
    holdout: list[Clip]
    calibration_paths: list[str] = field(default_factory=list)
    holdout_paths: list[str] = field(default_factory=list)
    """Of each clip its video."""

    @property
    def holdout_videos(self) -> int:
        """That the clips of the holdout are of."""
        return len(set(self.holdout_paths)) or len(self.holdout)


def read_calibration(
    folder: Path | Sequence[str],
    prep: FramePrep,
    *,
    wanted: Callable[[str], bool] = lambda _: True,
    report: Callable[[str], None] = lambda _: None,
) -> CalibrationClips:
    """Clips of at most 64 videos in a folder, spread over it, or of all videos that are listed by
    their paths; half of them are held out.

    Of those held out there are 64 clips at least: where there are fewer videos, each is cut into
    segments of equal length, and a clip is sampled from each as from a whole video; so it is where
    those to calibrate with have less than 64 frames. Videos that are not `wanted`, do not decode,
    still pictures and copies of another video are left out. Raises UsageError if the folder holds
    no video.
    """
    from memcli.video import read_clip

    names = [name for name in _names(folder) if wanted(name)]
    most = MAX_CLIPS if isinstance(folder, Path) else len(names)
    clips: dict[bytes, Clip] = {}
    paths: dict[bytes, str] = {}
    for name in spread(np.arange(len(names)), most):
        path = names[name]
        try:
            clip = read_clip(path, prep, deadline=time.monotonic() + _FILE_TIMEOUT_S).frames
        except VideoError as error:
            report(f"not used: {path}: {error.what}")
            continue
        if not any((frame != clip[0]).any() for frame in clip[1:]):
            report(f"not used: {path}: a still picture")
        elif clips.setdefault(_digest(clip), clip) is not clip:
            report(f"not used: {path}: the same frames as another video")
        else:
            paths[_digest(clip)] = str(path)
    if not clips:
        where = str(folder) if isinstance(folder, Path) else None
        raise UsageError("no videos to calibrate with", where=where)
    noun = "video" if len(clips) == 1 else "videos"
    report(f"{len(clips)} {noun}, half of them to check with")
    calibration, holdout = split_by_video(list(clips.values()))
    calibration_paths, holdout_paths = split_by_video([paths[digest] for digest in clips])
    frames = max(1, len(calibration) * prep.frames)
    calibration, calibration_paths = _cut(
        calibration, calibration_paths, prep, -(-MIN_CALIBRATION_FRAMES // frames), report
    )
    holdout, holdout_paths = _cut(
        holdout, holdout_paths, prep, -(-GATE_CLIPS // len(holdout)), report
    )
    report(f"{len(calibration)} clips to calibrate with, {len(holdout)} to check with")
    return CalibrationClips(calibration, holdout, calibration_paths, holdout_paths)


def _names(source: Path | Sequence[str]) -> Sequence[str]:
    """Paths of videos. Raises UsageError for a folder without."""
    if not isinstance(source, Path):
        return source
    try:
        return [one.path for one in collect([source]).items if one.error is None]
    except UsageError as error:
        hint = "Name a folder that has videos in it, or below it: --calibration DIR"
        raise UsageError(error.what, where=error.where, next_step=hint) from error


def _cut(
    clips: list[Clip],
    paths: list[str],
    prep: FramePrep,
    count: int,
    report: Callable[[str], None],
) -> tuple[list[Clip], list[str]]:
    """`count` clips of each video instead of one, and of each clip its video."""
    count = min(count, MAX_FRAMES // prep.frames)
    if count <= 1:
        return clips, paths
    found = [
        (clip, path)
        for path, whole in zip(paths, clips, strict=True)
        for clip in _segments(path, prep, count, report) or [whole]
    ]
    return [clip for clip, _ in found], [path for _, path in found]


def _segments(path: str, prep: FramePrep, count: int, report: Callable[[str], None]) -> list[Clip]:
    """Clips of equal segments of a video, one after the other; none if it cannot be read so.

    The midpoints of n * T segments are those of T segments in each of n.
    """
    from memcli.video import read_clip

    deadline = time.monotonic() + _FILE_TIMEOUT_S
    try:
        frames = read_clip(path, prep, frames=count * prep.frames, deadline=deadline).frames
    except VideoError as error:
        report(f"one clip only: {path}: {error.what}")
        return []
    return list(frames.reshape(count, prep.frames, *frames.shape[1:]))


def make_calibration_set(
    spec: ModelSpec,
    calibration: Iterable[Clip] = (),
    holdout: Iterable[Clip] = (),
    *,
    captions: CalibrationCaptions | None = None,
    tokenizer: Path | None = None,
    videos: int | None = None,
) -> CalibrationSet:
    """Check clips [T, H, W, 3] and captions, and make the graph's inputs of them.

    Where the model scores frame by frame, frames are spread evenly over the calibration clips. A
    model that sees whole clips gets a few frames of each, and one that reads captions also one
    caption of each: without padding, whose activations are of no matter. The holdout has clips
    whole, with all their captions; of `videos` videos, by default one each.

    Raises UsageError if there are too few inputs, one is in both sets, or a clip's shape is not
    that of the model; ModelError for a model that reads captions without its tokenizer.
    """
    kept, held = list(calibration), list(holdout)
    if spec.prep is not None:
        _check_clips(kept, held, spec.prep, len(held) if videos is None else videos)
    if spec.text is None:
        return _of_frames(kept, held, videos, by_frame=spec.frame_scores)
    if captions is None or tokenizer is None:
        raise ModelError(f"{spec.name} reads captions: calibration needs some, and its tokenizer")
    if _sentences(captions.calibration) & _sentences(captions.holdout):
        raise UsageError("a caption is both in the calibration and in the holdout set")
    from memcli.tokens import Tokeniser

    tokeniser = Tokeniser(spec.text, tokenizer)

    def feeds(clip: Clip | None, texts: Sequence[str]) -> Feeds:
        tokens = tokeniser.encode([texts])
        both: dict[str, npt.NDArray[Any]] = {} if clip is None else {INPUT: clip[None]}
        return both | {INPUT_IDS: tokens.input_ids, ATTENTION_MASK: tokens.attention_mask}

    firsts = [texts[:1] for texts in captions.calibration]
    length = min((len(clip) for clip in held), default=0)
    if spec.prep is None:
        _check_captions(len(firsts), len(captions.holdout))
        batches = [feeds(None, texts) for texts in firsts]
        checks = [feeds(None, texts) for texts in captions.holdout]
    else:
        shorter = [clip_of(clip) for clip in kept]
        batches = [feeds(*pair) for pair in zip(shorter, firsts, strict=True)]
        whole = [clip[:length] for clip in held]
        checks = [feeds(*pair) for pair in zip(whole, captions.holdout, strict=True)]
    real = spec.prep is not None or captions.source != SYNTHETIC_CAPTIONS
    of = len(checks) if videos is None else videos
    return CalibrationSet(tuple(batches), tuple(checks), of, captions.source, real=real)


def _of_frames(
    kept: list[Clip], held: list[Clip], videos: int | None, *, by_frame: bool
) -> CalibrationSet:
    length = min(len(clip) for clip in held)
    if by_frame:
        fewer = max(1, MAX_GATE_FRAMES // len(held))
        held = [spread(clip[:length], fewer) for clip in held]
        length = min(length, fewer)
        pool = spread(np.concatenate(kept), MAX_CALIBRATION_FRAMES)
        clips = [pool[at : at + _CLIP_FRAMES] for at in range(0, len(pool), _CLIP_FRAMES)]
    else:
        clips = [clip_of(clip) for clip in kept]
    return CalibrationSet(
        tuple({INPUT: clip[None]} for clip in clips),
        tuple({INPUT: clip[None, :length]} for clip in held),
        len(held) if videos is None else videos,
    )


def clip_of(clip: Clip) -> Clip:
    """A few frames of a clip, from the first to the last."""
    return spread(clip, _CLIP_FRAMES)


def _check_clips(kept: list[Clip], held: list[Clip], prep: FramePrep, videos: int) -> None:
    for clip in (*kept, *held):
        if clip.ndim != 4 or clip.shape[1:] != prep.frame_shape() or clip.dtype != np.uint8:
            raise UsageError(
                f"a clip is {clip.dtype} {list(clip.shape)}, not uint8 [T, "
                f"{', '.join(map(str, prep.frame_shape()))}]"
            )
    if {_digest(clip) for clip in kept} & {_digest(clip) for clip in held}:
        raise UsageError("a video is both in the calibration and in the holdout set")
    length = min((len(clip) for clip in held), default=0)
    frames = sum(len(clip) for clip in kept)
    if (
        frames < MIN_CALIBRATION_FRAMES
        or videos < MIN_HOLDOUT_CLIPS
        or len(held) * length < MIN_HOLDOUT_FRAMES
    ):
        raise UsageError(
            f"calibration needs at least {MIN_CALIBRATION_FRAMES} frames to calibrate and "
            f"{MIN_HOLDOUT_CLIPS} other videos with {MIN_HOLDOUT_FRAMES} frames to check, "
            f"not {frames} and {videos} with {len(held) * length}",
            next_step="Give a folder with more videos: --calibration DIR",
        )


def _sentences(captions: Iterable[Sequence[str]]) -> set[str]:
    return {text for texts in captions for text in texts}


def _check_captions(kept: int, held: int) -> None:
    if kept < MIN_CALIBRATION_CAPTIONS or held < MIN_HOLDOUT_CAPTIONS:
        raise UsageError(
            f"calibration needs captions of at least {MIN_CALIBRATION_CAPTIONS} videos and "
            f"of {MIN_HOLDOUT_CAPTIONS} others to check, not {kept} and {held}",
            next_step="Give a file with more captions.",
        )


def spread(values: npt.NDArray[Any], count: int) -> npt.NDArray[Any]:
    """At most `count` of the values [N, ...], evenly spread from the first to the last."""
    chosen = np.linspace(0, len(values) - 1, min(len(values), count)).round()
    picked: npt.NDArray[Any] = values[chosen.astype(int)]
    return picked


def spread_items(items: Sequence[T], count: int) -> list[T]:
    """At most `count` items, evenly spread from the first to the last."""
    return [items[place] for place in spread(np.arange(len(items)), count)]


def split_by_video(clips: Sequence[T]) -> tuple[list[T], list[T]]:
    """Clips in order of their paths -> those to calibrate with, those to hold out.

    Cut once, in the middle: neighbours by name are often versions of the same video, and must not
    be on both sides.
    """
    middle = (len(clips) + 1) // 2
    return list(clips[middle:]), list(clips[:middle])


def _digest(clip: Clip) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(clip).data).digest()
