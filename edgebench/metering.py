"""Energy of a run: which source, what it says, why there is none, and the opt-in estimate.

The numbers come from ``analysis``; here the machine is asked why a sensor is absent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from msgspec.structs import replace

from edgebench import registry
from edgebench.analysis.energy import measure, to_record
from edgebench.analysis.energy_estimate import estimate
from edgebench.analysis.energy_findings import energy_findings, frozen_finding
from edgebench.analysis.energy_source import EnergySource, choose
from edgebench.analysis.energy_windows import channel_watts, workload_windows
from edgebench.analysis.meter_failure import failed_meters, meter_finding
from edgebench.device_profile import DeviceProfile
from edgebench.errors import HostError
from edgebench.host import Host
from edgebench.records import Channel, Energy, Finding, Run, Series

SENSORS = ("meter", "rapl", "nvml", "ina3221", "pmic", "battery", "hwmon", "apple")
"""Those that can tell power or energy."""


def check_source(host: Host, profile: DeviceProfile) -> None:
    """That something here looks like a source of energy: found now, not after an hour of blocks for it.

    Whether it answers is seen while measuring; a battery tells nothing as long as the charger is plugged in.

    Raises:
        HostError: when no sensor has a channel of power or energy.
    """
    for name in registry.names("sensors"):
        module = registry.load("sensors", name)
        sensor = module.detect(host, profile)
        if sensor is not None and any(channel.unit in {"J", "W"} for channel in sensor.channels()):
            return
    raise HostError(
        "Nothing here measures energy: this machine has no sensor of power or energy that can be read.",
        "see `edgebench doctor` for what was looked for; use a USB or wall meter (--meter), or leave --energy out.",
    )


@dataclass(frozen=True)
class EstimateRequest:
    """That a range may stand where nothing is measured; ``stated_w`` are the idle and the full watts."""

    stated_w: tuple[float, float] | None = None


class Metering:
    """Judges the energy of runs.

    Args:
        host: is asked why a sensor is absent.
        profile: of the device, for an estimate.
        request: None: no estimate.
    """

    def __init__(self, host: Host, profile: DeviceProfile, request: EstimateRequest | None) -> None:
        self._host, self._profile, self._request = host, profile, request
        self._absent: dict[str, str] = {}

    def judge(self, run: Run, channels: Sequence[Channel] | None) -> tuple[Energy, tuple[Finding, ...]]:
        """The energy of a run and the doubts about it.

        Args:
            run: with its readings; only its energy and findings are still missing.
            channels: all that the sampler looked at; None: it was lost.
        """
        if run.purpose != "measure" or not workload_windows(run):
            return Energy(energy_j=None, reason="nothing was timed for energy"), ()
        if channels is None:
            return self._estimated(run, "the sampler was lost, and the readings with it"), ()
        watts = channel_watts(run)
        failed = failed_meters(run, channels)
        dead = [name for name, mean in watts.items() if mean <= 0 and name not in failed]
        readable = {one.channel.name for one in run.series if _tells(one)}
        source = choose(channels, readable, device=run.trial.settings.device, watts=watts, failed=failed)
        replaced = isinstance(source, EnergySource)
        found = (frozen_finding(dead, replaced=replaced), meter_finding(failed, replaced=replaced))
        doubts = tuple(finding for finding in found if finding is not None)
        if not isinstance(source, EnergySource):
            return self._estimated(run, *self._why(source.why, channels, run.series)), doubts
        others = [
            EnergySource(channels=other.channels, scope=other.scope, method=other.method, why=other.why)
            for other in source.others
            if other.readable
            and other.scope not in {"estimate", "component"}
            and not set(other.channels) & {*dead, *failed}
        ]
        measured = measure(run, source, others)
        findings = energy_findings(run, measured)
        kinds = {finding.kind for finding in findings}
        findings += tuple(finding for finding in doubts if finding.kind not in kinds)
        energy = to_record(measured, findings)
        if energy.energy_j is None:
            return self._with_estimate(run, energy), findings
        return energy, findings

    def _estimated(self, run: Run, reason: str, absent: tuple[str, ...] = ()) -> Energy:
        return self._with_estimate(run, Energy(energy_j=None, reason=reason, absent=absent))

    def _with_estimate(self, run: Run, energy: Energy) -> Energy:
        """The same with a range, where the user allowed one; else with the reason why not."""
        if self._request is None:
            return energy
        found = estimate(run, self._profile, self._request.stated_w)
        reason = f"{energy.reason}; {found.because}" if found.because else energy.reason
        return replace(
            energy,
            reason=reason,
            estimate_low_j=found.low_j,
            estimate_high_j=found.high_j,
            estimate_model=found.model,
        )

    def _why(self, why: str, channels: Sequence[Channel], series: Sequence[Series]) -> tuple[str, tuple[str, ...]]:
        """Why there is no source, with what keeps those that are here from telling; and why the others are not here."""
        found = {channel.name.partition(".")[0] for channel in channels if channel.unit in {"J", "W"}}
        silent = found - {one.channel.name.partition(".")[0] for one in series if _tells(one)}
        words = dict.fromkeys(one.missing_because for one in series if one.missing_because)
        said = [text for text in words if text.rstrip(".") not in why]
        said += [text for name in SENSORS if name in silent and (text := self._because(name, present=True))]
        absent = tuple(text for name in SENSORS if name not in found and (text := self._because(name, present=False)))
        return (f"{why} ({'; '.join(said)})" if said else why), absent

    def _because(self, name: str, *, present: bool) -> str:
        """Why a sensor gives nothing, asked once; empty where nothing is known about it."""
        if name not in self._absent:
            text = ""
            if name in registry.names("sensors"):
                explain = getattr(registry.load("sensors", name), "unreadable" if present else "absent", None)
                text = cast("str", explain(self._host)[0]) if explain is not None else ""
            self._absent[name] = f"{name}: {text}" if text else ""
        return self._absent[name]


def _tells(series: Series) -> bool:
    """Whether there was a value at all."""
    return any(value is not None for value in series.values)
