"""Checks and times the GPU engine on one GPU within six minutes, without network; prints a table and writes one JSON.

    python examples/gpu_check.py --output gpu-check.json                  # everything that needs no further files
    python examples/gpu_check.py --model FOLDER --glue FOLDER             # a real search on SST-2 as well
    python examples/gpu_check.py --device cpu --seconds 60 --only equality  # how far it gets without a GPU

Each check is a row: what was done, what came out, how long it took. A check that fails says why and the next one goes
on. When the time is used up, the rest is listed as not run. Without a GPU the steps run eagerly, so that only the
script itself is checked.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
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
    "GPT-2": AutoConfig.for_model("gpt2", vocab_size=400, n_embd=32, n_layer=2, n_head=2, pad_token_id=0),
}
SHAPES: dict[str, PreTrainedConfig] = {
    "bert-base": AutoConfig.for_model("bert"),
    "xlnet-base": AutoConfig.for_model("xlnet", d_model=768, n_layer=12, n_head=12, d_inner=3072),
    "12 x 384": AutoConfig.for_model("bert", hidden_size=384, num_hidden_layers=12, intermediate_size=1536),
}
STEPS = 40
RECIPE = Recipe("gpu check", 1, None, 32, 3e-5, 128, 0.1)


@dataclasses.dataclass(frozen=True)
class Row:
    """One check: ``outcome`` is "ok", or what went wrong."""

    check: str
    outcome: str
    seconds: float
    values: Mapping[str, Any]


def main() -> int:
    options = _options()
    device = resolve_device(options.device, "auto")
    began = time.monotonic()
    rows = [Row("device", "ok", 0.0, {**versions(), "torch": torch.__version__, **device.describe()})]
    for name, check in _checks(options, device):
        if options.only and options.only not in name:
            continue
        left = options.seconds - (time.monotonic() - began)
        rows.append(_row(name, check, left))
        print(_line(rows[-1]), flush=True)
    print(tabulate([(row.check, row.outcome, f"{row.seconds:.1f}", _told(row.values)) for row in rows]))
    Path(options.output).write_text(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
    return int(any(row.outcome not in ("ok", "not run: no time left") for row in rows))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=360, help="start no further check after this time")
    parser.add_argument("--only", help="run only the checks with this in their name")
    parser.add_argument("--model", help="folder of a model for one real search")
    parser.add_argument("--glue", help="folder of GLUE data for one real search")
    parser.add_argument("--output", default="gpu-check.json")
    return parser.parse_args()


def _checks(options: argparse.Namespace, device: Device) -> Iterator[tuple[str, Callable[[], Mapping[str, Any]]]]:
    yield "tests marked gpu", _marked_tests
    for name, config in TINY.items():
        yield f"equality: {name}", lambda config=config: equality(config, device)  # type: ignore[misc]
    for name, config in SHAPES.items():
        yield f"steps: {name}", lambda config=config: step_times(config, device)  # type: ignore[misc]
    yield "the demo", lambda: _timed_command("--task", "demo", "--model", "demo", "--device", options.device)
    yield "lanes: 12 x 384", lambda: lane_rates(SHAPES["12 x 384"], device)
    yield "lanes: bert-base", lambda: lane_rates(SHAPES["bert-base"], device)
    if options.model and options.glue:
        yield "search: SST-2", lambda: _real_search(options)
    yield "against Trainer: bert-base", lambda: _benchmark("bert-base", options)
    yield "against Trainer: xlnet-base", lambda: _benchmark("xlnet-base", options)


def _row(name: str, check: Callable[[], Mapping[str, Any]], seconds_left: float) -> Row:
    if seconds_left <= 0:
        return Row(name, "not run: no time left", 0.0, {})
    began = time.monotonic()
    try:
        values, outcome = check(), "ok"
    except Exception as error:  # the next check may still tell something
        values, outcome = {}, f"{type(error).__name__}: {error}"[:400]
    return Row(name, outcome, time.monotonic() - began, values)


def _marked_tests() -> Mapping[str, Any]:
    if importlib.util.find_spec("pytest") is None:
        return {"tests": "pytest is not installed here"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    last = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-200:]
    if done.returncode not in (0, 5):  # 5: none was collected
        raise RuntimeError(last)
    return {"tests": last}


# Checks of one model.


def equality(config: PreTrainedConfig, device: Device) -> Mapping[str, Any]:
    """Graphs against eager steps: the weights after a short fine-tune without dropout, in fp32."""
    device = Device(device.name, "fp32")
    for name in [name for name in config.to_dict() if "drop" in name]:
        if isinstance(getattr(config, name), float):
            setattr(config, name, 0.0)
    model, train = _model(config, device), _split(600, device, most=400)
    schedule = Schedule.of(RECIPE, train.lengths, 1.0, 0)
    eager, captured = copy.deepcopy(model), copy.deepcopy(model)
    before = _flat(model)
    done = train_on(captured, train, schedule, RECIPE, 0, device)
    _train_eagerly(eager, train, schedule, device)
    moved, apart = (_flat(eager) - before).norm(), (_flat(eager) - _flat(captured)).norm()
    logits = np.abs(predict(eager, train, device) - predict(captured, train, device)).max()
    return {"execution": done.execution, "apart": float(apart / moved), "logits apart": float(logits)}


def step_times(config: PreTrainedConfig, device: Device) -> Mapping[str, Any]:
    """Milliseconds of a step of 32 examples at QQP's lengths, eager and captured, and what the captures took."""
    model, train = _model(config, device), _split(3_000, device)
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
        "TFLOP/s": 6e-12 * _matrix_weights(model) * tokens / second.seconds,
    }


