"""``report.html`` and the pictures: valid, self-contained, escaped, and saying what the report says."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from xml.etree import ElementTree

import html5lib
import pytest
from matplotlib.figure import Figure

from budget_search.cli.main import main
from budget_search.report.plots.figures import content, inline, save
from budget_search.report.plots.study_plots import draw
from budget_search.report.renderers.html import page
from budget_search.report.report import Report
from budget_search.report.sentences import answer_sentence
from tests.test_report import GOLDEN, extremes, load

HTML = "{http://www.w3.org/1999/xhtml}"
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def report() -> Report:
    return load()


@pytest.fixture(scope="module")
def text(report: Report) -> str:
    return page(report)


def parsed(text: str) -> ElementTree.Element:
    """As browsers read it; raises for a page that they would have to mend."""
    root: ElementTree.Element = html5lib.HTMLParser(strict=True).parse(text)
    return root


def told(root: ElementTree.Element) -> str:
    """What a reader sees but the pictures, a line for every cell, paragraph and title."""
    lines: list[str] = []

    def walk(element: ElementTree.Element) -> None:
        if element.tag in (f"{HTML}style", f"{HTML}script", f"{SVG}svg"):
            return
        if element.tag.removeprefix(HTML) in (
            "h1",
            "h2",
            "h3",
            "p",
            "li",
            "dt",
            "dd",
            "th",
            "td",
            "code",
            "a",
            "title",
        ):
            lines.append(" ".join("".join(element.itertext()).split()))
            return
        for child in element:
            walk(child)

    walk(root)
    return "\n".join(lines)


# --- the page ------------------------------------------------------------------------------------------------------


def test_the_whole_page_as_text(text: str) -> None:
    shown = told(parsed(text)) + "\n"
    path = GOLDEN / "page.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(shown, encoding="utf-8")
    assert shown == path.read_text(encoding="utf-8")


def test_the_answer_to_use_comes_first_and_all_answers_are_there(report: Report, text: str) -> None:
    lines = told(parsed(text)).replace("\u00a0", " ").splitlines()
    first = lines.index("How few layers of twelve-layers does example-task need?") + 1
    assert lines[first] == answer_sentence(report, report.result(0.01))
    for result in report.results:
        assert answer_sentence(report, result) in lines


def test_a_page_needs_nothing_from_elsewhere(text: str) -> None:
    assert "default-src 'none'" in text
    for element in parsed(text).iter():
        for name, value in element.attrib.items():
            outside = name.split("}")[-1] in ("src", "href", "data", "srcset", "action") and not value.startswith("#")
            assert not outside, (element.tag, value)
            assert "url(" not in value or "url(#" in value
    assert "@import" not in text
    assert "url(" not in re.sub(r"url\(#", "", text)


def test_every_name_on_a_page_of_several_pictures_is_its_own(text: str) -> None:
    root = parsed(text)
    names = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(names) == len(set(names))
    used = set(re.findall(r"(?:url\(|href=\")#([\w-]+)", text))
    assert used <= set(names)


def test_whatever_comes_from_data_is_escaped(report: Report) -> None:
    attack = "<script>alert(1)</script>\"'&<img src=x onerror=alert(1)>"
    split = dataclasses.replace(report.splits["train"], label_shares={attack: 1.0})
    result = report.result(0.01)
    assert result.changes is not None
    changes = dataclasses.replace(
        result.changes,
        slices=(dataclasses.replace(result.changes.slices[0], name=attack),),
        flips=(dataclasses.replace(result.changes.flips[0], texts=(attack, "\x1b[31m"), label=attack),),
        directions=(dataclasses.replace(result.changes.directions[0], before=attack),),
    )
    hostile = dataclasses.replace(
        report, task=attack, model=attack, study=attack, command=attack, notes=(attack,), splits={"train": split},
        results=(dataclasses.replace(result, changes=changes),), recipe={attack: attack},
    )  # fmt: skip
    root = parsed(page(hostile))
    assert list(root.iter(f"{HTML}img")) == []
    assert len(list(root.iter(f"{HTML}script"))) == 1
    assert told(root).count("<script>alert(1)</script>") > 10
    assert "\x1b" not in page(hostile)


def test_a_page_of_whatever_a_report_may_hold(report: Report) -> None:
    parsed(page(extremes(report)))
    bare = dataclasses.replace(report, results=(), trials=(), frontier=(), notes=(), finished=None, command="")
    shown = told(parsed(page(bare)))
    assert "No answer yet." in shown
    assert "interrupted" in shown
    only_full = dataclasses.replace(report, results=report.results[:1])
    assert "Changed predictions" not in told(parsed(page(only_full)))


# --- the pictures --------------------------------------------------------------------------------------------------


def words(figure: Figure) -> str:
    """All text of a picture, tooltips included."""
    return " ".join("".join(ElementTree.fromstring(inline(figure, "p", "a picture")).itertext()).split())


def test_every_picture_is_drawn_with_its_units(report: Report) -> None:
    drawn = draw(report)
    assert list(drawn) == ["frontier", "layers", "depth", "savings", "evidence", "slices"]
    assert "points lost" in words(drawn["frontier"])
    assert "layers kept, of 12" in words(drawn["frontier"])
    assert "saved, % of the full model" in words(drawn["savings"])
    assert "points of accuracy lost" in words(drawn["slices"])


def test_the_frontier_shows_every_set_that_was_scored(report: Report) -> None:
    shown = words(draw(report)["frontier"])
    sets = {trial.kept for trial in report.trials if trial.score is not None and len(trial.kept) < 12}
    assert len(re.findall(r"\d+ layers? \(", shown)) == len(sets)
    # Against the baseline of the same rung: 89.0 - 86.1.
    assert "6 layers (0-2,5,8,11): 2.90 points lost, 12.5 % of the recipe" in shown
    assert "5 layers (0-4): 0.60 points lost, confirmed" in shown


def test_a_page_can_choose_the_colours(report: Report) -> None:
    drawn = inline(draw(report)["frontier"], "frontier", "x")
    assert set(re.findall(r"var\(--plot-(\w+)\)", drawn)) >= {"ink", "blue", "green", "muted"}
    assert not re.search(r"#(?!000000|ffffff)[0-9a-f]{6}", re.sub(r"(href=\"|url\()#[\w-]+", "", drawn))


def test_pictures_as_files(report: Report, tmp_path: Path) -> None:
    written = save(draw(report), tmp_path / "pictures")
    assert {path.suffix for path in written} == {".png", ".svg"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written if path.suffix == ".png")
    for path in written:
        if path.suffix == ".svg":
            ElementTree.parse(path)
    again = content(draw(report)["frontier"], "svg")
    assert again == (tmp_path / "pictures" / "frontier.svg").read_bytes()


def test_the_command_writes_page_and_pictures(
    sst2_study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", str(sst2_study), "--format", "html", "--output", "page.html", "--plots", "p"]) == 0
    # A search has left the same page and two of the pictures in the study's folder.
    assert (tmp_path / "page.html").read_text("utf8") == (sst2_study / "report.html").read_text("utf8")
    assert (tmp_path / "p" / "frontier.png").read_bytes() == (sst2_study / "frontier.png").read_bytes()
    assert (sst2_study / "layers.png").is_file()
    parsed((tmp_path / "page.html").read_text("utf8"))
    assert main(["report", str(sst2_study), str(sst2_study), "--format", "html"]) == 2
    assert main(["report", str(sst2_study), str(sst2_study), "--plots", "q"]) == 2
    assert "one study, received 2" in capsys.readouterr().err
    assert not (tmp_path / "q").exists()


@pytest.mark.filterwarnings("error")
def test_pictures_have_room_whatever_was_lost(report: Report) -> None:
    """Nothing lost at all, or everything: the deltas stay in the picture and the layout holds."""
    for score in (90.113, 1.0):
        trials = tuple(dataclasses.replace(row, score=score) for row in report.trials if len(row.kept) < 12)
        baseline = tuple(row for row in report.trials if len(row.kept) == 12)
        shown = words(draw(dataclasses.replace(report, trials=(*baseline, *trials)))["frontier"])
        assert "3 points" in shown
