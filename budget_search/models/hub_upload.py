"""An export on the Hugging Face hub: what may be wrong is asked before it is made, and it stays whatever happens."""

from __future__ import annotations

from pathlib import Path

from budget_search.core.errors import BudgetSearchError, UsageError


def require_pushable(repository: str) -> None:
    """Raises UsageError for what names no repository, and where nothing can be uploaded from here."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repository)
    except HFValidationError:
        raise UsageError(
            f"--push-to-hub {repository}: no name of a repository; write name or org/name with letters, digits, dots, "
            "dashes and underscores"
        ) from None
    if constants.HF_HUB_OFFLINE:
        raise UsageError("--push-to-hub needs the network, which HF_HUB_OFFLINE forbids; unset it, or export alone")
    if get_token() is None:
        raise UsageError("--push-to-hub needs a token of the hub that may write: `hf auth login`, or set HF_TOKEN")


def push(folder: Path, repository: str, *, private: bool) -> str:
    """Upload an export as one commit, making the repository if need be; returns its address.

    Raises BudgetSearchError when that fails; the folder is as it was.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HTTPError  # type: ignore[attr-defined]

    api, kept = HfApi(), f"the export in {folder} is whole"
    try:
        address = api.create_repo(repository, private=private or None, exist_ok=True)
        # One that is there already keeps its visibility.
        if private and not api.model_info(address.repo_id).private:
            raise BudgetSearchError(f"{repository} is there already and public: choose another name; {kept}")
        api.upload_folder(
            repo_id=address.repo_id, folder_path=folder, commit_message="The checkpoint, its evidence and its card"
        )
    except HfHubHTTPError as error:
        # Its own text may repeat what was sent.
        reason = _reason(error.response.status_code, repository)
        raise BudgetSearchError(f"--push-to-hub {repository}: {reason}; {kept}") from error
    except (HTTPError, OSError) as error:
        raise BudgetSearchError(
            f"--push-to-hub {repository}: the hub cannot be reached ({type(error).__name__}); {kept}, "
            f"and `hf upload {repository} {folder}` sends it later"
        ) from error
    return str(address)


def _reason(status: int, repository: str) -> str:
    if status == 401:
        return "the hub does not know the token; `hf auth login` with another"
    if status == 403:
        return f"the token may not write to {repository}; `hf auth login` with one that may, or choose another name"
    return f"the hub answered with status {status}"
