"""An export is a complete, checked checkpoint of stock transformers, or nothing."""

import dataclasses
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    XLNetConfig,
    XLNetForSequenceClassification,
    pipeline,
)

from budget_search.core.errors import StudyError, UsageError
from budget_search.data.kinds import kind_of
from budget_search.layer_search.verdict import Judgement
from budget_search.models.checkpoint import Export, HeldOut, export_checkpoint, refuse_foreign
from budget_search.models.pretrained import PretrainedSource, licence_of
from budget_search.report.renderers.model_card import model_card, provenance
from budget_search.report.report import Report
from budget_search.report.sentences import answer_sentence

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "first", "sentence", "."]
LABELS = {0: "different", 1: "duplicate"}
EXAMPLES = 70
REPORT = Report.from_json(json.loads((Path(__file__).parent / "golden" / "report.json").read_text(encoding="utf-8")))


def tiny(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    names: dict[str, Any] = {"id2label": LABELS, "label2id": {name: index for index, name in LABELS.items()}}
    if kind == "bert":
        sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
        return BertForSequenceClassification(BertConfig(vocab_size=len(WORDS), **sizes, **names))
    return XLNetForSequenceClassification(
        XLNetConfig(vocab_size=len(WORDS), d_model=16, n_layer=2, n_head=2, d_inner=16, pad_token_id=0, **names)
    )


def logits(model: PreTrainedModel) -> np.ndarray:
    ids = torch.randint(1, len(WORDS), (EXAMPLES, 9), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        return model(input_ids=ids).logits.numpy()


def score(outputs: np.ndarray) -> float:
    return 100 * float((outputs.argmax(axis=1) == 1).mean())


held = partial(HeldOut, kind_of("accuracy"), EXAMPLES)


@pytest.fixture(params=["bert", "xlnet"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def study(tmp_path: Path, kind: str) -> Path:
    """A folder with the weights of a confirmed layer set and, apart from them, a tokenizer."""
    tiny(kind).save_pretrained(tmp_path / "weights")
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="[PAD]",
        unk_token="[UNK]",
        padding_side="left" if kind == "xlnet" else "right",
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(tmp_path / "tokenizer")
    return tmp_path


def export(
    study: Path, held_out: HeldOut | None = None, card: Callable[[float], str] = str, name: str = "out"
) -> Export:
    return export_checkpoint(
        study / "weights",
        study / "exports" / name,
        tokenizer_dir=study / "tokenizer",
        held_out=held_out or held(logits, score),
        provenance={"kept": [0, 3], "parent": "tiny"},
        card=card,
    )


def left_behind(study: Path) -> list[str]:
    folder = study / "exports"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_the_folder_is_a_stock_checkpoint_with_the_same_predictions(study: Path, kind: str) -> None:
    done = export(study, held(logits, score, recorded=logits(tiny(kind).eval()) + 1e-4))
    loaded = AutoModelForSequenceClassification.from_pretrained(done.folder)
    expected = logits(tiny(kind).eval())
    np.testing.assert_allclose(logits(loaded), expected, atol=1e-6)
    assert loaded.dtype == torch.float32
    assert loaded.config.num_hidden_layers == 2
    assert (loaded.config.id2label, loaded.config.num_labels) == (LABELS, 2)
    assert done.held_out_score == score(expected)
    assert done.examples == EXAMPLES
    assert done.largest_difference < 1e-6
    assert left_behind(study) == ["out"]


def test_a_stranger_can_use_it_through_a_pipeline(study: Path, kind: str) -> None:
    done = export(study)
    (answer,) = pipeline("text-classification", str(done.folder), device="cpu")("a first sentence .")
    assert answer["label"] in LABELS.values()
    assert AutoTokenizer.from_pretrained(done.folder).padding_side == ("left" if kind == "xlnet" else "right")


def test_the_evidence_lies_beside_and_holds_no_path_of_this_machine(study: Path) -> None:
    done = export(study, card=lambda own: f"scored {own:.3f}")
    evidence = json.loads((done.folder / "budget_search.json").read_text())
    assert (evidence["kept"], evidence["parent"]) == ([0, 3], "tiny")
    assert evidence["held_out_score_of_this_checkpoint"] == done.held_out_score
    assert set(evidence["files"]) == {path.name for path in done.folder.iterdir()}
    assert (done.folder / "README.md").read_text() == f"scored {done.held_out_score:.3f}"
    for path in done.folder.glob("*.json"):
        assert str(study) not in path.read_text(), path.name


def test_weights_that_were_half_precision_are_exported_in_full(study: Path, kind: str) -> None:
    tiny(kind).to(torch.bfloat16).save_pretrained(study / "weights")
    done = export(study)
    assert {tensor.dtype for tensor in load_file(done.folder / "model.safetensors").values()} == {torch.float32}
    assert json.loads((done.folder / "config.json").read_text())["dtype"] == "float32"


def change_one_weight(path: Path) -> None:
    tensors = load_file(path)
    name = next(name for name in tensors if "word_embedding" in name)
    tensors[name][0, 0] += 1  # the padding word, which no held-out example holds
    save_file(tensors, path, metadata={"format": "pt"})


def test_a_weight_that_changed_on_the_way_is_found_even_if_no_prediction_shows_it(study: Path) -> None:
    def tampering(model: PreTrainedModel) -> np.ndarray:
        if (written := list((study / "exports").glob(".*/model.safetensors"))) and not seen:
            change_one_weight(written[0])
        seen.append(model)
        return logits(model)

    seen: list[PreTrainedModel] = []
    with pytest.raises(StudyError, match="does not contain the model's weights"):
        export(study, held(tampering, score))
    assert left_behind(study) == []


def test_a_folder_that_predicts_otherwise_is_found(study: Path) -> None:
    calls: list[int] = []

    def drifting(model: PreTrainedModel) -> np.ndarray:
        calls.append(1)
        return logits(model) + 0.001 * len(calls)

    with pytest.raises(StudyError, match="predicts differently"):
        export(study, held(drifting, score))
    with pytest.raises(StudyError, match="predicts differently"):
        export(study, held(lambda model: logits(model) * np.nan, score))
    assert left_behind(study) == []


def test_weights_other_than_those_the_study_measured_are_found(study: Path, kind: str) -> None:
    recorded = logits(tiny(kind).eval())
    tensors = load_file(study / "weights" / "model.safetensors")
    save_file(
        {name: tensor * 1.5 for name, tensor in tensors.items()},
        study / "weights" / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(StudyError, match="not the ones that the study measured"):
        export(study, held(logits, score, recorded))
    assert left_behind(study) == []


@pytest.mark.parametrize("kind", ["bert"], indirect=True)
def test_weights_with_a_part_missing_are_refused(study: Path) -> None:
    tensors = load_file(study / "weights" / "model.safetensors")
    del tensors["classifier.weight"]
    save_file(tensors, study / "weights" / "model.safetensors", {"format": "pt"})
    with pytest.raises(StudyError, match=r"missing keys: \['classifier.weight'\]"):
        export(study)
    (study / "weights" / "model.safetensors").write_bytes(b"half a file")
    with pytest.raises(StudyError, match="cannot load"):
        export(study)
    assert left_behind(study) == []


@pytest.mark.parametrize("kind", ["bert"], indirect=True)
@pytest.mark.parametrize("earlier", [True, False])
def test_an_interrupted_export_leaves_what_was_there_before(study: Path, earlier: bool) -> None:
    if earlier:
        export(study, card=lambda own: "the earlier one")

    def interrupted(own: float) -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(study, card=interrupted)
    assert left_behind(study) == (["out"] if earlier else [])
    if earlier:
        assert (study / "exports" / "out" / "README.md").read_text() == "the earlier one"


@pytest.mark.parametrize("kind", ["bert"], indirect=True)
def test_only_an_export_of_ours_is_replaced(study: Path) -> None:
    out = study / "exports" / "out"
    out.mkdir(parents=True)
    export(study, card=lambda own: "first")  # an empty folder is nobody's
    export(study, card=lambda own: "second")
    assert (out / "README.md").read_text() == "second"

    (out / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"more than an export of budget-search \(thesis.txt\)"):
        export(study, card=lambda own: "third")
    assert (out / "README.md").read_text() == "second"
    assert left_behind(study) == ["out"]


def test_a_destination_of_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "config.json").write_text("{}")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "budget_search.json").write_text("[]")
    for name, message in [("file", "not a folder"), ("folder", "not an export"), ("broken", "not an export")]:
        with pytest.raises(UsageError, match=message):
            refuse_foreign(tmp_path / name)
    refuse_foreign(tmp_path / "absent")


@pytest.mark.parametrize("kind", ["bert"], indirect=True)
def test_a_tokenizer_that_does_not_fit_is_found(study: Path) -> None:
    path = study / "tokenizer" / "tokenizer.json"
    fields = json.loads(path.read_text())
    fields["model"]["vocab"]["."] = 5000
    path.write_text(json.dumps(fields))
    with pytest.raises(StudyError, match="does not work with its tokenizer"):
        export(study)
    for path in (study / "tokenizer").iterdir():
        path.unlink()
    with pytest.raises(StudyError, match="no tokenizer"):
        export(study)
    assert left_behind(study) == []


def test_the_card_holds_this_checkpoints_score_beside_the_mean_over_seeds() -> None:
    card = model_card(REPORT, REPORT.result(0.01), 89.654, name="five-layers")
    _, front, body = card.split("---\n", 2)
    (entry,) = yaml.safe_load(front)["model-index"]
    (measured,) = entry["results"]
    assert entry["name"] == "five-layers"
    assert measured["metrics"] == [{"type": "accuracy", "value": pytest.approx(0.89654), "name": "accuracy"}]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in body.splitlines() if line.startswith("| ")]
    assert ["this checkpoint", "", "89.65"] in rows
    assert ["same layers, 3 seeds", "89.51 +- 0.12", "89.71"] in rows
    assert ["all 12 layers, 3 seeds", "90.11 +- 0.12", "90.42"] in rows
    assert answer_sentence(REPORT, REPORT.result(0.01)) in body
    assert "by this checkpoint" not in body


@pytest.mark.parametrize(
    ("told", "shown", "sentence"),
    [
        ({"license": "apache-2.0"}, {"license": "apache-2.0"}, "that of twelve-layers, apache-2.0; the data"),
        (
            {"license": "other", "license_name": "tulu", "license_link": "LICENSE.md"},
            {"license": "other", "license_name": "tulu", "license_link": "LICENSE.md"},
            "that of twelve-layers, tulu (LICENSE.md); the data of the task",
        ),
        ({}, {}, "twelve-layers states none; find out before you publish this model"),
    ],
)
def test_the_parents_licence_stands_in_the_card(told: dict[str, str], shown: dict[str, str], sentence: str) -> None:
    report = dataclasses.replace(REPORT, license=told)
    card = ModelCard(model_card(report, report.result(0.01), 89.654, name="five-layers"))
    fields = card.data.to_dict()
    assert {name: fields[name] for name in ("license", "license_name", "license_link") if name in fields} == shown
    assert sentence in card.text


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("---\nlicense: mit\n---\n# A model\n", {"license": "mit"}),
        ("---\nlicense: other\nlicense_name: own\nlanguage: en\n---\n", {"license": "other", "license_name": "own"}),
        ("---\nlanguage: en\n---\n", {}),
        ("---\nlicense: [\n---\n", {}),
        ("no metadata", {}),
        (None, {}),
    ],
)
def test_the_parents_licence_is_read_from_its_card(content: str | None, found: dict[str, str], tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "README.md").write_text(content)
    assert licence_of(PretrainedSource("tiny", tmp_path, "0")) == found


