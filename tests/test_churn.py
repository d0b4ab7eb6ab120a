"""Where a smaller model got worse, on outputs made up so that the truth is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from budget_search.data.kinds.kind import Answers
from budget_search.data.tokenization import EncodedTask, decoder
from budget_search.report.entries import PredictionChanges
from budget_search.report.predictions import prediction_changes
from budget_search.storage.study_folder import StudyFolder

EXAMPLES = 400


def compared(
    *seeds: tuple[np.ndarray, np.ndarray], labels: np.ndarray, lengths: np.ndarray | None = None
) -> PredictionChanges:
    """Of models that say this, baseline and smaller one for every seed."""
    return prediction_changes(
        Answers(labels, [before for before, _ in seeds] + [after for _, after in seeds], ("no", "yes", "maybe")),
        np.arange(len(labels)) if lengths is None else lengths,
        split="certification",
        texts=lambda number: (f"text {number}",),
    )


def test_flips_are_counted_by_the_way_they_go() -> None:
    labels = np.arange(EXAMPLES) % 2
    before = labels.copy()
    before[:8] = 2  # wrong from the beginning
    after = before.copy()
    after[:4] = labels[:4]  # four come right
    after[4:6] = 1 - labels[4:6]  # two are wrong in another way
    after[100:110] = 1 - labels[100:110]  # ten go wrong
    found = compared((before, after), labels=labels)
    assert found.churn == pytest.approx(16 / EXAMPLES)
    assert found.lost == pytest.approx(10 / EXAMPLES)
    assert found.won == pytest.approx(4 / EXAMPLES)
    ways = {(way.before, way.after): round(way.share * EXAMPLES) for way in found.directions}
    assert ways == {("no", "yes"): 5, ("yes", "no"): 5, ("maybe", "no"): 3, ("maybe", "yes"): 3}
    assert [flip.texts for flip in found.flips[:3]] == [("text 100",), ("text 101",), ("text 102",)]
    assert [flip.label for flip in found.flips[3:]] == [flip.after for flip in found.flips[3:]]
    assert found.churn_between_seeds is None


def test_only_what_flips_with_every_seed_is_an_example() -> None:
    labels = np.zeros(EXAMPLES, dtype=np.int64)
    first, second = labels.copy(), labels.copy()
    first[[3, 7]] = 1
    second[[7, 9]] = 2
    found = compared((labels, first), (labels, second), labels=labels)
    assert [flip.texts for flip in found.flips] == [("text 7",)]
    assert found.churn == pytest.approx(2 / EXAMPLES)


def test_what_seeds_alone_change_stands_beside_it() -> None:
    labels = np.zeros(EXAMPLES, dtype=np.int64)
    other = labels.copy()
    other[:20] = 1
    found = compared((labels, labels), (other, other), labels=labels)
    assert (found.churn, found.churn_between_seeds) == (0, pytest.approx(20 / EXAMPLES))


def test_the_slice_that_suffers_is_found_and_the_intervals_hold_it() -> None:
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 2, EXAMPLES)
    lengths = draw.integers(5, 60, EXAMPLES)
    seeds = []
    for _ in range(3):
        before = np.where(draw.random(EXAMPLES) < 0.95, labels, 1 - labels)
        hard = (lengths > 45) & (draw.random(EXAMPLES) < 0.5)
        seeds.append((before, np.where(hard, 1 - before, before)))
    found = compared(*seeds, labels=labels, lengths=lengths)
    by_length = [each for each in found.slices if each.by == "length"]
    assert sum(each.examples for each in by_length) == EXAMPLES
    *short, longest = by_length
    assert longest.worse > 30
    assert longest.low is not None
    assert longest.low > 0
    # Every slice's loss is the difference of its two scores, and together they are the whole loss.
    assert all(each.worse == pytest.approx(each.baseline - each.score) for each in found.slices)
    assert max(abs(each.worse) for each in short[:2]) < 1e-9
    assert [each.name for each in found.slices if each.by == "label"] == ["no", "yes"]  # nothing is a maybe


def test_scores_are_compared_by_their_errors() -> None:
    draw = np.random.default_rng(1)
    labels = draw.uniform(0, 5, EXAMPLES).astype(np.float32)
    before = [labels + draw.normal(0, 0.3, EXAMPLES) for _ in range(2)]
    after = [told + np.where(labels > 4, 1.5, 0.0) for told in before]
    answers = Answers(labels, [*before, *after], ())
    found = prediction_changes(answers, draw.integers(5, 9, EXAMPLES), split="s", texts=lambda number: ())
    bands = [each for each in found.slices if each.by == "label"]
    assert [each.name.split(" to ")[0] < each.name.split(" to ")[1] for each in bands] == [True] * 3
    assert bands[0].worse == pytest.approx(0)
    assert bands[0].baseline == pytest.approx(0.24, abs=0.04)  # the mean of |normal| is 0.8 of its deviation
    assert bands[2].worse > 0.5
    assert bands[2].low is not None
    assert bands[2].low > 0
    assert found.churn == pytest.approx(1.5 * (labels > 4).mean())
    assert (found.lost, found.won, found.directions) == (None, None, ())
    assert float(found.flips[0].label) > 4


def test_a_study_tells_its_own_texts(sst2_study: Path) -> None:
    folder = StudyFolder(sst2_study)
    task = EncodedTask.load(folder.examples)
    report = json.loads(folder.report.read_text())
    smaller = [result for result in report["results"] if result["dropped"]]
    assert all(result["changes"]["examples"] == task.splits["certification"].examples for result in smaller)
    read = decoder(folder.tokenizer)
    split = task.splits["certification"]
    (text,) = read(split.tokens[split.offsets[0] : split.offsets[1]])
    assert len(text.split()) == 9
    assert "[" not in text


def test_pairs_are_parted_and_a_tokenizer_that_cannot_be_read_gives_nothing(bert: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(bert)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    tokens = np.array(tokenizer("a good film", "the dull plot")["input_ids"])
    assert decoder(tmp_path / "tokenizer")(tokens) == ("a good film", "the dull plot")
    assert decoder(tmp_path)(tokens) == ()
