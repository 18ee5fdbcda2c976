"""llama.cpp through llama-cpp-python's low-level ctypes API, timed by llama-bench's protocol.

The high-level ``Llama`` class costs about 14 % (Python sampling, logits copies, prefix matching) and is not used. What
is timed is exactly what ``llama-bench`` times: ``pp`` feeds random tokens in batches and synchronises once at the end;
``tg`` feeds random tokens one per call, synchronises after each, and samples nothing.

Parameters that drift between versions are set by name on the library's own defaults, and only where the field exists.
One departure: ``n_outputs_max = 1``, so that the scheduler does not reserve a logits row per batch token
(98 -> 14 MiB on a 49k vocabulary); the timed work is the same.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgebench.errors import ArtifactError
from edgebench.records import EngineMemory, Fact, Loaded
from edgebench.runtimes._llamacpp_log import EngineLog
from edgebench.runtimes.base import time_calls
from edgebench.specs import KVType, Settings, TrialSpec

_KV_TYPES = {"f32": 0, "f16": 1, "q8_0": 8}
_FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}
_LOAD_READ, _LOAD_MMAP = 0, 1
_LAYERS_ON = {"cpu": 0, "cuda": -1}
"""``n_gpu_layers`` by device; -1 is all of them."""
_SETTINGS = ("device", "threads", "threads_batch", "batch", "ubatch", "kv_type", "flash_attention", "mmap", "cpus")


class EngineFailure(RuntimeError):
    """A call into llama.cpp that returned an error code."""


def _library() -> Any:
    # On a failed assertion ggml would start a debugger for a backtrace: seconds, and it buries the assertion itself.
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")
    import llama_cpp

    return llama_cpp


def _set(params: ctypes.Structure, **values: object) -> None:
    """Set fields by name; a field that this version lacks is skipped (they are renamed between releases)."""
    known = {field[0] for field in params._fields_}
    for name, value in values.items():
        if name in known:
            setattr(params, name, value)


class LlamaContext:
    """One KV cache over a loaded model."""

    def __init__(self, lib: Any, model: Any, params: Any, log: EngineLog) -> None:
        self._lib, self._log = lib, log
        log.new_context()
        self._ctx = lib.llama_init_from_model(model, params)
        if not self._ctx:
            if log.said_out_of_memory():
                raise MemoryError(f"llama.cpp could not allocate a context of {params.n_ctx} tokens")
            raise EngineFailure(f"llama.cpp refused a context of {params.n_ctx} tokens: {_last(log)}")
        # llama.cpp lowers the batch to the context's size, and aborts when given a larger one than that.
        self._batch = int(lib.llama_n_batch(self._ctx))
        self._memory = lib.llama_get_memory(self._ctx)
        self._vocabulary = int(lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model)))

    def clear(self) -> None:
        self._lib.llama_memory_clear(self._memory, False)  # noqa: FBT003 - ctypes takes no names

    def _batches(self, tokens: Sequence[int], size: int) -> tuple[Any, list[Any]]:
        """The token buffer (to be kept alive) and one batch view for each ``size`` tokens of it."""
        buffer = (self._lib.llama_token * len(tokens))(*tokens)
        pointer = ctypes.POINTER(self._lib.llama_token)
        width = ctypes.sizeof(self._lib.llama_token)
        batches = []
        for first in range(0, len(tokens), size):
            here = ctypes.cast(ctypes.addressof(buffer) + first * width, pointer)
            batches.append(self._lib.llama_batch_get_one(here, min(size, len(tokens) - first)))
        return buffer, batches

    def prefill(self, tokens: Sequence[int]) -> None:
        keep_alive, batches = self._batches(tokens, self._batch)
        for batch in batches:
            self._decode(batch)
        self._synchronise()
        del keep_alive

    def time_prefill(self, tokens: Sequence[int]) -> tuple[int, int, tuple[int, ...], int]:
        keep_alive, batches = self._batches(tokens, self._batch)
        start, end, durations = time_calls(self._decode, batches, settle=self._synchronise)
        del keep_alive
        self._row().argmax()
        return start, end, durations, time.monotonic_ns() - start

    def time_decode(self, tokens: Sequence[int]) -> tuple[int, int, tuple[int, ...]]:
        keep_alive, batches = self._batches(tokens, 1)
        timed = time_calls(self._decode_one, batches)
        del keep_alive
        return timed

    def _decode(self, batch: Any) -> None:
        _check(self._lib.llama_decode(self._ctx, batch))

    def _synchronise(self) -> None:
        self._lib.llama_synchronize(self._ctx)

    def _decode_one(self, batch: Any) -> None:
        self._decode(batch)
        self._synchronise()

    def save(self) -> object:
        size = self._lib.llama_state_seq_get_size(self._ctx, 0)
        state = (ctypes.c_uint8 * size)()
        if self._lib.llama_state_seq_get_data(self._ctx, state, size, 0) == 0:
            raise EngineFailure("llama.cpp could not save the state of the KV cache")
        return state

    def restore(self, state: Any) -> None:
        if self._lib.llama_state_seq_set_data(self._ctx, state, len(state), 0) == 0:
            raise EngineFailure("llama.cpp could not restore the state of the KV cache")

    def _row(self) -> npt.NDArray[np.float32]:
        """A view of the last token's logits, valid until the next call."""
        pointer = self._lib.llama_get_logits_ith(self._ctx, -1)
        row: npt.NDArray[np.float32] = np.ctypeslib.as_array(pointer, shape=(self._vocabulary,))
        return row

    def logits(self) -> npt.NDArray[np.float32]:
        return np.array(self._row())

    def set_threads(self, threads: int, threads_batch: int) -> None:
        self._lib.llama_set_n_threads(self._ctx, threads, threads_batch)

    def close(self) -> None:
        if self._ctx:
            self._lib.llama_free(self._ctx)
            self._ctx = None


