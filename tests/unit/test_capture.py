"""A captured tree tells the same as its machine, and nothing about whose machine it is."""

from __future__ import annotations

import json
from pathlib import Path

import click.testing
import pytest

from edgebench import doctor
from edgebench.capture import RecordingHost, Scrubber, capture, write
from edgebench.cli.capture import command
from edgebench.errors import UsageError
from edgebench.host import Host

TREES = Path(__file__).parents[1] / "trees"
DEVICES = sorted(path.stem for path in TREES.glob("*.json") if "proc/" in path.read_text())  # a Mac has no such files


def tree(root: Path, device: str, **changes: str) -> Path:
    for name, text in (json.loads((TREES / f"{device}.json").read_text()) | changes).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def told(root: Path) -> dict[str, tuple[str, str, str]]:
    sections = doctor.examine(Host(root), watch_s=0)
    return {check.name: (check.state, check.says, check.fix) for section in sections for check in section.checks}


@pytest.mark.parametrize("device", DEVICES)
def test_the_copy_tells_the_same_as_the_machine(device, tmp_path):
    root = tree(tmp_path / "machine", device)
    write(capture(RecordingHost(root), []), tmp_path / "copy")
    assert told(tmp_path / "copy") == told(root)


def test_the_copy_of_this_machine_tells_what_it_is(tmp_path):
    write(capture(RecordingHost()), tmp_path / "copy")
    ours = {check.name: check for section in doctor.examine(Host(), watch_s=0)[:1] for check in section.checks}
    theirs = told(tmp_path / "copy")
    assert theirs["cpu"][1] == ours["cpu"].says
    assert theirs["kernel"][1] == ours["kernel"].says
    assert theirs["memory"][0] == theirs["contention"][0] == "ok"


def test_the_document_holds_the_same_files_as_the_folder(tmp_path):
    root = tree(tmp_path / "machine", "raspberry-pi-5")
    document = write(capture(RecordingHost(root), []), tmp_path / "copy")
    assert document == tmp_path / "copy.json"
    files = json.loads(document.read_text())
    on_disk = {
        path.relative_to(tmp_path / "copy").as_posix() for path in (tmp_path / "copy").rglob("*") if path.is_file()
    }
    assert set(files) == on_disk
    assert files["sys/firmware/devicetree/base/model"] == "Raspberry Pi 5 Model B Rev 1.0\0"
    assert files["commands/vcgencmd get_throttled"] == "throttled=0x50000\n"


def test_only_what_is_read_is_copied(tmp_path):
    other = {"etc/passwd": "alice:x:1000\n", "sys/class/net/eth0/address": "dc:a6:32:01:02:03\n"}
    root = tree(tmp_path, "laptop-i5-1340p", **other, **{"sys/class/dmi/id/product_serial": "PF4XYZ12\n"})
    files = capture(RecordingHost(root), []).files
    assert not {*other, "sys/class/dmi/id/product_serial"} & set(files)


def test_a_file_that_is_refused_stays_refused(tmp_path, monkeypatch):
    energy = "sys/class/powercap/intel-rapl:0/energy_uj"
    root = tree(tmp_path / "machine", "laptop-i5-1340p", **{energy: "70000000\n"})
    real = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        if path.name == "energy_uj" and path.is_relative_to(root):
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)  # permissions do not stop root
    captured = capture(RecordingHost(root), [])
    assert f"EACCES {energy}\n" in captured.files["refused"]
    assert captured.files[energy] == ""
    write(captured, tmp_path / "copy")
    assert told(tmp_path / "copy")["rapl"][0] == "warn"
    assert "CVE-2020-8694" in told(tmp_path / "copy")["rapl"][1]


def test_folders_without_a_readable_file_are_there_in_the_copy(tmp_path):
    root = tree(tmp_path / "machine", "laptop-i5-1340p")
    (root / "sys/class/hwmon/hwmon9").mkdir()
    write(capture(RecordingHost(root), []), tmp_path / "copy")
    assert (tmp_path / "copy/sys/class/hwmon/hwmon9").is_dir()


# --- nothing personal -------------------------------------------------------------------------------------------------

SECRETS = {
    "serial": "10000000abcd1234",
    "battery": "SN-77812-B",
    "uuid": "4c4c4544-0042-3510-8051-b9c04f565a32",
    "mac": "dc:a6:32:01:02:03",
    "container": "9f2b" * 16,
    "host": "annas-notebook",
    "user": "anna",
    "home": "bernd",
}


