"""Several labels per text: how they are read, scored, trained, searched and exported."""

from __future__ import annotations

import json
import random
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from sklearn.metrics import f1_score

from budget_search.core.errors import UsageError
from budget_search.data.kinds import kind_of
from budget_search.data.kinds.kind import Truth
from budget_search.data.loading import RawTask, load_task
from budget_search.data.splits import carve
from budget_search.data.tasks import resolve_task
from budget_search.engine.batches import SoftTargets
from budget_search.engine.loss import loss_of
from tests import tiny

KIND = kind_of("micro_f1")
NAMES = ("blame", "music", "praise")
LISTS = [{"text": "x y", "tags": ["b", "a"]}, {"text": "y z", "tags": []}, {"text": "z x", "tags": ["c"]}]
FLAGS = [{"text": "x y", "a": 1, "b": 1, "c": 0}, {"text": "y z", "a": 0, "b": 0, "c": 0},
         {"text": "z x", "a": 0, "b": 0, "c": 1}]  # fmt: skip
CODED = [[1, 1, 0], [0, 0, 0], [0, 0, 1]]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(path: Path, label: str = "tags", **options: Any) -> RawTask:
    return load_task(resolve_task(str(path), text_columns=["text"], label_column=label, **options))


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        load(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_lists_of_names_show_their_kind(tmp_path: Path, ending: str) -> None:
    raw = load(write(tmp_path / f"r.{ending}", LISTS))
    assert (raw.metric, raw.also, raw.label_names) == ("micro_f1", ("macro_f1",), ("a", "b", "c"))
    assert raw.splits["train"].labels.tolist() == CODED


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_columns_of_zeros_and_ones(tmp_path: Path, ending: str) -> None:
    raw = load(write(tmp_path / f"r.{ending}", FLAGS), "a,b,c")
    assert raw.label_names == ("a", "b", "c")
    assert raw.splits["train"].labels.tolist() == CODED
    assert raw.splits["train"].labels.dtype == np.float32


def test_lists_may_hold_a_flag_for_every_label(tmp_path: Path) -> None:
    rows = [{"text": f"x {number}", "tags": flags} for number, flags in enumerate(CODED)]
    raw = load(write(tmp_path / "r.jsonl", rows))
    assert raw.label_names == ("0", "1", "2")
    assert raw.splits["train"].labels.tolist() == CODED


def test_numbers_get_the_names_in_the_metadata(tmp_path: Path) -> None:
    """As the library datasets writes a List(ClassLabel(names=["a", "b", "c"]))."""
    feature = {"feature": {"names": ["a", "b", "c"], "_type": "ClassLabel"}, "_type": "List"}
    metadata = {"huggingface": json.dumps({"info": {"features": {"tags": feature}}})}
    table = pa.table({"text": ["x y", "y z", "z x"], "tags": [[0, 1], [], [2]]})
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "r.parquet")
    raw = load(tmp_path / "r.parquet")
    assert raw.label_names == ("a", "b", "c")
    assert raw.splits["train"].labels.tolist() == CODED


def test_what_cannot_be_labels_is_refused(tmp_path: Path) -> None:
    lists, flags = write(tmp_path / "l.jsonl", LISTS), write(tmp_path / "f.csv", FLAGS)
    assert "several labels per text are --kind multi-label" in refusal(lists, metric="accuracy")
    assert "--metric accuracy belongs to --kind classification" in refusal(lists, metric="accuracy", kind="multi-label")
    assert "unknown --kind labels" in refusal(lists, kind="labels")
    assert "no column 'd'" in refusal(flags, label="a,d")
    assert "is not a list of labels" in refusal(flags, label="a", kind="multi-label")
    assert "label of example 2 in train is 2" in refusal(write(tmp_path / "n.jsonl", [
        {"text": "x", "a": 0, "b": 1}, {"text": "y", "a": 2, "b": 1}, {"text": "z", "a": 1, "b": 1},
    ]), label="a,b")  # fmt: skip
    other = write(tmp_path / "o.jsonl", [{"text": "v", "tags": ["d"]}, *LISTS])
    assert "'d' in held_out is not among the labels" in refusal(lists, validation=other)
    with pytest.raises(UsageError, match="--kind applies to a file"):
        resolve_task("qqp", kind="multi-label")
    missing = write(tmp_path / "m.jsonl", [*LISTS, {"text": "w", "tags": None}])
    assert "1 of 4 labels in train are missing" in refusal(missing)
    assert len(load(missing, skip_incomplete=True).splits["train"]) == 3


