"""Further limits on the answer, combined with delta: how many layers, parameters, milliseconds; which stay, which go.

Limits say what the answer may be, never what is measured it with: the baseline is the full model whatever they say.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from budget_search.core.errors import UsageError
from budget_search.core.layers import LayerSet, compact_indices


@dataclass(frozen=True)
class Breach:
    """A limit that a layer set breaks: the option, its value, and what the set has instead (in the limit's unit)."""

    option: str
    allowed: str
    found: str

    def __str__(self) -> str:
        return f"{self.found} ({self.option} {self.allowed})"


@dataclass(frozen=True)
class Loss:
    """Points that a layer set lost: in its full runs (``confirmation``), or as the search expects it to."""

    kept: tuple[int, ...]
    depth: int
    degradation: float
    source: Literal["confirmation", "expected"]


@dataclass(frozen=True)
class BindingLimit:
    """Why nothing within the limits is within delta: the best that they allow, the fewest layers that hold beyond
    them, and which limits those break. Either is None where there is none, or none is known."""

    within: Loss | None
    beyond: Loss | None
    breaches: tuple[Breach, ...] = ()


@dataclass(frozen=True)
class Limits:
    """What a layer set must satisfy to be the answer; no limit by default.

    ``keep`` and ``drop`` are layer numbers. ``full_parameters`` and ``layer_parameters`` (one per layer) say how large
    a set is, ``latency_ms`` (one per depth, from one layer up) how long one example takes it, measured once per study;
    they are needed where the limit of that kind is given.
    """

    keep: frozenset[int] = frozenset()
    drop: frozenset[int] = frozenset()
    max_layers: int | None = None
    max_params: int | None = None
    max_latency_ms: float | None = None
    full_parameters: int = 0
    layer_parameters: tuple[int, ...] = ()
    latency_ms: tuple[float, ...] = ()

    @classmethod
    def of(cls, question: Mapping[str, Any]) -> Limits:
        """From the names of their options, as ``asked`` gives them; other names are skipped."""
        return cls(
            keep=frozenset(question.get("keep_layers", ())),
            drop=frozenset(question.get("drop_layers", ())),
            max_layers=question.get("max_layers"),
            max_params=question.get("max_params"),
            max_latency_ms=question.get("max_latency_ms"),
        )

    @property
    def asked(self) -> dict[str, Any]:
        """The limits that are given, by the names of their options; as JSON has them."""
        pins = {"keep_layers": sorted(self.keep), "drop_layers": sorted(self.drop)}
        caps = {name: getattr(self, name) for name in ("max_layers", "max_params", "max_latency_ms")}
        return {name: value for name, value in {**caps, **pins}.items() if value not in (None, [])}

    @property
    def counted(self) -> Limits:
        """Those that need nothing measured."""
        return dataclasses.replace(self, max_params=None, max_latency_ms=None)

    @property
    def compact(self) -> str:
        """``--max-layers 8 --keep-layers 0-2``: as on the command line, empty without limits."""
        return " ".join(
            f"--{name.replace('_', '-')} {compact_indices(value) if isinstance(value, list) else f'{value:g}'}"
            for name, value in self.asked.items()
        )

    def allow(self, layers: LayerSet) -> bool:
        return self.pinned(layers) and self.fits(layers)

    def pinned(self, layers: LayerSet) -> bool:
        """Whether a set keeps and drops what it must."""
        return self.keep.issubset(layers.kept) and self.drop.isdisjoint(layers.kept)

    def fits(self, layers: LayerSet) -> bool:
        """Whether a set is small enough and fast enough. What is dropped from a set that fits leaves one that fits."""
        return (
            (self.max_layers is None or layers.depth <= self.max_layers)
            and (self.max_params is None or self.parameters(layers) <= self.max_params)
            and (self.max_latency_ms is None or self.latency_ms[layers.depth - 1] <= self.max_latency_ms)
        )

    def parameters(self, layers: LayerSet) -> int:
        """Of a set, without building it."""
        return self.full_parameters - sum(self.layer_parameters[index] for index in layers.dropped)

    def deepest(self, total: int) -> int:
        """The most layers that a set may have, 0 where no depth fits; of layers of unlike size, the smallest."""
        light = sorted(range(total), key=lambda index: self.layer_parameters[index] if self.layer_parameters else 0)
        allowed = [index for index in light if index not in self.drop]
        depths = range(len(allowed), 0, -1)
        return next((d for d in depths if self.fits(LayerSet(tuple(sorted(allowed[:d])), total))), 0)

    def breaches(self, layers: LayerSet) -> tuple[Breach, ...]:
        """The limits that a set breaks, and by how much."""
        found = []
        if self.max_layers is not None and layers.depth > self.max_layers:
            found.append(Breach("--max-layers", f"{self.max_layers}", f"{layers.depth} layers"))
        if self.max_params is not None and (size := self.parameters(layers)) > self.max_params:
            found.append(Breach("--max-params", f"{self.max_params:,}", f"{size:,} parameters"))
        if self.max_latency_ms is not None and (ms := self.latency_ms[layers.depth - 1]) > self.max_latency_ms:
            found.append(Breach("--max-latency-ms", f"{self.max_latency_ms:g}", f"{ms:.3g} ms"))
        if gone := sorted(self.keep - set(layers.kept)):
            found.append(Breach("--keep-layers", compact_indices(sorted(self.keep)), f"without {_named(gone)}"))
        if there := sorted(self.drop & set(layers.kept)):
            found.append(Breach("--drop-layers", compact_indices(sorted(self.drop)), f"with {_named(there)}"))
        return tuple(found)

    def require_possible(self, total: int, undroppable: Collection[int]) -> None:
        """Raises UsageError where no smaller layer set of this model can satisfy all limits, saying which one."""
        for option, layers in (("--keep-layers", self.keep), ("--drop-layers", self.drop)):
            if beyond := sorted(index for index in layers if not 0 <= index < total):
                raise UsageError(
                    f"{option} {compact_indices(beyond)}: the model has {total} layers, numbered 0 to {total - 1}"
                )
        if stuck := sorted(self.drop & set(undroppable)):
            raise UsageError(
                f"--drop-layers {compact_indices(stuck)}: this model cannot do without {_named(stuck)}; name others"
            )
        stays = self.keep | set(undroppable)
        if len(stays) == total:
            if not self.keep:
                raise UsageError("no layer of this model can be dropped")
            raise UsageError(f"--keep-layers {compact_indices(sorted(self.keep))}: no layer is left to drop")
        if len(self.drop) == total:
            raise UsageError(f"--drop-layers {compact_indices(sorted(self.drop))}: no layer would stay")
        smallest = LayerSet(tuple(sorted(stays)) or (self._lightest(total),), total)
        if broken := self.breaches(smallest):
            raise UsageError(
                f"no layer set is within {broken[0].option} {broken[0].allowed}: the smallest there is has "
                f"{broken[0].found}; raise that limit"
            )

    def _lightest(self, total: int) -> int:
        sizes = self.layer_parameters or (0,) * total
        return min((index for index in range(total) if index not in self.drop), key=lambda index: sizes[index])


def _named(indices: Collection[int]) -> str:
    return f"layer{'' if len(indices) == 1 else 's'} {compact_indices(indices)}"
