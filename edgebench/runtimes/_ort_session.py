"""What every graph on onnxruntime has in common: how its session is opened, and how calls are timed."""

from __future__ import annotations

import array
import gc
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgebench.errors import ArtifactError
from edgebench.host import Host

_ERRORS_ONLY = 3


class Sessions:
    """Sessions over one graph: one at a time, because each has its own pool of threads and prepacked weights.

    Args:
        path: the graph.
        threads: of the first session, which is opened at once.

    Raises:
        ArtifactError: when onnxruntime refuses the graph.
        MemoryError: when it could not allocate.
    """

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime

        self._ort: Any = onnxruntime
        self._path = path
        self._open: dict[int, Any] = {}
        before = _anonymous_bytes()
        started = time.monotonic_ns()
        self.get(threads)
        self.load_s = (time.monotonic_ns() - started) / 1e9
        self.prepacked_bytes = max(0, _anonymous_bytes() - before)
        """Growth of anonymous memory while loading: what onnxruntime copied and rearranged."""

    def get(self, threads: int) -> Any:
        """The session with a pool of this size."""
        if threads not in self._open:
            options = self._ort.SessionOptions()
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
            options.execution_mode = self._ort.ExecutionMode.ORT_SEQUENTIAL
            options.log_severity_level = _ERRORS_ONLY
            self._open.clear()
            try:
                self._open[threads] = self._ort.InferenceSession(
                    str(self._path), options, providers=["CPUExecutionProvider"]
                )
            except Exception as error:
                raise _refusal(self._path, error) from error
        return self._open[threads]

    def value(self, array_: Any) -> Any:
        """An OrtValue over the array's own memory: writing to the array is seen by the next run."""
        return self._ort.OrtValue.ortvalue_from_numpy(array_)

    def close(self) -> None:
        """Free it. Twice is fine."""
        self._open.clear()


def _anonymous_bytes() -> int:
    host = Host()
    text = host.read(host.proc("self/status"))
    return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("RssAnon")), 0)


def _refusal(path: Path, error: Exception) -> Exception:
    text = str(error)
    if "bad_alloc" in text or "Failed to allocate" in text:
        return MemoryError(f"onnxruntime could not allocate the weights of {path}: {text}")
    return ArtifactError(f"{path}: onnxruntime refuses the graph: {text}", "export it again.")


def time_calls(
    run: Callable[[Sequence[int]], None], calls: Sequence[Sequence[int]]
) -> tuple[int, int, tuple[int, ...]]:
    """Run each call: (start, end, duration of each), all ns. The garbage collector waits meanwhile."""
    stamps = array.array("q", bytes(8 * len(calls)))
    now = time.monotonic_ns
    gc.disable()
    try:
        start = now()
        for index, tokens in enumerate(calls):
            run(tokens)
            stamps[index] = now()
    finally:
        gc.enable()
    before, durations = start, []
    for stamp in stamps:
        durations.append(stamp - before)
        before = stamp
    return start, before, tuple(durations)
