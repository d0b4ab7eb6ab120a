"""Checks and times the GPU engine on one GPU within six minutes, without network; prints a table and writes one JSON.

    python examples/gpu_check.py --output gpu-check.json          # everything that needs no further files
    python examples/gpu_check.py --model FOLDER --glue FOLDER     # also a search on SST-2 (else on the demo's task)
    python examples/gpu_check.py --only Trainer --examples 6400   # one check at length
    python examples/gpu_check.py --device cpu                     # how far it gets without a GPU

Each check is a row: what was done, what came out, how long it took. A check that fails says why and the next one goes
on; one that cannot be done here says what it lacks. The JSON is written after every check. When the time is used up,
the rest is listed as not run, and a command that still runs is ended. Without a GPU the steps run eagerly on tiny
models, so that only the script itself is checked.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tabulate import tabulate
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel

from budget_search.core.config import Recipe
from budget_search.core.versions import versions
from budget_search.data.tokenization import EncodedSplit, EncodedTask
from budget_search.engine.batches import DeviceSplit
from budget_search.engine.device import Device, resolve_device
from budget_search.engine.finetune import FineTuned, predict, train_on
from budget_search.engine.gpu.length_buckets import choose_buckets
from budget_search.engine.schedule import Schedule

ROOT = Path(__file__).parent.parent
# Tokens per example of QQP: every twentieth part, from the shortest to the longest.
QQP_LENGTHS = (11, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 31, 33, 35, 37, 41, 45, 53, 128)
_TINY: dict[str, Any] = {
    "vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
TINY: dict[str, PreTrainedConfig] = {
    "BERT": AutoConfig.for_model("bert", **_TINY),
    "RoBERTa": AutoConfig.for_model("roberta", **_TINY),
    "DistilBERT": AutoConfig.for_model("distilbert", vocab_size=400, dim=32, n_layers=2, n_heads=2, hidden_dim=64),
    "XLNet": AutoConfig.for_model("xlnet", vocab_size=400, d_model=32, n_layer=2, n_head=2, d_inner=64),
    "ELECTRA": AutoConfig.for_model("electra", embedding_size=32, **_TINY),
    "ModernBERT": AutoConfig.for_model("modernbert", cls_token_id=1, sep_token_id=2, **_TINY),
    "GPT-2": AutoConfig.for_model(
        "gpt2", vocab_size=400, n_embd=32, n_layer=2, n_head=2, pad_token_id=0, bos_token_id=1, eos_token_id=2
    ),
}
SHAPES: dict[str, PreTrainedConfig] = {
    "bert-base": AutoConfig.for_model("bert"),
    "xlnet-base": AutoConfig.for_model("xlnet", d_model=768, n_layer=12, n_head=12, d_inner=3072),
    "12 x 384": AutoConfig.for_model("bert", hidden_size=384, num_hidden_layers=12, intermediate_size=1536),
}
STEPS = 40
# Distance between the weights after graphs and after eager steps, as a share of the way they went: the order of sums in
# the gradients of embeddings differs from run to run, and AdamW enlarges that.
MOST_APART = 0.1
RECIPE = Recipe("gpu check", 1, None, 32, 3e-5, 128, 0.1)


@dataclasses.dataclass(frozen=True)
class Row:
    """One check: ``outcome`` is "ok", why it was not run, or what went wrong."""

    check: str
    outcome: str
    seconds: float
    values: Mapping[str, Any]

    @property
    def failed(self) -> bool:
        return self.outcome != "ok" and not self.outcome.startswith("not run")


class NotHereError(Exception):
    """The check cannot be done here; the message says what is missing."""


def main() -> int:
    options = _options()
    device = resolve_device(options.device, "auto")
    ends = time.monotonic() + options.seconds
    rows = [Row("device", "ok", 0.0, {**versions(), "torch": torch.__version__, **device.describe()})]
    for name, check in _checks(options, device, ends):
        if options.only and options.only not in name:
            continue
        rows.append(_row(name, check, ends))
        print(_line(rows[-1]), flush=True)
        Path(options.output).write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
    print(tabulate([(row.check, row.outcome, f"{row.seconds:.1f}", _told(row.values)) for row in rows]))
    return int(any(row.failed for row in rows))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=360, help="end after this time")
    parser.add_argument("--only", help="run only the checks with this in their name")
    parser.add_argument("--model", help="folder of a model for one real search")
    glue = os.environ.get("BUDGET_SEARCH_GLUE")
    parser.add_argument("--glue", default=glue, help="folder of GLUE data for one real search")
    parser.add_argument("--examples", type=int, default=1_600, help="of a candidate, against Trainer")
    parser.add_argument("--output", default="gpu-check.json")
    return parser.parse_args()


def _checks(
    options: argparse.Namespace, device: Device, ends: float
) -> Iterator[tuple[str, Callable[[], Mapping[str, Any]]]]:
    """Names and functions, the most telling first. ``ends`` is when all is to be over (monotonic)."""
    # Large models would take minutes a check without a GPU.
    shapes = SHAPES if device.kind != "cpu" else {"BERT": TINY["BERT"]}
    yield "tests marked gpu", partial(_marked_tests, ends)
    for name, config in TINY.items():
        yield f"equality: tiny {name}", partial(equality, config, device)
    for name in ("bert-base", "xlnet-base"):
        yield f"equality: {name}", partial(_on_a_gpu, device, partial(equality, SHAPES[name], device))
    for name, config in shapes.items():
        yield f"steps: {name}", partial(step_times, config, device)
    yield "the demo", partial(_on_a_gpu, device, partial(_search, options, ends, "--task", "demo", "--model", "demo"))
    for name, config in shapes.items():
        yield f"lanes: {name}", partial(lane_rates, config, device)
    yield "a real search", partial(_real_search, options, ends)
    for shape in ("bert-base", "xlnet-base"):
        yield f"against Trainer: {shape}", partial(_on_a_gpu, device, partial(_benchmark, shape, options, ends))


def _row(name: str, check: Callable[[], Mapping[str, Any]], ends: float) -> Row:
    began = time.monotonic()
    if began >= ends:
        return Row(name, "not run: no time left", 0.0, {})
    values: Mapping[str, Any] = {}
    try:
        values, outcome = check(), "ok"
    except NotHereError as error:
        outcome = f"not run: {error}"
    except subprocess.TimeoutExpired:
        outcome = "not run to its end: no time left"
    except Exception as error:  # the next check may still tell something
        outcome = f"{type(error).__name__}: {error}"[:400]
    return Row(name, outcome, time.monotonic() - began, values)


def _on_a_gpu(device: Device, check: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
    if device.kind == "cpu":
        raise NotHereError("needs a GPU")
    return check()


def _require(*libraries: str) -> None:
    if missing := [name for name in libraries if importlib.util.find_spec(name) is None]:
        raise NotHereError(f"needs {' and '.join(missing)}")


def _marked_tests(ends: float) -> Mapping[str, Any]:
    _require("pytest")
    # Other files may import what is not installed here.
    files = [str(path) for path in (ROOT / "tests").glob("test_*.py") if "mark.gpu" in path.read_text("utf8")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *files],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=_left(ends),
    )  # fmt: skip
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-200:]
    if done.returncode:
        raise RuntimeError(last)
    if "passed" not in last:
        raise NotHereError(last)
    return {"tests": last}


def _left(ends: float) -> float:
    return max(1.0, ends - time.monotonic())


# Checks of one model.


def equality(config: PreTrainedConfig, device: Device) -> Mapping[str, Any]:
    """Graphs against eager steps: the weights after a short fine-tune without dropout, in fp32.

    ``noise`` is how far two eager runs end apart. Raises RuntimeError if graphs end elsewhere.
    """
    device, config = Device(device.name, "fp32"), copy.deepcopy(config)
    for name in [name for name in config.to_dict() if "drop" in name]:
        if isinstance(getattr(config, name), float):
            setattr(config, name, 0.0)
    model, train = _model(config, device), _split(600, device, config.vocab_size)
    schedule = Schedule.of(RECIPE, train.lengths, 1.0, 0)
    eager, again, captured = (copy.deepcopy(model) for _ in range(3))
    before = _flat(model)
    done = train_on(captured, train, schedule, RECIPE, 0, device)
    for each in (eager, again):
        _train_eagerly(each, train, schedule, device)
    way = (_flat(eager) - before).norm()
    apart, noise = (float((_flat(eager) - _flat(other)).norm() / way) for other in (captured, again))
    logits = np.abs(predict(eager, train, device) - predict(captured, train, device)).max()
    if not apart <= max(MOST_APART, 2 * noise):
        raise RuntimeError(f"{done.execution}: {apart:.3f} of the way apart, two eager runs {noise:.3f}")
    return {"execution": done.execution, "apart": apart, "noise": noise, "logits apart": float(logits)}


def step_times(config: PreTrainedConfig, device: Device) -> Mapping[str, Any]:
    """Milliseconds of a step of 32 examples at QQP's lengths, eager and captured, and what the captures took."""
    model, train = _model(config, device), _split(3_000, device, config.vocab_size)
    batches = list(Schedule.of(RECIPE, train.lengths, 1.0, 0).batches)[:STEPS]
    schedule = Schedule.over(tuple(batches), RECIPE)
    first = train_on(model, train, schedule, RECIPE, 0, device)
    second = train_on(model, train, schedule, RECIPE, 0, device)
    eager = _train_eagerly(model, train, schedule, device)
    tokens = sum(len(batch) * int(train.lengths[batch].max()) for batch in batches)
    return {
        "execution": second.execution,
        "eager ms": 1e3 * eager.seconds / STEPS,
        "ms": 1e3 * second.seconds / STEPS,
        "times": eager.seconds / second.seconds,
        "capture seconds": first.seconds - second.seconds,
        "buckets": choose_buckets(train.lengths, RECIPE.batch_size).lengths,
        "examples/s": RECIPE.batch_size * STEPS / second.seconds,
        "of matrix rate": 6 * _matrix_weights(model) * tokens / second.seconds / matrix_rate(device),
        "matrix TFLOP/s": 1e-12 * matrix_rate(device),
    }


