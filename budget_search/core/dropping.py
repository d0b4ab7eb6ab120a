"""When the layers go: the fine-tunes that lead from the pre-trained model to a smaller one, one after the other.

``first`` drops from the pre-trained model, then fine-tunes (Poor Man's BERT, 3). ``after`` fine-tunes the full model
with the layers to drop frozen, drops them, and fine-tunes again (its Table 5). ``gradual`` drops one layer after every
two epochs, the uppermost first, then fine-tunes what is left (its "Iterative Dropping"). ``untrained`` takes layers out
of the fine-tuned full model and leaves it at that (LayerDrop). The full model, from which nothing is dropped, is
fine-tuned alike by all.
"""

from __future__ import annotations

from dataclasses import dataclass

from budget_search.core.config import Recipe
from budget_search.core.layers import LayerSet

EPOCHS_PER_LAYER = 2.0


@dataclass(frozen=True)
class Phase:
    """A fine-tune with a schedule of its own: the ``layers`` that the model has, those of them that it does not train
    (both by their numbers in the original model), and its passes over the training examples in the full recipe."""

    layers: LayerSet
    frozen: frozenset[int]
    epochs: float


def phases(recipe: Recipe, layers: LayerSet) -> tuple[Phase, ...]:
    """How a model with just these layers comes about; no phase at all where another evaluation has trained it."""
    full, frozen = LayerSet.full(layers.total), recipe.frozen_layers
    last = Phase(layers, frozen, recipe.epochs)
    if layers.is_full or recipe.dropping == "first":
        return (last,)
    if recipe.dropping == "after":
        return (Phase(full, frozen | set(layers.dropped), recipe.epochs), last)
    if recipe.dropping == "gradual":
        return (*(Phase(before, frozen, EPOCHS_PER_LAYER) for before in _one_by_one(layers)), last)
    return ()


def training_depth(recipe: Recipe, layers: LayerSet) -> float:
    """Layers of a model whose plain fine-tune takes as much arithmetic as all the phases of this one."""
    return sum(phase.epochs * phase.layers.depth for phase in phases(recipe, layers)) / recipe.epochs


def _one_by_one(layers: LayerSet) -> list[LayerSet]:
    """All layers, then one fewer each time, from the top down, until one of those to drop is left."""
    downwards = sorted(layers.dropped, reverse=True)
    return [LayerSet(tuple(sorted({*layers.kept, *downwards[gone:]})), layers.total) for gone in range(len(downwards))]
