"""The embedded default, shortened: one command, no network, an answer and a checkpoint at the end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForSequenceClassification, pipeline

from budget_search.cli.main import main
from budget_search.data.demo_task import LABELS


@pytest.mark.slow
def test_a_shortened_demo_ends_with_a_report_and_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    command = (
        "--task demo --model demo --delta 0.05 --epochs 1 --train-examples 600 --seeds 1 --workers 1 --max-trials 6 "
        "--output smaller"
    )
    assert main(command.split()) == 0
    shown = capsys.readouterr()
    assert "Summary" in shown.out
    (folder,) = Path("studies").glob("demo__demo-bert__*")
    report = json.loads((folder / "report.json").read_text())
    assert report["layers_total"] == 12
    assert report["baseline"]["score"] > 60
    assert len(report["trials"]) <= 6
    (result,) = report["results"]
    assert result["confirmed"]
    exported = AutoModelForSequenceClassification.from_pretrained("smaller")
    assert exported.config.num_hidden_layers == result["depth"]
    answer = pipeline("text-classification", "smaller")(
        {"text": "Ann is taller than Tom.", "text_pair": "Tom is shorter."}
    )
    assert answer["label"] in LABELS
    assert json.loads(Path("smaller/budget_search.json").read_text())["kept"] == result["kept"]
