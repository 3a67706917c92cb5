"""Records in, one comparison table out: methods and settings down, what they cost and what they score across.

    print(render(comparison(records), "md"))

A row is one method in one setting, its seeds averaged. Cells that failed are rows too. What can't be shown, and what
makes rows hard to compare, is said in the caption.
"""

from __future__ import annotations

import html
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import pandas as pd
from tabulate import tabulate

from harness.record import Record
from harness.report.columns import ABSENT, CHOSEN, COLUMNS, Row, Rows, choose, group, several_seeds, texts
from harness.report.lint import Finding, findings
from harness.report.lint.environment import ran_with
from harness.report.lint.evaluation import inference_text
from harness.report.lint.training import micro_batches_text

TEXT_COLUMNS = ("Study", "Model", "Data", "Method", "Setting", "Status", "Claim", "What it says", "Verdict")
TEXT_COLUMNS += ("Score", "Subject", "Target", "Base", "Tuned")
TEXT_COLUMNS += ("Remark or next run", "What", "Value", "File", "SHA-256")


@dataclass
class Table:
    """A table as text cells, its caption line by line, and the numbers behind it.

    data: `frame`'s columns and `chosen` (whether `select` took the record's setting), one row a record; None if the
    table has no numbers of its own. text_columns: names of columns that are aligned left.
    """

    title: str
    columns: list[str]
    rows: list[list[str]]
    caption: list[str]
    data: pd.DataFrame | None = field(repr=False)
    text_columns: Sequence[str] = field(default=TEXT_COLUMNS, repr=False)


def comparison(records: Sequence[Record], columns: Sequence[str] | None = None) -> Table:
    """The comparison of `records`, usually those of one study; never raises for cells that failed or are missing.

    columns: which to show, in this order, by their ids in `COLUMNS`; ["all"] shows every one that has a value, None
    those of them that stay readable side by side. UserError for an unknown id.

    The error of a score is its standard error over items for one seed, and sqrt(mean(stderr²) + var(values, ddof=1)/k)
    for k seeds: all seeds answer the same items, so the items' part does not shrink with k.
    """
    return comparison_of(group(records), columns)


def comparison_of(rows: Rows, columns: Sequence[str] | None = None) -> Table:
    """`comparison` of the records of `rows`."""
    data = _mark_chosen(rows)
    names = choose(columns, rows)
    shown = [(name, header, column) for name in names for header, column in texts(name, rows).items()]
    if columns is None or "all" in columns:
        shown = [(name, header, column) for name, header, column in shown if not rows or set(column) != {ABSENT}]
    return Table(
        title=title(rows),
        columns=[header for _, header, _ in shown],
        rows=[[column[i] for _, _, column in shown] for i in range(len(rows))],
        caption=_caption(rows, list(dict.fromkeys(name for name, _, _ in shown)), "scores" in names),
        data=data,
    )


def title(rows: Rows) -> str:
    return ", ".join(sorted({record.study for record in rows.records})) or "No records"


def _mark_chosen(rows: Rows) -> pd.DataFrame:
    """The frame of all records, with the column `chosen`; marks the rows that were chosen among several."""
    row_of = [row for row in rows for _ in row.records]
    for choice in rows.choices:
        if choice.index and choice.tries > 1:
            row_of[choice.index[0]].chosen = True
    chosen = {i for choice in rows.choices for i in choice.index}
    return rows.data.assign(chosen=[i in chosen for i in range(len(row_of))])


def render(table: Table, fmt: str) -> str:
    """`document` of one table."""
    return document([table], fmt)


def document(tables: Sequence[Table], fmt: str) -> str:
    """`tables` as text that ends in a newline; ValueError when `fmt` is none of md, csv, html and latex.

    md: pipe tables, aligned for a terminal, each with its caption as a list.
    csv: the numbers, unrounded and in base units, one row a record: `frame` says what the columns are.
    html: a complete document without scripts.
    latex: a `table` each, to \\input into a document that loads booktabs and graphicx.
    """
    if fmt not in FORMATS:
        raise ValueError(f"There is no table format {fmt!r}; there are {', '.join(FORMATS)}.")
    return FORMATS[fmt](tables)


