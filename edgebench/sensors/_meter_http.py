"""Meters that answer HTTP with JSON.

Presets say where on the meter the figure is; formats after the makers' documentation: Shelly Gen1 ``/status``, Shelly
Gen2 ``Switch.GetStatus``, Tasmota ``Status 8``, Home Assistant's REST API. Their counters of energy are left out: they
count in steps of a watt-hour (3600 J) or publish once a minute, which tells nothing about a run of minutes.
"""

from __future__ import annotations

import base64
import http.client
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import parse_qsl, urlsplit

import msgspec

from edgebench.errors import UsageError
from edgebench.host import Unavailable

_WATTS = {"w": 1.0, "mw": 1e-3, "kw": 1e3}
_JOULES = {"j": 1.0, "wh": 3600.0, "kwh": 3.6e6, "wmin": 60.0}

_TIMEOUT_S = 1.0
_LATEST_S = 0.3
_LARGEST_BYTES = 1 << 16
_LARGEST = 1e300


@dataclass(frozen=True)
class _Preset:
    """Where a kind of meter tells its power."""

    path: str
    """Asked for when the address names no path of its own."""
    watts: str
    unit: str = ""
    """Where it names its unit, if it does."""


_PRESETS = {
    "shelly1": _Preset("/status", "meters.0.power"),
    "shelly2": _Preset("/rpc/Switch.GetStatus?id=0", "apower"),
    "tasmota": _Preset("/cm?cmnd=Status%208", "StatusSNS.ENERGY.Power"),
    "homeassistant": _Preset("", "state", unit="attributes.unit_of_measurement"),
    "json": _Preset("", ""),
}
KINDS = tuple(_PRESETS)


def check(kind: str, target: str) -> None:
    """Refuse what cannot be the address of such a meter.

    Raises:
        UsageError: with the form that it should have.
    """
    url = urlsplit(target)
    try:
        usable = url.scheme in ("http", "https") and bool(url.hostname) and (url.port or 1) > 0
    except ValueError:  # a port that is no number
        usable = False
    if not usable:
        raise UsageError(f"{target!r} is no address of a meter.", f"write {kind}:http://HOST[:PORT].")
    if url.username or url.password:
        raise UsageError(
            "The address of the meter holds a password, which every record would keep.",
            "leave it out of the address, and set EDGEBENCH_METER_TOKEN=user:password.",
        )
    if kind == "homeassistant" and not url.path.strip("/"):
        raise UsageError(
            f"{target!r} names no entity of Home Assistant.",
            "write homeassistant:http://HOST:8123/sensor.NAME, with a token in EDGEBENCH_METER_TOKEN.",
        )
    if kind == "json":
        _wanted(url.fragment)


_Wanted = tuple[Literal["power", "energy"], str, float]


def _wanted(fragment: str) -> list[_Wanted]:
    """(quantity, path, factor to SI) for ``w=a.b`` or ``w=a.b&wh=c.0.d``; a bare path is watts.

    Raises:
        UsageError: when no path is given, or a unit is unknown.
    """
    pairs = parse_qsl(fragment) if "=" in fragment else [("w", fragment)] if fragment else []
    power = [("power", path, _WATTS[unit.lower()]) for unit, path in pairs if unit.lower() in _WATTS]
    energy = [("energy", path, _JOULES[unit.lower()]) for unit, path in pairs if unit.lower() in _JOULES]
    if not pairs or len(power) > 1 or len(energy) > 1 or len(power) + len(energy) < len(pairs):
        raise UsageError(
            f"#{fragment} does not say where in the JSON the power is.",
            f"end the address with #w=PATH, such as #w=meters.0.power; units: {', '.join((*_WATTS, *_JOULES))}.",
        )
    return [
        *(("power", path, factor) for _, path, factor in power),
        *(("energy", path, factor) for _, path, factor in energy),
    ]


