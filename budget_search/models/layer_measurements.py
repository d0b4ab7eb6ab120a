"""The record of layer-wise measurements of a fine-tuned model. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerMeasurements:
    """Measurements by layer, input side first, as means over the selection examples.

    ``probes`` (layers + 1) are the scores, in points, of a linear probe on the classification token of the fine-tuned
    model, before the first layer and after each; ``probe_errors`` are the standard errors of their differences to the
    last one. ``to_pretrained`` (layers + 1) are cosines between the tokens of the fine-tuned and the pre-trained model,
    ``to_input`` (layers) cosines between output and input of a pre-trained layer. ``seed`` is that of the fine-tune.
    """

    seed: int
    train_examples: int
    selection_examples: int
    probes: tuple[float, ...]
    probe_errors: tuple[float, ...]
    to_pretrained: tuple[float, ...]
    to_input: tuple[float, ...]
