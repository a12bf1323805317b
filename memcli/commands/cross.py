"""`memcli cross`."""

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


@click.command(name="cross")
@click.argument("model")
@click.option(
    "--dataset",
    "sources",
    multiple=True,
    required=True,
    metavar="NAME=DIR",
    help="Format and folder of a dataset; two or more.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where all goes.  [default: cross-MODEL]",
)
@experiment_options
def command(model: str, sources: tuple[str, ...], output: Path | None, **given: Any) -> None:
    """Train on one dataset and test on another, both ways.

    Each dataset is trained on once and tested on by the models of all others: on its labelled test
    split, else its dev split, else everything. Where both are one, the figure is of held-out
    videos. The output folder has the two tables (SRCC and PLCC) as Markdown and CSV, the runs, and
    the predictions and plots of every pair. Called again, the command goes on where it was.

    Exit code: 0, 1 if a training or a test failed, 2 or 3 if nothing could be run.

    \b
    Examples:
      memcli cross clip-gru --dataset memento10k=./memento10k --dataset videomem=./videomem
      memcli cross text --dataset csv=./films.csv --dataset videm=./commercials
    """
    from memcli.experiments.cross import CrossSettings, cross
    from memcli.experiments.files import page
    from memcli.models import get_model
    from memcli.training.progress import make_training_progress

    options = take_options(given)
    folder = output or Path(f"cross-{get_model(model).name}")
    settings = CrossSettings(
        model,
        sources=[source(text) for text in sources],
        output=folder,
        options=options,
        **given,
    )
    tables = cross(settings, make_training_progress(as_json=False))
    show_and_leave(folder, page(tables), failed=any(table.failed for table in tables))
