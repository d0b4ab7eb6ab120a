"""Every example runs, on tiny models, and does what it says."""

from __future__ import annotations

import csv
import json
import random
import re
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

import budget_search as bs
from budget_search.engine.device import Device
from tests import tiny
from tests.examples import ROOT as EXAMPLES
from tests.examples import example

QUICK: dict[str, Any] = {
    "epochs": 3.0, "train_examples": 200, "batch_size": 16, "lr": 3e-3, "max_length": 32, "seeds": 2, "workers": 1,
    "device": "cpu", "precision": "fp32", "quiet": True, "max_trials": 8,
}  # fmt: skip
# These take minutes and are run by hand; they produce figures of the log.
BY_HAND = {
    "benchmark_engine", "compare_versions", "coordinator_at_scale", "demo_evidence", "plan_check", "plan_range",
    "start_from",
}  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    return tmp_path


def table(path: Path, count: int, seed: int, *, label: str = "stars", labels: tuple[str, str] = ("few", "many")) -> str:
    rows = [(row["sentence"], labels[int(row["label"])]) for row in tiny.reviews(count, seed)]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", label), *rows])
    return path.name


def test_every_example_is_run_by_a_test() -> None:
    tests = "".join(path.read_text("utf8") for path in Path(__file__).parent.glob("test_*.py"))
    run = set(re.findall(r'example\("(\w+)"\)', tests))
    assert {path.stem for path in EXAMPLES.glob("*.py")} == run | BY_HAND


