"""Whether the layers of a smaller model do what they did: the same modules, with the same settings, in a new place.

Both models are built from their configs, so whatever differs here differs because a layer moved, and a re-load would
bring the difference back.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

from budget_search.models.layer_stack import LayerStack, is_layer_numbers

# An attribute that names this layer or another one, from whose keys and values this one may live.
_LAYER_NUMBER = re.compile("layer_(idx|index|id)$")


def differences(
    full: PreTrainedModel, smaller: PreTrainedModel, stack: LayerStack, kept: Sequence[int]
) -> Iterator[str]:
    """How the modules of the smaller model differ from those that they stand for, in words."""
    new_modules = dict(smaller.named_modules(remove_duplicate=False))
    for old_name, old in full.named_modules(remove_duplicate=False):
        name = stack.renamed(old_name, kept)
        if name is None:
            continue
        new = new_modules.pop(name, None)
        if new is None:
            yield f"{old_name} ({type(old).__name__}) would be lost"
        elif _class_name(new) != _class_name(old):
            yield f"{old_name} is {type(old).__name__} and in its new place would be {type(new).__name__}"
        else:
            yield from _different_values(old_name, old, new, stack, kept)
    for name, new in new_modules.items():
        yield f"{name} ({type(new).__name__}) would be new and untrained"
    if _can_cache(full.config) and not _can_cache(smaller.config):
        yield "none of the layers that attend would be left, only recurrent ones, and the model needs at least one"


def _can_cache(config: PreTrainedConfig) -> bool:
    """Whether there is a layer that knows how long the text is; the library's own cache says so."""
    try:
        DynamicCache(config=config).get_seq_length()
    except Exception:  # also: an architecture that this cache does not serve
        return False
    return True


def unsaved_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors that a checkpoint leaves out and the constructor computes: some buffers, plain attributes."""
    buffers = {name: module._buffers[name] for name in module._non_persistent_buffers_set}
    return {name: value for name, value in (buffers | vars(module)).items() if isinstance(value, torch.Tensor)}


def _class_name(module: nn.Module) -> tuple[str, str]:
    """By name, because a parametrised module gets a class of its own each time."""
    return type(module).__module__, type(module).__qualname__


def _different_values(
    name: str, old: nn.Module, new: nn.Module, stack: LayerStack, kept: Sequence[int]
) -> Iterator[str]:
    before = _plain_values(old) | unsaved_tensors(old)
    after = _plain_values(new) | unsaved_tensors(new)
    in_layer = stack.holds(name)
    for attribute in before.keys() | after.keys():
        old_value, new_value = before.get(attribute), after.get(attribute)
        if in_layer and _LAYER_NUMBER.search(attribute) and type(old_value) is int and old_value >= 0:
            survives = old_value in kept and kept.index(old_value) == new_value
        elif not in_layer and _only_loses(old_value, new_value):
            survives = True
        else:
            survives = _same(old_value, new_value, stack.depth, kept)
        if not survives:
            place = f" of {name}" if name else ""
            yield f"{attribute}{place} is {_shown(old_value)} and in its new place would be {_shown(new_value)}"


def _plain_values(module: nn.Module) -> dict[str, Any]:
    kinds = (bool, int, float, str, list, tuple, torch.dtype)
    return {name: value for name, value in vars(module).items() if isinstance(value, kinds)}


def _only_loses(before: Any, after: Any) -> bool:
    """What served dropped layers alone, such as the rotary table of a kind of attention, may go with them."""
    if before is True and after is False:  # "there are sliding layers"
        return True
    if isinstance(before, list | tuple) and isinstance(after, list | tuple):
        return all(isinstance(kind, str) for kind in before) and set(after) <= set(before)
    return after is None


def _same(before: Any, after: Any, depth: int, kept: Sequence[int]) -> bool:
    if isinstance(before, torch.Tensor) or isinstance(after, torch.Tensor):
        both = isinstance(before, torch.Tensor) and isinstance(after, torch.Tensor)
        return both and torch.equal(before, after)
    if before == after:
        return True
    if type(before) is int and type(after) is int:
        # The layer's own number or another layer's, counted from nought or one; or something counted over all layers.
        renumbered = any(0 <= after - base < len(kept) and kept[after - base] == before - base for base in (0, 1))
        return renumbered or before * len(kept) == after * depth
    if isinstance(before, list | tuple) and isinstance(after, list | tuple):
        if is_layer_numbers(before, depth):
            return list(after) == [kept.index(number) for number in before if number in kept]
        return len(before) == depth and list(after) == [before[index] for index in kept]
    return False


def _shown(value: Any) -> str:
    return "a tensor with other values" if isinstance(value, torch.Tensor) else str(value)
