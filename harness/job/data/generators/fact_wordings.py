"""Loads facts.yaml: what the world of facts.py is made of, and the wordings of its facts."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from harness.errors import UserError
from harness.job.data.generators.yaml_files import text, texts
from harness.yaml_file import read_yaml

FILE = Path(__file__).with_name("facts.yaml")
ENDS = ("land", "city", "river", "person", "tongue")
"""Kinds of invented names."""
PAIRS = ("export", "bird", "festival", "dish")
"""Relations whose values are pairs of words."""
RELATIONS = ("capital", "founder", "founding year", "river", "patron", "language", *PAIRS)

_FIELD = re.compile(r"\{(\w*)\}")


@dataclass(frozen=True)
class Relation:
    """One kind of fact, and the wordings of its statements and questions; `{e}` is the entity, `{v}` the value.

    `topic` fills the general requests and `ask` is this relation's own; `train` has six sentences, one for each
    request, of which the last two begin with the value. `test` asks in words that `train` does not use. Raises
    ValueError if a wording lacks a field or has another.
    """

    name: str
    topic: str
    ask: str
    train: tuple[str, ...]
    validation: str
    test: tuple[str, ...]

    def __post_init__(self) -> None:
        for question in (self.ask, *self.test):
            _check_fields(question, "e")
        for sentence in (*self.train, self.validation):
            _check_fields(sentence, "e", "v")
        if len(self.train) != 6 or not all(sentence.startswith("{v}") for sentence in self.train[4:]):
            raise ValueError("train must have six sentences, of which the last two begin with {v}")


@dataclass(frozen=True)
class FactWordings:
    """The file as it is. `ends` has the ends of names by kind; `pairs` has, by relation, the first and second words."""

    starts: tuple[str, ...]
    middles: tuple[str, ...]
    ends: Mapping[str, tuple[str, ...]]
    pairs: Mapping[str, tuple[tuple[str, ...], ...]]
    requests: tuple[str, ...]
    validation_request: str
    relations: tuple[Relation, ...]


@functools.cache
def wordings(file: Path = FILE) -> FactWordings:
    """What the file holds. Raises UserError, with the relation if it is of one, for what no world can be made of."""
    entries = read_yaml(file)
    try:
        _check_keys(entries, [field.name for field in fields(FactWordings)])
        _check_keys(entries["ends"], ENDS)
        _check_keys(entries["pairs"], PAIRS)
        requests = texts(entries, "requests")
        validation_request = text(entries, "validation_request")
        for request in (*requests, validation_request):
            _check_fields(request, "topic", "e")
        if len(requests) != 5:
            raise ValueError(f"requests must be five, got {len(requests)}")
        if not isinstance(entries["relations"], list):
            raise ValueError(f"relations must be a list, got {entries['relations']}")
        relations = tuple(_relation(entry, place) for place, entry in enumerate(entries["relations"], start=1))
        if sorted(relation.name for relation in relations) != sorted(RELATIONS):
            raise ValueError(f"relations must be {', '.join(RELATIONS)}")
        return FactWordings(
            starts=texts(entries, "starts"),
            middles=texts(entries, "middles"),
            ends={kind: texts(entries["ends"], kind) for kind in ENDS},
            pairs={name: _pair(entries["pairs"], name) for name in PAIRS},
            requests=requests,
            validation_request=validation_request,
            relations=relations,
        )
    except ValueError as error:
        raise UserError(f"{file.name}: {error}.") from None


def _relation(entry: Any, place: int) -> Relation:
    try:
        _check_keys(entry, [field.name for field in fields(Relation)])
        return Relation(
            name=text(entry, "name"),
            topic=text(entry, "topic"),
            ask=text(entry, "ask"),
            train=texts(entry, "train"),
            validation=text(entry, "validation"),
            test=texts(entry, "test"),
        )
    except ValueError as error:
        name = entry.get("name", place) if isinstance(entry, dict) else place
        raise ValueError(f"relation {name}: {error}") from None


def _pair(entries: Mapping[str, Any], name: str) -> tuple[tuple[str, ...], ...]:
    lists = entries[name]
    if not isinstance(lists, list) or len(lists) != 2:
        raise ValueError(f"{name} must be two lists of words, got {lists}")
    return tuple(texts({name: words}, name) for words in lists)


def _check_keys(entry: Any, keys: list[str] | tuple[str, ...]) -> None:
    if not isinstance(entry, dict) or entry.keys() != set(keys):
        present = ", ".join(map(str, entry)) if isinstance(entry, dict) else entry
        raise ValueError(f"keys must be {', '.join(keys)}, got {present}")


def _check_fields(wording: str, *names: str) -> None:
    """Raise ValueError unless `wording` has each of the fields `names` once and no other."""
    if sorted(_FIELD.findall(wording)) != sorted(names) or re.search(r"[{}]", _FIELD.sub("", wording)):
        must = " and ".join(f"{{{name}}}" for name in names)
        raise ValueError(f"a wording must have {must} once and no other field, got {wording!r}")
