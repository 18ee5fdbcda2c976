"""A runtime without an engine: scripted durations, and scripted ways to die.

It ships, so that scheduling, statistics, rendering and recovery can be tried in milliseconds on any machine
(``--runtime fake --script tg_token_s=0.005``). Its blocks report the scripted time without waiting for it, unless
``wait=1``. Its faults are real: a process that really dies, hangs or eats memory, for every artifact or
(``only_bits``) for one of a sweep. Its "logits" are a hash of the tokens seen, so that the contract of a runtime (same
tokens, same logits; prefix plus rest equals the whole) can be tested on it.
"""

from __future__ import annotations

import hashlib
import math
import os
import random
import signal
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from edgebench.errors import UnknownNameError, UsageError
from edgebench.records import EngineMemory, Fact, Loaded
from edgebench.specs import KVType, Settings, TrialSpec

VOCABULARY = 256

DEFAULTS: dict[str, float] = {
    "load_s": 0.01,
    "pp_token_s": 0.001,
    "tg_token_s": 0.005,
    "spread": 0.0,  # relative spread of block times (one-sided, exponential)
    "die_signal": 0.0,  # signal number with which the process kills itself...
    "die_at": 0.0,  # ...before this timed call (counted from 0, warm-ups of decode included), or -1: while loading
    "hang_s": 0.0,  # really sleeps this long while loading
    "eat_mib": 0.0,  # really touches this much memory while loading
    "fail": 0.0,  # 1: raises an exception while loading
    "nan_logits": 0.0,  # 1: its logits are not numbers
    "slow_after_s": 0.0,  # so long after loading, by the real clock...
    "slow_over_s": 0.0,  # ...and over this time...
    "slow_to": 1.0,  # ...its speed falls to this share: a machine that throttles
    "block_s": 0.0,  # really sleeps this long in each timed call
    "wait": 0.0,  # 1: a timed call really takes its scripted time
    "only_bits": 0.0,  # the faults above happen only to an artifact of this many bits per weight; 0: to every one
}
_TIMES = ("load_s", "pp_token_s", "tg_token_s", "slow_to")
_FAULTS = ("die_signal", "hang_s", "eat_mib", "fail", "nan_logits", "block_s")
_LARGEST = 1e6
_PARAMETERS = 1000
_ONE_BYTE = 8 / _PARAMETERS  # in bits per weight: an artifact has whole bytes


def check_script(script: dict[str, float]) -> None:
    """Refuse a key that nothing reads, and a value that no process can act out.

    Raises:
        UnknownNameError: with the nearest known key.
        UsageError: for a value out of range.
    """
    for key, value in script.items():
        if key not in DEFAULTS:
            raise UnknownNameError("script key of the fake runtime", key, DEFAULTS)
        smallest = 1e-9 if key in _TIMES else -1 if key == "die_at" else 0
        if not math.isfinite(value) or not smallest <= value <= _LARGEST:
            raise UsageError(
                f"The script says {key}={value:g}, which the fake runtime cannot act out.",
                f"give a number from {smallest:g} to {_LARGEST:g}.",
            )
        if key == "die_signal" and value not in (0, *signal.valid_signals()):
            raise UsageError(f"There is no signal {value:g}.", "see kill -l: 9 is SIGKILL, 11 is SIGSEGV.")


def _script_of(trial: TrialSpec) -> dict[str, float]:
    """The trial's script, without its faults where they are meant for another precision."""
    script = DEFAULTS | trial.script
    bits = 8 * trial.artifact.bytes / _PARAMETERS
    if script["only_bits"] and abs(script["only_bits"] - bits) > _ONE_BYTE:
        script |= dict.fromkeys(_FAULTS, 0.0)
    return script


