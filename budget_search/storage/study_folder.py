"""A study's folder: where its files lie, what its ``config.json`` says, and how a study is found by its name."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from budget_search.core.errors import StudyError, UsageError
from budget_search.core.trial import TrialKey
from budget_search.storage.files import clear_line

# What config.json holds beside the configuration: found out when the study was made.
FACTS = ("layers_total", "layer_parameters", "undroppable", "device", "created")


@dataclass(frozen=True)
class StudyFolder:
    """Where the files of a study are."""

    path: Path

    @property
    def database(self) -> Path:
        return self.path / "study.db"

    @property
    def config(self) -> Path:
        return self.path / "config.json"

    @property
    def environment(self) -> Path:
        return self.path / "environment.json"

    @property
    def report(self) -> Path:
        return self.path / "report.json"

    @property
    def page(self) -> Path:
        """The report for a browser."""
        return self.path / "report.html"

    @property
    def examples(self) -> Path:
        """The task's splits, tokenised."""
        return self.path / "examples.npz"

    @property
    def texts(self) -> Path:
        """The same examples as texts."""
        return self.path / "texts.parquet"

    def reference(self, name: str) -> StudyFolder:
        """Where another model is measured for comparison: a study of its own, by this name."""
        return StudyFolder(self.path / "references" / name)

    @property
    def latency(self) -> Path:
        """How long one example takes at every depth; there where a limit asked for it."""
        return self.path / "latency.json"

    @property
    def layerwise(self) -> Path:
        """What ``inspect`` measured of every layer."""
        return self.path / "layerwise.json"

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer"

    def outputs(self, key: TrialKey, split: str) -> Path:
        """A fine-tuned model's outputs on a split, one row per example."""
        return self.path / "artifacts" / f"{_file_name(key)}__{split}.npy"

    def weights(self, key: TrialKey) -> Path:
        """The fine-tuned model as a Hugging Face folder."""
        return self.path / "weights" / _file_name(key)

    @contextlib.contextmanager
    def locked(self, *, wait: bool = False) -> Iterator[None]:
        """Hold the study; the kernel lets go of it when the process dies.

        Where another command holds it, ``wait`` for that to end; else raises StudyError.
        """
        lock = FileLock(self.path / "study.lock")
        with clear_line(f"hold the study {self.path.name}"):
            try:
                lock.acquire(timeout=-1 if wait else 0)
            except Timeout:
                raise StudyError(
                    f"another command is working on the study {self.path.name}; "
                    "wait until it ends (--wait does), or stop it first"
                ) from None
        try:
            yield
        finally:
            lock.release()

    def sweep(self) -> None:
        """Remove what a killed command left half-written; only for who holds the study."""
        for path in (each for place in ("", "artifacts", "weights") for each in (self.path / place).glob(".*")):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def stored_config(folder: StudyFolder) -> dict[str, Any]:
    """``config`` and ``facts`` of a study. Raises StudyError when the folder is none, or damaged."""
    try:
        stored = json.loads(folder.config.read_text(encoding="utf8"))
        config, facts = stored["config"], stored["facts"]
        return {"config": config, "facts": {name: facts[name] for name in FACTS}}
    except FileNotFoundError:
        raise StudyError(f"{folder.path} is not a study: there is no config.json in it") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise StudyError(
            f"config.json of the study {folder.path.name} is damaged ({reason}); restore it, or move the folder away"
        ) from error


def study_path(studies_dir: str, name: str) -> Path:
    """Where a study of this name lies. Raises UsageError for a name that would leave the studies folder."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", name):
        raise UsageError(f"--study {name!r}: a study's name has letters, digits, dots, dashes and underscores only")
    return Path(studies_dir) / name


def find_study(name: str, studies_dir: str) -> StudyFolder:
    """The study of this name, of this unique beginning of a name, or at this path. Raises UsageError."""
    if is_study(Path(name)):
        return StudyFolder(Path(name))
    matching = [path for path in study_paths(studies_dir) if path.name.startswith(name)]
    exact = [path for path in matching if path.name == name]
    if len(exact or matching) == 1:
        return StudyFolder((exact or matching)[0])
    names = " ".join(path.name for path in matching or study_paths(studies_dir)) or "none"
    if matching:
        raise UsageError(f"{name!r} is the beginning of several studies: {names}; write more of the name")
    raise UsageError(f"there is no study {name!r} in {studies_dir}; there are: {names}")


def study_paths(studies_dir: str) -> list[Path]:
    folder = Path(studies_dir)
    return sorted(path for path in folder.iterdir() if is_study(path)) if folder.is_dir() else []


def is_study(path: Path) -> bool:
    return (path / "config.json").is_file() and not path.name.startswith(".")


def require_writable(folder: StudyFolder) -> None:
    """Raises UsageError where no study can be made."""
    there = next(path for path in folder.path.parents if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UsageError(
            f"cannot write into --studies-dir {folder.path.parent}: {there} is not a folder that you may write to"
        )


def _file_name(key: TrialKey) -> str:
    return f"{key.layers.compact}__rung-{key.rung:.4g}__seed-{key.seed}"
