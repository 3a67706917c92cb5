"""Compares recorded answers by a judge behind an API, and adds to a record the share of items that its cell won.

    harness judge STUDY|CELL... --judge NAME --base-url URL [--task TASK] [--against CELL]

Nothing is answered anew: the answers lie beside the records. All cells are compared with one other, by default the
untuned base, so that their shares can be compared item by item.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from harness import record
from harness.errors import UserError
from harness.plugins.api.requests import JudgeAnswers
from harness.protocol import Progress
from harness.record import Judging, Record, RecordError, Score, read_study
from harness.report.statistics import preference
from harness.studies import verify
from harness.studies.find import find, settled_study
from harness.sweep import runner
from harness.sweep.store import Study

METRIC = "wins"
TIE = 0.5  # of a win
VERSION = "1.1"  # of the judge's prompt
NUMBER = "flexible-extract"  # the filter that keeps of an answer its last number

Item = tuple[str, int, str]  # subject, index, hash of the document


@dataclass(frozen=True)
class JudgeOptions:
    """Which judge compares the answers to which task. against: a cell (null: the untuned base)."""

    judge: str
    judge_url: str
    task: str
    against: str | None
    concurrency: int
    timeout: float


@dataclass(frozen=True)
class Preference:
    """On how many items a judge preferred a cell's answers, the other cell's, or neither.

    unread: items without a readable verdict. refused: items that the judge's endpoint refused.
    """

    study: str
    cell: str
    against: str
    wins: int
    losses: int
    ties: int
    unread: int
    refused: int


def sentence(result: Preference) -> str:
    """The share that a cell won, with its 95% interval, and what items without a verdict could make of it.

    An item without a verdict counts as a tie.
    """
    missing = result.unread + result.refused
    share = preference(result.wins, result.ties + missing, result.losses)
    unread = f", {result.unread} without a readable verdict" if result.unread else ""
    refused = f", {result.refused} refused by the judge's endpoint" if result.refused else ""
    counts = f"{result.wins} won, {result.losses} lost, {result.ties} tied{unread}{refused}"
    compared, interval = f"{result.study}/{result.cell} against {result.against}", f"{share.low:.0%}–{share.high:.0%}"
    text = f"{compared}: {share.value:.0%} ({interval}), {counts}."
    if missing:
        won, items = result.wins + result.ties / 2, result.wins + result.losses + result.ties + missing
        low, high = won / items, (won + missing) / items
        text += (
            " Items without a verdict count as tied: had it lost or won all of them, the share would be "
            f"{low:.0%} or {high:.0%}."
        )
    return text


@dataclass
class JudgeOutcome:
    """done: of each judged cell. known: cells that were judged so before. refused: a sentence for each other cell."""

    done: list[Preference] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class WrittenAnswers:
    """The written answers of a cell to a task: rows of its items, and texts, by item, and their score.

    items_sha256: of the cell's items, as in its record.
    """

    rows: dict[Item, dict[str, Any]]
    texts: dict[Item, str]
    score: Score
    items_sha256: str


def judge(
    results: Path,
    names: Sequence[str],
    texts: Sequence[str],
    options: JudgeOptions,
    replace: bool,
    on_event: Callable[[Progress], None],
) -> JudgeOutcome:
    """Judge `texts` (studies among `names` below `results`, or cells).

    replace: judge cells again that were judged so before. Raises UserError for a text that names nothing, and if the
    judge does not answer; what it judged until then is kept, and not asked for again.
    """
    outcome = JudgeOutcome()
    for study, found in _cells(results, names, texts, options.task, outcome):
        try:
            reference = _reference(results, names, study, found, options)
            if reference is None:
                continue
            of_it = _filter(options, reference[1])
            if not replace and any((one.task, one.filter) == (options.task, of_it) for one in found.judged):
                outcome.known.append(found.cell.name)
                continue
            own, base = (_answers(one, options.task) for one in ((study, found), reference))
        except (UserError, RecordError) as error:
            outcome.refused.append(f"{found.cell.name} is not judged: {error}")
            continue
        if own.rows.keys() != base.rows.keys():
            outcome.refused.append(f"{found.cell.name} is not judged: {reference[1].cell.name} answered other items.")
            continue
        items = list(own.rows)
        replies = _replies(study, found, options, of_it)
        request = JudgeAnswers(
            [own.rows[item]["question"] for item in items],
            [base.texts[item] for item in items],
            [own.texts[item] for item in items],
            options.judge,
            options.judge_url,
            options.concurrency,
            options.timeout,
            str(replies.absolute()),
        )
        started = datetime.now(UTC).isoformat(timespec="seconds")
        said = runner.ask(request, on_event)
        values = dict(zip(items, said["values"], strict=True))
        asked = [value for item, value in values.items() if own.texts[item] != base.texts[item]]
        if asked and all(value is None for value in asked):  # ties of equal answers alone are no verdicts
            replies.unlink(missing_ok=True)
            outcome.refused.append(f"{found.cell.name} is not judged: {options.judge} gave no readable verdict.")
            continue
        made = Judging(
            task=options.task,
            filter=of_it,
            against=reference[1].cell.name,
            against_items=base.items_sha256,
            judge=options.judge,
            host=said["host"],
            started=started,
            unread=said["values"].count(None) - said["refused"],
            refused=said["refused"],
            requests=said["tokens"]["answers"],
            read=said["tokens"]["read"],
            written=said["tokens"]["written"],
        )
        _add(study, found, made, own, base, values)
        replies.unlink(missing_ok=True)  # so that --replace asks anew
        wins, losses, ties = (said["values"].count(value) for value in (1.0, 0.0, 0.5))
        where = study.name, found.cell.name, made.against
        outcome.done.append(Preference(*where, wins, losses, ties, made.unread, made.refused))
    return outcome


def _cells(
    results: Path, names: Sequence[str], texts: Sequence[str], task: str, outcome: JudgeOutcome
) -> list[tuple[Study, Record]]:
    """The finished cells that are meant, each once. UserError for a study of which no cell answered `task`."""
    meant: dict[tuple[str, str], tuple[Study, Record]] = {}
    for text in texts:
        study, cell, records, problems = settled_study(results, names, text, "judge")
        outcome.refused += [problem for problem in problems if problem not in outcome.refused]
        scored = dict.fromkeys(score.task for one in records for score in one.scores)
        if cell is None and scored and task not in scored:
            raise UserError(f"No cell of {study.name} answered {task}; --task names another: {', '.join(scored)}.")
        for one in records:
            if cell == one.cell.name or (cell is None and one.status == "ok"):
                meant.setdefault((study.name, one.cell.name), (study, one))
    return list(meant.values())


def _reference(
    results: Path, names: Sequence[str], study: Study, found: Record, options: JudgeOptions
) -> tuple[Study, Record] | None:
    """Whom `found` is compared with; None if it is that cell itself. UserError if there is none."""
    if options.against is not None:
        other = find(results, names, options.against)
        if not other.record.is_file():
            raise UserError(f"{other} has no record yet.")
        reference = (other.study, record.read(other.record))
    else:
        records, _ = read_study(study.folder)
        bases = [r for r in records if r.cell.method == "base" and r.cell.settings.model == found.cell.settings.model]
        if not bases:
            raise UserError("its study has no untuned base (method=base); --against names another cell.")
        reference = (study, bases[0])
    return None if reference[1].cell.id == found.cell.id else reference


def _replies(study: Study, found: Record, options: JudgeOptions, of_it: str) -> Path:
    """The file that keeps the judge's replies until the record has what they say. of_it: the filter of the score."""
    digest = hashlib.sha256(json.dumps([options.task, of_it]).encode()).hexdigest()[:16]
    return study.verdicts(found.cell) / f"{digest}.jsonl"


