"""Table 2 of *Poor Man's BERT* (Sajjad et al., 2020), the layers that can be dropped, for any models and tasks.

    python examples/table2.py --models FOLDER ... --data-dir glue --recipe quick     run missing searches, then print
    python examples/table2.py                                                         print the finished studies

Searches every model on every task by the paper's top-dropping and by `auto`, both in one study, so that a layer set is
fine-tuned once. Both answer by the paper's rule, a mean loss within delta (`--criterion observed`). `--data-dir`
contains a folder per task; without it the tasks come from the hub. Repeat the command to resume. Prints the studies in
`--studies-dir` as Markdown: the table in the layout of the paper, verdicts and costs, and whether the paper's findings
hold.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean

import budget_search as bs
from budget_search.core.errors import BudgetSearchError, StudyError
from budget_search.core.formatting import pairs, percent, plural, with_spread
from budget_search.core.layers import FAMILIES, compact_indices
from budget_search.layer_search.strategies import STRATEGIES
from budget_search.report.comparisons.measured_sets import MeasuredSet, measured_sets
from budget_search.report.layout import Grid, Section
from budget_search.report.renderers.markdown import markdown_section
from budget_search.report.report import Report
from budget_search.report.sections import VERDICTS

TASKS = ("sst2", "mrpc", "rte", "stsb", "qqp")
DELTAS = (0.01, 0.02, 0.03)
ROWS = ("top", "any")
RECIPE = {"epochs": float, "train_examples": int, "batch_size": int, "lr": float, "max_length": int, "warmup": float}
MISSING = "-"
ROBUST = {"qqp", "stsb"}  # the tasks with the lowest degradation in the paper (section 4.2)


def search(args: argparse.Namespace) -> None:
    """One study per model and task; an error is printed, and the next search starts."""
    recipe = {name: getattr(args, name) for name in RECIPE if getattr(args, name) is not None}
    for model, task, strategy in product(args.models, args.tasks, args.strategies):
        try:
            bs.search(
                model=model,
                task=task,
                strategy=strategy,
                criterion="observed",
                data_dir=str(args.data_dir / task) if args.data_dir else None,
                deltas=DELTAS,
                seeds=args.seeds,
                recipe=args.recipe,
                workers=args.workers,
                studies_dir=str(args.studies_dir),
                quiet=args.quiet,
                **recipe,
            )
        except BudgetSearchError as error:
            print(f"{model} on {task} by {strategy}: {error}", file=sys.stderr)


def finished(studies_dir: Path) -> list[Report]:
    """The reports of the studies in this folder, in the order of the paper's tasks; unreadable ones are printed."""
    reports = []
    for config in sorted(studies_dir.glob("*/config.json")):
        try:
            reports.append(bs.read_report(config.parent))
        except StudyError as error:
            print(error, file=sys.stderr)
    return sorted(reports, key=lambda report: (*TASKS, report.task).index(report.task))


# --- results --------------------------------------------------------------------------------------------------


def smallest(report: Report, row: str, delta: float) -> tuple[int, ...] | None:
    """The layers dropped by the smallest confirmed set whose mean degradation is within delta (a fraction).

    Row `top` considers only sets that drop the uppermost layers, row `any` all sets; ties go to the lowest degradation.
    Empty for the full model. None if the study did not search: it has no search of all sets, or did not measure the
    next smaller set that drops the uppermost layers.
    """
    measured = [each for each in measured_sets(report) if row == "any" or is_top(each)]
    holding = [each for each in measured if each.confirmed and each.lost <= 100 * delta]
    best = min(holding, key=lambda each: (each.depth, each.lost), default=None)
    kept = tuple(range(report.layers_total)) if best is None else best.kept
    if row == "any":
        searched = report.question.get("strategy") not in FAMILIES
    else:
        searched = len(kept) == 1 or any(each.depth == len(kept) - 1 for each in measured)
    return tuple(sorted(set(range(report.layers_total)) - set(kept))) if searched else None


def is_top(measured: MeasuredSet) -> bool:
    return measured.kept == tuple(range(measured.depth))


