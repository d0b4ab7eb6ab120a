"""Answers in contexts: how questions are read, encoded in windows, scored, trained, searched and exported."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from budget_search.core.config import Recipe
from budget_search.core.errors import UsageError
from budget_search.data.kinds import kind_of
from budget_search.data.kinds.kind import IGNORED, Truth
from budget_search.data.kinds.question_answering import given_answers, normalised
from budget_search.data.loading import RawTask, load_task
from budget_search.data.splits import SplitTask, carve
from budget_search.data.tasks import resolve_task
from budget_search.data.tokenization import EncodedTask, encode
from budget_search.engine.batches import DeviceSplit
from budget_search.engine.device import Device
from budget_search.engine.finetune import predict, train_on
from budget_search.engine.last_layer import find_tail
from budget_search.engine.loss import logits_of, loss_of
from budget_search.engine.schedule import Schedule
from budget_search.models.pretrained import PretrainedSource, load_pretrained, load_tokenizer
from tests import tiny

KIND = kind_of("squad_f1")
Row = dict[str, Any]


def squad(count: int, seed: int, unanswerable: float = 0.0) -> list[Row]:
    """Contexts that name somebody (a good word) and a place (two bad words), and ask for one of both."""
    draw = random.Random(seed)
    rows = []
    for _ in range(count):
        facts = {"who": draw.choice(tiny.GOOD), "where": " ".join(draw.choices(tiny.BAD, k=2))}
        words, found = draw.choices(tiny.FILLERS, k=draw.randint(1, 4)), {}
        for ask in draw.sample(list(facts), 2):
            if draw.random() >= unanswerable:
                found[ask] = len(" ".join(words)) + 1
                words.append(facts[ask])
            words += draw.choices(tiny.FILLERS, k=draw.randint(1, 4))
        ask = draw.choice(list(facts))
        rows.append(row(f"{ask} ?", " ".join(words), {found[ask]: facts[ask]} if ask in found else {}))
    return rows


def row(question: str, context: str, answers: Mapping[int, str]) -> Row:
    """In SQuAD's columns; ``answers`` are texts by the character where they begin."""
    return {
        "question": question,
        "context": context,
        "answers": {"text": [*answers.values()], "answer_start": [*answers]},
    }


def write(path: Path, rows: Sequence[Row]) -> Path:
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    else:
        path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


