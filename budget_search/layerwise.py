"""What every layer of a fine-tuned model knows of the task, and how far fine-tuning moved it; measured once."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.linear_model import RidgeCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import PreTrainedModel

from budget_search.encode import EncodedSplit, EncodedTask
from budget_search.errors import UnsupportedModelError
from budget_search.evaluate import Workplace, load_weights, loaded, split_of
from budget_search.inspection import Layerwise
from budget_search.metrics import contributions, measure
from budget_search.parent import quiet_transformers
from budget_search.similarity import sentence_states, similarity_to, similarity_to_input
from budget_search.trial import TrialKey

# Examples of train that probes are fitted on and of selection that they are scored on, at most.
MOST_EXAMPLES = 1_000
# Of the least-squares fit; the best is chosen for every layer by leaving out one training example at a time.
PENALTIES = tuple(10.0**power for power in range(-1, 6))


def measure_layers(workplace: Workplace, key: TrialKey) -> Layerwise:
    """Probes and similarities of the fine-tuned model ``key``, from its kept weights.

    A probe is a linear classifier (or, for scores, a linear regression) on the classification token after a layer,
    fitted on ``train`` and scored on ``selection`` (Poor Man's BERT, Figure 4). Raises UnsupportedModelError for a
    model that gives other states than one per layer.
    """
    quiet_transformers()
    if workplace.device.kind == "cpu":
        torch.set_num_threads(1)
    task = loaded(workplace).task
    train, scored = _some(task.splits["train"]), _some(task.splits["selection"])
    model = load_weights(workplace, key)
    fitted_on = _states(workplace, model, "train", train)
    states = _states(workplace, model, "selection", scored)
    before = _states(workplace, loaded(workplace).parent, "selection", scored)
    if len(states) != key.layers.total + 1:
        raise UnsupportedModelError(
            f"{workplace.parent_name} gives {len(states)} states for {key.layers.total} layers; "
            "only models that give one before the first and one after every layer can be inspected"
        )
    labels = task.splits["selection"].labels[scored]
    outputs = [
        _probed(task, low.numpy(), task.splits["train"].labels[train], high.numpy())
        for low, high in zip(fitted_on, states, strict=True)
    ]
    values = [contributions(task.metric, each, labels) for each in outputs]
    return Layerwise(
        seed=key.seed,
        train_examples=len(train),
        selection_examples=len(scored),
        probes=tuple(measure((task.metric,), each, labels)[task.metric] for each in outputs),
        probe_errors=tuple(float(np.std(values[-1] - each) / np.sqrt(len(scored))) for each in values),
        to_pretrained=tuple(similarity_to(before, states).tolist()),
        to_input=tuple(similarity_to_input(before).tolist()),
    )


def _some(split: EncodedSplit) -> np.ndarray:
    """The numbers of so many examples, drawn the same way every time, ascending."""
    drawn = np.random.default_rng(0).permutation(split.examples)[:MOST_EXAMPLES]
    return np.sort(drawn)


def _states(workplace: Workplace, model: PreTrainedModel, name: str, examples: np.ndarray) -> torch.Tensor:
    """The classification tokens of these examples of a split, in order: (layers + 1, examples, hidden), on the host."""
    batches = list(sentence_states(model, split_of(workplace, name), examples, workplace.device))
    states = torch.cat([batch.cpu() for _, batch in batches], dim=1)
    in_order = torch.empty_like(states)
    in_order[:, torch.from_numpy(np.concatenate([places for places, _ in batches]))] = states
    return in_order


def _probed(task: EncodedTask, known: np.ndarray, labels: np.ndarray, states: np.ndarray) -> np.ndarray:
    """A linear probe's outputs (examples, classes or 1) for ``states``, fitted on ``known``: (examples, hidden) both.

    Least squares on the score, or on one column of zeros and ones per class, with a ridge penalty.
    """
    classes = len(task.label_names)
    targets = np.eye(classes)[labels] if classes else labels[:, None].astype(np.float64)
    probe = make_pipeline(StandardScaler(), RidgeCV(PENALTIES)).fit(known, targets)
    outputs: np.ndarray = probe.predict(states).reshape(len(states), -1)
    return outputs
