"""The table of `harness table --cost`: what each method's chosen setting costs beside its score."""

from __future__ import annotations

from harness import units
from harness.errors import UserError
from harness.report.answer import StudyAnswer
from harness.report.answer.words import ScoreWords
from harness.report.cost_fronts import cost_fronts, text_of, why_none
from harness.report.tables.entries import ABSENT
from harness.report.tables.table import Table, title

PLACE = ("Study", "Model", "Data")
COLUMNS = ("Method", "Setting", "Task", "Score", "Cost", "On the front", "Beaten by")


def cost_of(answer: StudyAnswer, price: float) -> Table:
    """What the chosen settings of `answer` cost and score, by place and primary score.

    price: dollars for an hour of one device. Raises UserError if no cell has a cost and a score.
    """
    fronts = cost_fronts(answer)
    if not fronts:
        raise UserError(why_none(answer) or "--cost requires finished cells with scores and times.")
    places = fronts[0].places
    several = [i for i in range(len(PLACE)) if len({place[i] for place in places}) > 1]

    def dollars(hours: float) -> str:
        return units.dollars(price * hours)

    rows = []
    for front in fronts:
        words = ScoreWords(front.contest)
        for each in front.settings:
            choice = each.standing.choice
            rows.append(
                [
                    *(front.contest.place[i] for i in several),
                    *(choice.method, choice.setting or ABSENT, words.task),
                    *(words.value(each.standing), dollars(each.hours)),
                    *("yes" if each in front.front else "no", ", ".join(front.beaten_by(each)) or ABSENT),
                ]
            )
    return Table(
        title=f"{title(answer.rows)}: cost against score",
        columns=[*(PLACE[i] for i in several), *COLUMNS],
        rows=rows,
        caption=[
            f"Cost: the time of a cell's whole job at {units.dollars(price)} an hour and device, mean over seeds, "
            "without the search for the setting.",
            "Score: with its 95% interval. On the front: no setting scores at least as high for less, as measured.",
            "Beaten by: settings whose score is significantly better.",
        ],
        data=None,
        answer=[text_of(front.sentence, dollars) for front in fronts],
        text_columns=(*PLACE, "Method", "Setting", "Task", "On the front", "Beaten by"),
    )
