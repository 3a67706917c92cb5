"""The entries of the comparison as text: measures, ratios, scores. A cell here is always one of the grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from statistics import fmean

from harness import units
from harness.record import Record, Score
from harness.report.conditions import started
from harness.report.frame import FORMS, score_name
from harness.report.lint.training import attention_text
from harness.report.pairwise import ordered_scores
from harness.report.statistics import Run, of_times
from harness.report.tables.rows import Row, Rows
from harness.score_names import score_label

ABSENT = "–"
CHOSEN = " *"
FRESH = " (fresh seeds)"
THROTTLED = " ‡"
SEVERAL_DEVICES = " §"
Entry = Callable[[Row, Rows], str]


def _references(row: Row, rows: Rows, method: str) -> Iterator[Row]:
    """The finished rows of `method` in the place of `row`: those of its rank first."""
    yield from rows.by_method[method, row.place, row.rank]
    yield from (other for other in rows.by_method[method, row.place] if other.rank != row.rank)


def _bases(row: Row, rows: Rows) -> Iterator[Row]:
    """The base rows of `row`: those of its data set first, then others of its model, which have the same weights."""
    yield from rows.by_method["base", row.place]
    yield from (other for other in rows.by_method["base", row.place[:2]] if other.place != row.place)


def seconds(value: float) -> str:
    return f"{rate(value)} s" if value >= 1 else f"{rate(1000 * value)} ms"


def rate(value: float) -> str:
    """Three digits, or a whole number from 100."""
    return f"{value:,.0f}" if value >= 100 else units.significant(value, 3)


def share(value: float) -> str:
    return f"{units.significant(100 * value, 3)}%"


def _percent(value: float) -> str:
    return f"{round(100 * value, 1) + 0.0:.1f}"  # + 0.0 turns a rounded -0.0 into 0.0


def measure(measure: str, text: Callable[[float], str]) -> Entry:
    """The mean of a column of `frame`."""

    def entry(row: Row, rows: Rows) -> str:
        value = row.mean(measure)
        return ABSENT if value is None else text(value)

    return entry


def marked(entry: Entry) -> Entry:
    """A speed, with its `speed_marks`."""

    def with_mark(row: Row, rows: Rows) -> str:
        text = entry(row, rows)
        return text if text == ABSENT else text + speed_marks(row)

    return with_mark


def speed_marks(row: Row) -> str:
    """What makes a row's speed doubtful: the GPU throttled, or cells ran on different devices."""
    return THROTTLED * row.throttled + SEVERAL_DEVICES * (len(row.devices) > 1)


def with_ratio(measure: str, text: Callable[[float], str], method: str) -> Entry:
    """The mean of a column of `frame`, with its ratio to the first finished row of `method` on the same device."""

    def entry(row: Row, rows: Rows) -> str:
        value = row.mean(measure)
        if value is None:
            return ABSENT
        ratios = (row.over(other, measure) for other in _references(row, rows, method))
        ratio = next((each for each in ratios if each is not None), None)
        return text(value) + (f" ({ratio:.2f}×)" if ratio is not None and row.finished else "")

    return entry


def together(measures: Sequence[str], scale: Callable[[float], tuple[float, str]]) -> Entry:
    """Several means in one unit, such as `513 / 19 / 0 MiB`; `scale` returns the unit's size and name."""

    def entry(row: Row, rows: Rows) -> str:
        values = [row.mean(measure) for measure in measures]
        if all(value is None for value in values):
            return ABSENT
        size, unit = scale(max(value for value in values if value is not None))
        return " / ".join(ABSENT if value is None else _short(value / size) for value in values) + unit

    return entry


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def byte_unit(most: float) -> tuple[float, str]:
    if most >= 10 * 2**30:
        return 2**30, " GiB"
    return (2**20, " MiB") if most >= 2**20 else (2**10, " KiB")


def forms(measure: str) -> Entry:
    """The mean rate with the adapter unmerged → merged; a single rate without an adapter, or if it can't be merged."""

    def entry(row: Row, rows: Rows) -> str:
        base, *tuned = (row.mean(f"{form}_{measure}") for form in FORMS)
        rates = [value for value in tuned if value is not None] or ([base] if base is not None else [])
        return " → ".join(map(rate, rates)) or ABSENT

    return entry


