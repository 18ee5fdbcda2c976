"""Stored results as bytes for other programs. Streams: a store may be larger than the memory of the board."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from edgebench.cli._runs_text import Figures, block_figures
from edgebench.errors import HostError
from edgebench.records import SCHEMA, Run
from edgebench.store import Store

Cell = str | int | float | None

_SETTINGS = (
    *("device", "threads", "threads_batch", "batch", "ubatch", "kv_type", "flash_attention", "mmap"),
    *("spinning", "arena", "pin"),
)
_TOKEN_COLUMNS = ("j_per_token", "j_per_token_uncertainty", "net_j_per_token")
_FIGURES = ("workload", "index", "tokens", "seconds", "tokens_per_s", "ttft_s", "itl_p50_s", "itl_p95_s", "itl_p99_s")


def chunks(store: Store, session_id: str | None, form: str) -> Iterator[bytes]:
    """The export in pieces.

    Args:
        store: where from.
        session_id: only this session; None exports everything.
        form: ``json`` (one document), ``jsonl`` (one run per line) or ``csv`` (one row per block).
    """
    runs = store.runs(session_id=session_id)
    if form == "jsonl":
        for run in runs:
            yield msgspec.json.encode(run) + b"\n"
    elif form == "csv":
        yield from csv_lines(runs)
    else:
        yield from _document(store, session_id, runs)


def _document(store: Store, session_id: str | None, runs: Iterable[Run]) -> Iterator[bytes]:
    """``{"schema", "sessions", "runs"}``: sessions newest first, runs oldest first."""
    ids = [session_id] if session_id else [row.session_id for row in store.sessions()]
    yield b'{"schema":%d,"sessions":[' % SCHEMA
    for i, each in enumerate(ids):
        yield (b",\n" if i else b"\n") + msgspec.json.encode(store.session(each))
    yield b'\n],"runs":['
    for i, run in enumerate(runs):
        yield (b",\n" if i else b"\n") + msgspec.json.encode(run)
    yield b"\n]}\n"


# --- csv --------------------------------------------------------------------------------------------------------------


def csv_lines(runs: Iterable[Run]) -> Iterator[bytes]:
    """A head, then one row per block; a run without blocks has one row too."""
    yield _line([*_run_cells(None), *_FIGURES, *_TOKEN_COLUMNS])
    for run in runs:
        cells = list(_run_cells(run).values())
        # A run without blocks keeps its row: a table that drops the failures looks better than the machine is.
        for figures in block_figures(run) or [{}]:
            yield _line([*cells, *(figures.get(name) for name in _FIGURES), *_token_cells(run, figures)])


def _token_cells(run: Run, figures: Figures) -> list[Cell]:
    """Energy of a token of the row's workload, over all its blocks in this run."""
    token = run.energy.tokens.get(str(figures.get("workload")))
    return [None] * len(_TOKEN_COLUMNS) if token is None else [token.j, token.uncertainty_j, token.net_j]


def _line(cells: list[Cell]) -> bytes:
    """One CSV line; absent is empty. CSV has no way to write NUL: it becomes U+FFFD."""
    text = io.StringIO()
    plain = (cell.replace("\0", "\ufffd") if isinstance(cell, str) else cell for cell in cells)
    csv.writer(text, lineterminator="\n").writerow("" if cell is None else cell for cell in plain)
    return text.getvalue().encode()


def _run_cells(run: Run | None) -> dict[str, Cell]:
    """What a row says about the run; the names alone when ``run`` is None."""
    if run is None:
        return dict.fromkeys(_RUN_COLUMNS)
    artifact, where = run.trial.artifact, run.provenance
    settings = {f"settings_{name}": getattr(run.trial.settings, name) for name in _SETTINGS}
    findings = " ".join(sorted(f"{finding.kind}:{finding.severity}" for finding in run.findings))
    values = (
        *(run.session_id, run.run_id, run.trial.trial_id, run.round, run.purpose, run.outcome, where.utc),
        *(where.device_profile, where.machine, where.cpu_model.value),
        *(artifact.model, artifact.precision, artifact.variant or None, artifact.format, artifact.sha256),
        *(run.trial.runtime, where.runtime_version.value),
        *settings.values(),
        *(run.memory.anon_peak, run.memory.file_peak, run.memory.swap_peak),
        *(run.energy.energy_j, run.energy.scope, run.energy.source or None, findings),
        *(run.energy.uncertainty_j, run.energy.net_j, run.energy.mean_w, run.energy.peak_w),
        run.failure.kind if run.failure else None,
    )
    return dict(zip(_RUN_COLUMNS, values, strict=True))


_RUN_COLUMNS = (
    *("session_id", "run_id", "trial_id", "round", "purpose", "outcome", "started_utc"),
    *("device_profile", "machine", "cpu_model"),
    *("model", "precision", "variant", "format", "artifact_sha256"),
    *("runtime", "runtime_version"),
    *(f"settings_{name}" for name in _SETTINGS),
    *("run_anon_peak_bytes", "run_file_peak_bytes", "run_swap_peak_bytes"),
    *("run_energy_j", "run_energy_scope", "run_energy_source", "findings"),
    *("run_energy_uncertainty_j", "run_energy_net_j", "run_mean_w", "run_peak_w"),
    "failure",
)


# --- files and schema -------------------------------------------------------------------------------------------------


def write_whole(output: str, pieces: Iterable[bytes]) -> int:
    """Write a file so that readers see the old one or the whole new one; returns its size in bytes.

    A pipe or device cannot be replaced and is written directly.

    Raises:
        HostError: the file cannot be written.
    """
    named = Path(output)
    direct = named.exists() and not named.is_file() and not named.is_dir()
    path = named if direct else named.resolve()  # /dev/stdout leads to a pipe that has no path of its own
    part = path if direct else path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        try:
            with part.open("wb") as stream:
                size = sum(stream.write(piece) for piece in pieces)
                stream.flush()
                if not direct:
                    os.fsync(stream.fileno())
            if not direct:
                part.replace(path)
        finally:
            if not direct:
                part.unlink(missing_ok=True)
    except OSError as error:
        raise HostError(f"{output} cannot be written: {error.strerror}.", "choose another file with -o.") from error
    return size


def run_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of one exported run."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:edgebench:run:{SCHEMA}",
        "title": f"edgebench run, schema {SCHEMA}",
        "description": "One round of one trial, as `edgebench runs export` writes it. Times are CLOCK_MONOTONIC in ns, "
        "memory is in bytes, energy in joules.",
        **msgspec.json.schema(Run),
    }
