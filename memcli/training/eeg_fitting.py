"""The trainings of one EEG run: both cross-validations, peers, temperature, the model itself.

Folds of epochs are the paper's: the epochs that a fold holds out also say when its learning rate
falls and which epoch of the training is the best, which flatters them a little. Folds of subjects
are stricter: another subject of the training says so, and those held out are looked at only once.
Folds of videos are as strict, with other videos of the training.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from memcli.errors import ModelError, UsageError
from memcli.spec import EegPrep, EegRecipe, ModelSpec
from memcli.text import csv_cell
from memcli.training.eeg_results import calibrated, fold_metrics, summary, temperature
from memcli.training.eeg_settings import EegSettings, EegSplit
from memcli.training.settings import Progress

if TYPE_CHECKING:
    from torch import Tensor

    from memcli.train.eeg.data import EegExamples
    from memcli.train.eeg.loading import EegDataset
    from memcli.train.eeg.loop import Fitted, Tell
    from memcli.train.eeg.network import EegModel
    from memcli.train.run import Run
    from memcli.train.run_folder import Prediction, RunFolder

MODEL = "model"
"""Name of the model itself among the peers."""


@dataclass(frozen=True)
class Folds:
    """A way to hold out."""

    split: EegSplit
    held: list[list[int]]
    """Positions of the examples, by fold."""
    absent: str = ""
    """Why there are none."""


def make_model(spec: ModelSpec, settings: EegSettings) -> EegModel:
    """A model of one member with fresh weights, the same ones each time.

    Raises UsageError for an option that `settings` gave and the model refuses, else ModelError.
    """
    from memcli.train.eeg.network import EegModel
    from memcli.train.provenance import seeded

    try:
        with seeded(settings.seed):
            return EegModel(spec)
    except ModelError as error:
        if not settings.options:
            raise
        raise UsageError(error.what, where="--set", next_step=error.next_step) from error


class EegFitting:
    """Trains, and notes the results in a run folder."""

    def __init__(
        self,
        settings: EegSettings,
        progress: Progress,
        device: str,
        spec: ModelSpec,
        dataset: EegDataset,
        splits: Sequence[Folds],
    ):
        self.settings = settings
        self.progress = progress
        self.device = device
        self.spec = spec
        self.prep = cast(EegPrep, spec.eeg)
        self.recipe = cast(EegRecipe, spec.eeg_recipe)
        self.dataset = dataset
        self.examples = known_subjects(self.prep, dataset.examples, dataset.subjects)
        self.splits = splits

    def carry_out(self, folder: RunFolder) -> None:
        """Whatever of this the run does not have yet; `splits[0]` is that of the kept models."""
        folder.work("folds").mkdir(parents=True, exist_ok=True)
        splits: dict[str, Any] = {}
        peers: dict[str, dict[str, Any]] = {name: {} for name in self.settings.baselines}
        for folds in self.splits:
            kept = folds is self.splits[0]
            if folds.absent:
                splits[folds.split] = {"absent": folds.absent}
                continue
            raw = self._cross_validate(folder, folds, MODEL, kept=kept)
            scaled, temperatures = calibrated(raw)
            folder.write_predictions(scaled, "predictions.csv" if kept else _file(folds.split))
            before = fold_metrics(raw, self.settings.seed)["calibration_error"]
            found = summary(scaled, self.settings.seed)
            splits[folds.split] = found | {"calibration_error_before": before}
            self._say(folds.split, found)
            if kept:
                self._calibrate(folder, scaled, temperatures)
                overall = temperature(raw)
            for name in self.settings.baselines:
                rows = self._cross_validate(folder, folds, name, kept=False)
                peers[name][folds.split] = summary(rows, self.settings.seed)
        folder.save(
            metrics={
                "split": self.settings.split,
                "splits": splits,
                "baselines": peers,
                "temperature": overall,
            }
        )
        if self.settings.ensemble:
            self._ensemble(folder)
        else:
            self._full(folder, overall)
        if self.dataset.test is not None:
            folder.save(metrics=folder.run.metrics | {"test": self._test(folder)})

    def _cross_validate(
        self, folder: RunFolder, folds: Folds, name: str, *, kept: bool
    ) -> list[Prediction]:
        """Raw probabilities of all held-out epochs, by the model or a peer; notes each fold."""
        from memcli.train.run_folder import read_predictions

        where = f"work/folds/{name}-{folds.split}.csv"
        rows = read_predictions(folder.run, where)
        done = {one.fold for one in rows}
        if kept:  # a fold's weights and entry come after its predictions
            done &= {entry["fold"] for entry in folder.run.folds}
            rows = [one for one in rows if one.fold in done]
        for number, held in enumerate(folds.held, start=1):
            if number in done:
                continue
            part = f"{name if name != MODEL else 'held-out'} {folds.split}"
            part += f", fold {number} of {len(folds.held)}"
            rows += self._fold(folder, folds, number, held, name, part, kept=kept)
            folder.write_predictions(rows, where)
            if kept:
                folder.save(folds=(*folder.run.folds, self._entry))
        return rows

    def _fold(
        self,
        folder: RunFolder,
        folds: Folds,
        number: int,
        held: Sequence[int],
        name: str,
        part: str,
        *,
        kept: bool,
    ) -> list[Prediction]:
        import torch

        from memcli.train.eeg import baselines
        from memcli.train.eeg.folds import monitoring_part, monitoring_videos
        from memcli.train.eeg.loop import predict
        from memcli.train.run import fold_file
        from memcli.train.run_folder import Prediction

        seed = self.settings.seed
        train = sorted(set(range(len(self.examples))) - set(held))
        held_out = self.examples.subset(list(held))
        monitor = held_out
        labels = [int(one) for one in self.examples.labels]
        if folds.split == "videos":
            train, monitored = monitoring_videos(train, self.dataset.videos, labels, seed)
            monitor = self.examples.subset(monitored)
        elif folds.split == "subjects":
            train, monitored = monitoring_part(train, self.dataset.subjects, labels, seed)
            monitor = _strangers(self.examples.subset(monitored))
            held_out = _strangers(held_out)
        sides = self.examples.subset(train), monitor
        if name == MODEL:
            model, fitted, told = self._fit(*sides, self.recipe, part)
            scores = torch.sigmoid(predict(model, held_out, self.device)).tolist()
            self._entry = {"fold": number} | fitted.summary() | told
            if kept:
                folder.add_weights(fold_file(number), model.state_dict())
        else:
            scores = baselines.held_out_scores(
                name,
                *sides,
                held_out,
                self.prep,
                self.recipe,
                seed=seed,
                device=self.device,
                tell=self._tell(part, self.recipe.epochs),
            )
        rows = [
            Prediction(csv_cell(one), number, truth, score)
            for one, truth, score in zip(
                held_out.ids, held_out.labels.tolist(), scores, strict=True
            )
        ]
        if kept:
            self._entry["metrics"] = fold_metrics(rows, seed)
        return rows

    def _fit(
        self,
        train: EegExamples,
        validation: EegExamples | None,
        recipe: EegRecipe,
        part: str,
    ) -> tuple[EegModel, Fitted, dict[str, Any]]:
        from memcli.train.eeg.loop import Schedule, cross_entropy, fit
        from memcli.train.eeg.pretext import pretrain

        seed, device = self.settings.seed, self.device
        model = make_model(self.spec, self.settings)
        told: dict[str, Any] = {}
        if recipe.pretext != "none":
            before, quality = pretrain(
                model,
                self.prep,
                recipe,
                train,
                validation,
                seed=seed,
                device=device,
                tell=self._tell(f"{part}, {recipe.pretext}", recipe.pretext_epochs),
            )
            told["pretext"] = before.summary() | quality
        fitted = fit(
            model,
            cross_entropy(model),
            train,
            validation,
            Schedule(
                recipe.epochs,
                recipe.batch_size,
                recipe.learning_rate,
                recipe.patience_epochs,
                recipe.factor,
            ),
            seed=seed,
            device=device,
            tell=self._tell(part, recipe.epochs),
        )
        return model, fitted, told

    def _calibrate(
        self, folder: RunFolder, rows: Sequence[Prediction], temperatures: dict[int, float]
    ) -> None:
        """Put the folds' temperatures into their weights and entries."""
        from memcli.train.run import fold_file, read_weights

        entries = []
        for entry in folder.run.folds:
            number = entry["fold"]
            weights = read_weights(folder.run, fold_file(number))
            weights["members.0.temperature"].fill_(temperatures[number])
            folder.add_weights(fold_file(number), weights)
            own = [one for one in rows if one.fold == number]
            told = {"metrics": fold_metrics(own, self.settings.seed)}
            entries.append(entry | told | {"temperature": temperatures[number]})
        folder.save(folds=tuple(entries))

    def _full(self, folder: RunFolder, overall: float) -> None:
        """Train on all epochs, for the median of the folds' best numbers of them.

        The paper trains the same number throughout; it suspects that its models overfitted so
        (section 4), having no validation set to stop by.
        """
        from memcli.train.run import MODEL_FILE

        best = [int(entry["best_epoch"]) for entry in folder.run.folds]
        recipe = replace(self.recipe, epochs=max(1, round(statistics.median(best))))
        model, fitted, told = self._fit(self.examples, None, recipe, "all epochs")
        model.members[0].temperature.fill_(overall)
        folder.add_weights(MODEL_FILE, model.state_dict())
        why = {"epochs_because": "median of the folds' best epochs"}
        folder.save(full=fitted.summary() | told | why | {"temperature": overall})

    def _ensemble(self, folder: RunFolder) -> None:
        """The folds' models as one, each with its temperature."""
        from memcli.train.run import MODEL_FILE, fold_file, read_weights

        weights: dict[str, Tensor] = {}
        for i, entry in enumerate(folder.run.folds):
            for name, value in read_weights(folder.run, fold_file(entry["fold"])).items():
                weights[name.replace("members.0.", f"members.{i}.", 1)] = value
        head = self.spec.head
        assert head is not None
        members = {"members": len(folder.run.folds)}
        self.spec = replace(self.spec, head=replace(head, options=head.options | members))
        folder.save(spec=self.spec)
        folder.add_weights(MODEL_FILE, weights)
        folder.save(full={"ensemble": len(folder.run.folds)})

    def _test(self, folder: RunFolder) -> dict[str, Any]:
        """Metrics of the model on the split `test`, which it has never seen."""
        from memcli.train.eeg.loop import scores
        from memcli.train.run import load_model

        test = tested_examples(self.prep, self.dataset)
        model = load_model(folder.run, report=self.progress.message)
        rows = tested_rows(test, scores(model, test, self.device))
        folder.write_predictions(rows, "predictions-test.csv")
        return fold_metrics(rows, self.settings.seed)

    def _tell(self, part: str, of: int) -> Tell:
        return lambda number, metrics: self.progress.epoch(part, number, of, metrics)

    def _say(self, split: str, found: dict[str, Any]) -> None:
        value = found["auroc"]
        told = "undefined" if value is None else f"{value:.3f}"
        self.progress.message(f"held-out {split}: AUROC {told}")


