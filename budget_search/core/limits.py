"""Limits on the answer besides delta: layers, parameters, milliseconds, and layers that must be kept or dropped.

Limits restrict the answer only. The baseline is always the full model.
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
    """A limit that a layer set breaks: the option, its value, and the set's value in the same unit."""

    option: str
    allowed: str
    found: str

    def __str__(self) -> str:
        return f"{self.found} ({self.option} {self.allowed})"


@dataclass(frozen=True)
class Loss:
    """The degradation of a layer set in points: measured by ``confirmation``, or ``expected`` by the search."""

    kept: tuple[int, ...]
    depth: int
    degradation: float
    source: Literal["confirmation", "expected"]


@dataclass(frozen=True)
class BindingLimit:
    """Why no layer set within the limits is within delta.

    ``within`` is the best set that the limits allow. ``beyond`` is the smallest set within delta that breaks them, and
    ``breaches`` are the limits it breaks. Either set is None if there is none or none is known.
    """

    within: Loss | None
    beyond: Loss | None
    breaches: tuple[Breach, ...] = ()


@dataclass(frozen=True)
class Limits:
    """The conditions on the answer; no limit by default.

    ``keep`` and ``drop`` are layer numbers. ``max_params`` needs ``full_parameters`` and ``layer_parameters`` (one per
    layer). ``max_latency_ms`` needs ``latency_ms``: the time for one example at every depth, from one layer up,
    measured once per study.
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
    def from_options(cls, question: Mapping[str, Any]) -> Limits:
        """Limits from a mapping of option names, the inverse of ``given``; other names are ignored."""
        return cls(
            keep=frozenset(question.get("keep_layers", ())),
            drop=frozenset(question.get("drop_layers", ())),
            max_layers=question.get("max_layers"),
            max_params=question.get("max_params"),
            max_latency_ms=question.get("max_latency_ms"),
        )

    @property
    def given(self) -> dict[str, Any]:
        """The limits that are set, by option name, as JSON values."""
        pins = {"keep_layers": sorted(self.keep), "drop_layers": sorted(self.drop)}
        caps = {name: getattr(self, name) for name in ("max_layers", "max_params", "max_latency_ms")}
        return {name: value for name, value in {**caps, **pins}.items() if value not in (None, [])}

    @property
    def structural(self) -> Limits:
        """The limits that need no measured sizes or latencies."""
        return dataclasses.replace(self, max_params=None, max_latency_ms=None)

    @property
    def compact(self) -> str:
        """``--max-layers 8 --keep-layers 0-2``: the command-line form; empty if there are no limits."""
        return " ".join(f"--{name.replace('_', '-')} {_option_value(value)}" for name, value in self.given.items())

    def allow(self, layers: LayerSet) -> bool:
        return self.respects_pins(layers) and self.fits(layers)

    def respects_pins(self, layers: LayerSet) -> bool:
        """Whether a set keeps all layers of ``keep`` and drops all layers of ``drop``."""
        return self.keep.issubset(layers.kept) and self.drop.isdisjoint(layers.kept)

    def fits(self, layers: LayerSet) -> bool:
        """Whether a set is small and fast enough. Every subset of a set that fits also fits."""
        return (
            (self.max_layers is None or layers.depth <= self.max_layers)
            and (self.max_params is None or self.parameters(layers) <= self.max_params)
            and (self.max_latency_ms is None or self.latency_ms[layers.depth - 1] <= self.max_latency_ms)
        )

    def parameters(self, layers: LayerSet) -> int:
        """The number of parameters of a set, without building the model."""
        return self.full_parameters - sum(self.layer_parameters[index] for index in layers.dropped)

    def deepest(self, total: int) -> int:
        """The largest depth that fits, 0 if none does; if layers differ in size, the smallest ones are counted."""
        by_size = sorted(range(total), key=lambda index: self.layer_parameters[index] if self.layer_parameters else 0)
        allowed = [index for index in by_size if index not in self.drop]
        depths = range(len(allowed), 0, -1)
        return next((d for d in depths if self.fits(LayerSet(tuple(sorted(allowed[:d])), total))), 0)

    def breaches(self, layers: LayerSet) -> tuple[Breach, ...]:
        """The limits that a set breaks."""
        breaches = []
        if self.max_layers is not None and layers.depth > self.max_layers:
            breaches.append(Breach("--max-layers", f"{self.max_layers}", f"{layers.depth} layers"))
        if self.max_params is not None and (size := self.parameters(layers)) > self.max_params:
            breaches.append(Breach("--max-params", f"{self.max_params:,}", f"{size:,} parameters"))
        if self.max_latency_ms is not None and (ms := self.latency_ms[layers.depth - 1]) > self.max_latency_ms:
            breaches.append(Breach("--max-latency-ms", f"{self.max_latency_ms:g}", f"{ms:.3g} ms"))
        if missing := sorted(self.keep - set(layers.kept)):
            breaches.append(
                Breach("--keep-layers", compact_indices(sorted(self.keep)), f"without {_layers_text(missing)}")
            )
        if unwanted := sorted(self.drop & set(layers.kept)):
            breaches.append(
                Breach("--drop-layers", compact_indices(sorted(self.drop)), f"with {_layers_text(unwanted)}")
            )
        return tuple(breaches)

    def require_possible(self, total: int, undroppable: Collection[int]) -> None:
        """Raises UsageError if no smaller layer set of this model can satisfy the limits; it names the limit."""
        for option, layers in (("--keep-layers", self.keep), ("--drop-layers", self.drop)):
            if beyond := sorted(index for index in layers if not 0 <= index < total):
                raise UsageError(
                    f"{option} {compact_indices(beyond)}: the model has {total} layers, numbered 0 to {total - 1}"
                )
        if stuck := sorted(self.drop & set(undroppable)):
            raise UsageError(
                f"--drop-layers {compact_indices(stuck)}: this model requires {_layers_text(stuck)}; name others"
            )
        must_keep = self.keep | set(undroppable)
        if len(must_keep) == total:
            if not self.keep:
                raise UsageError("no layer of this model can be dropped")
            raise UsageError(f"--keep-layers {compact_indices(sorted(self.keep))}: no layer is left to drop")
        if len(self.drop) == total:
            raise UsageError(f"--drop-layers {compact_indices(sorted(self.drop))}: no layer would be kept")
        smallest = LayerSet(tuple(sorted(must_keep)) or (self._smallest_layer(total),), total)
        if broken := self.breaches(smallest):
            raise UsageError(
                f"no layer set is within {broken[0].option} {broken[0].allowed}: the smallest one has "
                f"{broken[0].found}; raise that limit"
            )

    def _smallest_layer(self, total: int) -> int:
        sizes = self.layer_parameters or (0,) * total
        return min((index for index in range(total) if index not in self.drop), key=lambda index: sizes[index])


def _layers_text(indices: Collection[int]) -> str:
    return f"layer{'' if len(indices) == 1 else 's'} {compact_indices(indices)}"


def _option_value(value: Any) -> str:
    if isinstance(value, list):
        return compact_indices(value)
    return str(value) if isinstance(value, int) else f"{value:g}"
