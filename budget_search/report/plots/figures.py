"""Pictures as PNG and SVG files, and as SVG that takes a page's colours; drawn once, by matplotlib."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar
from xml.etree import ElementTree

from matplotlib import rc_context
from matplotlib.figure import Figure

from budget_search.core.config import slug
from budget_search.report.plots.strategy_plots import STRATEGY_PICTURES
from budget_search.report.plots.study_plots import PICTURES
from budget_search.report.plots.style import COLOURS, FAINT, INK, MUTED, PAPER, TIP
from budget_search.report.report import Report
from budget_search.report.strategy_averages import averages

Subject = TypeVar("Subject")

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
    # Text stays text: to be searched, read aloud, and set in the page's own font.
    "svg.fonttype": "none",
    "svg.hashsalt": "budget-search",
}
DOTS_PER_INCH = 200
SVG = "{http://www.w3.org/2000/svg}"
LINK = "{http://www.w3.org/1999/xlink}href"


def draw(report: Report) -> dict[str, Figure]:
    """Every picture that this report has something for, by name."""
    return drawn(PICTURES, report)


def draw_averages(reports: Sequence[Report]) -> dict[str, Figure]:
    """Mean losses by strategy over the tasks of these reports: ``strategies``, with the model's name where there are
    several."""
    all_means = averages(reports)
    return {
        name if len(all_means) == 1 else f"{name}-{slug(means.model)}": figure
        for means in all_means
        for name, figure in drawn(STRATEGY_PICTURES, means).items()
    }


def drawn(pictures: Mapping[str, Callable[[Subject], Figure | None]], subject: Subject) -> dict[str, Figure]:
    """Of these pictures those that the subject has something for, in the style of all, by name."""
    # matplotlib tells of caches that it builds.
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    figures = {}
    with rc_context(STYLE):  # type: ignore[arg-type]
        for name, picture in pictures.items():
            if (figure := picture(subject)) is not None:
                # Laid out once: else every file would move things a little.
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


def inline(figure: Figure, name: str, described: str) -> str:
    """An ``<svg>`` element for an HTML page that has a CSS variable ``--plot-ROLE`` for every role of ``COLOURS``."""
    root = ElementTree.fromstring(content(figure, "svg"))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{SVG}metadata", f"{SVG}style") or child.tag.startswith("{http://www.w3.org/1999/02/"):
                parent.remove(child)
    # The sheet that everything lies on is the page's.
    sheet = next(element for element in root.iter(f"{SVG}g") if element.get("id") == "patch_1")
    sheet.clear()
    _own_names(root, name)
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.attrib |= {"role": "img", "aria-label": described, "class": "plot"}
    text = ElementTree.tostring(root, encoding="unicode").replace("ns0:", "").replace(":ns0", "")
    text = re.sub(r' xmlns(:\w+)?="[^"]*"', "", text)
    for role, colour in COLOURS.items():
        text = text.replace(colour, f"var(--plot-{role})")
    return re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 var(--font)", text)


def _own_names(root: ElementTree.Element, name: str) -> None:
    """Tooltips out of their ids; of the other ids those that are used, and different on a page of several pictures."""
    used = set(re.findall(r"#([\w-]+)", " ".join(value for e in root.iter() for value in e.attrib.values())))
    for element in root.iter():
        label = element.attrib.pop("id", "")
        if label.startswith(TIP):
            title = ElementTree.Element(f"{SVG}title")
            title.text = label.removeprefix(TIP)
            element.insert(0, title)
        elif label in used:
            element.set("id", f"{name}-{label}")
        for attribute, value in list(element.attrib.items()):
            if attribute == LINK:
                del element.attrib[LINK]
                element.set("href", value.replace("#", f"#{name}-"))
            elif "url(#" in value:
                element.set(attribute, value.replace("url(#", f"url(#{name}-"))
