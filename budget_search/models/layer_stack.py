"""Find the layers of a model, and make the config of the same model with fewer layers.

No model is known by name. A number in the config is the depth if increasing it by one makes a list of modules longer by
one; these lists are the stack. Building models for this test is cheap, because their weights are not initialised.
"""

from __future__ import annotations

import copy
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from budget_search.core.errors import UnsupportedModelError

# While transformers builds or loads a model it replaces functions of torch and its own, for all threads. Two threads
# that did so at a time would leave them replaced.
building = threading.RLock()

Settings = dict[str, Any]

# Fields to try as the depth; the test itself builds a model.
_DEPTH_NAMES = re.compile("layer|depth|block", re.IGNORECASE)
# Lists with such a name may contain layer numbers.
_LAYER_NUMBERS = re.compile("layer|block|idx|index|indices", re.IGNORECASE)
# Lists that are never per layer, even if they are as long as the model is deep.
_NEVER_PER_LAYER = re.compile("token|architectures|label", re.IGNORECASE)
# Attributes of a config that to_dict leaves out.
_UNSAVED = {"_attn_implementation_internal", "_experts_implementation_internal", "_name_or_path", "_commit_hash"}


@dataclass(frozen=True)
class LayerStack:
    """The n-th elements of ``lists`` (names of module lists) are layer n; ``field`` is the path to its depth."""

    field: tuple[str, ...]
    lists: tuple[str, ...]
    depth: int

    def renamed(self, name: str, kept: Sequence[int]) -> str | None:
        """The name of a module or weight in a model with only these layers; None if its layer is dropped."""
        for prefix in self.lists:
            if name.startswith(f"{prefix}."):
                index, dot, rest = name[len(prefix) + 1 :].partition(".")
                if not index.isdigit():
                    return name
                return f"{prefix}.{kept.index(int(index))}{dot}{rest}" if int(index) in kept else None
        return name

    def contains(self, name: str) -> bool:
        """Whether a module or weight is part of a layer."""
        return any(name.startswith(f"{prefix}.") for prefix in self.lists)

    def settings(self, config: PreTrainedConfig, kept: Sequence[int]) -> Settings:
        """The config as a dictionary, with these layers only; fields with one value per layer are adapted."""
        settings = copy.deepcopy(config.to_dict())
        own = section(settings, self.field)
        for name, value in own.items():
            if isinstance(value, list | tuple) and not _NEVER_PER_LAYER.search(name):
                own[name] = _list_for(name, value, kept, self.depth)
        if "per_layer_config" in own:
            overrides = {int(index): value for index, value in own["per_layer_config"].items()}
            own["per_layer_config"] = {new: overrides[old] for new, old in enumerate(kept) if old in overrides}
        own[self.field[-1]] = len(kept)
        return settings


def section(settings: Settings, field: tuple[str, ...]) -> Settings:
    """The nested dictionary of a config that contains this field."""
    for name in field[:-1]:
        settings = settings[name]
    return settings


def build(model: PreTrainedModel, settings: Mapping[str, Any]) -> PreTrainedModel:
    """A model of the same class with this config and uninitialised weights, which take no memory until written.

    The config is created by its own constructor, as in ``from_pretrained``, so it derives and validates its fields.
    """
    config = type(model.config).from_dict(dict(settings))
    _copy_unsaved(model.config, config)
    with building, torch.device("cpu"), torch.random.fork_rng(devices=[]), no_init_weights():
        return type(model)(config)


def find_stack(model: PreTrainedModel) -> LayerStack:
    """The stack of layers of this model.

    Raises UnsupportedModelError if there is none (shared weights, no depth in the config) or more than one.
    """
    lists = _outermost_lists(model)
    stacks: dict[tuple[str, ...], LayerStack] = {}
    for field, depth in _numbers(model.config):
        if depth in map(len, lists.values()):
            names = _names_that_grow(model, LayerStack(field, (), depth), lists)
            if names:
                stacks.setdefault(names, LayerStack(field, names, depth))
    if not stacks:
        raise UnsupportedModelError(_why_no_stack(model))
    if len(stacks) > 1:
        raise UnsupportedModelError(_why_several_stacks(model, list(stacks.values())))
    stack = next(iter(stacks.values()))
    if elsewhere := _layers_elsewhere(stack, lists):
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be made smaller: besides {stack.lists[0]} ({stack.depth} layers) it has "
            f"layers in {elsewhere}; use a model with one stack of layers, such as BERT, RoBERTa, XLNet or Llama"
        )
    if any(len({id(module) for module in lists[name]}) < stack.depth for name in stack.lists):
        raise UnsupportedModelError(_shared_weights(model, stack.depth))
    return stack


def _layers_elsewhere(stack: LayerStack, lists: Mapping[str, nn.ModuleList | nn.Sequential]) -> str:
    """The name of another list with at least two layers of the stack's classes, or an empty string."""
    classes = {type(module) for name in stack.lists for module in lists[name]}
    for name, other in lists.items():
        composite = [module for module in other.modules() if type(module) in classes and list(module.children())]
        if name not in stack.lists and len(composite) > 1:
            return name
    return ""


