"""What `memcli train` does: dataset, encoders, features, folds, the full training, a run folder."""

from __future__ import annotations

import hashlib
import json
import shlex
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from memcli.errors import MissingDependencyError, ModelError, UsageError
from memcli.spec import ModelSpec, Recipe
from memcli.text import csv_cell, plural, printable
from memcli.train.datasets import DatasetError, Item
from memcli.training import inputs
from memcli.training.plan import held_out, make_spec, official_items, with_options
from memcli.training.settings import NoProgress, Progress, TrainSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from memcli.train.data import Examples
    from memcli.train.loop import FitSettings, Fitted, Predictions
    from memcli.train.run import Run
    from memcli.train.run_folder import Prediction, RunFolder


def train_model(
    settings: TrainSettings, progress: Progress | None = None, *, resume: Path | None = None
) -> Run:
    """Train a model; returns the complete run.

    With `resume`, go on with the interrupted run in that folder: what decides about the result
    comes from it, only the machine from `settings`. Raises UsageError, DatasetError, ModelError and
    DeviceError with what to do; after these, and after an interrupt, what was done is kept in the
    run's folder, and nothing of an earlier run is changed.
    """
    from memcli.train.run_folder import RunFolder

    _require_lightning()
    progress = progress or NoProgress()
    with ExitStack() as stack:
        folder = None
        if resume is not None:
            folder = stack.enter_context(RunFolder.resume(resume))
            settings = settings.resumed(folder.run)
        training = _Training(settings, progress, stack, folder)
        try:
            return training.carry_out()
        except BaseException:
            if (kept := training.folder) is not None:
                progress.message(
                    "what is finished is kept; to go on:\n"
                    f"  memcli train {kept.run.model} --resume {shlex.quote(str(kept.run.folder))}"
                )
            raise


def _require_lightning() -> None:
    try:
        import lightning  # noqa: F401
        import sklearn  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            error.name or "a package", purpose="training", install="pip install 'memcli[train]'"
        ) from error


