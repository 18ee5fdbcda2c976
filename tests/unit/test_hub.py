"""Files on a hub: the real client against a small server on this machine that speaks the hub's protocol."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytest.importorskip("huggingface_hub", reason="the extra [hub] is not installed")

BODY = b"GGUF" + bytes(range(256)) * 20_000
SHA = hashlib.sha256(BODY).hexdigest()
COMMIT = "c0ffee" * 6 + "c0ff"
OBTAIN = """
import json, sys, msgspec
from edgebench import artifacts
from edgebench.errors import EdgebenchError
for reference in sys.argv[1:]:
    steps = []
    try:
        artifact = artifacts.obtain(reference, progress=lambda *step: steps.append(step))
        print(json.dumps({**msgspec.to_builtins(artifact), "steps": steps}))
    except EdgebenchError as error:
        print(json.dumps({"error": type(error).__name__, "says": str(error)}))
"""


@dataclass
class Hub:
    """What the server serves and what it was asked."""

    body: bytes = BODY
    etag: str = SHA
    break_after: int | None = None
    """Break the first download after so many bytes."""
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, *, with_body: bool) -> None:
        hub, wanted = self.hub, self.headers.get("Range")
        hub.asked.append((self.command, self.path, wanted))
        missing = {
            "/owner/none/": "RepoNotFound",
            "/gone/": "RevisionNotFound",
            "/absent.gguf": "EntryNotFound",
            "/gated/": "GatedRepo",
        }
        for part, code in missing.items():
            if part in self.path:
                self.send_response(403 if code == "GatedRepo" else 404)
                self.send_header("X-Error-Code", code)
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(hub.body) - 1}/{len(hub.body)}")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hub.etag}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(hub.body) - start))
        self.end_headers()
        if with_body and hub.break_after is not None:
            self.wfile.write(hub.body[: hub.break_after])
            hub.break_after = None
            self.close_connection = True
        elif with_body:
            self.wfile.write(hub.body[start:])

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def hub():
    state = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": state}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def obtain(hub, tmp_path):
    def run(*references: str, **environment: str) -> list[dict]:
        done = subprocess.run(
            [sys.executable, "-c", OBTAIN, *references],
            env={
                **os.environ,
                "EDGEBENCH_CACHE": str(tmp_path / "cache"),
                "HF_HOME": str(tmp_path / "hub"),
                "HF_ENDPOINT": hub.url,
                "HF_HUB_DISABLE_TELEMETRY": "1",
                "NO_PROXY": "*",
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


def test_a_file_is_pulled_pinned_and_used_again_offline(hub, obtain, tmp_path):
    (pulled,) = obtain("hf:owner/repo/sub/m.gguf@main")
    assert (pulled["sha256"], pulled["bytes"], pulled["model"], pulled["precision"]) == (SHA, len(BODY), "m", "shipped")
    assert pulled["origin"] == f"hf:owner/repo/sub/m.gguf@{COMMIT}"
    assert Path(pulled["path"]).is_relative_to(tmp_path / "hub")
    assert Path(pulled["path"]).read_bytes() == BODY
    asked = len(hub.asked)
    again, pinned, other = obtain(
        "hf:owner/repo/sub/m.gguf", f"hf:owner/repo/sub/m.gguf@{COMMIT}", "hf:owner/repo/x.gguf", HF_HUB_OFFLINE="1"
    )
    assert len(hub.asked) == asked
    assert (again["origin"], pinned["origin"]) == (pulled["origin"], pulled["origin"])
    assert other["error"] == "FetchError"
    assert "HF_HUB_OFFLINE" in other["says"]


def test_a_broken_connection_is_resumed_where_it_broke(hub, obtain):
    hub.body = BODY * 5  # the client writes 10 MB at a time
    hub.etag = hashlib.sha256(hub.body).hexdigest()
    hub.break_after = 15_000_000
    (pulled,) = obtain("hf:owner/repo/m.gguf")
    assert pulled["sha256"] == hub.etag
    (resumed,) = [wanted for command, _, wanted in hub.asked if command == "GET" and wanted]
    assert int(resumed.removeprefix("bytes=").partition("-")[0]) >= 10_000_000
    assert pulled["steps"][0][0] == "download m.gguf"


def test_bytes_that_are_not_the_promised_ones_are_refused_and_removed(hub, obtain, tmp_path):
    hub.etag = "0" * 64
    (refused,) = obtain("hf:owner/repo/m.gguf")
    assert refused["error"] == "FetchError"
    assert SHA in refused["says"]
    assert hub.etag in refused["says"]
    assert not list((tmp_path / "hub").rglob("blobs/*"))


def test_every_refusal_has_its_own_next_step(hub, obtain):
    answers = obtain(
        "hf:owner/none/m.gguf", "hf:owner/repo/m.gguf@gone", "hf:owner/repo/absent.gguf", "hf:owner/gated/m.gguf"
    )
    assert [answer["error"] for answer in answers] == ["FetchError"] * 4
    for answer, step in zip(
        answers, ("check the spelling", "branch, tag or commit", "name and folder", "accept its terms"), strict=True
    ):
        assert step in answer["says"]


def test_a_hub_file_that_is_no_gguf_is_refused(hub, obtain):
    hub.body = b"<html>"
    hub.etag = hashlib.sha256(hub.body).hexdigest()
    (refused,) = obtain("hf:owner/repo/m.gguf")
    assert refused["error"] == "ArtifactError"
    assert "starts with b'<htm'" in refused["says"]


@pytest.mark.slow  # the client tries for 20 s before it gives up
def test_a_hub_that_cannot_be_reached_is_a_fetch_error(obtain):
    (refused,) = obtain("hf:owner/repo/m.gguf", HF_ENDPOINT="http://127.0.0.1:9")
    assert refused["error"] == "FetchError"
    assert "network" in refused["says"]
