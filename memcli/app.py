"""Runs a command and turns every failure into one message and an exit code."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import IO

import click

from memcli.cli import State, cli
from memcli.errors import ExitCode, MemcliError
from memcli.text import printable

COMPLETION_VARIABLE = "_MEMCLI_COMPLETE"


def run(arguments: list[str]) -> int:
    """Run a command and return its exit code; it never raises."""
    signal.signal(signal.SIGTERM, _interrupt)
    state = State()
    try:
        code = _invoke(arguments, state)
    except (click.Abort, KeyboardInterrupt):
        return _fail(state, "interrupted", ExitCode.INTERRUPTED)
    except click.ClickException as error:
        if state.as_json:
            return _fail(state, error.format_message(), ExitCode.USAGE)
        error.show()
        return ExitCode.USAGE
    except MemcliError as error:
        _log("cause of the error", error)
        return _fail(state, str(error), error.exit_code)
    except BrokenPipeError:
        silence(sys.stdout)  # the reader went away (`| head`), which is its right
        return ExitCode.OK
    except Exception as error:
        _log("internal error", error)
        text = f"internal error ({type(error).__name__}: {error})"
        next_step = "\n  Run it again with `memcli -v ...` for details to report."
        return _fail(state, text + next_step, ExitCode.NOT_USABLE)
    try:
        sys.stdout.flush()
    except OSError:
        silence(sys.stdout)
    return code


def _invoke(arguments: list[str], state: State) -> int:
    if COMPLETION_VARIABLE in os.environ:
        cli.main(arguments, prog_name="memcli")  # click answers the shell and exits
    # Not cli.main: it would end the program by itself where an output pipe is closed.
    try:
        with cli.make_context("memcli", list(arguments), obj=state) as context:
            result = cli.invoke(context)
    except click.exceptions.Exit as done:
        return done.exit_code
    return result if isinstance(result, int) else ExitCode.OK


def silence(stream: IO[str]) -> None:
    """Lead a broken stream to nowhere, so that flushing it at exit does not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _log(text: str, error: BaseException) -> None:
    import logging  # 8 ms that a quick command does not need

    logging.getLogger("memcli").info(text, exc_info=error)


def _fail(state: State, text: str, exit_code: ExitCode) -> ExitCode:
    from memcli.progress import json_event, say

    if state.as_json:
        json_event("error", text=text, exit_code=int(exit_code))
    else:
        say("error: " + "\n".join(printable(line) for line in text.split("\n")))
    return exit_code


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