# Caption


def _caption(rows: list[Row], names: list[str], scored: bool) -> list[str]:
    """What the columns `names` mean, if `scored` what the scores are, and how alike the cells were."""
    records = [record for row in rows for record in row.records]
    lines = [*(_scores_caption(rows) if scored else []), *_columns_caption(rows, names)]
    inference = any(COLUMNS[name].topic == "inference" for name in names)
    lines += _inference_caption(records) if inference else []
    if any(row.chosen for row in rows) and "setting" in names:
        lines.append(f"{CHOSEN.strip()} is the setting with the least validation loss of its method.")
    lines += [*_training_caption(records), *_batches_caption(rows), *_devices_caption(records)]
    lines += [*_seeds_caption(rows), *_environment_caption(records)]
    lines += dict.fromkeys(note for record in records if record.source for note in record.source.notes)
    if any(record.status != "ok" for record in records):
        lines.append("Ratios and Δ are given for finished rows only.")
    of_no_column = {"evaluation": not scored, "base": not scored, "inference": not inference}
    found = [finding for finding in findings(records) if not of_no_column.get(finding.rule)]
    return lines + list(dict.fromkeys(map(_told, found)))


def _told(finding: Finding) -> str:
    sentence = finding.sentence
    return f"Warning: {sentence[0].lower()}{sentence[1:]}" if finding.kind == "unequal" else sentence


def _scores_caption(rows: list[Row]) -> list[str]:
    variants: dict[str, dict[str, None]] = defaultdict(dict)
    for record in (record for row in rows for record in row.measured):
        for score in record.scores:
            variants[score.task][f"{score.n:,} items, {score.num_fewshot}-shot, task version {score.version}"] = None
    if not variants:
        return ["No cell has a score."]
    lines = ["Scores: " + "; ".join(f"{task} on {', or on '.join(of)}" for task, of in variants.items()) + "."]
    return [
        *lines,
        "± is one standard error over items"
        + (" and seeds." if several_seeds(rows) else ".")
        + " In brackets Δ, the change from the base row of the same model (in points for %).",
    ]


def _columns_caption(rows: list[Row], names: list[str]) -> list[str]:
    """The meanings of the columns, a line a topic, and what can't be shown for want of a row to compare with."""
    within = " (Within the same model and data.)" if len({row.place for row in rows}) > 1 else ""
    columns = [COLUMNS[name] for name in names]
    topics: dict[str, list[str]] = defaultdict(list)
    for column in columns:
        if column.meaning:
            topics[column.topic].append(column.meaning.replace("{within}", within))
    lines = [" ".join(meanings) for meanings in topics.values()]
    for method, shown, measure in dict.fromkeys(column.reference for column in columns if column.reference):
        lines += _missing(rows, method, shown, lambda place: place, lambda row, m=measure: row.mean(m) is not None)
    return list(dict.fromkeys(lines))  # two columns may want the same row


def _inference_caption(records: list[Record]) -> list[str]:
    """How the finished cells were made to answer, if all alike."""
    finished = [record for record in records if record.status == "ok"]
    variants = {inference_text(speed) for record in finished for speed in record.inference.values()}
    return [f"Inference was measured with {variant}, greedily." for variant in variants if len(variants) == 1]


