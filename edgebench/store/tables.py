"""The tables, their versions, and how an old layout becomes the current one.

Portable SQL only: a PostgreSQL store has the same tables. ``seq`` is the order of arrival.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import sqlalchemy as sa

from edgebench import __version__
from edgebench.errors import StoreError
from edgebench.store import sqlite

STORE_VERSION = 1


METADATA = sa.MetaData()

meta = sa.Table(
    "meta",
    METADATA,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)
sessions = sa.Table(
    "sessions",
    METADATA,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("session_id", sa.Text, nullable=False, unique=True),
    sa.Column("created_utc", sa.Text, nullable=False),
    sa.Column("command", sa.Text, nullable=False),
    sa.Column("plan", sa.Text, nullable=False),
    sa.Column("device_profile", sa.Text, nullable=False),
    sa.Column("edgebench", sa.Text, nullable=False),
    sa.Column("schema", sa.Integer, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
)
ends = sa.Table(
    "session_ends",
    METADATA,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("session_id", sa.Text, sa.ForeignKey("sessions.session_id"), nullable=False, index=True),
    sa.Column("ended_utc", sa.Text, nullable=False),
    sa.Column("exit_code", sa.Integer, nullable=False),
)
announcements = sa.Table(
    "announcements",
    METADATA,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("run_id", sa.Text, nullable=False, unique=True),
    sa.Column("session_id", sa.Text, sa.ForeignKey("sessions.session_id"), nullable=False, index=True),
    sa.Column("trial_id", sa.Text, nullable=False),
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("purpose", sa.Text, nullable=False),
    sa.Column("announced_utc", sa.Text, nullable=False),
)
runs = sa.Table(
    "runs",
    METADATA,
    sa.Column("seq", sa.Integer, primary_key=True),
    sa.Column("run_id", sa.Text, nullable=False, unique=True),
    sa.Column("session_id", sa.Text, sa.ForeignKey("sessions.session_id"), nullable=False, index=True),
    sa.Column("trial_id", sa.Text, nullable=False, index=True),
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("purpose", sa.Text, nullable=False),
    sa.Column("outcome", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("precision", sa.Text, nullable=False),
    sa.Column("runtime", sa.Text, nullable=False),
    sa.Column("artifact_sha256", sa.Text, nullable=False),
    sa.Column("device_profile", sa.Text, nullable=False),
    sa.Column("started_utc", sa.Text, nullable=False),
    sa.Column("schema", sa.Integer, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("record", sa.Text, nullable=False),
    sa.Index("ix_runs_model_precision_runtime", "model", "precision", "runtime"),
)

Migration = Callable[[sa.Connection], None]
MIGRATIONS: Mapping[int, Migration] = {}
"""``MIGRATIONS[n]`` turns the tables of version n-1 into version n. A new store starts at the newest version."""


def version_of(connection: sa.Connection, shown: str) -> int | None:
    """The version of the tables in this database; None when it is empty.

    Raises:
        StoreError: the database is something else, or was made by a newer version.
    """
    names = sa.inspect(connection).get_table_names()
    if not names:
        return None
    text = None
    if meta.name in names:
        text = connection.scalar(sa.select(meta.c.value).where(meta.c.key == "version"))
    if text is None or not text.isdecimal():
        raise StoreError(f"The database {shown} is not a result store of edgebench.", "choose another with --store.")
    if int(text) > STORE_VERSION:
        raise StoreError(
            f"The result store {shown} was made by a newer edgebench (schema {text} > {STORE_VERSION}).",
            "upgrade edgebench, or choose another with --store.",
        )
    return int(text)


def bring_up_to_date(connection: sa.Connection, shown: str) -> None:
    """Make the tables, or bring old ones to STORE_VERSION, inside the caller's transaction.

    Does nothing when another process was quicker.
    """
    version = version_of(connection, shown)
    if version is None:
        _create(connection)
        return
    for number in range(version + 1, STORE_VERSION + 1):
        MIGRATIONS[number](connection)
    connection.execute(sa.update(meta).where(meta.c.key == "version").values(value=str(STORE_VERSION)))


def _create(connection: sa.Connection) -> None:
    METADATA.create_all(connection)
    if connection.dialect.name == "sqlite":
        for table in (sessions, ends, announcements, runs):
            for statement in sqlite.append_only(table):
                connection.exec_driver_sql(statement)
    rows = {"version": str(STORE_VERSION), "made_by": f"edgebench {__version__}"}
    connection.execute(sa.insert(meta), [{"key": key, "value": value} for key, value in rows.items()])
