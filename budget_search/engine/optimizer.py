"""AdamW with clipped gradients; on a CPU, in one pass through memory.

With small batches on a CPU, much of a training step is memory traffic: separate passes over weights, gradients and
moments round the weights for bf16 products, convert gradients to fp32, clip them and update the weights. Here all of
this is done for one block of weights while it is in the core's cache, and linear layers read the bf16 copies that
the update writes. Rounding happens where autocast rounds, except in the gradient norm. Gradients of micro-batches are
summed in fp32.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn.utils import get_total_norm
from transformers import PreTrainedModel

from budget_search.engine.device import Device

CLIP_NORM = 1.0
BETAS, EPSILON = (0.9, 0.999), 1e-8
# Weights of a block, 4 MB with gradient and moments: the fastest of 2^14 to 2^20 (studies/LOG.md, 2026-11-26).
BLOCK = 2**18

# The bf16 copies that linear layers read, by original weight.
Rounded = Mapping[nn.Parameter, nn.Parameter]


def clipped_adamw(model: nn.Module, rounded: Rounded, lr: float, device: Device) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter, 2019) for a model with these rounded weights; gradients are first clipped to a norm
    of at most 1.

    There is no weight decay, so that unused rows of the word embeddings do not change.
    """
    if device.kind != "cpu":
        return _ClippedAdamW(model.parameters(), lr=lr, weight_decay=0.0, fused=device.kind == "cuda")
    sources = {copy: weight for weight, copy in rounded.items()}
    trained = [each for each in model.parameters() if each.requires_grad]
    return _BlockwiseAdamW({each: sources.get(each, each) for each in trained}, lr)


@contextmanager
def rounded_weights(model: PreTrainedModel, device: Device) -> Iterator[Rounded]:
    """Inside, if products are bf16 on a CPU, linear layers hold bf16 copies of their weights, which are restored
    afterwards.

    Subclasses of linear layers and layers with shared weights keep their weights; autocast rounds these.
    """
    rounded = dict[nn.Parameter, nn.Parameter]()
    layers = _plain_linears(model) if (device.kind, device.precision) == ("cpu", "bf16") else []
    for layer, name in layers:
        weight = layer.get_parameter(name)
        rounded[weight] = nn.Parameter(weight.detach().bfloat16(), weight.requires_grad)
        setattr(layer, name, rounded[weight])
    try:
        yield rounded
    finally:
        for (layer, name), weight in zip(layers, rounded, strict=True):
            setattr(layer, name, weight)


def sum_in_fp32(rounded: Rounded) -> None:
    """Add the gradients of the bf16 copies to the fp32 gradients of the weights, and clear them.

    For micro-batches: a sum in bf16 would lose small summands.
    """
    for weight, copy in rounded.items():
        if copy.grad is not None:
            piece = copy.grad.to(weight.dtype)
            weight.grad = piece if weight.grad is None else weight.grad.add_(piece)
            copy.grad = None


def _plain_linears(model: PreTrainedModel) -> list[tuple[nn.Linear, str]]:
    """Linear layers and the names of their fp32 weights, each weight used once."""
    uses = Counter(weight for _, weight in model.named_parameters(remove_duplicate=False))
    return [
        (layer, name)
        for layer in model.modules()
        # Exactly this class: subclasses may use their weights differently.
        if type(layer) is nn.Linear
        for name, weight in layer.named_parameters(recurse=False)
        if weight.dtype == torch.float32 and uses[weight] == 1
    ]


class _ClippedAdamW(torch.optim.AdamW):
    def step(self, closure: Any = None) -> Any:
        torch.nn.utils.clip_grad_norm_(self.param_groups[0]["params"], CLIP_NORM)
        return super().step(closure)


@dataclass(frozen=True)
class _Piece:
    """A slice of one weight, with the position of its gradient and the same slice of everything a step updates."""

    index: int
    place: slice
    weight: torch.Tensor
    moments: tuple[torch.Tensor, torch.Tensor]
    copy: torch.Tensor | None


class _BlockwiseAdamW(torch.optim.Optimizer):
    """AdamW over weights, each mapped to the tensor that the model computes with: itself or a bf16 copy."""

    def __init__(self, weights: Mapping[nn.Parameter, nn.Parameter], lr: float) -> None:
        # Each once: weights have gradients of their own where a batch came in pieces.
        super().__init__(list(dict.fromkeys([*weights, *weights.values()])), {"lr": lr})
        self._weights = list(weights.items())
        self._steps = [torch.zeros(()) for _ in weights]
        pieces = [
            piece for index, (read, weight) in enumerate(weights.items()) for piece in _pieces(index, read, weight)
        ]
        self._blocks = list(_blocks(pieces))

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        # A skipped layer has no gradients and is not updated.
        found = (read.grad if weight.grad is None else weight.grad for read, weight in self._weights)
        gradients = {index: each.reshape(-1) for index, each in enumerate(found) if each is not None}
        shrink = CLIP_NORM / (float(get_total_norm(list(gradients.values()))) + 1e-6)
        for index in gradients:
            self._steps[index] += 1
        for block in self._blocks:
            if there := [piece for piece in block if piece.index in gradients]:
                self._update(there, gradients, min(shrink, 1.0))

    def _update(self, block: Sequence[_Piece], gradients: Mapping[int, torch.Tensor], shrink: float) -> None:
        weights = [piece.weight for piece in block]
        found = [gradients[piece.index][piece.place].to(piece.weight.dtype) for piece in block]
        if shrink < 1:
            torch._foreach_mul_(found, shrink)
        # What torch.optim.AdamW(fused=True) calls, without the tens of microseconds around it.
        torch._fused_adamw_(
            weights,
            found,
            [piece.moments[0] for piece in block],
            [piece.moments[1] for piece in block],
            [],
            [self._steps[piece.index] for piece in block],
            lr=float(self.param_groups[0]["lr"]),
            beta1=BETAS[0],
            beta2=BETAS[1],
            weight_decay=0.0,
            eps=EPSILON,
            amsgrad=False,
            maximize=False,
        )
        for piece in block:
            if piece.copy is not None:
                piece.copy.copy_(piece.weight)


def _pieces(index: int, read: nn.Parameter, weight: nn.Parameter) -> Iterator[_Piece]:
    flat, copy = weight.detach().view(-1), None if read is weight else read.detach().view(-1)
    moments = torch.zeros_like(flat), torch.zeros_like(flat)
    for start in range(0, flat.numel(), BLOCK):
        place = slice(start, start + BLOCK)
        yield _Piece(
            index, place, flat[place], (moments[0][place], moments[1][place]), None if copy is None else copy[place]
        )


def _blocks(pieces: Sequence[_Piece]) -> Iterator[Sequence[_Piece]]:
    """Group consecutive pieces into blocks of limited size."""
    size, starts = 0, [0]
    for number, piece in enumerate(pieces):
        size += piece.weight.numel()
        if size > BLOCK and number:
            starts.append(number)
            size = piece.weight.numel()
    yield from (pieces[start:end] for start, end in pairwise([*starts, len(pieces)]))
