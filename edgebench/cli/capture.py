"""``edgebench capture``: copy what edgebench reads of this machine, so that others can test against it."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(short_help="Copy what is read of this machine, without names and numbers, for a test case.")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=Path("/"),
    help="Copy from a captured tree of another machine instead of this one.",
)
def command(folder: Path, as_json: bool, root: Path) -> None:
    """Copy the files and the outputs of commands that detection, sensors and doctor read on this machine into DIR.

    DIR then stands in for this machine (edgebench doctor --root DIR), and DIR.json holds the same in one file. Serial
    numbers, UUIDs, MAC addresses and the names of the host and its users are replaced; look through it all the same
    before you send it to anybody.
    """
    from edgebench.capture import RecordingHost, capture, write

    captured = capture(RecordingHost(root))
    document = write(captured, folder)
    if as_json:
        import msgspec

        click.echo(
            msgspec.json.encode({"folder": str(folder), "document": str(document), "files": list(captured.files)})
        )
        return
    click.echo(f"{len(captured.files)} files in {folder}, the same in {document}.")
    click.echo(f"See what it tells: edgebench doctor --root {folder}")
    click.echo(
        "Look through it before you send it: numbers and names were replaced, but only you know what is private."
    )
