"""What --energy changes: windows that fill up, rests, warming up, cooling down, and how it is asked for."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import replace

from edgebench.analysis.resources import merge_energy
from edgebench.cli.profile import command
from edgebench.cooling import LONGEST_S, Cooling, cooling_finding
from edgebench.device_profile import DeviceProfile, Match
from edgebench.engine import measure, steady
from edgebench.engine.messages import MeasureJob, Opened, Phase, Reply, Timed
from edgebench.engine.protocol import Attempt, Limits
from edgebench.engine.steady import Warmth, rest
from edgebench.errors import HostError, UsageError
from edgebench.host import Host
from edgebench.metering import check_source
from edgebench.records import Cooldown, Energy, TokenEnergy
from edgebench.registry import load
from edgebench.specs import Artifact, EnergyBlocks, Settings, TrialSpec, parse_workload
from edgebench.stats import rounds_interval

PROFILE = DeviceProfile(id="x", title="x", match=Match())
TRIAL = TrialSpec(
    artifact=Artifact(model="m", precision="q4_0", format="fake", path="", bytes=1000, sha256="0" * 64),
    runtime="fake",
    settings=Settings(threads=1, threads_batch=1),
    workloads=(parse_workload("pp100"), parse_workload("tg10@d20")),
)
SHORT = EnergyBlocks(window_s=0.39, idle_s=0.01, settle_s=0.0, warm_up_s=0.0)


class Heard:
    """A parent that only listens."""

    def __init__(self) -> None:
        self.replies: list[Reply] = []

    def say(self, message: Reply) -> None:
        self.replies.append(message)

    def note(self, text: str) -> None: ...

    def wait_for_go(self) -> None: ...

    def phases(self) -> list[str]:
        return [reply.name for reply in self.replies if isinstance(reply, Phase)]

    def blocks(self, workload: str) -> int:
        return sum(isinstance(reply, Timed) and reply.block.workload == workload for reply in self.replies)


def measured(energy: EnergyBlocks | None, budget_s: float = 1000.0) -> Heard:
    heard = Heard()
    job = MeasureJob(trial=TRIAL, round=0, budget_s=budget_s, energy=energy)
    measure.measure(job, load("runtimes", "fake").RUNTIME, heard, Host())
    return heard


# --- in the child -----------------------------------------------------------------------------------------------------


def test_a_window_is_filled_with_blocks_whatever_the_budget():
    heard = measured(SHORT, budget_s=0.0)
    assert heard.blocks("pp100") == 4  # of 0.1 s each
    assert heard.blocks("tg10@d20") == 8  # of 0.05 s each


def test_without_energy_the_usual_blocks_are_used():
    heard = measured(None)
    assert (heard.blocks("pp100"), heard.blocks("tg10@d20")) == (3, 3)
    assert heard.phases() == ["load", "pp100", "tg10@d20", "end"]
    assert measured(None, budget_s=0.0).blocks("pp100") == 1


def test_rests_lie_before_loading_and_after_closing():
    heard = measured(SHORT)
    named = [name for name in heard.phases() if name.startswith("idle") and not name.endswith("settling")]
    assert named == ["idle", "idle_loaded", "idle_loaded", "idle"]
    opened = next(i for i, reply in enumerate(heard.replies) if isinstance(reply, Opened))
    first_rest = next(i for i, reply in enumerate(heard.replies) if isinstance(reply, Phase) and reply.name == "idle")
    assert first_rest < opened


def test_a_rest_is_no_hang():
    attempt = Attempt(limits=Limits(load_s=5.0, block_s=5.0), heard_ns=0)
    attempt.hear(Phase(name="idle_loaded", t_ns=0), 0)
    assert not attempt.expire(60 * 10**9)
    attempt.hear(Phase(name="tg10", t_ns=0), 0)
    assert attempt.expire(60 * 10**9)


def test_no_rest_without_energy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(steady.time, "sleep", lambda _s: pytest.fail("it slept"))
    rest(lambda _message: pytest.fail("it spoke"), "idle", None)


class Oven:
    """A machine whose only sensor and clock are scripted."""

    def __init__(self, root: Path, degrees: Callable[[float], float] | None) -> None:
        self.now_s, self._degrees, self._file = 0.0, degrees, root / "sys/class/thermal/thermal_zone0/temp"
        if degrees is not None:
            self._file.parent.mkdir(parents=True)
            (self._file.parent / "type").write_text("cpu-thermal")
            self._write()
        self.host = Host(root)

    def _write(self) -> None:
        if self._degrees is not None:
            self._file.write_text(str(round(1000 * self._degrees(self.now_s))))

    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self._write()

    def clock_s(self) -> float:
        return self.now_s


def warmed_s(oven: Oven, longest_s: float = 120.0) -> float:
    warmth = Warmth(oven.host, EnergyBlocks(warm_up_s=longest_s), oven.clock_s)
    while not warmth.settled():
        oven.wait(1.0)
    return oven.now_s


def test_warming_up_ends_when_the_temperature_has_settled(tmp_path: Path):
    assert warmed_s(Oven(tmp_path / "flat", lambda _t: 50.0)) == 30
    rising_until_60 = Oven(tmp_path / "rising", lambda t: 40 + min(t, 60.0) / 6)
    assert 80 <= warmed_s(rising_until_60) <= 95
    assert warmed_s(Oven(tmp_path / "ever", lambda t: 40 + t / 6)) == 120
    assert warmed_s(Oven(tmp_path / "unknown", None)) == 10
    assert warmed_s(Oven(tmp_path / "impatient", None), 0.0) == 0


# --- between rounds ---------------------------------------------------------------------------------------------------


def cooling(oven: Oven) -> Cooling:
    return Cooling(oven.host, PROFILE, sleep=oven.wait, clock_s=oven.clock_s)


def test_the_gate_opens_when_the_machine_is_as_cool_as_at_the_start(tmp_path: Path):
    oven = Oven(tmp_path, lambda t: 40.0 if t == 0 else max(41.0, 70.0 - t / 2))
    gate = cooling(oven)
    assert gate.wait("auto") is None
    oven.wait(2)
    waited = gate.wait("auto")
    assert waited is not None
    assert (waited.target_c, waited.waited_s) == (43.0, 52.0)
    assert cooling_finding(waited) is None


def test_the_gate_does_not_wait_for_ever_and_says_so(tmp_path: Path):
    oven = Oven(tmp_path, lambda t: 40.0 if t == 0 else 70.0)
    gate = cooling(oven)
    gate.wait("auto")
    oven.wait(1)
    waited = gate.wait("auto")
    assert waited is not None
    assert waited.waited_s == LONGEST_S
    finding = cooling_finding(waited)
    assert finding is not None
    assert finding.kind == "hot_start"


def test_a_fixed_wait_and_none(tmp_path: Path):
    oven = Oven(tmp_path, lambda _t: 40.0)
    gate = cooling(oven)
    gate.wait(7.0)
    assert gate.wait("off") is None
    assert gate.wait(7.0) == Cooldown(waited_s=7.0, reached_c=40.0)
    assert oven.now_s == 7.0
    blind = cooling(Oven(tmp_path / "blind", None))
    blind.wait("auto")
    assert blind.wait("auto") is None


# --- asking for it ----------------------------------------------------------------------------------------------------


def options(*argv: str) -> dict[str, object]:
    return command.make_context("profile", list(argv)).params


def test_energy_asks_for_five_rounds_and_a_cool_machine():
    from edgebench.cli.profile import _protocol

    protocol = _protocol(options("--energy"))
    assert (protocol.min_rounds, protocol.max_rounds, protocol.cooldown) == (5, 5, "auto")
    assert protocol.energy == EnergyBlocks(window_s=60.0, idle_s=30.0)
    assert _protocol(options("--energy", "--budget", "10m")).budget_s == 600
    assert _protocol(options("--energy", "--cooldown", "off")).cooldown == "off"
    plain = _protocol(options())
    assert (plain.energy, plain.cooldown) == (None, "off")
    assert _protocol(options("--cooldown", "90")).cooldown == 90.0
    with pytest.raises(UsageError, match="contradict"):
        _protocol(options("--energy", "--quick"))


def test_energy_is_refused_where_nothing_could_measure_it(tmp_path: Path):
    (tmp_path / "machine").write_text("aarch64")
    with pytest.raises(HostError, match=r"Nothing here measures energy: "):
        check_source(Host(tmp_path), PROFILE)
    zone = tmp_path / "sys/class/powercap/intel-rapl:0"
    zone.mkdir(parents=True)
    (zone / "name").write_text("package-0")
    (zone / "energy_uj").write_text("1")
    check_source(Host(tmp_path), PROFILE)


def test_an_estimate_must_be_asked_for_and_its_watts_make_sense():
    from edgebench.cli.profile import _estimate

    assert _estimate(options()) is None
    assert _estimate(options("--allow-energy-estimate")).stated_w is None
    assert _estimate(options("--allow-energy-estimate", "--watts", "2.5:6")).stated_w == (2.5, 6.0)
    for wrong in ("6:2", "5", "a:b", "0:5", "nan:5"):
        with pytest.raises(UsageError, match="IDLE:FULL"):
            _estimate(options("--allow-energy-estimate", "--watts", wrong))
    with pytest.raises(UsageError, match="estimate"):
        _estimate(options("--watts", "2:5"))


# --- rounds together --------------------------------------------------------------------------------------------------


def energy(j: float, u: float, **changes: object) -> Energy:
    token = TokenEnergy(j=j / 10, uncertainty_j=u / 10, wh_per_1000=1.0, tokens_per_j=10 / j, how="per block")
    values = {"source": "rapl.p", "scope": "cpu_package", "uncertainty_j": u, "tokens": {"tg10": token}}
    return Energy(energy_j=j, j_per_token={"tg10": j / 10}, **{**values, **changes})


def test_the_spread_of_rounds_is_added_to_what_is_common_to_them():
    merged = merge_energy([energy(j, 1.0) for j in (98.0, 99.0, 100.0, 101.0, 102.0)])
    assert merged.energy_j == 100.0
    interval = rounds_interval([98.0, 99.0, 100.0, 101.0, 102.0])
    assert interval is not None
    assert merged.uncertainty_j == pytest.approx(math.hypot(1.0, interval.high - 100.0))
    assert merged.tokens["tg10"].j == pytest.approx(10.0)
    assert merged.tokens["tg10"].wh_per_1000 == pytest.approx(10 / 3.6)
    assert merged.tokens["tg10"].uncertainty_j == pytest.approx(merged.uncertainty_j / 10)
    assert merge_energy([energy(100.0, 1.0)]).uncertainty_j == 1.0


@pytest.mark.parametrize("rounds", [2, 3, 5, 10])
def test_the_uncertainty_covers_rounds_that_differ(rounds):
    """Rounds that scatter by chance, each without any error of its own."""
    chance, covered, trials = random.Random(7), 0, 1000  # noqa: S311 - a simulation
    for _ in range(trials):
        merged = merge_energy([energy(chance.gauss(100.0, 5.0), 1e-9) for _ in range(rounds)])
        covered += abs(merged.energy_j - 100.0) <= merged.uncertainty_j
    assert covered >= 0.94 * trials


def test_rounds_without_a_total_keep_what_they_measured():
    partial = [replace(energy(j, 1.0), energy_j=None, reason="pp512: too short") for j in (99.0, 101.0, 100.0)]
    merged = merge_energy(partial)
    assert merged.energy_j is None
    assert merged.reason == "pp512: too short"
    assert merged.tokens["tg10"].j == pytest.approx(10.0)
