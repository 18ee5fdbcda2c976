"""``edgebench generate``: see that an artifact works."""

from __future__ import annotations

from typing import Any

import click

from edgebench.errors import ArtifactError, UsageError


@click.command()
@click.argument("model")
@click.argument("prompt")
@click.option("--precision", metavar="NAME", default="shipped", show_default=True, help="As in profile.")
@click.option("--runtime", metavar="NAME", help="Engine; without it, the first installed one that has the precision.")
@click.option("--chat", is_flag=True, help="Put the prompt into the model's chat template.")
@click.option("--system", metavar="TEXT", default="", help="With --chat: the system message.")
@click.option(
    "--max-tokens", type=click.IntRange(min=1), default=128, show_default=True, metavar="N", help="Longest answer."
)
@click.option("--threads", type=click.IntRange(min=1), metavar="N", help="Threads; without it, the performance cores.")
@click.option("--accept-license", is_flag=True, help="Accept the model's terms before its first download.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document on standard output.")
@click.option("--quiet", is_flag=True, help="No progress and no speed.")
def command(**options: Any) -> int:
    """Continue PROMPT with MODEL, choosing the likeliest token each time, and print the speed."""
    import msgspec
    from rich.console import Console

    from edgebench.cli._progress import Progress
    from edgebench.engine.messages import Piece, Reply
    from edgebench.generate import Answer, generate
    from edgebench.plan import Request

    if options["system"] and not options["chat"]:
        raise UsageError("--system needs --chat.", "add --chat, or put the text into the prompt.")
    teller = Progress(Console(stderr=True), quiet=options["quiet"])
    request = Request(
        models=(options["model"],),
        precisions=(options["precision"],),
        runtimes=(options["runtime"],) if options["runtime"] else (),
        threads=options["threads"],
        accept_license=options["accept_license"],
        force_context=True,
    )

    def hear(message: Reply) -> None:
        if isinstance(message, Piece) and not options["as_json"]:
            teller.clear()
            click.echo(message.text, nl=False)

    answer: Answer = generate(
        request,
        options["prompt"],
        teller,
        hear,
        chat=options["chat"],
        system=options["system"],
        max_tokens=options["max_tokens"],
    )
    teller.clear()
    if answer.failure is not None:
        raise ArtifactError(f"Nothing more was generated: {answer.failure.says.rstrip('.')}.", answer.failure.next_step)
    if options["as_json"]:
        click.echo(msgspec.json.encode(answer).decode())
        return 0
    click.echo()
    if not options["quiet"]:
        click.echo(answer.speed, err=True)
    return 0
