"""The trainings of one run: a model per fold, then one of all videos; weights and predictions."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from memcli.errors import ModelError, UsageError
from memcli.spec import ModelSpec, Recipe
from memcli.text import csv_cell, plural
from memcli.training import inputs
from memcli.training.plan import with_options
from memcli.training.settings import Progress, TrainSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from memcli.train.data import Examples
    from memcli.train.loop import FitSettings, Fitted, Predictions
    from memcli.train.run_folder import Prediction, RunFolder
    from memcli.train.trainer import Machine


def make_head(spec: ModelSpec, dims: Mapping[str, int], settings: TrainSettings) -> nn.Module:
    """The model's head for embeddings of these lengths (`frame`, `text`), with fresh weights.

    Raises UsageError for an option that `settings` gave and the head refuses, else ModelError.
    """
    from memcli.train import heads

    assert spec.head is not None
    try:
        return cast("nn.Module", heads.make_head(spec.head, dims.get("frame"), dims.get("text")))
    except ModelError as error:
        if not settings.options:
            raise
        raise UsageError(error.what, where="--set", next_step=error.next_step) from error


def fit_settings(settings: TrainSettings, machine: Machine, folder: RunFolder) -> FitSettings:
    """How each training of a run is carried out."""
    from memcli.train.loop import FitSettings

    return FitSettings(settings.seed, machine, settings.auto_batch, logs=folder.logs)


class Fitting:
    """Fits the heads of a run, with the encoders where these are trained, and notes the results."""

    def __init__(
        self,
        settings: TrainSettings,
        progress: Progress,
        machine: Machine,
        spec: ModelSpec,
        encoders: Mapping[inputs.Tower, inputs.Encoder],
        dims: Mapping[str, int],
        examples: Examples,
    ):
        self.settings = settings
        self.progress = progress
        self.machine = machine
        self.spec = spec
        self.recipe = cast(Recipe, spec.recipe)
        self.encoders = encoders
        self.dims = dims
        self.examples = examples

    def carry_out(self, folder: RunFolder, folds: Sequence[Sequence[int]]) -> None:
        """Whatever of this the run does not have yet; `folds` holds positions of the examples."""
        self._cross_validate(folder, folds)
        if self.settings.split != "official":
            self._full(folder)

    def _make_model(self) -> nn.Module:
        """A model with fresh weights of the head, the same ones each time."""
        from memcli.train.model import MemorabilityModel
        from memcli.train.provenance import seeded

        with seeded(self.settings.seed):
            head = make_head(self.spec, self.dims, self.settings)
        if not self.recipe.fine_tune:
            return head
        if not hasattr(self, "_towers"):
            self._towers = {tower: one.load() for tower, one in self.encoders.items()}
        towers = deepcopy(self._towers)
        return MemorabilityModel(head, towers.get("vision"), towers.get("text"))

    def _cross_validate(self, folder: RunFolder, folds: Sequence[Sequence[int]]) -> None:
        """Train one model per fold and note what it says of the fold's videos."""
        from memcli.train.run import MODEL_FILE, fold_file
        from memcli.train.run_folder import read_predictions
        from memcli.training.results import fold_metrics, summary

        if not folds:
            return
        done = {entry["fold"] for entry in folder.run.folds}
        predictions = [one for one in read_predictions(folder.run) if one.fold in done]
        official = self.settings.split == "official"
        for number, held in enumerate(folds, start=1):
            if number in done:
                continue
            part = "dev" if official else f"fold {number} of {len(folds)}"
            rest = sorted(set(range(len(self.examples))) - set(held))
            sides = self.examples.subset(rest), self.examples.subset(held)
            model, fitted = self._fit(folder, *sides, self.recipe, f"fold-{number}", part)
            own = _rows(sides[1], number, self._predict(model, sides[1]))
            predictions += own
            folder.write_predictions(predictions)
            name = MODEL_FILE if official else fold_file(number)
            folder.add_weights(name, self._weights(fitted))
            metrics = fold_metrics(own, self.settings.seed)
            entry = {"fold": number, "metrics": metrics} | fitted.summary()
            folder.save(folds=(*folder.run.folds, entry))
            folder.clear_work(f"fold-{number}")
            self._say(part, metrics, fitted)
        if self.settings.choose_alpha:
            predictions = self._choose_alpha(folder, predictions)
        folder.save(metrics=summary(folder.run.folds, predictions, self.settings.seed))

    def _choose_alpha(
        self, folder: RunFolder, predictions: Sequence[Prediction]
    ) -> list[Prediction]:
        """Put the best fusion weight in the spec, and what the folds then predict in the run."""
        from memcli.training.results import choose_alpha, fold_metrics, with_alpha

        alpha = choose_alpha(predictions)
        self.spec = with_options(self.spec, {"alpha": alpha})
        fused = with_alpha(predictions, alpha)
        folder.write_predictions(fused)
        entries = []
        for entry in folder.run.folds:
            own = [one for one in fused if one.fold == entry["fold"]]
            entries.append(entry | {"metrics": fold_metrics(own, self.settings.seed)})
        folder.save(spec=self.spec, folds=tuple(entries))
        self.progress.message(f"alpha {alpha:g}, by the mean SRCC of the held-out videos")
        return fused

    def _full(self, folder: RunFolder) -> None:
        """Train on all videos; as long as the folds' best epochs say where these were looked for.

        000_bcb79d7cf5a52fe8.txt, section 3.1: the final epoch of a training on the full set. With
        early stopping there is nothing to stop by: the median of the folds' best epochs is taken.
        """
        from memcli.train.run import MODEL_FILE

        why, recipe = "as the recipe says", self.recipe
        if recipe.monitor is not None and folder.run.folds:
            best = [int(entry["best_epoch"]) for entry in folder.run.folds]
            recipe = replace(recipe, epochs=max(1, round(statistics.median(best))))
            why = "median of the folds' best epochs"
        elif recipe.monitor is not None:
            self.progress.message(
                f"no videos are held out, so none say when to stop: all {recipe.epochs} epochs are"
                " trained; --epochs N for another number"
            )
        recipe = replace(recipe, monitor=None)
        _, fitted = self._fit(folder, self.examples, None, recipe, "full", "all videos")
        folder.add_weights(MODEL_FILE, self._weights(fitted))
        folder.save(full=fitted.summary() | {"epochs_because": why})

    def _fit(
        self,
        folder: RunFolder,
        train: Examples,
        validation: Examples | None,
        recipe: Recipe,
        name: str,
        part: str,
    ) -> tuple[nn.Module, Fitted]:
        from memcli.train.loop import fit

        model = self._make_model()
        fitted = fit(
            model,
            train,
            validation,
            recipe,
            fit_settings(self.settings, self.machine, folder),
            folder.work(name),
            name=name,
            tell=lambda epoch, metrics: self.progress.epoch(part, epoch, recipe.epochs, metrics),
        )
        if fitted.learning_rate_from == "fall-back":
            self.progress.message(
                f"{part}: the range test found no learning rate; {fitted.learning_rate:g} is used"
            )
        return model, fitted

    def _predict(self, model: nn.Module, examples: Examples) -> Predictions:
        from memcli.train.loop import predict

        size = max(1, self.recipe.batch_size // 8) if self.recipe.fine_tune else None
        return predict(model, examples, self.machine, batch_size=size)

    def _weights(self, fitted: Fitted) -> dict[str, Tensor]:
        if self.recipe.fine_tune:
            return fitted.state
        return {f"head.{key}": value for key, value in fitted.state.items()}

    def _say(self, part: str, metrics: dict[str, Any], fitted: Fitted) -> None:
        srcc = metrics["srcc"]["value"]
        found = "undefined" if srcc is None else f"{srcc:.3f}"
        epochs = f", {plural(fitted.epochs, 'epoch')}" if fitted.epochs else ""
        self.progress.message(f"{part}: SRCC {found}{epochs}")


def _rows(examples: Examples, fold: int, found: Predictions) -> list[Prediction]:
    from memcli.train.run_folder import Prediction

    several = len(found.branches) > 1
    branches = zip(*(one.tolist() for one in found.branches), strict=True)
    columns = (examples.ids, examples.scores.tolist(), found.score.tolist(), branches)
    return [
        Prediction(csv_cell(name), fold, truth, score, tuple(parts) if several else ())
        for name, truth, score, parts in zip(*columns, strict=True)
    ]
