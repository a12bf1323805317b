"""`memcli` and `python -m memcli`: runs a command, turns every failure into a line and a code."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

import click

from memcli.cli import State, cli
from memcli.errors import ExitCode, MemcliError
from memcli.text import printable


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the command line; leaves with an `ExitCode`."""
    sys.exit(run(arguments))


def run(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    state = State()
    try:
        result = cli.main(arguments, prog_name="memcli", standalone_mode=False, obj=state)
        sys.stdout.flush()
        return result if isinstance(result, int) else ExitCode.OK
    except click.Abort:
        _fail(state, "interrupted", ExitCode.INTERRUPTED)
        return ExitCode.INTERRUPTED
    except KeyboardInterrupt:
        _fail(state, "interrupted", ExitCode.INTERRUPTED)
        return ExitCode.INTERRUPTED
    except click.ClickException as error:
        if state.as_json:
            _fail(state, error.format_message(), ExitCode.USAGE)
        else:
            error.show()
        return ExitCode.USAGE
    except MemcliError as error:
        _log("cause of the error", error)
        _fail(state, str(error), error.exit_code)
        return error.exit_code
    except BrokenPipeError:
        # The reader of our output went away (`| head`); nothing is left to say to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.OK
    except Exception as error:
        _log("internal error", error)
        text = f"internal error ({type(error).__name__}: {error})"
        _fail(state, f"{text}\n  Run it again with `memcli -v ...` for details to report.", 3)
        return ExitCode.NOT_USABLE


def _log(text: str, error: BaseException) -> None:
    import logging  # here and in the command group: 8 ms that --help does not need

    logging.getLogger("memcli").info(text, exc_info=error)


def _fail(state: State, text: str, exit_code: int) -> None:
    if state.as_json:
        from memcli.progress import json_event

        json_event("error", text=text, exit_code=int(exit_code))
        return
    lines = [printable(line) for line in text.split("\n")]
    click.echo("error: " + "\n".join(lines), err=True)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
