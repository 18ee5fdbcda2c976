"""The sampler process, seen from the session: start it, point it at a child, fetch what it read.

A sampler that dies costs its readings and nothing else: the run says ``sampler_lost`` and the next run starts another.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
from contextlib import suppress

import msgspec

from edgebench.device_profile import DeviceProfile
from edgebench.engine.sampler import Order, Readings
from edgebench.host import Host

_ANSWER_S = 10.0


class Telemetry:
    """Starts the sampler on first use and again after it was lost."""

    def __init__(self, host: Host, profile: DeviceProfile | None) -> None:
        self._host, self._profile = host, profile
        self._process: subprocess.Popen[bytes] | None = None

    def _start(self) -> None:
        """A sampler that cannot be started (no process or memory is left) is like one that was lost."""
        with suppress(OSError):
            self._process = subprocess.Popen(
                [sys.executable, "-m", "edgebench.engine.sampler", str(self._host.root)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            self._write(msgspec.json.encode(self._profile))

    def _write(self, line: bytes) -> bool:
        """Whether the sampler is there to read it."""
        if self._process is None or self._process.stdin is None:
            return False
        try:
            self._process.stdin.write(line + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return False
        return True

    def watch(self, pid: int) -> None:
        """Follow this process from now on, with a fresh sampler if the last one was lost."""
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._start()
        self._write(msgspec.json.encode(Order(do="watch", pid=pid)))

    def collect(self) -> Readings | None:
        """The readings since `watch`, or None when the sampler was lost."""
        process = self._process
        if process is None or process.stdout is None or not self._write(msgspec.json.encode(Order(do="collect"))):
            return None
        answer = b""
        while not answer.endswith(b"\n"):
            if not select.select([process.stdout], [], [], _ANSWER_S)[0]:
                self.close()
                return None
            data = os.read(process.stdout.fileno(), 1 << 20)
            if not data:
                self.close()
                return None
            answer += data
        return msgspec.json.decode(answer, type=Readings)

    def close(self) -> None:
        """End the sampler; twice is fine."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):  # an order that nobody will read
                    stream.close()
