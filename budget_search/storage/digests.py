"""What a file holds, as a SHA-256 digest: read once, then remembered by path, size and time of change."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal.

    Remembered in ``digests.json`` below ``$XDG_CACHE_HOME`` (or ``~/.cache``), so that large files are read once; a
    cache that cannot be read or written only costs time. Raises OSError when the file itself cannot be read.
    """
    status = path.stat()
    key = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"
    known = _read_cache()
    if key not in known:
        with path.open("rb") as file:
            known[key] = hashlib.file_digest(file, "sha256").hexdigest()
        _write_cache(known)
    return known[key]


def joint_digest(files: Mapping[str, Path]) -> str:
    """Identifies several files by the names they are given here and by what they hold."""
    lines = [f"{name} {file_digest(path)}\n" for name, path in sorted(files.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _cache_file() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "budget-search" / "digests.json"


def _read_cache() -> dict[str, str]:
    try:
        known = json.loads(_cache_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(known, dict):
        return {}
    return {key: digest for key, digest in known.items() if isinstance(digest, str)}


def _write_cache(known: dict[str, str]) -> None:
    target = _cache_file()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Another process may write at the same time: each replaces the whole file, and the last one wins.
        with tempfile.NamedTemporaryFile("w", dir=target.parent, delete=False, encoding="utf-8") as file:
            json.dump(known, file, indent=0)
        Path(file.name).replace(target)
    except OSError:
        pass
