"""Faster dropout and attention on a CPU, for inputs of the length of one or two texts.

torch draws dropout masks one number at a time, computes the softmax of rows shorter than 16 value by value, and
computes attention with dropout in fp32. For short texts this takes a seventh of a fine-tune. This module intercepts
these functions when any model calls them and replaces them by faster versions; unusual calls are passed on to torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from budget_search.engine.device import Device

# Rows of scores are padded to whole vectors of 16 numbers, because torch's softmax handles a remainder one by one.
ROW = 16
# The minimum number of dropout-mask bits drawn at a time.
BITS_AHEAD = 2**21
# The integer type with as many bits as a number.
BITS_OF = {torch.float32: torch.int32, torch.bfloat16: torch.int16}

Kernels = AbstractContextManager[object]


def cpu_kernels(device: Device, seed: int = 0) -> Kernels:
    """Inside, on a CPU, models call the functions of this module. It can be entered repeatedly; dropout masks continue
    the same random sequence, which the seed fixes."""
    return _Intercepted(seed) if device.kind == "cpu" else nullcontext()


class Masks:
    """Dropout masks from 64 random bits at a time: all bits of a number are set if its value is kept."""

    def __init__(self, seed: int) -> None:
        self._source = np.random.SFC64(seed)
        self._ahead: dict[tuple[torch.dtype, int], torch.Tensor] = {}

    def draw(self, shape: Sequence[int], dtype: torch.dtype, rate: float) -> tuple[torch.Tensor, float]:
        """A mask for numbers of this type, and the factor for kept values that preserves the mean.

        The rate is rounded to a multiple of 2^-15 for bfloat16, and of 2^-31 for float32.
        """
        bits, count = BITS_OF[dtype], math.prod(shape)
        values = 2 ** (8 * bits.itemsize - 1)
        dropped = min(round(rate * values), values - 1)
        ahead = self._ahead.get((bits, dropped))
        if ahead is None or len(ahead) < count:
            ahead = self._drawn(max(count, BITS_AHEAD // (8 * bits.itemsize)), bits, dropped)
        self._ahead[bits, dropped] = ahead[count:]
        return ahead[:count].view(*shape), values / (values - dropped)

    def _drawn(self, count: int, bits: torch.dtype, dropped: int) -> torch.Tensor:
        raw = torch.from_numpy(self._source.random_raw(math.ceil(count * bits.itemsize / 8)).view(np.int64)).view(bits)
        # Without the sign a number is uniform from 0 on; below ``dropped`` the difference is no less than zero, and its
        # sign, spread over all bits, is the mask.
        uniform = raw.bitwise_and_(torch.iinfo(bits).max)
        return uniform.neg_().add_(dropped - 1).bitwise_right_shift_(8 * bits.itemsize - 1)


def _masked(values: torch.Tensor, mask: torch.Tensor, scale: float) -> torch.Tensor:
    """Multiply dropped values by 0 and kept values by the scale."""
    return (values.view(mask.dtype) & mask).view(values.dtype).mul_(scale)


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, mask: torch.Tensor, scale: float) -> torch.Tensor:
        ctx.save_for_backward(mask)
        ctx.scale = scale
        return _masked(values, mask, scale)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        (mask,) = ctx.saved_tensors
        return _masked(gradient, mask, ctx.scale), None, None


class _Attention(torch.autograd.Function):
    """softmax(queries keys^T scale + bias), with dropout, times values (Vaswani et al., 2017, 3.2.1).

    Shapes: queries (batch, heads, read, width); keys and values (batch, heads, seen, width); bias, which broadcasts to
    (batch, heads, read, row); a row is padded with minus infinity beyond the keys. Products have the type of the
    queries, the softmax is fp32.
    """

    @staticmethod
    def forward(
        ctx: Any,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        bias: torch.Tensor,
        scale: float,
        drawn: tuple[torch.Tensor, float] | None,
    ) -> torch.Tensor:
        row = bias.shape[-1]
        ctx.shape, ctx.seen, ctx.scale, ctx.drawn = queries.shape, keys.shape[2], scale, drawn
        queries, keys, values = queries.flatten(0, 1), _filled(keys, row), _filled(values, row)
        scores = torch.bmm(queries, keys.mT).view(*ctx.shape[:3], row)
        weights = torch.softmax(torch.add(bias, scores, alpha=scale), dim=-1).to(queries.dtype).flatten(0, 1)
        ctx.save_for_backward(queries, keys, values, weights)
        return torch.bmm(_Attention._dropped(ctx, weights), values).view(ctx.shape)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        queries, keys, values, weights = ctx.saved_tensors
        gradient = gradient.flatten(0, 1)
        of_values = torch.bmm(_Attention._dropped(ctx, weights).mT, gradient)
        of_weights = _Attention._dropped(ctx, torch.bmm(gradient, values.mT))
        of_scores = torch.ops.aten._softmax_backward_data(of_weights.float(), weights.float(), -1, torch.float32)
        of_scores = of_scores.mul_(ctx.scale).to(queries.dtype)
        of_queries, of_keys = torch.bmm(of_scores, keys), torch.bmm(of_scores.mT, queries)
        of_keys, of_values = (each.unflatten(0, ctx.shape[:2])[:, :, : ctx.seen] for each in (of_keys, of_values))
        return of_queries.view(ctx.shape), of_keys, of_values, None, None, None

    @staticmethod
    def _dropped(ctx: Any, weights: torch.Tensor) -> torch.Tensor:
        if ctx.drawn is None:
            return weights
        mask, scale = ctx.drawn
        return _masked(weights, mask.view(weights.shape), scale)


def _filled(states: torch.Tensor, row: int) -> torch.Tensor:
    """(batch, heads, seen, width) to (batch * heads, row, width), padded with zeros."""
    batch, heads, seen, width = states.shape
    if seen == row:
        return states.flatten(0, 1)
    filled = states.new_zeros(batch, heads, row, width)
    filled[:, :, :seen] = states
    return filled.flatten(0, 1)


def _autocast(states: torch.Tensor) -> torch.Tensor:
    """Cast the factors of a product as autocast does."""
    if states.dtype == torch.float32 and torch.is_autocast_enabled("cpu"):
        return states.to(torch.get_autocast_dtype("cpu"))
    return states


def _softmax(
    input: torch.Tensor, dim: int | None = None, _stacklevel: int = 3, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """Softmax for models that implement attention themselves."""
    count = input.shape[-1] if input.dim() else 0
    if dim not in (-1, input.dim() - 1) or not 1 < count < ROW:
        return functional.softmax(input, dim, _stacklevel, dtype)
    filled = functional.pad(input, (0, ROW - count), value=-torch.inf)
    return functional.softmax(filled, -1, dtype=dtype)[..., :count]


class _Intercepted(TorchFunctionMode):
    def __init__(self, seed: int) -> None:
        super().__init__()
        self._masks = Masks(seed)
        self._own: dict[Callable[..., Any], Callable[..., Any]] = {
            functional.dropout: self._dropout,
            functional.scaled_dot_product_attention: self._attention,
            functional.softmax: _softmax,
        }
        # The last attention mask: all layers are given the same one.
        self._mask: torch.Tensor | None = None
        self._bias: torch.Tensor | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return self._own.get(func, func)(*args, **(kwargs or {}))

    def _dropout(
        self, input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> torch.Tensor:
        if not training or not 0 < p < 1 or inplace or input.dtype not in BITS_OF:
            return functional.dropout(input, p, training, inplace)
        dropped: torch.Tensor = _Dropout.apply(input, *self._masks.draw(input.shape, input.dtype, p))
        return dropped

    def _attention(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        query, key, value = map(_autocast, (query, key, value))
        usual = (
            not is_causal
            and not enable_gqa
            and query.dtype in BITS_OF
            and query.dim() == 4
            and query.shape[:2] == key.shape[:2]
            and query.shape[3] == value.shape[3]
            # torch's own is the faster one in fp32 without dropout.
            and (0 < dropout_p < 1 or (dropout_p == 0 and query.dtype == torch.bfloat16))
        )
        bias = self._bias_of(attn_mask, key.shape[2]) if usual else None
        if bias is None:
            return functional.scaled_dot_product_attention(
                query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )
        batch, heads, read, width = query.shape
        drawn = self._masks.draw((batch * heads, read, bias.shape[-1]), query.dtype, dropout_p) if dropout_p else None
        attended: torch.Tensor = _Attention.apply(
            query, key, value, bias, width**-0.5 if scale is None else scale, drawn
        )
        return attended

    def _bias_of(self, mask: torch.Tensor | None, seen: int) -> torch.Tensor | None:
        """The bias added to the scores of a row; None if the mask is more than a padding mask, or masks all keys of a
        query."""
        row = math.ceil(seen / ROW) * ROW
        if mask is None:
            bias = torch.zeros(1, 1, 1, row)
            bias[..., seen:] = -torch.inf
            return bias
        if mask is not self._mask:
            self._mask, self._bias = mask, None
            if mask.dim() == 4 and mask.shape[-1] == seen and mask.dtype == torch.bool and mask.any(dim=-1).all():
                self._bias = torch.full((*mask.shape[:-1], row), -torch.inf)
                self._bias[..., :seen].masked_fill_(mask, 0.0)
        return self._bias
