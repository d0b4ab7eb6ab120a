"""The pre-training example: what each objective hides, and that what it saves loads as any other model."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests import tiny
from tests.examples import ROOT as EXAMPLES
from tests.examples import example


@pytest.fixture
def objectives() -> ModuleType:
    return example("pretrain_objectives")


@pytest.fixture
def pretrain(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(EXAMPLES))  # a script finds its neighbours
    return example("pretrain")


def passages(count: int) -> list[tuple[str, str]]:
    rows = tiny.questions(count, 1)
    return [(str(row["question1"]), str(row["question2"])) for row in rows]


def xlnet(objectives: ModuleType) -> tuple[Any, Any, Any]:
    """A tiny model, its words, and a batch of four passages."""
    import torch

    torch.manual_seed(0)
    texts = (segment for passage in passages(200) for segment in passage)
    tokenizer = objectives.XLNet.train_tokenizer(texts, 120, 32)
    model = objectives.XLNet.fresh(tokenizer, 2, 64).eval()
    words = objectives.Words(tokenizer, passages(200), 0.2, torch.Generator().manual_seed(1))
    return model, words, words.encode(passages(4), return_tensors="pt")


def test_xlnet_guesses_a_word_without_seeing_it_nor_what_follows_in_the_order(objectives: ModuleType) -> None:
    import torch

    model, words, inputs = xlnet(objectives)
    ids = inputs["input_ids"]
    chosen = torch.zeros_like(ids, dtype=torch.bool)
    first, second = ids.shape[1] - 9, ids.shape[1] - 4
    chosen[:, [first, second]] = True
    hidden = objectives.XLNet.hide(inputs, chosen, words)
    labels = ids.masked_fill(~chosen, objectives.IGNORED)

    def guessed(changed: int | None) -> Any:
        """Logits of both words (rows, 2, vocabulary), with another word at one place."""
        other = ids.clone()
        if changed is not None:
            other[:, changed] = (other[:, changed] + 1) % len(words.tokenizer)
        batch = objectives.Batch({**hidden, "input_ids": other}, labels, torch.zeros(len(ids), dtype=torch.long))
        with torch.no_grad():
            return objectives.XLNet.guess(model, batch)["word"].logits.view(len(ids), 2, -1)

    before = guessed(None)
    differs = {place: (guessed(place) - before).abs().amax(-1) > 1e-6 for place in (first, second, second - 1)}
    assert not differs[first][:, 0].any()
    assert not differs[second][:, 1].any()
    # Of the two, one comes first: the other sees it and is not seen by it.
    assert (differs[first][:, 1] ^ differs[second][:, 0]).all()
    # What is not guessed, both see.
    assert differs[second - 1].all()


def test_a_batch_has_a_place_for_every_word_to_guess(objectives: ModuleType) -> None:
    model, words, inputs = xlnet(objectives)
    chosen = words.choose(inputs["input_ids"], inputs["token_type_ids"])
    hidden = objectives.XLNet.hide(inputs, chosen, words)
    labels = inputs["input_ids"].masked_fill(~chosen, objectives.IGNORED)
    guesses = objectives.XLNet.guess(model, objectives.Batch(hidden, labels, chosen.sum(1)))["word"]
    assert len(guesses.logits) == len(guesses.labels) == chosen.sum() > 0
    assert not set(guesses.labels.tolist()) & set(words.tokenizer.all_special_ids)


@pytest.mark.parametrize("architecture", ["bert", "xlnet"])
def test_what_is_saved_loads_and_can_be_stacked(
    pretrain: ModuleType, tmp_path: Path, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    text, shallow, deep = tmp_path / "text.txt", tmp_path / "shallow", tmp_path / "deep"
    text.write_text("".join(f"{first}\t{second}\n" for first, second in passages(300)), encoding="utf8")
    common = f"--text {text} --architecture {architecture} --batch-size 8 --minutes 0.01 --max-length 32"
    for command in (
        f"{common} --output {shallow} --layers 2 --width 64 --vocab-size 120",
        f"{common} --output {deep} --layers 4 --start-from {shallow}",
    ):
        monkeypatch.setattr("sys.argv", ["pretrain.py", *command.split()])
        pretrain.main()
    model = AutoModelForSequenceClassification.from_pretrained(deep)
    encoded = AutoTokenizer.from_pretrained(deep)("good film", "dull plot", return_tensors="pt")
    assert model.config.num_hidden_layers == 4
    assert model.config.model_type == architecture
    assert set(encoded["token_type_ids"].flatten().tolist()) >= {0, 1}
    assert model(**encoded).logits.shape == (1, 2)
    record = json.loads((deep / "pretraining.json").read_text("utf8"))
    assert record["curve"][0]["word_loss"] > 0
    assert record["curve"][-1]["steps"] == record["steps"]


def test_the_heads_of_a_fresh_bert_look_at_neighbours(objectives: ModuleType) -> None:
    import torch

    torch.manual_seed(0)
    texts = (segment for passage in passages(200) for segment in passage)
    tokenizer = objectives.Bert.train_tokenizer(texts, 120, 32)
    model = objectives.Bert.fresh(tokenizer, 2, 256).eval()
    model.set_attn_implementation("eager")
    ids = torch.randint(5, len(tokenizer), (50, 20))
    with torch.no_grad():
        first = model.bert(ids, output_attentions=True).attentions[0].mean(0)  # (heads, from, to)
    for head, offset in enumerate((-1, 1, -2, 2)):
        there, opposite = (float(torch.diagonal(first[head], side).mean()) for side in (offset, -offset))
        assert there > 0.3  # with even attention 0.05
        assert opposite < 0.03


def test_stacking_repeats_the_layers_in_their_order(pretrain: ModuleType, tmp_path: Path) -> None:
    import torch
    from transformers import XLNetLMHeadModel

    shallow = XLNetLMHeadModel.from_pretrained(tiny.make_xlnet(tmp_path / "xlnet", layers=3))
    deep = pretrain.stacked(shallow, 7)
    below = shallow.transformer.layer
    for index, layer in enumerate(deep.transformer.layer):
        assert torch.equal(layer.rel_attn.q, below[index % 3].rel_attn.q)
    assert torch.equal(deep.transformer.word_embedding.weight, shallow.transformer.word_embedding.weight)


def test_sentences_of_a_parquet_file_are_taken_two_and_two(pretrain: ModuleType, tmp_path: Path) -> None:
    sentences = [f"This is the sentence number {number} of the text." for number in range(5)]
    text = "Heading.\n" + " ".join(sentences) + "\nReferences."
    file = tiny.write_parquet(tmp_path / "text.parquet", [{"text": text}])
    kept, aside = pretrain.read_passages([file])
    assert aside + kept == [(sentences[0], sentences[1]), (sentences[2], sentences[3])]