def planted(root: Path) -> Path:
    s = SECRETS
    cpuinfo = json.loads((TREES / "raspberry-pi-5.json").read_text())["proc/cpuinfo"]
    group = f"user.slice/docker-{s['container']}.scope/{s['user']}-job.service"
    pad = f"sys/class/power_supply/hid-{s['mac']}-battery"
    changes = {
        "proc/cpuinfo": cpuinfo.replace("Serial\t\t: 0000000000000000", f"Serial\t\t: {s['serial']}"),
        "proc/self/cgroup": f"0::/{group}\n",
        f"sys/fs/cgroup/{group}/memory.max": "1073741824\n",
        f"sys/fs/cgroup/{group}/memory.current": "1000\n",
        "proc/swaps": f"Filename\tType\tSize\tUsed\tPriority\n/home/{s['home']}/swap file 8 0 -2\n",
        "proc/sys/kernel/osrelease": f"6.12.0-built-on-{s['host']}\n",
        "sys/class/power_supply/BAT0/type": "Battery\n",
        "sys/class/power_supply/BAT0/status": "Discharging\n",
        "sys/class/power_supply/BAT0/uevent": f"POWER_SUPPLY_SERIAL_NUMBER={s['battery']}\nPOWER_SUPPLY_STATUS=Full\n",
        f"{pad}/type": "Battery\n",
        f"{pad}/scope": "Device\n",
        f"{pad}/uevent": f"POWER_SUPPLY_NAME=hid-{s['mac']}-battery\nPOWER_SUPPLY_MODEL_NAME={s['user']}'s mouse\n",
        "commands/nvpmodel -q": f"NV Power Mode: 15W on {s['host'].upper()}\n",
        "proc/driver/nvidia/gpus/0000:01:00.0/information":
            f"Model: \t\t NVIDIA GeForce RTX 3060\nGPU UUID: \t GPU-{s['uuid']}\n",
    }  # fmt: skip
    return tree(root, "raspberry-pi-5", **changes)


def test_no_planted_name_or_number_is_in_the_copy(tmp_path):
    root = planted(tmp_path / "machine")
    captured = capture(RecordingHost(root), [SECRETS["host"], SECRETS["user"]])
    write(captured, tmp_path / "copy")
    everything = "\n".join([*captured.files, *captured.files.values(), *captured.folders]).lower()
    everything += "\n".join(str(path.relative_to(tmp_path)) for path in (tmp_path / "copy").rglob("*")).lower()
    everything += (tmp_path / "copy.json").read_text().lower()
    assert not [what for what, secret in SECRETS.items() if secret.lower() in everything]


def test_every_planted_secret_would_have_been_copied(tmp_path):
    """So that the test above can fail: a scrubber that does nothing lets all of them through."""
    host = RecordingHost(planted(tmp_path))
    capture(host, [])
    everything = "\n".join([*host.files, *host.files.values(), *host.folders]).lower()
    assert not [what for what, secret in SECRETS.items() if secret.lower() not in everything]


def test_what_belonged_together_still_does(tmp_path):
    root = planted(tmp_path / "machine")
    write(capture(RecordingHost(root), [SECRETS["user"]]), tmp_path / "copy")
    assert "may use 1024 MiB" in told(tmp_path / "copy")["ram"][1]  # the group's limit is found by its changed path
    assert told(tmp_path / "copy")["gpu"][1] == "NVIDIA GeForce RTX 3060 (rtx-3060)"


def test_two_addresses_stay_two():
    scrub = Scrubber([])
    one, two = (scrub.path(f"sys/class/power_supply/hid-dc:a6:32:01:02:0{n}-battery") for n in (1, 2))
    assert one != two
    assert one == scrub.path("sys/class/power_supply/hid-DC:A6:32:01:02:01-battery")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("sys/firmware/devicetree/base/compatible", "raspberrypi,5-model-b\0brcm,bcm2712\0"),
        ("sys/class/hwmon/hwmon0/name", "cpu_thermal\n"),
        ("proc/stat", "cpu  1 2 3 4\n"),
        ("sys/class/powercap/intel-rapl:0/max_energy_range_uj", "262143328850\n"),
        ("sys/class/dmi/id/product_name", "Jetson\n"),
    ],
)
def test_a_host_that_is_called_like_its_model_changes_no_model(path, text):
    assert Scrubber(["raspberrypi", "cpu", "jetson", "pi"]).text(path, text) == text


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_says_where_the_copy_is_and_that_it_must_be_looked_through(tmp_path):
    root = tree(tmp_path / "machine", "jetson-orin-nano")
    shown = click.testing.CliRunner().invoke(command, [str(tmp_path / "copy"), "--root", str(root)])
    assert shown.exit_code == 0
    assert str(tmp_path / "copy.json") in shown.stdout
    assert "before you send it" in shown.stdout
    said = click.testing.CliRunner().invoke(command, [str(tmp_path / "other"), "--json", "--root", str(root)])
    assert "proc/cpuinfo" in json.loads(said.stdout)["files"]


def test_an_existing_copy_is_not_overwritten(tmp_path):
    root = tree(tmp_path / "machine", "jetson-orin-nano")
    captured = capture(RecordingHost(root), [])
    write(captured, tmp_path / "copy")
    with pytest.raises(UsageError, match="is there already"):
        write(captured, tmp_path / "copy")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written"):
        write(captured, tmp_path / "file" / "copy")
