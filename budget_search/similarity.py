"""How much each layer changes its input: the measure behind contribution-based dropping."""

from __future__ import annotations

import torch
from torch.nn.functional import cosine_similarity

from budget_search.batches import reading_order
from budget_search.evaluate import Workplace, loaded, split_of
from budget_search.finetune import EVALUATION_TOKENS


def layer_similarities(workplace: Workplace) -> tuple[float, ...]:
    """Per layer, the cosine between its input and its output at the classification token of the pre-trained model,
    averaged over ``selection`` (Poor Man's BERT, 2.3).

    The classification token is the first, or the last where the tokenizer pads on the left (XLNet, decoders).
    """
    device, split = workplace.device, split_of(workplace, "selection")
    model = loaded(workplace).parent.eval()
    torch.nn.Module.to(model, device.name)
    token = -1 if split.pad_left else 0
    sums: torch.Tensor | float = 0.0
    with torch.inference_mode():
        for indices in reading_order(split.lengths, EVALUATION_TOKENS[device.kind]):
            states = model(**split.batch(indices), output_hidden_states=True).hidden_states
            at_token = torch.stack([state[:, token] for state in states]).float()
            sums = sums + cosine_similarity(at_token[:-1], at_token[1:], dim=-1).sum(dim=-1)
    torch.nn.Module.to(model, "cpu")
    assert isinstance(sums, torch.Tensor)
    return tuple((sums / split.examples).tolist())
