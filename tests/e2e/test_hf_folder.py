"""A Hugging Face folder as a user gives it: exported, talked to and profiled on both runtimes."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from edgebench.checkpoint.gguf import read_header

if TYPE_CHECKING:
    from conftest import Cli

TEXT = "once upon a time the model read a text, and then it read it again.\n" * 120


@pytest.fixture(scope="module")
def cli(cli_in: type[Cli], tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """One cache for all, as on a user's machine: no test depends on what another one made."""
    return cli_in(tmp_path_factory.mktemp("folder"))


@pytest.mark.parametrize(("precision", "bits"), [("f16", 16), ("q8_0", 8.5), ("q4_k_m", 5)])
def test_it_becomes_a_gguf(cli: Cli, hf_folder: Path, precision: str, bits: float):
    target = cli.folder / f"{precision} ü.gguf"
    done = cli.here("export", hf_folder, "--to", "gguf", "--precision", precision, "-o", target, "--json")
    assert done.code == 0, done.err
    assert read_header(target).file_type == done.json["precision"] == precision
    assert done.json["path"] == str(target)
    assert done.json["bits_per_weight"] == pytest.approx(bits, abs=0.3)


@pytest.mark.parametrize("precision", ["int4", "q4_0"])
def test_it_becomes_an_onnx_folder_that_can_be_talked_to(cli: Cli, hf_folder: Path, precision: str):
    target = cli.folder / f"{precision}.onnx"
    done = cli.here("export", hf_folder, "--to", "onnx", "--precision", precision, "-o", target)
    assert done.code == 0, done.err
    assert sorted(path.name for path in target.iterdir()) == [
        "edgebench.json", "model.onnx", "scoring.onnx", "tokenizer.gguf", "weights.data",
    ]  # fmt: skip
    assert done.out.splitlines()[-1] == f"next: edgebench generate {shlex.quote(str(target))} 'Once upon a time'"
    talked = cli.here("generate", target, "once upon a time", "--max-tokens", "4", "--json")
    assert talked.code == 0, talked.err
    assert talked.json["runtime"] == "ort"
    assert talked.json["prompt_tokens"] > 4


def test_both_runtimes_say_the_same(cli: Cli, hf_folder: Path):
    what = ("generate", hf_folder, "once upon a time the", "--max-tokens", "8", "--threads", "1", "--json")
    answers = [cli.here(*what, "--runtime", runtime) for runtime in ("llamacpp", "ort")]
    assert [answer.code for answer in answers] == [0, 0], answers[0].err + answers[1].err
    first, second = (answer.json for answer in answers)
    assert first["artifact"] == second["artifact"] == f"{hf_folder.name} bf16"
    assert first["prompt_tokens"] == second["prompt_tokens"]
    assert first["tokens"][:4] == second["tokens"][:4]  # later ones may differ: the KV cache of one is f16


def test_profile_pairs_the_rows_of_the_same_weights(cli: Cli, hf_folder: Path):
    what = ("--model", hf_folder, "--precision", "shipped,q8_0,q4_0,int4", "--workload", "tg8", "--threads", "1")
    done = cli("profile", *what, "--budget", "1ms", "--json", "--output", cli.folder / "all.json")
    assert done.code == 0, done.err
    assert "the same weights, bit for bit, on llamacpp and ort: bf16, q8_0, q4_0" in done.err
    rows = {(trial["trial"]["runtime"], trial["trial"]["artifact"]["precision"]) for trial in done.json["trials"]}
    assert rows == {(runtime, p) for runtime in ("llamacpp", "ort") for p in ("bf16", "q8_0", "q4_0")} | {
        ("ort", "int4")
    }
    assert json.loads((cli.folder / "all.json").read_text())["runs"]


