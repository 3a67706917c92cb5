"""The columns of the comparison, declared in `COLUMNS`: header, entries and meaning of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness import units
from harness.errors import one_of
from harness.report.frame import KINDS, TRAIN_MEMORY
from harness.report.memory import instruments, meaning
from harness.report.tables import entries
from harness.report.tables.entries import ABSENT, CHOSEN, FRESH, Entry
from harness.report.tables.rows import Rows, several_seeds


@dataclass(frozen=True)
class Column:
    """One column of the table, or one for each score.

    entries: by header, a function of a row and all rows that returns the entry's text.
    meaning: a sentence for the caption, or what makes it from the rows; `{within}` is replaced by the restriction of
        ratios. Columns of one topic share a line of the caption.
    reference: the method that ratios refer to, their name in the caption, and their measure.
    default: whether the column is shown unless columns are selected; columns without any value are hidden.
    """

    entries: Callable[[Rows], dict[str, Entry]]
    topic: str = ""
    meaning: str | Callable[[Rows], str] = ""
    reference: tuple[str, str, str] | None = None
    default: Callable[[Rows], bool] = lambda rows: False


def choose(columns: Sequence[str] | None, rows: Rows) -> list[str]:
    """The ids of the columns to show: the selected ones, all, or the default ones. UserError for an unknown id."""
    for name in columns or []:
        one_of("columns", name, [*COLUMNS, "all"])
    if columns is None:
        return [name for name, column in COLUMNS.items() if column.default(rows)]
    return list(COLUMNS if "all" in columns else dict.fromkeys(columns))


def texts(name: str, rows: Rows) -> dict[str, list[str]]:
    """The texts of the column `name` by header, one for each row."""
    return {header: [entry(row, rows) for row in rows] for header, entry in COLUMNS[name].entries(rows).items()}


def _always(rows: Rows) -> bool:
    return True


def _one(header: str, entry: Entry) -> Callable[[Rows], dict[str, Entry]]:
    return lambda rows: {header: entry}


def _place(header: str, i: int) -> Column:
    return Column(
        _one(header, lambda row, rows: row.place[i]), default=lambda rows: len({row.place[i] for row in rows}) > 1
    )


def _any_api(rows: Rows) -> bool:
    return any(record.api for row in rows for record in row.records)


def _memory_meaning(rows: Rows) -> str:
    what = meaning(rows.records).removeprefix("the ")
    return f"Memory: {what}; × is the ratio to the first finished full row of the same device.{{within}}"


def _kinds_meaning(rows: Rows) -> str:
    words = "Weights / adapters / gradients / optimizer / activations"
    passes = "(for untuned rows: the peak of a forward pass); gradients may be freed before it."
    if "allocator" in instruments(rows.records):
        return f"{words} are live tensors at the peak of a probe step {passes}"
    return f"{words} add up to that peak {passes}"


def _cost_meaning(rows: Rows) -> str:
    if rows.price is None:
        return ""
    return (
        f"Cost: the time of a cell's whole job at {units.dollars(rows.price)} an hour and device, mean over seeds. "
        "Repeats, earlier attempts and later scorings are not in it."
    )


def _signed_size(value: float) -> str:
    return f"{'−' if value < 0 else ''}{units.size(abs(value))}"


LORA = "the ratio to the first finished lora row of the same device, and of the same rank if there is one"
COLUMNS: dict[str, Column] = {
    "study": _place("Study", 0),
    "model": _place("Model", 1),
    "data": _place("Data", 2),
    "method": Column(_one("Method", lambda row, rows: row.method), default=_always),
    "setting": Column(
        _one(
            "Setting",
            lambda row, rows: (row.setting or ABSENT) + FRESH * row.confirms + CHOSEN * (id(row) in rows.chosen),
        ),
        default=_always,
    ),
    "seeds": Column(_one("Seeds", entries.seeds), default=several_seeds),
    "asked": Column(
        _one("Asked by", entries.asked),
        "asked",
        "Asked by: how a model behind an API was queried. Completions return log-probabilities, as local models do. "
        "Chat returns only text, in the model's own format: a different measurement, not comparable.",
        default=_any_api,
    ),
    "trainable": Column(_one("Trainable", entries.trainable), default=_always),
    "memory": Column(
        _one("Peak train memory", entries.with_ratio(TRAIN_MEMORY, units.size, "full")),
        "memory",
        _memory_meaning,
        ("full", "memory ratios", TRAIN_MEMORY),
        _always,
    ),
    "kinds": Column(
        _one(
            "Weights / adapters / gradients / optimizer / activations",
            entries.together([f"peak_{kind}" for kind in KINDS], entries.byte_unit),
        ),
        "memory",
        _kinds_meaning,
        default=_always,
    ),
    "remainder": Column(
        _one("Remainder", entries.measure("train_memory_remainder", _signed_size)),
        "memory",
        "Remainder: what these kinds leave of the allocator's peak: kernels' workspaces and the allocator's rounding, "
        "less the tensors that only the probe's largest batch has.",
        default=_always,
    ),
    "reserved_peak": Column(
        _one("Reserved peak", entries.measure("train_reserved_peak", units.size)),
        "driver",
        "Reserved peak: held by CUDA's allocator in training, its cache included.",
        default=_always,
    ),
    "device_process": Column(
        _one("Driver's figure", entries.measure("train_device_process", units.size)),
        "driver",
        "Driver's figure: what NVML and nvidia-smi show of the process at the end of training, with CUDA's context.",
        default=_always,
    ),
    "resident": Column(
        _one("Resident memory", entries.measure("resident", units.size)),
        "memory",
        "Resident memory: live tensors between two steps.",
    ),
    "reserved": Column(
        _one("Reserved in 99% of steps", entries.measure("train_reserved_p99", units.size)),
        "reserved",
        "Reserved memory: held by the device's allocator, gaps between tensors included; 99% of training steps stay "
        "within the value shown.",
        default=_always,
    ),
    "job_reserved": Column(
        _one("Reserved in the whole job", entries.measure("job_reserved_peak", units.size)),
        "reserved",
        "Reserved in the whole job includes the evaluation, so it is not the memory of training.",
        default=_always,
    ),
    "steady": Column(
        _one("Tokens/s", entries.marked(entries.with_ratio("tokens_per_second_steady", entries.rate, "lora"))),
        "speed",
        f"Tokens/s: raw (non-padding) tokens, median step; × is {LORA}.{{within}}",
        ("lora", "tokens/s ratios", "tokens_per_second_steady"),
        _always,
    ),
    "amortised": Column(
        _one(
            "Tokens/s amortised",
            entries.marked(entries.with_ratio("tokens_per_second_amortised", entries.rate, "lora")),
        ),
        "speed",
        "Amortised: all tokens over all steps, including slow ones.",
        ("lora", "tokens/s ratios", "tokens_per_second_amortised"),
        _always,
    ),
    "p95": Column(
        _one("Step p95", entries.measure("step_seconds_p95", entries.seconds)),
        "speed",
        "Step p95: 95% of the steps after warm-up took at most this time.",
    ),
    "parts": Column(
        _one(
            "Forward / backward / optimizer",
            entries.together(["forward_share", "backward_share", "optimizer_share"], lambda most: (0.01, "%")),
        ),
        "parts",
        "Forward / backward / optimizer: shares of the time of all steps; optimizer includes clipping.",
    ),
    "projection": Column(
        _one("Projection share", entries.measure("projection_share", entries.share)),
        "parts",
        "Projection share: time beyond the median of optimizer laps that took more than twice the median, as a share "
        "of all steps: GaLore's new projections, and other occasional delays.",
    ),
    "utilisation": Column(
        _one("Utilisation", entries.measure("utilisation", entries.share)),
        "use",
        "Utilisation: counted operations per second of median steps, padding included, over the device's measured rate "
        "of matrix multiplication.",
    ),
    "busy": Column(
        _one("GPU busy", entries.measure("gpu_busy_share", entries.share)),
        "busy",
        "GPU busy: share of a step in which the GPU runs a kernel, in two profiled steps.",
        default=_always,
    ),
    "kernels": Column(
        _one("Kernels/step", entries.measure("kernels", entries.rate)),
        "busy",
        "Kernels/step: kernels that a step starts.",
    ),
    "attention": Column(
        _one("Attention", entries.attention),
        "use",
        "Attention: the operations in a training step, with the dtype of their queries.",
    ),
    "energy": Column(
        _one("Joules/token", entries.measure("joules_per_token", lambda joules: units.significant(joules, 3))),
        "use",
        "Joules/token: energy of the whole device in all steps, per raw token.",
    ),
    "prefill": Column(
        _one("Prefill tokens/s", entries.forms("prefill_tokens_per_second")),
        "inference",
        "Prefill: prompt tokens per second (median), unmerged → merged.",
    ),
    "decode": Column(
        _one("Decode tokens/s", entries.marked(entries.forms("decode_tokens_per_second"))),
        "inference",
        "Decode: tokens per second after the first (median), unmerged → merged.",
        default=_always,
    ),
    "batched_prefill": Column(
        _one("Batched prefill tokens/s", entries.forms("batched_prefill_tokens_per_second")),
        "inference",
        "Batched prefill: the same at the large batch size.",
    ),
    "batched_decode": Column(
        _one("Batched decode tokens/s", entries.marked(entries.forms("batched_decode_tokens_per_second"))),
        "inference",
        "Batched decode: the decoding rate at the large batch size, of all sequences together.",
        default=_always,
    ),
    "decode_ratio": Column(
        _one("Merged decode", entries.decode_ratio),
        "inference",
        f"Merged decode: that rate for the model as it is served; × is {LORA}, with a 95% interval (over "
        "seeds; for one seed over repeats, without the variance between processes).{within}",
        ("lora", "merged decode ratios", "merged_decode_tokens_per_second"),
        _always,
    ),
    "merge": Column(
        _one("Merge time", entries.measure("merge_seconds", entries.seconds)),
        "rest",
        "Merge time: merging the adapter into the weights.",
    ),
    "difference": Column(
        _one("Logit difference", entries.measure("logit_difference", lambda value: units.significant(value, 2))),
        "rest",
        "Logit difference: the largest between unmerged and merged weights on a validation batch.",
    ),
    "disk": Column(
        _one("Size on disk", entries.together(["adapter_bytes", "model_bytes"], entries.byte_unit)),
        "rest",
        "Size on disk: the adapter / all weights as they are served.",
    ),
    "load": Column(
        _one("Load time", entries.measure("load_seconds", entries.seconds)),
        "rest",
        "Load time: reading the weights and adapting the model.",
    ),
    "score_time": Column(
        _one("Score time", entries.measure("score_seconds", entries.seconds)),
        "rest",
        "Score time: all evaluations.",
    ),
    "peak": Column(
        _one("Peak memory", entries.peak),
        "peak",
        "Peak memory: live tensors in a forward pass over the largest validation batch, or in a training step; "
        "unknown for models behind an API.",
    ),
    "written": Column(
        _one("Tokens/s written", entries.written),
        "written",
        "Tokens/s written: the decoding rate, or for models behind an API the tokens written over the time that "
        "requests waited, including network, queue and prefill.",
    ),
    "price": Column(
        _one("Price read / written", entries.price),
        "price",
        "Price: per million tokens, as given in the settings.",
    ),
    "spent": Column(
        _one("Spent", entries.measure("dollars", units.dollars)),
        "price",
        "Spent: the cost of the cell's own requests; answers cached by another cell are free.",
        default=_any_api,
    ),
    "cost": Column(
        _one("Cost", entries.cost),
        "cost",
        _cost_meaning,
        default=lambda rows: rows.price is not None,
    ),
    "scores": Column(entries.score_entries, default=_always),
    "loss": Column(_one("Validation loss", entries.measure("validation_loss", units.significant)), default=_always),
    "answer_bits": Column(
        _one("Answers, bits/byte ↓", entries.measure("answer_bits_per_byte", units.significant)),
        "answers",
        "Bits per byte of the validation answers: the loss of models with different tokenizers on one scale.",
        default=lambda rows: len({row.place[1] for row in rows}) > 1,
    ),
    "status": Column(_one("Status", entries.status), default=_always),
}
