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
from memcli.models.papers import PAPERS


@click.command(name="reproduce")
@click.argument("paper", type=click.Choice(list(PAPERS)), metavar="PAPER")
@click.option(
    "--data", required=True, type=click.Path(path_type=Path), metavar="DIR", help="The dataset."
)
@click.option("--dataset", metavar="NAME", help="Its format.  [default: what the files say]")
@click.option(
    "--second", metavar="NAME=DIR", help="Another dataset, for the second table of clip-gru."
)
@click.option("--models", metavar="NAME,...", help="Only these rows.")
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

    PAPER is early-fusion, fclip or clip-gru. Each row is trained in a run folder of its own inside
    the output folder; called again, the command goes on where it was, and rows that are complete
    are not trained again. A row that fails says why, and the others go on. The output folder also
    has the tables as Markdown, all figures as CSV, and a plot of each table.

    Exit code: 0, 1 if a row failed, 2 or 3 if nothing could be run.

    \b
    Examples:
      memcli reproduce fclip --data ./memento10k
      memcli reproduce early-fusion --data ./films.csv --dataset moviemem --models vision,brr
      memcli reproduce clip-gru --data ./memento10k --second videomem=./videomem
    """
    from memcli.experiments.files import write_tables
    from memcli.experiments.reproduce import ReproduceSettings, reproduce
    from memcli.training.progress import make_training_progress

    options = take_options(given)
    folder = output or Path(f"reproduction-{paper}")
    settings = ReproduceSettings(
        paper,
        output=folder,
        second=source(second) if second is not None else None,
        models=tuple(filter(None, (models or "").split(","))),
        options=options,
        **given,
    )
    tables = reproduce(settings, make_training_progress(as_json=False))
    page = write_tables(folder, tables, plots=True)
    show_and_leave(folder, page, failed=any(table.failed for table in tables))
