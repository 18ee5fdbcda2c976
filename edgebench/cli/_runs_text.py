"""Runs and sessions as text for a terminal of 80 columns. All numbers go through ``units``."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

import msgspec
from rich.console import Console
from rich.table import Table

from edgebench.records import Block, Fact, MemoryUse, Run, WindowEnergy
from edgebench.report.energy import estimate_text
from edgebench.stats import median, quantile
from edgebench.store import Announcement, Session, SessionRow
from edgebench.units import format_bytes_mib, format_joules, format_rate, format_seconds

Figures = dict[str, str | int | float | None]


class RunSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a list of runs."""

    run_id: str
    session_id: str
    trial_id: str
    model: str
    precision: str
    runtime: str
    round: int
    purpose: str
    outcome: str
    started_utc: str
    tokens_per_s: dict[str, float]
    """Median over the blocks of this run, by workload."""
    findings: int


def summary(run: Run) -> RunSummary:
    """A run as one line."""
    workloads = dict.fromkeys(block.workload for block in run.blocks)
    return RunSummary(
        run_id=run.run_id,
        session_id=run.session_id,
        trial_id=run.trial.trial_id,
        model=run.trial.artifact.model,
        precision=run.trial.artifact.precision,
        runtime=run.trial.runtime,
        round=run.round,
        purpose=run.purpose,
        outcome=run.outcome,
        started_utc=run.provenance.utc,
        tokens_per_s={w: median([b.tokens_per_s for b in run.blocks if b.workload == w]) for w in workloads},
        findings=len(run.findings),
    )


def newest(runs: Iterable[Run], limit: int | None) -> list[RunSummary]:
    """The last ``limit`` runs as lines, newest first; raw samples are dropped as they stream by."""
    return list(deque(map(summary, runs), maxlen=limit))[::-1]


def block_figures(run: Run) -> list[Figures]:
    """Speed of every block. The gaps between tokens (ITL) are those of decode; None for prefill."""
    return [_figures(block) for block in run.blocks]


def _figures(block: Block) -> Figures:
    steps_s = [ns / 1e9 for ns in block.step_ns] if block.workload.startswith("tg") else []
    gaps = {f"itl_p{p}_s": quantile(steps_s, p / 100) if steps_s else None for p in (50, 95, 99)}
    return {
        "workload": block.workload,
        "index": block.index,
        "tokens": block.tokens,
        "seconds": block.seconds,
        "tokens_per_s": block.tokens_per_s,
        "ttft_s": None if block.ttft_ns is None else block.ttft_ns / 1e9,
        **gaps,
    }


# --- lists ------------------------------------------------------------------------------------------------------------


def print_sessions(sessions: Sequence[SessionRow]) -> None:
    """A table of sessions."""
    if not sessions:
        plain_console().print("No sessions yet. Next: run `edgebench profile`.")
        return
    table = _table("session", "created (UTC)", "device", "runs", "state")
    for row in sessions:
        counts = [f"{n} {outcome}" for outcome, n in row.outcomes.items()]
        counts += [f"{row.unrecorded} lost"] if row.unrecorded else []
        table.add_row(
            row.session_id, _moment(row.created_utc), row.device_profile, ", ".join(counts) or "none", _state(row)
        )
    plain_console().print(table)


def _state(row: SessionRow) -> str:
    return "not finished" if row.exit_code is None else f"exit {row.exit_code}"


def print_runs(runs: Sequence[RunSummary], when_none: str) -> None:
    """A table of runs, or a sentence when there are none."""
    if not runs:
        plain_console().print(when_none)
        return
    table = _table("run", "model", "precision", "runtime", "outcome", "tokens/s")
    for run in runs:
        speeds = [f"{workload} {format_rate(rate)}" for workload, rate in run.tokens_per_s.items()]
        table.add_row(run.run_id, run.model, run.precision, run.runtime, run.outcome, ", ".join(speeds) or "-")
    plain_console().print(table)


# --- a session --------------------------------------------------------------------------------------------------------


def print_session(
    session: Session, row: SessionRow, runs: Sequence[RunSummary], unrecorded: Sequence[Announcement]
) -> None:
    """A session: what was asked, what was planned, its runs, and the runs that left no record."""
    console, protocol = plain_console(), session.plan.protocol
    console.print(f"session {session.session_id}: {_state(row)}")
    trials = len(session.plan.trials)
    rounds = f"{protocol.min_rounds} to {protocol.max_rounds} rounds"
    console.print(
        _pairs(
            ("created", f"{session.created_utc} on {session.device_profile}, edgebench {session.edgebench}"),
            ("ended", row.ended_utc or "no"),
            ("command", " ".join(session.command)),
            ("plan", f"{trials} trial{'' if trials == 1 else 's'}, {rounds}, {format_seconds(protocol.budget_s)}"),
        )
    )
    console.print()
    print_runs(runs, "No run was recorded.")
    for lost in unrecorded:
        console.print(
            f"run {lost.run_id} (round {lost.round}) was announced {lost.announced_utc} and left no record: "
            "it is running now, or the machine or the process went down."
        )


