"""Hold parts of a model still while the rest is trained."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import takewhile

from torch import nn
from transformers import PreTrainedModel

from budget_search.models.keep_layers import find_layers


@contextmanager
def frozen(model: PreTrainedModel, layers: Collection[int], *, embeddings: bool = False) -> Iterator[None]:
    """Inside, these layers (by their numbers in this model) require no gradient, nor do the embeddings if so wished."""
    still = [each for each in _parts(model, layers, embeddings=embeddings) if each.requires_grad]
    for parameter in still:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in still:
            parameter.requires_grad_(True)


def _parts(model: PreTrainedModel, layers: Collection[int], *, embeddings: bool) -> Iterator[nn.Parameter]:
    if not layers and not embeddings:
        return
    stack = find_layers(model)
    for index in layers:
        for part in stack[index]:
            yield from part.parameters()
    if embeddings:
        in_layers = {id(each) for parts in stack for part in parts for each in part.parameters()}
        # A model registers its parts in the order in which it uses them: what comes before the layers embeds.
        yield from takewhile(lambda each: id(each) not in in_layers, model.base_model.parameters())
