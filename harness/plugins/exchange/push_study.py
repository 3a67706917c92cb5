"""Uploads a study to the hub, as a data set."""

from __future__ import annotations

from pathlib import Path

from harness.errors import UserError
from harness.plugins.exchange.exports import dataset_card
from harness.record import PLAN, read_study
from harness.studies import verify
from harness.studies.upload import upload


def push_study(results: Path, name: str, repo: str, public: bool) -> str:
    """Upload the records of a study and their items to `repo`, a data set that is created if needed; returns its URL.

    Their plan, a card and a table of all cells are sent with them. Logs and saved weights stay here.
    Raises UserError if there are no records, if one is bad, without a token, or if the hub refuses them.
    """
    folder = results / name
    if problems := verify.study(results, name).problems:
        raise UserError(problems[0])
    records, _ = read_study(folder)
    if not records:
        raise UserError(f"There are no records to push in {folder}; run a sweep first.")
    paths = [folder / f"{record.cell.name}{end}" for record in records for end in (".json", ".items.parquet")]
    paths.append(folder / PLAN)
    files = {path.name: path for path in paths if path.is_file()} | dataset_card.files(records, folder)
    return upload(name, name, files, repo, public, "dataset")
