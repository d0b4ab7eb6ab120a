"""What the README says is so: its snippets run, its files exist, every module has its line."""

from __future__ import annotations

import re
import shlex
from functools import partial
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

import budget_search
from budget_search.cli.options import request_from
from budget_search.cli.parser import COMMANDS, build_parser, parse
from tests import tiny

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf8")
SNIPPETS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


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


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#:]+)\)", README)
    assert len(targets) > 10
    for target in targets:
        assert (ROOT / target).exists(), target


def test_every_module_has_its_line_in_the_file_map() -> None:
    rows = [line.split("|")[1] for line in README.splitlines() if line.startswith("| `")]
    mapped = {name.rstrip("/") for row in rows for name in re.findall(r"`([\w/]+)`", row)}
    modules = {
        path.stem if path.is_file() else path.name
        for path in (ROOT / "budget_search").iterdir()
        if not path.name.startswith(("_", ".")) and (path.is_dir() or path.suffix == ".py")
    }
    assert mapped == modules


def test_options_named_in_the_readme_exist() -> None:
    commands = build_parser()._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    known = {option for each in commands.values() for action in each._actions for option in action.option_strings}  # type: ignore[union-attr]
    # Options of other programs, and of the scripts in examples/, are theirs.
    ours = re.sub(
        r"(python examples/|python -m tests|dask (scheduler|worker) )[^`\n]*", "", README.replace("pip install -c", "")
    )
    used = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", ours)) - {"--durations"}
    assert used <= known, used - known


def test_commands_in_the_readme_are_understood() -> None:
    commands = re.findall(rf"^budget-search (?:--|(?:{'|'.join(COMMANDS)}) ).*", README, flags=re.MULTILINE)
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
