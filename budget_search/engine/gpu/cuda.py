"""Everything that calls CUDA graphs and streams."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from budget_search.engine.gpu.host_values import CaptureRefusedError, HostValues

# How often a graph is replayed to take its time.
TIMED_REPLAYS = 20

# One process has one default generator per device, and any operation may draw from it. Whoever seeds it, draws from it
# or captures draws holds this.
random_numbers = threading.RLock()


class GraphRecorder:
    """Captures on a stream of its own, with a memory pool and random numbers of its own.

    The pool is shared by the graphs of one recorder, which never run at the same time. Random numbers that a graph
    draws come from the generator state that was current while it was captured: with a state per recorder, what one lane
    draws does not depend on the others, and a capture that fails spoils no state but its own.
    """

    def __init__(self, device: str) -> None:
        self.stream = torch.cuda.Stream(device)
        self._default = torch.cuda.default_generators[torch.device(device).index]
        self._own = torch.Generator(device)
        self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def active(self) -> Iterator[None]:
        before = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(before)
        try:
            with torch.cuda.stream(self.stream):
                yield
        finally:
            before.wait_stream(self.stream)

    @contextmanager
    def alone(self) -> Iterator[None]:
        with random_numbers:
            shared = self._default.graphsafe_get_state()
            self._default.graphsafe_set_state(self._own.graphsafe_get_state())
            try:
                yield
            finally:
                self._default.graphsafe_set_state(shared)

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        # Not torch.cuda.graph: it empties the cache of the allocator, which every capture would have to fill again.
        torch.cuda.synchronize(self.stream.device)
        try:
            # Other lanes go on: only what this thread does is captured, and only its errors count.
            graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            try:
                function()
            finally:
                graph.capture_end()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise CaptureRefusedError(f"CUDA refused to capture a step: {_reason(error)}") from error
        replay: Callable[[], None] = graph.replay
        return replay

    def seed(self, seed: int) -> None:
        self._own.manual_seed(seed)


def replay_seconds(function: Callable[[], object], device: str) -> float | None:
    """Mean seconds on the device of a function's work, replayed as a graph; None where it cannot be captured.

    The function draws no random numbers.
    """
    recorder = GraphRecorder(device)
    started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    try:
        with recorder.active(), recorder.alone():
            host_values = HostValues.seen_in(function)
            with host_values.given():
                replay = recorder.capture(lambda: _run(function))
            replay()
            started.record()
            for _ in range(TIMED_REPLAYS):
                replay()
            ended.record()
            ended.synchronize()
    except (CaptureRefusedError, torch.OutOfMemoryError):
        return None
    return started.elapsed_time(ended) / 1000 / TIMED_REPLAYS


def _run(function: Callable[[], object]) -> None:
    function()


def _reason(error: BaseException) -> str:
    """The first line of the first exception: those that follow are about the capture that it broke."""
    while error.__context__ is not None:
        error = error.__context__
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def lane_fits(device: str, lanes: int) -> bool:
    """Whether there is free memory for one more lane: one and a half times the memory of each existing lane."""
    free, _ = torch.cuda.mem_get_info(device)
    return free > 1.5 * torch.cuda.memory_reserved(device) / max(1, lanes - 1)
