"""Tiny real models, tokenizers and tasks, with which a whole search takes seconds, and helpers to run commands."""

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
"""Options with which a search on these models takes seconds and is reproducible."""


# -- tasks --------------------------------------------------------------------------------------------------------


def reviews(count: int, seed: int) -> list[Row]:
    """Texts of nine words, three of which determine the label."""
    draw = random.Random(seed)
    rows: list[Row] = []
    for number in range(count):
        words = [*draw.choices(FILLERS, k=6), *draw.choices(GOOD if number % 2 else BAD, k=3)]
        draw.shuffle(words)
        rows.append({"sentence": " ".join(words), "label": number % 2, "idx": number})
    return rows


def questions(count: int, seed: int) -> list[Row]:
    """Pairs of texts with the columns of QQP; words of the second one determine the label."""
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
    """An XLNet with the files of ``xlnet-base-cased``: only the class of its tokenizer sets left padding."""
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
    """A decoder whose tokenizer, like Llama's, has no padding token."""
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
    """Copy a model folder into the layout of the hub's cache: blobs, a snapshot of links, and the main reference."""
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
    """Run a command in this process and restore the signal handlers; returns the exit code."""
    from budget_search.cli.main import main
    from budget_search.core.signals import ENDING

    before = {number: signal.getsignal(number) for number in ENDING}
    try:
        return main(arguments)
    except SystemExit as exit_:
        return int(exit_.code or 0)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def environment(home: Path, **more: str) -> dict[str, str]:
    """The environment of a subprocess: no settings of this program except ``more``; caches are below ``home``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("BUDGET_SEARCH_", "HF_"))}
    ours = {"HF_HOME": str(home / "hf"), "XDG_CACHE_HOME": str(home / "cache"), "OMP_NUM_THREADS": "1"}
    return {**kept, **ours, "TOKENIZERS_PARALLELISM": "false", **more}


def start(arguments: Sequence[str], folder: Path, env: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start the program in a subprocess."""
    return subprocess.Popen(
        [sys.executable, "-m", "budget_search", *arguments],
        cwd=folder, env=dict(env), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def run(arguments: Sequence[str], folder: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run the program in a subprocess until it ends."""
    with start(arguments, folder, env) as process:
        out, err = process.communicate()
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


def tree(folder: Path) -> dict[str, bytes | None]:
    """All files and folders below a folder: relative path to content, None for folders."""
    return {str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes() for path in folder.rglob("*")}


def context(folder: Path, **links: Path) -> Path:
    """A working folder with links to tasks and models under these names."""
    for name, target in links.items():
        (folder / name).symlink_to(target)
    return folder


def only_study(studies: Path) -> Path:
    found = [path for path in studies.iterdir() if not path.name.startswith(".")]
    assert len(found) == 1, found
    return found[0]


def recorded(study: Path) -> list[tuple[tuple[int, ...], float, int]]:
    """All trial rows of a study's database, read without the program: (kept, rung, seed), with duplicates.

    Empty while the database is being created.
    """
    try:
        return _trial_rows(study / "study.db")
    except sqlite3.OperationalError as error:
        if "no such table" in str(error) or "unable to open" in str(error):
            return []
        raise


def _trial_rows(path: Path) -> list[tuple[tuple[int, ...], float, int]]:
    # Not read-only: after a kill inside a transaction, the next reader must roll it back.
    with closing(sqlite3.connect(f"file:{path}?mode=rw", uri=True, isolation_level=None)) as database:
        # One transaction, so that all queries see the same trials.
        database.execute("begin")
        trials = [row[0] for row in database.execute("select trial_id from trials order by trial_id")]
        attributes: dict[int, dict[str, float]] = {trial: {} for trial in trials}
        for trial, key, value in database.execute("select trial_id, key, value_json from trial_user_attributes"):
            attributes[trial][key] = json.loads(value)
        kept: dict[int, list[int]] = {trial: [] for trial in trials}
        # 0 is the index of the first choice, True: the layer is kept.
        for trial, name, value in database.execute("select trial_id, param_name, param_value from trial_params"):
            if value == 0:
                kept[trial].append(int(name.removeprefix("layer_")))
    return [(tuple(sorted(kept[t])), float(attributes[t]["rung"]), int(attributes[t]["seed"])) for t in trials]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until the condition holds; fails if the process ends first."""
    while not condition():
        assert process.poll() is None, f"ended too early: {process.communicate()}"
        time.sleep(0.01)


def pause(process: subprocess.Popen[str], study: Path) -> None:
    """Stop the process between two writes; inside a write it would keep its database locked."""
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
    """Whether the condition holds within this time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Kill the process at the end of the block."""
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def search_options(task: str) -> list[str]:
    """Options of a quick search on the folder ``task`` with the model in the folder ``bert``."""
    return ["--task", task, "--data-dir", task, "--model", "bert", *RECIPE]


def run_script(script: str, folder: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Run Python code in a subprocess."""
    return subprocess.run(
        [sys.executable, "-c", script], cwd=folder, env=dict(env), capture_output=True, text=True, check=False
    )