def lane_rates(config: PreTrainedConfig, device: Device) -> Mapping[str, Any]:
    """Examples per second of 1, 2, 4 and 8 fine-tunes side by side."""
    train = _split(3_000, device, config.vocab_size)
    schedule = Schedule.over(Schedule.of(RECIPE, train.lengths, 1.0, 0).batches[:STEPS], RECIPE)
    models = [_model(config, device) for _ in range(8)]
    rates = {}
    for count in (1, 2, 4, 8):
        together = threading.Barrier(count)

        def run(model: PreTrainedModel, together: threading.Barrier = together) -> None:
            together.wait()
            train_on(model, train, schedule, RECIPE, 0, device)

        with ThreadPoolExecutor(count) as threads:
            list(threads.map(run, models[:count]))  # captures
            began = time.perf_counter()
            list(threads.map(run, models[:count]))
            rates[str(count)] = count * STEPS * RECIPE.batch_size / (time.perf_counter() - began)
    return rates


@cache
def matrix_rate(device: Device) -> float:
    """FLOP/s of a large matrix product in the device's precision: the best of ten."""
    size = 8_192 if device.kind != "cpu" else 512
    dtype = torch.bfloat16 if device.precision == "bf16" else torch.float32
    left, right = (torch.randn(size, size, device=device.name, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(10):
        began = time.perf_counter()
        (left @ right)[0, 0].item()
        seconds.append(time.perf_counter() - began)
    return 2 * size**3 / min(seconds)


def _train_eagerly(model: PreTrainedModel, train: DeviceSplit, schedule: Schedule, device: Device) -> FineTuned:
    """The same steps with graphs switched off: LayerDrop at a rate that drops nothing cannot be captured."""
    recipe = dataclasses.replace(RECIPE, layer_drop=1e-12)
    return train_on(model, train, schedule, recipe, 0, device)


def _model(config: PreTrainedConfig, device: Device) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
    torch.nn.Module.to(model, device.name)
    return model


def _split(examples: int, device: Device, vocabulary: int) -> DeviceSplit:
    """Random tokens of QQP's lengths, with random labels."""
    random = np.random.default_rng(0)
    lengths = np.interp(random.random(examples), np.linspace(0, 1, len(QQP_LENGTHS)), QQP_LENGTHS).round().astype(int)
    split = EncodedSplit(
        tokens=random.integers(5, vocabulary, lengths.sum()).astype(np.int32),
        segments=None,
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        labels=random.integers(0, 2, examples),
    )
    task = EncodedTask({"train": split}, ("no", "yes"), "accuracy", (), 0, 0, pad_left=False)
    return DeviceSplit.of(task, split, device.name)


def _flat(model: PreTrainedModel) -> torch.Tensor:
    return torch.cat([weight.detach().reshape(-1).float() for weight in model.parameters()])


def _matrix_weights(model: PreTrainedModel) -> int:
    tables = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    return sum(each.numel() for each in model.parameters() if each.dim() >= 2 and id(each) not in tables)


# Whole commands.


def _search(options: argparse.Namespace, ends: float, *arguments: str) -> Mapping[str, Any]:
    """``start seconds``: until the first evaluation begins; the search says then how many run at a time."""
    with tempfile.TemporaryDirectory() as studies:
        command = [
            sys.executable, "-m", "budget_search", *arguments,
            "--device", options.device, "--studies-dir", studies, "--format", "json",
        ]  # fmt: skip
        printed, began, started, said = Path(studies) / "report", time.perf_counter(), None, ""
        with (
            printed.open("w") as report_file,
            subprocess.Popen(command, cwd=ROOT, stdout=report_file, stderr=subprocess.PIPE, text=True) as process,
        ):
            timer = threading.Timer(_left(ends), process.kill)
            timer.start()
            for line in process.stderr or ():
                said += line
                if started is None and "at a time" in line:
                    started = time.perf_counter() - began
            code, seconds = process.wait(), time.perf_counter() - began
            timer.cancel()
        report = json.loads(printed.read_text() or "null")
    if code and time.monotonic() >= ends:
        raise subprocess.TimeoutExpired(command, seconds)
    if code:
        raise RuntimeError(said.strip()[-300:])
    answers = {str(result["delta"]): len(result["kept"]) for result in report["results"]}
    baseline = report["baseline"]
    return {
        "seconds": seconds,
        "start seconds": started,
        "layers": answers,
        "score": baseline["score"],
        "device": report["device"],
        "cost": report["cost"],
        "inference": baseline["inference"],
        "peak throughput": baseline.get("peak_throughput"),
    }


def _real_search(options: argparse.Namespace, ends: float) -> Mapping[str, Any]:
    """On SST-2 where its folder is given, else on the demo's task."""
    if not options.model:
        raise NotHereError("needs --model FOLDER")
    task = ["--task", "demo"]
    if options.glue:
        task = ["--task", "sst2", "--data-dir", str(Path(options.glue) / "sst2"), "--train-examples", "8000"]
    return _search(
        options, ends, *task, "--model", options.model,
        "--batch-size", "32", "--epochs", "1", "--delta", "0.01", "0.02", "0.03",
    )  # fmt: skip


def _benchmark(shape: str, options: argparse.Namespace, ends: float) -> Mapping[str, Any]:
    _require("accelerate", "psutil")
    command = [
        sys.executable, str(ROOT / "examples" / "benchmark_engine.py"), "--shapes", shape, "--task", "qqp",
        "--examples", str(options.examples), "--batch-size", "32", "--repeats", "1", "--workers", "4",
        "--device", options.device, "--format", "json",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=_left(ends)
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-300:])
    found: Mapping[str, Any] = json.loads(done.stdout)
    return {row["by"]: f"{row['candidates/h']:.0f}/h, {row['x Trainer']:.2f} x Trainer" for row in found["table"]} | {
        "all": found
    }


def _line(row: Row) -> str:
    return f"{row.check}: {row.outcome} ({row.seconds:.1f} s) {_told(row.values)}"


def _told(values: Mapping[str, Any]) -> str:
    """What fits on a line; nested values are in the JSON."""
    short = {name: value for name, value in values.items() if not isinstance(value, Mapping | list)}
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in short.items()
    )


if __name__ == "__main__":
    raise SystemExit(main())
