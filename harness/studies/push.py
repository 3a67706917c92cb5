"""Uploads saved weights to the hub with huggingface_hub; the token comes from the environment alone."""

from __future__ import annotations

import json
import os
from pathlib import Path

from harness import record, redact
from harness.errors import UserError
from harness.record import Record, model_card, read
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

    from huggingface_hub import CommitOperationAdd, HfApi

    hub = HfApi(token=token)
    sent = _sent(record.model_folder(found.record), known)
    try:
        address = hub.create_repo(repo, private=not public, exist_ok=True)
        hub.create_commit(
            repo_id=address.repo_id,
            operations=[CommitOperationAdd(name, content) for name, content in sent.items()],
            commit_message=f"{known.cell.name} by finetune-harness",
        )
    except Exception as error:  # no network, a bad name, a read-only token, an interrupted upload
        why = " ".join(redact.redact(str(error)).split())[:300].rstrip(".") or type(error).__name__
        raise UserError(f"{found} could not be pushed to {repo} ({why}); the same command tries again.") from error
    return str(address)


def _sent(folder: Path, known: Record) -> dict[str, Path | bytes]:
    """What is uploaded, by name: the files of `folder`, where an adapter's config names its base by the settings.

    As saved, it may name a folder of this machine, which helps nobody elsewhere.
    """
    files = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
    if known.saved.form != "adapter":
        return files
    config, (base, _) = files["adapter_config.json"], model_card.base_of(known)
    told = json.loads(config.read_text(encoding="utf-8"))
    told["base_model_name_or_path"] = base if model_card.HUB_ID.fullmatch(base) else Path(base).name
    return files | {config.name: json.dumps(told, indent=2, sort_keys=True).encode()}
