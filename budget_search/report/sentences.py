"""Sentences about an answer: which layers it keeps, what it loses and saves, and why no smaller set was accepted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from budget_search.core.config import DEFAULT_CERTIFY
from budget_search.core.formatting import percent, plural, points, printable, tolerance
from budget_search.core.layers import compact_indices
from budget_search.core.limits import BindingLimit, Limits, Loss
from budget_search.report.entries import Reason, Rejected, Result
from budget_search.report.inference import InferencePoint
from budget_search.report.report import Report

HOW_SMALLER_MODELS_ARE_MADE = {
    "after": "the full model is fine-tuned with the layers to drop frozen, then fine-tuned again without them",
    "gradual": "one layer of the full model is dropped after every two epochs, from the top; then it is fine-tuned",
    "finetuned": "layers of the fine-tuned full model of the same seed, with its head, fine-tuned again for {recovery} "
    "of the recipe",
    "untrained": "layers of the fine-tuned full model of the same seed, with its head, not trained further",
}


def how_smaller_models_are_made(recipe: Mapping[str, Any]) -> str | None:
    """How a recipe makes smaller models, if not by a plain fine-tune; ``recipe`` as in a report."""
    text = HOW_SMALLER_MODELS_ARE_MADE.get(recipe.get("dropping", "first"))
    return None if text is None else text.format(recovery=percent(recipe.get("recovery", 1.0)))


def largest_batch(inference: Sequence[InferencePoint]) -> InferencePoint | None:
    """The measurement with the largest batch, to show where there is room for only one."""
    return max(inference, key=lambda point: (point.batch, point.length), default=None)


def answer_sentence(report: Report, result: Result) -> str:
    """The answer for one delta in one sentence; a second one if the answer is not confirmed."""
    task, model, limit = printable(report.task), printable(report.model), tolerance(result.delta)
    limited = f" within {report.limits.compact}" if report.limits.given else ""
    layers = f"{result.depth} of {model}'s {report.layers_total} layers ({compact_indices(result.kept)})"
    if result.verdict == "cannot be resolved":
        smallest = report.resolution.smallest_certifiable_delta
        about = "" if smallest is None else f" (they can certify about {tolerance(smallest)} or more)"
        sentence = (
            f"Whether {task} needs all of {model}'s {report.layers_total} layers to stay within {limit} cannot be "
            f"resolved with these data{about}, so all layers are kept."
        )
    elif result.is_full:
        sentence = (
            f"{task} keeps all of {model}'s {report.layers_total} layers to stay within {limit}: "
            f"no smaller set measured{limited} was accepted."
        )
    elif result.verdict == "held_out disagrees":
        sentence = (
            f"{layers} seemed to suffice for {task} to stay within {limit}, but this set lost "
            f"{points(result.held_out_degradation)} points on the held-out examples: do not rely on this answer."
        )
    else:
        suffices = "suffices" if result.depth == 1 else "suffice"
        sentence = f"{layers} {suffices} for {task} to stay within {limit}: {_lost(result)}, {_saved(result)}."
    return sentence if result.confirmed else f"{sentence} Not confirmed: some seeds of the full recipe are missing."


def _lost(result: Result) -> str:
    lost = result.degradation
    change = f"{points(lost)} points lost" if lost >= 0 else f"{points(-lost)} points gained"
    if result.degradation_upper is None:
        return f"{change} ({_probably(result.probability_within)})" if result.verdict == "likely" else change
    upper, level = points(result.degradation_upper), percent(result.confidence)
    if result.certified:
        return f"{change} ({level} upper bound of the loss: {upper})"
    if result.verdict == "likely":
        return f"{change} ({_probably(result.probability_within)}; {level} upper bound of the loss: {upper})"
    return f"{change} (not certified: the {level} upper bound of the loss is {upper})"


def width_of_bound(report: Report, result: Result) -> str | None:
    """What determines the width of a bound above the allowed loss, and what would narrow it; None for other bounds."""
    shares = result.variance_shares
    if result.is_full or result.certified or shares is None or result.degradation_upper is None:
        return None
    remedy = "more examples would narrow it more than more seeds"
    if shares.seeds >= shares.examples:
        remedy = "more seeds would narrow it"
        if not report.question.get("certify"):
            option = f"--certify {DEFAULT_CERTIFY}" if report.keeps_weights else f"certify={DEFAULT_CERTIFY}"
            remedy += f": the same search with {option} adds up to {DEFAULT_CERTIFY}"
    return (
        f"For {tolerance(result.delta)}, {percent(shares.seeds)} of the variance behind the bound is due to the "
        f"{plural(result.seeds, 'seed')} and {percent(shares.examples)} to the examples; {remedy}."
    )


def _probably(probability: float | None) -> str:
    return "" if probability is None else f"within the allowed loss with {percent(probability)} probability"


def _saved(result: Result) -> str:
    timed = largest_batch(result.inference)
    saved = [
        f"{percent(share)} of the {what}"
        for share, what in (
            (result.parameters_saved, "parameters"),
            (timed.saved.value if timed and timed.saved else None, "inference time"),
        )
        if share is not None
    ]
    return f"{' and '.join(saved)} saved" if saved else f"{plural(len(result.dropped), 'layer')} saved"


def why_not_smaller(delta: float, rejected: Rejected | None) -> str:
    """Describe the smaller set that came closest to delta: what it lost, and what would settle whether it holds."""
    if rejected is None:
        return "No smaller set was measured."
    name = f"The nearest smaller set, {plural(rejected.depth, 'layer')} ({compact_indices(rejected.kept)}),"
    if rejected.degradation is None:
        return f"{name} could not be trained. {rejected.would_settle}".strip()
    measured = "in a short fine-tune" if rejected.stage == "screen" else "when confirmed"
    if rejected.reason in ("unfinished", "futile"):
        measured = "so far"
    lost = f"{name} lost {points(rejected.degradation)} points {measured}"
    return f"{lost}{_objection(rejected, rejected.degradation - 100 * delta)}. {rejected.would_settle}".strip()


def _objection(rejected: Rejected, excess: float) -> str:
    """What speaks against a set whose mean degradation is ``excess`` points above delta."""
    reason = rejected.reason or _reason_of_earlier_version(rejected)
    if reason == "failed":
        return ", but one of its fine-tunes failed"
    if excess > 0:
        return f", {_more(excess)} than allowed"
    if reason == "unfinished":
        return ", which is within the allowed loss"
    if reason == "probability":
        return f", but is within the allowed loss with only {percent(rejected.probability_within)} probability"
    if reason == "upper bound":
        more = "" if rejected.missed_by is None else f", {_more(rejected.missed_by)} than allowed"
        return f", but its upper bound is {points(rejected.degradation_upper)}{more}"
    if reason == "collapsed":
        return ", but nothing can be certified: a fine-tune, of this set or of the full model, did not learn the task"
    return ", which is within the allowed loss, but was not confirmed"


def _reason_of_earlier_version(rejected: Rejected) -> Reason:
    if rejected.probability_within is not None:
        return "probability"
    return "upper bound" if rejected.degradation_upper is not None else "screened"


def bound_by(delta: float, limits: Limits, bound: BindingLimit) -> str:
    """Sentences on the best set within the limits, and on the smallest set that holds beyond them."""
    sentences = [f"No set within the limits ({limits.compact}) was accepted."]
    if (best := bound.within) is not None:
        verb = "lost" if best.source == "confirmation" else "is expected to lose"
        lost = f"The best of them, {_layers(best)}, {verb} {points(best.degradation)} points"
        more = best.degradation - 100 * delta
        tried = "accepted" if best.source == "confirmation" else "confirmed"
        sentences.append(f"{lost}, {_more(more)} than allowed." if more > 0 else f"{lost}, but was not {tried}.")
    if (beyond := bound.beyond) is None:
        sentences.append("No smaller set is expected to be accepted without the limits either.")
    else:
        binding = " and ".join(f"{breach.option} {breach.allowed}" for breach in bound.breaches)
        sizes = [breach.found for breach in bound.breaches if breach.option != "--max-layers"]
        verb = "lost" if beyond.source == "confirmation" else "are expected to lose"
        rule_out = "rules out" if len(bound.breaches) == 1 else "rule out"
        which = "".join(f", {size}" for size in sizes)
        sentences.append(
            f"{binding} {rule_out} {_layers(beyond)}{which}, which {verb} {points(beyond.degradation)} points."
        )
    return " ".join(sentences)


def _layers(loss: Loss) -> str:
    return f"{plural(loss.depth, 'layer')} ({compact_indices(loss.kept)})"


def _more(missed_by: float) -> str:
    return f"{points(missed_by)} more" if missed_by >= 0.005 else "less than 0.01 more"
