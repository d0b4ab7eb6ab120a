"""Layer sets, the candidates of a search, and the paper's fixed families of layer sets.

Indices are 0-based positions in the original model, input side first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from budget_search.core.errors import UsageError


@dataclass(frozen=True, order=True)
class LayerSet:
    """The kept layers of a model with ``total`` layers; printed as ``0-4,7 of 12``.

    Raises UsageError if the numbers are empty, repeated, unordered or out of range.
    """

    kept: tuple[int, ...]
    total: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "kept", tuple(map(_plain, self.kept)))
        allowed = f"allowed: ascending, different numbers from 0 to {self.total - 1}"
        if self.total < 1:
            raise UsageError(f"a model has at least one layer, received a total of {self.total}")
        if any(not isinstance(index, int) or isinstance(index, bool) for index in self.kept):
            raise UsageError(f"layer numbers are whole numbers, received {list(self.kept)!r}; {allowed}")
        if not self.kept:
            raise UsageError(f"at least one layer must be kept, received an empty set; {allowed}")
        if self.kept[0] < 0 or max(self.kept) >= self.total:
            raise UsageError(f"layer number out of range, received {list(self.kept)} of {self.total}; {allowed}")
        if any(low >= high for low, high in zip(self.kept, self.kept[1:], strict=False)):
            raise UsageError(f"layer numbers repeated or not ascending, received {list(self.kept)}; {allowed}")

    @classmethod
    def full(cls, total: int) -> LayerSet:
        return cls(tuple(range(total)), total)

    @classmethod
    def dropping(cls, dropped: Iterable[int], total: int) -> LayerSet:
        """All layers except these."""
        to_drop = set(dropped)
        return cls(tuple(index for index in range(total) if index not in to_drop), total)

    @classmethod
    def parse(cls, text: str, total: int) -> LayerSet:
        """Parse ``0-4,7``, the format of ``compact``. Raises UsageError."""
        return cls(tuple(parse_indices(text)), total)

    @property
    def depth(self) -> int:
        return len(self.kept)

    @property
    def dropped(self) -> tuple[int, ...]:
        kept = set(self.kept)
        return tuple(index for index in range(self.total) if index not in kept)

    @property
    def is_full(self) -> bool:
        return self.depth == self.total

    def drop(self, index: int) -> LayerSet:
        """This set without one of its layers."""
        return LayerSet(tuple(kept for kept in self.kept if kept != index), self.total)

    def add(self, index: int) -> LayerSet:
        """This set with one more layer."""
        return LayerSet(tuple(sorted({*self.kept, index})), self.total)

    def smaller(self) -> Iterator[LayerSet]:
        """Every set with one layer fewer, lowest dropped layer first; none for a single layer."""
        if self.depth > 1:
            yield from (self.drop(index) for index in self.kept)

    @property
    def compact(self) -> str:
        """``0-4,7``: two or more adjacent layers are written as a range."""
        return compact_indices(self.kept)

    def __str__(self) -> str:
        return f"{self.compact} of {self.total}"


def parse_indices(text: str) -> list[int]:
    """Parse ``0-4,7`` into layer numbers. Raises UsageError."""
    indices: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,4})(?:-(\d{1,4}))?\s*", part, flags=re.ASCII)
        if not match:
            raise UsageError(f"cannot read the layer set {text!r}: write numbers and ranges, such as 0-4,7")
        low = int(match[1])
        high = int(match[2]) if match[2] else low
        if low > high:
            raise UsageError(f"cannot read the layer set {text!r}: the range {part.strip()} runs backwards")
        indices.extend(range(low, high + 1))
    return indices


def compact_indices(indices: Iterable[int]) -> str:
    """``0-4,7`` for ascending indices; an empty string if there are none."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and runs[-1][1] == index - 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


def top(total: int, dropped: int) -> LayerSet | None:
    """Drop the uppermost layers (Poor Man's BERT, 2.1)."""
    return _without(range(total - dropped, total), total)


def bottom(total: int, dropped: int) -> LayerSet | None:
    """Drop the lowest layers (2.5)."""
    return _without(range(dropped), total)


def odd_alternate(total: int, dropped: int) -> LayerSet | None:
    """Drop layers that the paper numbers odd, from the top down (2.2); at most half of all layers."""
    return _without(_alternate(total, dropped, parity=0), total)


def even_alternate(total: int, dropped: int) -> LayerSet | None:
    """Drop layers that the paper numbers even, from the top down (2.2); at most half of all layers."""
    return _without(_alternate(total, dropped, parity=1), total)


def symmetric(total: int, dropped: int) -> LayerSet | None:
    """Drop the middle layers (2.4); if the rest is odd, one more layer is kept at the bottom than at the top."""
    low = (total - dropped + 1) // 2
    return _without(range(low, low + dropped), total)


def _alternate(total: int, dropped: int, parity: int) -> list[int]:
    # The paper numbers layers from 1, so its odd layers are our even indices.
    of_parity = [index for index in range(total - 1, -1, -1) if index % 2 == parity]
    return of_parity[:dropped] if dropped <= total // 2 else []


def _without(dropped: Iterable[int], total: int) -> LayerSet | None:
    to_drop = set(dropped)
    return LayerSet.dropping(to_drop, total) if 0 < len(to_drop) < total else None


FAMILIES = {
    "top": top,
    "bottom": bottom,
    "odd-alternate": odd_alternate,
    "even-alternate": even_alternate,
    "symmetric": symmetric,
}
"""The fixed families by name: ``family(total, dropped)`` is None if the family has no set of that size."""


def _plain(index: Any) -> Any:
    """A whole number of another library, such as numpy's, as an int."""
    return int(index) if hasattr(index, "__index__") and not isinstance(index, bool) else index
