"""Does a runtime on this machine say what the original says, and how fast is it?

Every variant of a bundle holds a `Reference`: frames or epochs that can be made again anywhere,
captions, and the scores that the original gives for them. An engine is used only after it
reproduced them within the tolerance of the precision, on this machine, with this version of the
runtime.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from memcli.engines.bundle import Bundle, Variant
from memcli.engines.comparison import Comparison, compare, compare_epochs, spearman
from memcli.engines.reference import synthetic_frames
from memcli.engines.synthetic_eeg import synthetic_epochs
from memcli.errors import EngineError, ModelError
from memcli.spec import (
    MAX_CAPTION_LENGTH,
    MAX_CAPTIONS,
    MAX_FRAMES,
    EegPrep,
    ModelSpec,
    Tolerance,
)

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    from memcli.engines.base import Array, Engine

__all__ = [
    "Comparison",
    "ParityReport",
    "Reference",
    "compare",
    "compare_epochs",
    "measure_speed",
    "reference_feeds",
    "run_scores",
    "spearman",
    "verify",
]

SYNTHETIC = "synthetic-1"
SYNTHETIC_EEG = "synthetic-eeg-1"
INPUT = "frames"
INPUT_IDS = "input_ids"
ATTENTION_MASK = "attention_mask"
SCORE = "score"
FRAME_SCORES = "frame_scores"
EEG = "eeg"
"""float32 [batch, channels, samples], microvolts."""
SAMPLES = "samples"
"""int64 [batch]: how many of them are there."""
SUBJECT = "subject"
"""int64 [batch], 0 for somebody unknown; only of models with subjects."""
CONTRIBUTIONS = "contributions"
"""float32 [batch, windows], of the logit."""
_BATCH_CLIPS = 4
"""Clips in one call of the engine: large models have no memory for more."""
_MAX_CLIPS = 1024
_MAX_INPUT_BYTES = 512 << 20
_TIMED_RUNS = 3
_TIMED_ENOUGH_S = 4.0


@dataclass(frozen=True)
class Reference:
    """Stored in `Variant.reference` as a dict."""

    clips: int
    frames_per_clip: int
    """0 for a model that does not look at frames."""
    seed: int
    tolerance: Tolerance
    frame_scores: tuple[tuple[float, ...], ...] = ()
    """The original's score of each frame, by clip, where the model gives them."""
    scores: tuple[float, ...] = ()
    """The original's score of each clip, where the model gives no more than that."""
    captions: tuple[tuple[str, ...], ...] = ()
    """By clip, at least one each; none at all for a model that reads no captions."""
    kind: str = SYNTHETIC
    """How frames are made (`memcli.engines.reference.synthetic_frames`) or, with SYNTHETIC_EEG,
    epochs (`memcli.engines.synthetic_eeg.synthetic_epochs`)."""
    contributions: tuple[tuple[float, ...], ...] = ()
    """The original's shares of windows in the logit, by epoch, beside `scores`; of EEG only."""

    def expected(self) -> npt.NDArray[np.float64]:
        """What an engine must give: [clips, frames], or [clips, 1] without frame scores."""
        rows = self.frame_scores or tuple((score,) for score in self.scores)
        return np.array(rows, dtype=np.float64)

    def to_dict(self) -> dict[str, Any]:
        """Plain dict as it comes back from JSON, where tuples are lists; what is empty is left
        out."""
        entry = asdict(self)
        for name in ("frame_scores", "scores", "captions", "contributions"):
            if entry[name]:
                entry[name] = [list(v) if isinstance(v, tuple) else v for v in entry[name]]
            else:
                del entry[name]
        return entry

    @classmethod
    def from_dict(cls, entry: Mapping[str, Any]) -> Reference:
        """Raises ModelError if the entry is damaged or of a kind this version does not know."""
        try:
            reference = cls(
                clips=int(entry["clips"]),
                frames_per_clip=int(entry["frames_per_clip"]),
                seed=int(entry["seed"]),
                frame_scores=tuple(tuple(map(float, r)) for r in entry.get("frame_scores", ())),
                scores=tuple(map(float, entry.get("scores", ()))),
                captions=tuple(map(_captions, entry.get("captions", ()))),
                tolerance=_tolerance(entry["tolerance"]),
                kind=str(entry["kind"]),
                contributions=tuple(tuple(map(float, r)) for r in entry.get("contributions", ())),
            )
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise ModelError(f"the bundle's reference is damaged: {error}") from error
        if reference.kind not in (SYNTHETIC, SYNTHETIC_EEG):
            raise ModelError(
                f"the bundle's reference is of kind {reference.kind!r}",
                next_step="Upgrade memcli, or install the model again.",
            )
        if problem := reference._problem():
            raise ModelError(f"the bundle's reference is damaged: {problem}")
        return reference

    def _problem(self) -> str | None:
        frames = {len(row) for row in self.frame_scores}
        if not 1 <= self.clips <= _MAX_CLIPS or not 0 <= self.frames_per_clip <= MAX_FRAMES:
            return f"{self.clips} clips of {self.frames_per_clip} frames"
        if len(self.frame_scores) + len(self.scores) != self.clips or frames - {
            self.frames_per_clip
        }:
            return "its scores do not fit its frames"
        if self.frame_scores and self.scores:
            return "it has scores of frames and of clips"
        if len(self.captions) not in (0, self.clips):
            return "its captions do not fit its clips"
        if (self.kind == SYNTHETIC_EEG) != bool(self.contributions):
            return "contributions are of epochs, and epochs have some"
        if self.contributions and (
            len(self.contributions) != self.clips
            or len(self.scores) != self.clips
            or len({len(row) for row in self.contributions}) > 1
        ):
            return "its contributions do not fit its epochs"
        return None


