"""`memcli reproduce eeg`: the five rows of 000_bcb79d7cf5a52fe8.txt, table 2, on one dataset.

FOLDER/runs/STRATEGY/ are run folders as `memcli train eeg-cnn` makes them; what is complete there
is not done again, but must be of the data as it is now. The row of the ensemble is made of the
folds' models of TCL-regress.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memcli.errors import MemcliError, MissingDependencyError, OutputError, UsageError, is_interrupt
from memcli.experiments.files import CSV_FILE, write_tables
from memcli.experiments.tables import Figure, Quantity, Row, Table
from memcli.home import make_dir
from memcli.models import get_model
from memcli.models.papers import PAPERS
from memcli.text import printable
from memcli.training.eeg_settings import EegSettings, Pretext
from memcli.training.settings import NoProgress, Progress

if TYPE_CHECKING:
    from memcli.train.eeg.loading import EegDataset
    from memcli.train.run import Run

MODEL = "eeg-cnn"
CROSS_VALIDATION = "AUROC, cross-validation"
TEST = "AUROC, test"
SUBJECTS = "AUROC, subjects held out"
_SPREAD = ".3f"
_NOT_RUN = "not run"
_NO_TEST = "no test split"


@dataclass(frozen=True)
class Strategy:
    """A row of table 2."""

    name: str
    title: str
    pretext: Pretext
    published: Mapping[str, Figure]
    ensemble: bool = False


def _published(mean: float | None, std: float, test: float) -> dict[str, Figure]:
    found = {TEST: Figure(test)}
    if mean is not None:
        found[CROSS_VALIDATION] = Figure(mean, std=std, std_form=_SPREAD)
    return found


STRATEGIES = (
    Strategy("none", "No pre-training", "none", _published(0.628, 0.015, 0.635)),
    Strategy("tcl", "TCL", "tcl", _published(0.614, 0.010, 0.615)),
    Strategy("tcl-regress", "TCL-regress", "tcl-regress", _published(0.634, 0.024, 0.630)),
    Strategy(
        "tcl-regress-ensemble",
        "TCL-regress ensemble",
        "tcl-regress",
        _published(None, 0, 0.612),
        ensemble=True,
    ),
    Strategy(
        "tcl-regress-exp",
        "TCL-regress exp-sampling",
        "tcl-regress-exp",
        _published(0.634, 0.016, 0.618),
    ),
)


def reproduce_eeg(
    settings: EegSettings,
    output: Path,
    *,
    strategies: tuple[str, ...] = (),
    device: str = "auto",
    note: str = "",
    progress: Progress | None = None,
) -> Table:
    """Table 2 on the data of `settings`, which `output` then has, too.

    The pretext of `settings` is not looked at.
    Only `strategies` (none: all) are trained; of others, what is complete is shown. A row that
    fails says why, and the others go on. Raises UsageError for what concerns the whole.
    """
    _require_plots()
    known = [one.name for one in STRATEGIES]
    for name in strategies:
        if name not in known:
            raise UsageError(
                f"{printable(name)!r} is no row of this table",
                where="--models",
                next_step=f"Its rows: {', '.join(known)}",
            )
    _check_folder(output)
    make_dir(output / "runs")
    reproduction = _Reproduction(settings, output, device, progress or NoProgress())
    rows = tuple(
        reproduction.row(one, trains=not strategies or one.name in strategies) for one in STRATEGIES
    )
    table = reproduction.table(rows, note)
    write_tables(output, [table], plots=True)
    return table


def _require_plots() -> None:
    from memcli.train import plots

    try:
        plots.require_packages()
    except MissingDependencyError as error:
        raise MissingDependencyError(
            "matplotlib", purpose="plotting", install="pip install 'memcli[train,eeg]'"
        ) from error


def _check_folder(output: Path) -> None:
    if output.exists() and not output.is_dir():
        raise UsageError("this is a file, not a folder", where=str(output))
    known = {"runs", CSV_FILE}
    if (
        output.is_dir()
        and any(output.iterdir())
        and not known & {one.name for one in output.iterdir()}
    ):
        raise UsageError(
            "this folder holds something else",
            where=str(output),
            next_step="Choose another:  --output DIR",
        )


@dataclass(frozen=True)
class _Data:
    """The data, as far as it is compared with that of runs, and tested on."""

    digest: str
    tested: EegDataset
    """Without the examples of the training."""


class _Reproduction:
    def __init__(self, settings: EegSettings, output: Path, device: str, progress: Progress):
        self.settings = settings
        self.output = output
        self.device = device
        self.progress = progress
        self.runs: dict[str, Run] = {}

    @cached_property
    def data(self) -> _Data:
        """What lies in the folder of the data now. Raises DatasetError."""
        from memcli.training.eeg import load_examples
        from memcli.training.eeg_settings import make_eeg_spec

        prep = make_eeg_spec(_own(self.settings, "none")).eeg
        assert prep is not None
        found = load_examples(self.settings, prep)
        # Trainings read the data themselves: only what they do not need is kept beside them.
        return _Data(found.digest, replace(found, examples=found.examples.subset([])))

    def row(self, strategy: Strategy, *, trains: bool) -> Row:
        self.progress.message(f"{strategy.title}")
        obtained: dict[str, Figure] = {}
        failure, absent = "", ""
        reasons: dict[str, str] = {}
        try:
            run = self._run(strategy.pretext, trains=trains)
            if run is None:
                absent = _NOT_RUN
            elif strategy.ensemble:
                obtained = self._ensemble(run)
                absent = "not defined"
            else:
                obtained = _figures(run)
                absent = "not defined"
            if run is not None and not run.dataset.get("test_epochs"):
                reasons = {TEST: _NO_TEST}
        except OutputError:
            raise
        except Exception as error:
            if is_interrupt(error):
                raise
            if isinstance(error, MemcliError):
                failure = str(error).partition("\n")[0]
            else:
                logging.getLogger("memcli").info("internal error", exc_info=error)
                failure = f"internal error ({type(error).__name__}: {error})"
            self.progress.message(f"{strategy.title} failed: {failure}")
        return Row(
            (strategy.title,),
            strategy.name,
            published=strategy.published,
            obtained=obtained,
            failure=failure,
            absent=absent,
            reasons=reasons,
        )

    def _run(self, pretext: Pretext, *, trains: bool) -> Run | None:
        """The run of a strategy: from before, gone on with, or made now; None: not to be made."""
        from memcli.train.run import RUN_FILE, read_run
        from memcli.training.eeg import check_same_data, resume_eeg, train_eeg

        if pretext in self.runs:
            return self.runs[pretext]
        own = _own(self.settings, pretext)
        folder = self.output.absolute() / "runs" / pretext
        if (folder / RUN_FILE).exists():
            run = read_run(folder, unfinished=True)
            if EegSettings.of_run(run.settings, str(folder)) != own:
                raise UsageError(
                    "this run was made with other settings",
                    where=str(folder),
                    next_step="Choose another folder:  --output DIR",
                )
            if run.status == "complete":
                check_same_data(run, self.data.digest, own.data)
            elif not trains:
                return None
            else:
                run = resume_eeg(folder, self.progress, device=self.device)
        elif trains:
            run = train_eeg(own, self.progress, output=folder, device=self.device)
        else:
            return None
        self.runs[pretext] = run
        return run

    def _ensemble(self, run: Run) -> dict[str, Figure]:
        """The mean of the folds' probabilities, on the test split; nothing without one."""
        from memcli.train.trainer import Machine
        from memcli.training.eeg_fitting import ensemble_metrics, tested_examples

        if not run.dataset.get("test_epochs"):
            return {}
        assert run.spec.eeg is not None
        test = tested_examples(run.spec.eeg, self.data.tested)
        device = Machine(self.device).torch_device()
        return {TEST: _figure(ensemble_metrics(run, test, device, self.progress.message))}

    def table(self, rows: tuple[Row, ...], note: str) -> Table:
        paper = PAPERS["early-fusion"]
        notes = [
            f"Published: {paper.authors}, {paper.title}, {paper.venue}: 3484 epochs of 27 people.",
            "± is the standard deviation over the folds (as we read the published one).",
            "Cross-validation holds out epochs, as in the paper; the last column holds out"
            " subjects, in the same runs.",
        ]
        first = next(iter(self.runs.values()), None)
        made_up = False
        if first is not None:
            notes.insert(0, f"Obtained on {first.spec.trained_on}.")
            made_up = any(one.dataset.get("demonstration") for one in self.runs.values())
            if not first.dataset.get("test_epochs"):
                notes.append('No epoch is of the split "test": that column is not obtained.')
        return Table(
            "table-2",
            "Table 2: AUROC of five strategies for recall prediction from EEG",
            ("Training strategy",),
            (Quantity(CROSS_VALIDATION), Quantity(TEST), Quantity(SUBJECTS)),
            rows,
            (*notes, note) if note else tuple(notes),
            mark="Planted data: these figures validate code and say nothing about people"
            if made_up
            else "",
        )


