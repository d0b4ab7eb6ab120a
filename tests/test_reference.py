"""Another model beside a study's answers: the study's recipe, examples and seeds, measured once, kept."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import shutil
import statistics
from pathlib import Path

import numpy as np
import pytest
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertTokenizer,
)

from budget_search.app.reference_models import ExecutionOptions, with_references
from budget_search.app.resolve import resolve_references
from budget_search.app.study_report import read_report
from budget_search.core.config import SearchConfig
from budget_search.core.errors import StudyError
from budget_search.core.trial import Trial
from budget_search.data.loading import Examples
from budget_search.data.splits import SplitTask
from budget_search.data.texts import load_texts, save_texts
from budget_search.data.tokenization import EncodedSplit, EncodedTask, decoder
from budget_search.report.comparisons.comparison import reference_section
from budget_search.report.renderers import render
from budget_search.report.renderers.terminal import COLUMNS
from budget_search.report.report import Report
from budget_search.simulation.replay import NullObserver
from budget_search.storage.study_folder import StudyFolder
from budget_search.storage.study_store import StudyStore
from tests import tiny
from tests.test_curves import REFERENCE
from tests.test_report import load


class Listener(NullObserver):
    """Hears what is told, and may be interrupted as somebody's Ctrl-C would."""

    def __init__(self, interrupt_at: str = "") -> None:
        self.heard: list[str] = []
        self._interrupt_at = interrupt_at

    def stage(self, text: str) -> None:
        self.heard.append(text.strip())
        if self._interrupt_at and text.strip().startswith(self._interrupt_at):
            raise KeyboardInterrupt


@pytest.fixture
def study(
    sst2_study: Path, tmp_path: Path, bert: Path, xlnet: Path, sst2: Path, monkeypatch: pytest.MonkeyPatch
) -> StudyFolder:
    """A copy of the finished study below the current folder, with its task, its model and another one beside it."""
    tiny.context(tmp_path, sst2=sst2, bert=bert, xlnet=xlnet)
    monkeypatch.chdir(tmp_path)
    return StudyFolder(Path(shutil.copytree(sst2_study, Path("studies") / sst2_study.name)))


def trials_of(study: StudyFolder) -> list[Trial]:
    (folder,) = (StudyFolder(path) for path in study.path.glob("references/*"))
    return StudyStore.open(folder.path.name, 3, folder=folder).history


@pytest.mark.slow
def test_it_is_fine_tuned_as_the_baseline_was_and_kept(study: StudyFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert tiny.command("report", study.path.name, "--reference", "xlnet", "--format", "json") == 0
    shown = json.loads(capsys.readouterr().out)
    report = read_report(study)
    assert shown == report.to_json()
    (reference,) = report.references
    assert (reference.model, reference.layers_total, reference.seeds) == ("tiny-xlnet", 3, 2)

    trials = trials_of(study)
    baseline = {t.seed: t.score for t in report.trials if len(t.kept) == 4 and t.split == "certification"}
    assert {trial.key.seed for trial in trials} == set(baseline)
    assert {(trial.rung, trial.split) for trial in trials} == {(1.0, "certification")}
    scores = [trial.score for trial in trials if trial.score is not None]
    assert reference.score == pytest.approx(statistics.fmean(scores))
    assert reference.degradation == pytest.approx(report.baseline.score - reference.score)
    assert reference.degradation_upper is not None
    assert reference.degradation_upper > reference.degradation
    model = AutoModelForSequenceClassification.from_pretrained("xlnet", num_labels=2)
    assert reference.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert reference.parameters_saved == pytest.approx(1 - reference.parameters / report.baseline.parameters)
    assert not [note for note in report.notes if "has not learnt" in note]

    before = tiny.tree(study.path)
    assert tiny.command("report", study.path.name, "--reference", "xlnet", "--format", "csv") == 0
    assert tiny.tree(study.path) == before, "a second call reads what is there"
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["model"] for row in rows] == ["tiny-bert", "tiny-bert", "tiny-xlnet"]
    assert (float(rows[-1]["score"]), rows[-1]["delta"]) == (pytest.approx(reference.score), "")


