"""When layers are dropped: the sequence of fine-tunes from the pre-trained model to a smaller one.

``first`` drops layers from the pre-trained model, then fine-tunes (Poor Man's BERT, 3). ``after`` fine-tunes the full
model with the layers to drop frozen, drops them, and fine-tunes again (its Table 5). ``gradual`` drops the uppermost
remaining layer after every two epochs, then fine-tunes the result (its "Iterative Dropping"). ``finetuned`` drops
layers from the fine-tuned full model, whose head stays, and trains the rest for ``recovery`` of the recipe.
``untrained`` drops layers from the fine-tuned full model without further training (LayerDrop). All of them fine-tune
the full model itself in the same way.

``finetuned`` and ``untrained`` cut a smaller model out of the full model of the same seed and rung. So a confirmation
starts from the baseline, a screen from the full model's screen: a screen is a short confirmation, and no fine-tune is
added. Table 5 of Poor Man's BERT, where the layers to drop are frozen in the full model's fine-tune, found no gain in
dropping layers after it.
"""

from __future__ import annotations

from dataclasses import dataclass

from budget_search.core.config import Recipe
from budget_search.core.layers import LayerSet

EPOCHS_PER_LAYER = 2.0


@dataclass(frozen=True)
class Phase:
    """One fine-tune with its own learning-rate schedule.

    ``layers`` are the model's layers and ``frozen`` those that are not trained, both numbered as in the original model.
    ``epochs`` counts passes over the training examples at the full rung.
    """

    layers: LayerSet
    frozen: frozenset[int]
    epochs: float


def starts_from_full(recipe: Recipe) -> bool:
    """Whether smaller models are cut out of the fine-tuned full model, instead of the pre-trained one."""
    return recipe.dropping in ("finetuned", "untrained")


def phases(recipe: Recipe, layers: LayerSet) -> tuple[Phase, ...]:
    """The fine-tunes that produce a model with these layers, without that of the full model it is cut out of."""
    full, frozen = LayerSet.full(layers.total), recipe.frozen_layers
    last = Phase(layers, frozen, recipe.epochs)
    if layers.is_full or recipe.dropping == "first":
        return (last,)
    if recipe.dropping == "after":
        return (Phase(full, frozen | set(layers.dropped), recipe.epochs), last)
    if recipe.dropping == "gradual":
        return (*(Phase(before, frozen, EPOCHS_PER_LAYER) for before in _shrinking_sets(layers)), last)
    if recipe.dropping == "finetuned":
        return (Phase(layers, frozen, recipe.recovery * recipe.epochs),)
    return ()


def training_depth(recipe: Recipe, layers: LayerSet) -> float:
    """The cost of all phases, as the depth of a model whose plain fine-tune needs the same arithmetic."""
    return sum(phase.epochs * phase.layers.depth for phase in phases(recipe, layers)) / recipe.epochs


def _shrinking_sets(layers: LayerSet) -> list[LayerSet]:
    """The layer sets before each drop: from the full model, uppermost layer first, until one layer remains to drop."""
    to_drop = sorted(layers.dropped, reverse=True)
    return [LayerSet(tuple(sorted({*layers.kept, *to_drop[done:]})), layers.total) for done in range(len(to_drop))]
