"""What a report says: its JSON, its sentences, and the whole text of every rendering.

``tests/golden/report.json`` is a hand-made report. After a wanted change of a rendering, write the expected texts
anew with ``UPDATE_GOLDEN=1 pytest tests/test_report.py`` and read the difference.
"""

import csv
import dataclasses
import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from budget_search.api import StudyReport
from budget_search.core import formatting
from budget_search.core.errors import StudyError, UsageError
from budget_search.core.limits import BindingLimit
from budget_search.report.entries import Rejected, Result, VarianceShares
from budget_search.report.inference import InferencePoint, Interval, PeakThroughput, Quantiles, ThroughputPoint
from budget_search.report.renderers import render
from budget_search.report.renderers.terminal import COLUMNS
from budget_search.report.report import Report
from budget_search.report.sentences import answer_sentence, why_not_smaller

GOLDEN = Path(__file__).parent / "golden"


def load() -> Report:
    return Report.from_json(json.loads((GOLDEN / "report.json").read_text(encoding="utf-8")))


@pytest.fixture
def report() -> Report:
    return load()


def with_results(report: Report, *results: Result) -> Report:
    return dataclasses.replace(report, results=results)


def test_only_a_search_of_mostly_short_fine_tunes_is_called_one(report: Report) -> None:
    whole = tuple(each for each in report.trials if each.rung == 1 and len(each.kept) == report.layers_total)
    assert whole
    assert "most of them short" in render([report], "markdown")
    assert "most of them short" not in render([dataclasses.replace(report, trials=whole)], "markdown")


# --- the record ---------------------------------------------------------------------------------------------------


def test_the_names_are_those_of_the_contract(report: Report) -> None:
    names = {
        "": "schema_version study task model revision metric layers_total created finished command versions device "
        "recipe splits baseline results frontier trials cost resolution",
        "baseline": "score std seeds metrics held_out_score parameters flops inference fine_tune_seconds",
        "results": "delta criterion verdict kept dropped depth confirmed score std seeds metrics degradation "
        "degradation_upper confidence probability_within certified held_out_score held_out_degradation "
        "held_out_degradation_upper parameters parameters_saved flops_saved inference fine_tune_speedup "
        "why_not_smaller",
        "frontier": "depth kept score std seeds rung degradation parameters",
        "trials": "kept rung seed split state score train_seconds error",
        "cost": "fine_tunes full_fine_tune_equivalents training_equivalents unavoidable_equivalents wall_seconds "
        "device_seconds reused",
        "resolution": "smallest_certifiable_delta explanation",
    }
    fields = report.to_json()
    for part, wanted in names.items():
        value = fields[part] if part else fields
        value = value[0] if isinstance(value, list) else value
        assert set(wanted.split()) <= set(value), part
    assert set(fields["splits"]) == {"train", "selection", "certification", "held_out"}
    assert set(fields["splits"]["train"]) == {"examples", "label_shares"}
    point = fields["results"][1]["inference"][0]
    assert {"batch", "length", "ms", "saved"} <= set(point)
    assert (set(point["ms"]), set(point["saved"])) == ({"median", "low", "high"}, {"value", "low", "high"})
    assert "saved" not in fields["baseline"]["inference"][0]


def test_json_holds_no_nan_and_reads_back_as_none(report: Report) -> None:
    odd = dataclasses.replace(report.results[1], std=math.nan, degradation_upper=math.inf)
    text = json.dumps(with_results(report, odd).to_json(), allow_nan=False)
    back = Report.from_json(json.loads(text)).results[0]
    assert (back.std, back.degradation_upper) == (None, None)
    assert back == dataclasses.replace(odd, std=None, degradation_upper=None)


def test_a_key_of_a_later_version_is_skipped(report: Report) -> None:
    fields = report.to_json()
    fields["baseline"]["watts"] = 3
    assert Report.from_json({**fields, "mood": "good"}) == report


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 99}, "schema version 99"),
        ({"layers_total": "twelve"}, "layers_total cannot be 'twelve'"),
        ({"layers_total": True}, "layers_total cannot be True"),
        ({"baseline": None}, "baseline must be an object"),
        ({"cost": {}}, "report.cost: .*missing"),
    ],
)
def test_a_broken_report_is_refused_by_name(report: Report, change: dict[str, object], message: str) -> None:
    with pytest.raises(StudyError, match=message):
        Report.from_json({**report.to_json(), **change})


