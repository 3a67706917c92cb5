"""How a file of the user's own was read, and what of it was left out: told before anything runs, and kept."""

from __future__ import annotations

from dataclasses import dataclass, field

from harness import units


@dataclass
class Lengths:
    """What became of training records that are longer than train.max_length."""

    records: int
    """Different records that training reads."""
    cut: int
    """Those of them that were cut at train.max_length."""
    dropped: int
    """Records that were left out before any was drawn, those of the validation included (data.too_long=drop)."""

    def notes(self, max_length: int) -> list[str]:
        """What happens to long records: a sentence on those that are cut, and one on those that are left out."""
        limit = f"train.max_length={max_length} tokens"
        cut = [f"Cut at {limit}: {self.cut:,} of {units.plural(self.records, 'record')}."] if self.cut else []
        left_out = f"Left out as longer than {limit}: {units.plural(self.dropped, 'record')}."
        return [*cut, left_out] if self.dropped else cut


@dataclass
class OwnData:
    """How a file of the user's own was read. Counts are of its records, before parts of them are held out."""

    name: str
    """The file, as data.path names it."""
    format: str
    """What it was read as, such as ShareGPT, by its columns."""
    conversations: bool
    """Whether its records are conversations, which the model's chat template writes."""
    pairs: bool
    """Whether its records have two answers."""
    records: int
    """All records of the file."""
    documents: bool = False
    """Whether its records are texts without a question."""
    good: int | None = None
    """Answers that are marked as good, of those that were not left out. null where answers have no marks."""
    extras: list[str] = field(default_factory=list)
    """What records have beside questions, answers and turns, and what training sees: system prompts, tools, …"""
    unused: list[str] = field(default_factory=list)
    """Columns, and fields of turns, that were not used."""
    without_answer: int = 0
    """Records that were left out as they have no answer; of pairs, no two different ones; of documents,
    no text."""
    without_question: int = 0
    """Records that were left out as nothing is asked in them."""

    @property
    def sentence(self) -> str:
        """What it was read as, what was kept, and what was not, in one line."""
        kind = "document" if self.documents else "conversation" if self.conversations else "record"
        kind = kind if self.good is None else "answer"
        good = "" if self.good is None else f", {self.good:,} of them good"
        extras = (
            f", {' and '.join(filter(None, (', '.join(self.extras[:-1]), self.extras[-1])))} kept"
            if self.extras
            else ""
        )
        lack = "text" if self.documents else "two different answers" if self.pairs else "an answer"
        empty = {lack: self.without_answer, "a question": self.without_question}
        out = "".join(f"; left out: {count:,} without {what}" for what, count in empty.items() if count)
        unused = f"; not used: {', '.join(self.unused)}" if self.unused else ""
        return f"{self.name} is read as {self.format}: {units.plural(self.records, kind)}{good}{extras}{out}{unused}."
