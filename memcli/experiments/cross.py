"""Trains a model on each of some datasets and measures it on all the others.

Source: 002_1ca569390f82ecec.txt, section 3 and table 2. Left open there and chosen here: a dataset
with official splits is trained on by its train split, with dev to stop by; another one by all its
videos outside the test split, for as many epochs as its folds say. Tested is the whole labelled
test split; where there is none, dev; where there are no splits, everything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memcli.errors import UsageError
from memcli.experiments.data import Data, load_data, part_name
from memcli.experiments.experiment import Experiment
from memcli.experiments.files import write_tables
from memcli.experiments.options import Options, check_options, encoder_changes
from memcli.experiments.tables import Figure, Quantity, Row, Table
from memcli.kinds import require_videos
from memcli.models import get_model
from memcli.text import plural
from memcli.training.settings import NoProgress, Progress, Split

if TYPE_CHECKING:
    from memcli.train.run import Run

METRICS = ("SRCC", "PLCC")


@dataclass(frozen=True)
class CrossSettings:
    """What `memcli cross` is asked for."""

    model: str
    sources: Sequence[tuple[str | None, Path]]
    """At least two datasets: format (None: see what it is) and folder."""
    output: Path
    target: str | None = None
    options: Options = field(default_factory=Options)
    note: str = ""


@dataclass(frozen=True)
class Pair:
    """A model trained on one dataset and measured on one."""

    train: Data
    test: Data
    part: str
    """`test`, `dev` or `all`; `held-out` where both are one dataset."""
    metrics: dict[str, Any] | None = None
    """`Metrics.to_dict()`."""
    failure: str = ""

    def figures(self) -> dict[str, Figure]:
        """SRCC and PLCC."""
        if self.metrics is None:
            return {}
        return {name: Figure.of(self.metrics, name.lower()) for name in METRICS}


@dataclass(frozen=True)
class Crossed:
    """All pairs, and the runs behind them."""

    pairs: tuple[Pair, ...]
    runs: Mapping[str, Run]
    """By the label of the dataset trained on."""


def cross(settings: CrossSettings, progress: Progress | None = None) -> list[Table]:
    """Train and measure; one matrix per metric, which the output folder then has, too.

    A dataset that fails is a row, or a cell, that says so. Raises UsageError, DatasetError and
    DeviceError for what concerns the whole, before anything is trained.
    """
    from memcli.train import metrics, plots

    progress = progress or NoProgress()
    require_videos(get_model(settings.model))
    if get_model(settings.model).recipe is None:
        raise UsageError(
            f"{settings.model} is not trained here: its weights are published",
            next_step=f"Measure it:  memcli evaluate {settings.model} --dataset NAME --data DIR",
        )
    if len(settings.sources) < 2:
        raise UsageError(
            "crossing takes at least two datasets",
            where="--dataset",
            next_step="Name each:  --dataset NAME=DIR --dataset NAME=DIR",
        )
    metrics.require_packages()
    plots.require_packages()
    check_options(settings.options, [settings.model])
    data = load_data(settings.sources, settings.target)
    what = f"cross {settings.model}"
    with Experiment.open(settings.output, what, data, settings.options, progress) as experiment:
        tables = _tables(settings, data, cross_pairs(experiment, settings.model, data))
        write_tables(settings.output, tables, plots=False)
    return tables


def _tables(settings: CrossSettings, data: Sequence[Data], crossed: Crossed) -> list[Table]:
    notes = [f"Dataset {one.describe()}." for one in data]
    notes.append("Where both datasets are one: videos that were held out of training.")
    notes += cross_notes(crossed)
    notes += run_notes(list(crossed.runs.values()), settings.options)
    return [
        replace(
            matrix(metric, settings.model, data, crossed.pairs),
            notes=tuple(notes),
            mark=settings.note,
        )
        for metric in METRICS
    ]


def cross_pairs(experiment: Experiment, model: str, data: Sequence[Data]) -> Crossed:
    """Every dataset trained on, and measured on every one: row by row of the matrix."""
    pairs = []
    runs: dict[str, Run] = {}
    for number, train in enumerate(data, start=1):
        name = f"{model} trained on {train.label}"
        if experiment.trains(model):
            experiment.progress.message(f"[{number} of {len(data)}] {name}")
        split: Split = "official" if train.has_official_split else "folds"
        run, failure = experiment.attempt(name, partial(experiment.train, model, train, split))
        if run is None:
            pairs += [Pair(train, test, test.test_part()[0], failure=failure) for test in data]
            continue
        runs[train.label] = run
        for test in data:
            if test is train:
                pairs.append(Pair(train, train, "held-out", run.metrics["held_out"]))
                continue
            part, items = test.test_part()
            metrics, failure = experiment.attempt(
                f"{name}, on {test.label}", partial(experiment.measure, run, test, part, items)
            )
            pairs.append(Pair(train, test, part, metrics, failure))
    return Crossed(tuple(pairs), runs)


def matrix(metric: str, model: str, data: Sequence[Data], pairs: Sequence[Pair]) -> Table:
    """One metric: a row per dataset trained on, a column per dataset tested on."""
    columns = {one.label: f"{one.label}, {part_name(one.test_part()[0])}" for one in data}
    rows = []
    for train in data:
        own = [pair for pair in pairs if pair.train is train]
        figures = {
            columns[pair.test.label]: pair.figures()[metric]
            for pair in own
            if pair.metrics is not None
        }
        failures = dict.fromkeys(pair.failure for pair in own if pair.failure)
        rows.append(Row((train.label,), obtained=figures, failure="; ".join(failures)))
    return Table(
        name=f"{metric.lower()}",
        title=f"{metric} of {model}, trained on one dataset and tested on another",
        labels=("Trained on",),
        quantities=tuple(Quantity(name) for name in columns.values()),
        rows=tuple(rows),
    )


def cross_notes(crossed: Crossed) -> list[str]:
    """How it was done, in sentences."""
    notes = []
    for label, run in crossed.runs.items():
        videos, held_out = run.dataset["videos"], run.metrics["held_out"]["n"]
        notes.append(
            f"{label}: trained on its train split ({plural(videos - held_out, 'video')}), its dev"
            f" split held out ({plural(held_out, 'video')})."
            if run.dataset["split"] == "official"
            else f"{label}: cross-validated, then trained on {plural(videos, 'video')}, as long as"
            " the folds say."
        )
    notes.append("In parentheses: 95 % interval by Fisher's z.")
    return notes


def run_notes(runs: Sequence[Run], options: Options) -> list[str]:
    """What of the runs differs from the papers, and what was left out."""
    notes = []
    if changes := options.changes(runs):
        notes.append(f"Changed from the paper: {', '.join(changes)}.")
    if encoders := encoder_changes(runs):
        notes.append(f"Encoders: {'; '.join(encoders)}.")
    left_out = {name for run in runs for name in run.dataset.get("left_out") or {}}
    if left_out:
        notes.append(f"{plural(len(left_out), 'video')} left out; reasons in each run.json.")
    return notes
