"""The rows and the columns of the comparison: what each column is called, shows and means, declared in `COLUMNS`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, variance

import pandas as pd

from harness import units
from harness.errors import one_of
from harness.record import Record, Score
from harness.report.frame import FORMS, KINDS, decoded_tokens, frame, measures, score_name, setting_texts
from harness.report.lint.training import attention_text
from harness.report.select import Choice, select
from harness.report.statistics import speed_ratio

METHODS = [  # in their order in a table; others follow by name
    *("base", "base_nf4", "full", "lora", "qlora", "dora", "dora_fast", "qdora", "galore", "galore_rsvd"),
    *("base_int8", "lora_8bit", "qlora_paged", "full_bf16", "full_kahan", "galore_bf16"),
    *("adamw_layer", "galore_layer", "adamw_8bit", "galore_8bit", "adafactor", "apollo", "apollo_mini", "muon"),
    *("rslora", "loraplus", "lorafa", "riemannian", "pissa", "olora", "eva", "corda", "lora_ga", "loftq", "adalora"),
    "api",
]
ABSENT = "–"
CHOSEN = " *"


@dataclass
class Estimate:
    """A score over the seeds of a row. Two are comparable when `of` is equal: items, shots and task version."""

    value: float
    stderr: float | None
    of: tuple[int, int, str]


@dataclass
class Row:
    """The records of one method in one setting, which differ in their seeds alone.

    Means are over the finished records; over all of them when none finished, so that a failed cell shows what it
    measured. Only finished rows are compared with others.
    """

    place: tuple[str, str, str]
    method: str
    setting: str
    rank: int | None
    records: list[Record]
    chosen: bool = False  # among several settings of its method, by `select`

    @cached_property
    def finished(self) -> bool:
        return any(record.status == "ok" for record in self.records)

    @cached_property
    def measured(self) -> list[Record]:
        return [record for record in self.records if record.status == "ok"] or self.records

    def values(self, measure: str) -> list[float]:
        """A column of `frame`, of the seeds that have it."""
        found = zip(self.records, self.numbers, strict=True)
        known = [numbers[measure] for record, numbers in found if record.status == "ok" or not self.finished]
        return [value for value in known if value is not None]

    def mean(self, measure: str) -> float | None:
        """The mean of `values`, or None where no seed has it."""
        known = self.values(measure)
        return fmean(known) if known else None

    @cached_property
    def scores(self) -> dict[str, Estimate]:
        found = defaultdict(list)
        for record in self.measured:
            for score in record.scores:
                found[score_name(score)].append(score)
        return {name: _estimate(scores) for name, scores in found.items()}

    @cached_property
    def served(self) -> list[list[float]]:
        """Seconds a decoded token takes as the model is served (merged, or without an adapter): repeats by seed."""
        forms = [record.inference for record in self.measured]
        speeds = [found.get("merged") or (None if "unmerged" in found else found.get("base")) for found in forms]
        decoding = [(speed.decode_seconds, decoded_tokens(speed)) for speed in speeds if speed]
        return [[seconds / tokens for seconds in repeats] for repeats, tokens in decoding if tokens]

    @cached_property
    def numbers(self) -> list[dict[str, float | None]]:
        """`measures` of each of `records`."""
        return [measures(record) for record in self.records]


class Rows(list[Row]):
    """The rows of a table, and what is made of all of them once."""

    @cached_property
    def records(self) -> list[Record]:
        return [record for row in self for record in row.records]

    @cached_property
    def data(self) -> pd.DataFrame:
        """`frame` of `records`."""
        return frame(self.records, [(row.setting, numbers) for row in self for numbers in row.numbers])

    @cached_property
    def choices(self) -> list[Choice]:
        """`select`'s among all settings; their `index` is that of `records`."""
        return select(self.data)

    @cached_property
    def index(self) -> dict[tuple, list[Row]]:
        """Finished rows by method and place, by method and model of a study, and by method, place and rank.

        To look through all rows for each would take their square.
        """
        found = defaultdict(list)
        for row in self:
            if row.finished:
                for key in ((row.place,), (row.place[:2],), (row.place, row.rank)):
                    found[row.method, *key].append(row)
        return found


Cell = Callable[[Row, Rows], str]


