"""`memcli` and `python -m memcli`."""

from __future__ import annotations

import sys

HELP_FILE = "help.txt"


def main() -> None:
    """Entry point of the command line; leaves with an `ExitCode`."""
    arguments = sys.argv[1:]
    if arguments in (["--help"], ["-h"]):
        print(_help(), end="")
        return
    from memcli.app import run

    sys.exit(run(arguments))


def _help() -> str:
    """What click would print, stored: importing click takes longer than starting Python.

    `python -m tests.write_help` writes the file, and a test holds it against click.
    """
    # Not importlib.resources: it imports half of what is saved here.
    with open(f"{__file__.removesuffix('__main__.py')}{HELP_FILE}", encoding="utf-8") as stream:  # noqa: PTH123
        return stream.read()


if __name__ == "__main__":
    main()
