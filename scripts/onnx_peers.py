"""How fast is edgebench's ONNX road beside the two usual ones, and beside llama.cpp?

The same weights, taken from one GGUF, run as

- ``ours int4``: edgebench's int4 graph on edgebench's onnxruntime runner;
- ``genai int4``: the int4 graph of onnxruntime-genai's model builder, run by genai's own Generator loop;
- ``optimum fp32``: optimum-onnx's export, run by ``ORTModelForCausalLM.generate``;
- ``ours q4_0`` and ``llama.cpp q4_0``: one q4_0 file on both of edgebench's runtimes, block for block the same weights;
- ``ours greedy``: edgebench's int4 graph again, each token chosen from the logits as a generation does; the same
  process measures the Python time between two decode steps.

All in one run: in each round every participant gets a fresh process, in an order that turns around from round to round
(ABBA), with the same number of threads. A process times pp512, then tg128 from an empty cache (128 forward passes),
after a warm-up of each; its value is the median of its repetitions.

The targets are ratios by paired rounds, so that what slows both members of a pair cancels. ``PASS``: the whole 95 %
interval is good enough. ``MISS``: the ratio is not. ``WIDE``: the ratio is, but its interval is not, or there is none.

    decode   ours int4 >= 1.25 x genai,  >= 6 x optimum's generate
    prefill  ours int4 >= 1.5 x genai
    Python time between two decode steps <= 60 us

What a reader must know: edgebench's tg128 and llama-bench's choose no tokens; the loops of genai and optimum do,
greedily; ``ours greedy`` shows what that is worth. genai's builder computes the logits of every token of a
prompt, edgebench's graph for speed those of the last one; with ``--genai-options prune_lm_head=true`` so does genai.
llama.cpp's prefill depends by some 6 % on where the heap puts its scratch memory (see llama_bench_parity.py).

Each peer lives in a virtual environment of its own below edgebench's cache (``peers/``), because genai needs
transformers 5 and optimum-onnx needs one before 4.58; each takes some 1.5 GB, and needs the package index once. The
Hugging Face folder that both start from is the GGUF, dequantised by edgebench's reader; its tokenizer is a stand-in,
for token ids are given everywhere. In the first round the logits of
all after one text are compared: that they correlate shows that everybody runs the same model.

    python scripts/onnx_peers.py
    python scripts/onnx_peers.py --models smollm2-135m-instruct --rounds 20 --quiet-only --json peers.json

Exit status: 0 when nothing missed, 1 when something did.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np

import edgebench
from edgebench.analysis.disturbance import disturbance
from edgebench.artifacts import cache_dir
from edgebench.checkpoint.gguf_weights import GGUFWeights
from edgebench.checkpoint.vocabulary import Vocabulary
from edgebench.derive import Kind, Maker, obtain_source, quantizer_version
from edgebench.engine.about import about
from edgebench.engine.child import run_job
from edgebench.engine.edges import EdgeReader
from edgebench.engine.messages import MeasureJob
from edgebench.engine.protocol import Limits
from edgebench.errors import EdgebenchError, HostError, NothingMeasured, UsageError
from edgebench.host import Host
from edgebench.records import Block, Edge, Failure
from edgebench.specs import Artifact, Settings, TrialSpec, parse_workload
from edgebench.stats import Interval, median, median_interval, ratio, ratio_interval
from edgebench.topology import default_threads, read_topology

PREFILL, DECODE, BETWEEN = "pp512", "tg128", "between_us"
PROMPT_TOKENS, STEPS = 512, 128
WORKLOADS = tuple(parse_workload(name) for name in (PREFILL, DECODE))
# Plain text: after special tokens, or words at random, rounding to 4 bits changes logits much more.
CHECK_TEXT = (
    "The first railways were built to carry coal from the mines to the nearest river. Horses pulled the waggons along "
    "wooden rails, and later along rails of iron. When the steam engine became small enough to stand on wheels, the "
    "horses were no longer needed, and the lines grew longer every year. The most important of them connected"
)
LEAST_CORRELATION = 0.85  # of int4 logits with those of fp32; those of another model, or rotation, are below
BETWEEN_LIMIT_US = 60.0
ATTEMPTS = 3  # with --quiet-only, as a multiple of the rounds
QUIET_WAIT_S = 300.0
PROGRAMS = Path(__file__).resolve().parent / "peers"
HOST = Host()
TOPOLOGY = read_topology(HOST)

# torch first, by its own line: the plain version is then satisfied for what comes after.
REQUIREMENTS = {
    "genai": (("torch==2.13.0",), ("transformers>=5,<6", "onnxruntime-genai==0.18.0", "onnx", "onnx_ir")),
    "optimum": (("torch==2.13.0",), ("transformers>=4.57,<4.58", "optimum-onnx[onnxruntime]==0.1.0")),
}
# Nobody asks a hub for anything, or tells it anything.
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "DO_NOT_TRACK": "1"}

OURS, GENAI, OPTIMUM = "ours int4", "genai int4", "optimum fp32"
OURS_TWIN, LLAMACPP, GREEDY = "ours q4_0", "llama.cpp q4_0", "ours greedy"


class Comparison(NamedTuple):
    """One line of the result: a ratio of rates, and how large it should be where the project has a target."""

    metric: str
    ours: str
    theirs: str
    target: float | None


COMPARISONS = (
    Comparison(DECODE, OURS, GENAI, 1.25),
    Comparison(DECODE, OURS, OPTIMUM, 6.0),
    Comparison(PREFILL, OURS, GENAI, 1.5),
    Comparison(DECODE, GREEDY, GENAI, None),
    Comparison(DECODE, GREEDY, OPTIMUM, None),
    Comparison(PREFILL, OURS, OPTIMUM, None),
    Comparison(DECODE, OURS_TWIN, LLAMACPP, None),
    Comparison(PREFILL, OURS_TWIN, LLAMACPP, None),
)

Verdict = Literal["PASS", "MISS", "WIDE", "-"]


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One process: its medians (tokens/s; ``between_us`` in us), and who else was seen using the machine meanwhile."""

    model: str
    participant: str
    round: int
    values: dict[str, float]
    disturbed_by: str


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One comparison of one model. ``value``: ratio by paired rounds, or us; ``-``: there is no target."""

    model: str
    what: str
    rounds: int
    ours: float
    theirs: float | None
    value: float
    low: float | None
    high: float | None
    target: float | None
    verdict: Verdict


class Contest(NamedTuple):
    """One model in all its forms."""

    model: str
    trials: dict[str, TrialSpec]
    """By participant: those that edgebench's engine measures."""
    genai: Path
    optimum: Path
    vocabulary: int
    window: int
    """Tokens that genai's sliding caches must hold at least; 0 without a sliding window."""
    prompt: list[int]
    check: list[int]


