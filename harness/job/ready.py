"""What cells have in common and need no device for: splits, tokenizer, tokenised examples, tasks, fingerprints.

Made once for cells that ask for the same, as long as the files behind it stay as they are.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedTokenizerBase

from harness.job import data, model, score

HELD = 8  # settings of a sweep that are remembered at a time


@dataclass(frozen=True)
class Ready:
    """steps: of each optimizer step the examples of its micro-batches (none for an untuned model); held_out: examples
    for the validation loss; fingerprints: of data and model."""

    tokenizer: PreTrainedTokenizerBase
    tasks: score.Tasks
    steps: list[list[list[data.Example]]]
    held_out: list[data.Example]
    fingerprints: dict[str, str]


def of(settings: dict[str, Any], data_root: str | None) -> Ready:
    """What the settings of a cell need; UserError if its model, data or tasks can't be had."""
    parts = {name: settings[name] for name in ("model", "data", "eval", "train", "seed")}
    trained = settings["method"]["optim"] is not None
    return _made(json.dumps(parts), model.state(settings["model"]), _root(data_root), trained)


def tasks(settings: dict[str, Any], data_root: str | None) -> score.Tasks:
    """The tasks of an evaluation; UserError if one can't be had, or is not for `settings`."""
    return _tasks(json.dumps(settings), _root(data_root))


def _root(data_root: str | None) -> tuple[str, str] | None:
    return None if data_root is None else (data_root, data.state(data_root))


@functools.lru_cache(HELD)
def _made(settings: str, model_state: str, root: tuple[str, str] | None, trained: bool) -> Ready:
    parts = json.loads(settings)
    train = parts["train"]
    splits = _splits(json.dumps(parts["data"]), root)
    tokenizer = model.tokenizer(parts["model"])
    score.check_template(parts["eval"], tokenizer)

    def encode(items: list[data.Item]) -> list[data.Example]:
        return data.encode_all(tokenizer, items, parts["data"]["prompt"], train["max_length"])

    return Ready(
        tokenizer,
        _tasks(json.dumps(parts["eval"]), root),
        data.scheduled(splits["train"], train, parts["seed"], encode) if trained else [],
        encode(splits["validation"][: train["validation_items"]]),
        {"data": data.fingerprint(splits), "model": _fingerprint(json.dumps(parts["model"]), model_state)},
    )


@functools.lru_cache(HELD)
def _splits(settings: str, root: tuple[str, str] | None) -> dict[str, list[data.Item]]:
    return data.splits(json.loads(settings), root and root[0])


@functools.lru_cache(HELD)
def _tasks(settings: str, root: tuple[str, str] | None) -> score.Tasks:
    tasks = score.Tasks(json.loads(settings), root and root[0])
    tasks.build()
    return tasks


@functools.lru_cache(HELD)
def _fingerprint(settings: str, state: str) -> str:
    return model.fingerprint(json.loads(settings))
