"""What is made of a Hugging Face folder: which file comes from which, what is reused, and what bad luck leaves."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edgebench import artifacts, derive
from edgebench.artifacts import local
from edgebench.checkpoint.gguf import read_header
from edgebench.checkpoint.gguf_weights import GGUFWeights
from edgebench.checkpoint.hf import HFWeights
from edgebench.derive import CONVERTER, Kind, Maker
from edgebench.engine.child import run_job
from edgebench.host import Host
from edgebench.manifest import OnnxManifest
from edgebench.records import Failure
from edgebench.specs import Artifact

QUANTIZER = "llama.cpp of the test"


class Told:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.shares: list[tuple[str, int, int]] = []

    def step(self, text: str) -> None:
        self.steps.append(text)

    def share(self, what: str, done: int, total: int) -> None:
        self.shares.append((what, done, total))


@pytest.fixture
def told():
    return Told()


@pytest.fixture
def maker(tmp_path, monkeypatch, told):
    monkeypatch.setenv("EDGEBENCH_CACHE", str(tmp_path / "cache"))
    return Maker(Host(), QUANTIZER, 1, told)


@pytest.fixture
def source(maker, hf_folder) -> Artifact:
    return local.describe(hf_folder)


def made(result) -> Artifact:
    assert isinstance(result, Artifact), result
    return result


def work_of(cache: Path) -> list[Path]:
    """Files that are being made, or were left."""
    return [path for path in (cache / "temporary").rglob("*") if path.is_file() and path.name != "owner.lock"]


def test_a_folder_is_named_whole(source):
    assert source.model == "tiny-0.1B ü"


def test_what_is_shipped_is_the_folders_own_precision(maker, source):
    shipped = made(maker.gguf(source, "shipped"))
    assert (shipped.precision, shipped.format, shipped.derived_from) == ("bf16", "gguf", source.sha256)
    assert read_header(shipped.path).file_type == "bf16"
    assert shipped == made(maker.gguf(source, "bf16"))


def test_a_folder_of_several_types_is_f32(tmp_path, hf_folder):
    folder = tmp_path / "mixed"
    shutil.copytree(hf_folder, folder)
    path = folder / "model.safetensors"
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    first = json.loads(data[8 : 8 + size])
    first["model.embed_tokens.weight"]["dtype"] = "F16"  # other values, and as good for this
    text = json.dumps(first).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    assert derive.folder_precision(local.describe(hf_folder)) == "bf16"
    assert derive.folder_precision(local.describe(folder)) == "f32"


def test_plain_precisions_come_from_the_folder_and_all_others_from_one_gguf(maker, source, told):
    direct = {precision: made(maker.gguf(source, precision)) for precision in ("f32", "f16", "q8_0")}
    assert {one.derived_from for one in direct.values()} == {source.sha256}
    assert [step.rsplit(" ", 1)[1] for step in told.steps] == ["f32", "f16", "q8_0"]
    quantized = [made(maker.gguf(source, precision)) for precision in ("q4_k_m", "q4_0")]
    whole = made(maker.gguf(source, "bf16"))
    assert {one.derived_from for one in quantized} == {whole.sha256}
    assert [step.split(" ")[0] for step in told.steps[3:]] == ["converting", "making", "making"]
    count = len(told.steps)
    assert made(maker.gguf(source, "q4_0")) == quantized[1]
    assert len(told.steps) == count
    ends = {what.split(",")[0]: (done, total) for what, done, total in told.shares}
    assert all(done == total > 0 for done, total in ends.values())
    assert len(ends) == 6


def test_another_version_of_the_writer_does_not_reuse_its_files(maker, source, monkeypatch):
    first = made(maker.gguf(source, "f16"))
    assert CONVERTER in first.path
    monkeypatch.setattr(derive, "CONVERTER", "edgebench-gguf-9")
    assert made(maker.gguf(source, "f16")).path != first.path


def test_twins_hold_the_same_weights(maker, source):
    for precision in ("q4_0", "q8_0", "shipped"):
        gguf, onnx = made(maker.gguf(source, precision)), made(maker.onnx(source, precision, Kind()))
        assert onnx.same_weights_as == gguf.sha256
        assert (Path(onnx.path) / "tokenizer.gguf").is_file()


@pytest.mark.parametrize("precision", ["int4", "q4_0"])
def test_an_onnx_folder_of_a_folder_has_its_tokenizer(maker, source, precision):
    onnx = made(maker.onnx(source, precision, Kind()))
    manifest = derive.read_manifest(onnx)
    assert isinstance(manifest, OnnxManifest)
    assert manifest.first_token == 0
    assert onnx.derived_from == (source.sha256 if precision == "int4" else made(maker.gguf(source, "q4_0")).sha256)
    (path,) = Path(onnx.path).glob("tokenizer.gguf")
    code = """
        import sys
        from pathlib import Path
        from edgebench.checkpoint.vocabulary import Vocabulary
        print(*Vocabulary(Path(sys.argv[1])).tokenize("once upon a time"))
    """
    argv = [sys.executable, "-c", textwrap.dedent(code), str(path)]
    ids = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=120).stdout.split()
    import tokenizers

    judge = tokenizers.Tokenizer.from_file(str(Path(source.path) / "tokenizer.json"))
    assert [int(number) for number in ids] == [0, *judge.encode("once upon a time").ids]


@pytest.fixture
def mute(maker, hf_folder, tmp_path) -> Artifact:
    """The folder with a tokenizer that llama.cpp lacks."""
    folder = tmp_path / "mute"
    shutil.copytree(hf_folder, folder)
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    document["normalizer"] = {"type": "Lowercase"}
    path.write_text(json.dumps(document), encoding="utf-8")
    return local.describe(folder)


def test_a_tokenizer_that_cannot_be_expressed_is_a_note_for_onnx_and_an_error_for_gguf(maker, mute):
    onnx = made(maker.onnx(mute, "int8", Kind()))
    assert not (Path(onnx.path) / "tokenizer.gguf").exists()
    (note,) = onnx.quantizer_notes
    assert "profiled and not talked to" in note
    assert "Lowercase" in note
    failure = maker.gguf(mute, "q4_0")
    assert isinstance(failure, Failure)
    assert "Lowercase" in failure.says
    assert isinstance(maker.onnx(mute, "q4_0", Kind()), Failure)


def test_attention_that_llama_cpp_does_not_compute_does_not_cost_onnx_its_tokenizer(maker, hf_folder, tmp_path):
    """Gemma 3 may scale its attention scores otherwise than llama.cpp does; its tokens are cut all the same."""
    from edgebench.export import gguf

    weights = HFWeights(hf_folder)
    weights.config = msgspec.structs.replace(weights.config, final_softcap=30.0)
    words = gguf.words(weights, tmp_path)
    assert words.vocabulary.startswith(b"GGUF")
    assert words.first_token == 0
    weights.close()


def test_a_damaged_folder_is_a_failure(maker, source, hf_folder, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(hf_folder, folder)
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)
    failure = maker.gguf(local.describe(folder), "q8_0")
    assert isinstance(failure, Failure)
    assert "model.safetensors" in failure.says


def test_a_full_disk_leaves_nothing(maker, source, tmp_path, monkeypatch):
    """In a process whose files may not exceed 1 MB; what is made of 2.5 MB would."""
    code = f"""
        import resource, signal, sys
        from pathlib import Path
        from edgebench.artifacts import local
        from edgebench.derive import Maker
        from edgebench.host import Host
        class Teller:
            def step(self, text): pass
            def share(self, what, done, total): pass
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        maker = Maker(Host(), {QUANTIZER!r}, 1, Teller())
        failure = maker.gguf(local.describe(Path(sys.argv[1])), "q4_0")
        print(failure.says)
        left = Path(sys.argv[2]) / "temporary"
        print([path.name for path in left.rglob("*") if path.is_file() and path.name != "owner.lock"])
    """
    cache = tmp_path / "cache"
    argv = [sys.executable, "-c", textwrap.dedent(code), source.path, str(cache)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    assert "cannot be written" in done.stdout, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert not (cache / "derived").exists()


def test_a_kill_half_way_leaves_nothing_that_looks_finished(maker, source, tmp_path):
    code = f"""
        import os, signal, sys
        from pathlib import Path
        from edgebench.artifacts import local
        from edgebench.derive import Maker
        from edgebench.host import Host
        class Teller:
            def step(self, text): pass
            def share(self, what, done, total): os.kill(os.getpid(), signal.SIGKILL)
        Maker(Host(), {QUANTIZER!r}, 1, Teller()).gguf(local.describe(Path(sys.argv[1])), "f32")
    """
    argv = [sys.executable, "-c", textwrap.dedent(code), source.path]
    assert subprocess.run(argv, capture_output=True, check=False, timeout=120).returncode == -9
    cache = tmp_path / "cache"
    assert not (cache / "derived").exists()
    artifacts.work_file(".gguf")  # whoever comes next clears up
    assert work_of(cache) == []
    assert made(maker.gguf(source, "f32")).precision == "f32"


def test_a_child_that_dies_is_told_and_leaves_nothing(maker, source, tmp_path, monkeypatch):
    """As after an out-of-memory kill: what it had written goes at once, not at the end of the session."""

    def dying(job, host, limits, hear):
        Path(job.target).with_name(".work.gguf.unfinished").write_bytes(b"half")
        broken = msgspec.structs.replace(job, source="/nowhere")
        return run_job(broken, host, limits, hear)

    monkeypatch.setattr(derive, "run_job", dying)
    assert isinstance(maker.gguf(source, "q8_0"), Failure)
    assert work_of(tmp_path / "cache") == []


def test_the_gguf_of_a_bf16_folder_rounds_nothing(maker, source):
    weights, target = HFWeights(Path(source.path)), GGUFWeights(Path(made(maker.gguf(source, "shipped")).path))
    for name in weights.names():
        assert np.array_equal(weights.tensor(name), target.tensor(name)), name
    weights.close()
    target.close()
