"""Records as a data frame: one row per record, numbers in base units, for analysis and CSV."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import operator
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from statistics import median
from typing import Any, get_type_hints

import pandas as pd

from harness.grouping import grouped
from harness.record import (
    Inference,
    Kinds,
    Record,
    Score,
    Train,
    memory_instrument,
    memory_remainder,
    micro_batches,
    train_memory,
)
from harness.settings import EvalSettings, InferSettings, Settings, plain

TEXTS = ["study", "name", "method", "model", "data", "setting", "status", "failed_phase", "reason"]
TEXTS += ["memory_instrument"]
KINDS = [kind.name for kind in fields(Kinds)]
TRAIN_MEMORY = "train_allocated_peak"
FORMS = ["base", "unmerged", "merged"]
BYTES = [TRAIN_MEMORY, "train_memory_remainder", "train_reserved_peak", "train_reserved_p99", "train_device_process"]
BYTES += ["train_process_peak", "job_reserved_peak", "resident", "gradients", *(f"peak_{kind}" for kind in KINDS)]
BYTES += ["adapter_bytes", "model_bytes"]
COUNTS = [*BYTES, "rank", "seed", "failed_step", "trainable", "total", "steps", "raw_tokens", "micro_batch"]
COUNTS += ["requests", "read_tokens", "written_tokens"]

Numbers = dict[str, float | None]


def frame(records: Sequence[Record], texts_and_numbers: Iterable[tuple[str, Numbers]] | None = None) -> pd.DataFrame:
    """One row per record, in the order given; missing measurements are null, never 0.

    texts_and_numbers: the records' `setting_texts` and `measures`, if they were computed before.

    study, name, method, model, data    text
    rank, alpha, lr, seed               the cell's axes; null where the method does not use them
    setting                             the axes, knobs and other varying settings as text: `setting_texts`
    status                              ok, failed, oom, diverged, unfit or pruned
    failed_phase, failed_step, reason   where and why, for a cell that is not ok
    seconds                             seconds of the whole job
    trainable, total                    how many weights are trained, and how many there are
    trainable_share                     trainable / total, a fraction of 1
    validation_loss                     the last one, nats per token; of pairs, nats per pair
    answer_bits_per_byte                the same answers in bits per byte of their text, which does not depend on how a
                                        tokenizer cuts them: loss × tokens / bytes / ln 2

    Memory, in bytes:

    train_allocated_peak                the headline, `record.train_memory`: the peak of CUDA's allocator over training;
                                        on a CPU the peak of live tensors in a training step
    memory_instrument                   which of the two it is: allocator or tensors; they are not comparable
    peak_KIND                           live tensors at the probe's peak: weights, adapters, gradients, optimizer,
                                        activations; those of a forward pass for an untuned model
    train_memory_remainder              on CUDA what these kinds leave of the headline; null on a CPU, where they add up
                                        to it
    resident                            live tensors held between two steps, or after that pass
    gradients                           of all trainable weights; peak_gradients is what of them lived at the peak
    train_reserved_peak                 peak of what CUDA's allocator held, in training
    train_device_process                what NVML says the process held on the device, in training
    train_process_peak                  peak of the process's resident set on the host, in training
    train_reserved_p99                  what the allocator held after a step, 99th percentile; imported records alone
    job_reserved_peak                   peak of that over a whole job, evaluation included; imported records alone

    Training:

    micro_batch                         sequences a micro-batch, as it ran
    steps, raw_tokens                   optimizer steps and non-padding tokens trained on
    tokens_per_second_steady            raw tokens / second, median over the steps after warm-up
    tokens_per_second_amortised         raw tokens / second, over all steps
    step_seconds_median, step_seconds_p95               seconds a step after warm-up, and the 95th percentile
    forward_share, backward_share, optimizer_share      of the seconds of all steps, a fraction of 1
    projection_share                    likewise, what optimizer laps of over twice the median took beyond it: GaLore's
                                        new projections, and whatever else is slow now and then
    flops_per_token                     FLOPs of a padded token, without those that checkpointing does again; of a
                                        forward pass for an untuned model
    utilisation                         flops_per_token × padded tokens/s of one device at the steady rate / its
                                        measured peak of matrix products, a fraction of 1
    joules_per_token                    joules a raw token, over all steps
    gpu_busy_share                      of a probe step's time, in which the GPU ran a kernel, a fraction of 1
    kernels                             how many kernels such a step started

    Inference; FORM is base, unmerged or merged:

    FORM_prefill_tokens_per_second      tokens read / second, median over repeats
    FORM_decode_tokens_per_second       tokens written / second after the first of each sequence, likewise
    FORM_first_token_seconds            seconds to the first token of a batch, likewise
    FORM_token_seconds                  seconds between two tokens of a sequence, likewise
    FORM_batched_…                      these four at infer.large_batch_size

    Of a model behind an API:

    requests, read_tokens, written_tokens               how many its scores rest on, as the endpoint counts tokens
    answer_tokens_per_second            tokens written / second of waiting for the answers
    price_read, price_written           dollars for a million tokens
    dollars                             that the cell's own requests cost

    The rest of a job:

    load_seconds, train_seconds, score_seconds          seconds of these phases
    merge_seconds                       seconds of folding the adapter in alone
    logit_difference                    greatest by which merging moved a logit of a validation batch
    adapter_bytes, model_bytes          bytes on disk: the adapter, and all weights as they are served
    TASK/METRIC/FILTER                  a score as its task defines it (a fraction of 1 for an accuracy)
    TASK/METRIC/FILTER:stderr, TASK/METRIC/FILTER:n     its standard error over items, and how many items
    """
    if texts_and_numbers is None:
        texts_and_numbers = zip(setting_texts(records), map(measures, records), strict=True)
    columns: dict[str, list[Any]] = defaultdict(lambda: [None] * len(records))  # of few objects, unlike rows
    for i, (record, (setting, numbers)) in enumerate(zip(records, texts_and_numbers, strict=True)):
        for name, value in _row(record, setting, numbers).items():
            columns[name][i] = value
    # Int64 is nullable: a missing count must not turn the others to floats
    counts = {name for name in columns if name in COUNTS or name.endswith(":n")}
    kinds = {name: None if name in TEXTS else "Int64" if name in counts else "float64" for name in columns}
    return pd.DataFrame({name: pd.Series(values, dtype=kinds[name]) for name, values in columns.items()})


def measures(record: Record) -> Numbers:
    """The measurements of `record` without its scores, by the names of `frame`'s columns."""
    train, phases = record.train, record.phases
    numbers: Numbers = {"seconds": record.seconds, **_each(record.parameters, PARAMETERS)}
    numbers |= {"validation_loss": record.validation_loss}
    numbers |= {"answer_bits_per_byte": _answer_bits(record), "micro_batch": (micro_batches(record) or (None,))[0]}
    numbers |= {TRAIN_MEMORY: train_memory(record), "train_memory_remainder": memory_remainder(record)}
    numbers |= _each(record.probe, PROBE)
    numbers |= _each(phases["train"].memory if "train" in phases else None, PHASE_MEMORY)
    numbers |= {"job_reserved_peak": phases["job"].memory.reserved_peak if "job" in phases else None}
    numbers |= {**_each(train, TRAINING), **_step_seconds(train), "utilisation": _utilisation(record)}
    for form, batched, names in SPEEDS:
        speed = (record.batched_inference if batched else record.inference).get(form)
        numbers |= dict.fromkeys(names) if speed is None else zip(names, _speeds(speed), strict=True)
    numbers |= {f"{name}_seconds": phases[name].seconds if name in phases else None for name in PHASES}
    return numbers | _each(record.api, API) | _each(record.merge, MERGE) | _each(record.disk, DISK)


