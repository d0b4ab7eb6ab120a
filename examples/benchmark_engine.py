"""Compares candidates per hour: this engine, Hugging Face's Trainer (default and tuned) and a plain PyTorch loop.

    pip install -c constraints.txt ".[benchmark]"
    python examples/benchmark_engine.py                              # shapes with random weights, lengths of QQP
    python examples/benchmark_engine.py --shapes demo                # the embedded model and task, with scores
    python examples/benchmark_engine.py --shapes FOLDER --task sst2  # a model of yours on real sentences, with scores

The same model, examples, recipe and number of steps by Trainer with its defaults, by Trainer as it is tuned (batches
grouped by length, bf16 where the hardware has it), by the plain loop that everybody writes (batches grouped by length,
bf16 where the hardware has it, nothing clever), and by this engine with one worker and with several side by side. They
take turns, `--repeats` rounds after one to warm up, each in processes of its own that stay; start-up and loading are in
none of the figures. On a CPU Trainer has all cores, the plain loop and a worker of ours one.

`sst2` and `qqp` are real texts where BUDGET_SEARCH_GLUE names a folder that holds them and the model has a tokenizer;
else random tokens of the same lengths, which learn nothing but take the same time. Ratios compare within a round;
their median is given.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from tabulate import tabulate
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    PreTrainedConfig,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    XLNetConfig,
    get_linear_schedule_with_warmup,
)

from budget_search.app.create_study import create
from budget_search.app.request import Request
from budget_search.app.resolve import resolve_request
from budget_search.cli.progress import Console
from budget_search.core.config import Recipe
from budget_search.core.layers import LayerSet
from budget_search.core.trial import FULL_RUNG, Job, TrialKey
from budget_search.data.metrics import measure
from budget_search.data.tokenization import EncodedSplit, EncodedTask
from budget_search.engine.batches import DeviceSplit, reading_order, training_order
from budget_search.engine.device import Device, resolve_device
from budget_search.engine.evaluation import EvaluationContext
from budget_search.engine.finetune import EVALUATION_TOKENS
from budget_search.engine.parallel.workers import Workers
from budget_search.engine.worker_process import begin_worker
from budget_search.models.pretrained import MODEL_DIR, fresh_head, load_pretrained, quiet_transformers
from budget_search.storage.study_folder import StudyFolder

# Tokens per example, marks included, as a BERT tokenizer makes them: every twentieth part of 4,000 training examples,
# from the shortest to the longest.
LENGTHS = {
    "sst2": (3, 4, 5, 5, 6, 7, 7, 8, 9, 10, 10, 12, 13, 14, 16, 18, 21, 23, 28, 33, 56),
    "qqp": (11, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 31, 33, 35, 37, 41, 45, 53, 128),
}
SHAPES: dict[str, PreTrainedConfig] = {
    "bert-base": BertConfig(),
    "distilbert-base": DistilBertConfig(),
    "xlnet-base": XLNetConfig(d_model=768, n_layer=12, n_head=12, d_inner=3072),
    "small": BertConfig(hidden_size=384, num_hidden_layers=6, intermediate_size=1536),  # that of MiniLM-L6
}
TRAINER = "Trainer"
TUNED = "Trainer, tuned"
PLAIN = "plain loop"
ENGINE = "engine, 1 worker"
# Examples that a candidate is scored on, per training example.
SCORED_SHARE = 0.2


@dataclass(frozen=True)
class Setting:
    """One comparison: a model on a task, prepared in a study's folder."""

    shape: str
    parent: Path
    folder: StudyFolder
    recipe: Recipe
    device: str
    layers: int
    real: bool


@dataclass(frozen=True)
class ModelMeasurements:
    """What one contender did in one round. ``candidates`` were fine-tuned and scored in ``wall_seconds``;
    ``train_seconds`` and ``evaluation_seconds`` are means per candidate, ``cpu_seconds`` the sum over all processes.
    """

    candidates: int
    wall_seconds: float
    train_seconds: float
    evaluation_seconds: float
    score: float
    cpu_seconds: float = 0.0
    peak_bytes: int = 0


