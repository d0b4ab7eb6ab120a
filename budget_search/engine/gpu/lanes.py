"""Lanes run fine-tunes concurrently on a GPU, each with its own stream, buffers and random numbers.

A lane keeps the graphs of the model shapes that it has trained, since a search trains the same depths again and again.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from transformers import PreTrainedModel

from budget_search.core.config import Recipe
from budget_search.engine.batches import DeviceSplit
from budget_search.engine.device import Device
from budget_search.engine.gpu.captured_steps import CapturedSteps, Recorder
from budget_search.engine.gpu.host_values import CaptureRefusedError
from budget_search.engine.schedule import Schedule
from budget_search.engine.sizes import largest_that_pays

MOST_LANES = 8


class Lanes:
    """The lanes of one device; ``new_recorder`` makes what a new lane captures with."""

    def __init__(self, device: Device, new_recorder: Callable[[], Recorder]) -> None:
        self._device, self._new_recorder = device, new_recorder
        self._free: list[Lane] = []
        self._lock = threading.Lock()

    @contextmanager
    def borrow(self, model: PreTrainedModel, train: DeviceSplit, recipe: Recipe) -> Iterator[Lane]:
        """Borrow a free lane, preferably one with graphs for this shape."""
        shape = shape_of(model, train, recipe)
        with self._lock:
            lane = max(self._free, key=lambda each: each.knows(shape), default=None)
            if lane:
                self._free.remove(lane)
        lane = lane or Lane(self._device, self._new_recorder())
        try:
            with lane.recorder.active():
                yield lane
        finally:
            with self._lock:
                self._free.append(lane)


@cache
def lanes_of(device: Device) -> Lanes | None:
    """The lanes of this process on a device; None if it is not a GPU."""
    if device.kind != "cuda":
        return None
    from budget_search.engine.gpu.cuda import GraphRecorder

    return Lanes(device, lambda: GraphRecorder(device.name))


class Lane:
    """The graphs of one lane by model shape, and why other shapes cannot have any."""

    def __init__(self, device: Device, recorder: Recorder) -> None:
        self.recorder = recorder
        self._device = device
        self._steps: OrderedDict[str, CapturedSteps] = OrderedDict()
        self._refused: dict[str, str] = {}

    def knows(self, shape: str) -> bool:
        return shape in self._steps or shape in self._refused

    def prepared(self, model: PreTrainedModel, train: DeviceSplit, recipe: Recipe, schedule: Schedule) -> CapturedSteps:
        """The captured steps for models of this shape, complete for a schedule.

        Raises CaptureRefusedError where there can be none; the steps are then to be run eagerly.
        """
        if recipe.layer_drop:
            raise CaptureRefusedError("LayerDrop skips layers at random on the host")
        key = shape_of(model, train, recipe)
        if key in self._refused:
            raise CaptureRefusedError(self._refused[key])
        try:
            steps = self._with_memory(key, model, train, recipe, schedule)
        except CaptureRefusedError as refusal:
            self._steps.pop(key, None)
            self._refused[key] = str(refusal)
            raise
        self._steps.move_to_end(key)
        return steps

    def _with_memory(
        self, key: str, model: PreTrainedModel, train: DeviceSplit, recipe: Recipe, schedule: Schedule
    ) -> CapturedSteps:
        """If memory is short, free the graphs of the least recently used shapes."""
        while True:
            try:
                if key not in self._steps:
                    self._steps[key] = CapturedSteps(model, train, recipe, self._device, self.recorder)
                self._steps[key].prepare(schedule)
                return self._steps[key]
            except torch.OutOfMemoryError as error:
                del error  # its traceback holds tensors
            self._steps.pop(key, None)
            if not self._steps:
                raise CaptureRefusedError("there is too little memory for a graph of this shape")
            self._steps.popitem(last=False)


def lanes_that_pay(rate: Callable[[int], float], fits: Callable[[int], bool]) -> int:
    """The number of lanes to use: one more while it fits into memory and raises the total speed by a tenth.

    ``rate`` is the steps per second of so many lanes together, measured when asked for.
    """
    return largest_that_pays(range(1, MOST_LANES + 1), lambda lanes: rate(lanes) if lanes == 1 or fits(lanes) else 0.0)


def shape_of(model: PreTrainedModel, train: DeviceSplit, recipe: Recipe) -> str:
    """What a graph depends on. A smaller model is what its config builds, so equal configs and equal frozen parts mean
    equal steps. A split is named by its identity: the steps that use it keep it alive."""
    trained = [name for name, each in model.named_parameters() if each.requires_grad]
    return json.dumps([model.config.to_dict(), trained, id(train), recipe.batch_size], sort_keys=True, default=str)
