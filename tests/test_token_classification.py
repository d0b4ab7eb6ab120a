"""A tag per word: how sentences are read, encoded, scored, trained, searched and exported."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from budget_search.core.errors import UsageError
from budget_search.data.kinds import kind_of
from budget_search.data.kinds.kind import IGNORED, Truth
from budget_search.data.kinds.token_classification import find_spans
from budget_search.data.loading import RawTask, load_task
from budget_search.data.splits import SplitTask, carve
from budget_search.data.tasks import resolve_task
from budget_search.data.tokenization import EncodedTask, encode
from budget_search.engine.batches import DeviceSplit
from budget_search.engine.device import Device
from budget_search.engine.finetune import predict
from budget_search.engine.last_layer import find_tail
from budget_search.engine.loss import loss_of
from budget_search.models.pretrained import PretrainedSource, load_pretrained, load_tokenizer
from tests import tiny

KIND = kind_of("entity_f1")
NAMES = ("B-LOC", "B-PER", "I-LOC", "I-PER", "O")
PEOPLE = ("anna", "boris", "clara", "dimitri", "elena")
PLACES = ("aachen", "bergen", "cadiz", "dover", "essen")
Sentence = tuple[list[str], list[str]]


def sentences(count: int, seed: int) -> list[Sentence]:
    """A grammar of a person with one or two names who is in a place or not, and words that are no names."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        person, place = draw.choices(PEOPLE, k=draw.randint(1, 2)), draw.choices(PLACES, k=draw.randint(1, 2))
        parts = [(person, "PER"), (draw.choices(tiny.FILLERS, k=draw.randint(1, 3)), ""), (place, "LOC"),
                 (draw.choices(tiny.FILLERS, k=draw.randint(0, 3)), "")]  # fmt: skip
        kept = [part for part in parts if not part[1] or draw.random() < 0.75]
        words = [word for part, _ in kept for word in part]
        tags = [f"{'IB'[not n]}-{kind}" if kind else "O" for part, kind in kept for n in range(len(part))]
        made.append((words, tags))
    return made


def conll(made: Sequence[Sentence]) -> str:
    return "\n".join("".join(f"{w} x {t}\n" for w, t in zip(words, tags, strict=True)) for words, tags in made)


def write(path: Path, made: Sequence[Sentence]) -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"words": words, "tags": tags}) + "\n" for words, tags in made))
    else:
        path.write_text(conll(made))
    return path