def score_name(score: Score) -> str:
    """`TASK/METRIC/FILTER`, the name of a score's column in `frame`."""
    return f"{score.task}/{score.metric}/{score.filter}"


def decoded_tokens(speed: Inference) -> int | None:
    """Tokens that a repeat decodes after the first of each sequence; None if there are none."""
    return speed.batch_size * max(0, speed.new_tokens - 1) or None


def setting_texts(records: Sequence[Record]) -> list[str]:
    """A text that distinguishes each record's cell within its method, such as `r=16 α=32 lr=2e-4 train.max_steps=100`.

    Axes and knobs come first, then every resolved setting that differs between cells with the same study, model, data,
    method, axes and knobs. The seed of the training is left out, and a seed of the method that is the same in every
    one of these cells, such as that of SHiRA's masks; other seeds, as that of generated data, are settings. A setting
    that a record lacks is one that is off, so a neutral default of a new setting splits no cells from before. What a
    method's file takes from another setting (`method.load.dtype` from `model.dtype`) is left out beside it. The text
    is empty if there is nothing to distinguish.
    """
    axes = [_axes(record) for record in records]
    alike = grouped(
        ((record.study, record.cell.model, record.cell.data, record.cell.method, axes[i]), i)
        for i, record in enumerate(records)
    )
    texts = list(axes)
    for members in alike.values():
        settings = [BUT_SEED(records[i].cell.settings) for i in members]
        if all(of == settings[0] for of in settings):  # as nearly always
            continue
        leaves = {i: _setting_leaves(records[i].cell.settings) for i in members}
        keys = sorted({key for i in members for key in leaves[i]})
        columns = {key: [_or_off(key, leaves[i].get(key)) for i in members] for key in keys}
        seeds = [_text(records[i].cell.settings.seed) for i in members]
        seed_keys = [key for key in keys if key.startswith("method.") and key.endswith("seed")]
        repeats = {key for key in seed_keys if [leaves[i].get(key) for i in members] == seeds}
        varying = [key for key in keys if len(set(columns[key])) > 1 and key not in repeats]
        own = {key: (key.rpartition(".")[2], *columns[key]) for key in varying}
        others = [of for key, of in own.items() if not key.startswith("method.")]
        varying = [key for key in varying if not key.startswith("method.") or own[key] not in others]
        for i in members:
            texts[i] = " ".join(filter(None, [axes[i], *(f"{key}={leaves[i].get(key, '–')}" for key in varying)]))
    return texts


