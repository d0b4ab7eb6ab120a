"""What a search tells while it runs: on a terminal a bar with what is known by then, elsewhere plain lines."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from rich.console import Console as Terminal

from budget_search.cli.progress import COLUMNS, Console
from budget_search.core.config import RECIPES, SearchConfig
from budget_search.core.layers import LayerSet
from budget_search.core.trial import FULL_RUNG, Job, Trial, TrialKey
from budget_search.data.tokenization import EncodedSplit, EncodedTask
from budget_search.engine.device import Device
from tests.worlds import World, settings

SPLIT = EncodedSplit(np.zeros(2, np.int32), None, np.array([0, 1, 2]), np.array([0, 1]))
TASK = EncodedTask(
    dict.fromkeys(("train", "selection", "certification", "held_out"), SPLIT),
    ("no", "yes"),
    "accuracy",
    (),
    0,
    0,
    False,
)
COLOUR = re.compile(r"\x1b\[[\d;]*m")


@pytest.fixture
def config() -> SearchConfig:
    return SearchConfig(
        task="demo", task_digest="0", metric="accuracy", text_columns=("text",), label_column="label", model="demo",
        model_digest="0", recipe=RECIPES["quick"], splits="carved", device="cpu", precision="fp32",
    )  # fmt: skip


def console(*, terminal: bool) -> tuple[Console, io.StringIO]:
    """One that writes to memory instead of stderr, of this width."""
    file, found = io.StringIO(), Console()
    found._terminal = Terminal(file=file, force_terminal=terminal, width=COLUMNS, highlight=False, soft_wrap=True)
    return found, file


def run(layers: LayerSet, seed: int) -> Trial:
    return World().measure(Job(TrialKey(layers, FULL_RUNG, seed), "certification"))


def test_the_bar_shows_what_is_confirmed_and_fits_the_terminal(config: SearchConfig) -> None:
    shown, file = console(terminal=True)
    full, smaller = LayerSet.full(12), LayerSet.dropping([4, 8], 12)  # of small effects
    known = [run(full, seed) for seed in (42, 43, 44)]
    shown.planned(settings(), config, TASK, Device("cpu", "fp32"), 2, known)
    try:
        for seed in (42, 43):
            shown.started(Job(TrialKey(smaller, FULL_RUNG, seed), "certification"))
        shown.stage("both at work")
        for seed in (42, 43):
            shown.finished(run(smaller, seed))
        assert "so far" not in file.getvalue()  # two seeds of three
        shown.finished(run(smaller, 44))
    finally:
        shown.close()
    text = re.sub(r"\x1b\[[?\d;]*[A-Za-z]", "", file.getvalue())
    assert "3 evaluations of this study" in text
    assert "nothing confirmed yet" in text
    assert "nothing confirmed yet; 2 of 2 workers busy, 3 reused" in text
    assert "best so far: 10 of 12 layers, 0.07 points lost; 0 of 2 workers busy, 3 reused" in text
    bars = [line for line in re.split(r"[\r\n]", text) if " fine-tunes left " in line]
    facts = [line for line in text.splitlines() if re.match(r"  \w|   {9}", line)]
    assert max(map(len, [*bars, *facts])) <= COLUMNS


def test_no_colours_and_no_bar_where_there_is_no_terminal(config: SearchConfig) -> None:
    shown, file = console(terminal=False)
    shown.planned(settings(), config, TASK, Device("cpu", "fp32"), 2, [])
    shown.finished(run(LayerSet.full(12), 42))
    shown.answered(1.0, LayerSet.dropping([4, 8], 12))
    shown.close()
    assert "\x1b" not in file.getvalue()
    assert "fine-tunes" not in file.getvalue()
    assert "full run, seed 42: 90.00 on certification" in file.getvalue()
    assert "within 1 point: 10 layers (0-3,5-7,9-11) of 12" in file.getvalue()


def test_no_color_is_heeded_on_a_terminal(monkeypatch: pytest.MonkeyPatch, config: SearchConfig) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    shown, file = console(terminal=True)
    shown.planned(settings(), config, TASK, Device("cpu", "fp32"), 2, [])
    shown.finished(run(LayerSet.full(12), 42))
    shown.close()
    codes = [code for found in COLOUR.findall(file.getvalue()) for code in found[2:-1].split(";")]
    assert "layers 0-11" in file.getvalue()
    assert not [code for code in codes if code[:1] in "39" and len(code) == 2], codes


def test_quiet_says_nothing(config: SearchConfig, capsys: pytest.CaptureFixture[str]) -> None:
    quiet = Console(quiet=True)
    quiet.planned(settings(), config, TASK, Device("cpu", "fp32"), 2, [])
    quiet.finished(run(LayerSet.full(12), 42))
    quiet.close()
    assert capsys.readouterr() == ("", "")
