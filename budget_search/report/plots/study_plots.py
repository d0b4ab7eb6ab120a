"""The plots of a report, with units on the axes and a tooltip at every marker."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from budget_search.core.formatting import plural, points, printable, tolerance
from budget_search.core.layers import compact_indices
from budget_search.report.comparisons.measured_sets import (
    MeasuredSet,
    best_by_depth,
    distinct_answers,
    families,
    measured_sets,
)
from budget_search.report.entries import Result
from budget_search.report.inference import InferencePoint
from budget_search.report.plots.figures import (
    BLUE,
    FAINT,
    GREEN,
    INK,
    MARKERS,
    MUTED,
    ORANGE,
    PAPER,
    PURPLE,
    STRATEGY_COLOURS,
    TOOLTIP,
    YELLOW,
    draw_pictures,
    figure_of,
    legend,
    mark,
    new_axes,
)
from budget_search.report.report import Report

# Losses above this many times the largest delta are drawn at the edge.
WINDOW = 3.5


def draw(report: Report) -> dict[str, Figure]:
    """Every picture that this report has data for, by name."""
    pictures = {
        "frontier": _frontier,
        "layers": _layers,
        "depth": _depth,
        "savings": _savings,
        "evidence": _evidence,
        "slices": _slices,
    }
    return draw_pictures(pictures, report)


def _frontier(report: Report) -> Figure | None:
    """Points lost by depth: every measured set, confirmed sets with their standard deviation, and the deltas."""
    sets = measured_sets(report)
    if not sets:
        return None
    axes = new_axes(3.9)
    deltas = sorted(100 * result.delta for result in report.results)
    top = _window(sets, deltas)
    for delta in deltas:
        axes.axhline(delta, color=GREEN, linewidth=1.1, linestyle=(0, (5, 3)), zorder=1)
        axes.text(1.01, delta, tolerance(delta / 100), color=GREEN, va="center", fontsize=8.5,
                  transform=axes.get_yaxis_transform())  # fmt: skip
    axes.axhline(0, color=MUTED, linewidth=0.9)
    screened = [each for each in sets if not each.confirmed]
    confirmed = [each for each in sets if each.confirmed]
    _marks(axes, screened, top, "o", color=MUTED, markersize=5, alpha=0.45, markeredgewidth=0)
    best = [each for each in best_by_depth(sets) if each.confirmed]
    axes.plot([report.layers_total, *(each.depth for each in best)], [0, *(each.lost for each in best)],
              color=BLUE, alpha=0.6, zorder=2)  # fmt: skip
    _confirmed_marks(axes, report, confirmed, top)
    legend(axes, {
        "all layers": {"marker": "D", "color": INK, "linestyle": ""},
        "confirmed, +- 1 sd": {"marker": "o", "color": BLUE},
        "short fine-tune": {"marker": "o", "color": MUTED, "alpha": 0.5, "linestyle": ""},
        "answer": {"marker": "o", "color": ORANGE, "fillstyle": "none", "markersize": 9, "linestyle": ""},
    })  # fmt: skip
    low = min([0.0, *(each.lost - (each.std or 0) for each in sets)])
    axes.set_ylim(top * 1.04, low - 0.06 * (top - low))  # what loses less is higher
    _depths(axes, report, sets)
    axes.set_ylabel("points lost")
    return figure_of(axes)


def _confirmed_marks(axes: Axes, report: Report, confirmed: list[MeasuredSet], top: float) -> None:
    """The confirmed sets with one standard deviation, the full model, and a ring around every answer."""
    for each in confirmed:
        if each.std is not None:
            axes.plot([each.depth] * 2, [each.lost - each.std, each.lost + each.std], color=BLUE, zorder=3)
    _marks(axes, confirmed, top, "o", color=BLUE, markersize=7.5, markeredgecolor=PAPER)
    mark(axes, report.layers_total, 0, "D", f"all {report.layers_total} layers", color=INK, markersize=7)
    answers = {result.kept for result in report.results if not result.is_full}
    for each in confirmed:
        if each.kept in answers:
            axes.plot([each.depth], [each.lost], "o", color=ORANGE, markersize=13, fillstyle="none",
                      markeredgewidth=1.8)  # fmt: skip


def _layers(report: Report) -> Figure | None:
    """Which layers the best set of every depth keeps."""
    best = best_by_depth(measured_sets(report))
    if not best:
        return None
    total = report.layers_total
    axes = new_axes(min(0.55 + 0.27 * len(best), 9), 0.6)
    for row, each in enumerate(best):
        for index in range(total):
            kept = index in each.kept
            colour = (BLUE if each.confirmed else MUTED) if kept else FAINT
            axes.add_patch(Rectangle(
                (index - 0.44, row - 0.4), 0.88, 0.8, facecolor=colour if kept else "none", linewidth=1,
                edgecolor=colour, alpha=1 if each.confirmed or not kept else 0.55,
                gid=f"{TOOLTIP}layer {index} {'kept' if kept else 'dropped'}, of {plural(each.depth, 'layer')}",
            ))  # fmt: skip
        lost = f"{points(each.lost)} lost" if each.lost >= 0 else f"{points(-each.lost)} gained"
        axes.text(total - 0.25, row, lost, va="center", fontsize=9, color=INK if each.confirmed else MUTED)
    axes.set_xlim(-0.6, total + 0.22 * total)
    axes.set_ylim(len(best) - 0.4, -0.6)
    axes.set_yticks(range(len(best)), [plural(each.depth, "layer") for each in best])
    axes.set_xticks(range(0, total, max(1, total // 12)))
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)
    axes.set_xlabel("layer, from 0 at the input side", loc="left")
    return figure_of(axes)


def _depth(report: Report) -> Figure | None:
    """Points lost by strategy: the best measured set of each depth beside the paper's families."""
    sets = measured_sets(report)
    measured_families = families(report, sets)
    if not measured_families:
        return None
    axes = new_axes(3.6)
    axes.axhline(0, color=MUTED, linewidth=0.9)
    best = best_by_depth(sets)
    _line(axes, best, BLUE, "o", "best measured")
    mark(axes, report.layers_total, 0, "D", f"all {report.layers_total} layers", color=INK, markersize=7)
    for (name, members), marker, colour in zip(measured_families.items(), MARKERS, STRATEGY_COLOURS, strict=False):
        _line(axes, members, colour, marker, name)
    axes.legend(loc="best")
    axes.invert_yaxis()  # what loses less is higher
    _depths(axes, report, sets)
    axes.set_ylabel("points lost")
    return figure_of(axes)


