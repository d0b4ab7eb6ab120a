"""Which layers stay: the candidate everything else is about, and the paper's fixed families of candidates.

Indices are 0-based positions in the original model, input side first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from budget_search.core.errors import UsageError


@dataclass(frozen=True, order=True)
class LayerSet:
    """The layers that stay of a model with ``total`` layers; printed ``0-4,7 of 12``.

    Raises UsageError for a set that is empty, repeated, unordered or out of range.
    """

    kept: tuple[int, ...]
    total: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "kept", tuple(self.kept))
        allowed = f"allowed: ascending, different numbers from 0 to {self.total - 1}"
        if self.total < 1:
            raise UsageError(f"a model has at least one layer, received a total of {self.total}")
        if any(not isinstance(index, int) or isinstance(index, bool) for index in self.kept):
            raise UsageError(f"layer numbers are whole numbers, received {list(self.kept)!r}; {allowed}")
        if not self.kept:
            raise UsageError(f"no layer would stay, received an empty set; {allowed}")
        if self.kept[0] < 0 or max(self.kept) >= self.total:
            raise UsageError(f"layer number out of range, received {list(self.kept)} of {self.total}; {allowed}")
        if any(low >= high for low, high in zip(self.kept, self.kept[1:], strict=False)):
            raise UsageError(f"layer numbers repeated or not ascending, received {list(self.kept)}; {allowed}")

    @classmethod
    def full(cls, total: int) -> LayerSet:
        return cls(tuple(range(total)), total)

    @classmethod
    def dropping(cls, dropped: Iterable[int], total: int) -> LayerSet:
        """All layers but these."""
        gone = set(dropped)
        return cls(tuple(index for index in range(total) if index not in gone), total)

    @classmethod
    def parse(cls, text: str, total: int) -> LayerSet:
        """Read ``0-4,7``, as ``compact`` prints it. Raises UsageError."""
        return cls(tuple(parse_indices(text)), total)

    @property
    def depth(self) -> int:
        return len(self.kept)

    @property
    def dropped(self) -> tuple[int, ...]:
        stays = set(self.kept)
        return tuple(index for index in range(self.total) if index not in stays)

    @property
    def is_full(self) -> bool:
        return self.depth == self.total

    def drop(self, index: int) -> LayerSet:
        """Without one of its layers."""
        return LayerSet(tuple(kept for kept in self.kept if kept != index), self.total)

    def add(self, index: int) -> LayerSet:
        """With one more layer."""
        return LayerSet(tuple(sorted({*self.kept, index})), self.total)

    def smaller(self) -> Iterator[LayerSet]:
        """Every set with one layer less, lowest dropped layer first; none from a single layer."""
        if self.depth > 1:
            yield from (self.drop(index) for index in self.kept)

    @property
    def compact(self) -> str:
        """``0-4,7``: ranges of two or more neighbours are joined."""
        return compact_indices(self.kept)

    def __str__(self) -> str:
        return f"{self.compact} of {self.total}"


def parse_indices(text: str) -> list[int]:
    """Layer numbers from ``0-4,7``. Raises UsageError."""
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
    """``0-4,7`` for ascending indices; an empty text for none."""
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
    """Drop every other layer from the top down, of those the paper numbers odd (2.2); at most half the depth."""
    return _without(_alternate(total, dropped, parity=0), total)


def even_alternate(total: int, dropped: int) -> LayerSet | None:
    """Drop every other layer from the top down, of those the paper numbers even (2.2); at most half the depth."""
    return _without(_alternate(total, dropped, parity=1), total)


def symmetric(total: int, dropped: int) -> LayerSet | None:
    """Drop the middle layers (2.4); where it cannot be even, the bottom keeps one more."""
    low = (total - dropped + 1) // 2
    return _without(range(low, low + dropped), total)


def _alternate(total: int, dropped: int, parity: int) -> list[int]:
    # The paper numbers layers from 1, so its odd layers are our even indices.
    of_parity = [index for index in range(total - 1, -1, -1) if index % 2 == parity]
    return of_parity[:dropped] if dropped <= total // 2 else []


def _without(dropped: Iterable[int], total: int) -> LayerSet | None:
    gone = set(dropped)
    return LayerSet.dropping(gone, total) if 0 < len(gone) < total else None


FAMILIES = {
    "top": top,
    "bottom": bottom,
    "odd-alternate": odd_alternate,
    "even-alternate": even_alternate,
    "symmetric": symmetric,
}
"""The fixed families by name: ``family(total, dropped)``, None where that many cannot be dropped that way."""