def decode_ratio(row: Row, rows: Rows) -> str:
    if not row.finished or not row.served:
        return ABSENT
    references = _references(row, rows, "lora")
    reference = next((other for other in references if other.served and row.beside(other)), None)
    if reference is None:
        return ABSENT
    if row is reference:
        return "1.00×"  # relative to itself
    speeds = [fmean(1 / seconds for _, seconds in side.served) for side in (row, reference)]
    speed_ratio = of_times({"row": _served(row), "reference": _served(reference)}, "row", "reference")
    ends = f" ({1 / speed_ratio.high:.2f}–{1 / speed_ratio.low:.2f})" if speed_ratio else ""
    return f"{speeds[0] / speeds[1]:.2f}×{ends}"


def _served(row: Row) -> list[Run]:
    """Seconds per decoded token of each run."""
    return [Run(seconds, record.cell.seed, started(record)) for record, seconds in row.served]


def trainable(row: Row, rows: Rows) -> str:
    parameters = next((record.parameters for record in row.measured if record.parameters), None)
    if parameters is None:
        return ABSENT
    return f"{units.count(parameters.trainable)} ({share(parameters.trainable / parameters.total)})"


def attention(row: Row, rows: Rows) -> str:
    seen = (attention_text(record.probe) for record in row.measured if record.probe)
    return "; ".join(dict.fromkeys(text for text in seen if text)) or ABSENT


def asked(row: Row, rows: Rows) -> str:
    return ", ".join(dict.fromkeys(record.api.kind for record in row.records if record.api)) or ABSENT


def price(row: Row, rows: Rows) -> str:
    prompt_price, answer_price = row.mean("price_read"), row.mean("price_written")
    if prompt_price is None or answer_price is None:
        return ABSENT
    return f"{units.dollars(prompt_price)} / {units.dollars(answer_price)}"


def cost(row: Row, rows: Rows) -> str:
    """The mean over the seeds."""
    costs = [own for record in row.measured if (own := rows.cost(record)) is not None]
    return units.dollars(fmean(costs)) if costs else ABSENT


def peak(row: Row, rows: Rows) -> str:
    """The peak of live tensors in a forward pass, or in a training step."""
    return units.size(sum(row.kinds.values())) if row.kinds else ABSENT


def written(row: Row, rows: Rows) -> str:
    """The decoding rate of a local model as it is served, or the answering rate of one behind an API."""
    rates = (row.mean(f"{measure}_tokens_per_second") for measure in ("merged_decode", "base_decode", "answer"))
    speed = next((value for value in rates if value is not None), None)
    return ABSENT if speed is None else rate(speed)


def seeds(row: Row, rows: Rows) -> str:
    return str(len(row.measured)) if row.measured[0].cell.seed is not None else ABSENT


def status(row: Row, rows: Rows) -> str:
    statuses = [_status(record) for record in row.records]
    if len(set(statuses)) == 1:
        return statuses[0]
    return ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))


def _status(record: Record) -> str:
    """With the step at which a pruned cell ended."""
    return f"pruned at step {record.failure.step}" if record.status == "pruned" and record.failure else record.status


def score_entries(rows: Rows) -> dict[str, Entry]:
    """An entry for each score by its header; one empty column without scores."""
    scores = {score_name(score): score for row in rows for record in row.measured for score in record.scores}
    by_data = dict.fromkeys((tuple(row.scores), row.place[2]) for row in rows)
    names = dict.fromkeys(name for own, data in by_data for name in ordered_scores(own, data))
    entries = dict(_score_entry(name, scores[name], rows) for name in names)
    return entries or {"Scores": lambda row, rows: ABSENT}


def score_style(score: Score, values: Sequence[float]) -> tuple[str, Callable[[float], str]]:
    """The header of a score's column, and the format of its `values`: percent for proportions."""
    percent = score.is_proportion and all(0 <= value <= 1 for value in values)
    header = score_label(score.task, score.metric, score.filter) + " (%)" * percent
    header += "" if score.higher_is_better else " ↓"
    return header, _percent if percent else units.significant


def _score_entry(name: str, score: Score, rows: Rows) -> tuple[str, Entry]:
    """Header and entry."""
    header, format_value = score_style(score, [row.scores[name].value for row in rows if name in row.scores])
    error = format_value if format_value is _percent else "{:.2g}".format

    def entry(row: Row, rows: Rows) -> str:
        estimate = row.scores.get(name)
        if estimate is None:
            return ABSENT
        text = format_value(estimate.value)
        if estimate.stderr is not None:
            text += f" ± {error(estimate.stderr)}"
        bases = (base.scores[name] for base in _bases(row, rows) if name in base.scores)
        before = next((base for base in bases if base.of == estimate.of), None)
        if before and row.finished and row.method != "base":
            change = estimate.value - before.value
            text += f" ({'−' if format_value(change).startswith('-') else '+'}{format_value(abs(change))})"
        return text

    return header, entry