def load(path: Path, **options: Any) -> RawTask:
    if path.suffix == ".jsonl":
        options = {"text_columns": ["words"], "label_column": "tags", **options}
    return load_task(resolve_task(str(path), **options))


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        load(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def tags_of(raw: RawTask, split: str = "train") -> list[list[str]]:
    return [[raw.label_names[tag] for tag in tags] for tags in raw.splits[split].labels]


# -- reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["conll", "txt", "jsonl"])
def test_every_kind_of_file_says_the_same(tmp_path: Path, ending: str) -> None:
    made = sentences(30, 0)
    raw = load(write(tmp_path / f"train.{ending}", made))
    assert (raw.metric, raw.also, raw.label_names) == ("entity_f1", ("token_accuracy",), NAMES)
    assert raw.splits["train"].texts[0] == [" ".join(words) for words, _ in made]
    assert tags_of(raw) == [tags for _, tags in made]


def test_documents_and_comments_are_no_sentences_but_a_hash_is_a_word(tmp_path: Path) -> None:
    first = "-DOCSTART- -X- O\n\n# id = 1 domain=x y\nanna NN B-PER\n# NN O\n\n\n"
    (tmp_path / "t.conll").write_text(f"{first}# only a comment\n\nin\tNN\tO\nnew york\tNN\tB-LOC\n")
    raw = load(tmp_path / "t.conll")
    assert raw.splits["train"].texts[0] == ["anna #", "in new\N{NO-BREAK SPACE}york"]
    assert tags_of(raw) == [["B-PER", "O"], ["O", "B-LOC"]]


def test_a_text_file_beside_a_table_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\ngood,1\nbad,0\n")
    (tmp_path / "train.txt").write_text("notes\n")
    assert load(tmp_path, text_columns=["text"]).metric == "accuracy"


def test_cells_of_text_are_split_at_spaces(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,tags\nanna sang,B-PER O\n in  bergen ,O B-LOC\n")
    raw = load(tmp_path / "t.csv", text_columns=["text"], label_column="tags", kind="token-classification")
    assert tags_of(raw) == [["B-PER", "O"], ["O", "B-LOC"]]


def test_what_cannot_be_tagged_is_refused(tmp_path: Path) -> None:
    made = sentences(10, 0)
    words, tags = made[0]
    short = write(tmp_path / "short.jsonl", [*made, (words, tags[1:])])
    assert f"example 11 in train has {len(words)} words and {len(tags) - 1} tags" in refusal(short)
    speech = write(tmp_path / "speech.jsonl", [(["a", "b"], ["DET", "NOUN"])] * 3)
    assert "'DET' is none" in refusal(speech)
    assert load(speech, metric="token_accuracy").label_names == ("DET", "NOUN")
    (tmp_path / "bare.conll").write_text("anna B-PER\nsang\n")
    assert "bare.conll, line 2: 'sang' alone" in refusal(tmp_path / "bare.conll")
    assert "one --text-columns" in refusal(short, text_columns=["words", "tags"], label_column="x")
    empty = write(tmp_path / "empty.jsonl", [*made, ([], [])])
    assert "example 11 in train has no text" in refusal(empty)
    assert len(load(empty, skip_incomplete=True).splits["train"]) == 10


# -- encoding -------------------------------------------------------------------------------------------------------


def encoded(folder: Path, made: Sequence[Sentence], bert: Path, max_length: int = 32) -> EncodedTask:
    raw = load(write(folder / "few.jsonl", made))
    task = SplitTask({"train": raw.splits["train"], "held_out": raw.splits["train"]}, raw.label_names, raw.metric)
    tokenizer = load_tokenizer(PretrainedSource("bert", bert, ""), of_words=True)
    return encode(task, tokenizer, max_length=max_length, takes_segments=True)


def test_the_first_token_of_a_word_has_its_tag(tmp_path: Path, bert: Path) -> None:
    """`anna` is four tokens of one letter, `film` is one token."""
    task = encoded(tmp_path, [(["anna", "film"], ["B-PER", "O"]), (["film"], ["O"])], bert)
    split = task.splits["train"]
    assert split.offsets.tolist() == [0, 7, 10]
    assert split.labels.tolist() == [IGNORED, 0, IGNORED, IGNORED, IGNORED, 1, IGNORED, IGNORED, 1, IGNORED]
    truth = task.truth("train")
    assert (truth.labels.tolist(), truth.sizes.tolist()) == ([0, 1, 1], [2, 1])
    assert split.examples == 2
    task.save(tmp_path / "task.npz")
    again = EncodedTask.load(tmp_path / "task.npz")
    np.testing.assert_array_equal(again.splits["train"].labels, split.labels)


def test_words_that_are_cut_off_are_not_scored(tmp_path: Path, bert: Path) -> None:
    task = encoded(tmp_path, [(["film", "anna", "anna"], ["O", "B-PER", "I-PER"])] * 2, bert, max_length=7)
    assert task.truth("train").sizes.tolist() == [2, 2]


def test_a_tokenizer_with_spaces_in_its_tokens_sees_the_space_before_each_word(tmp_path: Path) -> None:
    from transformers import RobertaTokenizer

    symbols = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "a", "b", "\u0120", "\u0120a", "\u0120b"]
    vocab = {symbol: number for number, symbol in enumerate(symbols)}
    RobertaTokenizer(vocab=vocab, merges=[("\u0120", "a"), ("\u0120", "b")]).save_pretrained(tmp_path)
    source = PretrainedSource("roberta", tmp_path, "")
    words, glued = (load_tokenizer(source, of_words=each) for each in (True, False))
    ids = words(["a", "b"], is_split_into_words=True)["input_ids"]
    assert words.convert_ids_to_tokens(ids) == ["<s>", "\u0120a", "\u0120b", "</s>"]
    assert glued.convert_ids_to_tokens(glued("a b")["input_ids"]) == ["<s>", "a", "\u0120b", "</s>"]
    words.save_pretrained(tmp_path / "study")
    again = load_tokenizer(PretrainedSource("roberta", tmp_path / "study", ""))
    assert again("a b")["input_ids"] == ids


def test_every_carved_split_has_the_rare_tags(tmp_path: Path) -> None:
    made = [([f"w{number}", "anna"], ["O", "B-PER" if number % 20 == 0 else "O"]) for number in range(1200)]
    task = carve(load(write(tmp_path / "r.jsonl", made)), "carved", 0)
    names = list(task.label_names)
    for examples in task.splits.values():
        with_name = np.mean([names.index("B-PER") in tags for tags in examples.labels])
        assert with_name == pytest.approx(0.05, abs=0.02)


def test_sentences_that_all_have_the_same_tags_can_be_carved(tmp_path: Path) -> None:
    made = [([f"w{number}", "anna"], ["O", "B-PER"]) for number in range(400)]
    task = carve(load(write(tmp_path / "r.jsonl", made)), "carved", 0)
    assert all(len(examples) >= 8 for examples in task.splits.values())


# -- scores ---------------------------------------------------------------------------------------------------------


def logits(tags: Sequence[int], names: Sequence[str] = NAMES) -> np.ndarray:
    return np.eye(len(names), dtype=np.float32)[list(tags)]


def spans(tags: str) -> list[tuple[str, int, int]]:
    """Of one sentence."""
    names = tuple(sorted({*tags.split()}))
    found = find_spans(np.array([names.index(tag) for tag in tags.split()]), np.array([len(tags.split())]), names)
    kinds = [tags.split()[first][2:] for first in found.first]
    return list(zip(kinds, found.first.tolist(), found.last.tolist(), strict=True))


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-PER I-PER O B-LOC", [("PER", 0, 1), ("LOC", 3, 3)]),
        ("I-PER I-PER B-PER O", [("PER", 0, 1), ("PER", 2, 2)]),  # IOB1, as in the English CoNLL-2003
        ("B-PER I-LOC I-LOC", [("PER", 0, 0), ("LOC", 1, 2)]),
        ("B-A I-A E-A S-A S-B O E-B", [("A", 0, 2), ("A", 3, 3), ("B", 4, 4), ("B", 6, 6)]),
        ("B-A L-A U-A U-A", [("A", 0, 1), ("A", 2, 2), ("A", 3, 3)]),
        ("B I O B", [("", 0, 1), ("", 3, 3)]),
        ("O O", []),
    ],
)
def test_spans_are_found_by_the_rules_of_conlleval(tags: str, expected: list[tuple[str, int, int]]) -> None:
    assert spans(tags) == expected


