"""Measures the stages of scoring, each alone and all together, with the code that scores.

Decoding alone is `Scorer` with an engine that answers at once; end to end is `Scorer` with the real
one. There is no second pipeline here, so that what is measured is what runs. Stages are measured in
turns and medians are compared: a machine that others use too is slow for all stages alike then.
"""

from __future__ import annotations

import os
import statistics
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import av
import numpy as np

from memcli.closing import Closeable
from memcli.engines.base import EngineDescription, TensorSpec
from memcli.engines.bundle import Bundle, Variant
from memcli.engines.cuda import DeviceArray
from memcli.engines.reference import synthetic_captions
from memcli.engines.select import Candidate, Selection, open_candidate
from memcli.engines.verify import ParityReport
from memcli.errors import MemcliError, UsageError
from memcli.preprocess import FramePreparer
from memcli.reading import padded
from memcli.scoring import Scorer, ScoreSettings
from memcli.video.source import frame_rotation

if TYPE_CHECKING:
    from memcli.engines.base import Array, Engine

    Feeds = Mapping[str, Array]
    from memcli.inputs import Source

Report = Callable[[str], None]

_KEPT_BYTES = 256 << 20
"""Prepared clips held for the engine alone; fewer than all videos where they do not fit."""
_SAMPLE_FRAMES = 8
"""Decoded frames held for preprocessing alone: at 4K one of them takes 12 MB."""
_CAPTIONS = 64
_DIGITS = 4


@dataclass(frozen=True)
class Speed:
    """One stage over `videos` videos of `frames` frames each, `seconds` long in each repeat."""

    videos: int
    frames: int
    seconds: tuple[float, ...]

    @property
    def per_video_s(self) -> float:
        """Median over the repeats."""
        return statistics.median(self.seconds) / self.videos

    @property
    def videos_per_s(self) -> float:
        return 1 / self.per_video_s

    @property
    def frames_per_s(self) -> float:
        return self.frames / self.per_video_s

    @property
    def spread(self) -> float:
        """(slowest - fastest) / median of the repeats."""
        return (max(self.seconds) - min(self.seconds)) / statistics.median(self.seconds)

    def to_dict(self) -> dict[str, Any]:
        """Plain dict, ready for JSON."""
        return {
            "videos": self.videos,
            "seconds": [round(value, _DIGITS) for value in self.seconds],
            "videos_per_s": round(self.videos_per_s, _DIGITS),
            "frames_per_s": round(self.frames_per_s, _DIGITS),
            "spread": round(self.spread, _DIGITS),
        }


@dataclass(frozen=True)
class EngineSpeed:
    """One way to run the model: its stages measured in turns, or why it cannot be measured."""

    candidate: str
    """E.g. `openvino at fp32`."""
    description: str = ""
    """What really ran."""
    workers: int = 0
    decode: Speed | None = None
    engine: Speed | None = None
    end_to_end: Speed | None = None
    problem: str | None = None

    @property
    def bottleneck(self) -> str | None:
        """`decode` or `engine`: the stage that is slower alone."""
        if self.decode is None or self.engine is None:
            return None
        return "decode" if self.decode.per_video_s > self.engine.per_video_s else "engine"

    @property
    def ratio(self) -> float | None:
        """Time end to end over that of the slower stage alone; 1 where the other one is hidden."""
        if self.decode is None or self.engine is None or self.end_to_end is None:
            return None
        return self.end_to_end.per_video_s / max(self.decode.per_video_s, self.engine.per_video_s)

    def to_dict(self) -> dict[str, Any]:
        """Plain dict, ready for JSON."""
        return {
            "candidate": self.candidate,
            "description": self.description,
            "workers": self.workers,
            "decode": self.decode and self.decode.to_dict(),
            "engine": self.engine and self.engine.to_dict(),
            "end_to_end": self.end_to_end and self.end_to_end.to_dict(),
            "bottleneck": self.bottleneck,
            "ratio": self.ratio and round(self.ratio, _DIGITS),
            "problem": self.problem,
        }