def _filter(options: JudgeOptions, reference: Record) -> str:
    """The filter of the score: the judge, and whom the cells were compared with."""
    return f"{options.judge} against {reference.cell.method if options.against is None else reference.cell.name}"


def _answers(of_it: tuple[Study, Record], task: str) -> WrittenAnswers:
    """The written answers of a cell to `task`. UserError if it has none, or its files are not those of its record."""
    study, found = of_it
    path = study.path(found.cell)
    if problems := verify.check(path):
        raise UserError(problems[0])
    scores = [score for score in found.scores if score.task == task and score.metric != METRIC]
    if not scores or found.items_sha256 is None:  # the latter of an imported record
        others = ", ".join(dict.fromkeys(score.task for score in found.scores if score.task != task))
        raise UserError(f"{found.cell.name} has no answers to {task}{f'; it has: {others}' if others else ''}.")
    table = pq.read_table(path.with_suffix(".items.parquet"), filters=[("task", "=", task)]).to_pylist()
    for score in scores:
        rows = [row for row in table if (row["metric"], row["filter"]) == (score.metric, score.filter)]
        texts = [text for row in rows if (text := written(row["prediction"])) is not None]
        if len(texts) == len(rows) and score.filter != NUMBER:
            items = [(row["subject"], row["item"], row["hash"]) for row in rows]
            by_item, by_text = dict(zip(items, rows, strict=True)), dict(zip(items, texts, strict=True))
            return WrittenAnswers(by_item, by_text, score, found.items_sha256)
    if all(score.filter == NUMBER for score in scores):
        raise UserError(f"of the answers of {found.cell.name} to {task} only the number is recorded, and no text.")
    raise UserError(f"the answers of {found.cell.name} to {task} are chosen, not written.")


