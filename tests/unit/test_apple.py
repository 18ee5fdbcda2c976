"""Apple's own model of its chip's energy, from a fake package and from synthetic outputs of powermetrics."""

from __future__ import annotations

import json
import sys
import time
import types
from pathlib import Path

import pytest

from edgebench.host import Host
from edgebench.sensors import apple
from edgebench.sensors.base import WaitsForAnswer

TREES = Path(__file__).parents[1] / "trees"
COMMAND = "commands/powermetrics --samplers cpu_power,gpu_power -n 1 -i 500"


def output(machine: str) -> str:
    return json.loads((TREES / f"{machine}.json").read_text())[COMMAND]


def mac(root: Path, said: str) -> Host:
    (root / "commands").mkdir(exist_ok=True)
    (root / COMMAND).write_text(said)
    return Host(root)


@pytest.mark.parametrize(
    ("machine", "watts", "elapsed_s"), [("macbook-air-m1", 1.1, 0.50451), ("mac-newer-system", 2.32, 0.5012)]
)
def test_the_parts_add_up_and_a_repeated_or_wider_line_does_not_count(tmp_path, machine, watts, elapsed_s):
    assert apple.parse_powermetrics(output(machine)) == (pytest.approx(watts), pytest.approx(elapsed_s))
    sensor = apple.detect(mac(tmp_path, output(machine)), None)
    assert isinstance(sensor, WaitsForAnswer)
    assert sensor.read() == [pytest.approx(watts)]
    assert time.monotonic_ns() - sensor.taken_ns >= 0.25e9
    (channel,) = sensor.channels()
    assert (channel.unit, channel.kind, channel.scope) == ("W", "gauge", "soc_compute")


@pytest.mark.parametrize("said", ["", "powermetrics must be invoked as the superuser", "GPU Power: 12 mW\n"])
def test_without_the_processors_part_there_is_no_total(tmp_path, said):
    assert apple.detect(mac(tmp_path, said), None) is None
    sensor = apple.PowermetricsSensor(Host(tmp_path))
    assert sensor.read() == [None]
    assert sensor.trouble


class Monitor:
    """Like ``AppleEnergyMonitor``: counts mJ, and answers None for what the chip does not have."""

    cpu_total_mj: int | None = 5000
    gpu_mj: int | None = 250
    ane_mj: int | None = None
    dram_mj: int | None = 9999

    def get_cumulative_energy(self) -> Monitor:
        return self


def test_the_package_is_preferred_and_counts_joules(monkeypatch):
    module = types.ModuleType("zeus_apple_silicon")
    module.AppleEnergyMonitor = Monitor
    module.__spec__ = types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "zeus_apple_silicon", module)
    sensor = apple.detect(Host(), None)
    assert sensor is not None
    assert sensor.channels()[0].kind == "counter"
    assert sensor.read() == [5.25]
    monkeypatch.setattr(Monitor, "cpu_total_mj", None)
    assert sensor.read() == [None]


def test_elsewhere_it_is_absent_and_says_why(tmp_path):
    assert apple.detect(Host(tmp_path), None) is None
    assert apple.absent(Host(tmp_path)) == ("this is no Apple machine: there is no powermetrics", "")
    (tmp_path / "commands").mkdir()
    (tmp_path / "commands/powermetrics -h").write_text("Usage: powermetrics")
    assert "zeus-apple-silicon" in apple.absent(Host(tmp_path))[1]
