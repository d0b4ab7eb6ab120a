"""Input that means harm, or looks like it: one clear line, nothing run, nothing left behind, nothing outside touched.

With the tables of tests/test_cli.py these are the bad inputs that README counts.
"""

from __future__ import annotations

import gzip
import json
import os
import pickle
import re
import socket
import struct
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from budget_search.cli.options import request_from
from budget_search.cli.parser import parse
from budget_search.core.config import METRICS, Recipe, SearchConfig, slug
from budget_search.core.errors import UsageError
from budget_search.core.layers import LayerSet
from budget_search.storage.credentials import mask_passwords
from budget_search.storage.study_folder import study_path
from tests import tiny
from tests.test_cli import Bad, check_refused, rows

SST2 = ("--task", "sst2", "--data-dir", "sst2", "--model", "bert", "--quiet")
LONG = "x" * 5000
ESCAPE = "\x1b[31mred\x07"


def refused(name: str, *options: str, says: tuple[str, ...] = (), code: int = 2) -> Bad:
    return Bad(name, options, says, code)


def search(name: str, *options: str, says: tuple[str, ...] = ()) -> Bad:
    return refused(name, *SST2, *options, says=says)


def task(file: str, *options: str, says: tuple[str, ...] = (), name: str = "") -> Bad:
    columns = ("--text-columns", "text", "--label-column", "label")
    return refused(name or file, "--task", file, "--model", "bert", "--quiet", *columns, *options, says=says)


def model(folder: str, *options: str, says: tuple[str, ...] = ()) -> Bad:
    return refused(f"model {folder!r}"[:30], *SST2[:4], "--model", folder, "--quiet", *options, says=says)


NAMES = [
    *(
        search(f"a study named {name[:12]!r}", f"--study={name}", says=("--study",))
        for name in (
            "..",
            ".",
            "../up",
            "/tmp/abs",
            "a/b",
            "a\\b",
            "a\0b",
            LONG,
            "ｗｉｄｅ",
            "a\u202eb",
            "аdmin",
            "é",
            " ",
            "a\nb",
            ".hidden",
            "a b",
            ESCAPE,
            "-",
            "a%00b/../c",
            "~",
            "$HOME",
        )
    ),
    search("NUL in the studies folder", "--studies-dir", "a\0b", says=("--studies-dir",)),
    search("NUL in the output", "--output", "a\0b", says=("--output",)),
    search("output with a very long name", "--output", LONG, says=("--output",)),
    search("studies folder with a very long name", "--studies-dir", LONG, says=("--studies-dir",)),
    search("NUL in the options file", "--config", "a\0b", says=("--config",)),
    search("NUL in the storage", "--storage", "sqlite:///a\0b.db", says=("--storage",)),
    search("storage of an unknown kind", "--storage", "gopher://x/y", says=("--storage",)),
    search("storage that reads another file", "--storage", "sqlite:///notes.txt", says=("--storage",)),
    task("a\0b.csv", says=("a\\x00b",), name="NUL in a task"),
    task("~nobody-of-that-name/x.csv", says=("~nobody",)),
    task(ESCAPE, says=("\\x1b[31m",), name="a task that colours the terminal"),
    task("reviews.csv", "--validation", "a\0b.csv", says=("a\\x00b",), name="NUL in a validation file"),
    refused("NUL in the data folder", "--task", "sst2", "--data-dir", "a\0b", "--model", "bert", says=("a\\x00b",)),
    model("a\0b", says=("a\\x00b",)),
    model("../../../../etc/passwd", says=("passwd",)),
    model("~nobody-of-that-name/model", says=("~nobody",)),
    model("оrg/model", says=("hub id",)),
    model(ESCAPE, says=("\\x1b[31m",)),
    refused("report of ..", "report", "..", says=("..",)),
    refused("report of NUL", "report", "a\0b", says=("a\\x00b",)),
    refused("report of a very long name", "report", LONG, says=("too long",)),
    refused("report into NUL", "report", "sst2_", "--output", "a\0b", says=("--output",)),
    refused("report into a device folder", "report", "sst2_", "--output", "/dev/null/x", says=("--output",)),
    refused("export to NUL", "export", "sst2_", "--delta", "0.05", "--output", "a\0b", says=("--output",)),
    refused("export over a link", "export", "sst2_", "--delta", "0.05", "--output", "link-out", says=("link-out",)),
    refused("export over a device", "export", "sst2_", "--delta", "0.05", "--output", "/dev/null", says=("/dev/null",)),
]

