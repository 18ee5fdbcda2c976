"""The result store: append-only, durable, and readable by every later version.

Contract:

* What was acknowledged stays. One transaction per run, SQLite in WAL mode with ``synchronous=FULL``, so a power cut
  after `Store.record` returned cannot lose the run (https://sqlite.org/pragma.html#pragma_synchronous).
* Nothing is changed or removed. SQLite triggers refuse UPDATE, DELETE and REPLACE; a second, different record under
  the same id is an error. Each record carries the sha256 of its bytes, which is checked whenever it is read.
* A risky step is announced before it starts: an announcement without a run is the evidence of a crash or power cut.
* Rows are ordered by ``seq``, the order of arrival, never by wall-clock time: boards without a real-time clock start
  in the past.
* Two versions exist. ``STORE_VERSION`` numbers the tables and `MIGRATIONS` upgrades them in place; ``records.SCHEMA``
  numbers the records, which stay as they were written and are upgraded on reading (`upgrade_record`).

Everything but the part marked *SQLite only* is portable SQL, so that a PostgreSQL URL needs the same tables.
"""

from __future__ import annotations

from edgebench.store.encoding import decode_run, encode_run, upgrade_record
from edgebench.store.opening import ENVIRONMENT, NoStoreYetError, locate
from edgebench.store.rows import Announcement, Session, SessionRow
from edgebench.store.store import Store
from edgebench.store.tables import STORE_VERSION

__all__ = [
    "ENVIRONMENT",
    "STORE_VERSION",
    "Announcement",
    "NoStoreYetError",
    "Session",
    "SessionRow",
    "Store",
    "decode_run",
    "encode_run",
    "locate",
    "upgrade_record",
]
