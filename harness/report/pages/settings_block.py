"""Every setting of a study as columns of numbers: what the page's charts, filters and "my card" work on.

A setting is a row of the table "Every setting", by its position there. Numbers have five digits, those of metrics
eight, in base units; what was not measured is null.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from harness.record import Record, Score, memory_remainder, micro_batches
from harness.report.figures.study_results import StudyResults
from harness.report.figures.style import Place, looks, place_titles
from harness.report.frame import KINDS, TRAIN_MEMORY, score_name
from harness.report.pages.commands import run_words
from harness.report.statistics import Interval, seeds_interval
from harness.report.tables.entries import score_style
from harness.report.tables.rows import Row

MEASURES = {  # a column of `frame`: its label, its unit, and which way is better
    TRAIN_MEMORY: ("Peak train memory", "bytes", "low"),
    "train_reserved_p99": ("Memory reserved in 99% of steps", "bytes", "low"),
    "tokens_per_second_steady": ("Training tokens/s, median step", "rate", "high"),
    "tokens_per_second_amortised": ("Training tokens/s, all steps", "rate", "high"),
    "train_seconds": ("Training time", "seconds", "low"),
    "seconds": ("Time of the whole job", "seconds", "low"),
    "trainable": ("Trainable parameters", "count", "low"),
    "validation_loss": ("Validation loss", "number", "low"),
    "answer_bits_per_byte": ("Bits per byte of the answers", "number", "low"),
    "merged_decode_tokens_per_second": ("Decoding tokens/s, merged", "rate", "high"),
    "unmerged_decode_tokens_per_second": ("Decoding tokens/s, unmerged", "rate", "high"),
    "adapter_bytes": ("Size of the adapter", "bytes", "low"),
    "joules_per_token": ("Joules per token", "number", "low"),
    "dollars": ("Cost of the answers in dollars", "number", "low"),
}
ANYWHERE = {"trainable", "validation_loss", "answer_bits_per_byte", "adapter_bytes", "dollars"}  # on any device alike
SHOWN = 8  # digits of a metric: rounded again, as a table rounds the number itself, it is the same text
LICENCES = {"apollo_torch": "CC BY-NC 4.0"}  # packages of optimizers that not everyone may use, by module


def settings_block(study: StudyResults) -> dict[str, Any]:
    """What the page knows of each setting of `study`.

    places, methods: their names, the score by which the answer compares in a place, and how a method looks. ids: of
    the cells of each setting, by which an address names it: positions and texts change while a study grows. metrics:
    what can be compared, one value a setting, with 95% intervals where they are known. memory: bytes by kind at the
    peak of a step, of all gradients, and of what the allocator holds beside them. tokens: of a micro-batch on one
    device (`_tokens`). instruments, devices: what measured the memory, and what the cells ran on: a metric that is
    `of_device` does not compare across devices.
    commands: words shared by all, and for each setting the positions of its own in `words`.
    """
    rows = list(study.rows)
    chosen_ids = study.chosen
    titles = place_titles(study.places)
    deciding = [study.deciding(place) for place in study.places]
    return {
        "places": [
            {"id": id, "title": title or place[2], "score": score_name(score) if score else None}
            for id, place, title, score in zip(_place_ids(study.places), study.places, titles, deciding, strict=True)
        ],
        "methods": _looks(study.methods),
        "ids": [list(map(short_id, row.records)) for row in rows],
        "place": [study.places.index(row.place) for row in rows],
        "method": [study.methods.index(row.method) for row in rows],
        "setting": [row.setting for row in rows],
        "status": [Counter(record.status for record in row.records).most_common(1)[0][0] for row in rows],
        "seeds": [len(row.measured) if row.measured[0].cell.seed is not None else None for row in rows],
        "chosen": [int(id(row) in chosen_ids) for row in rows],
        "untuned": [int(row.records[0].cell.seed is None) for row in rows],
        "capabilities": {name: [has(row) for row in rows] for name, has in CAPABILITIES.items()},
        "metrics": [*_scores(study), *_measures(rows)],
        "memory": {
            **{kind: [_mean(row, f"peak_{kind}") for row in rows] for kind in KINDS},
            "gradients_all": [_mean(row, "gradients") for row in rows],
            "beside": [_beside(row) for row in rows],
        },
        "tokens": [_tokens(row) for row in rows],
        "instruments": [sorted(row.instruments) for row in rows],
        "devices": [sorted(row.devices) for row in rows],
        "commands": _commands(rows),
    }


def short_id(record: Record) -> str:
    """The beginning of the id of a record's cell, as an address has it."""
    return record.cell.id[:10]


def short(value: float | None, digits: int = 5) -> float | int | None:
    """A number to so many digits; None for what is no number."""
    if value is None or not math.isfinite(value):
        return None
    value = float(f"{value:.{digits}g}")
    return int(value) if value.is_integer() else value


def _place_ids(places: Sequence[Place]) -> list[str]:
    """MODEL/DATA, with the study where there are several."""
    several = len({study for study, _, _ in places}) > 1
    return ["/".join(place if several else place[1:]) for place in places]