def _savings(report: Report) -> Figure | None:
    """What every distinct answer saves, with the interval of the measured times."""
    answers = distinct_answers(report)
    rows = [(result, bars) for result in answers if (bars := _bars(result))]
    if not rows:
        return None
    axes = new_axes(0.75 + sum(0.24 * len(bars) + 0.34 for _, bars in rows))
    at, ticks = 0.0, []
    for result, bars in rows:
        name = f"{plural(result.depth, 'layer')} ({compact_indices(result.kept)})"
        axes.text(0, at - 0.05, _shortened(name, 44), fontsize=9.5, va="center")
        at += 0.75
        for name, colour, value, low, high in bars:
            axes.barh(at, 100 * value, height=0.62, color=colour, alpha=0.85)
            if low is not None and high is not None:
                axes.plot([100 * low, 100 * high], [at, at], color=INK, linewidth=1.4)
            axes.text(100 * max(value, high or value, 0) + 0.8, at, f"{100 * value:.0f} %", va="center", fontsize=9)
            ticks.append((at, name))
            at += 0.82
        at += 0.5
    axes.set_ylim(at - 0.5, -0.7)
    axes.set_yticks([place for place, _ in ticks], [name for _, name in ticks])
    axes.set_xlim(right=max(10.0, axes.get_xlim()[1] * 1.08))
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("saved, % of the full model")
    return figure_of(axes)


def _bars(result: Result) -> list[tuple[str, str, float, float | None, float | None]]:
    """What an answer saves: name, colour, value, low and high of each bar."""
    bars: list[tuple[str, str, float, float | None, float | None]] = []
    if result.is_full:
        return bars
    if result.parameters_saved is not None:
        bars.append(("parameters", PURPLE, result.parameters_saved, None, None))
    if result.flops_saved is not None:
        bars.append(("FLOPs", YELLOW, result.flops_saved, None, None))
    for point in sorted(result.inference, key=_by_batch):
        if point.saved is not None:
            saved = point.saved
            bars.append((f"time, batch of {point.batch}", BLUE, saved.value, saved.low, saved.high))
    return bars


def _by_batch(point: InferencePoint) -> tuple[int, int]:
    return point.batch, point.length


