"""Tables as Markdown, CSV, HTML and LaTeX. Names come from records, which are untrusted: every text is escaped."""

from __future__ import annotations

import csv
import html
import itertools
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
from tabulate import tabulate

from harness.report.tables.table import Table
from harness.terminal.streams import cleaned


def render(table: Table, fmt: str) -> str:
    """`document` of one table."""
    return document([table], fmt)


def document(tables: Sequence[Table], fmt: str) -> str:
    """`tables` as text that ends in a newline. Raises ValueError unless `fmt` is md, csv, html or latex.

    md: pipe tables, aligned for a terminal, each with its caption as a list.
    csv: `tidy`, with the columns of `frame`.
    html: a complete document without scripts.
    latex: a `table` each, for a document that loads booktabs and graphicx.
    """
    if fmt not in FORMATS:
        raise ValueError(f"fmt must be one of {', '.join(FORMATS)}, got {fmt}.")
    return FORMATS[fmt](tables)


def one_line(text: str) -> str:
    """`text` without control characters and line breaks."""
    line = " ".join(text.split())
    return line if line.isprintable() else "".join(c for c in line if c.isprintable())


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
        answer=[line(text) for text in table.answer],
    )


def _markdown(tables: Sequence[Table]) -> str:
    return "\n\n".join(map(_markdown_table, tables)) + "\n"


def _markdown_table(table: Table) -> str:
    align = ["left" if column in table.text_columns else "right" for column in table.columns]
    table = _escaped(table, _markdown_text)
    answer = [part for text in table.answer for part in (text, "")]
    grid = []  # a table without rows has notes alone
    if table.rows:
        grid = [tabulate(table.rows, table.columns, tablefmt="pipe", colalign=align, disable_numparse=True), ""]
    return "\n".join([f"**{table.title}**", "", *answer, *grid, *(f"- {text}" for text in table.caption)])


def _markdown_text(text: str) -> str:
    """`text` escaped, apart from code between backticks: nothing is obeyed there, and a command can be pasted.

    A < before a space begins no tag.
    """
    return re.sub(r"`[^`]+`|[\\|`\[]|<(?! )", lambda m: m[0].replace("|", "\\|") if m[0][1:] else "\\" + m[0], text)


def tidy(tables: Sequence[Table]) -> pd.DataFrame:
    """The numbers behind `tables` as one frame: unrounded, in base units, one row a record; empty if they have none."""
    frames = [table.data for table in tables if table.data is not None]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


FORMULA = tuple("=+-@\t\n＝＋－＠")  # what a spreadsheet computes begins with one of these
MISSING = "\0"  # stands in no text that is cleaned
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?%?")


def _csv(tables: Sequence[Table]) -> str:
    """The numbers behind `tables`, their texts in quotes; what is missing is empty, without quotes."""
    data = tidy(tables)
    if not len(data.columns):
        return ""
    texts = data.select_dtypes(exclude=["number", "bool"])
    data = data.assign(**{column: texts[column].map(_csv_cell) for column in texts}).rename(columns=_csv_cell)
    text = data.to_csv(index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC, na_rep=MISSING)
    return text.replace(f'"{MISSING}"', "")


def _csv_cell(value: Any) -> Any:
    """`value`, which no spreadsheet takes for a formula: an apostrophe begins what looks like one and is no number."""
    if not isinstance(value, str):
        return value
    text = cleaned(value)
    is_formula = text.lstrip(" ").startswith(FORMULA) and not NUMBER.fullmatch(text.strip())
    return f"'{text}" if is_formula else text


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
    escaped = _escaped(table, html.escape)
    caption = [f"<p><strong>{escaped.title}</strong></p>", *(f"<p>{text}</p>" for text in escaped.caption)]
    answer = [f"<p><strong>{text}</strong></p>" for text in escaped.answer]
    return [*answer, "<table>", "<caption>", *caption, "</caption>", *html_grid(table), "</table>"]