def trained_texts(records: Sequence[Record]) -> list[str]:
    """As `setting_texts`, without the settings that only say how the trained model was evaluated.

    One setting that was evaluated in two ways was trained alike, so it is one try.
    """
    return setting_texts([_evaluated_alike(record) for record in records])


def evaluated_alike(records: Sequence[Record]) -> bool:
    """Whether the trained models of all `records` were evaluated in one way."""
    settings = [record.cell.settings for record in records]
    ways = [(each.eval, each.infer, each.train.validation_items) for each in settings]
    return all(way == ways[0] for way in ways)


def _evaluated_alike(record: Record) -> Record:
    """`record` with the evaluation of all others."""
    settings = record.cell.settings
    train = settings.train
    if train.early_stopping is None:  # else the validation decides which weights are kept
        train = dataclasses.replace(train, validation_items=None)
    settings = dataclasses.replace(settings, eval=EvalSettings(), infer=InferSettings(), train=train)
    return dataclasses.replace(record, cell=dataclasses.replace(record.cell, settings=settings))


BUT_SEED = operator.attrgetter(*(part.name for part in fields(Settings) if part.name != "seed"))


def _row(record: Record, setting: str, numbers: Numbers) -> dict[str, Any]:
    cell, failure = record.cell, record.failure
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
        "memory_instrument": memory_instrument(record) if numbers[TRAIN_MEMORY] is not None else None,
        **numbers,
    }
    for score in record.scores:
        name = score_name(score)
        row |= {name: score.value, f"{name}:stderr": score.stderr, f"{name}:n": score.n}
    return row


