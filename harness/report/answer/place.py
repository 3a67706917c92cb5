"""What one place of a study answers: its best methods, what is said of them, and what is left open."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from harness import units
from harness.grouping import grouped
from harness.record import Record
from harness.report.answer.advice import few
from harness.report.answer.limits import Limits, as_sentence
from harness.report.costs import SAME
from harness.report.pairwise import Standing
from harness.report.select import Choice, Place
from harness.report.tables.rows import Row

MOST_SENTENCES = 3  # of one place


@dataclass(frozen=True)
class Doubt:
    """What one place leaves open, and what would decide it.

    aim: such as "tell qlora from full". seeds: how many would; None if seeds alone would not. remedy: what would
    instead, as a sentence that `aim` begins; None if nothing within reach would.
    """

    aim: str
    seeds: int | None
    remedy: str | None = None


@dataclass(frozen=True)
class Decision:
    """What to take in one place: the part of the answer that another run of the study should repeat.

    take: the method that is better than all others, or the untuned model that is better than all methods; None if
        several methods tie or nothing is recommended.
    tied: the methods that tie, by name; empty where one is taken or nothing is compared.
    under: by limit (memory, time, price, forgetting) the one of `tied` to take; a limit under which they are not told
        apart is missing.
    """

    take: str | None = None
    tied: tuple[str, ...] = ()
    under: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PlaceAnswer:
    """What the records say of the methods of one place.

    best: the method to take, or those that tie, the cheapest first, each with its score and interval; empty if no tuned
        model is scored. A method without a chosen setting stands there by its experiments.
    sentences: the answer in words, the decision first; at most three. doubt: what is left open; None if nothing is.
    """

    best: tuple[Standing, ...]
    sentences: tuple[str, ...]
    doubt: Doubt | None = None
    decision: Decision = Decision()

    def noting(self, notes: Sequence[str]) -> PlaceAnswer:
        """With clauses that stand at the end: in the last sentence if there are three."""
        if not notes:
            return self
        if len(self.sentences) < MOST_SENTENCES:
            return replace(self, sentences=(*self.sentences, sentence(notes)))
        last = "; ".join([self.sentences[-1].removesuffix("."), *notes])
        return replace(self, sentences=(*self.sentences[:-1], f"{last}."))


def sentence(clauses: Sequence[str]) -> str:
    """Clauses as one sentence. A name at its beginning stays as it is."""
    text = f"{'; '.join(clauses)}."
    return text if text.split(maxsplit=1)[0] not in OPENINGS else text[0].upper() + text[1:]


OPENINGS = ("differences", "each", "only", "significantly", "not", "no", "of", "trained", "untuned,")


def by_cost(memory: Mapping[str, float | None]) -> list[str]:
    """Labels by memory, the least first; by name where it is the same, within SAME, or where one has none."""
    with_memory = {label: value for label, value in memory.items() if value}
    if len(with_memory) < len(memory):
        return sorted(memory)
    groups: list[list[str]] = []
    for label in sorted(with_memory, key=lambda label: (with_memory[label], label)):
        if groups and with_memory[label] <= (1 + SAME) * with_memory[groups[-1][0]]:
            groups[-1].append(label)
        else:
            groups.append([label])
    return [label for group in groups for label in sorted(group)]


def unfinished(choices: Sequence[Choice], records: Sequence[Record]) -> Iterator[str]:
    """Clauses on the methods of which no setting finished with every seed, and of those of which not every fresh seed
    did. records: all of the place."""
    none, some = [], []
    for choice in choices:
        if choice.lost and not choice.index:
            own = [record for record in records if record.cell.method == choice.method]
            failed = Counter(str(record.status) for record in own if record.status != "ok")
            if failed.total() == len(own):
                none.append(f"{choice.label} ({by_status(choice.lost)})")
            else:
                some.append(f"{choice.label} ({by_status(failed)} of {units.plural(len(own), 'cell')})")
    if none:
        yield f"no result: {few(none)}"
    if some:
        yield f"not judged, as no setting finished with every seed: {few(some)}"
    for choice in choices:
        if choice.unfinished:
            seeds = len(choice.index) * choice.confirmed + sum(choice.unfinished.values())
            instead = "" if choice.confirmed else ", so the seeds that chose its setting stand for it"
            yield f"of {choice.label}'s {seeds} fresh seeds, {by_status(choice.unfinished)}{instead}"


def unequal_training(rows: Mapping[str, Row]) -> Iterator[str]:
    """A clause on methods that were asked for more training than others. rows: the chosen one of each method."""
    trained = {label: row.records[0] for label, row in rows.items() if row.finished and row.records[0].train}
    lengths = {label: record.cell.settings.train for label, record in trained.items()}
    if len({(each.max_steps, each.epochs, each.max_tokens) for each in lengths.values()}) < 2:
        return
    by_steps = grouped((record.train.steps, label) for label, record in trained.items() if record.train)
    took = [f"{few(sorted(labels))} for {units.plural(steps, 'step')}" for steps, labels in sorted(by_steps.items())]
    yield f"trained unequally: {', '.join(took)}"


def by_status(counts: Mapping[str, int]) -> str:
    """Numbers of cells by status, such as "2 diverged, 1 oom"."""
    return ", ".join(f"{number} {status}" for status, number in counts.items())


def unscored(rows: Mapping[str, Row], limits: Limits) -> Iterator[str]:
    """What is known of a place without scores: its losses, memory and speed, where they are told apart."""
    trained = [label for label, row in rows.items() if row.finished and row.records[0].cell.seed is not None]
    if not trained:
        return
    yield "No score is recorded, so none of the methods is recommended."
    if advantages := limits.told(trained, loss=True):
        yield as_sentence(advantages)


def place_prefix(place: Place, places: Sequence[Place]) -> list[str]:
    """What tells a place from the others, such as "wordmath:"."""
    parts = [part for part, each in zip(place, zip(*places, strict=True), strict=True) if len(set(each)) > 1]
    return [f"{'/'.join(parts)}:"] if parts else []