def lane_rates(config: PreTrainedConfig, device: Device) -> Mapping[str, Any]:
    """Examples per second of 1, 2, 4 and 8 fine-tunes side by side."""
    train = _split(3_000, device)
    schedule = Schedule.over(Schedule.of(RECIPE, train.lengths, 1.0, 0).batches[:STEPS], RECIPE)
    models = [_model(config, device) for _ in range(8)]
    rates = {}
    for count in (1, 2, 4, 8):
        with ThreadPoolExecutor(count) as threads:
            list(threads.map(lambda model: train_on(model, train, schedule, RECIPE, 0, device), models[:count]))
            began = time.perf_counter()
            list(threads.map(lambda model: train_on(model, train, schedule, RECIPE, 0, device), models[:count]))
            rates[str(count)] = count * STEPS * RECIPE.batch_size / (time.perf_counter() - began)
    return rates


def _train_eagerly(model: PreTrainedModel, train: DeviceSplit, schedule: Schedule, device: Device) -> FineTuned:
    """The same steps with graphs switched off: LayerDrop at a rate that drops nothing cannot be captured."""
    recipe = dataclasses.replace(RECIPE, layer_drop=1e-12)
    return train_on(model, train, schedule, recipe, 0, device)


def _model(config: PreTrainedConfig, device: Device) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
    torch.nn.Module.to(model, device.name)
    return model


def _split(examples: int, device: Device, most: int = 30_000) -> DeviceSplit:
    """Random tokens of QQP's lengths, with random labels."""
    random = np.random.default_rng(0)
    lengths = np.interp(random.random(examples), np.linspace(0, 1, len(QQP_LENGTHS)), QQP_LENGTHS).round().astype(int)
    split = EncodedSplit(
        tokens=random.integers(5, most, lengths.sum()).astype(np.int32),
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


def _timed_command(*arguments: str) -> Mapping[str, Any]:
    with tempfile.TemporaryDirectory() as studies:
        command = [sys.executable, "-m", "budget_search", *arguments, "--studies-dir", studies, "--format", "json"]
        began = time.perf_counter()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - began
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-300:])
    report = json.loads(done.stdout)
    answers = {str(result["delta"]): len(result["kept"]) for result in report["results"]}
    return {"seconds": seconds, "layers": answers, "device": report["device"], "cost": report["cost"]}


def _real_search(options: argparse.Namespace) -> Mapping[str, Any]:
    return _timed_command(
        "--task", "sst2", "--model", options.model, "--device", options.device, "--train-examples", "8000",
        "--batch-size", "32", "--epochs", "1", "--delta", "0.01", "0.02", "0.03",
        "--data-dir", str(Path(options.glue) / "sst2"),
    )  # fmt: skip


def _benchmark(shape: str, options: argparse.Namespace) -> Mapping[str, Any]:
    command = [
        sys.executable, str(ROOT / "examples" / "benchmark_engine.py"), "--shapes", shape, "--task", "qqp",
        "--examples", "6400", "--batch-size", "32", "--repeats", "1", "--workers", "4", "--device", options.device,
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-300:])
    return {"table": done.stdout}


def _line(row: Row) -> str:
    return f"{row.check}: {row.outcome} ({row.seconds:.1f} s) {_told(row.values)}"


def _told(values: Mapping[str, Any]) -> str:
    told = {name: f"{value:.4g}" if isinstance(value, float) else str(value) for name, value in values.items()}
    return ", ".join(f"{name} {value}" for name, value in told.items())


if __name__ == "__main__":
    raise SystemExit(main())