@dataclass
class InstantEngine(Closeable):
    """Takes no time, gives zeros: with it, scoring is decoding. Keeps clips for the real one."""

    device: str = "cpu"
    room_bytes: int = 0
    kept: list[Feeds] = field(default_factory=list)
    """A graph's inputs for one clip each, up to `room_bytes` but at least one if there is any
    room."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return ()

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return ()

    def run(self, feeds: Mapping[str, Array | DeviceArray]) -> dict[str, Array]:
        """Zeros, whatever the inputs. Keeps those that are in host memory."""
        clips = next(iter(feeds.values())).shape[0]
        on_host = {n: array for n, array in feeds.items() if not isinstance(array, DeviceArray)}
        for number in range(clips if len(on_host) == len(feeds) else 0):
            if self.room_bytes > 0:
                clip = {name: array[number : number + 1].copy() for name, array in on_host.items()}
                self.room_bytes -= sum(array.nbytes for array in clip.values())
                self.kept.append(clip)
        zeros: dict[str, Array] = {"score": np.zeros(clips, np.float32)}
        if "frames" in feeds:
            zeros["frame_scores"] = np.zeros(feeds["frames"].shape[:2], np.float32)
        return zeros

    def describe(self) -> EngineDescription:
        return EngineDescription("onnxruntime", "none", self.device, "fp32")

    def close(self) -> None: ...


def decode_scorer(settings: ScoreSettings, bundle: Bundle, engine: InstantEngine) -> Scorer:
    """A Scorer that decodes (and reads captions) only; the bundle needs no graph."""
    nothing = Variant("fp32", graph="", engines=(), files={}, reference={})
    variant = next(iter(bundle.variants.values()), nothing)  # its tokenizer is used
    unmeasured = ParityReport(0, 0, 0.0, 0.0, 0.0, 0.0, None, 0, True, "none", "fp32", 0.0, None)
    return Scorer(settings, bundle, Selection(engine, variant, "decoding only", unmeasured))


def decodable(
    settings: ScoreSettings, bundle: Bundle, sources: Sequence[Source]
) -> tuple[list[Source], Scorer]:
    """The videos that can be measured, now in the system's file cache; and what decodes them.

    Raises UsageError with the first reason if there is none.
    """
    scorer = decode_scorer(settings, bundle, InstantEngine())
    good: dict[str, Source] = {}
    reason = ""
    with closing(scorer.score(sources)) as rows:
        for source, _, row in rows:
            if row.status == "failed":
                reason = reason or f"{row.path}: {row.error}"
            else:
                good[source.path] = source
    if not good:
        raise UsageError(f"none of these videos can be decoded; {reason}")
    return [source for source in sources if source.path in good], scorer


def time_scoring(scorer: Scorer, sources: Sequence[Source]) -> float:
    """Seconds from the start to the last row. Raises EngineError if the engine fails."""
    started = finished = time.perf_counter()
    with closing(scorer.score(sources)) as rows:
        for _ in rows:
            finished = time.perf_counter()
    return finished - started


def time_engine(engine: Engine, clips: Sequence[Feeds], batch_size: int) -> float:
    """Seconds for the engine alone on the inputs of prepared clips, one clip each."""
    batches = [
        _stacked(clips[start : start + batch_size]) for start in range(0, len(clips), batch_size)
    ]
    started = time.perf_counter()
    for batch in batches:
        engine.run(batch)
    return time.perf_counter() - started


def _stacked(clips: Sequence[Feeds]) -> dict[str, Array]:
    batch: dict[str, Array] = {}
    for name in clips[0]:
        arrays = [clip[name] for clip in clips]
        if name == "frames":
            batch[name] = np.concatenate(arrays)
        else:  # which token fills up is of no matter to the speed
            batch[name] = padded([array.astype(np.int64) for array in arrays], 0)
    return batch


class SyntheticCaptions:
    """A made-up caption for every video, the same in every run."""

    name = digest = "synthetic captions"

    def __init__(self) -> None:
        self._captions = synthetic_captions(_CAPTIONS, 1, 0)

    def of(self, video: str) -> tuple[str, ...]:
        """One of them, by the video's path."""
        return self._captions[zlib.crc32(os.fsencode(video)) % _CAPTIONS]


def with_captions(settings: ScoreSettings, bundle: Bundle) -> ScoreSettings:
    """`settings`, with made-up captions where the model reads some."""
    if bundle.spec.text is None:
        return settings
    return replace(settings, captions=SyntheticCaptions())


