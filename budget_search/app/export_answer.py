"""Export an answer: choose the weights, collect the evidence, write the checkpoint and check it on held_out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from budget_search.app.study_report import confirmed_weights, require_weights_kept
from budget_search.core.errors import StudyError
from budget_search.core.layers import LayerSet
from budget_search.core.trial import FULL_RUNG, TrialKey
from budget_search.data.tokenization import EncodedTask
from budget_search.engine.batches import DeviceSplit
from budget_search.engine.device import Device
from budget_search.engine.finetune import predict
from budget_search.layer_search.verdict import Judgement
from budget_search.models.checkpoint import Export, HeldOut, export_checkpoint
from budget_search.models.pretrained import quiet_transformers
from budget_search.report.predictions import PairedOutputs
from budget_search.report.renderers.model_card import model_card, provenance
from budget_search.report.report import Report
from budget_search.storage.study_folder import stored_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from budget_search.storage.study_folder import StudyFolder


def export_answer(
    folder: StudyFolder,
    report: Report,
    delta: float,
    output: Path,
    name: str | None = None,
    *,
    trust_remote_code: bool = False,
) -> Export:
    """Export the answer for a delta (a fraction): the confirmed model with the median score.

    ``name`` is the model's name in its card; the name of the folder unless given.
    Raises UsageError for a delta that was not asked or a destination that is taken, StudyError when the weights are
    gone or damaged.
    """
    quiet_transformers()
    require_weights_kept(report)
    result = report.result(delta)
    if result.exported_seed is None:
        raise StudyError(f"the report of {folder.path.name} does not say which weights to export; run the search again")
    key = TrialKey(LayerSet(result.kept, report.layers_total), FULL_RUNG, result.exported_seed)
    weights = confirmed_weights(folder, report, key)
    task = EncodedTask.load(folder.examples)
    recorded = folder.outputs(key, "held_out")
    own_loss = _checkpoint_loss(folder, task, report, key, result.confidence)
    return export_checkpoint(
        weights,
        output,
        tokenizer_dir=folder.tokenizer,
        held_out=_held_out(task, np.load(recorded) if recorded.exists() else None),
        provenance=provenance(report, result, seed=key.seed, config=stored_config(folder)["config"]),
        card=lambda score: model_card(report, result, score, name=name or output.name, own_loss=own_loss),
        trust_remote_code=trust_remote_code,
    )


def _checkpoint_loss(
    folder: StudyFolder, task: EncodedTask, report: Report, key: TrialKey, confidence: float
) -> Judgement | None:
    """How many points the exported model itself loses on held_out.

    None for the full model, and where its outputs or the baseline's are missing.
    """
    full = LayerSet.full(report.layers_total)
    full_seeds = sorted({trial.seed for trial in report.trials if trial.rung == FULL_RUNG} & {*report.seeds})
    seeds = [seed for seed in full_seeds if folder.outputs(TrialKey(full, FULL_RUNG, seed), "held_out").exists()]
    if key.layers.is_full or not seeds or not folder.outputs(key, "held_out").exists():
        return None
    paired = PairedOutputs(folder, task, report.layers_total, tuple(seeds))
    return paired.compare_checkpoint(key.layers, key.seed, "held_out", confidence)


def _held_out(task: EncodedTask, recorded: np.ndarray | None) -> HeldOut:
    """Scores in fp32 on the CPU, as users who load the folder will get them."""
    device = Device("cpu", "fp32")
    split = DeviceSplit.of(task, task.splits["held_out"], device.name)

    def logits(model: PreTrainedModel) -> np.ndarray:
        torch.set_num_threads(1)
        return predict(model, split, device)

    def score(outputs: np.ndarray) -> float:
        return task.measure("held_out", outputs)[task.metric]

    return HeldOut(task.kind, split.examples, logits, score, recorded)
