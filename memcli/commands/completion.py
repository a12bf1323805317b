"""`memcli completion`."""

from __future__ import annotations

import click


@click.command(name="completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the script that completes memcli's commands in a shell.

    \b
    Examples:
      memcli completion bash >> ~/.bashrc
      memcli completion zsh >> ~/.zshrc
      memcli completion fish > ~/.config/fish/completions/memcli.fish
    """
    from click.shell_completion import get_completion_class

    from memcli.app import COMPLETION_VARIABLE
    from memcli.cli import cli

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"click cannot complete for {shell}")
    click.echo(kind(cli, {}, "memcli", COMPLETION_VARIABLE).source())
