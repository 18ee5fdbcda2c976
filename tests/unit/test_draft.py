"""A draft is a profile that loads, recognises its own device, and names nothing that identifies one single device."""

from __future__ import annotations

import json
from pathlib import Path

import click.testing
import pytest

from edgebench import cards, devices
from edgebench.cli.devices import command
from edgebench.draft import draft
from edgebench.errors import HostError
from edgebench.host import Host
from edgebench.topology import read_topology

TREES = Path(__file__).parents[1] / "trees"


def tree(root: Path, device: str, **changes: str) -> Host:
    for name, text in (json.loads((TREES / f"{device}.json").read_text()) | changes).items():
        path = root / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return Host(root / "tree")


def loaded(root: Path, host: Host, profile_id: str = ""):
    name, text = draft(host, read_topology(host), profile_id)
    path = root / f"{name}.toml"
    path.write_text(text)
    return cards.read_device_profile(path), text


@pytest.mark.parametrize("device", [path.stem for path in TREES.glob("*.json") if "proc/" in path.read_text()])
def test_a_draft_loads_again_and_recognises_its_own_device(device, tmp_path):
    host = tree(tmp_path, device)
    profile, _ = loaded(tmp_path, host)
    topology = read_topology(host)
    assert devices.detect(host, topology, [profile]).id == profile.id
    assert (profile.cores.value if profile.cores else None) == topology.physical_cores.value  # never a guess
    assert not profile.clusters or sum(cluster.count for cluster in profile.clusters) == profile.cores.value
    assert profile.memory_bandwidth_gb_s is None


def test_a_draft_of_a_pi_forgets_the_revision_and_expects_its_flags(tmp_path):
    profile, text = loaded(tmp_path, tree(tmp_path, "raspberry-pi-5"))
    assert (profile.id, profile.match.device_tree) == ("raspberry-pi-5-model-b", ("Raspberry Pi 5 Model B",))
    assert profile.throttle == "raspberry-pi"
    assert profile.memory_bytes == (8 * 2**30,)
    assert "thermal zones: cpu-thermal" in text


def test_a_draft_of_a_jetson_has_its_rails_and_their_total(tmp_path):
    chip = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1"
    rails = {
        f"{chip}/in2_label": "VDD_SOC\n",
        f"{chip}/in3_label": "NC\n",
        f"{chip}/in7_label": "sum of shunt voltages\n",
    }
    profile, _ = loaded(tmp_path, tree(tmp_path, "jetson-orin-nano", **rails))
    assert [(rail.label, rail.scope, rail.total) for rail in profile.power.rails] == [
        ("VDD_IN", "module", True),
        ("VDD_SOC", "component", False),
    ]


def test_rails_of_which_no_total_is_known_are_left_to_a_person(tmp_path):
    label = {"sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon1/in1_label": "VCC_A\n"}
    profile, text = loaded(tmp_path, tree(tmp_path, "jetson-orin-nano", **label))
    assert profile.power is None
    assert "#   VCC_A" in text


def test_a_draft_keeps_no_serial_number(tmp_path):
    secrets = {
        "sys/class/dmi/id/product_serial": "PF4XYZ12\n",
        "sys/class/dmi/id/product_uuid": "4c4c4544-0042-3510-8051-b9c04f565a32\n",
        "sys/class/net/eth0/address": "dc:a6:32:01:02:03\n",
        "proc/sys/kernel/hostname": "annas-laptop\n",
    }
    _, text = loaded(tmp_path, tree(tmp_path, "laptop-i5-1340p", **secrets))
    assert not [value for value in secrets.values() if value.strip().lower() in text.lower()]


@pytest.mark.parametrize("name", ['Board "X"\\n', "Tab\there\nand \x7f\x01 there\0", "Plätze 5 # = ]", "'''"])
def test_a_name_with_any_characters_makes_a_valid_file(name, tmp_path):
    model = {"sys/firmware/devicetree/base/model": name, "sys/firmware/devicetree/base/compatible": f"{name}\0b\0"}
    host = tree(tmp_path, "raspberry-pi-5", **model)
    profile, _ = loaded(tmp_path, host, "board")
    assert profile.title


def test_a_machine_without_a_name_is_refused_with_the_way_out(tmp_path):
    for name, text in {"machine": "x86_64", "proc/cpuinfo": "processor : 0\n"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    host = Host(tmp_path)
    with pytest.raises(HostError, match="says no name"):
        draft(host, read_topology(host))


def test_the_command_prints_what_the_function_says(tmp_path):
    host = tree(tmp_path, "raspberry-pi-5")
    shown = click.testing.CliRunner().invoke(command, ["draft", "my-pi", "--root", str(host.root)])
    assert shown.stdout == draft(host, read_topology(host), "my-pi")[1]
    said = click.testing.CliRunner().invoke(command, ["draft", "--json", "--root", str(host.root)])
    assert json.loads(said.stdout)["id"] == "raspberry-pi-5-model-b"
