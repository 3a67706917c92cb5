"""Training data that a model wrote (`harness synthesize`), alone or mixed with real problems."""

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
    """Training items of which a `share` is from `file`, and the rest from `real`.

    file: below data_root, or the working folder; by default the file that `harness synthesize` writes.
    real: another data set, loaded. Its validation items are used, so that losses compare with those of `real` alone.
        Without it, 5% of the file are held out by their seeds, so that items made from one problem stay together.

    Raises UserError if the file can't be read, or if there are too few items for `share`.
    """
    path = Path(file or FILE)
    if not path.is_file():
        raise UserError(
            f"data.path must be a file below data_root, or the working folder, got {path}; `harness synthesize` makes "
            "one."
        )
    if not 0 < share <= 1:
        raise UserError(f"data.load.share must be above 0 and at most 1, got {share}.")
    examples = read(path)
    items = [{key: item[key] for key in ("question", "answer")} for item in examples]
    if real is None:
        if share < 1:
            raise UserError(f"data.load.share={share} requires data.load.real, a data set of real problems.")
        held_out = [_held_out(item) for item in examples]
        return {
            "train": [item for item, held in zip(items, held_out, strict=True) if not held],
            "validation": [item for item, held in zip(items, held_out, strict=True) if held],
        }
    others = round(len(items) * (1 - share) / share)
    if others > len(real["load"]["train"]):
        raise UserError(
            f"data.load.share={share} requires {others} items in data.load.real, which has fewer; raise it."
        )
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
    """The items of a file of JSON lines; other keys, such as provenance, are kept. Raises UserError for a bad line."""
    items = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read ({getattr(error, 'strerror', 'it is not text')}).") from None
    for number, line in enumerate(lines, start=1):
        if line.strip():
            item = parse(line)
            if item is None:
                raise UserError(f'{path}, line {number} must be a JSON object with the texts "question" and "answer".')
            items.append(item)
    return items


def parse(text: str) -> dict[str, Any] | None:
    """The first JSON object in `text` with a question and an answer; models often add other text around it."""
    for brace in re.finditer(r"\{", text):
        try:
            value, _ = json.JSONDecoder(strict=False).raw_decode(text, brace.start())
        except (ValueError, RecursionError):
            continue
        texts = [value.get(key) for key in ("question", "answer")]
        if all(map(_fit, texts)):
            return value
    return None


def _fit(text: Any) -> bool:
    """Whether `text` is a string, not blank, and valid in UTF-8: JSON may contain lone surrogates."""
    return isinstance(text, str) and bool(text.strip()) and text.encode("utf-8", "ignore").decode() == text
