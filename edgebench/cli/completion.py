"""``edgebench completion``: the shell's completion script."""

from __future__ import annotations

import click


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion script of a shell.

    bash: edgebench completion bash > ~/.local/share/bash-completion/completions/edgebench
    """
    from click.shell_completion import get_completion_class

    from edgebench.cli import cli

    completion = get_completion_class(shell)
    if completion is None:
        raise click.UsageError(f"click knows no completion for {shell}.")
    click.echo(completion(cli, {}, "edgebench", "_EDGEBENCH_COMPLETE").source())
