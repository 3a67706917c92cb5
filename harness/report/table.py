"""Records in, one comparison table out: methods and settings down, what they cost and what they score across.

    print(render(comparison(records), "md"))

A row is one method in one setting, its seeds averaged. Cells that failed are rows too. What can't be shown, and what
makes rows hard to compare, is said in the caption.
"""

from __future__ import annotations

import html
import re
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import mean, variance

import pandas as pd
from tabulate import tabulate

from harness.record import Record, Score
from harness.report.frame import frame, score_name, setting_texts, train_memory, validation_loss

METHODS = ["base", "base_nf4", "full", "lora", "qlora", "dora", "qdora", "galore"]
PLACE = ["Study", "Model", "Data"]
TEXT_COLUMNS = [*PLACE, "Method", "Setting", "Status"]
ABSENT = "–"


@dataclass
class Table:
    """A table as text cells, its caption line by line, and the numbers behind it (`frame`, one row a record)."""

    title: str
    columns: list[str]
    rows: list[list[str]]
    caption: list[str]
    data: pd.DataFrame = field(repr=False)


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

    @cached_property
    def finished(self) -> bool:
        return any(record.status == "ok" for record in self.records)

    @cached_property
    def measured(self) -> list[Record]:
        return [record for record in self.records if record.status == "ok"] or self.records

    @cached_property
    def memory(self) -> float | None:
        return _mean(train_memory(record) for record in self.measured)

    @cached_property
    def steady(self) -> float | None:
        return _mean(record.train.tokens_per_second_steady for record in self.measured if record.train)

    @cached_property
    def amortised(self) -> float | None:
        return _mean(record.train.tokens_per_second_amortised for record in self.measured if record.train)

    @cached_property
    def loss(self) -> float | None:
        return _mean(validation_loss(record) for record in self.measured)

    @cached_property
    def scores(self) -> dict[str, Estimate]:
        found = defaultdict(list)
        for record in self.measured:
            for score in record.scores:
                found[score_name(score)].append(score)
        return {name: _estimate(scores) for name, scores in found.items()}


def comparison(records: Sequence[Record]) -> Table:
    """The comparison of `records`, usually those of one study; never raises for cells that failed or are missing.

    The error of a score is its standard error over items for one seed, and sqrt(mean(stderr²) + var(values, ddof=1)/k)
    for k seeds: all seeds answer the same items, so the items' part does not shrink with k.
    """
    rows = _rows(records)
    base, full, lora = _base(rows), _full(rows), _lora(rows)
    places = {row.place for row in rows}
    varying = [i for i in range(len(PLACE)) if len({place[i] for place in places}) > 1]
    several = any(len(row.measured) > 1 for row in rows)
    gap = any(row.steady and row.amortised and abs(row.amortised / row.steady - 1) > 0.05 for row in rows)

    columns: dict[str, Callable[[Row], str]] = {PLACE[i]: lambda row, i=i: row.place[i] for i in varying}
    columns["Method"] = lambda row: row.method
    columns["Setting"] = lambda row: row.setting or ABSENT
    if several:
        columns["Seeds"] = lambda row: str(len(row.measured)) if row.measured[0].cell.seed is not None else ABSENT
    columns["Trainable"] = _trainable
    columns["Peak train memory"] = lambda row: _with_ratio(row, full, lambda r: r.memory, _bytes)
    columns["Tokens/s"] = lambda row: _with_ratio(row, lora, lambda r: r.steady, _rate)
    if gap:
        columns["Tokens/s amortised"] = lambda row: _with_ratio(row, lora, lambda r: r.amortised, _rate)
    for name, score in _score_columns(rows).items():
        header, percent = _score_header(score, rows)
        columns[header] = lambda row, name=name, percent=percent: _score(row, base, name, percent)
    columns["Validation loss"] = lambda row: _significant(row.loss)
    columns["Status"] = _status
    return Table(
        title=", ".join(sorted({record.study for record in records})) or "No records",
        columns=list(columns),
        rows=[[cell(row) for cell in columns.values()] for row in rows],
        caption=_caption(rows, gap),
        data=frame([record for row in rows for record in row.records]),
    )