# What seqeval 1.2.2 says of the sentences of `random_tags(seed)`: f1_score(true, predicted), in its default mode.
SEQEVAL = {0: 0.7555555555555555, 1: 0.7112970711297071, 2: 0.7566539923954373, 3: 0.7261904761904762}


def random_tags(seed: int) -> tuple[Truth, np.ndarray]:
    """Tags of 60 sentences that obey no scheme, and predictions of which two thirds are right."""
    draw = random.Random(seed)
    names = ("B-LOC", "B-PER", "E-PER", "I-LOC", "I-PER", "O", "S-LOC")
    sizes = [draw.randint(1, 9) for _ in range(60)]
    true = [draw.randrange(len(names)) for _ in range(sum(sizes))]
    said = [tag if draw.random() < 2 / 3 else draw.randrange(len(names)) for tag in true]
    return Truth(np.array(true), np.array(sizes), names), np.array(said)


@pytest.mark.parametrize("seed", SEQEVAL)
def test_entity_f1_is_that_of_seqeval(seed: int) -> None:
    truth, said = random_tags(seed)
    outputs = logits(said, truth.names)
    assert KIND.measure(("entity_f1",), outputs, truth)["entity_f1"] == pytest.approx(100 * SEQEVAL[seed], abs=1e-9)
    for metric in ("entity_f1", "token_accuracy"):
        values = KIND.contributions(metric, outputs, truth)
        assert values.shape == (60,)
        assert values.mean() == pytest.approx(KIND.measure((metric,), outputs, truth)[metric])


