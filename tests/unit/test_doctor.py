"""The examination of machines of different kinds, as data and as text of 80 columns."""

from __future__ import annotations

import json
import re
from pathlib import Path

import click.testing
import pytest

from edgebench import doctor, registry
from edgebench.cli.doctor import command
from edgebench.doctor import Check
from edgebench.doctor.software import examine_places, examine_runtimes
from edgebench.engine.messages import About
from edgebench.host import Host
from edgebench.records import Fact
from edgebench.topology import read_topology

TREES = Path(__file__).parents[1] / "trees"


def tree(root: Path, device: str, **changes: str | None) -> Host:
    """The tree of a device with some files changed, or removed by None."""
    files = json.loads((TREES / f"{device}.json").read_text()) | changes
    for name, text in files.items():
        if text is not None:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    return Host(root)


def checks(host: Host, **options: object) -> dict[str, Check]:
    sections = doctor.examine(host, watch_s=0.05, **options)
    found = [check for section in sections for check in section.checks]
    assert len({check.name for check in found}) == len(found)
    return {check.name: check for check in found}


def answer(build: str):
    def ask(runtime: str, host: Host) -> About:
        return About(version=Fact(value=f"{runtime} 1.0"), build=Fact(value=build))

    return ask


def test_a_raspberry_pi_5_as_text(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    tree(tmp_path, "raspberry-pi-5")
    shown = click.testing.CliRunner().invoke(command, ["--root", str(tmp_path)], catch_exceptions=False)
    assert shown.exit_code == 0
    lines = shown.stdout.splitlines()
    assert max(len(line) for line in lines if "fix: " not in line) <= 80
    for expected in (
        "Raspberry Pi 5",
        "4 x Cortex-A76",
        "6.12.47+rpt-rpi-2712",
        "ondemand: the clock follows the load",
        "fix: echo performance | sudo tee /sys/devices/system/cpu/cpufreq/policy*/scaling_governor\n",
        "under-voltage since boot, throttled since boot",
        "zram",
        "board, 3V7_WL_SW, 3V3_SYS",
        "pmic.board (board_rails, gauge)",
    ):
        assert expected in shown.stdout, expected
    assert str(tmp_path) not in shown.stdout  # fixes are for the board itself


def test_json_is_the_same_as_data(tmp_path):
    host = tree(tmp_path, "raspberry-pi-5")
    shown = click.testing.CliRunner().invoke(command, ["--json", "--root", str(tmp_path)], catch_exceptions=False)
    document = json.loads(shown.stdout)
    names = [check["name"] for section in document["sections"] for check in section["checks"]]
    assert names == list(checks(host))
    assert {check["state"] for section in document["sections"] for check in section["checks"]} == {
        "ok",
        "warn",
        "missing",
    }


def test_every_sensor_and_every_runtime_is_looked_at(tmp_path):
    found = checks(tree(tmp_path, "raspberry-pi-5"))
    assert set(registry.names("sensors")) | set(registry.names("runtimes")) <= set(found)


def test_a_laptop_on_battery_with_moving_clocks(tmp_path):
    found = checks(tree(tmp_path, "laptop-i5-1340p"))
    assert found["power"].state == "warn"
    assert found["governor"].state == "warn"
    assert found["turbo"].state == "warn"
    assert "no_turbo" in found["turbo"].fix
    assert found["swap"].state == "ok"
    assert "psys" in found["rapl"].says
    assert "power" in found["battery"].says
    assert found["energy"].says.startswith("rapl.psys (psys, counter)")
    assert "check of the primary source" in found["battery.power"].says
    assert "4 performance cores (8 threads) + 8 efficiency cores" in found["cores"].says


def test_a_laptop_whose_counters_are_for_root_alone_is_told_how_to_open_them_and_the_price(tmp_path):
    trees = json.loads((TREES / "laptop-i5-1340p.json").read_text())
    closed = "".join(f"EACCES {name}\n" for name in trees if name.endswith("energy_uj"))
    found = checks(tree(tmp_path, "laptop-i5-1340p", refused=closed))
    assert found["rapl"].state == "warn"
    assert "CVE-2020-8694" in found["rapl"].says
    assert "udev rule" in found["rapl"].fix
    assert "watch" in found["rapl"].fix
    assert "psys" in found["rapl.psys"].says
    assert found["rapl.psys"].says.endswith("see rapl above")
    assert found["energy"].says.startswith("battery.")


def test_a_jetson_measures_its_total_rail_and_says_that_a_zone_is_off(tmp_path):
    mode = {"commands/nvpmodel -q": "NV Power Mode: 25W\n1\n"}
    found = checks(tree(tmp_path, "jetson-orin-nano", **mode))
    assert "VDD_IN" in found["ina3221"].says
    assert found["energy"].state == "ok"
    assert found["energy"].says.startswith("ina3221.VDD_IN (module, gauge)")
    assert "is part of ina3221.VDD_IN" in found["parts"].says
    assert "1 switched off" in found["thermal"].says
    assert found["throttle"].state == "missing"
    assert (found["power mode"].state, found["power mode"].says) == ("ok", "25W")


def test_a_jetson_whose_rails_are_closed_says_so_once_with_the_exact_fix(tmp_path):
    trees = json.loads((TREES / "jetson-orin-nano.json").read_text())
    closed = "".join(f"EACCES {name}\n" for name in trees if re.search(r"ina3221.*_input$", name))
    found = checks(tree(tmp_path, "jetson-orin-nano", refused=closed))
    assert found["ina3221"].state == "warn"
    assert found["ina3221"].fix.startswith("sudo chmod a+r /sys/")
    assert found["ina3221.VDD_IN"].says.endswith("see ina3221 above")
    assert found["ina3221.VDD_IN"].fix == ""
    assert "nvpmodel" in found["power mode"].fix


def test_a_board_without_a_sensor_is_sent_to_the_meter_of_its_profile(tmp_path):
    changes = {
        "sys/firmware/devicetree/base/model": "Raspberry Pi 4 Model B Rev 1.5\0",
        "commands/vcgencmd pmic_read_adc": 'error=1 error_msg="Command not registered"\n',
    }
    found = checks(tree(tmp_path, "raspberry-pi-5", **changes))
    assert found["energy"].state == "missing"
    assert "USB meter" in found["energy"].fix
    assert "USB-C or wall meter" in found["pmic"].fix


def test_a_gpu_is_a_source_of_its_own(tmp_path):
    card = {
        "proc/driver/nvidia/version": "NVRM version\n",
        "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t NVIDIA GeForce RTX 3060\n",
        "commands/nvml": '[{"energy_mj": 5000, "instant_mw": 20000}]',
    }
    found = checks(tree(tmp_path, "raspberry-pi-5", **card))
    assert found["gpu"].says == "NVIDIA GeForce RTX 3060 (rtx-3060)"
    assert found["energy"].says.startswith("pmic.board")
    assert found["energy, on a GPU"].state == "ok"


# --- quieter ----------------------------------------------------------------------------------------------------------


def steps(host: Host, **environment: str) -> dict[str, doctor.Step]:
    return {step.command: step for step in doctor.tuning(host, environment)}


def test_tuning_gives_commands_with_reasons_and_the_way_back(tmp_path):
    policy = "sys/devices/system/cpu/cpufreq"
    changes = {
        "proc/swaps": "Filename\tType\tSize\tUsed\tPriority\n/home/a\\040b/swap file 8 0 -2\n",
        "sys/firmware/acpi/platform_profile": "balanced\n",
        "sys/firmware/acpi/platform_profile_choices": "low-power balanced performance\n",
    }
    found = steps(tree(tmp_path, "laptop-i5-1340p", **changes))
    assert [command.split(" ")[0:2] for command in found] == [
        ["echo", "performance"],
        ["echo", "performance"],
        ["echo", "1"],
        ["sudo", "swapoff"],
    ]
    governor = found[f"echo performance | sudo tee /{policy}/policy*/scaling_governor"]
    assert governor.undo == f"echo powersave | sudo tee /{policy}/policy*/scaling_governor"
    turbo = found["echo 1 | sudo tee /sys/devices/system/cpu/intel_pstate/no_turbo"]
    assert turbo.undo == "echo 0 | sudo tee /sys/devices/system/cpu/intel_pstate/no_turbo"
    assert found["sudo swapoff '/home/a b/swap'"].undo == "sudo swapon '/home/a b/swap'"
    assert all(step.why for step in found.values())


def test_the_way_back_names_each_policy_where_they_differ(tmp_path):
    policy = "sys/devices/system/cpu/cpufreq"
    changes = {f"{policy}/policy0/scaling_governor": "performance\n"}
    found = steps(tree(tmp_path, "jetson-orin-nano", **changes))
    undo = found[f"echo performance | sudo tee /{policy}/policy*/scaling_governor"].undo
    assert undo == f"echo schedutil | sudo tee /{policy}/policy4/scaling_governor"
    assert found["sudo jetson_clocks --store && sudo jetson_clocks"].undo == "sudo jetson_clocks --restore"


def test_a_quiet_machine_needs_no_command(tmp_path):
    changes = {
        "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "performance\n",
        "proc/swaps": "Filename\tType\tSize\tUsed\tPriority\n",
    }
    assert steps(tree(tmp_path, "raspberry-pi-5", **changes)) == {}
    shown = click.testing.CliRunner().invoke(command, ["--tune", "--root", str(tmp_path)], catch_exceptions=False)
    assert shown.stdout.startswith("# nothing to do")


def test_tune_prints_a_script_of_comments_and_commands(tmp_path):
    host = tree(tmp_path, "raspberry-pi-5")
    shown = click.testing.CliRunner().invoke(command, ["--tune", "--root", str(tmp_path)], catch_exceptions=False)
    lines = [line for line in shown.stdout.splitlines() if line and not line.startswith("#")]
    assert lines == list(steps(host))
    assert "# echo ondemand | sudo tee" in shown.stdout
    assert str(tmp_path) not in shown.stdout
    said = click.testing.CliRunner().invoke(command, ["--tune", "--json", "--root", str(tmp_path)])
    assert [step["command"] for step in json.loads(said.stdout)["steps"]] == lines


def test_speed_variables_are_unset(tmp_path):
    host = Host()
    assert "unset OMP_NUM_THREADS" in steps(host, OMP_NUM_THREADS="2")


def test_a_power_mode_that_holds_back_is_a_warning(tmp_path):
    mode = {"sys/firmware/acpi/platform_profile": "low-power\n"}
    found = checks(tree(tmp_path, "laptop-i5-1340p", **mode))
    assert found["power mode"].state == "warn"
    assert found["power mode"].fix == ""  # the firmware offers no other


def test_the_limit_of_a_container_is_the_memory_that_counts(tmp_path):
    group = {
        "proc/self/cgroup": "0::/box\n",
        "sys/fs/cgroup/cgroup.controllers": "cpu memory\n",
        "sys/fs/cgroup/box/memory.max": "1073741824\n",
        "sys/fs/cgroup/box/cpu.max": "150000 100000\n",
    }
    found = checks(tree(tmp_path, "raspberry-pi-5", **group))
    assert "the container may use 1024 MiB" in found["ram"].says
    assert "quota of 1.5 CPUs" in found["cores"].says
    assert found["threads"].says.startswith("1 by default")


def test_a_calm_machine_has_nothing_to_fix(tmp_path):
    changes = {
        "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "performance\n",
        "commands/vcgencmd get_throttled": "throttled=0x0\n",
        "proc/swaps": "Filename\tType\tSize\tUsed\tPriority\n",
    }
    found = checks(tree(tmp_path, "raspberry-pi-5", **changes))
    assert [check for check in found.values() if check.state == "warn"] == []
    assert found["throttled"].says == "no flag is set"


def test_a_sensor_that_is_there_but_unreadable_is_a_warning_with_a_fix(tmp_path):
    changes = {"sys/class/thermal/thermal_zone0/temp": "N/A\n"}
    found = checks(tree(tmp_path, "raspberry-pi-5", **changes))
    assert found["thermal"].state == "warn"
    assert found["thermal"].fix


def test_a_build_without_the_instructions_of_this_cpu_is_a_warning_with_the_exact_command():
    host = Host()
    topology = read_topology(host)
    if "avx2" not in topology.flags and "asimddp" not in topology.flags:
        pytest.skip("this CPU has neither AVX2 nor dotprod")
    section = examine_runtimes(host, topology, answer("CPU : SSE3 = 1 | NEON = 1 | AVX2 = 0"))
    found = {check.name: check for check in section.checks}
    assert found["llamacpp"].state == "ok"
    assert found["llamacpp build"].state == "warn"
    assert "AVX2" in found["llamacpp build"].says or "DOTPROD" in found["llamacpp build"].says
    assert found["llamacpp build"].fix == (
        'CMAKE_ARGS="-DGGML_NATIVE=ON" pip install --force-reinstall --no-binary llama-cpp-python llama-cpp-python'
    )


def test_a_runtime_that_dies_when_asked_is_a_warning_with_the_reason():
    host = Host()

    def dies(runtime: str, host: Host) -> About:
        gone = Fact(unknown_because="the process was killed by SIGILL")
        return About(version=gone, build=gone)

    section = examine_runtimes(host, read_topology(host), dies)
    assert {check.state for check in section.checks} <= {"warn", "missing"}
    assert any("SIGILL" in check.says for check in section.checks)


def test_speed_variables_of_the_environment_are_shown_with_the_way_out():
    found = checks(Host(), ask=answer("x"), environment={"OMP_NUM_THREADS": "1", "HOME": "/h"})
    assert found["environment"].fix == "unset OMP_NUM_THREADS"
    assert "HOME" not in found["environment"].says


def test_load_and_stolen_time_are_watched_on_this_machine():
    found = checks(Host(), ask=answer("x"), environment={})
    assert "of all CPU time busy" in found["load"].says
    assert "environment" not in found


def test_places_that_do_not_exist_yet_are_judged_by_their_parent(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEBENCH_STORE", str(tmp_path / "new" / "results.db"))
    monkeypatch.setenv("EDGEBENCH_CACHE", str(tmp_path / "cache"))
    found = {check.name: check for check in examine_places().checks}
    assert "not made yet" in found["store"].says
    assert str(tmp_path / "cache") in found["cache"].says
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "cache").exists()


def test_a_store_on_a_server_is_shown_without_its_password(monkeypatch):
    monkeypatch.setenv("EDGEBENCH_STORE", "postgresql://me:secret@db/results")
    store = examine_places().checks[0]
    assert "secret" not in store.says
    assert "db/results" in store.says


def test_a_place_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch):
    (tmp_path / "file").touch()  # permissions do not stop root, a file in the way does
    monkeypatch.setenv("EDGEBENCH_CACHE", str(tmp_path / "file" / "cache"))
    cache = examine_places().checks[1]
    assert cache.state == "warn"
    assert cache.fix.startswith("export EDGEBENCH_CACHE=")
