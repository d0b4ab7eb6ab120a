"""Files and folders that appear whole or not at all, and are on the disk when they are there."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from budget_search.core.errors import StudyError


def write_json(path: Path, value: Any) -> None:
    """Write a whole file or none."""
    write_whole(path, (json.dumps(value, indent=2, allow_nan=False) + "\n").encode())


def write_whole(path: Path, content: bytes) -> None:
    """A file appears whole or not at all, also when the machine stops. Raises StudyError when it cannot be written."""
    with appearing(path) as temporary:
        temporary.write_bytes(content)


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A name, hidden beside ``path``, to write a file or folder under; it becomes ``path`` when the block succeeds.

    Raises StudyError when it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with clear_line(f"write {path.name} into {path.parent}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            for file in (temporary, *temporary.rglob("*")):
                # What is recorded must be on the disk: a preempted machine stops without warning.
                _reach_the_disk(file)
            if path.is_dir():
                shutil.rmtree(path)
            temporary.replace(path)
            _reach_the_disk(path.parent)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def _reach_the_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def clear_line(what: str) -> Iterator[None]:
    """Turn a full or read-only disk into one clear line."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise StudyError(
            f"cannot {what}: {reason}; make room or give leave to write there, then run the same command again: "
            "everything finished is kept"
        ) from error
