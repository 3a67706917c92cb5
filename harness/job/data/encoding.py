"""Training data: splits of items, tokenised as the evaluation asks, in batches equal for every method.

An item is ``{"question": str, "answer": str}`` or as harness.job.data.columns says. The default prompt is the one lm-eval's
gsm8k task shows; the loss is on the answer alone, and the end-of-text token after it is trained, so that a tuned model
stops. Of a conversation it is on all that the assistant says.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import random
import sys
from collections.abc import Callable, Iterable, Iterator
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
from harness.job.data import chat
from harness.job.data import columns as mapping
from harness.job.data.columns import CHAT, Item
from harness.job.models import hub as reach
from harness.record import micro_batch

IGNORED = -100  # torch's ignore_index


@dataclass(frozen=True)
class Example:
    """A tokenised item: `ids` of prompt, answer and end-of-text; the first `prompt` of them bear no loss.

    between: spans of further ids that bear none, as of what is said between the answers of a conversation.
    """

    ids: list[int]
    prompt: int
    between: tuple[tuple[int, int], ...] = ()

    @property
    def supervised(self) -> list[int]:
        """Positions of the tokens that bear loss. The first is never predicted, whatever the prompt's length."""
        silent = {at for span in self.between for at in range(*span)}
        return [at for at in range(max(self.prompt, 1), len(self.ids)) if at not in silent]


_root: ContextVar[str | None] = ContextVar("data_root", default=None)


@contextmanager
def at(data_root: str | None) -> Iterator[None]:
    """A context in which hub data sets are the folders of those names below `data_root` (null: the hub's own)."""
    if data_root is None:
        yield
        return
    token, cache = _root.set(data_root), datasets.config.HF_DATASETS_CACHE
    # `datasets` knows a local folder by the text of its card, and would serve what another of that name held before.
    datasets.config.HF_DATASETS_CACHE = Path(cache) / f"data_root-{state(data_root)}"
    try:
        with chdir(data_root):  # `datasets` takes a local folder of that relative path before it asks the hub
            yield
    finally:
        _root.reset(token)
        datasets.config.HF_DATASETS_CACHE = cache


