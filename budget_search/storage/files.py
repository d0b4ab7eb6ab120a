"""Atomic and durable writes of files and folders."""

from __future__ import annotations

import contextlib
import io
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from budget_search.core.errors import StudyError


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically. Raises StudyError if it cannot be written."""
    write_atomically(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file completely or not at all, even if the machine stops. Raises StudyError if it cannot be written."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_array(path: Path, values: np.ndarray) -> None:
    """Write a ``.npy`` file atomically. Raises StudyError if it cannot be written."""
    content = io.BytesIO()
    np.save(content, values)
    write_atomically(path, content.getvalue())


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a hidden temporary path next to ``path``; a file or folder written there becomes ``path`` on success.

    Raises StudyError if it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with explain_disk_errors(f"write {path.name} into {path.parent}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            if temporary.is_dir():
                share_with_readers_of(temporary)
            for file in (temporary, *temporary.rglob("*")):
                # A preempted machine stops without warning, so the data must be on the disk before the rename.
                _fsync(file)
            if path.is_dir():
                shutil.rmtree(path)
            temporary.replace(path)
            _fsync(path.parent)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def share_with_readers_of(folder: Path) -> None:
    """Make files in a new folder readable for all users who can read the folder; safetensors makes some private."""
    permissions = folder.stat().st_mode & 0o666
    for file in folder.rglob("*"):
        # A hard link may be to a file of another study, or of another user.
        if file.is_file() and file.stat().st_nlink == 1 and file.stat().st_mode & 0o777 != permissions:
            file.chmod(permissions)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def explain_disk_errors(action: str) -> Iterator[None]:
    """Raise a one-line StudyError if the disk is full or read-only; ``action`` completes "cannot ..."."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise StudyError(
            f"cannot {action}: {reason}; free disk space or allow writing there, then run the same command again: "
            "finished evaluations are kept"
        ) from error
