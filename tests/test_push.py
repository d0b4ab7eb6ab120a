"""An export on the hub: what was exported arrives whole, and whatever goes wrong leaves the export as it is."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from tests import standin, tiny

Push = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def hub() -> Iterator[standin.Hub]:
    with standin.serving({}) as hub:
        yield hub


@pytest.fixture
def push(hub: standin.Hub, sst2_study: Path, tmp_path: Path) -> Push:
    """Export the study's answer into ``out`` and push it, with a token unless another environment is given."""

    def run(*options: str, **env: str) -> subprocess.CompletedProcess[str]:
        command = ["export", str(sst2_study), "--delta", "0.05", "--output", "out", *options]
        return tiny.run(command, tmp_path, tiny.environment(tmp_path, **{"HF_ENDPOINT": hub.url, **env}))

    return run


def test_the_folder_arrives_whole(push: Push, hub: standin.Hub, tmp_path: Path) -> None:
    done = push("--push-to-hub", "me/smaller", "--private", HF_TOKEN=standin.TOKEN)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-1] == f"uploaded to {hub.url}/me/smaller"
    assert hub.private == {"me/smaller": True}
    assert hub.uploaded["me/smaller"] == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    card = ModelCard(hub.uploaded["me/smaller"]["README.md"].decode())
    assert "classify = pipeline('text-classification', 'me/smaller')" in card.text
    assert card.data.base_model is None, "a model in a folder of ours is nowhere on the hub"
    assert standin.TOKEN not in done.stdout + done.stderr
    assert all(standin.TOKEN.encode() not in content for content in hub.uploaded["me/smaller"].values())


@pytest.mark.parametrize(
    ("repository", "token", "message"),
    [
        ("me/smaller", "hf_aTokenThatNobodyKnows", "the hub does not know the token"),
        ("they/smaller", standin.TOKEN, "the token may not write to they/smaller"),
        ("me/public", standin.TOKEN, "me/public is there already and public"),
    ],
)
def test_what_the_hub_refuses_stays_here(
    repository: str, token: str, message: str, push: Push, hub: standin.Hub, tmp_path: Path
) -> None:
    hub.private["me/public"] = False
    done = push("--push-to-hub", repository, "--private", HF_TOKEN=token)
    assert done.returncode == 1
    [exported, line] = done.stderr.splitlines()
    assert exported.startswith("exported to out")
    assert message in line
    assert "the export in out is whole" in line
    assert token not in done.stderr
    assert (tmp_path / "out" / "model.safetensors").is_file()
    assert hub.uploaded == {}


def test_without_a_network_it_stays_here(push: Push, tmp_path: Path) -> None:
    done = push("--push-to-hub", "me/smaller", HF_TOKEN=standin.TOKEN, HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 1
    line = done.stderr.splitlines()[-1]
    assert "the hub cannot be reached" in line
    assert "`hf upload me/smaller out` sends it later" in line
    assert (tmp_path / "out" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("options", "env", "message"),
    [
        (["--push-to-hub", "a/b/c"], {"HF_TOKEN": standin.TOKEN}, "--push-to-hub a/b/c: no name of a repository"),
        (["--push-to-hub", "me/smaller"], {}, "--push-to-hub needs a token"),
        (["--push-to-hub", "me/smaller"], {"HF_HUB_OFFLINE": "1", "HF_TOKEN": standin.TOKEN}, "needs the network"),
        (["--private"], {}, "--private says who sees what --push-to-hub uploads"),
    ],
)
def test_what_cannot_be_pushed_is_said_before_anything_is_exported(
    options: list[str], env: dict[str, str], message: str, push: Push, hub: standin.Hub, tmp_path: Path
) -> None:
    done = push(*options, **env)
    assert (done.returncode, done.stdout) == (2, "")
    [line] = done.stderr.splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()
    assert hub.requests == []
