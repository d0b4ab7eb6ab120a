"""Tables as people have them: separators, encodings, compression, shards, incomplete rows, odd labels and texts."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from budget_search.core.errors import UsageError
from budget_search.data.loading import RawTask, load_task
from budget_search.data.tasks import resolve_task, task_digest
from tests.test_tasks import REVIEWS, load, refusal, write_csv, write_jsonl, write_parquet

TEXTS = ["Grüße, Welt", "naïve; again", "a | b", 'said "yes"']
STARS = ["up", "down", "up", "down"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(path: Path, separator: str = ",", encoding: str = "utf-8") -> Path:
    with path.open("w", encoding=encoding, newline="") as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerow(["text", "stars"])
        writer.writerows(zip(TEXTS, STARS, strict=True))
    return path


def texts_of(raw: RawTask, split: str = "train") -> list[str]:
    return list(raw.splits[split].texts[0])


# -- separators ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("separator", "name"), [(",", None), (";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars")]
)
def test_the_separator_of_a_csv_file_is_recognised_and_told(tmp_path: Path, separator: str, name: str | None) -> None:
    raw = load(write(tmp_path / "r.csv", separator))
    assert texts_of(raw) == TEXTS
    assert raw.label_names == ("down", "up")
    assert raw.notes == (() if name is None else (f"r.csv was read with columns separated by {name}.",))


def test_a_separator_inside_some_cells_misleads_nobody(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("text,stars\none; two,up\none; two,down\n")
    assert texts_of(load(tmp_path / "r.csv")) == ["one; two"] * 2


def test_two_possible_separators_are_refused_with_both_readings(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("text,more;stars\na,b;up\nc,d;down\n")
    said = refusal(tmp_path / "r.csv")
    assert "commas (text more;stars) or semicolons (text,more stars)" in said
    assert "quotation marks" in said


def test_a_row_that_does_not_fit_is_named_whatever_the_separator(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text("text;stars\na;up\nb;down;left\n")
    assert "line 3: 3 cells, but the header has 2" in refusal(tmp_path / "r.csv")


# -- encodings ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_unicode_encodings_are_recognised(tmp_path: Path, encoding: str) -> None:
    raw = load(write(tmp_path / "r.csv", encoding=encoding))
    assert texts_of(raw) == TEXTS
    assert raw.notes == (("r.csv was read as utf-16.",) if encoding == "utf-16" else ())


def test_another_encoding_is_refused_with_the_option_to_name_it(tmp_path: Path) -> None:
    path = write(tmp_path / "r.csv", ";", "cp1252")
    said = refusal(path)
    assert "r.csv is not UTF-8 text" in said
    assert "--encoding cp1252" in said
    raw = load(path, encoding="cp1252")
    assert texts_of(raw) == TEXTS
    assert raw.notes == ("r.csv was read as cp1252, with columns separated by semicolons.",)


def test_an_encoding_that_does_not_fit_or_exist_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "r.csv")
    assert "--encoding klingon: no such encoding" in refusal(path, encoding="klingon")
    assert "is not ascii text" in refusal(path, encoding="ascii")


def test_the_same_file_in_another_encoding_is_another_study(tmp_path: Path) -> None:
    path = write(tmp_path / "r.csv")
    sources = [
        resolve_task(str(path), text_columns=["text"], label_column="stars", **how)
        for how in ({}, {"encoding": "latin-1"}, {"skip_incomplete": True})
    ]
    assert len({task_digest(source) for source in sources}) == 3


# -- compressed files and shards ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "compress"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress)])
@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_compressed_files_are_read(
    tmp_path: Path, ending: str, suffix: str, compress: Callable[[bytes], bytes]
) -> None:
    writer = {"csv": write_csv, "jsonl": write_jsonl, "parquet": write_parquet}[ending]
    plain = writer(tmp_path / f"plain.{ending}", REVIEWS)
    packed = tmp_path / f"reviews.{ending}.{suffix}"
    packed.write_bytes(compress(plain.read_bytes()))
    assert texts_of(load(packed)) == texts_of(load(plain))


def test_a_damaged_compressed_file_is_refused(tmp_path: Path) -> None:
    whole = gzip.compress(b"text,stars\n" + b"fine,up\nbad,down\n" * 5000)
    (tmp_path / "r.csv.gz").write_bytes(whole[: len(whole) // 2])
    assert "r.csv.gz cannot be decompressed" in refusal(tmp_path / "r.csv.gz")


def test_shards_are_read_in_order_and_incomplete_ones_refused(tmp_path: Path) -> None:
    folder = tmp_path / "reviews"
    folder.mkdir()
    for number in range(3):
        rows = [{"text": f"text {number} {row}", "stars": row % 2} for row in range(4)]
        write_parquet(folder / f"train-{number:05d}-of-00003.parquet", rows)
    write_csv(folder / "validation.csv", [{"text": "c", "stars": 0}, {"text": "d", "stars": 1}])
    raw = load(folder)
    assert texts_of(raw) == [f"text {number} {row}" for number in range(3) for row in range(4)]
    assert texts_of(raw, "held_out") == ["c", "d"]
    (folder / "train-00001-of-00003.parquet").unlink()
    assert "holds 2 of the 3 shards of train" in refusal(folder)


def test_files_beside_those_of_a_split_are_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "reviews"
    folder.mkdir()
    write_csv(folder / "train.csv", REVIEWS)
    for name in ("train.backup.csv", "train-old.csv", "train.txt", "train.csv.bak", "training.csv"):
        (folder / name).write_text("other")
    assert len(load(folder).splits["train"]) == len(REVIEWS)
    (folder / "train.csv.gz").write_bytes(gzip.compress((folder / "train.csv").read_bytes()))
    assert "train.csv and train.csv.gz; keep only one of them" in refusal(folder)


@pytest.mark.parametrize("ending", ["xlsx", "ods"])
def test_a_spreadsheet_is_refused_with_the_export_to_make(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"r.{ending}").write_bytes(b"PK")
    assert "export the sheet as csv" in refusal(tmp_path / f"r.{ending}")


# -- incomplete examples ------------------------------------------------------------------------------------------


def incomplete(path: Path) -> Path:
    rows: list[dict[str, Any]] = [{"text": f"text {row}", "stars": row % 2} for row in range(20)]
    rows[3]["text"], rows[4]["text"], rows[7]["stars"], rows[9]["stars"] = None, "  ", None, ""
    return write_jsonl(path, rows)


def test_incomplete_examples_are_refused_or_left_out_and_counted(tmp_path: Path) -> None:
    path = incomplete(tmp_path / "r.jsonl")
    assert "--skip-incomplete" in refusal(path)
    raw = load(path, skip_incomplete=True)
    assert texts_of(raw) == [f"text {row}" for row in range(20) if row not in (3, 4, 7, 9)]
    assert raw.notes == ("4 of 20 examples in train have no text or no label and were left out.",)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"text": "", "stars": 0}, {"text": "b", "stars": 1}], "has no text"),
        ([{"text": "a", "stars": None}, {"text": "b", "stars": 1}], "labels in train are missing"),
    ],
)
def test_every_refusal_of_an_incomplete_example_names_the_option(tmp_path: Path, rows: Any, said: str) -> None:
    message = refusal(write_jsonl(tmp_path / "r.jsonl", rows))
    assert said in message
    assert "--skip-incomplete" in message


def test_a_pair_with_one_empty_text_is_complete(tmp_path: Path) -> None:
    rows = [{"text": "a", "other": "", "stars": 0}, {"text": "b", "other": "c", "stars": 1}]
    path = write_csv(tmp_path / "r.csv", rows)
    assert len(load(path, text_columns=["text", "other"], skip_incomplete=True).splits["train"]) == 2


# -- labels -------------------------------------------------------------------------------------------------------


def labelled(path: Path, labels: list[Any]) -> Path:
    return write_jsonl(path, [{"text": f"text {row}", "stars": label} for row, label in enumerate(labels)])


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["0.0", "1.0"] * 5, ("0", "1")),
        ([0.0, 1.0] * 5, ("0", "1")),
        ([1.0, 2.0, 3.0, 4.0, 5.0] * 2, ("1", "2", "3", "4", "5")),
        ([1, 3, 7] * 4, ("1", "3", "7")),
        ([True, False] * 5, ("False", "True")),
        (["None", "yes"] * 5, ("None", "yes")),
        (["2024-01-02", "2024-02-01"] * 5, ("2024-01-02", "2024-02-01")),
        ([f"class {row}" for row in range(500)] * 3, tuple(sorted(f"class {row}" for row in range(500)))),
    ],
    ids=str,
)
def test_labels_that_are_classes(tmp_path: Path, labels: list[Any], names: tuple[str, ...]) -> None:
    raw = load(labelled(tmp_path / "r.jsonl", labels))
    assert raw.label_names == names
    assert [raw.label_names[number] for number in raw.splits["train"].labels[: len(names)]] == [
        str(int(label)) if isinstance(label, float) else str(label).removesuffix(".0") for label in labels[: len(names)]
    ]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([0.5, 1.0] * 5, "holds decimals, such as 0.5"),
        ([float(row) for row in range(12)] * 2, "accuracy for classes that are whole numbers"),
        ([{"a": 1}, {"a": 2}] * 5, "one label per example"),
    ],
    ids=str,
)
def test_labels_that_are_none(tmp_path: Path, labels: list[Any], said: str) -> None:
    assert said in refusal(labelled(tmp_path / "r.jsonl", labels))


def test_many_whole_numbers_are_classes_where_the_metric_says_so(tmp_path: Path) -> None:
    path = labelled(tmp_path / "r.jsonl", [float(row) for row in range(12)] * 2)
    assert load(path, metric="accuracy").label_names == tuple(map(str, range(12)))
    assert load(path, metric="spearman").label_names == ()


def test_lists_are_no_scores_either(tmp_path: Path) -> None:
    assert "holds lists or records" in refusal(labelled(tmp_path / "r.jsonl", [[0.5], [1.0]] * 3), metric="pearson")


def test_class_names_of_a_data_set_saved_as_parquet_are_read(tmp_path: Path) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "stars": datasets.ClassLabel(names=["neg", "pos"])})
    rows = {"text": ["a", "b", "c"], "stars": [1, 0, 1]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "r.parquet")
    raw = load(tmp_path / "r.parquet")
    assert raw.label_names == ("neg", "pos")
    assert raw.splits["train"].labels.tolist() == [1, 0, 1]


@pytest.mark.parametrize("metadata", [b"not json", b"[]", b'{"info": {"features": {"stars": {"names": null}}}}'])
def test_metadata_that_names_no_classes_is_no_error(tmp_path: Path, metadata: bytes) -> None:
    table = pa.Table.from_pylist([{"text": "a", "stars": 0}, {"text": "b", "stars": 1}])
    pq.write_table(table.replace_schema_metadata({b"huggingface": metadata}), tmp_path / "r.parquet")
    assert load(tmp_path / "r.parquet").label_names == ("0", "1")


def test_a_validation_label_that_train_lacks_is_refused(tmp_path: Path) -> None:
    train = labelled(tmp_path / "r.jsonl", ["a", "b"] * 3)
    validation = labelled(tmp_path / "v.jsonl", ["a", "c"])
    assert "1 labels in held_out are not among the classes, such as 'c'" in refusal(train, validation=str(validation))


# -- texts --------------------------------------------------------------------------------------------------------


def test_odd_texts_arrive_unchanged(tmp_path: Path) -> None:
    texts = [
        "two\nlines, quoted",
        "a mark \ufeff inside",
        "👩‍👩‍👧 and שלום and مرحبا",
        "word " * 20_000,
        "cafe\u0301",
        "caf\u00e9",
        "a null \x00 inside",
    ]
    rows = [{"text": text, "stars": row % 2} for row, text in enumerate(texts)]
    assert texts_of(load(write_jsonl(tmp_path / "r.jsonl", rows))) == texts
    assert texts_of(load(write_parquet(tmp_path / "r.parquet", rows))) == texts
    assert texts_of(load(write_csv(tmp_path / "r.csv", rows[:-1]))) == texts[:-1]


@pytest.mark.parametrize("column", ["labels", "label_ids", "input_ids", "idx", "text label"])
def test_column_names_that_models_use_mean_nothing_here(tmp_path: Path, column: str) -> None:
    path = write_csv(tmp_path / "r.csv", [{"text": "a", column: "x"}, {"text": "b", column: "y"}])
    assert load(path, label_column=column).label_names == ("x", "y")


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    table = pa.table([["a", "b"], ["c", "d"], [0, 1]], names=["text", "text", "stars"])
    pq.write_table(table, tmp_path / "r.parquet")
    # Of two values JSON keeps the last.
    (tmp_path / "r.jsonl").write_text('{"text": "a", "stars": 0, "stars": 1}\n' * 4)
    (tmp_path / "r.csv").write_text("text,text,stars\na,b,0\nc,d,1\n")
    for name, column in (("r.parquet", "text"), ("r.jsonl", "stars"), ("r.csv", "text")):
        assert f"{name} has two columns named '{column}'" in refusal(tmp_path / name)


def test_an_unclosed_quotation_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.csv").write_text('text,stars\n"a,up\nb,down\n')
    assert "a quotation is not closed" in refusal(tmp_path / "r.csv")


@pytest.mark.parametrize("options", [{"encoding": "cp1252"}, {"skip_incomplete": True}])
def test_the_options_of_tables_are_refused_for_built_in_tasks(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="not to --task demo"):
        load_task(resolve_task("demo", **options))
    if "encoding" in options:
        with pytest.raises(UsageError, match="applies to a file"):
            resolve_task("hub:a/b", text_columns=["text"], **options)


def test_a_jsonl_file_of_utf_16_is_read(tmp_path: Path) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in REVIEWS)
    (tmp_path / "r.jsonl").write_text(lines, encoding="utf-16")
    assert texts_of(load(tmp_path / "r.jsonl")) == [row["text"] for row in REVIEWS]
