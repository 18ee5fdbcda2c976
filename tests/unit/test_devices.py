"""Which profile a machine gets, and what the profiles that ship may say."""

from __future__ import annotations

import json
from pathlib import Path

import click.testing
import msgspec
import pytest

from edgebench import cards, devices
from edgebench.cli.devices import command
from edgebench.device_profile import DeviceProfile, Match
from edgebench.errors import HostError, UnknownNameError
from edgebench.host import Host
from edgebench.specs import Claim
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


def run(*arguments: str) -> click.testing.Result:
    return click.testing.CliRunner().invoke(command, arguments, catch_exceptions=False)


@pytest.mark.parametrize(
    ("device", "changes", "profile"),
    [
        ("raspberry-pi-5", {}, "raspberry-pi-5"),
        ("raspberry-pi-5", {"sys/firmware/devicetree/base/model": "Raspberry Pi 500 Rev 1.0\0"}, "raspberry-pi-500"),
        ("raspberry-pi-5", {"sys/firmware/devicetree/base/model": "Raspberry Pi 400 Rev 1.0\0"}, "raspberry-pi-400"),
        (
            "raspberry-pi-5",
            {"sys/firmware/devicetree/base/model": "Raspberry Pi 4 Model B Rev 1.5\0"},
            "raspberry-pi-4",
        ),
        ("raspberry-pi-5", {"sys/firmware/devicetree/base/model": "Unknown Board\0"}, "generic-arm64"),
        ("raspberry-pi-5", {"machine": "armv7l", "sys/firmware/devicetree/base/model": None}, "generic"),
        ("jetson-orin-nano", {}, "jetson-orin-nano-super"),
        ("laptop-i5-1340p", {}, "laptop-core-i5-1340p"),
        ("laptop-i5-1340p", {"proc/cpuinfo": "processor\t: 0\n"}, "generic-x86-64"),
        ("laptop-i5-1340p", {"proc/cpuinfo": "processor\t: 0\n", "machine": "riscv64"}, "generic"),
    ],
)
def test_the_profile_of_a_machine(device, changes, profile, tmp_path):
    host = tree(tmp_path, device, **changes)
    assert devices.detect(host, read_topology(host)).id == profile


def test_a_specific_profile_with_more_rules_wins(tmp_path):
    host = tree(tmp_path, "laptop-i5-1340p")
    wide = DeviceProfile(id="a", title="A", match=Match(cpu_model=("i5-1340p",)))
    narrow = DeviceProfile(id="b", title="B", match=Match(cpu_model=("i5-1340P",), dmi=("LENOVO", "other")))
    other = DeviceProfile(id="c", title="C", match=Match(cpu_model=("i5-1340P",), dmi=("dell",)))
    assert devices.detect(host, read_topology(host), [wide, narrow, other]).id == "b"


def test_a_machine_that_no_profile_fits_is_an_error_that_says_what_was_seen(tmp_path):
    host = tree(tmp_path, "raspberry-pi-5")
    with pytest.raises(HostError, match="raspberry pi 5 model b"):
        devices.detect(host, read_topology(host), [])


def claims(value):
    if isinstance(value, Claim):
        yield value
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield from claims(getattr(value, name))
    elif isinstance(value, tuple):
        for inner in value:
            yield from claims(inner)


def test_every_figure_of_a_shipped_profile_has_a_source():
    profiles = cards.device_profiles()
    assert {"generic", "generic-x86-64", "generic-arm64", "raspberry-pi-4", "raspberry-pi-5"} <= set(profiles)
    assert sum(1 for profile in profiles.values() for _ in claims(profile)) > 100
    assert not [(profile.id, claim) for profile in profiles.values() for claim in claims(profile) if not claim.source]


def test_a_generic_profile_declares_no_figures():
    for profile in cards.device_profiles().values():
        if profile.generic:
            assert profile.cores is None
            assert profile.memory_bandwidth_gb_s is None


def test_list_shows_every_profile_and_json_is_the_same_as_data():
    shown = run("list")
    document = json.loads(run("list", "--json").stdout)
    assert shown.exit_code == 0
    assert [device["id"] for device in document["devices"]] == list(cards.device_profiles())
    for device in document["devices"]:
        assert device["id"] in shown.stdout


def test_show_names_the_source_and_marks_what_is_unverified():
    assert "LPDDR4X" in run("show", "raspberry-pi-5").stdout
    assert "102 (unverified)" in run("show", "jetson-orin-nano-super").stdout
    assert json.loads(run("show", "raspberry-pi-4", "--json").stdout)["cores"]["value"] == 4


def test_an_unknown_profile_is_refused_with_a_guess():
    with pytest.raises(UnknownNameError, match="did you mean 'raspberry-pi-5'"):
        run("show", "raspbery-pi-5")


def test_detect_looks_at_a_captured_tree(tmp_path):
    tree(tmp_path, "raspberry-pi-5")
    text = run("detect", "--root", str(tmp_path)).stdout
    assert "raspberry-pi-5" in text
    assert "4 x Cortex-A76" in text
    document = json.loads(run("detect", "--json", "--root", str(tmp_path)).stdout)
    assert document["device"]["id"] == "raspberry-pi-5"
    assert document["default_threads"] == 4
    assert document["topology"]["performance_cpus"] == [0, 1, 2, 3]
