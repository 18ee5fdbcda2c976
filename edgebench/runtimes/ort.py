"""Plain onnxruntime over the fused graphs of ``edgebench.export.onnx``, timed like llama-bench.

One KV buffer of the size of the workload is shared by past and present, so that a step appends in place. Everything is
bound once: a decode step writes three integers and runs. The CPU kernels of GroupQueryAttention compute in float32, so
the cache is float32 there.
"""

from __future__ import annotations

import array
import gc
import importlib.metadata
import importlib.util
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from edgebench.errors import ArtifactError
from edgebench.host import Host
from edgebench.records import EngineMemory, Fact, Loaded
from edgebench.specs import KVType, OnnxManifest, Settings, TrialSpec

_ERRORS_ONLY = 3


class OrtContext:
    """One KV cache over a session."""

    def __init__(self, model: OrtModel, n_ctx: int, settings: Settings) -> None:
        self._model, self._n_ctx, self._settings = model, n_ctx, settings
        shape = model.manifest
        self.n_past = 0
        cache = (1, shape.kv_heads, n_ctx, shape.head_dim)
        self._cache = [np.zeros(cache, np.float32) for _ in range(2 * shape.layers)]
        self._logits = np.zeros((1, 1, shape.vocabulary), np.float32)
        self._seqlens, self._total = np.zeros(1, np.int32), np.zeros((), np.int32)
        self._session = model.session(settings.threads)
        self._bindings: dict[int, tuple[Any, npt.NDArray[np.int64], npt.NDArray[np.int64] | None]] = {}

    def _binding(self, length: int) -> tuple[Any, npt.NDArray[np.int64], npt.NDArray[np.int64] | None]:
        """The binding for calls of this many tokens, and the arrays behind it."""
        if length not in self._bindings:
            ids = np.zeros((1, length), np.int64)
            positions = np.zeros((1, length), np.int64) if self._model.wants_positions else None
            binding = self._session.io_binding()
            value = self._model.value
            binding.bind_ortvalue_input("input_ids", value(ids))
            binding.bind_ortvalue_input("seqlens_k", value(self._seqlens))
            binding.bind_ortvalue_input("total_sequence_length", value(self._total))
            if positions is not None:
                binding.bind_ortvalue_input("position_ids", value(positions))
            for index, cache in enumerate(self._cache):
                layer, part = index // 2, ("key", "value")[index % 2]
                shared = value(cache)
                binding.bind_ortvalue_input(f"past_key_values.{layer}.{part}", shared)
                binding.bind_ortvalue_output(f"present.{layer}.{part}", shared)
            binding.bind_ortvalue_output("logits", value(self._logits))
            self._bindings[length] = binding, ids, positions
        return self._bindings[length]

    def _run(self, tokens: Sequence[int]) -> None:
        length = len(tokens)
        if self.n_past + length > self._n_ctx:
            raise RuntimeError(f"{self.n_past} + {length} tokens do not fit a cache of {self._n_ctx}")
        binding, ids, positions = self._binding(length)
        ids[0] = tokens
        if positions is not None:
            positions[0] = range(self.n_past, self.n_past + length)
        self.n_past += length
        self._seqlens[0] = self.n_past - 1
        self._total[()] = self.n_past
        self._session.run_with_iobinding(binding)

    def _chunks(self, tokens: Sequence[int]) -> list[Sequence[int]]:
        size = self._settings.ubatch
        return [tokens[first : first + size] for first in range(0, len(tokens), size)]

    def clear(self) -> None:
        self.n_past = 0

    def prefill(self, tokens: Sequence[int]) -> None:
        for chunk in self._chunks(tokens):
            self._run(chunk)

    def time_prefill(self, tokens: Sequence[int]) -> tuple[int, int, tuple[int, ...], int]:
        chunks = self._chunks(tokens)
        for chunk in chunks:
            self._binding(len(chunk))
        start, stamps = self._timed(chunks)
        self._logits[0, 0].argmax()
        return start, stamps[-1], _differences(start, stamps), time.monotonic_ns() - start

    def time_decode(self, tokens: Sequence[int]) -> tuple[int, int, tuple[int, ...]]:
        self._binding(1)
        start, stamps = self._timed([[token] for token in tokens])
        return start, stamps[-1], _differences(start, stamps)

    def _timed(self, calls: Sequence[Sequence[int]]) -> tuple[int, array.array[int]]:
        stamps = array.array("q", bytes(8 * len(calls)))
        run, now = self._run, time.monotonic_ns
        gc.disable()
        try:
            start = now()
            for index, tokens in enumerate(calls):
                run(tokens)
                stamps[index] = now()
        finally:
            gc.enable()
        return start, stamps

    def save(self) -> object:
        return self.n_past, [cache[:, :, : self.n_past].copy() for cache in self._cache]

    def restore(self, state: Any) -> None:
        self.n_past, saved = state
        for cache, kept in zip(self._cache, saved, strict=True):
            cache[:, :, : self.n_past] = kept

    def logits(self) -> npt.NDArray[np.float32]:
        copy: npt.NDArray[np.float32] = self._logits[0, 0].copy()
        return copy

    def set_threads(self, threads: int, threads_batch: int) -> None:
        del threads_batch  # one session has one pool
        self._session = self._model.session(threads)
        self._bindings.clear()

    def close(self) -> None:
        self._bindings.clear()
        self._cache = []


