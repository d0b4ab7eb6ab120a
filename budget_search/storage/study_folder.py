"""A study's folder: the paths of its files, its ``config.json``, and the look-up of a study by name."""

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

from budget_search.core.errors import BudgetSearchError, StudyError, UsageError
from budget_search.core.trial import TrialKey
from budget_search.storage.files import explain_disk_errors

# The keys that config.json holds besides the configuration, determined when the study is created.
FACTS = ("layers_total", "layer_parameters", "undroppable", "device", "created")


@dataclass(frozen=True)
class StudyFolder:
    """The paths of a study's files."""

    path: Path

    @property
    def database(self) -> Path:
        return self.path / "study.db"

    @property
    def unrecorded(self) -> Path:
        """Finished trials not yet in the database because another process holds it; usually absent."""
        return self.path / "unrecorded.json"

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
        """The report as an HTML page."""
        return self.path / "report.html"

    @property
    def examples(self) -> Path:
        """The task's tokenised splits."""
        return self.path / "examples.npz"

    @property
    def texts(self) -> Path:
        """The untokenised texts of the same examples."""
        return self.path / "texts.parquet"

    def reference(self, name: str) -> StudyFolder:
        """The folder of the study that measures a reference model, by its name."""
        return StudyFolder(self.path / "references" / name)

    @property
    def latency(self) -> Path:
        """The time for one example at every depth; written only if a limit needs it."""
        return self.path / "latency.json"

    @property
    def layerwise(self) -> Path:
        """The measurements of every layer by ``inspect``."""
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
        """Hold the lock of the study; the kernel releases it when the process dies.

        If another command holds the lock, ``wait`` until it ends; without ``wait``, raises StudyError.
        """
        with explain_disk_errors(f"lock the study {self.path.name}"):
            lock = _acquire(self.path, self.path.name, wait=wait)
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def making_weights(self, key: TrialKey) -> Iterator[None]:
        """Hold the lock for training these weights again, so that only one worker does."""
        lock = FileLock(self.path / f".{_file_name(key)}.lock")
        with explain_disk_errors(f"lock the study {self.path.name}"):
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def remove_temporary_files(self) -> None:
        """Remove the incomplete files of a killed command. The caller must hold the lock."""
        for path in (each for folder in ("", "artifacts", "weights") for each in (self.path / folder).glob(".*")):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


@contextlib.contextmanager
def draft_of(folder: StudyFolder, *, wait: bool) -> Iterator[StudyFolder]:
    """A locked draft of a new study, renamed to ``folder`` when the caller has filled it. Raises BudgetSearchError."""
    draft = StudyFolder(folder.path.with_name(f".{folder.path.name}.new"))
    try:
        lock = _lock_draft(draft, folder.path.name, wait=wait)
        try:
            # A killed command may have left files.
            shutil.rmtree(draft.tokenizer, ignore_errors=True)
            yield draft
            if folder.config.exists():
                shutil.rmtree(draft.path, ignore_errors=True)
            else:
                # From here on the draft's name may be that of another command's draft.
                draft.path.rename(folder.path)
        except BaseException:
            shutil.rmtree(draft.path, ignore_errors=True)
            raise
        finally:
            lock.release()
    except OSError as error:
        raise BudgetSearchError(
            f"cannot write the study {folder.path.name} into {folder.path.parent}: {error.strerror or error}; "
            "choose another --studies-dir"
        ) from error


def _lock_draft(draft: StudyFolder, name: str, *, wait: bool) -> FileLock:
    """The lock of a draft of the study ``name``; a command that held it before has renamed or removed the draft."""
    while True:
        draft.path.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            return _acquire(draft.path, name, wait=wait)


def _acquire(path: Path, name: str, *, wait: bool) -> FileLock:
    """The lock in the folder of the study ``name``. Raises StudyError if another command holds it, and OSError."""
    lock = FileLock(path / "study.lock")
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except Timeout:
        raise StudyError(
            f"another command is working on the study {name}; wait until it ends (add --wait), or stop it first"
        ) from None
    return lock


def stored_config(folder: StudyFolder) -> dict[str, Any]:
    """``config`` and ``facts`` of a study. Raises StudyError if the folder is not a study, or is damaged."""
    try:
        stored = json.loads(folder.config.read_text(encoding="utf8"))
        config, facts = stored["config"], stored["facts"]
        return {"config": config, "facts": {name: facts[name] for name in FACTS}}
    except FileNotFoundError:
        raise StudyError(f"{folder.path} is not a study: it contains no config.json") from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise StudyError(
            f"config.json of the study {folder.path.name} is damaged ({reason}); restore it, or move the folder away"
        ) from error


def study_path(studies_dir: str, name: str) -> Path:
    """The path of a study by name. Raises UsageError if the name would point outside the studies folder."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}", name):
        raise UsageError(
            f"--study {name!r}: a study name may contain only letters, digits, dots, dashes and underscores"
        )
    return Path(studies_dir) / name


def find_study(name: str, studies_dir: str) -> StudyFolder:
    """The study with this name, this unique prefix of a name, or this path. Raises UsageError."""
    if is_study(Path(name)):
        return StudyFolder(Path(name))
    matching = [path for path in study_paths(studies_dir) if path.name.startswith(name)]
    exact = [path for path in matching if path.name == name]
    if len(exact or matching) == 1:
        return StudyFolder((exact or matching)[0])
    names = " ".join(path.name for path in matching or study_paths(studies_dir)) or "none"
    if matching:
        raise UsageError(f"{name!r} matches several studies: {names}; give a longer prefix")
    raise UsageError(f"there is no study {name!r} in {studies_dir}; available: {names}")


def study_paths(studies_dir: str) -> list[Path]:
    folder = Path(studies_dir)
    return sorted(path for path in folder.iterdir() if is_study(path)) if folder.is_dir() else []


def is_study(path: Path) -> bool:
    return (path / "config.json").is_file() and not path.name.startswith(".")


def require_writable(folder: StudyFolder) -> None:
    """Raises UsageError if no study can be created at this path."""
    parent = next(path for path in folder.path.parents if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UsageError(f"cannot write into --studies-dir {folder.path.parent}: {parent} is not a writable folder")


def _file_name(key: TrialKey) -> str:
    return f"{key.layers.compact}__rung-{key.rung:.4g}__seed-{key.seed}"
