"""Cost and answers of the papers' search protocols on a study's task and model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from budget_search.core.formatting import plural, points, tolerance
from budget_search.core.layers import LayerSet, compact_indices, top
from budget_search.report.comparisons.measured_sets import greedy_chain, single_seed_losses
from budget_search.report.layout import Grid, Section
from budget_search.report.report import Report

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class ProtocolAnswer:
    """A protocol's answer for a delta; ``lost`` in points, ``short`` if a screen stands in for a full run."""

    layers: LayerSet
    lost: float
    short: bool = False


@dataclass(frozen=True)
class Protocol:
    """A search protocol, its cost in full fine-tune equivalents, and its answer per delta (a fraction).

    An answer is None where the study did not measure all sets that the protocol would compare.
    """

    name: str
    fine_tunes: int
    equivalents: float
    answers: Mapping[float, ProtocolAnswer | None]


def protocols(report: Report) -> list[Protocol]:
    """Two protocols of the papers and the study itself; empty for an old report without the cost of a fine-tune.

    The scan fine-tunes every depth from the top (Poor Man's BERT, 4.1); greedy-layer pruning (Peer et al., 2021) goes
    down to the smallest answer. Both use one seed and the full recipe. Their cost is calculated: a fine-tune costs its
    share of the layers.
    """
    if report.cost.equivalents_per_fine_tune is None:
        return []
    total = report.layers_total
    smallest = min((result.depth for result in report.results), default=total)
    deltas = [result.delta for result in report.results]
    return [
        _protocol(report, "every depth from the top", scanned_depths(total), _scan_answers(report, deltas)),
        _protocol(
            report,
            f"greedy down to {plural(min(smallest, total - 1), 'layer')}",
            greedy_depths(total, min(smallest, total - 1)),
            _greedy_answers(report, deltas, smallest),
        ),
        Protocol(
            f"this study ({_strategy(report)})",
            report.cost.fine_tunes,
            report.cost.full_fine_tune_equivalents,
            {
                result.delta: ProtocolAnswer(LayerSet(result.kept, total), result.degradation)
                for result in report.results
            },
        ),
    ]


def scanned_depths(total: int) -> list[int]:
    """The depth of every fine-tune of a scan over all numbers of dropped layers, the full model's first."""
    return list(range(total, 0, -1))


def greedy_depths(total: int, depth: int) -> list[int]:
    """The depth of every fine-tune of greedy elimination down to ``depth``: the full model, then one fine-tune per
    remaining layer in every round."""
    return [total, *(left for left in range(total - 1, depth - 1, -1) for _ in range(left + 1))]


def _protocol(report: Report, name: str, depths: list[int], answers: Mapping[float, ProtocolAnswer | None]) -> Protocol:
    assert report.cost.equivalents_per_fine_tune is not None
    equivalents = report.cost.equivalents_per_fine_tune * sum(depths) / report.layers_total
    return Protocol(name, len(depths), equivalents, answers)


def _strategy(report: Report) -> str:
    return "named sets" if report.question.get("layers") else str(report.question.get("strategy", "auto"))


def _scan_answers(report: Report, deltas: Iterable[float]) -> dict[float, ProtocolAnswer | None]:
    """Per delta the most layers dropped whose own loss is within it (Poor Man's BERT, Table 2)."""
    total = report.layers_total
    sets = [layers for dropped in range(total - 1, 0, -1) if (layers := top(total, dropped)) is not None]
    return _first_within(report, deltas, sets)


def _greedy_answers(report: Report, deltas: Iterable[float], smallest: int) -> dict[float, ProtocolAnswer | None]:
    """Per delta the smallest set of the greedy chain whose loss is within it."""
    chain = [layers for layers in greedy_chain(report) if layers.depth >= min(smallest, report.layers_total - 1)]
    if not chain or chain[-1].depth > smallest:
        return dict.fromkeys(deltas)
    return _first_within(report, deltas, chain[::-1])


def _first_within(
    report: Report, deltas: Iterable[float], smallest_first: list[LayerSet]
) -> dict[float, ProtocolAnswer | None]:
    in_full, screened = single_seed_losses(report)
    answers: dict[float, ProtocolAnswer | None] = {}
    for delta in deltas:
        short = False
        for layers in smallest_first:
            lost = in_full.get(layers, screened.get(layers))
            short |= layers not in in_full
            if lost is None:
                answers[delta] = None
                break
            if lost <= 100 * delta:
                answers[delta] = ProtocolAnswer(layers, lost, short)
                break
        else:
            answers[delta] = ProtocolAnswer(LayerSet.full(report.layers_total), 0.0, short)
    return answers


def protocol_sections(report: Report) -> Iterator[Section]:
    """One section, or none for an old report."""
    compared = protocols(report)
    if not compared:
        return
    deltas = [result.delta for result in report.results]
    columns = tuple(f"for {tolerance(delta)}" for delta in deltas)
    rows = tuple(
        (
            each.name,
            f"{each.fine_tunes:,}",
            f"{each.equivalents:.1f}",
            *(_cell(each.answers[delta]) for delta in deltas),
        )
        for each in compared
    )
    seeds = report.baseline.seeds
    yield Section(
        "Cost compared with the papers' protocols",
        grid=Grid(("protocol", "fine-tunes", "equivalents", *columns), rows, {}, ("fine-tunes", "equivalents")),
        legend=(
            "equivalents: full fine-tunes of the full model. The first two rows are calculated: the full recipe and "
            "one seed for every set, no confirmation. The last row was measured, for all allowed losses together, "
            f"with {plural(seeds, 'seed')} for the baseline and every answer.",
            "every depth from the top: the scan of Poor Man's BERT (Sajjad et al., 2020). greedy: greedy-layer pruning "
            "(Peer et al., 2021).",
            "for ...: the layers that the protocol would keep and the points they lost, with one seed in the first two "
            f"rows. ~ by short fine-tunes. {NOT_MEASURED}: this study did not run all sets that the protocol compares.",
        ),
    )


def _cell(answer: ProtocolAnswer | None) -> str:
    if answer is None:
        return NOT_MEASURED
    if answer.layers.is_full:
        return f"{'~' if answer.short else ''}{answer.layers.depth} (all)"
    lost = f"{'~' if answer.short else ''}{points(answer.lost)}"
    return f"{answer.layers.depth} ({compact_indices(answer.layers.kept)}), {lost} lost"
