"""Uploads a cell's saved weights to the hub."""

from __future__ import annotations

import json
from pathlib import Path

from harness import record
from harness.errors import UserError
from harness.plugins.export import adapter_config
from harness.record import model_card, read
from harness.studies import verify
from harness.studies.find import CellRef
from harness.studies.upload import Files, upload


def push(cell: CellRef, repo: str, public: bool) -> str:
    """Upload a cell's saved weights and their card to `repo`, created if needed; returns its URL.

    Raises UserError if there are no weights, if they differ from what was saved, without a token, or if the hub
    refuses them.
    """
    trained = read(cell.record) if cell.record.is_file() else None
    if trained is None or trained.saved is None or cell.study.weights(trained) is None:
        raise UserError(f"{cell} has no saved weights to push; train it with save=adapter.")
    if problems := verify.check(cell.record):
        raise UserError(problems[0])
    base = model_card.base_name(trained) if trained.saved.form == "adapter" else None
    files: Files = {
        **_weights(record.model_folder(cell.record), base),
        record.CARD: model_card.text(trained).encode(),  # what was saved may name a folder of this machine
    }
    return upload(str(cell), trained.cell.name, files, repo, public, "model")


def _weights(folder: Path, base: str | None) -> Files:
    """The files of `folder`, where an adapter's config names its base by the settings.

    As saved, it may name a folder of this machine, which helps nobody elsewhere. base: of an adapter, else null.
    """
    files = {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}
    if base is None:
        return files
    config = adapter_config.read(folder) | {"base_model_name_or_path": base}
    return files | {adapter_config.NAME: json.dumps(config, indent=2, sort_keys=True).encode()}