def known_subjects(prep: EegPrep, examples: EegExamples, subjects: Sequence[str]) -> EegExamples:
    """With each subject's number in the model, 0 where it does not know it."""
    import torch

    places = {name: i for i, name in enumerate(prep.subjects, start=1)}
    numbers = [places.get(name, 0) for name in subjects]
    return replace(examples, subject=torch.tensor(numbers, dtype=torch.int64))


def tested_examples(prep: EegPrep, dataset: EegDataset) -> EegExamples:
    """The epochs of the split `test`, of which there are some."""
    assert dataset.test is not None
    return known_subjects(prep, dataset.test, dataset.test_subjects)


def tested_rows(examples: EegExamples, scores: Tensor) -> list[Prediction]:
    """Predictions of the split `test`, as of a fold 0."""
    from memcli.train.run_folder import Prediction

    columns = (examples.ids, examples.labels.tolist(), scores.tolist())
    return [
        Prediction(csv_cell(name), 0, truth, score)
        for name, truth, score in zip(*columns, strict=True)
    ]


def ensemble_metrics(
    run: Run, examples: EegExamples, device: str, report: Callable[[str], None]
) -> dict[str, Any]:
    """`measure` of the mean of the folds' probabilities, each after its temperature."""
    import torch

    from memcli.train.eeg.loop import scores
    from memcli.train.run import load_model

    found = [
        scores(load_model(run, report=report, fold=entry["fold"]), examples, device)
        for entry in run.folds
    ]
    return fold_metrics(tested_rows(examples, torch.stack(found).mean(0)), run.seed)


def _strangers(examples: EegExamples) -> EegExamples:
    """The same epochs as of people that the model does not know."""
    return replace(examples, subject=examples.subject * 0)


def _file(split: str) -> str:
    return f"predictions-{split}.csv"
