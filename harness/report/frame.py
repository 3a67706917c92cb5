"""Records as a data frame: one row a record, numbers in base units, for analysis and for CSV."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from harness.record import Record, Score

COUNTS = ["rank", "seed", "failed_step", "trainable", "total", "train_allocated_peak", "train_process_peak"]
COUNTS += ["steps", "raw_tokens"]


def frame(records: Sequence[Record]) -> pd.DataFrame:
    """One row a record, in the order given; what was not measured is null, never 0.

    study, name, method, model, data    text
    rank, alpha, lr, seed               the cell's axes; null where the method does not use them
    setting                             the axes, knobs and other varying settings as text: `setting_texts`
    status                              ok, failed, oom or diverged
    failed_phase, failed_step, reason   where and why, for a cell that is not ok
    trainable, total                    weights
    trainable_share                     trainable / total, a fraction of 1
    train_allocated_peak                bytes: peak of live tensors on the training device, in training
    train_process_peak                  bytes: peak of the process's resident set on the host, in training
    tokens_per_second_steady            raw tokens / second, median over the steps after warm-up
    tokens_per_second_amortised         raw tokens / second, over all steps
    steps, raw_tokens                   optimizer steps and non-padding tokens trained on
    validation_loss                     the last one, nats per token
    seconds                             the whole job
    TASK/METRIC/FILTER                  a score as its task defines it (a fraction of 1 for an accuracy)
    TASK/METRIC/FILTER:stderr, …:n      its standard error over items, and how many items
    """
    table = pd.DataFrame(
        [_row(record, setting) for record, setting in zip(records, setting_texts(records), strict=True)]
    )
    counts = [name for name in table.columns if name in COUNTS or name.endswith(":n")]
    return table.astype(dict.fromkeys(counts, "Int64"))  # nullable: a missing count must not turn the others to floats


def score_name(score: Score) -> str:
    """`TASK/METRIC/FILTER`, the name of a score's column in `frame`."""
    return f"{score.task}/{score.metric}/{score.filter}"


def train_memory(record: Record) -> int | None:
    """Peak bytes of live tensors in training, or None; the process's peak is another quantity and no stand-in."""
    phase = record.phases.get("train")
    return phase.memory.allocated_peak if phase else None


def validation_loss(record: Record) -> float | None:
    """The last validation loss in nats per token, or None."""
    return record.validation[-1].loss if record.validation else None


def setting_texts(records: Sequence[Record]) -> list[str]:
    """What tells each record's cell from the others of its method, such as `r=16 α=32 lr=2e-4 train.max_steps=100`.

    The axes and knobs come first, then every resolved setting that differs between cells that share study, model,
    data, method, axes and knobs. Seeds are left out. A cell with nothing to tell has the text "".
    """
    axes = [_axes(record) for record in records]
    leaves = [dict(_leaves(record.cell.settings)) for record in records]
    alike = defaultdict(list)
    for i, record in enumerate(records):
        alike[record.study, record.cell.model, record.cell.data, record.cell.method, axes[i]].append(i)
    texts = list(axes)
    for members in alike.values():
        keys = sorted({key for i in members for key in leaves[i]})
        varying = [key for key in keys if len({leaves[i].get(key) for i in members}) > 1]
        for i in members:
            texts[i] = " ".join([axes[i], *(f"{key}={leaves[i].get(key, '–')}" for key in varying)]).strip()
    return texts


def _row(record: Record, setting: str) -> dict[str, Any]:
    cell, failure, parameters, train = record.cell, record.failure, record.parameters, record.train
    phase = record.phases.get("train")
    row = {
        "study": record.study,
        "name": cell.name,
        "method": cell.method,
        "model": cell.model,
        "data": cell.data,
        "rank": cell.rank,
        "alpha": cell.alpha,
        "lr": cell.lr,
        "seed": cell.seed,
        "setting": setting,
        "status": record.status,
        "failed_phase": failure.phase if failure else None,
        "failed_step": failure.step if failure else None,
        "reason": failure.reason if failure else None,
        "trainable": parameters.trainable if parameters else None,
        "trainable_share": parameters.trainable / parameters.total if parameters else None,
        "total": parameters.total if parameters else None,
        "train_allocated_peak": train_memory(record),
        "train_process_peak": phase.memory.process_peak if phase else None,
        "tokens_per_second_steady": train.tokens_per_second_steady if train else None,
        "tokens_per_second_amortised": train.tokens_per_second_amortised if train else None,
        "steps": train.steps if train else None,
        "raw_tokens": train.tokens.raw if train else None,
        "validation_loss": validation_loss(record),
        "seconds": record.seconds,
    }
    for score in record.scores:
        name = score_name(score)
        row |= {name: score.value, f"{name}:stderr": score.stderr, f"{name}:n": score.n}
    return row


def _axes(record: Record) -> str:
    cell = record.cell
    axes = {"r": cell.rank, "α": cell.alpha, "lr": cell.lr} | cell.knobs
    return " ".join(f"{name}={_text(value)}" for name, value in axes.items() if value is not None)


def _leaves(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and texts of all settings but the seeds, which make repetitions and not settings."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        elif name != "seed":
            yield f"{prefix}{name}", _text(value)


def _text(value: Any) -> str:
    if isinstance(value, float):
        if 0 < abs(value) < 0.01:
            mantissa, exponent = f"{value:e}".split("e")
            return f"{float(mantissa):g}e{int(exponent)}"  # 2e-4, not 0.0002 or 2e-04
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
