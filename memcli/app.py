"""Runs a command and turns every failure into one message and an exit code."""

from __future__ import annotations

import errno
import os
import sys
from typing import IO

import click

from memcli.cli import State, cli
from memcli.errors import ExitCode, MemcliError, is_interrupt
from memcli.text import printable

COMPLETION_VARIABLE = "_MEMCLI_COMPLETE"
_REFUSED = {
    errno.ENAMETOOLONG: ExitCode.USAGE,
    errno.EACCES: ExitCode.NOT_USABLE,
    errno.EPERM: ExitCode.NOT_USABLE,
}
"""What the system says of any path that a user may give, wherever it is first looked at."""
_MOST_SHOWN = 200


def run(arguments: list[str]) -> int:
    """Run a command and return its exit code; it never raises."""
    state = State()
    try:
        code = _invoke(arguments, state)
    except BaseException as error:
        return _explain(_with_hint(error, arguments), state)
    try:
        if sys.stdout is not None:  # None where the caller closed it
            sys.stdout.flush()
    except BrokenPipeError:
        silence(sys.stdout)
    except OSError as error:
        return _explain(error, state)
    return code


def _explain(error: BaseException, state: State) -> int:
    """One message and the exit code of what ended a command."""
    if isinstance(error, click.Abort) or is_interrupt(error):
        return _fail(state, "interrupted", ExitCode.INTERRUPTED)
    if isinstance(error, click.ClickException):
        if state.as_json:
            return _fail(state, error.format_message(), ExitCode.USAGE)
        error.show()
        return ExitCode.USAGE
    if isinstance(error, MemcliError):
        _log("cause of the error", error)
        return _fail(state, str(error), error.exit_code)
    if isinstance(error, BrokenPipeError):
        silence(sys.stdout)  # the reader went away (`| head`), which is its right
        return ExitCode.OK
    if not isinstance(error, Exception):
        raise error
    if isinstance(error, OSError) and (problem := _output_problem(error)) is not None:
        silence(sys.stdout)
        return _fail(state, f"standard output cannot be written: {problem}", ExitCode.NOT_USABLE)
    if isinstance(error, OSError) and error.errno in _REFUSED and error.filename is not None:
        _log("cause of the error", error)
        code = _REFUSED[error.errno]
        return _fail(state, f"{str(error.filename)[:_MOST_SHOWN]}: {error.strerror}", code)
    _log("internal error", error)
    text = f"internal error ({type(error).__name__}: {error})"
    next_step = "\n  Run it again with `memcli -v ...` for details to report."
    return _fail(state, text + next_step, ExitCode.NOT_USABLE)


def _with_hint(error: BaseException, arguments: list[str]) -> BaseException:
    """A wrong option that looks like a file whose name begins with `-` says how to name that."""
    if isinstance(error, click.NoSuchOption):
        letters = error.option_name.lstrip("-")
        for word in arguments:
            looks_like_file = "." in word or os.path.lexists(word)
            if word.startswith("-") and letters in word and looks_like_file:
                text = f"{error.message} For the file of that name write ./{word}"
                return click.NoSuchOption(
                    error.option_name, text, possibilities=error.possibilities, ctx=error.ctx
                )
    return error


def _output_problem(error: OSError) -> str | None:
    """Why standard output takes no more, if that is what `error` came from.

    An OSError of a stream does not say whose it is, so one more line break is written.
    """
    if error.filename is not None or sys.stdout is None:
        return None
    try:
        os.write(sys.stdout.fileno(), b"\n")
    except ValueError:  # not a file of the system
        return None
    except OSError as refused:
        return refused.strerror or str(refused)
    return None


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
