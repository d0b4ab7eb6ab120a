"""Numbers and sentences in plain words. Of a report, this and ``render`` are the only places that round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from budget_search.layers import compact_indices

if TYPE_CHECKING:
    from budget_search.limits import Binding, Limits, Loss
    from budget_search.report import InferencePoint, Rejected, Report, Result

NOTHING = "-"


def printable(text: str) -> str:
    """On one line, without characters that a terminal would obey."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def points(value: float | None) -> str:
    """``0.60``: two decimals, never ``-0.00``."""
    return NOTHING if value is None else f"{value:.2f}".replace("-0.00", "0.00")


def percent(fraction: float | None) -> str:
    return NOTHING if fraction is None else f"{round(100 * fraction)} %"


def share(fraction: float) -> str:
    """``10.4 %``: where a whole per cent would be too coarse."""
    return f"{100 * fraction:.1f} %"


def tolerance(delta: float) -> str:
    """``1 point`` for 0.01."""
    amount = f"{100 * delta:.4g}"
    return f"{amount} point" if amount == "1" else f"{amount} points"


def count(number: int) -> str:
    """``116.7 M``, or all digits below a million."""
    return f"{number / 1e6:,.1f} M" if number >= 1_000_000 else f"{number:,}"


def duration(seconds: float) -> str:
    """``4.1 s``, ``3 min 20 s`` or ``1 h 12 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def with_spread(score: float, std: float | None) -> str:
    """``89.51 +- 0.12``: the mean over seeds and their standard deviation, where there are several."""
    return points(score) if std is None else f"{points(score)} +- {points(std)}"


def milliseconds(ms: float) -> str:
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.1f}" if ms >= 10 else f"{ms:.2f}"


def pairs(values: Mapping[str, Any]) -> str:
    """``name standard, epochs 3``: whatever the record holds; None is no limit."""
    return ", ".join(f"{name.replace('_', ' ')} {_plainly(value)}" for name, value in values.items())


def _plainly(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return "all" if value is None else str(value)


def plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def largest_batch(inference: Sequence[InferencePoint]) -> InferencePoint | None:
    """The measurement that stands for all where there is room for one."""
    return max(inference, key=lambda point: (point.batch, point.length), default=None)


def answer(report: Report, result: Result) -> str:
    """The answer for one delta in one sentence; a second one only where the first must not be relied on."""
    task, model, limit = printable(report.task), printable(report.model), tolerance(result.delta)
    limited = f" within {report.limits.compact}" if report.limits.asked else ""
    layers = f"{result.depth} of {model}'s {report.layers_total} layers ({compact_indices(result.kept)})"
    if result.verdict == "cannot be resolved":
        smallest = report.resolution.smallest_certifiable_delta
        about = "" if smallest is None else f" (they can tell losses from about {tolerance(smallest)} upwards)"
        sentence = (
            f"Whether {task} needs all of {model}'s {report.layers_total} layers to stay within {limit} cannot be "
            f"resolved with these data{about}, so all of them stay."
        )
    elif result.is_full:
        sentence = (
            f"{task} needs all of {model}'s {report.layers_total} layers to stay within {limit}: "
            f"no smaller set that was measured{limited} held."
        )
    elif result.verdict == "held_out disagrees":
        sentence = (
            f"{task} seemed to need {layers} to stay within {limit}, but on the held-out examples these lost "
            f"{points(result.held_out_degradation)} points: do not rely on this answer."
        )
    else:
        sentence = f"{task} needs {layers} to stay within {limit}: {_lost(result)}, {_saved(result)}."
    return sentence if result.confirmed else f"{sentence} Not confirmed: seeds of the full recipe are still missing."


def _lost(result: Result) -> str:
    lost = result.degradation
    change = f"{points(lost)} points lost" if lost >= 0 else f"{points(-lost)} points gained"
    if result.degradation_upper is None:
        return change
    upper, level = points(result.degradation_upper), percent(result.confidence)
    if result.certified:
        return f"{change} (at most {upper} with {level} confidence)"
    return f"{change} (not certified: at {level} confidence a loss of {upper} cannot be ruled out)"


def _saved(result: Result) -> str:
    parameters = f"{percent(result.parameters_saved)} of the parameters"
    timed = largest_batch(result.inference)
    if timed is None or timed.saved is None:
        return f"{parameters} saved"
    return f"{parameters} and {percent(timed.saved.value)} of the inference time saved"


def why_not_smaller(delta: float, rejected: Rejected | None) -> str:
    """Sentences on the nearest smaller set: what it lost, by how much it missed, what would settle it."""
    if rejected is None:
        return "No smaller set was measured."
    name = f"{plural(rejected.depth, 'layer')} ({compact_indices(rejected.kept)})"
    measured = "when confirmed" if rejected.stage == "confirmation" else "in a shortened fine-tune"
    if rejected.degradation is None:
        sentence = f"The nearest smaller set, {name}, could not be trained."
    elif rejected.degradation > 100 * delta or rejected.degradation_upper is None:
        sentence = (
            f"The nearest smaller set, {name}, lost {points(rejected.degradation)} points {measured}, "
            f"{_excess(rejected.missed_by)} than allowed."
        )
    else:
        sentence = (
            f"The nearest smaller set, {name}, lost {points(rejected.degradation)} points {measured}, but "
            f"{points(rejected.degradation_upper)} cannot be ruled out, {_excess(rejected.missed_by)} than allowed."
        )
    return f"{sentence} {rejected.would_settle}".strip()


def bound_by(delta: float, limits: Limits, bound: Binding) -> str:
    """Sentences on what the limits allow and what holds beyond them."""
    sentences = [f"Nothing within the limits ({limits.compact}) holds."]
    if (best := bound.within) is not None:
        verb = "lost" if best.source == "confirmation" else "is expected to lose"
        lost = f"The best of it, {_layers(best)}, {verb} {points(best.degradation)} points"
        more = best.degradation - 100 * delta
        sentences.append(f"{lost}, {_excess(more)} than allowed." if more > 0 else f"{lost}, but was not confirmed.")
    if (beyond := bound.beyond) is None:
        sentences.append("Without them no smaller set is expected to hold either.")
    else:
        binding = " and ".join(f"{breach.option} {breach.allowed}" for breach in bound.breaches)
        found = [breach.found for breach in bound.breaches if breach.option != "--max-layers"]
        verb = "lost" if beyond.source == "confirmation" else "are expected to lose"
        which = f", {', '.join(found)}," if found else ""
        sentences.append(
            f"What binds is {binding}: {_layers(beyond)}{which} {verb} {points(beyond.degradation)} points."
        )
    return " ".join(sentences)


def _layers(loss: Loss) -> str:
    return f"{plural(loss.depth, 'layer')} ({compact_indices(loss.kept)})"


def _excess(missed_by: float | None) -> str:
    if missed_by is None:
        return "more"
    return f"{points(missed_by)} more" if missed_by >= 0.005 else "less than 0.01 more"