def state(data_root: str) -> str:
    """Digest of the paths, sizes and times of change of all files below `data_root`."""
    digest = hashlib.sha256(str(Path(data_root).absolute()).encode())
    for where, folders, files in os.walk(data_root, followlinks=True):
        folders.sort()
        for name in sorted(files):
            path = os.path.join(where, name)
            with suppress(OSError):  # a link to nowhere
                found = os.stat(path)
                digest.update(f"\0{path}\0{found.st_size}\0{found.st_mtime_ns}".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def state_of(data: dict[str, Any], data_root: str | None) -> str:
    """What tells whether the data of these settings are still the same: files below data_root, and one's own."""
    found = [state(data_root)] if data_root is not None else []
    file = Path(data_root or ".", data.get("path") or "")
    if file.is_file():
        found += [str(file.stat().st_size), str(file.stat().st_mtime_ns)]
    return " ".join(found)


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
    for prompt in (data.get("prompt"), data.get("prompt_if_empty")):
        mapping.check_prompt(prompt or "", loaded["train"])
    train = mapping.limited(loaded["train"], data.get("limit"))
    return {"train": mapping.noisy(train, data.get("noise", 0)), "validation": loaded["validation"]}


def hub(
    path: str,
    subset: str | None,
    held_out_by: str | None = None,
    share: float = 0.02,
    split: str = "train",
    **columns: str,
) -> dict[str, list[Item]]:
    """A hub data set, or the local folder of its name below data_root, from its split for training.

    columns: of each field of the prompt, and of ``answer``, the column, or of ``messages``. No validation split is
    asked for: a `share` is held out by a hash of the column `held_out_by`, so that the split does not depend on order
    and rephrasings of one question stay together. Raises UserError if the data set is missing or lacks a column.
    """
    require(path)
    if _root.get() is None:
        reach.settle()
    try:
        rows = datasets.load_dataset(path, subset, split=split)
    except Exception as error:  # datasets and the hub raise a dozen kinds, all of them: it is not to be had
        raise missing(f"The data set {path}", error) from error
    return _held_out(mapping.mapped(rows, rows.column_names, columns, held_out_by, path), share)


def local(path: str | None, columns: dict[str, str | None], held_out_by: str | None = None, share: float = 0.1) -> dict:
    """The records of a file below data_root, or the folder one works in; the rest as in `hub`."""
    rows = mapping.read(path)
    there = list(dict.fromkeys(name for row in rows for name in row))
    given = {field: column for field, column in columns.items() if column is not None}
    if CHAT in given:
        given = {CHAT: given[CHAT]}
    found = _held_out(mapping.mapped(rows, there, given, held_out_by, path), share)
    for name, items in found.items():
        if not items:
            raise UserError(f"{path} is too small: a share of {share} held out leaves none of its records to {name}.")
    return found


def _held_out(found: list[tuple[str, Item]], share: float) -> dict[str, list[Item]]:
    """The items in two splits, by a hash of the text that comes with each."""
    out: dict[str, list[Item]] = {"train": [], "validation": []}
    for text, item in found:
        digest = hashlib.sha256(text.encode()).digest()
        held_out = int.from_bytes(digest[:8], "big") < share * 2**64
        out["validation" if held_out else "train"].append(item)
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
    return reach.refused(what, error, "check the connection, or name a folder that holds it by data_root=")


Encoder = Callable[[list[Item]], list[Example]]


def encoder(tokenizer: PreTrainedTokenizerBase, data: dict[str, Any], max_length: int) -> Encoder:
    """What tokenises items as the settings `data` say; UserError as in `encode_all`."""
    bare = data.get("prompt_if_empty")
    return lambda items: encode_all(tokenizer, items, data["prompt"], max_length, bare)


def encode(
    tokenizer: PreTrainedTokenizerBase, item: Item, prompt: str, max_length: int, bare: str | None = None
) -> Example:
    """Tokenise prompt and answer apart, as generation sees them, joined by lm-eval's one space.

    bare: the prompt where a field of the item is empty. A conversation is written by the tokenizer's own template.
    """
    if CHAT in item:
        ids, spans = chat.encode(tokenizer, item[CHAT])
        between = zip([end for _, end in spans], [begin for begin, _ in spans[1:]] + [len(ids)], strict=True)
        first = spans[0][0] if spans else len(ids)
        return Example(ids[:max_length], first, tuple(span for span in between if span[0] < span[1]))
    if bare is not None and not all(item.values()):
        prompt = bare
    before = tokenizer(prompt.format(**item))["input_ids"]
    after = tokenizer(" " + item["answer"], add_special_tokens=False)["input_ids"]
    return Example((before + after + [tokenizer.eos_token_id])[:max_length], len(before))


def encode_all(
    tokenizer: PreTrainedTokenizerBase, items: list[Item], prompt: str, max_length: int, bare: str | None = None
) -> list[Example]:
    """`items` tokenised; UserError if there is none, or if truncation leaves one without an answer."""
    if not items:
        raise UserError("The data set is empty; there is nothing to train or validate on.")
    if CHAT in items[0]:
        chat.require(tokenizer)
    examples = [encode(tokenizer, item, prompt, max_length, bare) for item in items]
    unanswered = sum(not example.supervised for example in examples)
    if unanswered:
        raise UserError(
            f"train.max_length={max_length} leaves no token of the answer in {unanswered} of {len(examples)} examples; "
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


def bucketed(batches: list[list[Example]], together: int, seed: int) -> list[list[Example]]:
    """The same examples in batches of like lengths: each `together` batches are sorted by length, cut and shuffled."""
    shuffle = random.Random(f"buckets {seed}")
    out = []
    for start in range(0, len(batches), together):
        drawn = batches[start : start + together]
        by_length = iter(sorted((e for batch in drawn for e in batch), key=lambda e: len(e.ids)))
        out += shuffle.sample([[next(by_length) for _ in batch] for batch in drawn], len(drawn))
    return out


def scheduled(items: list[Item], train: dict[str, Any], seed: int, encode: Encoder) -> list[list[list[Example]]]:
    """The examples of each step's micro-batches, by the settings `train`: the same for every method.

    Only what is drawn is encoded: most of a large data set never is. With `max_tokens` there are fewer steps than
    `max_steps`: the last is the one by which as many raw tokens are reached.
    """
    if not items:
        raise UserError("The data set is empty; there is nothing to train on.")
    size, accum, count = micro_batch(train), train["grad_accum"], train["max_steps"]
    if train.get("packing"):
        passes = itertools.chain.from_iterable(batches(len(items), len(items), sys.maxsize, seed))
        drawn_as_needed = (example for index in passes for example in encode([items[index]]))
        packs = itertools.islice(packed(drawn_as_needed, train["max_length"]), size * accum * count)
        micro = [[e for pack in group for e in pack] for group in iter(lambda: [*itertools.islice(packs, size)], [])]
    else:
        order = list(batches(len(items), size, count * accum, seed))
        drawn = sorted({i for batch in order for i in batch})
        examples = dict(zip(drawn, encode([items[i] for i in drawn]), strict=True))
        micro = bucketed([[examples[i] for i in batch] for batch in order], train["bucketing"], seed)
    steps = [micro[i : i + accum] for i in range(0, len(micro), accum)]
    most = train.get("max_tokens")
    if most is None:
        return steps
    reached = itertools.accumulate(sum(len(e.ids) for batch in step for e in batch) for step in steps)
    taken = next((i for i, tokens in enumerate(reached, start=1) if tokens >= most), None)
    if taken is None:
        raise UserError(f"train.max_tokens={most} is not reached in train.max_steps={count} steps; raise them.")
    return steps[:taken]


def packed(examples: Iterable[Example], room: int) -> Iterator[list[Example]]:
    """The examples in their order, as many at a time as have at most `room` tokens; none of them is cut."""
    pack: list[Example] = []
    taken = 0
    for example in examples:
        if pack and taken + len(example.ids) > room:
            yield pack
            pack, taken = [], 0
        pack.append(example)
        taken += len(example.ids)
    if pack:
        yield pack


def cut(step: list[list[Example]], size: int, room: int | None = None) -> list[list[Example]]:
    """The examples of a step's micro-batches, in their order, in micro-batches of at most `size`.

    room: tokens that were packed together; then `size` counts packs.
    """
    out = []
    for batch in step:
        packs = [[example] for example in batch] if room is None else list(packed(batch, room))
        out += [[e for pack in packs[i : i + size] for e in pack] for i in range(0, len(packs), size)]
    return out


def pieces(steps: list[list[list[Example]]], size: int, train: dict[str, Any]) -> list[list[list[Example]]]:
    """The micro-batches that a device is given of each of `steps`, which are scheduled by the settings `train`.

    They are of at most `size` sequences, or where they are packed, of at most `size` packs.
    """
    room = train["max_length"] if train.get("packing") else None
    return [cut(step, size, room) for step in steps]


@dataclass(frozen=True)
class Batch:
    """Examples as tensors, and the counts of their tokens.

    Padded, they are rows [sequences, longest] under an attention mask. Flat, they lie end to end in one row [1, tokens]
    of position ids that begin anew, and `lengths` are theirs: each is to attend to itself alone.

    keep: (k,) positions whose logits the loss needs; targets: (rows, k) the token after each, or IGNORED.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor | None
    position_ids: torch.Tensor | None
    lengths: tuple[int, ...] | None
    keep: torch.Tensor
    targets: torch.Tensor
    raw: int
    padded: int
    supervised: int

    def to(self, device: torch.device) -> Batch:
        tensors = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        return dataclasses.replace(self, **tensors)

    @property
    def tokens(self) -> torch.Tensor:
        """The token ids without padding, one sequence after another: the same in both layouts."""
        return self.input_ids.flatten() if self.attention_mask is None else self.input_ids[self.attention_mask.bool()]


@dataclass(frozen=True)
class Layout:
    """How examples become a batch: flat, or padded with the token `pad`, which bears neither attention nor loss.

    every: whether logits are taken at every position, as plain loops do, or only where a supervised token follows.
    All that is counted is counted on the host, so that no step waits for it.
    """

    flat: bool
    every: bool = False
    pad: int = 0

    def tokens(self, examples: list[Example]) -> int:
        """Tokens of a batch of `examples` that are computed on, padding included."""
        lengths = [len(e.ids) for e in examples]
        return sum(lengths) if self.flat else len(lengths) * max(lengths)

    def batch(self, examples: list[Example]) -> Batch:
        wanted = [e.supervised for e in examples]
        counts = (sum(len(e.ids) for e in examples), self.tokens(examples), sum(map(len, wanted)))
        return (self._flat if self.flat else self._padded)(examples, wanted, counts)

    def _flat(self, examples: list[Example], wanted: list[list[int]], counts: tuple[int, int, int]) -> Batch:
        ids, positions, keep, targets = [], [], [], []
        for e, places in zip(examples, wanted, strict=True):
            bear = set(places)
            kept = range(len(e.ids) - 1) if self.every else [at - 1 for at in places]
            keep += [len(ids) + at for at in kept]
            targets += [e.ids[at + 1] if at + 1 in bear else IGNORED for at in kept]
            ids += e.ids
            positions += range(len(e.ids))
        lengths = tuple(len(e.ids) for e in examples)
        row, at, kept, told = (torch.tensor(values) for values in ([ids], [positions], keep, [targets]))
        return Batch(row, None, at, lengths, kept, told, *counts)

    def _padded(self, examples: list[Example], wanted: list[list[int]], counts: tuple[int, int, int]) -> Batch:
        longest = max(len(e.ids) for e in examples)
        first = min((at for places in wanted for at in places[:1]), default=longest)
        kept = range(0 if self.every else first - 1, longest - 1)
        ids, mask, targets = [], [], []
        for e, places in zip(examples, wanted, strict=True):
            rest, bear = longest - len(e.ids), set(places)
            ids.append(e.ids + [self.pad] * rest)
            mask.append([1] * len(e.ids) + [0] * rest)
            targets.append([e.ids[at + 1] if at + 1 in bear else IGNORED for at in kept])
        rows, attended, keep, told = (torch.tensor(values) for values in (ids, mask, list(kept), targets))
        return Batch(rows, attended, None, None, keep, told, *counts)


def fingerprint(items: dict[str, list[Item]]) -> str:
    """sha256 over all splits' texts, in order."""
    return "sha256:" + hashlib.sha256(json.dumps(items, sort_keys=True).encode()).hexdigest()
