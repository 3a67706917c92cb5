"""Writes the pages of all settings and of the record from their dataclasses: `python docs/reference.py`.

docs/settings.md comes from harness/config.py, docs/record.md from harness/record/schema.py and the files of its parts.
In docs/python.md the tables of columns and figures come from docstrings.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from harness.config_help import ConfigGroup, config_groups, field_comments
from harness.python import planned, plots
from harness.python.study import RecordedStudy
from harness.record import failures, measurements, schema, scores, study_plan
from harness.report.frame import frame
from harness.report.tables.frames import chosen_of, costs_of, pairs_of

SETTINGS, RECORD, PYTHON = (Path(__file__).with_name(name) for name in ("settings.md", "record.md", "python.md"))
COLUMNS: dict[str, Callable[..., pd.DataFrame]] = {  # the functions whose docstrings have the columns
    "frame": frame,
    "best": chosen_of,
    "costs": costs_of,
    "pairs": pairs_of,
    "items": RecordedStudy.items,
    "claims": RecordedStudy.claims,
    "plan": planned.frame,
}
BLOCK = re.compile(r"(<!-- (figures|columns: (\w+)) -->\n).*?(<!-- end -->)", re.DOTALL)
SETTINGS_HEAD = """\
# Settings

Made from `harness/config.py` by `make publish`. `run`, `sweep` and `plan` take each setting as `KEY=VALUE`;
`harness run --help` lists them too. For a list, write `eval.tasks=[mmlu,gsm8k]`; for nothing, write `null`.

A default in `${…}` is computed from other settings. *file* means that the chosen file of the group sets it:
`model=qwen3_1_7b` is `conf/model/qwen3_1_7b.yaml`. Such a file also replaces other defaults of its group.
"""
RECORD_HEAD = """\
# The record

Made from the dataclasses in `harness/record/` by `make publish`. A record is one JSON file, `NAME.json`, that a cell
leaves behind. Units are bytes, seconds and tokens. null means not measured.

## Hash of the record

The last member of the file, `sha256`, is the hash of the file's text without it. Whoever reads a record computes it
again. A record that was damaged or edited is named in one sentence and left out, and the others are shown. The hash
finds accidents and edits. It is no signature: whoever makes up a whole record can compute it too.

A number must be finite and not negative, a count at most 2**53, a time must have a time zone, and `study` must be a
folder's name by letters, digits, `.`, `_`, `-` and `/`. `verify` notes records that lie in a folder of another name
than their study's. `items_sha256` and `saved.files` are the hashes of the files beside the record; `harness verify`
compares them. A record of more than 256 MiB, or with a line of more than 1 MiB, is named and left out, so that no
command takes minutes for it. Of a file of items at most 4,194,304 rows are read, of a log the last 64 MiB are shown.

## Records of others

You can merge, import, compare and publish records of others. Nothing in them is run or loaded: `table`, `report`,
`view`, `claims`, `lint`, `verify`, `merge` and all other commands that compare read numbers and texts alone.

`retry`, `reproduce`, `score`, `ask` and `export-model` turn a record back into something that runs or loads. They pass
one gate first, which lets through only what config files name: those of the harness, and your own in `./conf` and
`./sweeps`. `verify` and `merge` name the records that it refuses, and why. `report` and `view` show no command
that reruns them.

| Part of a record | Let through | Refused |
| --- | --- | --- |
| Slots of the method, and how data are loaded | functions and arguments that a config file has at the same place; \
any number; names of layers | every other function, argument or text |
| Model | safetensors; a hub id, or a folder | code of its own (`trust_remote_code`), pickled weights, kernels of \
others, addresses |
| Tasks | names in lm-eval's index | files and patterns; tasks that run code which a model writes |
| Data | files by paths that begin at `data_root` or the working folder | absolute paths, addresses |
| Saved weights | the record's own folder: safetensors, configs and tokenizers, with the hashes of the record | \
other files, links, configs that name code, adapters that repeat layers or match names by slow expressions |
| `commands.txt` | comments after `merge`; else offered to be pasted if it is `harness sweep` with known settings | \
endpoints and keys, code, config files and folders, launchers' own settings |
| `plan.jsonl` | lines whose hash is right; read as numbers and texts alone | links, edited lines |

What is refused can still run by a command line of your own, such as a sweep with `model.trust_remote_code=true`, or if
you name it in a file of your own `conf/` folder.

What the gate does not decide: whether numbers are true, whether a model answers well, and what is downloaded. A record
may name any model of the hub, whose safetensors `ask` would then download. The texts of a record are cleaned of control
characters before they are printed. A log that is a link is not shown, and a pipe is not read. Don't unpack an archive
into `results/` by hand: `merge` follows no links.
"""

PLAN_HEAD = """\
## The plan of a study