def _missing(
    rows: list[Row], method: str, shown: str, scope: Callable[[tuple], tuple], measured: Callable[[Row], bool]
) -> list[str]:
    """What can't be shown for want of a finished `method` row, and where."""
    there = {scope(row.place) for row in rows if row.method == method and row.finished and measured(row)}
    here = [row for row in rows if not row.records[0].cell.settings.behind_api]
    wanting = list(dict.fromkeys(scope(row.place) for row in here if scope(row.place) not in there))
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
        return ["No cell finished training."] if any(record.cell.seed is not None for record in records) else []
    budgets = set.union(*alike.values())
    steps, tokens = _span(s for s, _ in budgets), _span(t for _, t in budgets)
    if len(budgets) == 1:
        return [f"Every trained cell took {steps} steps over {tokens} raw tokens."]
    equal = ", equal for equal model, data and seed" if all(len(group) == 1 for group in alike.values()) else ""
    return [f"Trained cells took {steps} steps over {tokens} raw tokens{equal}."]


def _batches_caption(rows: list[Row]) -> list[str]:
    """The micro-batches of cells that took the largest that fit."""
    chosen: dict[str, dict[str, None]] = defaultdict(dict)
    for row in rows:
        for record in row.records:
            if record.cell.settings.train.sizes_itself and (ran := micro_batches_text(record)) is not None:
                chosen[ran][row.method] = None
    if not chosen:
        return []
    told = "; ".join(f"{ran} in {', '.join(methods)}" for ran, methods in chosen.items())
    return [f"A step of train.batch_size=auto was taken in micro-batches that fit the device's memory: {told}."]


def _devices_caption(records: list[Record]) -> list[str]:
    """On how many devices cells trained, if any did on several."""
    trained = [record.cell.settings.train for record in records if record.train]
    found = sorted({(train.devices, train.parallel or "") for train in trained})
    if not found or found[-1][0] == 1:
        return []
    told = " or ".join(f"{n} devices ({parallel})" if n > 1 else "1 device" for n, parallel in found)
    return [f"Cells trained on {told}: tokens/s counts the tokens of all, memory is of the one that held most."]


def _seeds_caption(rows: list[Row]) -> list[str]:
    counts = {len(row.measured) for row in rows if row.measured[0].cell.seed is not None}
    return [f"Means over {_span(counts)} seeds."] if counts and counts != {1} else []


def _environment_caption(records: list[Record]) -> list[str]:
    """Where all cells ran, as far as it was the same. A failed cell may know less than the others.

    Of one whose model is behind an API it is not known.
    """
    here = [record for record in records if not record.cell.settings.behind_api]
    environments = [(record.status == "ok", ran_with(record)) for record in here]
    same = []
    for name in dict.fromkeys(name for _, environment in environments for name in environment):
        found = {environment.get(name, "unknown") for ok, environment in environments if ok or name in environment}
        same += [f"{name} {text}" for text in found if len(found) == 1]
    which = "All cells" if len(here) == len(records) else "All cells of models that were here"
    return [f"{which} ran with {', '.join(same)}."] if same else []


def _span(values: Iterable[int]) -> str:
    values = set(values)
    return f"{min(values):,}" if len(values) == 1 else f"{min(values):,}–{max(values):,}"


# Formats. Names come from records, which anybody may have written: each format escapes every text.


