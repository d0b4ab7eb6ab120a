import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from budget_search.core.config import METRICS
from budget_search.core.errors import UsageError
from budget_search.data.loading import RawTask, load_task
from budget_search.data.tasks import GLUE, TASKS, resolve_task, task_digest
from budget_search.storage import digests
from budget_search.storage.digests import file_digest

Rows = Sequence[dict[str, Any]]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write_parquet(path: Path, rows: Rows) -> Path:
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return path


def write_jsonl(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_csv(path: Path, rows: Rows) -> Path:
    quoted = [
        ['"' + str(cell).replace('"', '""') + '"' for cell in line] for line in [rows[0], *(r.values() for r in rows)]
    ]
    path.write_text("".join(",".join(line) + "\n" for line in quoted), encoding="utf-8")
    return path


def write_tsv(path: Path, rows: Rows) -> Path:
    lines = [rows[0].keys(), *(row.values() for row in rows)]
    path.write_text("".join("\t".join(map(str, line)) + "\n" for line in lines), encoding="utf-8")
    return path


WRITERS: dict[str, Callable[[Path, Rows], Path]] = {
    "csv": write_csv,
    "tsv": write_tsv,
    "jsonl": write_jsonl,
    "parquet": write_parquet,
}
REVIEWS = [{"text": 'a "good", film', "stars": "up"}, {"text": "bad – really", "stars": "down"}] * 3


def load(path: Path, **options: Any) -> RawTask:
    return load_task(resolve_task(str(path), **{"text_columns": ["text"], "label_column": "stars", **options}))


def refusal(path: Path, **options: Any) -> str:
    """The one line a user is told."""
    with pytest.raises(UsageError) as caught:
        load(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_rows_are_those_of_the_contract() -> None:
    assert list(TASKS) == ["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli", "demo"]
    primary = {name: spec.metric for name, spec in GLUE.items()}
    assert primary.pop("cola") == "matthews"
    assert primary.pop("stsb") == "pearson_spearman"
    assert set(primary.values()) == {"accuracy"}
    assert {name for name, spec in GLUE.items() if "f1" in spec.also} == {"mrpc", "qqp"}
    assert all({spec.metric, *spec.also} <= set(METRICS) for spec in TASKS.values())
    assert GLUE["mnli"].label_names == ("entailment", "neutral", "contradiction")
    assert GLUE["wnli"].label_names == tuple(reversed(GLUE["rte"].label_names))


def test_importing_tasks_loads_nothing_heavy() -> None:
    heavy = ("numpy", "pyarrow", "datasets", "torch")
    code = f"import sys, budget_search.data.tasks; print([name for name in {heavy} if name in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


@pytest.mark.parametrize("ending", WRITERS)
def test_files_of_every_kind_say_the_same(tmp_path: Path, ending: str) -> None:
    raw = load(WRITERS[ending](tmp_path / f"reviews.{ending}", REVIEWS))
    assert list(raw.splits["train"].texts[0]) == [row["text"] for row in REVIEWS]
    assert raw.label_names == ("down", "up")
    assert raw.splits["train"].labels.tolist() == [1, 0] * 3
    assert raw.metric == "accuracy"
    assert list(raw.splits) == ["train"]


def test_a_folder_brings_its_validation_file(tmp_path: Path) -> None:
    folder = tmp_path / "reviews" / "data"
    folder.mkdir(parents=True)
    write_csv(folder / "train.csv", REVIEWS)
    write_jsonl(folder / "validation.jsonl", REVIEWS[:2])
    source = resolve_task(str(folder), text_columns=["text"], label_column="stars")
    assert source.name == "reviews"
    assert {name: len(examples) for name, examples in load_task(source).splits.items()} == {"train": 6, "held_out": 2}
    write_csv(folder / "train.csv", REVIEWS)
    write_tsv(folder / "train.tsv", REVIEWS)
    assert "keep only one" in refusal(folder)


def test_a_validation_file_can_be_named(tmp_path: Path) -> None:
    train, validation = write_csv(tmp_path / "a.csv", REVIEWS), write_csv(tmp_path / "b.csv", REVIEWS[:4])
    assert len(load(train, validation=validation).splits["held_out"]) == 4
    assert "there is no file" in refusal(train, validation=tmp_path / "c.csv")


def test_whole_number_labels_are_sorted_by_value(tmp_path: Path) -> None:
    rows = [{"text": f"text {number}", "stars": number % 11} for number in range(44)]
    for path in (write_csv(tmp_path / "r.csv", rows), write_parquet(tmp_path / "r.parquet", rows)):
        raw = load(path)
        assert raw.label_names == tuple(map(str, range(11)))
        assert raw.splits["train"].labels.tolist() == [number % 11 for number in range(44)]


def test_scores_need_a_metric_and_then_are_scores(tmp_path: Path) -> None:
    rows = [{"text": f"text {number}", "stars": number / 2} for number in range(20)]
    for path in (write_csv(tmp_path / "r.csv", rows), write_parquet(tmp_path / "r.parquet", rows)):
        assert "name the --metric" in refusal(path)
        assert "name the --metric" in refusal(path, metric="accuracy")
        raw = load(path, metric="spearman")
        assert raw.label_names == ()
        assert raw.splits["train"].labels.dtype == np.float32
        assert raw.splits["train"].labels.tolist() == [number / 2 for number in range(20)]


def test_a_score_of_zero_is_a_score(tmp_path: Path) -> None:
    rows = [{"text": "a", "stars": 0.0}, {"text": "b", "stars": 1.0}, {"text": "c", "stars": 0}]
    raw = load(write_jsonl(tmp_path / "r.jsonl", rows), metric="pearson")
    assert raw.splits["train"].labels.tolist() == [0.0, 1.0, 0.0]


def glue_rows(task: str, count: int = 8) -> list[dict[str, Any]]:
    spec = GLUE[task]
    classes = max(len(spec.label_names), 1)
    return [
        {**{name: f"{name} {row}" for name in spec.text_columns}, "label": row % classes, "idx": row}
        if not spec.is_regression
        else {**{name: f"{name} {row}" for name in spec.text_columns}, "label": row / 2, "idx": row}
        for row in range(count)
    ]


@pytest.mark.parametrize("ending", WRITERS)
@pytest.mark.parametrize("task", GLUE)
def test_every_glue_task_is_read_from_a_folder(tmp_path: Path, task: str, ending: str) -> None:
    spec = GLUE[task]
    for split in ("train", spec.held_out, *spec.further_held_out):
        WRITERS[ending](tmp_path / f"{split}.{ending}", glue_rows(task))
    raw = load_task(resolve_task(task, data_dir=tmp_path))
    assert set(raw.splits) == {"train", "held_out", *(["held_out_mismatched"] if task == "mnli" else [])}
    assert raw.label_names == spec.label_names
    assert (raw.metric, raw.also) == (spec.metric, spec.also)
    assert raw.splits["train"].labels.tolist() == [row["label"] for row in glue_rows(task)]
    assert len(raw.splits["train"].texts) == len(spec.text_columns)


def test_glue_tsv_has_no_quoting(tmp_path: Path) -> None:
    rows = [{"sentence": '"open quote', "label": 0}, {"sentence": 'it\'s "fine"', "label": 1}]
    for split in ("train", "validation"):
        write_tsv(tmp_path / f"{split}.tsv", rows)
    raw = load_task(resolve_task("sst2", data_dir=tmp_path))
    assert list(raw.splits["train"].texts[0]) == [row["sentence"] for row in rows]


def test_glue_labels_may_be_names(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        write_tsv(
            tmp_path / f"{split}.tsv", [{"sentence": "a", "label": "positive"}, {"sentence": "b", "label": "negative"}]
        )
    assert load_task(resolve_task("sst2", data_dir=tmp_path)).splits["train"].labels.tolist() == [1, 0]


def test_a_metric_can_be_chosen_where_it_fits(tmp_path: Path) -> None:
    source = resolve_task("mrpc", metric="f1")
    assert (source.spec.metric, source.spec.also) == ("f1", ())
    with pytest.raises(UsageError, match="does not fit stsb"):
        resolve_task("stsb", metric="accuracy")
    rows = [{"text": f"text {number}", "stars": "abc"[number % 3]} for number in range(9)]
    assert "f1 needs two classes" in refusal(write_csv(tmp_path / "r.csv", rows), metric="f1")
    assert "is not a number" in refusal(tmp_path / "r.csv", metric="pearson")
    with pytest.raises(UsageError, match="did you mean accuracy"):
        resolve_task("mrpc", metric="acuracy")


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("qpp", "did you mean qqp"),
        ("QQP", "did you mean qqp"),
        ("sst-2", "did you mean sst2"),
        ("no/such.csv", "allowed: cola"),
    ],
)
def test_an_unknown_task_is_refused_with_near_ones(task: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        resolve_task(task)


def test_options_that_do_not_belong_are_refused(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "r.csv", REVIEWS)
    assert "--data-dir applies to a GLUE task" in refusal(path, data_dir=tmp_path)
    for options in ({"text_columns": ["a"]}, {"label_column": "y"}, {"validation": path}):
        with pytest.raises(UsageError, match="leave it out"):
            resolve_task("sst2", **options)
    with pytest.raises(UsageError, match="leave it out"):
        resolve_task("demo", data_dir=tmp_path)


def test_missing_files_of_a_glue_task_are_named(tmp_path: Path) -> None:
    write_tsv(tmp_path / "train.tsv", glue_rows("mnli"))
    with pytest.raises(UsageError, match=r"no validation_matched\.\*"):
        resolve_task("mnli", data_dir=tmp_path)
    (tmp_path / "sst2").mkdir()
    with pytest.raises(UsageError, match="contains a folder sst2"):
        resolve_task("sst2", data_dir=tmp_path)
    with pytest.raises(UsageError, match="not a folder"):
        resolve_task("sst2", data_dir=tmp_path / "none")


def test_missing_columns_are_named_with_those_there(tmp_path: Path) -> None:
    for ending, writer in WRITERS.items():
        path = writer(tmp_path / f"r.{ending}", REVIEWS)
        assert "no column 'body'; its columns are: 'text' 'stars'" in refusal(path, text_columns=["body"])
        assert "no column 'label'" in refusal(path, label_column=None)
        assert "--text-columns A [B] is needed" in refusal(path, text_columns=[])
    assert "one or two columns" in refusal(path, text_columns=["text", "stars", "x"])
    assert "must be different" in refusal(path, text_columns=["text", "text"])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (["up", None, "down"], "1 of 3 labels in train are missing, the first in example 2"),
        ([1.0, float("nan"), 0.0], "1 of 3 labels in train are missing"),
        ([1, -1, 0], "1 of 3 labels in train are -1, which stands for a hidden label"),
        (["up", "up", "up"], "all 3 labels in train are 'up'; at least two classes"),
        (["p", "q", "r"], "3 different labels in 3 examples"),
    ],
)
def test_labels_that_cannot_be_learned_are_refused(tmp_path: Path, values: list[Any], said: str) -> None:
    rows = [{"text": f"text {number}", "stars": value} for number, value in enumerate(values)]
    assert said in refusal(write_jsonl(tmp_path / "r.jsonl", rows))