# The quantities of each part of a record, by column name

Quantities = Mapping[str, Callable[[Any], float | None]]


def _each(part: Any | None, quantities: Quantities) -> dict[str, float | None]:
    """The `quantities` of a part of a record; all None if the part is missing."""
    return dict.fromkeys(quantities) if part is None else {name: of(part) for name, of in quantities.items()}


def _ratio(value: float | None, of: float | None) -> float | None:
    return value / of if value is not None and of else None


def _quantile(values: list[float], share: float) -> float | None:
    """Linear interpolation; numpy takes a hundred times as long for so few values."""
    if not values:
        return None
    values = sorted(values)
    at = share * (len(values) - 1)
    low, high = values[int(at)], values[min(int(at) + 1, len(values) - 1)]
    return low + (high - low) * (at - int(at))


def _answer_bits(record: Record) -> float | None:
    """Bits per byte of the validation answers (Gao et al., The Pile, arXiv:2101.00027, section 3.1)."""
    size, loss = record.held_out, record.validation_loss
    if size is None or loss is None:
        return None
    return _ratio(loss * size.tokens / math.log(2), size.bytes)


def _step_seconds(train: Train | None) -> dict[str, float | None]:
    steady = [train.step_seconds[i] for i in train.steady_steps()] if train else []
    return {"step_seconds_median": _quantile(steady, 0.5), "step_seconds_p95": _quantile(steady, 0.95)}


def _speeds(speed: Inference) -> tuple[float | None, ...]:
    """The values of SPEED."""
    prefill, decode = (_quantile(seconds, 0.5) for seconds in (speed.prefill_seconds, speed.decode_seconds))
    prompt, answer = speed.batch_size * speed.prompt_tokens, decoded_tokens(speed)  # tokens
    return _ratio(prompt, prefill), _ratio(answer, decode), prefill, _ratio(decode, max(0, speed.new_tokens - 1))


def _share(train: Train, lap: str) -> float | None:
    return _ratio(sum(train.laps[lap]), sum(train.step_seconds)) if lap in train.laps else None


def _projection_share(train: Train) -> float | None:
    laps = train.laps.get("optimizer")
    if not laps:
        return None
    usual = median(laps)
    return _ratio(sum(lap - usual for lap in laps if lap > 2 * usual), sum(train.step_seconds))


def _utilisation(record: Record) -> float | None:
    train, probe = record.train, record.probe
    if train is None or probe is None or train.tokens_per_second_steady is None:
        return None
    if not train.tokens.raw or train.tokens.padded is None:
        return None
    device = record.environment.get("device")  # a free dict: any part of it may be missing
    peak = device.get("matmul_flops_per_second") if isinstance(device, dict) else None
    padded = train.tokens_per_second_steady * train.tokens.padded / train.tokens.raw
    return _ratio(probe.flops_per_token * padded / record.cell.settings.train.total_devices, peak)


PHASES = ["load", "train", "score"]

PARAMETERS: Quantities = {
    "trainable": lambda p: p.trainable,
    "total": lambda p: p.total,
    "trainable_share": lambda p: p.trainable / p.total,
}

PROBE: Quantities = {
    **{f"peak_{kind}": operator.attrgetter(f"peak.{kind}") for kind in KINDS},
    "resident": lambda probe: probe.resident.total,
    "gradients": lambda probe: probe.gradients,
    "flops_per_token": lambda probe: probe.flops_per_token,
    "gpu_busy_share": lambda probe: probe.busy_share,
    "kernels": lambda probe: probe.kernels,
}

PHASE_MEMORY: Quantities = {
    "train_reserved_peak": lambda memory: memory.reserved_peak,
    "train_device_process": lambda memory: memory.device_process,
    "train_process_peak": lambda memory: memory.process_peak,
    "train_reserved_p99": lambda memory: memory.reserved_p99,
}

