"""Shared by all plots: colours, axes, and output as PNG, SVG, and SVG inside an HTML page.

The colours are the colour-blind-safe palette of Okabe and Ito; markers differ in shape as well. A marker's
``gid`` is ``TOOLTIP`` and the text of its tooltip.
"""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar
from xml.etree import ElementTree

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Subject = TypeVar("Subject")

# The role of a colour in a page, and the colour in a file.
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
TOOLTIP = "tip: "
# Inches. A picture takes half the width of a page on a desktop, and all of it on a phone; both are legible.
WIDTH = 5.2
MIN_HEIGHT = 1.5
MARKERS = ("^", "v", "s", "P", "X", "D", "d", "o")
STRATEGY_COLOURS = (ORANGE, GREEN, PURPLE, YELLOW, MUTED, SKY, INK, BLUE)
"""In the order of ``strategy_averages.STRATEGIES``."""
STYLE = {
    "font.size": 10,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "figure.facecolor": PAPER,
    "axes.facecolor": "none",
    "savefig.facecolor": PAPER,
    # Text stays text, for search, screen readers and the font of the page.
    "svg.fonttype": "none",
    "svg.hashsalt": "budget-search",
}
DOTS_PER_INCH = 200
SVG = "{http://www.w3.org/2000/svg}"
LINK = "{http://www.w3.org/1999/xlink}href"


def new_axes(height: float, space: float = 0) -> Axes:
    """Axes in a new figure, ``height`` inches high, with ``space`` inches around them."""
    figure = Figure(figsize=(WIDTH, max(height + space, MIN_HEIGHT)), layout="constrained")
    return figure.add_subplot()


def figure_of(axes: Axes) -> Figure:
    """The figure of these axes."""
    figure = axes.figure
    assert isinstance(figure, Figure)
    return figure


def mark(axes: Axes, x: float, y: float, marker: str, tip: str, **style: object) -> None:
    """One marker with a tooltip."""
    axes.plot([x], [y], marker, gid=TOOLTIP + tip, zorder=4, **style)  # type: ignore[arg-type]


def legend(axes: Axes, entries: Mapping[str, Mapping[str, object]]) -> None:
    """A legend above the axes, in one line: each label with the style of its line."""
    for label, style in entries.items():
        axes.plot([], [], label=label, **style)  # type: ignore[arg-type]
    axes.figure.legend(loc="outside upper center", ncols=len(entries), columnspacing=1.1, handletextpad=0.4,
                       handlelength=1.6)  # fmt: skip


def draw_pictures(pictures: Mapping[str, Callable[[Subject], Figure | None]], subject: Subject) -> dict[str, Figure]:
    """The pictures that apply to the subject, by name, in the shared style."""
    # matplotlib logs the caches that it builds.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    figures = {}
    with rc_context(STYLE):  # type: ignore[arg-type]
        for name, picture in pictures.items():
            if (figure := picture(subject)) is not None:
                # Laid out once, so that all files have the same layout.
                figure.draw_without_rendering()
                figure.set_layout_engine("none")
                figures[name] = figure
    return figures


def save(figures: Mapping[str, Figure], folder: Path) -> list[Path]:
    """Every picture as PNG and as SVG. Raises OSError where that cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, figure in figures.items():
        for ending in ("png", "svg"):
            path = folder / f"{name}.{ending}"
            path.write_bytes(content(figure, ending))
            written.append(path)
    return written


def content(figure: Figure, ending: str) -> bytes:
    """The bytes of a PNG or SVG file."""
    file = io.BytesIO()
    metadata = {"Date": None} if ending == "svg" else {}
    with rc_context(STYLE):  # type: ignore[arg-type]
        figure.savefig(file, format=ending, dpi=DOTS_PER_INCH, bbox_inches="tight", metadata=metadata)
    return file.getvalue()


def inline(figure: Figure, name: str, description: str) -> str:
    """An ``<svg>`` element for an HTML page that has a CSS variable ``--plot-ROLE`` for every role of ``COLOURS``."""
    root = ElementTree.fromstring(content(figure, "svg"))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{SVG}metadata", f"{SVG}style") or child.tag.startswith("{http://www.w3.org/1999/02/"):
                parent.remove(child)
    # The page draws the background.
    background = next(element for element in root.iter(f"{SVG}g") if element.get("id") == "patch_1")
    background.clear()
    _rename_ids(root, name)
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.attrib |= {"role": "img", "aria-label": description, "class": "plot"}
    text = ElementTree.tostring(root, encoding="unicode").replace("ns0:", "").replace(":ns0", "")
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    for role, colour in COLOURS.items():
        text = text.replace(colour, f"var(--plot-{role})")
    return re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 var(--font)", text)


def _rename_ids(root: ElementTree.Element, name: str) -> None:
    """Turn the ids of tooltips into titles, drop unused ids, and prefix the others with the picture's name."""
    used = set(re.findall(r"#([\w-]+)", " ".join(value for e in root.iter() for value in e.attrib.values())))
    for element in root.iter():
        label = element.attrib.pop("id", "")
        if label.startswith(TOOLTIP):
            title = ElementTree.Element(f"{SVG}title")
            title.text = label.removeprefix(TOOLTIP)
            element.insert(0, title)
        elif label in used:
            element.set("id", f"{name}-{label}")
        for attribute, value in list(element.attrib.items()):
            if attribute == LINK:
                del element.attrib[LINK]
                element.set("href", value.replace("#", f"#{name}-"))
            elif "url(#" in value:
                element.set(attribute, value.replace("url(#", f"url(#{name}-"))
