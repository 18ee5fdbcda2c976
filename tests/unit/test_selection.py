"""Which runtimes take part on which device, and which settings they are given."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from edgebench import plan, profile
from edgebench.derive import EXPORTER, Kind
from edgebench.errors import EdgebenchError, MissingDependency, UnknownNameError, UsageError
from edgebench.host import Host
from edgebench.plan import Request, settings_for
from edgebench.registry import load, names
from edgebench.report.text import unusual_settings
from edgebench.runtimes._llamacpp_log import EngineLog
from edgebench.runtimes.llamacpp import devices_of
from edgebench.selection import on_device
from edgebench.specs import Artifact, Plan, Protocol, Settings, TrialSpec, parse_workload
from edgebench.topology import Topology, read_topology

ORT, LLAMA, FAKE = (load("runtimes", name).RUNTIME for name in ("ort", "llamacpp", "fake"))
BUILDS = {"ort": ("cpu", "cuda"), "llamacpp": ("cpu",), "fake": ("cpu",)}


def usable(name: str) -> Sequence[str]:
    return BUILDS[name]


def topology_of(cores: int) -> Topology:

    here = read_topology(Host())
    return msgspec.structs.replace(
        here,
        online=tuple(range(cores)),
        allowed=tuple(range(cores)),
        performance_cpus=tuple(range(cores)),
        physical_cores=msgspec.structs.replace(here.physical_cores, value=cores, unknown_because=""),
    )


def request(**changed: Any) -> Request:
    return Request(models=("m",), **changed)


# --- devices


def test_the_cpu_asks_nobody():
    def fail(_name: str) -> Sequence[str]:
        raise AssertionError("a child was started")

    assert on_device("cpu", (ORT, LLAMA, FAKE), fail, asked=False) == ((ORT, LLAMA, FAKE), ())


def test_an_engine_that_cannot_is_left_out_with_its_reason():
    able, left_out = on_device("cuda", (LLAMA, ORT), usable, asked=False)
    assert able == (ORT,)
    assert left_out == (
        'llamacpp can use cpu here; cuda comes with llama-cpp-python built with CMAKE_ARGS="-DGGML_CUDA=on"',
    )


@pytest.mark.parametrize(
    ("device", "runtimes", "asked", "says"),
    [
        ("cuda", (LLAMA,), True, r"llamacpp can use cpu here; cuda comes with .*GGML_CUDA"),
        ("cuda", (ORT, LLAMA), True, r"llamacpp can use cpu here"),
        ("tensorrt", (LLAMA,), True, r"llamacpp has no tensorrt at all"),
        (
            "webgpu",
            (ORT, LLAMA),
            False,
            r"ort can use cpu, cuda here; webgpu comes with onnxruntime-webgpu.*; llamacpp",
        ),
        ("coreml", (ORT,), False, r"coreml comes with onnxruntime on macOS"),
        ("cuda", (FAKE,), True, r"fake has no cuda at all"),
    ],
)
def test_a_device_that_nobody_asked_for_can_use_is_refused(device, runtimes, asked, says):
    with pytest.raises(MissingDependency, match=says) as caught:
        on_device(device, runtimes, usable, asked=asked)
    assert caught.value.next_step == "use --device cpu."


def test_a_device_that_does_not_exist_is_refused():
    with pytest.raises(UnknownNameError, match="cuba"):
        on_device("cuba", (ORT,), usable, asked=False)


def test_every_runtime_has_the_cpu():
    assert all("cpu" in load("runtimes", name).RUNTIME.devices for name in names("runtimes"))


@pytest.mark.parametrize(
    ("found", "devices"),
    [(("CPU",), ("cpu",)), (("CUDA0", "CPU"), ("cpu", "cuda")), (("Vulkan0", "CPU"), ("cpu",)), ((), ("cpu",))],
)
def test_devices_of_a_build_of_llamacpp(found, devices):
    assert devices_of(found) == devices


def test_llamacpp_says_how_many_layers_it_moved():
    log = EngineLog(lambda _line: None)
    assert log.offloaded is None
    log.write(2, "load_tensors: offloading output layer to GPU\n")
    log.write(2, "load_tensors: offloaded 31/31 layers to GPU\n")
    assert log.offloaded == (31, 31)


# --- settings


def test_only_onnxruntime_is_told_what_only_onnxruntime_obeys():
    asked = request(spinning=False, arena=False, pin=True)
    told = settings_for(asked, topology_of(4), ORT, 2, 2)
    assert (told.spinning, told.arena, told.pin, told.cpus) == (False, False, True, (0, 1, 2, 3))
    plain = settings_for(request(), topology_of(4), LLAMA, 2, 2)
    assert settings_for(asked, topology_of(4), LLAMA, 2, 2) == plain
    assert (plain.spinning, plain.arena, plain.pin, plain.cpus) == (None, None, None, ())


def test_defaults_of_onnxruntime_are_written_down():
    told = settings_for(request(), topology_of(4), ORT, 2, 2)
    assert (told.spinning, told.arena, told.pin, told.kv_type) == (True, True, False, "f32")
    assert settings_for(request(device="cuda"), topology_of(4), ORT, 2, 2).kv_type == "f16"


def test_more_threads_than_cores_cannot_be_pinned():
    with pytest.raises(UsageError, match="3 threads cannot be pinned to 2 performance cores") as caught:
        settings_for(request(pin=True), topology_of(2), ORT, 3, 3)
    assert "fewer --threads" in caught.value.next_step


@pytest.mark.parametrize(
    ("options", "runtimes", "says"),
    [
        ({"spinning": False}, ("fake",), r"--\[no-\]spinning is a setting of onnxruntime, not of fake"),
        ({"arena": True}, ("fake",), r"--\[no-\]arena is a setting of onnxruntime"),
        ({"pin": True}, ("fake",), r"--pin is a setting of onnxruntime"),
        ({"accuracy_level": 0}, ("fake",), r"--accuracy-level is a property of ONNX graphs"),
        ({"accuracy_level": 3}, ("fake",), r"There is no accuracy level 3"),
    ],
)
def test_a_setting_that_reaches_no_runtime_is_refused(options, runtimes, says):
    with pytest.raises(UsageError, match=says) as caught:
        plan.check(request(runtimes=runtimes, **options))
    assert isinstance(caught.value, EdgebenchError)
    assert caught.value.next_step


def test_unusual_settings_are_said_and_usual_ones_are_not():
    usual = Settings(threads=1, threads_batch=1, spinning=True, arena=True, pin=False)
    assert unusual_settings(usual) == []
    assert unusual_settings(Settings(threads=1, threads_batch=1)) == []
    odd = Settings(threads=2, threads_batch=2, spinning=False, arena=False, pin=True, cpus=(4, 5))
    assert unusual_settings(odd) == [
        "idle threads do not spin",
        "no arena: scratch memory goes back to the C library after each call",
        "each thread stays on one of the CPUs 4, 5",
    ]


# --- kinds of exports


@pytest.mark.parametrize(
    ("kind", "maker", "variant"),
    [
        (Kind(), "", ""),
        (Kind(accuracy_level=4), "", ""),
        (Kind(context=9000), "-ctx9000", ""),
        (Kind(accuracy_level=0), "-acc0", "acc0"),
        (Kind(context=9000, accuracy_level=0, halved=True), "-ctx9000-acc0-f16", "acc0 f16"),
    ],
)
def test_each_kind_of_export_has_a_place_of_its_own(kind, maker, variant):
    assert kind.maker == EXPORTER + maker
    assert kind.variant == variant
    assert re.fullmatch(r"[\w.-]+", kind.maker)


def test_a_session_on_an_onnx_folder_can_be_resumed(tmp_path):
    folder = Artifact(model="m", precision="int4", format="onnx", path=str(tmp_path), bytes=1, sha256="0" * 64)
    trial = TrialSpec(
        artifact=folder,
        runtime="ort",
        settings=Settings(threads=1, threads_batch=1),
        workloads=(parse_workload("tg8"),),
    )
    profile._check_files(Plan(trials=(trial,), protocol=Protocol()))
    gone = msgspec.structs.replace(trial, artifact=msgspec.structs.replace(folder, path=str(tmp_path / "gone")))
    with pytest.raises(UsageError, match="gone"):
        profile._check_files(Plan(trials=(gone,), protocol=Protocol()))
