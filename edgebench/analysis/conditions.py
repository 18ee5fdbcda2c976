"""Doubts about the set-up of a run: governor, battery, OpenMP, threads, context, quantizer, instruction sets.

These do not happen *during* a run; they hold for it. Measured effect of the worst of them: ``OMP_WAIT_POLICY=passive``
or ``GOMP_SPINCOUNT=0`` cut decode of a 135M model from 250 to 55 tokens/s, because the threads of an OpenMP engine
sleep at the barrier that follows every matrix product; prefill did not change.
"""

from __future__ import annotations

from edgebench.analysis.simd import missing_simd
from edgebench.records import Finding, Run


def condition_findings(run: Run) -> tuple[Finding, ...]:
    """What the set-up of one run gives reason to doubt, at most one finding per kind."""
    found = (
        _captured(run),
        _governor(run),
        _on_battery(run),
        _quantization_fallback(run),
        _omp_environment(run),
        _too_many_threads(run),
        _context_forced(run),
        _missing_simd(run),
    )
    return tuple(finding for finding in found if finding is not None)


def _captured(run: Run) -> Finding | None:
    if not run.provenance.captured:
        return None
    return Finding(
        kind="captured_tree",
        severity="invalid",
        says="The sensors of a captured tree were read, not those of this machine: no figure is of any hardware.",
        remedy="Run it on the device itself, without --root.",
        evidence={"device_profile": run.provenance.device_profile},
    )


def _governor(run: Run) -> Finding | None:
    governor = run.provenance.governor.value
    names = sorted({name.strip() for name in str(governor).split(",")})
    if governor is None or names == ["performance"]:
        return None
    return Finding(
        kind="governor",
        severity="note",
        says=f"The frequency governor is {', '.join(names)}: the clock follows the load, so short blocks run slower.",
        remedy="`sudo cpupower frequency-set -g performance` fixes the clock as high as cooling allows.",
        evidence={"governor": str(governor)},
    )


def _on_battery(run: Run) -> Finding | None:
    values = [
        value
        for series in run.series
        if series.channel.name == "battery.discharging"
        for value in series.values
        if value is not None
    ]
    share = sum(values) / len(values) if values else 0.0
    if not share:
        return None
    always = share == 1
    return Finding(
        kind="on_battery",
        severity="note" if always else "suspect",
        says="The machine ran on its battery, where firmware often allows less power."
        if always
        else "The machine changed between battery and mains during the run.",
        remedy="Plug in the charger and measure again, unless the speed on battery is the question.",
        evidence={"share_of_readings": share},
    )


def _quantization_fallback(run: Run) -> Finding | None:
    notes = run.trial.artifact.quantizer_notes
    if not notes:
        return None
    return Finding(
        kind="quantization_fallback",
        severity="note",
        says=f"The file is not {run.trial.artifact.precision} throughout: {'; '.join(notes)}.",
        remedy="Compare by real bits per weight, or choose a precision whose block size divides the model's rows.",
        evidence={"notes": len(notes)},
    )


def _omp_environment(run: Run) -> Finding | None:
    """Only for an engine whose build says that it uses OpenMP."""
    if "OPENMP = 1" not in str(run.provenance.runtime_build.value).upper():
        return None
    environment = {name: value.strip() for name, value in run.provenance.environment.items()}
    threads = {run.trial.settings.threads, run.trial.settings.threads_batch}
    slow = [name for name in _SLOW if environment.get(name, "").lower() in _SLOW[name]]
    limit = environment.get("OMP_THREAD_LIMIT", "")
    if limit.isdecimal() and int(limit) < max(threads):
        slow.append("OMP_THREAD_LIMIT")
    count = environment.get("OMP_NUM_THREADS", "")
    odd = ["OMP_NUM_THREADS"] if count and (not count.isdecimal() or {int(count)} != threads) else []
    if not slow and not odd:
        return None
    shown = {name: environment[name] for name in (*slow, *odd)}
    return Finding(
        kind="omp_environment",
        severity="suspect" if slow else "note",
        says=f"The environment changes how the engine's threads wait or where they run: "
        f"{', '.join(f'{name}={value}' for name, value in shown.items())}.",
        remedy=f"`unset {' '.join(shown)}` and measure again.",
        evidence=dict(shown),
    )


_SLOW = {
    "OMP_WAIT_POLICY": ("passive",),
    "GOMP_SPINCOUNT": ("0",),
    "KMP_BLOCKTIME": ("0",),
    "OMP_PROC_BIND": ("master", "primary"),
    "OMP_DYNAMIC": ("true",),
}
"""Values that let threads sleep at barriers, sit on one core, or be fewer than asked for."""


def _too_many_threads(run: Run) -> Finding | None:
    settings, provenance = run.trial.settings, run.provenance
    cpus = len(settings.cpus) or provenance.logical_cpus
    cores = provenance.physical_cores.value
    threads = max(settings.threads, settings.threads_batch)
    if threads > cpus:
        return Finding(
            kind="too_many_threads",
            severity="suspect",
            says=f"{threads} threads share {cpus} CPUs: they wait for each other at every barrier.",
            remedy=f"`--threads {min(cpus, cores) if isinstance(cores, int) else cpus}`.",
            evidence={"threads": threads, "cpus": cpus},
        )
    if not isinstance(cores, int) or settings.threads <= cores:
        return None
    return Finding(
        kind="too_many_threads",
        severity="note",
        says=f"{settings.threads} threads decode on {cores} physical cores: siblings share one core's units and cache.",
        remedy=f"`--threads {cores}` is usually as fast or faster.",
        evidence={"threads": settings.threads, "physical_cores": cores},
    )


def _context_forced(run: Run) -> Finding | None:
    if run.loaded is None or run.loaded.context_trained <= 0:
        return None
    trained = run.loaded.context_trained
    beyond = [workload.name for workload in run.trial.workloads if workload.n + workload.depth > trained]
    if not beyond:
        return None
    return Finding(
        kind="context_forced",
        severity="note",
        says=f"{', '.join(beyond)} needs more than the {trained} tokens of context that the model was trained for: "
        "the speed is real, the text would not be.",
        remedy=f"Stay within {trained} tokens of length plus depth.",
        evidence={"context_trained": trained},
    )


def _missing_simd(run: Run) -> Finding | None:
    provenance = run.provenance
    missing = missing_simd(provenance.cpu_flags, str(provenance.runtime_build.value or ""), provenance.machine)
    if not missing:
        return None
    return Finding(
        kind="missing_simd",
        severity="suspect",
        says=f"The engine was built without {', '.join(missing)}, which this CPU has: it is slower than it could be.",
        remedy="Build it on this machine: `CMAKE_ARGS=-DGGML_NATIVE=ON pip install --no-binary llama-cpp-python "
        "--force-reinstall llama-cpp-python`.",
        evidence={"missing": " ".join(missing)},
    )