def _tolerance(entry: Mapping[str, Any]) -> Tolerance:
    for name, value in entry.items():
        optional = name in ("min_srcc", "min_cosine")
        if not (type(value) in (int, float) or (value is None and optional)):
            raise ValueError(f"its tolerance {name} is {str(value)[:40]!r}")
    return Tolerance(**entry)


def _captions(entry: object) -> tuple[str, ...]:
    """The captions of one clip, of reasonable number and length."""
    if (
        isinstance(entry, (list, tuple))
        and 1 <= len(entry) <= MAX_CAPTIONS
        and all(isinstance(one, str) and len(one) <= MAX_CAPTION_LENGTH for one in entry)
    ):
        return tuple(entry)
    raise ValueError("a clip without captions, or with too many or too long ones")


@dataclass(frozen=True)
class ParityReport(Comparison):
    """A comparison of one engine with the reference of its variant, and the engine's speed.

    Speeds are of a warm engine, on some of the reference's clips as one batch.
    """

    engine: str
    """`str(EngineDescription)`."""
    precision: str
    clips_per_s: float
    """What engines of one model are compared by."""
    frames_per_s: float | None
    """None for a model that does not look at frames."""

    @property
    def rate(self) -> float:
        """The speed that is shown: frames per second, or clips or epochs without frames."""
        return self.clips_per_s if self.frames_per_s is None else self.frames_per_s

    @property
    def unit(self) -> str:
        """Of `rate`."""
        return f"{self.of}/s" if self.frames_per_s is None else "frames/s"


def verify(engine: Engine, bundle: Bundle, variant: Variant) -> ParityReport:
    """Run the reference's clips, compare with its scores and measure the speed.

    A few seconds for a large model. Raises EngineError if the runtime fails, ModelError if the
    reference is damaged. A difference beyond the tolerance raises nothing: see `passed`.
    """
    description = engine.describe()
    reference = Reference.from_dict(variant.reference_of(description.engine))
    feeds = reference_feeds(reference, bundle.spec, bundle.tokenizer_path(variant))
    found = run_scores(engine, feeds, frame_scores=bundle.spec.frame_scores)
    comparison = _compare(found, reference)
    speed = measure_speed(engine, _some(feeds, 0)) if comparison.passed else 0.0
    return ParityReport(
        **asdict(comparison),
        engine=str(description),
        precision=description.precision,
        clips_per_s=speed,
        frames_per_s=speed * reference.frames_per_clip if INPUT in feeds else None,
    )


def _compare(found: FoundScores, reference: Reference) -> Comparison:
    if found.contributions is None:
        return compare(
            found.rows, reference.expected(), reference.tolerance, clip_scores=found.clips
        )
    contributions = np.array(reference.contributions, dtype=np.float64)
    if found.contributions.shape != contributions.shape:
        got, wanted = list(found.contributions.shape), list(contributions.shape)
        raise EngineError(f"the graph gives {CONTRIBUTIONS} {got}, not {wanted}")
    return compare_epochs(
        (found.clips, reference.expected()[:, 0]),
        (found.contributions, contributions),
        reference.tolerance,
    )


