"""The papers' methods do what their names say: on tiny real models, held against the same steps taken by hand."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    OPTConfig,
    OPTForSequenceClassification,
    PreTrainedModel,
    XLMConfig,
    XLMForSequenceClassification,
    XLNetConfig,
    XLNetForSequenceClassification,
)

from budget_search.core.config import RECIPES, Recipe, SearchConfig
from budget_search.core.dropping import phases, training_depth
from budget_search.core.errors import UnsupportedModelError
from budget_search.core.layers import LayerSet
from budget_search.core.trial import FULL_RUNG, Job, Tolerance, Trial, TrialKey
from budget_search.engine import evaluation as evaluate
from budget_search.engine.evaluation import EvaluationContext, load_weights, loaded, outputs_of, run_job, split_of
from budget_search.engine.finetune import fine_tune
from budget_search.engine.last_layer import only_read_token
from budget_search.engine.loss import loss_of
from budget_search.engine.parallel import workers as dispatch
from budget_search.layer_search.acceptance import AcceptanceRule
from budget_search.layer_search.acquisition import ConfirmationRule, choose
from budget_search.layer_search.budget import Pace
from budget_search.layer_search.loop import Search
from budget_search.layer_search.pool import Pool
from budget_search.layer_search.settings import SearchSettings
from budget_search.layer_search.state import SearchState
from budget_search.layer_search.strategies.problem import SearchProblem
from budget_search.layer_search.surrogate import FullRuns
from budget_search.layer_search.verdict import Judgement
from budget_search.models.keep_layers import keep_layers
from budget_search.models.layer_training import frozen, skipping_layers
from budget_search.models.pretrained import fresh_head
from budget_search.simulation.evaluation_costs import EvaluationCosts, Speed
from budget_search.simulation.replay import InMemoryHistory, NullObserver
from budget_search.storage.study_folder import StudyFolder
from tests import tiny
from tests.test_finetune import CPU, VOCABULARY, make_model, make_task, on_cpu
from tests.worlds import EFFECTS, World, settings

SHORT = Recipe("short", epochs=1, train_examples=None, batch_size=8, lr=3e-3, max_length=32, warmup=0.1)
FULL, SMALLER = LayerSet.full(4), LayerSet((0, 2), 4)
SEED = 5
Weights = dict[str, torch.Tensor]


def recipe(**changes: Any) -> Recipe:
    return dataclasses.replace(SHORT, **changes)


def full_run(layers: LayerSet, seed: int = SEED) -> Job:
    return Job(TrialKey(layers, FULL_RUNG, seed), "certification", keep_weights=True)


# -- recipes --------------------------------------------------------------------------------------------------------


def test_a_recipe_without_methods_has_the_fingerprint_it_always_had() -> None:
    plain = dataclasses.replace(RECIPES["standard"], dropping="first")
    config = SearchConfig("sst2", "0", "accuracy", ("sentence",), "label", "bert", "1", plain)
    assert config.fingerprint == "49b9cf3b66"
    known = {"after": "55a90e80d8", "gradual": "a78233ad46", "untrained": "3badf5f4c5"}
    for dropping, fingerprint in known.items():
        changed = dataclasses.replace(config.recipe, dropping=dropping)
        assert dataclasses.replace(config, recipe=changed).fingerprint == fingerprint
    others = [recipe(dropping="after"), recipe(layer_drop=0.1), recipe(freeze=("0",)), recipe(distil=0.5), SHORT]
    others += [recipe(dropping="finetuned"), recipe(dropping="finetuned", recovery=0.5)]
    assert len({dataclasses.replace(config, recipe=each).fingerprint for each in others}) == len(others)


def test_the_same_parts_are_frozen_however_they_are_written() -> None:
    ways: list[Any] = [("embeddings", "0-2"), ["2", "0", "1", "embeddings"], (0, 1, 2, "embeddings", "1-2")]
    assert {recipe(freeze=way) for way in ways} == {recipe(freeze=("embeddings", "0-2"))}
    assert recipe(freeze="embeddings").frozen_layers == frozenset()


# -- phases ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dropping", "expected"),
    [
        ("first", [((0, 2), (), 3)]),
        ("after", [((0, 1, 2, 3), (1, 3), 3), ((0, 2), (), 3)]),
        ("gradual", [((0, 1, 2, 3), (), 2), ((0, 1, 2), (), 2), ((0, 2), (), 3)]),
        ("finetuned", [((0, 2), (), 3)]),
        ("untrained", []),
    ],
)
def test_the_phases_of_every_way_of_dropping(dropping: Any, expected: list[Any]) -> None:
    asked = recipe(epochs=3, dropping=dropping)
    found = [(phase.layers.kept, tuple(sorted(phase.frozen)), phase.epochs) for phase in phases(asked, SMALLER)]
    assert found == expected
    assert training_depth(asked, SMALLER) == sum(epochs * len(kept) for kept, _, epochs in expected) / 3
    (only,) = phases(asked, FULL)
    assert (only.layers, only.frozen, only.epochs) == (FULL, frozenset(), 3)


def test_recovery_shortens_the_fine_tune_of_smaller_models_only() -> None:
    asked = recipe(epochs=3, dropping="finetuned", recovery=0.5)
    assert [(phase.layers, phase.epochs) for phase in phases(asked, SMALLER)] == [(SMALLER, 1.5)]
    assert [(phase.layers, phase.epochs) for phase in phases(asked, FULL)] == [(FULL, 3)]
    assert (training_depth(asked, SMALLER), training_depth(asked, FULL)) == (1, 4)


def test_what_is_frozen_stays_so_in_every_phase() -> None:
    for dropping in ("first", "after", "gradual", "finetuned"):
        for phase in phases(recipe(dropping=dropping, freeze=("1-2",)), SMALLER):
            assert phase.frozen >= {1, 2}


# -- freezing, skipping, soft targets ---------------------------------------------------------------------------------


def bert(layers: int = 3) -> PreTrainedModel:
    return sized(make_model(dropout=0.0), layers)


def xlnet(layers: int = 3) -> PreTrainedModel:
    torch.manual_seed(1)
    return XLNetForSequenceClassification(
        XLNetConfig(vocab_size=VOCABULARY, d_model=16, n_layer=layers, n_head=2, d_inner=32, dropout=0.0,
                    summary_last_dropout=0.0)
    )  # fmt: skip


def llama(layers: int = 3) -> PreTrainedModel:
    torch.manual_seed(1)
    return LlamaForSequenceClassification(
        LlamaConfig(vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=layers, num_attention_heads=2,
                    intermediate_size=32, pad_token_id=0)
    )  # fmt: skip


def sized(model: PreTrainedModel, layers: int) -> PreTrainedModel:
    torch.manual_seed(1)
    return type(model)(type(model.config).from_dict({**model.config.to_dict(), "num_hidden_layers": layers}))


ARCHITECTURES = pytest.mark.parametrize(
    ("make", "layer", "embedding"),
    [
        (bert, "bert.encoder.layer.{}.", "bert.embeddings."),
        (xlnet, "transformer.layer.{}.", "transformer.word_embedding."),
        (llama, "model.layers.{}.", "model.embed_tokens."),
    ],
)
Make = Callable[[], PreTrainedModel]


def inputs(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    batch = on_cpu(make_task(pad_left=not isinstance(model, type(bert())))).batch(np.arange(6))
    if isinstance(model, LlamaForSequenceClassification):
        del batch["token_type_ids"]
    return batch


def without_segments(model: PreTrainedModel) -> Any:
    split = on_cpu(make_task())
    return dataclasses.replace(split, segments=None) if isinstance(model, LlamaForSequenceClassification) else split


@ARCHITECTURES
def test_what_is_frozen_does_not_change_and_everything_else_does(make: Make, layer: str, embedding: str) -> None:
    model = make()
    before: Weights = {name: weight.clone() for name, weight in model.named_parameters()}
    with frozen(model, [1], embeddings=True):
        fine_tune(model, without_segments(model), SHORT, 1.0, SEED, CPU)
    still = {name for name, weight in model.named_parameters() if torch.equal(weight, before[name])}
    held = {name for name in before if name.startswith((layer.format(1), embedding))}
    assert held
    assert held <= still
    moved = {name for name in before if name.startswith((layer.format(0), layer.format(2)))} - still
    assert any(name.startswith(layer.format(0)) for name in moved)
    assert any(name.startswith(layer.format(2)) for name in moved)
    assert all(weight.requires_grad for weight in model.parameters()), "it can be trained again"


def test_the_last_norm_of_opt_is_no_embedding_though_it_is_registered_before_the_layers() -> None:
    sizes = {"vocab_size": 60, "hidden_size": 16, "ffn_dim": 32, "word_embed_proj_dim": 16, "num_attention_heads": 2}
    model = OPTForSequenceClassification(OPTConfig(**sizes, num_hidden_layers=2, pad_token_id=1)).train()
    drawn = torch.random.get_rng_state()
    with frozen(model, [], embeddings=True):
        still = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    assert still == {"model.decoder.embed_tokens.weight", "model.decoder.embed_positions.weight"}
    assert model.training
    assert torch.equal(torch.random.get_rng_state(), drawn)


@ARCHITECTURES
def test_skipped_layers_are_as_if_they_were_not_there(make: Make, layer: str, embedding: str) -> None:
    model, rate = make().train(), 0.5
    torch.manual_seed(2)
    kept = [index for index in range(3) if torch.rand(()) >= rate]
    assert 0 < len(kept) < 3, "a seed that skips some and not all"
    batch = inputs(model)
    with skipping_layers(model, rate):
        torch.manual_seed(2)
        logits = model(**batch).logits
        model.eval()
        at_evaluation = model(**batch).logits
    torch.testing.assert_close(logits, keep_layers(model.train(), kept)(**batch).logits)
    logits.sum().backward()
    trained = {index for index in range(3) for name, weight in model.named_parameters()
               if name.startswith(layer.format(index)) and weight.grad is not None and weight.grad.any()}  # fmt: skip
    assert trained == set(kept)
    torch.testing.assert_close(at_evaluation, model.eval()(**batch).logits)
    torch.manual_seed(2)
    torch.testing.assert_close(model.train()(**batch).logits, at_evaluation, msg="no hook is left behind")


def test_layer_drop_reaches_the_training_loop() -> None:
    plain, dropped, again = bert(), bert(), bert()
    fine_tune(plain, on_cpu(make_task()), SHORT, 1.0, SEED, CPU)
    for model in (dropped, again):
        fine_tune(model, on_cpu(make_task()), recipe(layer_drop=0.5), 1.0, SEED, CPU)
    name = "bert.encoder.layer.1.output.dense.weight"
    assert not torch.equal(plain.state_dict()[name], dropped.state_dict()[name])
    assert torch.equal(dropped.state_dict()[name], again.state_dict()[name])


def test_layers_in_several_lists_cannot_be_skipped() -> None:
    model = XLMForSequenceClassification(XLMConfig(vocab_size=VOCABULARY, emb_dim=16, n_layers=2, n_heads=2))
    with pytest.raises(UnsupportedModelError, match="leave --layer-drop out"), skipping_layers(model, 0.1):
        pass


def test_soft_targets_pull_towards_themselves() -> None:
    split = on_cpu(make_task())
    rows = np.arange(4)
    soft = dataclasses.replace(split, soft=evaluate.SoftTargets(torch.randn(64, 2), 1.0)).soft_of(rows)
    assert soft is not None
    assert loss_of(soft.logits, split.labels[rows], soft) == pytest.approx(0, abs=1e-6)
    assert loss_of(soft.logits + 7.0, split.labels[rows], soft) == pytest.approx(0, abs=1e-5)
    half, logits, labels = dataclasses.replace(soft, weight=0.5), torch.randn(4, 2), split.labels[rows]
    mean = (loss_of(logits, labels) + loss_of(logits, labels, soft)) / 2
    assert loss_of(logits, labels, half) == pytest.approx(mean.item())
    wanted = evaluate.SoftTargets(torch.tensor([[1.0], [3.0]]), 1.0)
    assert loss_of(torch.tensor([[2.0], [5.0]]), torch.zeros(2), wanted) == pytest.approx(2.5)


# -- evaluations ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, bert: Path) -> Callable[..., EvaluationContext]:
    """Makes a study to evaluate in, with a recipe; of train, selection and certification."""

    def make(asked: Recipe, **more: Any) -> EvaluationContext:
        folder = StudyFolder(tmp_path_factory.mktemp("place") / "study")
        task = make_task()
        splits = dict.fromkeys(("train", "selection", "certification"), task.splits["train"])
        dataclasses.replace(task, splits=splits).save(folder.examples)
        return EvaluationContext(folder, bert, "tiny-bert", asked, CPU, **more)

    return make


Place = Callable[..., EvaluationContext]


def begun(context: EvaluationContext) -> PreTrainedModel:
    """The full model as a fine-tune finds it."""
    here = loaded(context)
    model = keep_layers(here.pretrained, FULL.kept)
    fresh_head(model, here.fresh, SEED)
    return model


def weights_of(context: EvaluationContext, layers: LayerSet) -> Weights:
    return load_weights(context, full_run(layers).key).state_dict()


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_dropping_after_a_fine_tune_is_the_three_steps_by_hand(place: Place) -> None:
    context = place(recipe(dropping="after", freeze=("2",)))
    trial = run_job(context, full_run(SMALLER))
    train = split_of(context, "train")
    model = begun(context)
    for name, weight in model.named_parameters():
        weight.requires_grad_(not name.startswith(tuple(f"bert.encoder.layer.{index}." for index in (1, 2, 3))))
    tail = loaded(context).tail
    with only_read_token(model, tail):
        first = fine_tune(model, train, SHORT, 1.0, SEED, CPU)
    for weight in model.parameters():
        weight.requires_grad_(True)
    smaller = keep_layers(model, SMALLER.kept)
    for name, weight in smaller.named_parameters():
        weight.requires_grad_(not name.startswith("bert.encoder.layer.1."))
    with only_read_token(smaller, tail):
        second = fine_tune(smaller, train, SHORT, 1.0, SEED, CPU)
    assert same(weights_of(context, SMALLER), smaller.state_dict())
    assert trial.train_tokens == first.tokens + second.tokens
    assert trial.training_work == 4 * first.tokens + 2 * second.tokens


def test_gradual_dropping_takes_one_layer_at_a_time_from_the_top(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[float, Weights, Weights]] = []

    def watched(model: PreTrainedModel, *arguments: Any) -> Any:
        before = {name: weight.clone() for name, weight in model.state_dict().items()}
        done = fine_tune(model, *arguments)
        seen.append((arguments[1].epochs, before, {name: w.clone() for name, w in model.state_dict().items()}))
        return done

    monkeypatch.setattr(evaluate, "fine_tune", watched)
    context = place(recipe(dropping="gradual"))
    trial = run_job(context, full_run(SMALLER))
    assert [epochs for epochs, _, _ in seen] == [2, 2, 1]
    # 3 is dropped first, then 1: what is left begins where it stood.
    left = [(0, 1, 2, 3), (0, 1, 2), (0, 2)]
    weight = "bert.encoder.layer.{}.output.dense.weight"
    for (_, _, ended), (_, begins, _), earlier, now in zip(seen, seen[1:], left, left[1:], strict=False):
        for place_now, layer in enumerate(now):
            assert torch.equal(begins[weight.format(place_now)], ended[weight.format(earlier.index(layer))])
        assert weight.format(len(now)) not in begins
    assert same(weights_of(context, SMALLER), seen[-1][2])
    assert trial.training_work == trial.train_tokens / 5 * (2 * 4 + 2 * 3 + 1 * 2)


def test_untrained_is_a_part_of_the_trained_full_model(place: Place) -> None:
    context = place(recipe(dropping="untrained", layer_drop=0.2))
    parent = run_job(context, full_run(FULL))
    trial = run_job(context, full_run(SMALLER))
    assert parent.training_work == 4 * parent.train_tokens > 0
    assert (trial.train_tokens, trial.training_work, trial.train_seconds) == (0, 0, 0)
    by_hand = begun(context)
    with only_read_token(by_hand, loaded(context).tail):
        fine_tune(by_hand, split_of(context, "train"), context.recipe, 1.0, SEED, CPU)
    expected = outputs_of(context, keep_layers(by_hand, SMALLER.kept), "certification")
    written = np.load(context.folder.outputs(full_run(SMALLER).key, "certification"))
    np.testing.assert_array_equal(written, expected)
    # Where the full model's weights were deleted, they come back the same.
    shutil.rmtree(context.folder.weights(full_run(FULL).key))
    assert run_job(context, full_run(SMALLER)).score == trial.score


def test_finetuned_trains_a_part_of_the_trained_full_model_further(place: Place) -> None:
    context = place(recipe(epochs=2, dropping="finetuned", recovery=0.5, freeze=("2",)))
    for seed in (SEED, SEED + 1):
        run_job(context, full_run(FULL, seed))
    trials = [run_job(context, full_run(SMALLER, seed)) for seed in (SEED, SEED + 1)]
    for trial in trials:
        smaller = keep_layers(load_weights(context, full_run(FULL, trial.key.seed).key), SMALLER.kept)
        with frozen(smaller, [1], embeddings=False), only_read_token(smaller, loaded(context).tail):
            again = fine_tune(smaller, split_of(context, "train"), SHORT, 1.0, trial.key.seed, CPU)
        assert same(load_weights(context, trial.key).state_dict(), smaller.state_dict())
        assert (trial.train_tokens, trial.training_work) == (again.tokens, 2 * again.tokens)
    # Of two full models, and a screen of the screened one.
    assert trials[0].metrics["loss"] != trials[1].metrics["loss"]
    screen = Job(TrialKey(SMALLER, 0.5, SEED), "selection")
    run_job(context, Job(TrialKey(FULL, 0.5, SEED), "selection", keep_weights=True))
    before = run_job(context, screen)
    shutil.rmtree(context.folder.path / "weights")
    after = run_job(context, screen)
    assert (after.score, after.metrics) == (before.score, before.metrics), "the full model comes back where it was lost"


def test_without_training_finetuned_is_the_full_model_cut_out_with_its_head(place: Place) -> None:
    context = place(SHORT)
    run_job(context, full_run(FULL))
    still = dataclasses.replace(context, recipe=recipe(dropping="finetuned", recovery=1e-9, lr=1e-30))
    run_job(still, full_run(SMALLER))
    parent = load_weights(context, full_run(FULL).key)
    expected, found = keep_layers(parent, SMALLER.kept).state_dict(), weights_of(still, SMALLER)
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-20)
    assert not torch.equal(parent.state_dict()["classifier.weight"], begun(context).state_dict()["classifier.weight"])


def test_weights_that_two_workers_miss_are_made_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    context, lengths = place(recipe(dropping="finetuned")), list[int]()

    def counted(model: PreTrainedModel, *arguments: Any) -> Any:
        lengths.append(model.config.num_hidden_layers)
        return fine_tune(model, *arguments)

    monkeypatch.setattr(evaluate, "fine_tune", counted)
    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(lambda _: load_weights(context, full_run(FULL).key), range(2))
    assert lengths == [4]
    assert same(first.state_dict(), second.state_dict())


def test_a_screen_scales_every_phase(place: Place) -> None:
    context = place(recipe(epochs=2, dropping="gradual"))
    short = run_job(context, Job(TrialKey(SMALLER, 0.25, SEED), "selection"))
    long = run_job(context, Job(TrialKey(SMALLER, 1.0, SEED), "selection"))
    assert short.train_tokens == pytest.approx(long.train_tokens / 4, rel=0.2)
    assert short.training_work == pytest.approx(short.train_tokens * 3, rel=0.1)


def scrambled(context: EvaluationContext) -> None:
    """Turn every label in what this process has loaded."""
    train, splits = split_of(context, "train"), loaded(context).splits
    splits.clear()
    splits["train"] = dataclasses.replace(train, labels=1 - train.labels)


def test_the_teacher_is_asked_once_and_learnt_from(place: Place) -> None:
    teacher = full_run(FULL).key
    context = place(recipe(distil=1.0), teacher=teacher)
    own, other = run_job(context, full_run(FULL)), run_job(context, full_run(FULL, SEED + 1))
    said = context.folder.outputs(teacher, "train")
    # Reading the training examples is counted, with the run that did it.
    train_tokens = int(split_of(context, "train").lengths.sum())
    assert own.evaluation_tokens == other.evaluation_tokens + train_tokens
    full = load_weights(context, teacher)
    np.testing.assert_array_equal(np.load(said), outputs_of(context, full, "train"))
    plain = place(SHORT)
    run_job(plain, full_run(FULL))
    assert same(full.state_dict(), weights_of(plain, FULL)), "the baseline has no teacher"

    written = said.stat().st_mtime_ns
    taught = weights_of(context, SMALLER)
    assert said.stat().st_mtime_ns == written
    shutil.rmtree(context.folder.weights(full_run(SMALLER).key))
    scrambled(context)
    assert same(weights_of(context, SMALLER), taught), "with all the weight on the teacher, labels do not matter"
    np.save(said, -np.load(said))
    loaded(context).splits.clear()
    shutil.rmtree(context.folder.weights(full_run(SMALLER).key))
    assert not same(weights_of(context, SMALLER), taught)


def test_what_the_teacher_said_comes_back_when_it_was_deleted(place: Place) -> None:
    teacher = full_run(FULL).key
    context = place(recipe(distil=0.5, dropping="after"), teacher=teacher)
    run_job(context, full_run(FULL))
    before = run_job(context, full_run(SMALLER))
    shutil.rmtree(context.folder.path / "artifacts")
    shutil.rmtree(context.folder.path / "weights")
    after = run_job(context, full_run(SMALLER))
    assert (after.score, after.metrics) == (before.score, before.metrics)


# -- the search -------------------------------------------------------------------------------------------------------


def together(world: World, wanted: SearchSettings, order: list[tuple[str, Job]]) -> dict[float, LayerSet]:
    """A search with as many evaluations at a time as the plan is wide; the last begun ends first. Notes the order."""

    def run_jobs(jobs: Iterable[Job | None]) -> Iterator[Trial]:
        waiting, running = iter(jobs), list[Job]()
        while True:
            while len(running) < wanted.width and (job := next(waiting, None)) is not None:
                running.append(job)
                order.append(("begins", job))
            if not running:
                return
            order.append(("ends", running[-1]))
            yield world.measure(running.pop())

    def judge(layers: LayerSet, confidence: float) -> Judgement:
        lost = state.confirmations.degradations(layers)
        return Judgement(sum(lost) / len(lost), 0.5 / len(lost), 0.0, 10**6, len(lost), 1000, confidence)

    state = SearchState(wanted, InMemoryHistory(), judge)
    return Search(state, run_jobs, NullObserver()).run()


NAMED = (LayerSet((0, 1, 2), 6), LayerSet((0, 1), 6))


@pytest.mark.parametrize("named", [(), NAMED])
@pytest.mark.parametrize("method", [{"distil": 0.5}, {"dropping": "untrained"}, {"dropping": "finetuned"}])
def test_smaller_models_wait_for_the_full_one_they_build_on(method: Any, named: tuple[LayerSet, ...]) -> None:
    order: list[tuple[str, Job]] = []
    # Screens of three layers collapse and are run again, twice as long.
    three = [LayerSet(kept, 6) for kept in combinations(range(6), 3)]
    world = World(effects=EFFECTS[:6], collapses_below=dict.fromkeys(three, 0.2))
    wanted = settings(
        total=6,
        width=3,
        named=named,
        recipe=recipe(**method),
        seeds=(42, 43, 44, 45),
        deltas=(2.0,),
        evaluations=12,
        certify=6,
    )
    answers = together(world, wanted, order)
    finished: set[Job] = set()
    for what, job in order:
        if what == "begins" and not job.key.layers.is_full:
            parent = TrialKey(LayerSet.full(6), job.key.rung, job.key.seed)
            needed = wanted.teacher or parent
            assert any(other.key == needed and other.keep_weights for other in finished)
        finished = finished if what == "begins" else finished | {job}
    started = [job for what, job in order if what == "begins"]
    assert named or max(job.key.rung for job in started if job.split == "selection") == pytest.approx(1 / 3)
    assert not named or max(job.key.seed for job in started if job.split == "certification") > 45, "certified"
    assert together(world, dataclasses.replace(wanted, recipe=SHORT), []) == answers


def test_time_and_price_count_every_phase() -> None:
    asked = recipe(epochs=2, dropping="gradual")
    baseline = Trial(full_run(FULL).key, "certification", "complete", 90.0, train_seconds=8.0, evaluation_seconds=4.0)
    pace = Pace.of([baseline], asked)
    # Two epochs of four layers, of three, of two; the full model's fine-tune had two of four.
    assert pace.seconds([full_run(SMALLER)], 1) == pytest.approx((4 + 3 + 2) * 2 + 2)
    linear = (1.0, 2.0, 3.0, 4.0)
    prices = EvaluationCosts(
        total=4, recipe=asked, speed=Speed((1, 2, 3, 4), linear, linear, linear, linear), full_steps=100,
        train_tokens=1.0, tokens={}, padded={}, timed_tokens=1, timing_seconds=1.0, parameters=1, layer_parameters=1.0,
    )  # fmt: skip
    assert prices.training(1.0, 2) == [(100, 4), (100, 3), (100, 2)]
    assert prices.training_equivalents(full_run(SMALLER)) == pytest.approx(9 / 4)
    assert prices.training_equivalents(full_run(FULL)) == 1
    recovering = dataclasses.replace(prices, recipe=recipe(epochs=2, dropping="finetuned", recovery=0.5))
    assert recovering.training(1.0, 2) == [(50, 2)]
    assert recovering.training_equivalents(full_run(SMALLER)) == pytest.approx(0.5 * 2 / 4)
    assert training_depth(recipe(dropping="untrained"), SMALLER) == 0


def test_cheaper_confirmations_are_tried_where_dearer_ones_are_not_worth_it() -> None:
    layers = LayerSet((0, 1, 3), 4)
    pool = Pool.of([layers], 4)
    # One layer less is not likely to hold where two less lost three points.
    surrogate = SearchProblem(4, Tolerance(0.0, {}), full_runs={LayerSet((0, 1), 4): FullRuns(3.0, 3)}).surrogate([])
    rule = ConfirmationRule(1.0, 0.5, 3, {}, AcceptanceRule("observed", 0.8), recipe=SHORT)
    short = recipe(dropping="finetuned", recovery=0.1)
    assert (rule.remaining_cost(layers), dataclasses.replace(rule, recipe=short).remaining_cost(layers)) == (
        pytest.approx(3 * 3 / 4),
        pytest.approx(0.1 * 3 * 3 / 4),
    )
    assert choose(surrogate, pool, rule, 4, 1) is None
    assert choose(surrogate, pool, dataclasses.replace(rule, recipe=short), 4, 1) == layers


def reported(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    capsys.readouterr()
    assert tiny.command(*tiny.search_options("sst2"), *options, "--format", "json", "--quiet") == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    return report


def scores(report: dict[str, Any]) -> dict[tuple[Any, ...], float]:
    return {(tuple(trial["kept"]), trial["rung"], trial["seed"]): trial["score"] for trial in report["trials"]}


@pytest.fixture
def here(tmp_path: Path, bert: Path, sst2: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tiny.context(tmp_path, sst2=sst2, bert=bert))
    return tmp_path


@pytest.mark.slow
def test_every_method_together_from_the_command_to_the_checkpoint(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    methods = ("--dropping", "after", "--distil", "0.5", "--freeze", "embeddings", "0", "--layer-drop", "0.1")
    report = reported(capsys, *methods, "--layers", "0,2", "--delta", "0.9", "--output", "smaller")
    assert report["recipe"]["dropping"] == "after"
    assert (report["recipe"]["freeze"], report["recipe"]["distil"]) == (["embeddings", "0"], 0.5)
    # Two seeds of the full model, and of the set twice as long, once with all layers and once with half of them.
    assert report["cost"]["training_equivalents"] == pytest.approx(2 + 2 * (1 + 0.5), rel=0.02)
    assert report["cost"]["unavoidable_equivalents"] == pytest.approx(report["cost"]["training_equivalents"])
    assert AutoModelForSequenceClassification.from_pretrained("smaller").config.num_hidden_layers == 2
    assert tiny.command("report", report["study"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "dropping after, layer drop 0.1, freeze embeddings 0, distil 0.5" in shown

    kept = list((here / "studies" / report["study"] / "weights").iterdir())
    assert kept
    word_table = AutoModelForSequenceClassification.from_pretrained("bert").get_input_embeddings().weight
    for folder in kept:
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        assert torch.equal(model.get_input_embeddings().weight, word_table), "embeddings were to stay as they are"

    # Two workers do the same.
    side_by_side = ("--layers", "0,2", "--delta", "0.9", "--workers", "2", "--studies-dir", "by-two")
    assert scores(reported(capsys, *methods, *side_by_side)) == scores(report)

    # Another question to the study, other seeds: its teacher stays, and nothing is measured twice.
    [teacher] = (here / "studies" / report["study"] / "artifacts").glob("*__train.npy")
    more = reported(capsys, *methods, "--layers", "0,2", "1,2", "--delta", "0.9", "--base-seed", "43")
    assert list((here / "studies" / report["study"] / "artifacts").glob("*__train.npy")) == [teacher]
    assert scores(more).items() >= scores(report).items()
    assert len(tiny.recorded(here / "studies" / report["study"])) == len(scores(more)) == 8


@pytest.mark.slow
def test_a_search_among_parts_of_the_trained_model(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--dropping", "untrained", "--layer-drop", "0.2", "--delta", "0.5")
    report = reported(capsys, *options)
    trials = {(tuple(trial["kept"]), trial["rung"], trial["seed"]): trial for trial in report["trials"]}
    assert len(trials) > 6
    assert all((trial["train_seconds"] > 0) == (len(kept) == 4) for (kept, _, _), trial in trials.items())
    full_runs = sum(rung for kept, rung, _ in trials if len(kept) == 4)
    assert report["cost"]["training_equivalents"] == pytest.approx(full_runs, rel=0.05)
    # Interrupted among the screens and gone on with: the same.
    shutil.rmtree(here / "studies")
    calls = iter(range(6))

    def until_interrupted(context: EvaluationContext, job: Job) -> Trial:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return run_job(context, job)

    monkeypatch.setattr(dispatch, "run_job", until_interrupted)
    assert tiny.command(*tiny.search_options("sst2"), *options, "--quiet") == 130
    monkeypatch.undo()
    monkeypatch.chdir(here)
    finished = reported(capsys, *options)
    assert finished["cost"]["reused"] == 6
    assert scores(finished) == scores(report)
    assert finished["results"][0]["kept"] == report["results"][0]["kept"]


@pytest.mark.slow
def test_a_search_that_starts_from_the_trained_full_models(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--dropping", "finetuned", "--recovery", "0.5", "--delta", "0.5")
    report = reported(capsys, *options, "--output", "smaller")
    trials = [(tuple(trial["kept"]), trial["rung"], trial["seed"]) for trial in report["trials"]]
    price = sum(rung * (1 if len(kept) == 4 else 0.5 * len(kept) / 4) for kept, rung, _ in trials)
    assert len(trials) > 6
    assert report["cost"]["training_equivalents"] == pytest.approx(price, rel=0.05)
    [result] = report["results"]
    assert result["depth"] < 4
    # The fine-tune of the full model counts in what a smaller model takes to train.
    assert result["fine_tune_speedup"] < 1
    made = "layers of the fine-tuned full model of the same seed, with its head, fine-tuned again for 50 %"
    assert made in " ".join((here / "smaller" / "README.md").read_text("utf8").split())
    assert tiny.command("report", report["study"], "--format", "markdown") == 0
    assert made in " ".join(capsys.readouterr().out.split())
    assert tiny.command("plan", *tiny.search_options("sst2"), *options, "--format", "json") == 0
    assert json.loads(capsys.readouterr().out)["known"]["answered"]


@pytest.mark.slow
def test_smaller_models_start_from_the_same_full_ones_after_an_interruption_and_beside_each_other(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--dropping", "finetuned", "--distil", "0.5", "--layers", "0,2", "1", "--delta", "0.5")
    report = reported(capsys, *options, "--studies-dir", "at-once")
    calls = iter(range(4))

    def until_interrupted(context: EvaluationContext, job: Job) -> Trial:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return run_job(context, job)

    monkeypatch.setattr(dispatch, "run_job", until_interrupted)
    assert tiny.command(*tiny.search_options("sst2"), *options, "--quiet") == 130
    monkeypatch.undo()
    monkeypatch.chdir(here)
    # The full models are there, and a smaller one; what they left is lost.
    shutil.rmtree(here / "studies" / report["study"] / "weights")
    finished = reported(capsys, *options)
    assert finished["cost"]["reused"] == 4
    assert scores(finished) == scores(report)
    assert scores(reported(capsys, *options, "--workers", "2", "--studies-dir", "by-two")) == scores(report)
