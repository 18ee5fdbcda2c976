"""A/A: a trial against itself. Two sets of rounds, each round a fresh process, compared as a user compares models."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec
from experiment import measure_round, say

from edgebench.errors import UsageError
from edgebench.specs import TrialSpec
from edgebench.stats import ratio, ratio_interval, verdict


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """One workload of a trial against itself: tokens/s of both sets of rounds and what the statistics say."""

    workload: str
    a: tuple[float, ...]
    b: tuple[float, ...]
    ratio: float
    low: float
    high: float
    verdict: str


def compare_same(trial: TrialSpec, rounds: int) -> list[Comparison]:
    """Two sets of rounds of one trial, ABBA, compared by each workload."""
    a: list[dict[str, float]] = []
    b: list[dict[str, float]] = []
    for number in range(rounds):
        for side in (a, b) if number % 2 == 0 else (b, a):
            side.append(measure_round(trial, number))
    return [
        compare(workload.name, [one[workload.name] for one in a], [one[workload.name] for one in b])
        for workload in trial.workloads
    ]


def compare(workload: str, a: Sequence[float], b: Sequence[float]) -> Comparison:
    """The comparison as a user would make it."""
    interval = ratio_interval(a, b)
    if interval is None:
        raise UsageError("One round shows no spread.", "give --rounds 2 or more.")
    return Comparison(
        workload=workload,
        a=tuple(a),
        b=tuple(b),
        ratio=ratio(a, b),
        low=interval.low,
        high=interval.high,
        verdict=verdict(interval),
    )


def measure_same(trial: TrialSpec, comparisons: int, rounds: int) -> list[Comparison]:
    """At least so many comparisons, each of so many rounds on each side."""
    sets = -(-comparisons // len(trial.workloads))
    found: list[Comparison] = []
    started = time.monotonic()
    for number in range(sets):
        found += compare_same(trial, rounds)
        left_s = (time.monotonic() - started) / (number + 1) * (sets - number - 1)
        says = ", ".join(one.verdict for one in found[-len(trial.workloads) :])
        say(f"A/A set {number + 1} of {sets}: {says}; about {left_s:.0f} s left")
    return found


def print_comparisons(found: Sequence[Comparison]) -> None:
    """A line for each comparison."""
    print("\nA/A comparison       ratio   interval          verdict")
    for number, one in enumerate(found, 1):
        print(f"{number:4} {one.workload:12} {one.ratio:8.4f}   {one.low:.4f} to {one.high:.4f}  {one.verdict}")
