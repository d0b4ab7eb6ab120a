"""Table 2 of *Poor Man's BERT* (Sajjad et al., 2020) with models and tasks at hand: how many layers can be dropped?

    python examples/table2.py --models FOLDER ... --data-dir glue --recipe quick     search what is missing, then print
    python examples/table2.py                                                         print what has been found so far

Every model is searched on every task (`--data-dir` holds a folder for each; without it they come from the hub), by the
paper's top-dropping and by `auto`, in one study, so that a layer set that both ask for is fine-tuned once. Interrupted,
it goes on where it was. Printed, as Markdown, is all that the folder `--studies-dir` holds: the table in the layout of
the paper, how sure it is and what it took, and whether the paper's findings are seen in it.
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
from budget_search.report.layout import Grid, Section
from budget_search.report.measured_sets import MeasuredSet, measured_sets
from budget_search.report.renderers.markdown import markdown_section
from budget_search.report.renderers.sections import VERDICTS
from budget_search.report.report import Report

TASKS = ("sst2", "mrpc", "rte", "stsb", "qqp")
DELTAS = (0.01, 0.02, 0.03)
ROWS = ("top", "any")
RECIPE = {"epochs": float, "train_examples": int, "batch_size": int, "lr": float, "max_length": int, "warmup": float}
MISSING = "-"
ROBUST = {"qqp", "stsb"}  # what lost least in the paper (section 4.2)


def search(args: argparse.Namespace) -> None:
    """One study per model and task; what cannot be searched is told, and the others go on."""
    recipe = {name: getattr(args, name) for name in RECIPE if getattr(args, name) is not None}
    for model, task, strategy in product(args.models, args.tasks, args.strategies):
        try:
            bs.search(
                model=model,
                task=task,
                strategy=strategy,
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
    """The reports of the studies in this folder, in the order of the paper's tasks; the others are told."""
    found = []
    for config in sorted(studies_dir.glob("*/config.json")):
        try:
            found.append(bs.read_report(config.parent))
        except StudyError as error:
            print(error, file=sys.stderr)
    return sorted(found, key=lambda report: (*TASKS, report.task).index(report.task))


# --- what was found --------------------------------------------------------------------------------------------------


def smallest(report: Report, row: str, delta: float) -> tuple[int, ...] | None:
    """The layers dropped by the smallest confirmed set whose mean loss is within delta (a fraction).

    Of sets without the uppermost layers only (`top`) or of all; of equals the one that lost less. Empty for the full
    model. None where nobody has looked: the study did not search any layers, or did not measure the next smaller set
    without the uppermost layers.
    """
    measured = [each for each in measured_sets(report) if row == "any" or is_top(each)]
    holding = [each for each in measured if each.confirmed and each.lost <= 100 * delta]
    best = min(holding, key=lambda each: (each.depth, each.lost), default=None)
    kept = tuple(range(report.layers_total)) if best is None else best.kept
    if row == "any":
        looked = report.question.get("strategy") not in FAMILIES
    else:
        looked = len(kept) == 1 or any(each.depth == len(kept) - 1 for each in measured)
    return tuple(sorted(set(range(report.layers_total)) - set(kept))) if looked else None


def is_top(measured: MeasuredSet) -> bool:
    return measured.kept == tuple(range(measured.depth))


def both(reports: Sequence[Report]) -> Iterator[tuple[int, int]]:
    """How many layers fall by top-dropping and in any way, of each study and delta where both were looked for."""
    for report, delta in product(reports, DELTAS):
        top, anyhow = (smallest(report, row, delta) for row in ROWS)
        if top is not None and anyhow is not None:
            yield len(top), len(anyhow)


def robustness(reports: Sequence[Report]) -> float:
    """The mean share of the layers that top-dropping may take, over studies and deltas."""
    return fmean(
        len(smallest(report, "top", delta) or ()) / report.layers_total for report, delta in product(reports, DELTAS)
    )


# --- how it is told --------------------------------------------------------------------------------------------------


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
            "top: the uppermost layers, as in the paper; any: whichever, as auto found them, with these in brackets.",
            "A dash: not run, or not finished.",
        ),
    )


def settings(reports: Sequence[Report]) -> list[str]:
    """The recipes and devices that occur; a model is told apart by their number, from 1."""
    return list(dict.fromkeys(f"{pairs(report.recipe)}; on {pairs(report.device)}" for report in reports))


def label(report: Report, reports: Sequence[Report]) -> str:
    number = 1 + settings(reports).index(*settings([report]))
    return f"{report.model}, {plural(report.layers_total, 'layer')}, recipe {number}"


def cell(report: Report, row: str, delta: float) -> str:
    dropped = smallest(report, row, delta)
    if dropped is None:
        return MISSING
    return f"{len(dropped)} ({compact_indices(dropped)})" if row == "any" and dropped else str(len(dropped))


