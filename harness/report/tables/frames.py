"""What the first table of a study says, as data frames: for notebooks and further analysis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from harness.report.answer import StudyAnswer
from harness.report.answer.advice import headline
from harness.report.cost_fronts import CostedSetting, CostFront, cost_fronts, require_one_device
from harness.report.items.answered import AnsweredItems, answers
from harness.report.pairwise import Contest, score_of
from harness.report.select import Choice, Place
from harness.report.statistics import Interval
from harness.report.tables.best import Relative, memory_to_full, speed_to_lora

TEXTS = ("study", "model", "data", "method", "setting", "edges", "reason", "score", "letters")
COUNTS = ("tries", "lost", "seeds")


def chosen_of(answer: StudyAnswer) -> pd.DataFrame:
    """One row for each method of a model and a data set: its chosen setting, what it costs and how it scores.

    A method of which none could be chosen for want of validation losses has a row for each setting that finished.

    study, model, data, method          text
    setting                             text; null if none could be chosen, as are then all means and scores
    tries, lost                         how many settings were tried, and how many of them did not finish
    seeds                               with how many seeds the chosen setting finished
    edges                               text: values of the setting at the edge of its grid; empty without
    reason                              text: why no setting could be chosen

    Means over seeds:

    train_allocated_peak                bytes; the peak of training memory
    memory_ratio                        its ratio to that of full fine-tuning
    memory_ratio_low, memory_ratio_high         the ratio's 95% interval; null of a single seed
    tokens_per_second_steady            raw tokens / second
    speed_ratio                         its ratio to that of lora
    speed_ratio_low, speed_ratio_high           the ratio's 95% interval; null of a single run
    validation_loss                     nats per token; of pairs, nats per pair

    The score by which methods are compared, that of the data's own task or the first one:

    score                               its name, TASK/METRIC/FILTER
    value, low, high                    its mean and 95% interval, as its task defines it (a fraction of 1 for an
                                        accuracy)
    standing                            its position by this mean, of a model and data set: 1 is the best, also where a
                                        lower value is better
    letters                             text: methods that share one can't be told apart; null without a test
    best_probability                    how likely the method is the best one, a fraction of 1
    expected_rank                       its expected rank; 1 is the best

    Every score, by its name:

    TASK/METRIC/FILTER                  its mean
    TASK/METRIC/FILTER:low              the lower end of its 95% interval
    TASK/METRIC/FILTER:high             the upper end
    TASK/METRIC/FILTER:letters          text, as letters
    """
    choices, settled, contests = answer.choices, answer.settled, answer.contests
    memory, speed = memory_to_full(settled), speed_to_lora(settled, answer.rows.records)
    losses = [row.mean("validation_loss") if row else None for row in settled]
    lines: list[dict[str, Any]] = []
    for choice, of_memory, of_speed, loss in zip(choices, memory, speed, losses, strict=True):
        costs = _relative("train_allocated_peak", "memory_ratio", of_memory)
        costs |= _relative("tokens_per_second_steady", "speed_ratio", of_speed) | {"validation_loss": loss}
        lines.append(_tried(choice) | costs | _headline(choice, headline(contests, choice.place)))
    data = pd.DataFrame(lines).assign(**_scores(choices, contests))
    numbers = {name: "float64" for name in data if name not in (*TEXTS, *COUNTS) and not name.endswith(":letters")}
    return data.astype(numbers)  # a column of nulls alone is one of numbers, too


def _tried(choice: Choice) -> dict[str, Any]:
    return {
        **_place(choice.place),
        "method": choice.method,
        "setting": choice.setting,
        "tries": choice.tries,
        "lost": sum(choice.lost.values()),
        "seeds": len(choice.index),
        "edges": "; ".join(choice.edges),
        "reason": choice.reason,
    }


def _relative(value: str, ratio: str, measured: Relative) -> dict[str, float | None]:
    return {value: measured.value, ratio: measured.ratio} | _ends(f"{ratio}_", measured.interval)


def _headline(choice: Choice, contest: Contest | None) -> dict[str, Any]:
    standing = next((s for s in contest.standings if s.choice == choice), None) if contest else None
    if contest is None or standing is None:
        return dict.fromkeys(HEADLINE)
    rank = standing.rank
    return {
        "score": contest.score,
        "value": standing.value,
        **_ends("", standing.interval),
        "standing": contest.standings.index(standing) + 1,
        "letters": standing.letters,
        "best_probability": rank.best if rank else None,
        "expected_rank": rank.expected if rank else None,
    }


HEADLINE = ("score", "value", "low", "high", "standing", "letters", "best_probability", "expected_rank")


def _scores(choices: Sequence[Choice], contests: Sequence[Contest]) -> dict[str, list[Any]]:
    """The columns of every score."""
    standings = {(c.score, c.place, s.choice.label): s for c in contests for s in c.standings}
    columns: dict[str, list[Any]] = {}
    for name in dict.fromkeys(contest.score for contest in contests):
        own = [standings.get((name, choice.place, choice.label)) for choice in choices]
        intervals = [standing.interval if standing else None for standing in own]
        columns[name] = [standing.value if standing else None for standing in own]
        columns[f"{name}:low"] = [interval.low if interval else None for interval in intervals]
        columns[f"{name}:high"] = [interval.high if interval else None for interval in intervals]
        columns[f"{name}:letters"] = [standing.letters if standing else None for standing in own]
    return columns


def costs_of(answer: StudyAnswer, price: float | None = None) -> pd.DataFrame:
    """One row for each chosen setting with a cost and a score, of each task, the cheapest first.

    price: dollars for an hour of one device. Raises UserError for records of several kinds of devices.

    study, model, data, method, setting   text; setting is null if none could be chosen
    score                               text: TASK/METRIC/FILTER
    value, low, high                    its mean and 95% interval, as its task defines it (a fraction of 1 for an
                                        accuracy)
    seeds                               of how many seeds the time of the job is known
    device_hours                        hours of a cell's whole job × its devices, mean over seeds; the search for the
                                        setting is not in it
    device_hours_low, device_hours_high         its 95% interval; null of a single seed
    dollars                             device_hours × the price; null without a price
    on_front                            whether no setting scores at least as high for less, as measured
    cheapest                            whether it is the cheapest that no other beats significantly
                                        (no, if no two were compared)
    beaten_by                           text: the settings that score significantly better, best first; empty without
    """
    require_one_device(answer.rows.records, "Cost against score")
    rows = [_costed(front, each, price) for front in cost_fronts(answer) for each in front.settings]
    data = pd.DataFrame(rows, columns=COSTS)
    texts = dict.fromkeys((*TEXTS[:5], "score", "beaten_by"), "object")
    kinds = texts | {"seeds": "int64", "on_front": "bool", "cheapest": "bool"}
    return data.astype({name: kinds.get(name, "float64") for name in COSTS})


COSTS = ["study", "model", "data", "method", "setting", "score", "value", "low", "high", "seeds", "device_hours"]
COSTS += ["device_hours_low", "device_hours_high", "dollars", "on_front", "cheapest", "beaten_by"]


def _costed(front: CostFront, setting: CostedSetting, price: float | None) -> dict[str, Any]:
    standing = setting.standing
    return {
        **_place(front.contest.place),
        **{"method": standing.choice.method, "setting": standing.choice.setting, "score": front.contest.score},
        **{"value": standing.value, **_ends("", standing.interval)},
        **{"seeds": len(setting.seeds), "device_hours": setting.hours, **_ends("device_hours_", setting.interval)},
        "dollars": None if price is None else price * setting.hours,
        "on_front": setting in front.front,
        "cheapest": setting is front.cheapest,
        "beaten_by": ", ".join(front.beaten_by(setting)),
    }


def _ends(prefix: str, interval: Interval | None) -> dict[str, float | None]:
    low, high = (None, None) if interval is None else interval[1:]
    return {f"{prefix}low": low, f"{prefix}high": high}


def pairs_of(contests: Sequence[Contest]) -> pd.DataFrame:
    """One row for each two methods that answered the same items, each in its chosen setting; the better mean first.

    study, model, data                  text
    score, better, other                text: the score's name, TASK/METRIC/FILTER, and the two methods
    difference, low, high               the first minus the second, with its 95% interval, in the score's unit; on the
                                        seeds that both have, which may say the reverse of the means
    p                                   of the test that it is 0; null if the pair was not tested
    corrected                           p corrected for all tests of the study, the best method against each
    decision                            text: different, equivalent or not decided
    """
    return pd.DataFrame([row for contest in contests if contest.primary for row in _pairs(contest)], columns=PAIRS)


PAIRS = ["study", "model", "data", "score", "better", "other", "difference", "low", "high", "p", "corrected"]
PAIRS += ["decision"]


def _pairs(contest: Contest) -> list[dict[str, Any]]:
    return [
        {
            **_place(contest.place),
            "score": contest.score,
            "better": better,
            "other": other,
            "difference": gap.value,
            "low": gap.low,
            "high": gap.high,
            "p": gap.p if (better, other) in contest.corrected else None,
            "corrected": contest.corrected.get((better, other)),
            "decision": contest.decision(other, better),
        }
        for (better, other), gap in contest.differences.items()
    ]


def items_of(answer: StudyAnswer) -> pd.DataFrame:
    """The answers behind the contests of `answer` that are tested; `RecordedStudy.items` has the columns."""
    records = answer.rows.records
    frames = [
        _answered(contest, standing.choice.label, records[i].cell.seed, table)
        for contest in answer.contests
        if contest.primary
        for standing in contest.standings
        for i in standing.choice.index
        if answer.folder and (score := score_of(records[i], contest.score))
        if (table := answers(answer.folder, records[i], score))
    ]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=ITEMS)


ITEMS = ["study", "model", "data", "method", "seed", "score", "subject", "item", "value"]


def _answered(contest: Contest, method: str, seed: int | None, table: AnsweredItems) -> pd.DataFrame:
    seeds = pd.array([seed] * len(table), dtype="Int64")
    names = {**_place(contest.place), "method": method, "seed": seeds, "score": contest.score}
    subjects = table.subject_of(np.arange(len(table)))
    return pd.DataFrame({**names, "subject": subjects, "item": table.numbers, "value": table.values}, columns=ITEMS)


def _place(place: Place) -> dict[str, str]:
    return dict(zip(("study", "model", "data"), place, strict=True))
