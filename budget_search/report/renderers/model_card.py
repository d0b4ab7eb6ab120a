"""The model card of an exported checkpoint, and the record of its provenance (``budget_search.json``)."""

from __future__ import annotations

import re
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from budget_search.core.formatting import count, pairs, percent, plural, points, with_spread
from budget_search.core.layers import compact_indices
from budget_search.data.kinds import kind_of
from budget_search.layer_search.verdict import Judgement
from budget_search.report.entries import Result
from budget_search.report.layout import Grid, Section
from budget_search.report.renderers.markdown import markdown_section, markdown_text
from budget_search.report.report import Report
from budget_search.report.sentences import answer_sentence, how_smaller_models_are_made

HUB_METRICS = {
    "matthews": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
    "micro_f1": "f1",
    "macro_f1": "f1",
    "entity_f1": "seqeval",
    "token_accuracy": "accuracy",
}


def provenance(report: Report, result: Result, *, seed: int, config: dict[str, Any]) -> dict[str, Any]:
    """The content of ``budget_search.json``; scores in points. ``config`` is the study's configuration."""
    return {
        "kept": result.kept,
        "layers_total": report.layers_total,
        "parent": report.model,
        "revision": report.revision,
        "study": report.study,
        "seed": seed,
        "delta": result.delta,
        "verdict": result.verdict,
        "scores": {
            "certification": result.score,
            "certification_std": result.std,
            "degradation": result.degradation,
            "degradation_upper": result.degradation_upper,
            "held_out": result.held_out_score,
            "seeds": result.seeds,
            "baseline": report.baseline.score,
            "baseline_held_out": report.baseline.held_out_score,
        },
        "config": config,
        "versions": report.versions,
    }


def model_card(
    report: Report, result: Result, checkpoint_score: float, *, name: str, own_loss: Judgement | None = None
) -> str:
    """The README.md of the export. ``checkpoint_score`` is its own score on held_out, in points; ``own_loss`` compares
    it there with the baseline's mean."""
    body = [
        f"# {markdown_text(name)}",
        markdown_text(answer_sentence(report, result)),
        *map(
            markdown_section,
            (_use(report, name), _evidence(report, result, checkpoint_score, own_loss), _provenance(report, result)),
        ),
    ]
    front = _metadata(report, checkpoint_score, name).to_yaml()
    return f"---\n{front}\n---\n\n" + "\n\n".join(body) + "\n"


def _metadata(report: Report, checkpoint_score: float, name: str) -> ModelCardData:
    measured = EvalResult(
        task_type=kind_of(report.metric).pipeline,
        dataset_type=report.task,
        dataset_name=report.task,
        dataset_split="held_out",
        metric_type=HUB_METRICS.get(report.metric, report.metric),
        metric_name=report.metric.replace("_", " "),
        # The hub's metrics are fractions.
        metric_value=checkpoint_score / 100,
    )
    return ModelCardData(
        model_name=name,
        library_name="transformers",
        pipeline_tag=kind_of(report.metric).pipeline,
        # Only a model with a commit is on the hub.
        base_model=report.model if re.fullmatch("[0-9a-f]{40}", report.revision or "") else None,
        tags=["budget-search", "layer-dropping"],
        eval_results=[measured],
        license=report.license.get("license"),
        license_name=report.license.get("license_name"),
        license_link=report.license.get("license_link"),
    )


def _use(report: Report, name: str) -> Section:
    kind = kind_of(report.metric)
    code = kind.usage.format(name=name) or (
        "from transformers import pipeline\n\n"
        f"classify = pipeline({kind.pipeline!r}, {name!r}{kind.pipeline_options})\n"
        f"# or {kind.auto_model}.from_pretrained and AutoTokenizer.from_pretrained"
    )
    return Section("Use", code=code)


def _evidence(report: Report, result: Result, checkpoint_score: float, own_loss: Judgement | None) -> Section:
    baseline = report.baseline
    rows = (
        ("this checkpoint", "", points(checkpoint_score)),
        (
            f"same layers, {plural(result.seeds, 'seed')}",
            with_spread(result.score, result.std),
            points(result.held_out_score),
        ),
        (
            f"all {report.layers_total} layers, {plural(baseline.seeds, 'seed')}",
            with_spread(baseline.score, baseline.std),
            points(baseline.held_out_score),
        ),
    )
    sizes = {name: f" ({split.examples:,} examples)" for name, split in report.splits.items()}
    headers = ("", f"certification{sizes.get('certification', '')}", f"held_out{sizes.get('held_out', '')}")
    lost = _lost(result.degradation, result.degradation_upper, result.confidence)
    own_facts = []
    if own_loss is not None:
        own_facts = [
            (
                "lost by this checkpoint",
                f"{_lost(own_loss.degradation, own_loss.upper, own_loss.confidence)}, on held_out",
            )
        ]
    return Section(
        "Evidence",
        facts=(
            ("verdict", result.verdict),
            ("points lost", lost),
            *own_facts,
            ("parameters", f"{count(result.parameters)}, {percent(result.parameters_saved)} fewer than the full model"),
        ),
        grid=Grid(headers, rows, right=headers[1:]),
        legend=(
            f"Scores are {report.metric} in points (100 is perfect): means over seeds, except for this checkpoint's.",
        ),
    )


def _lost(degradation: float, upper: float | None, confidence: float) -> str:
    """``0.88, at most 1.65 with 95 % confidence``."""
    bound = "" if upper is None else f", at most {points(upper)} with {percent(confidence)} confidence"
    return f"{points(degradation)}{bound}"


def _licence(report: Report) -> str:
    if not report.license:
        return f"{report.model} states none; find out before you publish this model"
    name = report.license.get("license_name", report.license["license"])
    link = report.license.get("license_link")
    return f"that of {report.model}, {name}{f' ({link})' if link else ''}; the data of the task may have other terms"


def _provenance(report: Report, result: Result) -> Section:
    dropped = compact_indices(result.dropped) or "none"
    made = None if result.is_full else how_smaller_models_are_made(report.recipe)
    return Section(
        "How it was made",
        facts=(
            ("parent", report.model if not report.revision else f"{report.model}, revision {report.revision}"),
            ("licence", _licence(report)),
            ("layers kept", f"{compact_indices(result.kept)} (from 0 at the input side); dropped: {dropped}"),
            ("fine-tuned on", f"{report.task}, with {pairs(report.recipe)}"),
            *([("training", made)] if made else []),
            ("why not fewer layers", result.why_not_smaller),
            ("study", report.study),
            ("command", report.command),
            ("versions", pairs(report.versions)),
        ),
        paragraphs=report.notes,
    )