@dataclass(frozen=True)
class Column:
    """One column of the table, or one for each score.

    cells: by header, the text of a row, given all rows.
    meaning: a sentence for the caption, `{within}` standing for what restricts ratios; columns of one topic share a
        line there.
    reference: the method that ratios are to, what they are called, and the measure they are of.
    default: whether the column is shown where nobody chooses; one without any value is not.
    """

    cells: Callable[[Rows], dict[str, Cell]]
    topic: str = ""
    meaning: str = ""
    reference: tuple[str, str, str] | None = None
    default: Callable[[Rows], bool] = lambda rows: False


def group(records: Sequence[Record]) -> Rows:
    """The rows of `records`, methods in their usual order."""
    groups = defaultdict(list)
    for record, setting in zip(records, setting_texts(records), strict=True):
        cell = record.cell
        place = (record.study, cell.model, cell.data)
        order = METHODS.index(cell.method) if cell.method in METHODS else len(METHODS)
        axes = tuple((value is not None, value or 0) for value in (cell.rank, cell.alpha, cell.lr))
        groups[place, order, cell.method, axes, setting].append(record)
    return Rows(
        Row(place, method, setting, group[0].cell.rank, sorted(group, key=lambda record: record.cell.seed or 0))
        for (place, _, method, _, setting), group in sorted(groups.items(), key=lambda item: item[0])
    )


def choose(columns: Sequence[str] | None, rows: Rows) -> list[str]:
    """The ids of the columns to show: those asked for, `all`, or the default ones; UserError for an unknown id."""
    for name in columns or []:
        one_of("columns", name, [*COLUMNS, "all"])
    if columns is None:
        return [name for name, column in COLUMNS.items() if column.default(rows)]
    return list(COLUMNS if "all" in columns else dict.fromkeys(columns))


def texts(name: str, rows: Rows) -> dict[str, list[str]]:
    """The texts of the column `name`, one a row, by header."""
    return {header: [cell(row, rows) for row in rows] for header, cell in COLUMNS[name].cells(rows).items()}


# Which row another is compared with


def _references(row: Row, rows: Rows, method: str) -> Iterator[Row]:
    """The finished rows of `method` beside `row`, best first: those of its rank."""
    yield from rows.index[method, row.place, row.rank]
    yield from (other for other in rows.index[method, row.place] if other.rank != row.rank)


def _bases(row: Row, rows: Rows) -> Iterator[Row]:
    """A row's base rows, best first: those of its own data, then others of its model, whose weights are the same."""
    yield from rows.index["base", row.place]
    yield from (other for other in rows.index["base", row.place[:2]] if other.place != row.place)


# Numbers as text


def _estimate(scores: list[Score]) -> Estimate:
    values, errors = [score.value for score in scores], [score.stderr for score in scores]
    stderr = None
    if None not in errors:
        seeds = variance(values) / len(values) if len(values) > 1 else 0.0
        stderr = (fmean(error**2 for error in errors) + seeds) ** 0.5
    first = scores[0]
    return Estimate(fmean(values), stderr, (first.n, first.num_fewshot, first.version))


def _seconds(value: float) -> str:
    return f"{rate(value)} s" if value >= 1 else f"{rate(1000 * value)} ms"


def rate(value: float) -> str:
    """Three digits, or a whole number."""
    return f"{value:,.0f}" if value >= 100 else units.significant(value, 3)


def _share(value: float) -> str:
    return f"{units.significant(100 * value, 3)}%"


def _percent(value: float) -> str:
    return f"{round(100 * value, 1) + 0.0:.1f}"  # + 0.0 turns a rounded -0.0 into 0.0


# Cells


def _measure(measure: str, text: Callable[[float], str]) -> Cell:
    """The mean of a column of `frame`."""

    def cell(row: Row, rows: Rows) -> str:
        value = row.mean(measure)
        return ABSENT if value is None else text(value)

    return cell


def _with_ratio(measure: str, text: Callable[[float], str], method: str) -> Cell:
    """The mean of a column of `frame`, and its ratio to that of the first finished row of `method`."""

    def cell(row: Row, rows: Rows) -> str:
        value = row.mean(measure)
        if value is None:
            return ABSENT
        reference = next((found for other in _references(row, rows, method) if (found := other.mean(measure))), None)
        return text(value) + (f" ({value / reference:.2f}×)" if reference and row.finished else "")

    return cell