# --- a run ------------------------------------------------------------------------------------------------------------


def print_run(run: Run) -> None:
    """Everything about a run but its raw samples."""
    console = plain_console()
    artifact = run.trial.artifact
    console.print(f"run {run.run_id}: {run.outcome}")
    console.print(
        _pairs(
            ("session", f"{run.session_id}, trial {run.trial.trial_id}, round {run.round}, {run.purpose}"),
            ("model", f"{artifact.model} {artifact.label} ({artifact.format})"),
            ("artifact", f"{format_bytes_mib(artifact.bytes)} MiB, sha256 {artifact.sha256[:16]}"),
            ("runtime", f"{run.trial.runtime}, {_fact(run.provenance.runtime_version)}"),
            ("settings", _settings(run)),
            ("took", format_seconds((run.ended_ns - run.started_ns) / 1e9)),
            *((("loaded", f"in {format_seconds(run.loaded.load_s)}: {run.loaded.description}"),) if run.loaded else ()),
            *((("placement", run.loaded.placement),) if run.loaded and run.loaded.placement else ()),
        )
    )
    if run.failure:
        console.print(f"\nFailed in {run.failure.phase} ({run.failure.kind}): {_plain(run.failure.says)}")
        console.print(f"Next: {_plain(run.failure.next_step)}")
        if run.failure.log_tail:
            console.print(_plain(run.failure.log_tail.rstrip()))
    if run.blocks:
        console.print("\nSpeed (ITL: time from token to token)")
        console.print(_block_table(run))
    console.print("\nMemory, MiB")
    for part in _memory(run):
        console.print(part)
    console.print("\nEnergy")
    console.print(_pairs(*_energy(run)))
    console.print("\nFindings" if run.findings else "\nFindings: none")
    console.print(_pairs(*((f.severity, f"{f.kind}: {f.says} {f.remedy}") for f in run.findings)))
    console.print("\nProvenance")
    console.print(_provenance(run))


def _settings(run: Run) -> str:
    """What the runtime obeyed; all of the trial's settings where the record does not tell."""
    settings = run.trial.settings
    obeyed = run.loaded.settings if run.loaded else ()
    parts = (
        ("device", settings.device),
        ("threads", f"{settings.threads} threads (prefill {settings.threads_batch})"),
        ("batch", f"batch {settings.batch}"),
        ("ubatch", f"microbatch {settings.ubatch}"),
        ("kv_type", f"KV {settings.kv_type}"),
        ("flash_attention", f"flash attention {settings.flash_attention}"),
        ("mmap", "mmap" if settings.mmap else "no mmap"),
        ("cpus", "CPUs " + ",".join(map(str, settings.cpus)) if settings.cpus else ""),
        ("spinning", {True: "spinning", False: "no spinning", None: ""}[settings.spinning]),
        ("arena", {True: "arena", False: "no arena", None: ""}[settings.arena]),
        ("pin", "pinned" if settings.pin else ""),
    )
    return ", ".join(text for name, text in parts if text and (not obeyed or name in obeyed))


def _block_table(run: Run) -> Table:
    table = _table("workload", "block", "tokens/s", "time", "first token", "ITL p50", "p95", "p99", first_right=1)
    for f in block_figures(run):
        times = (f["seconds"], f["ttft_s"], f["itl_p50_s"], f["itl_p95_s"], f["itl_p99_s"])
        table.add_row(
            str(f["workload"]),
            str(f["index"]),
            format_rate(float(f["tokens_per_s"] or 0)),
            *("-" if t is None else format_seconds(float(t)) for t in times),
        )
    return table


def _memory(run: Run) -> list[Table]:
    """The phases and peaks, then the engine's own account; a number that the kernel did not tell is ``?``."""
    memory = run.memory
    table = _table("", "rss peak", "anon", "file", "swap", "pss", first_right=1)
    for phase in memory.phases:
        numbers = (phase.rss_peak, phase.anon, phase.file, phase.swap, phase.pss)
        table.add_row(f"  {phase.phase}", *map(_mib, numbers))
    peaks = (memory.anon_peak, memory.file_peak, memory.swap_peak)
    if any(peak is not None for peak in peaks):
        table.add_row("  peak of the run", "", *map(_mib, peaks), "")
    pairs = [("machine", f"used {_mib(memory.system_used_peak)} more at its peak; {_cgroup(memory)}")]
    if memory.engine:
        engine = memory.engine
        weights = "".join(f"{name} {format_bytes_mib(n)}, " for name, n in engine.weights.items())
        rest = (
            ("growing KV" if engine.kv_growing else "KV", engine.kv),
            ("compute", engine.compute),
            ("output", engine.output),
        )
        pairs.append(("engine", weights + ", ".join(f"{name} {format_bytes_mib(n)}" for name, n in rest)))
    tables = [table, _pairs(*pairs)]
    return tables if table.row_count or memory.engine else [_pairs(("", "nothing was read"))]