def test_what_cannot_be_resumed_is_not_said_to_be_gone(cli: Cli, hf_folder: Path):
    """An artifact may be a folder: a session that was stopped finds it again."""
    from edgebench.errors import UsageError
    from edgebench.profile import _check_files
    from edgebench.specs import Artifact, Plan, Protocol, Settings, TrialSpec

    def plan(path: Path) -> Plan:
        artifact = Artifact(model="m", precision="int4", format="onnx", path=str(path), bytes=1, sha256="00")
        trial = TrialSpec(artifact=artifact, runtime="ort", settings=Settings(threads=1, threads_batch=1), workloads=())
        return Plan(trials=(trial,), protocol=Protocol())

    _check_files(plan(hf_folder))
    with pytest.raises(UsageError, match="is gone"):
        _check_files(plan(hf_folder / "missing"))


def test_a_gguf_with_an_importance_matrix(cli: Cli, hf_folder: Path):
    text = cli.folder / "some text.txt"
    text.write_text(TEXT, encoding="utf-8")
    target = cli.folder / "weighted.gguf"
    what = ("export", hf_folder, "--to", "gguf", "--precision", "q2_k_s")
    done = cli.here(*what, "--imatrix", text, "-o", target, "--json")
    assert done.code == 0, done.err
    assert "tokens in chunks of 512" in done.json["quantizer_notes"][0]
    talked = cli.here("generate", target, "once upon", "--max-tokens", "2", "--json")
    assert talked.code == 0, talked.err
    cli.here(*what).complains(3, "importance matrix", "--imatrix TEXT")


@pytest.mark.parametrize(
    ("content", "more", "code", "says"),
    [
        ("too short", (), 3, "at least 512"),
        (" ", (), 2, "holds no text"),
        (None, (), 2, "There is no file"),
        (TEXT, ("--precision", "f16"), 2, "the same with and without"),
        (TEXT, ("--to", "onnx"), 2, "for making a GGUF"),
    ],
)
def test_a_matrix_that_cannot_be_had_is_told(
    cli: Cli,
    hf_folder: Path,
    tmp_path: Path,
    content: str | None,
    more: tuple[str, ...],
    code: int,
    says: str,
):
    text = tmp_path / "text.txt"
    if content is not None:
        text.write_text(content, encoding="utf-8")
    what = ("export", hf_folder, "--to", "gguf", "--precision", "q4_0", "--imatrix", text, *more, "--quiet")
    cli.here(*what).complains(code, says)


def test_a_full_disk_is_told_and_leaves_nothing(cli_in: type[Cli], hf_folder: Path, tmp_path: Path):
    cli = cli_in(tmp_path)
    full = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    full += "resource.setrlimit(resource.RLIMIT_FSIZE, (1000000, 1000000))"
    done = cli("export", hf_folder, "--to", "gguf", "--precision", "f32", "--quiet", before=full)
    done.complains(3, "cannot be written")
    assert not (cli.cache / "derived").exists()
    left = [path for path in (cli.cache / "temporary").rglob("*") if path.is_file()]
    assert left == []


@pytest.mark.slow
def test_a_tokenizer_that_llama_cpp_lacks_leaves_the_other_runtime(cli: Cli, hf_folder: Path, tmp_path: Path):
    folder = tmp_path / "mute"
    folder.mkdir()
    for path in hf_folder.iterdir():
        data = path.read_bytes()
        if path.name == "tokenizer.json":
            data = json.dumps({**json.loads(data), "normalizer": {"type": "Lowercase"}}).encode()
        (folder / path.name).write_bytes(data)
    what = ("--model", folder, "--precision", "q8_0,int8", "--workload", "tg8", "--threads", "1", "--budget", "1ms")
    done = cli("profile", *what, "--json")
    done.complains(4, "Lowercase")
    measured = [trial["trial"]["artifact"]["precision"] for trial in done.json["trials"] if trial["outcome"] == "ok"]
    assert measured == ["int8"]
    cli.here("generate", folder, "a", "--precision", "int8").complains(3, "no tokenizer.gguf")
