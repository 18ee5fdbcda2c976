"""A copy of what edgebench reads of a machine, so that another machine can stand in for it: ``--root <copy>``.

What belongs into the copy is not listed anywhere: detection, topology, sensors and the examination run once on a host
that writes down every file, folder and command they ask for. A few sources that sensors read by other ways than
files (the Raspberry Pi's mailbox, NVIDIA's library) and labels that help to add support for a board come on top.

The copy is for strangers. Serial numbers, UUIDs, MAC addresses, machine ids and the names of hosts and users are
replaced before anything is written, in texts and in paths, each by the same placeholder everywhere, so that what
belonged together still does. Names of models stay: they are what detection needs.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgebench import devices, provenance, registry
from edgebench.device_profile import DeviceProfile
from edgebench.doctor.noise import examine_noise
from edgebench.errors import UsageError
from edgebench.host import REFUSED, CommandResult, Host, Unavailable
from edgebench.sensors._nvml_library import Library
from edgebench.sensors.nvml import recording
from edgebench.topology import Topology, read_topology

_MOST_BYTES = 256 * 1024
"""Kernel files are small; whatever is larger is none."""

_COMMANDS = (
    ("vcgencmd", "get_throttled"),
    ("vcgencmd", "measure_clock", "arm"),
    ("vcgencmd", "measure_temp"),
    ("vcgencmd", "pmic_read_adc"),
    ("nvpmodel", "-q"),
    ("nvidia-smi", "--query-gpu=name", "--format=csv,noheader"),
    ("sysctl", "-n", "machdep.cpu.brand_string"),
)
_LABELS = (
    ("class/hwmon", "hwmon*/name"),
    ("class/hwmon", "hwmon*/*_label"),
    ("class/hwmon", "hwmon*/*_input"),
    ("class/hwmon", "hwmon*/*_average"),
    ("class/powercap", "*/name"),
    ("class/powercap", "*/energy_uj"),
    ("class/powercap", "*/max_energy_range_uj"),
    ("class/power_supply", "*/uevent"),
    ("bus/i2c/drivers", "ina*/*/iio:device*/*_input"),
    ("bus/i2c/drivers", "ina*/*/iio:device*/rail_name_*"),
    ("devices/system/cpu/cpufreq", "policy*/cpuinfo_max_freq"),
    ("devices/system/cpu/cpufreq", "policy*/scaling_available_governors"),
)
"""What helps to add support for a board, even where no sensor asks for it today."""


class RecordingHost(Host):
    """A host that remembers what it was asked for.

    Args:
        root: as for `Host`.
    """

    def __init__(self, root: str | os.PathLike[str] = "/") -> None:
        super().__init__(root)
        self.files: dict[str, str] = {}
        """Text by path below the root; commands under ``commands/``."""
        self.refused: dict[str, str] = {}
        """Name of the error by path, of files that exist and cannot be read."""
        self.folders: set[str] = set()

    def read(self, path: Path) -> str:
        """Read as `Host` does, and remember the text, or that it was refused."""
        try:
            text = super().read(path)
        except Unavailable as error:
            self._remember_refusal(path, error.reason)
            raise
        self._remember(path, text)
        return text

    def glob(self, base: Path, pattern: str) -> list[Path]:
        """Search as `Host` does, and remember the folders that were found."""
        found = super().glob(base, pattern)
        self.folders.update(name for path in found if path.is_dir() and (name := self._below(path)))
        return found

    def run(self, argv: Sequence[str], timeout_s: float = 5.0) -> CommandResult:
        """Run as `Host` does, and remember the output of a program that succeeded."""
        done = super().run(argv, timeout_s)
        if done.status == 0:
            self.files.setdefault("commands/" + " ".join(argv).replace("/", "_"), done.stdout)
        return done

    def _below(self, path: Path) -> str:
        try:
            return path.relative_to(self.root).as_posix()
        except ValueError:
            return ""

    def _remember(self, path: Path, text: str) -> None:
        """Keep the text as it is, trailing zeros and newlines included: parsers must meet them again."""
        name = self._below(path)
        if not name or name in self.files:
            return
        try:
            self.files[name] = path.read_bytes()[:_MOST_BYTES].decode("utf-8", "replace")
        except OSError:  # gone between two readings
            self.files[name] = text

    def _remember_refusal(self, path: Path, reason: str) -> None:
        name = self._below(path)
        known = {
            "permission denied": errno.EACCES,
            "has no data now": errno.ENODATA,
            "is switched off now": errno.EAGAIN,
        }
        if name and name not in self.files and path.is_file() and reason in known:
            self.refused[name] = errno.errorcode[known[reason]]


@dataclass(frozen=True)
class Captured:
    """A tree for `Host`."""

    files: dict[str, str]
    """Text by path below the root."""
    folders: tuple[str, ...]
    """Folders that were found, empty ones too."""


def capture(host: RecordingHost, names: Iterable[str] | None = None) -> Captured:
    """Everything that edgebench reads of a machine, without what identifies it or its owner.

    Args:
        host: the machine, or a captured tree.
        names: names of the host and of its users; None asks this machine.

    Raises:
        HostError: when the machine does not tell how many CPUs it has, or no device profile fits.
    """
    topology = read_topology(host)
    profile = devices.detect(host, topology)
    _ask_everything(host, topology, profile)
    files = dict(host.files)
    files["machine"] = f"{host.machine()}\n"
    for marker in (".dockerenv", "run/.containerenv"):
        if (host.root / marker).exists():
            files.setdefault(marker, "")
    scrub = Scrubber(_own_names() if names is None else names)
    for name in host.refused:
        files[name] = ""
    if host.refused:
        files[REFUSED] = "".join(f"{error} {scrub.path(name)}\n" for name, error in sorted(host.refused.items()))
    scrubbed = {scrub.path(name): scrub.text(name, text) for name, text in sorted(files.items())}
    return Captured(scrubbed, tuple(sorted(map(scrub.path, host.folders))))


def write(captured: Captured, folder: Path) -> Path:
    """Write a captured tree as a folder, and beside it as one JSON document; returns the document.

    Raises:
        UsageError: when the folder or the document is there already, or cannot be written.
    """
    document = folder.parent / f"{folder.name}.json"
    for path in (folder, document):
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise UsageError(f"{path} is there already.", "choose a new folder, or remove it.")
    try:
        for name, text in captured.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode())
        for name in captured.folders:
            (folder / name).mkdir(parents=True, exist_ok=True)
        document.write_text(json.dumps(captured.files, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error.strerror}.", "choose another folder.") from error
    return document


def _ask_everything(host: RecordingHost, topology: Topology, profile: DeviceProfile) -> None:
    """Let every reader read once."""
    devices.accelerators(host)
    devices.compatible_names(host)
    provenance.kernel(host)
    provenance.governor(host)
    provenance.memory_limit(host)
    provenance.virtualization(host, topology.flags)
    provenance.container(host)
    for name in registry.names("sensors"):
        module = registry.load("sensors", name)
        sensor = module.detect(host, profile)
        if sensor is not None:
            sensor.read()
        for hook in ("absent", "unreadable"):
            explain: Callable[[Host], object] | None = getattr(module, hook, None)
            if explain is not None:
                explain(host)
    examine_noise(host, topology, {}, watch_s=0.0)
    for file in ("firmware/acpi/platform_profile", "firmware/acpi/platform_profile_choices"):
        host.try_read(host.sys(file))
    for base, pattern in _LABELS:
        for path in host.glob(host.sys(base), pattern):
            host.try_read(path)
    for argv in _COMMANDS:
        _run_if_there(host, argv)
    _ask_nvml(host)


def _run_if_there(host: RecordingHost, argv: Sequence[str]) -> None:
    try:
        host.run(argv)
    except Unavailable:
        return  # not a program of this kind of machine


def _ask_nvml(host: RecordingHost) -> None:
    """NVIDIA's library is no file: its answers are kept as the output of a command that does not exist."""
    if not host.is_live:
        return  # the sensor has asked the recording, and it was remembered as a command
    try:
        host.files["commands/nvml"] = recording(Library())
    except (ImportError, OSError):
        return  # no such library, or no GPU


