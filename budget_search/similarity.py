"""How alike a sentence's representations are: before and after a layer, before and after fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel

from budget_search.batches import DeviceSplit, reading_order
from budget_search.device import Device
from budget_search.evaluate import Workplace, loaded, split_of
from budget_search.finetune import EVALUATION_TOKENS


def layer_similarities(workplace: Workplace) -> tuple[float, ...]:
    """Per layer, ``similarity_to_input`` of the pre-trained model over all of ``selection``."""
    split = split_of(workplace, "selection")
    model, everything = loaded(workplace).parent, np.arange(split.examples)
    sums: torch.Tensor | float = 0.0
    for examples, states in sentence_states(model, split, everything, workplace.device):
        sums = sums + similarity_to_input(states) * len(examples)
    assert isinstance(sums, torch.Tensor)
    return tuple((sums / split.examples).tolist())


def sentence_states(
    model: PreTrainedModel, split: DeviceSplit, examples: np.ndarray, device: Device
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Batches of these examples, as places among them, and their classification tokens: (layers + 1, batch, hidden).

    The first state is what the embeddings give to the lowest layer; fp32, on the device. The classification token is
    the first, or the last where the tokenizer pads on the left (XLNet, decoders). The model visits the device.
    """
    token = -1 if split.pad_left else 0
    torch.nn.Module.to(model.eval(), device.name)
    with torch.inference_mode():
        for places in reading_order(split.lengths[examples], EVALUATION_TOKENS[device.kind]):
            states = model(**split.batch(examples[places]), output_hidden_states=True).hidden_states
            yield places, torch.stack([state[:, token] for state in states]).float()
    torch.nn.Module.to(model, "cpu")


def similarity_to_input(states: torch.Tensor) -> torch.Tensor:
    """Per layer (layers,), the cosine between its input and its output, averaged over the examples (Poor Man's BERT,
    2.3). ``states`` is (layers + 1, examples, hidden)."""
    return cosine_similarity(states[:-1], states[1:], dim=-1).mean(dim=-1)


def similarity_to(other: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """Before the first and after every layer (layers + 1,), the cosine between two models' states of the same examples,
    averaged over them (Poor Man's BERT, Figure 5). Both are (layers + 1, examples, hidden)."""
    return cosine_similarity(states, other, dim=-1).mean(dim=-1)
