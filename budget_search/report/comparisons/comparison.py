"""Compare several studies in the layout of Tables 2 to 4 of *Poor Man's BERT* (Sajjad et al., 2020)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from budget_search.core.formatting import NO_VALUE, count, pairs, percent, points, with_spread
from budget_search.core.layers import compact_indices
from budget_search.report.comparisons.measured_sets import distinct_answers
from budget_search.report.entries import Reference, Result
from budget_search.report.layout import Grid, Section
from budget_search.report.report import Report
from budget_search.report.sentences import largest_batch

DELTA = "δ"
SAVED = "↓"
UNRELIABLE = "*"
# Widths of columns in a terminal, in characters.
NAME_WIDTH = 24
MODEL_WIDTH, TASK_WIDTH = 14, 10
FULL_MODEL_COUNTED = "The speed-up counts the fine-tune of the full model that a smaller one needs."


def comparison(reports: Sequence[Report]) -> list[Section]:
    """Layers dropped within each delta (Table 2), savings (Table 3), and reference models (Table 4)."""
    references = [reference_section(reports)] if any(report.references for report in reports) else []
    return [_dropped(reports), _saved(reports), *references]


def needs_full_model(report: Report) -> bool:
    """Whether smaller models are trained from the weights or the outputs of the fine-tuned full model."""
    return report.recipe.get("dropping") == "finetuned" or bool(report.recipe.get("distil"))


def _dropped(reports: Sequence[Report]) -> Section:
    tasks = list(dict.fromkeys(report.task for report in reports))
    deltas = sorted({result.delta for report in reports for result in report.results})
    rows: list[tuple[str, ...]] = []
    for model, studies in _by_model(reports):
        rows.append((model, *[""] * len(tasks)))
        for delta in deltas:
            answers = {report.task: _answer(report, delta) for report in studies}
            rows.append((f"{100 * delta:g}%", *(_dropped_cell(answers.get(task)) for task in tasks)))
    unreliable = any(result.verdict == "held_out disagrees" for report in reports for result in report.results)
    return Section(
        "Layers dropped",
        grid=Grid((DELTA, *tasks), tuple(rows), {DELTA: NAME_WIDTH}, tuple(tasks)),
        legend=(
            "The number of layers that can be dropped from the model within the loss (points) in the first column.",
            *((f"{UNRELIABLE} the held-out examples disagree: do not rely on it.",) if unreliable else ()),
        ),
    )


def _saved(reports: Sequence[Report]) -> Section:
    rows: list[tuple[str, ...]] = []
    for model, studies in _by_model(reports):
        rows.append((model, *[""] * 6))
        for report in studies:
            baseline = report.baseline
            rows.append((report.task, "0", "", points(0.0), count(baseline.parameters), "1.00", NO_VALUE))
            rows += [_saved_row(report, result) for result in distinct_answers(report)]
    headers = ("task", "drop", "kept", "loss", "param.", "fine-tuning speedup", "inference time")
    widths = {"task": NAME_WIDTH, "kept": 13, "fine-tuning speedup": 11, "inference time": 9}
    return Section(
        "Savings",
        grid=Grid(headers, tuple(rows), widths, headers[3:]),
        legend=(
            "loss: points lost on certification, mean over the seeds. fine-tuning speedup: the full model's time "
            "divided by this model's.",
            f"inference time: the fraction of the full model's time saved ({SAVED}), for the largest batch measured.",
            *([FULL_MODEL_COUNTED] if any(map(needs_full_model, reports)) else []),
        ),
    )


def _saved_row(report: Report, result: Result) -> tuple[str, ...]:
    timed = largest_batch(result.inference)
    saved = NO_VALUE if timed is None or timed.saved is None else f"{percent(timed.saved.value)} {SAVED}"
    speedup = NO_VALUE if result.fine_tune_speedup is None else f"{result.fine_tune_speedup:.2f}"
    mark = UNRELIABLE if result.verdict == "held_out disagrees" else ""
    return (
        report.task,
        f"{len(result.dropped)}{mark}",
        compact_indices(result.kept),
        points(result.degradation),
        count(result.parameters),
        speedup,
        saved,
    )


def _by_model(reports: Sequence[Report]) -> Iterator[tuple[str, list[Report]]]:
    """The studies of each model and method, one per task; further studies of a task form a group of their own."""
    groups: dict[str, list[list[Report]]] = {}
    for report in reports:
        model_groups = groups.setdefault(report.treated_model, [])
        for studies in model_groups:
            if all(other.task != report.task for other in studies):
                studies.append(report)
                break
        else:
            model_groups.append([report])
    for model, model_groups in groups.items():
        for studies, name in zip(model_groups, _group_names(model_groups), strict=True):
            yield f"{model} ({name})" if name else model, studies


def _group_names(groups: Sequence[Sequence[Report]]) -> list[str]:
    """The fields in which the recipes of the first studies differ, or else the studies' names; empty for one group."""
    if len(groups) == 1:
        return [""]
    recipes = [studies[0].recipe for studies in groups]
    differing = [name for name in recipes[0] if any(recipe.get(name) != recipes[0][name] for recipe in recipes)]
    names = [pairs({name: recipe.get(name) for name in differing}) for recipe in recipes]
    return names if len(set(names)) == len(names) else [studies[0].study for studies in groups]


def _answer(report: Report, delta: float) -> Result | None:
    return next((result for result in report.results if result.delta == delta), None)


def _dropped_cell(result: Result | None) -> str:
    if result is None:
        return NO_VALUE
    return f"{len(result.dropped)}{UNRELIABLE if result.verdict == 'held_out disagrees' else ''}"


def reference_section(reports: Sequence[Report]) -> Section:
    """The baseline, then answers and reference models by score, of every report that has reference models."""
    headers = ("task", "model", "layers", "param.", "saved", "score", "loss (at most)", "seeds")
    rows = tuple(row for report in reports if report.references for row in _reference_rows(report))
    widths = {"task": TASK_WIDTH, "model": MODEL_WIDTH, "layers": 8, "score": 8, "loss (at most)": 8}
    return Section(
        "Comparison with other models",
        grid=Grid(headers, rows, widths, ("param.", "saved", "score", "loss (at most)", "seeds")),
        legend=(
            "All models are fine-tuned with the same recipe, examples and seeds; the full model comes first, the "
            "others are sorted by score. score: the mean on certification.",
            "saved, loss: relative to the full model. In brackets: the loss's upper bound, at the study's confidence.",
        ),
    )


def _reference_rows(report: Report) -> Iterator[tuple[str, ...]]:
    baseline = report.baseline
    spread = with_spread(baseline.score, baseline.std)
    full = (str(report.layers_total), count(baseline.parameters), NO_VALUE, spread, points(0.0), str(baseline.seeds))
    yield report.task, report.model, *full
    measured: list[Result | Reference] = [result for result in distinct_answers(report) if not result.is_full]
    for each in sorted([*measured, *report.references], key=lambda one: -one.score):
        upper = "" if each.degradation_upper is None else f" ({points(each.degradation_upper)})"
        yield (
            report.task,
            *_model_and_layers(report, each),
            count(each.parameters),
            percent(each.parameters_saved),
            with_spread(each.score, each.std),
            f"{points(each.degradation)}{upper}",
            str(each.seeds),
        )


def _model_and_layers(report: Report, each: Result | Reference) -> tuple[str, str]:
    """The cells ``model`` and ``layers``."""
    if isinstance(each, Result):
        return report.model, f"{each.depth} ({compact_indices(each.kept)})"
    return each.model, str(each.layers_total)
