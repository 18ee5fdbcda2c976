"""Records as bytes: exact on the way out, upgraded on the way in.

A record stays as it was written for ever; what changes is the reader. ``records.SCHEMA`` numbers the records, and each
old schema has a step to the next one here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from edgebench.errors import StoreError
from edgebench.records import SCHEMA, Run

Upgrade = Callable[[dict[str, Any]], dict[str, Any]]
RUN_UPGRADES: Mapping[int, Upgrade] = {}
"""``RUN_UPGRADES[n]`` turns a run of SCHEMA n into one of SCHEMA n+1; it sees plain JSON values."""
PLAN_UPGRADES: Mapping[int, Upgrade] = {}
"""The same for the plan of a session."""


def upgrade_record(
    builtins: dict[str, Any],
    from_schema: int,
    upgrades: Mapping[int, Upgrade] | None = None,
    to_schema: int = SCHEMA,
    what: str = "The record",
) -> dict[str, Any]:
    """A record of an older SCHEMA as one of ``to_schema``, step by step.

    Raises:
        StoreError: when the record is newer than this edgebench, or a step is unknown.
    """
    if from_schema > to_schema:
        raise StoreError(
            f"{what} was made by a newer edgebench (record schema {from_schema} > {to_schema}).",
            "upgrade edgebench, or choose another store with --store.",
        )
    steps = RUN_UPGRADES if upgrades is None else upgrades
    for schema in range(from_schema, to_schema):
        if schema not in steps:
            raise StoreError(
                f"{what} has schema {schema}, which this edgebench cannot read.",
                "use an edgebench that can, or choose another store with --store.",
            )
        builtins = steps[schema](builtins)
    return builtins


def encode_run(run: Run) -> bytes:
    """The bytes of a record: JSON, keys of mappings sorted, so that equal runs have equal digests.

    Raises:
        StoreError: when the run would not be read back as it is (a NaN would come back as null).
    """
    try:
        data = msgspec.json.encode(run, order="deterministic")
        same = msgspec.json.decode(data, type=Run) == run
    except (msgspec.ValidationError, UnicodeEncodeError) as error:
        raise StoreError(
            f"Run {run.run_id} cannot be stored: {error}.", "report this: a sensor or runtime made an invalid value."
        ) from error
    if not same:
        raise StoreError(
            f"Run {run.run_id} cannot be stored: it holds a value that JSON cannot carry, such as NaN.",
            "report this: a sensor or runtime made an invalid value.",
        )
    return data


def decode_run(data: bytes, schema: int = SCHEMA, what: str = "The record") -> Run:
    """The run in these bytes, upgraded to the current SCHEMA.

    Args:
        data: JSON, as `encode_run` of this or an older version wrote it.
        schema: the SCHEMA it was written with.
        what: how errors name it.

    Raises:
        StoreError: when the bytes are not such a record, or a newer one.
    """
    try:
        if schema == SCHEMA:
            return msgspec.json.decode(data, type=Run)
        upgraded = upgrade_record(msgspec.json.decode(data, type=dict[str, Any]), schema, what=what)
        return msgspec.convert({**upgraded, "schema": SCHEMA}, type=Run)
    except msgspec.DecodeError as error:
        raise StoreError(
            f"{what} (schema {schema}) cannot be read: {error}.",
            "restore the file from a copy, or choose another with --store.",
        ) from error


def sha256(data: bytes) -> str:
    """sha256 of the bytes, in hex."""
    return hashlib.sha256(data).hexdigest()
