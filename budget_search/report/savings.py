"""The report's section on size and speed of the answers, with the conditions of the measurement."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from budget_search.core.formatting import (
    NO_VALUE,
    count,
    duration,
    milliseconds,
    percent,
    plural,
    three_digits,
    tolerance,
)
from budget_search.report.comparisons.comparison import FULL_MODEL_COUNTED, needs_full_model
from budget_search.report.inference import InferencePoint, Interval, PeakThroughput, ThroughputPoint
from budget_search.report.layout import Grid, Section
from budget_search.report.report import Report


def savings(report: Report) -> Section:
    shapes = _shapes(report)
    timed = [header for batch, _ in shapes for header in (f"ms at batch {batch}", f"saved at batch {batch}")]
    headers = ("allowed loss", "parameters (saved)", *timed, "training speed-up")
    full = ["(baseline)", count(report.baseline.parameters), *_times(report.baseline.inference, shapes), "1.0 x"]
    rows = [tuple(full)]
    for result in report.results:
        speedup = "-" if result.fine_tune_speedup is None else f"{result.fine_tune_speedup:.1f} x"
        parameters = (
            NO_VALUE
            if result.parameters is None
            else (f"{count(result.parameters)} ({percent(result.parameters_saved)})")
        )
        rows.append((tolerance(result.delta), parameters, *_times(result.inference, shapes), speedup))
    widths = {"allowed loss": 10, "parameters (saved)": 13, "training speed-up": 8}
    widths |= {header: 5 if header.startswith("ms") else 13 for header in timed}
    right = tuple(header for header in timed if header.startswith("ms"))
    return Section(
        "Savings of the smaller models",
        grid=Grid(headers, tuple(rows), widths, (*right, "training speed-up")),
        legend=tuple(_savings_legend(report)),
    )


def _shapes(report: Report) -> list[tuple[int, int]]:
    """Batch and length of the largest and the smallest timed input; the table has room for two."""
    shapes = sorted({(point.batch, point.length) for point in report.baseline.inference}, reverse=True)
    return [shapes[0], shapes[-1]] if len(shapes) > 1 else shapes


def _times(inference: tuple[InferencePoint, ...], shapes: list[tuple[int, int]]) -> Iterator[str]:
    measured = {(point.batch, point.length): point for point in inference}
    for shape in shapes:
        point = measured.get(shape)
        yield "-" if point is None else milliseconds(point.ms.median)
        if point is None or point.saved is None:
            yield "-"
        else:
            yield saved_time(point.saved)


def saved_time(saved: Interval) -> str:
    """``41 % (38-44)``: a fraction with its interval, which is missing if the time was measured only once."""
    if saved.low is None or saved.high is None:
        return percent(saved.value)
    low, high = round(100 * saved.low), round(100 * saved.high)
    return f"{percent(saved.value)} ({low}{'-' if low >= 0 else ' to '}{high})"


def _savings_legend(report: Report) -> Iterator[str]:
    shapes = _shapes(report)
    if shapes:
        inputs = " or ".join(_input(batch, length) for batch, length in shapes)
        conditions = _conditions(report.baseline.inference[0])
        yield f"ms: milliseconds to predict a batch of {inputs}{conditions}."
        saved = [point.saved for result in report.results for point in result.inference if point.saved]
        bounded = any(each.low is not None for each in saved)
        yield f"saved: fraction of the baseline's time saved{', with its 95 % interval' if bounded else ''}."
        yield from _launching(report.baseline.inference)
    else:
        yield "Inference was not timed."
    yield from _throughput(report)
    if report.baseline.fine_tune_seconds is not None:
        yield f"training: one fine-tune of the full model took {duration(report.baseline.fine_tune_seconds)}."
    if needs_full_model(report):
        yield FULL_MODEL_COUNTED


def _throughput(report: Report) -> Iterator[str]:
    baseline, peak = report.baseline.throughput, report.baseline.peak_throughput
    if baseline is not None:
        own = {tolerance(result.delta): result.throughput for result in report.results}
        yield f"{baseline.examples:,} held_out examples in batches of {baseline.batch}: {_rates(baseline, own)}."
    if peak is not None:
        most = {tolerance(result.delta): result.peak_throughput for result in report.results}
        batch = f"{plural(peak.batch, 'example')} of {plural(peak.length, 'token')}"
        yield f"A batch that saturates the device, {batch}: {_rates(peak, most)}."


def _rates(
    baseline: ThroughputPoint | PeakThroughput, answers: Mapping[str, ThroughputPoint | PeakThroughput | None]
) -> str:
    speeds = [f"{three_digits(baseline.examples_per_second)} examples per second with all layers"]
    for allowed, point in answers.items():
        if point is not None and point.saved is not None:
            saved = percent(point.saved.value)
            rate = three_digits(point.examples_per_second)
            speeds.append(f"{rate} for {allowed} ({saved} of the time saved)")
    return ", ".join(speeds)


def _launching(inference: tuple[InferencePoint, ...]) -> Iterator[str]:
    shares = [
        f"{percent(point.launch_share)} of the baseline's time for {plural(point.batch, 'example')}"
        f"{' (it dominates)' if point.is_launch_bound else ''}"
        for point in inference
        if point.launch_share is not None
    ]
    if shares:
        yield f"launch overhead, during which the GPU waits for the host: {', '.join(shares)}."


def _conditions(point: InferencePoint) -> str:
    threads = "" if point.threads is None else f", {plural(point.threads, 'thread')}"
    rounds = "" if point.rounds is None else f"; median of {point.rounds} rounds in which the models take turns"
    return f", on {point.device} ({point.dtype}{threads}){rounds}" if point.device else ""


def _input(batch: int, length: int) -> str:
    examples = plural(batch, "example")
    return f"{examples} of {plural(length, 'token')}" if length else examples
