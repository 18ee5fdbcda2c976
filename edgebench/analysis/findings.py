"""Doubts about a trial as data: what happened during its runs, and what its rounds say together.

`run_findings` judges one run by its blocks and readings (``conditions`` its set-up, ``throttling`` what slowed it),
`trial_findings` the rounds of a trial, `merge_findings` joins what several rounds said. Where something could not be
read nothing is claimed. Limits: contention as in ``disturbance``; a clock below 90 % of that of the first block.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from edgebench import stats
from edgebench.analysis.conditions import condition_findings
from edgebench.analysis.disturbance import disturbed_blocks
from edgebench.analysis.throttling import throttle_findings
from edgebench.records import Block, Finding, Run, Series, Severity
from edgebench.specs import Protocol
from edgebench.units import format_half_width, format_percent, format_seconds

CLOCK_LIMIT = 0.9
DRIFT_LIMIT = 0.02
SPREAD_LIMIT = 0.10
_RANK = {"invalid": 0, "suspect": 1, "note": 2}


# --- one run ----------------------------------------------------------------------------------------------------------


def run_findings(run: Run) -> tuple[Finding, ...]:
    """Everything that one run gives reason to doubt, at most one finding per kind."""
    found = (
        _run_contention(run),
        _frequency_drift(run),
        *throttle_findings(run),
        _swapped_in(run),
        _major_faults(run),
        _sampler_lost(run),
        *condition_findings(run),
    )
    return tuple(finding for finding in found if finding is not None)


def _run_contention(run: Run) -> Finding | None:
    counts: dict[str, tuple[int, int, bool]] = {}
    disturbed = disturbed_blocks(run)
    for name in dict.fromkeys(block.workload for block in run.blocks):
        of = sum(block.workload == name for block in run.blocks)
        hit = sum(workload == name for workload, _ in disturbed)
        counts[name] = (hit, of, 2 * hit <= of)
    return contention_finding(counts, list(disturbed.values()))


def contention_finding(counts: Mapping[str, tuple[int, int, bool]], evidence: Sequence[str]) -> Finding | None:
    """The finding for blocks that others disturbed, or None when there are none.

    Args:
        counts: by workload: disturbed blocks, all blocks, and whether the clean ones suffice.
        evidence: what was seen, by block; the first is quoted.
    """
    disturbed = sum(hit for hit, _, _ in counts.values())
    if not disturbed:
        return None
    blocks = sum(of for _, of, _ in counts.values())
    short = [name for name, (_, _, enough) in counts.items() if not enough]
    quoted = f" (e.g. {evidence[0]})" if evidence else ""
    says = f"{disturbed} of {blocks} blocks shared the machine with something else{quoted}"
    if short:
        says += f"; too few clean blocks of {', '.join(short)} are left, so all of them were used."
    else:
        says += "; they were set aside."
    return Finding(
        kind="contention",
        severity="suspect" if short else "note",
        says=says,
        remedy="Stop what else runs (`top` shows it) and measure again; on a rented machine choose a quieter hour.",
        evidence={"blocks_disturbed": disturbed, "blocks": blocks},
    )


def _frequency_drift(run: Run) -> Finding | None:
    """Blocks of a workload against its first block; of several clock domains the fastest, which is the busy one."""
    clocks = [series for series in run.series if series.channel.name.startswith("cpufreq.")]
    first: dict[str, float] = {}
    worst: tuple[float, str, float, float] | None = None
    for block in sorted(run.blocks, key=lambda block: block.t0_ns):
        means = [mean for series in clocks if (mean := _mean_within(series, block)) is not None]
        if not means:
            continue
        clock = max(means)
        before = first.setdefault(block.workload, clock)
        if clock < CLOCK_LIMIT * before and (worst is None or clock / before < worst[0]):
            worst = (clock / before, block.workload, before, clock)
    if worst is None:
        return None
    share, workload, before, clock = worst
    return Finding(
        kind="frequency_drift",
        severity="suspect",
        says=f"The CPU clock fell to {format_percent(share)} of its first value ({before / 1e9:.2f} to "
        f"{clock / 1e9:.2f} GHz) while {workload} was measured.",
        remedy="Let the machine cool down and improve its cooling, or fix the clock: "
        "`sudo cpupower frequency-set -g performance`.",
        evidence={"workload": workload, "first_hz": before, "lowest_hz": clock},
    )


def _mean_within(series: Series, block: Block) -> float | None:
    """Mean of the readings taken while the block ran, or None when there was none."""
    inside = [
        value
        for t_ns, value in zip(series.t_ns, series.values, strict=True)
        if value is not None and block.t0_ns <= t_ns <= block.t1_ns
    ]
    return math.fsum(inside) / len(inside) if inside else None


def _swapped_in(run: Run) -> Finding | None:
    pages: dict[str, float | int | str] = {}
    total = 0
    for block in run.blocks:
        before, after = block.start.swapped_in_pages, block.end.swapped_in_pages
        if before is not None and after is not None and after > before:
            pages[block.workload] = int(pages.get(block.workload, 0)) + after - before
            total += after - before
    if not pages:
        return None
    return Finding(
        kind="swapped_in",
        severity="suspect",
        says=f"{total} pages were read back from swap while {', '.join(pages)} was timed.",
        remedy="Free memory or choose a smaller precision; `swapon --show` lists the swap areas, "
        "`sudo swapoff -a` switches them off if memory suffices.",
        evidence=pages,
    )


def _major_faults(run: Run) -> Finding | None:
    faults = sum(
        block.end.major_faults - block.start.major_faults for block in run.blocks if block.workload.startswith("tg")
    )
    if faults <= 0:
        return None
    return Finding(
        kind="major_faults",
        severity="suspect",
        says=f"The process waited for the disk {faults} times while decode was timed: weights were evicted.",
        remedy="Free memory or choose a smaller precision, so that the weights stay in memory.",
        evidence={"major_faults": faults},
    )


def _sampler_lost(run: Run) -> Finding | None:
    """There are no readings, or they end before the last block, or have a hole: 10 periods and 2 s without any."""
    if not run.blocks:
        return None
    if run.sampler_cost_s is None:
        return Finding(
            kind="sampler_lost",
            severity="suspect",
            says="The sampler process was lost during this run: peaks, clocks and throttling are unknown.",
            evidence={"readings": 0},
            remedy="Look for what kills processes here (memory, a policy); the next run starts a new sampler.",
        )
    if not run.series:
        return None
    end = max(block.end.t_ns for block in run.blocks)
    start = min(block.start.t_ns for block in run.blocks)
    stamps = sorted({t_ns for series in run.series for t_ns in series.t_ns})
    edges = [start, *(t_ns for t_ns in stamps if start <= t_ns <= end), end]
    gaps = [later - earlier for earlier, later in pairwise(edges)]
    usual = stats.median([b - a for a, b in pairwise(stamps)]) if len(stamps) > 1 else 0.0
    longest = max(gaps)
    if longest <= max(2e9, 10 * usual):
        return None
    return Finding(
        kind="sampler_lost",
        severity="suspect",
        says=f"No sensor was read for {format_seconds(longest / 1e9)} while blocks were timed: "
        "peaks, clocks and energy of that time are unknown.",
        remedy="Close what else runs and measure again; if it recurs, report it with `edgebench doctor --json`.",
        evidence={"gap_s": longest / 1e9},
    )


# --- the rounds of a trial --------------------------------------------------------------------------------------------


def trial_findings(rates: Mapping[str, Sequence[Sequence[float]]], protocol: Protocol) -> tuple[Finding, ...]:
    """What the rounds of a trial say together.

    Args:
        rates: by workload, tokens/s of the blocks used, per round in the order of measurement.
        protocol: asks for so many rounds and for such an interval.
    """
    rounds = {name: [stats.median(blocks) for blocks in groups] for name, groups in rates.items()}
    found = (
        _too_few_rounds(rounds, protocol),
        _wide_interval(rounds, rates, protocol),
        _round_drift(rounds),
    )
    return tuple(finding for finding in found if finding is not None)


def _too_few_rounds(rounds: Mapping[str, Sequence[float]], protocol: Protocol) -> Finding | None:
    fewest = min(map(len, rounds.values()), default=0)
    if fewest >= protocol.min_rounds:
        return None
    return Finding(
        kind="too_few_rounds",
        severity="suspect" if fewest < 3 else "note",
        says=f"Only {fewest} of at least {protocol.min_rounds} rounds were measured: "
        + ("one process cannot show how much processes differ." if fewest < 2 else "the interval is a wide guess."),
        remedy=f"Measure longer: `--budget` gives more time; {protocol.min_rounds} rounds are the least.",
        evidence={"rounds": fewest, "min_rounds": protocol.min_rounds},
    )


def _wide_interval(
    rounds: Mapping[str, Sequence[float]], rates: Mapping[str, Sequence[Sequence[float]]], protocol: Protocol
) -> Finding | None:
    """An interval wider than asked for, or blocks of one process that differ although nobody else was seen."""
    widths: dict[str, float] = {}
    for name, values in rounds.items():
        interval = stats.rounds_interval(values, protocol.confidence)
        if interval is not None:
            widths[name] = interval.relative_half_width(stats.median(values))
    spreads = {
        name: stats.median([1 - min(blocks) / max(blocks) for blocks in groups])
        for name, groups in rates.items()
        if groups
    }
    wide = {name: width for name, width in widths.items() if width > protocol.target_half_width}
    restless = {name: spread for name, spread in spreads.items() if spread > SPREAD_LIMIT}
    if not wide and not restless:
        return None
    evidence: dict[str, float | int | str] = {f"half_width_{name}": width for name, width in wide.items()}
    evidence |= {f"block_spread_{name}": spread for name, spread in restless.items()}
    parts = [f"the interval of {name} is {format_half_width(width)}" for name, width in wide.items()]
    parts += [f"blocks of one {name} round differ by {format_percent(spread)}" for name, spread in restless.items()]
    says = "; ".join(parts)
    severity: Severity = "suspect" if restless or max(wide.values()) > 5 * protocol.target_half_width else "note"
    return Finding(
        kind="wide_interval",
        severity=severity,
        says=f"{says[0].upper()}{says[1:]} (target ±{format_percent(protocol.target_half_width)}).",
        remedy="Measure longer (`--budget`), or find what disturbs: clocks, heat, other programs, a shared host.",
        evidence=evidence,
    )


def _round_drift(rounds: Mapping[str, Sequence[float]]) -> Finding | None:
    """A trend that chance explains with less than 5 % over all workloads together (Bonferroni), of more than 2 %."""
    worst: tuple[str, stats.Drift] | None = None
    for name, values in rounds.items():
        drift = stats.drift(values)
        if drift is None or drift.p_value * len(rounds) >= 0.05 or abs(drift.change) <= DRIFT_LIMIT:
            continue
        if worst is None or abs(drift.change) > abs(worst[1].change):
            worst = (name, drift)
    if worst is None:
        return None
    name, drift = worst
    direction = "slower" if drift.change < 0 else "faster"
    return Finding(
        kind="round_drift",
        severity="suspect",
        says=f"{name} became steadily {direction}: by {format_percent(abs(drift.change))} from first to last round.",
        remedy="The machine warms up or something grows beside it: let it settle, check cooling, and measure again.",
        evidence={"workload": name, "change": drift.change, "p_value": drift.p_value},
    )


# --- joining ----------------------------------------------------------------------------------------------------------


def merge_findings(rounds: Sequence[Iterable[Finding]]) -> tuple[Finding, ...]:
    """One finding per kind, the gravest of all rounds, saying in how many rounds it occurred; gravest first."""
    by_kind: dict[str, list[Finding]] = {}
    counts: dict[str, int] = {}
    for findings in rounds:
        kinds = set()
        for finding in findings:
            by_kind.setdefault(finding.kind, []).append(finding)
            kinds.add(finding.kind)
        for kind in kinds:
            counts[kind] = counts.get(kind, 0) + 1
    merged = [_merge(found, counts[kind], len(rounds)) for kind, found in by_kind.items()]
    return gravest_first(merged)


def gravest_first(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """``invalid``, ``suspect``, ``note``; alphabetically within each."""
    return tuple(sorted(findings, key=lambda finding: (_RANK[finding.severity], finding.kind)))


def _merge(findings: Sequence[Finding], hit: int, rounds: int) -> Finding:
    worst = min(findings, key=lambda finding: _RANK[finding.severity])
    where = "" if hit == rounds else f" (in {hit} of {rounds} rounds)"
    says = worst.says.rstrip(".") + f"{where}." if where else worst.says
    return Finding(
        kind=worst.kind,
        severity=worst.severity,
        says=says,
        remedy=worst.remedy,
        evidence={**worst.evidence, "in_rounds": hit, "of_rounds": rounds},
    )
