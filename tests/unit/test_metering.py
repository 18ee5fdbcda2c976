"""The energy of a run that is judged as a whole: meters that fail, and what takes their place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from edgebench.analysis.meter_failure import failed_meters
from edgebench.device_profile import DeviceProfile, Match
from edgebench.host import Host
from edgebench.metering import Metering
from edgebench.records import Energy, Finding, Series
from tests.unit.test_energy import busy_power, run, series

PROFILE = DeviceProfile(id="x", title="x", match=Match())
LOAD = busy_power()
WORDS = "http://192.168.1.5 does not answer (timed out)."


def meter(level: Callable[[float], float | None], words: str = WORDS) -> Series:
    made = series("meter.shelly2.power", level, hz=2, seconds=240, scope="wall_ac")
    return replace(made, missing_because=words)


def package() -> Series:
    return series("rapl.package-0", lambda t: 5.0 * t, seconds=240, scope="cpu_package", counter=True)


def judge(tmp_path: Path, *readings: Series, **changes: Any) -> tuple[Energy, dict[str, Finding]]:
    made = run(*readings, **changes)
    metering = Metering(Host(tmp_path), PROFILE, None)
    energy, findings = metering.judge(made, [one.channel for one in readings])
    assert len({finding.kind for finding in findings}) == len(findings)
    return energy, {finding.kind: finding for finding in findings}


def every(n: int) -> Callable[[float], float | None]:
    """One reading of ``n`` fails."""
    return lambda t: None if round(2 * t) % n == 0 else LOAD(t)


def test_a_meter_that_works_is_the_energy_and_no_finding(tmp_path: Path):
    energy, findings = judge(tmp_path, meter(LOAD, ""), package())
    assert energy.source == "meter.shelly2.power"
    assert "meter_failed" not in findings


def test_a_meter_that_never_answered_leaves_its_last_words_as_the_reason(tmp_path: Path):
    energy, findings = judge(tmp_path, meter(lambda _t: None))
    assert energy.energy_j is None
    assert energy.reason.startswith(f"meter.shelly2.power gave no reading at all: {WORDS[:-1]}")
    assert energy.reason.count("timed out") == 1
    assert any(text.startswith("rapl: ") for text in energy.absent), "the record keeps why the others cannot help"
    finding = findings["meter_failed"]
    assert finding.severity == "suspect"
    assert "timed out" in finding.says
    assert finding.remedy
    assert finding.evidence


@pytest.mark.parametrize(("n", "failed"), [(2, True), (4, True), (6, False)])
def test_a_meter_that_loses_more_than_a_fifth_of_its_readings_failed(tmp_path: Path, n: int, failed: bool):  # noqa: FBT001 - a parameter
    energy, findings = judge(tmp_path, meter(every(n)))
    assert ("meter_failed" in findings) is failed
    assert (energy.energy_j is None) is failed
    if failed:
        assert "of its readings" in energy.reason
        assert "timed out" in energy.reason


@pytest.mark.parametrize("level", [lambda _t: None, every(3), lambda t: LOAD(t) if t < 60 else None])
def test_where_another_source_exists_it_is_used_and_the_failure_is_told(tmp_path: Path, level: Any):
    energy, findings = judge(tmp_path, meter(level), package())
    assert energy.source == "rapl.package-0"
    assert energy.energy_j == pytest.approx(600, rel=0.01)
    assert findings["meter_failed"].severity == "suspect"
    assert "Another source is used" in findings["meter_failed"].says
    assert not [name for name in energy.others_j if "meter" in name]
    assert "sources_disagree" not in findings
    assert "meter_failed" in energy.flags


def test_a_meter_that_failed_is_not_said_to_stand_still_as_well(tmp_path: Path):
    stuck = series(
        "meter.shelly2.energy",
        lambda t: None if round(10 * t) % 3 == 0 else 9.0,
        seconds=240,
        scope="wall_ac",
        counter=True,
    )
    _, findings = judge(tmp_path, stuck, package())
    assert "meter_failed" in findings
    assert "frozen_counter" not in findings


def test_what_fails_while_nothing_is_timed_is_no_failure(tmp_path: Path):
    energy, findings = judge(tmp_path, meter(lambda t: LOAD(t) if 45 < t < 185 else None))
    assert energy.energy_j == pytest.approx(840, rel=0.02)
    assert "meter_failed" not in findings


def test_a_meter_without_any_reading_failed_and_one_that_is_no_meter_did_not():
    silent = replace(meter(lambda _t: None), t_ns=(), values=())
    dead = series("pmic.board", lambda _t: None, seconds=240, scope="board_rails")
    assert [*failed_meters(run(silent), [silent.channel])] == ["meter.shelly2.power"]
    assert [*failed_meters(run(), [silent.channel])] == ["meter.shelly2.power"]
    assert failed_meters(run(dead), [dead.channel]) == {}


def test_of_a_short_run_all_readings_are_looked_at():
    brief = run(meter(every(6)), blocks=run().blocks[:1])
    shortened = replace(brief.blocks[0], t1_ns=brief.blocks[0].t0_ns + 10**9)
    one_of_three = meter(lambda t: None if t == 50.5 else LOAD(t))
    assert failed_meters(replace(brief, blocks=(shortened,), series=(one_of_three,)), [one_of_three.channel]) == {}


def test_a_platform_counter_that_is_not_believed_is_told(tmp_path: Path):
    psys = series("rapl.psys", lambda t: 4.8 * t, seconds=240, scope="psys", counter=True)
    power = series("battery.power", lambda _t: None, seconds=240, scope="dc_input")
    energy, findings = judge(tmp_path, psys, package(), power)
    assert energy.source == "rapl.package-0"
    assert findings["sources_disagree"].severity == "note"


def test_a_gpus_two_tales_are_compared_where_the_model_ran_on_it(tmp_path: Path):
    counter = series("nvml.gpu0.energy", lambda t: 5.0 * t, seconds=240, scope="gpu_board", counter=True)
    power = series("nvml.gpu0.power", lambda _t: 6.0, seconds=240, scope="gpu_board")
    trial = run().trial
    on_gpu = replace(trial, settings=replace(trial.settings, device="cuda"))
    energy, findings = judge(tmp_path, counter, power, trial=on_gpu)
    assert energy.source == "nvml.gpu0.energy"
    assert findings["sources_disagree"].severity == "suspect"
    assert "sources_disagree" in energy.flags
