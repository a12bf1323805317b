"""Several trainings and measurements that belong together, in one folder that can be resumed.

FOLDER/
  experiment.json          what this is: data, models' settings; another one is refused
  runs/MODEL-DATA-SPLIT/   a run folder for each training (see `memcli.train.run`)
  measured/MODEL-DATA-SPLIT-on-DATA-PART/   an evaluation (see `memcli.evaluation`)
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from memcli.errors import MemcliError, OutputError, UsageError, is_interrupt
from memcli.experiments.data import Data
from memcli.experiments.lock import LOCK_FILE, held
from memcli.experiments.options import ON_MACHINE, Options, encoders_of, head_options
from memcli.experiments.tables import write_text
from memcli.home import make_dir
from memcli.models import get_model
from memcli.training.settings import Progress, Split, TrainSettings

if TYPE_CHECKING:
    from memcli.train.datasets import Item
    from memcli.train.run import Run

T = TypeVar("T")

SCHEMA = 1
FILE = "experiment.json"
_MAX_JSON_BYTES = 256 << 20


class _NotRunError(Exception):
    """A model that is not to be trained has no complete run, or no measurement, from before."""


class Experiment:
    """The folder, and what is trained and measured in it."""

    def __init__(
        self,
        folder: Path,
        options: Options,
        progress: Progress,
        chosen: Collection[str] | None = None,
    ):
        self.folder = folder
        self.options = options
        self.progress = progress
        self._chosen = chosen

    @classmethod
    @contextmanager
    def open(
        cls,
        folder: Path,
        what: str,
        data: Sequence[Data],
        options: Options,
        progress: Progress,
        *,
        chosen: Collection[str] | None = None,
    ) -> Iterator[Experiment]:
        """Begin an experiment, or go on with the same one; the folder is held meanwhile.

        Only models in `chosen` (None: all) are trained and measured; of others, what is complete
        is found. Raises UsageError if the folder holds another experiment or anything else, or if
        another process is at work in it, and for options that no model could take; DeviceError for
        a device that is not there.
        """
        from memcli.train.trainer import Machine

        Machine(options.device).torch_device()
        description = {
            "schema": SCHEMA,
            "what": what,
            "data": [one.to_dict() for one in data],
            "options": options.to_dict(),
        }
        path = folder / FILE
        _check_folder(folder, description)
        make_dir(folder)
        with held(folder):
            _check_folder(folder, description)  # again: another process may have begun in it
            write_text(path, json.dumps(description, indent=1) + "\n")
            yield cls(folder, options, progress, chosen)

    def trains(self, model: str) -> bool:
        """Whether the model is trained and measured here, and not only found."""
        return self._chosen is None or model in self._chosen

    def train(self, model: str, data: Data, split: Split) -> Run:
        """The run of a model: made now, gone on with, or complete already."""
        from memcli.train.run import RUN_FILE, read_run
        from memcli.training import train_model

        settings = self._settings(model, data, split)
        assert settings.output is not None
        begun = (settings.output / RUN_FILE).exists()
        if not self.trains(model):
            return _complete(settings) if begun else _not_run()
        if not begun:
            make_dir(settings.output.parent)
            return train_model(settings, self.progress)
        run = read_run(settings.output, unfinished=True)
        if not _is_of(run, settings):
            raise UsageError(
                "this run was made with other settings",
                where=str(run.folder),
                next_step="Choose another folder:  --output DIR",
            )
        if run.status == "complete":
            self.progress.message(f"{run.folder.name} is complete")
            return run
        return train_model(settings, self.progress, resume=run.folder)

    def measure(self, run: Run, data: Data, part: str, items: tuple[Item, ...]) -> dict[str, Any]:
        """`Metrics.to_dict()` of a run on some videos, now or from before."""
        from memcli.evaluation import METRICS_FILE, measure_predictor, write_evaluation
        from memcli.predictors import RunPredictor

        folder = self.folder / "measured" / f"{run.folder.name}-on-{data.slug}-{part}"
        found = _read(folder / METRICS_FILE)
        if found is not None and found.get("run_created") == run.created:
            metrics: dict[str, Any] = found["metrics"]
            return metrics
        if not self.trains(run.model):
            _not_run()
        options = self.options
        predictor = RunPredictor(
            run, options.device, options.workers, options.offline, self.progress
        )
        evaluation = measure_predictor(
            predictor, data.dataset, items, data.target, split=part, seed=options.seed
        )
        write_evaluation(replace(evaluation, more={"run_created": run.created}), folder)
        return evaluation.metrics.to_dict()

    def attempt(self, name: str, action: Callable[[], T]) -> tuple[T | None, str]:
        """What `action` returns, or None and why it failed; the others of the experiment go on.

        None and no reason: the model is not to be trained and there is nothing of it.
        The reason is one line; what to do about it is told to the watcher. A full disk and an
        interrupt end the experiment.
        """
        try:
            return action(), ""
        except OutputError:
            raise
        except _NotRunError:
            return None, ""
        except Exception as error:
            if is_interrupt(error):
                raise
            if isinstance(error, MemcliError):
                reason = error.what.partition("\n")[0]
                reason = f"{error.where}: {reason}" if error.where else reason
                self.progress.message(f"{name} failed: {error}")
            else:
                logging.getLogger("memcli").info("internal error in %s", name, exc_info=error)
                reason = f"internal error ({type(error).__name__}: {error})"
                self.progress.message(f"{name} failed: {reason}\n  Details: memcli -v ...")
            return None, reason

    def _settings(self, model: str, data: Data, split: Split) -> TrainSettings:
        options = self.options
        encoder, text_encoder = encoders_of(model, options)
        recipe = get_model(model).recipe
        by_epochs = recipe is not None and recipe.loss != "bayesian-ridge"
        return TrainSettings(
            model=model,
            dataset=data.dataset.name,
            data=data.dataset.root,
            target=data.target,
            split=split,
            folds=options.folds,
            encoder=encoder,
            text_encoder=text_encoder,
            epochs=options.epochs if by_epochs else None,
            adaptation_epochs=options.adaptation_epochs,
            options={key: options.head[key] for key in options.head if key in head_options(model)},
            seed=options.seed,
            output=self.folder.absolute() / "runs" / f"{model}-{data.slug}-{split}",
            device=options.device,
            auto_batch=options.auto_batch,
            workers=options.workers,
            offline=options.offline,
        )


def _decisive(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a run without those that an interrupted experiment may go on with anew."""
    return {name: value for name, value in settings.items() if name not in ON_MACHINE}


