"""Table 2 of *Poor Man's BERT* (Sajjad et al., 2020), the layers that can be dropped, for any models and tasks.

    python examples/table2.py --models FOLDER ... --data-dir glue --recipe quick     run missing searches, then print
    python examples/table2.py                                                         print the finished studies

For every model and task it drops the uppermost layers, as many as possible (by bisection), and searches with `auto`,
both in one study, so that a layer set is fine-tuned once. Both follow the paper: layers are dropped before the
fine-tune (`--dropping first`), and the mean loss must be within delta (`--criterion observed`). `--strategies top
bottom symmetric auto` also measures other strategies of the paper where a third and half of the layers are dropped.
`--data-dir` contains a folder per task; without it the tasks come from the hub. Repeat the command to resume. Prints
the studies in `--studies-dir` as Markdown: the table in the layout of the paper, the answers with their bounds, savings
as in the paper's Tables 3 and 4, costs, and whether the paper's findings hold (`table2_findings.py`).
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path

from table2_findings import DELTAS, DROPPED_SHARES, ROWS, findings, fixed_set, is_top, label, settings, smallest
from transformers import AutoConfig

import budget_search as bs
from budget_search.core.errors import BudgetSearchError, StudyError
from budget_search.core.formatting import (
    NO_VALUE,
    count,
    percent,
    points,
    three_digits,
    tolerance,
    with_spread,
)
from budget_search.core.layers import FAMILIES, LayerSet, compact_indices
from budget_search.layer_search.strategies import STRATEGIES
from budget_search.report.comparisons.comparison import UNRELIABLE
from budget_search.report.comparisons.measured_sets import distinct_answers, measured_sets
from budget_search.report.entries import Baseline, Result
from budget_search.report.layout import Grid, Section
from budget_search.report.renderers.markdown import markdown_section
from budget_search.report.report import Report
from budget_search.report.savings import saved_time
from budget_search.report.sections import VERDICTS

TASKS = ("sst2", "mrpc", "rte", "stsb", "qqp")
BATCHES = (1, 32)
RECIPE = {"epochs": float, "train_examples": int, "batch_size": int, "lr": float, "max_length": int, "warmup": float}


def search(args: argparse.Namespace) -> None:
    """One study per model and task; an error is printed, and the next task starts."""
    recipe = {name: getattr(args, name) for name in RECIPE if getattr(args, name) is not None}
    for model, task in product(args.models, args.tasks):
        ask = partial(
            bs.search,
            model=model,
            task=task,
            criterion="observed",
            dropping="first",
            data_dir=str(args.data_dir / task) if args.data_dir else None,
            deltas=DELTAS,
            seeds=args.seeds,
            recipe=args.recipe,
            workers=args.workers,
            studies_dir=str(args.studies_dir),
            quiet=args.quiet,
            **recipe,
        )
        try:
            total = AutoConfig.from_pretrained(model).num_hidden_layers
            fixed = [strategy for strategy in args.strategies if strategy in FAMILIES]
            if "top" in fixed:
                drop_from_top(ask, total)
            if len(fixed) > 1:
                sets = (fixed_set(strategy, total, share) for strategy, share in product(fixed, DROPPED_SHARES))
                ask(layers=[layers.compact for layers in sets if layers])
            # Last, so that the study's report has the answers of the search.
            for strategy in args.strategies:
                if strategy not in FAMILIES:
                    ask(strategy=strategy)
        except (BudgetSearchError, OSError) as error:  # transformers: there is no such model
            print(f"{model} on {task}: {error}", file=sys.stderr)


def drop_from_top(ask: Callable[..., Report], total: int) -> None:
    """Confirm sets without the uppermost layers until the smallest within each delta is known, by bisection.

    The search by strategy `top` would not do: its answers may be any sets that the study has confirmed.
    """
    lost: dict[int, float] = {}
    for delta in DELTAS:
        while True:
            held = min((depth for depth, each in lost.items() if each <= 100 * delta), default=total)
            failed = max((depth for depth in lost if depth < held), default=0)
            if held - failed == 1:
                break
            depth = (failed + held) // 2
            report = ask(layers=[LayerSet(tuple(range(depth)), total).compact])
            # A set whose fine-tunes failed is not confirmed.
            lost[depth] = math.inf
            lost |= {each.depth: each.lost for each in measured_sets(report) if is_top(each) and each.confirmed}


def finished(studies_dir: Path) -> list[Report]:
    """The reports of the studies in this folder, in the order of the paper's tasks; unreadable ones are printed."""
    reports = []
    for config in sorted(studies_dir.glob("*/config.json")):
        try:
            reports.append(bs.read_report(config.parent))
        except StudyError as error:
            print(error, file=sys.stderr)
    return sorted(reports, key=lambda report: (*TASKS, report.task).index(report.task))


