"""A study's report: one self-contained HTML page with its summary, tables, figures and provenance.

    page.render(records, folder)

The page loads nothing: style, scripts, data and figures are embedded, and its Content-Security-Policy blocks all else.
Names come from records, which are untrusted: the template escapes every text, and `_block` every text of data.

An interactive section NAME is a template NAME.html, included by page.html; a style NAME.css, in STYLES; scripts, in
SCRIPTS; and a function in BLOCKS, whose value the scripts read by `block("NAME")`. Plug-ins add parts as a PageBlock.
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64encode
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from harness import plugin, units
from harness.record import PLAN, Record, sha256
from harness.report import figures
from harness.report.answer import StudyAnswer
from harness.report.conditions import differing
from harness.report.costs import disturbed_cells
from harness.report.figures.study_results import StudyResults
from harness.report.frame import TRAIN_MEMORY
from harness.report.lint import Finding
from harness.report.lint.environment import device, ran_with
from harness.report.memory import comparable
from harness.report.pages.commands import run_command
from harness.report.pages.costs_block import costs_block
from harness.report.pages.curves_block import curves_block
from harness.report.pages.items_block import items_block
from harness.report.pages.overview import overviews
from harness.report.pages.page_block import PageBlock, PageSection
from harness.report.pages.settings_block import settings_block
from harness.report.tables.best import tables_of
from harness.report.tables.classes import class_tables, confusion_tables
from harness.report.tables.entries import rate, score_entries
from harness.report.tables.formats import html_grid, one_line
from harness.report.tables.rows import Row, Rows
from harness.report.tables.table import Table

HERE = Path(__file__).parent
MOST_NAMED = 8  # methods that the line on what was run names
LONGEST = 500  # rows of a table in the page's source; what is beyond is data, of which scripts show some at a time
STYLES = ("page.css", "explore.css", "items.css")
SCRIPTS = (  # in the order of their needs; they share their names, so a script of one section is wrapped in a function
    *("vendor/d3.min.js", "vendor/plot.umd.min.js"),
    *(f"scripts/{name}.js" for name in ("state", "study", "card", "filters", "table", "export", "chart", "compare")),
    *(f"scripts/{name}.js" for name in ("explorer", "costs", "curves", "memory", "axes", "overview")),
)
WAITING_SCRIPTS = ("vendor/d3.min.js", "vendor/plot.umd.min.js", "scripts/state.js", "scripts/live.js")
SCRIPTS_AFTER_PLUGINS = ("scripts/items.js", "scripts/start.js", "scripts/live.js")
BLOCKS: Mapping[str, Callable[[StudyResults], Any]] = {"settings": settings_block, "curves": curves_block}
BLOCKS_AFTER_PLUGINS: Mapping[str, Callable[[StudyResults], Any]] = {"items": items_block}


def render(
    records: Sequence[Record],
    folder: Path,
    problems: Sequence[str] = (),
    where: str = "",
    command: str | None = None,
    made_with: Mapping[str, str] | None = None,
    live: Mapping[str, str] | None = None,
    price: float | None = None,
    runnable: Callable[[Record], bool] = lambda record: False,
) -> str:
    """The page as text; the same arguments and files give the same text.

    records: of one study. folder: where the records and their items are. problems: a sentence for each bad record.
    where: options that select the study in other commands. command: the command that made the page. made_with: versions
    of libraries by name. live: of a page that is served, the address of `news` and this page's `version`; it then asks
    there for new results, and its policy lets it. price: of the card, dollars for an hour of one device, which the
    reader may change. runnable: whether a record's cell may be run from it; only then the page has the command.
    """
    results = StudyResults(records, folder)
    rows = results.rows
    added: list[PageBlock] = [
        plugin.load(target)(results) for part in plugin.installed() for target in part.page_blocks
    ]
    findings = rows.findings
    ours = [record for record in records if record.source is None]
    study = ", ".join(dict.fromkeys(record.study for record in records))
    best, settings = (_scores_first(table, rows) for table in tables_of(results.answer))
    files = _files(folder)
    long = {"best-table": best, "settings-table": settings, "files-table": files}
    blocks = {name: make(results) for name, make in BLOCKS.items()} | {"costs": costs_block(results, price)}
    for block in added:
        blocks |= block.data
    blocks |= {name: make(results) for name, make in BLOCKS_AFTER_PLUGINS.items()}
    blocks["rest"] = {name: table.rows[LONGEST:] for name, table in long.items() if len(table.rows) > LONGEST}
    blocks["refused"] = [i for i, row in enumerate(rows) if not runnable(row.records[0])]
    if live:
        blocks["live"] = live
    of_plugins = [path.read_text(encoding="utf-8") for block in added for path in block.scripts]
    return _rendered(
        "page.html",
        [*map(_asset, SCRIPTS), *of_plugins, *map(_asset, SCRIPTS_AFTER_PLUGINS)],
        study=study,
        blocks={name: _block(value) for name, value in blocks.items()},
        live=bool(live),
        longest=LONGEST,
        scope=_scope(results.answer),
        overviews=overviews(results),
        summary=list(_summary(results.answer, added, findings)),
        problems=problems,
        decision=[tuple(map(_with_code, line)) for line in results.answer.decisions],
        advice=list(map(_with_code, results.answer.advice)),
        best=replace(best, answer=()),
        best_heading=best.title.rpartition(": ")[2].capitalize(),
        best_settings=_settings_of(results.answer),
        settings=settings,
        sections=[*_classes(results.answer), *(section for block in added for section in block.sections)],
        figures={name: (_labelled(svg, name), text) for name, (svg, text) in figures.svg_of(results).items()},
        findings={kind: [f.sentence for f in findings if f.kind == kind] for kind in ("unequal", "incomplete")},
        origin=_origin(records),
        files=files,
        made_with=made_with or {},
        command=command,
        parts=[f"harness {part} {where}" for part in _parts(added)] if where else [],
        runs=[run_command(record) for record in ours[:LONGEST] if runnable(record)],
        cells=len(ours),
        grid=lambda table: Markup("\n".join(html_grid(replace(table, rows=table.rows[:LONGEST])))),
    )


def waiting(study: str, live: Mapping[str, str]) -> str:
    """The page of a study without a record: it shows the cells that run, and reloads when the first one is over."""
    return _rendered("waiting.html", map(_asset, WAITING_SCRIPTS), study=study, live=_block(live))


def _rendered(template: str, scripts: Iterable[str], **values: Any) -> str:
    """The `template` as text, with all styles, and with `scripts` as one whose hash the page's policy names."""
    script = "\n".join(['"use strict";', *scripts])
    return (
        _templates()
        .get_template(template)
        .render(
            style=Markup("".join(map(_asset, STYLES))), script=Markup(script), script_hash=_hash_of(script), **values
        )
    )