`plan.jsonl`, beside the records, has a line for each sweep that asked for something new: a JSON object with the fields
of StudyPlan and, as its last member, `sha256`, the hash of the line without it. A line is written before the first cell
of its sweep runs, and is never changed. [Plans](sweeps.md#plan-first-look-later) says what follows from it.
"""


def settings_page() -> str:
    """The text of docs/settings.md."""
    return "\n".join([SETTINGS_HEAD, *map(_group, config_groups())])


def record_page() -> str:
    """The text of docs/record.md: the record first, then each part of it."""
    parts = [
        part
        for module in (schema, measurements, scores, failures)
        for part in vars(module).values()
        if isinstance(part, type) and dataclasses.is_dataclass(part) and part.__module__ == module.__name__
    ]
    parts.sort(key=lambda part: part is not schema.Record)
    of_plan = [study_plan.StudyPlan, study_plan.PlannedMethod]
    names = {part.__name__ for part in (*parts, *of_plan)}
    of_record, of_plans = ([_part(part, names) for part in some] for some in (parts, of_plan))
    return "\n".join([RECORD_HEAD, *of_record, PLAN_HEAD, *of_plans])


def python_page() -> str:
    """The text of docs/python.md with its tables made anew."""

    def renewed(block: re.Match[str]) -> str:
        made = _figures() if block[3] is None else columns_table(COLUMNS[block[3]])
        return f"{block[1]}\n{made}\n\n{block[4]}"

    return BLOCK.sub(renewed, PYTHON.read_text(encoding="utf-8"))


class Column(NamedTuple):
    """A line of a docstring: names of columns, and what they hold. section: the line that heads it, or empty."""

    section: str
    names: list[str]
    meaning: str


def documented_columns(function: Callable[..., pd.DataFrame]) -> list[Column]:
    """The columns in the docstring of `function`: names and meaning are at least two spaces apart, further lines of a
    meaning stand below it, and a line that ends with a colon heads a section."""
    found: list[Column] = []
    section = ""
    for line in (inspect.getdoc(function) or "").splitlines():
        if named := re.fullmatch(r"(\S.*?)\s{2,}(\S.*)", line):
            found.append(Column(section, named[1].split(", "), named[2]))
        elif line.startswith(" " * 20):
            found[-1] = found[-1]._replace(meaning=f"{found[-1].meaning} {line.strip()}")
        elif line.endswith(":"):
            section = line
    return found


def columns_table(function: Callable[..., pd.DataFrame]) -> str:
    """The columns of `function` as Markdown: a table for each section."""
    sections: dict[str, list[Column]] = {}
    for column in documented_columns(function):
        sections.setdefault(column.section, []).append(column)
    parts = []
    for section, columns in sections.items():
        rows = [(", ".join(f"`{name}`" for name in names), _escaped(meaning)) for _, names, meaning in columns]
        parts += [*([section] if section else []), _table(("Column", "Meaning"), rows)]
    return "\n\n".join(parts)


def _figures() -> str:
    rows = [(f"`{name}`", inspect.getdoc(getattr(plots.Plots, name)) or "") for name in plots.names()]
    return _table(("Figure", "What it shows"), rows)


def _group(group: ConfigGroup) -> str:
    rows = [
        (f"`{f.key}`", f.kind.replace(" | ", " or "), _default(f.default), _escaped(f.sentences)) for f in group.fields
    ]
    table = _table(("Setting", "Type", "Default", "Meaning"), rows)
    return f"## {group.key or 'General'}\n\n{group.comment.replace('``', '`')}\n\n{table}\n"


def _part(part: type, names: set[str]) -> str:
    comments = field_comments(part)
    rows = [(f"`{f.name}`", _linked(str(f.type), names), _escaped(comments[f.name])) for f in dataclasses.fields(part)]
    return f"## {part.__name__}\n\n{inspect.getdoc(part)}\n\n{_table(('Field', 'Type', 'Meaning'), rows)}\n"


def _linked(kind: str, names: set[str]) -> str:
    """A type in words, with links to the parts of the record."""
    kind = re.sub(r"\b(Status|TrackerName)\b", "str", kind)
    kind = re.sub(r"Literal\[(.*?)\]", lambda found: re.sub("[\"']", "", found[1]).replace(", ", " or "), kind)
    kind = re.sub(r"dict\[str, (\w+(?:\[\w+\])?)\]", r"\1 by name", kind)
    kind = re.sub(r"(?:list|Sequence)\[(\w+)\]", r"list of \1", kind).replace(" | None", " or null")
    kind = re.sub(r"\b(Eval)?Settings\b", "[Settings](settings.md)", kind)
    return re.sub(r"\w+", lambda found: f"[{found[0]}](#{found[0].lower()})" if found[0] in names else found[0], kind)


def _table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ("---",) * len(header), *rows))


def _default(default: str | None) -> str:
    if default is None:
        return "*file*"
    text = default.replace("\n", "\\n")
    return f"`{text}`"


def _escaped(comment: str) -> str:
    return comment.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    SETTINGS.write_text(settings_page(), encoding="utf-8")
    RECORD.write_text(record_page(), encoding="utf-8")
    PYTHON.write_text(python_page(), encoding="utf-8")
