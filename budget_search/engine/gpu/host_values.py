"""Keep values that a training step copies from the host on the device, because a graph cannot copy them.

While a graph is captured, nothing may be copied from the host. Some models copy tables that depend on shapes alone
(XLNet's position encodings in some versions of transformers). ``HostValues`` records the copies of an eager step;
``given`` hands them out again, in the same order, while the step is captured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class CaptureRefusedError(Exception):
    """This model's steps cannot be captured as a graph; the message says why."""


class HostValues:
    """Values that a step copied from the host, in the order of the copies, as tensors on the device."""

    def __init__(self, values: Sequence[torch.Tensor]) -> None:
        self._values = tuple(values)

    @classmethod
    def seen_in(cls, step: Callable[[], object]) -> HostValues:
        """Run a step and keep what it copies from the host."""
        watch = _Watch()
        with watch:
            step()
        return cls(watch.values)

    def __len__(self) -> int:
        return len(self._values)

    def equal(self, other: HostValues) -> bool:
        """Whether two steps copied the same values."""
        return len(self) == len(other) and all(map(torch.equal, self._values, other._values))

    @contextmanager
    def given(self) -> Iterator[None]:
        """Inside, a step finds these values on the device instead of copying them.

        Raises CaptureRefusedError for a step that copies more.
        """
        with _Given(self._values):
            yield


class _Watch(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.values: list[torch.Tensor] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if _copies_from_host(func, args, result):
            self.values.append(result.detach().clone())
        return result


class _Given(TorchDispatchMode):
    def __init__(self, values: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self._left = iter(values)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and _leaves_host(args[0], kwargs.get("device")):
            return self._next().to(dtype=kwargs.get("dtype") or args[0].dtype, copy=True)
        if func is torch.ops.aten.copy_.default and _leaves_host(args[1], args[0].device):
            return func(args[0], self._next())
        return func(*args, **kwargs)

    def _next(self) -> torch.Tensor:
        try:
            return next(self._left)
        except StopIteration:
            raise CaptureRefusedError("two steps of the same shape copy different values from the host") from None


def _copies_from_host(func: Any, args: Sequence[Any], result: Any) -> bool:
    if func is torch.ops.aten._to_copy.default:
        return _leaves_host(args[0], result.device)
    return func is torch.ops.aten.copy_.default and _leaves_host(args[1], result.device)


def _leaves_host(source: torch.Tensor, target: torch.device | None) -> bool:
    return source.device.type == "cpu" and target is not None and target.type != "cpu"
