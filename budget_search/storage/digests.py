"""SHA-256 digests of files, cached by path, size and modification time."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal.

    Digests are cached in ``digests.json`` below ``$XDG_CACHE_HOME`` (or ``~/.cache``), so that a large file is read
    only once. An unusable cache only costs time. Raises OSError if the file itself cannot be read.
    """
    status = path.stat()
    key = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"
    cache = _read_cache()
    if key not in cache:
        with path.open("rb") as file:
            cache[key] = hashlib.file_digest(file, "sha256").hexdigest()
        _write_cache(cache)
    return cache[key]


def joint_digest(files: Mapping[str, Path]) -> str:
    """A digest of several files, computed from the given names and the files' contents."""
    lines = [f"{name} {file_digest(path)}\n" for name, path in sorted(files.items())]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def digest_with(digest: str, options: Mapping[str, str]) -> str:
    """The digest of content that is read with these options; the digest itself where there are none."""
    if not options:
        return digest
    lines = [f"{digest}\n", *(f"{name} {value}\n" for name, value in sorted(options.items()))]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _cache_file() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "budget-search" / "digests.json"


def _read_cache() -> dict[str, str]:
    try:
        cache = json.loads(_cache_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(cache, dict):
        return {}
    return {key: digest for key, digest in cache.items() if isinstance(digest, str)}


def _write_cache(cache: dict[str, str]) -> None:
    target = _cache_file()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Other processes may write at the same time. Each replaces the whole file, and the last one wins.
        with tempfile.NamedTemporaryFile("w", dir=target.parent, delete=False, encoding="utf-8") as file:
            json.dump(cache, file, indent=0)
        Path(file.name).replace(target)
    except OSError:
        pass
