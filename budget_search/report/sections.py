"""The sections of a report and their order, shared by all formats."""

from __future__ import annotations

import json
from collections.abc import Iterator

from budget_search.core.formatting import (
    count,
    duration,
    pairs,
    percent,
    plural,
    points,
    printable,
    tolerance,
    with_spread,
)
from budget_search.core.layers import compact_indices
from budget_search.data.kinds import kind_of
from budget_search.report.comparisons.comparison import reference_section
from budget_search.report.layout import Grid, Section
from budget_search.report.report import Report
from budget_search.report.savings import savings
from budget_search.report.sentences import answer_sentence, how_smaller_models_are_made, width_of_bound

USED_TO = {
    "train": "fine-tune",
    "selection": "select layer sets",
    "certification": "confirm layer sets",
    "held_out": "check the answers",
}

SAME_EXAMPLES = (
    "selection and held_out are the same examples, as in the papers. The layers were selected on the examples used for "
    "reporting, so expect a somewhat larger loss on new examples."
)

VERDICTS = {
    "certified": "the upper bound of the loss is within the allowed loss.",
    "likely": "the loss is probably within the allowed loss; its upper bound is not.",
    "observed": "the mean loss is within the allowed loss, its upper bound is not.",
    "held_out disagrees": "the loss on the held-out examples is larger than allowed; do not rely on the answer.",
    "cannot be resolved": "the allowed loss is smaller than what these data can certify.",
    "full model": "no smaller set that was measured was accepted.",
}


def sections(report: Report, exported: str | None = None) -> list[Section]:
    """The whole report. ``exported`` is the folder of the checkpoint, if there is one."""
    page = [overview(report)]
    if report.splits:
        page.append(examples(report))
    if report.results:
        page += [answers(report), savings(report), why_not_fewer(report)]
    if report.references:
        page.append(reference_section([report]))
    page += [frontier(report), cost(report), resolution(report)]
    if report.notes:
        page.append(notes(report))
    return [*page, summary(report, exported)]


def overview(report: Report) -> Section:
    baseline = report.baseline
    revision = f" (revision {report.revision[:12]})" if report.revision else ""
    held_out = ""
    constant = ""
    if baseline.constant_score is not None:
        constant = f"; best constant prediction: {points(baseline.constant_score)} on certification"
    if baseline.held_out_score is not None:
        held_out = f", {with_spread(baseline.held_out_score, baseline.held_out_std)} on held_out"
    return Section(
        f"How few layers of {report.model} does {report.task} need?",
        facts=(
            ("task", f"{report.task}, scored by {report.metric}, in points (100 is perfect)"),
            (
                "model",
                f"{report.model}{revision}: {plural(report.layers_total, 'layer')}"
                f"{'' if baseline.parameters is None else f', {count(baseline.parameters)} parameters'}",
            ),
            (
                "baseline",
                f"all {report.layers_total} layers, fine-tuned with {plural(baseline.seeds, 'seed')}: "
                f"{with_spread(baseline.score, baseline.std)} on certification{held_out}{constant}",
            ),
            *([("limits", f"{report.limits.compact}, in addition to the allowed loss")] if report.limits.given else []),
            *([("recipe", pairs(report.recipe))] if report.recipe else []),
            *([("smaller models", smaller)] if (smaller := how_smaller_models_are_made(report.recipe)) else []),
            *([("device", pairs(report.device))] if report.device else []),
            ("study", report.study if report.finished else f"{report.study} (interrupted)"),
        ),
    )


def examples(report: Report) -> Section:
    rows = []
    for name, split in report.splits.items():
        shares = ", ".join(f"{label}: {100 * share:.1f} %" for label, share in list(split.label_shares.items())[:4])
        more = f" and {len(split.label_shares) - 4} more" if len(split.label_shares) > 4 else ""
        rows.append((name, f"{split.examples:,}", shares + more or "-", USED_TO.get(name, "")))
    return Section(
        "Examples",
        grid=Grid(("split", "examples", "labels", "used to"), tuple(rows), {"split": 13, "labels": 34}, ("examples",)),
        legend=(SAME_EXAMPLES,) if _is_selection_held_out(report) else (),
    )


def _is_selection_held_out(report: Report) -> bool:
    """Whether both are the official validation set: carved splits differ in some size or label share."""
    selection, held_out = report.splits.get("selection"), report.splits.get("held_out")
    return selection is not None and selection == held_out


def answers(report: Report) -> Section:
    headers = ("allowed loss", "kept", "dropped", "score", "points lost (at most)", "lost on held_out", "verdict")
    rows = tuple(
        (
            tolerance(result.delta),
            f"{result.depth} ({compact_indices(result.kept)})",
            f"{len(result.dropped)} ({compact_indices(result.dropped)})" if result.dropped else "0",
            points(result.score),
            f"{points(result.degradation)} ({points(result.degradation_upper)})",
            points(result.held_out_degradation),
            result.verdict if result.confirmed else f"{result.verdict}, incomplete",
        )
        for result in report.results
    )
    widths = {"allowed loss": 10, "kept": 11, "dropped": 11, "points lost (at most)": 12, "lost on held_out": 8}
    return Section(
        "The answers",
        grid=Grid(headers, rows, {**widths, "score": 6, "verdict": 10}, ("score", "lost on held_out")),
        legend=tuple(_answers_legend(report)),
    )


