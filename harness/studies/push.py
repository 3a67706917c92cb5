"""Uploads saved weights to the hub with huggingface_hub; the token comes from the environment alone."""

from __future__ import annotations

import os

from harness import record, redact
from harness.errors import UserError
from harness.record import read
from harness.studies import verify
from harness.studies.find import CellRef


def push(found: CellRef, repo: str, public: bool) -> str:
    """Upload a cell's saved weights and their card to `repo`, created if needed; returns its URL.

    Raises UserError if there are no weights, if they differ from what was saved, without a token, or if the hub
    refuses them.
    """
    if not found.record.is_file() or found.study.weights(known := read(found.record)) is None:
        raise UserError(f"{found} has no saved weights to push; train it with save=adapter.")
    if problems := verify.check(found.record):
        raise UserError(problems[0])
    token = os.environ.get("HF_TOKEN")
    if not token:
        raise UserError("`push` requires a token that may write: set HF_TOKEN.")

    from huggingface_hub import HfApi

    hub = HfApi(token=token)
    try:
        address = hub.create_repo(repo, private=not public, exist_ok=True)
        hub.upload_folder(
            repo_id=address.repo_id,
            folder_path=record.model_folder(found.record),
            commit_message=f"{known.cell.name} by finetune-harness",
        )
    except Exception as error:  # no network, a bad name, a read-only token, an interrupted upload
        why = " ".join(redact.redact(str(error)).split())[:300].rstrip(".") or type(error).__name__
        raise UserError(f"{found} could not be pushed to {repo} ({why}); the same command tries again.") from error
    return str(address)