def render(table: Table, fmt: str) -> str:
    """`table` as text that ends in a newline; ValueError when `fmt` is none of md, csv, html and latex.

    md: a pipe table, aligned for a terminal, its caption as a list.
    csv: the numbers, unrounded and in base units, one row a record: `frame` says what the columns are.
    html: a complete document without scripts.
    latex: a `table` to \\input into a document that loads booktabs and graphicx.
    """
    if fmt not in FORMATS:
        raise ValueError(f"There is no table format {fmt!r}; there are {', '.join(FORMATS)}.")
    return FORMATS[fmt](table)


# Rows, and which row another is compared with


def _rows(records: Sequence[Record]) -> list[Row]:
    groups = defaultdict(list)
    for record, setting in zip(records, setting_texts(records), strict=True):
        cell = record.cell
        place = (record.study, cell.model, cell.data)
        order = METHODS.index(cell.method) if cell.method in METHODS else len(METHODS)
        axes = tuple((value is not None, value or 0) for value in (cell.rank, cell.alpha, cell.lr))
        groups[place, order, cell.method, axes, setting].append(record)
    return [
        Row(place, method, setting, group[0].cell.rank, sorted(group, key=lambda record: record.cell.seed or 0))
        for (place, _, method, _, setting), group in sorted(groups.items(), key=lambda item: item[0])
    ]


def _base(rows: list[Row]) -> Callable[[Row], list[Row]]:
    """A row's base rows, best first: those of its own data, then others of its model, whose weights are the same."""
    bases = [row for row in rows if row.method == "base" and row.finished]
    return lambda row: sorted(
        (base for base in bases if base.place[:2] == row.place[:2]), key=lambda base: base.place != row.place
    )


def _full(rows: list[Row]) -> Callable[[Row], list[Row]]:
    found = [row for row in rows if row.method == "full" and row.finished]
    return lambda row: [full for full in found if full.place == row.place]


def _lora(rows: list[Row]) -> Callable[[Row], list[Row]]:
    """A row's lora rows, best first: those of its rank."""
    found = [row for row in rows if row.method == "lora" and row.finished]
    return lambda row: sorted(
        (lora for lora in found if lora.place == row.place), key=lambda lora: lora.rank != row.rank
    )


# Numbers


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def _estimate(scores: list[Score]) -> Estimate:
    values, errors = [score.value for score in scores], [score.stderr for score in scores]
    stderr = None
    if None not in errors:
        seeds = variance(values) / len(values) if len(values) > 1 else 0.0
        stderr = (mean(error**2 for error in errors) + seeds) ** 0.5
    first = scores[0]
    return Estimate(mean(values), stderr, (first.n, first.num_fewshot, first.version))


# Cells


def _with_ratio(
    row: Row,
    references: Callable[[Row], list[Row]],
    value: Callable[[Row], float | None],
    text: Callable[[float], str],
) -> str:
    if value(row) is None:
        return ABSENT
    reference = next((value(r) for r in references(row) if value(r)), None)
    ratio = f" ({value(row) / reference:.2f}×)" if reference and row.finished else ""
    return text(value(row)) + ratio


def _score(row: Row, base: Callable[[Row], list[Row]], name: str, percent: bool) -> str:
    estimate = row.scores.get(name)
    if estimate is None:
        return ABSENT
    shown = _percent if percent else _significant
    text = shown(estimate.value)
    if estimate.stderr is not None:
        text += f" ± {_percent(estimate.stderr) if percent else f'{estimate.stderr:.2g}'}"
    before = next((b.scores[name] for b in base(row) if name in b.scores and b.scores[name].of == estimate.of), None)
    if before and row.finished and row.method != "base":
        change = estimate.value - before.value
        text += f" ({'−' if shown(change).startswith('-') else '+'}{shown(abs(change))})"
    return text


def _score_columns(rows: list[Row]) -> dict[str, Score]:
    scores = [score for row in rows for record in row.measured for score in record.scores]
    return {score_name(score): score for score in scores}