def _answers_legend(report: Report) -> Iterator[str]:
    results = report.results
    if {result.criterion for result in results} == {"certified"}:
        yield "Each row is the smallest layer set whose upper confidence bound is within the allowed loss."
    elif {result.criterion for result in results} == {"observed"}:
        yield "Each row is the smallest layer set whose mean loss is within the allowed loss."
    elif {result.criterion for result in results} == {"likely"}:
        asked = percent(float(report.question.get("probability", 0.8)))
        yield f"Each row is the smallest layer set within the allowed loss with at least {asked} probability."
    yield "kept, dropped: number of layers, and which ones, numbered from 0 at the input."
    seeds = " or ".join(plural(number, "seed") for number in sorted({result.seeds for result in results}))
    yield f"Scores are means over {seeds} on certification."
    levels = " or ".join(sorted({percent(result.confidence) for result in results}))
    yield f"(at most): the upper bound of the true loss, with {levels} confidence."
    if len({(result.kept, result.degradation_upper) for result in results}) > len({result.kept for result in results}):
        yield "A set has different bounds in different rows: a bound allows for all sets tried for its allowed loss."
    for verdict, meaning in VERDICTS.items():
        if any(result.verdict == verdict for result in results):
            yield f"{verdict}: {meaning}"
    yield from filter(None, (width_of_bound(report, result) for result in results))
    if not all(result.confirmed for result in results):
        yield "incomplete: some seeds of the full recipe are missing."
    for result in results:
        if result.collapsed:
            collapsed = f"{result.collapsed} of {plural(result.seeds, 'fine-tune')}"
            yield f"For {tolerance(result.delta)}, {collapsed} predicted a single class."
    for name, value in report.baseline.metrics.items():
        if name not in (report.metric, "loss"):
            others = (f"{points(result.metrics.get(name))} for {tolerance(result.delta)}" for result in results)
            yield f"{name} (secondary metric): {', '.join([f'{points(value)} for the baseline', *others])}."


def why_not_fewer(report: Report) -> Section:
    facts = ((tolerance(result.delta), result.why_not_smaller) for result in report.results)
    return Section("Why not fewer layers", tuple(facts))


def frontier(report: Report) -> Section:
    rows = tuple(
        (
            str(point.depth),
            compact_indices(point.kept),
            "-" if point.parameters is None else count(point.parameters),
            "full" if point.rung == 1 else f"{100 * point.rung:.3g} %",
            str(point.seeds),
            with_spread(point.score, point.std),
            points(point.degradation),
        )
        for point in sorted(report.frontier, key=lambda point: -point.depth)
    )
    headers = ("depth", "kept", "parameters", "recipe", "seeds", "score", "points lost")
    return Section(
        "The best layer set measured at each depth",
        grid=Grid(headers, rows, {"kept": 18}, ("depth", "parameters", "recipe", "seeds", "points lost")),
        legend=(
            "recipe: the fraction of the full recipe. Short fine-tunes only guide the search; their loss is relative "
            "to the full model after an equally short fine-tune.",
        ),
    )


def cost(report: Report) -> Section:
    cost = report.cost
    reused = f" {plural(cost.reused, 'evaluation')} came from earlier searches." if cost.reused else ""
    cheaper = sum(trial.rung < 1 or len(trial.kept) < report.layers_total for trial in report.trials)
    mostly = ", most of them short or with fewer layers," if 2 * cheaper > len(report.trials) else ""
    text = (
        f"{plural(cost.fine_tunes, 'fine-tune')}{mostly} in "
        f"{duration(cost.wall_seconds)} ({duration(cost.device_seconds)} of device time). Their compute equals "
        f"{cost.full_fine_tune_equivalents:.1f} full fine-tunes of the full model "
        f"({cost.training_equivalents:.1f} for training). Training only the baseline and the answers, the minimum for "
        f"any search, takes {cost.unavoidable_equivalents:.1f}; this search's training took "
        f"{cost.over_unavoidable:.1f} times that.{reused}"
    )
    return Section("Cost of the search", paragraphs=(text,))


def resolution(report: Report) -> Section:
    smallest = report.resolution.smallest_certifiable_delta
    known = "Not known." if smallest is None else f"About {tolerance(float(f'{smallest:.2g}'))}."
    text = f"{known} {report.resolution.explanation}".strip()
    return Section("The smallest loss that can be certified", paragraphs=(text,))


def notes(report: Report) -> Section:
    return Section("Notes", paragraphs=report.notes)


def summary(report: Report, exported: str | None) -> Section:
    if not report.results:
        return Section("Summary", paragraphs=("No answer yet.",))
    return Section("Summary", paragraphs=tuple(sentences(report)), code=loading(report, exported))


def loading(report: Report, exported: str | None = None) -> str:
    """Code that loads the checkpoint, preceded by the export command if there is none yet; empty for a study without
    models."""
    if not report.keeps_weights:
        return ""
    auto_model = kind_of(report.metric).auto_model
    code = [
        f"from transformers import {auto_model}",
        f"model = {auto_model}.from_pretrained({json.dumps(exported or 'DIR')})",
    ]
    if not exported:
        delta = report.best.delta
        code.insert(0, f"$ budget-search export {printable(report.study)} --delta {delta:g} --output DIR")
    return "\n".join(code)


def sentences(report: Report) -> Iterator[str]:
    """One sentence per answer; larger deltas with the same answer are appended instead of repeating it."""
    results = sorted(report.results, key=lambda result: result.delta)
    while results:
        first, *results = results
        same = [result for result in results if (result.kept, result.verdict) == (first.kept, first.verdict)]
        results = [result for result in results if result not in same]
        also = " and ".join(tolerance(result.delta) for result in same)
        yield answer_sentence(report, first) + (f" For {also} the answer is the same." if same else "")
