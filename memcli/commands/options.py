"""Options that several commands share, defined once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from memcli.engines.base import ENGINES
from memcli.errors import UsageError
from memcli.models import DEFAULT_MODEL
from memcli.spec import PRECISIONS, SAMPLINGS

if TYPE_CHECKING:
    from memcli.table import TableOptions

F = TypeVar("F", bound=Callable[..., Any])


class OrderedGroup(click.Group):
    """Lists its commands in the order they are written, and no line of help cut."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            lines = {name: (one.help or "").splitlines()[0] for name, one in self.commands.items()}
            formatter.write_dl(list(lines.items()))


def _as_json(ctx: click.Context, _parameter: click.Parameter, value: bool) -> bool:
    if ctx.obj is not None:
        ctx.obj.as_json = value
    return value


def json_option(help_text: str) -> Callable[[F], F]:
    """`--json`; errors of the command are then JSON too."""
    return click.option(
        "--json", "as_json", is_flag=True, callback=_as_json, is_eager=True, help=help_text
    )


def choice_options(function: F) -> F:
    """`--engine --device --precision`: what computes."""
    for option in reversed(
        [
            click.option(
                "--engine",
                type=click.Choice(["auto", *ENGINES]),
                default="auto",
                show_default=True,
                help="Runtime; auto takes the fastest that passed verification.",
            ),
            click.option(
                "--device",
                default="auto",
                show_default=True,
                metavar="auto|cpu|cuda[:N]",
                help="Where the engine runs.",
            ),
            click.option(
                "--precision",
                type=click.Choice(["auto", *PRECISIONS]),
                default="auto",
                show_default=True,
                help="Arithmetic; auto takes the fastest verified precision installed.",
            ),
        ]
    ):
        function = option(function)
    return function


def engine_options(function: F, *, default_model: str = DEFAULT_MODEL) -> F:
    """`--model --engine --device --precision --threads --offline`."""
    for option in reversed(
        [
            click.option(
                "--model",
                default=default_model,
                show_default=True,
                metavar="NAME|BUNDLE",
                help="A model of `memcli models`, or the folder of a bundle.",
            ),
            choice_options,
            click.option(
                "--threads",
                type=click.IntRange(min=1),
                help="Threads of a CPU engine.  [default: all cores]",
            ),
            click.option("--offline", is_flag=True, help="Never use the network."),
        ]
    ):
        function = option(function)
    return function


def resume_options(function: F) -> F:
    """`--resume --retry-failed --on-error` of runs over files."""
    for option in reversed(
        [
            click.option(
                "--resume/--no-resume",
                default=True,
                show_default=True,
                help="Go on from the table and journal of an earlier run, or replace them.",
            ),
            click.option(
                "--retry-failed",
                is_flag=True,
                help="Try files again that failed in an earlier run.",
            ),
            click.option(
                "--on-error",
                type=click.Choice(["skip", "fail"]),
                default="skip",
                show_default=True,
                help="fail: stop at the first file that fails.",
            ),
        ]
    ):
        function = option(function)
    return function


def sampling_option(function: F) -> F:
    """`--sampling` of runs over videos."""
    return click.option(
        "--sampling",
        type=click.Choice(SAMPLINGS),
        default="exact",
        show_default=True,
        help="exact: the frame shown at the middle of each equal part of the video; keyframe: the"
        " nearest key frame to it, much faster on long files.",
    )(function)


def captioner_option(function: F) -> F:
    """`--captioner` of runs that may make captions."""
    return click.option(
        "--captioner",
        metavar="NAME|DIR",
        help="What makes captions: an installed captioner, a folder, or a size (256m, 500m, 2.2b)."
        "  [default: 500m, or 256m on a device of 8 GB]",
    )(function)


def table_options(
    output: Path | None,
    default: str,
    *,
    resume: bool,
    retry_failed: bool,
    on_error: Literal["skip", "fail"],
    shard: str | None = None,
) -> TableOptions:
    """What `resume_options`, `--output` and `--shard` come to; a shard's `default` table has its
    number. Raises UsageError if they contradict each other."""
    from memcli.inputs import parse_shard
    from memcli.table import TableOptions

    part = parse_shard(shard) if shard else None
    if not resume and retry_failed:
        raise UsageError("--retry-failed needs the earlier results that --no-resume discards")
    if output is None:
        output = Path(default)
        if part is not None:
            output = output.with_suffix(f".{part[0]}-of-{part[1]}.csv")
    return TableOptions(output, resume, retry_failed, on_error, part)


def run_options(function: F) -> F:
    """`--workers --file-timeout --resume --retry-failed --on-error --shard` of runs over videos."""
    for option in reversed(
        [
            click.option(
                "--workers", type=click.IntRange(min=1), help="Decode workers.  [default: chosen]"
            ),
            click.option(
                "--file-timeout",
                type=click.FloatRange(min=0, min_open=True),
                metavar="SECONDS",
                help="Give up a file after this long.  [default: 300]",
            ),
            resume_options,
            click.option(
                "--shard",
                metavar="I/N",
                help="Take part I of N, for several machines; the default table is then named by"
                " the shard.",
            ),
        ]
    ):
        function = option(function)
    return function
