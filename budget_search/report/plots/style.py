"""What all pictures share: colours told apart by the colour-blind, sizes, marks with tooltips, legends.

Colours are those of Okabe and Ito; shapes differ as well. A mark's ``gid`` is ``TIP`` and its tooltip.
"""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# The role of a colour on a page, and the colour in a file.
COLOURS = {
    "ink": "#1c2430",
    "muted": "#667085",
    "faint": "#d5dae2",
    "paper": "#fefefe",
    "blue": "#0072b2",
    "orange": "#d55e00",
    "green": "#009e73",
    "purple": "#aa4499",
    "yellow": "#b8860b",
    "sky": "#56b4e9",
}
INK, MUTED, FAINT, PAPER, BLUE, ORANGE, GREEN, PURPLE, YELLOW, SKY = COLOURS.values()
TIP = "tip: "
# Inches: on a page half of a desk's width, on a phone all of it, and its text can be read on both.
WIDTH = 5.2
SHORTEST = 1.5
MARKERS = ("^", "v", "s", "P", "X", "D", "d", "o")
STRATEGY_COLOURS = (ORANGE, GREEN, PURPLE, YELLOW, MUTED, SKY, INK, BLUE)
"""For the families of the paper, contribution, greedy, and what is best."""


def new_axes(height: float, space: float = 0) -> Axes:
    """Axes of a figure of their own, so many inches high and ``space`` for what stands around them."""
    figure = Figure(figsize=(WIDTH, max(height + space, SHORTEST)), layout="constrained")
    return figure.add_subplot()


def whole(axes: Axes) -> Figure:
    """The figure that these axes are in."""
    figure = axes.figure
    assert isinstance(figure, Figure)
    return figure


def mark(axes: Axes, x: float, y: float, marker: str, tip: str, **style: object) -> None:
    """One mark with a tooltip."""
    axes.plot([x], [y], marker, gid=TIP + tip, zorder=4, **style)  # type: ignore[arg-type]


def legend(axes: Axes, entries: Mapping[str, Mapping[str, object]]) -> None:
    """Above the axes, in one line: names and the style of their lines."""
    for label, style in entries.items():
        axes.plot([], [], label=label, **style)  # type: ignore[arg-type]
    axes.figure.legend(loc="outside upper center", ncols=len(entries), columnspacing=1.1, handletextpad=0.4,
                       handlelength=1.6)  # fmt: skip
