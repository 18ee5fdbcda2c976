"""The store itself: what may be written, and what may be read. How rows become structs is in ``queries``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import sqlalchemy as sa
from sqlalchemy import exc

from edgebench.errors import StoreError
from edgebench.records import Run
from edgebench.store import queries, sqlite, tables
from edgebench.store.encoding import decode_run, encode_run, sha256
from edgebench.store.opening import NoStoreYetError, connect, locate, shown
from edgebench.store.rows import Announcement, Session, SessionRow

_PAGE = 16
"""Runs fetched at once. A run with a minute of 10 Hz samples is about 1 MB, and a board may have 2 GB."""


class Store:
    """An open result store. Use `Store.open`, as a context manager."""

    def __init__(self, engine: sa.Engine, shown: str) -> None:
        self._engine, self.shown = engine, shown

    @classmethod
    def open(cls, where: str | None = None, *, read_only: bool = False) -> Store:
        """Open the store, make it when it may be written, and upgrade its tables.

        An old store is upgraded even for reading, because readers know one layout only; its records stay as they are.

        Args:
            where: a path or URL; see `locate`.
            read_only: refuse to create and to write.

        Raises:
            NoStoreYetError: nothing to read there.
            StoreError: damaged, not a store, made by a newer version, or not accessible.
            UsageError: ``where`` is no path and no known URL.
        """
        url = locate(where)
        store = cls(connect(url, read_only=read_only), shown(url))
        try:
            version = store.version()
            if version != tables.STORE_VERSION and not read_only:
                store.upgrade()
        except BaseException:
            store.close()
            raise
        if version == tables.STORE_VERSION or not read_only:
            return store
        store.close()
        if version is None:
            raise NoStoreYetError(f"The result store {store.shown} is empty.", "run `edgebench profile` first.")
        cls.open(where).close()
        return cls.open(where, read_only=True)

    def close(self) -> None:
        """Close every connection. Twice is fine."""
        self._engine.dispose()

    def __enter__(self) -> Store:  # noqa: PYI034 - typing.Self needs Python 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- transactions

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with self._complaining(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def _writing(self, what: str) -> Iterator[sa.Connection]:
        """One durable transaction; ``what`` is named when a constraint refuses it."""
        try:
            with (
                self._complaining(),
                self._engine.connect().execution_options(writes=True) as connection,
                connection.begin(),
            ):
                yield connection
        except exc.IntegrityError as error:
            raise StoreError(
                f"The result store {self.shown} refused {what}: {error.orig}.",
                "report this: ids must be new, and a session must be begun before its runs.",
            ) from error

    @contextmanager
    def _complaining(self) -> Iterator[None]:
        """Complaints of the database as errors with a next step."""
        try:
            yield
        except exc.IntegrityError:
            raise
        except exc.DBAPIError as error:
            raise sqlite.trouble(self.shown, error) from error
        except UnicodeDecodeError as error:  # SQLite quotes the damaged bytes, and Python cannot read the complaint
            raise StoreError(
                f"The result store {self.shown} is damaged ({error}).",
                "move the file away, or choose another with --store.",
            ) from error

    # --- versions

    def version(self) -> int | None:
        """The version of the tables; None when there are none yet.

        Raises:
            StoreError: damaged, not a store of edgebench, or made by a newer version.
        """
        with self._reading() as connection:
            found = self._complaints(connection, whole=False)
            if found:
                raise StoreError(
                    f"The result store {self.shown} is damaged ({found[0]}).",
                    "move the file away, or choose another with --store.",
                )
            return tables.version_of(connection, self.shown)

    def upgrade(self) -> None:
        """Make the tables or bring old ones to the current version, in one transaction."""
        with self._writing("its new tables") as connection:
            tables.bring_up_to_date(connection, self.shown)

    def _complaints(self, connection: sa.Connection, *, whole: bool) -> list[str]:
        """What the database itself says is wrong with the file; only SQLite needs to be asked."""
        if self._engine.dialect.name != "sqlite":
            return []
        return sqlite.complaints(connection, Path(self.shown), whole=whole)

    # --- writing

    def begin_session(self, session: Session) -> None:
        """Store a session before it measures anything.

        Raises:
            StoreError: when its id is taken.
        """
        with self._writing(f"session {session.session_id}") as connection:
            connection.execute(sa.insert(tables.sessions).values(**queries.session_columns(session)))

    def end_session(self, session_id: str, exit_code: int, ended_utc: str) -> None:
        """Store that a session came to its end. A resumed session may end again; the last end counts.

        Raises:
            StoreError: when there is no such session.
        """
        with self._writing(f"the end of session {session_id}") as connection:
            connection.execute(
                sa.insert(tables.ends).values(session_id=session_id, exit_code=exit_code, ended_utc=ended_utc)
            )

    def announce(self, run_id: str, session_id: str, trial_id: str, round_: int, purpose: str, utc: str) -> None:
        """Store that a run is about to start, so that a power cut leaves evidence.

        Raises:
            StoreError: when there is no such session, or the id is taken.
        """
        with self._writing(f"the announcement of run {run_id}") as connection:
            connection.execute(
                sa.insert(tables.announcements).values(
                    run_id=run_id,
                    session_id=session_id,
                    trial_id=trial_id,
                    round=round_,
                    purpose=purpose,
                    announced_utc=utc,
                )
            )

    def record(self, run: Run) -> None:
        """Store a run durably. The same run a second time is fine.

        Raises:
            StoreError: a different record has this id, the session is unknown, or the disk refuses.
        """
        data = encode_run(run)
        digest = sha256(data)
        with self._writing(f"run {run.run_id}") as connection:
            stored = connection.scalar(sa.select(tables.runs.c.digest).where(tables.runs.c.run_id == run.run_id))
            if stored == digest:
                return
            if stored is not None:
                raise StoreError(
                    f"The result store {self.shown} already holds a different run {run.run_id} (sha256 {stored[:12]}).",
                    "report this: a run is never changed once stored.",
                )
            connection.execute(
                sa.insert(tables.runs).values(digest=digest, record=data.decode(), **queries.columns(run))
            )

    # --- reading sessions

    def session(self, id_or_prefix: str) -> Session:
        """The session with this id, or the only one whose id starts so.

        Raises:
            UnknownNameError: no such session.
            UsageError: several sessions start so.
        """
        with self._reading() as connection:
            session_id = queries.resolve(connection, tables.sessions.c.session_id, "session", id_or_prefix)
            return queries.session(connection, session_id, self.shown)

    def sessions(self, limit: int | None = None) -> list[SessionRow]:
        """Sessions, newest first."""
        with self._reading() as connection:
            rows = connection.execute(
                sa.select(tables.sessions).order_by(tables.sessions.c.seq.desc()).limit(limit)
            ).all()
            return [queries.session_row(connection, row, self.shown) for row in rows]

    def overview(self, id_or_prefix: str) -> SessionRow:
        """What became of a session, found as in `session`.

        Raises:
            UnknownNameError: no such session.
            UsageError: several sessions start so.
        """
        with self._reading() as connection:
            column = tables.sessions.c.session_id
            session_id = queries.resolve(connection, column, "session", id_or_prefix)
            row = connection.execute(sa.select(tables.sessions).where(column == session_id)).one()
            return queries.session_row(connection, row, self.shown)

    def latest_session(self) -> Session | None:
        """The newest session, or None when there is none."""
        return self._latest(sa.true())

    def latest_unfinished_session(self) -> Session | None:
        """The newest session that has not come to its end, or None."""
        return self._latest(tables.sessions.c.session_id.not_in(sa.select(tables.ends.c.session_id)))

    def _latest(self, condition: sa.ColumnElement[bool]) -> Session | None:
        with self._reading() as connection:
            found = connection.scalar(
                sa.select(tables.sessions.c.session_id).where(condition).order_by(tables.sessions.c.seq.desc()).limit(1)
            )
            return None if found is None else queries.session(connection, found, self.shown)

    # --- reading runs

    def runs(
        self,
        *,
        session_id: str | None = None,
        trial_id: str | None = None,
        model: str | None = None,
        precision: str | None = None,
        runtime: str | None = None,
        outcome: str | None = None,
    ) -> Iterator[Run]:
        """Runs that match every given field, oldest first. Read in pages, so no transaction stays open.

        Raises:
            StoreError: a record does not match its digest, or is newer than this edgebench.
        """
        wanted = {
            "session_id": session_id,
            "trial_id": trial_id,
            "model": model,
            "precision": precision,
            "runtime": runtime,
            "outcome": outcome,
        }
        column = tables.runs.c
        query = sa.select(column.seq, column.run_id, column.schema, column.digest, column.record)
        query = query.where(*(column[name] == value for name, value in wanted.items() if value is not None))
        last = 0
        while True:
            with self._reading() as connection:
                page = connection.execute(query.where(column.seq > last).order_by(column.seq).limit(_PAGE)).all()
            if not page:
                return
            for row in page:
                yield self._decoded(row)
            last = page[-1].seq

    def run(self, id_or_prefix: str) -> Run:
        """The run with this id, or the only one whose id starts so.

        Raises:
            UnknownNameError: no such run.
            UsageError: several runs start so.
            StoreError: the record does not match its digest, or is newer than this edgebench.
        """
        with self._reading() as connection:
            run_id = queries.resolve(connection, tables.runs.c.run_id, "run", id_or_prefix)
            return self._decoded(connection.execute(sa.select(tables.runs).where(tables.runs.c.run_id == run_id)).one())

    def unrecorded(self, session_id: str) -> list[Announcement]:
        """Runs of a session that were announced and never recorded: a crash, a power cut, or one still running."""
        with self._reading() as connection:
            rows = (
                connection.execute(queries.unrecorded(session_id).order_by(tables.announcements.c.seq)).mappings().all()
            )
        return [Announcement(**{key: value for key, value in row.items() if key != "seq"}) for row in rows]

    def verify(self) -> list[str]:
        """Read everything; one sentence for each record that is not what was stored. Empty when all is sound."""
        problems: list[str] = []
        with self._reading() as connection:
            problems += [f"file: {complaint}" for complaint in self._complaints(connection, whole=True)]
            for row in connection.execute(sa.select(tables.sessions).order_by(tables.sessions.c.seq)):
                if queries.session_digest(row.command, row.plan) != row.digest:
                    problems.append(f"session {row.session_id}: its plan or command is not what was stored")
            query = sa.select(tables.runs.c.run_id, tables.runs.c.digest, tables.runs.c.record).order_by(
                tables.runs.c.seq
            )
            for row in connection.execute(query.execution_options(yield_per=_PAGE)):
                found = sha256(row.record.encode())
                if found != row.digest:
                    problems.append(f"run {row.run_id}: sha256 is {found[:12]}, stored as {row.digest[:12]}")
        return problems

    def _decoded(self, row: Any) -> Run:
        data = row.record.encode()
        if sha256(data) != row.digest:
            raise StoreError(
                f"Run {row.run_id} in {self.shown} is damaged: it does not match its sha256 {row.digest[:12]}.",
                "restore the file from a copy, or choose another with --store.",
            )
        return decode_run(data, row.schema, f"Run {row.run_id} in {self.shown}")
