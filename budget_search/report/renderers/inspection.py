"""An inspection as text: the measurements of every layer, and how well they predict the search's results."""

from __future__ import annotations

import json

from budget_search.core.formatting import NO_VALUE, points, tolerance
from budget_search.models.layer_measurements import LayerMeasurements
from budget_search.report.inspection import Inspection, Suggestion
from budget_search.report.layout import Grid, Section
from budget_search.report.renderers import markdown, terminal

WIDTHS = {"layer": 16, "below the last": 14, "cosine to pre-trained": 11, "cosine to input": 9}


def layer_sections(inspected: Inspection) -> list[Section]:
    """The measurements of every layer, and how well they predict the search's results."""
    return [_layers(inspected), _suggestions(inspected), _agreements(inspected)]


def _layers(inspected: Inspection) -> Section:
    measured = inspected.layerwise
    costs = inspected.costs or (None,) * inspected.layers_total
    last = measured.probes[-1]
    rows = (
        (
            str(place - 1) if place else "before the first",
            points(measured.probes[place]),
            _below(measured, place),
            _cosine(measured.to_pretrained[place]),
            _cosine(measured.to_input[place - 1]) if place else NO_VALUE,
            points(costs[place - 1]) if place else NO_VALUE,
        )
        for place in range(inspected.layers_total + 1)
    )
    headers = ("layer", "probe", "below the last", "cosine to pre-trained", "cosine to input", "cost")
    return Section(
        f"The layers of {inspected.model} on {inspected.task}",
        facts=(
            ("study", inspected.study),
            ("model", f"all {inspected.layers_total} layers, fine-tuned with seed {measured.seed}"),
            (
                "examples",
                f"{measured.train_examples:,} of train to fit the probes, {measured.selection_examples:,} of selection",
            ),
        ),
        grid=Grid(headers, tuple(rows), WIDTHS, headers[1:]),
        legend=(
            f"probe: {inspected.metric}, in points, of a linear probe on the classification token after this layer of "
            "the fine-tuned model.",
            f"below the last: the difference to the last layer's {points(last)}, +- its standard error.",
            "cosine to pre-trained: between the classification token after this layer in the fine-tuned and in the "
            "pre-trained model; 1 is unchanged.",
            "cosine to input: between the output and the input of the pre-trained layer; contribution-based dropping "
            "uses it.",
            "cost: points that a full fine-tune without this layer is expected to lose, estimated from the trials.",
        ),
    )


def _below(measured: LayerMeasurements, place: int) -> str:
    if place == len(measured.probes) - 1:
        return points(0.0)
    return f"{points(measured.probes[-1] - measured.probes[place])} +- {points(measured.probe_errors[place])}"


def _cosine(value: float) -> str:
    return f"{value:.3f}"


def _suggestions(inspected: Inspection) -> Section:
    rows = tuple(
        (tolerance(each.delta), str(each.depth), _lost(each), str(each.answer_depth), each.verdict)
        for each in inspected.suggestions
    )
    headers = ("allowed loss", "probe depth", "points lost", "answer depth", "verdict")
    return Section(
        "Do the probes predict how many layers are needed?",
        grid=Grid(headers, rows, {"probe depth": 6, "points lost": 6, "answer depth": 6}, headers[1:4]),
        legend=(
            "probe depth: layers up to the first whose probe is within the allowed loss of the last layer's probe.",
            f"points lost: by these lowest layers in the study; ~ in a short fine-tune only, {NO_VALUE} not measured.",
            "answer depth: layers of the confirmed answer, not necessarily the lowest ones.",
        ),
    )


def _lost(suggestion: Suggestion) -> str:
    return f"{'' if suggestion.confirmed or suggestion.lost is None else '~'}{points(suggestion.lost)}"


def _agreements(inspected: Inspection) -> Section:
    title = "Does a layer's change predict its cost?"
    if inspected.costs is None:
        return Section(
            title,
            paragraphs=(
                "This study screened too few layer sets to estimate the cost of single layers: it measured named sets, "
                "was interrupted, or the model has too few layers.",
            ),
        )
    rows = tuple(
        (each.measure, _signed(each.correlation), NO_VALUE if each.chance is None else f"{each.chance:.2g}")
        for each in inspected.agreements
    )
    headers = ("measure", "rank correlation with its cost", "p-value")
    layers = max(each.layers for each in inspected.agreements)
    return Section(
        title,
        grid=Grid(headers, rows, {"rank correlation with its cost": 16}, headers[1:]),
        legend=(
            f"Spearman's rank correlation over {layers} layers: 1 if a layer with a larger measure always costs more.",
            "p-value: two-sided, against no correlation.",
        ),
    )


def _signed(value: float | None) -> str:
    return NO_VALUE if value is None else f"{value:+.2f}"


def render_inspection(inspection: Inspection, form: str) -> str:
    """A study's inspection as ``table``, ``markdown`` or ``json``."""
    if form == "json":
        return json.dumps(inspection.to_json(), indent=2, allow_nan=False)
    renderer = markdown.render_sections if form == "markdown" else terminal.render_sections
    return renderer(layer_sections(inspection))