def load(path: Path, **options: Any) -> RawTask:
    return load_task(resolve_task(str(path), **options))


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        load(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_the_columns_of_squad_are_recognised(tmp_path: Path, ending: str) -> None:
    rows = squad(30, 0, unanswerable=0.3)
    raw = load(write(tmp_path / f"train.{ending}", rows))
    assert (raw.metric, raw.also) == ("squad_f1", ("exact_match",))
    assert raw.splits["train"].texts == tuple([each[name] for each in rows] for name in ("question", "context"))
    for each, answer in zip(rows, raw.splits["train"].labels, strict=True):
        assert [*answer.texts] == each["answers"]["text"]
        assert not answer.texts or answer.start == each["answers"]["answer_start"][0]
    assert {bool(answer.texts) for answer in raw.splits["train"].labels} == {True, False}


def test_an_answer_may_be_a_text_in_columns_of_other_names(tmp_path: Path) -> None:
    rows = [
        {**each, "answers": [{"text": "good", "answer_start": 2}]} for each in [row("who ?", "a good film", {})] * 2
    ]
    listed = load(write(tmp_path / "t.jsonl", rows), kind="question-answering").splits["train"].labels
    assert [(answer.texts, answer.start) for answer in listed] == [(("good",), 2)] * 2
    (tmp_path / "t.csv").write_text("ask,page,reply\nwho ?,a good film,good\nwhere ?,in bad bad town,bad town\n")
    raw = load(tmp_path / "t.csv", kind="question-answering", text_columns=["ask", "page"], label_column="reply")
    assert [(answer.texts, answer.start) for answer in raw.splits["train"].labels] == [
        (("good",), 2),
        (("bad town",), 7),
    ]


def test_a_start_that_is_off_is_moved_to_the_nearest_occurrence(tmp_path: Path) -> None:
    rows = [row("who ?", "good and good", {8: "good"}), row("who ?", "dull plot", {0: "dull"})]
    answers = load(write(tmp_path / "t.jsonl", rows)).splits["train"].labels
    assert [answer.start for answer in answers] == [9, 0]


def test_what_is_no_answer_is_refused(tmp_path: Path) -> None:
    good = row("who ?", "a good film", {2: "good"})
    absent = write(tmp_path / "absent.jsonl", [good, row("who ?", "a film", {2: "great"})])
    assert "answer of example 2 in train, 'great', is not in its context" in refusal(absent)
    uneven = write(tmp_path / "uneven.jsonl", [good, {**good, "answers": {"text": ["good"], "answer_start": []}}])
    assert "example 2 in train" in (said := refusal(uneven)) and '"answer_start": [...]' in said
    spelled = write(tmp_path / "spelled.jsonl", [good, {**good, "answers": {"text": ["good"], "answer_start": ["2"]}}])
    assert "example 2 in train" in refusal(spelled)
    numbers = write(tmp_path / "numbers.jsonl", [good, {**good, "answers": 3}])
    assert "the answer of example 2 in train is 3" in refusal(numbers)
    missing = write(tmp_path / "missing.jsonl", [good, good, {**good, "answers": None}])
    assert "1 of 3 labels in train are missing" in refusal(missing)
    assert len(load(missing, skip_incomplete=True).splits["train"]) == 2
    nothing = write(tmp_path / "nothing.jsonl", [row("who ?", "a film", {})] * 3)
    assert "no question in train has an answer" in refusal(nothing)
    alone = refusal(missing, kind="question-answering", text_columns=["question"])
    assert "two --text-columns" in alone
    assert "--kind question-answering" in refusal(missing, text_columns=["question"], label_column="answers")
    with pytest.raises(UsageError, match="--metric squad_f1 does not fit sst2; allowed: accuracy f1 matthews"):
        resolve_task("sst2", metric="squad_f1")


def test_every_carved_split_has_questions_without_an_answer(tmp_path: Path) -> None:
    raw = load(write(tmp_path / "t.jsonl", squad(2_000, 0, unanswerable=0.2)))
    for examples in carve(raw, "carved", 0).splits.values():
        share = np.mean([not answer.texts for answer in examples.labels])
        assert share == pytest.approx(0.2, abs=0.05)


# -- windows --------------------------------------------------------------------------------------------------------


def encoded(folder: Path, rows: Sequence[Row], bert: Path, max_length: int = 32) -> EncodedTask:
    raw = load(write(folder / "few.jsonl", rows), kind="question-answering")
    task = SplitTask(dict.fromkeys(("train", "held_out"), raw.splits["train"]), raw.label_names, raw.metric, raw.also)
    return encode(task, load_tokenizer(PretrainedSource("bert", bert, "")), max_length=max_length, takes_segments=True)


def test_the_first_and_the_last_token_of_the_answer_are_labelled(tmp_path: Path, bert: Path) -> None:
    """`anna` is four tokens of one letter, `film` is one token; a question is `[CLS] the film [SEP]`."""
    rows = [row("the film", "old anna film", {4: "anna"}), row("the film", "film", {})]
    task = encoded(tmp_path, rows, bert)
    split = task.splits["train"]
    assert split.offsets.tolist() == [0, 11, 17]
    no = [IGNORED] * 2
    assert split.labels.tolist() == [
        *([0, 0], no, no, no, [0, 0], [1, 0], [0, 0], [0, 0], [0, 1], [0, 0], no),
        *([1, 1], no, no, no, [0, 0], no),
    ]
    truth = task.truth("train")
    assert truth.sizes.tolist() == [7, 2]
    assert truth.windows is not None
    assert truth.windows.places.tolist()[:6] == [[-1, -1], [0, 3], [4, 5], [5, 6], [6, 7], [7, 8]]
    assert truth.windows.texts == [["old anna film", "anna"], ["film"]]


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory, bert: Path) -> EncodedTask:
    """Contexts of one to eight windows, with the answer in the middle."""
    rows = []
    for number in range(40):
        before, after = ["film"] * (2 * number // 3), ["plot"] * number
        rows.append(row("who ?", " ".join([*before, "good", *after]), {len(" ".join([*before, ""])): "good"}))
    return encoded(tmp_path_factory.mktemp("long"), rows, bert, max_length=18)


def test_windows_cover_the_context_and_overlap(long: EncodedTask) -> None:
    split = long.splits["train"]
    assert split.each is not None and split.places is not None
    assert split.examples == 40 < split.inputs == split.each.sum()
    assert np.diff(split.offsets).max() == 18
    begin = np.cumsum(split.each) - split.each
    for example, (context, *answers) in enumerate(split.windows.texts if split.windows else ()):
        seen: list[set[int]] = []
        answered = 0
        for window in range(begin[example], begin[example] + split.each[example]):
            rows = slice(*split.offsets[window : window + 2])
            places, labels = split.places[rows], split.labels[rows]
            assert (labels == 1).sum(axis=0).tolist() == [1, 1]
            first, last = (int(np.flatnonzero(labels[:, edge] == 1)[0]) for edge in (0, 1))
            if first:
                answered += 1
                assert context[places[first, 0] : places[last, 1]] == answers[0]
            seen.append({int(place) for place in places[places[:, 0] >= 0, 0]})
        assert answered >= 1
        assert set.union(*seen) == {at for at in range(len(context)) if at == 0 or context[at - 1] == " "}
        assert all(one & other for one, other in pairwise(seen))


def test_windows_are_kept_with_the_examples(long: EncodedTask, tmp_path: Path) -> None:
    long.save(tmp_path / "task.npz")
    again, before = EncodedTask.load(tmp_path / "task.npz").splits["train"], long.splits["train"]
    for field in dataclasses.fields(before):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(before, field.name))
    assert again.windows is not None and before.windows is not None
    assert again.windows.texts == before.windows.texts


