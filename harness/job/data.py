"""Training data: splits in GSM8K's schema, tokenised as the evaluation asks, in batches equal for every method.

An item is ``{"question": str, "answer": str}``. The prompt is the one lm-eval's gsm8k task shows; the loss is on
the answer alone, and the end-of-text token after it is trained, so that a tuned model stops.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from transformers import PreTrainedTokenizerBase

from harness.errors import UserError

Item = dict[str, str]
IGNORED = -100  # torch's ignore_index


@dataclass(frozen=True)
class Example:
    """A tokenised item: `ids` of prompt, answer and end-of-text; the first `prompt` of them bear no loss."""

    ids: list[int]
    prompt: int


_root: ContextVar[str | None] = ContextVar("data_root", default=None)


@contextmanager
def at(data_root: str | None) -> Iterator[None]:
    """A context in which hub data sets are the folders of those names below `data_root` (null: the hub's own)."""
    if data_root is None:
        yield
        return
    token, cache = _root.set(data_root), datasets.config.HF_DATASETS_CACHE
    # `datasets` knows a local folder by the text of its card, and would serve what another of that name held before.
    datasets.config.HF_DATASETS_CACHE = Path(cache) / f"data_root-{_state(Path(data_root))}"
    try:
        with chdir(data_root):  # `datasets` takes a local folder of that relative path before it asks the hub
            yield
    finally:
        _root.reset(token)
        datasets.config.HF_DATASETS_CACHE = cache


def _state(folder: Path) -> str:
    """Digest of the paths, sizes and times of change of all files below `folder`."""
    digest = hashlib.sha256(str(folder.absolute()).encode())
    for where, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        for name in sorted(files):
            path = os.path.join(where, name)
            with suppress(OSError):  # a link to nowhere
                found = os.stat(path)
                digest.update(f"\0{path}\0{found.st_size}\0{found.st_mtime_ns}".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def splits(data: dict[str, Any], data_root: str | None) -> dict[str, list[Item]]:
    """The splits ``train`` and ``validation`` of the settings `data`; UserError if they can't be had."""
    try:
        with at(data_root):
            loaded = instantiate(data["load"], _convert_="all")
    except InstantiationException as error:  # hydra's wrapping of whatever the target raised, a UserError included
        cause = error.__cause__
        if isinstance(cause, UserError):
            raise cause from None
        raise UserError(f"data.load can't be: {str(cause or error).strip().splitlines()[0]}") from error
    return {"train": loaded["train"], "validation": loaded["validation"]}


def hub(
    path: str, subset: str | None, question: str, answer: str, held_out_by: str, share: float = 0.02
) -> dict[str, list[Item]]:
    """A hub data set, or the local folder of its name below data_root, from its train split.

    question, answer: its columns. No validation split is asked for: a `share` of train is held out by a hash of
    the column `held_out_by`, so that the split does not depend on order and rephrasings of one question stay
    together. Raises UserError if the data set is missing or lacks a column.
    """
    require(path)
    try:
        rows = datasets.load_dataset(path, subset, split="train")
    except Exception as error:  # datasets and the hub raise a dozen kinds, all of them: it is not to be had
        raise missing(f"The data set {path}", error) from error
    for column in (question, answer, held_out_by):
        if column not in rows.column_names:
            raise UserError(f"{path} has no column {column!r}; it has: {', '.join(rows.column_names)}.")
    out: dict[str, list[Item]] = {"train": [], "validation": []}
    for row in rows:
        digest = hashlib.sha256(row[held_out_by].encode()).digest()
        held_out = int.from_bytes(digest[:8], "big") < share * 2**64
        out["validation" if held_out else "train"].append({"question": row[question], "answer": row[answer]})
    return out


def require(path: str) -> None:
    """Raise UserError if a data_root is in force and lacks the data set `path`: the hub must not fill in silently."""
    if _root.get() is not None and not Path(path).is_dir():
        raise missing(f"The data set {path}", None)


def missing(what: str, error: Exception | None) -> UserError:
    """The remedy for data that did not load; `what` begins the sentence."""
    root = _root.get()
    if root is not None:
        return UserError(f"{what} can't be had from data_root={root}; put it there, or leave data_root out.")
    return UserError(
        f"{what} can't be had from the hub ({type(error).__name__}); "
        "check the connection, or name a folder that holds it by data_root=."
    )


def encode(tokenizer: PreTrainedTokenizerBase, item: Item, prompt: str, max_length: int) -> Example:
    """Tokenise prompt and answer apart, as generation sees them, joined by lm-eval's one space."""
    before = tokenizer(prompt.format(**item))["input_ids"]
    after = tokenizer(" " + item["answer"], add_special_tokens=False)["input_ids"]
    return Example((before + after + [tokenizer.eos_token_id])[:max_length], len(before))


def encode_all(tokenizer: PreTrainedTokenizerBase, items: list[Item], prompt: str, max_length: int) -> list[Example]:
    """`items` tokenised; UserError if there is none, or if truncation leaves one without an answer."""
    if not items:
        raise UserError("The data set is empty; there is nothing to train or validate on.")
    examples = [encode(tokenizer, item, prompt, max_length) for item in items]
    bare = sum(e.prompt >= len(e.ids) for e in examples)
    if bare:
        raise UserError(
            f"train.max_length={max_length} leaves no token of the answer in {bare} of {len(examples)} examples; "
            "raise it."
        )
    return examples


def batches(items: int, batch_size: int, count: int, seed: int) -> Iterator[list[int]]:
    """`count` batches of indices below `items`: one shuffled pass after another, cut without regard to their seams."""
    shuffle = random.Random(f"batches {seed}")
    waiting: list[int] = []
    for _ in range(count):
        while len(waiting) < batch_size:
            waiting += shuffle.sample(range(items), items)
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


def scheduled(
    items: list[Item], train: dict[str, Any], seed: int, encode: Callable[[list[Item]], list[Example]]
) -> list[list[list[Example]]]:
    """The examples of each step's micro-batches, by the settings `train`: the same for every method.

    Only what is drawn is encoded: most of a large data set never is.
    """
    if not items:
        raise UserError("The data set is empty; there is nothing to train on.")
    size, accum, count = train["batch_size"], train["grad_accum"], train["max_steps"]
    order = list(batches(len(items), size, count * accum, seed))
    drawn = sorted({i for batch in order for i in batch})
    examples = dict(zip(drawn, encode([items[i] for i in drawn]), strict=True))
    micro = [[examples[i] for i in batch] for batch in order]
    return [micro[i : i + accum] for i in range(0, len(micro), accum)]


def padded(examples: list[Example]) -> int:
    """Tokens of a batch of `examples`, its padding included."""
    return len(examples) * max(len(e.ids) for e in examples)


@dataclass(frozen=True)
class Batch:
    """Right-padded tensors of shape [sequences, longest], labels not shifted yet, and the counts of their tokens.

    first: the position of the first supervised token of all, counted on the host so that no step waits for it.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor
    raw: int
    padded: int
    supervised: int
    first: int

    def to(self, device: torch.device) -> Batch:
        tensors = {f: getattr(self, f).to(device) for f in ("input_ids", "attention_mask", "labels")}
        return dataclasses.replace(self, **tensors)


def collate(examples: list[Example], pad: int) -> Batch:
    """Pad `examples` with the token `pad`, which bears neither attention nor loss."""
    longest = max(len(e.ids) for e in examples)
    ids, mask, labels = (torch.full((len(examples), longest), fill) for fill in (pad, 0, IGNORED))
    for row, e in enumerate(examples):
        ids[row, : len(e.ids)] = torch.tensor(e.ids)
        mask[row, : len(e.ids)] = 1
        labels[row, e.prompt : len(e.ids)] = torch.tensor(e.ids[e.prompt :])
    borne = labels[:, 1:] != IGNORED  # the first token is never predicted, whatever the prompt's length
    first = 1 + int(borne.any(0).nonzero()[0])
    return Batch(ids, mask, labels, int(mask.sum()), ids.numel(), int(borne.sum()), first)


def fingerprint(items: dict[str, list[Item]]) -> str:
    """sha256 over all splits' texts, in order."""
    return "sha256:" + hashlib.sha256(json.dumps(items, sort_keys=True).encode()).hexdigest()
