"""The article's table with measurements: parameters, memory, convergence, complexity and best use of each method.

The article's own words, as this project's introduction quotes them, stand in quotes beside the measurements.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd

from harness import units
from harness.record import Record
from harness.report.frame import TRAIN_MEMORY
from harness.report.headline import base_of, learned, trained_for
from harness.report.memory import comparable
from harness.report.pairwise import contests
from harness.report.select import Choice, Place
from harness.report.statistics import Interval, seeds_interval
from harness.report.tables.entries import ABSENT
from harness.report.tables.rows import Row, group
from harness.report.tables.table import TEXT_COLUMNS, Table, title

WORDS = {
    ("lora", "Trainable parameters"): "cuts trainable parameters by up to 10,000×",
    ("dora", "Trainable parameters"): "direction by LoRA, magnitude apart",
    ("galore", "Trainable parameters"): "trains all weights through low-rank gradients",
    ("lora", "Memory usage"): "cuts VRAM drastically",
    ("qlora", "Memory usage"): "needs the least memory",
    ("galore", "Memory usage"): "far less memory than AdamW",
    ("lora", "Convergence"): "gets unstable at very low rank",
    ("dora", "Convergence"): "often matches full fine-tuning",
    ("dora", "Complexity"): "trains a bit slower and serves as fast once merged",
    ("dora", "Best for"): "beats LoRA at the same rank",
    ("galore", "Best for"): "wholly new knowledge",
}

CAPTION = [
    "Quotes are the words of the article “Beyond LoRA”, as this project's introduction gives them. The rest is "
    "measured: each method in its setting with the least validation loss, means over seeds.",
    "Trainable parameters: number and share of all parameters.",
    "Memory usage: peak of live tensors in a training step; × is the ratio to full.",
    "Convergence: raw tokens until the validation loss reaches the target, with a 95% interval over seeds. The target "
    "is the lowest loss that every seed of every method reaches; between validations the loss is interpolated. Then "
    "the mean validation loss over training (area under the curve / tokens): lower means faster.",
    "Complexity: settings that the method adds to those of full fine-tuning, and the median step time relative to full "
    "and LoRA. The method's file in conf/method lists what it can't be combined with.",
    "Best for: where no other tuned method is better in least memory, shortest step, fewest tokens to the target, or "
    "the score of the data's task (alone, or tied with others). The score is left out if the untuned base is tied "
    "with the best.",
]


@dataclass(frozen=True)
class Convergence:
    """How fast a method learned.

    tokens: raw tokens to the target, with an interval over seeds (a point for one seed). mean: of the validation loss
    over training, nats per token. within: the first validation already reached the target, so `tokens` is a bound.
    """

    tokens: Interval
    mean: float
    within: bool


def table(records: Sequence[Record], folder: Path | None) -> Table:
    """A row for each tuned method of `records`; `data` has the numbers.

    folder: of the records' study, where the items are; None compares no scores.
    """
    rows = group(records)
    of = [row for row in rows for _ in row.records]
    tuned = [of[c.index[0]] for c in rows.choices if c.index and of[c.index[0]].records[0].train]
    speeds = convergence(tuned, rows)
    best = _best_for(tuned, speeds, _first_by_score(rows.records, rows.choices, folder))
    columns: dict[str, list[str]] = {}
    for i, name in enumerate(("Study", "Model", "Data")):
        if len({row.place[i] for row in tuned}) > 1:
            columns[name] = [row.place[i] for row in tuned]
    columns["Method"] = [row.method for row in tuned]
    columns["Setting"] = [row.setting or ABSENT for row in tuned]
    measured = {
        "Trainable parameters": [_trainable(row) for row in tuned],
        "Memory usage": [_memory(row, tuned) for row in tuned],
        "Convergence": [_convergence(speeds.get(id(row))) for row in tuned],
        "Complexity": [_complexity(row, tuned) for row in tuned],
        "Best for": [", ".join(best[id(row)]) or ABSENT for row in tuned],
    }
    for name, texts in measured.items():
        quoted = [WORDS.get((row.method, name)) for row in tuned]
        columns[name] = [f"{text}; “{words}”" if words else text for text, words in zip(texts, quoted, strict=True)]
    caption = list(CAPTION)
    if missing := [row.method for row in tuned if id(row) not in speeds]:
        caption.append(
            f"No convergence of {', '.join(dict.fromkeys(missing))}: it requires at least two validations during "
            "training (train.validate_every)."
        )
    return Table(
        title=f"{title(rows)}: the table of “Beyond LoRA”, measured",
        columns=list(columns),
        rows=[list(texts) for texts in zip(*columns.values(), strict=True)],
        caption=caption,
        text_columns=(*TEXT_COLUMNS, *measured),
        data=pd.DataFrame([_numbers(row, tuned, speeds.get(id(row)), best[id(row)]) for row in tuned]),
    )


# Convergence


def convergence(rows: Sequence[Row], all_rows: Sequence[Row]) -> dict[int, Convergence]:
    """How fast each row converged, by the id of the row; rows with fewer than two validations per seed are left out.

    all_rows: include the base rows. If every method has a base with its kind of weights (quantised or not), curves
    start at that base's loss with 0 tokens.
    """
    converged = {}
    for place in dict.fromkeys(row.place for row in rows):
        here = [row for row in rows if row.place == place and min(len(r.validation) for r in row.measured) > 1]
        if not here:
            continue
        target = max(min(point.loss for point in record.validation) for row in here for record in row.measured)
        starts = [_start(row, all_rows) for row in here]
        begins = all(start is not None for start in starts)
        for row, start in zip(here, starts, strict=True):
            curves = [curve(record, start if begins else None) for record in row.measured]
            reached = [reach(tokens, losses, target) for tokens, losses in curves]
            within = any(losses[0] <= target for _, losses in curves)
            mean = fmean(_mean_over(tokens, losses) for tokens, losses in curves)
            point = Interval(*[fmean(reached)] * 3)
            converged[id(row)] = Convergence(seeds_interval(reached) or point, mean, within)
    return converged


def _mean_over(tokens: np.ndarray, losses: np.ndarray) -> float:
    """The mean of a curve over its tokens, by the trapezoidal rule, which numpy 1 and 2 name differently."""
    return float(np.diff(tokens) @ (losses[1:] + losses[:-1]) / 2 / (tokens[-1] - tokens[0]))


def _start(row: Row, rows: Sequence[Row]) -> float | None:
    """The loss before training: that of the base in the same place, with weights quantised as the row's are."""
    base = base_of(row.records[0])
    losses = [r.mean("validation_loss") for r in rows if (r.place, r.method) == (row.place, base) and r.finished]
    return losses[0] if losses else None


