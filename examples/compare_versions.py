"""Compares the speed of two checkouts of this project on the same fine-tunes, in turns.

    git worktree add ../before COMMIT
    python examples/compare_versions.py --before ../before                     # against the checkout of this script
    python examples/compare_versions.py --before ../before --shape demo        # a small model: more overhead per step

Each version has a process of its own with one thread, which trains and scores the same model on the same random
examples again and again. A round is one turn of each, in alternating order, so that whatever else the machine does
falls on both. What is given is the ratio within a round, after to before: the median and the quartiles, of the time
and of the processor's time.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

SHAPES = {
    "demo": {"vocab_size": 1_000, "hidden_size": 128, "num_hidden_layers": 12, "num_attention_heads": 2},
    "small": {"hidden_size": 384, "num_hidden_layers": 6},  # MiniLM-L6
    "bert-base": {},
}
# Tokens per example of QQP: every twentieth part, from the shortest to the longest.
QQP_LENGTHS = (11, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 31, 33, 35, 37, 41, 45, 53, 128)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="the other checkout")
    parser.add_argument("--after", type=Path, default=Path(__file__).parent.parent, help="that of this script")
    parser.add_argument("--shape", choices=list(SHAPES), default="small")
    parser.add_argument("--examples", type=int, default=320, help="training examples of a fine-tune")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--turns", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.turns:
        take_turns(options)
    elif options.before is None:
        parser.error("--before names the other checkout")
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    versions = {name: start(Path(root)) for name, root in (("before", options.before), ("after", options.after))}
    for process in versions.values():
        turn(process)  # loads and warms up
    rounds = []
    for number in range(options.rounds):
        names = list(versions)[:: -1 if number % 2 else 1]
        rounds.append({name: turn(versions[name]) for name in names})
        print(f"round {number}: {rounds[-1]}", file=sys.stderr)
    for process in versions.values():
        process.communicate()
    for what in ("seconds", "cpu_seconds"):
        before, after = (statistics.median(each[name][what] for each in rounds) for name in ("before", "after"))
        low, middle, high = statistics.quantiles([each["after"][what] / each["before"][what] for each in rounds], n=4)
        print(
            f"{options.shape}, {what}: before {before:.3g}, after {after:.3g}; after / before {middle:.3f} "
            f"(quartiles {low:.3f} to {high:.3f}, {len(rounds)} rounds)"
        )


def start(root: Path) -> subprocess.Popen[str]:
    """A process that has this version of the package, and takes a turn for every line it is sent."""
    environment = {**os.environ, "PYTHONPATH": str(root.resolve()), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, __file__, *sys.argv[1:], "--turns"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def turn(process: subprocess.Popen[str]) -> dict[str, float]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    answer: dict[str, float] = json.loads(process.stdout.readline())
    return answer


def take_turns(options: argparse.Namespace, commands: IO[str] = sys.stdin) -> None:
    """In a version's own process. Only what both versions have is used."""
    import numpy as np
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    from budget_search.core.config import Recipe
    from budget_search.data.tokenization import EncodedSplit, EncodedTask
    from budget_search.engine.batches import DeviceSplit
    from budget_search.engine.device import resolve_device
    from budget_search.engine.finetune import fine_tune, predict

    torch.set_num_threads(1)
    device = resolve_device(options.device, "auto")
    recipe = Recipe("comparison", 1, None, options.batch_size, 5e-5, 128, 0.1)
    shape = SHAPES[options.shape]
    config = BertConfig(intermediate_size=4 * shape.get("hidden_size", 768), **shape)
    random = np.random.default_rng(0)
    marks = np.linspace(0, 1, len(QQP_LENGTHS))
    lengths = np.interp(random.random(options.examples), marks, QQP_LENGTHS).round().astype(np.int64)
    tokens = random.integers(5, config.vocab_size, lengths.sum()).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    split = EncodedSplit(tokens, None, offsets, random.integers(0, 2, options.examples))
    task = EncodedTask({"train": split}, ("no", "yes"), "accuracy", (), 0, 0, False)
    train = DeviceSplit.of(task, split, device.name)
    for _ in commands:
        torch.manual_seed(0)
        model = BertForSequenceClassification(config)
        torch.nn.Module.to(model, device.name)
        started, cpu_started = time.perf_counter(), time.process_time()
        fine_tune(model, train, recipe, 1.0, 0, device)
        predict(model, train, device)
        cpu_seconds, seconds = time.process_time() - cpu_started, time.perf_counter() - started
        print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds}), flush=True)


if __name__ == "__main__":
    main()
