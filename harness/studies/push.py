"""Uploads saved weights to the hub, by huggingface_hub's own means; the token comes from the environment alone."""

from __future__ import annotations

import os

from harness import record, redact
from harness.errors import UserError
from harness.record import read
from harness.studies import verify
from harness.studies.find import Found


def push(found: Found, repo: str, public: bool) -> str:
    """Upload the weights of a cell and their card to `repo`, which is made if need be; its address.

    Raises UserError if there are none, if they are not what was saved, without a token, or if the hub does not take
    them.
    """
    if not found.record.is_file() or found.study.weights(known := read(found.record)) is None:
        raise UserError(f"{found} has no saved weights to push; save=adapter keeps them when it is trained.")
    if problems := verify.check(found.record):
        raise UserError(problems[0])
    token = os.environ.get("HF_TOKEN")
    if not token:
        raise UserError("The hub takes nothing without a token: set HF_TOKEN to one that may write.")

    from huggingface_hub import HfApi

    hub = HfApi(token=token)
    try:
        address = hub.create_repo(repo, private=not public, exist_ok=True)
        hub.upload_folder(
            repo_id=address.repo_id,
            folder_path=record.model_folder(found.record),
            commit_message=f"{known.cell.name} by finetune-harness",
        )
    except Exception as error:  # no network, a name that can't be, a token that may not write, an interrupted upload
        why = " ".join(redact.redact(str(error)).split())[:300].rstrip(".") or type(error).__name__
        raise UserError(f"{found} could not be pushed to {repo} ({why}); the same command tries again.") from error
    return str(address)