def test_an_empty_csv_cell_is_a_missing_label(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("text,stars\nfine,up\nbad,\n")
    assert "1 of 2 labels in train are missing, the first in example 2" in refusal(path)


def test_constant_and_unreadable_scores_are_refused(tmp_path: Path) -> None:
    constant = [{"text": f"text {number}", "stars": 2.5} for number in range(4)]
    assert "all 4 labels in train are 2.5" in refusal(write_jsonl(tmp_path / "a.jsonl", constant), metric="pearson")
    infinite = [{"text": f"text {number}", "stars": value} for number, value in enumerate(["1", "inf", "2"])]
    assert "'inf' in train is not a number" in refusal(write_csv(tmp_path / "b.csv", infinite), metric="pearson")


def test_labels_of_validation_must_be_known_from_train(tmp_path: Path) -> None:
    other = [{"text": "so so", "stars": "sideways"}, {"text": "good", "stars": "up"}]
    train, validation = write_csv(tmp_path / "a.csv", REVIEWS), write_csv(tmp_path / "b.csv", other)
    assert "1 labels in held_out are not among the classes, such as 'sideways'" in refusal(train, validation=validation)


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["a", None, "c"], "the text of example 2 in train is missing"),
        (["a", "  ", "c"], "example 2 in train has no text"),
        ([1, 2, 3], "holds no texts in train, but values such as 1"),
        (["1", "2.5", "-3"], "holds no texts in train, but values such as '1'"),
    ],
)
def test_texts_that_are_none_are_refused(tmp_path: Path, texts: list[Any], said: str) -> None:
    rows = [{"text": text, "stars": number % 2} for number, text in enumerate(texts)]
    assert said in refusal(write_jsonl(tmp_path / "r.jsonl", rows))


