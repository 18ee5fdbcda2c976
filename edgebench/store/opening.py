"""Where the store lies, and the engine that opens it."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs
import sqlalchemy as sa
from sqlalchemy import exc

from edgebench.errors import MissingDependency, StoreError, UsageError
from edgebench.store import sqlite

ENVIRONMENT = "EDGEBENCH_STORE"


class NoStoreYetError(StoreError):
    """There is no file to read: nothing was measured yet, or the path is wrong."""


def locate(where: str | None = None) -> sa.URL:
    """``where``, else ``EDGEBENCH_STORE``, else ``results.db`` in the user's data folder. A path means a SQLite file.

    Raises:
        UsageError: when it is neither a path nor a URL of SQLite or PostgreSQL.
    """
    text = where or os.environ.get(ENVIRONMENT) or str(platformdirs.user_data_path("edgebench") / "results.db")
    if "://" not in text:
        return sa.URL.create("sqlite", database=str(Path(text).expanduser().absolute()))
    try:
        url = sa.make_url(text)
    except exc.ArgumentError as error:
        raise UsageError(f"{text!r} is not a database URL: {error}.", "give a path, or sqlite:///PATH.") from error
    if url.get_backend_name() not in {"sqlite", "postgresql"}:
        raise UsageError(f"No store can be kept in {url.get_backend_name()!r}.", "give a path, or sqlite:///PATH.")
    if url.get_backend_name() == "sqlite":
        if not url.database or url.database == ":memory:":
            raise UsageError(f"The store {text!r} names no file.", "give a path, or sqlite:///PATH.")
        return sa.URL.create("sqlite", database=str(Path(url.database).expanduser().absolute()))
    return url


def connect(url: sa.URL, *, read_only: bool) -> sa.Engine:
    """An engine for this place. A SQLite file and its folder are made when missing, unless only reading is asked for.

    Raises:
        NoStoreYetError: nothing to read there.
        StoreError: the folder cannot be made.
        MissingDependency: the driver of the database is not installed.
    """
    if url.get_backend_name() != "sqlite":
        try:
            return sa.create_engine(url)
        except ModuleNotFoundError as error:
            raise MissingDependency(
                f"The store {shown(url)} needs the package {error.name!r}.", "pip install 'psycopg[binary]'."
            ) from error
    path = Path(url.database or "")
    if read_only and not path.exists():
        raise NoStoreYetError(f"There is no result store at {path}.", "run `edgebench profile` first, or give --store.")
    return sqlite.engine(path, read_only=read_only)


def shown(url: sa.URL) -> str:
    """The place as errors name it: the path of a file, a URL without its password."""
    return str(url.database) if url.get_backend_name() == "sqlite" else url.render_as_string(hide_password=True)
