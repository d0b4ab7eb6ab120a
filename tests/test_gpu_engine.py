"""The GPU engine without a GPU: a recorder calls the step where CUDA would replay a graph.

What is captured, kept and put back is the product's own code; only streams, graphs and their random numbers are not.
"""

from __future__ import annotations

import copy
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertPreTrainedModel,
)

from budget_search.core.config import Recipe
from budget_search.core.layers import LayerSet
from budget_search.core.trial import Job, TrialKey
from budget_search.data.kinds.kind import IGNORED
from budget_search.engine import finetune
from budget_search.engine.batches import DeviceSplit, SoftTargets, training_order
from budget_search.engine.device import Device
from budget_search.engine.evaluation import EvaluationContext, run_job
from budget_search.engine.gpu import cuda
from budget_search.engine.gpu.captured_steps import CapturedSteps
from budget_search.engine.gpu.gpu_processes import GpuProcesses
from budget_search.engine.gpu.host_values import CaptureRefusedError, HostValues
from budget_search.engine.gpu.lane_pool import AbandonedError, LanePool, abandoned
from budget_search.engine.gpu.lanes import Lanes, lanes_that_pay, shape_of
from budget_search.engine.gpu.length_buckets import LengthBuckets, choose_buckets
from budget_search.engine.loss import loss_of
from budget_search.engine.measurements import speed
from budget_search.engine.parallel import workers
from budget_search.engine.schedule import Schedule
from budget_search.models.keep_layers import keep_layers
from budget_search.storage.study_folder import StudyFolder
from tests.test_finetune import CPU, RECIPE, make_model, make_task, on_cpu

EXAMPLES = 61  # seven batches of eight and one of five


class CallingRecorder:
    """Calls the step both when it is captured and when it is replayed; ``captures`` counts the former."""

    def __init__(self) -> None:
        self.captures = 0

    @contextmanager
    def active(self) -> Iterator[None]:
        yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        yield

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        self.captures += 1
        function()
        return function

    def seed(self, seed: int) -> None:
        torch.manual_seed(seed)


class RefusingRecorder(CallingRecorder):
    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        raise CaptureRefusedError("CUDA refused to capture a step: operation not permitted")


class WrongRecorder(CallingRecorder):
    """Its replay does less than the step that was captured: nothing."""

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        super().capture(function)
        return lambda: None


