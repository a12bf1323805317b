"""The command group. A command's module is imported when the command is used, not before."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

import click

from memcli import __version__

# Name -> one line of help; the module is memcli.commands.NAME. A test holds each line against the
# command's own help.
COMMANDS = {
    "score": "Score the memorability of videos.",
    "eeg": "Recognition from EEG: how probable it is that a clip was recognised.",
    "caption": "Describe videos in words, with a captioner on this machine.",
    "models": "List, fetch, add and remove models.",
    "train": "Train a model of the papers on a dataset.",
    "evaluate": "Measure a trained or installed model on a dataset.",
    "cross": "Train on one dataset and test on another, both ways.",
    "reproduce": "Run a paper's whole table and print it beside the published figures.",
    "dataset": "Check a dataset before training: what is missing, duplicated or unreadable.",
    "export": "Make a verified engine of a trained model, or a faster precision of one.",
    "engines": "List, check, add and delete compiled TensorRT engines.",
    "bench": "Measure decode, preprocess, engine and end-to-end speed.",
    "doctor": "Show what this machine has and what memcli will use.",
    "completion": "Print the script that completes memcli's commands in a shell.",
}


@dataclass
class State:
    """What the outermost code must know of the command that ran."""

    as_json: bool = False


class LazyGroup(click.Group):
    """A group whose commands live in modules of their own."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"memcli.commands.{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = click.utils.make_str(args[0])
        if name not in COMMANDS and not name.startswith("-"):
            import difflib

            close = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            ctx.fail(f"No such command {name!r}.{hint}")
        return super().resolve_command(ctx, args)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 all scored; 1 some inputs failed; 2 usage; 3 model, engine, device or"
    " output disk not usable; 130 interrupted (finished results are kept).",
)
@click.version_option(__version__, prog_name="memcli")
@click.option("-v", "--verbose", count=True, help="Log what happens; -vv for more.")
def cli(verbose: int) -> None:
    """Predict how memorable videos are, on the hardware at hand.

    \b
    Examples:
      memcli score ./videos
      memcli score clip.mp4 --curve --output clip.jsonl
      memcli models
    """
    import logging

    level = {0: logging.ERROR, 1: logging.INFO}.get(verbose, logging.DEBUG)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("memcli").setLevel(level)
