"""What a setting of onnxruntime does: it reaches the session, the threads and the memory, or it is refused."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edgebench.errors import ArtifactError, HostError, MissingDependency
from edgebench.records import Loaded
from edgebench.registry import load
from edgebench.runtimes._ort_devices import PROVIDERS, describe_placement, devices_of, providers_of
from edgebench.specs import Artifact, Settings, TrialSpec, parse_workload

ORT = load("runtimes", "ort").RUNTIME
CPUS = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
needs_two = pytest.mark.skipif(len(CPUS) < 2, reason="needs two CPUs: give the machine or container a second one")


def settings(**changed: Any) -> Settings:
    usual: dict[str, Any] = {"threads": 1, "threads_batch": 1, "kv_type": "f32"}
    return Settings(**{**usual, "spinning": True, "arena": True, "pin": False, **changed})


def trial_of(folder: Path, wanted: Settings) -> TrialSpec:
    artifact = Artifact(model="m", precision="fp32", format="onnx", path=str(folder), bytes=1, sha256="0" * 64)
    return TrialSpec(artifact=artifact, runtime="ort", settings=wanted, workloads=(parse_workload("tg8"),))


@contextmanager
def opened(folder: Path, **changed: Any) -> Iterator[Any]:
    with closing(ORT.open(trial_of(folder, settings(**changed)), lambda _text: None)) as model:
        yield model


@contextmanager
def own_mask() -> Iterator[None]:
    """Pinning holds on after the session: give the test process its CPUs back."""
    before = os.sched_getaffinity(0)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def tasks() -> set[str]:
    return {path.name for path in Path("/proc/self/task").iterdir()}


def new_threads(before: set[str]) -> dict[str, set[int]]:
    """CPUs of each thread that was not there before; a thread pins itself a moment after its start."""
    time.sleep(0.2)
    return {task: os.sched_getaffinity(int(task)) for task in tasks() - before}


# --- the session


@pytest.mark.parametrize(("asked", "entry"), [(True, "1"), (False, "0"), (None, "1")])
def test_spinning_reaches_the_session(tiny_onnx, asked, entry):
    with opened(tiny_onnx, spinning=asked) as model:
        options = model.sessions.get(1).get_session_options()
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == entry


@pytest.mark.parametrize(("asked", "held"), [(True, True), (False, False), (None, True)])
def test_arena_reaches_the_session(tiny_onnx, asked, held):
    with opened(tiny_onnx, arena=asked) as model:
        assert model.sessions.get(1).get_session_options().enable_cpu_mem_arena is held


_MEASURE = """
import sys
from tests.unit.test_ort_settings import opened, settings

with opened(sys.argv[1]) as model:
    context = model.context(65536, settings())
    print(model.memory().compute)
    context.prefill([1] * 64)
    context.close()
    print(model.memory().compute, model.memory().kv)
