"""Uploads files to a repository of the hub with huggingface_hub; the token comes from the environment alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from harness import redact, units
from harness.errors import UserError

Files = Mapping[str, Path | bytes]  # by the path in the repository


def upload(what: str, title: str, files: Files, repo: str, public: bool, kind: str) -> str:
    """Send `files` to a repository as one commit; returns the repository's URL."""
    token = os.environ.get("HF_TOKEN")
    if not token:
        raise UserError("Pushing requires a token that may write: set HF_TOKEN.")

    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()  # they name files, and move the cursor
    if sys.stderr.isatty():
        print(f"Uploading {units.plural(len(files), 'file')} to {repo} …", file=sys.stderr)
    hub = HfApi(token=token)
    try:
        address = hub.create_repo(repo, repo_type=kind, private=not public, exist_ok=True)
        hub.create_commit(
            address.repo_id,
            [CommitOperationAdd(path, content) for path, content in files.items()],
            repo_type=kind,
            commit_message=f"{title} by finetune-harness",
        )
    except Exception as error:  # no network, a bad name, a read-only token, an interrupted upload
        why = " ".join(redact.redact(str(error)).split())[:300].rstrip(".") or type(error).__name__
        raise UserError(f"{what} could not be pushed to {repo} ({why}); the same command tries again.") from error
    return str(address)