class ShortOfMemoryRecorder(CallingRecorder):
    """Has memory for so many graphs in all that are not given up; counting starts anew when one fails."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        if self.captures == self.room:
            self.captures = 0
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().capture(function)


@pytest.fixture
def split() -> DeviceSplit:
    return on_cpu(make_task(EXAMPLES))


@pytest.fixture
def lanes(monkeypatch: pytest.MonkeyPatch) -> Callable[[CallingRecorder], Lanes]:
    """Lets fine-tunes on the CPU find lanes, as they do on a GPU."""

    def install(recorder: CallingRecorder) -> Lanes:
        made = Lanes(CPU, lambda: recorder)
        monkeypatch.setattr(finetune, "lanes_of", lambda device: made)
        return made

    return install


@pytest.fixture
def context(tmp_path: Path) -> EvaluationContext:
    """A study with examples and a model, as far as evaluations need one."""
    study = StudyFolder(tmp_path / "study")
    make_task(EXAMPLES).save(study.examples)
    make_model().save_pretrained(tmp_path / "model")
    return EvaluationContext(study, tmp_path / "model", "model", RECIPE, CPU)


def trained(model: BertForSequenceClassification, split: DeviceSplit, seed: int = 5) -> finetune.FineTuned:
    return finetune.fine_tune(model, split, RECIPE, 1.0, seed, CPU)


def assert_same_weights(one: torch.nn.Module, other: torch.nn.Module, tolerance: float = 0.0) -> None:
    for name, weight in one.state_dict().items():
        torch.testing.assert_close(weight, other.state_dict()[name], rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("regression", [False, True])
@pytest.mark.parametrize("soft", [False, True])
def test_captured_steps_train_as_eager_ones_do(
    lanes: Callable[[CallingRecorder], Lanes], regression: bool, soft: bool
) -> None:
    split = on_cpu(make_task(EXAMPLES, regression=regression))
    classes = 1 if regression else 2
    if soft:
        split = dataclasses.replace(split, soft=SoftTargets(torch.randn(EXAMPLES, classes), 0.5))
    eager, captured = (make_model(classes, dropout=0.0) for _ in range(2))
    assert trained(eager, split).execution == "eager"
    lanes(CallingRecorder())
    assert trained(captured, split).execution == "graph"
    assert_same_weights(captured, eager, 1e-4)


@pytest.mark.parametrize(
    ("metric", "model_class"),
    [
        ("micro_f1", BertForSequenceClassification),
        ("token_accuracy", BertForTokenClassification),
        ("squad_f1", BertForQuestionAnswering),
    ],
)
def test_captured_steps_train_other_kinds_of_task_as_eager_ones_do(
    lanes: Callable[[CallingRecorder], Lanes], metric: str, model_class: type[BertPreTrainedModel]
) -> None:
    """The last batch is not full: rows that fill it must not count as examples, nor their words as words."""
    task, draw = make_task(EXAMPLES), np.random.default_rng(0)
    train = task.splits["train"]
    labels = draw.integers(0, 2, (EXAMPLES, 2)).astype(np.float32)
    if metric == "token_accuracy":
        labels = np.where(draw.random(len(train.tokens)) < 0.7, train.tokens % 2, IGNORED).astype(np.int64)
    elif metric == "squad_f1":
        labels = np.where(draw.random((len(train.tokens), 1)) < 0.3, IGNORED, np.zeros((1, 2), dtype=np.int64))
        first, last = train.offsets[:-1], draw.integers(train.offsets[:-1], train.offsets[1:])
        labels[first] = labels[last] = 0
        labels[first, 0] = labels[last, 1] = 1
    split = on_cpu(
        dataclasses.replace(task, metric=metric, splits={"train": dataclasses.replace(train, labels=labels)})
    )
    eager = model_class(make_model(dropout=0.0).config)
    captured = copy.deepcopy(eager)
    assert trained(eager, split).execution == "eager"
    lanes(CallingRecorder())
    assert trained(captured, split).execution == "graph"
    if metric == "squad_f1":
        # What moves the logits of all tokens alike moves no probability: its gradient is zero but for rounding.
        for model in (eager, captured):
            model.qa_outputs.bias.data.zero_()
            model.bert.encoder.layer[-1].output.LayerNorm.bias.data.zero_()
    assert_same_weights(captured, eager, 1e-4)


def test_rows_of_weight_zero_change_neither_loss_nor_gradients(split: DeviceSplit) -> None:
    alone, filled = (make_model(dropout=0.0) for _ in range(2))
    rows = torch.tensor([3, 8, 13, 21, 34])
    losses = []
    for model, chosen, weights in (
        (alone, rows, None),
        (filled, torch.cat([rows, torch.tensor([0, 0, 1])]), torch.tensor([0.2] * 5 + [0.0] * 3)),
    ):
        logits = model(**split.inputs(chosen, 24)).logits
        losses.append(loss_of(logits, split.labels[chosen], weights=weights))
        losses[-1].backward()
    torch.testing.assert_close(losses[0], losses[1])
    for (name, one), other in zip(alone.named_parameters(), filled.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-7, msg=name)


def test_each_padded_length_is_captured_once_for_all_candidates_of_a_depth(
    lanes: Callable[[CallingRecorder], Lanes], split: DeviceSplit
) -> None:
    recorder = CallingRecorder()
    lanes(recorder)
    full = make_model()
    trained(keep_layers(full, [0]), split)
    once = recorder.captures
    assert once == len(choose_buckets(split.lengths, RECIPE.batch_size).lengths)
    trained(keep_layers(full, [1]), split, seed=6)
    assert recorder.captures == once
    trained(full, split)
    assert recorder.captures == 2 * once


def test_a_candidate_does_not_depend_on_those_before_it(
    lanes: Callable[[CallingRecorder], Lanes], split: DeviceSplit
) -> None:
    first, again, other = (keep_layers(make_model(), [layer]) for layer in (1, 1, 0))
    lanes(CallingRecorder())
    trained(first, split)
    trained(other, split, seed=9)
    trained(again, split)
    assert_same_weights(again, first)
    assert not torch.equal(first.classifier.weight, other.classifier.weight)


def test_a_capture_leaves_weights_and_moments_as_they_were(split: DeviceSplit) -> None:
    model = make_model()
    steps = CapturedSteps(model.train(), split, RECIPE, CPU, CallingRecorder())
    before = copy.deepcopy(steps._model.state_dict())
    steps.prepare(Schedule.of(RECIPE, split.lengths, 1.0, 1))
    assert all(torch.equal(weight, before[name]) for name, weight in steps._model.state_dict().items())
    assert steps._optimizer.state, "the steps have run"
    assert not any(value.any() for state in steps._optimizer.state.values() for value in state.values())
    assert steps.loss() == 0


def test_frozen_parts_have_graphs_of_their_own_and_stay(
    lanes: Callable[[CallingRecorder], Lanes], split: DeviceSplit
) -> None:
    recorder = CallingRecorder()
    lanes(recorder)
    model = make_model()
    trained(model, split)
    once = recorder.captures
    frozen = copy.deepcopy(model)
    frozen.bert.encoder.layer[0].requires_grad_(False)
    before = copy.deepcopy(frozen.bert.encoder.layer[0].state_dict())
    trained(frozen, split)
    assert recorder.captures == 2 * once
    assert all(torch.equal(value, before[name]) for name, value in frozen.bert.encoder.layer[0].state_dict().items())


@pytest.mark.parametrize(
    ("recorder", "reason"),
    [
        (RefusingRecorder(), "eager: CUDA refused to capture a step: operation not permitted"),
        (
            WrongRecorder(),
            "eager: a captured step changes the weights differently from an eager step (by 100%",
        ),
    ],
    ids=["refused", "different"],
)
def test_what_cannot_be_captured_is_trained_eagerly_with_the_reason(
    lanes: Callable[[CallingRecorder], Lanes], split: DeviceSplit, recorder: CallingRecorder, reason: str
) -> None:
    plain, refused = make_model(), make_model()
    trained(plain, split)
    lanes(recorder)
    assert trained(refused, split).execution.startswith(reason)
    assert_same_weights(refused, plain)


def test_a_refusal_is_remembered(lanes: Callable[[CallingRecorder], Lanes], split: DeviceSplit) -> None:
    recorder = WrongRecorder()
    lanes(recorder)
    trained(make_model(), split)
    once = recorder.captures
    trained(make_model(), split)
    assert recorder.captures == once > 0


def test_layers_that_are_skipped_at_random_are_not_captured(
    lanes: Callable[[CallingRecorder], Lanes], split: DeviceSplit
) -> None:
    lanes(CallingRecorder())
    recipe = dataclasses.replace(RECIPE, layer_drop=0.5)
    done = finetune.fine_tune(make_model(), split, recipe, 1.0, 1, CPU)
    assert done.execution == "eager: LayerDrop skips layers at random on the host"


def test_short_memory_gives_up_the_shapes_that_were_used_longest_ago(
    lanes: Callable[[CallingRecorder], Lanes], split: DeviceSplit
) -> None:
    buckets = len(choose_buckets(split.lengths, RECIPE.batch_size).lengths)
    made = lanes(ShortOfMemoryRecorder(buckets))
    full = make_model()
    shallow = keep_layers(full, [0])
    known = {depth: shape_of(model, split, RECIPE) for depth, model in ((2, full), (1, shallow))}
    assert known[1] != known[2]
    assert [trained(model, split).execution for model in (full, shallow)] == ["graph", "graph"]
    [lane] = made._free
    assert len(lane._steps) == 1, "the first shape has given up its memory"


def test_a_shape_without_enough_memory_is_trained_eagerly(
    lanes: Callable[[CallingRecorder], Lanes], split: DeviceSplit
) -> None:
    lanes(ShortOfMemoryRecorder(0))
    assert trained(make_model(), split).execution == "eager: there is too little memory for a graph of this shape"


def test_a_loss_that_is_no_number_ends_captured_steps(
    lanes: Callable[[CallingRecorder], Lanes], split: DeviceSplit
) -> None:
    lanes(CallingRecorder())
    model = make_model()
    trained(model, split)
    with torch.no_grad():
        model.classifier.weight.fill_(float("nan"))
    with pytest.raises(finetune.DivergedError, match="nan after 24 of 24"):
        trained(model, split)


def test_a_lane_is_lent_to_one_at_a_time_and_by_what_it_knows(split: DeviceSplit) -> None:
    lanes, full = Lanes(CPU, CallingRecorder), make_model().train()
    shallow = keep_layers(full, [0])
    schedule = Schedule.of(RECIPE, split.lengths, 1.0, 1)
    with lanes.borrow(full, split, RECIPE) as one, lanes.borrow(shallow, split, RECIPE) as other:
        assert one is not other
        one.prepared(full, split, RECIPE, schedule)
        other.prepared(shallow, split, RECIPE, schedule)
    for model, lane in ((shallow, other), (full, one), (shallow, other)):
        with lanes.borrow(model, split, RECIPE) as lent:
            assert lent is lane


@pytest.mark.parametrize(
    ("rates", "room", "expected"),
    [
        ([100, 190, 250, 260, 900], 8, 3),
        ([100, 105], 8, 1),
        ([100, 190, 250], 2, 2),
        ([100 * lanes for lanes in range(1, 20)], 99, 8),
    ],
    ids=["gain ends", "no gain", "memory ends", "most"],
)
def test_lanes_are_added_while_they_pay(rates: list[float], room: int, expected: int) -> None:
    assert lanes_that_pay(lambda lanes: rates[lanes - 1], lambda lanes: lanes <= room) == expected


def test_threads_of_a_pool_work_side_by_side_and_end_when_abandoned() -> None:
    pool = LanePool(2, lambda: 0)
    both = threading.Barrier(2, timeout=30)
    assert [each.result() > -1 for each in [pool.submit(both.wait) for _ in range(2)]] == [True, True]

    model, split = make_model(), on_cpu(make_task())
    endless = Recipe("endless", 100_000, None, 8, 3e-3, 32, 0.1)
    running = pool.submit(finetune.fine_tune, model, split, endless, 1e-3, 1, CPU)
    while not running.running():
        time.sleep(0.01)
    pool.abandon()
    with pytest.raises(AbandonedError):
        running.result()
    assert not abandoned.is_set()
    assert pool.submit(int, "7").result() == 7


def test_a_pool_without_a_number_measures_how_many_lanes_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "side_by_side", lambda context: lambda lanes: 100.0 * lanes)
    monkeypatch.setattr(cuda, "lane_fits", lambda device, lanes: lanes <= 3)
    context = EvaluationContext(StudyFolder(Path("study")), Path("model"), "model", RECIPE, Device("cuda:0", "bf16"))
    pool = workers.Workers(context, None)._pool
    assert isinstance(pool, LanePool)
    assert (pool.count, pool.sharing) == (3, 3)


def test_fine_tunes_are_measured_side_by_side_and_captured_before(
    lanes: Callable[[CallingRecorder], Lanes], monkeypatch: pytest.MonkeyPatch, context: EvaluationContext
) -> None:
    monkeypatch.setattr(speed, "LANE_STEPS", 3)
    recorder = CallingRecorder()
    made = lanes(recorder)
    rate = speed.side_by_side(context)
    assert rate(1) > 0
    assert (len(made._free), recorder.captures) == (1, 1)
    assert rate(2) > 0
    assert (len(made._free), recorder.captures) == (2, 2), "a lane more, and one capture for it"


@pytest.mark.parametrize(
    ("visible", "names"), [(None, ["0", "1"]), ("3,5", ["3", "5"]), ("GPU-5f, GPU-77", ["GPU-5f", "GPU-77"])]
)
def test_each_of_several_gpus_gets_a_process_that_sees_it_alone(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, names: list[str]
) -> None:
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(workers, "slots", lambda device, asked: ("cuda:0", "cuda:1"))
    context = EvaluationContext(StudyFolder(Path("study")), Path("model"), "model", RECIPE, Device("cuda:0", "bf16"))
    pool = workers.Workers(context, 5, asked="auto")._pool
    assert isinstance(pool, GpuProcesses)
    assert (list(pool._running), pool.count, pool.sharing) == (names, 5, 3)


@pytest.mark.slow
def test_evaluations_in_the_processes_of_gpus_train_as_they_do_here(context: EvaluationContext) -> None:
    jobs = [Job(TrialKey(LayerSet.full(2), 0.5, seed), "train") for seed in (7, 8)]
    pool = GpuProcesses(("0", "1"), 2, lambda: 0)
    try:
        found = {trial.key.seed: trial.metrics for trial in workers.Workers(context, 2, cluster=pool).run(jobs)}
    finally:
        pool.abandon()
    assert found == {job.key.seed: run_job(context, job).metrics for job in jobs}
    assert found[7]["loss"] != found[8]["loss"]


def test_what_a_step_copies_from_the_host_is_kept_and_handed_out_again() -> None:
    # The meta device stands for a GPU: copies to it are seen, and values are not needed.
    copied: list[torch.Tensor] = []

    def step(size: int = 3) -> None:
        copied.append(torch.arange(size).to("meta", torch.float32))
        torch.empty(2, device="meta").copy_(torch.ones(2))

    values = HostValues.seen_in(step)
    assert len(values) == 2
    with values.given():
        step()
    assert copied[1].device.type == "meta"
    assert copied[1].dtype == torch.float32
    with values.given(), pytest.raises(CaptureRefusedError, match="copy different values"):
        step()
        step()


@pytest.mark.parametrize(("seed", "longest"), [(0, 60), (1, 130), (2, 500)])
def test_buckets_hold_every_length_with_little_padding(seed: int, longest: int) -> None:
    lengths = np.random.default_rng(seed).integers(4, longest + 1, 3_000)
    buckets = choose_buckets(lengths, 32)
    assert len(buckets.lengths) <= 11
    assert buckets.padding <= 0.15
    batches = [batch for batch, _ in zip(training_order(lengths, 32, 0), range(94), strict=False)]
    own = sum(int(lengths[batch].max()) for batch in batches)
    padded = sum(buckets.holding(int(lengths[batch].max())) for batch in batches)
    assert padded / own - 1 == pytest.approx(buckets.padding)
    assert all(buckets.holding(int(length)) >= length for length in np.unique(lengths))


def test_no_other_buckets_of_that_number_add_less() -> None:
    lengths = np.array([5, 9, 17, 18, 33, 34, 47, 48, 60, 61, 90, 91])
    found = choose_buckets(lengths, 1)
    added = [
        sum(LengthBuckets((*chosen, 91), 0).holding(int(length)) for length in lengths) / lengths.sum() - 1
        for chosen in combinations(range(8, 91, 8), len(found.lengths) - 1)
    ]
    assert found.padding == pytest.approx(min(added))
    assert len(found.lengths) > 2


def test_a_length_above_all_buckets_is_an_error() -> None:
    with pytest.raises(ValueError, match="no bucket holds 65 tokens; the longest has 64"):
        LengthBuckets((32, 64), 0.1).holding(65)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_graphs_train_as_eager_steps_do() -> None:
    from budget_search.engine.gpu.lanes import lanes_of

    device = Device("cuda:0", "fp32")
    task = make_task(EXAMPLES)
    split = DeviceSplit.of(task, task.splits["train"], device.name)
    eager, captured = (make_model(dropout=0.0) for _ in range(2))
    finetune.fine_tune(eager, on_cpu(task), RECIPE, 1.0, 5, CPU)
    captured.to(device.name)
    assert finetune.fine_tune(captured, split, RECIPE, 1.0, 5, device).execution == "graph"
    assert lanes_of(device) is not None
    assert_same_weights(captured.cpu(), eager, 1e-3)