def test_a_span_does_not_go_on_in_the_next_sentence() -> None:
    truth = Truth(np.array([1, 3, 4]), np.array([1, 2]), NAMES)
    found = find_spans(truth.labels, truth.sizes, NAMES)
    assert (found.first.tolist(), found.last.tolist()) == ([0, 1], [0, 1])
    assert KIND.measure(("entity_f1",), logits([1, 1, 4]), truth)["entity_f1"] == 100.0
    nothing = Truth(np.array([1, 3, 4]), np.array([0, 1, 0, 2, 0]), NAMES)
    np.testing.assert_allclose(KIND.contributions("entity_f1", logits([1, 1, 4]), nothing), 100.0)


def test_everything_outside_is_the_constant_answer() -> None:
    truth = Truth(np.array([1, 3, 4, 4, 4, 4]), np.array([3, 3]), NAMES)
    outside = KIND.constant_outputs("token_accuracy", truth)
    assert KIND.measure(("token_accuracy",), outside, truth)["token_accuracy"] == pytest.approx(100 * 4 / 6)
    best = KIND.constant_outputs("entity_f1", truth)
    assert KIND.measure(("entity_f1",), best, truth)["entity_f1"] == 0
    assert KIND.collapsed(outside, truth)
    assert not KIND.collapsed(logits(truth.labels), truth)


def test_answers_are_named_by_their_spans() -> None:
    truth = Truth(np.array([1, 3, 4, 0, 4]), np.array([4, 1]), NAMES)
    said = KIND.answers([logits([1, 4, 4, 0, 0])], truth)
    assert [said.names[number] for number in said.labels] == ["PER 1-2, LOC 4", "none"]
    assert [said.names[number] for number in said.models[0]] == ["PER 1, LOC 4", "LOC 1"]


# -- training -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory, bert: Path) -> EncodedTask:
    return encoded(tmp_path_factory.mktemp("few"), sentences(40, 3), bert)


def model_of(task: EncodedTask, folder: Path) -> Any:
    model, _ = load_pretrained(folder, name="m", kind=KIND, label_names=task.label_names, pad_token=task.pad_token)
    return model.eval()


def test_the_loss_of_a_batch_is_that_of_the_models_own_head(task: EncodedTask, bert: Path) -> None:
    """The mean over all labelled tokens: a long sentence weighs more than a short one."""
    model, split = model_of(task, bert), DeviceSplit.of(task, task.splits["train"], "cpu")
    rows, length = torch.arange(12), split.longest(np.arange(12))
    labels = split.labels_of(rows, length)
    with torch.no_grad():
        own = model(**split.inputs(rows, length), labels=labels)
    assert loss_of(own.logits, labels, weights=split.weights(rows)) == pytest.approx(own.loss.item())
    filled = torch.cat([rows, rows[:3]])
    counted = torch.tensor([1.0] * 12 + [0.0] * 3)
    with torch.no_grad():
        logits = model(**split.inputs(filled, length)).logits
    loss = loss_of(logits, split.labels_of(filled, length), weights=split.weights(filled, counted))
    assert loss == pytest.approx(own.loss.item())


@pytest.mark.parametrize("pad_left", [False, True])
def test_labels_are_padded_as_the_tokens_are(task: EncodedTask, pad_left: bool) -> None:
    encoded_split = task.splits["train"]
    split = dataclasses.replace(DeviceSplit.of(task, encoded_split, "cpu"), pad_left=pad_left)
    rows = torch.tensor([7, 0, 39])
    length = split.longest(rows.numpy()) + 2
    labels, tokens = split.labels_of(rows, length), split.inputs(rows, length)["input_ids"]
    for row, example in enumerate(rows.tolist()):
        place = slice(*encoded_split.offsets[example : example + 2])
        labelled = encoded_split.labels[place] != IGNORED
        assert labels[row][labels[row] != IGNORED].tolist() == encoded_split.labels[place][labelled].tolist()
        assert tokens[row][labels[row] != IGNORED].tolist() == encoded_split.tokens[place][labelled].tolist()


