"""What the store hands out besides runs: sessions, rows of a list, announcements."""

from __future__ import annotations

from edgebench import __version__
from edgebench.records import Record
from edgebench.specs import Plan


class Session(Record, frozen=True, kw_only=True):
    """One invocation that measures, with everything it intends to do."""

    session_id: str
    created_utc: str
    command: tuple[str, ...]
    plan: Plan
    device_profile: str
    edgebench: str = __version__


class SessionRow(Record, frozen=True, kw_only=True):
    """A session in a list: what became of it, without its plan."""

    session_id: str
    created_utc: str
    command: tuple[str, ...]
    device_profile: str
    edgebench: str
    outcomes: dict[str, int]
    """Recorded runs by outcome; an outcome that did not happen is left out."""
    unrecorded: int
    """Runs that were announced and never recorded."""
    ended_utc: str | None
    """None while it runs, or when it was interrupted."""
    exit_code: int | None


class Announcement(Record, frozen=True, kw_only=True):
    """A run that was about to start."""

    run_id: str
    session_id: str
    trial_id: str
    round: int
    purpose: str
    announced_utc: str