Measurement = Callable[[], dict[str, float]]


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


class Teller:
    """Passes on what edgebench says while it prepares."""

    def step(self, text: str) -> None:
        """A step begins."""
        say(text)

    def share(self, what: str, done: int, total: int) -> None:
        """Steps of seconds need no bar."""


# --- processes --------------------------------------------------------------------------------------------------------


def run_program(argv: list[str], extra: dict[str, str] | None = None, nice: int = 0) -> tuple[int, str, str]:
    """Run a program in a process group of its own; whatever interrupts us kills the whole group.

    Returns:
        Exit status, standard output, standard error.
    """
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=kept | OFFLINE | (extra or {}),
    )
    try:
        if nice:
            os.setpriority(os.PRIO_PROCESS, process.pid, nice)
        said, complained = process.communicate()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return process.returncode, said.decode("utf-8", "replace"), complained.decode("utf-8", "replace")


def step(argv: list[str], what: str) -> str:
    """Run one step of preparation; what it wrote to standard output."""
    say(what)
    status, said, complained = run_program(argv, nice=10)
    if status != 0:
        tail = "\n".join((said + complained).strip().splitlines()[-15:])
        raise HostError(f"{what}: {' '.join(argv[:4])} ... ended with status {status}:\n{tail}\n", "see above.")
    return said


