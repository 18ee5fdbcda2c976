"""``edgebench runs``: what was measured, read from the result store. Nothing here measures or changes anything."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgebench.errors import UnknownNameError, UsageError

if TYPE_CHECKING:
    from edgebench.store import Store

_Verb = TypeVar("_Verb", bound=Callable[..., None])
_OUTCOMES = ("ok", "oom", "killed", "timeout", "failed")


def _store_option(verb: _Verb) -> _Verb:
    return click.option(
        "--store", "where", metavar="URL", help="Result store: a file or a database URL. [env EDGEBENCH_STORE]"
    )(verb)


def _json_option(verb: _Verb) -> _Verb:
    return click.option("--json", "as_json", is_flag=True, help="Write one JSON document to stdout.")(verb)


@click.group("runs")
def command() -> None:
    """List, show and export stored results."""


@command.command("list")
@_store_option
@_json_option
@click.option("--runs", "list_runs", is_flag=True, help="List runs instead of sessions.")
@click.option("--session", "session_id", metavar="ID", help="Only runs of this session (an id or its beginning).")
@click.option("--model", help="Only runs of this model.")
@click.option("--precision", help="Only runs of this precision.")
@click.option("--runtime", help="Only runs of this runtime.")
@click.option("--outcome", type=click.Choice(_OUTCOMES), help="Only runs that came out so.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="At most N, the newest ones.")
def list_(
    where: str | None, *, as_json: bool, list_runs: bool, session_id: str | None, limit: int | None, **only: str | None
) -> None:
    """List sessions, newest first, with what became of their runs."""
    from edgebench.cli import _runs_text as text

    if not list_runs and (session_id or any(only.values())):
        raise UsageError("--session, --model, --precision, --runtime and --outcome choose runs.", "add --runs.")
    with ExitStack() as stack:
        store = _default_or_none(where, stack)
        if list_runs:
            session = store.session(session_id).session_id if store and session_id else None
            runs = text.newest(store.runs(session_id=session, **only), limit) if store else []
            if as_json:
                _echo_json({"runs": runs})
            else:
                text.print_runs(runs, "No such runs.")
        else:
            sessions = store.sessions(limit) if store else []
            if as_json:
                _echo_json({"sessions": sessions})
            else:
                text.print_sessions(sessions)


@command.command()
@_store_option
@_json_option
@click.argument("id_", metavar="[ID]", required=False)
def show(where: str | None, *, as_json: bool, id_: str | None) -> None:
    """Show a session or a run by its id or the beginning of it; without ID, the latest session."""
    from edgebench.analysis.summary import summarize_session
    from edgebench.cli import _runs_text as text
    from edgebench.report.text import print_result
    from edgebench.store import Store

    with Store.open(where, read_only=True) as store:
        id_ = id_ or _latest(store)
        try:
            session = store.session(id_)
        except UnknownNameError as no_session:
            try:
                run = store.run(id_)
            except UnknownNameError:
                raise UnknownNameError(
                    "session or run", id_, no_session.known, hint="see `edgebench runs list`"
                ) from None
            if as_json:
                _echo_json({"run": run, "blocks": text.block_figures(run)})
            else:
                text.print_run(run)
            return
        every = list(store.runs(session_id=session.session_id))
        unrecorded = store.unrecorded(session.session_id)
        row = store.overview(session.session_id)
    runs, trials = [text.summary(run) for run in every], summarize_session(every, session.plan.protocol)
    if as_json:
        ended = {"ended_utc": row.ended_utc, "exit_code": row.exit_code, "trials": trials}
        _echo_json({"session": session, **ended, "runs": runs, "unrecorded": unrecorded})
    else:
        text.print_session(session, row, runs, unrecorded)
        print_result(text.plain_console(), trials)


@command.command()
@_store_option
@_json_option
@click.option("--session", "session_id", metavar="ID", help="Only this session (an id or its beginning).")
@click.option("-o", "--output", metavar="FILE", help="Write to this file, whole or not at all, instead of stdout.")
@click.option(
    "--format",
    "form",
    type=click.Choice(("json", "jsonl", "csv")),
    help="json: one document (default). jsonl: one run per line. csv: one row per block.",
)
def export(where: str | None, *, as_json: bool, session_id: str | None, output: str | None, form: str | None) -> None:
    """Write stored results for other programs: raw samples as JSON, or one row per block as CSV."""
    from edgebench.cli import _runs_export
    from edgebench.store import Store

    to_stdout = output in {None, "-"}
    if as_json and to_stdout and form in {"jsonl", "csv"}:
        raise UsageError(
            f"--json writes one JSON document, and --format {form} is none.", "leave one out, or add -o FILE."
        )
    with Store.open(where, read_only=True) as store:
        session = store.session(session_id).session_id if session_id else None
        chunks = _runs_export.chunks(store, session, form or "json")
        if output is None or to_stdout:
            for chunk in chunks:
                click.echo(chunk, nl=False)
            return
        size = _runs_export.write_whole(output, chunks)
    if as_json:
        _echo_json({"file": output, "format": form or "json", "bytes": size})
    else:
        click.echo(f"Wrote {output} ({size} bytes).", err=True)


@command.command()
@_json_option
def schema(*, as_json: bool) -> None:  # noqa: ARG001 - a JSON Schema is JSON either way
    """Print the JSON Schema of a run as `runs export` writes it."""
    from edgebench.cli import _runs_export

    _echo_json(_runs_export.run_schema())


def _default_or_none(where: str | None, stack: ExitStack) -> Store | None:
    """The store, read only. None when nobody named a store and nothing was measured yet: a list is then empty."""
    from edgebench.store import ENVIRONMENT, NoStoreYetError, Store

    try:
        return stack.enter_context(Store.open(where, read_only=True))
    except NoStoreYetError:
        if where or os.environ.get(ENVIRONMENT):
            raise
        return None


def _latest(store: Store) -> str:
    latest = store.latest_session()
    if latest is None:
        raise UsageError(f"The result store {store.shown} has no sessions.", "run `edgebench profile` first.")
    return latest.session_id


def _echo_json(document: Any) -> None:
    import msgspec

    click.echo(msgspec.json.format(msgspec.json.encode(document), indent=2))
