"""Changes to the training of single layers: freezing them, and skipping them at random (LayerDrop)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from budget_search.core.errors import UnsupportedModelError
from budget_search.models.keep_layers import find_layers


@contextmanager
def frozen(model: PreTrainedModel, layers: Collection[int], *, embeddings: bool = False) -> Iterator[None]:
    """Inside, these layers (numbered in this model), and on request the embeddings, have ``requires_grad`` False."""
    parameters = [each for each in _parameters(model, layers, embeddings=embeddings) if each.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def _parameters(model: PreTrainedModel, layers: Collection[int], *, embeddings: bool) -> Iterator[nn.Parameter]:
    if not layers and not embeddings:
        return
    stack = find_layers(model)
    for index in layers:
        for part in stack[index]:
            yield from part.parameters()
    if embeddings:
        yield from embedding_parameters(model, [part for parts in stack for part in parts])


def embedding_parameters(model: PreTrainedModel, layers: Collection[nn.Module]) -> list[nn.Parameter]:
    """The parameters of the modules that a forward pass completes before the first of these layers begins.

    The order in which modules are registered does not tell: OPT registers its last norm before its layers.
    """
    completed: list[nn.Module] = []
    begun: list[nn.Module] = []
    inside = {id(each) for layer in layers for each in layer.modules()}

    def note(module: nn.Module, *_: Any) -> None:
        if not begun:
            completed.append(module)

    with ExitStack() as hooks:
        for module in model.base_model.modules():
            if id(module) not in inside:
                hooks.enter_context(module.register_forward_hook(note))
        for layer in layers:
            hooks.enter_context(layer.register_forward_pre_hook(lambda layer, _: begun.append(layer)))
        with torch.no_grad(), _undisturbed(model):
            model(input_ids=torch.zeros((1, 2), dtype=torch.long, device=model.device))
    return list({id(each): each for module in completed for each in module.parameters()}.values())


@contextmanager
def _undisturbed(model: PreTrainedModel) -> Iterator[None]:
    """A forward pass inside leaves the random state and the modes of all modules as they were.

    It runs in training mode, because RWKV rescales its weights when it first predicts.
    """
    modes = {module: module.training for module in model.modules()}
    model.train()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def skipping_layers(model: PreTrainedModel, rate: float) -> Iterator[None]:
    """Inside, each layer is skipped in training mode with probability ``rate`` per batch (LayerDrop, Fan et al., 2020).

    A skipped layer returns its input, so its weights get no gradient. It is computed all the same, because models
    differ in what layers return besides the hidden states. Uses torch's CPU generator. Raises UnsupportedModelError.
    """
    with ExitStack() as hooks:
        for layer in skippable_layers(model) if rate else ():
            hooks.enter_context(layer.register_forward_hook(_return_input(rate), with_kwargs=True))
        yield


def skippable_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The layers, input side first. Raises UnsupportedModelError if a layer is not a single module."""
    layers = find_layers(model)
    if any(len(parts) > 1 for parts in layers):
        raise UnsupportedModelError(
            f"each layer of {type(model).__name__} is spread over {len(layers[0])} lists of modules and cannot be "
            "skipped as a whole; leave --layer-drop out"
        )
    return [layer for (layer,) in layers]


def _return_input(rate: float) -> Any:
    def hook(layer: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> Any:
        if not layer.training or torch.rand(()) >= rate:
            return None
        hidden_states = args[0] if args else kwargs["hidden_states"]
        return (hidden_states, *output[1:]) if isinstance(output, tuple) else hidden_states

    return hook
