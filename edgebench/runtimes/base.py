"""What a runtime is: an engine that executes an artifact, seen through the few calls that timing needs.

How calls are timed is here, too, so that the loop costs the same for every engine.

Add a runtime by adding one file to this folder that defines ``RUNTIME``, an instance of `Runtime`. Its library is
imported inside `open`, never at module level, so that listing runtimes costs nothing. The file name is the CLI name.
"""

from __future__ import annotations

import array
import gc
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from edgebench.records import EngineMemory, Fact, Loaded
from edgebench.specs import Artifact, KVType, Settings, TrialSpec


class Context(Protocol):
    """A KV cache of a fixed size over a loaded model. Token ids are plain ints; nothing is sampled inside."""

    def clear(self) -> None:
        """Empty the KV cache."""
        ...

    def prefill(self, tokens: Sequence[int]) -> None:
        """Append tokens in batches and wait until done; logits of the last one only. Used outside timed parts."""
        ...

    def time_prefill(self, tokens: Sequence[int]) -> tuple[int, int, tuple[int, ...], int]:
        """Time a prefill: (start, end, duration of each batch, until the first token is chosen greedily), all ns.

        The first two are ``monotonic_ns`` stamps. The end is after the last synchronisation, as in llama-bench.
        """
        ...

    def time_decode(self, tokens: Sequence[int]) -> tuple[int, int, tuple[int, ...]]:
        """Time a decode of these tokens, one per call, synchronised each: (start, end, duration of each), all ns."""
        ...

    def save(self) -> object:
        """The state of the cache, to be given to `restore` (a filled cache is made once and restored per block)."""
        ...

    def restore(self, state: object) -> None:
        """Put a saved state back."""
        ...

    def logits(self) -> npt.NDArray[np.float32]:
        """A copy of the logits after the last token, shape [vocabulary]."""
        ...

    def set_threads(self, threads: int, threads_batch: int) -> None:
        """Change the thread counts without reloading."""
        ...

    def close(self) -> None:
        """Free it. Twice is fine."""
        ...


class Model(Protocol):
    """A loaded artifact."""

    loaded: Loaded
    first_token: int | None
    """The begin-of-sequence token if the model wants one, else None."""

    def context(self, n_ctx: int, settings: Settings) -> Context:
        """A fresh context for ``n_ctx`` tokens."""
        ...

    def memory(self) -> EngineMemory | None:
        """The engine's own account, with the largest context made so far."""
        ...

    def close(self) -> None:
        """Free it. Twice is fine."""
        ...


class Runtime(Protocol):
    """An engine. Nothing here loads a native library but methods that say so, `version` and `build`."""

    name: str
    formats: tuple[str, ...]
    default: bool
    """Whether ``profile`` uses it without being asked."""
    package: str
    """What to pip install when it is missing; empty when nothing is needed."""

    settings: tuple[str, ...]
    """Names of the settings that it obeys; others are left out of its trials, or say nothing there."""
    devices: Mapping[str, str]
    """Compute devices that it could use, and the package that brings each."""
    one_pool: bool
    """Whether prefill and decode share one pool of threads, and so one thread count."""

    def installed(self) -> bool:
        """Whether its library can be found, without importing it."""
        ...

    def version(self) -> Fact:
        """Version of the library, and of the engine inside it."""
        ...

    def build(self) -> Fact:
        """Build and SIMD flags, as the engine reports them."""
        ...

    def usable_devices(self) -> tuple[str, ...]:
        """The ``devices`` that the installed build can use here. Loads the library: called in a child process only."""
        ...

    def kv_type(self, device: str) -> KVType:
        """Type of its KV cache on a device."""
        ...

    def open(self, trial: TrialSpec, log: Callable[[str], None]) -> Model:
        """Load the artifact. Called in a child process only.

        Raises:
            ArtifactError: when the engine refuses the file.
            MemoryError: when it could not allocate.
        """
        ...


Call = TypeVar("Call")
Timed = tuple[int, int, tuple[int, ...]]


def time_calls(
    run: Callable[[Call], object], calls: Sequence[Call], settle: Callable[[], object] | None = None
) -> Timed:
    """Run each call: (start, end, duration of each), all ns. The garbage collector waits meanwhile.

    Nothing but the calls and a stamp happens inside the loop.

    Args:
        run: makes one call.
        calls: what it is given, at least one.
        settle: waits once, after the last call, for what still runs; the wait counts into the last duration.
    """
    stamps = array.array("q", bytes(8 * len(calls)))
    now = time.monotonic_ns
    gc.disable()
    try:
        start = now()
        for index, call in enumerate(calls):
            run(call)
            stamps[index] = now()
        if settle is not None:
            settle()
            stamps[-1] = now()
    finally:
        gc.enable()
    before, durations = start, []
    for stamp in stamps:
        durations.append(stamp - before)
        before = stamp
    return start, before, tuple(durations)


def chunks(tokens: Sequence[int], size: int) -> list[Sequence[int]]:
    """Tokens in runs of ``size``; the last may be shorter."""
    return [tokens[first : first + size] for first in range(0, len(tokens), size)]


__all__ = ["Artifact", "Context", "Model", "Runtime", "chunks", "time_calls"]
