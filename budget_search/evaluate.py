"""One evaluation: build the smaller model, fine-tune it, score it, leave its outputs (and weights) on disk.

Runs in worker processes: the parent model and the tokenised task are loaded once per process.
"""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from budget_search.batches import DeviceSplit
from budget_search.config import Recipe
from budget_search.device import Device
from budget_search.encode import EncodedTask
from budget_search.errors import UnsupportedModelError
from budget_search.files import appearing, write_whole
from budget_search.finetune import DivergedError, fine_tune, out_of_memory, predict
from budget_search.metrics import collapsed, mean_loss, measure
from budget_search.model import keep_layers
from budget_search.parent import fresh_head, load_parent
from budget_search.store import StudyFolder
from budget_search.trial import Job, Trial, TrialKey


@dataclass(frozen=True)
class Workplace:
    """What a worker needs to know to run any job of a study."""

    folder: StudyFolder
    parent: Path
    parent_name: str
    recipe: Recipe
    device: Device
    trust_remote_code: bool = False


@dataclass(frozen=True)
class Loaded:
    task: EncodedTask
    splits: dict[str, DeviceSplit]
    parent: PreTrainedModel
    fresh: frozenset[str]

    @property
    def is_regression(self) -> bool:
        return not self.task.label_names


def run_job(workplace: Workplace, job: Job) -> Trial:
    """Fine-tune and score; what goes wrong comes back as a failed trial, never as an exception."""
    workplace.device.reset_peak()
    try:
        return _run(workplace, job)
    except (DivergedError, UnsupportedModelError) as error:
        return Trial(job.key, job.split, "failed", error=str(error))
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        reason = f"out of memory on {workplace.device.name}: {str(error).splitlines()[0]}"
        return Trial(job.key, job.split, "failed", error=reason, machine_failure=True)


def _run(workplace: Workplace, job: Job) -> Trial:
    here = loaded(workplace)
    device = workplace.device
    model = keep_layers(here.parent, job.key.layers.kept)
    fresh_head(model, here.fresh, job.key.seed)
    torch.nn.Module.to(model, device.name)
    trained = fine_tune(model, split_of(workplace, "train"), workplace.recipe, job.key.rung, job.key.seed, device)

    started = time.perf_counter()
    split = split_of(workplace, job.split)
    outputs = predict(model, split, device)
    evaluation_seconds = time.perf_counter() - started
    if not np.isfinite(outputs).all():
        raise DivergedError("the fine-tuned model's outputs are not numbers")

    labels = here.task.splits[job.split].labels
    metrics = measure((here.task.metric, *here.task.also), outputs, labels)
    save_outputs(workplace.folder.outputs(job.key, job.split), outputs)
    if job.keep_weights:
        save_weights(model, workplace.folder.weights(job.key))
    return Trial(
        key=job.key,
        split=job.split,
        state="collapsed" if collapsed(outputs, here.is_regression) else "complete",
        score=metrics[here.task.metric],
        metrics={**metrics, "loss": mean_loss(outputs, labels, here.is_regression)},
        train_seconds=trained.seconds,
        evaluation_seconds=evaluation_seconds,
        train_tokens=trained.tokens,
        evaluation_tokens=int(split.lengths.sum()),
        peak_bytes=device.peak_bytes(),
    )


def score_from_weights(workplace: Workplace, key: TrialKey) -> None:
    """Write down a confirmed model's outputs on every held-out split, from its kept weights; once."""
    wanted = {name: workplace.folder.outputs(key, name) for name in loaded(workplace).task.held_out_splits}
    if missing := {name: path for name, path in wanted.items() if not path.exists()}:
        model = load_weights(workplace, key)
        for name, path in missing.items():
            save_outputs(path, predict(model, split_of(workplace, name), workplace.device))


def load_weights(workplace: Workplace, key: TrialKey) -> PreTrainedModel:
    """A confirmed model, on the device. Where somebody deleted it, the same seed makes the same model again."""
    folder = workplace.folder.weights(key)
    if not folder.exists():
        run_job(workplace, Job(key, "certification", keep_weights=True))
    model: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=workplace.trust_remote_code
    )
    torch.nn.Module.to(model, workplace.device.name)
    return model


def save_outputs(path: Path, outputs: np.ndarray) -> None:
    """Raises StudyError when they cannot be written."""
    content = io.BytesIO()
    np.save(content, outputs)
    write_whole(path, content.getvalue())


def save_weights(model: PreTrainedModel, folder: Path) -> None:
    """Write a whole checkpoint or none. Raises StudyError when it cannot be written."""
    with appearing(folder) as temporary:
        model.save_pretrained(temporary)


@lru_cache(maxsize=1)
def loaded(workplace: Workplace) -> Loaded:
    task = EncodedTask.load(workplace.folder.examples)
    parent, fresh = load_parent(
        workplace.parent,
        name=workplace.parent_name,
        label_names=task.label_names,
        pad_token=task.pad_token,
        trust_remote_code=workplace.trust_remote_code,
    )
    return Loaded(task, {}, parent, fresh)


def split_of(workplace: Workplace, name: str) -> DeviceSplit:
    here = loaded(workplace)
    if name not in here.splits:
        here.splits[name] = DeviceSplit.of(here.task, here.task.splits[name], workplace.device.name)
    return here.splits[name]
