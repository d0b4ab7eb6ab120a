"""Similarity of a sentence's representations before and after a layer, and before and after fine-tuning."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedModel

from budget_search.engine.batches import DeviceSplit, reading_order
from budget_search.engine.device import Device
from budget_search.engine.evaluation import EvaluationContext, loaded, split_of
from budget_search.engine.finetune import EVALUATION_TOKENS


def layer_similarities(context: EvaluationContext) -> tuple[float, ...]:
    """Per layer, ``similarity_to_input`` of the pre-trained model over all of ``selection``."""
    split = split_of(context, "selection")
    model, everything = loaded(context).pretrained, np.arange(split.examples)
    sums: torch.Tensor | float = 0.0
    for examples, states in sentence_states(model, split, everything, context.device):
        sums = sums + similarity_to_input(states) * len(examples)
    assert isinstance(sums, torch.Tensor)
    return tuple((sums / split.examples).tolist())


def sentence_states(
    model: PreTrainedModel, split: DeviceSplit, examples: np.ndarray, device: Device
) -> Iterator[tuple[np.ndarray, torch.Tensor]]:
    """Batches of these examples (their positions) and their classification tokens: (layers + 1, batch, hidden).

    The first state is the input of the lowest layer; fp32, on the device. The classification token is the first token,
    but the last one if the tokenizer pads on the left (XLNet) or if the first token does not attend to later ones, as
    in a decoder. The model is moved to the device meanwhile.
    """
    torch.nn.Module.to(model.eval(), device.name)
    with torch.inference_mode():
        at_the_end = split.pad_left or not _first_knows_the_last(model, split)
        for places in reading_order(split.lengths[examples], EVALUATION_TOKENS[device.kind]):
            states = model(**split.batch(examples[places]), output_hidden_states=True).hidden_states
            lengths = torch.as_tensor(split.lengths[examples[places]], device=states[0].device)
            token = (states[0].shape[1] if split.pad_left else lengths) - 1 if at_the_end else 0 * lengths
            rows = torch.arange(len(places), device=states[0].device)
            yield places, torch.stack([state[rows, token] for state in states]).float()
    torch.nn.Module.to(model, "cpu")


def _first_knows_the_last(model: PreTrainedModel, split: DeviceSplit) -> bool:
    """Whether changing the last token changes the state of the first."""
    longest = split.batch(np.array([split.lengths.argmax()]))
    changed = {name: value.clone() for name, value in longest.items()}
    words = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[index]
    changed["input_ids"][:, -1] = (changed["input_ids"][:, -1] + 1) % words
    first, other = (model(**inputs, output_hidden_states=True).hidden_states[-1][:, 0] for inputs in (longest, changed))
    return not torch.equal(first, other)


def similarity_to_input(states: torch.Tensor) -> torch.Tensor:
    """Per layer (layers,), the cosine between its input and its output, averaged over the examples (Poor Man's BERT,
    2.3). ``states`` is (layers + 1, examples, hidden)."""
    return cosine_similarity(states[:-1], states[1:], dim=-1).mean(dim=-1)


def similarity_to(other: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """Before the first and after every layer (layers + 1,), the cosine between two models' states of the same examples,
    averaged over them (Poor Man's BERT, Figure 5). Both are (layers + 1, examples, hidden)."""
    return cosine_similarity(states, other, dim=-1).mean(dim=-1)
