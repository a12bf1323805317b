"""Options of `memcli reproduce` and `memcli cross`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from memcli.errors import UsageError

if TYPE_CHECKING:
    from memcli.experiments.options import Options

F = TypeVar("F", bound=Callable[..., Any])
_NAMES = (
    "encoders",
    "text_encoder",
    "epochs",
    "adaptation_epochs",
    "folds",
    "head",
    "seed",
    "device",
    "auto_batch",
    "workers",
    "offline",
)


def experiment_options(function: F) -> F:
    """Everything of `Options`, and `--target --note`."""
    for option in reversed(
        [
            click.option("--target", metavar="SCORE", help="Which scores: short-term, raw, ..."),
            click.option(
                "--encoder",
                "encoders",
                multiple=True,
                metavar="[OLD=]NEW",
                help="Folder or OWNER/NAME in place of OLD, or of every vision encoder.",
            ),
            click.option("--text-encoder", metavar="NEW", help="In place of text-only encoders."),
            click.option("--epochs", type=click.IntRange(min=1), metavar="N", help="At most."),
            click.option(
                "--adaptation-epochs",
                type=click.IntRange(min=1),
                metavar="N",
                help="At most this many of the contrastive adaptation (FCLIP).",
            ),
            click.option("--folds", type=click.IntRange(min=2), metavar="K", help="How many."),
            click.option(
                "--set",
                "head",
                multiple=True,
                metavar="KEY=VALUE",
                help="Option of the head, for the models that have it.",
            ),
            click.option("--seed", type=click.IntRange(0, 2**31), default=0, show_default=True),
            click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto"),
            click.option(
                "--auto-batch", is_flag=True, help="Halve a batch until it fits into memory."
            ),
            click.option(
                "--workers", type=click.IntRange(min=1), metavar="N", help="Decoding threads."
            ),
            click.option("--offline", is_flag=True, help="Never use the network."),
            click.option("--note", default="", metavar="TEXT", help="Put below every table."),
        ]
    ):
        function = option(function)
    return function


def take_options(given: dict[str, Any]) -> Options:
    """The Options among a command's parameters, taken out of them. Raises UsageError."""
    from memcli.commands.train import head_option
    from memcli.experiments.options import Options

    own = {name: given.pop(name) for name in _NAMES}
    own["head"] = dict(head_option(text) for text in own["head"])
    own["encoders"] = dict(_encoder(text) for text in own["encoders"])
    return Options(**own)


def source(text: str) -> tuple[str | None, Path]:
    """`NAME=DIR` or `DIR` as format (None: see what it is) and folder.

    Raises UsageError for a name that is no format, unless all of it is the name of a file or has a
    slash before the `=`, and so is a path.
    """
    from memcli.text import printable
    from memcli.train.datasets import DATASETS

    name, equals, folder = text.partition("=")
    if equals and name in DATASETS:
        return name, Path(folder)
    if equals and "/" not in name and not Path(text).exists():
        raise UsageError(
            f"{printable(name)!r} is no format of a dataset",
            where=text,
            next_step=f"Formats: {', '.join(DATASETS)}.",
        )
    return None, Path(text)


def show_and_leave(folder: Path, page: str, *, failed: bool) -> None:
    """Print the page, say where the files are, and leave with 1 if a row has failed."""
    from memcli.errors import ExitCode
    from memcli.progress import say

    click.echo(page)
    say(f"written to {folder}")
    if failed:
        click.get_current_context().exit(ExitCode.SOME_INPUTS_FAILED)


def _encoder(text: str) -> tuple[str, str]:
    """`OLD=NEW` or `NEW`. What looks like a folder with a `=` in its name is one."""
    old, equals, new = text.partition("=")
    return (old, new) if equals and not Path(text).exists() else ("", text)
