"""The article's table with measurements in it: what each method trains, takes, learns from, asks for, and is best for.

The article is "Beyond LoRA"; its words, as this project's introduction gives them, stand in quotes beside the figures.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
import pandas as pd

from harness import units
from harness.articles.beyond_lora.claims import TASKS
from harness.record import Record, bits
from harness.report.columns import ABSENT, Row, group
from harness.report.pairwise import contests
from harness.report.statistics import Interval, seeds_interval
from harness.report.table import Table, title

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
    "In quotes are the words of the article “Beyond LoRA”, as this project's introduction gives them; the rest is "
    "measured, each method in its setting of least validation loss, means over seeds.",
    "Trainable parameters: their number, and their share of all.",
    "Memory usage: the peak of live tensors in a training step; × is its ratio to full's.",
    "Convergence: raw tokens until the validation loss is down to the target, the lowest one that every seed of every "
    "method gets to; linear between two validations, in brackets its 95% interval over seeds. Then the mean "
    "validation loss over the training (the area under its curve, over its tokens), lower being faster.",
    "Complexity: the settings that a method asks for beyond full fine-tuning's, and the time of a median step as a "
    "multiple of full's and LoRA's. What a method can't be combined with stands in its file in conf/method.",
    "Best for: the columns in which no tuned method is better: least memory, shortest step, fewest tokens to the "
    "target, and the score of the data's own task, by itself or tied with others that can't be told from it; not the "
    "score where the untuned base can't be told from the best either.",
]


@dataclass(frozen=True)
class Convergence:
    """tokens: raw ones to the target, with an interval over seeds, which is a point for one seed.

    mean: validation loss over the training. within: the target was reached by the first validation; tokens is its.
    """

    tokens: Interval
    mean: float
    within: bool


def article(records: Sequence[Record], folder: Path | None) -> Table:
    """The tuned methods of `records`, a row each; `data` has the numbers.

    folder: of the records' study, where the items lie; without it no score is told.
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
    if wanting := [row.method for row in tuned if id(row) not in speeds]:
        caption.append(
            f"No convergence of {', '.join(dict.fromkeys(wanting))}: it takes two validations on the way and more "
            "(train.validate_every)."
        )
    return Table(
        title=f"{title(rows)}: the article's table, measured",
        columns=list(columns),
        rows=[list(texts) for texts in zip(*columns.values(), strict=True)],
        caption=caption,
        data=pd.DataFrame([_numbers(row, tuned, speeds.get(id(row)), best[id(row)]) for row in tuned]),
    )


# Convergence


def convergence(rows: Sequence[Row], all_rows: Sequence[Row]) -> dict[int, Convergence]:
    """By the id of a row how fast it converged, for those of `rows` with two validations a seed and more.

    all_rows: where the base rows are; if each method has its own (quantised where its weights are), curves begin with
    the base's loss at no tokens.
    """
    found = {}
    for place in dict.fromkeys(row.place for row in rows):
        here = [row for row in rows if row.place == place and min(len(r.validation) for r in row.measured) > 1]
        if not here:
            continue
        target = max(min(point.loss for point in record.validation) for row in here for record in row.measured)
        starts = [_start(row, all_rows) for row in here]
        begins = all(start is not None for start in starts)
        for row, start in zip(here, starts, strict=True):
            curves = [_curve(record, start if begins else None) for record in row.measured]
            reached = [_reach(tokens, losses, target) for tokens, losses in curves]
            within = any(losses[0] <= target for _, losses in curves)
            mean = fmean(float(np.trapezoid(losses, tokens) / (tokens[-1] - tokens[0])) for tokens, losses in curves)
            point = Interval(*[fmean(reached)] * 3)
            found[id(row)] = Convergence(seeds_interval(reached) or point, mean, within)
    return found


def _start(row: Row, rows: Sequence[Row]) -> float | None:
    """The loss before training: that of the base in the same place, as the row's method loads it."""
    method = row.records[0].cell.settings.get("method")
    load = method.get("load", {}) if isinstance(method, dict) else {}
    base = {None: "base", 4: "base_nf4", 8: "base_int8"}[bits(load)]
    losses = [r.mean("validation_loss") for r in rows if (r.place, r.method) == (row.place, base) and r.finished]
    return losses[0] if losses else None


def _curve(record: Record, start: float | None) -> tuple[np.ndarray, np.ndarray]:
    points = [] if start is None else [(0, start)]
    points += [(point.tokens, point.loss) for point in record.validation]
    return np.array([t for t, _ in points], dtype=float), np.array([loss for _, loss in points])


