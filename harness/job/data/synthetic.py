"""Training data that a model wrote, as `harness synthesize` leaves it, alone or among real problems."""

from __future__ import annotations

import hashlib
import json
import random
import re
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.job.data.encoding import Item

FILE = "synthetic.jsonl"
HELD_OUT = 0.05


def load(
    file: str | None = None, share: float = 1.0, real: dict[str, Any] | None = None, seed: int = 0
) -> dict[str, list[Item]]:
    """Items of `file`, of which `share` of the training items are to be; the rest are of `real`.

    file: below data_root, or the folder one works in; by default what `harness synthesize` writes to.
    real: another data set's settings, loaded; its validation items are taken, so that losses compare with what it alone
        gives. Without it, 5% of the file are held out, by their seeds: what was made from one problem stays together.

    Raises UserError if the file can't be read, or either has too few items to be mixed so.
    """
    path = Path(file or FILE)
    if not path.is_file():
        raise UserError(
            f"There is no file {path} below data_root (or here, without one); make it with `harness synthesize`, or "
            "name another by data.path=."
        )
    if not 0 < share <= 1:
        raise UserError(f"data.load.share={share} can't be: it must be above 0, and at most 1.")
    made = read(path)
    items = [{key: item[key] for key in ("question", "answer")} for item in made]
    if real is None:
        if share < 1:
            raise UserError(f"data.load.share={share} needs real problems: name their data set by data.load.real.")
        held_out = [_held_out(item) for item in made]
        return {
            "train": [item for item, held in zip(items, held_out, strict=True) if not held],
            "validation": [item for item, held in zip(items, held_out, strict=True) if held],
        }
    others = round(len(items) * (1 - share) / share)
    if others > len(real["load"]["train"]):
        raise UserError(f"data.load.share={share} wants {others} real problems, of which there are fewer; raise it.")
    shuffle = random.Random(f"mixed {seed}")
    train = items + shuffle.sample(real["load"]["train"], others)
    shuffle.shuffle(train)
    return {"train": train, "validation": real["load"]["validation"]}


def _held_out(item: dict[str, Any]) -> bool:
    provenance = item.get("provenance")
    seeds = provenance.get("seeds") if isinstance(provenance, dict) else None
    digest = hashlib.sha256(str(seeds or item["question"]).encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELD_OUT * 2**64


def read(path: Path) -> list[dict[str, Any]]:
    """The items of a file of JSON lines; UserError if a line is none. Further keys, as provenance, are kept."""
    items = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read ({getattr(error, 'strerror', 'it is no text')}).") from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            item = parse(line)
            if item is None:
                raise UserError(f'{path}, line {number} is no JSON object with the texts "question" and "answer".')
            items.append(item)
    return items


def parse(text: str) -> dict[str, Any] | None:
    """The first JSON object in `text` with a question and an answer; models like to wrap what they are asked for."""
    for found in re.finditer(r"\{", text):
        try:
            value, _ = json.JSONDecoder(strict=False).raw_decode(text, found.start())
        except (ValueError, RecursionError):
            continue
        texts = [value.get(key) for key in ("question", "answer")]
        if all(map(_fit, texts)):
            return value
    return None


def _fit(text: Any) -> bool:
    """Whether it is a text that says something and can be written: JSON may hold halves of pairs, UTF-8 none."""
    return isinstance(text, str) and bool(text.strip()) and text.encode("utf-8", "ignore").decode() == text
