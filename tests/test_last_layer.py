"""What the last layer calculates for tokens that nobody reads can go: same logits, same gradients, less work."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    XLMConfig,
    XLNetConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from budget_search.engine import finetune, training_step
from budget_search.engine.batches import DeviceSplit
from budget_search.engine.last_layer import ReadToken, find_tail, only_read_token
from budget_search.models.keep_layers import find_layers
from tests.test_finetune import CPU, RECIPE, VOCABULARY, make_task, on_cpu
from tests.test_model_sweep import tiny_config
from tests.test_used_embeddings import SMALL, plain_loop

FIRST, LAST = ReadToken(axis=1, place=0), ReadToken(axis=0, place=-1)
# What it is about: the reference draws other numbers.
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
BERT = BertConfig(vocab_size=VOCABULARY, **SMALL, **STILL)
CONFIGS: dict[str, tuple[PreTrainedConfig, ReadToken, str]] = {
    "bert": (BERT, FIRST, "attention.output"),
    "roberta": (RobertaConfig(vocab_size=VOCABULARY, pad_token_id=0, **SMALL, **STILL), FIRST, "attention.output"),
    "distilbert": (
        DistilBertConfig(
            vocab_size=VOCABULARY, dim=16, n_layers=2, n_heads=2, hidden_dim=32, dropout=0.0, attention_dropout=0.0,
            seq_classif_dropout=0.0,
        ),
        FIRST,
        "sa_layer_norm",
    ),
    # The sequence comes first, its last token is read, and padding stands on the left.
    "xlnet": (
        XLNetConfig(vocab_size=VOCABULARY, d_model=16, n_layer=2, n_head=2, d_inner=32, dropout=0.0,
                    summary_last_dropout=0.0),
        LAST,
        "rel_attn.layer_norm",
    ),
    # Spread over parallel lists of modules, of which the feed-forward's is the third.
    "xlm": (
        XLMConfig(vocab_size=VOCABULARY, emb_dim=16, n_layers=2, n_heads=2, dropout=0.0, attention_dropout=0.0,
                  pad_index=0),
        FIRST,
        "",
    ),
}  # fmt: skip
AVERAGING = XLNetConfig(vocab_size=VOCABULARY, d_model=16, n_layer=2, n_head=2, d_inner=32, summary_type="mean")
DECODER = GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=2, n_head=2, pad_token_id=0)


def make(config: PreTrainedConfig) -> PreTrainedModel:
    """In double precision, so that an error in the method cannot hide among those of rounding."""
    torch.manual_seed(1)
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
    return model.double()


def texts(*, pad_left: bool = False) -> DeviceSplit:
    return on_cpu(make_task(pad_left=pad_left))


@pytest.mark.parametrize("name", CONFIGS)
def test_a_fine_tune_ends_with_the_weights_of_the_plain_loop(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # XLM's softmax is fp32 even here, and one of our own rounds otherwise.
    monkeypatch.setattr(training_step, "cpu_kernels", lambda *_: nullcontext())
    config, token, beginning = CONFIGS[name]
    ours, theirs = make(config), make(config)
    split = texts(pad_left=name == "xlnet")
    tail = find_tail(ours, split)
    assert tail is not None
    assert (tail.token, tail.name) == (token, beginning)
    with only_read_token(ours, tail):
        finetune.fine_tune(ours, split, RECIPE, 1.0, 5, CPU)
    plain_loop(theirs, split, 5)
    weights = theirs.state_dict()
    for key, weight in ours.state_dict().items():
        torch.testing.assert_close(weight, weights[key], rtol=1e-7, atol=1e-10)


def tokens_behind(model: PreTrainedModel, split: DeviceSplit) -> int:
    """For how many tokens of four examples the last layer's feed-forward is calculated."""
    seen: list[int] = []
    with model.bert.encoder.layer[-1].output.dense.register_forward_hook(
        lambda module, args, output: seen.append(output.shape[0] * output.shape[1])
    ):
        model(**split.batch(np.arange(4)))
    return seen[0]


