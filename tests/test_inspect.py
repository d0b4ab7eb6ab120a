"""What ``inspect`` measures of every layer, what it makes of that, and what it says when it cannot."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from budget_search.core.layers import LayerSet
from budget_search.data.kinds import kind_of
from budget_search.engine.measurements.layer_probes import fitted_probe
from budget_search.engine.measurements.layer_similarity import similarity_to, similarity_to_input
from budget_search.report.entries import TrialRow
from budget_search.report.inspection import Inspection, LayerMeasurements, inspection, layer_costs, probed_depth
from budget_search.report.plots.layer_plots import draw_inspection
from budget_search.report.renderers.inspection import render_inspection
from budget_search.report.renderers.terminal import COLUMNS
from budget_search.report.report import Report
from tests import tiny
from tests.test_page import words
from tests.test_report import GOLDEN, load

TOTAL = 12
MEASURED = LayerMeasurements(
    seed=43,
    train_examples=1_000,
    selection_examples=800,
    probes=(50.0, 52.5, 60.25, 71.0, 80.5, 86.5, 88.0, 88.4, 88.8, 89.3, 89.9, 90.0, 89.5),
    probe_errors=(2.0, 1.9, 1.8, 1.5, 1.2, 1.0, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.0),
    to_pretrained=(1.0, 0.99, 0.98, 0.97, 0.95, 0.9, 0.86, 0.8, 0.76, 0.7, 0.65, 0.6, 0.5),
    to_input=(0.8, 0.9, 0.92, 0.94, 0.95, 0.96, 0.95, 0.94, 0.9, 0.85, 0.8, 0.7),
)


@pytest.fixture
def report() -> Report:
    return load()


# -- what it makes of the measurements ------------------------------------------------------------------------------


def screened(effects: list[float]) -> tuple[TrialRow, ...]:
    """Trials of a model whose layers add up: the full one with two seeds and all screens of one or two layers less."""
    total = len(effects)
    full = tuple(range(total))
    rows = [TrialRow(full, 1.0, seed, "certification", "complete", 90.0 + seed / 10, 1.0) for seed in (1, 2)]
    rows.append(TrialRow(full, 0.5, 7, "selection", "complete", 88.0, 1.0))
    for gone in (*combinations(range(total), 1), *combinations(range(total), 2)):
        kept = LayerSet.dropping(gone, total).kept
        score = 88.0 - sum(effects[index] for index in gone)
        rows.append(TrialRow(kept, 0.5, 7, "selection", "complete", score, 1.0))
    return tuple(rows)


def test_the_probes_depth_is_the_first_within_delta_of_the_last() -> None:
    assert probed_depth(MEASURED.probes, 3.0) == 5
    assert probed_depth(MEASURED.probes, 1.5) == 6
    assert probed_depth(MEASURED.probes, 0.0) == 10  # later probes are above the last
    assert probed_depth((90.0, 80.0, 91.0), 1.0) == 2  # a depth of 0 is no model


def test_what_layers_cost_is_read_off_the_screens(report: Report) -> None:
    effects = [5.0, 0.2, 0.3, 2.0, 0.1, 1.0]
    costs = layer_costs(dataclasses.replace(report, layers_total=6, trials=screened(effects)))
    assert costs is not None
    assert sorted(range(6), key=lambda layer: costs[layer] or 0.0) == sorted(range(6), key=effects.__getitem__)


def test_a_layer_that_was_never_dropped_has_no_cost(report: Report) -> None:
    trials = tuple(row for row in screened([1.0] * 6) if 0 in row.kept)
    costs = layer_costs(dataclasses.replace(report, layers_total=6, trials=trials))
    assert costs is not None
    assert [cost is None for cost in costs] == [True, False, False, False, False, False]


def test_agreement_is_shown_not_assumed(report: Report) -> None:
    """Layers that fine-tuning changed more cost less here: a rank correlation of -1."""
    trials = screened([3.0, 2.0, 1.5, 1.0, 0.5, 0.1])
    measured = dataclasses.replace(
        MEASURED, probes=MEASURED.probes[:7], to_pretrained=(1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4), to_input=(0.9,) * 6
    )
    found = inspection(dataclasses.replace(report, layers_total=6, trials=trials), measured)
    changed, contribution, adds = found.agreements
    assert (changed.correlation, changed.layers) == (pytest.approx(-1.0), 6)
    assert contribution.correlation is None  # the same for all layers: nothing to rank
    assert adds.chance is not None


def test_suggestions_stand_beside_what_was_measured(report: Report) -> None:
    found = inspection(report, MEASURED)
    by_delta = {each.delta: each for each in found.suggestions}
    assert (by_delta[0.03].depth, by_delta[0.03].answer_depth) == (5, 2)
    assert by_delta[0.03].lost == pytest.approx(0.6, abs=0.01)  # layers 0-4, confirmed
    assert by_delta[0.03].confirmed
    assert by_delta[0.02].lost is not None
    assert not by_delta[0.02].confirmed
    assert by_delta[0.01].lost is None


def test_named_sets_alone_say_so(report: Report) -> None:
    trials = tuple(row for row in report.trials if row.split == "certification")
    found = inspection(dataclasses.replace(report, trials=trials), MEASURED)
    assert found.costs is None
    assert "screened too few layer sets" in render_inspection(found, "table")
    assert "costs" not in found.to_json()
    assert list(draw_inspection(found)) == ["probes", "similarity"]


@pytest.mark.parametrize(("form", "file"), [("table", "inspection.txt"), ("markdown", "inspection.md")])
def test_the_whole_text(report: Report, form: str, file: str) -> None:
    text = render_inspection(inspection(report, MEASURED), form) + "\n"
    path = GOLDEN / file
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
    if form == "table":
        assert max(map(len, text.splitlines())) <= COLUMNS


def test_pictures_have_units(report: Report) -> None:
    drawn = draw_inspection(inspection(report, MEASURED))
    assert "accuracy of a probe, points" in words(drawn["probes"])
    assert "after 5 layers: 86.50, 3.00 below the last" in words(drawn["probes"])
    assert "layer 11 to the pre-trained model: 0.500" in words(drawn["similarity"])
    assert "points lost without the layer" in words(drawn["costs"])


# -- what it measures -----------------------------------------------------------------------------------------------


def test_cosines_are_between_the_right_states() -> None:
    """One example in two dimensions: the first layer turns it by 90 degrees, the second by 60."""
    states = torch.tensor([[[1.0, 0.0]], [[0.0, 2.0]], [[3**0.5, 1.0]]])
    assert similarity_to_input(states).tolist() == pytest.approx([0.0, 0.5])
    other = torch.tensor([[[2.0, 0.0]], [[0.0, -1.0]], [[3**0.5, 1.0]]])
    assert similarity_to(other, states).tolist() == pytest.approx([1.0, -1.0, 1.0])


def test_states_come_in_the_order_of_the_examples(sst2_study: Path, bert: Path) -> None:
    """Batches are read longest first; each example's states are its own, of the layers from the embeddings up."""
    from budget_search.data.tokenization import EncodedTask
    from budget_search.engine.batches import DeviceSplit
    from budget_search.engine.device import Device
    from budget_search.engine.measurements.layer_probes import _in_order
    from budget_search.engine.measurements.layer_similarity import sentence_states
    from budget_search.models.pretrained import load_pretrained

    task = EncodedTask.load(sst2_study / "examples.npz")
    model, _ = load_pretrained(
        bert, name="bert", kind=task.kind, label_names=task.label_names, pad_token=task.pad_token
    )
    split = DeviceSplit.of(task, task.splits["selection"], "cpu")
    examples = np.array([3, 0, 11, 5])
    states = _in_order(sentence_states(model, split, examples, Device("cpu", "fp32")))
    assert states.shape == (5, 4, 32)
    with torch.inference_mode():
        alone = model(**split.batch(np.array([11])), output_hidden_states=True).hidden_states
    assert torch.allclose(states[:, 2], torch.stack([state[0, 0] for state in alone]), atol=1e-5)