def _score_header(score: Score, rows: list[Row]) -> tuple[str, bool]:
    """The header of a score's column, and whether it is a share to be shown in percent."""
    values = [row.scores[score_name(score)].value for row in rows if score_name(score) in row.scores]
    percent = score.higher_is_better and all(0 <= value <= 1 for value in values)
    words = [score.task, score.metric, score.filter if score.filter != "none" else "", "(%)" if percent else ""]
    return " ".join(word for word in words if word) + ("" if score.higher_is_better else " ↓"), percent


def _trainable(row: Row) -> str:
    parameters = next((record.parameters for record in row.measured if record.parameters), None)
    if parameters is None:
        return ABSENT
    return f"{_count(parameters.trainable)} ({_significant(100 * parameters.trainable / parameters.total, 3)}%)"


def _status(row: Row) -> str:
    statuses = [record.status for record in row.records]
    if len(set(statuses)) == 1:
        return statuses[0]
    return ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))


def _count(n: int) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if n >= 0.9995 * size:
            return _significant(n / size, 3) + unit
    return str(n)


def _bytes(n: float) -> str:
    return f"{n / 2**30:.2f} GiB" if n >= 2**30 else f"{n / 2**20:.0f} MiB" if n >= 2**20 else f"{n / 2**10:.0f} KiB"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else _significant(value, 3)


def _percent(value: float) -> str:
    return f"{round(100 * value, 1) + 0.0:.1f}"  # + 0.0 turns a rounded -0.0 into 0.0


def _significant(value: float | None, digits: int = 4) -> str:
    return ABSENT if value is None else f"{value:#.{digits}g}".rstrip(".")


# Caption


def _caption(rows: list[Row], gap: bool) -> list[str]:
    records = [record for row in rows for record in row.records]
    lines = [*_scores_caption(rows), *_cost_caption(rows, gap), *_training_caption(records), *_seeds_caption(rows)]
    lines += _environment_caption(records)
    failed = [_failed(record) for record in records if record.status != "ok"]
    if failed:
        lines.append("Ratios and Δ are given for finished rows only.")
        lines.append(f"Failed cells: {'; '.join(failed)}.")
    return lines


def _scores_caption(rows: list[Row]) -> list[str]:
    variants: dict[str, dict[str, None]] = defaultdict(dict)
    for record in (record for row in rows for record in row.measured):
        for score in record.scores:
            variants[score.task][f"{score.n:,} items, {score.num_fewshot}-shot, task version {score.version}"] = None
    if not variants:
        return ["No cell has a score."]
    lines = ["Scores: " + "; ".join(f"{task} on {', or on '.join(of)}" for task, of in variants.items()) + "."]
    unequal = [task for task, of in variants.items() if len(of) > 1]
    if unequal:
        lines.append(f"Warning: cells were scored differently on {', '.join(unequal)}; Δ is given where they match.")
    lines.append(
        "± is one standard error over items"
        + (" and seeds." if any(len(row.measured) > 1 for row in rows) else ".")
        + " In brackets Δ, the change from the base row of the same model (in points for %)."
    )
    return lines + _missing(rows, "base", "Δ", lambda place: place[:2], lambda row: bool(row.scores))


def _cost_caption(rows: list[Row], gap: bool) -> list[str]:
    within = " (Within the same model and data.)" if len({row.place for row in rows}) > 1 else ""
    lines = [
        "Memory is the peak of live tensors in a training step; × is its ratio to the first finished full row."
        f"{within}",
        "Tokens/s counts raw (non-padding) tokens, median step; × is its ratio to the first finished lora row, of the "
        f"same rank if there is one.{within}"
        + (" Amortised is all tokens over all steps, the slow ones included." if gap else ""),
    ]
    lines += _missing(rows, "full", "memory ratios", lambda place: place, lambda row: row.memory is not None)
    lines += _missing(rows, "lora", "tokens/s ratios", lambda place: place, lambda row: row.steady is not None)
    return lines