def _is_of(run: Run, settings: TrainSettings) -> bool:
    return _decisive(run.settings) == _decisive(json.loads(json.dumps(settings.to_dict())))


def _complete(settings: TrainSettings) -> Run:
    """The run of just these settings from before. Raises _NotRunError without a complete one."""
    from memcli.train.run import read_run

    assert settings.output is not None
    try:
        run = read_run(settings.output)
    except MemcliError:
        return _not_run()
    return run if _is_of(run, settings) else _not_run()


def _not_run() -> NoReturn:
    raise _NotRunError


def _check_folder(folder: Path, description: dict[str, Any]) -> None:
    """Raise UsageError unless the folder is new, empty or of the same experiment."""
    if folder.exists() and not folder.is_dir():
        raise UsageError("this is a file, not a folder", where=str(folder))
    if (folder / FILE).exists():
        _check_same(folder / FILE, description)
    elif folder.is_dir() and any(one.name != LOCK_FILE for one in folder.iterdir()):
        raise UsageError(
            "this folder holds something else",
            where=str(folder),
            next_step="Choose another:  --output DIR",
        )


def _check_same(path: Path, description: dict[str, Any]) -> None:
    earlier = _read(path)
    own = json.loads(json.dumps(description))
    differing = [key for key in own if (earlier or {}).get(key) != own[key]]
    if differing:
        raise UsageError(
            f"this folder holds something that was made with other {' and '.join(differing)}",
            where=str(path),
            next_step="Choose another:  --output DIR",
        )


def _read(path: Path) -> dict[str, Any] | None:
    """A JSON object; None if it is not there or not one."""
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            return None
        entry = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None
