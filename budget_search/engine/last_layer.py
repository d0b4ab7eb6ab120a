"""After its attention, compute the last layer only for the token that the head reads.

A classification head reads the hidden state of one token: the first in BERT, the last in XLNet. Other tokens affect it
only through the attention of the last layer. The outputs of the modules after that attention, mainly the feed-forward,
are unused for them. Skipping these saves three quarters of a layer's FLOPs: an eighth of a six-layer model, a quarter
of a three-layer model.

No model is known by name: a gradient shows which token is read, and trials show from which module on it suffices.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from budget_search.core.errors import UnsupportedModelError
from budget_search.engine.batches import DeviceSplit
from budget_search.models.keep_layers import find_layers, keep_layers

# Relative to the largest value: products of other shapes round differently.
TOLERANCE = 1e-3

Inputs = Mapping[str, torch.Tensor]
# A layer's modules: several where it is spread over parallel lists.
Layer = Sequence[nn.Module]


@dataclass(frozen=True)
class ReadToken:
    """The token that the head reads: the first (0) or last (-1) along this axis of the hidden states."""

    axis: int
    place: int

    def of(self, value: Any) -> Any:
        """Slice this token out of hidden states, keeping their three axes; return any other value unchanged."""
        if not isinstance(value, torch.Tensor) or value.dim() != 3:
            return value
        return value.narrow(self.axis, 0 if self.place == 0 else value.shape[self.axis] - 1, 1)


@dataclass(frozen=True)
class Tail:
    """The part of the last layer that needs only that token: everything from the module ``name`` on, inside the
    ``part``-th module of layers of this ``kind``."""

    token: ReadToken
    part: int
    name: str
    kind: tuple[type[nn.Module], ...]


@dataclass(frozen=True)
class _Seen:
    """The logits (examples, classes), the hidden states that the last layer received, and the outputs of its modules in
    call order."""

    logits: torch.Tensor
    given: torch.Tensor
    made: Sequence[torch.Tensor]

    @property
    def size(self) -> int:
        return sum(states.numel() for states in self.made)

    def gradient(self, states: torch.Tensor) -> torch.Tensor | None:
        """The gradient of the first logits with respect to these states; None if the logits do not depend on them."""
        if not states.requires_grad:
            return None
        return torch.autograd.grad(self.logits[:, 0].sum(), states, retain_graph=True, allow_unused=True)[0]


@contextmanager
def only_read_token(model: PreTrainedModel, tail: Tail | None) -> Iterator[None]:
    """Inside, the model skips unused outputs. Logits and gradients stay the same up to rounding; dropout draws other
    random numbers."""
    layer = find_layers(model)[-1] if tail else ()
    with ExitStack() as hooks:
        if tail and _kind(layer) == tail.kind:
            hooks.enter_context(_narrowed(layer, tail))
        yield


def find_tail(model: PreTrainedModel, split: DeviceSplit) -> Tail | None:
    """The tail that saves the most computation without changing the result for two examples of the split. None if there
    is none, or if the head reads every token. Model and split are on the same device.

    Raises UnsupportedModelError.
    """
    inputs = {} if split.per_token else _two_lengths(split)
    if not inputs:
        return None
    shallow = _shallow(model).eval()
    with torch.enable_grad():
        return _smallest_tail(shallow, inputs, find_layers(shallow)[-1])


def _shallow(model: PreTrainedModel) -> PreTrainedModel:
    """A copy with only the last layer if possible, because every trial is a forward pass through the whole model."""
    try:
        return keep_layers(model, [len(find_layers(model)) - 1])
    except UnsupportedModelError:
        return copy.deepcopy(model)


def _two_lengths(split: DeviceSplit) -> dict[str, torch.Tensor]:
    """A batch with padding, to tell a head that reads the last real token from one that reads the last position. Empty
    if all examples have the same length."""
    order = np.argsort(split.lengths, kind="stable")
    short = order[len(order) // 4]
    longer = order[split.lengths[order] > split.lengths[short]]
    return split.batch(np.array([short, longer[0]])) if len(longer) else {}


def _smallest_tail(model: PreTrainedModel, inputs: Inputs, layer: Layer) -> Tail | None:
    whole = _watched(model, inputs, layer)
    token = _read_token(whole) if whole else None
    if whole is None or token is None:
        return None
    least, found = whole.size, None
    for tail in _possible(layer, token):
        try:
            with _narrowed(layer, tail):
                seen = _watched(model, inputs, layer)
        except Exception:  # other people's code that expects all tokens, each model in its own way
            continue
        if seen and seen.size < least and _changes_nothing(seen, whole, token):
            least, found = seen.size, tail
    return found


def _watched(model: PreTrainedModel, inputs: Inputs, layer: Layer) -> _Seen | None:
    given: list[torch.Tensor] = []
    made: list[torch.Tensor] = []

    def before(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        given.extend(filter(_are_states, (*args, *kwargs.values())))

    def after(module: nn.Module, args: Any, output: Any) -> None:
        made.extend(filter(_are_states, output if isinstance(output, tuple) else (output,)))

    with ExitStack() as hooks:
        for module in (module for part in layer for module in part.modules()):
            hooks.enter_context(module.register_forward_pre_hook(before, with_kwargs=True))
            hooks.enter_context(module.register_forward_hook(after))
        logits = model(**inputs).logits
    return _Seen(logits, given[0], made) if given and made else None


def _are_states(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() == 3


def _read_token(seen: _Seen) -> ReadToken | None:
    """The only token along an axis of the layer's last states that affects the logits, if there is just one."""
    gradient = seen.gradient(seen.made[-1])
    if gradient is None:
        return None
    for axis in (1, 0):
        last = gradient.shape[axis] - 1
        moving = gradient.abs().sum(dim=(1 - axis, 2)).nonzero().flatten().tolist()
        if last and moving in ([0], [last]):
            return ReadToken(axis, -1 if moving == [last] else 0)
    return None


def _changes_nothing(narrowed: _Seen, whole: _Seen, token: ReadToken) -> bool:
    """Whether the logits and their gradients with respect to the other input tokens are the same. The gradients show
    that the attention still reads these tokens, even if their weights are small here."""

    def of_others(seen: _Seen) -> torch.Tensor | None:
        gradient = seen.gradient(seen.given)
        if gradient is not None:
            token.of(gradient).zero_()
        return gradient

    return _same(narrowed.logits, whole.logits) and _same(of_others(narrowed), of_others(whole))


def _same(one: torch.Tensor | None, other: torch.Tensor | None) -> bool:
    """Whether two tensors are equal up to rounding. An all-zero tensor carries no information and equals no other."""
    if one is None or other is None or one.shape != other.shape:
        return False
    return bool((one - other).abs().max() < TOLERANCE * other.abs().max())


def _possible(layer: Layer, token: ReadToken) -> Iterator[Tail]:
    for index, part in enumerate(layer):
        for name, _ in part.named_modules():
            yield Tail(token, index, name, _kind(layer))


def _kind(layer: Layer) -> tuple[type[nn.Module], ...]:
    return tuple(type(part) for part in layer)


def _narrowed(layer: Layer, tail: Tail) -> RemovableHandle:
    """Until the handle is removed, the first module of the tail receives only the one token."""

    def hook(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return tuple(map(tail.token.of, args)), {name: tail.token.of(value) for name, value in kwargs.items()}

    return layer[tail.part].get_submodule(tail.name).register_forward_pre_hook(hook, with_kwargs=True)