def both(reports: Sequence[Report]) -> Iterator[tuple[int, int]]:
    """The number of dropped layers in both rows, for each study and delta with both."""
    for report, delta in product(reports, DELTAS):
        top, anyhow = (smallest(report, row, delta) for row in ROWS)
        if top is not None and anyhow is not None:
            yield len(top), len(anyhow)


def robustness(reports: Sequence[Report]) -> float:
    """The mean share of layers that can be dropped from the top, over studies and deltas."""
    return fmean(
        len(smallest(report, "top", delta) or ()) / report.layers_total for report, delta in product(reports, DELTAS)
    )


# --- rendering --------------------------------------------------------------------------------------------------


def layers_dropped(reports: Sequence[Report]) -> Section:
    """The paper's Table 2, each delta twice."""
    tasks = list(dict.fromkeys([*TASKS, *(report.task for report in reports)]))
    rows: list[tuple[str, ...]] = []
    for name in dict.fromkeys(label(report, reports) for report in reports):
        studies = {report.task: report for report in reports if label(report, reports) == name}
        rows.append((name, "", *[""] * len(tasks)))
        for delta, row in product(DELTAS, ROWS):
            cells = [MISSING if task not in studies else cell(studies[task], row, delta) for task in tasks]
            rows.append((f"{100 * delta:g}%" if row == ROWS[0] else "", row, *cells))
    return Section(
        "Layers dropped",
        grid=Grid(("δ", "dropped", *tasks), tuple(rows), right=tuple(tasks)),
        legend=(
            "Number of layers dropped while the mean score stays within δ points of the full model's.",
            "top: the uppermost layers, as in the paper; any: as found by auto, with their numbers in brackets.",
            "A dash: not run, or not finished.",
        ),
    )


def settings(reports: Sequence[Report]) -> list[str]:
    """The distinct recipes and devices; their numbers, from 1, are part of a model's label."""
    return list(dict.fromkeys(f"{pairs(report.recipe)}; on {pairs(report.device)}" for report in reports))


def label(report: Report, reports: Sequence[Report]) -> str:
    number = 1 + settings(reports).index(*settings([report]))
    return f"{report.model}, {plural(report.layers_total, 'layer')}, recipe {number}"


def cell(report: Report, row: str, delta: float) -> str:
    dropped = smallest(report, row, delta)
    if dropped is None:
        return MISSING
    return f"{len(dropped)} ({compact_indices(dropped)})" if row == "any" and dropped else str(len(dropped))


def verdicts_and_costs(reports: Sequence[Report]) -> Section:
    """A line per study, with the verdicts of its report."""
    rows = []
    for report in reports:
        verdicts = {result.delta: result.verdict for result in report.results}
        words = [verdicts.get(delta, MISSING) for delta in DELTAS]
        cost = report.cost
        rows.append(
            (
                label(report, reports),
                report.task,
                with_spread(report.baseline.score, report.baseline.std),
                ", ".join(words[:1] if len(set(words)) == 1 else words),
                f"{cost.full_fine_tune_equivalents:.1f}",
                f"{cost.wall_seconds / 3600:.2f}",
                report.finished[:10] if report.finished else f"{report.created[:10]}, interrupted",
            )
        )
    shown = [
        word for word in VERDICTS if any(result.verdict == word for report in reports for result in report.results)
    ]
    headers = ("model", "task", "full model", "at 1, 2, 3 points", "equivalents", "hours", "date")
    return Section(
        "Verdicts and costs",
        grid=Grid(headers, tuple(rows), right=headers[4:6]),
        legend=(
            "full model: its score on certification, mean and standard deviation over the seeds.",
            *(f"{word}: {VERDICTS[word]}" for word in shown),
            "equivalents: cost of the study in full fine-tunes of the full model, both searches together.",
            *(f"recipe {number}: {setting}" for number, setting in enumerate(settings(reports), start=1)),
        ),
    )


def findings(reports: Sequence[Report]) -> Section:
    """The paper's findings, and whether they hold here."""
    topped = [report for report in reports if all(smallest(report, "top", delta) is not None for delta in DELTAS)]
    return Section(
        "Do the paper's findings hold?",
        paragraphs=(gain(reports), lower_layers(reports), robust_tasks(topped), earlier_maturity(topped)),
    )


