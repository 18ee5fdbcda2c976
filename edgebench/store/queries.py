"""Rows to structs and back: the questions that `Store` asks."""

from __future__ import annotations

from typing import Any

import msgspec
import sqlalchemy as sa

from edgebench.errors import StoreError, UnknownNameError, UsageError
from edgebench.records import SCHEMA, Run
from edgebench.specs import Plan
from edgebench.store import tables
from edgebench.store.encoding import PLAN_UPGRADES, sha256, upgrade_record
from edgebench.store.rows import Session, SessionRow


def columns(run: Run) -> dict[str, str | int]:
    """What queries need to know without opening the record."""
    artifact = run.trial.artifact
    return {
        "run_id": run.run_id,
        "session_id": run.session_id,
        "trial_id": run.trial.trial_id,
        "round": run.round,
        "purpose": run.purpose,
        "outcome": run.outcome,
        "model": artifact.model,
        "precision": artifact.precision,
        "runtime": run.trial.runtime,
        "artifact_sha256": artifact.sha256,
        "device_profile": run.provenance.device_profile,
        "started_utc": run.provenance.utc,
        "schema": run.schema,
    }


def unrecorded(session_id: str) -> sa.Select[Any]:
    """Announcements of a session that no run followed."""
    recorded = sa.select(tables.runs.c.run_id).where(tables.runs.c.session_id == session_id)
    return sa.select(tables.announcements).where(
        tables.announcements.c.session_id == session_id, tables.announcements.c.run_id.not_in(recorded)
    )


def session_columns(session: Session) -> dict[str, str | int]:
    """The row of a session."""
    command = msgspec.json.encode(session.command).decode()
    plan = msgspec.json.encode(session.plan).decode()
    return {
        "session_id": session.session_id,
        "created_utc": session.created_utc,
        "command": command,
        "plan": plan,
        "device_profile": session.device_profile,
        "edgebench": session.edgebench,
        "schema": SCHEMA,
        "digest": session_digest(command, plan),
    }


def session_digest(command: str, plan: str) -> str:
    """sha256 over what a resumed session relies on."""
    return sha256(f"{command}\n{plan}".encode())


def session(connection: sa.Connection, session_id: str, shown: str) -> Session:
    """The session with exactly this id.

    Raises:
        StoreError: its plan cannot be read.
    """
    row = connection.execute(sa.select(tables.sessions).where(tables.sessions.c.session_id == session_id)).one()
    if session_digest(row.command, row.plan) != row.digest:
        raise _unreadable(session_id, shown, "it does not match its sha256")
    try:
        plan = upgrade_record(msgspec.json.decode(row.plan, type=dict[str, Any]), row.schema, PLAN_UPGRADES)
        return Session(
            session_id=row.session_id,
            created_utc=row.created_utc,
            command=msgspec.json.decode(row.command, type=tuple[str, ...]),
            plan=msgspec.convert(plan, type=Plan),
            device_profile=row.device_profile,
            edgebench=row.edgebench,
        )
    except msgspec.DecodeError as error:
        raise _unreadable(session_id, shown, error) from error


def session_row(connection: sa.Connection, row: Any, shown: str) -> SessionRow:
    """A row of ``sessions`` with what became of it.

    Raises:
        StoreError: its command cannot be read.
    """
    session_id = row.session_id
    outcome = tables.runs.c.outcome
    counts = sa.select(outcome, sa.func.count()).where(tables.runs.c.session_id == session_id).group_by(outcome)
    ends = sa.select(tables.ends).where(tables.ends.c.session_id == session_id).order_by(tables.ends.c.seq.desc())
    end = connection.execute(ends.limit(1)).first()
    try:
        command = msgspec.json.decode(row.command, type=tuple[str, ...])
    except msgspec.DecodeError as error:
        raise _unreadable(session_id, shown, error) from error
    return SessionRow(
        session_id=session_id,
        created_utc=row.created_utc,
        command=command,
        device_profile=row.device_profile,
        edgebench=row.edgebench,
        outcomes={name: n for name, n in connection.execute(counts.order_by(outcome))},  # noqa: C416 - rows, not pairs
        unrecorded=connection.scalar(unrecorded(session_id).with_only_columns(sa.func.count())) or 0,
        ended_utc=end.ended_utc if end else None,
        exit_code=end.exit_code if end else None,
    )


def _unreadable(session_id: str, shown: str, error: msgspec.DecodeError | str) -> StoreError:
    return StoreError(
        f"Session {session_id} in the result store {shown} cannot be read: {error}.",
        "restore the file from a copy, or choose another with --store.",
    )


def resolve(connection: sa.Connection, column: sa.ColumnElement[str], kind: str, id_or_prefix: str) -> str:
    """The one id that is, or starts with, this text."""
    if connection.scalar(sa.select(column).where(column == id_or_prefix)) is not None:
        return id_or_prefix
    starts = sa.func.substr(column, 1, len(id_or_prefix)) == id_or_prefix
    found = list(connection.scalars(sa.select(column).where(starts).limit(4))) if id_or_prefix else []
    if not found:
        newest = connection.scalars(sa.select(column).order_by(sa.desc(sa.literal_column("seq"))).limit(4))
        raise UnknownNameError(kind, id_or_prefix, newest, hint="see `edgebench runs list`")
    if len(found) > 1:
        raise UsageError(
            f"Several {kind}s start with {id_or_prefix!r}: {', '.join(sorted(found)[:3])}"
            f"{', ...' if len(found) > 3 else ''}.",
            "give more of the id.",
        )
    return found[0]
