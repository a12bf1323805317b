"""Measures the engines of an EEG model on synthetic epochs.

Reading recordings is measured side by side with MNE in `tests/benchmarks`; it depends on their
rate, length and format far more than on the model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Any

from memcli.engines.select import Candidate, open_candidate
from memcli.engines.verify import epoch_feeds
from memcli.errors import MemcliError, UsageError

if TYPE_CHECKING:
    from memcli.engines.base import Array, Engine
    from memcli.engines.bundle import Bundle
    from memcli.scoring import ScoreSettings
    from memcli.spec import EegPrep

EPOCHS = 256
BATCH = 16
"""Epochs in a call, as `memcli eeg` has them."""
_DIGITS = 4


@dataclass(frozen=True)
class EpochSpeed:
    """One way to run the model, or why it cannot be measured."""

    candidate: str
    """E.g. `openvino at fp32`."""
    description: str = ""
    """What really ran."""
    seconds: tuple[float, ...] = ()
    """Of each repeat, for all epochs."""
    problem: str | None = None

    @property
    def epochs_per_s(self) -> float:
        """Median over the repeats."""
        return EPOCHS / median(self.seconds)

    @property
    def spread(self) -> float:
        """(slowest - fastest) / median of the repeats."""
        return (max(self.seconds) - min(self.seconds)) / median(self.seconds)

    def to_dict(self) -> dict[str, Any]:
        """Plain dict, ready for JSON."""
        entry = {**asdict(self), "seconds": [round(one, _DIGITS) for one in self.seconds]}
        if not self.seconds:
            return entry
        speeds = {"epochs_per_s": self.epochs_per_s, "spread": self.spread}
        return entry | {name: round(value, _DIGITS) for name, value in speeds.items()}


@dataclass
class EegBenchReport:
    """What was measured, where and on what."""

    machine: str
    model: str
    epochs: int
    channels: int
    samples: int
    batch_size: int
    repeat: int
    engines: list[EpochSpeed] = field(default_factory=list)
    engine_problem: str | None = None
    """Why no engine could be measured at all."""

    def to_dict(self) -> dict[str, Any]:
        """Plain dict, ready for JSON."""
        return {**asdict(self), "engines": [one.to_dict() for one in self.engines]}


def check_bench_settings(settings: ScoreSettings, paths: Sequence[str]) -> None:
    """Raise UsageError for what only models of videos have."""
    given = {"PATH": bool(paths), "--frames": settings.frames, "--workers": settings.workers}
    named = [name for name, value in given.items() if value]
    if named:
        raise UsageError(
            f"{settings.model} is for EEG, and is measured on synthetic epochs",
            next_step=f"Leave out {' and '.join(named)}.",
        )


def measure_eeg(
    settings: ScoreSettings,
    bundle: Bundle,
    candidates: Sequence[Candidate],
    problem: str | None,
    repeat: int,
    report: Callable[[str], None],
) -> EegBenchReport:
    """Every candidate in turn. Raises ModelError for a damaged bundle of EEG."""
    from memcli.machine import cpu_label

    prep = bundle.spec.eeg
    assert prep is not None
    channels, samples = prep.epoch_shape()
    engines = []
    for candidate in candidates:
        report(f"measuring {candidate} ...")
        engines.append(_measure(settings, bundle, prep, candidate, repeat, report))
    return EegBenchReport(
        cpu_label(), bundle.model, EPOCHS, channels, samples, BATCH, repeat, engines, problem
    )


def _measure(
    settings: ScoreSettings,
    bundle: Bundle,
    prep: EegPrep,
    candidate: Candidate,
    repeat: int,
    report: Callable[[str], None],
) -> EpochSpeed:
    try:
        selection = open_candidate(bundle, candidate, threads=settings.threads, report=report)
    except UsageError:
        raise
    except MemcliError as error:
        return EpochSpeed(str(candidate), problem=str(error))
    feeds = epoch_feeds(prep, BATCH, seed=0)
    with selection.engine as engine:
        engine.run(feeds)
        seconds = tuple(_seconds(engine, feeds) for _ in range(repeat))
        return EpochSpeed(str(candidate), str(engine.describe()), seconds)


def _seconds(engine: Engine, feeds: dict[str, Array]) -> float:
    started = time.perf_counter()
    for _ in range(EPOCHS // BATCH):
        engine.run(feeds)
    return time.perf_counter() - started
