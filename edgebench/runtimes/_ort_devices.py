"""Which execution provider of onnxruntime a compute device is, who brings it, and what it needs.

Sources: onnxruntime ``docs/OperatorKernels.md`` (GroupQueryAttention on CUDA takes float16 and bfloat16 only; on the
CPU and on WebGPU float32 as well), https://onnxruntime.ai/docs/execution-providers/. Of these devices only ``cpu``, and
``webgpu`` by a software renderer, have run this code; the others follow the documentation.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from edgebench.manifest import Activations

_CPU = "CPUExecutionProvider"
_GPU_PACKAGE = "onnxruntime-gpu in place of onnxruntime (on a Jetson, the wheel made for its JetPack)"
_WORK = frozenset({"GroupQueryAttention", "MatMulNBits", "MatMul", "FusedMatMul", "Gemm"})
"""Operators that do nearly all of the arithmetic: one of them on the CPU, and the figure is not the device's."""


class Provider(NamedTuple):
    """What a device means to onnxruntime."""

    names: tuple[str, ...]
    """Execution providers in order of preference, without the CPU's, which comes last on its own."""
    memory: str
    """Name of the memory in which its KV cache lies."""
    package: str
    """What brings the provider."""
    activations: Activations


PROVIDERS: Mapping[str, Provider] = {
    "cpu": Provider((), "cpu", "onnxruntime", "f32"),
    "cuda": Provider(("CUDAExecutionProvider",), "cuda", _GPU_PACKAGE, "f16"),
    "tensorrt": Provider(("TensorrtExecutionProvider", "CUDAExecutionProvider"), "cuda", _GPU_PACKAGE, "f16"),
    "coreml": Provider(("CoreMLExecutionProvider",), "cpu", "onnxruntime on macOS", "f32"),
    "webgpu": Provider(("WebGpuExecutionProvider",), "webgpu", "onnxruntime-webgpu in place of onnxruntime", "f32"),
}


def devices_of(available: Collection[str]) -> tuple[str, ...]:
    """Devices of a build that has these execution providers."""
    return tuple(device for device, provider in PROVIDERS.items() if {*provider.names, _CPU} <= set(available))


def providers_of(device: str) -> list[str]:
    """Execution providers to open a session with."""
    return [*PROVIDERS[device].names, _CPU]


def describe_placement(device: str, ran: Sequence[tuple[str, str]]) -> tuple[str, str]:
    """(what ran where, why that is not good enough or nothing).

    Args:
        device: that was asked for.
        ran: (execution provider, operator) of each node that ran.
    """
    names = PROVIDERS[device].names
    counts = {name: sum(provider == name for provider, _ in ran) for name in names}
    says = ", ".join(f"{count} of {len(ran)} nodes on {_short(name)}" for name, count in counts.items())
    stayed = sorted({operator for provider, operator in ran if provider not in names and operator in _WORK})
    if stayed:
        return says, f"{', '.join(stayed)} would run on the CPU"
    if not counts[names[0]]:
        return says, f"nothing would run on {_short(names[0])}"
    return says, ""


def _short(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider")
