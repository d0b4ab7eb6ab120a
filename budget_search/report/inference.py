"""A report's records of inference speed: the time of a batch, and the throughput. Part of ``entries``."""

from __future__ import annotations

from dataclasses import dataclass, field

from budget_search.core.serialization import OMIT_IF_NONE


@dataclass(frozen=True)
class Quantiles:
    """The median and the 10 % and 90 % quantiles of repeated measurements."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval; ``low`` and ``high`` are None if it was measured only once."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class InferencePoint:
    """Time of one forward pass over ``batch`` examples of ``length`` tokens, and the conditions it was measured in.

    ``length`` is 0 if a user's objective reported the time, because the length is then unknown.

    ``saved`` is the fraction of the baseline's time that is saved; absent in the baseline. ``peak_bytes`` is device
    memory, weights included; None where the device does not count it (CPU). ``launch_share`` is the fraction of the
    time in which a GPU waits for kernel launches; absent without a GPU, or if it could not be measured.
    """

    batch: int
    length: int
    ms: Quantiles
    saved: Interval | None = field(default=None, metadata=OMIT_IF_NONE)
    device: str = ""
    dtype: str = ""
    threads: int | None = None
    rounds: int | None = None
    peak_bytes: int | None = None
    launch_share: float | None = field(default=None, metadata=OMIT_IF_NONE)

    @property
    def is_launch_bound(self) -> bool:
        """Whether launch overhead dominates: it is more than half of the time."""
        return self.launch_share is not None and self.launch_share > 0.5


@dataclass(frozen=True)
class ThroughputPoint:
    """Throughput on ``examples`` examples of held_out in batches of ``batch`` (Poor Man's BERT, Table 3).

    ``saved`` is the fraction of the baseline's time that is saved; absent in the baseline.
    """

    batch: int
    examples: int
    examples_per_second: float
    saved: Interval | None = field(default=None, metadata=OMIT_IF_NONE)


@dataclass(frozen=True)
class PeakThroughput:
    """Throughput at the batch size that saturates a GPU: examples of ``length`` tokens in batches of ``batch``.

    This is the smallest batch size from which doubling speeds the baseline up by less than a tenth. ``saved`` is
    the fraction of the baseline's time that is saved; absent in the baseline.
    """

    batch: int
    length: int
    examples_per_second: float
    saved: Interval | None = field(default=None, metadata=OMIT_IF_NONE)