def layers_dropped(reports: Sequence[Report]) -> Section:
    """The paper's Table 2, each delta twice."""
    tasks = list(dict.fromkeys([*TASKS, *(report.task for report in reports)]))
    rows: list[tuple[str, ...]] = []
    for name in dict.fromkeys(label(report, reports) for report in reports):
        studies = {report.task: report for report in reports if label(report, reports) == name}
        rows.append((name, "", *[""] * len(tasks)))
        for delta, row in product(DELTAS, ROWS):
            cells = [NO_VALUE if task not in studies else cell(studies[task], row, delta) for task in tasks]
            rows.append((f"{100 * delta:g}%" if row == ROWS[0] else "", row, *cells))
    return Section(
        "Layers dropped",
        grid=Grid(("δ", "dropped", *tasks), tuple(rows), right=tuple(tasks)),
        legend=(
            "Number of layers dropped while the mean score stays within δ points of the full model's.",
            "top: the uppermost layers, as in the paper; any: as found by auto, with their numbers in brackets.",
            f"{UNRELIABLE} the loss on the held-out examples is larger than allowed: do not rely on it.",
            "A dash: not run, or not finished.",
        ),
    )


def cell(report: Report, row: str, delta: float) -> str:
    dropped = smallest(report, row, delta)
    if dropped is None:
        return NO_VALUE
    refuted = {each.dropped for each in report.results if (each.held_out_degradation or 0.0) > 100 * delta}
    number = f"{len(dropped)}{UNRELIABLE if dropped in refuted else ''}"
    return f"{number} ({compact_indices(dropped)})" if row == "any" and dropped else number


def answers(reports: Sequence[Report]) -> Section:
    """A line per study and delta: the answer of the study's last search, and how sure it is."""
    rows = [
        (
            label(report, reports),
            report.task,
            tolerance(result.delta),
            f"{result.depth} ({compact_indices(result.kept)})",
            f"{points(result.degradation)} ({points(result.degradation_upper)})",
            points(result.held_out_degradation),
            NO_VALUE if result.gain_kept is None else percent(result.gain_kept.value),
            result.verdict,
        )
        for report in reports
        for result in report.results
    ]
    headers = ("model", "task", "within", "kept", "lost (at most)", "lost on held_out", "gain kept", "verdict")
    shown = [word for word in VERDICTS if any(row[-1] == word for row in rows)]
    return Section(
        "Answers",
        grid=Grid(headers, tuple(rows), right=headers[4:7]),
        legend=(
            "lost (at most): points lost on certification, and the 95 % upper bound of the true loss.",
            "gain kept: the share of the full model's gain over the best constant prediction.",
            *(f"{word}: {VERDICTS[word]}" for word in shown),
        ),
    )


def savings(reports: Sequence[Report]) -> Section:
    """The paper's Tables 3 and 4: a line per study and smaller answer."""
    rows = [
        (
            label(report, reports),
            report.task,
            f"{result.depth} of {report.layers_total}",
            NO_VALUE if result.parameters is None else count(result.parameters),
            percent(result.parameters_saved),
            *(saved_at(result, batch) for batch in BATCHES),
            *map(examples_per_second, (report.baseline, result)),
            NO_VALUE if result.fine_tune_speedup is None else f"{result.fine_tune_speedup:.1f} x",
        )
        for report in reports
        for result in distinct_answers(report)
    ]
    times = tuple(f"time saved, batch {batch}" for batch in BATCHES)
    rates = ("examples/s, all", "examples/s, kept")
    headers = ("model", "task", "layers", "parameters", "saved", *times, *rates, "training speed-up")
    return Section(
        "Savings (the paper's Tables 3 and 4)",
        grid=Grid(headers, tuple(rows), right=headers[3:]),
        legend=(
            "time saved: fraction of the full model's time for one batch of this size, with its 95 % interval.",
            "examples/s: held_out examples per second in batches of 32, with all layers and with those kept.",
        ),
    )


def saved_at(result: Result, batch: int) -> str:
    saved = next((point.saved for point in result.inference if point.batch == batch and point.saved), None)
    return NO_VALUE if saved is None else saved_time(saved)


def examples_per_second(measured: Baseline | Result) -> str:
    return NO_VALUE if measured.throughput is None else three_digits(measured.throughput.examples_per_second)


def costs(reports: Sequence[Report]) -> Section:
    """A line per study: what the full model has learnt, and what the searches cost."""
    rows = [
        (
            label(report, reports),
            report.task,
            with_spread(report.baseline.score, report.baseline.std),
            points(report.baseline.constant_score),
            f"{report.cost.full_fine_tune_equivalents:.1f}",
            f"{report.cost.over_unavoidable:.1f}",
            f"{report.cost.wall_seconds / 3600:.2f}",
            report.finished[:10] if report.finished else f"{report.created[:10]}, interrupted",
        )
        for report in reports
    ]
    headers = ("model", "task", "full model", "constant", "equivalents", "over minimum", "hours", "date")
    return Section(
        "Costs",
        grid=Grid(headers, tuple(rows), right=headers[3:7]),
        legend=(
            "full model: its score on certification, mean and standard deviation over the seeds.",
            "constant: the score of the best constant prediction on the same examples.",
            "equivalents: cost of the study in full fine-tunes of the full model, all its searches together.",
            "over minimum: cost of all training over that of the full model and the answers alone.",
            *(f"recipe {number}: {setting}" for number, setting in enumerate(settings(reports), start=1)),
        ),
    )


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
    pages = (layers_dropped(reports), answers(reports), savings(reports), costs(reports), findings(reports))
    print("\n\n".join(map(markdown_section, pages)))


if __name__ == "__main__":
    main()