def test_one_token_of_each_example_is_calculated_and_all_of_them_afterwards() -> None:
    model, split = make(BERT), texts()
    whole = 4 * int(split.lengths[:4].max())
    assert tokens_behind(model, split) == whole
    tail = find_tail(model, split)
    with pytest.raises(ZeroDivisionError), only_read_token(model, tail):
        assert tokens_behind(model, split) == 4
        raise ZeroDivisionError
    assert tokens_behind(model, split) == whole
    with only_read_token(model, None):
        assert tokens_behind(model, split) == whole


def test_looking_for_it_leaves_the_model_as_it_was() -> None:
    model, split = make(BERT).train(), texts()
    before = copy.deepcopy(model.state_dict())
    find_tail(model, split)
    assert model.training
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_attention_sees_all_tokens_however_little_they_weigh() -> None:
    model, split = make(BERT), texts()
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            layer.attention.output.dense.weight.mul_(1e-9)
    tail = find_tail(model, split)
    assert tail is not None
    assert tail.name == "attention.output"


def test_an_attention_that_does_nothing_yet_is_not_cut_away() -> None:
    model = make(BERT)
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            layer.attention.output.dense.weight.zero_()
    assert find_tail(model, texts()) is None


def equally_long(split: DeviceSplit) -> DeviceSplit:
    """The first tokens of every text: as if all were as long as the shortest."""
    shortest = int(split.lengths.min())
    sizes, lengths = torch.full_like(split.sizes, shortest), np.full_like(split.lengths, shortest)
    return dataclasses.replace(split, sizes=sizes, lengths=lengths)


def test_a_head_that_reads_more_than_one_place_has_no_tail() -> None:
    assert find_tail(make(AVERAGING), texts(pad_left=True)) is None
    # The last word of each text, wherever padding begins.
    assert find_tail(make(DECODER), texts()) is None
    # Which of the two it reads, texts of one length do not tell.
    assert find_tail(make(DECODER), equally_long(texts())) is None


def test_a_layer_of_another_kind_is_left_alone() -> None:
    model, split = make(BERT), texts()
    tail = find_tail(model, split)

    class Other(type(find_layers(model)[-1][0])):  # type: ignore[misc]
        pass

    model.bert.encoder.layer[-1].__class__ = Other
    with only_read_token(model, tail):
        assert tokens_behind(model, split) > 4


def faults_with(kind: str) -> str | None:
    """Of an architecture: what the tail changes, nothing (""), or None where there is no tail."""
    torch.manual_seed(0)
    try:
        model = AutoModelForSequenceClassification.from_config(tiny_config(kind))
        find_layers(model)
    except Exception:  # not every one can be built, or has one stack of layers: tests/test_model_sweep.py
        return None
    for name in ("use_cache", "use_mems_eval"):
        if hasattr(model.config, name):
            setattr(model.config, name, False)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    split = dataclasses.replace(texts(pad_left=True), segments=None, pad_token=1)
    tail = find_tail(model, split)
    if tail is None:
        return None
    model.eval()
    inputs = split.batch(np.arange(10, 15))
    whole = gradients(model, inputs)
    with only_read_token(model, tail):
        narrowed = gradients(model, inputs)
    assert whole.keys() == narrowed.keys()
    # Experts know no double precision; what is but rounding, such as the gradient of a choice among one, may differ.
    rounding = 1e-6 * max(float(tensor.abs().max()) for tensor in whole.values())
    wrong = [name for name in whole if not torch.allclose(narrowed[name], whole[name], rtol=1e-3, atol=rounding)]
    return f"{kind}: {wrong}" if wrong else ""


def gradients(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of every weight that has one, and the logits."""
    model.zero_grad()
    logits = model(**inputs).logits
    logits.square().sum().backward()
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return {**found, "logits": logits.detach()}


@pytest.mark.slow
@pytest.mark.xdist_group("architectures")
def test_no_architecture_is_changed() -> None:
    found = {kind: faults_with(kind) for kind in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES}
    assert not [fault for fault in found.values() if fault]
    # With padding on the left decoders, which read the last token, as well as encoders, which read the first.
    assert Counter(found.values())[""] >= 90
