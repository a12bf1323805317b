"""Measures a trained or installed model on a dataset: agreement with what people remembered.

What an evaluation writes into its folder:

    metrics.json      everything below, as numbers
    predictions.csv   id, path, truth, predicted, fold, error: every labelled video once
    scatter.png       predicted over true scores
    calibration.png   mean true over mean predicted score, in bins of equally many videos
"""

from __future__ import annotations

import csv
import json
import os
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from memcli import extraction
from memcli.errors import ModelError, OutputError, OutputMismatchError, UsageError
from memcli.home import make_dir
from memcli.kinds import require_videos_by_name
from memcli.predictors import BundlePredictor, Predictions, Predictor, RunPredictor, find_predictor
from memcli.text import csv_cell, csv_path, plural, printable
from memcli.train.datasets import (
    Dataset,
    DatasetError,
    Item,
    load_dataset,
    raise_on_errors,
    same_format,
)

if TYPE_CHECKING:
    from memcli.engines.candidates import EngineChoice, PrecisionChoice
    from memcli.train.metrics import Metrics
    from memcli.train.run import Run

SCHEMA = 1
METRICS_FILE = "metrics.json"
PREDICTIONS_FILE = "predictions.csv"
SCATTER_FILE = "scatter.png"
CALIBRATION_FILE = "calibration.png"
_MAX_JSON_BYTES = 256 << 20
_MAX_SPLIT_BYTES = 1 << 30
_SAME_SCORE = 1e-5
"""Scores went through float32 in a training."""
_SAME = ("model", "kind", "dataset", "target", "split")
"""What two evaluations in one folder must have in common."""


MetricsOf = Literal[
    "training videos",
    "training videos and others",
    "perhaps training videos",
    "other videos",
    "not known",
]
"""What the model had to do with the measured videos."""
_UNSEEN = ("other videos", "not known")


@dataclass(frozen=True)
class EvaluationSettings:
    """What to measure on what."""

    model: str
    """Name of a model, or the folder of a run or a bundle."""
    dataset: str
    data: Path
    target: str | None = None
    """None: the dataset's default."""
    split: str | None = None
    """train, dev or test of datasets that have them; None: all labelled videos."""
    use_run: bool = False
    """The newest run of a model that is also installed."""
    output: Path | None = None
    """None: `evaluation-MODEL` in the working folder."""
    engine: EngineChoice = "auto"
    """Of a bundle."""
    device: str = "auto"
    precision: PrecisionChoice = "auto"
    """Of a bundle."""
    workers: int | None = None
    offline: bool = False
    seed: int = 0
    """Of the bootstrap."""


@dataclass(frozen=True)
class CrossValidation:
    """What the run itself says of the evaluated videos: each scored by a model without it."""

    folds: tuple[tuple[int, Metrics], ...]
    held_out: Metrics
    """Over all folds together."""
    fold_of: dict[str, int]
    """Fold by the id of a video."""

    @property
    def mean_srcc(self) -> float | None:
        """Mean of the folds' SRCC; None if one is undefined."""
        values = [metrics.srcc.value for _, metrics in self.folds]
        defined = [value for value in values if value is not None]
        return statistics.fmean(defined) if len(defined) == len(values) else None

    def to_dict(self) -> dict[str, Any]:
        """Plain dict; the interval is that of 001_de183854d7703535.txt, equation 13."""
        from memcli.train.metrics import fisher_interval

        interval = fisher_interval(self.mean_srcc, self.held_out.n)
        return {
            "mean_srcc": self.mean_srcc,
            "fisher": None if interval is None else list(interval),
            "held_out": self.held_out.to_dict(),
            "folds": [{"fold": fold, "metrics": one.to_dict()} for fold, one in self.folds],
        }


@dataclass(frozen=True)
class Evaluation:
    """A measured model."""

    model: str
    kind: str
    """run or bundle."""
    measured: str
    """What was measured, in words."""
    dataset: str
    root: str
    target: str
    split: str | None
    items: tuple[Item, ...]
    """All labelled videos asked for."""
    predictions: Predictions
    metrics: Metrics
    """On the videos that have a score, whether or not the model was trained on them."""
    metrics_of: MetricsOf
    trained_on: int | None
    """How many of these the model was trained on; None: not known."""
    warnings: tuple[str, ...]
    cross_validation: CrossValidation | None = None
    more: dict[str, Any] = field(default_factory=dict)
    """How it was measured: seed, versions, time."""

    @property
    def headline(self) -> Literal["cross_validation", "metrics"] | None:
        """Which figures say how well the model predicts; None: none of them."""
        if self.metrics_of in _UNSEEN:
            return "metrics"
        return None if self.cross_validation is None else "cross_validation"

    @property
    def complete(self) -> bool:
        """Whether every labelled video has a score."""
        return not self.predictions.left_out

    def pairs(self) -> tuple[list[float], list[float]]:
        """True and predicted scores, in the order of the dataset."""
        scored = [item for item in self.items if item.id in self.predictions.scores]
        predicted = [self.predictions.scores[item.id] for item in scored]
        return [item.scores[self.target] for item in scored], predicted

    def to_dict(self) -> dict[str, Any]:
        """As in metrics.json."""
        validation = self.cross_validation
        return {
            "schema": SCHEMA,
            "model": self.model,
            "kind": self.kind,
            "measured": self.measured,
            "dataset": self.dataset,
            "root": self.root,
            "target": self.target,
            "split": self.split,
            "videos": len(self.items),
            "headline": self.headline,
            "cross_validation": None if validation is None else validation.to_dict(),
            "metrics_of": self.metrics_of,
            "trained_on": self.trained_on,
            "metrics": self.metrics.to_dict(),
            "left_out": self.predictions.left_out,
            "warnings": list(self.warnings),
            **self.more,
        }


