"""The table of `harness table --cost`: what each method's chosen setting costs beside its score, and what is worth it.

A setting is on the front if none that is cheaper, or costs the same, scores higher, and none with the same score is
cheaper. That is about what was measured; whether a score is higher beyond chance is what the sentence before the table
goes by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from harness import units
from harness.errors import UserError
from harness.report.answer import StudyAnswer
from harness.report.answer.place import place_prefix
from harness.report.answer.words import ScoreWords
from harness.report.pairwise import Contest, Standing
from harness.report.statistics import ALPHA
from harness.report.tables.entries import ABSENT
from harness.report.tables.rows import Rows
from harness.report.tables.table import Table, title

PLACE = ("Study", "Model", "Data")
COLUMNS = ("Method", "Setting", "Task", "Score", "Cost", "On the front", "Beaten by")


@dataclass(frozen=True)
class Priced:
    """A standing and its cost: dollars for the job of one cell, mean over seeds."""

    standing: Standing
    dollars: float

    @property
    def label(self) -> str:
        return self.standing.choice.label


def cost_of(answer: StudyAnswer) -> Table:
    """What the chosen settings of `answer`, whose rows have a price, cost and score, by place and primary score.

    Raises UserError if no cell has both.
    """
    rows: list[list[str]] = []
    sentences: list[str] = []
    places = [contest.place for contest in answer.contests]
    several = [i for i in range(len(PLACE)) if len({place[i] for place in places}) > 1]
    for contest in answer.contests:
        if not contest.primary or not (settings := priced(contest, answer.rows)):
            continue
        sentences += _sentences(contest, settings, place_prefix(contest.place, places))
        words = ScoreWords(contest)
        front = {id(each) for each in on_front(contest, settings)}
        for each in settings:
            worse_than = beaten_by(contest, each.label)
            rows.append(
                [
                    *(contest.place[i] for i in several),
                    *(each.standing.choice.method, each.standing.choice.setting or ABSENT, words.task),
                    *(words.value(each.standing), units.dollars(each.dollars)),
                    *("yes" if id(each) in front else "no", ", ".join(worse_than) or ABSENT),
                ]
            )
    if not rows:
        raise UserError("--cost requires finished cells with scores and times.")
    return Table(
        title=f"{title(answer.rows)}: cost against score",
        columns=[*(PLACE[i] for i in several), *COLUMNS],
        rows=rows,
        caption=[
            f"Cost: the time of a cell's whole job at {units.dollars(answer.rows.price or 0)} an hour and device, mean "
            "over seeds, without the search for the setting.",
            "Score: with its 95% interval. On the front: no setting scores at least as high for less, as measured.",
            "Beaten by: settings whose score is significantly better.",
        ],
        data=None,
        answer=sentences,
        text_columns=(*PLACE, "Method", "Setting", "Task", "On the front", "Beaten by"),
    )


def priced(contest: Contest, rows: Rows) -> list[Priced]:
    """The standings of `contest` whose cells have a cost, cheapest first."""
    records = rows.records
    settings = []
    for standing in contest.standings:
        costs = [cost for i in standing.choice.index if (cost := rows.cost(records[i])) is not None]
        if costs:
            settings.append(Priced(standing, fmean(costs)))
    return sorted(settings, key=lambda each: each.dollars)


def on_front(contest: Contest, settings: Sequence[Priced]) -> list[Priced]:
    """The Pareto front of `settings`, cheapest first: each scores better than all that cost no more."""
    sign = 1 if contest.higher_is_better else -1
    front: list[Priced] = []
    for each in sorted(settings, key=lambda priced: (priced.dollars, -sign * priced.standing.value)):
        if not front or sign * each.standing.value > sign * front[-1].standing.value:
            front.append(each)
    return front


def beaten_by(contest: Contest, label: str) -> list[str]:
    """Labels of the settings that are significantly better than `label`, best first."""
    return [
        standing.choice.label
        for standing in contest.standings
        if contest.corrected.get((standing.choice.label, label), 1.0) < ALPHA
    ]


def _sentences(contest: Contest, settings: Sequence[Priced], prefix: Sequence[str]) -> list[str]:
    compared = {label for labels in contest.paired if len(labels) > 1 for label in labels}
    unbeaten = [each for each in settings if each.label in compared and not beaten_by(contest, each.label)]
    words = ScoreWords(contest)
    if not unbeaten:
        said = f"No two settings answered the same items of {words.task}: none is known to be worth its cost."
        return [" ".join([*prefix, said])]
    cheapest, best = unbeaten[0], contest.standings[0]
    said = (
        f"The cheapest setting that no other beats significantly on {words.task} is {cheapest.label}: "
        f"{words.value(cheapest.standing)} at {units.dollars(cheapest.dollars)}"
    )
    priced_best = next((each for each in settings if each.standing is best), None)
    if best is not cheapest.standing and priced_best is not None:
        said += (
            f"; {priced_best.label} scored {words.highest}, {words.value(best)} at {units.dollars(priced_best.dollars)}"
        )
    return [" ".join([*prefix, f"{said}."])]