def test_outputs_lie_in_the_order_of_the_words(task: EncodedTask, bert: Path) -> None:
    model, encoded_split = model_of(task, bert), task.splits["train"]
    split, truth = DeviceSplit.of(task, encoded_split, "cpu"), task.truth("train")
    outputs = predict(model, split, Device("cpu", "fp32"))
    assert outputs.shape == (len(truth.labels), len(NAMES))
    begin = np.cumsum(truth.sizes) - truth.sizes
    for example in (0, 7, 39):
        place = slice(*encoded_split.offsets[example : example + 2])
        with torch.no_grad():
            alone = model(input_ids=torch.from_numpy(encoded_split.tokens[None, place].astype(np.int64))).logits[0]
        expected = alone[torch.from_numpy(encoded_split.labels[place] != IGNORED)].numpy()
        found = outputs[begin[example] : begin[example] + truth.sizes[example]]
        np.testing.assert_allclose(found, expected, atol=1e-5)
    some = predict(model, split.part(np.array([7, 3])), Device("cpu", "fp32"))
    expected = np.concatenate([outputs[begin[each] : begin[each] + truth.sizes[each]] for each in (7, 3)])
    np.testing.assert_allclose(some, expected, atol=1e-5)


def test_no_token_of_the_last_layer_is_left_out(task: EncodedTask, bert: Path) -> None:
    """The first logits hang on the first token alone, as those of a classifier do."""
    assert find_tail(model_of(task, bert), DeviceSplit.of(task, task.splits["train"], "cpu")) is None


# -- the whole way --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_from_a_file_to_a_checkpoint(
    tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import pipeline

    from budget_search import read_report

    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "names"
    folder.mkdir()
    write(folder / "train.conll", sentences(500, 1))
    write(folder / "validation.conll", sentences(120, 2))
    command = [
        "--task", "names", "--model", str(bert), "--delta", "0.9", "--quiet", *tiny.RECIPE, "--epochs", "6",
        "--train-examples", "320", "--lr", "5e-3", "--seeds", "1",
    ]  # fmt: skip
    assert tiny.command(*command, "--distil", "0.5") == 2
    assert "--distil does not work for --kind token-classification" in capsys.readouterr().err
    assert tiny.command(*command, "--reference", str(bert)) == 2
    assert "--reference does not work" in capsys.readouterr().err
    assert not (tmp_path / "studies").exists()
    assert tiny.command(*command, "--layers", "0-1", "--output", "out") == 0
    study = tiny.only_study(tmp_path / "studies")
    report = read_report(study)
    assert report.metric == "entity_f1"
    # A person or a place is a quarter of the words, so one tag for all of them is right now and then.
    assert report.baseline.constant_score is not None
    assert report.baseline.score > 60 > 40 > report.baseline.constant_score
    assert set(report.baseline.metrics) == {"entity_f1", "token_accuracy"}
    (result,) = report.results
    assert result.depth == 2
    assert set(report.splits["held_out"].label_shares) == set(NAMES)

    tag = pipeline("token-classification", "out", aggregation_strategy="simple", device="cpu")
    assert type(tag.model).__name__ == "BertForTokenClassification"
    found = 0
    for words, tags in sentences(40, 4):
        said = {(each["entity_group"], each["word"].split()[0]) for each in tag(" ".join(words))}
        found += {(t[2:], w[0]) for w, t in zip(words, tags, strict=True) if t[0] == "B"} <= {
            (kind, word[0]) for kind, word in said
        }
    assert found > 15
    assert "aggregation_strategy='simple'" in (tmp_path / "out" / "README.md").read_text()
    assert tiny.command("inspect", study.name, "--model", str(bert)) == 2
    assert "inspect does not work for --kind token-classification" in capsys.readouterr().err