def _looks(methods: Sequence[str]) -> list[dict[str, str]]:
    """As in the figures; `shape` is matplotlib's marker, which study.js draws."""
    look = looks(methods)
    return [{"name": method, "colour": look[method].colour, "shape": look[method].marker} for method in methods]


# Metrics


def _scores(study: StudyResults) -> list[dict[str, Any]]:
    scores: dict[str, Score] = {}
    for place in study.places:
        scores = study.scores(place) | scores
    metrics = []
    for name, score in scores.items():
        means = [row.scores.get(name) if row.finished else None for row in study.rows]
        header, _ = score_style(score, [mean.value for mean in means if mean])
        percent = "(%)" in header
        intervals = [study.interval(row, name) if mean else None for row, mean in zip(study.rows, means, strict=True)]
        label = header.replace(" (%)", "").replace(" ↓", "")
        values = [mean.value if mean else None for mean in means]
        better = "high" if score.higher_is_better else "low"
        metrics.append(_metric(name, (label, "percent" if percent else "number", better), values, intervals))
    return metrics


def _measures(rows: Sequence[Row]) -> list[dict[str, Any]]:
    metrics = []
    for name, (label, unit, better) in MEASURES.items():
        values = [row.values(name) if row.finished else [] for row in rows]
        if any(values):
            means = [fmean(of) if of else None for of in values]
            intervals = [seeds_interval(of) if len(of) > 1 else None for of in values]
            metric = _metric(name, (label, unit, better), means, intervals)
            metrics.append(metric | ({} if name in ANYWHERE else {"of_device": 1}))
    return metrics


def _metric(
    name: str, said: tuple[str, str, str], values: Sequence[float | None], intervals: Sequence[Interval | None]
) -> dict[str, Any]:
    bars = [interval if interval and interval.low < interval.high else None for interval in intervals]
    label, unit, better = said
    low = [interval and short(interval.low, SHOWN) for interval in bars] if any(bars) else None
    high = [interval and short(interval.high, SHOWN) for interval in bars] if any(bars) else None
    metric = {"id": name, "label": label, "unit": unit, "better": better}
    return metric | {"values": [short(value, SHOWN) for value in values], "low": low, "high": high}


# Capabilities: true, false, or null where the record does not say


def _served_plain(row: Row) -> bool | None:
    """Whether inference needs no adapter beside the weights: it is merged, or there is none."""
    if any(record.merge for record in row.measured):
        return all(record.merge.merged for record in row.measured if record.merge)
    return True if not row.measured[0].cell.settings.method.adapt else None


def _quantised(row: Row) -> bool:
    return row.records[0].cell.settings.method.bits is not None


def _optimizer_only(row: Row) -> bool:
    method = row.records[0].cell.settings.method
    return method.tuned and not method.adapt


def _free(row: Row) -> bool:
    return _licence(row.records[0]) is None


def _licence(record: Record) -> str | None:
    optim = json.dumps(record.cell.settings.method.optim)
    return next((licence for module, licence in LICENCES.items() if f'"{module}.' in optim), None)


CAPABILITIES: dict[str, Callable[[Row], bool | None]] = {
    "plain": _served_plain,
    "quantised": _quantised,
    "optimizer": _optimizer_only,
    "free": _free,
}


# Memory


def _mean(row: Row, measure: str) -> float | int | None:
    return short(row.mean(measure))


def _beside(row: Row) -> float | int | None:
    """What the allocator's peak exceeds the tensors by; training may also stay below the probe's largest batch."""
    remainders = [remainder for record in row.measured if (remainder := memory_remainder(record)) is not None]
    return short(max(0, *remainders)) if remainders else None


def _tokens(row: Row) -> list[float | int | None] | None:
    """Of a micro-batch on one device: its sequences, its tokens as the mean over training and as the most that its
    settings allow."""
    trained = [(record, record.train) for record in row.measured if record.train]
    if not trained or (size := micro_batches(trained[0][0])) is None:
        return None
    batch, accumulated = size
    record, ran = trained[0]
    settings = record.cell.settings.train
    if not settings.max_length or not ran.steps:
        return None
    passed = ran.steps * accumulated * settings.total_devices
    most = batch * settings.max_length
    return [batch, short(min(most, (ran.tokens.padded or ran.tokens.raw) / passed)), most]


# Commands


def _commands(rows: Sequence[Row]) -> dict[str, Any]:
    """Every setting's command, of its first seed: most of its words are those of all others."""
    said = [run_words(row.records[0]) for row in rows]
    commands = [words for words in said if words]
    counts = Counter(word for words in commands for word in set(words))
    shared = [word for word in (commands[0] if commands else []) if counts[word] == len(commands)]
    own = dict.fromkeys(word for words in commands for word in words if counts[word] < len(commands))
    at = {word: i for i, word in enumerate(own)}
    return {
        "shared": shared,
        "words": list(own),
        "own": [None if words is None else [at[word] for word in words if word in at] for words in said],
    }