def _templates() -> Environment:
    return Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _hash_of(script: str) -> str:
    """SHA-256 of a script, as the page's policy names it."""
    return b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _with_code(line: str) -> Markup:
    """`line` with what stands between backticks as code."""
    parts = [
        Markup("<code>{}</code>" if i % 2 else "{}").format(part) for i, part in enumerate(one_line(line).split("`"))
    ]
    return Markup("").join(parts)


def _block(value: Any) -> Markup:
    """`value` as JSON inside a script element: inert, in ASCII, every text as `one_line` shows it."""
    text = json.dumps(_lines(value), separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _lines(value: Any) -> Any:
    if isinstance(value, dict):
        return {one_line(str(name)): _lines(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_lines(part) for part in value]
    return one_line(value) if isinstance(value, str) else value


def _asset(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _labelled(svg: str, name: str) -> Markup:
    """A figure as one image that its caption labels, for screen readers."""
    return Markup(svg.replace("<svg", f'<svg role="img" aria-labelledby="figure-{name}-caption"', 1))


def _shown(value: object) -> object:
    """A value as the template shows it, before escaping."""
    return value if isinstance(value, Markup) else one_line(str(value))


# Summary


def _scope(answer: StudyAnswer) -> str:
    """What was run: cells, methods, models and data."""
    rows = answer.rows
    methods = list(dict.fromkeys(row.method for row in rows))
    places = list(dict.fromkeys(row.place for row in rows))
    where = "; ".join(f"{model}, tuned on {data}" for _, model, data in places)
    named = f" ({', '.join(methods)})" if len(methods) <= MOST_NAMED else ""
    return f"{units.plural(len(rows.records), 'cell')} of {units.plural(len(methods), 'method')}{named}: {where}."


def _summary(answer: StudyAnswer, added: Sequence[PageBlock], findings: Sequence[Finding]) -> Iterator[str]:
    rows = answer.rows
    places = list(dict.fromkeys(row.place for row in rows))
    statuses = Counter(record.status for record in rows.records)
    if lost := [f"{n} {status}" for status, n in statuses.items() if status != "ok"]:
        yield f"{statuses['ok']} finished, {', '.join(lost)}."
    yield from answer.standings
    compared = [(c.label, row) for c, row in zip(answer.choices, answer.settled, strict=True) if row]
    for place in places:
        of = f" of {place[1]} on {place[2]}" if len(places) > 1 else ""
        yield from _extremes({label: row for label, row in compared if row.place == place}, of)
    for block in added:
        yield from block.summary
    unequal = sum(finding.kind == "unequal" for finding in findings)
    differences = units.plural(unequal, "difference") if unequal else "no differences"
    yield f"The linter found {differences} between compared cells beyond those that define their methods."
    yield from (finding.sentence for finding in findings if finding.kind == "incomplete")


def _extremes(rows: Mapping[str, Row], of: str) -> Iterator[str]:
    """The methods with the least memory and the highest speed, in the settings that are compared.

    Speeds are left out if cells ran beside others or on several devices: then they are no measure of the methods.
    """
    memory = {label: peak for label, row in rows.items() if (peak := row.mean(TRAIN_MEMORY)) is not None}
    ran = [record for row in rows.values() for record in row.measured]
    disturbed, alike = disturbed_cells(ran), not differing(ran, [], device)
    speeds = ((label, row.mean("tokens_per_second_steady")) for label, row in rows.items())
    speed = {label: steady for label, steady in speeds if steady is not None}
    if len(memory) > 1 and comparable(set.union(*(row.instruments for row in rows.values())), TRAIN_MEMORY):
        least, most = min(memory, key=memory.__getitem__), max(memory, key=memory.__getitem__)
        yield (
            f"Training{of} needs the least memory with {least} ({units.size(memory[least])}) and the most with {most} "
            f"({units.size(memory[most])})."
        )
    if len(speed) > 1 and alike and not any(record.cell.name in disturbed for record in ran):
        first, last = max(speed, key=speed.__getitem__), min(speed, key=speed.__getitem__)
        yield (
            f"Training{of} is fastest with {first} ({rate(speed[first])} tokens/s, median step) and slowest with "
            f"{last} ({rate(speed[last])})."
        )


# Tables


def _scores_first(table: Table, rows: Rows) -> Table:
    """`table` with its scores beside the settings: a screen shows what decides without scrolling."""
    scores = score_entries(rows)
    failed = any(record.status != "ok" for record in rows.records)
    identity = ["#", "Study", "Model", "Data", "Method", "Setting", *["Status"] * failed]

    def place(column: str) -> int:
        return 0 if column in identity else 1 if column in scores else 2

    order = sorted(range(len(table.columns)), key=lambda i: place(table.columns[i]))
    columns = [table.columns[i] for i in order]
    return replace(table, columns=columns, rows=[[row[i] for i in order] for row in table.rows])


def _classes(answer: StudyAnswer) -> list[PageSection]:
    """The section on answers that are labels; none without such a task."""
    tables = [*class_tables(answer), *confusion_tables(answer)]
    contents = {f"classes-table-{i}": table for i, table in enumerate(tables)}
    return [PageSection("classes", "Classes", "Classes", contents)] if tables else []


def _settings_of(answer: StudyAnswer) -> list[int | str]:
    """For each row of the first table the position of its setting among the study's rows; "-" where none is chosen."""
    at = {id(row): i for i, row in enumerate(answer.rows)}
    return [at.get(id(row), "-") for row in (answer.rows if answer.untuned else answer.settled)]


def _parts(added: Sequence[PageBlock]) -> list[str]:
    """The commands that make the parts of the page."""
    return ["table", *(words for block in added for words in block.commands), "lint", "figures"]


def _origin(records: Sequence[Record]) -> Table:
    """The environments of the cells: each value with its number of records."""
    values: dict[str, Counter[str]] = defaultdict(Counter)
    for record in records:
        versions = record.environment.get("versions")
        facts = {"day of start": record.started[:10], **ran_with(record)}
        facts |= {name: str(v) for name, v in versions.items() if v} if isinstance(versions, dict) else {}
        if record.source:
            facts["source"] = f"{record.source.project}: {record.source.file}, SHA-256 {record.source.sha256}"
        for name, value in facts.items():
            values[name][value] += 1
    return Table(
        title="Environment of the cells",
        columns=["What", "Value", "Records"],
        rows=[[name, value, str(n)] for name, of in values.items() for value, n in sorted(of.items())],
        caption=[f"{units.plural(len(records), 'record')}; missing values are not counted."],
        data=None,
    )


def _files(folder: Path) -> Table:
    """The study's files and their hashes, to check whether a copy is the same."""
    records = sorted(folder.glob("*.json"))
    of_records = [path for record in records for path in (record, record.with_suffix(".items.parquet"))]
    paths = [path for path in (folder / PLAN, *of_records) if path.exists()]
    return Table(
        title="Files behind this page",
        columns=["File", "SHA-256"],
        rows=[[path.name, sha256(path)] for path in paths],
        caption=[f"{units.plural(len(records), 'record')}; NAME.items.parquet has the answers to each item."],
        data=None,
    )
