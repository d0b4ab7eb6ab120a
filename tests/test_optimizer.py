"""AdamW in one pass: the weights that torch's own leaves, and models that calculate with rounded ones meanwhile."""

from __future__ import annotations

import copy
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from budget_search.engine import finetune, optimizer, training_step
from budget_search.engine.device import Device
from budget_search.engine.optimizer import CLIP_NORM, clipped_adamw, rounded_weights, sum_in_fp32
from budget_search.engine.schedule import Schedule
from budget_search.engine.training_step import EagerSteps
from tests.test_finetune import RECIPE, make_model, make_task, on_cpu
from tests.test_last_layer import gradients
from tests.test_model_sweep import tiny_config

FP32, BF16 = Device("cpu", "fp32"), Device("cpu", "bf16")


def a_network() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(7, 40), nn.LayerNorm(40), nn.Linear(40, 5, bias=False))


def set_gradients(model: nn.Module, size: float, seed: int) -> None:
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = size * torch.randn_like(parameter)


@pytest.mark.parametrize(("device", "block"), [(FP32, 8), (FP32, 100), (FP32, 10_000), (Device("mps", "fp32"), 0)])
@pytest.mark.parametrize("size", [1e-3, 10.0], ids=["short", "clipped"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_is_torch_s(
    device: Device, block: int, size: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizer, "BLOCK", block)
    ours, theirs = a_network().to(dtype), a_network().to(dtype)
    own = clipped_adamw(ours, {}, 0.01, device)
    plain = torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.0)
    for step in range(5):
        set_gradients(ours, size, step)
        set_gradients(theirs, size, step)
        if step == 2:
            # As a layer's that was skipped.
            ours[0].weight.grad = theirs[0].weight.grad = None
        own.step()
        clip_grad_norm_(theirs.parameters(), CLIP_NORM)
        plain.step()
    tolerance = 1e-6 if dtype == torch.float32 else 1e-12
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def test_what_is_held_still_stays_though_products_are_rounded() -> None:
    model = make_model()
    model.bert.encoder.layer[0].requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    finetune.fine_tune(model, on_cpu(make_task()), RECIPE, 1.0, 3, BF16)
    moved = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert moved == {name for name, weight in model.named_parameters() if weight.requires_grad}


def test_linear_layers_hold_rounded_weights_meanwhile_and_the_update_keeps_them_so() -> None:
    model, split = make_model(), on_cpu(make_task())
    linear, weight = model.classifier, model.classifier.weight
    before, names = weight.detach().clone(), set(model.state_dict())
    with pytest.raises(ZeroDivisionError), rounded_weights(model, BF16) as rounded:
        own = clipped_adamw(model, rounded, 0.1, BF16)
        assert linear.weight is rounded[weight]
        assert linear.weight.dtype == torch.bfloat16
        assert model.bert.embeddings.LayerNorm.weight.dtype == torch.float32
        with BF16.autocast():
            model(**split.batch(split.lengths.argsort()[:4])).logits.sum().backward()
        own.step()
        assert torch.equal(linear.weight, weight.bfloat16())
        raise ZeroDivisionError
    assert linear.weight is weight
    assert not torch.equal(weight, before)
    assert set(model.state_dict()) == names


@pytest.mark.parametrize("device", [FP32, Device("cuda:0", "bf16")])
def test_elsewhere_nothing_is_rounded(device: Device) -> None:
    model = make_model()
    with rounded_weights(model, device) as rounded:
        assert not rounded
        assert {weight.dtype for weight in model.parameters()} == {torch.float32}


def test_a_weight_that_is_shared_or_more_than_a_product_is_not_rounded() -> None:
    class Scaled(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return 3 * super().forward(input)

    model = make_model()
    model.decoder = nn.Linear(16, len(model.get_input_embeddings().weight), bias=False)
    model.decoder.weight = model.get_input_embeddings().weight
    model.more = Scaled(3, 3)
    kept = [model.decoder.weight, model.more.weight, model.more.bias]
    with rounded_weights(model, BF16) as rounded:
        assert rounded
        assert not any(weight in rounded for weight in kept)
        assert [model.decoder.weight, model.more.weight, model.more.bias] == kept


def test_a_fine_tune_is_the_one_that_autocast_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs, split = make_model(), make_model(), on_cpu(make_task())
    finetune.fine_tune(ours, split, RECIPE, 1.0, 3, BF16)
    monkeypatch.setattr(optimizer, "_plain_linears", lambda model: [])
    finetune.fine_tune(theirs, split, RECIPE, 1.0, 3, BF16)
    weights = theirs.state_dict()
    for name, weight in ours.state_dict().items():
        # A norm of bf16 gradients is rounded too.
        torch.testing.assert_close(weight, weights[name], rtol=0.01, atol=1e-3)


def test_small_pieces_of_a_batch_add_up_beside_a_large_one() -> None:
    model = make_model()
    weight = model.classifier.weight
    before = weight.detach().clone()
    with rounded_weights(model, BF16) as rounded:
        own = clipped_adamw(model, rounded, 0.1, BF16)
        # In bf16 256 - 0.5 is 256: the weights would go the other way.
        for size in (256.0, *[-0.5] * 600):
            rounded[weight].grad = torch.full_like(rounded[weight], size)
            sum_in_fp32(rounded)
        own.step()
        own.zero_grad()
        assert weight.grad is None
    assert (weight > before).all()


def test_the_gradient_of_pieces_is_that_of_the_batch_and_not_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    def gradients_of(pieces: int) -> dict[str, torch.Tensor]:
        monkeypatch.setattr(training_step, "_fitted", {("cpu", 16): 16 // pieces})
        model, split = make_model(dropout=0.0), on_cpu(make_task())
        schedule = Schedule.over((np.arange(16),), RECIPE)
        found = dict[str, torch.Tensor]()
        with rounded_weights(model, BF16) as rounded:
            names = {rounded[weight]: weight for weight in rounded}

            def look(*_: object) -> None:
                for name, read in model.named_parameters():
                    if (weight := names.get(read)) is not None:
                        gradient = read.grad if weight.grad is None else weight.grad
                        assert gradient is not None
                        found[name] = gradient.float().clone()

            hook = register_optimizer_step_pre_hook(look)
            try:
                EagerSteps(model, split, RECIPE, schedule, 3, BF16, rounded).run(0)
            finally:
                hook.remove()
        return found

    whole, pieces = gradients_of(1), gradients_of(8)
    assert whole.keys() == pieces.keys()
    largest = max(float(gradient.abs().max()) for gradient in whole.values())
    for name, gradient in whole.items():
        torch.testing.assert_close(pieces[name], gradient, rtol=0.05, atol=0.01 * largest)
        assert torch.equal(gradient, gradient.bfloat16().float())
    assert not all(torch.equal(gradient, gradient.bfloat16().float()) for gradient in pieces.values())


def far_from_autocast(kind: str) -> str | None:
    """Which gradients rounded weights change in an architecture, "" if none; None where nothing is rounded."""
    torch.manual_seed(0)
    inputs = {"input_ids": torch.randint(5, 20, (3, 11)), "attention_mask": torch.ones(3, 11, dtype=torch.long)}
    try:
        model = AutoModelForSequenceClassification.from_config(tiny_config(kind)).eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2)
        with BF16.autocast():
            plain = gradients(model, inputs)
    except Exception:  # not every one can be built, or calculates in bf16
        return None
    with rounded_weights(model, BF16) as rounded:
        if not rounded:
            return None
        with BF16.autocast():
            ours = gradients(model, inputs)
    # What is but rounding, such as the gradient of a bias that softmax takes away again, may differ.
    rounding = 1e-4 * max(float(tensor.abs().max()) for tensor in plain.values())
    wrong = [
        name
        for name, gradient in plain.items()
        if (ours[name].float() - gradient).abs().max() > 0.01 * gradient.abs().max() + rounding
    ]
    return f"{kind}: {wrong}" if wrong else ""


@pytest.mark.slow
@pytest.mark.xdist_group("architectures")
def test_no_architecture_calculates_anything_else() -> None:
    found = {kind: far_from_autocast(kind) for kind in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES}
    assert not [fault for fault in found.values() if fault]
    assert Counter(found.values())[""] >= 90