class HttpSource:
    """Asks one meter.

    Args:
        kind: one of ``KINDS``.
        target: its address; of ``json`` with a fragment that says where the figures are.
        secret: a bearer token (Home Assistant), else ``user:password``; empty for none.
    """

    period_s = 0.5

    def __init__(self, kind: str, target: str, secret: str = "") -> None:
        url, preset = urlsplit(target), _PRESETS[kind]
        self._kind, self._secure, self._address = kind, url.scheme == "https", (url.hostname or "", url.port)
        self._wanted: list[_Wanted] = _wanted(url.fragment) if kind == "json" else [("power", preset.watts, 1.0)]
        self.names: Sequence[Literal["power", "energy"]] = [name for name, _, _ in self._wanted]
        self._unit_path = preset.unit
        path = url.path if url.path.strip("/") else ""
        self._path = (path or "/") + (f"?{url.query}" if url.query else "") if path or not preset.path else preset.path
        if kind == "homeassistant" and not path.startswith("/api/"):
            self._path = f"/api/states/{path.strip('/')}"
        self._headers = {"Accept": "application/json", "Connection": "close", **_authorization(kind, secret)}
        self.taken_ns = 0

    def read(self) -> list[float]:
        """Ask once; see the sensor for what counts as an answer.

        Raises:
            Unavailable: with the reason.
        """
        body = self._ask()
        try:
            document = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise self._no(f"answered {body[:40]!r}, which is no JSON") from None
        return [self._number(document, path) * self._factor(document, factor) for _, path, factor in self._wanted]

    def _no(self, reason: str) -> Unavailable:
        return Unavailable(f"{self._kind} at {self._address[0]}", reason)

    # --- the answer

    def _number(self, document: Any, path: str) -> float:
        found = _follow(document, path)
        if isinstance(found, str):  # Home Assistant and some plugs write numbers as text
            try:
                found = float(found)
            except ValueError:
                raise self._no(f"says {found[:40]!r} at {path}") from None
        if isinstance(found, bool) or not isinstance(found, (int, float)) or not abs(found) < _LARGEST:
            raise self._no(f"its answer has no number at {path}")
        return float(found)

    def _factor(self, document: Any, factor: float) -> float:
        if not self._unit_path:
            return factor
        unit = _follow(document, self._unit_path)
        if not isinstance(unit, str) or unit.lower() not in _WATTS:
            raise self._no(f"measures in {unit!r}, not in watts")
        return _WATTS[unit.lower()]

    # --- the connection

    def _ask(self) -> bytes:
        """The body of the answer. A connection of its own for each: most plugs close theirs anyway."""
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(*self._address, timeout=_TIMEOUT_S)
        try:
            connection.connect()
            return self._converse(connection)
        except http.client.RemoteDisconnected as error:
            raise self._no("closed the connection without an answer") from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._no(_told(error)) from error
        finally:
            connection.close()

    def _converse(self, connection: http.client.HTTPConnection) -> bytes:
        """One request; `taken_ns` becomes its middle.

        Raises:
            ValueError: for an answer that is no reading.
        """
        before = time.monotonic_ns()
        connection.request("GET", self._path, headers=self._headers)
        response = connection.getresponse()
        body = b""
        while piece := response.read1(_LARGEST_BYTES):
            body += piece
            if time.monotonic_ns() - before > _TIMEOUT_S * 1e9:  # it may drip: each byte in time, the answer never
                raise TimeoutError
            if len(body) > _LARGEST_BYTES:
                raise ValueError("it answered more than a meter has to say")
        after = time.monotonic_ns()
        self.taken_ns = (before + after) // 2
        if response.status in (401, 403):
            raise ValueError("it wants a password: set EDGEBENCH_METER_TOKEN (digest authentication is not supported)")
        if response.status != 200:
            raise ValueError(f"it answered with status {response.status}")
        if after - before > _LATEST_S * 1e9:
            raise ValueError(f"it answered after {(after - before) / 1e9:.2f} s, too late to say when it measured")
        return body


def _told(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"gave no answer within {_TIMEOUT_S:g} s"
    if isinstance(error, OSError):
        return error.strerror or "cannot be reached"
    if isinstance(error, http.client.HTTPException):
        return f"its answer is no HTTP ({type(error).__name__})"
    return str(error)


def _authorization(kind: str, secret: str) -> dict[str, str]:
    if not secret:
        return {}
    if kind == "homeassistant":
        return {"Authorization": f"Bearer {secret}"}
    return {"Authorization": "Basic " + base64.b64encode(secret.encode()).decode()}


def _follow(document: Any, path: str) -> Any:
    """What is at ``meters.0.power``; None where the path leads nowhere."""
    for step in path.split("."):
        if isinstance(document, dict):
            document = document.get(step)
        elif isinstance(document, list) and step.isdecimal() and int(step) < len(document):
            document = document[int(step)]
        else:
            return None
    return document