def _outermost_lists(model: nn.Module) -> dict[str, nn.ModuleList | nn.Sequential]:
    """Module lists that are not inside another one; lists inside a layer (experts, feed-forwards) are no stacks."""
    lists: dict[str, nn.ModuleList | nn.Sequential] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential) and not any(name.startswith(f"{up}.") for up in lists):
            lists[name] = module
    return lists


def _numbers(config: PreTrainedConfig, above: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], int]]:
    """Numbers in the config and its nested configs whose names suggest a depth."""
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            yield from _numbers(value, (*above, name))
        elif isinstance(value, int) and not isinstance(value, bool) and value > 0 and _DEPTH_NAMES.search(name):
            yield (*above, name), value


def _deeper(model: PreTrainedModel, trial: LayerStack) -> PreTrainedModel | None:
    """The model with one more layer, if this field is the depth; None if that model cannot be built."""
    settings = trial.settings(model.config, (*range(trial.depth), trial.depth - 1))
    try:
        return build(model, settings)
    # A wrong value of another field makes constructors raise any kind of exception.
    except Exception:
        return None


def _names_that_grow(
    model: PreTrainedModel, trial: LayerStack, lists: Mapping[str, nn.ModuleList | nn.Sequential]
) -> tuple[str, ...]:
    deeper = _deeper(model, trial)
    if deeper is None:
        return ()
    after = _outermost_lists(deeper)
    names = tuple(
        name
        for name, old in lists.items()
        if len(old) == trial.depth
        and name in after
        and len(after[name]) == trial.depth + 1
        # A list of lists contains stages with layers of their own.
        and not any(isinstance(module, nn.ModuleList) for module in old)
    )
    # A list of plain projections or norms (such as one head per codebook) is not a stack of layers.
    composite = any(list(module.children()) for name in names for module in lists[name])
    return names if composite else ()


def _why_no_stack(model: PreTrainedModel) -> str:
    for field, depth in _numbers(model.config):
        if depth > 1 and model.config.attribute_map.get("num_hidden_layers", "num_hidden_layers") == field[-1]:
            deeper = _deeper(model, LayerStack(field, (), depth))
            if deeper is not None and deeper.state_dict().keys() == model.state_dict().keys():
                return _shared_weights(model, depth)
    return (
        f"{type(model).__name__} cannot be made smaller: no single number in its config sets the length of one list of "
        "layers; use a model with one stack of layers, such as BERT, RoBERTa, XLNet or Llama"
    )


def _shared_weights(model: PreTrainedModel, depth: int) -> str:
    return (
        f"{type(model).__name__} cannot be made smaller: its {depth} layers share their weights, so dropping one would "
        "save nothing; use a model in which every layer has its own weights, such as BERT or RoBERTa"
    )


def _why_several_stacks(model: PreTrainedModel, stacks: Sequence[LayerStack]) -> str:
    pair = model.config.is_encoder_decoder
    kind = "is an encoder-decoder pair" if pair else "joins several models (such as vision and text)"
    found = " and ".join(f"{stack.lists[0]} ({stack.depth} layers)" for stack in stacks)
    return (
        f"{type(model).__name__} cannot be made smaller: it {kind}; found {found}; use an "
        "encoder-only or decoder-only text model"
    )


def _list_for(name: str, values: Sequence[Any], kept: Sequence[int], depth: int) -> Sequence[Any]:
    """A list of the config for the kept layers: layer numbers, one entry per layer, or runs of layers; others as is."""
    if _LAYER_NUMBERS.search(name) and is_layer_numbers(values, depth):
        return [kept.index(number) for number in values if number in kept]
    if len(values) == depth:
        return [copy.deepcopy(values[index]) for index in kept]
    # Runs: [[pattern, repetitions], ...]
    if values and all(isinstance(run, list) and len(run) == 2 and isinstance(run[0], list) for run in values):
        kinds = [kind for pattern, times in values if isinstance(times, int) for kind in pattern * times]
        if len(kinds) == depth:
            return [[[kinds[index] for index in kept], 1]]
    return values


def is_layer_numbers(values: Sequence[Any], depth: int) -> bool:
    """Whether these are distinct layer numbers in ascending order."""
    in_range = all(type(number) is int and 0 <= number < depth for number in values)
    return in_range and sorted(set(values)) == list(values)


def _copy_unsaved(old: PreTrainedConfig, new: PreTrainedConfig) -> None:
    """Copy what ``to_dict`` leaves out: the implementations of attention and experts, and the model's origin."""
    for name, value in vars(old).items():
        if isinstance(value, PreTrainedConfig) and isinstance(getattr(new, name, None), PreTrainedConfig):
            _copy_unsaved(value, getattr(new, name))
        elif name in _UNSAVED:
            setattr(new, name, value)