def certainty_and_price(reports: Sequence[Report]) -> Section:
    """A line per study; the answers' words are those of the tool's own report."""
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
        "How sure, and what it took",
        grid=Grid(headers, tuple(rows), right=headers[4:6]),
        legend=(
            "full model: its score on certification, the mean over the seeds and their spread.",
            *(f"{word}: {VERDICTS[word]}" for word in shown),
            "equivalents: full fine-tunes of the full model that the whole study is worth, both searches together.",
            *(f"recipe {number}: {setting}" for number, setting in enumerate(settings(reports), start=1)),
        ),
    )


def state(reports: Sequence[Report]) -> Section:
    """What the paper found, and whether it is seen here."""
    topped = [report for report in reports if all(smallest(report, "top", delta) is not None for delta in DELTAS)]
    return Section(
        "Do the paper's findings hold?",
        paragraphs=(gain(reports), lower_layers(reports), robust_tasks(topped), earlier_maturity(topped)),
    )


def gain(reports: Sequence[Report]) -> str:
    pairs_of_depths = list(both(reports))
    if not pairs_of_depths:
        return "Whether searching any layers drops more than the uppermost: not run."
    more = [anyhow - top for top, anyhow in pairs_of_depths]
    return (
        f"Searching any layers instead of the uppermost drops {fmean(more):.2f} layers more on average "
        f"(over {len(more)} cells; more in {sum(each > 0 for each in more)}, at most {max(more)})."
    )


def lower_layers(reports: Sequence[Report]) -> str:
    """Counted over the smallest sets within the largest delta, where every layer had the same chance to stay."""
    finding = "Lower layers matter most"
    answers = [(report, smallest(report, "any", DELTAS[-1]) or ()) for report in reports]
    upper = [2 * index >= report.layers_total for report, dropped in answers for index in dropped]
    if not upper:
        return f"{finding}: cannot be checked, no layer was dropped by a search of any layers."
    return (
        f"{finding}: {held(2 * sum(upper) > len(upper))}. Within {100 * DELTAS[-1]:g} points "
        f"{plural(sum(1 for _, dropped in answers if dropped), 'answer')} of searches of any layers dropped "
        f"{plural(len(upper), 'layer')}, {sum(upper)} of them in the upper half of the model."
    )


def robust_tasks(reports: Sequence[Report]) -> str:
    """Of models that were run on both kinds of tasks by one recipe only."""
    finding = "QQP and STS-B lose least"
    groups: dict[bool, list[Report]] = {True: [], False: []}
    for name in dict.fromkeys(label(report, reports) for report in reports):
        studies = [report for report in reports if label(report, reports) == name]
        if len({report.task in ROBUST for report in studies}) == 2:
            for report in studies:
                groups[report.task in ROBUST].append(report)
    if not groups[True]:
        return f"{finding}: cannot be checked, no model was run on one of them and on another task by one recipe."
    robust, others = robustness(groups[True]), robustness(groups[False])
    tasks = " and ".join(sorted({report.task for report in groups[True]}))
    return (
        f"{finding}: {held(robust > others)}. Top-dropping takes {percent(robust)} of the layers on average on "
        f"{tasks}, {percent(others)} on the other tasks."
    )


def earlier_maturity(reports: Sequence[Report]) -> str:
    """Of pairs of models as deep as each other, one with xlnet and the other with bert in its name, on one task by one
    recipe."""
    finding = "XLNet matures earlier than BERT"
    compared = [
        (xlnet, bert)
        for xlnet, bert in product(reports, reports)
        if "xlnet" in xlnet.model.lower()
        and "bert" in bert.model.lower()
        and (xlnet.task, xlnet.layers_total, xlnet.recipe) == (bert.task, bert.layers_total, bert.recipe)
    ]
    if not compared:
        return f"{finding}: cannot be checked, no two such models of one depth were run on one task by one recipe."
    xlnet, bert = robustness([pair[0] for pair in compared]), robustness([pair[1] for pair in compared])
    return (
        f"{finding}: {held(xlnet > bert)}. Top-dropping takes {percent(xlnet)} of XLNet's layers on average, "
        f"{percent(bert)} of BERT's, in {plural(len(compared), 'comparison')} on the same task."
    )


def held(whether: bool) -> str:
    return "holds here" if whether else "does not hold here"


def main(arguments: Sequence[str] | None = None) -> None:
    """Search what is asked for and missing, then print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[], metavar="MODEL", help="folders or hub ids")
    parser.add_argument("--tasks", nargs="+", default=TASKS, metavar="TASK")
    parser.add_argument("--strategies", nargs="+", default=["top", "auto"], choices=tuple(STRATEGIES))
    parser.add_argument("--data-dir", type=Path, help="holds a folder for every task")
    parser.add_argument("--studies-dir", type=Path, default=Path("table2"))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--recipe", help="this and the following as in `budget-search run`")
    for name, kind in RECIPE.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind)
    parser.add_argument("--quiet", action="store_true")
    args = parser.parse_args(arguments)
    search(args)
    reports = finished(args.studies_dir)
    print("\n\n".join(map(markdown_section, (layers_dropped(reports), certainty_and_price(reports), state(reports)))))


if __name__ == "__main__":
    main()