def one_line(text: str) -> str:
    """`text` without control characters and line breaks."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable())


def _escaped(table: Table, escape: Callable[[str], str]) -> Table:
    """`table` with every text on one line, free of control characters, and escaped."""

    def line(text: str) -> str:
        return escape(one_line(text))

    return replace(
        table,
        title=line(table.title),
        columns=[line(column) for column in table.columns],
        rows=[[line(cell) for cell in row] for row in table.rows],
        caption=[line(text) for text in table.caption],
    )


def _markdown(tables: Sequence[Table]) -> str:
    return "\n\n".join(map(_markdown_table, tables)) + "\n"


def _markdown_table(table: Table) -> str:
    align = ["left" if column in table.text_columns else "right" for column in table.columns]
    table = _escaped(table, lambda text: re.sub(r"([\\|<`\[])", r"\\\1", text))
    grid = tabulate(table.rows, table.columns, tablefmt="pipe", colalign=align, disable_numparse=True)
    return "\n".join([f"**{table.title}**", "", grid, "", *(f"- {text}" for text in table.caption)])


def _csv(tables: Sequence[Table]) -> str:
    frames = [table.data for table in tables if table.data is not None]
    return "\n".join(data.to_csv(index=False, lineterminator="\n") for data in frames)


STYLE = """\
body { font-family: system-ui, sans-serif; margin: 2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { caption-side: bottom; text-align: left; font-size: 0.85em; }
th, td { padding: 0.3em 0.8em; border-bottom: 1px solid #ccc; text-align: right; white-space: nowrap; }
.text { text-align: left; }"""


def _html(tables: Sequence[Table]) -> str:
    title = html.escape(one_line(", ".join(table.title for table in tables)))
    lines = ["<!DOCTYPE html>", '<html lang="en">', "<head>", '<meta charset="utf-8">', f"<title>{title}</title>"]
    lines += [f"<style>\n{STYLE}\n</style>", "</head>", "<body>"]
    for table in tables:
        lines += _html_table(table)
    return "\n".join([*lines, "</body>", "</html>"]) + "\n"


def _html_table(table: Table) -> list[str]:
    shown = _escaped(table, html.escape)
    caption = [f"<p><strong>{shown.title}</strong></p>", *(f"<p>{text}</p>" for text in shown.caption)]
    return ["<table>", "<caption>", *caption, "</caption>", *html_grid(table), "</table>"]


def html_grid(table: Table) -> list[str]:
    """`thead` and `tbody` of the table, line by line, every text escaped."""
    kinds = [' class="text"' if column in table.text_columns else "" for column in table.columns]
    head = table.columns.index("Method" if "Method" in table.columns else table.columns[0])
    table = _escaped(table, html.escape)
    lines = ["<thead>", "<tr>"]
    lines += [f'<th scope="col"{kind}>{text}</th>' for text, kind in zip(table.columns, kinds, strict=True)]
    lines += ["</tr>", "</thead>", "<tbody>"]
    for row in table.rows:
        lines.append("<tr>")
        for i, (text, kind) in enumerate(zip(row, kinds, strict=True)):
            lines.append(f'<th scope="row"{kind}>{text}</th>' if i == head else f"<td{kind}>{text}</td>")
        lines.append("</tr>")
    return [*lines, "</tbody>"]


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
    "→": r"$\rightarrow$",
    "≥": r"$\geq$",
    "†": r"\textdagger{}",
    "…": r"\ldots{}",
}


def _latex_text(text: str) -> str:
    """`text` for pdflatex, whose fonts lack most of Unicode: what it can't set is written as its code point."""
    text = "".join(LATEX.get(c, c if c.isascii() else f"[U+{ord(c):04X}]") for c in text)
    return re.sub("-(?=-)", "-{}", text)  # no ligature: two hyphens in a name are not a dash


def _latex(tables: Sequence[Table]) -> str:
    return "\n".join(map(_latex_table, tables))


def _latex_table(table: Table) -> str:
    align = "".join("l" if column in table.text_columns else "r" for column in table.columns)
    table = _escaped(table, _latex_text)
    lines = [r"\begin{table}[htbp]", r"\centering", rf"\caption{{{table.title}}}\medskip"]
    lines.append(r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%")  # shrinks, never enlarges
    lines += [rf"\begin{{tabular}}{{{align}}}", r"\toprule", " & ".join(table.columns) + r" \\", r"\midrule"]
    # {} before a row: a cell that starts with [ must not be read as an argument of the \\ above
    lines += ["{}" + " & ".join(row) + r" \\" for row in table.rows]
    lines += [r"\bottomrule", r"\end{tabular}}", r"\par\medskip", r"\begin{minipage}{\linewidth}\footnotesize"]
    return "\n".join([*lines, *(rf"{text}\par" for text in table.caption), r"\end{minipage}", r"\end{table}"]) + "\n"


FORMATS = {"md": _markdown, "csv": _csv, "html": _html, "latex": _latex}