def test_a_parent_that_is_not_on_the_hub_is_not_named_as_if_it_were() -> None:
    local = dataclasses.replace(REPORT, revision="0" * 64)
    assert ModelCard(model_card(local, local.result(0.01), 89.654, name="out")).data.base_model is None


def test_the_whole_text_of_the_card() -> None:
    report = dataclasses.replace(REPORT, license={"license": "mit"})
    own = Judgement(0.7, 0.03, 0.01, seed_degrees_of_freedom=2, seeds=3, examples=2000)
    text = model_card(report, report.result(0.01), 89.654, name="five-layers", own_loss=own)
    path = Path(__file__).parent / "golden" / "card.md"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_the_card_holds_what_this_checkpoint_loses_for_itself() -> None:
    own = Judgement(0.7, 0.03, 0.01, seed_degrees_of_freedom=2, seeds=3, examples=2000)
    card = model_card(REPORT, REPORT.result(0.01), 89.654, name="five-layers", own_loss=own)
    [line] = [line for line in card.splitlines() if "by this checkpoint" in line]
    assert f"0.70, at most {own.upper:.2f} with 95 % confidence, on held_out" in line


def test_the_cards_metadata_survives_the_hubs_own_reader(tmp_path: Path) -> None:
    text = model_card(REPORT, REPORT.result(0.01), 89.654, name="five-layers")
    data = ModelCard(text).data
    told = data.to_dict()
    assert told["base_model"] == "twelve-layers"
    assert told["library_name"] == "transformers"
    assert told["pipeline_tag"] == "text-classification"
    ModelCard(text).save(tmp_path / "README.md")
    again = ModelCard.load(tmp_path / "README.md").data
    assert again.to_dict() == told
    (result,) = again.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("example-task", "accuracy", 0.89654)


def test_provenance_tells_where_the_layers_came_from() -> None:
    told = provenance(REPORT, REPORT.result(0.02), seed=43, config={"task": "example-task"})
    assert (told["kept"], told["layers_total"], told["parent"]) == ((0, 1, 2), 12, "twelve-layers")
    assert (told["revision"], told["study"], told["seed"]) == (REPORT.revision, REPORT.study, 43)
    assert told["scores"]["certification"] == REPORT.result(0.02).score
    assert told["versions"] == REPORT.versions
