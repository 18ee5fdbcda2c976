"""What would disturb a measurement now: clocks that move, batteries, swap, other load, stolen time."""

from __future__ import annotations

import time
from collections.abc import Mapping

from edgebench.doctor.checks import Check, Section
from edgebench.host import Host, Unavailable
from edgebench.provenance import device_tree_model, governor, speed_variables
from edgebench.sensors import battery, contention, throttle
from edgebench.topology import Topology

_BUSY_SHARE = 0.03
_STEAL_SHARE = 0.005
_CPUS = "devices/system/cpu"


def examine_noise(host: Host, topology: Topology, environment: Mapping[str, str], watch_s: float = 1.0) -> Section:
    """Conditions now; load and stolen time are watched for ``watch_s`` seconds on a live machine."""
    checks = [_governor(host), _turbo(host), *_power_mode(host), *_battery(host), *_throttled(host), _swap(host)]
    checks.extend(_load(host, topology, watch_s))
    variables = speed_variables(environment)
    if variables:
        says = "set: " + ", ".join(f"{name}={value}" for name, value in variables.items())
        fix = "unset " + " ".join(variables)
        checks.append(Check(name="environment", state="warn", says=says, fix=fix))
    return Section(title="What would disturb a measurement", checks=tuple(checks))


def _governor(host: Host) -> Check:
    found = governor(host)
    if found.value is None:
        return Check(name="governor", state="missing", says=f"unknown: {found.unknown_because}")
    if found.value == "performance":
        return Check(name="governor", state="ok", says="performance")
    files = Host().sys(f"{_CPUS}/cpufreq") / "policy*" / "scaling_governor"
    return Check(
        name="governor",
        state="warn",
        says=f"{found.value}: the clock follows the load",
        fix=f"echo performance | sudo tee {files}",
    )


def _turbo(host: Host) -> Check:
    for file, on in ((f"{_CPUS}/intel_pstate/no_turbo", "0"), (f"{_CPUS}/cpufreq/boost", "1")):
        text = host.try_read(host.sys(file))
        if text == on:
            says = "on: the first seconds may be faster than the rest"
            fix = f"echo {1 - int(on)} | sudo tee {Host().sys(file)}   (for steady clocks)"
            return Check(name="turbo", state="warn", says=says, fix=fix)
        if text is not None:
            return Check(name="turbo", state="ok", says="off")
    return Check(name="turbo", state="missing", says="unknown: the kernel shows no switch for it")


def _power_mode(host: Host) -> list[Check]:
    """The firmware's mode of a laptop, NVIDIA's of a Jetson; nothing where there is no such choice."""
    mode = host.try_read(host.sys("firmware/acpi/platform_profile"))
    if mode is not None:
        if mode == "performance":
            return [Check(name="power mode", state="ok", says=mode)]
        says = f"{mode}: the firmware may hold back power and clocks"
        fix = f"echo performance | sudo tee {Host().sys('firmware/acpi/platform_profile')}"
        offered = "performance" in (host.try_read(host.sys("firmware/acpi/platform_profile_choices")) or "").split()
        return [Check(name="power mode", state="warn", says=says, fix=fix if offered else "")]
    if "Jetson" not in (device_tree_model(host) or ""):
        return []
    try:
        answer = host.run(["nvpmodel", "-q"])
    except Unavailable as reason:
        fix = "sudo nvpmodel -q   (and note the mode with the result)"
        return [Check(name="power mode", state="missing", says=f"unknown: {reason}", fix=fix)]
    line = next((line for line in answer.stdout.splitlines() if "Power Mode" in line), "")
    if not line:
        return [
            Check(name="power mode", state="missing", says="unknown: nvpmodel says nothing", fix="sudo nvpmodel -q")
        ]
    return [Check(name="power mode", state="ok", says=line.rpartition(":")[2].strip())]


def _battery(host: Host) -> list[Check]:
    sensor = battery.detect(host, None)
    if sensor is None:
        return []
    discharging = sensor.read()[0]
    if discharging is None:
        return [Check(name="power", state="missing", says="unknown: the battery does not tell whether it discharges")]
    if discharging:
        return [
            Check(name="power", state="warn", says="on battery: firmware may limit power", fix="plug in the charger.")
        ]
    return [Check(name="power", state="ok", says="on mains")]


def _throttled(host: Host) -> list[Check]:
    sensor = throttle.detect(host, None)
    if sensor is None:
        return []
    for channel, value in zip(sensor.channels(), sensor.read(), strict=True):
        if channel.name == "throttle.pi_bits" and value is not None:
            flags = throttle.decode_pi_bits(int(value))
            if not flags:
                return [Check(name="throttled", state="ok", says="no flag is set")]
            fix = "use the official power supply and a cooler, then reboot to clear the flags."
            return [Check(name="throttled", state="warn", says=", ".join(flags), fix=fix)]
    return []


def _swap(host: Host) -> Check:
    text = host.try_read(host.proc("swaps"))
    if text is None:
        return Check(name="swap", state="missing", says="unknown: the kernel does not list it")
    areas = [words for line in text.splitlines()[1:] if len(words := line.split()) >= 4]
    if not areas:
        return Check(name="swap", state="ok", says="none")
    used_mib = sum(int(words[3]) for words in areas if words[3].isdecimal()) / 1024
    names = ", ".join(sorted((words[0] for words in areas), key=str))
    kind = "compressed memory (zram)" if any("zram" in words[0] for words in areas) else "swap"
    says = f"{kind} is on ({names}, {used_mib:.0f} MiB used): a model that does not fit gets slow instead of failing"
    return Check(name="swap", state="warn", says=says, fix="sudo swapoff -a   (until the next boot)")


def _load(host: Host, topology: Topology, watch_s: float) -> list[Check]:
    averages = (host.try_read(host.proc("loadavg")) or "").split()
    said = f"load average {averages[0]}" if averages else "no load average"
    sensor = contention.detect(host, None)
    if not host.is_live or sensor is None:
        reason = "a captured tree stands still" if not host.is_live else "the kernel shows no CPU times"
        return [Check(name="load", state="missing", says=f"{said}; busy share unknown: {reason}")]
    names = [channel.name for channel in sensor.channels()]
    before, start = sensor.read(), time.monotonic()
    time.sleep(watch_s)
    after, seconds = sensor.read(), time.monotonic() - start
    shares = {}
    for name, old, new in zip(names, before, after, strict=True):
        if old is not None and new is not None:
            shares[name] = (new - old) / seconds / topology.logical
    return [
        _share("load", "busy", shares.get("contention.busy"), _BUSY_SHARE, said, "stop other programs; see: top"),
        _share("steal", "stolen by the hypervisor", shares.get("contention.steal"), _STEAL_SHARE, "", _STEAL_FIX),
    ]


_STEAL_FIX = "measure on a machine of your own, or at a quieter hour."


def _share(name: str, what: str, share: float | None, limit: float, said: str, fix: str) -> Check:
    if share is None:
        return Check(name=name, state="missing", says=f"unknown: the kernel does not tell how much is {what}")
    says = "; ".join(part for part in (f"{share:.1%} of all CPU time {what}", said) if part)
    return Check(name=name, state="warn" if share > limit else "ok", says=says, fix=fix if share > limit else "")