class FakeContext:
    """Remembers the tokens as a hash and answers with scripted times."""

    def __init__(self, script: dict[str, float], capacity: int, count: list[int], loaded_s: float) -> None:
        self._script, self._capacity, self._count = script, capacity, count
        self._seen: tuple[int, ...] = ()
        self._loaded_s = loaded_s
        self._noise = random.Random(os.urandom(8))  # noqa: S311 - noise, not secrets

    def clear(self) -> None:
        self._seen = ()

    def prefill(self, tokens: Sequence[int]) -> None:
        if len(self._seen) + len(tokens) > self._capacity:
            raise RuntimeError(f"no room for {len(tokens)} more tokens in a context of {self._capacity}")
        self._seen += tuple(tokens)

    def _scripted(self, tokens: int, token_s: float) -> tuple[int, list[int]]:
        if self._script["die_signal"] and self._script["die_at"] == self._count[0]:
            os.kill(os.getpid(), int(self._script["die_signal"]))
        self._count[0] += 1
        if self._script["block_s"]:
            time.sleep(self._script["block_s"])
        factor = (1 + self._script["spread"] * self._noise.expovariate(1)) / self._speed()
        start, steps = time.monotonic_ns(), [max(1, round(token_s * factor * 1e9))] * tokens
        if self._script["wait"]:
            time.sleep(sum(steps) / 1e9)
        return start, steps

    def _speed(self) -> float:
        """What is left of the speed now, as a share."""
        since_s = time.monotonic() - self._loaded_s - self._script["slow_after_s"]
        if since_s < 0:
            return 1.0
        over_s = self._script["slow_over_s"]
        done = min(1.0, since_s / over_s) if over_s else 1.0
        return 1 - done * (1 - self._script["slow_to"])

    def time_prefill(self, tokens: Sequence[int]) -> tuple[int, int, tuple[int, ...], int]:
        self.prefill(tokens)
        start, steps = self._scripted(1, self._script["pp_token_s"] * len(tokens))
        return start, start + steps[0], tuple(steps), steps[0] + 1000

    def time_decode(self, tokens: Sequence[int]) -> tuple[int, int, tuple[int, ...]]:
        self.prefill(tokens)
        start, steps = self._scripted(len(tokens), self._script["tg_token_s"])
        return start, start + sum(steps), tuple(steps)

    def save(self) -> object:
        return self._seen

    def restore(self, state: object) -> None:
        self._seen = tuple(state) if isinstance(state, tuple) else ()

    def logits(self) -> npt.NDArray[np.float32]:
        if self._script["nan_logits"]:
            return np.full(VOCABULARY, np.nan, dtype=np.float32)
        digest = hashlib.shake_256(repr(self._seen).encode()).digest(VOCABULARY)
        return np.frombuffer(digest, dtype=np.uint8).astype(np.float32)

    def set_threads(self, threads: int, threads_batch: int) -> None:
        """Threads change nothing here."""

    def close(self) -> None:
        """Nothing is held."""


class FakeModel:
    """A "model" of so few parameters that its bytes are scripted, too."""

    first_token: int | None = None

    def __init__(self, trial: TrialSpec) -> None:
        self._script = _script_of(trial)
        self._count = [0]
        self._suffer()
        self._loaded_s = time.monotonic()
        self.loaded = Loaded(
            load_s=self._script["load_s"],
            parameters=_PARAMETERS,
            weight_bytes=trial.artifact.bytes,
            context_trained=1 << 20,
            vocabulary=VOCABULARY,
            architecture="fake",
            description="scripted times",
        )

    def _suffer(self) -> None:
        script = self._script
        if script["die_signal"] and script["die_at"] == -1:
            os.kill(os.getpid(), int(script["die_signal"]))
        if script["hang_s"]:
            time.sleep(script["hang_s"])
        if script["eat_mib"]:
            incompressible = os.urandom(1 << 20)
            eaten = [bytearray(incompressible) for _ in range(int(script["eat_mib"]))]
            del eaten
        if script["fail"]:
            raise RuntimeError("the script says: fail")

    def context(self, n_ctx: int, settings: Settings) -> FakeContext:  # noqa: ARG002 - settings change nothing here
        return FakeContext(self._script, n_ctx, self._count, self._loaded_s)

    def memory(self) -> EngineMemory | None:
        return EngineMemory(weights={"FAKE": 1 << 20}, kv=1 << 18, compute=1 << 17, output=1 << 10)

    def close(self) -> None:
        """Nothing is held."""


class Fake:
    """The runtime ``fake``."""

    name = "fake"
    formats = ("fake",)
    default = False
    package = ""
    one_pool = False
    settings: tuple[str, ...] = ()
    devices: Mapping[str, str] = {"cpu": ""}

    def installed(self) -> bool:
        return True

    def version(self) -> Fact:
        return Fact(value="fake 1")

    def build(self) -> Fact:
        return Fact(value="scripted times, no engine")

    def usable_devices(self) -> tuple[str, ...]:
        return ("cpu",)

    def kv_type(self, device: str) -> KVType:
        del device
        return "f16"

    def open(self, trial: TrialSpec, log: Callable[[str], None]) -> FakeModel:
        log("the fake runtime loads nothing")
        return FakeModel(trial)


RUNTIME = Fake()
