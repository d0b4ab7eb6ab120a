"""How fast a model predicts, as a report gives it: the time of a batch, and the throughput. Part of ``entries``."""

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
    """An estimate and its 95 % interval; without bounds where it was measured once."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class InferencePoint:
    """Time of one forward pass over ``batch`` examples of ``length`` tokens, and the conditions it was measured in.

    ``length`` is 0 where only an objective's author knows what was timed.

    ``saved`` is the fraction of the baseline's time that is saved; absent in the baseline. ``peak_bytes`` is device
    memory, weights included; None where the device does not count it (CPU). ``launch_share`` is the fraction of the
    time in which a GPU waits for kernels to be launched; absent where there is no GPU, or it could not be measured.
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
    """How fast a model predicts ``examples`` examples of held_out, ``batch`` at a time (Poor Man's BERT, Table 3).

    ``saved`` is the fraction of the baseline's time that is saved; absent in the baseline.
    """

    batch: int
    examples: int
    examples_per_second: float
    saved: Interval | None = field(default=None, metadata=OMIT_IF_NONE)


@dataclass(frozen=True)
class PeakThroughput:
    """How fast a model predicts at a batch that fills a GPU: examples of ``length`` tokens, ``batch`` at a time.

    The batch is the smallest at which doubling it gains the baseline less than a tenth. ``saved`` is the fraction of
    the baseline's time that is saved; absent in the baseline.
    """

    batch: int
    length: int
    examples_per_second: float
    saved: Interval | None = field(default=None, metadata=OMIT_IF_NONE)
