"""Real frames for int8: reading them, and what they say about a graph."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import ModelProto, helper

from memcli.engines.verify import INPUT
from memcli.errors import EngineError, UsageError, VideoError
from memcli.export.quantize import ActivationRange
from memcli.inputs import collect

if TYPE_CHECKING:
    import numpy.typing as npt

    from memcli.spec import FramePrep

    Clip = npt.NDArray[np.uint8]
    Frames = npt.NDArray[np.uint8]

MAX_CLIPS = 64
MIN_HOLDOUT_CLIPS = 12
MIN_HOLDOUT_FRAMES = 64
MIN_CALIBRATION_FRAMES = 64
MAX_CALIBRATION_FRAMES = 96
MAX_RANGE_FRAMES = 48
"""Ranges settle early, and every activation of every frame passes through numpy for them."""
_FILE_TIMEOUT_S = 60.0
_BATCH = 4
_SAMPLES = 4096
"""Values kept of one activation tensor of one batch: enough for a histogram of its bulk."""
_RATIOS = np.linspace(0.4, 1.0, 25)


@dataclass(frozen=True)
class CalibrationSet:
    """Frames to choose ranges with, and clips that only the final gate sees."""

    frames: Frames
    """uint8 [N, H, W, 3]"""
    holdout: Frames
    """uint8 [clips, T, H, W, 3]"""


@dataclass(frozen=True)
class CalibrationClips:
    """Clips uint8 [T, H, W, 3] of different videos."""

    calibration: list[Clip]
    holdout: list[Clip]


def read_calibration(
    folder: Path, prep: FramePrep, *, report: Callable[[str], None] = lambda _: None
) -> CalibrationClips:
    """Clips of at most 64 videos in a folder, spread over it; half of them are held out.

    Videos that do not decode, still pictures and copies of another video are left out. Raises
    UsageError if the folder holds no video.
    """
    from memcli.video import read_clip

    names = [source.path for source in collect([folder]).items if source.error is None]
    clips: dict[bytes, Clip] = {}
    for name in spread(np.arange(len(names)), MAX_CLIPS):
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
    if not clips:
        raise UsageError("no videos to calibrate with", where=str(folder))
    noun = "video" if len(clips) == 1 else "videos"
    report(f"{len(clips)} {noun}, half of them to check with")
    calibration, holdout = split_by_video(list(clips.values()))
    return CalibrationClips(calibration, holdout)


def make_calibration_set(
    calibration: Iterable[Clip], holdout: Iterable[Clip], prep: FramePrep
) -> CalibrationSet:
    """Check clips [T, H, W, 3] and spread the frames evenly over the calibration clips.

    Raises UsageError if there are too few, one is in both sets, or a shape is not that of `prep`.
    """
    kept, held = list(calibration), list(holdout)
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
        or len(held) < MIN_HOLDOUT_CLIPS
        or len(held) * length < MIN_HOLDOUT_FRAMES
    ):
        raise UsageError(
            f"int8 needs at least {MIN_CALIBRATION_FRAMES} frames to calibrate and "
            f"{MIN_HOLDOUT_CLIPS} other videos with {MIN_HOLDOUT_FRAMES} frames to check, "
            f"not {frames} and {len(held)} with {len(held) * length}",
            next_step="Give more videos: memcli export MODEL --int8 --calibration DIR",
        )
    pool = spread(np.concatenate(kept), MAX_CALIBRATION_FRAMES)
    return CalibrationSet(pool, np.stack([clip[:length] for clip in held]))


def spread(values: npt.NDArray[Any], count: int) -> npt.NDArray[Any]:
    """At most `count` of the values [N, ...], evenly spread from the first to the last."""
    chosen = np.linspace(0, len(values) - 1, min(len(values), count)).round()
    picked: npt.NDArray[Any] = values[chosen.astype(int)]
    return picked


def split_by_video(clips: Sequence[Clip]) -> tuple[list[Clip], list[Clip]]:
    """Clips in order of their paths -> those to calibrate with, those to hold out.

    Cut once, in the middle: neighbours by name are often versions of the same video, and must not
    be on both sides.
    """
    middle = (len(clips) + 1) // 2
    return list(clips[middle:]), list(clips[:middle])


def activation_ranges(
    model: ModelProto, tensors: Sequence[str], frames: Frames
) -> dict[str, ActivationRange]:
    """The range of each activation tensor that has the least squared error after rounding.

    Searched between 0.4 and 1 times the largest magnitude that occurs in the frames.
    """
    samples: dict[str, list[npt.NDArray[np.float32]]] = {name: [] for name in tensors}
    largest = dict.fromkeys(tensors, 0.0)
    signed = dict.fromkeys(tensors, False)
    random = np.random.default_rng(0)
    for values in _run(expose(model, tensors), spread(frames, MAX_RANGE_FRAMES)):
        for name in tensors:
            flat = values[name].reshape(-1)
            low, high = float(flat.min()), float(flat.max())
            signed[name] |= low < 0
            largest[name] = max(largest[name], high, -low)
            samples[name].append(np.abs(flat[random.integers(0, flat.size, _SAMPLES)]))
    return {
        name: best_range(np.concatenate(samples[name]), largest[name], signed=signed[name])
        for name in tensors
    }


def best_range(
    magnitudes: npt.NDArray[np.float32], largest: float, *, signed: bool
) -> ActivationRange:
    """The clip in [0.4, 1] * largest with the least squared error of rounded `magnitudes`."""

    def error(limits: ActivationRange) -> float:
        scale = max(limits.clip, 1e-12) / limits.levels
        rounded = np.minimum(np.round(magnitudes / scale), limits.levels) * scale
        return float(np.square(rounded - magnitudes).mean())

    return min((ActivationRange(float(r * largest), signed) for r in _RATIOS), key=error)


def expose(model: ModelProto, tensors: Iterable[str]) -> ModelProto:
    """A copy of `model` with more outputs."""
    result = ModelProto()
    result.CopyFrom(model)
    for name in tensors:
        result.graph.output.append(helper.make_tensor_value_info(name, 1, None))
    return result


def frame_scores(model: ModelProto, frames: Frames, output: str) -> npt.NDArray[np.float64]:
    """The graph's scores [N] of frames [N, H, W, 3]."""
    batches = [values[output].reshape(-1) for values in _run(model, frames)]
    return np.concatenate(batches).astype(np.float64)


def _run(model: ModelProto, frames: Frames) -> Iterable[dict[str, npt.NDArray[Any]]]:
    """Outputs of the graph by name, batch by batch, computed by OpenVINO."""
    import io

    from memcli.engines.loading import import_runtime, one_line

    ov = import_runtime("openvino")
    try:
        core = ov.Core()
        compiled = core.compile_model(
            core.read_model(io.BytesIO(model.SerializeToString())),
            "CPU",
            {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"},
        )
        names = [value.name for value in model.graph.output]
        request = compiled.create_infer_request()
        for start in range(0, len(frames), _BATCH):
            results = request.infer({INPUT: frames[None, start : start + _BATCH]})
            yield {name: results[name] for name in names}
    except RuntimeError as error:
        raise EngineError(f"openvino cannot run the graph: {one_line(error)}") from error


def _digest(clip: Clip) -> bytes:
    return hashlib.sha256(np.ascontiguousarray(clip).data).digest()
