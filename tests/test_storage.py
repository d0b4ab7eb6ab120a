"""Studies in a real PostgreSQL server, started here on a socket of its own; and passwords, which nobody gets to see."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest

from budget_search.storage.credentials import mask_passwords
from tests import tiny
from tests.test_end_to_end import read_report, timeless

PASSWORD = "hunter2-0f3c"


def programs() -> Path | None:
    """Where Debian, or the path, keeps the server's programs."""
    found = shutil.which("initdb")
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return Path(found).parent if found else places[-1].parent if places else None


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of a database that nobody else can reach: no network, a password, and a folder that goes away."""
    pytest.importorskip("psycopg", reason="the extra budget-search[postgres] is not installed")
    place = programs()
    if place is None:
        pytest.skip("there is no PostgreSQL here (Debian: apt-get install postgresql)")
    # It refuses to run as an administrator.
    owner = "postgres" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    (folder / "password").write_text(PASSWORD)
    if owner:
        for path in (folder, folder / "password"):
            shutil.chown(path, owner)
    make = ("--username=tester", "--auth=scram-sha-256", f"--pwfile={folder}/password", "--no-sync", f"{folder}/data")
    subprocess.run([place / "initdb", *make], user=owner, cwd=folder, check=True, capture_output=True)
    options = ("-c", "listen_addresses=", "-k", str(folder), "-F")
    process = subprocess.Popen(
        [place / "postgres", "-D", f"{folder}/data", *options], user=owner, cwd=folder,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert tiny.within(60, lambda: (folder / ".s.PGSQL.5432").exists())
        yield f"postgresql+psycopg://tester:{PASSWORD}@/postgres?host={folder}"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()
        shutil.rmtree(folder)


def in_database(url: str, study: str) -> list[tuple[tuple[int, ...], float, int]]:
    trials = optuna.load_study(study_name=study, storage=url).get_trials(deepcopy=False)
    kept = [tuple(sorted(int(name[6:]) for name, stays in t.params.items() if stays)) for t in trials]
    return [(k, t.user_attrs["rung"], t.user_attrs["seed"]) for k, t in zip(kept, trials, strict=True)]


@pytest.mark.slow
def test_a_search_in_postgresql_killed_and_resumed(
    server: str, tmp_path: Path, bert: Path, sst2: Path, sst2_study: Path
) -> None:
    tiny.context(tmp_path, sst2=sst2, bert=bert)
    env = tiny.environment(tmp_path)
    options = [*tiny.search_options("sst2"), "--delta", "0.05", "0.06", "--storage", server]
    told = []
    with tiny.ended(tiny.start(options, tmp_path, env)) as process:
        assert process.stderr is not None
        for line in iter(process.stderr.readline, ""):
            told.append(line)
            if sum("full run, seed" in line for line in told) >= 2:
                break
        assert PASSWORD not in titles(process.pid)
        process.send_signal(signal.SIGKILL)
    study = tiny.only_study(tmp_path / "studies")
    left = in_database(server, study.name)
    assert left
    with tiny.ended(tiny.start([*options, "-v"], tmp_path, env)) as process:
        assert process.stderr is not None
        told.append(process.stderr.readline())
        tiny.wait_for(lambda: len(in_database(server, study.name)) > len(left), process)
        process.send_signal(signal.SIGINT)
        told.extend(process.communicate())
        assert process.returncode == 130
        assert "with BUDGET_SEARCH_STORAGE set as before" in told[-1]
    done = tiny.run(options, tmp_path, env)
    assert done.returncode == 0, done.stderr
    found = in_database(server, study.name)
    assert found[: len(left)] == left
    assert set(Counter(found).values()) == {1}
    assert sorted(found) == sorted(tiny.recorded(sst2_study))
    assert not (study / "study.db").exists()
    assert timeless(read_report(study))["results"] == timeless(read_report(sst2_study))["results"]
    assert PASSWORD not in "".join([*told, done.stdout, done.stderr])
    assert [path for path in study.rglob("*") if path.is_file() and PASSWORD.encode() in path.read_bytes()] == []
    assert PASSWORD not in json.dumps(read_report(study))


def titles(process: int) -> str:
    """The command lines of a process and of all its children, as `ps` shows them to everybody."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            if process in (int(place.name), parent):
                found.append((place / "cmdline").read_text())
        except OSError:
            continue
    assert found
    return " ".join(found)


@pytest.mark.parametrize(
    ("url", "password"),
    [
        ("postgresql+psycopg://me:{}@db.example/x", "plain"),
        ("postgresql+psycopg://me:{}@db.example:5432/x", "with:colon"),
        ("postgresql+psycopg://me:{}@db.example/x", "with/slash"),
        ("postgresql+psycopg://me:{}@db.example/x", "with@at"),
        ("postgresql+psycopg://:{}@db.example/x", "nameless"),
        ("postgresql+psycopg://me@db.example/x?password={}", "in-query"),
        ("postgresql+psycopg://me@db.example/x?a=b&sslpassword={}&c=d", "key-phrase"),
    ],
)
def test_passwords_are_hidden(url: str, password: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shown = mask_passwords(f"budget-search --storage {url.format(password)} --delta 0.01")
    assert password not in shown
    assert "db.example" in shown
    assert shown.endswith(" --delta 0.01")
    # And in what the command says of a storage that it cannot reach.
    storage = ("--storage", url.format(password), "--studies-dir", str(tmp_path))
    done = tiny.command("--task", "demo", "--model", "demo", *storage)
    assert done == 2
    assert password not in capfd.readouterr().err


def test_a_url_without_a_password_is_shown_as_it_is() -> None:
    assert (
        mask_passwords("sqlite:///studies/a.db and http://x/y?z=1@2") == "sqlite:///studies/a.db and http://x/y?z=1@2"
    )
