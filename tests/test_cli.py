"""The command line: help, exit codes, where values come from, and what is refused, in one line and without a trace."""

from __future__ import annotations

import json
import os
import re
import socket
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from budget_search.app.request import Request
from budget_search.cli import parser as arguments
from budget_search.cli.main import main
from budget_search.cli.options import request_from
from budget_search.core.config import RECIPES
from budget_search.core.errors import UsageError
from budget_search.core.layers import LayerSet
from budget_search.core.trial import FULL_RUNG, Trial, TrialKey
from budget_search.core.versions import TRIED, untried
from budget_search.storage.study_folder import StudyFolder
from budget_search.storage.study_store import StudyStore
from tests import tiny

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def own_environment(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No variables of ours from outside, and a cache of file digests that is nobody's."""
    for name in [name for name in os.environ if name.startswith("BUDGET_SEARCH_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("COLUMNS", "100")


def asked(*options: str) -> Request:
    """The search that these options ask for."""
    return request_from(arguments.parse(options))


TASKS = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli", "demo")

# -- help -----------------------------------------------------------------------------------------------------------

HEAVY = ("torch", "transformers", "optuna", "numpy", "scipy", "sklearn", "datasets", "pandas", "pyarrow",
         "huggingface_hub", "joblib", "rich")  # fmt: skip
OPTIONS = (
    "--task",
    "--data-dir",
    "--text-columns",
    "--label-column",
    "--metric",
    "--validation",
    "--model",
    "--delta",
    "--strategy",
    "--layers",
    "--sampler",
    "--criterion",
    "--confidence",
    "--start-from",
    "--dry-run",
    "--max-layers",
    "--max-params",
    "--max-latency-ms",
    "--keep-layers",
    "--drop-layers",
    "--recipe",
    "--epochs",
    "--train-examples",
    "--batch-size",
    "--lr",
    "--max-length",
    "--warmup",
    "--dropping",
    "--layer-drop",
    "--freeze",
    "--distil",
    "--recovery",
    "--splits",
    "--seeds",
    "--base-seed",
    "--max-trials",
    "--max-hours",
    "--device",
    "--precision",
    "--workers",
    "--backend",
    "--scheduler",
    "--wait",
    "--reference",
    "--studies-dir",
    "--storage",
    "--study",
    "--output",
    "--format",
    "--config",
    "--offline",
    "--trust-remote-code",
    "--fail-if-none",
    "--quiet",
    "-v",
)


def test_parsing_and_help_import_nothing_heavy(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from budget_search.cli.options import request_from\nfrom budget_search.cli.parser import parse\n"
        "from budget_search.cli.main import main\n"
        "request_from(parse(['--task', 'qqp', '--model', 'xlnet-base-cased', '--delta', '0.01']))\n"
        "try:\n    main(['run', '--help'])\n"
        "except SystemExit as exit_:\n    assert exit_.code == 0\n"
        f"print('imported:', [name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    done = tiny.run_script(script, tmp_path, tiny.environment(tmp_path))
    assert done.stderr == ""
    assert done.stdout.splitlines()[-1] == "imported: []"


def test_every_option_of_a_search_is_in_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert tiny.command("run", "--help") == 0
    shown = capsys.readouterr().out
    assert [option for option in OPTIONS if not re.search(rf"(?<![\w-]){option}(?![\w-])", shown)] == []


def test_help_names_the_commands_and_the_mission(capsys: pytest.CaptureFixture[str]) -> None:
    for options in ([], ["--help"], ["-h"]):
        assert tiny.command(*options) == 0
        shown = capsys.readouterr().out
        assert "--task qqp --model xlnet-base-cased --delta 0.01" in shown
        assert all(re.search(rf"^ +{name} ", shown, re.MULTILINE) for name in arguments.COMMANDS)


@pytest.mark.parametrize("name", arguments.COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert tiny.command(name, "--help") == 0
    assert f"usage: budget-search {name}" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert tiny.command("--version") == 0
    assert re.fullmatch(r"budget-search \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_the_built_in_tasks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks"]) == 0
    shown = capsys.readouterr().out
    for name in TASKS:
        assert re.search(rf"^{name} ", shown, re.MULTILINE)
    assert re.search(r"^qqp +question1 question2 +label +accuracy f1 +363,846 +40,430", shown, re.MULTILINE)


def test_doctor_says_what_is_here(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for line in ("torch +2", "transformers +5", "devices .*cpu", "hub +not reachable"):
        assert re.search(f"^{line}", shown, re.MULTILINE), line


def test_doctor_warns_of_versions_that_were_not_tried() -> None:
    found = {name: f"{oldest}.7" for name, (oldest, _) in TRIED.items()}
    assert untried(found) == {}
    found |= {"torch": "3.0.1+cpu", "transformers": "5.2", "numpy": "unknown"}
    assert untried(found).keys() == {"torch", "transformers"}
    assert "3.0.1+cpu is untested; tested: 2.11 to " in untried(found)["torch"]


def test_what_is_installed_by_default_and_allowed_at_the_least_was_tried() -> None:
    root = Path(__file__).parent.parent
    asked = tomllib.loads((root / "pyproject.toml").read_text("utf8"))["project"]["dependencies"]
    exact = dict(line.split("==") for line in (root / "constraints.txt").read_text("utf8").splitlines() if "==" in line)
    assert untried(exact) == {}
    for name, (oldest, newest) in TRIED.items():
        assert f"{name}>={oldest},<{int(newest.partition('.')[0]) + 1}" in asked


# -- how options are written ----------------------------------------------------------------------------------------

BASE = ("--task", "qqp", "--model", "xlnet-base-cased")


@pytest.mark.parametrize(
    ("options", "deltas"),
    [
        (("--delta", "0.01"), (0.01,)),
        (("--delta", "0.01", "0.02", "0.03"), (0.01, 0.02, 0.03)),
        (("--delta", "1%", "--delta", "0.02"), (0.01, 0.02)),
        (("--delta=0.03", "--delta", "1e-2"), (0.01, 0.03)),
        (("--delta", ".5%"), (0.005,)),
        (("--delta", "0.02", "0.01", "0.02"), (0.01, 0.02)),
        ((), (0.01, 0.02, 0.03)),
    ],
)
def test_deltas(options: tuple[str, ...], deltas: tuple[float, ...]) -> None:
    assert asked(*options, *BASE).deltas == pytest.approx(deltas)
    assert asked(*BASE, *options).deltas == pytest.approx(deltas)


def test_underscores_are_dashes() -> None:
    assert asked(*BASE, "--batch_size", "8", "--max_length=64").recipe_changes == {"batch_size": 8, "max_length": 64}


def test_values_keep_their_underscores() -> None:
    request = asked(*BASE, "--data-dir", "my_data", "--study=my_study")
    assert (request.data_dir, request.study) == ("my_data", "my_study")


def test_the_command_may_be_named() -> None:
    assert asked("run", *BASE) == asked(*BASE)


@pytest.mark.parametrize(
    ("options", "further"), [((), 0), (("--certify",), 3), (("--certify", "5"), 5), (("--certify=0",), 0)]
)
def test_certify_may_name_how_many_seeds(options: tuple[str, ...], further: int) -> None:
    request = asked(*options, *BASE)
    assert (request.certify, request.seeds) == (further, 3)
    # A study that was searched without it still answers the same question.
    assert ("certify" in request.question) == bool(further)


def test_layer_sets_one_after_the_other_or_repeated() -> None:
    assert asked(*BASE, "--layers", "0-4,7", "1", "--layers", "2-3").layers == ("0-4,7", "1", "2-3")


@pytest.mark.parametrize(
    "options", [("--delta", "0.01", "STUDY"), ("STUDY", "--delta", "0.01"), ("--delta=1%", "STUDY")]
)
def test_a_study_may_follow_a_delta(options: tuple[str, ...]) -> None:
    parsed = arguments.parse(["report", *options])
    assert (parsed.studies, parsed.delta) == (["STUDY"], [0.01])


# -- where values come from -----------------------------------------------------------------------------------------


def test_command_line_before_environment_before_file_before_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("task: rte\nmodel: from-file\nepochs: 7\nlr: 1e-4\nbatch-size: 4\ndelta: [0.04, 5%]\n")
    monkeypatch.setenv("BUDGET_SEARCH_MODEL", "from-environment")
    monkeypatch.setenv("BUDGET_SEARCH_LR", "2e-4")
    monkeypatch.setenv("BUDGET_SEARCH_BATCH_SIZE", "8")
    request = asked("--config", str(file), "--batch-size", "16")
    assert (request.task, request.model) == ("rte", "from-environment")
    assert request.recipe_changes == {"epochs": 7, "lr": 2e-4, "batch_size": 16}
    assert request.deltas == (0.04, 0.05)
    assert request.seeds == 3
    monkeypatch.setenv("BUDGET_SEARCH_DELTA", "0.06 7%")
    assert asked("--config", str(file)).deltas == pytest.approx((0.06, 0.07))
    assert asked("--config", str(file), "--delta", "0.08").deltas == (0.08,)


def test_methods_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("dropping: after\nlayer-drop: 0.2\nfreeze: [embeddings, 2, 0-1]\n")
    monkeypatch.setenv("BUDGET_SEARCH_DISTIL", "0.5")
    methods = {"dropping": "after", "layer_drop": 0.2, "freeze": ("0-2", "embeddings"), "distil": 0.5}
    wanted = replace(RECIPES["quick"], **methods)
    assert asked(*BASE, "--config", str(file)).recipe_from("quick") == wanted
    options = ("--dropping", "after", "--layer-drop", "0.2", "--freeze", "0", "1", "--freeze", "2", "embeddings")
    assert asked(*BASE, *options).recipe_from("quick") == wanted
    file.write_text("dropping: finetuned\nrecovery: 0.5\n")
    recovering = asked(*BASE, "--config", str(file)).recipe_from("quick")
    assert (recovering.dropping, recovering.recovery) == ("finetuned", 0.5)
    monkeypatch.setenv("BUDGET_SEARCH_FREEZE", "embeddings 1")
    assert asked(*BASE).recipe_from("quick").freeze == ("embeddings", "1")


def test_windows_paths_in_a_file_are_taken_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("task: C:\\temp\\reviews.csv\nmodel: 'D:\\new\\bert'\ntext_columns: [a]\n")
    request = asked("--config", str(file))
    assert (request.task, request.model) == ("C:\\temp\\reviews.csv", "D:\\new\\bert")


@pytest.mark.parametrize("path", ["C:\\models\\bert", "C:\\temp\\bert"], ids=["no escape", "a tab"])
def test_a_backslash_in_double_quotes_is_explained(path: str, tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text(f'task: demo\nmodel: "{path}"\n')
    with pytest.raises(UsageError, match="a backslash begins an escape"):
        asked("--config", str(file))


def test_every_kind_of_value_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text(
        "task: a.csv\nmodel: m\ntext_columns: [a, b]\nlayers: 0-4\nseeds: 5\nconfidence: 0.9\noffline: yes\n"
        "train-examples: 100\nmax_hours: 2\ntrust-remote-code: false\n"
    )
    request = asked("--config", str(file))
    assert request.text_columns == ("a", "b")
    assert request.layers == ("0-4",)
    assert (request.seeds, request.confidence, request.max_hours) == (5, 0.9, 2.0)
    assert (request.offline, request.trust_remote_code) == (True, False)
    assert request.recipe_changes == {"train_examples": 100}


def test_switches_from_the_environment_are_obeyed(
    sst2_study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Options that do not change the search itself come from the same places as the others."""
    monkeypatch.chdir(sst2_study.parent.parent)
    monkeypatch.setenv("BUDGET_SEARCH_FORMAT", "json")
    monkeypatch.setenv("BUDGET_SEARCH_QUIET", "1")
    assert main([*tiny.search_options("sst2"), "--delta", "0.05"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["task"] == "sst2"
    assert shown.err == ""


def test_the_studies_folder_of_the_environment_is_used_by_every_command(
    sst2_study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BUDGET_SEARCH_STUDIES_DIR", str(sst2_study.parent))
    assert main(["ls"]) == 0
    assert sst2_study.name in capsys.readouterr().out
    assert main(["report", sst2_study.name]) == 0
    assert main(["ls", "--studies-dir", str(tmp_path)]) == 0
    assert "no studies" in capsys.readouterr().out


def test_trials_in_another_storage_are_counted_if_it_is_named(
    sst2_study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tmp_path / "studies" / "unfinished"
    study.mkdir(parents=True)
    for name in ("config.json", "environment.json"):
        (study / name).write_bytes((sst2_study / name).read_bytes())
    url = f"sqlite:///{tmp_path / 'central.db'}"
    store = StudyStore.open("unfinished", 4, folder=StudyFolder(study), storage=url)
    for seed in (42, 43):
        store.append(Trial(TrialKey(LayerSet.full(4), FULL_RUNG, seed), "certification", "complete", score=90.0))
    monkeypatch.chdir(tmp_path)

    def trials(*options: str) -> str:
        assert main(["ls", *options]) == 0
        return capsys.readouterr().out.splitlines()[-1].split("  ")[-3].strip()

    assert trials() == "0"
    assert trials("--storage", url) == "2"
    monkeypatch.setenv("BUDGET_SEARCH_STORAGE", url)
    assert trials() == "2"


# -- what is refused ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bad:
    """A command that is refused: its options, what the one line must say, and the exit code."""

    name: str
    options: tuple[str, ...]
    says: tuple[str, ...]
    code: int = 2
    variables: dict[str, str] = field(default_factory=dict)


def bad(name: str, options: str, *says: str, code: int = 2, **variables: str) -> Bad:
    return Bad(name, tuple(options.split()), says, code, variables)


MODEL = "--model bert"
SST2 = "--task sst2 --data-dir sst2"
GOOD_ONES = f"{SST2} {MODEL}"
COLUMNS = f"{MODEL} --text-columns text --label-column label --quiet"

ARGUMENTS = [
    bad("no task", MODEL, "--task is required"),
    bad("no model", "--task sst2", "--model is required"),
    bad("unknown command or option", "serch --task sst2", "serch"),
    bad("unknown option", f"{GOOD_ONES} --detla 0.01", "--detla"),
    bad("abbreviated option", f"{GOOD_ONES} --batch 8", "--batch"),
    bad("option without its value", "--task sst2 --model", "--model", "expected"),
    bad("zero delta", f"{GOOD_ONES} --delta 0", "--delta 0", "above 0"),
    bad("negative delta", f"{GOOD_ONES} --delta -0.01", "-0.01", "above 0"),
    bad("negative delta, scientific", f"{GOOD_ONES} --delta -1e-2", "-1e-2"),
    bad("delta nan", f"{GOOD_ONES} --delta nan", "nan", "0.01", "1%"),
    bad("delta inf", f"{GOOD_ONES} --delta inf", "inf", "0.01", "1%"),
    bad("delta minus inf", f"{GOOD_ONES} --delta -inf", "-inf"),
    bad("delta in points", f"{GOOD_ONES} --delta 1", "--delta 1", "0.01", "1%"),
    bad("delta of two points", f"{GOOD_ONES} --delta 2", "--delta 2", "0.02", "2%"),
    bad("delta of all", f"{GOOD_ONES} --delta 100%", "100%", "below 1"),
    bad("delta beyond all", f"{GOOD_ONES} --delta 250", "250", "below 1"),
    bad("delta in words", f"{GOOD_ONES} --delta small", "small", "0.01", "1%"),
    bad("one of several deltas", f"{GOOD_ONES} --delta 0.01 5", "5", "0.05", "5%"),
    bad("deltas with commas", f"{GOOD_ONES} --delta 0.01,0.02", "0.01,0.02", "not a number"),
    bad("too many seeds", f"{GOOD_ONES} --seeds 101", "--seeds 101", "100"),
    bad("too many further seeds", f"{GOOD_ONES} --seeds 90 --certify 11", "--certify 11", "from 0 to 10"),
    bad("fewer than no further seeds", f"{GOOD_ONES} --certify -1", "--certify -1"),
    bad("half a further seed", f"{GOOD_ONES} --certify 0.5", "--certify"),
    bad("certified by one seed", f"{GOOD_ONES} --criterion certified --seeds 1", "--seeds 1", "at least two"),
    bad("certified twice", f"{GOOD_ONES} --criterion certified --certify", "--certify", "leave one of them out"),
    bad("length beyond reason", f"{GOOD_ONES} --max-length 1000000", "--max-length", "1000000"),
    bad("empty task", f"{MODEL} --task=", "--task"),
    bad("delta without a value", f"{GOOD_ONES} --delta", "--delta", "expected"),
    bad("unknown strategy", f"{GOOD_ONES} --strategy gredy", "gredy", "greedy"),
    bad("sampler of another strategy", f"{GOOD_ONES} --sampler gp", "--strategy optuna", "auto"),
    bad("unknown sampler", f"{GOOD_ONES} --sampler cmaes", "cmaes", "tpe"),
    bad("unknown metric", f"{GOOD_ONES} --metric bleu", "bleu", "accuracy"),
    bad("unknown recipe", f"{GOOD_ONES} --recipe fast", "fast", "quick"),
    bad("probability 1", f"{GOOD_ONES} --probability 1", "--probability 1", "below 1"),
    bad("probability of a bound", f"{GOOD_ONES} --criterion certified --probability 0.9", "--criterion likely"),
    bad("unknown criterion", f"{GOOD_ONES} --criterion sure", "sure", "certified"),
    bad("unknown splits", f"{GOOD_ONES} --splits random", "random", "carved"),
    bad("unknown precision", f"{GOOD_ONES} --precision fp16", "fp16", "bf16"),
    bad("unknown format", f"{GOOD_ONES} --format pdf", "pdf", "table"),
    bad("no epochs", f"{GOOD_ONES} --epochs 0", "--epochs", "0"),
    bad("negative epochs", f"{GOOD_ONES} --epochs -1", "--epochs", "-1"),
    bad("epochs nan", f"{GOOD_ONES} --epochs nan", "--epochs", "nan"),
    bad("no batch", f"{GOOD_ONES} --batch-size 0", "--batch-size", "0"),
    bad("half a batch", f"{GOOD_ONES} --batch-size 1.5", "--batch-size", "1.5"),
    bad("rate in words", f"{GOOD_ONES} --lr high", "--lr", "high"),
    bad("rate of zero", f"{GOOD_ONES} --lr 0", "--lr", "0"),
    bad("rate too high", f"{GOOD_ONES} --lr 3", "--lr", "3"),
    bad("rate nan", f"{GOOD_ONES} --lr nan", "--lr", "nan"),
    bad("length too short", f"{GOOD_ONES} --max-length 2", "--max-length", "2"),
    bad("warm-up of everything", f"{GOOD_ONES} --warmup 1", "--warmup", "1"),
    bad("unknown way of dropping", f"{GOOD_ONES} --dropping later", "later", "gradual"),
    bad("every layer skipped", f"{GOOD_ONES} --layer-drop 1", "--layer-drop", "1"),
    bad("skipping nan", f"{GOOD_ONES} --layer-drop nan", "--layer-drop", "nan"),
    bad("more than all from the teacher", f"{GOOD_ONES} --distil 1.5", "--distil", "1.5"),
    bad("less than nothing from the teacher", f"{GOOD_ONES} --distil -0.5", "--distil", "-0.5"),
    bad("nobody to teach", f"{GOOD_ONES} --distil 0.5 --dropping untrained", "--distil", "--dropping untrained"),
    bad("nothing to recover", f"{GOOD_ONES} --dropping first --recovery 0.5", "--recovery", "finetuned", "first"),
    bad("no recovery", f"{GOOD_ONES} --dropping finetuned --recovery 0", "--recovery", "above 0"),
    bad("recovery nan", f"{GOOD_ONES} --dropping finetuned --recovery nan", "--recovery", "nan"),
    bad("freezing what has no name", f"{GOOD_ONES} --freeze head", "--freeze", "head", "embeddings"),
    bad("freezing backwards", f"{GOOD_ONES} --freeze 3-1", "--freeze", "3-1"),
    bad("variable with a wrong rate", GOOD_ONES, "BUDGET_SEARCH_DISTIL", "half", BUDGET_SEARCH_DISTIL="half"),
    bad("variable with a wrong way", GOOD_ONES, "--dropping", "later", BUDGET_SEARCH_DROPPING="later"),
    bad("no examples to train on", f"{GOOD_ONES} --train-examples 0", "--train-examples", "0"),
    bad("no seeds", f"{GOOD_ONES} --seeds 0", "--seeds 0"),
    bad("base seed below 0", f"{GOOD_ONES} --base-seed -1", "--base-seed -1"),
    bad("base seed too large", f"{GOOD_ONES} --base-seed 1000000", "--base-seed 1000000"),
    bad("no trials", f"{GOOD_ONES} --max-trials 0", "--max-trials 0"),
    bad("no room for the baseline", f"{GOOD_ONES} --max-trials 3", "--max-trials 3", "takes 4"),
    bad("a layer both ways", f"{GOOD_ONES} --keep-layers 3 --drop-layers 1-3", "both name 3"),
    bad("more kept than allowed", f"{GOOD_ONES} --keep-layers 0-6 --max-layers 5", "7 layers", "--max-layers allows 5"),
    bad("no layers at all", f"{GOOD_ONES} --max-layers 0", "--max-layers 0"),
    bad("no parameters", f"{GOOD_ONES} --max-params many", "--max-params", "66M"),
    bad("no time", f"{GOOD_ONES} --max-latency-ms 0", "--max-latency-ms 0"),
    bad("no hours", f"{GOOD_ONES} --max-hours 0", "--max-hours 0"),
    bad("hours nan", f"{GOOD_ONES} --max-hours nan", "--max-hours nan"),
    bad("no workers", f"{GOOD_ONES} --workers 0", "--workers 0"),
    bad("confidence of 1", f"{GOOD_ONES} --confidence 1", "--confidence 1"),
    bad("confidence in percent", f"{GOOD_ONES} --confidence 95", "--confidence 95"),
    bad("confidence nan", f"{GOOD_ONES} --confidence nan", "--confidence nan"),
    bad("several things at once", f"{GOOD_ONES} --seeds 0 --workers 0", "--seeds 0", "--workers 0"),
    bad("no such options file", f"{GOOD_ONES} --config none.yaml", "none.yaml"),
    bad("options file that is no YAML", f"{GOOD_ONES} --config broken.yaml", "broken.yaml", "YAML"),
    bad("options file that is a list", f"{GOOD_ONES} --config list.yaml", "list.yaml"),
    bad("options file with an unknown name", f"{GOOD_ONES} --config unknown.yaml", "unknown.yaml", "epocs"),
    bad("options file with a wrong value", f"{GOOD_ONES} --config wrong.yaml", "wrong.yaml", "batch_size", "many"),
    bad("options file with a wrong choice", f"{GOOD_ONES} --config choice.yaml", "gredy", "greedy"),
    bad("options file that is a folder", f"{GOOD_ONES} --config sst2", "sst2"),
    bad("variable with a wrong number", GOOD_ONES, "BUDGET_SEARCH_SEEDS", "two", BUDGET_SEARCH_SEEDS="two"),
    bad("variable with a wrong delta", GOOD_ONES, "--delta 3", "0.03", BUDGET_SEARCH_DELTA="3"),
    bad("variable with a wrong choice", GOOD_ONES, "sure", "certified", BUDGET_SEARCH_CRITERION="sure"),
    bad("variable with a wrong switch", GOOD_ONES, "BUDGET_SEARCH_OFFLINE", "maybe", BUDGET_SEARCH_OFFLINE="maybe"),
    bad("variable with a wrong metric", GOOD_ONES, "bleu", "accuracy", BUDGET_SEARCH_METRIC="bleu"),
    bad("variable with a wrong precision", GOOD_ONES, "fp16", "bf16", BUDGET_SEARCH_PRECISION="fp16"),
    bad("variable with a wrong format", GOOD_ONES, "pdf", "table", BUDGET_SEARCH_FORMAT="pdf"),
]

PLACES = [
    bad("task with a typing error", f"--task qpp {MODEL}", "qpp", "did you mean qqp"),
    bad("task in capitals", f"--task SST-2 {MODEL}", "SST-2", "sst2"),
    bad("task nobody knows", f"--task translation {MODEL}", "translation", "qqp"),
    bad("no folder of data", f"--task sst2 --data-dir nowhere {MODEL}", "nowhere"),
    bad("folder without train", f"--task sst2 --data-dir empty {MODEL}", "empty", "train"),
    bad("folder of another task", f"--task mnli --data-dir sst2 {MODEL}", "sst2", "validation_matched"),
    bad("columns of another task", f"--task qqp --data-dir sst2 {MODEL}", "question1", "sentence"),
    bad("local data for a file", f"--task reviews.csv --data-dir sst2 {COLUMNS}", "--data-dir"),
    bad("columns for a GLUE task", f"{GOOD_ONES} --text-columns text", "--text-columns", "sst2"),
    bad("metric of another kind", f"{GOOD_ONES} --metric pearson", "pearson", "sst2"),
    bad("file without named columns", f"--task reviews.csv {MODEL}", "--text-columns", "'text'"),
    bad("column that is not there", f"--task reviews.csv {MODEL} --text-columns txt", "'txt'", "'text'"),
    bad(
        "label that is not there", f"--task reviews.csv {MODEL} --text-columns text --label-column y", "'y'", "'label'"
    ),
    bad("three text columns", f"--task reviews.csv {MODEL} --text-columns a b c", "3"),
    bad("one column twice", f"--task reviews.csv {MODEL} --text-columns text --label-column text", "text"),
    bad("unreadable kind of file", f"--task notes.txt {COLUMNS}", "notes.txt", ".csv"),
    bad("file that is empty", f"--task nothing.csv {COLUMNS}", "nothing.csv", "empty"),
    bad("parquet that is none", f"--task fake.parquet {COLUMNS}", "fake.parquet"),
    bad("no such validation file", f"--task reviews.csv {COLUMNS} --validation gone.csv", "gone.csv"),
    bad("hub data without columns", f"--task hub:a/b {MODEL}", "--text-columns"),
    bad("hub data, mistyped", f"--task hub:a/b/c {MODEL} --text-columns text", "hub:a/b/c", "hub:org/name"),
    bad("model that is a file", f"{SST2} --model notes.txt", "notes.txt", "file"),
    bad("model without weights", f"{SST2} --model no-weights", "no-weights", "weights"),
    bad("model without config", f"{SST2} --model no-config", "no-config", "config.json"),
    bad("model that cannot be a name", f"{SST2} --model ./gone/model", "./gone/model"),
    bad("empty name of a model", f"{SST2} --model=", "--model"),
    bad("name that would colour the terminal", f"{MODEL} --task \x1b[31mred", "\\x1b[31mred"),
    bad("name of a study", f"{GOOD_ONES} --study ../elsewhere", "../elsewhere"),
    bad("studies below a file", f"{GOOD_ONES} --studies-dir notes.txt/studies", "notes.txt"),
    bad("studies in a file", f"{GOOD_ONES} --studies-dir notes.txt", "notes.txt"),
    bad("export into a folder of others", f"{GOOD_ONES} --output studies", "studies", "not empty", "--output"),
    bad("export into a file", f"{GOOD_ONES} --output notes.txt", "notes.txt", "--output"),
]

CONTENTS = [
    bad("freezing what the model lacks", f"{GOOD_ONES} --quiet --freeze embeddings 2 7", "--freeze 7", "4 layers, 0-3"),
    bad("header alone", f"--task header.csv {COLUMNS}", "no examples", "train"),
    bad("one example", f"--task one.csv {COLUMNS}", "one example"),
    bad("a few examples", f"--task few.csv {COLUMNS}", "6", "examples"),
    bad("one class", f"--task one-class.csv {COLUMNS}", "up", "two classes"),
    bad("labels missing", f"--task missing.csv {COLUMNS}", "label", "missing"),
    bad("labels that are scores", f"--task scores.csv {COLUMNS}", "decimals", "--metric"),
    bad("labels nobody can count", f"--task ids.csv {COLUMNS}", "different labels"),
    bad("hidden labels", f"--task hidden.csv {COLUMNS}", "-1", "hidden"),
    bad("texts missing", f"--task no-text.parquet {COLUMNS}", "text", "missing"),
    bad("texts that are numbers", f"--task numbers.csv {COLUMNS}", "text", "17"),
    bad("classes as scores", f"--task reviews.csv {COLUMNS} --metric pearson", "'up'", "number"),
    bad("official without validation", f"--task reviews.csv {COLUMNS} --splits official", "--validation"),
    bad("validation with another class", f"--task reviews.csv {COLUMNS} --validation other.csv", "sideways"),
    bad("device that is not there", f"{GOOD_ONES} --device cuda:63 --quiet", "cuda:63", "cpu"),
    bad("device nobody has", f"{GOOD_ONES} --device abacus --quiet", "abacus", "cpu"),
    bad("layers out of range", f"{GOOD_ONES} --layers 0-4 --quiet", "4", "0 to 3"),
    bad("layers in words", f"{GOOD_ONES} --layers=first --quiet", "first", "0-4,7"),
    bad("layers backwards", f"{GOOD_ONES} --layers 3-1 --quiet", "3-1"),
    bad("layers twice", f"{GOOD_ONES} --layers 1,1 --quiet", "1, 1"),
    bad("model with a broken config", f"{SST2} --model broken-config --quiet", "broken-config"),
    bad("model of an unknown kind", f"{SST2} --model unknown-kind --quiet", "unknown-kind"),
    bad("model with broken weights", f"{SST2} --model broken-weights --quiet", "broken-weights"),
    bad("model without a tokenizer", f"{SST2} --model no-tokenizer --quiet", "no-tokenizer", "tokenizer"),
    bad("model that shares its layers", f"{SST2} --model shared --quiet", "Albert", "share their weights"),
    bad("storage that is no URL", f"{GOOD_ONES} --storage nonsense --quiet", "nonsense"),
    bad("storage in no folder", f"{GOOD_ONES} --storage sqlite:///gone/a.db --quiet", "gone"),
]

STUDIES = [
    bad("report of no study", "report nobody", "nobody", "studies"),
    bad("report without a study", "report", "STUDY"),
    bad("report of a folder that is none", "report empty", "empty"),
    bad("report of an ambiguous beginning", "report twin", "twin-a", "twin-b"),
    bad("report of a delta nobody asked", "report sst2_ --delta 0.2", "0.2", "0.05"),
    bad("report of a study without one", "report unfinished", "unfinished", code=1),
    bad("report into no folder", "report sst2_ --output gone/report.md", "gone/report.md"),
    bad("report into a folder", "report sst2_ --output empty", "empty"),
    bad("report of a broken report", "report twin-a", "report.json", "twin-a", code=1),
    bad("report of another schema", "report twin-b", "twin-b", "schema", "99", code=1),
    bad("export of no study", "export nobody --delta 0.01 --output new", "nobody"),
    bad("export without a delta", "export sst2_ --output new", "--delta"),
    bad("export of two deltas", "export sst2_ --delta 0.05 0.06 --output new", "one --delta", "2"),
    bad("export of a delta nobody asked", "export sst2_ --delta 0.2 --output new", "0.2", "0.05"),
    bad("export without a place", "export sst2_ --delta 0.05", "--output"),
    bad("export into data of others", "export sst2_ --delta 0.05 --output studies", "studies", "not empty"),
    bad("export into a file of others", "export sst2_ --delta 0.05 --output notes.txt", "notes.txt"),
    bad("search with a broken config.json", f"{GOOD_ONES} --study broken-study --quiet", "config.json", code=1),
    bad(
        "search with facts lost", "SAME --study lost-facts --delta 0.07 --quiet", "config.json", "layers_total", code=1
    ),
    bad("search in a study of another task", f"{GOOD_ONES} --study unfinished --quiet", "unfinished", code=1),
    bad("search with a broken study.db", "SAME --study broken-database --delta 0.07 --quiet", "study", code=1),
    bad("search with broken examples", "SAME --study broken-examples --delta 0.07 --quiet", "examples", code=1),
    bad("search with a broken report", "SAME --study broken-report --quiet", "report.json", code=1),
]


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory, bert: Path, sst2: Path, sst2_study: Path) -> Path:
    """A folder full of things that are not what a search needs."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "sst2").symlink_to(sst2)
    (folder / "bert").symlink_to(bert)
    (folder / "empty").mkdir()
    (folder / "notes.txt").write_text("nothing of use\n")
    _write_options(folder)
    _write_tables(folder)
    _write_models(folder, bert)
    _write_studies(folder / "studies", sst2_study)
    return folder


def _write_options(folder: Path) -> None:
    (folder / "broken.yaml").write_text("task: [qqp\n")
    (folder / "list.yaml").write_text("- task\n")
    (folder / "unknown.yaml").write_text("epocs: 3\n")
    (folder / "wrong.yaml").write_text("batch-size: many\n")
    (folder / "choice.yaml").write_text("strategy: gredy\n")


def _write_tables(folder: Path) -> None:
    texts = [str(row["sentence"]) for row in tiny.reviews(60, seed=9)]

    def table(name: str, labels: list[object], texts: list[str] = texts) -> None:
        lines = ["text,label", *(f"{text},{label}" for text, label in zip(texts, labels, strict=False))]
        (folder / name).write_text("\n".join(lines) + "\n")

    two = ["up", "down"] * 30
    table("reviews.csv", two)
    table("header.csv", [])
    table("one.csv", two[:1])
    table("few.csv", two[:6])
    table("one-class.csv", ["up"] * 60)
    table("missing.csv", [*two[:30], *["nan"] * 30])
    table("scores.csv", [number / 2 for number in range(60)])
    table("ids.csv", [f"id-{number}" for number in range(60)])
    table("hidden.csv", [-1] * 60)
    table("numbers.csv", two, [str(17 + number) for number in range(60)])
    table("other.csv", ["up", "sideways"] * 8)
    (folder / "nothing.csv").write_text("")
    (folder / "fake.parquet").write_text("text,label\na,b\n")
    rows = [{"text": text, "label": label} for text, label in zip([*texts[:-1], None], two, strict=True)]
    tiny.write_parquet(folder / "no-text.parquet", rows)


def _write_models(folder: Path, bert: Path) -> None:
    def model(name: str, *left_out: str, **changed: str) -> Path:
        (folder / name).mkdir()
        for file in bert.iterdir():
            if file.name not in left_out:
                (folder / name / file.name).write_bytes(file.read_bytes())
        for file_name, content in changed.items():
            (folder / name / file_name.replace("__", ".")).write_text(content)
        return folder / name

    config = json.loads((bert / "config.json").read_text())
    shared = {**config, "model_type": "albert", "architectures": ["AlbertForMaskedLM"], "embedding_size": 16}
    model("no-weights", "model.safetensors")
    model("no-config", "config.json")
    model("no-tokenizer", "tokenizer.json", "tokenizer_config.json")
    model("broken-config", config__json="{")
    model("unknown-kind", config__json=json.dumps({**config, "model_type": "brt", "architectures": ["Brt"]}))
    model("broken-weights", model__safetensors="not weights")
    model("shared", config__json=json.dumps(shared))


def _write_studies(studies: Path, finished: Path) -> None:
    def study(name: str, **changed: str | None) -> None:
        for file in finished.rglob("*"):
            target = studies / name / file.relative_to(finished)
            if file.is_file() and "weights" not in file.parts:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())
        for file_name, content in changed.items():
            target = studies / name / file_name.replace("__", ".")
            target.unlink() if content is None else target.write_text(content)

    report = json.loads((finished / "report.json").read_text())
    config = json.loads((finished / "config.json").read_text())
    other = {**config, "config": {**config["config"], "task": "rte"}}
    study(finished.name)
    study("twin-a", report__json="{")
    study("twin-b", report__json=json.dumps({**report, "schema_version": 99}))
    study("unfinished", report__json=None, config__json=json.dumps(other))
    study("broken-study", config__json="{}")
    study("lost-facts", config__json=json.dumps({**config, "facts": {}}))
    study("broken-database", study__db="not a database, but long enough to be taken for one" * 100)
    study("broken-examples", examples__npz="not an archive")
    study("broken-report", report__json="[]")


@pytest.fixture
def at_place(place: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder; nothing in it may have changed afterwards."""
    monkeypatch.chdir(place)
    before = tiny.tree(place)
    yield place
    after = tiny.tree(place)
    assert sorted(after.keys() ^ before.keys()) == []
    assert [name for name in before if before[name] != after[name]] == []


def check_refused(row: Bad, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    for name, value in row.variables.items():
        monkeypatch.setenv(name, value)
    options = [each for option in row.options for each in (_SAME if option == "SAME" else [option])]
    code = tiny.command(*options)
    shown = capfd.readouterr()
    assert shown.out == ""
    lines = shown.err.splitlines()
    assert len(lines) == 1, shown.err
    assert len(lines[0]) < 3_000
    assert lines[0].startswith("budget-search: ")
    assert [text for text in row.says if text not in lines[0]] == [], lines[0]
    assert "unexpected" not in lines[0]
    assert "Traceback" not in lines[0]
    assert code == row.code


_SAME = tiny.search_options("sst2")


def rows(table: list[Bad]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return pytest.mark.parametrize("row", [pytest.param(row, id=row.name) for row in table])


@rows(ARGUMENTS)
def test_wrong_options(
    row: Bad, at_place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    check_refused(row, monkeypatch, capfd)


@rows(PLACES)
def test_wrong_places(
    row: Bad, at_place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    check_refused(row, monkeypatch, capfd)


@rows(CONTENTS)
def test_wrong_contents(
    row: Bad, at_place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    check_refused(row, monkeypatch, capfd)


@rows(STUDIES)
def test_wrong_studies(
    row: Bad, at_place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    check_refused(row, monkeypatch, capfd)


# -- without a network ----------------------------------------------------------------------------------------------

HUB_MODEL = "--task demo --model bert-base-uncased"
HUB_DATA = f"--task sst2 {MODEL}"
UNREACHABLE = [
    bad("model", HUB_MODEL, "bert-base-uncased", "cannot be reached", "folder"),
    bad("data", HUB_DATA, "nyu-mll/glue", "--data-dir"),
    bad("model, offline", f"{HUB_MODEL} --offline", "bert-base-uncased", "--offline"),
    bad("data, offline", f"{HUB_DATA} --offline", "nyu-mll/glue", "--data-dir"),
    bad("model, offline by variable", HUB_MODEL, "bert-base-uncased", HF_HUB_OFFLINE="1"),
]


@rows(UNREACHABLE)
def test_no_network(row: Bad, at_place: Path, tmp_path: Path) -> None:
    with socket.socket() as closed:
        # Bound, but nobody listens.
        closed.bind(("127.0.0.1", 0))
        env = tiny.environment(tmp_path, HF_ENDPOINT=f"http://127.0.0.1:{closed.getsockname()[1]}", **row.variables)
        done = tiny.run(row.options, at_place, env)
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("budget-search: ")
    assert [text for text in row.says if text not in done.stderr] == [], done.stderr
    assert done.returncode == 2