def test_every_carved_split_has_the_rare_labels(tmp_path: Path) -> None:
    draw = random.Random(0)
    rows = [
        {"text": f"{number} {draw.random()}", "tags": ["often"] * (number % 2) + ["rare"] * (number % 20 == 0)}
        for number in range(1200)
    ]
    task = carve(load(write(tmp_path / "r.jsonl", rows)), "carved", 0)
    shares = {name: examples.labels.mean(axis=0) for name, examples in task.splits.items()}
    for share in shares.values():
        np.testing.assert_allclose(share, [0.5, 0.05], atol=0.02)


# -- scores ---------------------------------------------------------------------------------------------------------


def random_case(seed: int, examples: int = 80, labels: int = 5) -> tuple[np.ndarray, Truth]:
    draw = np.random.default_rng(seed)
    true = (draw.random((examples, labels)) < [0.5, 0.3, 0.1, 0.05, 0.0][:labels]).astype(np.float32)
    outputs = (true - 0.5 + draw.normal(0, 0.6, true.shape)).astype(np.float32)
    return outputs, Truth(true, np.ones(examples, dtype=np.int64), tuple("abcde"[:labels]))


@pytest.mark.parametrize("seed", range(3))
def test_f1_is_that_of_scikit_learn(seed: int) -> None:
    """The last label is neither true nor always predicted, which counts as 0."""
    outputs, truth = random_case(seed)
    measured = KIND.measure(("micro_f1", "macro_f1"), outputs, truth)
    for average in ("micro", "macro"):
        expected = 100 * f1_score(truth.labels, outputs > 0, average=average, zero_division=0)
        assert measured[f"{average}_f1"] == pytest.approx(expected)
        assert KIND.contributions(f"{average}_f1", outputs, truth).mean() == pytest.approx(expected)


@pytest.mark.parametrize("metric", ["micro_f1", "macro_f1"])
def test_contributions_have_the_standard_error_of_the_score(metric: str) -> None:
    outputs, truth = random_case(0, 600, 4)
    ours = np.std(KIND.contributions(metric, outputs, truth)) / np.sqrt(600)
    draws = np.random.default_rng(1).integers(0, 600, (400, 600))
    scores = [
        KIND.measure((metric,), outputs[rows], Truth(truth.labels[rows], truth.sizes, truth.names))[metric]
        for rows in draws
    ]
    assert ours == pytest.approx(np.std(scores), rel=0.15)


@pytest.mark.parametrize("metric", ["micro_f1", "macro_f1"])
@pytest.mark.parametrize("seed", range(3))
def test_no_constant_set_of_labels_beats_the_constant_answer(metric: str, seed: int) -> None:
    _, truth = random_case(seed)

    def score(outputs: np.ndarray) -> float:
        return KIND.measure((metric,), outputs, truth)[metric]

    constants = [np.tile(np.array(each) - 0.5, (80, 1)) for each in product((0, 1), repeat=5)]
    assert score(KIND.constant_outputs(metric, truth)) == pytest.approx(max(map(score, constants)))
    assert all(KIND.collapsed(each, truth) for each in constants)
    assert not KIND.collapsed(truth.labels - 0.5, truth)


def test_a_set_of_labels_is_one_answer() -> None:
    truth = Truth(np.array([[1, 1], [0, 0], [0, 1]], dtype=np.float32), np.ones(3, dtype=np.int64), ("a", "b"))
    said = KIND.answers([np.array([[1.0, 1.0], [-1.0, 2.0], [-1.0, 2.0]])], truth)
    named = [[said.names[number] for number in each] for each in (said.labels, said.models[0])]
    assert named == [["a, b", "none", "b"], ["a, b", "b", "b"]]


