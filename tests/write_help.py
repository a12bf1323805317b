"""`python -m tests.write_help` stores the text of `memcli --help` (see memcli/__main__.py)."""

from pathlib import Path

import memcli
from memcli.__main__ import HELP_FILE
from memcli.cli import cli

PATH = Path(memcli.__file__).parent / HELP_FILE


def help_text() -> str:
    """What click prints, 80 columns wide."""
    with cli.make_context("memcli", [], resilient_parsing=True, terminal_width=80) as context:
        return cli.get_help(context) + "\n"


if __name__ == "__main__":
    PATH.write_text(help_text(), encoding="utf-8")