def test_a_verdict_that_is_none_of_the_contract_is_refused(report: Report) -> None:
    fields = report.to_json()
    fields["results"][0]["verdict"] = "splendid"
    with pytest.raises(StudyError, match=r"results\[0\].verdict cannot be 'splendid'"):
        Report.from_json(fields)


def test_a_result_cannot_contradict_itself(report: Report) -> None:
    with pytest.raises(ValueError, match="certified"):
        dataclasses.replace(report.results[1], verdict="observed")
    with pytest.raises(ValueError, match="depth"):
        dataclasses.replace(report.results[1], depth=4)


def test_a_result_is_found_by_its_delta(report: Report) -> None:
    assert report.result(0.1 + 0.2 - 0.28) is report.results[2]  # 0.02, not quite
    with pytest.raises(UsageError, match=r"it has: 0.001 0.01 0.02 0.03"):
        report.result(0.05)


def test_importing_the_report_loads_neither_torch_nor_numpy() -> None:
    script = (
        "import sys, budget_search.report.report; sys.exit(bool({'torch', 'numpy', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


# --- sentences ----------------------------------------------------------------------------------------------------


def test_the_answer_in_one_sentence(report: Report) -> None:
    sentence = answer_sentence(report, report.result(0.01))
    assert sentence.count(". ") == 0
    for fact in ("5 of twelve-layers's 12 layers (0-4)", "1 point", "0.60", "0.93", "95 %", "46 %", "57 %"):
        assert fact in sentence


def test_the_sentence_never_says_more_than_was_found(report: Report) -> None:
    good = report.result(0.01)
    observed = dataclasses.replace(good, verdict="observed", certified=False, degradation_upper=1.3)
    assert "at most" not in answer_sentence(report, observed)
    assert "the 95 % upper bound of the loss is 1.30" in answer_sentence(report, observed)
    assert "Not confirmed" in answer_sentence(report, dataclasses.replace(good, confirmed=False))
    assert "0.20 points gained" in answer_sentence(report, dataclasses.replace(good, degradation=-0.2))
    assert "inference" not in answer_sentence(report, dataclasses.replace(good, inference=()))
    assert "do not rely on this answer" in answer_sentence(report, report.result(0.03))
    assert "cannot be resolved" in answer_sentence(report, report.result(0.001))
    full = dataclasses.replace(report.result(0.001), verdict="full model")
    assert "keeps all of twelve-layers's 12 layers" in answer_sentence(report, full)


def test_why_not_smaller_names_the_miss_and_what_would_settle_it() -> None:
    missed = Rejected((0, 1, 3), 3, "confirmation", 1.34, 1.7, 0.34, "More seeds would.")
    sentence = why_not_smaller(0.01, missed)
    assert sentence.endswith(missed.would_settle)
    for fact in ("3 layers (0-1,3)", "1.34 points", "0.34 more"):
        assert fact in sentence
    by_a_hair = dataclasses.replace(
        missed, degradation=0.9, degradation_upper=1.001, missed_by=0.001, reason="upper bound"
    )
    assert "its upper bound is 1.00, less than 0.01 more than allowed" in why_not_smaller(0.01, by_a_hair)
    untrained = dataclasses.replace(missed, degradation=None, degradation_upper=None, missed_by=None)
    assert "could not be trained" in why_not_smaller(0.01, untrained)
    assert why_not_smaller(0.01, None) == "No smaller set was measured."


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (formatting.points(-0.0001), "0.00"),
        (formatting.points(-1.006), "-1.01"),
        (formatting.points(None), "-"),
        (formatting.percent(-0.001), "0 %"),
        (formatting.percent(0.456), "46 %"),
        (formatting.tolerance(0.01), "1 point"),
        (formatting.tolerance(0.07), "7 points"),
        (formatting.tolerance(0.005), "0.5 points"),
        (formatting.count(999_999), "999,999"),
        (formatting.count(116_718_336), "116.7 M"),
        (formatting.duration(4.13), "4.1 s"),
        (formatting.duration(200), "3 min 20 s"),
        (formatting.duration(4349), "1 h 12 min"),
    ],
)
def test_numbers_in_plain_words(written: str, expected: str) -> None:
    assert written == expected