def run_peer(python: Path, program: str, job: dict[str, Any]) -> dict[str, Any]:
    """What one of the programs in ``scripts/peers`` prints."""
    status, said, complained = run_program([str(python), str(PROGRAMS / program), msgspec.json.encode(job).decode()])
    if status != 0:
        tail = "\n".join((said + complained).strip().splitlines()[-15:])
        raise HostError(f"{program} ended with status {status}:\n{tail}\n", "run it alone, or see above.")
    return msgspec.json.decode(said.strip().splitlines()[-1]) if said.strip() else {}


# --- environments -----------------------------------------------------------------------------------------------------


def environment(name: str) -> tuple[Path, str]:
    """The Python of a peer's virtual environment, made once, and the versions that pip reports there."""
    steps = REQUIREMENTS[name]
    identity = hashlib.sha256(msgspec.json.encode((steps, platform.python_version()))).hexdigest()[:8]
    place = cache_dir() / "peers" / f"{name}-{identity}"
    python, ready = place / "bin" / "python", place / "versions.txt"
    if not ready.is_file():
        shutil.rmtree(place, ignore_errors=True)
        place.parent.mkdir(parents=True, exist_ok=True)
        step([sys.executable, "-m", "venv", str(place)], f"making a virtual environment for {name} (about 1.5 GB)")
        for wanted in steps:
            step([str(python), "-m", "pip", "install", "--quiet", *wanted], f"installing {', '.join(wanted)}")
        listed = step([str(python), "-m", "pip", "freeze"], "asking pip what it installed")
        ready.write_text(listed, encoding="utf-8")
    told = re.compile(r"^(?:torch|transformers|onnxruntime|onnxruntime-genai|optimum-onnx)==\S+$", re.MULTILINE)
    return python, ", ".join(told.findall(ready.read_text(encoding="utf-8")))


# --- a Hugging Face folder out of a GGUF ------------------------------------------------------------------------------


def make_folder(source: Artifact, place: Path) -> Path:
    """The weights of a GGUF as fp32 safetensors with a configuration that transformers 4 and 5 both understand."""
    target = place / "hf"
    if target.is_dir():
        return target
    say(f"dequantising {source.model} into a Hugging Face folder")
    partly = place / "hf.partly"
    shutil.rmtree(partly, ignore_errors=True)
    partly.mkdir(parents=True)
    checkpoint = GGUFWeights(Path(source.path))
    try:
        (partly / "config.json").write_bytes(
            msgspec.json.format(msgspec.json.encode(configuration(checkpoint)), indent=1)
        )
        write_tensors(checkpoint, partly / "model.safetensors")
        write_tokenizer(checkpoint.config.vocabulary, partly)
    finally:
        checkpoint.close()
    partly.rename(target)
    return target


