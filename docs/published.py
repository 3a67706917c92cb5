"""Renders what README.md, docs/, results/reference/ and notebooks/ show of the published studies: `make publish`.

A page marks a table with ``<!-- KIND: STUDY -->`` and ``<!-- end -->``; what stands between them comes from the records
in results/STUDY. Plug-ins render more kinds of blocks, and more files: `doc_blocks`, `doc_files` of harness/plugin.py.
tests/house/test_readme.py and test_notebooks.py hold all of it to the records.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from harness import gate, plugin, units
from harness.record import Record, read_study
from harness.report.figures import FIGURES
from harness.report.figures.study_results import StudyResults
from harness.report.pages import page as report
from harness.report.tables.best import best, tables
from harness.report.tables.formats import document
from harness.report.tables.table import Table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
PAGES = [ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in ("studies", "verdicts", "published-results"))]
BLOCK = re.compile(r"(<!-- (\w+): (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
PICTURES = {  # by name of the file: figure, study
    "pareto": ("accuracy_memory", "reference/study_skill"),
    "forgetting": ("forgetting", "reference/study_skill"),
    "experiments": ("experiments", "reference/peft_llama_3_2_3b"),
    "rank": ("rank_sweep", "reference/study_rank"),
    "rates": ("lr_methods", "reference/study_lr"),
    "seeds": ("accuracy_memory", "reference/smollm2"),
    "memory": ("memory", "reference/smollm2"),
}
REPORT = "reference/smollm2"  # the study whose report is committed
DURATION = re.compile(r"took \d+ minutes? on \d+ \w+ cores")  # of `make compare`, by its record, in TIMED
TIMED = (ROOT / "README.md", ROOT / "Makefile")
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def compact(records: list[Record], folder: Path) -> list[Table]:
    """The best setting of each method in at most 100 columns: without tries, own knobs, ranks and intervals of speed.

    Its caption leaves out what `best` says of ranks, of one seed, of groups of items, of memory with those intervals,
    and of rounded weights. Requires a study of one score.
    """
    full = best(records, folder)
    (score,) = [column for column in full.columns if column.endswith("(%)")]
    short = {
        "Method": ("Method", lambda text: text),
        "Setting": ("Setting", lambda text: re.sub(r"(lr=\S+) .*", r"\1", text)),
        "Peak train memory": ("Peak memory", lambda text: text),
        "Tokens/s": ("Tokens/s", lambda text: re.sub(r"×, [^)]*", "×", text)),
        score: ("Score (%)", lambda text: text),
        "Validation loss": ("Loss", lambda text: text),
    }
    places = [full.columns.index(column) for column in short]
    rows = [[cut(row[i]) for i, (_, cut) in zip(places, short.values(), strict=True)] for row in full.rows]
    headers = [header for header, _ in short.values()]
    # Said by the README's own words, or of interest elsewhere.
    said = ("Best: ", "Single seed: ", "Items come in groups ", "Memory is ", "The weights of ")
    caption = [line for line in full.caption if not line.startswith(said)]
    return [replace(full, columns=headers, rows=rows, caption=caption)]


KINDS: dict[str, Callable[[list[Record], Path], Sequence[Table]]] = {
    "table": tables,
    "best": lambda records, folder: [best(records, folder)],
    "compact": compact,
    "experiments": lambda records, folder: tables(records, folder)[:1],
}


PLUGIN_KINDS = {kind: target for part in plugin.installed() for kind, target in part.doc_blocks.items()}
PLUGIN_FILES = {ROOT / path: target for part in plugin.installed() for path, target in part.doc_files.items()}


@functools.cache
def records(study: str) -> list[Record]:
    """The records of a published study; raises if there are none or one is bad."""
    found, problems = read_study(RESULTS / study)
    if problems or not found:
        raise ValueError(f"results/{study} must hold good records, got {problems or 'none'}.")
    return found


@functools.cache
def results(study: str) -> StudyResults:
    """The same as figures take them, so that those of one study share what is computed."""
    return StudyResults(records(study), RESULTS / study)


@functools.cache
def rendered(kind: str, study: str) -> str:
    """Tables of one kind as Markdown; `study` is the argument of a plug-in's kind."""
    if kind in PLUGIN_KINDS:
        return plugin.load(PLUGIN_KINDS[kind])(study)
    return document(KINDS[kind](records(study), RESULTS / study), "md")


def blocks(page: Path) -> list[tuple[str, str]]:
    """Kind and study of each table that a page marks."""
    return [(found[2], found[3]) for found in BLOCK.finditer(page.read_text(encoding="utf-8"))]


def renewed(page: Path) -> str:
    """The text of a page with its tables rendered anew; blocks of plug-ins that are not installed stay as they are."""

    def block(match: re.Match[str]) -> str:
        head, kind, argument, end = match.groups()
        return head + rendered(kind, argument) + end if kind in {*KINDS, *PLUGIN_KINDS} else match[0]

    return BLOCK.sub(block, page.read_text(encoding="utf-8"))


def duration(study: str) -> str:
    """How long a study's cells took, from the start of the first to the end of the last, and where."""
    starts = {record.started: record for record in records(study)}
    first, last = min(starts), max(starts)
    seconds = (datetime.fromisoformat(last) - datetime.fromisoformat(first)).total_seconds() + starts[last].seconds
    cpu = starts[first].environment["cpu"]
    minutes = units.plural(math.ceil(seconds / 60), "minute")
    family = [word for word in re.findall(r"\w+", cpu["name"].replace("(R)", "")) if word not in ("Processor", "CPU")]
    return f"took {minutes} on {cpu['cores']} {family[-1]} cores"


def documents() -> list[tuple[Path, str, str]]:
    """The tables that are committed beside the records: file, kind, study."""
    studies = dict.fromkeys(study for page in PAGES for kind, study in blocks(page) if kind in KINDS)
    return [(RESULTS / study / "TABLE.md", "table", study) for study in studies]


def picture(name: str) -> str:
    """One of PICTURES as SVG."""
    figure, study = PICTURES[name]
    drawn = FIGURES[figure].drawing(results(study))
    if drawn is None:
        raise ValueError(f"There is nothing to draw of {name}.")
    return drawn.svg()


def picture_file(name: str) -> Path:
    return ROOT / "docs" / "figures" / f"{name}.svg"


def report_page() -> str:
    """The report of REPORT. Its records name the versions that measured; those that drew it are left out, so that the
    same records give the same page."""
    command = f"python -m harness report --study {REPORT} --out results/{REPORT}/report.html"
    return report.render(
        records(REPORT), RESULTS / REPORT, where=f"--study {REPORT}", command=command, runnable=gate.runnable
    )


def report_file() -> Path:
    return RESULTS / REPORT / "report.html"


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook at `path` with what it shows now."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=300, record_timing=False, resources={"metadata": {"path": path.parent}})
    return client.execute()


if __name__ == "__main__":
    for path, kind, study in documents():
        path.write_text(rendered(kind, study), encoding="utf-8")
    for page in PAGES:
        page.write_text(renewed(page), encoding="utf-8")
    for path in TIMED:
        path.write_text(DURATION.sub(duration("reference/quickstart"), path.read_text("utf-8")), encoding="utf-8")
    for name in PICTURES:
        picture_file(name).write_text(picture(name), encoding="utf-8")
    for path, target in PLUGIN_FILES.items():
        path.write_text(plugin.load(target)(), encoding="utf-8")
    report_file().write_text(report_page(), encoding="utf-8")
    for path in NOTEBOOKS:
        nbformat.write(executed(path), path)
