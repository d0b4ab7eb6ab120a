"""The training loop: same seed, same model; short memory, same model; numbers that blow up are noticed."""

from __future__ import annotations

import copy
from itertools import islice

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import BertConfig, BertForSequenceClassification, XLNetConfig, XLNetForSequenceClassification

from budget_search.core.config import Recipe
from budget_search.data.tokenization import EncodedSplit, EncodedTask
from budget_search.engine import finetune, training_step
from budget_search.engine.batches import DeviceSplit, reading_order, training_order
from budget_search.engine.device import Device

CPU = Device("cpu", "fp32")
RECIPE = Recipe("test", epochs=3, train_examples=None, batch_size=8, lr=3e-3, max_length=32, warmup=0.1)
VOCABULARY = 40


def make_task(examples: int = 64, *, regression: bool = False, pad_left: bool = False) -> EncodedTask:
    """Texts of random tokens; token 7 decides the label."""
    random = np.random.default_rng(0)
    lengths = random.integers(4, 20, examples)
    tokens = random.integers(8, VOCABULARY, lengths.sum()).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    labels = random.integers(0, 2, examples)
    tokens[offsets[:-1][labels == 1] + 2] = 7
    split = EncodedSplit(
        tokens=tokens,
        segments=np.zeros_like(tokens, dtype=np.uint8),
        offsets=offsets,
        labels=labels.astype(np.float32) * 2.5 if regression else labels.astype(np.int64),
    )
    return EncodedTask(
        splits={"train": split},
        label_names=() if regression else ("no", "yes"),
        metric="pearson" if regression else "accuracy",
        also=(),
        pad_token=0,
        pad_segment=3 if pad_left else 0,
        pad_left=pad_left,
    )


def on_cpu(task: EncodedTask) -> DeviceSplit:
    return DeviceSplit.of(task, task.splits["train"], "cpu")


def make_model(classes: int = 2, dropout: float = 0.1) -> BertForSequenceClassification:
    torch.manual_seed(1)
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
            hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, num_labels=classes,
        )
    )  # fmt: skip


def weights_after(seed: int) -> dict[str, torch.Tensor]:
    model = make_model()
    finetune.fine_tune(model, on_cpu(make_task()), RECIPE, 1.0, seed, CPU)
    return model.state_dict()


def test_the_same_seed_gives_the_same_model_and_another_does_not() -> None:
    first, again, other = weights_after(5), weights_after(5), weights_after(6)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_it_learns() -> None:
    model, split = make_model(), on_cpu(make_task())
    finetune.fine_tune(model, split, Recipe("long", 30, None, 8, 3e-3, 32, 0.1), 1.0, 1, CPU)
    outputs = finetune.predict(model, split, CPU)
    assert (outputs.argmax(axis=1) == split.labels.numpy()).mean() > 0.95


def test_it_learns_scores() -> None:
    model, split = make_model(classes=1), on_cpu(make_task(regression=True))
    finetune.fine_tune(model, split, Recipe("long", 30, None, 8, 3e-3, 32, 0.1), 1.0, 1, CPU)
    assert np.corrcoef(finetune.predict(model, split, CPU)[:, 0], split.labels.numpy())[0, 1] > 0.9


@pytest.mark.parametrize(("rung", "steps"), [(1.0, 24), (0.5, 12), (0.001, 1)])
def test_a_rung_is_a_fraction_of_the_steps_with_a_schedule_of_its_own(rung: float, steps: int) -> None:
    rates: list[float] = []
    watch = register_optimizer_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
    try:
        done = finetune.fine_tune(make_model(), on_cpu(make_task()), RECIPE, rung, 1, CPU)
    finally:
        watch.remove()
    assert done.steps == len(rates) == steps
    if steps > 1:
        assert rates[0] < max(rates)
        assert rates[-1] == pytest.approx(max(rates) / (steps - round(steps * 0.1 + 0.499)), rel=0.3)