def configuration(checkpoint: GGUFWeights) -> dict[str, Any]:
    """``config.json``, with the rotary parameters in the spelling before and since transformers 5.

    Raises:
        UsageError: for an architecture or a rotation that is not described here.
    """
    shape, keys = checkpoint.config, checkpoint.header.metadata
    rope = shape.rope
    if shape.architecture not in ("llama", "gemma3") or rope is None or rope.factors or rope.scale != 1:
        raise UsageError(f"{checkpoint.path} is {shape.architecture}, or scales its rotation.", "choose another model.")
    gemma = shape.architecture == "gemma3"
    spelled: dict[str, Any] = {"rope_type": "default", "rope_theta": rope.base}
    described: dict[str, Any] = {
        "architectures": ["Gemma3ForCausalLM" if gemma else "LlamaForCausalLM"],
        "model_type": "gemma3_text" if gemma else "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": shape.context,
        "vocab_size": shape.vocabulary,
        "rms_norm_eps": shape.norm_eps,
        "tie_word_embeddings": shape.tied,
        "attention_bias": False,
        "bos_token_id": keys.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": keys.get("tokenizer.ggml.eos_token_id"),
        "torch_dtype": "float32",
        "dtype": "float32",
        "rope_theta": rope.base,
    }
    if not gemma:
        return described | {"hidden_act": "silu", "mlp_bias": False, "rope_parameters": spelled}
    local = shape.local_rope or rope
    return described | {
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": shape.head_dim,
        "sliding_window": shape.window,
        "layer_types": [f"{'sliding' if flag else 'full'}_attention" for flag in shape.local_layers],
        "rope_local_base_freq": local.base,
        "rope_parameters": {
            "full_attention": spelled,
            "sliding_attention": {"rope_type": "default", "rope_theta": local.base},
        },
    }


def their_name(checkpoint: GGUFWeights, name: str) -> str:
    """What Hugging Face calls a tensor."""
    arch = checkpoint.architecture
    inner = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(\w+)", name)
    if inner:
        return f"{arch.hf_prefixes[0]}{arch.hf_layers}.{inner[1]}.{arch.hf_layer[inner[2]]}.{inner[3]}"
    stem, suffix = name.rsplit(".", 1)
    return f"{arch.hf_head if stem == 'output' else arch.hf_prefixes[0] + arch.hf_global[stem]}.{suffix}"


