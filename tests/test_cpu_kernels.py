"""Dropout and attention of our own: what torch's are, but for the random numbers and rounding."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModelForSequenceClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

from budget_search.engine import cpu_kernels
from budget_search.engine.cpu_kernels import Masks
from budget_search.engine.device import Device
from tests.test_finetune import make_model, make_task, on_cpu
from tests.test_model_sweep import tiny_config

FP32, BF16 = Device("cpu", "fp32"), Device("cpu", "bf16")
attention = functional.scaled_dot_product_attention


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often our own functions, and no others, were called."""
    counts: Counter[str] = Counter()
    for function in (cpu_kernels._Attention, cpu_kernels._Dropout):
        forward = function.forward

        def counted(*arguments: Any, name: str = function.__name__, forward: Any = forward) -> torch.Tensor:
            counts[name] += 1
            result: torch.Tensor = forward(*arguments)
            return result

        monkeypatch.setattr(function, "forward", counted)
    return counts


def states(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """As a model has them, (batch, heads, tokens, width) in memory that lies otherwise."""
    batch, heads, tokens, width = shape
    return torch.randn(batch, tokens, heads, width).to(dtype).transpose(1, 2).requires_grad_()


def padding(batch: int, read: int, seen: int) -> torch.Tensor:
    """True where there is a token, for texts of different lengths."""
    lengths = torch.arange(batch) % seen + 1
    return (torch.arange(seen) < lengths[:, None])[:, None, None, :].expand(batch, 1, read, seen)


def with_gradients(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **more: Any) -> list[torch.Tensor]:
    result = attention(query, key, value, **more)
    return [result, *torch.autograd.grad(result.float().square().sum(), (query, key, value))]


# -- dropout --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_a_mask_drops_the_share_that_was_asked_for(dtype: torch.dtype, rate: float) -> None:
    count = 1_000_000
    mask, scale = Masks(3).draw((1000, 1000), dtype, rate)
    assert set(mask.unique().tolist()) == {-1, 0}
    dropped = (mask == 0).double()
    spread = (rate * (1 - rate) / count) ** 0.5
    assert abs(float(dropped.mean()) - rate) < 5 * spread
    assert scale == pytest.approx(1 / (1 - rate), rel=1e-3)
    # Neighbours, in memory and across, know nothing of each other.
    centred = dropped - dropped.mean()
    for other in (centred.roll(1, dims=1), centred.roll(1, dims=0), centred.roll(4, dims=1)):
        assert abs(float((centred * other).mean())) < 5 * rate * (1 - rate) / count**0.5


def test_masks_never_repeat_and_the_seed_fixes_them() -> None:
    first, again, other = Masks(3), Masks(3), Masks(4)
    drawn = [first.draw((7, 50_000), torch.bfloat16, 0.5)[0] for _ in range(9)]
    assert all(torch.equal(mask, again.draw((7, 50_000), torch.bfloat16, 0.5)[0]) for mask in drawn)
    everything = torch.cat(drawn).view(-1, 50_000)
    assert len(everything.unique(dim=0)) == len(everything)
    assert not torch.equal(drawn[0], other.draw((7, 50_000), torch.bfloat16, 0.5)[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_keeps_or_drops_a_value_and_its_gradient_alike(dtype: torch.dtype, taken: Counter[str]) -> None:
    values = torch.ones(3, 1000, 8, dtype=dtype).transpose(0, 1).requires_grad_()
    with cpu_kernels.cpu_kernels(FP32, 5):
        result = functional.dropout(values, 0.25, True)
    assert taken == {"_Dropout": 1}
    assert result.dtype == dtype
    kept = torch.tensor(1 / 0.75).to(dtype)
    assert set(result.unique().tolist()) == {0.0, float(kept)}
    assert float(result.detach().float().mean()) == pytest.approx(1, abs=0.02)
    (gradient,) = torch.autograd.grad(result.sum(), values)
    assert torch.equal(gradient, result)


@pytest.mark.parametrize("case", ["evaluation", "rate 0", "rate 1", "in place", "double", "outside", "no CPU"])
def test_dropout_out_of_the_ordinary_is_torch_s(case: str, taken: Counter[str]) -> None:
    values = torch.ones(100, 100, dtype=torch.float64 if case == "double" else torch.float32)
    rate = {"rate 0": 0.0, "rate 1": 1.0}.get(case, 0.5)
    device = Device("cuda:0", "bf16") if case == "no CPU" else FP32
    with cpu_kernels.cpu_kernels(device):
        if case != "outside":
            result = functional.dropout(values, rate, case != "evaluation", case == "in place")
    if case == "outside":
        result = functional.dropout(values, rate)
    assert not taken
    assert result.dtype == values.dtype
    assert float(result.mean()) == pytest.approx(0 if case == "rate 1" else 1, abs=0.1)
    assert result is values or case != "in place"


# -- attention ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seen", [1, 5, 16, 17, 40])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scale", [None, 0.5])
def test_attention_is_torch_s_in_bf16(seen: int, masked: bool, scale: float | None, taken: Counter[str]) -> None:
    torch.manual_seed(0)
    given = [states(6, 3, tokens, 8, dtype=torch.bfloat16) for tokens in (4, seen, seen)]
    exact = [each.detach().double().requires_grad_() for each in given]
    more = {"attn_mask": padding(6, 4, seen) if masked else None, "scale": scale}
    with cpu_kernels.cpu_kernels(BF16):
        ours = with_gradients(*given, **more)
    assert taken == {"_Attention": 1}
    for own, plain, wanted in zip(ours, with_gradients(*given, **more), with_gradients(*exact, **more), strict=True):
        assert (own.shape, own.dtype) == (plain.shape, plain.dtype)
        # As near to what double precision says as torch's own, which rounds as often.
        error, allowed = ((each.double() - wanted).abs().max() for each in (own, plain))
        assert error <= 2 * allowed + 0.01 * wanted.abs().max()


def test_attention_takes_what_autocast_makes_of_fp32(taken: Counter[str]) -> None:
    """Queries and keys as rotary positions leave them, values as a linear layer does."""
    given = [states(2, 3, 6, 8), states(2, 3, 6, 8), states(2, 3, 6, 8, dtype=torch.bfloat16)]
    with BF16.autocast():
        plain = attention(*given)
        with cpu_kernels.cpu_kernels(BF16):
            ours = attention(*given)
            attention(*(each.double() for each in given))
    assert taken == {"_Attention": 1}
    assert ours.dtype == plain.dtype == torch.bfloat16
    torch.testing.assert_close(ours, plain, rtol=0.02, atol=0.02)


def test_attention_with_dropout_has_torch_s_mean(taken: Counter[str]) -> None:
    torch.manual_seed(0)
    given = [states(4, 2, tokens, 8) for tokens in (3, 20, 20)]
    mask = padding(4, 3, 20)
    with cpu_kernels.cpu_kernels(FP32, 1):
        ours = [with_gradients(*given, attn_mask=mask, dropout_p=0.2) for _ in range(2000)]
    assert taken == {"_Attention": 2000}
    theirs = [with_gradients(*given, attn_mask=mask, dropout_p=0.2) for _ in range(2000)]
    for own, plain in zip(zip(*ours, strict=True), zip(*theirs, strict=True), strict=True):
        own_mean, plain_mean = torch.stack(own).mean(dim=0), torch.stack(plain).mean(dim=0)
        spread = (torch.stack(own).var(dim=0) + torch.stack(plain).var(dim=0)).div(2000).sqrt()
        assert ((own_mean - plain_mean).abs() <= 6 * spread + 1e-5).all()


def test_dropped_attention_is_dropped_on_the_way_back_too() -> None:
    """With one seen token there is one weight, 1: what comes out is 0 or its value over 0.8."""
    given = [states(50, 2, 1, 4) for _ in range(3)]
    with cpu_kernels.cpu_kernels(FP32, 1):
        result = attention(*given, dropout_p=0.2)
    kept = result.detach() / given[2].detach()
    assert set(kept.unique().round(decimals=4).tolist()) == {0.0, 1.25}
    (gradient,) = torch.autograd.grad(result.sum(), given[2])
    torch.testing.assert_close(gradient, kept)


@pytest.mark.parametrize("case", ["causal", "grouped", "float mask", "nothing to see", "double", "fp32"])
def test_attention_out_of_the_ordinary_is_torch_s(case: str, taken: Counter[str]) -> None:
    dtype = {"double": torch.float64, "fp32": torch.float32}.get(case, torch.bfloat16)
    query, key, value = (
        states(2, heads, 6, 8, dtype=dtype) for heads in (4, *([2] * 2 if case == "grouped" else [4] * 2))
    )
    more: dict[str, Any] = {
        "causal": {"is_causal": True},
        "grouped": {"enable_gqa": True},
        "float mask": {"attn_mask": torch.randn(2, 1, 6, 6).to(dtype)},
        "nothing to see": {"attn_mask": torch.zeros(2, 1, 6, 6, dtype=torch.bool)},
    }.get(case, {})
    with cpu_kernels.cpu_kernels(BF16):
        ours = attention(query, key, value, **more)
    assert not taken
    torch.testing.assert_close(ours, attention(query, key, value, **more), rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(3, 4, 14), (5, 1), (5, 16), (5, 20), (7,)])
@pytest.mark.parametrize("dim", [-1, 0])
@pytest.mark.parametrize("dtype", [None, torch.float64])
def test_softmax_is_torch_s(shape: tuple[int, ...], dim: int, dtype: torch.dtype | None) -> None:
    torch.manual_seed(0)
    scores = torch.randn(shape).mul(5)
    scores[..., :2] = torch.finfo(torch.float32).min
    scores.requires_grad_()
    upwards = torch.randn(shape, dtype=dtype)
    plain = functional.softmax(scores, dim, dtype=dtype)
    with cpu_kernels.cpu_kernels(FP32):
        ours = functional.softmax(scores, dim=dim, dtype=dtype)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(*(torch.autograd.grad(each, scores, upwards)[0] for each in (ours, plain)))


# -- whole models ---------------------------------------------------------------------------------------------------


def test_a_bert_calls_them_and_says_the_same(taken: Counter[str]) -> None:
    model, split = make_model(dropout=0.1), on_cpu(make_task())
    inputs = split.batch(np.arange(8))
    model.eval()
    with torch.inference_mode(), BF16.autocast():
        plain = model(**inputs).logits
        with cpu_kernels.cpu_kernels(BF16):
            ours = model(**inputs).logits
    assert taken == {"_Attention": 2}
    torch.testing.assert_close(ours.float(), plain.float(), rtol=0.02, atol=0.02)
    with cpu_kernels.cpu_kernels(FP32):
        model.train()(**inputs)
    # In both layers, besides the attention's: what it gives and what the feed-forward gives; embeddings and head.
    assert taken == {"_Attention": 4, "_Dropout": 6}


def far_from_plain(kind: str, taken: Counter[str]) -> str | None:
    """How an architecture's logits differ in bf16, "" where they do not; None where nothing of ours is used."""
    torch.manual_seed(0)
    inputs = {"input_ids": torch.randint(5, 20, (3, 11)), "attention_mask": torch.ones(3, 11, dtype=torch.long)}
    inputs["attention_mask"][0, -4:] = 0
    try:
        model = AutoModelForSequenceClassification.from_config(tiny_config(kind)).eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.2)
        with torch.inference_mode():
            exact = model(**inputs).logits
            with BF16.autocast():
                plain = model(**inputs).logits.float()
    except Exception:  # not every one can be built, or calculates in bf16
        return None
    taken.clear()
    with torch.inference_mode(), cpu_kernels.cpu_kernels(BF16), BF16.autocast():
        ours = model(**inputs).logits.float()
    if not taken:
        return None
    size = float(exact.abs().max())
    error, allowed = (float((each - exact).abs().max()) / size for each in (ours, plain))
    return "" if error <= 2 * allowed + 0.02 else f"{kind}: {error:.3f} where torch is off by {allowed:.3f}"


@pytest.mark.slow
@pytest.mark.xdist_group("architectures")
def test_no_architecture_says_anything_else(taken: Counter[str]) -> None:
    found = {kind: far_from_plain(kind, taken) for kind in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES}
    assert not [fault for fault in found.values() if fault]
    assert Counter(found.values())[""] >= 70