def _own(settings: EegSettings, pretext: Pretext) -> EegSettings:
    """Settings of a strategy."""
    epochs = settings.pretext_epochs if pretext != "none" else None
    return replace(settings, pretext=pretext, pretext_epochs=epochs)


def _figures(run: Run) -> dict[str, Figure]:
    found: dict[str, Figure] = {}
    for split, name in (("epochs", CROSS_VALIDATION), ("subjects", SUBJECTS)):
        entry = run.metrics["splits"].get(split, {"absent": ""})
        if "absent" not in entry:
            found[name] = Figure(
                entry["auroc"],
                std=entry["auroc_std"],
                videos=entry["held_out"]["n"],
                std_form=_SPREAD,
            )
    if "test" in run.metrics:
        found[TEST] = _figure(run.metrics["test"])
    return found


def _figure(metrics: Mapping[str, Any]) -> Figure:
    interval = metrics["auroc"]["interval"]
    return Figure(
        metrics["auroc"]["value"],
        interval=tuple(interval) if interval is not None else None,
        videos=metrics["n"],
    )


def strategy_defaults(epochs: int | None) -> int | None:
    """Epochs of the self-supervised training where at most so many are asked for."""
    recipe = get_model(MODEL).eeg_recipe
    assert recipe is not None
    return None if epochs is None else min(epochs, recipe.pretext_epochs)
