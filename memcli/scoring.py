"""Scores videos with an opened model: the road from sources to rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from memcli.captioning.sources import MODES, CaptionFinder, CaptionMode, Origin
from memcli.captions import CaptionSource
from memcli.closing import Closeable
from memcli.decoding import DECODERS, DecoderChoice, Decoding, ProbeRequest, choose_decoder
from memcli.engines.loading import usable_cpus
from memcli.errors import UsageError, VideoError, VideoErrorCode
from memcli.inputs import Source
from memcli.journal import FileIdentity
from memcli.kinds import require_videos
from memcli.pipeline import QUEUE_BYTES, Outcome, Pipeline, Stage, Stats
from memcli.reading import Prepared, Reader
from memcli.results import Row, Status
from memcli.spec import MAX_FRAMES, FramePrep, ModelSpec, Precision, Sampling
from memcli.text import printable

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from memcli.caption_maker import CaptionMaker
    from memcli.engines.base import EngineDescription, EngineName
    from memcli.engines.bundle import Bundle
    from memcli.engines.select import Selection
    from memcli.tokens import Tokeniser

DEFAULT_FILE_TIMEOUT_S = 300.0
NO_SAMPLING = "none"
"""What rows of models that look at no frames have as their sampling."""
_SCORE_DIGITS = 6
_SECONDS_DIGITS = 3
_MILLISECONDS_DIGITS = 1


@dataclass(frozen=True)
class ScoreSettings:
    """How to score. `auto` and None mean: choose well, and say what was chosen."""

    model: str
    frames: int | None = None
    """Frames per video; None: the model's own number."""
    captions: CaptionSource | None = None
    """For models that read them."""
    caption_mode: CaptionMode | None = None
    """Which captions such models read; None: `prefer`."""
    captioner: str | None = None
    """Name, folder or size of the captioner; None: the one that fits the device."""
    sampling: Sampling = "exact"
    curve: bool = False
    decoder: DecoderChoice = "auto"
    """Takes effect with `Scorer.choose_decoder`."""
    engine: EngineName | Literal["auto"] = "auto"
    device: str = "auto"
    precision: Precision | Literal["auto"] = "auto"
    threads: int | None = None
    """Threads of a CPU engine; None: all cores."""
    batch_size: int | None = None
    """Videos per engine call."""
    workers: int | None = None
    """Decode workers."""
    file_timeout_s: float | None = DEFAULT_FILE_TIMEOUT_S
    offline: bool = False

    def __post_init__(self) -> None:
        """Raises UsageError for numbers that make no sense, before anything is opened."""
        if self.frames is not None and not 1 <= self.frames <= MAX_FRAMES:
            raise UsageError(f"{self.frames} frames per video; from 1 to {MAX_FRAMES} are possible")
        if self.decoder not in DECODERS:
            raise UsageError(f"no decoder {self.decoder!r}: choose {', '.join(DECODERS)}")
        if self.caption_mode is not None and self.caption_mode not in MODES:
            raise UsageError(f"no way to get captions {self.caption_mode!r}: {', '.join(MODES)}")
        for name in ("threads", "batch_size", "workers", "file_timeout_s"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UsageError(f"{name} is {value}; it must be more than 0")


def check_settings(settings: ScoreSettings, spec: ModelSpec) -> None:
    """Raise UsageError for settings that this model cannot have."""
    require_videos(spec)
    if settings.curve and not spec.frame_scores:
        raise UsageError(
            f"{spec.name} gives one score per video, none per frame",
            next_step="Leave out --curve, or choose another model: memcli models",
        )
    if settings.frames is not None and spec.prep is None:
        raise UsageError(
            f"{spec.name} reads captions and looks at no frames", next_step="Leave out --frames"
        )
    mode = settings.caption_mode
    if spec.text is None and (
        settings.captions is not None or settings.captioner or mode not in (None, "none")
    ):
        raise UsageError(
            f"{spec.name} reads no captions",
            next_step="Leave out --captions and --captioner, or choose a model that does:"
            " memcli models",
        )
    if mode in ("generate", "none") and settings.captions is not None:
        raise UsageError(f"--captions {mode} reads no file of captions", next_step="Leave one out")
    if mode in ("require", "none") and settings.captioner:
        raise UsageError(f"--captions {mode} uses no captioner", next_step="Leave one out")
    if mode == "none" and spec.text is not None and spec.prep is None:
        raise UsageError(
            f"{spec.name} sees captions only, so that it needs some",
            next_step="Leave out --captions none",
        )


@dataclass(frozen=True)
class ScoredClip:
    """What is kept of a video once the engine has seen it."""

    score: float
    frame_scores: list[float] | None
    frame_times_s: list[float] | None
    captions: tuple[str, ...]
    duration_s: float | None = None
    width: int | None = None
    height: int | None = None
    frames_used: int | None = None
    damage: str | None = None
    decoder: str | None = None
    origin: Origin | None = None
    """Where the captions are from; None for models that read none."""
    captioned: bool = False
    """Whether the captioner saw it, also if what it said is of no use."""
    problem: str | None = None
    """Why there is no caption although there should be one."""
    note: str | None = None
    """Which files beside the video are not used, and why."""


@dataclass
class _Item:
    """A source under way. Its file is looked at in a worker: a dead network mount may hang there,
    and only the watchdog of workers can give it up."""

    source: Source
    identity: FileIdentity | None = None


class Scorer(Closeable):
    """An opened model. Use as a context manager, or call `close`."""

    def __init__(
        self,
        settings: ScoreSettings,
        bundle: Bundle,
        selection: Selection,
        maker: CaptionMaker | None = None,
    ):
        """`maker` makes the captions that are not there; it is closed with this. Raises UsageError
        for settings that this model cannot have, ModelError for a tokenizer that cannot be used."""
        check_settings(settings, bundle.spec)
        self.settings = settings
        self.bundle = bundle
        self.selection = selection
        self.frames = _frames(settings, bundle.prep)
        self.sampling = settings.sampling if bundle.prep is not None else NO_SAMPLING
        self.maker = maker
        self._reader = Reader(
            bundle.prep,
            self.frames,
            settings.sampling,
            _tokeniser(bundle, selection),
            CaptionFinder(settings.captions, settings.caption_mode or "prefer"),
            maker,
        )
        self.description: EngineDescription = selection.engine.describe()
        lock = None if maker is None else maker.share(self.description.device)
        self._turn: AbstractContextManager[Any] = lock or nullcontext()
        on_cpu = self.description.device == "cpu"
        # A CPU engine is busy for seconds with one clip: larger batches only cost memory there.
        one_by_one = on_cpu and bundle.prep is not None
        self.batch_size = settings.batch_size or (1 if one_by_one else 16)
        cores = usable_cpus()
        self.workers = settings.workers or (min(4, max(2, cores // 2)) if on_cpu else cores)
        self.stats = Stats(workers=self.workers)
        self.decoding = Decoding(None, "not chosen")

    def choose_decoder(self, paths: Callable[[], Sequence[str]]) -> Decoding:
        """Decide what decodes, as the settings ask for; until then it is the CPU.

        `paths` gives the first videos of the run; `auto` decodes them on CPU and GPU, where there
        is one, which may take some seconds. Raises UsageError, DeviceError or
        MissingDependencyError where the decoder asked for cannot be had.
        """
        prep = self.bundle.prep
        request = None
        if prep is not None:
            sampling = self.settings.sampling
            request = ProbeRequest(prep, self.frames, sampling, self.workers)
        device = self.description.device
        self.use(choose_decoder(self.settings.decoder, request, device=device, paths=paths))
        return self.decoding

    def use(self, decoding: Decoding) -> None:
        """Decode with this from now on."""
        self.decoding = decoding
        self._reader.nvdec = decoding.nvdec
        if self.maker is not None:
            self.maker.nvdec = decoding.nvdec

    @property
    def captions_cut(self) -> int:
        """Captions so far that were longer than the model takes."""
        return self._reader.captions_cut

    def close(self) -> None:
        """Release the engine and the captioner."""
        self.selection.engine.close()
        if self.maker is not None:
            self.maker.close()

    def identity(self) -> dict[str, Any]:
        """What all rows of one table must have in common. Those whose captions were made have the
        captioner in common as well: see `Journal.check_captioner`."""
        common = {
            "model": self.bundle.model,
            "bundle": self.bundle.label(self.selection.variant),
            "precision": self.description.precision,
            "sampling": self.sampling,
            "frames": self.frames,
            "curve": self.settings.curve,
        }
        if self.settings.captions is not None:
            common["captions"] = self.settings.captions.digest
        if self.bundle.spec.text is not None and self.settings.caption_mode not in (None, "prefer"):
            common["caption_mode"] = self.settings.caption_mode
        return common

    def score(
        self, sources: Iterable[Source]
    ) -> Generator[tuple[Source, FileIdentity | None, Row], None, None]:
        """One row per source, as they are finished. Closing the iterator ends the run.

        Raises EngineError if the engine fails; rows given until then are valid.
        """
        # Two batches and a clip or two per worker keep every stage busy; more is only memory.
        queue_size = 2 * (self.batch_size + self.workers)
        clip_bytes = 0 if self.bundle.prep is None else self.bundle.prep.clip_bytes(self.frames)
        stage = most = None
        if self.maker is not None:
            stage = Stage(_wants_caption, self._reader.caption, self.maker.batch_size)
            queue_size += 2 * stage.batch_size
            clip_bytes += self.maker.clip_bytes
            most = QUEUE_BYTES // clip_bytes
        if clip_bytes:
            queue_size = min(QUEUE_BYTES // clip_bytes, queue_size)
        pipeline = Pipeline(
            self._read,
            self._infer,
            workers=self.workers,
            queue_size=queue_size,
            batch_size=self.batch_size,
            file_timeout_s=self.settings.file_timeout_s,
            stage=stage,
            most=most,
        )
        self.stats = pipeline.stats
        with closing(pipeline.run(_Item(source) for source in sources)) as outcomes:
            for outcome in outcomes:
                item = outcome.source
                yield item.source, item.identity, self._row(item.source, outcome)

    def _read(self, item: _Item, deadline: float | None, cancelled: Callable[[], bool]) -> Prepared:
        source = item.source
        item.identity = FileIdentity.of(source.path)
        if source.error is not None:
            raise VideoError(*source.error)
        return self._reader.read(source.path, deadline, cancelled, item.identity)

    def score_without_captions(self) -> float:
        """The score of a black clip that has no caption; NaN if the model needs one."""
        import numpy as np

        if self.bundle.prep is None:
            return math.nan
        feeds = self._reader.feeds([self._reader.without_caption()])
        frames = np.zeros((1, self.frames, *self.bundle.prep.frame_shape()), np.uint8)
        return float(self.selection.engine.run({**feeds, "frames": frames})["score"][0])

    def _infer(self, videos: Sequence[Prepared]) -> list[ScoredClip]:
        feeds = self._reader.feeds(videos)
        with self._turn:
            outputs = self.selection.engine.run(feeds)
        frame_scores: Sequence[npt.NDArray[np.generic] | None] = [None] * len(videos)
        if self.bundle.spec.frame_scores:
            frame_scores = list(outputs["frame_scores"])
        return [
            _scored(video, float(score), by_frame)
            for video, score, by_frame in zip(videos, outputs["score"], frame_scores, strict=True)
        ]

    def _row(self, source: Source, outcome: Outcome[_Item, ScoredClip]) -> Row:
        row = Row(
            path=source.path,
            status="failed",
            score=None,
            engine=f"{self.description.engine} {self.description.version}",
            device=self.description.device,
            precision=self.description.precision,
            model=self.bundle.model,
            bundle=self.bundle.label(self.selection.variant),
            sampling=self.sampling,
            weights_license=self.bundle.license,
            decode_ms=round(outcome.decode_s * 1000, _MILLISECONDS_DIGITS),
        )
        if outcome.error is not None:
            error = outcome.error
            return replace(row, error_code=error.code.value, error=printable(error.what))
        result = outcome.result
        if result is None:
            raise AssertionError("an outcome has a result or an error")
        row = replace(row, caption_note=result.note)
        if not math.isfinite(result.score) and result.origin == "none":
            reason = result.problem or "no captions were asked for"
            return replace(
                row,
                error_code=VideoErrorCode.NO_CAPTION.value,
                error=f"{reason}, and {self.bundle.model} gives no score from frames alone",
            )
        if not math.isfinite(result.score):
            return replace(
                row,
                error_code=VideoErrorCode.INTERNAL.value,
                error=f"{self.description} gave no finite score; try --engine onnxruntime",
            )
        if self.maker is not None and result.captioned:
            row = replace(row, captioner=self.maker.label)
        lost = [text for text in (result.damage, result.problem) if text]
        status: Status = "partial" if lost else "ok"
        code = "damaged" if result.damage else VideoErrorCode.NO_CAPTION.value
        row = replace(
            row,
            status=status,
            score=round(result.score, _SCORE_DIGITS),
            duration_s=_rounded(result.duration_s),
            width=result.width,
            height=result.height,
            frames_used=result.frames_used,
            decoder=result.decoder,
            caption=_joined(result.captions),
            caption_source=result.origin,
            error_code=code if lost else None,
            error=printable("; ".join(lost)) if lost else None,
            infer_ms=round(outcome.infer_s * 1000, _MILLISECONDS_DIGITS),
        )
        if not self.settings.curve or result.frame_scores is None:
            return row
        return replace(row, frame_times_s=result.frame_times_s, frame_scores=result.frame_scores)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, _SECONDS_DIGITS)


def _frames(settings: ScoreSettings, prep: FramePrep | None) -> int:
    """Frames per video; 0 for a model that looks at none."""
    return 0 if prep is None else settings.frames or prep.frames


def _tokeniser(bundle: Bundle, selection: Selection) -> Tokeniser | None:
    path = bundle.tokenizer_path(selection.variant)
    if bundle.spec.text is None or path is None:
        return None
    from memcli.tokens import Tokeniser

    return Tokeniser(bundle.spec.text, path)


def _joined(captions: Sequence[str]) -> str | None:
    return " | ".join(captions) or None


def _wants_caption(video: Prepared) -> bool:
    return video.wanted is not None


def _scored(
    video: Prepared, score: float, frame_scores: npt.NDArray[np.generic] | None
) -> ScoredClip:
    scores = None
    if frame_scores is not None:
        scores = [round(float(value), _SCORE_DIGITS) for value in frame_scores]
    scored = ScoredClip(
        score=score,
        frame_scores=scores,
        frame_times_s=None,
        captions=video.captions,
        origin=video.origin,
        captioned=video.made is not None,
        problem=video.problem,
        note=video.note,
    )
    clip, made = video.clip, video.made
    if clip is not None:
        return replace(
            scored,
            frame_times_s=[round(float(value), _SECONDS_DIGITS) for value in clip.times_s],
            duration_s=clip.info.duration_s,
            width=clip.info.width,
            height=clip.info.height,
            frames_used=clip.frames_used,
            damage=clip.damage,
            decoder=clip.decoder,
        )
    if made is not None:  # what the captioner saw is what the score rests on
        return replace(
            scored,
            duration_s=made.duration_s,
            width=made.width,
            height=made.height,
            frames_used=made.frames_used,
            damage=made.damage,
            decoder=made.decoder,
        )
    return scored
