"""What the README says is so: its snippets run, its files exist, every module has its line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from budget_search.arguments import build_parser

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
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
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
    run = build_parser()._subparsers._group_actions[0].choices["run"]  # type: ignore[union-attr, index]
    known = {option for action in run._actions for option in action.option_strings}
    # Options of other programs, and of the scripts in examples/, are theirs.
    ours = re.sub(r"python examples/[^`\n]*", "", README.replace("pip install -c", ""))
    used = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", ours)) - {"--durations"}
    assert used <= known, used - known