def _cgroup(memory: MemoryUse) -> str:
    if memory.cgroup_peak is None:
        return f"cgroup peak unknown ({memory.cgroup_note or 'not read'})"
    return f"cgroup peak {format_bytes_mib(memory.cgroup_peak)}"


def _mib(n: int | None) -> str:
    return "?" if n is None else format_bytes_mib(n)


def _energy(run: Run) -> list[tuple[str, str]]:
    energy = run.energy
    if energy.energy_j is None:
        pairs = [("measured", f"no: {energy.reason}"), *(("", text) for text in energy.absent)]
    else:
        doubt = "" if energy.uncertainty_j is None else f" (uncertain by {format_rate(energy.uncertainty_j)} J)"
        net = "" if energy.net_j is None else f", {format_rate(energy.net_j)} J above idle"
        scope = (energy.scope or "scope unknown").replace("_", " ")
        pairs = [("measured", f"{format_rate(energy.energy_j)} J{doubt}{net}, by {energy.source} ({scope})")]
    pairs += [(window.name, _window(window)) for window in energy.windows]
    for name, joules in energy.j_per_token.items():
        doubt = f" ±{format_joules(energy.tokens[name].uncertainty_j)}" if name in energy.tokens else ""
        pairs.append((name, f"{format_rate(joules)}{doubt} J/token"))
    slopes = {name: token for name, token in energy.tokens.items() if name not in energy.j_per_token}
    for name, token in slopes.items():
        pairs.append((name, f"{format_joules(token.j)} ±{format_joules(token.uncertainty_j)} J/token, {token.how}"))
    pairs += [("also", f"{format_rate(joules)} J by {name}") for name, joules in energy.others_j.items()]
    estimate = estimate_text(energy)
    return [*pairs, *([("estimated", estimate)] if estimate else [])]


def _window(window: WindowEnergy) -> str:
    flags = f"; {', '.join(window.flags)}" if window.flags else ""
    return (
        f"{format_rate(window.gross_j)} ±{format_rate(window.uncertainty_j)} J in {format_seconds(window.seconds)}, "
        f"mean {format_rate(window.mean_w)} W, peak {format_rate(window.peak_w)} W, {window.n_updates} updates{flags}"
    )


def _provenance(run: Run) -> Table:
    where = run.provenance
    memory = where.memory_bytes.value
    return _pairs(
        ("started", where.utc),
        ("device", where.device or where.device_profile),
        ("machine", f"{_fact(where.cpu_model)}, {where.machine}, {where.logical_cpus} CPUs"),
        ("memory", f"{format_bytes_mib(memory)} MiB" if isinstance(memory, int | float) else _fact(where.memory_bytes)),
        ("kernel", f"{_fact(where.kernel)}; governor {_fact(where.governor)}"),
        ("virtual", f"{_fact(where.virtualization)}; container: {_fact(where.container)}"),
        ("build", _fact(where.runtime_build)),
        ("software", f"edgebench {where.edgebench}, Python {where.python}"),
        ("command", " ".join(where.command)),
        (
            "environment",
            " ".join(f"{key}={value}" for key, value in where.environment.items()) or "nothing that matters",
        ),
    )


def _fact(fact: Fact) -> str:
    return f"unknown ({fact.unknown_because})" if fact.value is None else str(fact.value)


# --- rich -------------------------------------------------------------------------------------------------------------


def plain_console() -> Console:
    """Plain text: what a model or driver is called is never markup."""
    return Console(markup=False, highlight=False, emoji=False)


def _table(*heads: str, first_right: int | None = None) -> Table:
    """A table without lines; the first column holds ids, and columns from ``first_right`` on hold numbers."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, head in enumerate(heads):
        numeric = first_right is not None and i >= first_right
        table.add_column(head, justify="right" if numeric else "left", overflow="fold", no_wrap=numeric or i == 0)
    return table


def _pairs(*pairs: tuple[str, str]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in pairs:
        table.add_row(f"  {name}", _plain(value))
    return table


def _moment(utc: str) -> str:
    """``2026-11-23 10:15`` from an ISO 8601 time."""
    return utc.replace("T", " ")[:16]


def _plain(text: str) -> str:
    """Text from other programs without control characters: an escape sequence must not reach the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)
