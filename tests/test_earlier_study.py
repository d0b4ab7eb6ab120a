"""A study that an earlier version made (2026-11-27, a flat package): it opens, resumes and reports the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import tiny

KEPT = Path(__file__).parent / "earlier_study"
OPTIONS = (
    "--task", "train.csv", "--validation", "validation.csv", "--text-columns", "sentence", "--label-column", "label",
    "--model", "tiny-bert", "--epochs", "3", "--train-examples", "200", "--batch-size", "16", "--lr", "3e-3",
    "--max-length", "32", "--seeds", "2", "--workers", "1", "--device", "cpu", "--precision", "fp32",
    "--criterion", "observed", "--dropping", "first", "--quiet", "--format", "json",
)  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    # The task is named by its folder.
    place = tmp_path / "reviews"
    shutil.copytree(KEPT, place)
    monkeypatch.chdir(place)
    yield place


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert tiny.command(*arguments) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def found(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Every result without what is timed, newer than the study, or estimated in another way since."""
    left_out = {
        "inference", "throughput", "fine_tune_speedup", "gain_kept", "probability_within", "variance_shares",
    }  # fmt: skip
    return [{name: value for name, value in each.items() if name not in left_out} for each in report["results"]]


def stored(here: Path) -> tuple[Path, dict[str, Any]]:
    path = tiny.only_study(here / "studies") / "report.json"
    return path, json.loads(path.read_text("utf8"))


def test_it_is_reported_as_it_was(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, before = stored(here)
    assert printed(capsys, "report", path.parent.name, "--format", "json") == before


def test_the_same_command_finds_it_finished(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, before = stored(here)
    assert printed(capsys, *OPTIONS, "--delta", "0.01", "0.05") == before


def test_its_trials_answer_again_without_another_fine_tune(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, before = stored(here)
    path.unlink()
    after = printed(capsys, *OPTIONS, "--delta", "0.01", "0.05")
    assert after["study"] == before["study"]
    assert after["trials"] == before["trials"]
    assert after["cost"]["reused"] == after["cost"]["fine_tunes"] == before["cost"]["fine_tunes"]
    assert found(after) == found(before)
    assert after["baseline"]["score"] == before["baseline"]["score"]
    for name, split in before["splits"].items():
        assert after["splits"][name] == {**split, "constant_score": after["splits"][name]["constant_score"]}


def test_another_delta_reuses_what_was_measured(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, before = stored(here)
    after = printed(capsys, *OPTIONS, "--delta", "0.03")
    assert after["cost"]["reused"] >= before["cost"]["fine_tunes"]
    assert {json.dumps(row) for row in before["trials"]} <= {json.dumps(row) for row in after["trials"]}


def test_the_list_of_studies_tells_that_layers_were_dropped_first(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was the default then is another way of dropping than the recipe's now."""
    assert tiny.command("ls") == 0
    assert "dropping first" in " ".join(capsys.readouterr().out.split())
