"""Published measurements: one row of training_memory.csv each."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass, fields
from pathlib import Path

from harness.errors import UserError

UNKNOWN = "?"
# Bytes of a workspace of cuBLAS by card: torch's default is 8 MiB + 128 KiB, on Hopper 32 MiB (CUDABlas.cpp). A step
# has two, of the forward and of the backward thread.
WORKSPACE = {"A100-80GB": 8_519_680, "A100-40GB": 8_519_680, "A10G-24GB": 8_519_680, "H100-80GB": 32 * 2**20}


@dataclass(frozen=True)
class Row:
    """A published measurement, as its document has it; null where a cell is empty or "?".

    tokens_per_row: of the longest row. peak_bytes, resident_bytes: as the program reports them.
    """

    source: str
    model: str
    method: str
    rank: int | None
    targets: str | None
    micro_batch: int | None
    tokens_per_row: int | None
    gradient_checkpointing: bool
    dtype: str
    attention: str
    notes: str
    hardware: str
    peak_bytes: int
    resident_bytes: int | None
    nvidia_smi_mib: int | None
    tokens_per_second: float | None

    @property
    def program(self) -> str:
        """The repository that made the number, as OWNER/NAME."""
        return self.source.partition(" ")[0]

    @property
    def adapter_rank(self) -> int:
        """Rank of the method's adapter or projection. Raises UserError if the row has none."""
        if not self.rank:
            raise UserError("A prediction requires rank.")
        return self.rank

    @property
    def workspaces(self) -> int:
        """Bytes of cuBLAS' workspaces. Raises UserError for an unknown card."""
        if self.hardware not in WORKSPACE:
            raise UserError(f"hardware must be {', '.join(WORKSPACE)}, got {self.hardware}.")
        return 2 * WORKSPACE[self.hardware]


def read(path: Path) -> list[Row]:
    """The rows of the CSV file `path`. Raises UserError if a column is missing or unknown, or a cell is no number."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            lines, columns = list(reader), reader.fieldnames or []
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}.") from error
    known = [field.name for field in fields(Row)]
    for column in columns:
        if column not in known:
            raise UserError(f"{path.name} has the unknown column {column}; known are {', '.join(known)}.")
    for column in known:
        if column not in columns:
            raise UserError(f"{path.name} requires the column {column}.")
    return [_row(line, f"{path.name}, row {number}") for number, line in enumerate(lines, start=1)]


def _row(line: dict[str, str], where: str) -> Row:
    def number(name: str) -> int | None:
        text = (line[name] or "").strip()
        if text in ("", UNKNOWN):
            return None
        # "about 4096" and "up to 512 (Alpaca)" are 4096 and 512.
        found = re.search(r"\d+", text)
        if found is None:
            raise UserError(f"{where}: {name} must be a number or ?, got {text}.")
        return int(found[0])

    if (peak := number("peak_bytes")) is None:
        raise UserError(f"{where} requires peak_bytes.")
    speed = (line["tokens_per_second"] or "").strip()
    texts = {name: (line[name] or "").strip() for name in ("source", "model", "method", "dtype", "attention", "notes")}
    return Row(
        **texts,
        hardware=(line["hardware"] or "").strip(),
        rank=number("rank"),
        targets=line["targets"] if (line["targets"] or UNKNOWN) != UNKNOWN else None,
        micro_batch=number("micro_batch"),
        tokens_per_row=number("tokens_per_row"),
        gradient_checkpointing=line["gradient_checkpointing"] == "true",
        peak_bytes=peak,
        resident_bytes=number("resident_bytes"),
        nvidia_smi_mib=number("nvidia_smi_mib"),
        tokens_per_second=float(speed) if speed else None,
    )
