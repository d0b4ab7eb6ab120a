"""Numbers, shares and durations as text. Report values are rounded only here and in ``renderers``."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

NO_VALUE = "-"


def printable(text: str) -> str:
    """The text on one line, with control characters escaped."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def points(value: float | None) -> str:
    """``0.60``: two decimals, never ``-0.00``."""
    return NO_VALUE if value is None else f"{value:.2f}".replace("-0.00", "0.00")


def percent(fraction: float | None) -> str:
    return NO_VALUE if fraction is None else f"{round(100 * fraction)} %"


def share(fraction: float) -> str:
    """``10.4 %``: one decimal, for shares where whole per cents are too coarse."""
    return f"{100 * fraction:.1f} %"


def tolerance(delta: float) -> str:
    """``1 point`` for 0.01."""
    amount = f"{100 * delta:.4g}"
    return f"{amount} point" if amount == "1" else f"{amount} points"


def count(number: int | None) -> str:
    """``116.7 M``; all digits below a million."""
    if number is None:
        return NO_VALUE
    return f"{number / 1e6:,.1f} M" if number >= 1_000_000 else f"{number:,}"


def duration(seconds: float) -> str:
    """``4.1 s``, ``3 min 20 s`` or ``1 h 12 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def with_spread(score: float, std: float | None) -> str:
    """``89.51 +- 0.12``: the mean and the standard deviation over seeds; only the mean if ``std`` is None."""
    return points(score) if std is None else f"{points(score)} +- {points(std)}"


def milliseconds(ms: float) -> str:
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.1f}" if ms >= 10 else f"{ms:.2f}"


def three_digits(number: float) -> str:
    """``21,300``, ``130``, ``4.32``."""
    return f"{float(f'{number:.3g}'):,.10g}"


def pairs(values: Mapping[str, Any]) -> str:
    """``name standard, epochs 3``: the items of a mapping; None, meaning no limit, prints as ``all``."""
    return ", ".join(f"{name.replace('_', ' ')} {_format_value(value)}" for name, value in values.items())


def _format_value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(str, value))
    return "all" if value is None else str(value)


def plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def timestamp() -> str:
    """The present time in UTC, ISO 8601 to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