def reference_feeds(
    reference: Reference, spec: ModelSpec, tokenizer: Path | None
) -> dict[str, Array]:
    """The inputs of the reference's clips, as one batch: those of the graph of `spec`.

    `frames` uint8 [clips, frames, H, W, 3], `input_ids` and `attention_mask` int64
    [clips, captions, tokens], or those of `epoch_feeds`; `tokenizer` is the bundle's. Raises
    ModelError if the reference does not fit the model.
    """
    feeds: dict[str, Array] = {}
    if (
        (spec.prep is None) != (reference.frames_per_clip == 0)
        or (spec.text is None) != (not reference.captions)
        or (spec.eeg is None) != (not reference.contributions)
        or spec.frame_scores != bool(reference.frame_scores)
    ):
        raise ModelError("the bundle's reference is damaged: it is not of this model")
    if spec.eeg is not None:
        channels, samples = spec.eeg.epoch_shape()
        if channels * samples * 4 * reference.clips > _MAX_INPUT_BYTES:
            raise ModelError("the bundle's reference is damaged: its epochs are too large")
        return epoch_feeds(spec.eeg, reference.clips, reference.seed)
    if spec.prep is not None:
        if spec.prep.clip_bytes(reference.frames_per_clip) * reference.clips > _MAX_INPUT_BYTES:
            raise ModelError("the bundle's reference is damaged: its frames are too large")
        feeds[INPUT] = synthetic_frames(
            spec.prep, reference.clips, reference.frames_per_clip, reference.seed
        )
    if spec.text is not None and tokenizer is not None:
        from memcli.tokens import Tokeniser

        tokens = Tokeniser(spec.text, tokenizer).encode(reference.captions)
        feeds |= {INPUT_IDS: tokens.input_ids, ATTENTION_MASK: tokens.attention_mask}
    return feeds


def epoch_feeds(prep: EegPrep, epochs: int, seed: int) -> dict[str, Array]:
    """Synthetic epochs as the inputs of a graph: `eeg` float32 [epochs, channels, samples],
    `samples` int64 [epochs] and, for a model with subjects, `subject` int64 [epochs]."""
    made = synthetic_epochs(prep, epochs, seed)
    feeds: dict[str, Array] = {EEG: made.eeg, SAMPLES: made.samples}
    return feeds | ({SUBJECT: made.subject} if prep.subjects else {})


class FoundScores(NamedTuple):
    """Everything that a graph says about clips."""

    rows: npt.NDArray[np.float64]
    """Scores of frames [clips, frames], or [clips, 1], of clips, where it gives none of frames."""
    clips: npt.NDArray[np.float64]
    """Scores of clips, [clips]."""
    contributions: npt.NDArray[np.float64] | None = None
    """Of windows, [clips, windows]; None of a graph that does not take EEG."""


def run_scores(engine: Engine, feeds: Mapping[str, Array], *, frame_scores: bool) -> FoundScores:
    """Scores of clips, a few at a time; those of frames, too, with `frame_scores`.

    `feeds` are the graph's inputs, the first axis being the clips. Raises EngineError if the
    runtime fails or its outputs have other names or shapes.
    """
    clips = len(next(iter(feeds.values())))
    parts = [
        _run(engine, _some(feeds, start), frame_scores=frame_scores)
        for start in range(0, clips, _BATCH_CLIPS)
    ]
    contributions = [part.contributions for part in parts if part.contributions is not None]
    return FoundScores(
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.clips for part in parts]),
        np.concatenate(contributions) if contributions else None,
    )


def _some(feeds: Mapping[str, Array], start: int) -> dict[str, Array]:
    return {name: array[start : start + _BATCH_CLIPS] for name, array in feeds.items()}


def _run(engine: Engine, feeds: Mapping[str, Array], *, frame_scores: bool) -> FoundScores:
    outputs = engine.run(feeds)
    wanted = {SCORE: next(iter(feeds.values())).shape[:1]}
    if frame_scores:
        wanted[FRAME_SCORES] = feeds[INPUT].shape[:2]
    for name, shape in wanted.items():
        if name not in outputs or outputs[name].shape != shape:
            got = {key: list(value.shape) for key, value in outputs.items()}
            raise EngineError(f"the graph gives {got}, not {name} {list(shape)}")
    clips = outputs[SCORE].astype(np.float64)
    rows = outputs[FRAME_SCORES].astype(np.float64) if frame_scores else clips[:, None]
    if EEG not in feeds:
        return FoundScores(rows, clips)
    found = outputs.get(CONTRIBUTIONS)
    if found is None or found.ndim != 2 or len(found) != len(clips):
        got = {key: list(value.shape) for key, value in outputs.items()}
        raise EngineError(f"the graph gives {got}, not {CONTRIBUTIONS} [{len(clips)}, windows]")
    return FoundScores(rows, clips, found.astype(np.float64))


def measure_speed(engine: Engine, feeds: Mapping[str, Array]) -> float:
    """Clips per second of a warm engine: the best of a few runs.

    The best, because everything else that happens on a machine can only make a run slower.
    """
    clips = len(next(iter(feeds.values())))
    times: list[float] = []
    while len(times) < _TIMED_RUNS and sum(times) < _TIMED_ENOUGH_S:
        start = time.perf_counter()
        engine.run(feeds)
        times.append(time.perf_counter() - start)
    return clips / min(times)