def _reach(tokens: np.ndarray, losses: np.ndarray, target: float) -> float:
    """The tokens at which the line through the points first comes down to `target`."""
    i = np.flatnonzero(losses <= target)[0]
    if i == 0:
        return float(tokens[0])
    share = (losses[i - 1] - target) / (losses[i - 1] - losses[i])
    return float(tokens[i - 1] + share * (tokens[i] - tokens[i - 1]))


# Cells


def _trainable(row: Row) -> str:
    trainable, share = row.mean("trainable"), row.mean("trainable_share")
    return ABSENT if trainable is None else f"{units.count(trainable)} ({units.significant(100 * share, 3)}%)"


def _memory(row: Row, rows: Sequence[Row]) -> str:
    peak, ratio = row.mean("train_allocated_peak"), _over(row, rows, "full", "train_allocated_peak")
    return ABSENT if peak is None else units.size(peak) + ("" if ratio is None else f" ({ratio:.2f}×)")


def _over(row: Row, rows: Sequence[Row], method: str, measure: str) -> float | None:
    """The row's measure as a multiple of that of `method` in the same place."""
    own = row.mean(measure)
    others = [other.mean(measure) for other in rows if (other.place, other.method) == (row.place, method)]
    return own / others[0] if own is not None and others and others[0] else None


def _convergence(found: Convergence | None) -> str:
    if found is None:
        return ABSENT
    value, low, high = found.tokens
    ends = f" ({units.count(max(low, 0))}–{units.count(high)})" if low < high else ""
    return f"{'≤ ' if found.within else ''}{units.count(value)} tokens{ends}, mean loss {units.significant(found.mean)}"


def _settings(row: Row) -> list[str]:
    """What the method asks for beyond the learning rate."""
    cell = row.records[0].cell
    return [name for name in ("rank", "alpha") if getattr(cell, name) is not None] + list(cell.knobs)


def _complexity(row: Row, rows: Sequence[Row]) -> str:
    names = _settings(row)
    text = f"{len(names)} settings ({', '.join(names)})" if names else "no settings"
    ratios = [(m, _over(row, rows, m, "step_seconds_median")) for m in ("full", "lora") if m != row.method]
    steps = ", ".join(f"{ratio:.2f}× {method}'s" for method, ratio in ratios if ratio is not None)
    return text + (f"; a step takes {steps}" if steps else "")


# What a method is best for


def _first_by_score(records: Sequence[Record], choices: Sequence, folder: Path | None) -> dict[tuple, list[str]]:
    """By place the methods that can't be told from the best by the score of the data's own task.

    None where the base is one of them.
    """
    found = {}
    for contest in contests(records, folder, choices):
        if contest.score == TASKS.get(contest.place[2]) and contest.standings and contest.standings[0].letters:
            first = contest.standings[0].letters
            methods = [s.choice.method for s in contest.standings if set(s.letters or "") & set(first)]
            found[contest.place] = [] if "base" in methods else methods
    return found


def _best_for(
    rows: Sequence[Row], speeds: dict[int, Convergence], by_score: dict[tuple, list[str]]
) -> dict[int, list[str]]:
    best: dict[int, list[str]] = defaultdict(list)
    for place in dict.fromkeys(row.place for row in rows):
        here = [row for row in rows if row.place == place]
        tokens = {id(row): speeds[id(row)].tokens for row in here if id(row) in speeds}
        for name, value in (
            ("least memory", lambda row: row.mean("train_allocated_peak")),
            ("speed", lambda row: row.mean("step_seconds_median")),
            ("convergence", lambda row, known=tokens: known[id(row)].value if id(row) in known else None),
        ):
            values = {id(row): value(row) for row in here if value(row) is not None}
            for key in values if len(values) > 1 else []:
                if values[key] == min(values.values()):
                    best[key].append(name)
        first = by_score.get(place, [])
        for row in here:
            if row.method in first:
                task = TASKS[place[2]].partition("/")[0]
                best[id(row)].append(task + (f" (tied with {len(first) - 1})" if len(first) > 1 else ""))
    return best


def _numbers(row: Row, rows: Sequence[Row], found: Convergence | None, best: list[str]) -> dict:
    study, model, data = row.place
    tokens = found.tokens if found else Interval(np.nan, np.nan, np.nan)
    return {
        **{"study": study, "model": model, "data": data, "method": row.method, "setting": row.setting},
        **{name: row.mean(name) for name in ("trainable", "trainable_share", "train_allocated_peak")},
        "memory_over_full": _over(row, rows, "full", "train_allocated_peak"),
        **{"tokens_to_target": tokens.value, "tokens_low": tokens.low, "tokens_high": tokens.high},
        "mean_validation_loss": found.mean if found else np.nan,
        "settings": len(_settings(row)),
        "step_over_full": _over(row, rows, "full", "step_seconds_median"),
        "step_over_lora": _over(row, rows, "lora", "step_seconds_median"),
        "best_for": ", ".join(best),
    }
