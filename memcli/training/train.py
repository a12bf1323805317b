"""What `memcli train` does: dataset, encoders, features, the trainings on them, a run folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

from memcli.errors import MissingDependencyError
from memcli.spec import Recipe
from memcli.text import plural, printable
from memcli.train.datasets import Item
from memcli.training import inputs
from memcli.training import resume as resuming
from memcli.training.fitting import Fitting, fit_settings, make_head
from memcli.training.plan import held_out, make_spec, official_items
from memcli.training.settings import NoProgress, Progress, TrainSettings

if TYPE_CHECKING:
    from memcli.train.data import Examples
    from memcli.train.run import EncoderUse, Run
    from memcli.train.run_folder import RunFolder


def train_model(
    settings: TrainSettings, progress: Progress | None = None, *, resume: Path | None = None
) -> Run:
    """Train a model; returns the complete run.

    With `resume`, go on with the interrupted run in that folder: what decides about the result
    comes from it, only the machine, and where dataset and encoders lie now, from `settings`
    (`TrainSettings.resumed`). Raises UsageError, DatasetError, ModelError and DeviceError with what
    to do; after these, and after an interrupt, what was done is kept in the run's folder, and
    nothing of an earlier run is changed.
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
        except BaseException as error:
            if training.folder is not None:
                resuming.tell(training.folder.run, error, progress.message)
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
            check_output(settings.output)
        else:
            resuming.check_dataset_is_there(settings)
        self.dataset, self.target, items = inputs.labelled_items(
            settings.dataset, settings.data, settings.target, features=settings.features
        )
        if settings.split == "official":
            items = official_items(items, self.dataset)
        self.listed = self._digest(items)
        if self.folder is not None:
            resuming.check_same_dataset(self.folder.run, "listed", self.listed, settings)
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
        make_head(self.spec, self.dims, settings)
        folds = held_out(items, settings, self.recipe)
        folder = self._opened()
        self._describe(folder, items, folds)
        Fitting(
            settings,
            self.progress,
            self.machine,
            self.spec,
            self.encoders,
            self.dims,
            self.examples,
        ).carry_out(folder, folds)
        self.folder = None
        return folder.finish()

    def _find_encoders(self) -> None:
        settings, spec = self.settings, self.spec
        run = self.folder.run if self.folder is not None else None
        if run is None:
            named = inputs.named_encoders(spec, settings.encoder, settings.text_encoder)
        else:
            named = resuming.encoder_names(spec, settings, run)
            spec = inputs.at_revisions(spec, run.encoders)
        self.spec, self.encoders = inputs.find_encoders(
            spec,
            named,
            frames=settings.frames,
            offline=settings.offline,
            report=self.progress.message,
        )
        if run is not None:
            resuming.keep_encoders(self.encoders, settings, run)
            found = tuple(one.spec for one in self.encoders.values())
            self.spec = replace(self.spec, encoders=found)
        self.dims = self._dims()
        make_head(self.spec, self.dims, settings)

    def _opened(self) -> RunFolder:
        """The run folder, made when it is first needed."""
        from memcli.train import provenance
        from memcli.train.run import Run
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
                "listed": self.listed,
            },
            seed=self.settings.seed,
            encoders=self._encoder_uses(),
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

    def _encoder_uses(self) -> tuple[EncoderUse, ...]:
        from memcli.train.run import EncoderUse

        return tuple(
            EncoderUse(
                tower,
                one.checkpoint.repository,
                one.checkpoint.revision,
                one.checkpoint.digest,
                str(one.checkpoint.folder),
            )
            for tower, one in self.encoders.items()
        )

    def _describe(
        self, folder: RunFolder, items: Sequence[Item], folds: Sequence[Sequence[int]]
    ) -> None:
        """Write what is trained on what, before it begins; or see that it is still the same, and
        where it lies now."""
        digest = self._digest(items)
        resuming.check_same_dataset(folder.run, "digest", digest, self.settings)
        if self.left_out.reasons:
            count = plural(len(self.left_out.reasons), "video")
            self.progress.message(f"{count} left out; the reasons are in run.json")
        told = {
            "videos": len(items),
            "split": self.settings.split,
            "left_out": self.left_out.reasons,
            "digest": digest,
            "root": str(self.dataset.root.absolute()),
        }
        trained_on = f"{self.dataset.name} ({self.target}), {plural(len(items), 'video')}"
        self.spec = replace(self.spec, trained_on=trained_on)
        folder.save(
            spec=self.spec,
            dims=self.dims,
            dataset=folder.run.dataset | told,
            encoders=self._encoder_uses(),
            settings=folder.run.settings | self.settings.places(),
        )
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
            fit=fit_settings(self.settings, self.machine, folder),
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

    def _digest(self, items: Sequence[Item]) -> str:
        """Of everything about the videos that decides about a training, in their order."""
        rows = [
            [
                item.id,
                item.scores[self.target],
                *(item.split, item.fold, item.group),
                item.captions if self.spec.text is not None else None,
                _size(self._looked_at(item)),
            ]
            for item in items
        ]
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    def _looked_at(self, item: Item) -> Path | None:
        if self.settings.features is not None:
            return self.dataset.features[self.settings.features] / f"{item.id}.npy"
        return item.path if self.spec.prep is not None else None


def _size(path: Path | None) -> int | None:
    try:
        return None if path is None else path.stat().st_size
    except OSError:  # it may be gone once its features are kept
        return None
