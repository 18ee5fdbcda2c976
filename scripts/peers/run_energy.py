"""One process of `scripts/energy_peers.py`: codecarbon or zeus over one window.

Runs in the peer's own virtual environment, without edgebench, in a mount namespace whose powercap tree is ours. Gets
one JSON job from the command line: ``peer``, ``window_s``, and for codecarbon ``every_s`` (null: its default). Says
``ready`` when the peer is set up, waits for a line, measures, and prints one JSON line: joules, and the clock
(CLOCK_MONOTONIC, ns) before and after the calls that began and ended the window.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

Measure = tuple[Callable[[], object], Callable[[], float]]
J_PER_KWH = 3.6e6


def codecarbon(job: dict[str, Any]) -> Measure:
    """Its tracker as documented, offline; only its figure of the CPU, or of the GPU, counts here."""
    from codecarbon import OfflineEmissionsTracker  # noqa: PLC0415 - only this peer's environment has it

    options = {} if job["every_s"] is None else {"measure_power_secs": job["every_s"]}
    tracker = OfflineEmissionsTracker(
        country_iso_code="FRA", save_to_file=False, log_level="error", allow_multiple_runs=True, **options
    )

    def stop() -> float:
        tracker.stop()
        data = tracker.final_emissions_data
        return (data.gpu_energy if job.get("gpu") else data.cpu_energy) * J_PER_KWH

    return tracker.start, stop


def zeus(job: dict[str, Any]) -> Measure:
    """Its monitor as documented; the sum over its CPUs, or its one GPU."""
    from zeus.monitor import ZeusMonitor  # noqa: PLC0415 - same

    monitor = ZeusMonitor(gpu_indices=[0] if job.get("gpu") else [])

    def stop() -> float:
        measured = monitor.end_window("window", sync_execution=False)
        return sum((measured.gpu_energy if job.get("gpu") else measured.cpu_energy or {}).values())

    return lambda: monitor.begin_window("window", sync_execution=False), stop


PEERS = {"codecarbon": codecarbon, "zeus": zeus}


def main() -> None:
    """Measure one window."""
    job = json.loads(sys.argv[1])
    begin, end = PEERS[job["peer"]](job)
    print("ready", flush=True)
    sys.stdin.readline()
    stamps = [time.monotonic_ns()]
    begin()
    stamps.append(time.monotonic_ns())
    time.sleep(job["window_s"])
    stamps.append(time.monotonic_ns())
    joules = end()
    stamps.append(time.monotonic_ns())
    print(json.dumps({"joules": joules, "stamps_ns": stamps}), flush=True)


if __name__ == "__main__":
    main()
