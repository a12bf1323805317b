"""`memcli` and `python -m memcli`."""

from __future__ import annotations

import sys

HELP_FILE = "help.txt"
_INTERRUPTED = 130


def main() -> None:
    """Entry point of the command line; leaves with an `ExitCode`."""
    try:
        code = _run(sys.argv[1:])
    except KeyboardInterrupt:  # while `app.run` was not there yet to take it
        print("error: interrupted", file=sys.stderr)
        code = _INTERRUPTED
    # Python takes seconds to take torch down, and has nothing left to write.
    if code == _INTERRUPTED or "torch" in sys.modules:
        from memcli.interrupt import leave

        leave(code)
    sys.exit(code)


def _run(arguments: list[str]) -> int:
    if arguments in (["--help"], ["-h"]):
        try:
            print(_help(), end="", flush=True)
        except OSError:
            pass  # told below, as for every command
        else:
            return 0
    from memcli.interrupt import Interrupts

    Interrupts().install()
    from memcli.app import run

    return run(arguments)


def _help() -> str:
    """What click would print, stored: importing click takes longer than starting Python.

    `python -m tests.write_help` writes the file, and a test holds it against click.
    """
    # Not importlib.resources: it imports half of what is saved here.
    with open(f"{__file__.removesuffix('__main__.py')}{HELP_FILE}", encoding="utf-8") as stream:  # noqa: PTH123
        return stream.read()


if __name__ == "__main__":
    main()
