"""An export on the hub: what was exported arrives whole, and whatever goes wrong leaves the export as it is."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, constants

from budget_search.core.errors import BudgetSearchError
from budget_search.models.export_folder import push
from tests import standin, tiny

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def hub() -> Iterator[standin.Hub]:
    with standin.serving({}) as hub:
        yield hub


@pytest.fixture
def exporting(hub: standin.Hub, sst2_study: Path, tmp_path: Path) -> Command:
    """Export the study's answer into ``out`` with these options, by a process of its own that knows this hub alone."""

    def run(*options: str, **env: str) -> subprocess.CompletedProcess[str]:
        command = ["export", str(sst2_study), "--delta", "0.05", "--output", "out", *options]
        return tiny.run(command, tmp_path, tiny.environment(tmp_path, **{"HF_ENDPOINT": hub.url, **env}))

    return run


@pytest.mark.slow
def test_the_folder_arrives_whole(exporting: Command, hub: standin.Hub, tmp_path: Path) -> None:
    done = exporting("--push-to-hub", "me/smaller", "--private", HF_TOKEN=standin.TOKEN)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == f"uploaded to {hub.url}/me/smaller"
    assert hub.private == {"me/smaller": True}
    assert hub.uploaded["me/smaller"] == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    card = ModelCard(hub.uploaded["me/smaller"]["README.md"].decode())
    assert "classify = pipeline('text-classification', 'me/smaller')" in card.text
    assert card.data.base_model is None, "a model in a folder of ours is nowhere on the hub"
    assert standin.TOKEN not in done.stdout + done.stderr
    assert all(standin.TOKEN.encode() not in content for content in hub.uploaded["me/smaller"].values())


@pytest.fixture
def export(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("---\nlicense: mit\n---\n# Smaller\n")
    return tmp_path / "out"


@pytest.mark.parametrize(
    ("repository", "token", "message"),
    [
        ("me/smaller", "hf_aTokenThatNobodyKnows", "the hub rejected the token"),
        ("they/smaller", standin.TOKEN, "the token has no write access to they/smaller"),
        ("me/public", standin.TOKEN, "me/public already exists and is public"),
        ("me/smaller", "", "the hub cannot be reached"),
    ],
)
def test_what_the_hub_refuses_stays_here(
    repository: str, token: str, message: str, hub: standin.Hub, export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.private["me/public"] = False
    monkeypatch.setattr(constants, "ENDPOINT", hub.url if token else "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", token or standin.TOKEN)
    before = tiny.tree(export)
    with pytest.raises(BudgetSearchError, match=message) as caught:
        push(export, repository, private=True)
    assert f"the export in {export} is complete" in str(caught.value)
    assert (token or standin.TOKEN) not in str(caught.value)
    assert tiny.tree(export) == before
    assert hub.uploaded == {}


@pytest.mark.parametrize(
    ("options", "env", "message"),
    [
        (
            ["--push-to-hub", "a/b/c"],
            {"HF_TOKEN": standin.TOKEN},
            "a/b/c is not the name of a repository",
        ),
        (["--push-to-hub", "me/smaller"], {}, "--push-to-hub needs a hub token"),
        (["--push-to-hub", "me/smaller"], {"HF_HUB_OFFLINE": "1", "HF_TOKEN": standin.TOKEN}, "needs the network"),
        (["--private"], {}, "--private applies to --push-to-hub REPO"),
    ],
)
def test_what_cannot_be_pushed_is_said_before_anything_is_exported(
    options: list[str], env: dict[str, str], message: str, exporting: Command, hub: standin.Hub, tmp_path: Path
) -> None:
    done = exporting(*options, **env)
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()
    assert hub.requests == []
