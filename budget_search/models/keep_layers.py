"""Make a transformer smaller: keep some of its layers with their weights, as an ordinary model of the same class.

The smaller model is built from a smaller config, exactly as ``from_pretrained`` builds it, and gets copies of the kept
weights. Some layers depend on their position (kind of attention, feed-forward, scale). If a kept layer would change at
its new position, the layer set is refused. To find that out, both models are built from their configs and all modules
are compared.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

from budget_search.core.errors import UnsupportedModelError, UsageError
from budget_search.core.layers import LayerSet
from budget_search.models.layer_stack import LayerStack, Settings, build, find_stack, is_layer_numbers, section

# Flags that say how a model is used, not what it holds.
_SWITCHES = ("training", "gradient_checkpointing")
# An attribute with the number of this layer, or of another layer whose keys and values it shares.
_LAYER_NUMBER = re.compile("layer_(idx|index|id)$")


def keep_layers(model: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """A new, smaller model with these layers of ``model`` (0-based, ascending); ``model`` is not changed.

    Class, weights, tied weights, dtypes, devices, training mode and ``requires_grad`` are those of the original,
    without shared memory. ``save_pretrained`` and ``from_pretrained`` of stock transformers reproduce the model.
    Changes made to modules by hand, which no checkpoint contains, are lost.

    Raises UnsupportedModelError with the reason if the model has no or several stacks of layers or layers with shared
    weights, if a layer cannot be dropped or would change at its new position, if use has changed the weights by the
    layers' positions (RWKV), and for an empty, repeated, unordered or out-of-range set.
    """
    stack = _stack_of(model)
    layers = _checked(kept, stack)
    full = _as_configured(model)
    _require_as_loaded(model, full)
    smaller = _emptied(full, stack, layers)
    _load(model, smaller, stack, layers)
    _take_over_state(model, smaller, stack, layers)
    return smaller


def find_layers(model: PreTrainedModel) -> list[tuple[nn.Module, ...]]:
    """The modules of each layer, input side first; several per layer if the model has parallel lists of modules.

    Raises UnsupportedModelError if the model does not have exactly one stack of layers.
    """
    lists: list[Any] = [model.get_submodule(name) for name in _stack_of(model).lists]
    return list(zip(*lists, strict=True))


def undroppable(model: PreTrainedModel) -> frozenset[int]:
    """Layers that cannot be dropped, neither alone nor with all later ones. Only the structure is considered.

    Raises UnsupportedModelError if the model does not have exactly one stack of layers.
    """
    stack = _stack_of(model)
    full = _as_configured(model)

    def fits(kept: Sequence[int]) -> bool:
        try:
            _emptied(full, stack, LayerSet(tuple(kept), stack.depth))
        except UsageError:  # an empty set included
            return False
        return True

    everything = range(stack.depth)
    return frozenset(
        index
        for index in everything
        if not fits([*everything[:index], *everything[index + 1 :]]) and not fits(everything[:index])
    )


def _stack_of(model: object) -> LayerStack:
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(
            f"cannot find the layers of a {type(model).__name__}: expected a transformers model (PreTrainedModel); "
            "unwrap it, or load it with AutoModelForSequenceClassification.from_pretrained"
        )
    return find_stack(model)


def _checked(kept: Sequence[int], stack: LayerStack) -> LayerSet:
    try:
        return LayerSet(tuple(kept), stack.depth)
    except UsageError as error:
        raise UnsupportedModelError(str(error)) from error


def _as_configured(model: PreTrainedModel) -> PreTrainedModel:
    """The full model built from its config without weights; the given one may have been changed since it was loaded."""
    return build(model, model.config.to_dict())


def _require_as_loaded(model: PreTrainedModel, full: PreTrainedModel) -> None:
    """Raises UnsupportedModelError if a forward pass has changed the state of a model.

    RWKV divides the weights of later layers in place when it first predicts, and notes that in a flag.
    """
    loaded = dict(full.named_modules(remove_duplicate=False))
    for name, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, PreTrainedModel) or name not in loaded:
            continue
        for flag, value in vars(module).items():
            before = vars(loaded[name]).get(flag)
            if flag in _SWITCHES or flag.startswith("_") or type(value) is not bool or type(before) is not bool:
                continue
            if value != before:
                raise UnsupportedModelError(
                    f"{type(model).__name__} has changed since it was loaded ({flag} is {value}), perhaps its weights "
                    "by their layers' positions; load it again and keep layers before its first use"
                )


def _emptied(full: PreTrainedModel, stack: LayerStack, layers: LayerSet) -> PreTrainedModel:
    """The smaller model without weights. Raises UnsupportedModelError if one of its layers would change.

    Counts of leading layers, such as "the first 3 are dense", are adapted to the kept layers. The name of a field does
    not tell whether it is such a count, so a change is kept only if it reduces the number of differences.
    """
    best = _Attempt.of(full, stack, layers, stack.settings(full.config, layers.kept))
    for name, value in list(section(best.settings, stack.field).items()):
        if best.differences and name != stack.field[-1] and type(value) is int and 0 < value <= layers.total:
            settings = copy.deepcopy(best.settings)
            section(settings, stack.field)[name] = sum(index < value for index in layers.kept)
            best = min(best, _Attempt.of(full, stack, layers, settings), key=lambda attempt: attempt.differences)
    if best.differences or best.model is None:
        raise _refusal(full, layers, best.reasons) from best.error
    return best.model


@dataclass(frozen=True)
class _Attempt:
    """A smaller model built from these settings, and why it is not the one wanted; None where it cannot be built."""

    settings: Settings
    model: PreTrainedModel | None
    reasons: Sequence[str]
    error: Exception | None = None

    @property
    def differences(self) -> float:
        return math.inf if self.model is None else len(self.reasons)

    @classmethod
    def of(cls, full: PreTrainedModel, stack: LayerStack, layers: LayerSet, settings: Settings) -> _Attempt:
        try:
            model = build(full, settings)
            return cls(settings, model, list(_differences(full, model, stack, layers.kept)))
        # Constructors of models raise any kind of exception for a config that they do not support.
        except Exception as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            return cls(settings, None, [f"the model rejects a config with these layers ({reason})"], error)


def _refusal(model: PreTrainedModel, layers: LayerSet, reasons: Sequence[str]) -> UnsupportedModelError:
    more = f" (and {len(reasons) - 1} more differences)" if len(reasons) > 1 else ""
    return UnsupportedModelError(
        f"{type(model).__name__} cannot keep just the layers {layers}: {reasons[0]}{more}; choose another set"
    )


def _load(model: PreTrainedModel, smaller: PreTrainedModel, stack: LayerStack, layers: LayerSet) -> None:
    """Load copies of the kept weights into the smaller model (``strict=True``)."""
    shapes = {name: tensor.shape for name, tensor in smaller.state_dict(keep_vars=True).items()}
    # One copy per tensor instead of one per name, so that tied weights stay tied.
    copies: dict[int, torch.Tensor] = {}
    weights: dict[str, torch.Tensor] = {}
    for old_name, old in model.state_dict(keep_vars=True).items():
        name = stack.renamed(old_name, layers.kept)
        if name is not None:
            if id(old) not in copies:
                copies[id(old)] = _copied(old, shapes.get(name, old.shape), layers)
            weights[name] = copies[id(old)]
    trainable = {name: weight.requires_grad for name, weight in weights.items()}
    try:
        smaller.load_state_dict(weights, strict=True, assign=True)
    except RuntimeError as error:
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be made smaller: its weights do not match its config, so from_pretrained "
            "could not load the result; merge adapters and undo quantisation first; " + " ".join(str(error).split())
        ) from error
    for name, parameter in smaller.named_parameters(remove_duplicate=False):
        parameter.requires_grad_(trainable[name])


def _copied(old: torch.Tensor, shape: torch.Size, layers: LayerSet) -> torch.Tensor:
    data = old.detach()
    for axis, (before, after) in enumerate(zip(old.shape, shape, strict=False)):
        # A dimension proportional to the depth (a head that reads every layer) has one block per layer.
        if before != after and before * layers.depth == after * layers.total:
            blocks = data.unflatten(axis, (layers.total, -1))
            data = blocks.index_select(axis, torch.tensor(layers.kept, device=data.device)).flatten(axis, axis + 1)
    data = data.clone(memory_format=torch.preserve_format)
    return nn.Parameter(data, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else data


def _take_over_state(model: PreTrainedModel, smaller: PreTrainedModel, stack: LayerStack, layers: LayerSet) -> None:
    """Copy what is in neither config nor weights: training mode, placement of unsaved tensors, generation config."""
    new_modules = dict(smaller.named_modules(remove_duplicate=False))
    for old_name, old in model.named_modules(remove_duplicate=False):
        name = stack.renamed(old_name, layers.kept)
        if name is None or name not in new_modules:
            continue
        new = new_modules[name]
        new.training = old.training
        placed = _unsaved_tensors(old)
        for attribute, value in _unsaved_tensors(new).items():
            like = placed.get(attribute)
            setattr(new, attribute, value.to(model.device) if like is None else value.to(like.device, like.dtype))
    if model.can_generate():
        smaller.generation_config = copy.deepcopy(model.generation_config)


# -- comparison of the smaller model with the full one ------------------------------------------------------------


def _differences(
    full: PreTrainedModel, smaller: PreTrainedModel, stack: LayerStack, kept: Sequence[int]
) -> Iterator[str]:
    """Descriptions of the differences between kept modules in the full and in the smaller model."""
    new_modules = dict(smaller.named_modules(remove_duplicate=False))
    for old_name, old in full.named_modules(remove_duplicate=False):
        name = stack.renamed(old_name, kept)
        if name is None:
            continue
        new = new_modules.pop(name, None)
        if new is None:
            yield f"{old_name} ({type(old).__name__}) would be missing"
        elif _class_name(new) != _class_name(old):
            yield f"{old_name} is {type(old).__name__} and would become {type(new).__name__}"
        else:
            yield from _different_values(old_name, old, new, stack, kept)
    for name, new in new_modules.items():
        yield f"{name} ({type(new).__name__}) would be new and untrained"
    if _can_cache(full.config) and not _can_cache(smaller.config):
        yield "only recurrent layers would be left, and the model needs at least one attention layer"


def _can_cache(config: PreTrainedConfig) -> bool:
    """Whether transformers' cache finds a layer that stores the sequence length."""
    try:
        DynamicCache(config=config).get_seq_length()
    except Exception:  # also raised for architectures that DynamicCache does not support
        return False
    return True