@pytest.mark.parametrize("max_length", [8, 16])
def test_a_long_question_leaves_room_for_the_context(tmp_path: Path, bert: Path, max_length: int) -> None:
    rows = [row(" ".join(["plot"] * 90), "film " * 30 + "good", {150: "good"})]
    split = encoded(tmp_path, rows * 2, bert, max_length=max_length).splits["train"]
    assert np.diff(split.offsets).max() == max_length
    assert split.windows is not None
    assert split.windows.places.max() == len("film " * 30 + "good")


def test_a_context_may_be_empty(tmp_path: Path, bert: Path) -> None:
    rows = [row("who ?", "good film", {0: "good"}), row("who ?", "", {})]
    task = encoded(tmp_path, rows, bert)
    truth = task.truth("train")
    assert truth.sizes.tolist() == [3, 1]
    assert task.constant_score("train") == 100
    assert given_answers(np.zeros((4, 2), dtype=np.float32), truth) == ["good", ""]


@pytest.mark.parametrize("make", [tiny.make_xlnet, tiny.make_llama])
def test_other_models_have_their_no_answer_token_elsewhere(tmp_path: Path, make: Any) -> None:
    """XLNet's special token comes last; Llama has none, so the first token stands for it."""
    task = encoded(tmp_path, squad(20, 1, unanswerable=0.3), make(tmp_path / "model"), max_length=40)
    truth, split = task.truth("train"), task.splits["train"]
    right = np.where(truth.labels == 1, 5.0, 0.0).astype(np.float32)
    assert KIND.measure(("exact_match",), right, truth)["exact_match"] == 100
    begin = split.offsets[:-1]
    place = begin + np.diff(split.offsets) - 1 if make is tiny.make_xlnet else begin
    assert split.places is not None
    assert (split.places[place] == -1).all()
    assert split.inputs == 20


# -- scores ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [("The  Beatles!", "beatles"), ("an A-Z", "az"), ("U.S.", "us"), ("theme of a Band", "theme of band"), ("the", "")],
)
def test_answers_are_compared_by_the_rule_of_squad(text: str, expected: str) -> None:
    assert normalised(text) == expected


def one(context: str, answers: Sequence[str], said: str | None) -> tuple[Truth, np.ndarray]:
    """The truth of one question whose context's tokens are its characters, and outputs that say this answer."""
    from budget_search.data.kinds.kind import Windows

    places = [(-1, -1), *((at, at + 1) for at in range(len(context)))]
    outputs = np.zeros((len(places), 2), dtype=np.float32)
    first = 0 if said is None else 1 + context.index(said)
    outputs[first, 0] = outputs[first + len(said or "x") - 1, 1] = 9.0
    labels = np.zeros((len(places), 2), dtype=np.int64)
    windows = Windows(np.array([1]), np.array(places), [(context, *answers)])
    return Truth(labels, np.array([len(places)]), ("first token", "last token"), windows), outputs


@pytest.mark.parametrize(
    ("answers", "said", "f1", "exact"),
    [
        (["the old film"], "old film", 100, 100),
        (["the old film"], "old", 200 / 3, 0),
        (["the old film"], "film of plot", 40, 0),
        (["the old film", "plot"], "plot", 100, 100),
        (["plot"], "old film", 0, 0),
        ([], None, 100, 100),
        ([], "plot", 0, 0),
    ],
)
def test_a_question_is_scored_by_the_answer_it_is_most_like(
    answers: Sequence[str], said: str | None, f1: float, exact: float
) -> None:
    truth, outputs = one("the old film of plot", answers, said)
    assert KIND.measure(("squad_f1", "exact_match"), outputs, truth) == pytest.approx(
        {"squad_f1": f1, "exact_match": exact}
    )
    assert KIND.contributions("squad_f1", outputs, truth).tolist() == pytest.approx([f1])


