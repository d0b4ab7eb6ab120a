"""Train only the rows of the word embeddings whose tokens occur in the data; the others would not change.

A few thousand texts use a fraction of a vocabulary. The rows of the other tokens have a zero gradient at every step,
and without weight decay AdamW does not change them. Computing their gradients, moments and updates has no effect, but
takes a fifth of a small model's training step on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel


class OccurringRows(nn.Embedding):
    """Some rows of an embedding table, indexed by their row numbers in the whole table."""

    def __init__(self, table: nn.Embedding, rows: torch.Tensor) -> None:
        super().__init__(len(rows), table.embedding_dim, _weight=table.weight.detach()[rows])
        self.train(table.training)
        # -1 for rows that are not here: looking one up is an error, not a wrong row.
        place = torch.full((table.num_embeddings,), -1, device=rows.device)
        place[rows] = torch.arange(len(rows), device=rows.device)
        self.place = place
        if table.padding_idx is not None:
            self.padding_idx = int(place[table.padding_idx])

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return functional.embedding(self.place[input], self.weight, self.padding_idx)


@contextmanager
def only_occurring_rows(model: PreTrainedModel, tokens: torch.Tensor) -> Iterator[None]:
    """Inside, ``model.parameters()`` holds only the rows of the word embeddings for these token numbers; afterwards the
    whole table with the trained rows. The numbers are sorted, without repeats, on the model's device.

    A model whose embedding is more than a plain lookup (scaled, or tied to an output) is not changed.
    """
    name = _plain_table(model)
    if name is None:
        yield
        return
    table = model.get_submodule(name)
    assert isinstance(table, nn.Embedding)
    marks = [number for number in _marks(model) if 0 <= number < table.num_embeddings]
    rows = torch.cat([tokens, tokens.new_tensor(marks)]).unique()
    part = OccurringRows(table, rows)
    model.set_submodule(name, part, strict=True)
    try:
        yield
    finally:
        model.set_submodule(name, table, strict=True)
        with torch.no_grad():
            table.weight[rows] = part.weight


def _plain_table(model: PreTrainedModel) -> str | None:
    """The name of the word embedding, if it is an ``nn.Embedding`` that is trained and used once."""
    try:
        table = model.get_input_embeddings()
    except NotImplementedError:
        return None
    # Exactly this class: anything that subclasses add to the lookup would be lost.
    plain = type(table) is nn.Embedding and table.max_norm is None and not table.scale_grad_by_freq
    if not plain or not table.weight.requires_grad:
        return None
    uses = [name for name, weight in model.named_parameters(remove_duplicate=False) if weight is table.weight]
    return uses[0].removesuffix(".weight") if len(uses) == 1 else None


def _marks(model: PreTrainedModel) -> Iterator[int]:
    """Special tokens that a batch or the model may insert: padding, beginning, end, separators."""
    for name, value in model.config.to_dict().items():
        if name.endswith("_token_id") and value is not None:
            yield from value if isinstance(value, list) else [value]