def html_grid(table: Table) -> list[str]:
    """`thead` and `tbody` of the table, line by line, every text escaped."""
    kinds = [' class="text"' if column in table.text_columns else "" for column in table.columns]
    head = table.columns.index("Method" if "Method" in table.columns else table.columns[0])
    table = _escaped(table, html.escape)
    lines = ["<thead>", "<tr>"]
    heads = [' class="text head"' if i == head and kind else kind for i, kind in enumerate(kinds)]
    lines += [f'<th scope="col"{kind}>{text}</th>' for text, kind in zip(table.columns, heads, strict=True)]
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
    "‡": r"\textdaggerdbl{}",
    "§": r"\S{}",
    "…": r"\ldots{}",
    "`": r"\textasciigrave{}",
    "“": "``",
    "”": "''",
    "≤": r"$\leq$",
    "≈": r"$\approx$",
    "²": "$^2$",
    "³": "$^3$",
    "·": r"$\cdot$",
    "ρ": r"$\rho$",
    "ß": r"\ss{}",
    "ø": r"\o{}",
    "Ø": r"\O{}",
    "æ": r"\ae{}",
    "Æ": r"\AE{}",
    "œ": r"\oe{}",
    "ł": r"\l{}",
    "Ł": r"\L{}",
    "ı": r"\i{}",
}
ACCENTS = {  # of Latin letters, by Unicode's marks
    "\u0300": "`",
    "\u0301": "'",
    "\u0302": "^",
    "\u0303": "~",
    "\u0304": "=",
    "\u0306": "u",
    "\u0307": ".",
    "\u0308": '"',
    "\u030a": "r",
    "\u030b": "H",
    "\u030c": "v",
    "\u0327": "c",
}


def _latex_text(text: str) -> str:
    """`text` for pdflatex; code between backticks is set as such."""
    around = [_latex_characters(part) for part in re.split(r"`([^`]+)`", text)]  # at odd places is code
    code = [rf"\texttt{{{part}}}".replace("'", r"\textquotesingle{}") for part in around[1::2]]
    return "".join(part for pair in itertools.zip_longest(around[::2], code, fillvalue="") for part in pair)


def _latex_characters(text: str) -> str:
    """`text` for pdflatex, whose fonts lack most of Unicode: missing characters are written as code points."""
    text = "".join(map(_latex_character, unicodedata.normalize("NFC", text)))
    return re.sub("-(?=-)", "-{}", text)  # no ligature: two hyphens are not a dash


def _latex_character(character: str) -> str:
    if character.isascii() or character in LATEX:
        return LATEX.get(character, character)
    parts = unicodedata.normalize("NFD", character)
    letter, mark = parts[0], parts[1:]
    if letter.isascii() and letter.isalpha() and mark in ACCENTS:
        return rf"\{ACCENTS[mark]}{{{letter}}}"
    return f"[U+{ord(character):04X}]"


def _latex(tables: Sequence[Table]) -> str:
    return "\n".join(map(_latex_table, tables))


def _latex_table(table: Table) -> str:
    align = "".join("l" if column in table.text_columns else "r" for column in table.columns)
    table = _escaped(table, _latex_text)
    lines = [r"\begin{table}[htbp]", r"\centering", rf"\caption{{{table.title}}}\medskip"]
    lines.append(r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%")  # shrink only
    lines += [rf"\begin{{tabular}}{{{align}}}", r"\toprule", " & ".join(table.columns) + r" \\", r"\midrule"]
    # {} before a row: a cell that starts with [ must not be read as an argument of the \\ above
    lines += ["{}" + " & ".join(row) + r" \\" for row in table.rows]
    lines += [r"\bottomrule", r"\end{tabular}}", r"\par\medskip", r"\begin{minipage}{\linewidth}\footnotesize"]
    lines += [rf"{text}\par" for text in (*table.answer, *table.caption)]
    return "\n".join([*lines, r"\end{minipage}", r"\end{table}"]) + "\n"


FORMATS = {"md": _markdown, "csv": _csv, "html": _html, "latex": _latex}
