"""Inspect a finished study: measure the layers of its fine-tuned full model once, and compare them with its trials."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from budget_search.app.study_report import confirmed_weights, read_report, require_weights_kept
from budget_search.core.config import Recipe
from budget_search.core.errors import BudgetSearchError, StudyError, UsageError
from budget_search.core.layers import LayerSet
from budget_search.core.serialization import read_record, to_plain
from budget_search.core.trial import FULL_RUNG, TrialKey
from budget_search.data.kinds import require_supported
from budget_search.models.layer_measurements import LayerMeasurements
from budget_search.models.pretrained import PretrainedSource, resolve_model
from budget_search.report.inspection import Inspection, inspection
from budget_search.report.report import Report
from budget_search.storage.files import write_json
from budget_search.storage.study_folder import StudyFolder, stored_config

if TYPE_CHECKING:
    from budget_search.layer_search.settings import SearchObserver


def inspect_study(
    folder: StudyFolder, observer: SearchObserver, *, model: str | None = None, trust_remote_code: bool = False
) -> Inspection:
    """Layer-wise probes and similarities of a study's fine-tuned full model, beside the study's answers.

    The measurements take up to 1,000 examples and are kept in the study's folder. ``model`` locates the pre-trained
    model where its name is not enough. Raises StudyError for a study that is not finished or whose weights are gone,
    UsageError for another model than the study's, and for a kind of task that has no such measurements.
    """
    report = read_report(folder)
    require_weights_kept(report)
    require_supported(report.metric, "inspect")
    measured = _stored_measurements(folder)
    if measured is None:
        observer.stage(f"fitting a probe on each of {report.layers_total} layers of the fine-tuned model")
        measured = _measure(folder, report, model, trust_remote_code)
        write_json(folder.layerwise, to_plain(measured))
    return inspection(report, measured)


def _measure(folder: StudyFolder, report: Report, model: str | None, trust_remote_code: bool) -> LayerMeasurements:
    key = _median_baseline(report)
    confirmed_weights(folder, report, key)
    config = stored_config(folder)["config"]
    pretrained = _pretrained(config, model)
    from budget_search.engine.device import resolve_device
    from budget_search.engine.evaluation import EvaluationContext
    from budget_search.engine.measurements.layer_probes import measure_layers

    device = resolve_device("auto", "fp32")
    recipe = Recipe(**config["recipe"])
    return measure_layers(
        EvaluationContext(folder, pretrained.folder, pretrained.name, recipe, device, trust_remote_code), key
    )


def _median_baseline(report: Report) -> TrialKey:
    """The baseline's run with the median score; of an even number, the lower middle one.

    Only the report's own seeds count: weights of other seeds are not kept.
    """
    full = LayerSet.full(report.layers_total)
    runs = sorted(
        (row.score, row.seed)
        for row in report.trials
        if row.split == "certification" and row.kept == full.kept and row.score is not None and row.seed in report.seeds
    )
    if not runs:
        raise StudyError(f"the report of {report.study} holds no run of the full model; run its search again")
    return TrialKey(full, FULL_RUNG, runs[(len(runs) - 1) // 2][1])


def _pretrained(config: dict[str, str], model: str | None) -> PretrainedSource:
    """The study's pre-trained model, found by ``--model`` or else by its name. Raises UsageError."""
    name = config["model"]
    wanted = model or {"demo-bert": "demo"}.get(name, name)
    try:
        pretrained = resolve_model(wanted, offline=model is None)
    except BudgetSearchError as error:
        if model is not None:
            raise
        raise UsageError(
            f"the study's pre-trained model {name} is not found by its name; give its folder: --model FOLDER"
        ) from error
    if pretrained.digest != config["model_digest"]:
        raise UsageError(
            f"--model {wanted} is not the model of this study: its content differs from that of {name}; "
            "give the same files, or the same revision"
        )
    return pretrained


def _stored_measurements(folder: StudyFolder) -> LayerMeasurements | None:
    """The measurements of an earlier call; None without one, or where the file cannot be read."""
    try:
        return read_record(
            LayerMeasurements, json.loads(folder.layerwise.read_text(encoding="utf8")), folder.layerwise.name
        )
    except (OSError, ValueError, StudyError):
        return None
