"""What only SQLite needs: durable settings, append-only triggers, its health check and its complaints."""

from __future__ import annotations

import os
import sqlite3
import time
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import exc

from edgebench.errors import StoreError

BUSY_TIMEOUT_S = 30.0
QUICK_CHECK_LIMIT_BYTES = 64 * 2**20
"""Larger files are not read whole at each opening (an SD card reads ~40 MB/s); `Store.verify` always does."""

_TROUBLES = (
    ("not a database", "is not a database", "move the file away, or choose another with --store."),
    ("malformed", "is damaged", "move the file away, or choose another with --store."),
    ("readonly database", "is read-only", "make the file and its folder writable, or choose another with --store."),
    (
        "unable to open",
        "cannot be opened",
        "check that its folder exists and is writable, or choose another with --store.",
    ),
    ("disk is full", "cannot grow: the disk is full", "free some space, or choose another disk with --store."),
    (
        "disk I/O error",
        "cannot be read or written: the disk is full or failing",
        "free some space, check the disk (dmesg), or choose another with --store.",
    ),
    ("database is locked", "is locked by another process", "wait until that process is done, then try again."),
)
"""(part of SQLite's message, what it means, next step). Messages, because Python 3.10 hides SQLite's error codes."""


def trouble(shown: str, error: exc.DBAPIError) -> StoreError:
    """SQLite's complaint as an error with a next step."""
    message = str(error.orig)
    for part, meaning, next_step in _TROUBLES:
        if part in message:
            return StoreError(f"The result store {shown} {meaning} ({message}).", next_step)
    return StoreError(f"The result store {shown} refused: {message}.", "choose another store with --store.")


def append_only(table: sa.Table) -> list[str]:
    """Triggers that refuse UPDATE, DELETE, and the deletion hidden in INSERT OR REPLACE."""
    refuse = f"BEGIN SELECT RAISE(ABORT, '{table.name}: the store is append-only'); END"
    statements = [
        f"CREATE TRIGGER {table.name}_no_{verb.lower()} BEFORE {verb} ON {table.name} {refuse}"
        for verb in ("UPDATE", "DELETE")
    ]
    keys = ["seq", *(c.name for c in table.columns if c.unique)]
    taken = " OR ".join(f"{key} = NEW.{key}" for key in keys)
    statements.append(
        f"CREATE TRIGGER {table.name}_no_replace BEFORE INSERT ON {table.name} "  # noqa: S608 - names of our own tables
        f"WHEN EXISTS (SELECT 1 FROM {table.name} WHERE {taken}) {refuse}"
    )
    return statements


def _connect(path: Path, *, read_only: bool) -> sqlite3.Connection:
    """A connection whose transactions are begun by us (``isolation_level=None``)."""
    mode, promise = _access(path) if read_only else ("rwc", "")
    connection = sqlite3.connect(
        f"{path.as_uri()}?mode={mode}{promise}",
        uri=True,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA fullfsync = ON")  # macOS: through the drive's own cache; no effect elsewhere
        if read_only:
            connection.execute("PRAGMA query_only = ON")
        else:
            _use_wal(connection)
    except BaseException:  # also UnicodeDecodeError: a damaged file is quoted in bytes that are no text
        connection.close()
        raise
    return connection


def _access(path: Path) -> tuple[str, str]:
    """How a reader opens the file: (mode, further promise).

    A reader that may write tidies up the log of a killed writer when it closes; ``query_only`` keeps it from writing
    rows. In a folder that cannot be written, a WAL database can be read only as ``immutable``, which is safe when no
    log is pending (https://sqlite.org/wal.html#read_only_databases).
    """
    if os.access(path.parent, os.W_OK):
        return ("rw" if os.access(path, os.W_OK) else "ro"), ""
    log = Path(f"{path}-wal")
    pending = log.exists() and log.stat().st_size > 0
    return "ro", "" if pending else "&immutable=1"


def _use_wal(connection: sqlite3.Connection) -> None:
    """Switch the file to WAL once. SQLite does not wait for a lock here, so two first openings need a retry.

    A filesystem without shared memory keeps its rollback journal, which is as durable, only slower.
    """
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:  # noqa: PERF203 - the retry is the point
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)
        else:
            return


def engine(path: Path, *, read_only: bool) -> sa.Engine:
    """An engine over one file; creates the folder when the store may be created."""
    if path.is_dir():
        raise StoreError(f"The result store {path} is a folder.", "give a file with --store.")
    if not read_only:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"The folder {path.parent} of the result store cannot be made: {error.strerror}.",
                "make it, or choose another place with --store.",
            ) from error
    made = sa.create_engine("sqlite://", poolclass=sa.QueuePool, creator=lambda: _connect(path, read_only=read_only))

    @sa.event.listens_for(made, "begin")
    def begin(connection: sa.Connection) -> None:
        """Take the write lock at the start: a transaction that upgrades its lock later can fail instead of waiting."""
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return made


def complaints(connection: sa.Connection, path: Path, *, whole: bool) -> list[str]:
    """SQLite's own complaints about the file; empty when it is sound."""
    size = path.stat().st_size
    if not whole and size > QUICK_CHECK_LIMIT_BYTES:
        return []
    pragma = "PRAGMA integrity_check" if whole else "PRAGMA quick_check(1)"
    return [str(row[0]) for row in connection.exec_driver_sql(pragma) if row[0] != "ok"]
