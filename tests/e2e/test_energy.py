"""Energy from the sampler to the record and the report: real child processes, a captured board, scripted times."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from msgspec.structs import replace
from rich.console import Console

from edgebench import bench, devices
from edgebench.analysis.summary import summarize
from edgebench.engine.messages import About
from edgebench.engine.protocol import Limits
from edgebench.host import Host
from edgebench.metering import EstimateRequest
from edgebench.records import Fact, Run
from edgebench.report import text
from edgebench.specs import Artifact, EnergyBlocks, Plan, Protocol, Settings, TrialSpec, parse_workload
from edgebench.store import Session, Store
from edgebench.topology import read_topology

TREES = Path(__file__).parents[1] / "trees"
QUICK = EnergyBlocks(window_s=2.6, idle_s=0.2, settle_s=0.0, warm_up_s=0.0)
TRIAL = TrialSpec(
    artifact=Artifact(model="m", precision="q4_0", format="fake", path="", bytes=1000, sha256="0" * 64),
    runtime="fake",
    settings=Settings(threads=1, threads_batch=1),
    workloads=(parse_workload("tg10"),),
    script={"tg_token_s": 0.02, "wait": 1.0},
)


class Silent:
    """A listener that is told and says nothing."""

    def run_begins(self, *_args: object) -> None: ...

    def phase(self, *_args: object) -> None: ...

    def run_ended(self, *_args: object) -> None: ...


def board(root: Path, device: str) -> Host:
    for name, content in json.loads((TREES / f"{device}.json").read_text()).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return Host(root)


def one_round(
    folder: Path, host: Host, energy: EnergyBlocks | None, estimate: EstimateRequest | None = None, **trial: object
) -> Run:
    """One round on the machine that ``host`` shows."""
    topology = read_topology(host)
    profile = devices.detect(host, topology)
    fact = Fact(value="fake")
    about = {"fake": About(version=fact, build=fact)}
    setting = bench.Setting(host, topology, profile, ("edgebench",), Limits(), about, estimate)
    protocol = Protocol(min_rounds=1, max_rounds=1, energy=energy, cooldown="auto")
    plan = Plan(trials=(replace(TRIAL, **trial),), protocol=protocol)
    session = bench.Session(setting, bench.new_id(), Silent())
    with Store.open(str(folder / "store.db")) as store:
        store.begin_session(
            Session(
                session_id=session.session_id,
                created_utc=bench.now_utc(),
                command=("edgebench",),
                plan=plan,
                device_profile=profile.id,
            )
        )
        try:
            [run] = session.measure(plan, store).runs
        finally:
            session.close()
        assert list(store.runs(session_id=session.session_id)) == [run]
    assert run.outcome == "ok", run.failure
    return run


def report(run: Run) -> str:
    console = Console(file=io.StringIO(), width=160)
    text.print_result(console, [summarize([run], Protocol())])
    return console.file.getvalue()


@pytest.fixture(scope="module")
def orin(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("orin")
    return one_round(folder, board(folder / "root", "jetson-orin-nano"), QUICK)


def test_a_board_tells_its_energy_by_its_total_rail(orin: Run):
    energy = orin.energy
    watts = 4960 * 960 / 1e6
    assert energy.reason == ""
    assert (energy.scope, energy.method) == ("module", "gauge")
    assert [channel for channel in energy.channels if "VDD_IN" in channel]
    [window] = [window for window in energy.windows if window.name == "tg10"]
    assert window.seconds >= QUICK.window_s
    assert window.blocks == len(orin.blocks) >= 3
    assert energy.energy_j == pytest.approx(watts * window.seconds, rel=1e-6)
    assert energy.tokens["tg10"].j == pytest.approx(watts * window.seconds / (10 * window.blocks))
    assert "short_window" in {finding.kind for finding in orin.findings}


def test_idle_phases_lie_before_and_after_without_the_model_and_with_it(orin: Run):
    names = [mark.name for mark in orin.marks if not mark.name.endswith("settling")]
    before, after = ["idle", "rested", "load", "idle_loaded", "rested"], ["idle_loaded", "rested", "idle", "rested"]
    assert names == [*before, "tg10", "end", *after]


def test_the_report_names_energy_scope_and_uncertainty(orin: Run):
    said = report(orin)
    assert "J/token" in said.splitlines()[0]
    assert "energy: module, by " in said
    assert "±" in said.split("energy: module")[1]
    assert "Wh per 1000 tokens" in said


def test_the_report_of_a_pi_names_its_throttling(tmp_path: Path):
    run = one_round(tmp_path, board(tmp_path / "root", "raspberry-pi-5"), None)
    said = " ".join(report(run).split())
    assert "throttled_before: The firmware says under-voltage and throttled since boot, but not while" in said
    assert "throttled" not in {finding.kind for finding in run.findings}


def test_a_counter_that_stands_still_is_a_finding_and_never_0_joules(tmp_path: Path):
    run = one_round(tmp_path, board(tmp_path / "root", "desktop-i5-13500"), replace(QUICK, window_s=0.8))
    assert run.energy.energy_j is None
    assert "did not move" in run.energy.reason
    assert "frozen_counter" in {finding.kind for finding in run.findings}
    assert "energy: not measured" in report(run)


def test_without_a_sensor_the_reason_says_what_was_looked_for(tmp_path: Path):
    host = board(tmp_path / "root", "raspberry-pi-5")
    (host.root / "commands/vcgencmd pmic_read_adc").unlink()
    run = one_round(tmp_path, host, None, EstimateRequest(stated_w=(2.0, 6.0)))
    assert run.energy.energy_j is None
    for name in ("rapl: this is no x86 processor", "pmic: the firmware does not answer", "battery: there is no"):
        assert name in " ".join(run.energy.absent)
    assert run.energy.estimate_low_j is not None
    assert run.energy.estimate_model == "stated_watts_v1"
    assert "no sensor of power or energy (`edgebench doctor` lists every source and how to get one)" in report(run)
    assert "~" in report(run)
    assert "(est., stated_watts_v1)" in report(run)