def test_simulate(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    command = "simulate.py --models 2 --strategy top auto --screens 14 --workers 1 --format json"
    monkeypatch.setattr("sys.argv", command.split())
    example("simulate").main()
    top, auto = map(json.loads, capsys.readouterr().out.splitlines())
    assert (top["strategy"], auto["strategy"]) == ("top", "auto")
    assert auto["layers too many"] <= top["layers too many"]
    # Three runs of the full model at least.
    assert 3 < auto["equivalents"] < 25
    assert 1 < auto["over unavoidable"] < 25 / 3


def test_simulate_recipes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    command = "simulate.py --models 1 --strategy top --steps 100 3600 --workers 1 --format json"
    monkeypatch.setattr("sys.argv", command.split())
    example("simulate").main()
    short, long = map(json.loads, capsys.readouterr().out.splitlines())
    assert (short["steps"], short["rung"], short["screens"]) == (100, 0.5, 12)
    assert (long["steps"], long["rung"], long["screens"]) == (3600, 0.042, 60)


def test_gpu_check_without_a_gpu(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "sys.argv", ["gpu_check.py", "--device", "cpu", "--only", "tiny BERT", "--output", "check.json"]
    )
    assert example("gpu_check").main() == 0
    rows = json.loads((here / "check.json").read_text("utf8"))
    assert [row["check"] for row in rows][:2] == ["device", "equality: tiny BERT"]
    assert all(row["outcome"] == "ok" for row in rows)
    assert all(row["values"]["execution"] == "eager" for row in rows[1:])


def test_gpu_check_finds_steps_that_train_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    check = example("gpu_check")
    train_on = check.train_on

    def half_where_captured(model: Any, train: Any, schedule: Any, recipe: Any, seed: int, device: Any) -> Any:
        whole = recipe.layer_drop > 0  # how the script asks for eager steps
        return train_on(model, train, schedule if whole else half_of(schedule), recipe, seed, device)

    def half_of(schedule: Any) -> Any:
        return replace(schedule, batches=schedule.batches[::2], rates=schedule.rates[::2])

    monkeypatch.setattr(check, "train_on", half_where_captured)
    with pytest.raises(RuntimeError, match="of the way apart"):
        check.equality(check.TINY["BERT"], Device("cpu", "fp32"))


@pytest.mark.slow
def test_own_csv(here: Path, bert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example("own_csv").main(table(here / "reviews.csv", 420, 1), str(bert), **{**QUICK, "epochs": 6.0})
    shown = capsys.readouterr().out
    assert "How few layers of tiny-bert does reviews need?" in shown
    assert "degradation_upper" in shown
    assert "held-out examples" in shown
    assert (here / "smaller" / "model.safetensors").is_file()


@pytest.mark.slow
def test_own_metric(here: Path, bert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reviews, validation = table(here / "reviews.csv", 420, 1), table(here / "held.csv", 120, 2)
    recall = example("own_metric").main(reviews, validation, str(bert), layers=["0-2"], **QUICK)
    assert 0.7 < recall <= 1
    assert f"{100 * recall:.2f}" in capsys.readouterr().out
    (study,) = (here / "studies").iterdir()
    assert bs.read_report(study).metric == "f1"


def test_trainer(here: Path, bert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoModelForSequenceClassification

    reviews = table(here / "reviews.csv", 60, 1, label="label", labels=("0", "1"))
    example("trainer").main(
        reviews, str(bert), "0-1,3", max_steps=2, use_cpu=True, disable_tqdm=True, save_strategy="no"
    )
    assert "layers 0-1,3 of 4: loss" in capsys.readouterr().out
    assert AutoModelForSequenceClassification.from_pretrained("fewer-layers").config.num_hidden_layers == 3


def test_sentence_encoder(here: Path, bert: Path) -> None:
    from sentence_transformers import SentenceTransformer

    moved = example("sentence_encoder").main(str(bert), "0,2")
    assert moved > 0
    assert SentenceTransformer("smaller-encoder", device="cpu")[0].model.config.num_hidden_layers == 2


@pytest.mark.slow
def test_decoder(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    llama = tiny.make_llama(here / "tiny-llama")
    # After every word comes its only successor, so a decoder that learns reaches a low perplexity.
    words = tiny.WORDS[:8]
    rng = random.Random(0)
    starts = [rng.randrange(len(words)) for _ in range(160)]
    documents = [" ".join(words[(start + place) % len(words)] for place in range(12)) for start in starts]
    (here / "documents.txt").write_text("\n\n".join(documents))
    example("decoder").main(
        "documents.txt", str(llama), steps=40, lr=3e-3, deltas=[0.2], seeds=2, max_trials=5, quiet=True
    )
    [line] = capsys.readouterr().out.splitlines()
    assert "of tiny-llama's 3 layers" in line
    report = bs.read_report("studies/documents-tiny-llama")
    assert report.baseline.metrics["perplexity"] < 3
    assert report.results[0].parameters < report.baseline.parameters


@pytest.mark.slow
def test_embedding_model(here: Path, bert: Path) -> None:
    from sentence_transformers import SentenceTransformer

    rng = random.Random(0)

    def pair() -> dict[str, Any]:
        """The rating is the share of words that two sentences have in common."""
        shared = rng.randrange(7)
        first, second = ([rng.choice(tiny.WORDS) for _ in range(6 - shared)] for _ in range(2))
        both = [rng.choice(tiny.WORDS) for _ in range(shared)]
        return {"sentence1": " ".join(both + first), "sentence2": " ".join(both + second), "label": 5 * shared / 6}

    for name, count in (("train", 1200), ("validation", 200)):
        tiny.write_parquet(here / f"{name}.parquet", [pair() for _ in range(count)])
    kept = example("embedding_model").main(
        str(bert), ".", pairs=64, deltas=[0.1], seeds=2, max_trials=6, quiet=True, lr=1e-4
    )
    report = bs.read_report("studies/stsb-tiny-bert-64")
    assert report.baseline.score > 50
    assert report.results[0].degradation_upper is not None
    assert SentenceTransformer("smaller-embeddings", device="cpu")[0].model.config.num_hidden_layers == kept.depth


@pytest.mark.slow
def test_methods(here: Path, sst2: Path, bert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.context(here, sst2=sst2, bert=bert)
    command = [*tiny.search_options("sst2"), "--layers", "0-2", "1,3"]
    example("methods").main("--methods", "first", "finetuned, half", *command)
    lines = [re.split(r"\s{2,}", line) for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines if line[0][:1] in "01"] == ["0-2", "1,3"]
    assert ["equivalents each", "0.62", "0.31"] in lines
    reports = {path.name: bs.read_report(path) for path in (here / "studies").iterdir()}
    # The study of the second method has the full model's runs of the first.
    assert sorted(report.cost.reused for report in reports.values()) == [0, 2]
    rows = {line[0]: line[1:] for line in lines}
    for column, report in enumerate(sorted(reports.values(), key=lambda report: "dropping" in report.recipe)):
        means: dict[tuple[int, ...], list[float]] = {trial.kept: [] for trial in report.trials}
        for trial in report.trials:
            assert trial.score is not None
            means[trial.kept].append(trial.score)
        lost = {kept: fmean(means[0, 1, 2, 3]) - fmean(scores) for kept, scores in means.items()}
        assert rows["0-2"][column].split(" ")[0] == f"{lost[0, 1, 2]:.2f}".replace("-0.00", "0.00")
        within = [4 - len(kept) for kept, each in lost.items() if each <= 3]
        assert rows["dropped within 3"][column] == str(max(within))


@pytest.mark.slow
def test_protocols(here: Path, sst2: Path, bert: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny.context(here, sst2=sst2, bert=bert)
    command = [*tiny.search_options("sst2"), "--delta", "0.05", "--seeds", "1", "--max-trials", "6"]
    example("protocols").main(*command)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["strategy", "cost", "in", "the", "paper", "cost", "here", "within", "5"]
    top, greedy, auto = (line.split() for line in lines if line.startswith(("top", "greedy", "auto")))
    # Of four layers: (4 + 3 + 2 + 1) / 4 and its scoring, and what greedy-layer pruning takes down to its answer.
    assert 2.5 < float(top[1]) < 4
    assert float(greedy[1]) > 3.25
    assert auto[1] == "-"
    assert {path.name for path in (here / "studies").iterdir()} == {
        f"sst2__bert__{s}" for s in ("top", "greedy", "auto")
    }
    example("protocols").main(*command)  # goes on where it was: nothing is run again
    assert capsys.readouterr().out.splitlines() == lines


@pytest.mark.slow
def test_table2(here: Path, bert: Path, sst2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two tasks of which one has no data: its column stays empty, and the other is not run again. Dropping from the top
    is measured also in a study that has smaller answers already."""
    table2 = example("table2")
    tiny.context(here, sst2=sst2)
    recipe = "--epochs 3 --train-examples 200 --batch-size 16 --lr 3e-3 --max-length 32 --seeds 2 --workers 1 --quiet"
    command = f"--models {bert} --tasks sst2 rte --data-dir . --studies-dir studies {recipe}"
    table2.main([*command.split(), "--strategies", "auto"])
    assert capsys.readouterr().err.count("on rte: ") == 1
    table2.main([*command.split(), "--strategies", "auto", "top", "bottom"])
    first = capsys.readouterr()
    (study,) = (here / "studies").iterdir()
    report = bs.read_report(study)
    for delta in table2.DELTAS:
        assert table2.smallest(report, "any", delta) == report.result(delta).dropped
        top = table2.smallest(report, "top", delta)
        assert top is not None
        assert len(top) <= len(report.result(delta).dropped)
        assert top == tuple(range(report.layers_total - len(top), report.layers_total))
    assert "at 1/2 of the layers dropped: in " in first.out
    assert re.search(r"\| 1% +\| top +\|", first.out)
    assert "Lower layers matter most: " in first.out
    assert "QQP and STS-B lose least: cannot be checked" in first.out
    trials = len(report.trials)
    table2.main(["--studies-dir", "studies"])
    assert capsys.readouterr().out == first.out
    assert len(bs.read_report(study).trials) == trials


def test_optuna_study(sst2_study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trials = example("optuna_study").main(str(sst2_study))
    report = bs.read_report(sst2_study)
    assert len(trials) == len(report.trials)
    assert {"score", "depth", "rung", "seed", "layer_00"} <= set(trials.columns)
    assert sorted(trials["score"]) == pytest.approx(sorted(row.score for row in report.trials if row.score is not None))
    assert "layer_03" in capsys.readouterr().out
