"""What an examination consists of: checks as data, so that a terminal, JSON and tests read the same thing."""

from __future__ import annotations

from typing import Literal

import msgspec

State = Literal["ok", "warn", "missing"]


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at.

    ``ok``: as it should be, or plain information. ``warn``: it works, but numbers suffer. ``missing``: not there.
    """

    name: str
    state: State
    says: str
    fix: str = ""
    """The exact next step; empty when there is nothing to do."""


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """Checks that belong together."""

    title: str
    checks: tuple[Check, ...]