def test_a_reference_that_has_not_learnt_is_noted(study: StudyFolder, bert: Path) -> None:
    """Its tokenizer knows no word, so it reads all texts alike."""
    shutil.copytree(bert, "deaf")
    marks = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
    BertTokenizer(vocab={name: number for number, name in enumerate((*marks, "unheard"))}).save_pretrained("deaf")
    with_references(study, resolve_references(["deaf"], offline=True), ExecutionOptions(workers=1), Listener())
    report = read_report(study)
    [note] = [note for note in report.notes if "has not learnt" in note]
    assert note.startswith("The reference deaf has not learnt the task (")
    assert f"best constant prediction {report.splits['certification'].constant_score:.1f}" in note


def test_it_reads_the_same_examples_with_its_own_tokenizer(study: StudyFolder) -> None:
    with_references(study, resolve_references(["xlnet"], offline=True), ExecutionOptions(workers=1), Listener())
    (own,) = (StudyFolder(path) for path in study.path.glob("references/*"))
    ours, theirs = EncodedTask.load(study.examples), EncodedTask.load(own.examples)
    read_ours, read_theirs = decoder(study.tokenizer), decoder(own.tokenizer)
    tokenizer = AutoTokenizer.from_pretrained("xlnet")
    for name, split in ours.splits.items():
        other = theirs.splits[name]
        np.testing.assert_array_equal(other.labels, split.labels)
        for number in range(split.examples):
            tokens = other.tokens[other.offsets[number] : other.offsets[number + 1]]
            (text,) = read_theirs(tokens)
            assert (text,) == read_ours(split.tokens[split.offsets[number] : split.offsets[number + 1]])
            assert list(tokens) == tokenizer(text)["input_ids"]
    assert theirs.pad_left
    assert not ours.pad_left
    assert not (own.path / "weights").exists(), "nobody exports it"
    config = SearchConfig.from_json(json.loads(own.config.read_text("utf8"))["config"])
    asked = SearchConfig.from_json(json.loads(study.config.read_text("utf8"))["config"])
    assert dataclasses.replace(config, model=asked.model, model_digest=asked.model_digest) == asked


def test_an_interrupted_one_goes_on_with_the_seeds_that_are_left(study: StudyFolder) -> None:
    parents, interrupted = resolve_references(["xlnet"], offline=True), Listener(interrupt_at="seed")
    with pytest.raises(KeyboardInterrupt):
        with_references(study, parents, ExecutionOptions(workers=1), interrupted)
    (first,) = trials_of(study)
    assert read_report(study).references == ()
    again = Listener()
    (reference,) = with_references(study, parents, ExecutionOptions(workers=1), again).references
    assert sum(told.startswith("seed") for told in again.heard) == 1
    assert first in trials_of(study)
    assert reference.seeds == 2


