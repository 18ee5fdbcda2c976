"""Plain onnxruntime over the fused graphs of ``edgebench.export.onnx``, timed like llama-bench.

One KV buffer of the size of the workload is shared by past and present, so that a step appends in place. Everything is
bound once: on the CPU a decode step writes three integers and runs. The type of the cache is the graph's: float32, or
float16 in exports for devices whose attention kernel takes nothing else. Graphs that somebody else exported are run by
``_ort_foreign.py``.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from edgebench.checkpoint.onnx_file import graph_of
from edgebench.errors import ArtifactError
from edgebench.manifest import Activations, OnnxManifest
from edgebench.records import EngineMemory, Fact, Loaded
from edgebench.runtimes._ort_devices import PROVIDERS, devices_of
from edgebench.runtimes._ort_foreign import ForeignModel
from edgebench.runtimes._ort_session import SETTINGS, Sessions
from edgebench.runtimes.base import chunks, time_calls
from edgebench.specs import KVType, Settings, TrialSpec

_TYPES = {"f32": np.float32, "f16": np.float16}


class _Binding:
    """The inputs and outputs of calls of one length."""

    def __init__(self, model: OrtModel, session: Any, length: int, *, copied: bool) -> None:
        self.ids = np.zeros((1, length), np.int64)
        self.seqlens, self.total = np.zeros(1, np.int32), np.zeros((), np.int32)
        self.positions = np.zeros((1, length), np.int64)
        self._small = {"input_ids": self.ids, "seqlens_k": self.seqlens, "total_sequence_length": self.total}
        if model.wants_positions:
            self._small["position_ids"] = self.positions
        self._session, self._value, self._copied = session, model.sessions.value, copied
        self.io = session.io_binding()
        self._bind_small()

    def _bind_small(self) -> None:
        for name, array in self._small.items():
            self.io.bind_ortvalue_input(name, self._value(array))

    def run(self, tokens: Sequence[int], n_past: int) -> None:
        """Append tokens to a cache of ``n_past``, and wait until the outputs are there."""
        end = n_past + len(tokens)
        self.ids[0] = tokens
        self.positions[0] = range(n_past, end)
        self.seqlens[0] = end - 1
        self.total[()] = end
        if self._copied:
            self._bind_small()  # a device gets its copy when an input is bound, not when the graph runs
            self._session.run_with_iobinding(self.io)
            self.io.synchronize_outputs()
        else:
            self._session.run_with_iobinding(self.io)


class OrtContext:
    """One KV cache over a session."""

    def __init__(self, model: OrtModel, n_ctx: int, settings: Settings) -> None:
        self._model, self._n_ctx, self._settings = model, n_ctx, settings
        shape = model.manifest
        self.n_past = 0
        self._tokens: list[int] = []
        self._kind = _TYPES[shape.activations]
        self._on_device = model.sessions.device != "cpu"
        self._shape = (1, shape.kv_heads, n_ctx, shape.head_dim)
        self._names = [f"{layer}.{part}" for layer in range(shape.layers) for part in ("key", "value")]
        self._logits = np.zeros((1, 1, shape.vocabulary), self._kind)
        self._session = model.sessions.get(settings.threads)
        self._bindings: dict[int, _Binding] = {}
        # On the CPU the arrays are the cache; they are written at once, so that no page fault falls into a timed call.
        self._arrays = [] if self._on_device else [np.full(self._shape, 0, self._kind) for _ in self._names]
        self._cache = self._made_by_the_device() if self._on_device else [*map(model.sessions.value, self._arrays)]

    def _made_by_the_device(self) -> list[Any]:
        """Buffers in the memory of the device: what a first call leaves there, since not every build can be asked.

        ``present`` has the capacity of ``past``, so from the second call on they can be one buffer.
        """
        memory, value = self._model.sessions.memory, self._model.sessions.value
        binding = _Binding(self._model, self._session, 1, copied=True)
        empty = np.zeros(self._shape, self._kind)
        for name in self._names:
            binding.io.bind_ortvalue_input(f"past_key_values.{name}", value(empty))
            binding.io.bind_output(f"present.{name}", memory)
        binding.io.bind_ortvalue_output("logits", value(self._logits))
        binding.run([0], 0)
        return list(binding.io.get_outputs()[: len(self._names)])

    def _binding(self, length: int) -> _Binding:
        """The binding for calls of this many tokens."""
        if length not in self._bindings:
            binding = _Binding(self._model, self._session, length, copied=self._on_device)
            for name, shared in zip(self._names, self._cache, strict=True):
                binding.io.bind_ortvalue_input(f"past_key_values.{name}", shared)
                binding.io.bind_ortvalue_output(f"present.{name}", shared)
            binding.io.bind_ortvalue_output("logits", self._model.sessions.value(self._logits))
            self._bindings[length] = binding
        return self._bindings[length]

    def _run(self, tokens: Sequence[int]) -> None:
        length = len(tokens)
        if self.n_past + length > self._n_ctx:
            raise RuntimeError(f"{self.n_past} + {length} tokens do not fit a cache of {self._n_ctx}")
        self._binding(length).run(tokens, self.n_past)
        self.n_past += length

    def clear(self) -> None:
        self.n_past = 0
        self._tokens.clear()

    def prefill(self, tokens: Sequence[int]) -> None:
        for chunk in chunks(tokens, self._settings.ubatch):
            self._run(chunk)
        self._tokens += tokens

    def time_prefill(self, tokens: Sequence[int]) -> tuple[int, int, tuple[int, ...], int]:
        calls = chunks(tokens, self._settings.ubatch)
        for chunk in calls:
            self._binding(len(chunk))
        start, end, durations = time_calls(self._run, calls)
        self._logits[0, 0].argmax()
        return start, end, durations, time.monotonic_ns() - start

    def time_decode(self, tokens: Sequence[int]) -> tuple[int, int, tuple[int, ...]]:
        self._binding(1)
        return time_calls(self._run, [[token] for token in tokens])

    def save(self) -> object:
        if self._on_device:
            return list(self._tokens)  # not every build can write into the memory of its device: it is filled again
        return self.n_past, [array[:, :, : self.n_past].copy() for array in self._arrays]

    def restore(self, state: Any) -> None:
        if self._on_device:
            self.clear()
            self.prefill(state)
            return
        self.n_past, saved = state
        for array, kept in zip(self._arrays, saved, strict=True):
            array[:, :, : self.n_past] = kept

    def logits(self) -> npt.NDArray[np.float32]:
        copy: npt.NDArray[np.float32] = self._logits[0, 0].astype(np.float32, copy=True)
        return copy

    def set_threads(self, threads: int, threads_batch: int) -> None:
        del threads_batch  # one session has one pool
        self._session = self._model.sessions.get(threads)
        self._bindings.clear()

    def close(self) -> None:
        if self._arrays:
            self._model.sessions.count_scratch(sum(array.nbytes for array in self._arrays))
        self._bindings.clear()
        self._cache, self._arrays = [], []


class OrtModel:
    """A loaded export."""

    def __init__(self, trial: TrialSpec) -> None:
        path = Path(trial.artifact.path) / "model.onnx"
        self.manifest = _read_manifest(path.parent)
        wanted = PROVIDERS[trial.settings.device].activations
        if self.manifest.activations != wanted:
            raise _wrong_activations(path.parent, trial.settings.device, wanted)
        self.sessions = Sessions(path, trial.settings)
        inputs = self.sessions.get(trial.settings.threads).get_inputs()
        self.wants_positions = any(item.name == "position_ids" for item in inputs)
        self.first_token = self.manifest.first_token
        self._kv_bytes = 0
        self.loaded = Loaded(
            load_s=self.sessions.load_s,
            parameters=self.manifest.parameters,
            weight_bytes=self.manifest.weight_bytes,
            context_trained=self.manifest.context,
            vocabulary=self.manifest.vocabulary,
            architecture=self.manifest.architecture,
            description=f"{self.manifest.architecture} {self.manifest.precision}",
            settings=(*SETTINGS, "kv_type"),
            placement=self._placement(),
        )

    def _placement(self) -> str:
        """What really runs on the device; empty on the CPU."""
        if self.sessions.device == "cpu":
            return ""
        return self.sessions.placement(self._run_once)

    def _run_once(self, session: Any) -> None:
        shape = self.manifest
        past = np.zeros((1, shape.kv_heads, 1, shape.head_dim), _TYPES[shape.activations])
        feeds: dict[str, npt.NDArray[Any]] = {
            item.name: past for item in session.get_inputs() if item.name.startswith("past_key_values")
        }
        feeds |= {"input_ids": np.zeros((1, 1), np.int64), "seqlens_k": np.zeros(1, np.int32)}
        feeds["total_sequence_length"] = np.ones((), np.int32)
        if self.wants_positions:
            feeds["position_ids"] = np.zeros((1, 1), np.int64)
        session.run(["logits"], feeds)

    def context(self, n_ctx: int, settings: Settings) -> OrtContext:
        shape = self.manifest
        element = np.dtype(_TYPES[shape.activations]).itemsize
        self._kv_bytes = max(self._kv_bytes, 2 * element * shape.layers * shape.kv_heads * shape.head_dim * n_ctx)
        return OrtContext(self, n_ctx, settings)

    def memory(self) -> EngineMemory | None:
        if self.sessions.device != "cpu":
            return None  # what lies in the memory of another device is not told
        weights = {"file": self.manifest.weight_bytes, "prepacked": self.sessions.prepacked_bytes}
        return EngineMemory(weights=weights, kv=self._kv_bytes, compute=self.sessions.scratch_bytes, output=0)

    def close(self) -> None:
        self.sessions.close()


def _wrong_activations(folder: Path, device: str, wanted: Activations) -> ArtifactError:
    kind = {"f32": "float32", "f16": "half precision"}[wanted]
    return ArtifactError(
        f"{folder} was not exported for {device}, whose attention takes {kind} here.",
        f"export it again: edgebench export MODEL --to onnx --device {device}.",
    )


def _read_manifest(folder: Path) -> OnnxManifest:
    try:
        return msgspec.json.decode((folder / "edgebench.json").read_bytes(), type=OnnxManifest)
    except OSError as error:
        raise ArtifactError(
            f"{folder} has no readable edgebench.json: {error.strerror}.", "make it with edgebench export."
        ) from error
    except msgspec.DecodeError as error:
        raise ArtifactError(f"{folder}/edgebench.json is damaged: {error}.", "export the model again.") from error


class Ort:
    """The runtime ``ort``."""

    name = "ort"
    formats = ("onnx",)
    default = True
    package = "onnxruntime"
    one_pool = True
    settings = SETTINGS
    devices: Mapping[str, str] = {device: provider.package for device, provider in PROVIDERS.items()}

    def installed(self) -> bool:
        return importlib.util.find_spec("onnxruntime") is not None

    def version(self) -> Fact:
        return Fact(value=f"onnxruntime {importlib.metadata.version('onnxruntime')}")

    def build(self) -> Fact:
        import onnxruntime

        return Fact(value=onnxruntime.get_build_info())

    def usable_devices(self) -> tuple[str, ...]:
        import onnxruntime

        return devices_of(onnxruntime.get_available_providers())

    def kv_type(self, device: str) -> KVType:
        return PROVIDERS[device].activations

    def open(self, trial: TrialSpec, log: Callable[[str], None]) -> OrtModel | ForeignModel:
        del log  # what onnxruntime says below an error is about placement, and nothing that a reader must know
        folder = Path(trial.artifact.path)
        if folder.is_dir() and not (folder / "edgebench.json").is_file() and graph_of(folder) is not None:
            return ForeignModel(trial)
        return OrtModel(trial)


RUNTIME = Ort()
