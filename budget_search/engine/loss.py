"""The training loss for each form of labels, optionally mixed with a distillation loss.

The form of the labels determines the loss, which equals that of the heads in transformers:

========================================  ==============================================
class numbers, int64 (batch,)             cross-entropy
scores, float32 (batch,)                  squared error
zeros and ones, float32 (batch, labels)   binary cross-entropy, the mean over labels
tags, int64 (batch, tokens)               cross-entropy, the sum over labelled tokens
edges, int64 (batch, tokens, 2)           cross-entropy of the first and the last token
                                          among the labelled ones, the mean of both
========================================  ==============================================
"""

from __future__ import annotations

import torch
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    kl_div,
    log_softmax,
    logsigmoid,
    mse_loss,
)
from transformers.utils.generic import ModelOutput

from budget_search.data.kinds.kind import IGNORED
from budget_search.engine.batches import SoftTargets

# Soft targets are compared at this temperature: it brings out how the teacher ranks the classes it does not choose.
TEMPERATURE = 2.0


def logits_of(output: ModelOutput) -> torch.Tensor:
    """A model's logits: (batch, classes), (batch, 1) for regression, (batch, tokens, classes) for tags, or for edges
    (batch, tokens, 2), the scores of each token as the first and as the last."""
    said: torch.Tensor | None = output.get("logits")
    return torch.stack([output["start_logits"], output["end_logits"]], dim=-1) if said is None else said


def loss_of(
    logits: torch.Tensor,
    labels: torch.Tensor,
    soft: SoftTargets | None = None,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """The weighted sum of the examples' losses, in fp32; their mean without weights.

    ``logits`` are those of ``logits_of``; ``weights`` (batch,). A weight of zero leaves an example out.
    """
    losses = losses_of(logits.float(), labels, soft)
    return losses.mean() if weights is None else (losses * weights).sum()


def losses_of(logits: torch.Tensor, labels: torch.Tensor, soft: SoftTargets | None) -> torch.Tensor:
    """Each example's loss (batch,)."""
    several = labels.dim() == 2
    if labels.dim() == 3:
        hard = _edge_losses(logits, labels)
    elif labels.is_floating_point() and several:
        hard = binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(dim=-1)
    elif labels.is_floating_point():
        hard = mse_loss(logits.squeeze(-1), labels, reduction="none")
    elif several:
        hard = cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORED, reduction="none").sum(dim=-1)
    else:
        hard = cross_entropy(logits, labels, reduction="none")
    if soft is None:
        return hard
    return (1 - soft.weight) * hard + soft.weight * _distances(logits, soft.logits, labels)


def _edge_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    scores = log_softmax(logits.masked_fill(labels == IGNORED, -torch.inf), dim=1)
    return -scores.masked_fill(labels != 1, 0.0).sum(dim=1).mean(dim=-1)


def _distances(logits: torch.Tensor, wanted: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """From soft targets: the Kullback-Leibler divergence at a temperature, times its square so that its gradients have
    the size of the labels' (Hinton et al., 2015, 2.1); of several labels the mean; the squared error for regression."""
    if labels.is_floating_point() and labels.dim() == 1:
        return mse_loss(logits, wanted, reduction="none").squeeze(-1)
    own, theirs = logits / TEMPERATURE, wanted / TEMPERATURE
    if labels.is_floating_point():
        # Each label is a choice between two classes, with the logits x and -x.
        own, theirs = (torch.stack([logsigmoid(each), logsigmoid(-each)]) for each in (own, theirs))
        return kl_div(own, theirs, reduction="none", log_target=True).sum(dim=0).mean(dim=-1) * TEMPERATURE**2
    own, theirs = log_softmax(own, dim=-1), log_softmax(theirs, dim=-1)
    return kl_div(own, theirs, reduction="none", log_target=True).sum(dim=-1) * TEMPERATURE**2
