"""Built and tokenised requests on disk, as the cells of a sweep ask the same: on a GPU each is a process of its own.

A file is named by a digest of all that decides its content, so it never changes. It is Parquet with checksums: a
damaged file is made again. Files that nobody has read for a month are deleted.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
from lm_eval.api.instance import Instance
from lm_eval.api.task import Task
from pyarrow import parquet

from harness import record
from harness.job.evaluate.tokenising import IDENTITY, shared
from harness.job.models import embedded

FORMAT = 2  # to be raised with every change to what the files hold, or to how it is made here
KEPT = 30 * 24 * 3600  # seconds that a file is kept after it was last read
FORM = ("system_instruction", "apply_chat_template", "fewshot_as_multiturn", "tokenizer_name")
PACKAGES = ("lm_eval", "transformers", "tokenizers", "jinja2", "datasets")
REQUESTS = pa.schema(
    {
        "doc": pa.int32(),
        "index": pa.int32(),
        "repeats": pa.int32(),
        "kind": pa.string(),
        "text": pa.string(),
        "others": pa.string(),  # of the arguments, as JSON
    }
)
# Of each sequence, how many tokens are the context, how many are those of the sequence before, and the rest.
TOKENS = pa.schema({"context": pa.int32(), "shared": pa.int32(), "rest": pa.list_(pa.int32())})

Pair = tuple[list[int], list[int]]  # tokens of a context, and of what follows


def folder() -> Path:
    """Where the files are, beside the embedded models; it may not exist yet."""
    return embedded.cache() / "requests"


def digest(*parts: Any) -> str:
    """Of `parts`, which JSON can hold, and of the versions of what makes requests."""
    text = json.dumps([FORMAT, _versions(), *parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def _versions() -> list[str]:
    return [version(name) for name in PACKAGES]


# Requests


@dataclass(frozen=True)
class RequestForm:
    """How the requests of a task are built, as lm-eval's `build_all_requests` is told.

    origin: the state of a user's folder of tasks, whose code may be edited.
    """

    samples: list[int]
    seed: int
    keywords: dict[str, Any]
    origin: str | None = None

    def name(self, task: Task, docs: dict[int, Any]) -> str | None:
        """The name of their file; None if they depend on more than is known, such as a template in unknown hands."""
        form = {key: self.keywords.get(key) or None for key in FORM}
        if form["apply_chat_template"] and not str(form["tokenizer_name"]).startswith(IDENTITY):
            return None
        examples = list(task.fewshot_docs()) if task.config.num_fewshot else []
        texts = hashlib.sha256()
        for doc in (*docs.values(), *examples):
            texts.update(json.dumps(doc, sort_keys=True, default=str).encode() + b"\0")
        config = json.dumps(task.dump_config(), sort_keys=True, default=str)
        return digest("requests", config, self.samples, self.seed, form, texts.hexdigest(), self.origin)


def built(task: Task, form: RequestForm) -> list[Instance]:
    """The requests of `task`: read from the file that another cell left, or built and left for others."""
    sampled = set(form.samples)
    docs = dict(enumerate(doc for number, doc in enumerate(task.eval_docs) if number in sampled))
    name = form.name(task, docs)
    if name is not None and (table := _read(name, REQUESTS)) is not None and (cached := _requests(table, task, docs)):
        return cached
    task.set_fewshot_seed(seed=form.seed)  # examples are drawn anew, whatever was built before
    type(task).build_all_requests(task, samples=form.samples, **form.keywords)
    requests = task.instances
    if name is not None:
        with suppress(TypeError, ValueError, pa.ArrowException):  # requests that these columns can't hold
            table = _table(requests)
            if _requests(table, task, docs) == requests:
                _write(name, table)
    return requests


def _table(requests: list[Instance]) -> pa.Table:
    rows = [
        (one.doc_id, one.idx, one.repeats, one.request_type, one.args[0], json.dumps(one.args[1:])) for one in requests
    ]
    return pa.table(dict(zip(REQUESTS.names, map(list, zip(*rows, strict=True)), strict=True)), schema=REQUESTS)


def _requests(table: pa.Table, task: Task, docs: dict[int, Any]) -> list[Instance] | None:
    """The requests in `table`; None if they are not of these `docs`."""
    requests, before = [], ""
    for row in zip(*(table[name].to_pylist() for name in REQUESTS.names), strict=True):
        doc, index, repeats, kind, text, others = row
        if doc not in docs:
            return None
        before = before if before == text else text  # one string for all choices of a question
        arguments = (before, *json.loads(others))
        requests.append(Instance(kind, docs[doc], arguments, index, (task.config.task, doc, repeats)))
    return requests


# Tokens


def tokens(name: str, encode: Callable[[], list[Pair]]) -> list[Pair]:
    """What `encode` returns: read from the file `name` that another cell left, or made and left for others."""
    table = _read(name, TOKENS)
    if table is not None:
        return list(_pairs(table))
    pairs = encode()
    _write(name, _coded(pairs))
    return pairs


def texts_digest(texts: Iterable[Any]) -> str:
    """A digest of the arguments of requests, in their order."""
    checksum = hashlib.sha256()
    for arguments in texts:
        checksum.update(json.dumps(arguments, default=str).encode() + b"\0")
    return checksum.hexdigest()


def _coded(pairs: list[Pair]) -> pa.Table:
    columns: tuple[list, list, list] = ([], [], [])
    before: list[int] = []
    for context, rest in pairs:
        whole = context + rest
        same = shared(before, whole)
        for column, value in zip(columns, (len(context), same, whole[same:]), strict=True):
            column.append(value)
        before = whole
    return pa.table(dict(zip(TOKENS.names, columns, strict=True)), schema=TOKENS)


def _pairs(table: pa.Table) -> Iterator[Pair]:
    before: list[int] = []
    for context, same, rest in zip(*(table[name].to_pylist() for name in TOKENS.names), strict=True):
        before = before[:same] + rest
        yield before[:context], before[context:]


# Files


def _read(name: str, schema: pa.Schema) -> pa.Table | None:
    """The table in the file `name`; None if there is none, or it is damaged."""
    path = folder() / f"{name}.parquet"
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            table = file.read(use_threads=False)  # this process may fork
        os.utime(path)
    except (OSError, pa.ArrowException):
        return None
    return table if table.schema.equals(schema) else None


def _write(name: str, table: pa.Table) -> None:
    """Leave `table` in the file `name`, whole or not at all. Where nothing can be written, nothing is left."""
    with suppress(OSError):
        folder().mkdir(parents=True, exist_ok=True)
        with record.replacing(folder() / f"{name}.parquet") as aside:
            parquet.write_table(table, aside, compression="zstd", write_page_checksum=True)
        for path in folder().glob("*.parquet"):
            if path.stat().st_mtime < time.time() - KEPT:
                path.unlink(missing_ok=True)