def test_out_of_memory_halves_the_batch_accumulates_and_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_step, "_fitted", {})
    split = on_cpu(make_task())
    plain, short = make_model(dropout=0.0), make_model(dropout=0.0)
    refused: list[int] = []
    forward = short.forward

    def short_of_memory(input_ids: torch.Tensor, **inputs: torch.Tensor) -> object:
        if len(input_ids) > 2:
            refused.append(len(input_ids))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return forward(input_ids=input_ids, **inputs)

    monkeypatch.setattr(short, "forward", short_of_memory)
    finetune.fine_tune(plain, split, RECIPE, 1.0, 1, CPU)
    finetune.fine_tune(short, split, RECIPE, 1.0, 1, CPU)
    assert refused == [8, 4]
    for name, weight in plain.state_dict().items():
        torch.testing.assert_close(short.state_dict()[name], weight, rtol=1e-3, atol=1e-4)


def test_out_of_memory_with_one_example_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_step, "_fitted", {})
    model = make_model()

    def never_fits(**inputs: torch.Tensor) -> object:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    monkeypatch.setattr(model, "forward", never_fits)
    with pytest.raises(MemoryError, match=r"one example of \d+ tokens"):
        finetune.fine_tune(model, on_cpu(make_task()), RECIPE, 1.0, 1, CPU)


def test_other_errors_are_not_taken_for_lack_of_memory() -> None:
    assert not training_step.out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert training_step.out_of_memory(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"))


def test_a_loss_that_is_no_number_stops_the_fine_tune() -> None:
    model = make_model()
    with torch.no_grad():
        model.classifier.weight.fill_(float("nan"))
    with pytest.raises(finetune.DivergedError, match="nan"):
        finetune.fine_tune(model, on_cpu(make_task()), RECIPE, 1.0, 1, CPU)


def test_predictions_come_in_the_order_of_the_examples() -> None:
    model, split = make_model().eval(), on_cpu(make_task())
    outputs = finetune.predict(model, split, CPU)
    with torch.inference_mode():
        for index in (0, 13, 63):
            alone = model(**split.batch(np.array([index]))).logits[0]
            np.testing.assert_allclose(outputs[index], alone.numpy(), rtol=1e-4, atol=1e-5)


def test_padding_on_the_left_leaves_xlnets_outputs_alone() -> None:
    torch.manual_seed(1)
    model = XLNetForSequenceClassification(
        XLNetConfig(vocab_size=VOCABULARY, d_model=16, n_layer=2, n_head=2, d_inner=32)
    ).eval()
    split = on_cpu(make_task(pad_left=True))
    shortest, longest = int(split.lengths.argmin()), int(split.lengths.argmax())
    padded = split.batch(np.array([shortest, longest]))
    assert padded["attention_mask"][0].tolist() == sorted(padded["attention_mask"][0].tolist())
    assert padded["token_type_ids"][0, 0] == 3
    with torch.inference_mode():
        together = model(**padded).logits[0]
        alone = model(**split.batch(np.array([shortest]))).logits[0]
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_an_epoch_shows_every_example_once_in_batches_of_like_length() -> None:
    lengths = np.random.default_rng(0).integers(3, 100, 1000)
    batches = list(islice(training_order(lengths, 16, seed=4), 63))
    assert sorted(np.concatenate(batches)) == list(range(1000))
    within = np.mean([np.ptp(lengths[batch]) for batch in batches])
    assert within < 0.3 * np.ptp(lengths)
    assert not np.array_equal(batches[0], next(training_order(lengths, 16, seed=5)))
    # The second epoch is another order of the same examples.
    both = list(islice(training_order(lengths, 16, seed=4), 126))
    assert sorted(np.concatenate(both[63:])) == list(range(1000))
    assert not np.array_equal(both[0], both[63])


def test_reading_shows_every_example_once_within_the_tokens_allowed() -> None:
    lengths = np.random.default_rng(0).integers(3, 100, 500)
    batches = list(reading_order(lengths, 600))
    assert sorted(np.concatenate(batches)) == list(range(500))
    assert all(len(batch) == 1 or len(batch) * lengths[batch].max() <= 600 for batch in batches)


def test_bf16_stays_near_fp32() -> None:
    model, split = make_model().eval(), on_cpu(make_task())
    exact = finetune.predict(model, split, CPU)
    rounded = finetune.predict(copy.deepcopy(model), split, Device("cpu", "bf16"))
    assert 0 < np.abs(exact - rounded).max() < 0.05
