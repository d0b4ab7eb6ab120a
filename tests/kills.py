"""Kill a search repeatedly, resume it, and check: no trial is lost or repeated, and the answer is the same.

    python -m tests.kills --kills 200

Evaluations are simulated (tests/worlds.py); the study, its database, its files and its lock are real. A search is
killed by SIGKILL after some records, at random moments, or inside a write, and started again until it finishes. A
journal outside the study records every evaluation that started and every trial that was recorded.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tabulate import tabulate

from budget_search.core.errors import StudyError
from budget_search.core.trial import Job, Trial, TrialKey
from budget_search.storage.files import atomic_path, write_atomically, write_json
from budget_search.storage.study_folder import StudyFolder
from budget_search.storage.study_store import StudyStore
from tests import tiny
from tests.worlds import World, search, settings

EFFECTS = (2.4, 1.6, 0.1, 0.3, 0.7, 0.2)
# An uninterrupted search takes about 1,500 write steps, opening the study about 130.
WRITE_STEPS = 400
KINDS = ("after records", "at random", "inside writes")
Sabotage = Callable[[], None]


@dataclass
class Tally:
    """Counts over all killed searches; all but the first two must be 0."""

    kills: int = 0
    evaluations: int = 0
    lost: int = 0
    run_twice: int = 0
    recorded_twice: int = 0
    other_answers: int = 0
    locks_left: int = 0
    files_left: int = 0

    @property
    def faults(self) -> int:
        return sum(asdict(self).values()) - self.kills - self.evaluations


@dataclass(frozen=True)
class Scene:
    """The folder of one search: its study, and the journal."""

    place: Path
    study: StudyFolder = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "study", StudyFolder(self.place / "study"))
        self.place.mkdir(parents=True)
        self.study.path.mkdir()

    def note(self, event: str, key: TrialKey) -> None:
        journal = os.open(self.place / "journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(journal, f"{event} {key}\n".encode())
        os.close(journal)

    def events(self) -> list[tuple[str, str]]:
        lines = (self.place / "journal").read_text().splitlines() if (self.place / "journal").exists() else []
        return [(event, key) for event, _, key in (line.partition(" ") for line in lines)]

    def recorded(self) -> list[str]:
        """The rows of the database, with duplicates, read without the program."""
        return [f"{kept} {rung:.4g} {seed}" for kept, rung, seed in tiny.recorded(self.study.path)]


def run_search(scene: Scene) -> None:
    """Resume the search and write its report, with files and weights like those of a real search."""
    world = World(effects=EFFECTS, seed_sd=0.2, screen_sd=0.2)

    def run_jobs(jobs: Iterable[Job | None]) -> Iterator[Trial]:
        for job in jobs:
            assert job is not None
            scene.note("began", job.key)
            write_atomically(scene.study.outputs(job.key, job.split), b"outputs")
            if job.keep_weights:
                with atomic_path(scene.study.weights(job.key)) as folder:
                    folder.mkdir()
                    (folder / "model.safetensors").write_bytes(b"weights")
            yield world.measure(job)

    class Store(StudyStore):
        def append(self, trial: Trial) -> None:
            super().append(trial)
            scene.note("recorded", trial.key)

    with scene.study.locked():
        scene.study.remove_temporary_files()
        store = Store.open("killed", len(EFFECTS), folder=scene.study)
        wanted = settings(total=len(EFFECTS), seeds=(42, 43), evaluations=8, deltas=(1.0, 2.0))
        found = search(world, store, wanted)
        found._run_jobs = run_jobs
        answers = found.run()
        trials = [[str(trial.key), trial.state, trial.score] for trial in store.history]
        write_json(scene.study.report, {"answers": {d: s.compact for d, s in answers.items()}, "trials": trials})


# -- kinds of kills ----------------------------------------------------------------------------------------------------


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def after_records(count: int) -> Sabotage:
    def sabotage() -> None:
        append = StudyStore.append
        left = [count]

        def counted(store: StudyStore, trial: Trial) -> None:
            append(store, trial)
            left[0] -= 1
            if not left[0]:
                kill_self()

        StudyStore.append = counted  # type: ignore[method-assign]

    return sabotage


def at_write(number: int) -> Sabotage:
    return lambda: count_writes(lambda count: kill_self() if count == number else None)


def count_writes(on_step: Callable[[int], object]) -> None:
    """Call ``on_step`` with the number, from 1, of every write step in this process.

    Steps are opening, renaming and removing files, and the statements and commits of a database.
    """
    import sqlalchemy

    count = [0]

    def step(*_: object) -> None:
        count[0] += 1
        on_step(count[0])

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if writes or event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            step()

    sys.addaudithook(hook)
    for event in ("after_cursor_execute", "commit"):
        sqlalchemy.event.listen(sqlalchemy.engine.Engine, event, step)


# -- kills and checks --------------------------------------------------------------------------------------------


def in_child(scene: Scene, sabotage: Sabotage | None, timeout: float | None = None) -> int:
    """Run the search in a subprocess, killed after ``timeout`` seconds; returns its exit code."""

    def target() -> None:
        if sabotage is not None:
            sabotage()
        run_search(scene)

    child = multiprocessing.get_context("fork").Process(target=target)
    child.start()
    child.join(timeout)
    child.kill()
    child.join()
    assert child.exitcode is not None
    return child.exitcode


def kill_until_finished(scene: Scene, kind: str, draw: random.Random, seconds: float, tally: Tally) -> None:
    """Run one search, killed in one way, until it finishes."""
    for attempt in range(100):
        sabotage, timeout = None, None
        if kind == "after records":
            sabotage = after_records(draw.randint(1, 4))
        elif kind == "inside writes":
            sabotage = at_write(draw.randint(1, WRITE_STEPS))
        else:
            # The limit grows, so that the search makes progress on a busy machine.
            timeout = draw.uniform(0, seconds / 3 * 1.1**attempt)
        code = in_child(scene, sabotage, timeout)
        check(scene, tally)
        if code == 0:
            return
        assert code == -signal.SIGKILL, f"the search failed: {code}"
        tally.kills += 1
    raise AssertionError("the search makes no progress between kills")


def check(scene: Scene, tally: Tally) -> None:
    """Check the study after a kill."""
    events = scene.events()
    rows = scene.recorded()
    done = [key for event, key in events if event == "recorded"]
    tally.lost += max(0, len(set(done)) - len(set(rows)))
    tally.recorded_twice += len(rows) - len(set(rows))
    finished: set[str] = set()
    for event, key in events:
        tally.run_twice += event == "began" and key in finished
        if event == "recorded":
            finished.add(key)
    try:
        with scene.study.locked():
            pass
    except StudyError:
        tally.locks_left += 1


def compare(scene: Scene, uninterrupted: Scene, tally: Tally) -> None:
    """Compare the finished study with an uninterrupted one."""
    tally.evaluations += len(scene.recorded())
    tally.lost += len(set(uninterrupted.recorded()) - set(scene.recorded()))
    tally.other_answers += scene.study.report.read_bytes() != uninterrupted.study.report.read_bytes()
    tally.files_left += len(list(scene.study.path.rglob(".*")))
    kinds = ("outputs", "weights")
    missing = Counter({kind: len(contents(uninterrupted, kind) - contents(scene, kind)) for kind in kinds})
    tally.lost += missing.total()


def contents(scene: Scene, content: str) -> set[str]:
    """The names of the files with exactly this content."""
    files = (path for path in scene.study.path.rglob("*") if path.is_file() and not path.name.startswith("study"))
    return {str(path.relative_to(scene.study.path)) for path in files if path.read_bytes() == content.encode()}


def play(kills: int, seed: int, place: Path) -> dict[str, Tally]:
    """Kill searches until every kind has its share of the kills; returns the counts by kind."""
    uninterrupted = Scene(place / "uninterrupted")
    began = time.monotonic()
    assert in_child(uninterrupted, None) == 0
    seconds = time.monotonic() - began
    tallies = {kind: Tally() for kind in KINDS}
    for position, (kind, tally) in enumerate(tallies.items()):
        draw = random.Random(f"{seed} {kind}")
        share = kills // len(KINDS) + (position < kills % len(KINDS))
        while tally.kills < share:
            scene = Scene(place / f"{kind} {tally.kills}")
            kill_until_finished(scene, kind, draw, seconds, tally)
            compare(scene, uninterrupted, tally)
            shutil.rmtree(scene.place)
    return tallies


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        tallies = play(arguments.kills, arguments.seed, Path(place))
    if arguments.json:
        print(json.dumps({kind: asdict(tally) for kind, tally in tallies.items()}))
    else:
        rows = [{"killed": kind, **asdict(tally)} for kind, tally in tallies.items()]
        print(tabulate(rows, headers="keys"))
    return int(any(tally.faults for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
