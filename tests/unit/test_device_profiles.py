"""Every profile that ships is chosen for its own device, and for no other."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgebench import cards, devices
from edgebench.device_profile import DeviceProfile
from edgebench.host import Host
from edgebench.topology import read_topology

PROFILES = cards.device_profiles()
MIB = 1024  # kB


def board(model: str, *compatible: str, memory_gib: float = 4, machine: str = "aarch64") -> dict[str, str]:
    """A board that has nothing but a device tree, memory and one core."""
    files = {
        "machine": machine,
        "proc/cpuinfo": "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd0b\n",
        "proc/meminfo": f"MemTotal: {int(memory_gib * MIB * MIB)} kB\n",
        "sys/firmware/devicetree/base/model": f"{model}\0",
    }
    return files | ({"sys/firmware/devicetree/base/compatible": "\0".join([*compatible, ""])} if compatible else {})


def pc(cpu: str, vendor: str = "ACME", product: str = "Book") -> dict[str, str]:
    """A PC with the firmware names and the processor that matter."""
    return {
        "machine": "x86_64",
        "proc/cpuinfo": f"processor\t: 0\nmodel name\t: {cpu}\nflags\t\t: fpu\n",
        "proc/meminfo": f"MemTotal: {16 * MIB * MIB} kB\n",
        "sys/class/dmi/id/sys_vendor": vendor,
        "sys/class/dmi/id/product_name": product,
    }


def mac(name: str) -> dict[str, str]:
    """macOS: no kernel files at all; the number of CPUs is written down so that the tree can be read elsewhere."""
    files = {"machine": "arm64", "sys/devices/system/cpu/online": "0-7\n"}
    return files | {"commands/sysctl -n machdep.cpu.brand_string": f"{name}\n"}


def orin(module: str, memory_gib: float, model: str = "Carrier of somebody") -> dict[str, str]:
    """A carrier board that only the compatible names tell apart."""
    return board(model, f"nvidia,p3768-0000+{module}", f"nvidia,{module}", "nvidia,tegra234", memory_gib=memory_gib)


def agx(module: str, memory_gib: float) -> dict[str, str]:
    """An AGX Orin developer kit."""
    names = (f"nvidia,p3737-0000+{module}", f"nvidia,{module}", "nvidia,tegra234")
    return board("NVIDIA Jetson AGX Orin Developer Kit", *names, memory_gib=memory_gib)


ORIN_NANO = "NVIDIA Jetson Orin Nano"
# What a device says about itself: names from the device trees of the Linux kernel and from the drivers.
MACHINES = [
    ("raspberry-pi-3b-plus", board("Raspberry Pi 3 Model B Plus Rev 1.3", "raspberrypi,3-model-b-plus")),
    ("raspberry-pi-zero-2-w", board("Raspberry Pi Zero 2 W Rev 1.0", "raspberrypi,model-zero-2-w", "brcm,bcm2837")),
    ("raspberry-pi-4", board("Raspberry Pi 4 Model B Rev 1.5", "raspberrypi,4-model-b", "brcm,bcm2711")),
    ("raspberry-pi-4", board("Raspberry Pi Compute Module 4 Rev 1.1", "raspberrypi,4-compute-module", "brcm,bcm2711")),
    ("raspberry-pi-400", board("Raspberry Pi 400 Rev 1.0", "raspberrypi,400", "brcm,bcm2711")),
    ("raspberry-pi-5", board("Raspberry Pi 5 Model B Rev 1.0", "raspberrypi,5-model-b", "brcm,bcm2712")),
    ("raspberry-pi-500", board("Raspberry Pi 500 Rev 1.0", "raspberrypi,500", "brcm,bcm2712")),
    ("raspberry-pi-cm5", board("Raspberry Pi Compute Module 5 Rev 1.0", "raspberrypi,5-compute-module")),
    ("raspberry-pi-cm5", board("Raspberry Pi Compute Module 5 Lite Rev 1.0", "brcm,bcm2712")),
    ("jetson-nano", board("NVIDIA Jetson Nano Developer Kit", "nvidia,p3450-0000", "nvidia,tegra210")),
    ("jetson-nano", board("NVIDIA Jetson Nano 2GB Developer Kit", "nvidia,p3448-0003", memory_gib=1.9)),
    ("jetson-xavier-nx", board("NVIDIA Jetson Xavier NX Developer Kit", "nvidia,p3509-0000+p3668-0000")),
    ("jetson-orin-nano", orin("p3767-0005", 7.4, "NVIDIA Jetson Orin Nano Developer Kit")),
    ("jetson-orin-nano", orin("p3767-0003", 7.4)),
    ("jetson-orin-nano", board("NVIDIA Jetson Orin Nano Developer Kit", memory_gib=7.4)),
    ("jetson-orin-nano-super", orin("p3767-0005-super", 7.4)),
    ("jetson-orin-nano-super", board(f"{ORIN_NANO} Engineering Reference Developer Kit Super", memory_gib=7.4)),
    ("jetson-orin-nano-4gb", orin("p3767-0004", 3.3)),
    ("jetson-orin-nano-4gb", orin("p3767-0004-super", 3.3, f"{ORIN_NANO} Developer Kit Super")),
    ("jetson-orin-nano-4gb", board("NVIDIA Jetson Orin Nano Developer Kit", memory_gib=3.3)),
    ("jetson-orin-nx-8gb", orin("p3767-0001", 7.4)),
    ("jetson-orin-nx-8gb", board("NVIDIA Jetson Orin NX Engineering Reference Developer Kit", memory_gib=7.4)),
    ("jetson-orin-nx-16gb", orin("p3767-0000", 15.3)),
    ("jetson-orin-nx-16gb", orin("p3767-0000-super", 15.3)),
    ("jetson-agx-orin", agx("p3701-0000", 30)),
    ("jetson-agx-orin", agx("p3701-0005", 61)),
    ("jetson-agx-orin-32gb", agx("p3701-0004", 30)),
    ("jetson-agx-thor", board("NVIDIA Jetson AGX Thor Developer Kit", "nvidia,p3971-0089+p3834-0008")),
    ("rock-5b", board("Radxa ROCK 5B", "radxa,rock-5b", "rockchip,rk3588")),
    ("rock-5b", board("Radxa ROCK 5 Model B", "radxa,rock-5b", "rockchip,rk3588")),
    ("orange-pi-5", board("Xunlong Orange Pi 5", "xunlong,orangepi-5", "rockchip,rk3588s")),
    ("intel-n100", pc("Intel(R) N100", "GMKtec", "NucBox G3")),
    ("intel-n150", pc("Intel(R) N150", "GMKtec", "NucBox G3 Plus")),
    ("laptop-core-i5-1340p", pc("13th Gen Intel(R) Core(TM) i5-1340P", "LENOVO", "21F6CTO1WW")),
    ("laptop-ryzen-7-7840u", pc("AMD Ryzen 7 7840U w/ Radeon 780M Graphics", "Framework", "Laptop 13")),
    ("laptop-core-ultra-7-155h", pc("Intel(R) Core(TM) Ultra 7 155H", "ASUSTeK COMPUTER INC.", "Zenbook")),
    ("laptop-snapdragon-x-elite", board("Lenovo ThinkPad T14s Gen 6", "qcom,x1e78100", "qcom,x1e80100")),
    *((f"apple-m{n}", mac(f"Apple M{n}")) for n in range(1, 5)),
    ("apple-m1", board("Apple MacBook Pro (13-inch, M1, 2020)", "apple,j293", "apple,t8103", "apple,arm-platform")),
    ("apple-m2", board("Apple MacBook Air (13-inch, M2, 2022)", "apple,j413", "apple,t8112", "apple,arm-platform")),
    ("apple-m3", board("Apple MacBook Air (13-inch, M3, 2024)", "apple,j613", "apple,t8122", "apple,arm-platform")),
    ("apple-m4", board("Apple Mac mini (M4, 2024)", "apple,j773g", "apple,t8132", "apple,arm-platform")),
    ("generic-x86-64", pc("AMD EPYC", "QEMU", "Standard PC")),
    ("generic-arm64", board("Board of somebody", "acme,board", "acme,chip")),
    ("generic", board("Board of somebody", machine="riscv64")),
]  # fmt: skip
# Relatives without a profile of their own: theirs must not be taken for that of the device beside them.
RELATIVES = [
    board("Orange Pi 5 Max", "xunlong,orangepi-5-max", "rockchip,rk3588"),
    board("Orange Pi 5 Plus", "xunlong,orangepi-5-plus", "rockchip,rk3588"),
    board("Xunlong Orange Pi 5B", "xunlong,orangepi-5b", "rockchip,rk3588s"),
    board("Radxa ROCK 5B+", "radxa,rock-5b-plus", "rockchip,rk3588"),
    board("Raspberry Pi 3 Model B Rev 1.2", "raspberrypi,3-model-b", "brcm,bcm2837"),
    board("Apple MacBook Pro (14-inch, M1 Pro, 2021)", "apple,j314s", "apple,t6000", "apple,arm-platform"),
    mac("Apple M1 Max"), mac("Apple M2 Pro"), mac("Apple M3 Ultra"), mac("Apple M5"),
    pc("Intel(R) Core(TM) Ultra 7 155U"), pc("13th Gen Intel(R) Core(TM) i5-1345U"), pc("AMD Ryzen 7 7840HS"),
]  # fmt: skip


def host_of(root: Path, files: dict[str, str]) -> Host:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Host(root)


@pytest.mark.parametrize(("profile", "files"), MACHINES)
def test_a_device_gets_its_profile_and_no_other_specific_one_fits(profile, files, tmp_path):
    host = host_of(tmp_path, files)
    topology = read_topology(host)
    assert devices.detect(host, topology).id == profile
    assert devices.fitting(host, topology) == ([] if PROFILES[profile].generic else [profile])


@pytest.mark.parametrize("files", RELATIVES)
def test_a_relative_without_a_profile_of_its_own_gets_a_generic_one(files, tmp_path):
    host = host_of(tmp_path, files)
    assert devices.detect(host, read_topology(host)).generic


def test_every_machine_that_ships_is_recognised_here():
    assert {profile for profile, _ in MACHINES} == {p.id for p in PROFILES.values() if p.kind == "machine"}


# --- GPUs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", [profile for profile in PROFILES.values() if profile.kind == "gpu"])
def test_a_gpu_gets_the_one_profile_with_its_name(profile, tmp_path):
    for number, name in enumerate(profile.match.gpu):
        files = {f"proc/driver/nvidia/gpus/0000:0{number}:00.0/information": f"Model: \t\t {name}\nIRQ: 1\n"}
        host = host_of(tmp_path / str(number), files)
        assert [found.id for found in devices.accelerators(host)] == [profile.id]


@pytest.mark.parametrize("name", ["NVIDIA GeForce RTX 3060 Ti", "NVIDIA GeForce RTX 3060 Laptop GPU", "NVIDIA A20"])
def test_a_gpu_with_a_longer_name_is_another_gpu(name, tmp_path):
    host = host_of(tmp_path, {"commands/nvidia-smi --query-gpu=name --format=csv,noheader": f"{name}\n"})
    assert devices.gpu_names(host) == (name,)
    assert devices.accelerators(host) == ()


def test_two_gpus_have_two_profiles_and_the_machine_its_own(tmp_path):
    listed = {"commands/nvidia-smi --query-gpu=name --format=csv,noheader": "Tesla T4\nNVIDIA A2\n"}
    host = host_of(tmp_path, pc("AMD EPYC") | listed)
    assert [profile.id for profile in devices.accelerators(host)] == ["tesla-t4", "nvidia-a2"]
    assert devices.detect(host, read_topology(host)).id == "generic-x86-64"


# --- what they say ----------------------------------------------------------------------------------------------------


def specific() -> list[DeviceProfile]:
    return [profile for profile in PROFILES.values() if not profile.generic]


def test_every_specific_profile_says_what_a_reader_looks_for():
    for profile in specific():
        assert profile.memory_bandwidth_gb_s is not None, profile.id
        assert profile.advice, profile.id
        assert profile.build_flags, profile.id
        assert profile.kind == "gpu" or (profile.cores and profile.clusters and profile.isa), profile.id


def test_watts_idle_are_below_watts_at_full_load_and_a_module_below_its_limit():
    for profile in specific():
        if profile.power_draw is not None:
            assert 0 < float(profile.power_draw.idle_w.value) < float(profile.power_draw.full_w.value) < 300, profile.id
        watts = [float(mode.watts.value) for mode in profile.power_modes if mode.watts is not None]
        assert watts == sorted(watts) or watts == sorted(watts, reverse=True), profile.id


def test_a_jetson_has_one_total_or_disjoint_ones():
    known = [profile for profile in specific() if profile.power is not None and profile.power.rails]
    totals = {profile.id: [rail.label for rail in profile.power.rails if rail.total] for profile in known}
    assert totals["jetson-orin-nx-16gb"] == ["VDD_IN"]
    assert totals["jetson-nano"] == ["POM_5V_IN"]
    assert totals["jetson-agx-orin"] == ["VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"]
    assert all(totals.values())
