"""AdamW with clipped gradients; on a CPU, in one pass through memory.

A small batch updates every weight of a model for the products of a few hundred tokens, so that on a CPU much of a step
goes into carrying weights, gradients and moments to the core and back: to round weights for bf16 products, to bring
gradients back to fp32, to shrink them, to update. Here it all happens to a block of weights while it lies in the core's
cache, and linear layers read bf16 copies that the update leaves behind. Rounding happens where autocast has it, but for
the parts of the gradients' norm. Gradients of the pieces of a batch are summed in fp32.
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

# What linear layers read, by the weight that it was rounded from.
Rounded = Mapping[nn.Parameter, nn.Parameter]


def clipped_adamw(model: nn.Module, rounded: Rounded, lr: float, device: Device) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter, 2019) for a model whose rounded weights are these; a step first shrinks the
    gradients to a norm of at most 1.

    There is no weight decay: rows of the word table that no text uses must stay where they are.
    """
    if device.kind != "cpu":
        return _ClippedAdamW(model.parameters(), lr=lr, weight_decay=0.0, fused=device.kind == "cuda")
    sources = {copy: weight for weight, copy in rounded.items()}
    trained = [each for each in model.parameters() if each.requires_grad]
    return _BlockwiseAdamW({each: sources.get(each, each) for each in trained}, lr)


@contextmanager
def rounded_weights(model: PreTrainedModel, device: Device) -> Iterator[Rounded]:
    """Inside, linear layers hold bf16 copies of their weights where products are bf16 on a CPU; afterwards the weights
    themselves again.

    A layer that is more than a product, or shares its weights, keeps them; autocast rounds these.
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
    """Add the bf16 gradients of what linear layers read to the fp32 gradients of the weights, and clear them.

    For a batch in pieces: a sum in bf16 would lose every piece that is small beside the sum.
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
        # Exactly this class: what others do with their weights is theirs to know.
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
    """A stretch of one weight: where its gradient is found, and the same stretch of all that a step changes."""

    index: int
    place: slice
    weight: torch.Tensor
    moments: tuple[torch.Tensor, torch.Tensor]
    copy: torch.Tensor | None


class _BlockwiseAdamW(torch.optim.Optimizer):
    """Over weights, each with what the model calculates with in its place: itself, or a bf16 copy."""

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
        # A skipped layer has no gradients, and stays as it is.
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
    """Neighbours together, as long as they make no more than one block."""
    size, starts = 0, [0]
    for number, piece in enumerate(pieces):
        size += piece.weight.numel()
        if size > BLOCK and number:
            starts.append(number)
            size = piece.weight.numel()
    yield from (pieces[start:end] for start, end in pairwise([*starts, len(pieces)]))