# What runs in the contenders' own processes.


def by_trainer(setting: Setting, seed: int, tuned: bool) -> ModelMeasurements:
    torch.set_num_threads(os.cpu_count() or 1)
    quiet_transformers()
    task = EncodedTask.load(setting.folder.examples)
    model, fresh = load_pretrained(
        setting.parent, name="it", kind=task.kind, label_names=task.label_names, pad_token=task.pad_token
    )
    fresh_head(model, fresh, seed)
    recipe = setting.recipe
    steps = recipe.steps(task.splits["train"].examples)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=recipe.batch_size,
            learning_rate=recipe.lr,
            warmup_steps=round(recipe.warmup * steps),
            seed=seed,
            bf16=tuned and resolve_device(setting.device, "auto").precision == "bf16",
            use_cpu=setting.device == "cpu",
            train_sampling_strategy="group_by_length" if tuned else "random",
            # Neither checkpoints nor bars: they are not what is compared.
            save_strategy="no",
            disable_tqdm=True,
            report_to="none",
        )
        trainer = Trainer(model, arguments, _Padding(task), train_dataset=_rows(task, "train"))
        trainer.remove_callback(PrinterCallback)
        started = time.perf_counter()
        trainer.train()
        trained = time.perf_counter()
        outputs = trainer.predict(_rows(task, "selection")).predictions
        done = time.perf_counter()
    score = measure((task.metric,), np.asarray(outputs), task.splits["selection"].labels)[task.metric]
    return ModelMeasurements(1, done - started, trained - started, done - trained, score)


