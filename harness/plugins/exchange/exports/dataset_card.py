"""A study as a data set of the hub: a card and a table of all cells, which the hub's viewer shows."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from harness import redact, units
from harness.record import Record, model_card
from harness.report.tables.best import tables
from harness.report.tables.formats import document, tidy
from harness.report.tables.table import Table

CELLS = "cells.parquet"

CARD = """\
---
{head}
---

# {study}

{many} of fine-tuning methods, measured by finetune-harness: {methods}. This card was made from the records; nothing in
it was written by hand.

{table}
## Files

- `{cells}` has one row a cell and every number in base units: bytes, seconds, tokens, fractions of 1.
- `NAME.json` is the record of a cell: settings, versions, memory, speed, losses, scores. Failed cells have one, too.
- `NAME.items.parquet` has the cell's answer to each question, for paired tests.

```python
from datasets import load_dataset

cells = load_dataset("THIS_REPOSITORY", "cells", split="train")
```

Downloaded into `results/{folder}`, the records are compared anew by `harness report --study {folder}`.

## Made with

{versions}

## Licence

None is given here. Answers to questions may quote the evaluation data, whose licences hold.
"""


def files(records: Sequence[Record], folder: Path) -> dict[str, bytes]:
    """README.md, the card, and cells.parquet, `frame` of the records and whether each was chosen, by file name."""
    made = tables(records, folder)
    cells = io.BytesIO()
    tidy(made).to_parquet(cells, index=False)
    return {"README.md": _card(records, folder, made[0]).encode(), CELLS: cells.getvalue()}


def _card(records: Sequence[Record], folder: Path, first: Table) -> str:
    """Markdown with a head of YAML that the hub reads."""
    study, methods = records[0].study, list(dict.fromkeys(record.cell.method for record in records))
    configs = [{"config_name": "cells", "data_files": CELLS, "default": True}]
    if any(record.items_sha256 for record in records):
        configs.append({"config_name": "items", "data_files": "*.items.parquet"})
    head = {"pretty_name": study, "tags": ["finetune-harness", *methods], "configs": configs}
    head["task_categories"] = ["text-generation"]
    versions = dict.fromkeys(_versions(record) for record in records)
    return redact.redact(
        CARD.format(
            head="\n".join(f"{key}: {model_card.as_yaml(value)}" for key, value in head.items()),
            study=study,
            folder=study.rpartition("/")[2],
            many=units.plural(len(records), "cell"),
            methods=", ".join(map(_code, methods)),
            table=document([first], "md"),
            cells=CELLS,
            versions="\n".join(f"- {_code(line)}" for line in versions),
        )
    )


def _versions(record: Record) -> str:
    versions = record.environment.get("versions") or {}
    return ", ".join(f"{name} {version}" for name, version in versions.items() if version) or "unknown versions"


def _code(text: str) -> str:
    """`text`, which may be anybody's, as code, so that it is no markup."""
    return f"`{model_card.one_line(text)}`"