def evaluate(
    settings: EvaluationSettings, progress: extraction.Progress | None = None
) -> Evaluation:
    """Measure a model and write the evaluation's folder; returns what was found.

    Raises UsageError, DatasetError, ModelError, EngineError, DeviceError, OutputError or
    MissingDependencyError; an earlier evaluation in the folder is then as it was.
    """
    from memcli.train import metrics, plots, provenance

    require_videos_by_name(settings.model)
    progress = progress or extraction.NoProgress()
    metrics.require_packages()
    plots.require_packages()
    dataset, target, items = _labelled(settings)
    predictor = find_predictor(
        settings.model,
        use_run=settings.use_run,
        engine=settings.engine,
        device=settings.device,
        precision=settings.precision,
        workers=settings.workers,
        offline=settings.offline,
        progress=progress,
    )
    folder = settings.output or Path(f"evaluation-{predictor.spec.name}")
    _check_output(folder, predictor, dataset, target, settings.split)
    evaluation = measure_predictor(
        predictor, dataset, items, target, split=settings.split, seed=settings.seed
    )
    more = {"seed": settings.seed, "versions": provenance.versions(), "created": provenance.now()}
    evaluation = replace(evaluation, more=more)
    write_evaluation(evaluation, folder)
    return evaluation


def measure_predictor(
    predictor: RunPredictor | BundlePredictor,
    dataset: Dataset,
    items: tuple[Item, ...],
    target: str,
    *,
    split: str | None,
    seed: int,
) -> Evaluation:
    """Score labelled items and measure; nothing is written. Raises as `evaluate`."""
    from memcli.train.metrics import measure

    predictions = predictor.predict(dataset, items, target)
    scored = [item for item in items if item.id in predictions.scores]
    run = predictor.run if isinstance(predictor, RunPredictor) else None
    metrics_of, seen, warnings = _seen(predictor, dataset, scored)
    return Evaluation(
        model=predictor.spec.name,
        kind=predictor.kind,
        measured=predictor.describe(),
        dataset=dataset.name,
        root=str(dataset.root.absolute()),
        target=target,
        split=split,
        items=items,
        predictions=predictions,
        metrics=measure(
            [item.scores[target] for item in scored],
            [predictions.scores[item.id] for item in scored],
            seed=seed,
        ),
        metrics_of=metrics_of,
        trained_on=seen,
        warnings=warnings,
        cross_validation=None
        if run is None
        else _cross_validation(run, dataset, items, target, seed),
    )


def write_evaluation(evaluation: Evaluation, folder: Path) -> None:
    """Write the four files, each of them whole or not at all. Raises OutputError."""
    from memcli.train import plots

    make_dir(folder)
    title = f"{evaluation.model} on {evaluation.dataset} ({evaluation.target})"
    if evaluation.metrics_of not in _UNSEEN:
        title += f", {evaluation.metrics_of}"
    truth, predicted = evaluation.pairs()
    plots.scatter(folder / SCATTER_FILE, truth, predicted, title=title)
    plots.calibration(folder / CALIBRATION_FILE, truth, predicted, title=title)
    validation = evaluation.cross_validation
    fold_of = {} if validation is None else validation.fold_of
    with _written(folder / PREDICTIONS_FILE) as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("id", "path", "truth", "predicted", "fold", "error"))
        for item in evaluation.items:
            writer.writerow(
                (
                    csv_cell(item.id),
                    "" if item.path is None else csv_path(str(item.path)),
                    item.scores[evaluation.target],
                    evaluation.predictions.scores.get(item.id, ""),
                    fold_of.get(item.id, ""),
                    csv_cell(evaluation.predictions.left_out.get(item.id, "")),
                )
            )
    with _written(folder / METRICS_FILE) as stream:
        stream.write(json.dumps(evaluation.to_dict(), indent=1, allow_nan=False) + "\n")


def _labelled(settings: EvaluationSettings) -> tuple[Dataset, str, tuple[Item, ...]]:
    dataset = load_dataset(settings.dataset, settings.data)
    raise_on_errors(dataset, needs=())
    target = settings.target or dataset.default_target
    items = dataset.labelled(target, settings.split)
    if not items:
        splits = sorted({item.split for item in dataset.labelled(target) if item.split})
        where = f" of the split {printable(settings.split)!r}" if settings.split else ""
        raise DatasetError(
            f"no video{where} has a {target} score",
            where=str(settings.data),
            next_step=f"Splits with scores: {', '.join(splits) or 'none are named'}.",
        )
    return dataset, target, items