def by_plain_loop(setting: Setting, seed: int) -> ModelMeasurements:
    """As one writes it with PyTorch: whole model, batches of similar length, one process."""
    torch.set_num_threads(1)
    quiet_transformers()
    task, recipe, device = EncodedTask.load(setting.folder.examples), setting.recipe, _device_of(setting)
    model, fresh = load_pretrained(
        setting.parent, name="it", kind=task.kind, label_names=task.label_names, pad_token=task.pad_token
    )
    fresh_head(model, fresh, seed)
    torch.nn.Module.to(model, device.name).train()
    train, selection = (DeviceSplit.of(task, task.splits[name], device.name) for name in ("train", "selection"))
    started = time.perf_counter()
    steps = recipe.steps(train.examples)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr)
    schedule = get_linear_schedule_with_warmup(optimizer, round(recipe.warmup * steps), steps)
    for indices in itertools.islice(training_order(train.lengths, recipe.batch_size, seed), steps):
        with device.autocast():
            loss = model(**train.batch(indices), labels=train.labels[train.rows(indices)]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    device.synchronize()
    trained = time.perf_counter()
    outputs, order = [], list(reading_order(selection.lengths, EVALUATION_TOKENS[device.kind]))
    model.eval()
    with torch.inference_mode(), device.autocast():
        for indices in order:
            outputs.append(model(**selection.batch(indices)).logits.float())
    logits = torch.cat(outputs).cpu().numpy()
    done = time.perf_counter()
    score = measure((task.metric,), logits, task.splits["selection"].labels[np.concatenate(order)])[task.metric]
    return ModelMeasurements(1, done - started, trained - started, done - trained, score)


def _device_of(setting: Setting) -> Device:
    return Device(setting.device, resolve_device(setting.device, "auto").precision)


def by_engine(setting: Setting, seed: int, workers: int) -> ModelMeasurements:
    quiet_transformers()
    layers = LayerSet.full(setting.layers)
    jobs = [Job(TrialKey(layers, FULL_RUNG, seed + index), "selection") for index in range(workers)]
    context = EvaluationContext(setting.folder, setting.parent, setting.shape, setting.recipe, _device_of(setting))
    started = time.perf_counter()
    trials = list(_lasting_workers(context, workers).run(jobs))
    wall = time.perf_counter() - started
    if failed := [trial.error for trial in trials if trial.score is None]:
        raise RuntimeError(failed[0])
    return ModelMeasurements(
        candidates=len(trials),
        wall_seconds=wall,
        train_seconds=statistics.fmean(trial.train_seconds for trial in trials),
        evaluation_seconds=statistics.fmean(trial.evaluation_seconds for trial in trials),
        score=statistics.fmean(trial.score for trial in trials if trial.score is not None),
    )


@lru_cache(maxsize=1)
def _lasting_workers(context: EvaluationContext, workers: int) -> Workers:
    """The same through all rounds of a setting, as they are through a search."""
    return Workers(context, workers)


@dataclass(frozen=True)
class _Padding:
    """A batch padded to its longest example, as DataCollatorWithPadding makes it."""

    task: EncodedTask

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        length = max(len(row["input_ids"]) for row in rows)
        fill = {"input_ids": self.task.pad_token, "token_type_ids": self.task.pad_segment, "attention_mask": 0}
        batch = {"labels": torch.tensor([row["labels"] for row in rows])}
        for name in rows[0].keys() - {"labels"}:
            padded = []
            for row in rows:
                padding = [fill[name]] * (length - len(row[name]))
                padded.append(padding + row[name] if self.task.pad_left else row[name] + padding)
            batch[name] = torch.tensor(padded)
        return batch


def _rows(task: EncodedTask, name: str) -> list[dict[str, Any]]:
    split = task.splits[name]
    rows = []
    for index, (start, end) in enumerate(itertools.pairwise(split.offsets)):
        row = {"input_ids": split.tokens[start:end].tolist(), "attention_mask": [1] * int(end - start)}
        if split.segments is not None:
            row["token_type_ids"] = split.segments[start:end].tolist()
        rows.append({**row, "labels": split.labels[index].item()})
    return rows


class Contender:
    """A process of its own that runs one way of fine-tuning, again and again."""

    def __init__(self, name: str, run: Any, *arguments: Any) -> None:
        self.name = name
        self._run, self._arguments = run, arguments
        self._pool = ProcessPoolExecutor(
            1, mp_context=get_context("spawn"), initializer=begin_worker, initargs=(os.getpid(),)
        )
        self._pid = self._pool.submit(os.getpid)

    @cached_property
    def _process(self) -> psutil.Process:
        return psutil.Process(self._pid.result())

    def turn(self, setting: Setting, seed: int) -> ModelMeasurements:
        cpu_before, peak, over = self._cpu_seconds(), [0], threading.Event()

        def watch() -> None:
            while not over.wait(0.1):
                peak[0] = max(peak[0], self._memory(setting.device))

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            measured: ModelMeasurements = self._pool.submit(self._run, setting, seed, *self._arguments).result()
        finally:
            over.set()
            watcher.join()
        return replace(measured, cpu_seconds=self._cpu_seconds() - cpu_before, peak_bytes=peak[0])

    def close(self) -> None:
        for child in self._process.children(recursive=True):
            child.terminate()
        self._pool.shutdown()

    def _family(self) -> list[psutil.Process]:
        return [self._process, *self._process.children(recursive=True)]

    def _cpu_seconds(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self._family())

    def _memory(self, device: str) -> int:
        """Bytes in use: on a GPU all that is taken there, the other contenders' idle processes included."""
        if device.startswith("cuda"):
            free, total = torch.cuda.mem_get_info(device)
            return total - free
        return sum(process.memory_info().rss for process in self._family())


# Models and examples.


def prepare(shape: str, options: argparse.Namespace, scratch: Path) -> Setting:
    device = resolve_device(options.device, "auto").name
    recipe = Recipe("benchmark", 1, options.examples, options.batch_size, options.lr, 128, 0.1)
    real_task = "demo" if shape == "demo" else options.task if _glue() else ""
    if shape in SHAPES or not real_task:
        parent = _random_weights(SHAPES[shape], scratch / shape) if shape in SHAPES else Path(shape)
        folder = StudyFolder(scratch / f"{Path(shape).name}-study")
        _random_tokens(AutoConfig.from_pretrained(parent), options).save(folder.examples)
    else:
        parent = MODEL_DIR if shape == "demo" else Path(shape)
        folder = _real_examples(real_task, shape, options, scratch)
    layers = AutoConfig.from_pretrained(parent).num_hidden_layers
    return Setting(shape, parent, folder, recipe, device, layers, real=shape not in SHAPES and bool(real_task))


def scored_examples(options: argparse.Namespace) -> int:
    return max(1, round(SCORED_SHARE * options.examples))


def _glue() -> str:
    return os.environ.get("BUDGET_SEARCH_GLUE", "")


def _random_weights(config: PreTrainedConfig, folder: Path) -> Path:
    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return folder


def _random_tokens(config: PreTrainedConfig, options: argparse.Namespace) -> EncodedTask:
    random = np.random.default_rng(0)
    marks = np.linspace(0, 1, len(LENGTHS[options.task]))

    def split(examples: int) -> EncodedSplit:
        lengths = np.interp(random.random(examples), marks, LENGTHS[options.task]).round().astype(np.int64)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        # Words are frequent and rare as in real texts (Zipf).
        tokens = 1_000 + random.zipf(1.2, 4 * offsets[-1])
        tokens = tokens[tokens < config.vocab_size][: offsets[-1]].astype(np.int32)
        segments = None if config.model_type == "distilbert" else np.zeros(len(tokens), dtype=np.uint8)
        return EncodedSplit(tokens, segments, offsets, random.integers(0, 2, examples))

    left = config.model_type == "xlnet"
    splits = {"train": split(options.examples), "selection": split(scored_examples(options))}
    pad_token = config.pad_token_id if config.pad_token_id is not None else 0
    return EncodedTask(splits, ("no", "yes"), "accuracy", (), pad_token, 3 if left else 0, left)


def _real_examples(task: str, model: str, options: argparse.Namespace, scratch: Path) -> StudyFolder:
    """Tokenised as a study would; of its selection, the first few hundred."""
    found = resolve_request(
        Request(
            task=task,
            model=model,
            data_dir=None if task == "demo" else str(Path(_glue()) / task),
            recipe="quick",
            recipe_changes={"train_examples": options.examples},
            studies_dir=str(scratch / "studies"),
        )
    )
    create(found, resolve_device(options.device, "auto"), Console(quiet=True))
    encoded = EncodedTask.load(found.folder.examples)
    selection = encoded.splits["selection"]
    count = scored_examples(options)
    end = selection.offsets[count]
    scored = EncodedSplit(
        selection.tokens[:end],
        None if selection.segments is None else selection.segments[:end],
        selection.offsets[: count + 1],
        selection.labels[:count],
    )
    replace(encoded, splits={"train": encoded.splits["train"], "selection": scored}).save(found.folder.examples)
    return found.folder


# Arithmetic.


def training_flops(setting: Setting, lengths: np.ndarray) -> float:
    """Of one pass over these examples: six per matrix parameter and token, and attention's; padding is no work."""
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(setting.parent))
    looked_up = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    matrices = sum(p.numel() for p in model.parameters() if p.dim() >= 2 and id(p) not in looked_up)
    attention = 12 * setting.layers * model.config.hidden_size * float(np.square(lengths).sum())
    return 6.0 * matrices * float(lengths.sum()) + attention