class _Training:
    """One training, from its settings to its run."""

    def __init__(
        self,
        settings: TrainSettings,
        progress: Progress,
        stack: ExitStack,
        folder: RunFolder | None,
    ):
        from memcli.train.trainer import Machine

        self.settings = settings
        self.progress = progress
        self.folder = folder
        self._stack = stack
        self.machine = Machine(
            settings.device,
            settings.precision,
            settings.devices or 1,
            save_every_s=settings.save_every_s,
        )
        self.device = self.machine.torch_device()
        self.spec = make_spec(settings)
        self.recipe = cast(Recipe, self.spec.recipe)

    def carry_out(self) -> Run:
        """Everything in its order; what can be refused is refused before anything is written."""
        from memcli.train.run_folder import check_output

        settings = self.settings
        if self.folder is None:
            check_output(settings.output, self.spec.name)
        self.dataset, self.target, items = inputs.labelled_items(
            settings.dataset, settings.data, settings.target, features=settings.features
        )
        if settings.split == "official":
            items = official_items(items, self.dataset)
        self.encoders: dict[inputs.Tower, inputs.Encoder] = {}
        if settings.features is None:
            self._find_encoders()
        self.left_out = inputs.LeftOut(items, settings.max_missing, self.dataset.root)
        if settings.features is None:
            self.left_out.add(inputs.missing_inputs(items, self.spec))
        held_out(self.left_out.kept(items), settings, self.recipe)
        if self.recipe.contrastive:
            self._adapt(self._opened(), items)
        self.examples = self._examples(items)
        items = self.left_out.kept(items)
        self.dims = self._dims()
        self._make_head()
        folds = held_out(items, settings, self.recipe)
        folder = self._opened()
        self._describe(folder, items, folds)
        self._cross_validate(folder, folds)
        if settings.split != "official":
            self._full(folder)
        self.folder = None
        return folder.finish()

    def _find_encoders(self) -> None:
        settings = self.settings
        used_before = self.folder.run.encoders if self.folder is not None else ()
        self.spec, self.encoders = inputs.find_encoders(
            inputs.at_revisions(self.spec, used_before),
            override=settings.encoder,
            text_override=settings.text_encoder,
            frames=settings.frames,
            offline=settings.offline,
            report=self.progress.message,
        )
        self.dims = self._dims()
        self._make_head()
        for used in used_before:
            if self.encoders[used.tower].checkpoint.digest != used.digest:
                raise ModelError(
                    f"the {used.tower} encoder has changed since this training began",
                    where=str(self.encoders[used.tower].checkpoint.folder),
                )

    def _opened(self) -> RunFolder:
        """The run folder, made when it is first needed."""
        from memcli.train import provenance
        from memcli.train.run import EncoderUse, Run
        from memcli.train.run_folder import RunFolder

        if self.folder is not None:
            return self.folder
        dataset = self.dataset
        run = Run(
            folder=Path(),
            spec=self.spec,
            dataset={
                "name": dataset.name,
                "root": str(dataset.root.absolute()),
                "target": self.target,
            },
            seed=self.settings.seed,
            encoders=tuple(
                EncoderUse(
                    tower,
                    one.checkpoint.repository,
                    one.checkpoint.revision,
                    one.checkpoint.digest,
                    str(one.checkpoint.folder),
                )
                for tower, one in self.encoders.items()
            ),
            dims=self.dims if self.encoders else {},
            status="training",
            settings=self.settings.to_dict(),
            features=self.settings.features,
            versions=provenance.versions(),
            git_revision=provenance.git_revision(),
            created=provenance.now(),
        )
        folder = self._stack.enter_context(RunFolder.create(run, self.settings.output))
        self.folder = folder
        self.progress.message(f"run folder {printable(str(folder.run.folder))}")
        return folder

    def _describe(
        self, folder: RunFolder, items: Sequence[Item], folds: Sequence[Sequence[int]]
    ) -> None:
        """Write what is trained on what, before it begins; or see that it is still the same."""
        digest = _digest(items, self.target, self.spec)
        if folder.run.dataset.get("digest", digest) != digest:
            raise DatasetError(
                "the dataset has changed since this training began",
                where=str(self.dataset.root),
                next_step=f"Train anew:  memcli train {self.spec.name}",
            )
        if self.left_out.reasons:
            count = plural(len(self.left_out.reasons), "video")
            self.progress.message(f"{count} left out; the reasons are in run.json")
        told = {
            "videos": len(items),
            "split": self.settings.split,
            "left_out": self.left_out.reasons,
            "digest": digest,
        }
        trained_on = f"{self.dataset.name} ({self.target}), {plural(len(items), 'video')}"
        self.spec = replace(self.spec, trained_on=trained_on)
        folder.save(spec=self.spec, dims=self.dims, dataset=folder.run.dataset | told)
        fold_of = {i: number for number, fold in enumerate(folds, start=1) for i in fold}
        official = self.settings.split == "official"
        rows = [
            (item.id, fold_of.get(i), "validation" if official and i in fold_of else "train")
            for i, item in enumerate(items)
        ]
        folder.write_split(rows + [(name, None, "left out") for name in self.left_out.reasons])
        if (text := self.encoders.get("text")) is not None:
            folder.add_tokenizer(cast(Path, text.tokenizer))

    def _adapt(self, folder: RunFolder, items: Sequence[Item]) -> None:
        from memcli.training.adaptation import adapt_encoders

        adapt_encoders(
            self.spec,
            self.encoders,
            folder,
            self.dataset,
            items,
            fit=self._fit_settings(folder),
            epochs=self.settings.adaptation_epochs,
            workers=self.settings.workers,
            progress=self.progress,
        )

    def _examples(self, items: Sequence[Item]) -> Examples:
        workers, progress = self.settings.workers, self.progress
        if self.settings.features is not None:
            path = self.dataset.features[self.settings.features]
            return inputs.feature_examples(items, self.target, path, self.left_out)
        common = (items, self.target, self.encoders, self.left_out)
        if self.recipe.fine_tune:
            return inputs.raw_examples(*common, workers=workers, progress=progress)
        return inputs.frozen_examples(
            *common, device=self.device, workers=workers, progress=progress
        )

    def _dims(self) -> dict[str, int]:
        names: dict[inputs.Tower, str] = {"vision": "frame", "text": "text"}
        if self.settings.features is not None:
            frames = self.examples.batch(self.examples.positions()[:1]).frames
            assert frames is not None
            return {"frame": int(frames.shape[-1])}
        return {names[tower]: one.spec.dim for tower, one in self.encoders.items()}

    def _make_head(self) -> nn.Module:
        from memcli.train.heads import make_head

        assert self.spec.head is not None
        try:
            return cast(
                "nn.Module",
                make_head(self.spec.head, self.dims.get("frame"), self.dims.get("text")),
            )
        except ModelError as error:
            if not self.settings.options:
                raise
            raise UsageError(error.what, where="--set", next_step=error.next_step) from error

    def _make_model(self) -> nn.Module:
        """A model with fresh weights of the head, the same ones each time."""
        from memcli.train.model import MemorabilityModel
        from memcli.train.provenance import seeded

        with seeded(self.settings.seed):
            head = self._make_head()
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
            self._fit_settings(folder),
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

    def _fit_settings(self, folder: RunFolder) -> FitSettings:
        from memcli.train.loop import FitSettings

        return FitSettings(
            self.settings.seed, self.machine, self.settings.auto_batch, logs=folder.logs
        )

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


def _digest(items: Sequence[Item], target: str, spec: ModelSpec) -> str:
    """Of everything about the videos that decides about a training, in their order."""
    rows = [
        [
            item.id,
            item.scores[target],
            *(item.split, item.fold, item.group),
            item.captions if spec.text is not None else None,
            _size(item.path) if spec.prep is not None else None,
        ]
        for item in items
    ]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _size(path: Path | None) -> int | None:
    try:
        return None if path is None else path.stat().st_size
    except OSError:  # it may be gone once its features are kept
        return None
