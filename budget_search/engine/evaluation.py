"""One evaluation: build the smaller model, fine-tune and score it, write its outputs (and weights) to disk.

Runs in worker processes: the parent model and the tokenised task are loaded once per process. Weights
or outputs of the full model that an evaluation needs are in the study's folder.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from budget_search.core.config import Recipe
from budget_search.core.dropping import Phase, phases, starts_from_full
from budget_search.core.errors import UnsupportedModelError
from budget_search.core.layers import LayerSet
from budget_search.core.trial import Job, Trial, TrialKey
from budget_search.data.tokenization import EncodedTask
from budget_search.engine.batches import DeviceSplit, SoftTargets
from budget_search.engine.device import Device
from budget_search.engine.finetune import DivergedError, FineTuned, fine_tune, predict
from budget_search.engine.gpu.cuda import random_numbers
from budget_search.engine.last_layer import Tail, find_tail, only_read_token
from budget_search.engine.training_step import out_of_memory
from budget_search.models.keep_layers import keep_layers
from budget_search.models.layer_stack import building
from budget_search.models.layer_training import frozen
from budget_search.models.pretrained import auto_class, fresh_head, load_pretrained
from budget_search.storage.files import atomic_path, write_array
from budget_search.storage.study_folder import StudyFolder

_loading = threading.RLock()


@dataclass(frozen=True)
class EvaluationContext:
    """Everything a worker needs to run any job of a study. ``teacher`` is the full model's evaluation whose outputs are
    the soft targets in distillation; None without distillation."""

    folder: StudyFolder
    pretrained: Path
    pretrained_name: str
    recipe: Recipe
    device: Device
    trust_remote_code: bool = False
    teacher: TrialKey | None = None


@dataclass(frozen=True)
class Loaded:
    task: EncodedTask
    splits: dict[str, DeviceSplit]
    pretrained: PreTrainedModel
    fresh: frozenset[str]

    @cached_property
    def tail(self) -> Tail | None:
        """The part of the last layer that needs only the token read by the head."""
        return find_tail(self.pretrained, DeviceSplit.of(self.task, self.task.splits["train"], "cpu"))


def run_job(context: EvaluationContext, job: Job) -> Trial:
    """Fine-tune and score a layer set; any error is returned as a failed trial, never raised."""
    context.device.reset_peak()
    try:
        return _run(context, job)
    except (DivergedError, UnsupportedModelError) as error:
        return Trial(job.key, job.split, "failed", error=str(error))
    except (MemoryError, RuntimeError) as error:
        said = str(error).splitlines()[0]
        if out_of_memory(error):
            reason = f"out of memory on {context.device.name}: {said}"
            return Trial(job.key, job.split, "failed", error=reason, machine_failure=True)
        # A few models mix types that autocast does not reconcile: DeBERTa, X-MOD.
        if context.device.precision == "bf16" and "BFloat16" in said:
            return Trial(job.key, job.split, "failed", error=f"this model does not run in bf16: {said}")
        raise


def _run(context: EvaluationContext, job: Job) -> Trial:
    here = loaded(context)
    device = context.device
    model, trained = _trained(context, job.key)

    started = time.perf_counter()
    outputs = outputs_of(context, model, job.split)
    read = int(split_of(context, job.split).lengths.sum())
    if not np.isfinite(outputs).all():
        raise DivergedError("the fine-tuned model's outputs are not numbers")
    if job.key == context.teacher:
        write_array(context.folder.outputs(job.key, "train"), outputs_of(context, model, "train"))
        read += int(split_of(context, "train").lengths.sum())
    evaluation_seconds = time.perf_counter() - started

    kind, truth = here.task.kind, here.task.truth(job.split)
    metrics = here.task.measure(job.split, outputs)
    write_array(context.folder.outputs(job.key, job.split), outputs)
    if job.keep_weights:
        save_weights(model, context.folder.weights(job.key))
    return Trial(
        key=job.key,
        split=job.split,
        state="collapsed" if kind.collapsed(outputs, truth) else "complete",
        score=metrics[here.task.metric],
        metrics={**metrics, "loss": kind.mean_loss(outputs, truth)},
        train_seconds=sum(done.seconds for _, done in trained),
        evaluation_seconds=evaluation_seconds,
        train_tokens=sum(done.tokens for _, done in trained),
        evaluation_tokens=read,
        peak_bytes=device.peak_bytes(),
        train_layer_tokens=sum(done.tokens * phase.layers.depth for phase, done in trained),
        execution=next(iter(sorted(done.execution for _, done in trained)), None),
    )


def _trained(context: EvaluationContext, key: TrialKey) -> tuple[PreTrainedModel, list[tuple[Phase, FineTuned]]]:
    """The model of this key, on the device, and the fine-tunes that made it, except that of the full model it is cut
    from."""
    here, recipe, device = loaded(context), context.recipe, context.device
    trained = list[tuple[Phase, FineTuned]]()
    model, kept = _start(context, key)
    for phase in phases(recipe, key.layers):
        if phase.layers.kept != kept:
            model = keep_layers(model, [kept.index(layer) for layer in phase.layers.kept])
            kept = phase.layers.kept
        still = [kept.index(layer) for layer in kept if layer in phase.frozen]
        examples, part = _training_split(context, phase.layers), replace(recipe, epochs=phase.epochs)
        with (
            frozen(model, still, embeddings=recipe.freezes_embeddings),
            only_read_token(model, here.tail),
        ):
            trained.append((phase, fine_tune(model, examples, part, key.rung, key.seed, device)))
    return model, trained


def _start(context: EvaluationContext, key: TrialKey) -> tuple[PreTrainedModel, tuple[int, ...]]:
    """The model before its first fine-tune, on the device, and its layers.

    The layers come from the fine-tuned full model of the same seed and rung, with its head, or from the pre-trained
    model, with a new head.
    """
    here, recipe = loaded(context), context.recipe
    if starts_from_full(recipe) and not key.layers.is_full:
        parent = load_weights(context, replace(key, layers=LayerSet.full(key.layers.total)))
        return keep_layers(parent, key.layers.kept), key.layers.kept
    kept = phases(recipe, key.layers)[0].layers.kept
    with random_numbers:
        model = keep_layers(here.pretrained, kept)
        fresh_head(model, here.fresh, key.seed)
    torch.nn.Module.to(model, context.device.name)
    return model, kept


def _training_split(context: EvaluationContext, layers: LayerSet) -> DeviceSplit:
    """The training examples; with the teacher's soft targets for a smaller model."""
    train, teacher = split_of(context, "train"), context.teacher
    if teacher is None or layers.is_full:
        return train
    name, splits = f"train, taught by {teacher}", loaded(context).splits
    if name not in splits:
        path = context.folder.outputs(teacher, "train")
        if not path.exists():
            # Somebody deleted it.
            write_array(path, outputs_of(context, load_weights(context, teacher), "train"))
        logits = torch.from_numpy(np.load(path)).to(context.device.name)
        splits[name] = replace(train, soft=SoftTargets(logits, context.recipe.distil))
    return splits[name]


