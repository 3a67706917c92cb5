"""Scores recorded cells on further tasks by their saved weights, without training.

    harness score STUDY_OR_CELL... --tasks a,b [--limit N] [--replace]

The untuned base models of a study are scored with its cells, because a tuned model is compared with its base. A record
may come from anywhere, so it passes through the gate first.
"""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import gate
from harness.errors import UserError
from harness.protocol import NO_PATHS, LocalPaths
from harness.record import Record, RecordError, awaits_scoring
from harness.score_names import score_label
from harness.settings import HELD_OUT, DataSettings, EvalSettings
from harness.studies import verify
from harness.studies.find import settled_study
from harness.sweep import runner
from harness.sweep.progress import SweepProgress
from harness.sweep.store import Study


@dataclass
class Asked:
    """What is to be scored.

    todo: cells and the tasks to score them on. known: cells that have scores for all tasks. refused: one sentence for
    each cell that can't be scored.
    """

    todo: list[tuple[Study, Record, list[str]]] = field(default_factory=list)
    known: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def plan(results: Path, names: Sequence[str], texts: Sequence[str], tasks: Sequence[str], replace: bool) -> Asked:
    """Plan the scoring of `texts` (studies among `names` below `results`, or cells) on `tasks`.

    replace: score tasks again that a cell has scores for. Raises UserError for a text that names nothing, and
    RecordError for a named cell whose record can't be read.
    """
    request = Asked()
    for study, recorded, named in _cells(results, names, texts, request):
        left = [task for task in tasks if replace or task not in {score.task for score in recorded.scores}]
        if not named and recorded.status != "ok" and not awaits_scoring(recorded):
            continue
        if not left:
            request.known.append(recorded.cell.name)
        elif (why := _objection(study, recorded)) is not None:
            request.refused.append(f"{recorded.cell.name} is not scored: {why}.")
        else:
            request.todo.append((study, recorded, left))
    return request


def _cells(
    results: Path, names: Sequence[str], texts: Sequence[str], request: Asked
) -> list[tuple[Study, Record, bool]]:
    """The requested cells and their untuned base cells, and whether each was named itself."""
    meant: dict[tuple[str, str], tuple[Study, Record, bool]] = {}
    for text in texts:
        study, cell, records, problems = settled_study(results, names, text, "score")
        request.refused += [problem for problem in problems if problem not in request.refused]
        wanted = [r for r in records if cell in (None, r.cell.name)]
        bases = [r for r in records if not _tuned(r) and any(_same_model(r, w) for w in wanted)]
        for r in (*wanted, *bases):
            meant.setdefault((study.name, r.cell.name), (study, r, cell == r.cell.name))
    return list(meant.values())


def _tuned(recorded: Record) -> bool:
    return recorded.source is not None or recorded.cell.settings.method.tuned


def _same_model(one: Record, other: Record) -> bool:
    return one.cell.settings.model == other.cell.settings.model


def _objection(study: Study, recorded: Record) -> str | None:
    """Why the cell of a record can't be scored without training, as a clause; None if it can be."""
    if recorded.source is not None:
        return f"it is an imported result of {recorded.source.project}, without weights"
    if recorded.status != "ok" and not awaits_scoring(recorded):
        return f"it ended as {recorded.status}"
    if recorded.cell.settings.behind_api:
        return "its model is behind an API, so no weights of it are here"
    path = study.path(recorded.cell)
    if (why := gate.refusal(recorded, path)) is not None:
        return why
    if _tuned(recorded):
        saved, merge = recorded.saved, recorded.merge
        if saved is None or study.weights(recorded) is None:
            return f"it has no saved weights; to train it again and keep them: {study.anew(recorded, 'adapter')}"
        if saved.form == "merged" and not (merge and merge.merged):
            return "its saved, merged weights are not the model that was scored; save=adapter saves that model"
    problems = verify.check(path)
    return problems[0].rstrip(".") if problems else None


def eval_settings(recorded: Record, overrides: dict[str, Any], tasks: list[str]) -> EvalSettings:
    """How `recorded` is scored on `tasks`: as before but for `overrides`, on all items, and running no model's code.

    Raises UserError for settings that exclude each other.
    """
    changed = {"limit": None, "unsafe_code": False} | overrides | {"tasks": tasks}
    if overrides.get("chat_template") is False:  # no turns without a template
        changed.setdefault("fewshot_as_multiturn", False)
    settings = dataclasses.replace(recorded.cell.settings.eval, **changed)
    if settings.fewshot_as_multiturn and not settings.chat_template:
        raise UserError("--fewshot-as-multiturn requires --chat-template.")
    return settings


def score(
    request: Asked,
    overrides: dict[str, Any],
    data_root: str | None,
    tell: Callable[[str], None],
    local: LocalPaths = NO_PATHS,
) -> list[tuple[Study, Record]]:
    """Score the cells of `request.todo`; returns their new records. `tell` gets one line for each score.

    overrides: fields of EvalSettings for all cells; the rest is as each cell had it. A cell that can't be scored after
    all is added to those that were refused. local: whose code is run, so no record names it. Raises UserError, before
    anything is scored, if a task can't be had.
    """

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a cluster's stop is as orderly as Ctrl-C
    checked: list[tuple[EvalSettings, DataSettings]] = []
    for _, recorded, tasks in request.todo:
        data = recorded.cell.settings.data if HELD_OUT in tasks else DataSettings()
        wanted = (eval_settings(recorded, overrides, tasks), data)
        if wanted not in checked:
            runner.check_tasks(*wanted, data_root, local)
            checked.append(wanted)
    progress, scored = SweepProgress([recorded.cell for _, recorded, _ in request.todo]), []
    try:
        for study, recorded, tasks in request.todo:
            progress.start(recorded.cell)
            try:
                with study.lease(recorded.cell) as lease:
                    if study.recorded(recorded.cell) != recorded:
                        raise UserError(f"{recorded.cell.name} is not scored: another process has changed its record.")
                    settings, update = eval_settings(recorded, overrides, tasks), progress.update
                    again = runner.score(recorded.cell, study, lease, settings, data_root, update, local)
            except (UserError, RecordError) as error:
                progress.skip(recorded.cell)
                request.refused.append(str(error))
            else:
                progress.scored(recorded.cell)
                scored.append((study, again))
                for line in lines(study, again):
                    tell(line)
    finally:
        progress.close()
    return scored


def lines(study: Study, recorded: Record) -> list[str]:
    """The scores of the last scoring of a record, for a terminal."""
    scores = [s for s in recorded.scores if s.task in recorded.rescored[-1].tasks]
    return [
        f"{study.name}/{recorded.cell.name}: {score_label(s.task, s.metric, s.filter)}: {s.value:.4f}"
        + ("" if s.stderr is None else f" ± {s.stderr:.4f}")
        + f", n = {s.n}, {s.num_fewshot} shots"
        for s in scores
    ]
