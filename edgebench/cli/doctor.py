"""``edgebench doctor``: what this machine is, what can be measured on it, and what to fix first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgebench.doctor import Section

_MARKS = {"ok": ("ok", "green"), "warn": ("warn", "yellow"), "missing": ("none", "dim")}


@click.command(short_help="What this machine is, what can be measured here, what to fix.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path("/"),
    help="Examine a captured tree of another machine instead of this one.",
)
def command(as_json: bool, root: Path) -> None:
    """Examine this machine without changing or timing anything.

    Each line is "ok", "warn" (it works, but numbers suffer) or "none" (not there), and ends with the exact fix.
    """
    from edgebench import doctor
    from edgebench.host import Host

    sections = doctor.examine(Host(root))
    if as_json:
        import msgspec

        click.echo(msgspec.json.encode({"sections": sections}))
    else:
        _render(sections)


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