def test_one_empty_text_of_a_pair_is_allowed(tmp_path: Path) -> None:
    rows = [{"text": "a", "other": "", "stars": 0}, {"text": "b", "other": "c", "stars": 1}]
    assert list(load(write_csv(tmp_path / "r.csv", rows), text_columns=["text", "other"]).splits["train"].texts[1]) == [
        "",
        "c",
    ]


def test_no_example_and_one_example_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("text,stars\n")
    assert "there are no examples in train" in refusal(path)
    path.write_text("text,stars\nfine,up\n")
    assert "there is one example in train" in refusal(path)
    path.write_text("")
    assert "is empty" in refusal(path)


def test_files_that_are_not_what_their_ending_says_are_refused(tmp_path: Path) -> None:
    whole = write_parquet(tmp_path / "whole.parquet", REVIEWS).read_bytes()
    cases: dict[str, tuple[bytes, str]] = {
        "a.csv": (whole, "is a parquet file, not csv"),
        "d.csv": (b"text,stars\nfine,up,more\n", "line 2: 3 cells, but the header has 2"),
        "e.csv": (b"text,stars\n\xff\xfe\x00,up\n", "is not UTF-8 text"),
        "f.csv": (b"text,text\nfine,up\n", "two columns named 'text'"),
        "g.csv": (b'text,stars\n"fine,up\n', "is not a csv file"),
        "a.tsv": (b"text,stars\nfine,up\n", "separated by commas"),
        "a.jsonl": (b"text,stars\n", "line 1: not JSON"),
        "b.jsonl": (b'[{"text": "a"}]\n', "a list, not an object"),
        "a.parquet": (b"text,stars\nfine,up\n", "is not a parquet file"),
        "b.parquet": (whole[: len(whole) // 2], "is not a parquet file"),
        "a.json": (b"{}", "named .jsonl"),
        "a.xlsx": (b"PK", "allowed extensions are .csv .tsv .jsonl .parquet"),
    }
    for name, (content, said) in cases.items():
        (tmp_path / name).write_bytes(content)
        assert said in refusal(tmp_path / name), name


def test_the_digest_follows_the_content(tmp_path: Path) -> None:
    source = resolve_task(str(write_csv(tmp_path / "r.csv", REVIEWS)), text_columns=["text"], label_column="stars")
    before = task_digest(source)
    assert task_digest(source) == before
    write_csv(tmp_path / "r.csv", REVIEWS[:4])
    assert task_digest(source) != before


def test_file_digests_are_remembered_and_a_broken_memory_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_csv(tmp_path / "r.csv", REVIEWS)
    digest = file_digest(path)
    memory = tmp_path / "cache" / "budget-search" / "digests.json"
    remembered = json.loads(memory.read_text())
    assert list(remembered.values()) == [digest]
    memory.write_text(json.dumps(dict.fromkeys(remembered, "remembered")))
    assert file_digest(path) == "remembered"
    memory.write_text("{ broken")
    assert file_digest(path) == digest
    monkeypatch.setattr(digests, "_cache_file", lambda: path / "no folder" / "digests.json")
    assert file_digest(path) == digest


def test_the_demo_is_a_task_with_names_for_its_labels() -> None:
    raw = load_task(resolve_task("demo"))
    assert len(raw.label_names) == 2
    assert len(raw.splits["train"]) > len(raw.splits["held_out"]) > 0
    assert task_digest(resolve_task("demo")) == task_digest(resolve_task("demo"))


def cached_glue(cache: Path, task: str, commit: str) -> None:
    """What the hub's local cache looks like after a download of this task."""
    repository = cache / "datasets--nyu-mll--glue"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    folder = repository / "snapshots" / commit / task
    folder.mkdir(parents=True)
    rows = glue_rows(task)
    write_parquet(folder / "train-00000-of-00002.parquet", rows[:5])
    write_parquet(folder / "train-00001-of-00002.parquet", rows[5:])
    write_parquet(folder / "validation-00000-of-00001.parquet", rows[:4])


def test_a_cached_hub_task_needs_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    commit = "0123456789abcdef0123456789abcdef01234567"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    cached_glue(tmp_path, "sst2", commit)
    source = resolve_task("sst2")
    assert task_digest(source, offline=True) == commit
    raw = load_task(source, offline=True)
    assert {name: len(examples) for name, examples in raw.splits.items()} == {"train": 8, "held_out": 4}
    with pytest.raises(UsageError, match=r"nyu-mll/glue .*--data-dir DIR.*--offline"):
        load_task(resolve_task("cola"), offline=True)


def test_without_a_network_the_ways_out_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for task in (resolve_task("qqp"), resolve_task("hub:org/name:config", text_columns=["text"])):
        for ask in (task_digest, load_task):
            with pytest.raises(UsageError, match=r"Without a network: give local files \(train\.\* and validation\.\*"):
                ask(task, offline=True)  # type: ignore[operator]


def test_hub_tasks_are_read_from_their_name() -> None:
    source = resolve_task("hub:org/name:config", text_columns=["a", "b"], label_column="y", metric="f1")
    assert (source.name, source.hub) == ("hub:org/name:config", ("org/name", "config"))
    assert resolve_task("hub:name", text_columns=["a"]).hub == ("name", "")
    for wrong in ("hub:", "hub:a/b/c", "hub:a:b:c"):
        with pytest.raises(UsageError, match=r"hub:org/name\[:config\]"):
            resolve_task(wrong, text_columns=["a"])
    with pytest.raises(UsageError, match="needs --text-columns"):
        resolve_task("hub:org/name")


def test_a_hub_set_brings_its_class_names_and_its_test_split_if_that_has_labels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

    from budget_search.data import hub as hub_data

    def split(labels: list[int]) -> Dataset:
        features = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"]), "id": Value("int64")})
        rows = {"text": [f"text {row}" for row in range(len(labels))], "label": labels, "id": range(len(labels))}
        return Dataset.from_dict({name: list(values) for name, values in rows.items()}, features=features)

    source = resolve_task("hub:org/name", text_columns=["text"])
    splits = {"train": split([0, 1, 1, 0]), "test": split([1, 0])}
    monkeypatch.setattr(hub_data, "load_splits", lambda *_, **__: DatasetDict(splits))
    raw = load_task(source)
    assert raw.label_names == ("no", "yes")
    assert raw.splits["train"].labels.tolist() == [0, 1, 1, 0]
    assert len(raw.splits["held_out"]) == 2
    assert "test split" in raw.notes[0]

    splits["test"] = split([-1, -1])
    assert list(load_task(source).splits) == ["train"]
    splits["validation"] = split([-1, -1])
    with pytest.raises(UsageError, match="2 of 2 labels in held_out are -1"):
        load_task(source)
    with pytest.raises(UsageError, match=r"no column 'body'; its columns are: 'text' 'label' 'id'"):
        load_task(resolve_task("hub:org/name", text_columns=["body"]))