def measure_decode(scorer: Scorer, sources: Sequence[Source], repeat: int) -> Speed:
    """Decoding alone, with the scorer of `decodable`."""
    return Speed(
        len(sources),
        scorer.frames,
        tuple(time_scoring(scorer, sources) for _ in range(repeat)),
    )


def pooled_decode(speeds: Sequence[EngineSpeed], workers: int) -> Speed | None:
    """All measurements of decoding on that many workers, or None if there are none."""
    found = [speed.decode for speed in speeds if speed.decode and speed.workers == workers]
    if not found:
        return None
    return replace(found[0], seconds=tuple(s for speed in found for s in speed.seconds))


def measure_preprocess(scorer: Scorer, sources: Sequence[Source], repeat: int) -> Speed | None:
    """Preprocessing alone: as many frames as scoring would prepare, already decoded, in memory.

    Decoding contains it: a worker prepares each frame as soon as it is decoded. None if no frame
    can be had by plain decoding, or the model looks at none.
    """
    prep = scorer.bundle.prep
    if prep is None:
        return None
    samples = [frame for source in sources[:_SAMPLE_FRAMES] if (frame := _first_frame(source.path))]
    if not samples:
        return None
    jobs = [samples[number % len(samples)] for number in range(len(sources))]

    def prepare(frame: av.VideoFrame) -> None:
        preparer = FramePreparer(prep)
        rotation = frame_rotation(frame)
        for _ in range(scorer.frames):
            preparer.prepare(frame, rotation)

    def once() -> float:
        started = time.perf_counter()
        with ThreadPoolExecutor(scorer.workers) as pool:
            list(pool.map(prepare, jobs))
        return time.perf_counter() - started

    once()
    return Speed(len(jobs), scorer.frames, tuple(once() for _ in range(repeat)))


def measure_engine(
    settings: ScoreSettings,
    bundle: Bundle,
    candidate: Candidate,
    sources: Sequence[Source],
    repeat: int,
    report: Report,
) -> EngineSpeed:
    """Decode, engine and end to end in turns with one way to run the model.

    An engine that cannot be opened, or refuses, is an `EngineSpeed` with its `problem`.
    """
    try:
        selection = open_candidate(bundle, candidate, threads=settings.threads, report=report)
    except UsageError:
        raise
    except MemcliError as error:
        return EngineSpeed(str(candidate), problem=str(error))
    with Scorer(settings, bundle, selection) as scorer:
        return measure_scorer(scorer, sources, repeat, str(candidate))


def measure_scorer(
    scorer: Scorer, sources: Sequence[Source], repeat: int, name: str
) -> EngineSpeed:
    """The three stages of an opened model in turns, after decoding and engine have warmed up."""
    settings = replace(scorer.settings, workers=scorer.workers, batch_size=scorer.batch_size)
    instant = InstantEngine(scorer.description.device, room_bytes=_KEPT_BYTES)
    decoder = decode_scorer(settings, scorer.bundle, instant)
    time_scoring(decoder, sources)  # on the CPU: clips in host memory, for the engine alone
    clips, instant.room_bytes = instant.kept, 0
    decoder.use(scorer.decoding)
    time_scoring(decoder, sources)
    engine = scorer.selection.engine
    time_engine(engine, clips[: scorer.batch_size], scorer.batch_size)
    decode, alone, together = [], [], []
    for _ in range(repeat):
        decode.append(time_scoring(decoder, sources))
        alone.append(time_engine(engine, clips, scorer.batch_size))
        together.append(time_scoring(scorer, sources))
    return EngineSpeed(
        candidate=name,
        description=str(scorer.description),
        workers=scorer.workers,
        decode=Speed(len(sources), scorer.frames, tuple(decode)),
        engine=Speed(len(clips), scorer.frames, tuple(alone)),
        end_to_end=Speed(len(sources), scorer.frames, tuple(together)),
    )


def _first_frame(path: str) -> av.VideoFrame | None:
    try:
        with av.open(path) as container:
            return next(container.decode(video=0), None)
    except (av.FFmpegError, OSError, IndexError, ValueError):
        return None
