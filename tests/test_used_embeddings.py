"""Training only the rows that occur changes nothing: the same weights as the plain loop, unused rows untouched."""

from __future__ import annotations

import math
from itertools import islice

import pytest
import torch
from torch.nn.utils import clip_grad_norm_
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    XLNetConfig,
    get_linear_schedule_with_warmup,
)

from budget_search.engine import finetune
from budget_search.engine.batches import DeviceSplit, training_order
from budget_search.engine.loss import loss_of
from budget_search.engine.optimizer import CLIP_NORM
from budget_search.engine.used_embeddings import OccurringRows, only_occurring_rows
from tests.test_finetune import CPU, RECIPE, VOCABULARY, make_task, on_cpu

UNUSED = 25  # rows of every model below that no text uses
ROWS = VOCABULARY + UNUSED
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
CONFIGS: dict[str, PreTrainedConfig] = {
    "bert": BertConfig(vocab_size=ROWS, **SMALL),
    # Counts positions by comparing the tokens with the padding token.
    "roberta": RobertaConfig(vocab_size=ROWS, pad_token_id=0, **SMALL),
    # Finds the last token by comparing with the padding token.
    "gpt2": GPT2Config(vocab_size=ROWS, n_embd=16, n_layer=2, n_head=2, pad_token_id=0, bos_token_id=1, eos_token_id=1),
    # Without dropout: its positions are fp32 even here, and masks for fp32 come from elsewhere than the plain loop's.
    "xlnet": XLNetConfig(
        vocab_size=ROWS, d_model=16, n_layer=2, n_head=2, d_inner=32, dropout=0.0, summary_last_dropout=0.0
    ),
}


def make(config: PreTrainedConfig) -> PreTrainedModel:
    """In double precision, so that an error in the method cannot hide among those of rounding."""
    torch.manual_seed(1)
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
    return model.double()


def plain_loop(model: PreTrainedModel, train: DeviceSplit, seed: int) -> None:
    """The recipe with nothing clever about it: every parameter whole, at every step."""
    steps = RECIPE.steps(train.examples)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RECIPE.lr, weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, math.ceil(RECIPE.warmup * steps), steps)
    torch.manual_seed(seed)
    model.train()
    for indices in islice(training_order(train.lengths, RECIPE.batch_size, seed), steps):
        loss_of(model(**train.batch(indices)).logits, train.labels[indices]).backward()
        clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("name", CONFIGS)
def test_the_weights_are_those_of_the_plain_loop_and_unused_rows_those_of_before(name: str) -> None:
    ours, theirs = make(CONFIGS[name]), make(CONFIGS[name])
    before = ours.get_input_embeddings().weight.detach().clone()
    split = on_cpu(make_task(pad_left=name == "xlnet"))
    finetune.fine_tune(ours, split, RECIPE, 1.0, 5, CPU)
    plain_loop(theirs, split, 5)
    ours_now, theirs_now = ours.state_dict(), theirs.state_dict()
    assert ours_now.keys() == theirs_now.keys()
    for key, weight in theirs_now.items():
        torch.testing.assert_close(ours_now[key], weight, rtol=1e-9, atol=1e-12)
    after = ours.get_input_embeddings().weight
    assert torch.equal(after[-UNUSED:], before[-UNUSED:])
    assert not torch.equal(after[: VOCABULARY // 2], before[: VOCABULARY // 2])


def test_only_the_rows_that_occur_are_parameters_meanwhile() -> None:
    model = make(CONFIGS["bert"])
    table = model.get_input_embeddings()
    split = on_cpu(make_task())
    with only_occurring_rows(model, split.vocabulary):
        part = model.get_input_embeddings()
        assert isinstance(part, OccurringRows)
        assert len(part.weight) == len(split.vocabulary) < ROWS
        assert all(parameter is not table.weight for parameter in model.parameters())
        torch.testing.assert_close(part(split.tokens), table(split.tokens), rtol=0, atol=0)
        with pytest.raises(IndexError):
            part(torch.tensor([ROWS - 1]))
    assert model.get_input_embeddings() is table


def test_what_was_trained_is_there_after_an_error_too() -> None:
    model = make(CONFIGS["bert"])
    table = model.get_input_embeddings()
    rows = torch.tensor([0, 9, 11])
    with pytest.raises(RuntimeError), only_occurring_rows(model, rows):
        with torch.no_grad():
            model.get_input_embeddings().weight.fill_(2.0)
        raise RuntimeError
    assert model.get_input_embeddings() is table
    assert (table.weight == 2).all(dim=1).nonzero().flatten().tolist() == rows.tolist()


class Scaled(torch.nn.Embedding):
    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return 3 * super().forward(input)


@pytest.mark.parametrize("case", ["scaled", "shared", "frozen"])
def test_a_table_that_is_more_than_a_lookup_stays_whole(case: str) -> None:
    model = make(CONFIGS["bert"])
    table = model.get_input_embeddings()
    if case == "scaled":
        model.set_input_embeddings(Scaled(ROWS, 16))
    elif case == "shared":
        model.decoder = torch.nn.Linear(16, ROWS, bias=False)
        model.decoder.weight = table.weight
    else:
        table.weight.requires_grad_(False)
    whole = model.get_input_embeddings()
    with only_occurring_rows(model, torch.tensor([0, 9])):
        assert model.get_input_embeddings() is whole