def _missing(
    rows: list[Row], method: str, shown: str, scope: Callable[[tuple], tuple], measured: Callable[[Row], bool]
) -> list[str]:
    """What can't be shown for want of a finished `method` row, and where."""
    there = {scope(row.place) for row in rows if row.method == method and row.finished and measured(row)}
    wanting = list(dict.fromkeys(scope(row.place) for row in rows if scope(row.place) not in there))
    if not wanting and rows:
        return []
    where = f" for {', '.join('/'.join(place[1:]) for place in wanting)}" if there else ""
    return [f"No finished {method} row{where}: {shown} can't be shown."]


def _training_caption(records: list[Record]) -> list[str]:
    """Steps and tokens of the finished cells. Tokens may differ from seed to seed, which draws other examples."""
    alike = defaultdict(set)
    for record in records:
        if record.train and record.status == "ok":
            key = (record.study, record.cell.model, record.cell.data, record.cell.seed)
            alike[key].add((record.train.steps, record.train.tokens.raw))
    if not alike:
        return ["No cell finished training."]
    budgets = set.union(*alike.values())
    steps, tokens = _span(s for s, _ in budgets), _span(t for _, t in budgets)
    if len(budgets) == 1:
        return [f"Every trained cell took {steps} steps over {tokens} raw tokens."]
    if all(len(group) == 1 for group in alike.values()):
        return [f"Trained cells took {steps} steps over {tokens} raw tokens, equal for equal model, data and seed."]
    return [f"Warning: training was unequal: cells took {steps} steps over {tokens} raw tokens."]


def _seeds_caption(rows: list[Row]) -> list[str]:
    counts = {len(row.measured) for row in rows if row.measured[0].cell.seed is not None}
    if counts == {1}:
        return ["One seed: how results vary from seed to seed is not in the errors."]
    return [f"Means over {_span(counts)} seeds."] if counts else []


def _environment_caption(records: list[Record]) -> list[str]:
    """Where all cells ran, and a warning for each difference. A failed cell may know less than the others."""
    environments = [(record.status == "ok", _environment(record)) for record in records]
    same, lines = [], []
    for name in dict.fromkeys(name for _, environment in environments for name in environment):
        found = {environment.get(name, "unknown") for ok, environment in environments if ok or name in environment}
        if len(found) > 1:
            lines.append(f"Warning: cells ran with different {name} ({', '.join(sorted(found))}).")
        else:
            same.append(f"{name} {found.pop()}")
    return [*([f"All cells ran with {', '.join(same)}."] if same else []), *lines]


def _environment(record: Record) -> dict[str, str]:
    """What the caption says of a record's environment, which is a free dict: any part of it may be missing."""
    device, cpu, versions, git = (
        part if isinstance(part := record.environment.get(name), dict) else {}
        for name in ("device", "cpu", "versions", "git")
    )
    on_cpu = device.get("type") == "cpu"
    values = {
        "device type": device.get("type"),
        "device": f"{cpu.get('cores')} cores of {cpu.get('name')}" if on_cpu and cpu else device.get("name"),
        "precision": record.environment.get("precision"),
        "threads": record.environment.get("threads"),
        **{package: versions.get(package) for package in ("torch", "transformers", "peft", "lm_eval")},
    }
    if commit := git.get("commit"):
        values["harness commit"] = f"{str(commit)[:12]}{' with uncommitted changes' if git.get('dirty') else ''}"
    return {name: str(value) for name, value in values.items() if value is not None}


def _failed(record: Record) -> str:
    failure = record.failure
    if failure is None:
        return f"{record.cell.name}: {record.status}"
    clause = re.split(r"[.;]\s|\n", failure.reason.strip())[0].rstrip(".;")
    place = failure.phase + (f", step {failure.step}" if failure.step is not None else "")
    return f"{record.cell.name}: {textwrap.shorten(clause, 100, placeholder=' …')} ({place})"


def _span(values: Iterable[int]) -> str:
    values = set(values)
    return f"{min(values):,}" if len(values) == 1 else f"{min(values):,}–{max(values):,}"


# Formats. Names come from records, which anybody may have written: each format escapes every text.


