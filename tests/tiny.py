"""Tiny real models, tokenizers and tasks: a whole search with them takes seconds."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

Row = dict[str, str | int]

GOOD = ("good", "great", "fine", "superb")
BAD = ("bad", "awful", "dull", "poor")
FILLERS = ("a", "the", "film", "story", "plot", "cast", "scene", "music", "long", "short", "red", "blue", "old", "new",
           "very", "quite", "in", "of", "with", "and")  # fmt: skip
WORDS = (*GOOD, *BAD, *FILLERS)

RECIPE = (
    "--epochs", "3", "--train-examples", "200", "--batch-size", "16", "--lr", "3e-3", "--max-length", "32",
    "--seeds", "2", "--workers", "1", "--device", "cpu", "--precision", "fp32",
)  # fmt: skip
"""Options that make a search on these models take seconds, and two runs of it give the same numbers."""


# -- tasks --------------------------------------------------------------------------------------------------------


def reviews(count: int, seed: int) -> list[Row]:
    """Texts of nine words, three of which tell the label."""
    draw = random.Random(seed)
    rows: list[Row] = []
    for number in range(count):
        words = [*draw.choices(FILLERS, k=6), *draw.choices(GOOD if number % 2 else BAD, k=3)]
        draw.shuffle(words)
        rows.append({"sentence": " ".join(words), "label": number % 2, "idx": number})
    return rows


def questions(count: int, seed: int) -> list[Row]:
    """Pairs in the columns of QQP; words of the second text tell the label."""
    draw = random.Random(seed)
    rows: list[Row] = []
    for row in reviews(count, seed):
        other = " ".join(draw.choices(FILLERS, k=6))
        rows.append({"question1": other, "question2": row["sentence"], "label": row["label"], "idx": row["idx"]})
    return rows


def write_parquet(path: Path, rows: Sequence[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def write_tsv(path: Path, rows: Sequence[Row]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [tuple(rows[0]), *(tuple(map(str, row.values())) for row in rows)]
    path.write_text("".join("\t".join(line) + "\n" for line in lines), encoding="utf8")
    return path


# -- models -------------------------------------------------------------------------------------------------------


def make_bert(folder: Path, layers: int = 4) -> Path:
    """A BERT with random weights and a language-modelling head, as ``save_pretrained`` writes it."""
    import torch
    from transformers import BertConfig, BertForMaskedLM, BertTokenizer

    marks = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    names = [*marks, *"abcdefghijklmnopqrstuvwxyz", *("##" + c for c in "abcdefghijklmnopqrstuvwxyz")]
    names += [word for word in WORDS if word not in names]
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(names), hidden_size=32, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, initializer_range=0.1,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder)
    tokenizer = BertTokenizer(vocab={name: number for number, name in enumerate(names)}, model_max_length=64)
    tokenizer.save_pretrained(folder)
    return folder


def make_xlnet(folder: Path, layers: int = 3) -> Path:
    """An XLNet with the files of the hub's ``xlnet-base-cased``: its class alone says that it pads on the left."""
    import torch
    from transformers import XLNetConfig, XLNetLMHeadModel, XLNetTokenizer

    marks = ["<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>"]
    pieces = [(name, 0.0) for name in marks] + [("▁" + word, -2.0) for word in WORDS]
    pieces += [("▁", -8.0), *((letter, -9.0) for letter in "abcdefghijklmnopqrstuvwxyz")]
    torch.manual_seed(0)
    config = XLNetConfig(
        vocab_size=len(pieces), d_model=32, n_layer=layers, n_head=2, d_inner=64, initializer_range=0.1,
        pad_token_id=5, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    XLNetLMHeadModel(config).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    XLNetTokenizer(vocab=pieces).backend_tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def make_llama(folder: Path, layers: int = 3) -> Path:
    """A decoder with a tokenizer that has no token to pad with, as Llama's has none."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    names = ["<unk>", "<s>", "</s>", *WORDS]
    tokenizer = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(names), hidden_size=32, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, initializer_range=0.1, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    marks = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **marks).save_pretrained(folder)
    return folder


def into_hub_cache(model: Path, hub: Path, name: str, commit: str) -> Path:
    """Lay a model folder out as the hub's cache does: blobs, a snapshot of links to them, and the main reference."""
    repository = hub / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(model.iterdir())):
        blob = repository / "blobs" / f"{number:040x}"
        blob.parent.mkdir(exist_ok=True)
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    return snapshot


