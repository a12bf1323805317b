"""Runs the tables of a paper: every row trained and measured, published and obtained side by side.

A row is an entry of the registry; what the tables hold beyond it is in
`memcli.experiments.published`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from memcli.errors import UsageError
from memcli.experiments.cross import cross_notes, cross_pairs, run_notes
from memcli.experiments.data import Data, load_data
from memcli.experiments.experiment import Experiment
from memcli.experiments.files import write_tables
from memcli.experiments.options import Options, check_options
from memcli.experiments.published import (
    ADAPTATION_LOSSES,
    BATCH_SIZE,
    CROSS_MODEL,
    CROSS_VALIDATION,
    I3D_ROWS,
    LEARNING_RATE,
    OWN_DATA,
    SECOND_DATA,
    TEST,
    cross_figures,
    paper_models,
    row_figures,
    row_labels,
)
from memcli.experiments.tables import Figure, Quantity, Row, Table
from memcli.models import get_model
from memcli.models.papers import PAPERS, cited
from memcli.text import printable
from memcli.train.datasets import DatasetError
from memcli.training.settings import NoProgress, Progress, Split

if TYPE_CHECKING:
    from memcli.train.run import Run

_CROSS_PARTS = {"dev": "development set", "test": "test set"}
_NOT_RUN = "not run"
_EQUATION = "001_de183854d7703535.txt, equation 13"
_FISHER = f"In parentheses: 95 % interval by Fisher's z ({cited(_EQUATION)})."


@dataclass(frozen=True)
class ReproduceSettings:
    """What `memcli reproduce` is asked for."""

    paper: str
    data: Path
    output: Path
    dataset: str | None = None
    """Format of the dataset; None: see what it is."""
    target: str | None = None
    second: tuple[str | None, Path] | None = None
    """Another dataset, for the cross-dataset table of clip-gru."""
    models: tuple[str, ...] = ()
    """The rows to run; empty: all. Of the others, what is complete in the folder is shown."""
    options: Options = field(default_factory=Options)
    note: str = ""
    """A sentence about the data that is put below every table."""


def reproduce(settings: ReproduceSettings, progress: Progress | None = None) -> list[Table]:
    """The tables of a paper, which the output folder then has, too.

    A row that fails says so, and the others go on. What is complete in the output folder is not
    done again. Raises UsageError, DatasetError and DeviceError for what concerns the whole, before
    anything is trained.
    """
    from memcli.train import metrics, plots

    if settings.paper not in PAPERS:
        raise UsageError(
            f"no paper {printable(settings.paper)!r}", next_step=f"One of: {', '.join(PAPERS)}"
        )
    metrics.require_packages()
    plots.require_packages()
    chosen = _chosen(settings)
    check_options(settings.options, paper_models(settings.paper))
    if settings.second is not None and CROSS_MODEL not in paper_models(settings.paper):
        raise UsageError(f"only {CROSS_MODEL} has a table of two datasets", where="--second")
    sources = [(settings.dataset, settings.data)]
    sources += [settings.second] if settings.second is not None else []
    data = load_data(sources, settings.target)
    if settings.paper == "clip-gru" and not data[0].has_official_split:
        raise DatasetError(
            "this table needs labelled videos of both splits, train and dev",
            where=str(settings.data),
            next_step=f"Without splits:  memcli train {CROSS_MODEL} --split folds",
        )
    with Experiment.open(
        settings.output,
        f"reproduce {settings.paper}",
        data,
        settings.options,
        progress or NoProgress(),
        chosen=chosen,
    ) as experiment:
        tables = _Reproduction(settings, experiment, data, chosen).tables()
        write_tables(settings.output, tables, plots=True)
    return tables


def _chosen(settings: ReproduceSettings) -> tuple[str, ...]:
    known = paper_models(settings.paper)
    for name in settings.models:
        if name not in known:
            raise UsageError(
                f"{printable(name)!r} is no row of this paper",
                where="--models",
                next_step=f"Its rows: {', '.join(known)}",
            )
    return tuple(name for name in known if not settings.models or name in settings.models)


class _Reproduction:
    """One paper on one dataset, or two."""

    def __init__(
        self,
        settings: ReproduceSettings,
        experiment: Experiment,
        data: Sequence[Data],
        chosen: tuple[str, ...],
    ):
        self.settings = settings
        self.experiment = experiment
        self.all_data = data
        self.data = data[0]
        self.chosen = chosen
        self.runs: list[Run] = []

    def tables(self) -> list[Table]:
        if self.settings.paper == "early-fusion":
            return [self._early_fusion()]
        if self.settings.paper == "fclip":
            table = self._fclip()
            losses = self._adaptation()
            return [table, losses] if losses is not None else [table]
        tables = [self._clip_gru()]
        return [*tables, self._cross()] if len(self.all_data) > 1 else tables

    def _rows(self, *parts: Callable[[str], dict[str, Figure]]) -> tuple[Row, ...]:
        """`part(model)` for every model and part of a row; one that fails does not stop others."""
        found = []
        for model in paper_models(self.settings.paper):
            if model in self.chosen:
                number = self.chosen.index(model) + 1
                self.experiment.progress.message(f"[{number} of {len(self.chosen)}] {model}")
            obtained: dict[str, Figure] = {}
            failures: dict[str, None] = {}
            absent = ""
            for part in parts:
                done, failure = self.experiment.attempt(model, partial(part, model))
                obtained |= done or {}
                failures |= {failure: None} if failure else {}
                absent = _NOT_RUN if done is None and not failure else absent
            found.append(
                Row(
                    row_labels(self.settings.paper, model),
                    model,
                    published=row_figures(self.settings.paper, model),
                    obtained=obtained,
                    failure="; ".join(failures),
                    absent=absent,
                )
            )
        return tuple(found)

    def _early_fusion(self) -> Table:
        """000_bcb79d7cf5a52fe8.txt, table 1."""
        part, items = self.data.test_part()
        if part == "dev" and not self.data.has_official_split:
            part = "all"

        def official(model: str) -> dict[str, Figure]:
            run = self._train(model, "official")
            return {TEST: Figure.of(run.metrics["held_out"], "srcc")}

        trained: dict[str, Run] = {}

        def folds(model: str) -> dict[str, Figure]:
            trained[model] = self._train(model, "folds")
            return {CROSS_VALIDATION: _mean(trained[model], std=True)}

        def tested(model: str) -> dict[str, Figure]:
            if model not in trained:
                return {}
            metrics = self.experiment.measure(trained[model], self.data, part, items)
            return {TEST: Figure.of(metrics, "srcc")}

        # Folds last of all trainings: their run is what `memcli export` then takes.
        by_part = {"dev": (official, folds), "test": (folds, tested), "all": (folds,)}
        rows = self._rows(*by_part[part])
        where = {
            "test": "the test split, after training on all other videos",
            "dev": "the dev split, after training on the train split only",
            "all": "not obtained, because no labelled test or dev split is here",
        }
        return self._table(
            "table-1",
            "Table 1: SRCC in cross-validation and on the test set",
            ("Model",),
            (Quantity(CROSS_VALIDATION), Quantity(TEST)),
            rows,
            "± is the standard deviation over the folds (as we read the published one).",
            f"{TEST}, obtained: {where[part]}.",
            "In parentheses: 95 % interval by Fisher's z.",
        )

    def _fclip(self) -> Table:
        """001_de183854d7703535.txt, table 6."""

        def row(model: str) -> dict[str, Figure]:
            run = self._train(model, "folds")
            return {
                LEARNING_RATE: Figure(
                    statistics.median(fold["learning_rate"] for fold in run.folds)
                ),
                BATCH_SIZE: Figure(max(fold["batch_size"] for fold in run.folds)),
                "SRCC": _mean(run),
            }

        return self._table(
            "table-6",
            "Table 6: SRCC of six strategies",
            ("Strategy", "Model"),
            (
                Quantity(LEARNING_RATE, ".0e", plotted=False),
                Quantity(BATCH_SIZE, ",.0f", plotted=False),
                Quantity("SRCC"),
            ),
            self._rows(row),
            "Learning rate, obtained: median of the folds' range tests.",
            "SRCC: mean over the folds, each at the epoch of its own highest SRCC, as in the paper;"
            " this flatters it slightly.",
            _FISHER,
        )

    def _adaptation(self) -> Table | None:
        """001_de183854d7703535.txt, table 5; None without a run that was adapted."""
        run = next((run for run in self.runs if run.adaptation), None)
        if run is None:
            return None
        found: list[tuple[float | None, float | None]] = [(None, run.adaptation.get("loss_before"))]
        found += [(one["train_loss"], one["val_loss"]) for one in run.adaptation["history"]]
        names = ("Training loss", "Test loss")
        rows = []
        for epoch in range(max(len(found), len(ADAPTATION_LOSSES))):
            sides = []
            for side in (ADAPTATION_LOSSES, found):
                values = side[epoch] if epoch < len(side) else (None, None)
                pairs = zip(names, values, strict=True)
                sides.append({name: Figure(value) for name, value in pairs if value is not None})
            rows.append(Row((str(epoch),), published=sides[0], obtained=sides[1]))
        return self._table(
            "table-5",
            "Table 5: loss of the contrastive adaptation",
            ("Epoch",),
            tuple(Quantity(name, ".4f") for name in names),
            tuple(rows),
            "Epoch 0: the encoders as published.",
            f"Test loss, obtained, is of {run.adaptation['monitored_on']}.",
            "The lowest test loss decides which epoch is used"
            f" (here {run.adaptation['best_epoch']}, in the paper 1).",
            runs=[run],
            options=Options(adaptation_epochs=self.settings.options.adaptation_epochs),
        )

    def _clip_gru(self) -> Table:
        """002_1ca569390f82ecec.txt, table 1."""

        def row(model: str) -> dict[str, Figure]:
            run = self._train(model, "official")
            metrics = run.metrics["held_out"]
            return {name: Figure.of(metrics, name.lower()) for name in ("PLCC", "SRCC")}

        rows = self._rows(row)
        others = tuple(
            Row(
                (other.encoder, other.aggregator, other.predictor),
                published={
                    name: Figure(value)
                    for name, value in (("PLCC", other.plcc), ("SRCC", other.srcc))
                    if value is not None
                },
                absent="not here",
            )
            for other in I3D_ROWS
        )
        return self._table(
            "table-1",
            "Table 1: PLCC and SRCC on the development set",
            ("Encoder", "Aggregator", "Predictor"),
            (Quantity("PLCC", ".4f"), Quantity("SRCC", ".4f")),
            (*rows, *others),
            "Trained on the train split; measured on the dev split, which also says when to stop.",
            "Rows with I3D are not here: no weights of that network for memorability are"
            " published. The PLCC of one of them is not legible in our copy of the paper.",
            _FISHER,
        )

    def _cross(self) -> Table:
        """002_1ca569390f82ecec.txt, table 2."""
        crossed = cross_pairs(self.experiment, CROSS_MODEL, self.all_data)
        rows = []
        used = set()
        for pair in crossed.pairs:
            if pair.train is pair.test:
                continue
            names = _own_name(pair.train), _own_name(pair.test)
            part = _CROSS_PARTS.get(pair.part, "all videos")
            paper = f"{names[1]}, {part}, trained on {names[0]}"
            used.add(paper)
            rows.append(
                Row(
                    (pair.train.label, f"{pair.test.label}, {part}"),
                    published=cross_figures(paper),
                    obtained=pair.figures(),
                    failure=pair.failure,
                    absent=_NOT_RUN if pair.metrics is None and not pair.failure else "",
                )
            )
        others = dict.fromkeys(one.dataset for one in get_model(CROSS_MODEL).published)
        for paper in others:
            test, between, train = paper.partition(", trained on ")
            if between and paper not in used:
                rows.append(
                    Row((train, test), published=cross_figures(paper), absent="not tested here")
                )
        return self._table(
            "table-2",
            f"Table 2: {CROSS_MODEL} tested on another dataset",
            ("Trained on", "Tested on"),
            (Quantity("PLCC"), Quantity("SRCC")),
            tuple(rows),
            *cross_notes(crossed),
            runs=list(crossed.runs.values()),
        )

    def _train(self, model: str, split: Split) -> Run:
        run = self.experiment.train(model, self.data, split)
        self.runs.append(run)
        return run

    def _table(
        self,
        name: str,
        title: str,
        labels: tuple[str, ...],
        quantities: tuple[Quantity, ...],
        rows: tuple[Row, ...],
        *notes: str,
        runs: Sequence[Run] | None = None,
        options: Options | None = None,
    ) -> Table:
        paper = PAPERS[self.settings.paper]
        said = []
        used, own = [self.data], [OWN_DATA[self.settings.paper]]
        if name == "table-2":
            used, own = list(self.all_data), [*own, SECOND_DATA]
        said.append(f"Obtained on {' and '.join(one.describe() for one in used)}.")
        same = {one.dataset.name for one in used} <= {one.format for one in own}
        said.append(
            f"Published: {paper.authors}, {paper.title}, {paper.venue}, on"
            f" {' and '.join(one.name for one in own)}"
            + ("." if same else ": other data, so the two cannot be compared.")
        )
        said += notes
        said += run_notes(
            self.runs if runs is None else runs,
            self.settings.options if options is None else options,
        )
        return Table(name, title, labels, quantities, rows, tuple(said), self.settings.note)


def _mean(run: Run, *, std: bool = False) -> Figure:
    """Mean SRCC of the folds, with its spread or its interval."""
    metrics = run.metrics
    interval = metrics["interval"]
    return Figure(
        metrics["mean_srcc"],
        std=metrics["std_srcc"] if std else None,
        interval=(interval[0], interval[1]) if interval is not None and not std else None,
        videos=metrics["held_out"]["n"],
    )


def _own_name(data: Data) -> str:
    """The dataset's name as the registry's published figures have it."""
    own = {one.format: one.name for one in (OWN_DATA["clip-gru"], SECOND_DATA)}
    return own.get(data.dataset.name, data.label)
