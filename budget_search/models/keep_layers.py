"""Make a transformer smaller: keep some of its layers, with their weights, as an ordinary model of its own class.

The smaller model is built from a smaller config, exactly as a re-load builds it, and takes over the kept weights. What
a layer does because of its place (which attention, which feed-forward, which scale) must survive the move, or the set
is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from budget_search.core.errors import UnsupportedModelError, UsageError
from budget_search.core.layers import LayerSet
from budget_search.models.comparison import differences, unsaved_tensors
from budget_search.models.layer_stack import LayerStack, Settings, build, find_stack, section


def keep_layers(model: PreTrainedModel, kept: Sequence[int]) -> PreTrainedModel:
    """A new, really smaller model with these layers of ``model`` (0-based, ascending), which stays untouched.

    Class, weights, tied weights, dtypes, devices, training mode and ``requires_grad`` are those of the original; no
    memory is shared with it. ``save_pretrained`` and ``from_pretrained`` of stock transformers give the same model.
    What was changed on modules by hand, so that no checkpoint holds it, is again as the config describes it.

    Raises UnsupportedModelError, with the reason, where that cannot be done honestly: several stacks of layers or
    none, shared weights, a layer that cannot go or cannot move, an empty, repeated, unordered or out-of-range set.
    """
    stack = _stack_of(model)
    layers = _checked(kept, stack)
    smaller = _emptied(_as_configured(model), stack, layers)
    _load(model, smaller, stack, layers)
    _take_over_state(model, smaller, stack, layers)
    return smaller


def find_layers(model: PreTrainedModel) -> list[tuple[nn.Module, ...]]:
    """The modules of each layer, input side first: one per layer, several where a layer is spread over parallel lists.

    Raises UnsupportedModelError when the model has no single stack of layers.
    """
    lists: list[Any] = [model.get_submodule(name) for name in _stack_of(model).lists]
    return list(zip(*lists, strict=True))


def undroppable(model: PreTrainedModel) -> frozenset[int]:
    """Layers that cannot go: neither alone nor together with all that follow. Looks at the structure only.

    Raises UnsupportedModelError when the model has no single stack of layers.
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
            f"cannot find the layers of a {type(model).__name__}: allowed is a transformers model (a PreTrainedModel); "
            "unwrap it, or load it with AutoModelForSequenceClassification.from_pretrained"
        )
    return find_stack(model)


def _checked(kept: Sequence[int], stack: LayerStack) -> LayerSet:
    try:
        return LayerSet(tuple(kept), stack.depth)
    except UsageError as error:
        raise UnsupportedModelError(str(error)) from error


def _as_configured(model: PreTrainedModel) -> PreTrainedModel:
    """The full model as a re-load would build it, empty: the one at hand may have changed since, by hand or in use."""
    return build(model, model.config.to_dict())


def _emptied(full: PreTrainedModel, stack: LayerStack, layers: LayerSet) -> PreTrainedModel:
    """The smaller model, its weights not yet filled, in which every layer is what it was."""
    try:
        smaller = build(full, _fitting_settings(full, stack, layers))
    # Any exception: this is other people's code refusing a config, each model in its own way.
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise _refusal(full, layers, [f"the model accepts no config with these layers ({reason})"]) from error
    if reasons := list(differences(full, smaller, stack, layers.kept)):
        raise _refusal(full, layers, reasons)
    return smaller


def _refusal(model: PreTrainedModel, layers: LayerSet, reasons: Sequence[str]) -> UnsupportedModelError:
    more = f" (and {len(reasons) - 1} more differences)" if len(reasons) > 1 else ""
    return UnsupportedModelError(
        f"{type(model).__name__} cannot keep just the layers {layers}: {reasons[0]}{more}; choose another set"
    )


def _fitting_settings(full: PreTrainedModel, stack: LayerStack, layers: LayerSet) -> Settings:
    """The smaller config. Numbers of leading layers ("the first 3 are dense") are counted anew where that helps.

    Whether a number is of that kind is not in its name: a change stays only if more of the model comes back as it was.
    """

    def misfits(settings: Settings) -> float:
        try:
            return sum(1 for _ in differences(full, build(full, settings), stack, layers.kept))
        except Exception:  # the reason is reported when the last settings are built
            return float("inf")

    best = stack.settings(full.config, layers.kept)
    fewest = misfits(best)
    for name, value in list(section(best, stack.field).items()):
        if fewest and name != stack.field[-1] and type(value) is int and 0 < value <= layers.total:
            trial = copy.deepcopy(best)
            section(trial, stack.field)[name] = sum(index < value for index in layers.kept)
            if (count := misfits(trial)) < fewest:
                best, fewest = trial, count
    return best


def _load(model: PreTrainedModel, smaller: PreTrainedModel, stack: LayerStack, layers: LayerSet) -> None:
    """Give the smaller model copies of the kept weights; strictly: none missing, none left over."""
    shapes = {name: tensor.shape for name, tensor in smaller.state_dict(keep_vars=True).items()}
    # One copy per tensor, not per name, so that tied weights stay tied.
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
            f"{type(model).__name__} cannot be made smaller: its weights are not those that its config describes, so "
            "that a re-load would not bring them back; merge adapters and undo quantisation first; "
            + " ".join(str(error).split())
        ) from error
    for name, parameter in smaller.named_parameters(remove_duplicate=False):
        parameter.requires_grad_(trainable[name])


def _copied(old: torch.Tensor, shape: torch.Size, layers: LayerSet) -> torch.Tensor:
    data = old.detach()
    for axis, (before, after) in enumerate(zip(old.shape, shape, strict=False)):
        # A width that follows the depth (a head that reads every layer) holds one block per layer.
        if before != after and before * layers.depth == after * layers.total:
            blocks = data.unflatten(axis, (layers.total, -1))
            data = blocks.index_select(axis, torch.tensor(layers.kept, device=data.device)).flatten(axis, axis + 1)
    data = data.clone(memory_format=torch.preserve_format)
    return nn.Parameter(data, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else data


def _take_over_state(model: PreTrainedModel, smaller: PreTrainedModel, stack: LayerStack, layers: LayerSet) -> None:
    """What neither config nor weights hold: training mode, device and precision of unsaved tensors, generation."""
    new_modules = dict(smaller.named_modules(remove_duplicate=False))
    for old_name, old in model.named_modules(remove_duplicate=False):
        name = stack.renamed(old_name, layers.kept)
        if name is None or name not in new_modules:
            continue
        new = new_modules[name]
        new.training = old.training
        placed = unsaved_tensors(old)
        for attribute, value in unsaved_tensors(new).items():
            like = placed.get(attribute)
            setattr(new, attribute, value.to(model.device) if like is None else value.to(like.device, like.dtype))
    if model.can_generate():
        smaller.generation_config = copy.deepcopy(model.generation_config)