def test_no_answer_is_given_where_every_question_has_one() -> None:
    truth, outputs = one("the old film", ["film"], None)
    outputs[9, 0] = outputs[12, 1] = 1.0
    assert given_answers(outputs, truth) == ["film"]


def slow_answers(outputs: np.ndarray, truth: Truth) -> list[str]:
    """The rule of ``given_answers``, question by question and window by window."""
    assert truth.windows is not None
    may_be_none = any(len(each) == 1 for each in truth.windows.texts)
    edges, window, found = np.concatenate([[0], np.cumsum(truth.sizes)]), 0, []
    for count, (context, *_) in zip(truth.windows.each, truth.windows.texts, strict=True):
        best, text, none = -np.inf, "", np.inf
        for number in range(window, window + count):
            rows = range(edges[number], edges[number + 1])
            for first in rows:
                if truth.windows.places[first, 0] < 0:
                    none = min(none, outputs[first].astype(float).sum())
                    continue
                for last in range(first, min(first + 30, rows.stop)):
                    score = float(outputs[first, 0]) + float(outputs[last, 1])
                    if truth.windows.places[last, 0] >= 0 and score > best:
                        best = score
                        text = context[truth.windows.places[first, 0] : truth.windows.places[last, 1]]
        window += count
        found.append("" if may_be_none and none > best else text)
    return found


def test_the_best_passage_of_all_windows_is_found(long: EncodedTask) -> None:
    truth = long.truth("train")
    assert truth.windows is not None
    unanswered = dataclasses.replace(
        truth, windows=dataclasses.replace(truth.windows, texts=[each[:1] for each in truth.windows.texts])
    )
    for seed in range(5):
        outputs = np.random.default_rng(seed).normal(size=(len(truth.labels), 2)).astype(np.float32)
        outputs[truth.windows.places[:, 0] < 0] += 2.0
        for each in (truth, unanswered):
            assert given_answers(outputs, each) == slow_answers(outputs, each)
    assert "" in given_answers(outputs, unanswered)


def test_the_constant_answer_looks_at_no_text(tmp_path: Path, bert: Path) -> None:
    """The first three tokens score 80, 80 and 50; the first two 100, 100 and 0."""
    often = [row("who ?", "good plot film", {0: "good plot"}), row("who ?", "great cast plot", {0: "great cast"})]
    truth = encoded(tmp_path, [*often, row("who ?", "old film great", {9: "great"})], bert).truth("train")
    assert KIND.measure(("squad_f1",), KIND.constant_outputs("squad_f1", truth), truth)["squad_f1"] == pytest.approx(70)
    none = encoded(tmp_path, [*often, *[row("who ?", "old film", {})] * 3], bert).truth("train")
    outputs = KIND.constant_outputs("exact_match", none)
    assert given_answers(outputs, none) == [""] * 5
    assert KIND.collapsed(outputs, none)
    assert not KIND.collapsed(np.where(none.labels == 1, 5.0, 0.0).astype(np.float32), none)
    assert KIND.label_shares(none) == {"answered": 0.4, "no answer": 0.6}


def test_all_accepted_answers_are_one_label() -> None:
    truth, outputs = one("the old film of plot", ["the old film", "film"], "film")
    said = KIND.answers([outputs, one("the old film of plot", [], "plot")[1]], truth)
    assert [said.names[number] for number in (said.labels[0], *(model[0] for model in said.models))] == [
        "old film",
        "old film",
        "plot",
    ]


# -- training -------------------------------------------------------------------------------------------------------


def model_of(task: EncodedTask, folder: Path) -> Any:
    model, _ = load_pretrained(folder, name="m", kind=KIND, label_names=task.label_names, pad_token=task.pad_token)
    return model.eval()