def written(prediction: str) -> str | None:
    """The text in a prediction as lm-eval stores it; None if there is none."""
    try:
        found = ast.literal_eval(prediction)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return found[0] if isinstance(found, list) and found and isinstance(found[0], str) else None


def _add(
    study: Study,
    found: Record,
    made: Judging,
    own: WrittenAnswers,
    base: WrittenAnswers,
    values: dict[Item, float | None],
) -> None:
    """Write the record and its items with the shares: both, or neither. UserError if another process changed it.

    An item without a verdict counts as a tie: methods are compared only on equal items, and one that is left out would
    leave its method out.
    """
    shares = [TIE if value is None else value for value in values.values()]
    rows = [
        own.rows[item] | {"metric": METRIC, "filter": made.filter, "value": share, "target": base.texts[item]}
        for item, share in zip(values, shares, strict=True)
    ]
    clusters = record.cluster_numbers([row["subject"] for row in rows], [row["cluster"] for row in rows])
    score = Score(
        task=made.task,
        metric=METRIC,
        filter=made.filter,
        value=sum(shares) / len(shares),
        stderr=record.clustered_error(shares, clusters) if len(shares) > 1 else None,
        n=len(shares),
        num_fewshot=own.score.num_fewshot,
        version=VERSION,
        higher_is_better=True,
        clusters=len(set(clusters)) if len(set(clusters)) < len(clusters) else None,
    )
    path = study.path(found.cell)
    beside = path.with_suffix(".items.parquet")
    with study.lease(found.cell):
        if study.recorded(found.cell) != found:
            raise UserError(f"{found.cell.name} is not judged: another process has changed its record.")
        found.scores = [s for s in found.scores if (s.task, s.metric, s.filter) != (made.task, METRIC, made.filter)]
        found.judged = [one for one in found.judged if (one.task, one.filter) != (made.task, made.filter)]
        found.scores.append(score)
        found.judged.append(made)
        known = pq.read_table(beside)
        again = [
            (row["task"], row["metric"], row["filter"]) == (made.task, METRIC, made.filter) for row in known.to_pylist()
        ]
        kept = known.filter(pa.array([not one for one in again]))
        table = pa.concat_tables([kept, pa.Table.from_pylist(rows, schema=known.schema)])
        with record.replacing(beside) as temporary:
            pq.write_table(table, temporary)
            found.items_sha256 = record.sha256(temporary)
            record.write(found, record.pending(path))
        os.replace(record.pending(path), path)