def curve(record: Record, start: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The raw tokens and the loss of each validation; start: the loss before training."""
    points = [] if start is None else [(0, start)]
    points += [(point.tokens, point.loss) for point in record.validation]
    return np.array([t for t, _ in points], dtype=float), np.array([loss for _, loss in points])


def reach(tokens: np.ndarray, losses: np.ndarray, target: float) -> float:
    """The tokens at which the interpolated curve first reaches `target`."""
    i = np.flatnonzero(losses <= target)[0]
    if i == 0:
        return float(tokens[0])
    share = (losses[i - 1] - target) / (losses[i - 1] - losses[i])
    return float(tokens[i - 1] + share * (tokens[i] - tokens[i - 1]))


# Cells


def _trainable(row: Row) -> str:
    trainable, share = row.mean("trainable"), row.mean("trainable_share")
    if trainable is None or share is None:
        return ABSENT
    return f"{units.count(trainable)} ({units.significant(100 * share, 3)}%)"


def _memory(row: Row, rows: Sequence[Row]) -> str:
    peak, ratio = row.mean(TRAIN_MEMORY), _over(row, rows, "full", TRAIN_MEMORY)
    return ABSENT if peak is None else units.size(peak) + ("" if ratio is None else f" ({ratio:.2f}×)")


def _over(row: Row, rows: Sequence[Row], method: str, measure: str) -> float | None:
    """The row's measure over that of `method` in the same place."""
    others = (other for other in rows if (other.place, other.method) == (row.place, method))
    first = next(others, None)
    return None if first is None else row.over(first, measure)


def _convergence(speed: Convergence | None) -> str:
    if speed is None:
        return ABSENT
    value, low, high = speed.tokens
    ends = f" ({units.count(max(low, 0))}–{units.count(high)})" if low < high else ""
    return f"{'≤ ' if speed.within else ''}{units.count(value)} tokens{ends}, mean loss {units.significant(speed.mean)}"


def _settings(row: Row) -> list[str]:
    """The settings of the method beyond the learning rate."""
    cell = row.records[0].cell
    return [name for name in ("rank", "alpha") if getattr(cell, name) is not None] + list(cell.knobs)


def _complexity(row: Row, rows: Sequence[Row]) -> str:
    names = _settings(row)
    text = f"{units.plural(len(names), 'setting')} ({', '.join(names)})" if names else "no settings"
    ratios = [(m, _over(row, rows, m, "step_seconds_median")) for m in ("full", "lora") if m != row.method]
    steps = ", ".join(f"{ratio:.2f}× {method}'s" for method, ratio in ratios if ratio is not None)
    return text + (f"; a step takes {steps}" if steps else "")


# What a method is best for


def _first_by_score(
    records: Sequence[Record], choices: Sequence[Choice], folder: Path | None
) -> dict[Place, list[str]]:
    """By place, the methods tied for the best score of the data's task; none if the base is among them."""
    tied = {}
    for contest in contests(records, folder, choices):
        shows = contest.primary and contest.score == learned(contest.place[2], [contest.score])
        if not shows or not contest.standings[0].letters:
            continue
        first = contest.standings[0].choice.label
        labels = {first, *contest.tied(first)}
        methods = [s.choice.method for s in contest.standings if s.choice.label in labels]
        tied[contest.place] = [] if "base" in methods else methods
    return tied


def _best_for(
    rows: Sequence[Row], speeds: dict[int, Convergence], by_score: dict[Place, list[str]]
) -> dict[int, list[str]]:
    best: dict[int, list[str]] = defaultdict(list)
    for place in dict.fromkeys(row.place for row in rows):
        here = [row for row in rows if row.place == place]
        one_memory = comparable(set.union(*(row.instruments for row in here)), TRAIN_MEMORY)
        measures: dict[str, dict[int, float | None]] = {
            "least memory": {id(row): row.mean(TRAIN_MEMORY) for row in here if one_memory},
            "speed": {id(row): row.mean("step_seconds_median") for row in here},
            "convergence": {id(row): speeds[id(row)].tokens.value for row in here if id(row) in speeds},
        }
        for name, measured in measures.items():
            values = {key: value for key, value in measured.items() if value is not None}
            for key in values if len(values) > 1 else []:
                if values[key] == min(values.values()):
                    best[key].append(name)
        first = by_score.get(place, [])
        for row in here:
            if row.method in first:
                task = trained_for(place[2])
                best[id(row)].append(task + (f" (tied with {len(first) - 1})" if len(first) > 1 else ""))
    return best


def _numbers(row: Row, rows: Sequence[Row], speed: Convergence | None, best: list[str]) -> dict[str, Any]:
    study, model, data = row.place
    tokens = speed.tokens if speed else Interval(np.nan, np.nan, np.nan)
    return {
        **{"study": study, "model": model, "data": data, "method": row.method, "setting": row.setting},
        **{name: row.mean(name) for name in ("trainable", "trainable_share", TRAIN_MEMORY)},
        "memory_over_full": _over(row, rows, "full", TRAIN_MEMORY),
        **{"tokens_to_target": tokens.value, "tokens_low": tokens.low, "tokens_high": tokens.high},
        "mean_validation_loss": speed.mean if speed else np.nan,
        "settings": len(_settings(row)),
        "step_over_full": _over(row, rows, "full", "step_seconds_median"),
        "step_over_lora": _over(row, rows, "lora", "step_seconds_median"),
        "best_for": ", ".join(best),
    }
