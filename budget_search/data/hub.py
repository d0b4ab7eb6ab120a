"""Data sets of the Hugging Face hub: their commit and their files, through the local cache of the hub.

huggingface_hub reads ``HF_ENDPOINT``, ``HF_HOME`` and ``HF_HUB_OFFLINE`` as usual.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from budget_search.core.errors import UsageError


def commit(repository: str, *, offline: bool) -> str:
    """The commit of ``main``, from the local cache if it is there, otherwise from the hub.

    Raises UsageError if the data set does not exist or the hub cannot be reached.
    """
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="dataset")
    try:
        return (folder / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        # Downloading the data set card also stores the reference in the cache.
        return _snapshot(repository, "main", ["README.md"], offline).name


def split_files(repository: str, config: str, splits: Sequence[str], *, offline: bool) -> dict[str, list[Path]]:
    """The parquet files of a configuration by split (``config/split-00000-of-00001.parquet``), downloaded if needed.

    Raises UsageError if a split has no file, the data set does not exist, or the hub cannot be reached.
    """
    patterns = {split: f"{config}/{split}-*.parquet" for split in splits}
    revision = commit(repository, offline=offline)
    folder = _snapshot(repository, revision, list(patterns.values()), offline)
    files = {split: sorted(folder.glob(pattern)) for split, pattern in patterns.items()}
    for split, paths in files.items():
        if not paths:
            raise _unreachable(repository, f"{patterns[split]} is not in the local cache")
    return files


def load_splits(repository: str, config: str, *, offline: bool) -> Any:
    """Load any data set of the hub with the ``datasets`` library: a mapping from split name to Dataset.

    Raises UsageError if it cannot be downloaded or read.
    """
    revision = commit(repository, offline=offline)
    with _explain_hub_errors(repository):
        import datasets

        download = datasets.DownloadConfig(local_files_only=offline)
        try:
            return datasets.load_dataset(repository, config or None, revision=revision, download_config=download)
        except (ValueError, RuntimeError) as error:
            raise UsageError(f"cannot read the data set {repository}: {_first_line(error)}") from error


def _snapshot(repository: str, revision: str, patterns: list[str], offline: bool) -> Path:
    with _explain_hub_errors(repository):
        from huggingface_hub import snapshot_download

        return Path(
            snapshot_download(
                repository,
                repo_type="dataset",
                revision=revision,
                allow_patterns=patterns,
                local_files_only=offline,
            )
        )


@contextmanager
def _explain_hub_errors(repository: str) -> Iterator[None]:
    """Raise a one-line UsageError for every error of the hub or the network."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        yield
    except GatedRepoError as error:
        raise UsageError(
            f"the data set {repository} is gated: accept its terms on its page on the hub first"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UsageError(f"there is no public data set {repository} on the hub (or no access to it)") from error
    except LocalEntryNotFoundError as error:
        reason = _first_line(error.__cause__) if error.__cause__ else "not in the local cache"
        raise _unreachable(repository, reason) from error
    except OSError as error:  # other errors of the network, offline mode or the cache
        raise _unreachable(repository, _first_line(error)) from error


def _unreachable(repository: str, reason: str) -> UsageError:
    return UsageError(
        f"cannot get the data set {repository} ({reason}). Without a network: give local files (train.* and "
        f"validation.*, with --data-dir DIR for a GLUE task), or run once with a network, which fills the hub's local "
        f"cache, and then with --offline"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