def _escaped(table: Table, escape: Callable[[str], str]) -> Table:
    """`table` with every text on one line, free of control characters, and escaped."""

    def line(text: str) -> str:
        return escape("".join(c for c in " ".join(text.split()) if c.isprintable()))

    return replace(
        table,
        title=line(table.title),
        columns=[line(column) for column in table.columns],
        rows=[[line(cell) for cell in row] for row in table.rows],
        caption=[line(text) for text in table.caption],
    )


def _markdown(table: Table) -> str:
    align = ["left" if column in TEXT_COLUMNS else "right" for column in table.columns]
    table = _escaped(table, lambda text: re.sub(r"([\\|<`\[])", r"\\\1", text))
    grid = tabulate(table.rows, table.columns, tablefmt="pipe", colalign=align, disable_numparse=True)
    return "\n".join([f"**{table.title}**", "", grid, "", *(f"- {text}" for text in table.caption)]) + "\n"


def _csv(table: Table) -> str:
    return table.data.to_csv(index=False, lineterminator="\n")


STYLE = """\
body { font-family: system-ui, sans-serif; margin: 2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { caption-side: bottom; text-align: left; font-size: 0.85em; }
th, td { padding: 0.3em 0.8em; border-bottom: 1px solid #ccc; text-align: right; white-space: nowrap; }
.text { text-align: left; }"""


def _html(table: Table) -> str:
    kinds = [' class="text"' if column in TEXT_COLUMNS else "" for column in table.columns]
    head = table.columns.index("Method")
    table = _escaped(table, html.escape)
    lines = ["<!DOCTYPE html>", '<html lang="en">', "<head>", '<meta charset="utf-8">']
    lines += [f"<title>{table.title}</title>", f"<style>\n{STYLE}\n</style>", "</head>", "<body>", "<table>"]
    lines += ["<caption>", f"<p><strong>{table.title}</strong></p>"]
    lines += [*(f"<p>{text}</p>" for text in table.caption), "</caption>", "<thead>", "<tr>"]
    lines += [f'<th scope="col"{kind}>{text}</th>' for text, kind in zip(table.columns, kinds, strict=True)]
    lines += ["</tr>", "</thead>", "<tbody>"]
    for row in table.rows:
        lines.append("<tr>")
        for i, (text, kind) in enumerate(zip(row, kinds, strict=True)):
            lines.append(f'<th scope="row"{kind}>{text}</th>' if i == head else f"<td{kind}>{text}</td>")
        lines.append("</tr>")
    return "\n".join([*lines, "</tbody>", "</table>", "</body>", "</html>"]) + "\n"


LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "–": r"\textendash{}",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "α": r"$\alpha$",
    "Δ": r"$\Delta$",
    "↓": r"$\downarrow$",
    "…": r"\ldots{}",
}


def _latex_text(text: str) -> str:
    """`text` for pdflatex, whose fonts lack most of Unicode: what it can't set is written as its code point."""
    text = "".join(LATEX.get(c, c if c.isascii() else f"[U+{ord(c):04X}]") for c in text)
    return re.sub("-(?=-)", "-{}", text)  # no ligature: two hyphens in a name are not a dash


def _latex(table: Table) -> str:
    align = "".join("l" if column in TEXT_COLUMNS else "r" for column in table.columns)
    table = _escaped(table, _latex_text)
    lines = [r"\begin{table}[htbp]", r"\centering", rf"\caption{{{table.title}}}\medskip"]
    lines.append(r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%")  # shrinks, never enlarges
    lines += [rf"\begin{{tabular}}{{{align}}}", r"\toprule", " & ".join(table.columns) + r" \\", r"\midrule"]
    # {} before a row: a cell that starts with [ must not be read as an argument of the \\ above
    lines += ["{}" + " & ".join(row) + r" \\" for row in table.rows]
    lines += [r"\bottomrule", r"\end{tabular}}", r"\par\medskip", r"\begin{minipage}{\linewidth}\footnotesize"]
    return "\n".join([*lines, *(rf"{text}\par" for text in table.caption), r"\end{minipage}", r"\end{table}"]) + "\n"


FORMATS = {"md": _markdown, "csv": _csv, "html": _html, "latex": _latex}
