"""What every graph on onnxruntime has in common: how its session is opened, where it runs, what memory it takes."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from edgebench.errors import ArtifactError, HostError, MissingDependency
from edgebench.host import Host
from edgebench.kerneltext import parse_sizes
from edgebench.runtimes._ort_devices import PROVIDERS, describe_placement, devices_of, providers_of
from edgebench.specs import Settings

_ERRORS_ONLY = 3
SETTINGS = ("device", "threads", "ubatch", "cpus", "spinning", "arena", "pin")
"""Names of the settings that a session obeys."""


class Sessions:
    """Sessions over one graph: one at a time, because each has its own pool of threads and prepacked weights.

    Args:
        path: the graph.
        settings: of the trial; the first session is opened at once.

    Raises:
        ArtifactError: when onnxruntime refuses the graph.
        MemoryError: when it could not allocate.
        MissingDependency: when the installed build lacks the device.
        HostError: when a thread is to stay on a CPU that this process may not use.
    """

    def __init__(self, path: Path, settings: Settings) -> None:
        import onnxruntime

        if settings.device not in devices_of(onnxruntime.get_available_providers()):
            package = PROVIDERS[settings.device].package
            raise MissingDependency(f"The installed onnxruntime has no {settings.device}.", f"install {package}.")
        self._ort: Any = onnxruntime
        self._path, self._settings = path, settings
        self._allowed = os.sched_getaffinity(0) if settings.pin else set[int]()
        self._open: dict[int, Any] = {}
        before = _anonymous_bytes()
        started = time.monotonic_ns()
        self.get(settings.threads)
        self.load_s = (time.monotonic_ns() - started) / 1e9
        self._loaded_bytes = _anonymous_bytes()
        self.prepacked_bytes = max(0, self._loaded_bytes - before)
        """Growth of anonymous memory while loading: what onnxruntime copied and rearranged."""
        self.scratch_bytes = 0
        """Most anonymous memory beyond loading and the KV cache at the end of a context."""

    @property
    def device(self) -> str:
        """Where the graph runs."""
        return self._settings.device

    @property
    def memory(self) -> str:
        """The name that onnxruntime has for the memory of the device."""
        return PROVIDERS[self.device].memory

    def get(self, threads: int) -> Any:
        """The session with a pool of this size."""
        if threads not in self._open:
            self._open.clear()
            self._open[threads] = self._new(self.options(threads))
        return self._open[threads]

    def options(self, threads: int) -> Any:
        """Session options for a pool of this size; nothing that changes the speed is left to a default."""
        settings, options = self._settings, self._ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = self._ort.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = _ERRORS_ONLY
        options.enable_cpu_mem_arena = settings.arena is not False
        spins = settings.spinning is not False
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spins)))
        if settings.pin and threads > 1:
            options.add_session_config_entry("session.intra_op_thread_affinities", _affinities(settings.cpus, threads))
        return options

    def _new(self, options: Any) -> Any:
        if self._settings.pin:
            # The calling thread computes as well, and onnxruntime leaves it alone. Unpinned, it would be put beside a
            # pinned one, which cannot get out of its way.
            self._check_allowed()
            os.sched_setaffinity(0, self._settings.cpus[:1])
        try:
            # Without enable_fallback=0 a provider that cannot start is replaced by the CPU's without an error.
            return self._ort.InferenceSession(
                str(self._path), options, providers=providers_of(self.device), enable_fallback=0
            )
        except Exception as error:
            raise _refusal(self._path, error) from error

    def _check_allowed(self) -> None:
        """Outside of the mask onnxruntime would leave it (taskset) or log an error and go on unpinned (cpuset)."""
        forbidden = sorted(set(self._settings.cpus) - self._allowed)
        if forbidden:
            raise HostError(
                f"Threads cannot be kept on the CPUs {forbidden}, which this process may not use.",
                "leave --pin out, or allow these CPUs.",
            )

    def value(self, array_: Any) -> Any:
        """An OrtValue over the array's own memory: writing to the array is seen by the next run on the CPU."""
        return self._ort.OrtValue.ortvalue_from_numpy(array_)

    def count_scratch(self, kv_bytes: int) -> None:
        """At the end of a context: see what it took beyond its KV cache."""
        self.scratch_bytes = max(self.scratch_bytes, _anonymous_bytes() - self._loaded_bytes - kv_bytes)

    def placement(self, run_once: Callable[[Any], None]) -> str:
        """Run a second session once, with onnxruntime's profiler on, and count which nodes ran on the device.

        Args:
            run_once: makes any call on the session it is given.

        Raises:
            ArtifactError: when what costs time would run on the CPU instead.
        """
        with tempfile.TemporaryDirectory() as folder:
            options = self.options(self._settings.threads)
            options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "nodes")
            session = self._new(options)
            run_once(session)
            ran = _nodes_in(Path(session.end_profiling()))
        says, problem = describe_placement(self.device, ran)
        if problem:
            raise ArtifactError(
                f"{self._path} does not run on {self.device}: {problem} ({says}).",
                "use --device cpu, or another export of the model.",
            )
        return says

    def close(self) -> None:
        """Free it. Twice is fine."""
        self._open.clear()


def _affinities(cpus: tuple[int, ...], threads: int) -> str:
    """One CPU for each thread but the calling one; onnxruntime counts CPUs from 1."""
    return ";".join(str(cpu + 1) for cpu in cpus[1:threads])


def _nodes_in(profile: Path) -> list[tuple[str, str]]:
    """(execution provider, operator) of each node in a profile of one run."""
    events = msgspec.json.decode(profile.read_bytes())
    found = {}
    for event in events:
        told = event.get("args", {})
        if event.get("cat") == "Node" and "provider" in told:
            found[event["name"]] = told["provider"], told.get("op_name", "")
    return list(found.values())


def _anonymous_bytes() -> int:
    host = Host()
    return parse_sizes(host.try_read(host.proc("self/status")) or "").get("RssAnon") or 0


def _refusal(path: Path, error: Exception) -> Exception:
    text = str(error)
    if "bad_alloc" in text or "Failed to allocate" in text:
        return MemoryError(f"onnxruntime could not allocate the weights of {path}: {text}")
    return ArtifactError(f"{path}: onnxruntime refuses the graph: {text}", "export it again.")