# --- renderings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "file"),
    [
        ("table", "table.txt"),
        ("markdown", "report.md"),
        ("latex", "report.tex"),
        ("json", "report.json"),
        ("csv", "report.csv"),
    ],
)
def test_the_whole_text(report: Report, form: str, file: str) -> None:
    text = render([report], form) + "\n"
    path = GOLDEN / file
    if os.environ.get("UPDATE_GOLDEN") and form != "json":  # that one is written by hand
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def extremes(report: Report) -> Report:
    """Many layers, long and hostile names, large numbers, nothing certain."""
    kept = tuple(range(0, 48, 2))
    slow = InferencePoint(32, 512, Quantiles(12345.6, 1.0, 2.0), Interval(-0.12, -0.31, 0.08), "cpu", "float32", 1, 9)
    result = dataclasses.replace(
        report.result(0.02),
        kept=kept,
        dropped=tuple(range(1, 48, 2)),
        depth=24,
        confirmed=False,
        degradation=-12.34,
        degradation_upper=104.5,
        inference=(slow,),
        parameters=13_000_000_000,
        collapsed=1,
    )
    return dataclasses.replace(
        report,
        task="a file|with\x1b[31m colour\nand lines",
        model="x" * 150,
        layers_total=48,
        results=(result, dataclasses.replace(report.result(0.03), confirmed=False)),
        frontier=(dataclasses.replace(report.frontier[0], kept=kept, depth=24),),
        splits={
            name: dataclasses.replace(split, label_shares={f"a long label {i}": 0.1 for i in range(10)})
            for name, split in report.splits.items()
        },
    )


def test_the_table_fits_the_terminal_whatever_it_holds(report: Report) -> None:
    for text in (render([report], "table"), render([extremes(report)], "table")):
        assert max(map(len, text.split("Summary")[0].splitlines())) <= COLUMNS
    short = dataclasses.replace(report, results=(), finished=None)
    assert "No answer yet." in render([short], "table")
    assert "(interrupted)" in render([short], "table")


@pytest.mark.parametrize("form", ["table", "markdown"])
def test_names_cannot_drive_the_terminal_or_break_a_table(report: Report, form: str) -> None:
    text = render([extremes(report)], form)
    assert all(char.isprintable() or char == "\n" for char in text)
    assert "\\x1b[31m" in text.replace("\\\\", "\\").replace("\\[", "[")


def test_pipes_in_names_do_not_add_columns_in_markdown(report: Report) -> None:
    split = dataclasses.replace(report.splits["train"], label_shares={"yes|no": 1.0})
    text = render([dataclasses.replace(report, splits={"train": split})], "markdown")
    (row,) = [line for line in text.splitlines() if line.startswith("| train")]
    assert row.replace(r"\|", "").count("|") == 5


def test_how_fast_the_answers_read_is_told_and_kept(report: Report) -> None:
    baseline = dataclasses.replace(report.baseline, throughput=ThroughputPoint(32, 872, 130.44))
    faster = ThroughputPoint(32, 872, 195.7, Interval(0.333, 0.32, 0.34))
    first = dataclasses.replace(report.results[0], throughput=faster)
    measured = dataclasses.replace(report, baseline=baseline, results=(first, *report.results[1:]))
    text = " ".join(render([measured], "table").split())
    for fact in ("872 held_out examples", "130 examples per second", "196 for 0.1 points (33 %"):
        assert fact in text
    assert Report.from_json(measured.to_json()) == measured


def test_what_a_gpu_was_busy_with_is_told_and_kept(report: Report) -> None:
    shares = (0.83, 0.2)
    inference = tuple(
        dataclasses.replace(point, launch_share=share)
        for point, share in zip(report.baseline.inference, shares, strict=True)
    )
    peak = PeakThroughput(512, 24, 21_000.0)
    baseline = dataclasses.replace(report.baseline, inference=inference, peak_throughput=peak)
    faster = PeakThroughput(512, 24, 35_000.0, Interval(0.4, 0.39, 0.41))
    answer = dataclasses.replace(report.results[1], peak_throughput=faster)
    measured = dataclasses.replace(with_results(report, answer), baseline=baseline)
    text = " ".join(render([measured], "table").split())
    first, second = (f"{point.batch} example" for point in inference)
    assert f"83 % of the baseline's time for {first}" in text
    assert text.count("(it dominates)") == 1
    assert f"20 % of the baseline's time for {second}" in text
    assert "512 examples of 24 tokens: 21,000 examples per second with all layers" in text
    assert "(40 % of the time saved)" in text
    assert Report.from_json(measured.to_json()) == measured
    assert not any("{" in cell for row in csv.reader(io.StringIO(render([measured], "csv"))) for cell in row)