def gain(reports: Sequence[Report]) -> str:
    pairs_of_depths = list(both(reports))
    if not pairs_of_depths:
        return "Searching all layers instead of the uppermost: not run."
    more = [anyhow - top for top, anyhow in pairs_of_depths]
    return (
        f"Searching all layers instead of the uppermost drops {fmean(more):.2f} layers more on average "
        f"(over {len(more)} cells; more in {sum(each > 0 for each in more)}, at most {max(more)})."
    )


def lower_layers(reports: Sequence[Report]) -> str:
    """Counts layers in the smallest sets within the largest delta, of searches that can drop any layer."""
    finding = "Lower layers matter most"
    answers = [(report, smallest(report, "any", DELTAS[-1]) or ()) for report in reports]
    upper = [2 * index >= report.layers_total for report, dropped in answers for index in dropped]
    if not upper:
        return f"{finding}: cannot be checked, no search of all layers dropped a layer."
    return (
        f"{finding}: {held(2 * sum(upper) > len(upper))}. Within {100 * DELTAS[-1]:g} points "
        f"{plural(sum(1 for _, dropped in answers if dropped), 'answer')} of searches of all layers dropped "
        f"{plural(len(upper), 'layer')}, {sum(upper)} of them in the upper half of the model."
    )


def robust_tasks(reports: Sequence[Report]) -> str:
    """Compares models that were run on both kinds of tasks with one recipe."""
    finding = "QQP and STS-B lose least"
    groups: dict[bool, list[Report]] = {True: [], False: []}
    for name in dict.fromkeys(label(report, reports) for report in reports):
        studies = [report for report in reports if label(report, reports) == name]
        if len({report.task in ROBUST for report in studies}) == 2:
            for report in studies:
                groups[report.task in ROBUST].append(report)
    if not groups[True]:
        return f"{finding}: cannot be checked, no model was run on one of them and on another task with one recipe."
    robust, others = robustness(groups[True]), robustness(groups[False])
    tasks = " and ".join(sorted({report.task for report in groups[True]}))
    return (
        f"{finding}: {held(robust > others)}. Top-dropping drops {percent(robust)} of the layers on average on "
        f"{tasks}, {percent(others)} on the other tasks."
    )


def earlier_maturity(reports: Sequence[Report]) -> str:
    """Compares models of equal depth, one with xlnet and one with bert in its name, on one task with one recipe."""
    finding = "XLNet matures earlier than BERT"
    compared = [
        (xlnet, bert)
        for xlnet, bert in product(reports, reports)
        if "xlnet" in xlnet.model.lower()
        and "bert" in bert.model.lower()
        and (xlnet.task, xlnet.layers_total, xlnet.recipe) == (bert.task, bert.layers_total, bert.recipe)
    ]
    if not compared:
        return f"{finding}: cannot be checked, no two such models of equal depth were run on one task with one recipe."
    xlnet, bert = robustness([pair[0] for pair in compared]), robustness([pair[1] for pair in compared])
    return (
        f"{finding}: {held(xlnet > bert)}. Top-dropping drops {percent(xlnet)} of XLNet's layers on average, "
        f"{percent(bert)} of BERT's, in {plural(len(compared), 'comparison')} on the same task."
    )


def held(whether: bool) -> str:
    return "holds here" if whether else "does not hold here"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the missing searches, then print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[], metavar="MODEL", help="folders or hub ids")
    parser.add_argument("--tasks", nargs="+", default=TASKS, metavar="TASK")
    parser.add_argument("--strategies", nargs="+", default=["top", "auto"], choices=tuple(STRATEGIES))
    parser.add_argument("--data-dir", type=Path, help="contains a folder per task")
    parser.add_argument("--studies-dir", type=Path, default=Path("table2"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--recipe", help="this and the following options as in `budget-search run`")
    for name, kind in RECIPE.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind)
    parser.add_argument("--quiet", action="store_true")
    args = parser.parse_args(arguments)
    search(args)
    reports = finished(args.studies_dir)
    print("\n\n".join(map(markdown_section, (layers_dropped(reports), verdicts_and_costs(reports), findings(reports)))))


if __name__ == "__main__":
    main()
