import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from budget_search.core.config import RECIPES
from budget_search.core.errors import UsageError
from budget_search.data.grouping import normalised
from budget_search.data.loading import Examples, RawTask, load_task
from budget_search.data.shared_phrases import contained_pairs
from budget_search.data.splits import SplitTask, carve, resolution, split_sizes
from budget_search.data.stratification import assign_cells, attainable_quotas, pick_groups, quotas
from budget_search.data.tasks import resolve_task

CARVED = ("train", "selection", "certification")
GLUE_FOLDER = os.environ.get("BUDGET_SEARCH_GLUE", "")
needs_glue = pytest.mark.skipif(not GLUE_FOLDER, reason="BUDGET_SEARCH_GLUE names no folder with GLUE data")


def raw_task(train: Examples, held_out: Examples | None = None, classes: int = 2, **further: Examples) -> RawTask:
    splits = {"train": train, **({"held_out": held_out} if held_out else {}), **further}
    return RawTask(splits, tuple(f"class {number}" for number in range(classes)), "accuracy" if classes else "pearson")


def sentence(rng: np.random.Generator, words: int) -> str:
    return " ".join(f"w{number}" for number in rng.integers(5_000, size=words))


def singles(seed: int, examples: int, low: int = 4, high: int = 30, positive: float = 0.5) -> Examples:
    rng = np.random.default_rng(seed)
    texts = [sentence(rng, int(rng.integers(low, high))) for _ in range(examples)]
    return Examples((texts,), (rng.random(examples) < positive).astype(np.int64))