"""


def test_scratch_memory_is_measured_without_the_cache(tiny_onnx):
    """In a process whose allocator holds nothing yet. A short prefill: onnxruntime 1.23 (the last for Python 3.10) has
    no flash attention, and its scores touch a page a row."""
    command = [sys.executable, "-c", _MEASURE, str(tiny_onnx)]
    ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    before, after, kv = map(int, ran.stdout.split())
    assert before == 0, "nothing is known before a context ends"
    assert kv == 2 * 2 * 4 * 2 * 16 * 65536
    assert 100_000 < after < kv / 4


def test_the_kv_cache_is_resident_before_the_first_call(tiny_onnx):
    with opened(tiny_onnx) as model:
        context = model.context(65536, settings())
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for array in context._arrays:
            array.fill(1)
        faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        pages = model.memory().kv // resource.getpagesize()
        context.close()
    assert faults < 0.1 * pages


# --- threads on cores


@needs_two
def test_pinned_threads_have_a_core_each_and_so_has_ours(tiny_onnx):
    with own_mask():
        before = tasks()
        with opened(tiny_onnx, threads=2, threads_batch=2, pin=True, cpus=(CPUS[1], CPUS[0])):
            assert os.sched_getaffinity(0) == {CPUS[1]}
            assert {CPUS[0]} in new_threads(before).values()


@needs_two
def test_threads_that_are_not_pinned_may_use_all_cpus(tiny_onnx):
    before = tasks()
    with opened(tiny_onnx, threads=2, threads_batch=2):
        assert os.sched_getaffinity(0) == set(CPUS)
        assert all(mask == set(CPUS) for mask in new_threads(before).values())


@needs_two
def test_pinning_outside_of_the_mask_is_refused(tiny_onnx):
    with own_mask():
        os.sched_setaffinity(0, CPUS[:1])
        with (
            pytest.raises(HostError, match=rf"CPUs \[{CPUS[1]}\], which this process may not use"),
            opened(tiny_onnx, threads=2, threads_batch=2, pin=True, cpus=(CPUS[0], CPUS[1])),
        ):
            pass
        assert os.sched_getaffinity(0) == {CPUS[0]}


@needs_two
def test_another_thread_count_is_pinned_as_well(tiny_onnx):
    with own_mask(), opened(tiny_onnx, pin=True, cpus=(CPUS[1], CPUS[0])) as model:
        before = tasks()
        context = model.context(64, settings())
        context.set_threads(2, 2)
        assert {CPUS[0]} in new_threads(before).values()
        context.close()


# --- what a run says about it


def test_a_run_names_the_settings_that_its_engine_obeyed(tiny_onnx):
    with opened(tiny_onnx) as model:
        assert {"threads", "ubatch", "spinning", "arena", "pin", "kv_type"} <= set(model.loaded.settings)
        assert not {"flash_attention", "mmap", "batch", "threads_batch"} & set(model.loaded.settings)
        assert model.loaded.placement == ""


def test_records_without_the_new_fields_are_read():
    loaded = msgspec.json.decode(
        b'{"load_s":1,"parameters":1,"weight_bytes":1,"context_trained":1,"vocabulary":1,'
        b'"architecture":"a","description":"d"}',
        type=Loaded,
    )
    assert (loaded.settings, loaded.placement) == ((), "")
    old = msgspec.json.decode(b'{"threads":2,"threads_batch":2}', type=Settings)
    assert (old.spinning, old.arena, old.pin) == (None, None, None)


def test_a_trial_of_an_engine_without_these_settings_keeps_its_identity():
    artifact = Artifact(model="m", precision="q4_0", format="gguf", path="p", bytes=1, sha256="a" * 64)
    trial = TrialSpec(
        artifact=artifact,
        runtime="llamacpp",
        settings=Settings(threads=2, threads_batch=2),
        workloads=(parse_workload("pp512"),),
    )
    assert trial.trial_id == "00430049ed3f0205", "the identity that the version before these settings gave it"
    quiet = msgspec.structs.replace(trial, settings=settings(threads=2, threads_batch=2, spinning=False))
    assert quiet.trial_id != trial.trial_id


# --- devices


def test_a_build_has_the_devices_whose_providers_it_has():
    assert devices_of(["AzureExecutionProvider", "CPUExecutionProvider"]) == ("cpu",)
    gpu = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    assert devices_of(gpu) == ("cpu", "cuda", "tensorrt")
    assert devices_of(["CoreMLExecutionProvider", "AzureExecutionProvider", "CPUExecutionProvider"]) == (
        "cpu",
        "coreml",
    )
    assert devices_of(["WebGpuExecutionProvider", "CPUExecutionProvider"]) == ("cpu", "webgpu")


def test_what_tensorrt_cannot_do_goes_to_cuda_first():
    assert providers_of("tensorrt") == [
        "TensorrtExecutionProvider",
        "CUDAExecutionProvider",
        "CPUExecutionProvider",
    ]
    assert providers_of("cpu") == ["CPUExecutionProvider"]
    assert {name for name, provider in PROVIDERS.items() if provider.activations == "f16"} == {"cuda", "tensorrt"}


CUDA, CPU, RT = "CUDAExecutionProvider", "CPUExecutionProvider", "TensorrtExecutionProvider"


@pytest.mark.parametrize(
    ("device", "ran", "says", "problem"),
    [
        ("cuda", [(CUDA, "MatMulNBits"), (CUDA, "GroupQueryAttention")], "2 of 2 nodes on CUDA", ""),
        ("cuda", [(CUDA, "MatMulNBits"), (CPU, "Shape")], "1 of 2 nodes on CUDA", ""),
        (
            "cuda",
            [(CUDA, "MatMulNBits"), (CPU, "GroupQueryAttention")],
            "1 of 2 nodes on CUDA",
            "GroupQueryAttention would run on the CPU",
        ),
        ("cuda", [], "0 of 0 nodes on CUDA", "nothing would run on CUDA"),
        ("tensorrt", [(CUDA, "MatMulNBits"), (RT, "TRTKernel")], "1 of 2 nodes on Tensorrt, 1 of 2 nodes on CUDA", ""),
        (
            "tensorrt",
            [(CUDA, "MatMulNBits")],
            "0 of 1 nodes on Tensorrt, 1 of 1 nodes on CUDA",
            "nothing would run on Tensorrt",
        ),
    ],
)
def test_work_left_to_the_cpu_is_told(device, ran, says, problem):
    assert describe_placement(device, ran) == (says, problem)


@pytest.mark.parametrize(("device", "package"), [("webgpu", "onnxruntime-webgpu"), ("coreml", "macOS")])
def test_a_device_that_the_build_lacks_is_not_replaced_by_the_cpu(tiny_onnx, device, package):
    """onnxruntime itself would open some of these sessions on the CPU, with a warning or none."""
    if device in ORT.usable_devices():
        pytest.skip(f"this onnxruntime has {device}: use the build for the CPU")
    with pytest.raises(MissingDependency, match=f"has no {device}") as caught, opened(tiny_onnx, device=device):
        pass
    assert package in caught.value.next_step


def test_an_export_of_another_kind_is_refused_with_the_way_to_get_it(tiny_onnx):
    with (
        pytest.raises(ArtifactError, match="not exported for cuda, whose attention takes half precision") as caught,
        opened(tiny_onnx, device="cuda", kv_type="f16"),
    ):
        pass
    assert "--device cuda" in caught.value.next_step
