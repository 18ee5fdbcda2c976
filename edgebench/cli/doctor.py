"""``edgebench doctor``: what this machine is, what can be measured on it, and what to fix first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgebench.doctor import Section, Step

_MARKS = {"ok": ("ok", "green"), "warn": ("warn", "yellow"), "missing": ("none", "dim")}


@click.command(short_help="What this machine is, what can be measured here, what to fix.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path("/"),
    help="Examine a captured tree of another machine instead of this one.",
)
@click.option("--tune", is_flag=True, help="Print the commands that would quieten this machine; none of them is run.")
def command(as_json: bool, root: Path, tune: bool) -> None:
    """Examine this machine without changing or timing anything.

    Each line is "ok", "warn" (it works, but numbers suffer) or "none" (not there), and ends with the exact fix.
    """
    from edgebench import doctor
    from edgebench.host import Host

    if tune:
        steps = doctor.tuning(Host(root))
        if as_json:
            _print_json({"steps": steps})
        else:
            _print_steps(steps)
        return
    sections = doctor.examine(Host(root))
    if as_json:
        _print_json({"sections": sections})
    else:
        _render(sections)


def _print_json(value: object) -> None:
    import msgspec

    click.echo(msgspec.json.encode(value))


def _print_steps(steps: Sequence[Step]) -> None:
    """A script that a person may read, change and run: comments and commands only."""
    if not steps:
        click.echo("# nothing to do: no known setting of this machine would make it quieter")
        return
    click.echo("# Nothing of this was run. Read it, then run what you want:")
    for step in steps:
        click.echo(f"\n# {step.why}\n{step.command}")
    back = [line for step in reversed(steps) for line in step.undo.splitlines()]
    if back:
        click.echo("\n# the way back (the next boot does the same)")
        for line in back:
            click.echo(f"# {line}")


def _render(sections: Sequence[Section]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    for section in sections:
        console.print(Text(section.title, style="bold"))
        widest = max(len(check.name) for check in section.checks)
        for check in section.checks:
            mark, style = _MARKS[check.state]
            row = Table.grid(padding=(0, 2))
            row.add_column(width=4)
            row.add_column(width=widest)
            row.add_column(overflow="fold")
            row.add_row(Text(mark, style=style), Text(check.name), Text(check.says))
            console.print(row)
            if check.fix:  # never broken into lines, so that a command can be copied
                console.print(Text(f"      fix: {check.fix}", style="cyan"), soft_wrap=True)
        console.print()
    problems = sum(check.state == "warn" for section in sections for check in section.checks)
    console.print(f"{problems} to fix or to keep in mind." if problems else "Nothing to fix.")
