"""The plots of an inspection: probes by layer, similarities, and the cost of single layers."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from budget_search.core.formatting import plural, points
from budget_search.report.inspection import Inspection
from budget_search.report.plots.figures import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PURPLE,
    draw_pictures,
    figure_of,
    legend,
    mark,
    new_axes,
)

# The paper shades layers below this as changed substantially (Figure 5).
CHANGED_BELOW = 0.7


def _probes(inspected: Inspection) -> Figure:
    """The probe's score after every layer, the deltas below the last score, and the depths of the study's answers."""
    measured = inspected.layerwise
    axes = new_axes(3.6)
    last = measured.probes[-1]
    deltas = sorted(each.delta for each in inspected.suggestions)
    for delta in deltas:
        axes.axhline(last - 100 * delta, color=GREEN, linewidth=1.1, linestyle=(0, (5, 3)), zorder=1)
    for depth in {each.answer_depth for each in inspected.suggestions}:
        axes.axvline(depth, color=ORANGE, linewidth=1.4, zorder=1)
    places = range(inspected.layers_total + 1)
    axes.plot(places, measured.probes, color=BLUE, alpha=0.6, zorder=2)
    for place, score, error in zip(places, measured.probes, measured.probe_errors, strict=True):
        axes.plot([place] * 2, [score - error, score + error], color=BLUE, zorder=3)
        tip = f"{_after(place)}: {points(score)}, {points(last - score)} below the last"
        mark(axes, place, score, "o", tip, color=BLUE, markersize=6.5)
    allowed = ", ".join(f"{100 * delta:g}" for delta in deltas)
    legend(axes, {
        "probe, +- 1 standard error": {"marker": "o", "color": BLUE},
        f"{allowed} below the last": {"color": GREEN, "linestyle": (0, (5, 3))},
        "the study's answers": {"color": ORANGE},
    })  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(f"layers below the probe, of {inspected.layers_total}")
    axes.set_ylabel(f"{inspected.metric.replace('_', ' ')} of a probe, points")
    return figure_of(axes)


def _after(place: int) -> str:
    return f"after {plural(place, 'layer')}" if place else "before the first layer"


def _similarity(inspected: Inspection) -> Figure:
    """Per layer, the cosines to the pre-trained model and to the layer's own input."""
    measured = inspected.layerwise
    axes = new_axes(3.2)
    for values, colour, shape, name in (
        (measured.to_pretrained[1:], BLUE, "o", "to the pre-trained model"),
        (measured.to_input, PURPLE, "s", "to its own input"),
    ):
        axes.plot(range(len(values)), values, color=colour, alpha=0.6, zorder=2)
        for layer, value in enumerate(values):
            mark(axes, layer, value, shape, f"layer {layer} {name}: {value:.3f}", color=colour, markersize=6)
    names: dict[str, dict[str, Any]] = {
        "fine-tuned to pre-trained": {"marker": "o", "color": BLUE},
        "output to input, pre-trained": {"marker": "s", "color": PURPLE},
    }
    lowest = min(*measured.to_pretrained[1:], *measured.to_input)
    if lowest < CHANGED_BELOW:
        axes.axhspan(lowest - 0.05, CHANGED_BELOW, color=FAINT, alpha=0.4, zorder=0)
        names[f"below {CHANGED_BELOW:g}"] = {"color": FAINT, "linewidth": 7}
    axes.set_ylim(lowest - 0.05, 1.02)
    axes.set_ylabel("cosine, mean over examples")
    legend(axes, names)
    _by_layer(axes, inspected)
    return figure_of(axes)


def _costs(inspected: Inspection) -> Figure | None:
    """The points that the model is expected to lose without each layer, by how much fine-tuning changed the layer."""
    if inspected.costs is None:
        return None
    axes = new_axes(3.2)
    axes.axhline(0, color=MUTED, linewidth=0.9)
    for layer, cost in enumerate(inspected.costs):
        if cost is not None:
            changed = 1 - inspected.layerwise.to_pretrained[layer + 1]
            mark(axes, changed, cost, "o", f"layer {layer}: {points(cost)} points", color=ORANGE, markersize=6.5)
            axes.annotate(str(layer), (changed, cost), (4, 3), textcoords="offset points", fontsize=8.5, color=INK)
    axes.margins(0.08)
    axes.set_xlabel("changed by fine-tuning: 1 - cosine to the pre-trained model")
    axes.set_ylabel("points lost without the layer")
    return figure_of(axes)


def _by_layer(axes: Axes, inspected: Inspection) -> None:
    axes.set_xlim(-0.6, inspected.layers_total - 0.4)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("layer, from 0 at the input side")


def draw_inspection(inspected: Inspection) -> dict[str, Figure]:
    """Every picture that this inspection has data for, by name."""
    return draw_pictures({"probes": _probes, "similarity": _similarity, "costs": _costs}, inspected)
