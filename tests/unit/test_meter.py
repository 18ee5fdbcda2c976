"""Meters outside the machine, against a real HTTP server on loopback, real programs and a real terminal line."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from types import SimpleNamespace

import pytest

from edgebench.device_profile import DeviceProfile, Match
from edgebench.engine.telemetry import Telemetry
from edgebench.errors import UsageError
from edgebench.host import Host
from edgebench.records import Series
from edgebench.sensors import meter
from edgebench.sensors.base import WaitsForAnswer

Answer = Callable[[BaseHTTPRequestHandler], None]


class Plug:
    """A meter on loopback whose behaviour a test sets while it runs."""

    def __init__(self) -> None:
        self.answer: Answer = says(4.2)
        self.asked: list[tuple[str, str | None]] = []
        plug = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                plug.asked.append((self.path, self.headers.get("Authorization")))
                plug.answer(self)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def body(request: BaseHTTPRequestHandler, text: str, status: int = 200) -> None:
    raw = text.encode()
    request.send_response(status)
    request.send_header("Content-Length", str(len(raw)))
    request.end_headers()
    with suppress(OSError):  # it did not wait for us
        request.wfile.write(raw)


def says(watts: object) -> Answer:
    """What a Shelly of the second generation answers."""
    return lambda request: body(request, json.dumps({"id": 0, "output": True, "apower": watts, "voltage": 232.0}))


@pytest.fixture
def plug() -> Iterator[Plug]:
    made = Plug()
    yield made
    made.close()


def sensor(text: str, host: Host | None = None) -> meter.MeterSensor:
    found = meter.detect(host or Host(), profile(text))
    assert found is not None
    return found


def profile(text: str) -> DeviceProfile:
    return DeviceProfile(id="x", title="x", match=Match(), attached_meter=text)


def power(one: meter.MeterSensor) -> float | None:
    return one.read()[0]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    """In this process a stream that ended is opened again without a pause: here it ends on purpose."""
    monkeypatch.setattr(meter, "_BACK_OFF_S", 0.0)


# --- how it is named


@pytest.mark.parametrize(
    ("text", "kind", "scope"),
    [
        ("shelly2:http://192.168.1.5", "shelly2", "wall_ac"),
        ("dc_input=shelly2:http://192.168.1.5", "shelly2", "dc_input"),
        ("command:cat watts.txt", "command", "wall_ac"),
        ("dc_input=command:cat a=b:c", "command", "dc_input"),
        ("serial:/dev/ttyACM0@9600", "serial", "dc_input"),
        ("hwmon:powerz", "hwmon", "dc_input"),
        ("wall_ac=hwmon:powerz", "hwmon", "wall_ac"),
        ("json:http://h/x?y=1#w=a.0.b&wh=c", "json", "wall_ac"),
    ],
)
def test_a_text_names_kind_target_and_scope(text: str, kind: str, scope: str):
    spec = meter.parse_meter(text)
    assert (spec.kind, spec.scope) == (kind, scope)
    assert {channel.scope for channel in sensor(text).channels() if channel.unit in "WJ"} == {scope}


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("shelly2", "KIND:TARGET"),
        ("shely2:http://h", "did you mean 'shelly2'"),
        ("board=shelly2:http://h", "dc_input="),
        ("shelly2:192.168.1.5", "http://HOST"),
        ("shelly2:http://h:99999999", "http://HOST"),
        ("shelly1:http://admin:secret@h", "EDGEBENCH_METER_TOKEN"),
        ("homeassistant:http://h:8123", "sensor.NAME"),
        ("json:http://h/x", "#w=PATH"),
        ("json:http://h/x#furlongs=a", "#w=PATH"),
        ("json:http://h/x#w=a&mw=b", "#w=PATH"),
        ("command:'cat", "quotation"),
        ("serial:/dev/ttyACM0@123", "usual speed"),
    ],
)
def test_a_slip_is_told_with_what_to_write(text: str, hint: str):
    with pytest.raises(UsageError) as caught:
        meter.parse_meter(text)
    assert hint in str(caught.value)


def test_the_environment_names_a_meter_where_the_session_does_not(monkeypatch):
    monkeypatch.setenv("EDGEBENCH_METER", "hwmon:powerz")
    assert meter.named(None) == "hwmon:powerz"
    assert meter.named(profile("command:cat x")) == "command:cat x"


# --- what the meters say


SHELLY1 = {"relays": [{"ison": True}], "meters": [{"power": 12.5, "is_valid": True, "total": 1234}]}
TASMOTA = {"StatusSNS": {"Time": "2020-06-29T22:22:24", "ENERGY": {"Total": 41.573, "Power": 2, "Voltage": 230}}}
ASSISTANT = {"entity_id": "sensor.plug", "state": "0.0125", "attributes": {"unit_of_measurement": "kW"}}
CUSTOM = {"a": [{"b": 4200.0}], "c": {"total": 2.0}}


@pytest.mark.parametrize(
    ("text", "document", "path", "values"),
    [
        ("shelly1:{url}", SHELLY1, "/status", [12.5]),
        ("shelly2:{url}", {"apower": 47.11}, "/rpc/Switch.GetStatus?id=0", [47.11]),
        ("shelly2:{url}/rpc/Switch.GetStatus?id=1", {"apower": 47.11}, "/rpc/Switch.GetStatus?id=1", [47.11]),
        ("tasmota:{url}/", TASMOTA, "/cm?cmnd=Status%208", [2.0]),
        ("homeassistant:{url}/sensor.plug", ASSISTANT, "/api/states/sensor.plug", [12.5]),
        ("json:{url}/x?y=1#mw=a.0.b&wh=c.total", CUSTOM, "/x?y=1", [4.2, 7200.0]),
        ("json:{url}/x#wh=c.total", CUSTOM, "/x", [7200.0]),
    ],
)
def test_each_preset_asks_and_reads_as_its_maker_says(plug: Plug, text, document, path, values):
    plug.answer = lambda request: body(request, json.dumps(document))
    one = sensor(text.format(url=plug.url))
    began_ns = time.monotonic_ns()
    assert one.read()[:-1] == pytest.approx(values)
    assert plug.asked == [(path, None)]
    assert isinstance(one, WaitsForAnswer)
    assert began_ns <= one.taken_ns <= time.monotonic_ns()


@pytest.mark.parametrize(("kind", "word"), [("shelly1", "Basic dTpw"), ("homeassistant", "Bearer u:p")])
def test_the_secret_comes_from_the_environment(plug: Plug, monkeypatch, kind, word):
    monkeypatch.setenv("EDGEBENCH_METER_TOKEN", "u:p")
    sensor(f"{kind}:{plug.url}/sensor.plug").read()
    assert plug.asked[0][1] == word


DRIP_S = 20.0


def drip(request: BaseHTTPRequestHandler) -> None:
    """One byte at a time, each well within any limit."""
    request.send_response(200)
    request.send_header("Content-Length", str(round(10 * DRIP_S)))
    request.end_headers()
    try:
        for _ in range(round(10 * DRIP_S)):
            request.wfile.write(b" ")
            request.wfile.flush()
            time.sleep(0.1)
    except OSError:
        return  # the other side had enough


def later(seconds: float) -> Answer:
    def answer(request: BaseHTTPRequestHandler) -> None:
        time.sleep(seconds)
        says(4.2)(request)

    return answer


def hang_up(request: BaseHTTPRequestHandler) -> None:
    request.close_connection = True


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (says(None), "no number at apower"),
        (says("many"), "says 'many'"),
        (says([True]), "no number"),
        (says(-3.0), "says -3 W"),
        (says(0.0), "plugged into"),
        (says(1e9), "no machine here draws"),
        (lambda request: body(request, "[]"), "no number at apower"),
        (lambda request: body(request, '{"apower": NaN}'), "no JSON"),
        (lambda request: body(request, '{"apower": 1e999}'), ""),
        (lambda request: body(request, '{"apower": ' + "9" * 400 + "}"), ""),
        (lambda request: body(request, "\xff<html>"), "no JSON"),
        (lambda request: body(request, "x" * 100_000), "more than a meter has to say"),
        (lambda request: body(request, "{}", status=500), "status 500"),
        (lambda request: body(request, "{}", status=401), "EDGEBENCH_METER_TOKEN"),
        (lambda request: request.wfile.write(b"SSH-2.0-x\r\n\r\n"), ""),
        (later(0.4), "too late"),
        (later(1.3), "no answer within 1 s"),
        (drip, "no answer within 1 s"),
        (hang_up, "without an answer"),
    ],
)
def test_what_is_no_reading_is_none_with_a_reason_and_the_next_one_counts(plug: Plug, answer: Answer, reason: str):
    one = sensor(f"shelly2:{plug.url}")
    assert in_time(one) == 4.2
    plug.answer = answer
    began = time.monotonic()
    assert power(one) is None
    assert time.monotonic() - began < DRIP_S, "it waited for the last byte"
    assert reason in one.trouble
    assert one.trouble
    plug.answer = says(5.5)
    assert in_time(one) == 5.5


def in_time(one: meter.MeterSensor) -> float | None:
    """Its next reading; where this machine was too slow for one, the one after that."""
    for _ in range(20):
        value = power(one)
        if value is not None or "too late" not in one.trouble:
            break
    return value


def test_nobody_at_the_address_is_none_with_a_reason():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    one = sensor(f"tasmota:http://127.0.0.1:{port}")
    assert power(one) is None
    assert "refused" in one.trouble


class Stepping:
    """A source that is asked every 0.02 s of a clock of its own and shows a new value every 0.25 s."""

    names = ("power",)
    period_s, taken_ns = 0.1, 0

    def read(self) -> list[float]:
        self.taken_ns += 20_000_000
        return [4.0 + self.taken_ns // 250_000_000 % 2]


def test_the_update_period_is_measured_and_sets_the_rate(monkeypatch):
    source = Stepping()
    monkeypatch.setattr(meter, "time", SimpleNamespace(monotonic_ns=lambda: source.taken_ns))
    one = meter.MeterSensor(meter.parse_meter("shelly2:http://x"), source)
    while source.taken_ns < 2.9e9:
        update_s = one.read()[-1]
        assert one.period_s == 0.1, "it is asked often until its period is known"
    while source.taken_ns < 3.3e9:
        one.read()
    assert update_s == pytest.approx(0.25, abs=0.02)
    assert one.period_s == pytest.approx(0.125, abs=0.01)


# --- programs, cables, chips


@pytest.mark.parametrize(
    ("program", "watts", "reason"),
    [
        ("echo 4.25", 4.25, ""),
        ("printf 'power now:\\n 4250 mW\\n\\n'", 4.25, ""),
        ("echo 4.25 V", None, "no number of watts"),
        ("true", None, "no number of watts"),
        ("printf '\\377\\376'", None, "no number of watts"),
        ("sh -c 'echo broken >&2; exit 3'", None, "status 3 and said: broken"),
        ("sh -c 'sleep 1.2; echo 3'", None, "too long"),
        ("no-such-program-here", None, "is not installed"),
    ],
)
def test_a_command_prints_watts_or_says_why_not(program: str, watts: float | None, reason: str):
    one = sensor(f"dc_input=command:{program}")
    assert power(one) == watts
    assert reason in one.trouble


def test_of_a_program_that_goes_on_the_newest_line_counts_and_its_end_is_told():
    with closing(sensor("lines:printf '1\\n2 W\\n'")) as one:  # both in one write
        assert power(one) == 2
        assert power(one) is None
        assert "ended" in one.trouble
        assert power(one) == 2  # started again


def test_a_line_that_is_no_number_is_told():
    with closing(sensor("lines:sh -c 'echo nonsense; exec sleep 9'")) as one:
        assert power(one) is None
        assert "'nonsense'" in one.trouble


def test_a_serial_line_is_read_in_raw_mode():
    master, slave = os.openpty()
    tty.setraw(master)
    one = sensor(f"serial:{os.ttyname(slave)}@9600")
    heard = threading.Event()

    def speak() -> None:
        while not heard.wait(0.05):  # what was said before the line was opened is dropped
            os.write(master, b"5.0\r\n5.5 W\r\n")

    speaker = threading.Thread(target=speak)
    speaker.start()
    assert power(one) == 5.5
    heard.set()
    speaker.join()
    os.close(slave)
    os.close(master)
    assert power(one) is None
    assert one.trouble


def test_a_chip_is_found_by_its_name_wherever_it_is_plugged_in(tmp_path):
    def write(folder: str, **files: str) -> None:
        path = tmp_path / "sys/class/hwmon" / folder
        path.mkdir(parents=True)
        for name, text in files.items():
            (path / name).write_text(text)

    one = sensor("hwmon:powerz", Host(tmp_path))
    assert power(one) is None
    assert "not plugged in" in one.trouble
    write("hwmon0", name="acpitz", power1_input="999000000")
    write("hwmon3", name="powerz", in0_input="5100", curr1_input="-1000")
    assert power(one) == pytest.approx(5.1)


# --- in the sampler


def collect(text: str, enough: Callable[[], bool]) -> dict[str, Series]:
    """What a sampler read until there was enough."""
    telemetry = Telemetry(Host(), profile(text))
    try:
        telemetry.watch(os.getpid())
        deadline = time.monotonic() + 60
        while not enough():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.1)  # what was asked is answered
        readings = telemetry.collect()
    finally:
        telemetry.close()
    assert readings is not None
    return {series.channel.name: series for series in readings.series}


def test_scripted_watts_reach_the_record_with_stamps_of_their_own(plug: Plug):
    answered: list[tuple[float, float]] = []

    def answer(request: BaseHTTPRequestHandler) -> None:
        """Steps up at the seventh question."""
        watts = 5.0 if len(answered) < 6 else 9.0
        answered.append((time.monotonic(), watts))
        says(watts)(request)

    plug.answer = answer
    series = collect(f"shelly2:{plug.url}", lambda: len(answered) >= 12)["meter.shelly2.power"]
    assert series.channel.scope == "wall_ac"
    assert set(series.values) - {None} == {5.0, 9.0}
    assert list(series.t_ns) == sorted(set(series.t_ns))
    for t_ns, value in zip(series.t_ns, series.values, strict=True):
        if value is not None:  # on a slow machine an answer may be too late
            near = {watts for at_s, watts in answered if abs(at_s - t_ns / 1e9) <= 0.15}
            assert value in near, "0.15 s is half of the longest answer that counts"


def test_a_meter_that_never_answers_in_time_delays_no_other_sensor(plug: Plug):
    plug.answer = later(5)
    found = collect(f"shelly2:{plug.url}", lambda: len(plug.asked) >= 2)  # the first one was waited for, 1 s
    memory = found["memory.available"].t_ns
    gaps = sorted((b - a) / 1e9 for a, b in pairwise(memory))
    assert len(memory) >= 5
    assert gaps[len(gaps) // 2] < 0.5, "while the meter was waited for, others were read"
    meter_series = found["meter.shelly2.power"]
    assert meter_series.values
    assert not any(meter_series.values)
    assert "no answer within 1 s" in meter_series.missing_because
