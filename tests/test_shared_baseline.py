"""A study takes over the full model's runs of another study that differs only in how smaller models are made."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from budget_search.app.create_study import create
from budget_search.app.resolve import resolve_request
from budget_search.app.search_settings import study_device
from budget_search.app.shared_baseline import shared_runs
from budget_search.cli.options import request_from
from budget_search.cli.parser import parse
from budget_search.data.tokenization import EncodedTask
from budget_search.simulation.replay import NullObserver
from tests import tiny

LAYERS = ("--layers", "0,2", "--delta", "0.9")
FINETUNED = ("--dropping", "finetuned", "--recovery", "0.5", "--distil", "0.5")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, bert: Path, sst2: Path) -> Path:
    """A folder with the study ``first``, which has both runs of the full model."""
    folder = tiny.context(tmp_path_factory.mktemp("first"), sst2=sst2, bert=bert)
    with contextlib.chdir(folder):
        assert run("--study", "first") == 0
    return folder


@pytest.fixture
def here(tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, which a test may change."""
    shutil.copytree(finished, tmp_path / "here", symlinks=True)
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def taken_over(*options: str) -> list[int]:
    """The seeds of the full model's runs that a new study with these options finds."""
    resolved = resolve_request(request_from(parse(["run", *tiny.search_options("sst2"), *LAYERS, *options])))
    create(resolved, study_device(resolved), NullObserver())
    return [run.trial.key.seed for run in shared_runs(resolved, resolved.folder)]


def run(*options: str) -> int:
    return tiny.command(*tiny.search_options("sst2"), *LAYERS, "--quiet", *options)


def report(study: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((study / "report.json").read_text("utf8"))
    return read


def trials(study: Path) -> list[dict[str, Any]]:
    """The trials of a report, except how long they took."""
    return [
        {name: value for name, value in trial.items() if name != "train_seconds"} for trial in report(study)["trials"]
    ]


def full_model(study: Path) -> list[float]:
    """The seconds of the full model's fine-tunes."""
    return [trial["train_seconds"] for trial in report(study)["trials"] if len(trial["kept"]) == 4]


def test_another_method_does_not_fine_tune_the_full_model_again(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    studies = here / "studies"
    plan = ("plan", *tiny.search_options("sst2"), *LAYERS, *FINETUNED, "--format", "json")
    capsys.readouterr()
    assert tiny.command(*plan) == 0
    planned = json.loads(capsys.readouterr().out)
    assert (planned["known"]["evaluations"], planned["evaluations"]["high"]) == (2, 2)

    capsys.readouterr()
    assert tiny.command(*tiny.search_options("sst2"), *LAYERS, *FINETUNED, "--study", "second") == 0
    assert "2 runs of the full model taken over from the study first" in capsys.readouterr().err
    assert full_model(studies / "second") == full_model(studies / "first")
    assert report(studies / "second")["cost"]["reused"] == 2

    # Without the first study the same comes out, and everything is fine-tuned.
    assert run(*FINETUNED, "--studies-dir", "alone", "--study", "second") == 0
    assert report(here / "alone" / "second")["cost"]["reused"] == 0
    assert trials(here / "alone" / "second") == trials(studies / "second")

    # What was taken over stays when the first study is deleted: another set starts from its weights.
    shutil.rmtree(studies / "first")
    assert run(*FINETUNED, "--study", "second", "--layers", "1") == 0
    assert run(*FINETUNED, "--studies-dir", "alone", "--study", "second", "--layers", "1") == 0
    assert trials(here / "alone" / "second") == trials(studies / "second")


@pytest.mark.parametrize(
    ("options", "seeds"),
    [
        (("--dropping", "after"), [42, 43]),
        (("--distil", "0.1", "--criterion", "observed", "--seeds", "3"), [42, 43]),
        (("--dropping", "untrained", "--base-seed", "43"), [43]),
        (("--dropping", "after", "--lr", "2e-3"), []),
        (("--layer-drop", "0.1"), []),
        (("--freeze", "0"), []),
        (("--dropping", "after", "--splits", "official"), []),
        (("--dropping", "after", "--precision", "bf16"), []),
        (("--dropping", "after", "--studies-dir", "elsewhere"), []),
    ],
)
@pytest.mark.usefixtures("here")
def test_runs_of_the_same_fine_tune_only(options: tuple[str, ...], seeds: list[int]) -> None:
    assert taken_over(*options) == seeds


def test_other_examples_under_the_same_configuration(here: Path) -> None:
    """As after an update of this package that splits the examples in another way."""
    task = EncodedTask.load(here / "studies" / "first" / "examples.npz")
    exchanged = {"selection": task.splits["certification"], "certification": task.splits["selection"]}
    dataclasses.replace(task, splits={**task.splits, **exchanged}).save(here / "studies" / "first" / "examples.npz")
    assert taken_over("--dropping", "after") == []


def test_a_run_that_cannot_be_copied_is_fine_tuned(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = here / "studies" / "first" / "weights" / "0-3__rung-1__seed-42"
    (weights / "of another machine").symlink_to(here / "nowhere")
    capsys.readouterr()
    assert tiny.command(*tiny.search_options("sst2"), *LAYERS, "--dropping", "untrained", "--study", "second") == 0
    assert "the run of the full model with seed 42 is not taken over" in capsys.readouterr().err
    assert report(here / "studies" / "second")["cost"]["reused"] == 1


def test_studies_that_are_damaged_or_have_lost_files_are_passed_over(here: Path) -> None:
    first = here / "studies" / "first"
    shutil.rmtree(first / "weights" / "0-3__rung-1__seed-42")
    for name in ("config.json", "study.db"):
        damaged = shutil.copytree(first, here / "studies" / f"damaged {name}")
        (damaged / name).write_text("{", "utf8")
    (here / "studies" / "a model").mkdir()
    (here / "studies" / "a model" / "config.json").write_text('{"model_type": "bert"}', "utf8")
    (here / "studies" / "a list").mkdir()
    (here / "studies" / "a list" / "config.json").write_text('{"config": [], "facts": 3}', "utf8")
    assert taken_over("--dropping", "after") == [43]
    (first / "artifacts" / "0-3__rung-1__seed-43__certification.npy").unlink()
    assert taken_over("--dropping", "gradual") == []
