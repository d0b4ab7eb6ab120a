"""What was measured of every layer of a fine-tuned model, as a record; it loads without torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LayerMeasurements:
    """What was measured of every layer, lowest first. Of ``layers + 1`` values the first is before any layer.

    ``probes`` (layers + 1) are scores in points of a linear probe on the classification token of the fine-tuned model;
    ``probe_errors`` the standard errors of what each lacks to the last one. ``to_pretrained`` (layers + 1) is the
    cosine between the fine-tuned and the pre-trained model's token, ``to_input`` (layers) that between the pre-trained
    layer's output and input; means over the selection examples. ``seed`` names the fine-tune.
    """

    seed: int
    train_examples: int
    selection_examples: int
    probes: tuple[float, ...]
    probe_errors: tuple[float, ...]
    to_pretrained: tuple[float, ...]
    to_input: tuple[float, ...]
