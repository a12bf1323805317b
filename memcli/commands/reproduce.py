"""`memcli reproduce`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from memcli.commands.experiment_options import (
    experiment_options,
    show_and_leave,
    source,
    take_options,
)
from memcli.errors import UsageError
from memcli.models.papers import PAPERS

_EEG = "eeg"
"""Table 2 of the paper that table 1, early-fusion, is of: other data, other options."""
_NOT_OF_EEG = (
    *("dataset", "second", "target", "encoders", "text_encoder", "adaptation_epochs"),
    *("auto_batch", "workers", "offline"),
)
_OPTION_NAMES = {"encoders": "encoder"}


@click.command(name="reproduce")
@click.argument("paper", type=click.Choice([*PAPERS, _EEG]), metavar="PAPER")
@click.option(
    "--data", required=True, type=click.Path(path_type=Path), metavar="DIR", help="The dataset."
)
@click.option("--dataset", metavar="NAME", help="Its format.  [default: what the files say]")
@click.option(
    "--second", metavar="NAME=DIR", help="Another dataset, for the second table of clip-gru."
)
@click.option("--models", metavar="NAME,...", help="Train only these rows.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where all goes.  [default: reproduction-PAPER]",
)
@experiment_options
def command(
    paper: str,
    output: Path | None,
    models: str | None,
    second: str | None,
    **given: Any,
) -> None:
    """Run a paper's whole table and print it beside the published figures.

    PAPER is early-fusion, fclip, clip-gru or eeg. Each row is trained in a run folder of its own
    inside the output folder; called again, the command goes on where it was. Rows that are complete
    are not trained again, and are shown whatever --models says. A row that fails says why, and the
    others go on. The output folder also has the tables as Markdown, all figures as CSV, and a plot
    of each table.

    Exit code: 0, 1 if a row failed, 2 or 3 if nothing could be run.

    \b
    Examples:
      memcli reproduce fclip --data ./memento10k
      memcli reproduce early-fusion --data ./films.csv --dataset moviemem --models vision,brr
      memcli reproduce clip-gru --data ./memento10k --second videomem=./videomem
      memcli reproduce eeg --data ./recordings
    """
    if paper == _EEG:
        _reproduce_eeg(output or Path("reproduction-eeg"), models, given)
        return
    from memcli.experiments.files import page
    from memcli.experiments.reproduce import ReproduceSettings, reproduce
    from memcli.training.progress import make_training_progress

    options = take_options(given)
    folder = output or Path(f"reproduction-{paper}")
    settings = ReproduceSettings(
        paper,
        output=folder,
        second=source(second) if second is not None else None,
        models=_names(models) if models is not None else (),
        options=options,
        **given,
    )
    tables = reproduce(settings, make_training_progress(as_json=False))
    show_and_leave(folder, page(tables), failed=any(table.failed for table in tables))


def _reproduce_eeg(output: Path, models: str | None, given: dict[str, Any]) -> None:
    from memcli.experiments.eeg import MODEL, reproduce_eeg, strategy_defaults
    from memcli.experiments.files import page
    from memcli.training.eeg_settings import EegSettings
    from memcli.training.progress import make_training_progress

    context = click.get_current_context()
    for name in _NOT_OF_EEG:
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            raise UsageError(
                "this is for models of videos",
                where=f"--{_OPTION_NAMES.get(name, name.replace('_', '-'))}",
                next_step="Leave it out.",
            )
    options = take_options(given)
    settings = EegSettings(
        MODEL,
        str(given["data"].absolute()),
        folds=options.folds,
        epochs=options.epochs,
        pretext_epochs=strategy_defaults(options.epochs),
        options=dict(options.head),
        seed=options.seed,
    )
    table = reproduce_eeg(
        settings,
        output,
        strategies=_names(models) if models is not None else (),
        device=options.device,
        note=given["note"],
        progress=make_training_progress(as_json=False),
    )
    show_and_leave(output, page([table]), failed=table.failed)


def _names(text: str) -> tuple[str, ...]:
    """The names in a list with commas. Raises UsageError if there is none."""
    if names := tuple(filter(None, map(str.strip, text.split(",")))):
        return names
    raise UsageError(
        "no row is named",
        where="--models",
        next_step="Name some, with commas between; without --models every row is run.",
    )