def _check_output(
    folder: Path, predictor: Predictor, dataset: Dataset, target: str, split: str | None
) -> None:
    """Make the folder, or raise: before minutes of work, and before anything is replaced."""
    if folder.exists() and not folder.is_dir():
        raise UsageError("this is a file, not a folder", where=str(folder))
    path = folder / METRICS_FILE
    if path.exists():
        names = (predictor.spec.name, predictor.kind, dataset.name, target, split)
        own = dict(zip(_SAME, names, strict=True))
        try:
            earlier = (
                json.loads(path.read_text("utf-8"))
                if path.stat().st_size < _MAX_JSON_BYTES
                else None
            )
        except (OSError, ValueError, RecursionError):
            earlier = None
        same = isinstance(earlier, dict) and all(earlier.get(k) == v for k, v in own.items())
        if not same:
            raise OutputMismatchError(
                "this folder holds an evaluation of something else",
                where=str(folder),
                next_step="Choose another: --output DIR",
            )
    make_dir(folder)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError("cannot write here: no permission", where=str(folder))


def _seen(
    predictor: RunPredictor | BundlePredictor, dataset: Dataset, scored: list[Item]
) -> tuple[MetricsOf, int | None, tuple[str, ...]]:
    """How many of the scored videos the model was trained on, and what to warn of."""
    if isinstance(predictor, RunPredictor):
        if not same_format(str(predictor.run.dataset.get("name")), dataset.name):
            return "other videos", 0, ()
        trained = _training_ids(predictor.run)
        count = sum(csv_cell(item.id) in trained for item in scored)
        if not count:
            return "other videos", 0, ()
        part: MetricsOf = "training videos"
        if count < len(scored):
            part = "training videos and others"
        return (
            part,
            count,
            (
                f"{count:,} of the {plural(len(scored), 'measured video')} were trained on: the"
                " figures of all of them say how well the model remembers, not how well it"
                " predicts",
            ),
        )
    told = predictor.training.get("dataset")
    name = told.get("name") if isinstance(told, dict) else None
    if name is None:
        return "not known", None, ()
    if not same_format(str(name), dataset.name):
        return "other videos", 0, ()
    return (
        "perhaps training videos",
        None,
        (
            f"this bundle was trained on {dataset.name}, too: figures on videos it was trained on"
            " say how well it remembers, not how well it predicts (memcli evaluate --run knows"
            " which)",
        ),
    )


def _training_ids(run: Run) -> set[str]:
    """Ids, as in the file, of the videos that the run's model was trained on."""
    from memcli.train.run import SPLIT_FILE

    path = run.folder / SPLIT_FILE
    try:
        if path.stat().st_size > _MAX_SPLIT_BYTES:
            raise ValueError("too large")
        with path.open(encoding="utf-8", newline="") as stream:
            rows = csv.reader(stream, strict=True)
            if next(rows, []) != ["id", "fold", "role"]:
                raise ValueError("another header")
            return {name for name, _, role in rows if role == "train"}
    except (OSError, ValueError, csv.Error) as error:
        raise ModelError(f"not the split of a run: {error}", where=str(path)) from error


def _cross_validation(
    run: Run, dataset: Dataset, items: tuple[Item, ...], target: str, seed: int
) -> CrossValidation | None:
    """The run's own held-out predictions of these videos, if it has any."""
    from memcli.train.metrics import measure
    from memcli.train.run_folder import read_predictions

    if (run.dataset.get("name"), run.dataset.get("target")) != (dataset.name, target):
        return None
    # The score tells whether it is the same video: another table may have the same names.
    own = {csv_cell(item.id): (item.id, item.scores[target]) for item in items}
    rows = [
        one
        for one in read_predictions(run)
        if one.id in own and abs(one.truth - own[one.id][1]) < _SAME_SCORE
    ]
    if not rows:
        return None

    def measured(fold: int | None) -> Metrics:
        some = [one for one in rows if fold in (None, one.fold)]
        return measure([one.truth for one in some], [one.predicted for one in some], seed=seed)

    folds = sorted({one.fold for one in rows})
    return CrossValidation(
        folds=tuple((fold, measured(fold)) for fold in folds),
        held_out=measured(None),
        fold_of={own[one.id][0]: one.fold for one in rows},
    )


@contextmanager
def _written(path: Path) -> Iterator[IO[str]]:
    """A text stream whose content replaces `path` at the end, or leaves it as it was."""
    beside = path.with_name(f".{path.name}.tmp")
    try:
        with beside.open("w", encoding="utf-8", newline="") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(path)
    except OSError as error:
        raise OutputError(
            f"cannot be written: {error.strerror or error}", where=str(path)
        ) from error
    finally:
        beside.unlink(missing_ok=True)
