"""Cost against score as the page draws it: what `report.cost_fronts` says, with settings by their positions.

Costs are device-hours; the page multiplies them by the reader's rate for an hour.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.errors import UserError
from harness.report.cost_fronts import CostFront, cost_fronts, require_one_device, why_none
from harness.report.figures.study_results import StudyResults
from harness.report.headline import LEARNED
from harness.report.pages.settings_block import short
from harness.score_names import task_label


def costs_block(study: StudyResults, price: float | None) -> dict[str, Any]:
    """What chosen settings cost and score.

    price: the card's, dollars for an hour of one device; null if it is unknown. refused: why there are no fronts; null
    if there are. fronts: of each place and score, the score of the data's own task first; its `settings` are in the
    order of cost, with `front` 1 for those on the Pareto front, `cheapest` the position of the cheapest that no other
    beats among them, and `sentence` in parts, where a number is device-hours.
    """
    try:
        require_one_device([record for row in study.rows for record in row.records], "Cost against score")
    except UserError as error:
        return {"price": price, "refused": str(error), "fronts": []}
    at = {id(record): i for i, row in enumerate(study.rows) for record in row.records}
    fronts = sorted(cost_fronts(study.answer), key=_is_aside)
    refused = None if fronts else why_none(study.answer)
    return {"price": price, "refused": refused, "fronts": [_front(study, front, at) for front in fronts]}


def _is_aside(front: CostFront) -> bool:
    """Whether it is not of the score that shows what the data taught."""
    return front.contest.score != LEARNED.get(front.contest.place[2])


def _front(study: StudyResults, front: CostFront, at: Mapping[int, int]) -> dict[str, Any]:
    contest = front.contest
    return {
        "place": study.places.index(contest.place),
        "score": contest.score,
        "task": task_label(*contest.score.split("/")[:2]),
        "sentence": [part if isinstance(part, str) else short(part) for part in front.sentence],
        "cheapest": None if front.cheapest is None else front.settings.index(front.cheapest),
        "settings": [
            {
                "setting": at[id(study.rows.records[each.standing.choice.index[0]])],
                "hours": short(each.hours),
                "hours_low": short(each.interval.low) if each.interval else None,
                "hours_high": short(each.interval.high) if each.interval else None,
                "value": short(each.standing.value),
                "low": short(each.standing.interval.low) if each.standing.interval else None,
                "high": short(each.standing.interval.high) if each.standing.interval else None,
                "front": int(each in front.front),
                "beaten": front.beaten_by(each),
            }
            for each in front.settings
        ],
    }
