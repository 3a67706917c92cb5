"""Uploads saved weights and studies to the hub with huggingface_hub; the token comes from the environment alone."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from harness import record, redact, units
from harness.errors import UserError
from harness.record import Record, model_card, read, read_study
from harness.studies import verify
from harness.studies.find import CellRef

Files = Mapping[str, Path | bytes]  # by the path in the repository


def push(found: CellRef, repo: str, public: bool) -> str:
    """Upload a cell's saved weights and their card to `repo`, created if needed; returns its URL.

    Raises UserError if there are no weights, if they differ from what was saved, without a token, or if the hub
    refuses them.
    """
    known = read(found.record) if found.record.is_file() else None
    if known is None or known.saved is None or found.study.weights(known) is None:
        raise UserError(f"{found} has no saved weights to push; train it with save=adapter.")
    if problems := verify.check(found.record):
        raise UserError(problems[0])
    base = model_card.tuned_from(known) if known.saved.form == "adapter" else None
    files = _weights(record.model_folder(found.record), base)
    return _upload(str(found), known.cell.name, files, repo, public, "model")


def _weights(folder: Path, base: str | None) -> Files:
    """The files of `folder`, where an adapter's config names its base by the settings.

    As saved, it may name a folder of this machine, which helps nobody elsewhere. base: of an adapter, else null.
    """
    files = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
    if base is None:
        return files
    config = files["adapter_config.json"]
    told = json.loads(config.read_text(encoding="utf-8"))
    told["base_model_name_or_path"] = base if model_card.HUB_ID.fullmatch(base) else Path(base).name
    return files | {config.name: json.dumps(told, indent=2, sort_keys=True).encode()}


def push_study(
    results: Path, name: str, more: Callable[[Sequence[Record], Path], Files], repo: str, public: bool
) -> str:
    """Upload the records of a study and their items to `repo`, a data set that is created if needed; returns its URL.

    more: makes further files of the records and their folder, the card among them. Logs and saved weights stay here.
    Raises UserError if there are no records, if one is bad, without a token, or if the hub refuses them.
    """
    folder = results / name
    if problems := verify.study(results, name)[1]:
        raise UserError(problems[0])
    records, _ = read_study(folder)
    if not records:
        raise UserError(f"There are no records to push in {folder}; run a sweep first.")
    kept = [folder / f"{known.cell.name}{end}" for known in records for end in (".json", ".items.parquet")]
    files = {path.name: path for path in kept if path.is_file()} | dict(more(records, folder))
    return _upload(name, name, files, repo, public, "dataset")


def _upload(what: str, title: str, files: Files, repo: str, public: bool, kind: str) -> str:
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
