"""`memcli train` of an EEG model: recordings, folds of epochs and of subjects, a run folder.

Source: 000_bcb79d7cf5a52fe8.txt, sections 2.2 and 3.2.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from memcli.errors import MissingDependencyError, UsageError
from memcli.spec import EegPrep, EegRecipe
from memcli.text import plural, printable
from memcli.training import resume as resuming
from memcli.training.eeg_fitting import EegFitting, Folds, make_model
from memcli.training.eeg_settings import (
    MEASURED_SPLITS,
    EegSettings,
    make_eeg_spec,
    same_data,
    source_of,
)
from memcli.training.settings import NoProgress, Progress

if TYPE_CHECKING:
    from memcli.train.eeg.loading import EegDataset
    from memcli.train.run import Run
    from memcli.train.run_folder import RunFolder


def train_eeg(
    settings: EegSettings,
    progress: Progress | None = None,
    *,
    output: Path | None = None,
    device: str = "auto",
) -> Run:
    """Train an EEG model; returns the complete run.

    Raises UsageError, DatasetError, ModelError, DeviceError and MissingDependencyError with what to
    do; what can be refused is refused before anything is written.
    """
    return _train(settings, progress or NoProgress(), output, device, None, None)


def resume_eeg(
    folder: Path,
    progress: Progress | None = None,
    *,
    device: str = "auto",
    data: Path | None = None,
) -> Run:
    """Go on with an interrupted run at its next fold; `data`: where the same data lies now.

    Raises as `train_eeg`, and UsageError if the data is not the same.
    """
    return _train(None, progress or NoProgress(), None, device, folder, data)


def _train(
    settings: EegSettings | None,
    progress: Progress,
    output: Path | None,
    device: str,
    resumed: Path | None,
    data: Path | None,
) -> Run:
    from memcli.train.run_folder import RunFolder, check_output

    _require_packages()
    with ExitStack() as stack:
        folder = None
        if resumed is not None:
            folder = stack.enter_context(RunFolder.resume(resumed))
            earlier = EegSettings.of_run(folder.run.settings, str(folder.run.folder))
            settings = same_data(earlier, data)
        assert settings is not None
        check_output(output)
        training = _EegTraining(settings, progress, output, device, folder, stack)
        try:
            return training.carry_out()
        except BaseException as error:
            if training.folder is not None:
                resuming.tell(training.folder.run, error, progress.message)
            raise


def load_examples(settings: EegSettings, prep: EegPrep) -> EegDataset:
    """The labelled epochs that the settings name. Raises DatasetError."""
    from memcli.train.eeg.loading import load

    return load(source_of(settings), prep)


def check_same_data(run: Run, digest: str, data: str) -> None:
    """Raise UsageError unless `digest`, of what lies in `data` now, is that of the run."""
    if run.dataset.get("digest") != digest:
        raise UsageError(
            "the data has changed since this training began",
            where=printable(data),
            next_step="Put it back as it was, name a copy of that (--data DIR), or train anew.",
        )


def _require_packages() -> None:
    try:
        import lightning  # noqa: F401
        import mne  # noqa: F401
        import sklearn  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            error.name or "a package",
            purpose="training an EEG model",
            install="pip install 'memcli[train,eeg]'",
        ) from error


class _EegTraining:
    """One training, from its settings to its run."""

    def __init__(
        self,
        settings: EegSettings,
        progress: Progress,
        output: Path | None,
        device: str,
        folder: RunFolder | None,
        stack: ExitStack,
    ):
        from memcli.train.trainer import Machine

        self.settings = settings
        self.progress = progress
        self.output = output
        self.folder = folder
        self._stack = stack
        self.device = Machine(device).torch_device()
        self.spec = make_eeg_spec(settings)

    def carry_out(self) -> Run:
        from memcli.train.eeg import baselines

        settings, progress = self.settings, self.progress
        baselines.require(settings.baselines)
        dataset = load_examples(settings, cast(EegPrep, self.spec.eeg))
        for note in dataset.notes:
            progress.message(note)
        self._take(dataset)
        make_model(self.spec, settings)
        splits = self._splits(dataset)
        folder = self._opened(dataset, splits)
        check_same_data(folder.run, dataset.digest, settings.data)
        EegFitting(settings, progress, self.device, self.spec, dataset, splits).carry_out(folder)
        self.folder = None
        return folder.finish()

    def _take(self, dataset: EegDataset) -> None:
        """What the data decides of the spec."""
        names = tuple(sorted(set(dataset.subjects)))
        said = tuple(name for name in names if name not in dataset.unnamed)
        if self.settings.subject_conditioning and not said:
            raise UsageError(
                "no recording says whose it is",
                where="--subject-conditioning",
                next_step="Give the epochs a column `subject`, or leave this option out.",
            )
        known = said if self.settings.subject_conditioning else ()
        told = f"{Path(self.settings.data).name}, {plural(len(dataset.examples), 'epoch')}"
        told += f" of {plural(len(names), 'subject')}"
        if dataset.demonstration:
            told += " (planted data: a demonstration)"
        self.spec = replace(
            self.spec, eeg=replace(dataset.prep, subjects=known), trained_on=printable(told)
        )
        self.progress.message(
            f"{told}; {len(dataset.prep.channels)} channels,"
            f" {100 * float(dataset.examples.labels.mean()):.0f} % recognised"
        )

    def _splits(self, dataset: EegDataset) -> list[Folds]:
        """The folds, those asked for first. Raises DatasetError where these cannot be had."""
        from memcli.train.datasets import DatasetError
        from memcli.train.eeg.folds import epoch_folds, subject_folds, video_folds

        labels = [int(one) for one in dataset.examples.labels]
        count, seed = cast(EegRecipe, self.spec.eeg_recipe).folds, self.settings.seed
        found = []
        for split in dict.fromkeys((self.settings.split, *MEASURED_SPLITS)):
            asked = split == self.settings.split
            try:
                if split == "epochs":
                    held = epoch_folds(labels, count, seed)
                elif split == "videos":
                    held = video_folds(labels, dataset.videos, count, seed)
                else:
                    there = len(set(dataset.subjects))
                    fewer = count if asked else max(2, min(count, there))
                    held = subject_folds(labels, dataset.subjects, fewer, seed)
            except DatasetError as error:
                if asked:
                    raise
                self.progress.message(f"{split} are not held out: {error.what}")
                found.append(Folds(split, [], error.what))
            else:
                found.append(Folds(split, held))
        return found

    def _opened(self, dataset: EegDataset, splits: list[Folds]) -> RunFolder:
        """The run folder, with everything about the training that is known before it."""
        from memcli.train import provenance
        from memcli.train.run import Run
        from memcli.train.run_folder import RunFolder

        if self.folder is not None:
            return self.folder
        data = Path(self.settings.data).absolute()
        epochs_of = Counter(video for video in dataset.videos if video is not None)
        described: dict[str, Any] = {
            "name": data.name,
            "root": str(data),
            "target": "recognised",
            "split": self.settings.split,
            "epochs": len(dataset.examples),
            "test_epochs": len(dataset.test) if dataset.test is not None else 0,
            "recognised": int(dataset.examples.labels.sum()),
            "subjects": len(set(dataset.subjects)),
            "videos": len(epochs_of),
            "repeated_videos": sum(count > 1 for count in epochs_of.values()),
            "recordings": dataset.recordings,
            "demonstration": dataset.demonstration,
            "left_out": {},
            "digest": dataset.digest,
        }
        run = Run(
            folder=Path(),
            spec=self.spec,
            dataset=described,
            seed=self.settings.seed,
            encoders=(),
            dims={},
            status="training",
            settings=replace(self.settings, data=str(data)).to_dict(),
            versions=provenance.versions(),
            git_revision=provenance.git_revision(),
            created=provenance.now(),
        )
        folder = self._stack.enter_context(RunFolder.create(run, self.output))
        self.folder = folder
        fold_of = {i: number for number, fold in enumerate(splits[0].held, 1) for i in fold}
        folder.write_split(
            [(name, fold_of.get(i), "train") for i, name in enumerate(dataset.examples.ids)]
            + [(name, None, "test") for name in (dataset.test.ids if dataset.test else ())]
        )
        self.progress.message(f"run folder {printable(str(folder.run.folder))}")
        return folder