class OrtModel:
    """A loaded export."""

    def __init__(self, trial: TrialSpec, note: Callable[[str], None]) -> None:
        import onnxruntime

        self._ort, self._trial, self._note = onnxruntime, trial, note
        self._path = Path(trial.artifact.path) / "model.onnx"
        self._host = Host()
        self.manifest = _read_manifest(self._path.parent)
        self._sessions: dict[int, Any] = {}
        before = self._anonymous()
        started = time.monotonic_ns()
        session = self.session(trial.settings.threads)
        load_s = (time.monotonic_ns() - started) / 1e9
        self._prepacked = max(0, self._anonymous() - before)
        self.wants_positions = any(item.name == "position_ids" for item in session.get_inputs())
        self.first_token = self.manifest.first_token
        self._kv_bytes = 0
        self.loaded = Loaded(
            load_s=load_s,
            parameters=self.manifest.parameters,
            weight_bytes=self.manifest.weight_bytes,
            context_trained=self.manifest.context,
            vocabulary=self.manifest.vocabulary,
            architecture=self.manifest.architecture,
            description=f"{self.manifest.architecture} {self.manifest.precision}",
        )

    def _anonymous(self) -> int:
        text = self._host.read(self._host.proc("self/status"))
        return next((int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("RssAnon")), 0)

    def session(self, threads: int) -> Any:
        """The session with a pool of this size, made once."""
        if threads not in self._sessions:
            options = self._ort.SessionOptions()
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
            options.execution_mode = self._ort.ExecutionMode.ORT_SEQUENTIAL
            options.log_severity_level = _ERRORS_ONLY
            self._sessions.clear()  # one pool and one set of prepacked weights at a time
            try:
                self._sessions[threads] = self._ort.InferenceSession(
                    str(self._path), options, providers=["CPUExecutionProvider"]
                )
            except Exception as error:
                raise _refusal(self._path, error) from error
        return self._sessions[threads]

    def value(self, values: npt.NDArray[Any]) -> Any:
        """An OrtValue over the array's own memory: writing to the array is seen by the next run."""
        return self._ort.OrtValue.ortvalue_from_numpy(values)

    def context(self, n_ctx: int, settings: Settings) -> OrtContext:
        shape = self.manifest
        self._kv_bytes = max(self._kv_bytes, 2 * 4 * shape.layers * shape.kv_heads * shape.head_dim * n_ctx)
        return OrtContext(self, n_ctx, settings)

    def memory(self) -> EngineMemory | None:
        return EngineMemory(
            weights={"file": self.manifest.weight_bytes, "prepacked": self._prepacked}, kv=self._kv_bytes, compute=0, output=0
        )

    def close(self) -> None:
        self._sessions.clear()


def _read_manifest(folder: Path) -> OnnxManifest:
    try:
        return msgspec.json.decode((folder / "edgebench.json").read_bytes(), type=OnnxManifest)
    except OSError as error:
        raise ArtifactError(
            f"{folder} has no readable edgebench.json: {error.strerror}.", "make it with edgebench export."
        ) from error
    except msgspec.DecodeError as error:
        raise ArtifactError(f"{folder}/edgebench.json is damaged: {error}.", "export the model again.") from error


def _refusal(path: Path, error: Exception) -> Exception:
    text = str(error)
    if "bad_alloc" in text or "Failed to allocate" in text:
        return MemoryError(f"onnxruntime could not allocate the weights of {path}: {text}")
    return ArtifactError(f"{path}: onnxruntime refuses the graph: {text}", "export it again.")


class Ort:
    """The runtime ``ort``."""

    name = "ort"
    formats = ("onnx",)
    default = True
    package = "onnxruntime"
    kv_types: tuple[KVType, ...] = ("f32",)
    one_pool = True

    def installed(self) -> bool:
        return importlib.util.find_spec("onnxruntime") is not None

    def version(self) -> Fact:
        return Fact(value=f"onnxruntime {importlib.metadata.version('onnxruntime')}")

    def build(self) -> Fact:
        import onnxruntime

        return Fact(value=onnxruntime.get_build_info())

    def open(self, trial: TrialSpec, log: Callable[[str], None]) -> OrtModel:
        return OrtModel(trial, log)


def _differences(start: int, stamps: array.array[int]) -> tuple[int, ...]:
    before = start
    durations = []
    for stamp in stamps:
        durations.append(stamp - before)
        before = stamp
    return tuple(durations)


RUNTIME = Ort()
