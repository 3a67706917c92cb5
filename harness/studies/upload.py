"""Uploads files to a repository of the hub with huggingface_hub; the token comes from the environment alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path

from harness import redact, units
from harness.errors import UserError

Files = Mapping[str, Path | bytes]  # by the path in the repository
# Of an earlier upload, what would be taken for a part of this one: by the kind of the repository.
REPLACED = {
    "model": (
        "*.safetensors",
        "*.safetensors.index.json",
        "adapter_config.json",
        "config.json",
        "generation_config.json",
    ),
    "dataset": ("*.json", "*.items.parquet"),
}


def upload(what: str, title: str, files: Files, repo: str, public: bool, kind: str) -> str:
    """Send `files` to a repository as one commit, which removes the weights or records of an earlier one.

    kind: of the repository, model or dataset. Returns its URL. Raises UserError without a token, if the hub refuses
    something, or if the repository is there and is public where this is to be private, or the other way round.
    """
    token = os.environ.get("HF_TOKEN")
    if not token:
        raise UserError("Pushing requires a token that may write: set HF_TOKEN.")

    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()  # they name files, and move the cursor
    if sys.stderr.isatty():
        print(f"Uploading {units.plural(len(files), 'file')} to {repo} …", file=sys.stderr)
    hub = HfApi(token=token)
    try:
        address = hub.create_repo(repo, repo_type=kind, private=not public, exist_ok=True)
        there = (hub.dataset_info if kind == "dataset" else hub.model_info)(address.repo_id)
        _check_visibility(repo, there.private, public)
        names = [file.rfilename for file in there.siblings or () if file.rfilename not in files]
        stale = [name for name in names if any(fnmatch(name, pattern) for pattern in REPLACED[kind])]
        added = [CommitOperationAdd(path, content) for path, content in files.items()]
        hub.create_commit(
            address.repo_id,
            [*added, *(CommitOperationDelete(name, is_folder=False) for name in stale)],
            repo_type=kind,
            commit_message=f"{title} by finetune-harness",
        )
    except UserError:
        raise
    except Exception as error:  # no network, a bad name, a read-only token, an interrupted upload
        why = " ".join(redact.redact(str(error)).split())[:300].rstrip(".") or type(error).__name__
        raise UserError(f"{what} could not be pushed to {repo} ({why}); the same command tries again.") from error
    return str(address)


def _check_visibility(repo: str, private: bool | None, public: bool) -> None:
    """Raise UserError unless the repository is as visible as is asked for. private: null if unknown."""
    if private and public:
        raise UserError(f"{repo} is private on the hub: omit --public, or make it public in its settings there.")
    if private is False and not public:
        raise UserError(f"{repo} is public on the hub: add --public, or push to another repository.")