def test_where_the_width_of_a_bound_comes_from_is_told_unless_the_answer_is_certified(report: Report) -> None:
    def told(shares: VarianceShares, delta: float, **question: object) -> str:
        results = [dataclasses.replace(report.result(delta), variance_shares=shares)]
        changed = dataclasses.replace(with_results(report, *results), question={**report.question, **question})
        return render([changed], "markdown")

    wide, certified = 0.02, next(each.delta for each in report.results if each.certified)
    by_seeds, by_examples = VarianceShares(0.7, 0.3), VarianceShares(0.2, 0.8)
    assert "70 % of the variance behind the bound" in told(by_seeds, wide)
    assert "--certify" in told(by_seeds, wide)
    assert "--certify" not in told(by_seeds, wide, certify=3)
    assert "80 % to the examples" in told(by_examples, wide)
    assert "--certify" not in told(by_examples, wide)
    assert "variance behind" not in told(by_seeds, certified)
    shares = StudyReport.of(with_results(report, dataclasses.replace(report.result(wide), variance_shares=by_seeds)))
    assert shares.to_json()["results"][0]["variance_shares"] == {"seeds": 0.7, "examples": 0.3}
    assert Report.from_json(shares.to_json()).results[0].variance_shares == by_seeds


def test_choosing_and_reporting_on_the_same_examples_is_said(report: Report) -> None:
    held_out = report.splits["held_out"]
    official = dataclasses.replace(report, splits={"selection": held_out, "held_out": held_out})
    assert "the same examples" in render([official], "table")
    assert "the same examples" not in render([report], "table")


def test_csv_holds_the_unrounded_numbers_of_every_study(report: Report) -> None:
    other = dataclasses.replace(report, study="other, study", results=report.results[1:2])
    rows = list(csv.DictReader(io.StringIO(render([report, other], "csv"))))
    assert [row["study"] for row in rows] == [report.study] * 4 + ["other, study"]
    assert float(rows[1]["parameters_saved"]) == report.results[1].parameters_saved
    assert (rows[1]["kept"], rows[1]["inference_batch"], rows[0]["probability_within"]) == ("0-4", "32", "")


def test_csv_is_flat_whichever_answers_were_timed(report: Report) -> None:
    """The full model has no throughput of its own: where it came first, the others had a column that it lacked."""
    timed = dataclasses.replace(report.results[1], throughput=ThroughputPoint(32, 872, 250.0, Interval(0.4, 0.3, 0.5)))
    bound = dataclasses.replace(report.results[0], binding=BindingLimit(None, None, ()))
    rows = list(csv.DictReader(io.StringIO(render([with_results(report, bound, timed)], "csv"))))
    assert [row["examples_per_second"] for row in rows] == ["", "250.0"]
    assert not any("{" in value for row in rows for value in row.values())


def test_several_reports_in_json_are_a_list(report: Report) -> None:
    assert [Report.from_json(fields) for fields in json.loads(render([report, report], "json"))] == [report, report]


def test_the_snippet_loads_what_was_exported_or_tells_how_to_export(report: Report) -> None:
    assert 'from_pretrained("my \\"model\\"")' in render([report], "table", exported='my "model"')
    assert "budget-search export" not in render([report], "table", exported="out")
    # The smallest delta kept the whole model and the largest does not hold: neither is what somebody would export.
    assert f"budget-search export {report.study} --delta 0.01 " in render([report], "table")


# --- from Python --------------------------------------------------------------------------------------------------


def test_a_report_as_a_table(report: Report) -> None:
    report = StudyReport.of(report)
    answers = report.to_frame()
    assert list(answers["depth"]) == [12, 5, 3, 2]
    assert answers["inference_saved"].iloc[1] == report.results[1].inference[-1].saved.value  # type: ignore[union-attr]
    assert len(report.to_frame("trials")) == len(report.trials)
    assert list(report.to_frame("frontier")["depth"]) == [12, 9, 5, 4, 3, 2]


def test_a_report_shows_itself(report: Report) -> None:
    shown = StudyReport.of(report)
    assert str(shown) == render([report], "table")
    frame = shown._repr_html_()
    assert frame.startswith(f"<p>Study <code>{report.study}</code></p><iframe srcdoc=")
    assert "<script" not in frame  # inside the attribute, escaped
    assert "&lt;script" in frame


def test_a_report_that_lies_nowhere_cannot_be_exported(report: Report, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no path to its study"):
        StudyReport.of(report).export(tmp_path / "out")
    placed = dataclasses.replace(report, folder=tmp_path)
    assert placed == report
    assert "folder" not in placed.to_json()
    assert Report.from_json({**report.to_json(), "folder": "/somewhere/else"}).folder is None