def _together(measures: Sequence[str], scale: Callable[[float], tuple[float, str]]) -> Cell:
    """Several means in one unit, such as `513 / 19 / 0 MiB`; `scale` gives its size and name for the greatest."""

    def cell(row: Row, rows: Rows) -> str:
        values = [row.mean(measure) for measure in measures]
        if all(value is None for value in values):
            return ABSENT
        size, unit = scale(max(value for value in values if value is not None))
        return " / ".join(ABSENT if value is None else _short(value / size) for value in values) + unit

    return cell


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _byte_unit(most: float) -> tuple[float, str]:
    if most >= 10 * 2**30:
        return 2**30, " GiB"
    return (2**20, " MiB") if most >= 2**20 else (2**10, " KiB")


def _forms(measure: str) -> Cell:
    """The mean rate with the adapter unmerged → merged; one alone where there is no adapter, or no merging it."""

    def cell(row: Row, rows: Rows) -> str:
        base, *tuned = (row.mean(f"{form}_{measure}") for form in FORMS)
        rates = [value for value in tuned if value is not None] or ([base] if base is not None else [])
        return " → ".join(map(rate, rates)) or ABSENT

    return cell


def _decode_ratio(row: Row, rows: Rows) -> str:
    if not row.finished or not row.served:
        return ABSENT
    reference = next((other for other in _references(row, rows, "lora") if other.served), None)
    if reference is None:
        return ABSENT
    if row is reference:
        return "1.00×"  # of itself: nothing to estimate
    estimate = speed_ratio(row.served, reference.served)
    return "{:.2f}× ({:.2f}–{:.2f})".format(*estimate) if estimate else ABSENT


def _trainable(row: Row, rows: Rows) -> str:
    parameters = next((record.parameters for record in row.measured if record.parameters), None)
    if parameters is None:
        return ABSENT
    return f"{units.count(parameters.trainable)} ({_share(parameters.trainable / parameters.total)})"


def _attention(row: Row, rows: Rows) -> str:
    seen = (attention_text(record.probe) for record in row.measured if record.probe)
    return "; ".join(dict.fromkeys(text for text in seen if text)) or ABSENT


def _asked(row: Row, rows: Rows) -> str:
    return ", ".join(dict.fromkeys(record.api.kind for record in row.records if record.api)) or ABSENT


def _price(row: Row, rows: Rows) -> str:
    prices = [row.mean(measure) for measure in ("price_read", "price_written")]
    return ABSENT if None in prices else " / ".join(map(units.dollars, prices))


def _peak(row: Row, rows: Rows) -> str:
    """What was held at the highest moment of a forward pass, or of a training step."""
    kinds = [row.mean(f"peak_{kind}") for kind in KINDS]
    return ABSENT if None in kinds else units.size(sum(kinds))


def _written(row: Row, rows: Rows) -> str:
    """The rate at which a model that is here writes as it is served, or at which one behind an API answers."""
    rates = (row.mean(f"{measure}_tokens_per_second") for measure in ("merged_decode", "base_decode", "answer"))
    known = next((value for value in rates if value is not None), None)
    return ABSENT if known is None else rate(known)


def _seeds(row: Row, rows: Rows) -> str:
    return str(len(row.measured)) if row.measured[0].cell.seed is not None else ABSENT


def _status(row: Row, rows: Rows) -> str:
    statuses = [record.status for record in row.records]
    if len(set(statuses)) == 1:
        return statuses[0]
    return ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))


def _score_cells(rows: Rows) -> dict[str, Cell]:
    """A cell for each score, by its header; an empty one where there is none."""
    scores = {score_name(score): score for row in rows for record in row.measured for score in record.scores}
    cells = dict(_score_cell(name, score, rows) for name, score in scores.items())
    return cells or {"Scores": lambda row, rows: ABSENT}


def score_style(score: Score, values: Sequence[float]) -> tuple[str, Callable[[float], str]]:
    """The header of a score's column, and how its `values` are written: in percent if they are shares."""
    percent = score.higher_is_better and all(0 <= value <= 1 for value in values)
    words = [score.task, score.metric, score.filter if score.filter != "none" else "", "(%)" if percent else ""]
    header = " ".join(word for word in words if word) + ("" if score.higher_is_better else " ↓")
    return header, _percent if percent else units.significant


