"""What the READMEs say is so: snippets run, files and options exist, commands are understood."""

from __future__ import annotations

import re
import shlex
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

import budget_search
from budget_search.cli.options import request_from
from budget_search.cli.parser import COMMANDS, build_parser, parse
from tests import tiny

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf8")
PAGES = ("README.md", "budget_search/README.md", "studies/README.md", "examples/README.md", "tests/README.md")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf8")


def test_keep_layers_in_five_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (snippet,) = [text for text in SNIPPETS if "keep_layers" in text]
    assert len(snippet.strip().splitlines()) == 5
    config = BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=12, intermediate_size=32, num_attention_heads=2
    )
    BertForSequenceClassification(config).save_pretrained(tmp_path / "bert-base-uncased")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(snippet, names)
    reloaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "bert-6-layers")
    assert reloaded.config.num_hidden_layers == 6
    original = names["model"].state_dict()  # type: ignore[attr-defined]
    seventh = "bert.encoder.layer.{}.output.dense.weight"
    assert reloaded.state_dict()[seventh.format(5)].equal(original[seventh.format(7)])


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = text_of(page)
    targets = [*re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text), *re.findall(r'src="([^"]+)"', text)]
    for target in targets:
        assert (ROOT / page).parent.joinpath(target).exists(), target


def test_sections_that_links_name_exist() -> None:
    for page in PAGES:
        for target, anchor in re.findall(r"\]\(([^)#:]*)#([^)]+)\)", text_of(page)):
            other = ROOT / page if not target else (ROOT / page).parent / target
            titles = re.findall(r"^#+ (.*)$", other.read_text("utf8"), flags=re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}, anchor


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 250


def test_the_architecture_names_every_room_and_no_file_that_is_gone() -> None:
    page = text_of("budget_search/README.md")
    package = ROOT / "budget_search"
    rooms = {path.name for path in package.iterdir() if (path / "__init__.py").exists()}
    assert set(re.findall(r"^(\w+)/ ", page, flags=re.MULTILINE)) == rooms
    for name in re.findall(rf"`((?:{'|'.join(rooms)})/[\w/]+)(?:\.py)?`", page):
        if not name.endswith("/mine"):
            assert (package / f"{name}.py").exists() or (package / name).is_dir(), name


@pytest.mark.parametrize("page", PAGES[:3])
def test_options_named_exist(page: str) -> None:
    commands = build_parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    known = {option for each in commands.values() for action in each._actions for option in action.option_strings}  # type: ignore[union-attr]
    # Options of other programs, and of the scripts in examples/, are theirs.
    text = text_of(page).replace("pip install -c", "")
    ours = re.sub(r"((python )?examples/|python -m tests|dask (scheduler|worker) )[^`]*", "", text)
    used = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", ours)) - {"--durations"}
    assert used <= known, used - known


def test_commands_are_understood() -> None:
    pages = "\n".join(map(text_of, PAGES))
    commands = re.findall(rf"^budget-search (?:--|(?:{'|'.join(COMMANDS)}) ).*", pages, flags=re.MULTILINE)
    assert len(commands) >= 7
    for command in commands:
        parsed = parse(shlex.split(command, comments=True)[1:])
        if parsed.command == "run":
            request_from(parsed)


def test_your_own_task_in_five_lines(tmp_path: Path, bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands there, with a tiny model and as long a fine-tune as that needs."""
    (snippet,) = [text for text in SNIPPETS if "bs.search" in text]
    rows = [f"{row['sentence']},{'five' if row['label'] else 'one'}\n" for row in tiny.reviews(420, seed=1)]
    (tmp_path / "reviews.csv").write_text("text,stars\n" + "".join(rows))
    (tmp_path / "distilbert-base-uncased").symlink_to(bert)
    monkeypatch.chdir(tmp_path)
    quick = {"epochs": 3.0, "train_examples": 200, "batch_size": 16, "lr": 3e-3, "max_length": 32, "seeds": 2}
    alone = {"workers": 1, "device": "cpu", "precision": "fp32", "layers": ["0-2"], "quiet": True}
    monkeypatch.setattr(budget_search, "search", partial(budget_search.search, **quick, **alone))
    exec(snippet, {})
    exported = AutoModelForSequenceClassification.from_pretrained(tmp_path / "smaller")
    assert set(exported.config.id2label.values()) == {"five", "one"}


def test_your_own_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands there; what is "your code" is a table: every layer but the first three is worth nothing."""
    (snippet,) = [text for text in SNIPPETS if "minimize_layers" in text]
    monkeypatch.chdir(tmp_path)

    def correct(model: tuple[tuple[int, ...], float], split: str) -> np.ndarray:
        kept, epochs = model
        return np.arange(500) < 500 * (0.9 - 0.1 * (3.0 - epochs) / 3 - 0.05 * len({0, 1, 2} - set(kept)))

    names = {"train": lambda kept, seed, epochs: (kept, epochs), "correct": correct}
    exec(snippet, names)
    assert [result.kept for result in names["report"].results] == [(0, 1, 2), (0, 1, 2)]  # type: ignore[attr-defined]
