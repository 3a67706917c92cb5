"""Keeps a model's answers on disk as they come, so that an interrupted command never asks for them again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness import record
from harness.errors import UserError
from harness.plugins.api.job.client import Client, Messages, Reply

REFUSALS = 10  # of the first questions, after which a model is taken to refuse all


@dataclass(frozen=True)
class JournalEntry(Reply):
    """A line of the journal. model, host: who answered. date: in UTC."""

    key: str
    model: str
    host: str
    date: str


class Journal:
    """Answers of `client` by the key of their question, also of earlier calls; written line by line, so that none is
    lost. path: null to keep them in memory alone.

    Raises UserError for a file that is no journal.
    """

    def __init__(self, path: Path | None, client: Client):
        self._path, self._client = path, client
        self.answers: dict[str, JournalEntry] = {}
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._load(path)

    def _load(self, path: Path) -> None:
        *lines, last = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else [""]
        for line in lines:
            try:
                entry = record.decode(JournalEntry, json.loads(line))
            except (ValueError, RecursionError):  # what a full disk cut off
                continue
            self.answers[entry.key] = entry
        if lines and not self.answers:
            raise UserError(f"{path} holds something else than a model's answers; move it away.")
        if last:  # a line that a killed call began
            write_lines(path, map(asdict, self.answers.values()))

    def ask_all(
        self,
        questions: Sequence[tuple[str, Messages]],
        concurrency: int,
        answered: Callable[[], None] = lambda: None,
        **parameters: Any,
    ) -> dict[str, str]:
        """Ask those of `questions`, by key, that have no answer yet. answered: called after each.

        Returns what the endpoint says of each question whose content it refuses. Raises UserError if the model does not
        answer, or refuses the first `REFUSALS` questions; the message says whether answers are kept.
        """
        refusals: dict[str, str] = {}

        def keep(key: str, reply: Reply) -> None:
            self._add(key, reply)
            answered()

        def refused(key: str, reason: str) -> bool:
            refusals[key] = reason
            return bool(self.answers) or len(refusals) < REFUSALS

        left = [(key, messages) for key, messages in questions if key not in self.answers]
        try:
            self._client.ask_all(left, concurrency, keep, refused, **parameters)
        except UserError as error:
            if self._path is None or not self.answers:
                raise
            sentence = str(error).removesuffix(".")
            raise UserError(
                f"{sentence}; earlier answers are saved: rerun the same command to ask for the rest."
            ) from error
        return refusals

    def _add(self, key: str, reply: Reply) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        entry = JournalEntry(**asdict(reply), key=key, model=self._client.model, host=self._client.host, date=now)
        if self._path is not None:
            with record.naming(self._path), self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(entry), ensure_ascii=False) + "\n")
        self.answers[key] = entry


def write_lines(path: Path, values: Iterable[dict[str, Any]]) -> None:
    """Write `values` to `path` as JSON lines, all or nothing."""
    with record.replacing(path) as temporary:
        temporary.write_text("".join(json.dumps(v, ensure_ascii=False) + "\n" for v in values), encoding="utf-8")