def _score_cell(name: str, score: Score, rows: Rows) -> tuple[str, Cell]:
    """Header and cell."""
    header, shown = score_style(score, [row.scores[name].value for row in rows if name in row.scores])
    error = shown if shown is _percent else "{:.2g}".format

    def cell(row: Row, rows: Rows) -> str:
        estimate = row.scores.get(name)
        if estimate is None:
            return ABSENT
        text = shown(estimate.value)
        if estimate.stderr is not None:
            text += f" ± {error(estimate.stderr)}"
        bases = (base.scores[name] for base in _bases(row, rows) if name in base.scores)
        before = next((base for base in bases if base.of == estimate.of), None)
        if before and row.finished and row.method != "base":
            change = estimate.value - before.value
            text += f" ({'−' if shown(change).startswith('-') else '+'}{shown(abs(change))})"
        return text

    return header, cell


# The columns by their ids, in the order of the table


def _always(rows: Rows) -> bool:
    return True


def _one(header: str, cell: Cell) -> Callable[[Rows], dict[str, Cell]]:
    return lambda rows: {header: cell}


def _place(header: str, i: int) -> Column:
    return Column(
        _one(header, lambda row, rows: row.place[i]), default=lambda rows: len({row.place[i] for row in rows}) > 1
    )


def _any_api(rows: Rows) -> bool:
    return any(record.api for row in rows for record in row.records)


def several_seeds(rows: Rows) -> bool:
    return any(len(row.measured) > 1 for row in rows)


LORA = "its ratio to the first finished lora row, of the same rank if there is one"

