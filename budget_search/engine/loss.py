"""The training loss: cross-entropy or squared error, mixed with the distance to a teacher's outputs where asked."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax, mse_loss

from budget_search.engine.batches import SoftTargets

# Soft targets are compared at this temperature: it brings out how the teacher ranks the classes it does not choose.
TEMPERATURE = 2.0


def loss_of(
    logits: torch.Tensor,
    labels: torch.Tensor,
    soft: SoftTargets | None = None,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """The weighted sum of the examples' losses, in fp32; their mean without weights.

    ``logits`` (batch, classes) or (batch, 1) for regression; ``labels`` and ``weights`` (batch,). A weight of zero
    leaves an example out.
    """
    losses = losses_of(logits.float(), labels, soft)
    return losses.mean() if weights is None else (losses * weights).sum()


def losses_of(logits: torch.Tensor, labels: torch.Tensor, soft: SoftTargets | None) -> torch.Tensor:
    """Each example's loss (batch,)."""
    regression = labels.is_floating_point()
    if regression:
        hard = mse_loss(logits.squeeze(-1), labels, reduction="none")
    else:
        hard = cross_entropy(logits, labels, reduction="none")
    if soft is None:
        return hard
    return (1 - soft.weight) * hard + soft.weight * _distances(logits, soft.logits, regression)


def _distances(logits: torch.Tensor, wanted: torch.Tensor, regression: bool) -> torch.Tensor:
    """From soft targets: the Kullback-Leibler divergence at a temperature, times its square so that its gradients have
    the size of the labels' (Hinton et al., 2015, 2.1); the squared error for regression."""
    if regression:
        return mse_loss(logits, wanted, reduction="none").squeeze(-1)
    own, theirs = (log_softmax(each / TEMPERATURE, dim=-1) for each in (logits, wanted))
    return kl_div(own, theirs, reduction="none", log_target=True).sum(dim=-1) * TEMPERATURE**2