def test_of_a_decoder_the_last_token_is_looked_at(tmp_path: Path) -> None:
    """Its first token has seen no other, and the classifier does not read it."""
    from transformers import AutoModelForSequenceClassification

    from budget_search.engine.batches import DeviceSplit
    from budget_search.engine.device import Device
    from budget_search.engine.measurements.layer_probes import _in_order
    from budget_search.engine.measurements.layer_similarity import sentence_states

    model = AutoModelForSequenceClassification.from_pretrained(tiny.make_llama(tmp_path / "llama"), pad_token_id=0)
    lengths = np.array([4, 7, 2])
    tokens = np.random.default_rng(0).integers(1, model.config.vocab_size, lengths.sum())
    split = DeviceSplit(
        tokens=torch.from_numpy(tokens), segments=None, starts=torch.tensor([0, 4, 11]),
        sizes=torch.from_numpy(lengths), labels=torch.tensor([0, 1, 0]), lengths=lengths,
        pad_token=0, pad_segment=0, pad_left=False,
    )  # fmt: skip
    states = _in_order(sentence_states(model, split, np.arange(3), Device("cpu", "fp32")))
    with torch.inference_mode():
        alone = model(input_ids=torch.from_numpy(tokens[None, :4]), output_hidden_states=True).hidden_states
    assert torch.allclose(states[:, 0], torch.stack([state[0, 3] for state in alone]), atol=1e-5)


