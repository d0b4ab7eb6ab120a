"""Costs are those of the arithmetic, and a saving is a paired, interleaved measurement."""

import math
import random
from collections.abc import Iterator

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
    XLNetConfig,
    XLNetForSequenceClassification,
)

from budget_search.app.measure_answers import _inference_point
from budget_search.engine.measurements import cost
from budget_search.engine.measurements.peak_throughput import measure_peak

HIDDEN, FEED_FORWARD, LENGTH, LABELS, VOCABULARY, POSITIONS = 32, 64, 16, 2, 50, 40


def synthetic_batch(model: PreTrainedModel, examples: int, length: int) -> dict[str, torch.Tensor]:
    """Random tokens without padding, for where time and arithmetic depend on the shape alone."""
    generator = torch.Generator().manual_seed(0)
    vocabulary: int = model.config.get_text_config().vocab_size
    input_ids = torch.randint(0, vocabulary, (examples, length), generator=generator)
    padding = getattr(model.config, "pad_token_id", None)
    if padding is not None:
        input_ids[input_ids == padding] = (padding + 1) % vocabulary
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


def bert(depth: int) -> PreTrainedModel:
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=depth,
        num_attention_heads=4,
        intermediate_size=FEED_FORWARD,
        max_position_embeddings=POSITIONS,
        num_labels=LABELS,
    )
    return BertForSequenceClassification(config)


def xlnet() -> PreTrainedModel:
    return XLNetForSequenceClassification(
        XLNetConfig(vocab_size=VOCABULARY, d_model=32, n_layer=2, n_head=4, d_inner=64)
    )


def test_parameters_are_counted_once() -> None:
    layer = 4 * (HIDDEN * HIDDEN + HIDDEN) + 2 * HIDDEN * FEED_FORWARD + FEED_FORWARD + HIDDEN + 4 * HIDDEN
    embeddings = (VOCABULARY + POSITIONS + 2 + 2) * HIDDEN
    head = HIDDEN * HIDDEN + HIDDEN + HIDDEN * LABELS + LABELS
    model = bert(3)
    assert cost.parameters(model) == embeddings + 3 * layer + head
    layers = model.bert.encoder.layer
    layers[1] = layers[0]
    assert cost.parameters(model) == embeddings + 2 * layer + head


def test_flops_are_those_of_the_arithmetic_attention_included() -> None:
    projections = 2 * LENGTH * (4 * HIDDEN * HIDDEN + 2 * HIDDEN * FEED_FORWARD)
    attention = 2 * 2 * LENGTH * LENGTH * HIDDEN
    head = 2 * HIDDEN * HIDDEN + 2 * HIDDEN * LABELS
    model = bert(3)
    for examples in (1, 4):
        batch = synthetic_batch(model, examples, LENGTH)
        assert cost.flops(model, batch) == 3 * (projections + attention) + head


def test_measuring_leaves_the_mode_and_the_attention_as_they_were() -> None:
    model = bert(2).train()
    batch = synthetic_batch(model, 2, LENGTH)
    cost.flops(model, batch)
    cost.measure_inference({"only": model}, [batch], rounds=6)
    assert model.training
    assert model.config._attn_implementation == "sdpa"


def test_synthetic_tokens_are_never_padding() -> None:
    model = bert(1)
    batch = synthetic_batch(model, 32, 40)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (32, 40)
    assert (batch["input_ids"] != model.config.pad_token_id).all()
    assert batch["input_ids"].max() < VOCABULARY


def test_xlnet_is_run_without_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model = xlnet()
    outputs = []
    monkeypatch.setattr(model, "forward", _recording(model, outputs))
    cost.measure_inference({"xlnet": model}, [synthetic_batch(model, 2, LENGTH)], rounds=6)
    assert outputs
    assert all(output.mems is None for output in outputs)
    assert all(not output.logits.requires_grad for output in outputs)


