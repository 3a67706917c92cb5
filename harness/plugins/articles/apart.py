"""What tells the settings apart where a claim holds from those where it fails.

parts = [*parts_of(judgement, records, place), ...]
[one.words for one in distinctions(parts)]  # ["batch size", "rank"]
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from harness.plugins.articles.claims import REFUTED, SUPPORTED, TOO_SMALL, Decision, Judgement, Part
from harness.record import Record, short

STUDY = "study"  # what tells parts apart whose settings are alike
MOST = 2  # settings that are named, of which it may be one
SIDES = (SUPPORTED, REFUTED, TOO_SMALL)
FIRST = ("model", "data", "batch_size", "rank")  # in this order, then the rest by name
LENGTHS = {"max_steps", "max_tokens", "epochs"}  # differ from study to study: told only where nothing else differs
OFF = "off"
FUSED = ("fused_lora", "fused_dora")  # speed-ups, as the record's environment names them
UNTOLD = {"validate_every", "validation_items", "data_seed"}


@dataclass(frozen=True)
class Distinction:
    """A setting that tells two decisions apart. names: of several, one of which it is. at: of each decision the values
    of the one setting; empty of several and of a study."""

    names: tuple[str, ...]
    at: Mapping[Decision, str]

    @property
    def words(self) -> str:
        """Batch size or rank"""
        named = [*self.names[:MOST], *(["more"] if self.names[MOST:] else [])]
        return " or ".join(named).replace("_", " ")

    @property
    def text(self) -> str:
        """Batch size (supported at 2, refuted at 16)"""
        at = ", ".join(f"{decision} at {values}" for decision, values in self.at.items())
        return f"{self.words} ({at})" if at else self.words


def parts_of(judgement: Judgement, records: Sequence[Record], place: tuple[str, str, str]) -> tuple[Part, ...]:
    """The parts of a judgement in one place. records: all of the place."""
    named = {record.cell.name: record for record in records}
    parts = judgement.parts or ((judgement.decision, judgement.records),)
    return tuple(Part(decision, _settings([named[name] for name in names], place)) for decision, names in parts)


def distinctions(parts: Iterable[Part]) -> list[Distinction]:
    """The fewest settings that explain why parts have other decisions.

    A setting in which alone two parts differ explains them. Where parts differ in several, none of which is told yet,
    it is one of these; where they differ in none, it is the study.
    """
    sides = [part for part in parts if part.decision in SIDES]
    pairs = [pair for pair in itertools.combinations(sides, 2) if pair[0].decision != pair[1].decision]
    distinctions: list[Distinction] = []
    for names, pair in sorted(((_differing(*pair), pair) for pair in pairs), key=lambda differing: len(differing[0])):
        if {name for one in distinctions for name in one.names}.isdisjoint(names):
            ends = sorted(pair, key=lambda part: SIDES.index(part.decision))
            at = {part.decision: ", ".join(sorted(_values(part, names[0]))) for part in ends}
            distinctions.append(Distinction(tuple(names), at if len(names) == 1 and names != [STUDY] else {}))
    return sorted(distinctions, key=lambda one: _order(one.names[0]))


def _differing(one: Part, other: Part) -> list[str]:
    """The settings in which two parts have no value in common, or the study; only known ranks are compared."""
    either = one.settings.keys() | other.settings.keys()
    unlike = [name for name in either if _values(one, name).isdisjoint(_values(other, name))]
    ranked = "rank" in one.settings and "rank" in other.settings
    names = sorted((name for name in unlike if ranked or name != "rank"), key=_order)
    return [name for name in names if name not in LENGTHS] or names or [STUDY]


def _values(part: Part, name: str) -> frozenset[str]:
    """A setting that a record lacks is one that is off."""
    return part.settings.get(name, frozenset({OFF}))


def _order(name: str) -> tuple[int, str]:
    return FIRST.index(name) if name in FIRST else len(FIRST), name


def _settings(records: Sequence[Record], place: tuple[str, str, str]) -> dict[str, frozenset[str]]:
    _, model, data = place
    settings = {"model": frozenset({model}), "data": frozenset({data})}
    if ranks := frozenset(short(record.cell.rank) for record in records if record.cell.rank is not None):
        settings["rank"] = ranks
    if fused := frozenset(_fuses_layers(record) for record in records if record.cell.settings.method.adapt):
        settings["fused_layers"] = fused
    settings["dtype_of_weights"] = frozenset(str(record.cell.settings.model.dtype) for record in records)
    train = [record.cell.settings.train_dict() for record in records]
    for name in sorted(set().union(*train) - UNTOLD):
        settings[name] = frozenset(_shown(of.get(name)) for of in train)
    return settings


def _fuses_layers(record: Record) -> str:
    """Whether adapted layers were computed as one operation each, which takes less memory and time than peft's."""
    speedups = record.environment.get("speedups")
    states = [speedups.get(name) for name in FUSED] if isinstance(speedups, dict) else []
    return _shown(any(str(state).startswith("on") for state in states))


def _shown(value: object) -> str:
    if value is None or value is False:
        return OFF
    return "on" if value is True else str(value)