@pytest.mark.parametrize("regression", [False, True])
def test_a_probe_finds_what_is_linear(regression: bool) -> None:
    random = np.random.default_rng(0)
    states = random.normal(size=(400, 6))
    score = states @ np.array([1.0, -2.0, 0.5, 0.0, 0.0, 0.0])
    labels = score.astype(np.float32) if regression else np.digitize(score, [-1.0, 1.0])
    targets = kind_of("pearson" if regression else "accuracy").probe_targets(labels[:300], 3)
    outputs = fitted_probe(states[:300], targets)(states[300:])
    if regression:
        assert outputs.shape == (100, 1)
        assert np.corrcoef(outputs[:, 0], labels[300:])[0, 1] > 0.99
    else:
        assert outputs.shape == (100, 3)
        assert (outputs.argmax(axis=1) == labels[300:]).mean() > 0.75


@pytest.mark.parametrize("classes", [0, 2])
def test_what_differs_by_rounding_alone_tells_nothing(classes: int) -> None:
    """The noise here gives the labels away; a probe that blew it up would know them all."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 2, 200)
    token = random.normal(size=6)
    states = (token + 1e-7 * labels[:, None] * np.ones(6)).astype(np.float32)
    kind = kind_of("accuracy" if classes else "pearson")
    known = labels[:150].astype(np.int64 if classes else np.float32)
    outputs = fitted_probe(states[:150], kind.probe_targets(known, classes))(states[150:])
    assert np.unique(outputs, axis=0).shape == (1, max(1, classes))


# -- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def here(sst2_study: Path, bert: Path, xlnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a copy of the finished study, its model and another one."""
    tiny.context(tmp_path, bert=bert, xlnet=xlnet)
    shutil.copytree(sst2_study.parent, tmp_path / "studies")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


def test_inspecting_a_study(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = tiny.only_study(here / "studies")
    assert tiny.command("inspect", "sst2", "--model", "bert", "--format", "json", "--output", "out") == 0
    found = json.loads(capsys.readouterr().out)
    measured, report = found["layerwise"], json.loads((study / "report.json").read_text("utf8"))
    # The mark at the beginning is the same in every text until a layer has looked at the others.
    assert measured["probes"][0] == pytest.approx(50, abs=3)
    assert measured["probes"][-1] == pytest.approx(report["baseline"]["score"], abs=8)
    assert measured["to_pretrained"][0] > measured["to_pretrained"][-1]
    assert (len(measured["probes"]), len(measured["to_pretrained"]), len(measured["to_input"])) == (5, 5, 4)
    assert measured["probe_errors"][-1] == 0
    assert [each["answer_depth"] for each in found["suggestions"]] == [each["depth"] for each in report["results"]]
    written = {path.name for path in (here / "out").iterdir()}
    assert written >= {"inspection.md", "inspection.json", "probes.png", "probes.svg", "similarity.svg"}

    # What took time is kept: neither model nor weights are needed again.
    shutil.rmtree(study / "weights")
    (here / "bert").unlink()
    assert tiny.command("inspect", "sst2", "--format", "json") == 0
    assert json.loads(capsys.readouterr().out) == found

    (study / "layerwise.json").write_text("{}")
    assert tiny.command("inspect", "sst2") == 1
    error = capsys.readouterr().err
    assert "the weights of" in error
    assert "are gone" in error


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("sst2",), 2, "--model FOLDER"),
        (("sst2", "--model", "xlnet"), 2, "--model xlnet is not the model of this study"),
        (("sst2", "--model", "nowhere/at/all"), 2, "neither an existing folder nor a hub id"),
        (("none",), 2, "there is no study 'none'"),
        (("sst2", "--format", "html"), 2, "invalid choice: 'html'"),
    ],
)
def test_what_cannot_be_inspected(
    here: Path, arguments: tuple[str, ...], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tiny.tree(here / "studies")
    assert tiny.command("inspect", *arguments) == code
    assert message in capsys.readouterr().err
    assert tiny.tree(here / "studies") == before


def test_an_unfinished_study_says_what_to_do(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tiny.only_study(here / "studies") / "report.json").unlink()
    assert tiny.command("inspect", "sst2", "--model", "bert") == 1
    assert "has no report yet; run the search" in capsys.readouterr().err


def test_an_inspection_is_plain_json(report: Report) -> None:
    found: Inspection = inspection(report, MEASURED)
    assert json.loads(json.dumps(found.to_json(), allow_nan=False))["layerwise"]["seed"] == 43