def matrix_rate(device: Device, seconds: float = 1.0) -> float:
    """FLOP/s of large matrix products in this precision, by all cores or one GPU: the best of what fits into some
    time."""
    torch.set_num_threads(os.cpu_count() or 1)
    size = 8192 if device.kind != "cpu" else 1024
    dtype = torch.bfloat16 if device.precision == "bf16" else torch.float32
    left, right = (torch.randn(size, size, device=device.name, dtype=dtype) for _ in range(2))
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        (left @ right).sum().item()
        best = min(best, time.perf_counter() - started)
    return float(2 * size**3 / best)


# The comparison.


def compare(setting: Setting, contenders: list[Contender], repeats: int) -> dict[str, list[ModelMeasurements]]:
    """Rounds in which everybody has a turn, after one to load and warm up."""
    found: dict[str, list[ModelMeasurements]] = {contender.name: [] for contender in contenders}
    for turn in range(repeats + 1):
        for contender in contenders:
            measured = contender.turn(setting, seed=42 + turn)
            print(f"{setting.shape}, round {turn}, {contender.name}: {measured.wall_seconds:.1f} s", file=sys.stderr)
            if turn:
                found[contender.name].append(measured)
        contenders = contenders[::-1]
    return found


def row(setting: Setting, name: str, found: dict[str, list[ModelMeasurements]], rate: float) -> dict[str, Any]:
    """Medians over the rounds; ratios are of candidates per hour, within a round."""
    runs = found[name]

    def median(figure: Any) -> float:
        return statistics.median(figure(run) for run in runs)

    def ratio(other: str) -> float:
        pairs = zip(runs, found[other], strict=True)
        return statistics.median(_per_hour(ours) / _per_hour(theirs) for ours, theirs in pairs)

    lengths = EncodedTask.load(setting.folder.examples).splits["train"].lengths
    flops = training_flops(setting, lengths)
    return {
        "shape": Path(setting.shape).name,
        "by": name,
        "examples/s": median(lambda run: run.candidates * len(lengths) / run.train_seconds),
        "tokens/s": median(lambda run: run.candidates * float(lengths.sum()) / run.train_seconds),
        "of matrix rate": median(lambda run: run.candidates * flops / run.train_seconds) / rate,
        "evaluation s": median(lambda run: run.evaluation_seconds),
        "CPU s/candidate": median(lambda run: run.cpu_seconds / run.candidates),
        "peak MB": median(lambda run: run.peak_bytes / 1e6),
        "score": statistics.fmean(run.score for run in runs) if setting.real else None,
        "candidates/h": median(_per_hour),
        "x Trainer": ratio(TRAINER),
        "x tuned": ratio(TUNED),
        "x plain": ratio(PLAIN),
    }