def _evidence(report: Report) -> Figure | None:
    """Every answer's loss on certification and on held_out, with the upper bounds, beside its delta."""
    answers = [result for result in report.results if not result.is_full]
    if not answers:
        return None
    axes = new_axes(0.85 + 0.62 * len(answers))
    highest = 0.0
    for row, result in enumerate(answers):
        delta = 100 * result.delta
        axes.plot([delta, delta], [row - 0.38, row + 0.38], color=GREEN, linewidth=2)
        for offset, name, marker, colour, value, upper in (
            (-0.14, "certification", "o", BLUE, result.degradation, result.degradation_upper),
            (0.14, "held_out", "s", ORANGE, result.held_out_degradation, result.held_out_degradation_upper),
        ):
            if value is None:
                continue
            if upper is not None:
                axes.plot([value, upper], [row + offset] * 2, color=colour, linewidth=1.5)
                axes.plot([upper], [row + offset], "|", color=colour, markersize=8)
            bound = "" if upper is None else f", at most {points(upper)}"
            mark(
                axes, value, row + offset, marker, f"{name}: {points(value)} lost{bound}", color=colour, markersize=6.5
            )
            highest = max(highest, value, upper or value, delta)
    axes.axvline(0, color=MUTED, linewidth=0.9)
    axes.set_yticks(range(len(answers)), [f"within {tolerance(r.delta)}" for r in answers])
    axes.set_ylim(len(answers) - 0.45, -0.55)
    axes.set_xlim(right=highest * 1.05)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("points lost (bar: up to the upper bound)")
    legend(axes, {
        "allowed": {"marker": "|", "color": GREEN, "linestyle": "", "markersize": 10, "markeredgewidth": 2},
        "certification": {"marker": "o", "color": BLUE},
        "held_out": {"marker": "s", "color": ORANGE},
    })  # fmt: skip
    return figure_of(axes)


def _slices(report: Report) -> Figure | None:
    """How much worse the first answer with slices is, for every label and length."""
    result = next((result for result in distinct_answers(report) if result.changes and result.changes.slices), None)
    if result is None or result.changes is None:
        return None
    slices, regression = result.changes.slices, result.changes.regression
    axes = new_axes(0.75 + 0.34 * len(slices))
    for row, each in enumerate(slices):
        if each.low is not None and each.high is not None:
            axes.plot([each.low, each.high], [row, row], color=BLUE, linewidth=1.5)
        tip = f"{printable(each.title)}: {points(each.worse)} worse, of {each.examples} examples"
        mark(axes, each.worse, row, "o" if each.by == "label" else "s", tip, color=BLUE, markersize=6.5)
    axes.axvline(0, color=INK, linewidth=1)
    axes.axvline(_mean_worse(result), color=ORANGE, linewidth=1.2, linestyle=(0, (4, 3)))
    axes.set_yticks(range(len(slices)), [_shortened(each.title) for each in slices])
    axes.set_ylim(len(slices) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    unit = "mean absolute error added" if regression else "points of accuracy lost"
    axes.set_xlabel(f"{unit}, with 95 % interval (dashed: over all examples)")
    return figure_of(axes)


def _mean_worse(result: Result) -> float:
    """Over all examples, from the slices by length, which cover all of them."""
    assert result.changes is not None
    kind = "length" if any(each.by == "length" for each in result.changes.slices) else "label"
    parts = [each for each in result.changes.slices if each.by == kind]
    return sum(each.worse * each.examples for each in parts) / sum(each.examples for each in parts)


def _window(sets: list[MeasuredSet], deltas: list[float]) -> float:
    """The largest loss to draw, so that the deltas stay apart."""
    worst = max(each.lost + (each.std or 0) for each in sets)
    largest = max(deltas, default=worst)
    return max(min(worst, WINDOW * largest), 1.1 * largest, 0.5)


def _marks(axes: Axes, sets: list[MeasuredSet], top: float, marker: str, **style: object) -> None:
    for each in sets:
        shape = "v" if each.lost > top else marker
        mark(axes, each.depth, min(each.lost, top), shape, _tooltip(each), **style)


def _tooltip(each: MeasuredSet) -> str:
    how = "confirmed" if each.confirmed else f"{100 * each.rung:.3g} % of the recipe"
    return f"{plural(each.depth, 'layer')} ({compact_indices(each.kept)}): {points(each.lost)} points lost, {how}"


def _line(axes: Axes, sets: list[MeasuredSet], colour: str, marker: str, name: str) -> None:
    axes.plot([each.depth for each in sets], [each.lost for each in sets], color=colour, alpha=0.8, zorder=2)
    axes.plot([], [], label=name, color=colour, marker=marker, markersize=5.5)
    for each in sets:
        face = colour if each.confirmed else PAPER
        mark(axes, each.depth, each.lost, marker, _tooltip(each), color=colour, markerfacecolor=face, markersize=5.5)


def _depths(axes: Axes, report: Report, sets: list[MeasuredSet]) -> None:
    fewest = min(each.depth for each in sets)
    axes.set_xlim(report.layers_total + 0.5, fewest - 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(f"layers kept, of {report.layers_total}")


def _shortened(name: str, length: int = 24) -> str:
    text = printable(name)
    return text if len(text) <= length else f"{text[: length - 2]}..."