# -- commands -----------------------------------------------------------------------------------------------------


def command(*arguments: str) -> int:
    """Run a command in this process; the signal handlers it installs are put back."""
    from budget_search.cli.main import main

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return main(arguments)
    except SystemExit as exit_:
        return int(exit_.code or 0)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def environment(home: Path, **more: str) -> dict[str, str]:
    """A process's environment without anything of ours but what is given; its caches lie below ``home``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BUDGET_SEARCH_", "HF_"))}
    ours = {"HF_HOME": str(home / "hf"), "XDG_CACHE_HOME": str(home / "cache"), "OMP_NUM_THREADS": "1"}
    return {**kept, **ours, "TOKENIZERS_PARALLELISM": "false", **more}


def start(arguments: Sequence[str], folder: Path, env: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start the program in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "budget_search", *arguments],
        cwd=folder, env=dict(env), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def run(arguments: Sequence[str], folder: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the program in a process of its own, to its end."""
    with start(arguments, folder, env) as process:
        out, err = process.communicate()
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder: relative path to content, None for folders."""
    return {str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes() for path in folder.rglob("*")}


def context(folder: Path, **links: Path) -> Path:
    """A folder to work in, with links to tasks and models under these names."""
    for name, target in links.items():
        (folder / name).symlink_to(target)
    return folder


def only_study(studies: Path) -> Path:
    found = [path for path in studies.iterdir() if not path.name.startswith(".")]
    assert len(found) == 1, found
    return found[0]


def recorded(study: Path) -> list[tuple[tuple[int, ...], float, int]]:
    """Every trial row in a study's database, read from outside the program: (kept, rung, seed), duplicates too.

    A database that is still being set up holds none.
    """
    try:
        return _trial_rows(study / "study.db")
    except sqlite3.OperationalError as error:
        if "no such table" in str(error) or "unable to open" in str(error):
            return []
        raise


def _trial_rows(path: Path) -> list[tuple[tuple[int, ...], float, int]]:
    # Not read-only: whoever reads after a kill in the middle of a transaction must undo it first.
    with closing(sqlite3.connect(f"file:{path}?mode=rw", uri=True, isolation_level=None)) as database:
        # One transaction: a trial that is recorded meanwhile is in all of the answers or in none.
        database.execute("begin")
        trials = [row[0] for row in database.execute("select trial_id from trials order by trial_id")]
        attributes: dict[int, dict[str, float]] = {trial: {} for trial in trials}
        for trial, key, value in database.execute("select trial_id, key, value_json from trial_user_attributes"):
            attributes[trial][key] = json.loads(value)
        kept: dict[int, list[int]] = {trial: [] for trial in trials}
        # The first choice of every flag is True: the layer stays.
        for trial, name, value in database.execute("select trial_id, param_name, param_value from trial_params"):
            if value == 0:
                kept[trial].append(int(name.removeprefix("layer_")))
    return [(tuple(sorted(kept[t])), float(attributes[t]["rung"]), int(attributes[t]["seed"])) for t in trials]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Until the condition holds; fails when the process ends before."""
    while not condition():
        assert process.poll() is None, f"ended too early: {process.communicate()}"
        time.sleep(0.01)


def pause(process: subprocess.Popen[str], study: Path) -> None:
    """Stop the process between two writes: one that is stopped inside a write keeps everybody out of its database."""
    while True:
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        try:
            recorded(study)
            return
        except sqlite3.OperationalError as error:
            assert "locked" in str(error), error
        process.send_signal(signal.SIGCONT)
        time.sleep(0.05)


def within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Whether the condition holds before that long has passed."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """The process is gone after this block, whatever happens in it."""
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def search_options(task: str) -> list[str]:
    """A quick search on ``task`` with the model in ``bert``, both folders here."""
    return ["--task", task, "--data-dir", task, "--model", "bert", *RECIPE]


def run_script(script: str, folder: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own."""
    return subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env=dict(env), capture_output=True, text=True, check=False
    )