def test_a_rare_label_is_counted_by_share() -> None:
    _, truth = random_case(0)
    assert KIND.label_shares(truth) == pytest.approx(dict(zip("abcde", truth.labels.mean(axis=0), strict=True)))


# -- training -------------------------------------------------------------------------------------------------------


def test_the_loss_is_that_of_the_models_own_head(bert: Path) -> None:
    from budget_search.models.pretrained import load_pretrained

    model, _ = load_pretrained(bert, name="bert", kind=KIND, label_names=NAMES, pad_token=0)
    assert model.config.id2label == dict(enumerate(NAMES))
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    with torch.no_grad():
        own = model.eval()(input_ids=torch.tensor([[5, 6, 7], [8, 9, 10]]), labels=labels)
    assert loss_of(own.logits, labels) == pytest.approx(own.loss.item())
    truth = Truth(labels.numpy(), np.ones(2, dtype=np.int64), NAMES)
    assert KIND.mean_loss(own.logits.numpy(), truth) == pytest.approx(own.loss.item(), rel=1e-5)


def test_soft_labels_pull_towards_themselves() -> None:
    """Each label for itself: where a softmax would not see that all logits are too large."""
    labels, teacher = torch.zeros(4, 3), torch.randn(4, 3)
    soft = SoftTargets(teacher, 1.0)
    assert loss_of(teacher, labels, soft) == pytest.approx(0, abs=1e-6)
    assert loss_of(teacher + 2, labels, soft) > 0.1


# -- the whole way --------------------------------------------------------------------------------------------------


def remarks(count: int, seed: int) -> list[dict[str, Any]]:
    """Texts about music or not, with praise, blame, both or neither; words say which."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        labels = [name for name in NAMES if draw.random() < 0.3]
        words = draw.choices([word for word in tiny.FILLERS if word != "music"], k=4)
        for label in labels:
            words += draw.choices({"praise": tiny.GOOD, "blame": tiny.BAD}.get(label, [label]), k=2)
        draw.shuffle(words)
        rows.append({"text": " ".join(words), "labels": labels})
    return rows


def test_from_a_file_to_a_checkpoint(tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import pipeline

    from budget_search import read_report

    monkeypatch.chdir(tmp_path)
    write(tmp_path / "remarks.parquet", remarks(500, 1))
    write(tmp_path / "check.jsonl", remarks(120, 2))
    command = [
        "--task", "remarks.parquet", "--validation", "check.jsonl", "--text-columns", "text", "--label-column",
        "labels", "--model", str(bert), "--layers", "0-1", "--delta", "0.9", "--output", "out", "--quiet", *tiny.RECIPE,
        "--distil", "0.5", "--epochs", "10", "--train-examples", "320", "--seeds", "1",
    ]  # fmt: skip
    assert tiny.command(*command) == 0
    study = tiny.only_study(tmp_path / "studies")
    report = read_report(study)
    assert report.metric == "micro_f1"
    assert set(report.baseline.metrics) == {"micro_f1", "macro_f1"}
    assert report.baseline.score > (report.baseline.constant_score or 100) + 15
    (result,) = report.results
    assert result.depth == 2
    assert set(report.splits["held_out"].label_shares) == set(NAMES)

    ask = pipeline("text-classification", "out", top_k=None, device="cpu")
    assert ask.model.config.problem_type == "multi_label_classification"
    rows = remarks(60, 3)
    right = 0
    for row, said in zip(rows, ask([row["text"] for row in rows]), strict=True):
        assert {each["label"] for each in said} == set(NAMES)
        right += len({each["label"] for each in said if each["score"] > 0.5} ^ {*row["labels"]}) == 0
    assert right > 20
    card = (tmp_path / "out" / "README.md").read_text()
    assert "top_k=None" in card
    assert tiny.command("inspect", study.name, "--model", str(bert)) == 0