COLUMNS: dict[str, Column] = {
    "study": _place("Study", 0),
    "model": _place("Model", 1),
    "data": _place("Data", 2),
    "method": Column(_one("Method", lambda row, rows: row.method), default=_always),
    "setting": Column(
        _one("Setting", lambda row, rows: (row.setting or ABSENT) + CHOSEN * row.chosen), default=_always
    ),
    "seeds": Column(_one("Seeds", _seeds), default=several_seeds),
    "asked": Column(
        _one("Asked by", _asked),
        "asked",
        "Asked by is how a model behind an API was asked: completions have log-probabilities, as a model that is here "
        "gives them; a chat has text alone, in the model's own format: another measurement, not to be compared.",
        default=_any_api,
    ),
    "trainable": Column(_one("Trainable", _trainable), default=_always),
    "memory": Column(
        _one("Peak train memory", _with_ratio("train_allocated_peak", units.size, "full")),
        "memory",
        "Memory is the peak of live tensors in a training step; × is its ratio to the first finished full row.{within}",
        ("full", "memory ratios", "train_allocated_peak"),
        _always,
    ),
    "kinds": Column(
        _one(
            "Weights / adapters / gradients / optimizer / activations",
            _together([f"peak_{kind}" for kind in KINDS], _byte_unit),
        ),
        "memory",
        "Weights / adapters / gradients / optimizer / activations add up to that peak (for an untuned row to that "
        "of a forward pass); gradients may be freed by then.",
        default=_always,
    ),
    "resident": Column(
        _one("Resident memory", _measure("resident", units.size)),
        "memory",
        "Resident memory is held between two steps.",
    ),
    "reserved": Column(
        _one("Reserved in 99% of steps", _measure("train_reserved_p99", units.size)),
        "reserved",
        "Reserved memory is what the device's allocator held, gaps between tensors included; in 99% of training steps "
        "it was no more than this.",
        default=_always,
    ),
    "job_reserved": Column(
        _one("Reserved in the whole job", _measure("job_reserved_peak", units.size)),
        "reserved",
        "That of the whole job is no memory of training: its peak may be the evaluation's.",
        default=_always,
    ),
    "steady": Column(
        _one("Tokens/s", _with_ratio("tokens_per_second_steady", rate, "lora")),
        "speed",
        f"Tokens/s counts raw (non-padding) tokens, median step; × is {LORA}.{{within}}",
        ("lora", "tokens/s ratios", "tokens_per_second_steady"),
        _always,
    ),
    "amortised": Column(
        _one("Tokens/s amortised", _with_ratio("tokens_per_second_amortised", rate, "lora")),
        "speed",
        "Amortised is all tokens over all steps, the slow ones included.",
        ("lora", "tokens/s ratios", "tokens_per_second_amortised"),
        _always,
    ),
    "p95": Column(
        _one("Step p95", _measure("step_seconds_p95", _seconds)),
        "speed",
        "Step p95 is what 95% of the steps after warm-up stayed within.",
    ),
    "parts": Column(
        _one(
            "Forward / backward / optimizer",
            _together(["forward_share", "backward_share", "optimizer_share"], lambda most: (0.01, "%")),
        ),
        "parts",
        "Forward / backward / optimizer are shares of the time of all steps; the optimizer's includes clipping.",
    ),
    "projection": Column(
        _one("Projection share", _measure("projection_share", _share)),
        "parts",
        "Projection share is what optimizer laps of over twice the median took beyond it, of the time of all steps: "
        "GaLore's new projections, and whatever else is slow now and then.",
    ),
    "utilisation": Column(
        _one("Utilisation", _measure("utilisation", _share)),
        "use",
        "Utilisation is the counted operations of median steps, padding included, over the rate at which the device "
        "was measured to multiply matrices.",
    ),
    "attention": Column(
        _one("Attention", _attention),
        "use",
        "Attention is the operations that ran in a training step, and the dtype of their queries.",
    ),
    "energy": Column(
        _one("Joules/token", _measure("joules_per_token", lambda joules: units.significant(joules, 3))),
        "use",
        "Joules/token is what the whole device took in all steps, a raw token.",
    ),
    "prefill": Column(
        _one("Prefill tokens/s", _forms("prefill_tokens_per_second")),
        "inference",
        "Prefill is the rate of reading prompts (median), unmerged → merged.",
    ),
    "decode": Column(
        _one("Decode tokens/s", _forms("decode_tokens_per_second")),
        "inference",
        "Decode is the rate of writing tokens after the first (median), unmerged → merged.",
        default=_always,
    ),
    "decode_ratio": Column(
        _one("Merged decode", _decode_ratio),
        "inference",
        f"Merged decode is that rate as the model is served; × is {LORA}, with a 95% interval (over "
        "seeds; of one seed over repeats, and how processes differ is not in it).{within}",
        ("lora", "merged decode ratios", "merged_decode_tokens_per_second"),
        _always,
    ),
    "merge": Column(
        _one("Merge time", _measure("merge_seconds", _seconds)),
        "rest",
        "Merge time is that of folding the adapter into the weights.",
    ),
    "difference": Column(
        _one("Logit difference", _measure("logit_difference", lambda value: units.significant(value, 2))),
        "rest",
        "Logit difference is the largest between unmerged and merged weights on a validation batch.",
    ),
    "disk": Column(
        _one("Size on disk", _together(["adapter_bytes", "model_bytes"], _byte_unit)),
        "rest",
        "Size on disk is that of the adapter / of all weights as they are served.",
    ),
    "load": Column(
        _one("Load time", _measure("load_seconds", _seconds)),
        "rest",
        "Load time is that of reading the weights and adapting the model.",
    ),
    "score_time": Column(
        _one("Score time", _measure("score_seconds", _seconds)),
        "rest",
        "Score time is that of all evaluations.",
    ),
    "peak": Column(
        _one("Peak memory", _peak),
        "peak",
        "Peak memory is that of live tensors in a forward pass over the largest validation batch, or in a training "
        "step; of a model behind an API nothing is known.",
    ),
    "written": Column(
        _one("Tokens/s written", _written),
        "written",
        "Tokens/s written is the rate of decoding here, or for a model behind an API that of tokens written to the "
        "seconds that requests waited for them, network, queue and reading included.",
    ),
    "price": Column(
        _one("Price read / written", _price),
        "price",
        "The price is that of a million tokens, as the settings said.",
    ),
    "spent": Column(
        _one("Spent", _measure("dollars", units.dollars)),
        "price",
        "Spent is what the cell's own requests cost; answers that another cell had asked for are free.",
        default=_any_api,
    ),
    "scores": Column(_score_cells, default=_always),
    "loss": Column(_one("Validation loss", _measure("validation_loss", units.significant)), default=_always),
    "status": Column(_one("Status", _status), default=_always),
}