SPECIAL = [
    *(task(name, says=(name, "file")) for name in ("pipe.csv", "device.csv", "socket.csv")),
    *(task(name, says=(name,)) for name in ("loop.csv", "dangling.csv", "folder.csv")),
    task("reviews.csv", "--validation", "pipe.csv", says=("pipe.csv",), name="a pipe for validation"),
    task("reviews.csv", "--validation", "folder.csv", says=("folder.csv",), name="a folder for validation"),
    refused(
        "a pipe among local data", "--task", "sst2", "--data-dir", "piped", "--model", "bert", says=("no train.*",)
    ),
    search("a pipe as options", "--config", "pipe.csv", says=("--config", "pipe.csv")),
    search("a device as options", "--config", "/dev/zero", says=("--config", "/dev/zero")),
    model("piped-config", says=("config.json",)),
    model("piped-weights", says=("weights",)),
    model("linked-nowhere", says=("config.json",)),
]

CONTENTS = [
    *(
        task(name, says=(name,))
        for name in (
            "gzip.csv",
            "zip.jsonl",
            "picture.tsv",
            "utf16-cut.csv",
            "latin1.csv",
            "pickle.parquet",
            "cut.parquet",
            "comma.jsonl",
            "array.jsonl",
            "deep.jsonl",
            "unclosed.csv",
            "wide.csv",
            "narrow.csv",
            "twice.csv",
            "nuls.csv",
            "page.csv",
            "database.tsv",
        )
    ),
    task("odd-columns.csv", says=("\\x1b[31m",)),
    task("reviews.csv", "--validation", "odd-labels.csv", says=("\\x1b[31m",), name="odd-labels.csv"),
    task("reviews.csv", "--validation", "huge-label.csv", says=("label",), name="huge-label.csv"),
    task("huge-header.csv", says=("huge-header.csv",)),
    task("nan.jsonl", says=("label",)),
    task("nested.jsonl", says=("text",)),
    search("options that run code", "--config", "code.yaml", says=("code.yaml", "YAML")),
    search("options that grow", "--config", "laughs.yaml", says=("laughs.yaml",)),
    search("options nested without end", "--config", "deep.yaml", says=("deep.yaml",)),
    search("options with NUL", "--config", "nul.yaml", says=("nul.yaml",)),
    search("options with a mapping for a number", "--config", "mapping.yaml", says=("mapping.yaml",)),
    model("pickled", says=("pickled",)),
    model("remote-code", says=("remote-code", "trust")),
    model("deep-config", says=("deep-config",)),
    model("list-config", says=("list-config",)),
    model("no-layers", says=("no single number",)),
    model("layers-in-words", says=("layers-in-words",)),
    model("endless-layers", says=("endless-layers", "1000000000")),
    model("negative-size", says=("negative-size",)),
    model("lying-header", says=("lying-header", "damaged")),
    model("missing-shard", says=("missing-shard", "1 are missing", "model-00002-of-00002.safetensors")),
    model("odd-index", says=("odd-index", "index.json is damaged")),
    model("binary-tokenizer", says=("binary-tokenizer", "tokenizer")),
    refused("deep report", "report", "deep-report", says=("report.json",), code=1),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, bert: Path, sst2: Path, sst2_study: Path) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "sst2").symlink_to(sst2)
    (folder / "bert").symlink_to(bert)
    (folder / "notes.txt").write_text("of somebody else\n")
    (folder / "link-out").symlink_to("somewhere")
    (folder / "studies").mkdir()
    (folder / "studies" / sst2_study.name).symlink_to(sst2_study)
    (folder / "studies" / "deep-report").mkdir()
    (folder / "studies" / "deep-report" / "config.json").write_text((sst2_study / "config.json").read_text())
    (folder / "studies" / "deep-report" / "report.json").write_text("[" * 100_000)
    with socket.socket(socket.AF_UNIX) as listening:
        before = Path.cwd()
        os.chdir(folder)
        listening.bind("socket.csv")
        os.chdir(before)
        _write_special(folder)
        _write_tables(folder)
        _write_options(folder)
        _write_models(folder, bert)
        yield folder


def _write_special(folder: Path) -> None:
    os.mkfifo(folder / "pipe.csv")
    (folder / "device.csv").symlink_to("/dev/zero")
    (folder / "loop.csv").symlink_to("loop.csv")
    (folder / "dangling.csv").symlink_to("gone.csv")
    (folder / "folder.csv").mkdir()
    (folder / "piped").mkdir()
    os.mkfifo(folder / "piped" / "train.tsv")
    (folder / "piped" / "validation.tsv").write_text("sentence\tlabel\na\t1\n")


