"""Probe every layer of a fine-tuned model for the task, and measure how much fine-tuning changed it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from transformers import PreTrainedModel

from budget_search.core.errors import UnsupportedModelError
from budget_search.core.trial import TrialKey
from budget_search.data.kinds.kind import Truth
from budget_search.data.tokenization import EncodedSplit
from budget_search.engine.evaluation import EvaluationContext, load_weights, loaded, split_of
from budget_search.engine.measurements.layer_similarity import sentence_states, similarity_to, similarity_to_input
from budget_search.models.layer_measurements import LayerMeasurements
from budget_search.models.pretrained import quiet_transformers

# Examples of train that probes are fitted on and of selection that they are scored on, at most.
MOST_EXAMPLES = 1_000
# Of the least-squares fit; the best is chosen for every layer by leaving out one training example at a time.
PENALTIES = tuple(10.0**power for power in range(-1, 6))
# Relative to the largest value; single precision, summed in another order.
ROUNDING = 1e-5


def measure_layers(context: EvaluationContext, key: TrialKey) -> LayerMeasurements:
    """Probes and similarities of the fine-tuned model ``key``, from its kept weights.

    A probe is a linear classifier (or, for scores, a linear regression) on the classification token after a layer,
    fitted on ``train`` and scored on ``selection`` (Poor Man's BERT, Figure 4). Raises UnsupportedModelError for a
    model that gives other states than one per layer.
    """
    quiet_transformers()
    if context.device.kind == "cpu":
        torch.set_num_threads(1)
    task = loaded(context).task
    train, scored = _some(task.splits["train"]), _some(task.splits["selection"])
    model = load_weights(context, key)
    fitted_on = _states(context, model, "train", train)
    states = _states(context, model, "selection", scored)
    before = _states(context, loaded(context).pretrained, "selection", scored)
    if len(states) != key.layers.total + 1:
        raise UnsupportedModelError(
            f"{context.pretrained_name} gives {len(states)} states for {key.layers.total} layers; "
            "only models that give one before the first and one after every layer can be inspected"
        )
    kind, labels = task.kind, task.splits["selection"].labels[scored]
    targets = kind.probe_targets(task.splits["train"].labels[train], len(task.label_names))
    outputs = [fitted_probe(low.numpy(), targets)(high.numpy()) for low, high in zip(fitted_on, states, strict=True)]
    truth = Truth(labels, np.ones(len(scored), dtype=np.int64), task.label_names)
    values = [kind.contributions(task.metric, each, truth) for each in outputs]
    return LayerMeasurements(
        seed=key.seed,
        train_examples=len(train),
        selection_examples=len(scored),
        probes=tuple(kind.measure((task.metric,), each, truth)[task.metric] for each in outputs),
        probe_errors=tuple(float(np.std(values[-1] - each) / np.sqrt(len(scored))) for each in values),
        to_pretrained=tuple(similarity_to(before, states).tolist()),
        to_input=tuple(similarity_to_input(before).tolist()),
    )


def _some(split: EncodedSplit) -> np.ndarray:
    """A fixed random sample of example numbers, ascending."""
    drawn = np.random.default_rng(0).permutation(split.examples)[:MOST_EXAMPLES]
    return np.sort(drawn)


def _states(context: EvaluationContext, model: PreTrainedModel, name: str, examples: np.ndarray) -> torch.Tensor:
    return _in_order(sentence_states(model, split_of(context, name), examples, context.device))


def _in_order(batches: Iterable[tuple[np.ndarray, torch.Tensor]]) -> torch.Tensor:
    """All examples' classification tokens, on the host: (layers + 1, examples, hidden)."""
    places, parts = zip(*((places, states.cpu()) for places, states in batches), strict=True)
    states = torch.cat(parts, dim=1)
    in_order = torch.empty_like(states)
    in_order[:, torch.from_numpy(np.concatenate(places))] = states
    return in_order


def fitted_probe(states: np.ndarray, targets: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """A linear probe fitted on states (examples, hidden): it turns states into outputs (examples, classes or 1).

    Least squares with a ridge penalty on ``targets``, which have the shape of outputs.
    """
    mean, spread = states.mean(axis=0), states.std(axis=0)
    # Before the first layer the token is the same in every text: what differs is rounding, and must not be blown up.
    spread[spread <= ROUNDING * np.abs(states).max()] = np.inf
    probe = RidgeCV(PENALTIES).fit((states - mean) / spread, targets)

    def outputs(states: np.ndarray) -> np.ndarray:
        return np.asarray(probe.predict((states - mean) / spread)).reshape(len(states), -1)

    return outputs
