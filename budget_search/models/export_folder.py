"""The folder of an export: where it may be written, and its upload to the Hugging Face hub. Does not import torch."""

from __future__ import annotations

import json
from pathlib import Path

from budget_search.core.errors import BudgetSearchError, UsageError

MARKER = "budget_search.json"


def refuse_foreign(output: Path) -> None:
    """Raises UsageError unless ``output`` does not exist, is an empty folder, or contains only an earlier export."""
    advice = "choose another folder for --output"
    if not output.exists() and not output.is_symlink():
        return
    if output.is_symlink() or not output.is_dir():
        raise UsageError(f"{output} is not a folder; {advice}")
    present = {path.name for path in output.iterdir()}
    if not present:
        return
    try:
        exported = set(json.loads((output / MARKER).read_text(encoding="utf-8"))["files"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{output} is not empty and not an export of budget-search; {advice}") from None
    if foreign := sorted(present - exported):
        raise UsageError(f"{output} holds more than an export of budget-search ({', '.join(foreign)}); {advice}")


def require_pushable(repository: str) -> None:
    """Raises UsageError if ``repository`` is no valid name, the hub is switched off, or there is no token."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repository)
    except HFValidationError:
        raise UsageError(
            f"--push-to-hub {repository} is not the name of a repository; write name or org/name with letters, digits, "
            "dots, dashes and underscores"
        ) from None
    if constants.HF_HUB_OFFLINE:
        raise UsageError("--push-to-hub needs the network, but HF_HUB_OFFLINE is set; unset it or omit the option")
    if get_token() is None:
        raise UsageError("--push-to-hub needs a hub token with write access: run `hf auth login`, or set HF_TOKEN")


def push(folder: Path, repository: str, *, private: bool) -> str:
    """Upload an export as one commit and return its URL; the repository is created if needed.

    Raises BudgetSearchError if the upload fails. The folder is never changed.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]

    api, kept = HfApi(), f"the export in {folder} is complete"
    try:
        url = api.create_repo(repository, private=private or None, exist_ok=True)
        # create_repo does not change the visibility of an existing repository.
        if private and not api.model_info(url.repo_id).private:
            raise BudgetSearchError(f"{repository} already exists and is public: choose another name; {kept}")
        api.upload_folder(
            repo_id=url.repo_id, folder_path=folder, commit_message="The checkpoint, its evidence and its card"
        )
    except HfHubHTTPError as error:
        # The error's own text may contain what was sent.
        reason = _reason(error.response.status_code, repository)
        raise BudgetSearchError(f"--push-to-hub {repository}: {reason}; {kept}") from error
    except (HTTPError, OSError) as error:
        raise BudgetSearchError(
            f"--push-to-hub {repository}: the hub cannot be reached ({type(error).__name__}); {kept}, "
            f"upload it later with `hf upload {repository} {folder}`"
        ) from error
    return str(url)


def _reason(status: int, repository: str) -> str:
    if status == 401:
        return "the hub rejected the token; run `hf auth login` with a valid one"
    if status == 403:
        return f"the token has no write access to {repository}; log in with another token, or choose another name"
    return f"the hub answered with status {status}"