def write_tensors(checkpoint: GGUFWeights, path: Path) -> None:
    """One safetensors file of float32: length of the header, header, tensors one after the other."""
    names = list(checkpoint.names())
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        start, end = end, end + 4 * int(np.prod(checkpoint.shape(name)))
        entry = {"dtype": "F32", "shape": checkpoint.shape(name), "data_offsets": [start, end]}
        header[their_name(checkpoint, name)] = entry
    encoded = msgspec.json.encode(header)
    encoded += b" " * (-len(encoded) % 8)
    with path.open("xb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for name in names:
            values = checkpoint.tensor(name)
            if name.endswith("norm.weight"):
                values = values - np.float32(checkpoint.architecture.norm_offset)
            file.write(np.ascontiguousarray(values, np.float32).data.cast("B"))


def write_tokenizer(vocabulary: int, folder: Path) -> None:
    """A stand-in of the right size: the builders load and copy a tokenizer, and nobody tokenises."""
    words = {f"<{token}>": token for token in range(vocabulary)}
    model = {"type": "WordLevel", "vocab": words, "unk_token": "<0>"}
    document = {"version": "1.0", "added_tokens": [], "model": model}
    (folder / "tokenizer.json").write_bytes(msgspec.json.encode(document))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<0>"}
    (folder / "tokenizer_config.json").write_bytes(msgspec.json.encode(told))


# --- everybody's graph ------------------------------------------------------------------------------------------------


def make_once(target: Path, make: Callable[[Path], object]) -> Path:
    """A folder that appears when it is complete."""
    if not target.is_dir():
        partly = target.with_name(target.name + ".partly")
        shutil.rmtree(partly, ignore_errors=True)
        make(partly)
        partly.rename(target)
    return target


def genai_graph(python: Path, folder: Path, place: Path, extra: list[str]) -> Path:
    """The builder's int4 graph for the CPU, with its own defaults but for what was asked for."""
    name = "-".join(["genai-int4", *(re.sub(r"\W+", "-", option) for option in extra)])

    def build(partly: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            argv = [str(python), str(PROGRAMS / "build_genai.py"), "-i", str(folder), "-o", str(partly), "-p", "int4"]
            argv += ["-e", "cpu", "-c", scratch, *(["--extra_options", *extra] if extra else [])]
            step(argv, "building genai's int4 graph")

    return make_once(place / name, build)


def optimum_graph(python: Path, folder: Path, place: Path) -> Path:
    """The export of optimum at fp32."""

    def export(partly: Path) -> None:
        say("exporting with optimum")
        run_peer(python, "run_optimum.py", {"export": str(folder), "folder": str(partly)})

    return make_once(place / "optimum-fp32", export)


def required(made: Artifact | Failure, what: str) -> Artifact:
    """What was made, or an error that says why not."""
    if isinstance(made, Failure):
        raise HostError(f"No {what} could be made: {made.says}.", made.next_step)
    return made


def prepare(model: str, options: argparse.Namespace, pythons: dict[str, Path]) -> Contest:
    """Everything that is to be measured of one model."""
    source = obtain_source(model, accept_license=options.accept_license, progress=lambda *_: None)
    if source.format != "gguf":
        raise UsageError(f"{model} is no GGUF.", "name a model card or a GGUF file.")
    maker = Maker(HOST, quantizer_version(HOST), default_threads(TOPOLOGY)[0], Teller())
    context = max(workload.context for workload in WORKLOADS)
    ours = required(maker.onnx(source, "int4", Kind(context)), "int4 ONNX")
    twin = required(maker.onnx(source, "q4_0", Kind(context)), "q4_0 ONNX")
    gguf = required(maker.gguf(source, "q4_0"), "q4_0 GGUF")
    place = cache_dir() / "peers" / "models" / source.sha256[:16]
    folder = make_folder(source, place)
    checkpoint = GGUFWeights(Path(source.path))
    shape, first = checkpoint.config, checkpoint.first_token
    checkpoint.close()
    words = Vocabulary(Path(source.path))
    check = words.tokenize(CHECK_TEXT)
    words.close()
    chooser = random.Random(0)  # noqa: S311 - token ids, not secrets
    prompt = [chooser.randrange(shape.vocabulary) for _ in range(PROMPT_TOKENS)]
    return Contest(
        model=source.model,
        trials={
            OURS: trial_of(ours, "ort", options),
            OURS_TWIN: trial_of(twin, "ort", options),
            LLAMACPP: trial_of(gguf, "llamacpp", options),
        },
        genai=genai_graph(pythons["genai"], folder, place, options.genai_options),
        optimum=optimum_graph(pythons["optimum"], folder, place),
        vocabulary=shape.vocabulary,
        window=shape.window or 0,
        prompt=prompt if first is None else [first, *prompt[1:]],
        check=check,
    )


def trial_of(artifact: Artifact, runtime: str, options: argparse.Namespace) -> TrialSpec:
    """One round of edgebench's engine."""
    settings = Settings(
        threads=options.threads, threads_batch=options.threads, kv_type="f32" if runtime == "ort" else "f16"
    )
    return TrialSpec(
        artifact=artifact, runtime=runtime, settings=settings, workloads=WORKLOADS, blocks=options.repetitions
    )


# --- measuring --------------------------------------------------------------------------------------------------------


def time_engine(trial: TrialSpec) -> dict[str, float]:
    """Medians of one round of edgebench's engine, in tokens/s."""
    # Round 0 keeps the order of the workloads, as the peers do; odd rounds would turn it around.
    ended = run_job(MeasureJob(trial=trial, round=0, budget_s=1e9), HOST, Limits())
    if ended.failure is not None:
        raise HostError(f"edgebench could not measure: {ended.failure.says}.", ended.failure.next_step)
    blocks = ended.attempt.blocks
    names = [workload.name for workload in trial.workloads]
    return {name: median([block.tokens_per_s for block in blocks if block.workload == name]) for name in names}


def time_peer(python: Path, program: str, job: dict[str, Any]) -> dict[str, float]:
    """Medians of one process of a peer."""
    return {name: median(values) for name, values in run_peer(python, program, job).items()}


def participants(
    contest: Contest, pythons: dict[str, Path], options: argparse.Namespace, logits: Path
) -> dict[str, Measurement]:
    """Everybody, in the order of an even round."""
    job: dict[str, Any] = {
        "threads": options.threads,
        "repetitions": options.repetitions,
        "prompt": contest.prompt,
        "prompt_context": WORKLOADS[0].context,
        "steps": STEPS,
        "steps_context": WORKLOADS[1].context,
        "check": contest.check,
        "vocabulary": contest.vocabulary,
    }
    at = {name: {"logits_to": str(logits / f"{name}.f32")} for name in (GENAI, OPTIMUM, GREEDY)}
    mine = {"trial": msgspec.to_builtins(contest.trials[OURS])}
    optimum = {"folder": str(contest.optimum)}
    room = {"steps_context": max(WORKLOADS[1].context, contest.window)}
    genai = {"folder": str(contest.genai), "prompt_context": max(WORKLOADS[0].context, contest.window), **room}
    return {
        OURS: partial(time_engine, contest.trials[OURS]),
        GENAI: partial(time_peer, pythons["genai"], "run_genai.py", job | at[GENAI] | genai),
        GREEDY: partial(time_peer, Path(sys.executable), "run_stepping.py", job | at[GREEDY] | mine),
        OPTIMUM: partial(time_peer, pythons["optimum"], "run_optimum.py", job | at[OPTIMUM] | optimum),
        OURS_TWIN: partial(time_engine, contest.trials[OURS_TWIN]),
        LLAMACPP: partial(time_engine, contest.trials[LLAMACPP]),
    }


def observed(action: Measurement, threads: int) -> tuple[dict[str, float], str]:
    """Do something, and say who else was seen using the machine meanwhile (empty: nobody)."""
    start = edge()
    result = action()
    end = edge()
    window = Block(workload="", index=0, tokens=1, start=start, end=end, t0_ns=start.t_ns, t1_ns=end.t_ns, step_ns=())
    return result, disturbance(window, threads, TOPOLOGY.logical).says


def edge() -> Edge:
    """The counters now; "own" are this process and the children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    own_s = sum(usage.ru_utime + usage.ru_stime for usage in used)
    # Of a child's threads no run delay remains once it has ended; and what loads with more threads than it measures
    # with waits for itself, so pressure proves nothing here.
    return msgspec.structs.replace(EdgeReader(HOST).read(), own_cpu_s=own_s, run_delay_s=None)


def wait_until_quiet() -> None:
    """Wait, for five minutes at most, for one second in which nobody else uses the machine."""

    def second() -> dict[str, float]:
        time.sleep(1)
        return {}

    deadline = time.monotonic() + QUIET_WAIT_S
    while observed(second, 1)[1] and time.monotonic() < deadline:
        pass


def measure_round(
    number: int, model: str, everybody: dict[str, Measurement], options: argparse.Namespace
) -> list[Sample]:
    """One process each; the order turns around from round to round."""
    samples = []
    for name in everybody if number % 2 == 0 else reversed(everybody):
        if options.quiet_only:
            wait_until_quiet()
        values, says = observed(everybody[name], options.threads)
        samples.append(Sample(model=model, participant=name, round=number, values=values, disturbed_by=says))
        shown = ", ".join(f"{metric} {value:.1f}" for metric, value in values.items())
        say(f"{model} round {number + 1}: {name:15} {shown}{f'  [{says}]' if says else ''}")
    return samples


def measure_all(contests: list[Contest], options: argparse.Namespace, pythons: dict[str, Path]) -> list[Sample]:
    """All rounds, each over all models and participants, or those made until Ctrl-C."""
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory() as scratch:
        logits = Path(scratch)
        everybody = {}
        for contest in contests:
            (logits / contest.model).mkdir()
            everybody[contest.model] = participants(contest, pythons, options, logits / contest.model)
        try:
            for number in range(options.rounds * (ATTEMPTS if options.quiet_only else 1)):
                for model, measurements in everybody.items():
                    if rounds_done(samples, model, options) < options.rounds:
                        samples += measure_round(number, model, measurements, options)
                        if number == 0:
                            check_same_model(model, logits / model)
        except KeyboardInterrupt:
            if not all(rounds_done(samples, model, options) for model in everybody):
                raise
            say("interrupted: the result is that of the rounds so far")
    return samples


def check_same_model(model: str, folder: Path) -> None:
    """The logits after a short prompt must resemble those of the fp32 export.

    Raises:
        HostError: when somebody runs another model.
    """
    found = {path.stem: np.fromfile(path, np.float32) for path in folder.iterdir()}
    reference = found.pop(OPTIMUM)
    for name, logits in found.items():
        alike = float(np.corrcoef(reference, logits)[0, 1]) if logits.shape == reference.shape else 0.0
        say(f"{model}: logits of {name} correlate with those of {OPTIMUM}: {alike:.3f}")
        if not alike >= LEAST_CORRELATION:
            raise HostError(f"{name} does not run the same model as {OPTIMUM}.", "remove peers/ from the cache.")


# --- result -----------------------------------------------------------------------------------------------------------


def paired(
    samples: list[Sample], model: str, metric: str, names: tuple[str, ...], options: argparse.Namespace
) -> list[list[float]]:
    """The values of each participant in the rounds that all of them have (with ``--quiet-only``: undisturbed)."""
    by_round: dict[int, dict[str, float]] = {}
    for sample in samples:
        counts = not (options.quiet_only and sample.disturbed_by)
        if sample.model == model and sample.participant in names and counts:
            by_round.setdefault(sample.round, {})[sample.participant] = sample.values[metric]
    complete = [found for found in by_round.values() if len(found) == len(names)]
    return [[found[name] for found in complete] for name in names]


def rounds_done(samples: list[Sample], model: str, options: argparse.Namespace) -> int:
    """How many rounds the comparison has that has the fewest."""
    counts = [len(paired(samples, model, line.metric, (line.ours, line.theirs), options)[0]) for line in COMPARISONS]
    return min(counts)


def judge(value: float, interval: Interval | None, *, low: float | None = None, high: float | None = None) -> Verdict:
    """Whether a value and its whole interval are at least ``low``, or at most ``high``."""
    if low is None and high is None:
        return "-"
    if (low is not None and value < low) or (high is not None and value > high):
        return "MISS"
    good = interval is not None and (low is None or interval.low >= low) and (high is None or interval.high <= high)
    return "PASS" if good else "WIDE"


def lines_of(samples: list[Sample], model: str, options: argparse.Namespace) -> list[Line]:
    """All comparisons of one model, and the Python time between two steps.

    Raises:
        NothingMeasured: when every round was disturbed.
    """
    lines = []
    for metric, ours, theirs, target in COMPARISONS:
        mine, other = paired(samples, model, metric, (ours, theirs), options)
        if not mine:
            raise NothingMeasured("Every round was disturbed by other processes.", "use an idle machine.")
        value, interval = ratio(mine, other), ratio_interval(mine, other)
        lines.append(
            Line(
                model=model,
                what=f"{metric}: {ours} / {theirs}",
                rounds=len(mine),
                ours=median(mine),
                theirs=median(other),
                value=value,
                low=interval.low if interval else None,
                high=interval.high if interval else None,
                target=target,
                verdict=judge(value, interval, low=target),
            )
        )
    (between,) = paired(samples, model, BETWEEN, (GREEDY,), options)
    interval, value = median_interval(between), median(between)
    lines.append(
        Line(
            model=model,
            what="Python time between decode steps, us",
            rounds=len(between),
            ours=value,
            theirs=None,
            value=value,
            low=interval.low if interval else None,
            high=interval.high if interval else None,
            target=BETWEEN_LIMIT_US,
            verdict=judge(value, interval, high=BETWEEN_LIMIT_US),
        )
    )
    return lines


def print_table(lines: list[Line]) -> None:
    """Medians over rounds in tokens/s, ratios by pairs with their intervals."""
    print(f"\n{'model':22} {'what':40} rounds      ours    theirs   value  95 % interval   target verdict")
    for line in lines:
        interval = "none" if line.low is None or line.high is None else f"{line.low:.3f}-{line.high:.3f}"
        theirs = "" if line.theirs is None else f"{line.theirs:.1f}"
        target = "" if line.target is None else f"{'<=' if line.theirs is None else '>='}{line.target:g}"
        print(
            f"{line.model:22} {line.what:40} {line.rounds:6} {line.ours:9.1f} {theirs:>9} {line.value:7.3f}  "
            f"{interval:14} {target:>7} {line.verdict}"
        )


def describe(options: argparse.Namespace, versions: dict[str, str]) -> dict[str, str]:
    """Which machine, versions and commit."""
    git = ["git", "-C", str(Path(__file__).resolve().parent), "describe", "--always", "--dirty"]
    status, commit, _ = run_program(git) if shutil.which("git") else (1, "", "")
    cpu = TOPOLOGY.cpu_model.value or TOPOLOGY.cpu_model.unknown_because
    return {
        "machine": f"{HOST.machine()}, {cpu}, {TOPOLOGY.logical} CPUs, {platform.release()}",
        "edgebench": f"{edgebench.__version__}, {commit.strip() if status == 0 else 'no git checkout'}",
        "ours": f"{about('ort', HOST).version.value}; {about('llamacpp', HOST).version.value}",
        **versions,
        "genai options": " ".join(options.genai_options) or "the builder's own",
        "threads": str(options.threads),
    }


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="edgebench's ONNX road beside genai, optimum and llama.cpp")
    parser.add_argument("--models", default="smollm2-135m-instruct,gemma-3-270m", help="cards or files, with commas")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10, help="processes of each participant")
    parser.add_argument("--repetitions", type=int, default=2, help="timed repetitions inside a process")
    parser.add_argument("--genai-options", nargs="*", default=[], metavar="K=V", help="extra options of its builder")
    parser.add_argument("--quiet-only", action="store_true", help="make rounds again that other processes disturbed")
    parser.add_argument("--accept-license", action="store_true", help="accept a model's terms (Gemma has some)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples there")
    options = parser.parse_args()
    if min(options.rounds, options.repetitions, options.threads) < 1:
        parser.error("--rounds, --repetitions and --threads are at least 1")
    return options


def main() -> int:
    """Prepare, measure, print; the exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # children are then killed as on Ctrl-C
    options = parse_arguments()
    made = {name: environment(name) for name in REQUIREMENTS}
    pythons = {name: python for name, (python, _) in made.items()}
    facts = describe(options, {name: versions for name, (_, versions) in made.items()})
    for name, value in facts.items():
        print(f"{name:14} {value}", flush=True)
    contests = [prepare(model, options, pythons) for model in options.models.split(",")]
    samples = measure_all(contests, options, pythons)
    lines = [line for contest in contests for line in lines_of(samples, contest.model, options)]
    print_table(lines)
    seen = sum(bool(sample.disturbed_by) for sample in samples)
    print(f"other processes were seen during {seen} of {len(samples)} processes; left out: {options.quiet_only}")
    passed = all(line.verdict != "MISS" for line in lines)
    summary = {
        "question": "edgebench's ONNX road / its peers",
        "facts": facts,
        "lines": lines,
        "nothing_missed": passed,
    }
    if options.json is not None:
        options.json.write_bytes(msgspec.json.encode({**summary, "samples": samples}))
    print(msgspec.json.encode(summary).decode())
    return 0 if passed else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EdgebenchError as error:
        say(f"error: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        say("interrupted: no child is left, and what was made stays in the cache")
        sys.exit(130)
