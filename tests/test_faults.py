"""What machines do to a search: full disks, damaged files, lost memory. One clear line, and the study goes on."""

from __future__ import annotations

import datetime
import json
import os
import random
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import optuna
import pytest
from safetensors.numpy import save_file

import budget_search
from budget_search.core.errors import StudyError, UsageError
from budget_search.core.layers import LayerSet
from budget_search.core.trial import FULL_RUNG, Trial, TrialKey
from budget_search.models.pretrained import resolve_model
from budget_search.storage.study_folder import StudyFolder
from budget_search.storage.study_store import StudyStore
from tests import tiny
from tests.test_end_to_end import read_report, timeless

OPTIONS = [*tiny.search_options("sst2"), "--delta", "0.05", "0.06", "--quiet"]


@pytest.fixture
def fresh(tmp_path: Path, bert: Path, sst2: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in [name for name in os.environ if name.startswith("BUDGET_SEARCH_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tiny.context(tmp_path, sst2=sst2, bert=bert)


@pytest.fixture
def disk(fresh: Path) -> Iterator[Path]:
    """A disk of its own below ``studies``, to be filled and write-protected."""
    place = fresh / "studies"
    place.mkdir()
    if mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)):
        pytest.skip("a file system of its own cannot be mounted here")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def mount(*arguments: str) -> int:
    if shutil.which("mount") is None:
        return 1
    return subprocess.run(["mount", *arguments], check=False, capture_output=True).returncode


def one_line(capfd: pytest.CaptureFixture[str]) -> str:
    shown = capfd.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert line.startswith("budget-search: ")
    assert "unexpected" not in line
    return line


def goes_on_as_if_nothing_had_happened(folder: Path, undisturbed: Path) -> None:
    assert tiny.command(*OPTIONS) == 0
    study = tiny.only_study(folder / "studies")
    assert sorted(set(tiny.recorded(study))) == sorted(tiny.recorded(undisturbed))
    assert json.dumps(timeless(read_report(study))) == json.dumps(timeless(read_report(undisturbed)))


@pytest.mark.slow
def test_a_full_disk(disk: Path, sst2_study: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The disk grows a little whenever the search has ended for want of room."""
    recorded: list[int] = []
    for size in ("100k", "420k", "600k"):
        assert mount("-o", f"remount,size={size}", str(disk)) == 0
        assert tiny.command(*OPTIONS) == 1
        line = one_line(capfd)
        assert "No space left on device" in line or "disk is full" in line or "disk I/O error" in line
        studies = [path for path in disk.iterdir() if not path.name.startswith(".")]
        recorded.append(len(tiny.recorded(studies[0])) if studies else 0)
        assert [path for study in studies for path in study.rglob(".*")] == []
    assert recorded[0] == 0 < recorded[-1] < len(tiny.recorded(sst2_study))
    assert mount("-o", "remount,size=64m", str(disk)) == 0
    goes_on_as_if_nothing_had_happened(disk.parent, sst2_study)


def test_a_folder_that_may_only_be_read(disk: Path, sst2_study: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Not by its permissions, which an administrator need not heed."""
    shutil.copytree(sst2_study, disk / sst2_study.name)
    assert mount("-o", "remount,ro", str(disk)) == 0
    before = tiny.tree(disk)
    assert tiny.command(*OPTIONS) == 0
    capfd.readouterr()
    assert tiny.command(*OPTIONS, "--delta", "0.07") == 1
    assert "Read-only file system" in one_line(capfd)
    assert tiny.command(*OPTIONS, "--epochs", "2") == 2
    assert "--studies-dir" in one_line(capfd)
    assert tiny.tree(disk) == before


@contextmanager
def as_another_user() -> Iterator[None]:
    """Without root's right to read everything, if these tests run as root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_weights_that_another_user_keeps_to_himself_are_not_called_damaged() -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        folder.chmod(0o755)
        (folder / "config.json").write_text("{}")
        save_file({"weight": np.zeros(3)}, folder / "model.safetensors")
        (folder / "model.safetensors").chmod(0)
        with as_another_user(), pytest.raises(UsageError, match=r"may not read model\.safetensors"):
            resolve_model(place)


def test_a_study_file_cut_short_or_overwritten_is_never_taken_for_a_smaller_one(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "study")
    store = StudyStore.open("one", 12, folder=folder)
    for seed in range(12):
        store.append(Trial(TrialKey(LayerSet.full(12), FULL_RUNG, seed), "certification", "complete", 90.0 + seed))
        folder.outputs(store.history[-1].key, "certification").parent.mkdir(exist_ok=True)
        folder.outputs(store.history[-1].key, "certification").write_bytes(b"outputs")
    whole, expected = folder.database.read_bytes(), store.history
    draw = random.Random(0)
    cuts = [0, 50, 100, 4096, *(draw.randrange(len(whole)) for _ in range(12)), len(whole) - 1]
    damaged = [whole[:cut] for cut in cuts]
    for start in (0, 16, *range(4096, len(whole), len(whole) // 6)):
        damaged.append(whole[:start] + bytes(draw.randbytes(4096)) + whole[start + 4096 :])
    refused = 0
    for content in damaged:
        folder.database.write_bytes(content)
        try:
            assert StudyStore.open("one", 12, folder=folder).history == expected
        except StudyError as error:
            refused += 1
            assert "restore" in str(error)
    assert refused > len(damaged) / 2
    folder.database.write_bytes(whole)
    assert StudyStore.open("one", 12, folder=folder).history == expected


@pytest.mark.slow
def test_memory_that_runs_out_on_the_device(
    fresh: Path, sst2_study: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a GPU raises, raised by the model on a CPU: batches are halved, down to one example, and then it is said."""
    import torch
    from transformers import BertForSequenceClassification

    forward = BertForSequenceClassification.forward
    sizes: list[int] = []

    def starved(model: BertForSequenceClassification, *arguments: object, **named: torch.Tensor) -> object:
        sizes.append(len(named["input_ids"]))
        if len(sizes) > 40:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return forward(model, *arguments, **named)

    monkeypatch.setattr("budget_search.engine.training_step._fitted", {})
    with monkeypatch.context() as patched:
        patched.setattr(BertForSequenceClassification, "forward", starved)
        assert tiny.command(*OPTIONS) == 1
    line = one_line(capfd)
    assert "out of memory" in line
    assert "--batch-size" in line
    assert sizes[-1] == 1
    monkeypatch.setattr("budget_search.engine.training_step._fitted", {})
    goes_on_as_if_nothing_had_happened(fresh, sst2_study)


def test_numbers_that_are_none(fresh: Path, capfd: pytest.CaptureFixture[str]) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    weights = load_file(fresh / "bert" / "model.safetensors")
    weights["bert.encoder.layer.1.output.dense.bias"][0] = torch.nan
    shutil.copytree(fresh / "bert", fresh / "broken")
    save_file(weights, fresh / "broken" / "model.safetensors", metadata={"format": "pt"})
    options = [option if option != "bert" else "broken" for option in OPTIONS]
    assert tiny.command(*options) == 1
    line = one_line(capfd)
    assert "the full model could not be fine-tuned (the loss was nan" in line
    assert {kept for kept, _, _ in tiny.recorded(tiny.only_study(fresh / "studies"))} == {(0, 1, 2, 3)}


def test_a_clock_that_jumps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Into the past and the future, between all trials."""
    draw = random.Random(0)

    class Jumping(datetime.datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> datetime.datetime:
            return datetime.datetime(2026, 1, 1) + datetime.timedelta(days=draw.uniform(-500, 500))

    monkeypatch.setattr(optuna.trial._frozen.datetime, "datetime", Jumping)
    store = StudyStore.open("one", 4, folder=StudyFolder(tmp_path))
    trials = [
        Trial(TrialKey(LayerSet.full(4), FULL_RUNG, seed), "certification", "complete", 90.0) for seed in range(8)
    ]
    for trial in reversed(trials):
        store.append(trial)
    assert StudyStore.open("one", 4, folder=StudyFolder(tmp_path)).history == store.history == trials


def test_durations_come_from_clocks_that_do_not_jump() -> None:
    sources = list(Path(budget_search.__file__).parent.rglob("*.py"))
    assert len(sources) > 100
    assert [path.name for path in sources if "time.time(" in path.read_text("utf8")] == []


def test_a_device_is_held_by_one_process_at_a_time_and_free_when_that_dies(tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom budget_search.engine.device import one_of\n"
        "with one_of(('mps:0', 'mps:1')) as name:\n    print(name, flush=True)\n    time.sleep(600)\n"
    )
    env = tiny.environment(tmp_path, TMPDIR=str(tmp_path), PYTHONPATH=str(Path(__file__).parent.parent))
    processes = [start_script(script, env) for _ in range(2)]
    try:
        first, second = (process.stdout.readline().strip() for process in processes if process.stdout)
        assert {first, second} == {"mps:0", "mps:1"}
        # A third waits for whichever is free first, whatever became of its holder.
        processes.append(start_script(script, env))
        processes[1].kill()
        assert processes[2].stdout is not None
        assert processes[2].stdout.readline().strip() == second
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_a_device_named_twice_is_shared_by_two(tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom budget_search.engine.device import one_of\n"
        "with one_of(('mps:0',) * int(sys.argv[1])) as name:\n    print(name, flush=True)\n    time.sleep(600)\n"
    )
    env = tiny.environment(tmp_path, TMPDIR=str(tmp_path), PYTHONPATH=str(Path(__file__).parent.parent))
    processes = [start_script(script, env, "2") for _ in range(2)]
    try:
        assert [process.stdout.readline().strip() for process in processes if process.stdout] == ["mps:0"] * 2
        # Somebody who shares with nobody waits until the device's first place is free.
        processes.append(start_script(script, env, "1"))
        assert processes[2].stdout is not None
        assert not select.select([processes[2].stdout], [], [], 2.0)[0]
        for process in processes[:2]:
            process.kill()
        assert processes[2].stdout.readline().strip() == "mps:0"
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def start_script(script: str, env: dict[str, str], *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", script, *arguments], env=env, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_model_that_does_not_calculate_in_bf16(fresh: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoTokenizer, DebertaConfig, DebertaForMaskedLM

    tokenizer = AutoTokenizer.from_pretrained(fresh / "bert")
    DebertaForMaskedLM(
        DebertaConfig(
            vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=64, relative_attention=True, pos_att_type=["c2p", "p2c"],
        )
    ).save_pretrained(fresh / "deberta")  # fmt: skip
    tokenizer.save_pretrained(fresh / "deberta")
    capfd.readouterr()
    options = ["deberta" if option == "bert" else option for option in (*OPTIONS, "--layers", "0")]
    assert tiny.command(*options, "--precision", "bf16") == 1
    line = one_line(capfd)
    assert "does not run in bf16" in line
    assert "--precision fp32" in line
    assert tiny.command(*options, "--precision", "fp32", "--epochs", "6") == 0