TRAINING: Quantities = {
    "steps": lambda train: train.steps,
    "raw_tokens": lambda train: train.tokens.raw,
    "tokens_per_second_steady": lambda train: train.tokens_per_second_steady,
    "tokens_per_second_amortised": lambda train: train.tokens_per_second_amortised,
    "forward_share": lambda train: _share(train, "forward"),
    "backward_share": lambda train: _share(train, "backward"),
    "optimizer_share": lambda train: _share(train, "optimizer"),
    "projection_share": _projection_share,
    "joules_per_token": lambda train: _ratio(train.joules, train.tokens.raw),
}

SPEED = ["prefill_tokens_per_second", "decode_tokens_per_second", "first_token_seconds", "token_seconds"]
SPEEDS = [
    (form, batched, [f"{form}_{'batched_' * batched}{name}" for name in SPEED])
    for form in FORMS
    for batched in (False, True)
]

API: Quantities = {
    "requests": lambda api: api.requests,
    "read_tokens": lambda api: api.read,
    "written_tokens": lambda api: api.written,
    "answer_tokens_per_second": lambda api: _ratio(api.written, api.seconds),
    "price_read": lambda api: api.price_read,
    "price_written": lambda api: api.price_written,
    "dollars": lambda api: api.dollars,
}

MERGE: Quantities = {
    "merge_seconds": lambda merge: merge.seconds,
    "logit_difference": lambda merge: merge.max_logit_difference,
}

DISK: Quantities = {"adapter_bytes": lambda disk: disk.adapter, "model_bytes": lambda disk: disk.model}


def _axes(record: Record) -> str:
    cell = record.cell
    axes = {"r": cell.rank, "α": cell.alpha, "lr": cell.lr} | cell.knobs
    return " ".join(f"{name}={_text(value)}" for name, value in axes.items() if value is not None)


def _setting_leaves(settings: Settings) -> dict[str, str]:
    """Dotted names and texts of all settings, as in `_leaves`."""
    leaves: dict[str, str] = {}
    for part in dataclasses.fields(settings):
        value = getattr(settings, part.name)
        if part.name in SHARED:
            leaves |= _shared_leaves(part.name, value)
        elif value != part.default:
            leaves |= _leaves({part.name: plain(value) if dataclasses.is_dataclass(value) else value})
    return leaves


# Parts of the settings that most cells of a study have in common. Methods hash by their names alone.
SHARED = ("model", "data", "eval", "train", "infer")


@functools.lru_cache(maxsize=1024)
def _shared_leaves(name: str, part: Any) -> dict[str, str]:
    return dict(_leaves({name: plain(part)}))


def _leaves(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and texts of all settings but the seed of the training, which only repeats a setting.

    Imported records may have it among `other` settings.
    """
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        elif name != "seed" or (prefix and not prefix.startswith("other.")):
            yield f"{prefix}{name}", _text(value)


# Settings that are there only where they are not at their neutral default, so that 0 is a value of its own. Others are
# arguments of what a slot names.
FIELDS = frozenset(
    f"{part}.{inner.name}"
    for part, kind in get_type_hints(Settings).items()
    if dataclasses.is_dataclass(kind)
    for inner in fields(kind)
)


def _or_off(key: str, text: str | None) -> str | None:
    """None for a setting that is missing, null, false or empty, and for an argument of 0."""
    return None if text in ("null", "false", "", "[]", "{}") or (text == "0" and key not in FIELDS) else text


def _text(value: Any) -> str:
    if isinstance(value, float):
        if 0 < abs(value) < 0.01:
            mantissa, exponent = f"{value:e}".split("e")
            return f"{float(mantissa):g}e{int(exponent)}"  # 2e-4, not 0.0002 or 2e-04
        return f"{value:g}"
    if isinstance(value, str):
        return value
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value) if type(value) is int else json.dumps(value, ensure_ascii=False)