class LlamaModel:
    """A loaded GGUF."""

    def __init__(self, lib: Any, trial: TrialSpec, log: EngineLog) -> None:
        self._lib, self._log = lib, log
        params = lib.llama_model_default_params()
        _set(
            params,
            n_gpu_layers=_LAYERS_ON[trial.settings.device],
            load_mode=_LOAD_MMAP if trial.settings.mmap else _LOAD_READ,
            use_mmap=trial.settings.mmap,
        )
        started = time.monotonic_ns()
        self._model = lib.llama_model_load_from_file(trial.artifact.path.encode(), params)
        load_s = (time.monotonic_ns() - started) / 1e9
        if not self._model:
            raise _refusal(trial, log)
        placement = _placement(trial, log)
        vocab = lib.llama_model_get_vocab(self._model)
        self._vocabulary = int(lib.llama_vocab_n_tokens(vocab))
        wants_bos = bool(lib.llama_vocab_get_add_bos(vocab))
        self.first_token: int | None = int(lib.llama_vocab_bos(vocab)) if wants_bos else None
        self.loaded = Loaded(
            load_s=load_s,
            parameters=int(lib.llama_model_n_params(self._model)),
            weight_bytes=int(lib.llama_model_size(self._model)),
            context_trained=int(lib.llama_model_n_ctx_train(self._model)),
            vocabulary=self._vocabulary,
            architecture=self._text("general.architecture"),
            description=self._description(),
            settings=_SETTINGS,
            placement=placement,
        )

    def _text(self, key: str) -> str:
        buffer = ctypes.create_string_buffer(256)
        self._lib.llama_model_meta_val_str(self._model, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")

    def _description(self) -> str:
        buffer = ctypes.create_string_buffer(256)
        self._lib.llama_model_desc(self._model, buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")

    def context(self, n_ctx: int, settings: Settings) -> LlamaContext:
        params = self._lib.llama_context_default_params()
        _set(
            params,
            n_ctx=n_ctx,
            n_batch=settings.batch,
            n_ubatch=settings.ubatch,
            n_threads=settings.threads,
            n_threads_batch=settings.threads_batch,
            n_outputs_max=1,
            type_k=_KV_TYPES[settings.kv_type],
            type_v=_KV_TYPES[settings.kv_type],
            flash_attn_type=_FLASH_ATTENTION[settings.flash_attention],
            swa_full=False,
            no_perf=True,
        )
        return LlamaContext(self._lib, self._model, params, self._log)

    def memory(self) -> EngineMemory | None:
        return self._log.memory()

    def close(self) -> None:
        if self._model:
            self._lib.llama_model_free(self._model)
            self._model = None


class LlamaCpp:
    """The runtime ``llamacpp``."""

    name = "llamacpp"
    formats = ("gguf",)
    default = True
    package = "llama-cpp-python"
    one_pool = False
    settings = _SETTINGS
    devices: Mapping[str, str] = {
        "cpu": "llama-cpp-python",
        "cuda": 'llama-cpp-python built with CMAKE_ARGS="-DGGML_CUDA=on"',
    }

    def installed(self) -> bool:
        return importlib.util.find_spec("llama_cpp") is not None

    def version(self) -> Fact:
        package = importlib.metadata.version("llama-cpp-python")
        lib = _library()
        function = getattr(getattr(lib, "_lib", None) or lib.llama_cpp._lib, "llama_version", None)  # noqa: SLF001 - not among its bindings
        if function is None:
            return Fact(value=f"llama-cpp-python {package}")
        function.restype = ctypes.c_char_p
        return Fact(value=f"llama-cpp-python {package} (llama.cpp {function().decode()})")

    def build(self) -> Fact:
        return Fact(value=_library().llama_print_system_info().decode("utf-8", "replace").strip(" |"))

    def usable_devices(self) -> tuple[str, ...]:
        lib = _library()
        return devices_of(backend_devices()) if lib.llama_supports_gpu_offload() else ("cpu",)

    def kv_type(self, device: str) -> KVType:
        del device
        return "f16"

    def open(self, trial: TrialSpec, log: Callable[[str], None]) -> LlamaModel:
        lib = _library()
        engine_log = capture_log(lib, log)
        lib.llama_backend_init()
        return LlamaModel(lib, trial, engine_log)


_callbacks: list[object] = []


def capture_log(lib: Any, note: Callable[[str], None]) -> EngineLog:
    """Send llama.cpp's log into a fresh `EngineLog`; the C side keeps a pointer, so the callback must stay alive."""
    log = EngineLog(note)

    def take(level: int, text: bytes, _user: object) -> None:
        log.write(level, text.decode("utf-8", "replace"))

    callback = lib.llama_log_callback(take)
    _callbacks.append(callback)
    lib.llama_log_set(callback, None)
    return log


def backend_devices() -> tuple[str, ...]:
    """Names of the devices of the installed ggml: ``CPU``, ``CUDA0``, ``Vulkan0``..."""
    folder = Path(_library().__file__).parent / "lib"
    try:
        registry, base = ctypes.CDLL(str(folder / "libggml.so")), ctypes.CDLL(str(folder / "libggml-base.so"))
        count, get, name = registry.ggml_backend_dev_count, registry.ggml_backend_dev_get, base.ggml_backend_dev_name
    except (OSError, AttributeError):
        return ()  # other names on other systems: then no device but the CPU is known
    count.restype, get.restype, name.restype = ctypes.c_size_t, ctypes.c_void_p, ctypes.c_char_p
    get.argtypes, name.argtypes = [ctypes.c_size_t], [ctypes.c_void_p]
    return tuple(name(get(index)).decode() for index in range(count()))


def devices_of(names: Iterable[str]) -> tuple[str, ...]:
    """The devices among those of ggml, by the names that ``--device`` takes."""
    return ("cpu", "cuda") if any(name.startswith("CUDA") for name in names) else ("cpu",)


def _placement(trial: TrialSpec, log: EngineLog) -> str:
    """How many layers are on the device; empty on the CPU.

    Raises:
        ArtifactError: when some are not: the figure would not be the device's.
    """
    if trial.settings.device == "cpu":
        return ""
    if log.offloaded is None or log.offloaded[0] < log.offloaded[1]:
        here = "an unknown number" if log.offloaded is None else f"{log.offloaded[0]} of {log.offloaded[1]}"
        raise ArtifactError(
            f"{trial.artifact.path}: llama.cpp put {here} of the layers on {trial.settings.device}.",
            "choose a smaller precision, or use --device cpu.",
        )
    return f"{log.offloaded[0]} of {log.offloaded[1]} layers on {trial.settings.device}"


def _refusal(trial: TrialSpec, log: EngineLog) -> Exception:
    """Why the file was not loaded, in llama.cpp's own words."""
    name, reason = trial.artifact.path, _last(log)
    if log.said_out_of_memory():
        return MemoryError(f"llama.cpp could not allocate the weights of {name}: {reason}")
    if "unknown model architecture" in reason:
        return ArtifactError(
            f"{name}: this llama.cpp does not know the model's architecture ({reason}).",
            "choose another model, or a newer llama-cpp-python.",
        )
    return ArtifactError(f"{name}: llama.cpp refuses the file: {reason}", "obtain it again, or check how it was made.")


def _last(log: EngineLog) -> str:
    """The most telling error line: the first, since later ones only say that loading failed."""
    return log.errors[0] if log.errors else "it gave no reason"


def _check(status: int) -> None:
    if status != 0:
        raise EngineFailure(f"llama_decode returned {status} (1: no room in the KV cache; negative: the engine failed)")


RUNTIME = LlamaCpp()
