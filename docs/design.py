"""Renders the numbers of docs/study-design.md: `python docs/design.py`.

What stands between ``<!-- KIND: ARGUMENT -->`` and ``<!-- end -->`` comes from the grids in sweeps/published/, the
records in results/ and the blocks of plug-ins. tests/house/test_study_design.py holds the page to it.
"""

from __future__ import annotations

import fnmatch
import functools
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from published import PLUGIN_KINDS, RESULTS, records
from tabulate import tabulate

from harness import plugin, units
from harness.config import ROOT
from harness.config_folders import published_sweeps
from harness.record import Record, read_study
from harness.record.names import short
from harness.report import power
from harness.report.frame import score_name
from harness.report.headline import learned

sys.path.append(str(ROOT / "benchmarks"))
import sweeps

PAGE = ROOT / "docs" / "study-design.md"
BLOCK = re.compile(r"(<!-- (\w+): (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)
EFFECT, SEEDS = 0.03, 5


def seeds_and_items(study: str) -> str:
    """What `harness power` says of the effect that matters, by the noise of a recorded study."""
    given, said = power.assumptions(records(study), RESULTS / study)
    return power.describe(EFFECT, SEEDS, given, said)


def pilot(study: str) -> str:
    """Of each data set of a study, the score of each method by steps and batch size, mean over seeds."""
    found: dict[tuple[Any, ...], list[Record]] = defaultdict(list)
    for record in records(study):
        cell, train = record.cell, record.cell.settings.train
        steps = train.max_steps or 0  # none for the base, which is not trained
        found[cell.data, steps, steps and train.batch_size, cell.method, cell.lr or 0.0].append(record)
    rows = []
    for (data, steps, batch, method, lr), group in sorted(found.items()):
        scored = [value for record in group if (value := _learned(record)) is not None]
        rows.append(
            (
                data,
                method,
                steps or "–",
                batch or "–",
                f"{lr:g}" if lr else "–",
                len(group),
                f"{100 * fmean(scored):.0f}" if scored else group[0].status,
            )
        )
    return _table(["Data", "Method", "Steps", "Batch", "Rate", "Seeds", "Score (%)"], rows)


def _learned(record: Record) -> float | None:
    scores = {score_name(score): score.value for score in record.scores}
    name = learned(record.cell.settings.data.name or "", scores)
    return None if name is None else scores[name]


@functools.cache  # of the page, and of the test of their sum
def costs(pattern: str) -> str:
    """Cells and hours on 2 cores of the sweeps whose names match, by the rule of benchmarks/sweeps.py, how many of the
    cells are recorded in results/reference, and the hours that all recorded cells took, added seeds included."""
    rows: list[tuple[str, str, int, int, str, str]] = []
    total, taken = 0.0, 0.0
    for path in published_sweeps().values():
        if fnmatch.fnmatch(path.stem, pattern):
            found = sweeps.cells(path.stem, [])
            hours = sum(sweeps.seconds(cell, sweeps.CORES) for cell in found) / 3600
            total += hours
            question = sweeps.header(path.stem).splitlines()[0]
            recorded = read_study(RESULTS / "reference" / path.stem)[0]
            took = sum(record.seconds for record in recorded) / 3600
            taken += took
            done = len({record.cell.id for record in recorded} & {cell.id for cell in found})
            rows.append((f"`{path.stem}`", question, len(found), done, f"{hours:.1f}", f"{took:.1f}"))
    sums = (sum(row[2] for row in rows), sum(row[3] for row in rows))
    head = ["Sweep", "Question", "Cells", "Recorded", "Hours", "Took"]
    return _table(head, [*rows, ("", "all", *sums, f"{total:.1f}", f"{taken:.1f}")])


def losses_by_rate(study: str) -> str:
    """The last validation loss at each rate that a study of one seed tried of LoRA's ranks and of full fine-tuning.

    A row has one data set, number of rows and number of steps. Raises ValueError unless all ranks tried the same rates.
    """
    groups: dict[tuple[str, int, int], dict[str, dict[float, float]]] = defaultdict(lambda: defaultdict(dict))
    for record in records(study):
        cell, rows, steps = record.cell, record.cell.settings.data.limit, record.cell.settings.train.max_steps
        loss = record.validation_loss
        if rows is None or steps is None or cell.lr is None or loss is None:
            raise ValueError(f"{cell.name} has no number of rows, steps, rate or loss")
        groups[cell.settings.data.name or "", rows, steps][_setting(record)][cell.lr] = loss
    table = []
    for (data, rows, steps), losses in sorted(groups.items()):
        full, *ranks = (dict(sorted(losses[name].items())) for name in sorted(losses, key=_place))
        if any([*each] != [*ranks[0]] for each in ranks):
            raise ValueError(f"ranks have different rates of {data}, {rows} rows")
        columns = [_rates(ranks[0]), *map(_losses, ranks), _rates(full), _losses(full)]
        table.append((f"{data}, {rows:,} in {units.plural(steps, 'step')}", *columns))
    names = sorted({_setting(record) for record in records(study)}, key=_place)
    return _table(["Rows", "Rate", *names[1:], "Rate", names[0]], table)


def _rates(losses: dict[float, float]) -> str:
    return ", ".join(short(rate) for rate in losses)


def _losses(losses: dict[float, float]) -> str:
    return ", ".join(f"{loss:.3f}" for loss in losses.values())


def losses_by_rows(study: str) -> str:
    """The last validation loss and the score of each setting by data set and number of rows, mean over seeds."""
    groups: dict[tuple[str, int], dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
    for record in records(study):
        rows_of = record.cell.settings.data
        groups[rows_of.name or "", rows_of.limit or 0][_setting(record)].append(record)
    names = sorted({_setting(record) for record in records(study)}, key=_place)
    table = []
    for (data, rows), settings in sorted(groups.items()):
        losses = [fmean(r.validation_loss for r in settings[name] if r.validation_loss is not None) for name in names]
        scored = [[value for r in settings[name] if (value := _learned(r)) is not None] for name in names]
        scores = ", ".join(f"{100 * fmean(values):.0f}" for values in scored if values)
        table.append((f"{data}, {rows:,}", *(f"{loss:.3f}" for loss in losses), scores or "–"))
    return _table(["Rows", *names, "Scores in this order (%)"], table)


def _setting(record: Record) -> str:
    return record.cell.method if record.cell.rank is None else f"Rank {record.cell.rank}"


def _place(setting: str) -> tuple[int, str]:
    """Its place in a table: methods without a rank, then ranks by their number."""
    rank = setting.removeprefix("Rank ")
    return int(rank) if rank != setting else 0, setting


def _table(header: list[str], rows: Sequence[tuple[Any, ...]]) -> str:
    return tabulate(rows, header, "pipe", disable_numparse=True) + "\n"


KINDS: dict[str, Callable[[str], str]] = {
    "power": seeds_and_items,
    "pilot": pilot,
    "costs": costs,
    "rates": losses_by_rate,
    "losses": losses_by_rows,
}


def rendered(kind: str, argument: str) -> str:
    make = KINDS[kind] if kind in KINDS else plugin.load(PLUGIN_KINDS[kind])
    return f"\n{make(argument)}\n"


def renewed(text: str) -> str:
    """`text` with its blocks rendered anew; blocks of plug-ins that are not installed stay as they are."""

    def block(match: re.Match[str]) -> str:
        head, kind, argument, end = match.groups()
        return head + rendered(kind, argument) + end if kind in {*KINDS, *PLUGIN_KINDS} else match[0]

    return BLOCK.sub(block, text)


if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