def score_from_weights(context: EvaluationContext, key: TrialKey) -> None:
    """Store a confirmed model's outputs on every held-out split, from its kept weights; only if missing."""
    wanted = {name: context.folder.outputs(key, name) for name in loaded(context).task.held_out_splits}
    if missing := {name: path for name, path in wanted.items() if not path.exists()}:
        model = load_weights(context, key)
        for name, path in missing.items():
            write_array(path, outputs_of(context, model, name))


def outputs_of(context: EvaluationContext, model: PreTrainedModel, split: str) -> np.ndarray:
    """Logits of a split in order, as ``predict`` gives them."""
    with only_read_token(model, loaded(context).tail):
        return predict(model, split_of(context, split), context.device)


def load_weights(context: EvaluationContext, key: TrialKey) -> PreTrainedModel:
    """A model from its kept weights, on the device. If they were deleted, the model is trained again with the same
    seed, only once for all workers."""
    folder = context.folder.weights(key)
    if not folder.exists():
        with context.folder.making_weights(key):
            if not folder.exists():
                save_weights(_trained(context, key)[0], folder)
    kind = loaded(context).task.kind
    with building:
        model: PreTrainedModel = auto_class(kind).from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=context.trust_remote_code
        )
    torch.nn.Module.to(model, context.device.name)
    return model


def save_weights(model: PreTrainedModel, folder: Path) -> None:
    """Write a checkpoint atomically. Raises StudyError if it cannot be written."""
    with atomic_path(folder) as temporary:
        model.save_pretrained(temporary)


def loaded(context: EvaluationContext) -> Loaded:
    """Pre-trained model and examples, read once per process; the lanes of a GPU share them."""
    with _loading:
        # Neither depends on the teacher, which a search knows only after it has measured how many lanes pay.
        return load(replace(context, teacher=None))


@lru_cache(maxsize=1)
def load(context: EvaluationContext) -> Loaded:
    task = EncodedTask.load(context.folder.examples)
    pretrained, fresh = load_pretrained(
        context.pretrained,
        name=context.pretrained_name,
        kind=task.kind,
        label_names=task.label_names,
        pad_token=task.pad_token,
        trust_remote_code=context.trust_remote_code,
    )
    return Loaded(task, {}, pretrained, fresh)


def split_of(context: EvaluationContext, name: str) -> DeviceSplit:
    here = loaded(context)
    with _loading:
        if name not in here.splits:
            here.splits[name] = DeviceSplit.of(here.task, here.task.splits[name], context.device.name)
        return here.splits[name]