def _write_tables(folder: Path) -> None:
    lines = [f"{row['sentence']},{'up' if row['label'] else 'down'}" for row in tiny.reviews(60, seed=9)]
    table = "\n".join(["text,label", *lines]) + "\n"
    texts = {
        "reviews.csv": table,
        "comma.jsonl": table,
        "array.jsonl": json.dumps([{"text": "a", "label": 1}]) + "\n",
        "deep.jsonl": "[" * 100_000 + "\n",
        "unclosed.csv": table + '"an unclosed quotation,up\n',
        "wide.csv": table + "one,two,three\n",
        "narrow.csv": table + "one\n",
        "twice.csv": table.replace("text,label", "text,text"),
        "nuls.csv": "\0" * 4096,
        "page.csv": "<!doctype html>\n<html><body>Not found</body></html>\n",
        "odd-columns.csv": table.replace("text,label", f"{ESCAPE},label"),
        "odd-labels.csv": table + f"a film,{ESCAPE}\n",
        "huge-label.csv": table + f"a film,{'x' * 10_000_000}\n",
        "huge-header.csv": table.replace("text,label", f"{'x' * 10_000_000},label"),
        "nan.jsonl": "".join(f'{{"text": "a {n}", "label": NaN}}\n' for n in range(60)),
        "nested.jsonl": "".join(f'{{"text": {{"a": {n}}}, "label": {n % 2}}}\n' for n in range(60)),
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "gzip.csv").write_bytes(gzip.compress(table.encode()))
    with zipfile.ZipFile(folder / "zip.jsonl", "w") as archive:
        archive.writestr("train.jsonl", table)
    (folder / "picture.tsv").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)))
    (folder / "utf16-cut.csv").write_bytes(table.encode("utf-16")[:-1])
    (folder / "latin1.csv").write_bytes(table.replace("film", "fílm").encode("latin-1"))
    (folder / "pickle.parquet").write_bytes(pickle.dumps(table))
    whole = tiny.write_parquet(folder / "whole.parquet", tiny.reviews(60, seed=9)).read_bytes()
    (folder / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    (folder / "database.tsv").write_bytes(b"SQLite format 3\0" + bytes(4096))


def _write_options(folder: Path) -> None:
    (folder / "code.yaml").write_text("task: !!python/object/apply:os.system ['touch pwned']\n")
    laughs = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    laughs += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    (folder / "laughs.yaml").write_text("\n".join([*laughs, "task: *a8"]) + "\n")
    (folder / "deep.yaml").write_text("task: " + "[" * 20_000 + "\n")
    (folder / "nul.yaml").write_bytes(b"task: a\0b\n")
    (folder / "mapping.yaml").write_text("seeds: {a: 1}\n")


class Exploit:
    """Runs when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch pwned",)


def _write_models(folder: Path, bert: Path) -> None:
    config = json.loads((bert / "config.json").read_text())

    def variant(name: str, *left_out: str, **changed: object) -> Path:
        (folder / name).mkdir()
        for file in bert.iterdir():
            if file.name not in left_out:
                (folder / name / file.name).write_bytes(file.read_bytes())
        if changed:
            (folder / name / "config.json").write_text(json.dumps({**config, **changed}))
        return folder / name

    os.mkfifo(variant("piped-config", "config.json") / "config.json")
    os.mkfifo(variant("piped-weights", "model.safetensors") / "model.safetensors")
    (variant("linked-nowhere", "config.json") / "config.json").symlink_to("gone.json")
    with zipfile.ZipFile(variant("pickled", "model.safetensors") / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Exploit(), protocol=2))
        archive.writestr("archive/version", "3\n")
    remote = {"model_type": "own-kind", "architectures": ["Own"]}
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForSequenceClassification": "own.Own"}
    (variant("remote-code", **remote, auto_map=own) / "own.py").write_text("open('pwned', 'w')\n")
    (variant("deep-config") / "config.json").write_text("[" * 100_000)
    (variant("list-config") / "config.json").write_text("[]")
    variant("no-layers", num_hidden_layers=0)
    variant("layers-in-words", num_hidden_layers="four")
    variant("endless-layers", num_hidden_layers=1_000_000_000)
    variant("negative-size", hidden_size=-32)
    (variant("lying-header") / "model.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    for name, content in (("missing-shard", json.dumps(index)), ("odd-index", "[]")):
        shard = variant(name) / "model.safetensors"
        shard.rename(shard.with_name("model-00001-of-00002.safetensors"))
        shard.with_name("model.safetensors.index.json").write_text(content)
    (variant("binary-tokenizer") / "tokenizer.json").write_bytes(bytes(range(256)))


@pytest.mark.timeout(60, func_only=True)
@rows([*NAMES, *SPECIAL, *CONTENTS])
def test_hostile_input(
    row: Bad, place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in [name for name in os.environ if name.startswith("BUDGET_SEARCH_")]:
        monkeypatch.delenv(name)
    before = contents(place)
    check_refused(row, monkeypatch, capfd)
    assert not (place / "pwned").exists()
    assert contents(place) == before


def contents(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Everything below a folder by kind, size and time of change, pipes and links included; nothing is opened."""
    found = {str(path): path.lstat() for path in folder.rglob("*")}
    return {name: (status.st_mode, status.st_size, status.st_mtime_ns) for name, status in found.items()}


# -- anything at all ------------------------------------------------------------------------------------------------


@given(st.text(max_size=60), st.integers(1, 40))
def test_any_text_is_a_layer_set_or_refused(text: str, total: int) -> None:
    try:
        layers = LayerSet.parse(text, total)
    except UsageError:
        return
    assert LayerSet.parse(layers.compact, total) == layers
    assert set(layers.kept) <= set(range(total))


@given(st.text(max_size=300))
def test_any_name_stays_in_the_studies_folder(name: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.-]*", slug(name))
    try:
        path = study_path("studies", name)
    except UsageError:
        return
    assert Path(os.path.normpath(path)).parent == Path("studies")
    assert path.name == name


configs = st.builds(
    SearchConfig,
    task=st.text(min_size=1), task_digest=st.text(), metric=st.sampled_from(METRICS),
    text_columns=st.lists(st.text(), min_size=1, max_size=2).map(tuple), label_column=st.text(),
    model=st.text(min_size=1), model_digest=st.text(),
    recipe=st.builds(
        Recipe, name=st.text(), epochs=st.floats(0.1, 100), train_examples=st.none() | st.integers(1, 10**9),
        batch_size=st.integers(1, 4096), lr=st.floats(1e-9, 0.9), max_length=st.integers(8, 4096),
        warmup=st.floats(0, 0.9), dropping=st.sampled_from(["first", "after", "gradual", "finetuned"]),
        layer_drop=st.floats(0, 0.9),
        freeze=st.lists(st.just("embeddings") | st.integers(0, 30), max_size=3).map(tuple), distil=st.floats(0, 1),
    ),
    splits=st.sampled_from(["carved", "official"]),
)  # fmt: skip


@given(configs, configs)
def test_configurations_come_back_and_only_equal_ones_share_a_study(one: SearchConfig, other: SearchConfig) -> None:
    back = json.loads(json.dumps(one.to_json()))
    fields = {**back, "recipe": Recipe(**back["recipe"]), "text_columns": tuple(back["text_columns"])}
    assert SearchConfig(**fields) == one
    assert SearchConfig(**fields).fingerprint == one.fingerprint
    assert (one.fingerprint == other.fingerprint) == (one == other)


@given(
    st.fixed_dictionaries(
        {"task": st.just("sst2"), "model": st.just("bert")},
        optional={
            "delta": st.lists(st.floats(0.001, 0.99), min_size=1, max_size=3),
            "seeds": st.integers(1, 100),
            "lr": st.floats(1e-9, 0.9),
            "max_trials": st.integers(200, 10**6),
            "offline": st.booleans(),
            "study": st.from_regex(r"[A-Za-z0-9]{1,20}", fullmatch=True),
        },
    )
)
def test_options_in_a_file_are_those_of_the_command_line(options: dict[str, object]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "options.yaml"
        file.write_text(yaml.safe_dump(options))
        from_file = request_from(parse(["--config", str(file)]))
    given_: list[str] = []
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            given_ += [option] * value
        else:
            given_ += [option, *map(str, value if isinstance(value, list) else [value])]
    assert request_from(parse(given_)) == from_file


@given(st.text(st.characters(exclude_categories=["Z", "C"]), min_size=4, max_size=20))
def test_no_password_is_shown(password: str) -> None:
    assert f":{password}@" not in mask_passwords(f"postgresql+psycopg://user:{password}@host/name --delta 0.01")