def _per_hour(run: ModelMeasurements) -> float:
    return 3600 * run.candidates / run.wall_seconds


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = ", ".join(["demo", *SHAPES])
    parser.add_argument("--shapes", nargs="+", default=["small", "bert-base"], help=f"{known}, or a model's folder")
    parser.add_argument("--task", choices=list(LENGTHS), default="qqp", help="whose lengths, or whose texts")
    parser.add_argument("--examples", type=int, default=320, help="training examples of a candidate")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="candidates side by side")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--format", choices=["table", "json"], default="table")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    device = resolve_device(options.device, "auto")
    rate = matrix_rate(device)
    contenders = [
        Contender(TRAINER, by_trainer, False),
        Contender(TUNED, by_trainer, True),
        Contender(PLAIN, by_plain_loop),
        Contender(ENGINE, by_engine, 1),
        Contender(f"engine, {options.workers} workers", by_engine, options.workers),
    ]
    table, rounds = [], []
    try:
        with tempfile.TemporaryDirectory() as scratch:
            for shape in options.shapes:
                setting = prepare(shape, options, Path(scratch))
                found = compare(setting, contenders, options.repeats)
                table += [row(setting, contender.name, found, rate) for contender in contenders]
                rounds += [{"shape": shape, "by": name, **asdict(run)} for name, runs in found.items() for run in runs]
    finally:
        for contender in contenders:
            contender.close()
    conditions = {
        **device.describe(), "matrix_rate": rate, "task": options.task, "examples": options.examples,
        "batch_size": options.batch_size, "repeats": options.repeats, "torch": torch.__version__,
    }  # fmt: skip
    if options.format == "json":
        print(json.dumps({"conditions": conditions, "table": table, "rounds": rounds}, indent=1))
        return
    print(tabulate(table, headers="keys", floatfmt=".3g", missingval="-"))
    print(
        f"\n{device.precision} matrix products: {rate / 1e9:,.0f} GFLOP/s;",
        ", ".join(f"{k} {v}" for k, v in conditions.items()),
    )


if __name__ == "__main__":
    main()
