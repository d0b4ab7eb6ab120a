"""Compares methods of making smaller models (`--dropping`, `--recovery`, `--distil`) on the same layer sets.

    python examples/methods.py --task sst2 --data-dir sst2 --model MODEL --recipe quick --layers 0-4 0-3 0-2,4

Takes the options of a search. Every method of METHODS (or of `--methods`, by name) fine-tunes each named layer set with
the recipe and the baseline's seeds, in a study of its own; all of them share the full model's runs. Prints the points
that each set loses by each method, what they lose less than by the first method, and how many layers each can drop
within 1, 2 and 3 points. Repeat the command to resume.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from scipy import special
from tabulate import tabulate

import budget_search as bs
from budget_search.app.request import Request
from budget_search.cli.options import request_from
from budget_search.cli.parser import parse
from budget_search.core.config import Recipe
from budget_search.core.dropping import training_depth
from budget_search.core.formatting import NO_VALUE, points, with_spread
from budget_search.core.layers import LayerSet, compact_indices
from budget_search.report.comparisons.measured_sets import MeasuredSet, measured_sets
from budget_search.report.report import Report

METHODS: dict[str, dict[str, Any]] = {
    "first": {"dropping": "first"},
    "finetuned": {"dropping": "finetuned"},
    "finetuned, half": {"dropping": "finetuned", "recovery": 0.5},
    "first, distil": {"dropping": "first", "distil": 0.5},
    "finetuned, distil": {"dropping": "finetuned", "distil": 0.5},
}
DELTAS = (1.0, 2.0, 3.0)
Losses = Mapping[tuple[int, ...], MeasuredSet]


def searched(request: Request, method: Mapping[str, Any]) -> Report:
    """The study of one method, with all named layer sets."""
    changes = {**request.recipe_changes, **method}
    options = vars(dataclasses.replace(request, recipe_changes={})) | {"deltas": tuple(each / 100 for each in DELTAS)}
    del options["recipe_changes"]
    return bs.search(**options, **changes)


def confirmed(report: Report) -> Losses:
    return {each.kept: each for each in measured_sets(report) if each.confirmed}


def equivalents(report: Report, sets: Sequence[tuple[int, ...]]) -> float:
    """The mean price of fine-tuning these sets once, in full fine-tunes of the full model, which is not counted."""
    recipe = Recipe(**report.recipe)
    depths = (training_depth(recipe, LayerSet(kept, report.layers_total)) for kept in sets)
    return fmean(depths) / report.layers_total


def less_lost(first: Losses, other: Losses) -> str:
    """The mean difference over the sets, with its 95 % interval (Student's t, the sets as the sample)."""
    less = [first[kept].lost - other[kept].lost for kept in first]
    if len(less) < 2:
        return points(fmean(less))
    margin = special.stdtrit(len(less) - 1, 0.975) * stdev(less) / math.sqrt(len(less))
    return f"{points(fmean(less))} ({points(fmean(less) - margin)} to {points(fmean(less) + margin)})"


def dropped(report: Report, losses: Losses, delta: float) -> str:
    """The most layers that one of these sets drops within delta points."""
    return str(max((report.layers_total - each.depth for each in losses.values() if each.lost <= delta), default=0))


def table(reports: Mapping[str, Report]) -> str:
    losses = {name: confirmed(report) for name, report in reports.items()}
    sets = sorted(set.intersection(*map(set, losses.values())), key=lambda kept: (-len(kept), kept))
    losses = {name: {kept: each[kept] for kept in sets} for name, each in losses.items()}
    first = next(iter(losses.values()))
    rows = [
        (compact_indices(kept), *(with_spread(each[kept].lost, each[kept].std) for each in losses.values()))
        for kept in sets
    ]
    rows.append(("mean", *(points(fmean(one.lost for one in each.values())) for each in losses.values())))
    others = (NO_VALUE if each is first else less_lost(first, each) for each in losses.values())
    rows.append(("less than the first", *others))
    rows.append(("equivalents each", *(f"{equivalents(report, sets):.2f}" for report in reports.values())))
    for delta in DELTAS:
        most = (dropped(report, each, delta) for report, each in zip(reports.values(), losses.values(), strict=True))
        rows.append((f"dropped within {delta:g}", *most))
    return tabulate(rows, ("kept", *losses), disable_numparse=True)


def main(*arguments: str) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=list(METHODS), help="the first is the reference"
    )
    chosen, options = parser.parse_known_args(arguments)
    request = request_from(parse(["run", *options]))
    if not request.layers:
        parser.error("name the layer sets to compare, such as --layers 0-4 0-3,5")
    print(table({name: searched(request, METHODS[name]) for name in chosen.methods}))


if __name__ == "__main__":
    main(*sys.argv[1:])
