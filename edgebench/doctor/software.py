"""Which runtimes are installed, how they were built, and where results and model files go."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from edgebench import artifacts, registry, store
from edgebench.analysis.simd import missing_simd
from edgebench.doctor.checks import Check, Section
from edgebench.host import Host
from edgebench.records import Fact
from edgebench.runtimes.base import Runtime
from edgebench.topology import Topology

_MIN_FREE_BYTES = 2 * 2**30


class VersionAndBuild(Protocol):
    """What a runtime says about itself."""

    @property
    def version(self) -> Fact:
        """Version of the library and of the engine inside it."""
        ...

    @property
    def build(self) -> Fact:
        """Build and SIMD flags."""
        ...

    @property
    def devices(self) -> tuple[str, ...]:
        """Compute devices that the build can use here."""
        ...


Ask = Callable[[str, Host], VersionAndBuild]


def examine_runtimes(host: Host, topology: Topology, ask: Ask) -> Section:
    """One check for each runtime, and one more where its build leaves instruction sets of this CPU unused.

    Args:
        host: the machine; a captured tree has no installed runtimes to ask.
        topology: for the CPU's flags.
        ask: asks one runtime in a child process, because a native library that was built for another processor may
            kill the process that loads it.
    """
    checks: list[Check] = []
    for name in registry.names("runtimes"):
        runtime: Runtime = registry.load("runtimes", name).RUNTIME
        if not host.is_live:
            checks.append(Check(name=name, state="missing", says="not known: a captured tree has no runtimes"))
        elif not runtime.installed():
            fix = f"pip install {runtime.package}" if runtime.package else ""
            checks.append(Check(name=name, state="missing", says="not installed", fix=fix))
        else:
            checks.extend(_installed(name, runtime, topology, host, ask(name, host)))
    return Section(title="Runtimes", checks=tuple(checks))


def _installed(name: str, runtime: Runtime, topology: Topology, host: Host, said: VersionAndBuild) -> list[Check]:
    if said.version.value is None:
        says = f"installed, but it does not start: {said.version.unknown_because}"
        fix = f"pip install --force-reinstall {runtime.package}" if runtime.package else ""
        return [Check(name=name, state="warn", says=says, fix=fix)]
    build = f"build unknown: {said.build.unknown_because}" if said.build.value is None else str(said.build.value)
    says = f"{said.version.value}; computes on {', '.join(said.devices) or 'nothing that is known'}; {build}"
    checks = [Check(name=name, state="ok", says=says)]
    missing = missing_simd(topology.flags, str(said.build.value or ""), host.machine())
    if missing:
        checks.append(
            Check(
                name=f"{name} build",
                state="warn",
                says=f"this CPU has {', '.join(missing)}, but the build does not use it: expect lower speed",
                fix=f'CMAKE_ARGS="-DGGML_NATIVE=ON" pip install --force-reinstall --no-binary {runtime.package} '
                f"{runtime.package}",
            )
        )
    return checks


def examine_places() -> Section:
    """Where results and model files lie, whether they can be written, and how much room is left."""
    url = store.locate()
    if url.get_backend_name() == "sqlite" and url.database:
        where = _place("store", Path(url.database), store.ENVIRONMENT)
    else:
        where = Check(name="store", state="ok", says=url.render_as_string(hide_password=True))
    return Section(title="Places", checks=(where, _place("cache", artifacts.cache_dir(), "EDGEBENCH_CACHE")))


def _place(name: str, path: Path, variable: str) -> Check:
    """A file or folder that may not exist yet: its nearest existing parent tells whether it can be made."""
    existing = path
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    fix = f"export {variable}=/path/to/a/writable/place"
    blocked = existing != path and not existing.is_dir()
    if blocked or not os.access(existing, os.W_OK):
        return Check(name=name, state="warn", says=f"{path}: {existing} cannot be written", fix=fix)
    free = shutil.disk_usage(existing).free
    says = f"{path}: writable, {free / 2**30:.1f} GiB free" + ("" if path.exists() else ", not made yet")
    if free < _MIN_FREE_BYTES:
        return Check(name=name, state="warn", says=says, fix=f"free some space, or {fix}")
    return Check(name=name, state="ok", says=says)