@pytest.mark.slow
def test_a_search_measures_it_too_and_later_searches_keep_it(study: StudyFolder) -> None:
    options = [*tiny.search_options("sst2"), "--quiet", "--delta"]
    assert tiny.command(*options, "0.05", "--reference", "xlnet") == 0
    (reference,) = read_report(study).references
    assert tiny.command(*options, "0.5") == 0
    report = read_report(study)
    assert [result.delta for result in report.results] == [0.05, 0.06, 0.5]
    assert report.references == (reference,)
    assert tiny.command(*options, "0.5", "--max-trials", "1000") == 0
    assert read_report(study).references == (reference,), "another question, beside the same baseline"
    assert tiny.command(*options, "0.5", "--confidence", "0.9") == 0
    assert read_report(study).references == (), "its bound is for another confidence"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("no/such model", "--reference no/such model is neither an existing folder nor a hub id"),
        ("sst2", "--reference sst2: no config.json in that folder"),
        ("\0", "--reference"),
    ],
)
def test_a_model_that_is_none_is_refused_at_once(
    model: str, message: str, study: StudyFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tiny.tree(Path.cwd())
    assert tiny.command("report", study.path.name, "--reference", model) == 2
    assert tiny.command(*tiny.search_options("sst2"), "--study", "another", "--reference", model) == 2
    for line in capsys.readouterr().err.splitlines():
        assert message in line
    assert tiny.tree(Path.cwd()) == before


def test_a_model_whose_layers_nobody_finds_is_refused_before_a_search(
    study: StudyFolder, bert: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = AlbertConfig(
        vocab_size=90,
        embedding_size=16,
        hidden_size=16,
        num_attention_heads=2,
        intermediate_size=16,
        num_hidden_layers=2,
    )
    AlbertForMaskedLM(config).save_pretrained("albert")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(bert / name, Path("albert") / name)
    before = tiny.tree(Path.cwd())
    for command in (["report", study.path.name], [*tiny.search_options("sst2"), "--study", "another", "--quiet"]):
        assert tiny.command(*command, "--reference", "albert") == 2
        assert "Albert" in capsys.readouterr().err.splitlines()[-1]
    assert tiny.tree(Path.cwd()) == before


def test_a_study_whose_texts_are_gone_says_so(study: StudyFolder, capsys: pytest.CaptureFixture[str]) -> None:
    for break_it in (lambda: study.texts.write_bytes(b"PAR1"), study.texts.unlink):
        break_it()
        before = tiny.tree(study.path)
        assert tiny.command("report", study.path.name, "--reference", "xlnet") == 1
        error = capsys.readouterr().err
        assert f"texts.parquet in {study.path.name} is missing or damaged" in error
        assert tiny.tree(study.path) == before


def test_official_splits_are_one_and_the_same_again(tmp_path: Path) -> None:
    labels = np.array([0, 1, 1])
    train = Examples((["one", "two", 'three "\n'], ["a", "", "c"]), labels)
    validation = Examples((["four", "five", "six"], ["d", "e", "f"]), labels)
    encoded = {
        id(each): EncodedSplit(np.zeros(3, np.int32), None, np.arange(4), labels) for each in (train, validation)
    }
    splits = {"train": train, "selection": validation, "certification": validation, "held_out": validation}
    save_texts(SplitTask(splits, ("no", "yes"), "accuracy"), tmp_path / "texts.parquet")
    task = EncodedTask({n: encoded[id(s)] for n, s in splits.items()}, ("no", "yes"), "accuracy", (), 0, 0, False)
    again = load_texts(tmp_path / "texts.parquet", task)
    assert {name: split.texts for name, split in again.splits.items()} == {n: s.texts for n, s in splits.items()}
    assert again.splits["selection"] is again.splits["held_out"]
    fewer = dataclasses.replace(
        task, splits={**task.splits, "train": EncodedSplit(np.zeros(2), None, np.arange(3), labels[:2])}
    )
    with pytest.raises(StudyError, match=r"texts\.parquet"):
        load_texts(tmp_path / "texts.parquet", fewer)


# -- how it is told -------------------------------------------------------------------------------------------------


@pytest.fixture
def report() -> Report:
    return dataclasses.replace(load(), references=(REFERENCE,))


def test_answers_and_references_stand_in_the_order_of_their_scores(report: Report) -> None:
    grid = reference_section([load(), report]).grid
    assert grid is not None
    assert [row[1:3] for row in grid.rows] == [
        ("twelve-layers", "12"),
        ("twelve-layers", "5 (0-4)"),
        ("six-layers", "6"),
        ("twelve-layers", "3 (0-2)"),
        ("twelve-layers", "2 (0-1)"),
    ]
    assert grid.rows[2] == (
        "example-task", "six-layers", "6", "67.0 M", "43 %", "88.90 +- 0.20", "1.21 (1.80)", "3",
    )  # fmt: skip


@pytest.mark.parametrize("form", ["table", "markdown", "latex", "html", "json", "csv"])
def test_every_format_shows_it(report: Report, form: str) -> None:
    for reports in ([report], [report, load()]):
        if form == "html" and len(reports) > 1:
            continue
        text = render(reports, form)
        assert "six-layers" in text
        if form == "table":
            # Only code may be longer.
            assert max(len(line) for line in text.splitlines() if not line.startswith("    ")) <= COLUMNS


def test_it_survives_the_report_file(report: Report) -> None:
    assert Report.from_json(json.loads(json.dumps(report.to_json()))) == report