def with_phrases(whole: Examples) -> Examples:
    """The sentences and two beginnings and one end of each, as a train set of phrases has them."""
    texts, labels = [], []
    for text, label in zip(whole.texts[0], whole.labels, strict=True):
        words = text.split()
        for words_of in (words, words[: len(words) // 2], words[:3], words[-2:]):
            texts.append(" ".join(words_of))
            labels.append(label)
    return Examples((texts,), np.array(labels))


def linked_pairs(seed: int, examples: int, sources: int) -> Examples:
    rng = np.random.default_rng(seed)
    premises = [sentence(rng, 8) for _ in range(sources)]
    hypotheses = [sentence(rng, 5) for _ in range(examples)]
    return Examples(
        ([premises[number] for number in rng.integers(sources, size=examples)], hypotheses),
        rng.integers(2, size=examples),
    )


def keys(examples: Examples) -> set[tuple[str, ...]]:
    return {tuple(map(normalised, pair)) for pair in zip(*examples.texts, strict=True)}


def texts_of(examples: Examples) -> set[str]:
    return {normalised(text) for column in examples.texts for text in column}


def sizes(task: SplitTask) -> dict[str, int]:
    return {name: len(examples) for name, examples in task.splits.items()}


def words_of(examples: Examples) -> np.ndarray:
    return np.array([len(text.split()) for text in examples.texts[0]])


def test_contained_pairs_agree_with_looking() -> None:
    for seed in range(40):
        rng = np.random.default_rng(seed)
        whole = [tuple(rng.choice(list("abc"), size=rng.integers(1, 30)).tolist()) for _ in range(8)]
        cuts = [tuple(text[int(rng.integers(len(text))) :][:12]) for text in whole for _ in range(3)]
        texts = sorted({*whole, *cuts})
        looked = {
            (i, j)
            for i, inner in enumerate(texts)
            for j, outer in enumerate(texts)
            if i != j and any(outer[k : k + len(inner)] == inner for k in range(len(outer) - len(inner) + 1))
        }
        inner, outer = contained_pairs(texts)
        assert set(zip(inner.tolist(), outer.tolist(), strict=True)) == looked


def test_selection_and_certification_are_whole_sentences_and_their_phrases_leave_train() -> None:
    train = with_phrases(singles(0, 600))
    task = carve(raw_task(train, singles(1, 200)), "carved", seed=0)
    whole = set(train.texts[0][::4])
    for name in ("selection", "certification"):
        assert set(task.splits[name].texts[0]) <= whole
        carved = [f" {text} " for text in task.splits[name].texts[0]]
        assert not any(f" {phrase} " in text for phrase in task.splits["train"].texts[0] for text in carved)
        assert not any(text in f" {phrase} " for phrase in task.splits["train"].texts[0] for text in carved)
    assert any("are phrases of examples in these splits" in note for note in task.notes)


def test_lengths_and_labels_resemble_held_out_and_not_train() -> None:
    train, held_out = singles(0, 20_000, low=2, high=40, positive=0.7), singles(1, 1_000, low=15, high=30, positive=0.4)
    task = carve(raw_task(train, held_out), "carved", seed=0)
    for name in ("selection", "certification"):
        carved = task.splits[name]
        assert carved.labels.mean() == pytest.approx(held_out.labels.mean(), abs=0.05)  # far from train's 0.7
        quartiles = [np.percentile(words_of(examples), [25, 50, 75]) for examples in (carved, held_out)]
        assert quartiles[0] == pytest.approx(quartiles[1], abs=1)


def test_scores_are_resembled_too() -> None:
    rng = np.random.default_rng(0)
    train, held_out = singles(0, 6_000), singles(1, 500)
    train = Examples(train.texts, rng.uniform(0, 5, size=len(train)).astype(np.float32))
    held_out = Examples(held_out.texts, (5 * rng.beta(2, 4, size=len(held_out))).astype(np.float32))
    task = carve(raw_task(train, held_out, classes=0), "carved", seed=0)
    for name in ("selection", "certification"):
        assert task.splits[name].labels.mean() == pytest.approx(held_out.labels.mean(), abs=0.15)
    assert abs(train.labels.mean() - held_out.labels.mean()) > 0.5


def test_pairs_that_share_a_text_stay_together() -> None:
    train = linked_pairs(0, 3_000, sources=1_200)
    task = carve(raw_task(train, linked_pairs(1, 300, sources=200)), "carved", seed=0)
    found = [texts_of(task.splits[name]) for name in CARVED]
    assert not (found[0] & found[1] or found[0] & found[2] or found[1] & found[2])
    assert sum(len(task.splits[name]) for name in CARVED) == 3_000


def test_chains_of_shared_texts_stay_together_across_columns() -> None:
    # a-b, b-c, c-d: the ends share nothing, but belong together.
    chains = [(f"{chain} {step}", f"{chain} {step + 1}") for chain in range(100) for step in range(3)]
    train = Examples(tuple(map(list, zip(*chains, strict=True))), np.array([0, 1, 0, 1, 0, 1] * 50))
    task = carve(raw_task(train), "carved", seed=3)
    home = {text.split()[0]: name for name in task.splits for text in task.splits[name].texts[0]}
    for name in task.splits:
        assert {home[text.split()[0]] for column in task.splits[name].texts for text in column} == {name}


def test_a_giant_group_stays_in_train() -> None:
    loose, giant = linked_pairs(0, 1_000, sources=1_000), linked_pairs(1, 1_000, sources=30)
    train = Examples(
        tuple(list(a) + list(b) for a, b in zip(loose.texts, giant.texts, strict=True)),
        np.concatenate([loose.labels, giant.labels]),
    )
    task = carve(raw_task(train, linked_pairs(2, 300, sources=300)), "carved", seed=0)
    assert set(giant.texts[1]) <= set(task.splits["train"].texts[1])
    assert sizes(task)["selection"] == 200
    assert sizes(task)["certification"] == 300


def test_a_prompt_in_every_pair_does_not_link_them() -> None:
    train = Examples((["is this good?"] * 2_000, list(singles(0, 2_000).texts[0])), np.arange(2_000) % 2)
    task = carve(raw_task(train), "carved", seed=0)
    assert sizes(task)["certification"] == 300
    assert any("treated as prompts" in note for note in task.notes)


def test_repeats_count_once_whatever_their_case_and_spaces() -> None:
    train = singles(0, 1_000)
    shouted = [f"  {text.upper()} " for text in train.texts[0]]
    doubled = Examples(([*train.texts[0], *shouted],), np.concatenate([train.labels, train.labels]))
    task = carve(raw_task(doubled, singles(1, 200)), "carved", seed=0)
    assert sum(len(task.splits[name]) for name in CARVED) == 1_000
    assert any(note.startswith("1,000 train examples are duplicates") for note in task.notes)


@pytest.mark.parametrize("pairs", [False, True])
def test_examples_of_held_out_leave_train(pairs: bool) -> None:
    held_out = linked_pairs(1, 200, sources=200) if pairs else singles(1, 200)
    train = linked_pairs(0, 1_000, sources=900) if pairs else singles(0, 1_000)
    train = Examples(
        tuple([*ours, *theirs] for ours, theirs in zip(train.texts, held_out.texts, strict=True)),
        np.concatenate([train.labels, held_out.labels]),
    )
    task = carve(raw_task(train, held_out), "carved", seed=0)
    for name in CARVED:
        assert not keys(task.splits[name]) & keys(held_out)
    assert task.splits["held_out"] is held_out
    assert any(note.startswith("200 train examples are also in held_out") for note in task.notes)


def test_carved_pairs_share_no_text_with_held_out() -> None:
    held_out, train = linked_pairs(1, 300, sources=300), linked_pairs(0, 2_000, sources=1_500)
    train.texts[0][:100] = held_out.texts[0][:100]  # type: ignore[index]
    task = carve(raw_task(train, held_out), "carved", seed=0)
    for name in ("selection", "certification"):
        assert not texts_of(task.splits[name]) & texts_of(held_out)
    assert any("of 300 held_out examples share a text" in note for note in task.notes)


def test_a_small_task_keeps_three_quarters_and_a_large_one_what_the_recipe_uses() -> None:
    small = carve(raw_task(singles(0, 1_000), singles(1, 200)), "carved", seed=0)
    assert sizes(small) == {"train": 750, "selection": 100, "certification": 150, "held_out": 200}
    large = carve(raw_task(singles(0, 40_000), singles(1, 800)), "carved", seed=0, recipe=RECIPES["quick"])
    assert sizes(large) == {"train": 33_000, "selection": 2_000, "certification": 5_000, "held_out": 800}
    assert resolution(5_000) == pytest.approx(0.4)
    assert any("0.4 points on certification and 0.6 on selection" in note for note in large.notes)


@pytest.mark.parametrize(
    ("examples", "train_examples", "epochs", "certification"),
    [
        (40_000, 30_000, 3, 6_000),
        (40_000, 20_000, 3, 9_000),
        (40_000, 10_000, 3, 5_000),
        (40_000, 20_000, 1, 5_000),
        (40_000, None, 3, 5_000),
        (350_000, 30_000, 3, 13_500),
        (350_000, 100_000, 3, 20_000),
        (4_000, 2_000, 3, 900),
        (4_000, 200, 3, 600),
    ],
)
def test_certification_takes_what_the_recipe_does_not_train_on_while_scoring_it_is_cheap(
    examples: int, train_examples: int | None, epochs: float, certification: int
) -> None:
    """A twentieth of three epochs over 20,000 examples, at a third of the price, are 9,000."""
    recipe = replace(RECIPES["standard"], train_examples=train_examples, epochs=epochs)
    found = split_sizes(examples, ("selection", "certification"), recipe)
    assert found["certification"].wanted == certification
    assert found["selection"].wanted == min(2_000, examples // 10)
    left = examples - sum(each.wanted for each in found.values())
    assert left >= min(train_examples or examples, 0.75 * examples)


def test_a_larger_certification_is_carved() -> None:
    recipe = replace(RECIPES["standard"], train_examples=4_000, epochs=12)
    task = carve(raw_task(singles(0, 16_000), singles(1, 400)), "carved", seed=0, recipe=recipe)
    # Some kinds of examples are scarce, so it is a little smaller than the 7,200 wanted.
    assert 6_000 < sizes(task)["certification"] <= 7_200
    assert sizes(task)["train"] + sizes(task)["certification"] == 14_400


def test_without_validation_held_out_is_carved_and_that_is_said() -> None:
    task = carve(raw_task(singles(0, 1_000)), "carved", seed=0)
    assert sizes(task) == {"train": 600, "selection": 100, "certification": 150, "held_out": 150}
    assert any("held_out (150) was split off from train" in note for note in task.notes)
    assert len(set().union(*(keys(examples) for examples in task.splits.values()))) == 1_000


def test_official_splits_are_the_validation_set_three_times_and_say_so() -> None:
    train, held_out, other = singles(0, 50), singles(1, 20), singles(2, 20)
    task = carve(raw_task(train, held_out, held_out_mismatched=other), "official", seed=0)
    assert task.splits["train"] is train
    assert task.splits["selection"] is task.splits["certification"] is task.splits["held_out"] is held_out
    assert task.splits["held_out_mismatched"] is other
    assert "biases the scores" in task.notes[0]
    with pytest.raises(UsageError, match="needs a validation set"):
        carve(raw_task(train), "official", seed=0)


def test_further_splits_are_kept_when_carving() -> None:
    other = singles(2, 20)
    task = carve(raw_task(singles(0, 500), singles(1, 100), held_out_mismatched=other), "carved", seed=0)
    assert task.splits["held_out_mismatched"] is other


def test_too_little_or_too_entangled_data_is_refused() -> None:
    with pytest.raises(UsageError, match="cannot split certification off from the 40 train examples"):
        carve(raw_task(singles(0, 40), singles(1, 20)), "carved", seed=0)
    with pytest.raises(UsageError, match="examples that share a text stay together"):
        carve(raw_task(linked_pairs(0, 90, sources=1), linked_pairs(1, 20, sources=20)), "carved", seed=0)
    held_out = singles(1, 50)
    with pytest.raises(UsageError, match="cannot split"):
        carve(raw_task(held_out, held_out), "carved", seed=0)


def test_the_seed_decides_and_nothing_else() -> None:
    raw = raw_task(linked_pairs(0, 1_000, sources=700))
    one, same, other = (carve(raw, "carved", seed) for seed in (1, 1, 2))
    for name in one.splits:
        assert one.splits[name].texts == same.splits[name].texts
    assert one.splits["selection"].texts != other.splits["selection"].texts


def test_splits_do_not_depend_on_the_hash_seed_of_the_process(tmp_path: Path) -> None:
    code = (
        "import hashlib, sys; sys.path[:0] = sys.argv[1:]\n"
        "from test_splits import *\n"
        "for train in (with_phrases(singles(0, 300)), linked_pairs(0, 600, sources=400)):\n"
        "    task = carve(raw_task(train), 'carved', seed=0)\n"
        "    for name in task.splits: print(name, hashlib.md5(repr(task.splits[name].texts).encode()).hexdigest())\n"
    )
    here = Path(__file__).parent
    said = [
        subprocess.run(
            [sys.executable, "-c", code, str(here), str(here.parent)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert said[0] == said[1] != ""


def test_quotas_are_whole_and_sum_to_what_is_wanted() -> None:
    assert quotas(np.array([0.5, 0.3, 0.2]), 7).tolist() == [4, 2, 1]
    assert quotas(np.array([0.25] * 4), 6).sum() == 6


def test_what_is_scarce_is_asked_for_less_so_that_shares_stay() -> None:
    shares = np.array([0.5, 0.5])
    assert attainable_quotas(shares, np.array([1_000, 1_000]), 100).tolist() == [50, 50]
    scarce = attainable_quotas(shares, np.array([1_000, 60]), 100)
    assert scarce[1] == 30
    assert scarce[0] <= 38
    assert attainable_quotas(shares, np.array([1_000, 0]), 100).tolist() == [25, 0]  # never less than half is asked for


def test_groups_are_picked_while_all_of_their_examples_fit() -> None:
    groups = [[0, 1], [2, 3], [4], [5]]
    cell_of = np.array([0, 0, 0, 1, 1, 0])
    assert pick_groups(groups, np.array([0, 1, 2, 3]), cell_of, np.array([3, 1])) == [0, 1]
    assert pick_groups(groups, np.array([2, 1, 0, 3]), cell_of, np.array([3, 1])) == [2, 0, 3]


def test_cells_tell_labels_and_lengths_apart() -> None:
    like = Examples((["a b"] * 60 + ["a b c d e f"] * 60,), np.array([0, 1] * 60))
    examples = Examples((["a", "a b c d e f g", "a"],), np.array([0, 0, 1]))
    cell_of, shares = assign_cells(like, examples, classes=2)
    assert len(set(cell_of.tolist())) == 3
    assert shares.sum() == pytest.approx(1)
    assert shares[cell_of].tolist() == pytest.approx([0.25, 0.25, 0.25])


def glue(task: str) -> RawTask:
    return load_task(resolve_task(task, data_dir=Path(GLUE_FOLDER) / task))


@needs_glue
@pytest.mark.timeout(60)
def test_real_sst2_is_carved_into_sentences() -> None:
    raw = glue("sst2")
    task = carve(raw, "carved", seed=0)
    held_out = task.splits["held_out"]
    left = task.splits["train"].texts[0]
    for name in ("selection", "certification"):
        carved = task.splits[name]
        assert len(carved) > 1_000
        assert carved.labels.mean() == pytest.approx(held_out.labels.mean(), abs=0.01)
        percentiles = [np.percentile(words_of(examples), [10, 25, 50, 75, 90]) for examples in (carved, held_out)]
        assert percentiles[0] == pytest.approx(percentiles[1], abs=1)
        texts = [normalised(text).split() for text in (*left, *carved.texts[0])]
        inner, outer = contained_pairs(texts)
        assert not ((inner < len(left)) != (outer < len(left))).any()
    assert len(left) >= 30_000


@needs_glue
@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", ["qqp", "mrpc", "rte", "stsb"])
def test_real_pairs_share_no_text_across_carved_splits(name: str) -> None:
    task = carve(glue(name), "carved", seed=0)
    found = [texts_of(task.splits[split]) for split in CARVED]
    assert not (found[0] & found[1] or found[0] & found[2] or found[1] & found[2])
    assert len(task.splits["certification"]) > 300
    if task.label_names:
        for split in ("selection", "certification"):
            assert task.splits[split].labels.mean() == pytest.approx(task.splits["held_out"].labels.mean(), abs=0.02)