# --- without names and numbers ----------------------------------------------------------------------------------------

_SERIAL = re.compile(
    r"^(?P<key>[^\n:=]*(?:serial|uuid|asset[ _]tag|machine[ _-]?id)[^\n:=]*[:=][ \t]*)(?P<value>[^\n]*\S)[ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)
_UUID = re.compile(r"(?<![0-9a-f])[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}(?![0-9a-f])", re.IGNORECASE)
_MAC = re.compile(r"(?<![0-9a-f])[0-9a-f]{2}([:-])[0-9a-f]{2}(?:\1[0-9a-f]{2}){4}(?![0-9a-f])", re.IGNORECASE)
_HASH = re.compile(r"(?<![0-9a-f])[0-9a-f]{32,128}(?![0-9a-f])", re.IGNORECASE)
_HOME = re.compile(r"(?<=/home/)[^/\s]+|(?<=/Users/)[^/\s]+")
_MODELS = re.compile(
    r"(^|/)(devicetree/base|device-tree)/|/dmi/id/(sys_vendor|product_name|product_version|board_name)$|"
    r"/(name|type|[a-z0-9]+_label|rail_name_\d+)$|^commands/(nvidia-smi|sysctl)|^proc/cpuinfo$|^machine$"
)
"""Files whose text is the name of a model: a host called ``raspberrypi`` must not change ``raspberrypi,5-model-b``."""
_NUMBERS = re.compile(r"^proc/(stat|vmstat|meminfo|loadavg|pressure/.*|\d+/stat)$")
"""Files of fixed words and numbers: a host called ``cpu`` must not change them."""
_SECRET_FILE = re.compile(r"(serial|uuid|asset_tag|machine-id|hostname|/address)$", re.IGNORECASE)


class Scrubber:
    """Replaces what identifies one machine or its owner, the same thing by the same placeholder.

    Args:
        names: names of hosts and users.
    """

    def __init__(self, names: Iterable[str]) -> None:
        known = sorted({name for name in names if len(name) > 1}, key=lambda name: (-len(name), name))
        self._names = (
            re.compile("|".join(rf"(?<![0-9A-Za-z]){re.escape(name)}(?![0-9A-Za-z])" for name in known), re.IGNORECASE)
            if known
            else None
        )
        self._seen: dict[str, str] = {}

    def path(self, name: str) -> str:
        """A path below the root; names are looked for in control groups alone, where users and programs choose them."""
        name = self._numbers(name)
        return self._names_out(name) if "/fs/cgroup/" in name else name

    def text(self, path: str, text: str) -> str:
        """The text of a file or command. In names of models only numbers are looked for, no names."""
        if _SECRET_FILE.search(path):
            return re.sub(r"[0-9A-Za-z]", "0", text)
        text = self._numbers(_SERIAL.sub(lambda match: match["key"] + re.sub(r"\w", "0", match["value"]), text))
        return text if _MODELS.search(path) or _NUMBERS.search(path) else self._names_out(_HOME.sub("name", text))

    def _names_out(self, text: str) -> str:
        return self._names.sub("name", text) if self._names is not None else text

    def _numbers(self, text: str) -> str:
        text = _UUID.sub(lambda match: self._placeholder(match[0], "00000000-0000-0000-0000-{:012x}"), text)
        text = _MAC.sub(lambda match: self._placeholder(match[0], "02:00:00:00:00:{:02x}"), text)
        return _HASH.sub(lambda match: self._placeholder(match[0], "{:0" + str(len(match[0])) + "x}"), text)

    def _placeholder(self, secret: str, shape: str) -> str:
        found = self._seen.setdefault(secret.lower(), str(len(self._seen) + 1))
        return shape.format(int(found) % 256)


def _own_names() -> list[str]:
    """Names of this host and of the people who use it; those that every machine has say nothing about anybody."""
    names = {platform.node(), platform.node().partition(".")[0]}
    names |= {os.environ.get(variable, "") for variable in ("USER", "LOGNAME", "SUDO_USER", "HOSTNAME")}
    home = Path.home().parent
    if home.name in {"home", "Users"} and home.is_dir():
        names |= {path.name for path in home.iterdir()}
    return sorted(names - {"", "root", "localhost"})