def test_the_loss_is_that_of_the_models_own_head_among_the_tokens_that_may_answer(
    long: EncodedTask, bert: Path
) -> None:
    model, split, truth = model_of(long, bert), DeviceSplit.of(long, long.splits["train"], "cpu"), long.truth("train")
    rows = torch.arange(split.examples)
    labels = split.labels_of(rows, 18)
    with torch.no_grad():
        logits = logits_of(model(**split.inputs(rows, 18)))
    expected = []
    for window, (own, wanted) in enumerate(zip(logits, labels, strict=True)):
        allowed = split.labelled(rows[window : window + 1], 18)[0]
        for edge in (0, 1):
            place = torch.tensor([int((wanted[allowed, edge] == 1).nonzero())])
            expected.append(torch.nn.functional.cross_entropy(own[None, allowed, edge], place).item())
    assert loss_of(logits, labels, weights=split.weights(rows)).item() == pytest.approx(np.mean(expected), rel=1e-5)
    outputs = predict(model, split, Device("cpu", "fp32"))
    assert KIND.mean_loss(outputs, truth) == pytest.approx(np.mean(expected), rel=1e-5)


def test_outputs_lie_in_the_order_of_the_windows(long: EncodedTask, bert: Path) -> None:
    model, encoded_split = model_of(long, bert), long.splits["train"]
    outputs, truth = (
        predict(model, DeviceSplit.of(long, encoded_split, "cpu"), Device("cpu", "fp32")),
        long.truth("train"),
    )
    assert outputs.shape == truth.labels.shape
    begin = np.cumsum(truth.sizes) - truth.sizes
    for window in (0, 9, encoded_split.inputs - 1):
        place = slice(*encoded_split.offsets[window : window + 2])
        with torch.no_grad():
            alone = model(
                input_ids=torch.from_numpy(encoded_split.tokens[None, place].astype(np.int64)),
                token_type_ids=torch.from_numpy(encoded_split.segments[None, place].astype(np.int64)),  # type: ignore[index]
            )
        expected = torch.stack([alone.start_logits[0], alone.end_logits[0]], dim=-1).numpy()
        np.testing.assert_allclose(
            outputs[begin[window] : begin[window] + truth.sizes[window]],
            expected[encoded_split.labelled[place]],
            atol=1e-5,
        )


def test_a_model_learns_to_answer_and_to_give_no_answer(tmp_path: Path, bert: Path) -> None:
    task = encoded(tmp_path, squad(300, 0, unanswerable=0.2), bert)
    model, split = model_of(task, bert), DeviceSplit.of(task, task.splits["train"], "cpu")
    assert find_tail(model, split) is None
    recipe = Recipe("tiny", 8, 300, 16, 5e-3, 32, 0.1)
    train_on(model, split, Schedule.of(recipe, split.lengths, 1.0, 0), recipe, 0, Device("cpu", "fp32"))
    outputs = predict(model, split, Device("cpu", "fp32"))
    assert task.measure("train", outputs)["squad_f1"] > 80 > 60 > task.constant_score("train")
    assert "" in given_answers(outputs, task.truth("train"))


# -- the whole way --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_from_a_file_to_a_checkpoint(
    tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from budget_search import read_report

    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "squad"
    folder.mkdir()
    write(folder / "train.jsonl", squad(600, 1))
    write(folder / "validation.jsonl", squad(120, 2))
    command = [
        "--task", "squad", "--model", str(bert), "--delta", "0.9", "--quiet", *tiny.RECIPE, "--epochs", "6",
        "--train-examples", "400", "--lr", "5e-3", "--seeds", "1",
    ]  # fmt: skip
    assert tiny.command(*command, "--distil", "0.5") == 2
    assert "--distil does not work for --kind question-answering" in capsys.readouterr().err
    assert not (tmp_path / "studies").exists()
    assert tiny.command(*command, "--layers", "0-1", "--output", "out") == 0
    report = read_report(tiny.only_study(tmp_path / "studies"))
    assert report.metric == "squad_f1"
    assert report.baseline.constant_score is not None
    assert report.baseline.score > 60 > 40 > report.baseline.constant_score
    assert set(report.baseline.metrics) == {"squad_f1", "exact_match"}
    (result,) = report.results
    assert result.depth == 2
    assert report.splits["held_out"].examples == 120
    assert set(report.splits["held_out"].label_shares) == {"answered", "no answer"}

    card = (tmp_path / "out" / "README.md").read_text()
    assert "pipeline_tag: question-answering" in card
    code = card.split("```\n")[1]
    right = 0
    for each in squad(40, 4):
        asked = code.replace('"Who sings?"', repr(each["question"])).replace(
            '"Anna sings in Bergen."', repr(each["context"])
        )
        exec(compile(asked.replace("print(", "said = ("), "card", "exec"), variables := {})
        right += variables["said"] == each["answers"]["text"][0]
    assert right > 20