def _recording(model: PreTrainedModel, outputs: list[object]):  # type: ignore[no-untyped-def]
    inner = model.forward

    def forward(input_ids, attention_mask, use_mems=None):  # type: ignore[no-untyped-def]
        outputs.append(inner(input_ids=input_ids, attention_mask=attention_mask, use_mems=use_mems))
        return outputs[-1]

    return forward


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Time as a model passes it: every forward of a model of N layers takes N seconds; the order is recorded."""
    now, order = [0.0], []

    def forward_seconds(model: PreTrainedModel, inputs: object) -> float:
        depth = model.config.num_hidden_layers
        order.append(str(depth))
        now[0] += depth
        return float(depth)

    monkeypatch.setattr(cost, "_forward_seconds", forward_seconds)
    monkeypatch.setattr(cost.time, "perf_counter", lambda: now[0])
    yield order


def test_models_take_turns_and_savings_are_against_the_first(clock: list[str]) -> None:
    models = {"full": bert(4), "half": bert(2), "quarter": bert(1)}
    batches = [synthetic_batch(models["full"], examples, LENGTH) for examples in (1, 3)]
    timings = cost.measure_inference(models, batches, rounds=8, budget_seconds=math.inf)
    assert clock[6:12] == ["4", "2", "1", "1", "2", "4"]  # after two passes each to warm up
    assert [timing.saved for timing in timings["full"]] == [None, None]
    assert [timing.saved for timing in timings["half"]] == [(0.5, 0.5, 0.5)] * 2
    assert timings["quarter"][0].saved == (0.75, 0.75, 0.75)
    first, second = timings["half"]
    assert (first.batch, second.batch, second.length, second.rounds) == (1, 3, LENGTH, 8)
    assert (first.median_ms, first.low_ms, first.high_ms) == (2000.0, 2000.0, 2000.0)
    assert (first.device, first.dtype, first.threads) == ("cpu", "float32", torch.get_num_threads())
    assert first.peak_bytes is None


def test_the_budget_ends_the_rounds_but_not_before_an_interval_exists(clock: list[str]) -> None:
    models = {"full": bert(4)}
    batch = synthetic_batch(models["full"], 1, LENGTH)
    assert cost.measure_inference(models, [batch], rounds=100, budget_seconds=30)["full"][0].rounds == 8
    assert cost.measure_inference(models, [batch], rounds=100, budget_seconds=0)["full"][0].rounds == 6
    assert cost.measure_inference(models, [batch], rounds=1, budget_seconds=30)["full"][0].rounds == 6


def test_reading_a_data_set_takes_turns_batch_by_batch(clock: list[str]) -> None:
    models = {"full": bert(4), "half": bert(2)}
    batches = [synthetic_batch(models["full"], 3 if last else 8, LENGTH) for last in (0, 0, 0, 0, 0, 0, 1)]
    read = cost.measure_throughput(models, batches, budget_seconds=math.inf)
    assert clock[4:10] == ["4", "2", "2", "4", "4", "2"]  # after two passes each to warm up
    assert read["full"] == cost.Throughput(batch=8, examples=51, seconds=28.0, saved=None)
    assert read["half"] == cost.Throughput(batch=8, examples=51, seconds=14.0, saved=(0.5, 0.5, 0.5))


def test_reading_ends_with_the_budget_and_says_nothing_of_too_few_batches(clock: list[str]) -> None:
    models = {"full": bert(4)}
    batch = synthetic_batch(models["full"], 8, LENGTH)
    assert cost.measure_throughput(models, [batch] * 100, budget_seconds=30)["full"].examples == 6 * 8
    assert cost.measure_throughput(models, [batch] * 100, budget_seconds=0)["full"].examples == 6 * 8
    assert cost.measure_throughput(models, [batch] * 5, budget_seconds=30) == {}


def test_the_ratio_is_paired_so_that_a_slow_spell_cancels() -> None:
    weather = [random.Random(7).uniform(1, 50) for _ in range(31)]
    value, low, high = cost.saving([0.6 * spell for spell in weather], weather)
    assert (low, value, high) == pytest.approx((0.4, 0.4, 0.4))


def test_the_interval_covers_the_median_as_often_as_it_says() -> None:
    draw = random.Random(1)
    hits, repeats, widths = 0, 2000, []
    for _ in range(repeats):
        baseline = [1.0] * 30
        candidate = [draw.expovariate(1.0) for _ in baseline]
        _, low, high = cost.saving(candidate, baseline)
        hits += low <= 1 - math.log(2) <= high
        widths.append(high - low)
    assert 0.94 <= hits / repeats <= 0.98  # the ranks are whole numbers, so it is a little above 95 %
    assert cost.saving([1.0, 2, 3, 4, 5, 6], [10.0] * 6) == pytest.approx((0.65, 0.4, 0.9))


def test_models_on_different_devices_or_none_are_refused() -> None:
    with pytest.raises(ValueError, match="none"):
        cost.measure_inference({}, [])
    elsewhere = bert(1).to("meta")
    with pytest.raises(ValueError, match=r"cpu.*meta"):
        cost.measure_inference({"here": bert(1), "elsewhere": elsewhere}, [])


def test_a_timing_becomes_a_point_of_the_report() -> None:
    timing = cost.Timing(32, 24, 5.0, 4.0, 7.0, (0.4, 0.3, 0.5), "cpu", "float32", 2, 30, None)
    point = _inference_point(timing, 0.002)
    assert (point.ms.low, point.ms.median, point.ms.high) == (4.0, 5.0, 7.0)
    assert point.saved is not None
    assert (point.saved.low, point.saved.value, point.saved.high) == (0.3, 0.4, 0.5)
    assert (point.batch, point.length, point.rounds, point.threads) == (32, 24, 30, 2)
    assert (point.launch_share, point.is_launch_bound) == (pytest.approx(0.6), True)


@pytest.mark.parametrize(("replayed", "share"), [(0.001, 0.75), (0.004, 0.0), (0.005, 0.0), (None, None)])
def test_launch_overhead_is_what_a_replay_saves(replayed: float | None, share: float | None) -> None:
    assert cost.launch_share(0.004, replayed) == share


def test_without_a_gpu_nothing_is_replayed() -> None:
    model = bert(1)
    assert cost.replayed_seconds(model, synthetic_batch(model, 1, LENGTH)) is None


@pytest.mark.parametrize(("room", "filled"), [(1_000, 32), (16, 16)], ids=["full at 24 examples", "memory for 16"])
def test_a_batch_fills_the_device_when_a_larger_one_gains_nothing(
    monkeypatch: pytest.MonkeyPatch, room: int, filled: int
) -> None:
    def forward_seconds(model: PreTrainedModel, inputs: dict[str, torch.Tensor]) -> float:
        examples = len(inputs["input_ids"])
        if examples > room:
            raise torch.OutOfMemoryError("out of memory")
        return float(model.config.num_hidden_layers * max(24, examples))

    monkeypatch.setattr(cost, "_forward_seconds", forward_seconds)
    models = {"full": bert(4), "half": bert(2)}
    timings = measure_peak(models, synthetic_batch(models["full"], 4, LENGTH))
    assert [timing.batch for timing in timings.values()] == [filled, filled]
    assert timings["full"].median_ms == 4_000 * max(24, filled)
    assert (timings["full"].saved, timings["half"].saved) == (None, (0.5, 0.5, 0.5))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_device_is_named_and_memory_counted() -> None:
    models = {"full": bert(4).cuda(), "half": bert(2).cuda()}
    timings = cost.measure_inference(models, [synthetic_batch(models["full"], 8, LENGTH)], rounds=6)
    full, half = timings["full"][0], timings["half"][0]
    assert full.device == torch.cuda.get_device_name()
    assert full.threads is None
    assert full.peak_bytes is not None
    assert half.peak_bytes is not None
    assert full.peak_bytes > half.peak_bytes > 4 * cost.parameters(models["half"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_a_small_model_waits_for_launches_until_the_batch_is_large() -> None:
    model = bert(4).cuda()
    batch = synthetic_batch(model, 1, LENGTH)
    [timing] = cost.measure_inference({"full": model}, [batch], rounds=6)["full"]
    share = cost.launch_share(timing.median_ms / 1000, cost.replayed_seconds(model, batch))
    assert share is not None
    assert share > 0.5
    assert measure_peak({"full": model}, synthetic_batch(model, 32, LENGTH))["full"].batch > 32
