"""LayerDrop (Fan et al., 2020): while a model trains, whole layers are skipped at random.

A skipped layer hands on what it was given, so that nothing flows back through its weights. It is calculated all the
same and its result thrown away: models differ in what their layers return beside the hidden states.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from budget_search.core.errors import UnsupportedModelError
from budget_search.models.keep_layers import find_layers


@contextmanager
def skipping_layers(model: PreTrainedModel, rate: float) -> Iterator[None]:
    """Inside, each layer is skipped in training mode with probability ``rate``, drawn anew for every batch.

    Draws come from torch's generator of the CPU. Raises UnsupportedModelError.
    """
    with ExitStack() as hooks:
        for layer in skippable_layers(model) if rate else ():
            hooks.enter_context(layer.register_forward_hook(_hand_on(rate), with_kwargs=True))
        yield


def skippable_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The layers, input side first. Raises UnsupportedModelError where a layer is no module of its own."""
    layers = find_layers(model)
    if any(len(parts) > 1 for parts in layers):
        raise UnsupportedModelError(
            f"the layers of {type(model).__name__} lie spread over {len(layers[0])} lists of modules, so that none can "
            "be skipped as a whole; leave --layer-drop out"
        )
    return [layer for (layer,) in layers]


def _hand_on(rate: float) -> Any:
    def hook(layer: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> Any:
        if not layer.training or torch.rand(()) >= rate:
            return None
        given = args[0] if args else kwargs["hidden_states"]
        return (given, *output[1:]) if isinstance(output, tuple) else given

    return hook
