"""Loads the splits of a data set: from the hub, from a folder below data_root, or from a local file."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from harness import data_files
from harness.errors import UserError
from harness.job.data import formats, media
from harness.job.data.columns import (
    Item,
    MappedRows,
    by_words,
    check_empty,
    check_prompt,
    limited,
    mapped,
    mapped_rows,
    noisy,
    text_before,
)
from harness.job.data.documents import TEXT
from harness.job.data.files import FileRows, read
from harness.job.data.labels import are_labels, label_of
from harness.job.data.normalising import normalised
from harness.job.data.places import read_each
from harness.job.data.preferences import GOOD, MARK, REJECTED
from harness.job.data.turns import CALLS, CHAT, SYSTEM, TOOLS, text_of
from harness.job.data.turns import answers as is_answer
from harness.job.models import hub
from harness.record import OwnData
from harness.settings import DataSettings

NUMBERS: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float)}  # by annotation
_root: ContextVar[str | None] = ContextVar("data_root", default=None)


@dataclass(frozen=True)
class HeldOutShares:
    """What is held out of a data set, which has the name `data` in messages. needed: the parts that can't be empty.

    in_order: whether the validation keeps the order of the rows, which may come topic by topic. Else it has that of
    their hashes, as train.validation_items takes its first ones.
    """

    data: str
    validation: float
    test: float
    needed: Sequence[str] = ("train", "validation", "test")
    in_order: bool = False


@contextmanager
def with_data_root(data_root: str | None) -> Iterator[None]:
    """A context in which data sets are loaded from folders of their names below `data_root` (null: from the hub)."""
    if data_root is None:
        yield
        return
    import datasets  # late: few plans need it, and it takes a tenth of their imports

    token, cache = _root.set(data_root), datasets.config.HF_DATASETS_CACHE
    # `datasets` identifies a local folder by its card, and would serve the cached data of another folder of that name.
    datasets.config.HF_DATASETS_CACHE = Path(cache) / f"data_root-{folder_digest(data_root)}"
    try:
        with chdir(data_root):  # `datasets` takes a local folder of that relative path before it asks the hub
            yield
    finally:
        _root.reset(token)
        datasets.config.HF_DATASETS_CACHE = cache


def folder_digest(data_root: str) -> str:
    """A digest of the paths, sizes and modification times of all files below `data_root`, but for compiled Python."""
    digest = hashlib.sha256(str(Path(data_root).absolute()).encode())
    for where, folders, files in os.walk(data_root, followlinks=True):
        folders[:] = sorted(folder for folder in folders if folder != "__pycache__")
        for name in sorted(files):
            path = os.path.join(where, name)
            with suppress(OSError):  # a broken link
                status = os.stat(path)
                digest.update(f"\0{path}\0{status.st_size}\0{status.st_mtime_ns}".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def data_state(data: DataSettings, data_root: str | None) -> str:
    """Changes when the data of these settings change: the files below data_root, or the local file.

    A relative path names other data in another working folder.
    """
    states = [folder_digest(data_root)] if data_root is not None else []
    if data.path is not None:
        path = Path(data_root or ".", data.path).absolute()
        states.append(str(path))
        with suppress(UserError):  # of an index, which the reader says
            for status in (file.stat() for file in data_files.behind(path)):
                states += [str(status.st_size), str(status.st_mtime_ns)]
    return " ".join(states)


def splits(data: DataSettings, data_root: str | None) -> dict[str, list[Item]]:
    """The splits ``train`` and ``validation`` of the settings `data`, and ``test`` if a part is held out for it.

    Raises UserError if they can't be loaded.
    """
    with with_data_root(data_root):
        loaded = _loaded(data)
    for prompt in (data.prompt, data.prompt_if_empty):
        check_prompt(prompt or "", loaded["train"])
    train = limited(loaded["train"], data.limit)
    parts = {"train": noisy(train, data.noise), "validation": loaded["validation"]}
    return parts | ({"test": loaded["test"]} if data.tested else {})


def _loaded(data: DataSettings) -> dict[str, list[Item]]:
    """What the function of the settings `data` returns, called with those of them that it takes."""
    settings = {"test_share": data.test_share, "drop_empty": data.drop_empty}
    keywords: dict[str, Any] = {name: value for name, value in settings.items() if value}
    try:
        takes = inspect.signature(instantiate(data.load, _partial_=True).func).parameters
    except InstantiationException as error:
        raise _failed(error) from error
    _check_load(data, takes)
    if "test_share" in keywords and "test_share" not in takes:
        raise UserError(
            f"data.test_share={data.test_share} requires data in columns, such as data=local; data={data.name} has "
            "tasks of its own."
        )
    if "drop_empty" in keywords and "drop_empty" not in takes:
        raise UserError(f"data.drop_empty=true requires a file of your own (data=local), got data={data.name}.")
    if data.own and not data.documents:
        keywords["answers"] = data.answers
    try:
        return instantiate(data.load, _convert_="all", **keywords)
    except InstantiationException as error:  # hydra wraps all that the target raises, also UserError
        if isinstance(error.__cause__, UserError):
            raise error.__cause__ from None
        raise _failed(error) from error


def _failed(error: InstantiationException) -> UserError:
    return UserError(f"data.load failed: {str(error.__cause__ or error).strip().splitlines()[0]}")


def _check_load(data: DataSettings, takes: Mapping[str, inspect.Parameter]) -> None:
    """Raise UserError for a setting of data.load that its function does not take, or that must be a number.

    takes: the parameters of the function. Their annotations are texts, as in all modules here.
    """
    names = [name for name in data.load if not name.startswith("_")]  # Hydra's own, such as _target_
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values()):
        for name in names:
            if name not in takes:
                raise UserError(
                    f"data.load.{name} is no setting of data={data.name}; it takes {', '.join(takes) or 'none'}."
                )
    for name in names:
        kinds = NUMBERS.get(takes[name].annotation) if name in takes else None
        if kinds is not None and type(data.load[name]) not in kinds:
            what = "a whole number" if kinds == (int,) else "a number"
            raise UserError(f"data.load.{name} must be {what}, got {data.load[name]}.")


def from_hub(
    path: str,
    subset: str | None,
    held_out_by: str | None = None,
    share: float = 0.02,
    split: str = "train",
    test_share: float = 0.0,
    in_order: bool = True,
    **columns: str,
) -> dict[str, list[Item]]:
    """The training split of a hub data set, or of the local folder of its name below data_root.

    columns: the column of each field of the prompt, of ``answer`` and of ``options``, or of ``messages``. A `share` is
    held out for validation, and `test_share` for the test, by a hash of the column `held_out_by`: neither part depends
    on the order or number of records, and rephrasings of a question stay together. in_order: as of HeldOutShares; false
    where rows come topic by topic. Raises UserError if the data set or a column is missing, or if the part for the test
    is empty.
    """
    require(path)
    import datasets

    if _root.get() is None:
        hub.settle()
    try:
        rows = datasets.load_dataset(path, subset, split=split)
    except Exception as error:  # datasets and the hub raise a dozen kinds
        raise missing(f"The data set {path}", error) from error
    items = mapped(rows, rows.column_names, columns, held_out_by, path)
    return _held_out(items, HeldOutShares(path, share, test_share, needed=("test",), in_order=in_order))


def from_file(
    path: str | None,
    columns: dict[str, str | None],
    held_out_by: str | None = None,
    share: float = 0.1,
    test_share: float = 0.0,
    answers: str = "auto",
    drop_empty: bool = False,
) -> dict[str, list[Item]]:
    """The records of a file below data_root, or the working folder; the rest as in `from_hub`.

    The file may be another trainer's: harness/job/data/formats.py. The hash is of the normalised text, so that
    questions that differ in form alone are in one part. answers: the setting data.answers; of labels, each has its
    share of every part. drop_empty: whether records without a question or an answer may be many. Raises UserError if
    they are and may not be.
    """
    if path is None:
        raise data_files.no_path(documents=False)
    name, mapped, _ = _of_file(path, columns, held_out_by)
    if not drop_empty:
        check_empty(mapped, name)
    items = [item for _, item in mapped.items]
    texts = [normalised(text) for text, _ in mapped.items] if held_out_by else _openings(items)
    keyed = list(zip(texts, items, strict=True))
    shares = HeldOutShares(name, share, test_share)
    return (_stratified if are_labels(items, answers) else _held_out)(keyed, shares)


def _openings(items: Sequence[Item]) -> list[str]:
    """What each item asks, normalised; of conversations that begin alike, what the shortest of them asks.

    Logs have a conversation once more after each answer. The parts of one log are held out together, as all answers of
    a conversation are trained on.
    """
    openings = [normalised(text_before(item)) for item in items]
    texts, letters = set(openings), set(map(_letters, openings))

    def opening(item: Item) -> str:
        # Letters of turns add up, so one pass over them finds the few beginnings that may be known.
        before = list(accumulate((_letters(normalised(turn["content"])) for turn in item[CHAT]), initial=""))
        answers_at = [at for at, turn in enumerate(item[CHAT]) if is_answer(turn) and before[at] in letters]
        prefixes = (normalised(text_before({CHAT: item[CHAT][: at + 1]})) for at in answers_at)
        return next(text for text in prefixes if text in texts)

    return [opening(item) if CHAT in item else text for text, item in zip(openings, items, strict=True)]


def _letters(text: str) -> str:
    """The letters and digits of a normalised text alone."""
    return "".join(filter(str.isalnum, text))


def from_documents(
    path: str | None, columns: dict[str, str | None], window: int, share: float = 0.1, test_share: float = 0.0
) -> dict[str, list[Item]]:
    """The texts of a folder, or of a column of a file, as documents: harness/job/data/documents.py.

    Shares are of the documents, by a hash of the normalised text: copies of one are in one part, and each part has one
    at least. window: tokens of a window that is scored, which the task reads off the settings. Raises UserError for
    fewer than three documents.
    """
    if path is None:
        raise data_files.no_path(documents=True)
    documents = _of_texts(path, columns)[0]
    keyed = [(normalised(item[TEXT]), item) for item in documents]
    if (different := len({text for text, _ in keyed})) < data_files.FEWEST_DOCUMENTS:
        raise data_files.too_few(path, different)
    return _stratified(keyed, HeldOutShares(path, share, test_share), label=lambda item: TEXT)


def own_data(data: DataSettings, data_root: str | None) -> OwnData | None:
    """How the user's own file is read; None of other data. Raises UserError if it can't be."""
    if not data.own or data.load.get("path") is None:
        return None
    with with_data_root(data_root):
        if data.documents:
            return _of_texts(data.load["path"], data.load["columns"])[1]
        return _of_file(data.load["path"], data.load["columns"], data.load.get("held_out_by"))[2]


def place_of(item: Item, data: DataSettings, data_root: str | None) -> str:
    """Where the first record of `item` stands in the user's own file; of other data, what the item begins with.

    Reads the file once more: items don't carry their places, and only a refusal asks for one.
    """
    if own_path := data.load.get("path") if data.own and not data.documents else None:
        with with_data_root(data_root):
            mapped = _of_file(own_path, data.load["columns"], data.load.get("held_out_by"))[1]
        for index, (_, other) in enumerate(mapped.items):
            if other == item:
                return f"{own_path}, {mapped.place(index)}"
    return by_words(item)


def _of_texts(path: str, columns: Mapping[str, str | None]) -> tuple[list[Item], OwnData]:
    """The documents of a file or folder that hold something, and how it was read."""
    content = _content(path)
    there = list(dict.fromkeys(name for row in content.rows for name in row))
    column = _composed(columns.get(TEXT) or TEXT)
    if column not in there and column == TEXT and len(there) == 1:
        column = there[0]
    if column not in there:
        raise UserError(
            f"{path} has no column {column!r}; it has: {', '.join(there) or 'none'}; write data.columns.text=COLUMN."
        )
    media.refuse(content.rows, [column], path)
    texts = [*read_each(lambda row: text_of(row.get(column)), content.rows, content.place)]
    documents = [{TEXT: text} for text in texts if text.strip()]
    own = OwnData(
        name=path,
        format=f"text ({', '.join(content.notes)})" if content.notes else "text",
        conversations=False,
        pairs=False,
        documents=True,
        records=len(texts),
        unused=[name for name in there if name != column] + content.unread,
        without_answer=len(texts) - len(documents),
    )
    return documents, own


def _of_file(path: str, columns: Mapping[str, str | None], held_out_by: str | None) -> tuple[str, MappedRows, OwnData]:
    """The name of a file, its items, and how it was read."""
    content = _content(path)
    rows = content.rows
    columns = {field: column and _composed(column) for field, column in columns.items()}
    held_out_by = held_out_by and _composed(held_out_by)
    form = formats.recognised(rows, columns, path)
    media.refuse(rows, form.source_columns, path)
    unused = formats.unused(rows, form, held_out_by)
    rows = form.rows(rows, content.place)
    there = list(dict.fromkeys(name for row in rows for name in row))
    mapped = mapped_rows(rows, there, form.columns, held_out_by, path, asking=True, place=content.place)
    items = [item for _, item in mapped.items]
    own = OwnData(
        name=path,
        format=f"{form.name} ({', '.join(content.notes)})" if content.notes else form.name,
        conversations=CHAT in items[0],
        pairs=REJECTED in items[0],
        good=sum(item[MARK] == GOOD for item in items) if MARK in items[0] else None,
        records=len(rows),
        extras=[*form.extras, *(kind for kind in _extras(items) if kind not in form.extras)],
        unused=unused + content.unread,
        without_answer=mapped.without_answer,
        without_question=mapped.without_question,
    )
    return path, mapped, own


def _content(path: str) -> FileRows:
    """As `_rows_of`, with the accents of columns composed: é looks alike whether it is one character or two."""
    content = _rows_of(path)
    if not all(name.isascii() for row in content.rows for name in row):
        content.rows = [{_composed(name): value for name, value in row.items()} for row in content.rows]
    return content


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _rows_of(path: str) -> FileRows:
    """The rows of a file or folder, or of the split train of a hub data set where nothing of that name is here."""
    if _root.get() is not None or not data_files.names_hub(path, Path(".")):
        return read(path)
    import datasets

    hub.settle()
    try:
        return FileRows(datasets.load_dataset(path, split="train").to_list(), ["split train"])
    except Exception as error:  # datasets and the hub raise a dozen kinds
        raise missing(f"The data set {path}", error) from error


def _extras(items: Sequence[Item]) -> list[str]:
    """What conversations among `items` have beside what is said in them."""
    talks = [item for item in items if CHAT in item]
    kinds = {
        "system prompts": any(turn["role"] == SYSTEM for item in talks for turn in item[CHAT]),
        "tools": any(TOOLS in item for item in talks),
        "tool calls": any(CALLS in turn for item in talks for turn in item[CHAT]),
    }
    return [kind for kind, there in kinds.items() if there]


def _held_out(items: list[tuple[str, Item]], shares: HeldOutShares) -> dict[str, list[Item]]:
    """Split the items by a hash of the text that comes with each. A part whose share is a text or more, and which is
    empty by chance, gets the lowest one of training. Raises UserError if a needed part is empty."""

    def part(text: str) -> str:
        place = _place(text)
        if place < shares.validation * 2**64:
            return "validation"
        return "test" if place < (shares.validation + shares.test) * 2**64 else "train"

    parts = {text: part(text) for text in sorted({text for text, _ in items}, key=_place)}
    for name, share in (("validation", shares.validation), ("test", shares.test)):
        training = [text for text, of in parts.items() if of == "train"]
        lacks = name in shares.needed and name not in parts.values()
        if lacks and share * len(parts) >= 1 and len(training) > 1:
            parts[training[0]] = name
    return _parted(items, parts, shares)


def _stratified(
    items: list[tuple[str, Item]], shares: HeldOutShares, label: Callable[[Item], str] = label_of
) -> dict[str, list[Item]]:
    """As `_held_out`, but of each label: the questions with the lowest hashes. Of two or more one is in the test, of
    three or more one in the validation. Of a question with several labels the first in alphabetical order counts."""
    labels: dict[str, str] = {}
    for text, item in items:
        labels[text] = min(labels.get(text, label(item)), label(item))
    part = dict.fromkeys(labels, "train")
    for each in dict.fromkeys(labels.values()):
        texts = sorted((text for text, own in labels.items() if own == each), key=_place)
        validation = round(shares.validation * len(texts)) or int(len(texts) > 2)
        test = (round(shares.test * len(texts)) or int(len(texts) > 1)) if shares.test else 0
        part |= dict.fromkeys(texts[:validation], "validation")
        part |= dict.fromkeys(texts[validation : validation + test], "test")
    return _parted(items, part, shares)


def _place(text: str) -> int:
    """The hash of a text, below 2**64."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def _parted(items: list[tuple[str, Item]], part_of: Mapping[str, str], shares: HeldOutShares) -> dict[str, list[Item]]:
    """The items by part, which the text has that comes with each. Raises as `_held_out`."""
    parts = ("train", "validation", "test") if shares.test else ("train", "validation")
    out: dict[str, list[Item]] = {name: [] for name in parts}
    for text, item in items:
        out[part_of[text]].append(item)
    if not shares.in_order:
        validation = [(text, item) for text, item in items if part_of[text] == "validation"]
        out["validation"] = [item for _, item in sorted(validation, key=lambda pair: _place(pair[0]))]
    for name in shares.needed:
        if name in out and not out[name]:
            held_out = " and ".join(f"{size:g}" for size in (shares.validation, shares.test) if size)
            why = f"{shares.data} has too few different records: with a share of {held_out} held out, {name} has none"
            raise UserError(why + ("; data.test_share=0 trains without a test." if name == "test" else "."))
    return out


def require(path: str) -> None:
    """Raise UserError if data_root is set and has no data set `path`: the hub is not a silent fallback."""
    if _root.get() is not None and not Path(path).is_dir():
        raise missing(f"The data set {path}", None)


def missing(what: str, error: Exception | None) -> UserError:
    """Why data did not load, and the remedy; `what` begins the sentence."""
    root = _root.get()
    if root is not None:
        return UserError(f"{what} is not in data_root={root}; put it there, or omit data_root.")
    return hub.refused(what, error, "check the connection, or set data_root= to a folder that has it")


def file_fingerprint(data: DataSettings, data_root: str | None) -> dict[str, str]:
    """The sha256 of the own file of a user, under ``file``, which a sweep compares before it goes on; else empty."""
    digest = data_files.digest(data.path, data_root) if data.own else None
    return {} if digest is None else {"file": digest}


def fingerprint(items: dict[str, list[Item]]) -> str:
    """sha256 over all splits' texts, in order."""
    return "sha256:" + hashlib.sha256(json.dumps(items, sort_keys=True).encode()).hexdigest()
