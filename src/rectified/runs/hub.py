"""Finished runs on the Hugging Face Hub: card, weights, results and report, as they lie there."""

from __future__ import annotations

import re
from pathlib import Path

from rectified.errors import UserError, first_line
from rectified.runs import RESULTS

LEFT_HERE = (".lock", ".*", "checkpoint/*", "tensorboard/*", "*.tmp")


def check_repository(name: str) -> None:
    """See that a run could be pushed, before it begins.

    Raises:
        UserError: if the name is none of the Hub's, or this machine has no token for it.
    """
    from huggingface_hub import get_token

    if not re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", name) or ".." in name or "--" in name:
        raise UserError(f"push_to_hub must be OWNER/NAME, got {name!r}")
    if not get_token():
        raise UserError(
            f"no token to push to {name} with: log in with `hf auth login`, or set HF_TOKEN"
        )


def push_to_hub(path: Path, repository: str, *, private: bool = True) -> str:
    """Upload a finished run.

    Args:
        path: its folder.
        repository: OWNER/NAME; made if it is not there.
        private: whether a new one is for its owner alone.

    Returns:
        The repository's address.

    Raises:
        UserError: if the run is not finished, there is no token, or the Hub does not take it.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    check_repository(repository)
    if not (path / RESULTS).is_file():
        raise UserError(f"{path} has no {RESULTS}: it is not a finished run")
    api = HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=path,
            ignore_patterns=list(LEFT_HERE),
            commit_message="A run of rectified",
        )
    except (HfHubHTTPError, OSError, RuntimeError) as error:
        raise UserError(
            f"the Hub did not take {repository} ({first_line(error)}); the run is finished, and "
            f"lies in {path}"
        ) from None
    return f"https://huggingface.co/{repository}"