def _unsaved_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Tensors that the constructor computes and a checkpoint does not store: non-persistent buffers and attributes."""
    buffers = {name: module._buffers[name] for name in module._non_persistent_buffers_set}
    return {name: value for name, value in (buffers | vars(module)).items() if isinstance(value, torch.Tensor)}


def _class_name(module: nn.Module) -> tuple[str, str]:
    """Module and name of the class; each parametrised module has its own class object, so compare names."""
    return type(module).__module__, type(module).__qualname__


def _different_values(
    name: str, old: nn.Module, new: nn.Module, stack: LayerStack, kept: Sequence[int]
) -> Iterator[str]:
    before = _plain_values(old) | _unsaved_tensors(old)
    after = _plain_values(new) | _unsaved_tensors(new)
    in_layer = stack.contains(name)
    for attribute in before.keys() | after.keys():
        old_value, new_value = before.get(attribute), after.get(attribute)
        if in_layer and _LAYER_NUMBER.search(attribute) and type(old_value) is int and old_value >= 0:
            unchanged = old_value in kept and kept.index(old_value) == new_value
        elif not in_layer and _only_removes(old_value, new_value):
            unchanged = True
        else:
            unchanged = _same(old_value, new_value, stack.depth, kept)
        if not unchanged:
            place = f" of {name}" if name else ""
            yield f"{attribute}{place} is {_shown(old_value)} and would become {_shown(new_value)}"


def _plain_values(module: nn.Module) -> dict[str, Any]:
    kinds = (bool, int, float, str, list, tuple, torch.dtype)
    return {name: value for name, value in vars(module).items() if isinstance(value, kinds)}


def _only_removes(before: Any, after: Any) -> bool:
    """Whether the change only removes what dropped layers used, such as the rotary table of one kind of attention."""
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
        # A layer number, counted from 0 or from 1, or a number proportional to the depth.
        renumbered = any(0 <= after - base < len(kept) and kept[after - base] == before - base for base in (0, 1))
        return renumbered or before * len(kept) == after * depth
    if isinstance(before, list | tuple) and isinstance(after, list | tuple):
        if is_layer_numbers(before, depth):
            return list(after) == [kept.index(number) for number in before if number in kept]
        return len(before) == depth and list(after) == [before[index] for index in kept]
    return False


def _shown(value: Any) -> str:
    return "a tensor with other values" if isinstance(value, torch.Tensor) else str(value)
