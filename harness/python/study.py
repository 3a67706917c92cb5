"""A recorded study: its records as data frames, its answer, its claims and its figures."""

from __future__ import annotations

import html
import os
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from harness import plugin, units
from harness.errors import UserError, nearest, require_positive
from harness.record import Record, read_study, require_one_folder_each, studies

if TYPE_CHECKING:
    import pandas as pd

    from harness.python.plots import Plots
    from harness.report.figures.study_results import StudyResults
    from harness.report.tables.table import Table

Folders = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def read_folders(folders: Folders) -> RecordedStudy:
    """`harness.read`."""
    names = [folders] if isinstance(folders, str | os.PathLike) else folders
    if not isinstance(names, Sequence) or not all(isinstance(name, str | os.PathLike) for name in names):
        raise UserError(f"`read` requires the folder of a study, or a list of them, got {folders!r}.")
    if not names:
        raise UserError("`read` requires the folder of a study, got an empty list.")
    paths = [Path(folder).expanduser() for folder in names]
    for path in paths:
        _require_records(path)
    study = RecordedStudy(paths)
    if not study.records:
        raise UserError(f"There are no good records in {', '.join(map(str, paths))}: {study.problems[0]}")
    return study


def _require_records(folder: Path) -> None:
    if not folder.is_dir():
        below = [Path("results") / name for name in studies(Path("results"))]
        near = next((path for path in below if path.name == folder.name), None)
        hint = near or nearest(str(folder), map(str, below))
        raise UserError(f"There is no folder {folder}.{f' Did you mean {hint}?' if hint else ''}")
    if any(folder.glob("*.json")):
        return
    inner = studies(folder)
    if inner:
        more = f" and {len(inner) - 3} more" if len(inner) > 3 else ""
        raise UserError(
            f"{folder} holds no records itself, but studies: {', '.join(inner[:3])}{more}; read one of them."
        )
    raise UserError(f"There are no records in {folder}; run a sweep first.")


class RecordedStudy:
    """The records in the folder of a study, or of several studies, and what they say.

    The folders are read once, when the study is made; read again to see new records. What is computed is kept.
    Raises UserError if two of them have records of a study of one name.
    """

    def __init__(self, folders: Sequence[Path]):
        self.folders = tuple(folders)
        contents = [(folder, *read_study(folder)) for folder in self.folders]
        require_one_folder_each((folder, records) for folder, records, _ in contents)
        self.records: list[Record] = [record for _, records, _ in contents for record in records]
        """The records, by folder and name."""
        self.problems: list[str] = [problem for _, _, problems in contents for problem in problems]
        """A sentence for each file that is no good record."""
        self._parts = [_Part(folder, records) for folder, records, _ in contents if records]

    def __len__(self) -> int:
        """How many records there are."""
        return len(self.records)

    def __repr__(self) -> str:
        unread = f", {units.plural(len(self.problems), 'problem')}" if self.problems else ""
        return f"<RecordedStudy {self.name}: {units.plural(len(self), 'record')}{unread}>"

    def _repr_html_(self) -> str:
        from harness.report.tables.formats import html_grid, one_line

        lines = []
        for part in self._parts:
            answer, caption = (
                [html.escape(one_line(text)) for text in of] for of in (part.table.answer, part.table.caption)
            )
            lines += [f"<p><strong>{sentence}</strong></p>" for sentence in answer]
            lines += [
                f"<p>{html.escape(one_line(part.table.title))}</p>",
                "<table>",
                *html_grid(part.table),
                "</table>",
            ]
            lines += ["<ul>", *(f"<li>{sentence}</li>" for sentence in caption), "</ul>"]
        lines += [f"<p>{html.escape(one_line(problem))}</p>" for problem in self.problems]
        return "\n".join(lines or [f"<p>{html.escape(repr(self))}</p>"])

    @property
    def name(self) -> str:
        """The names of the studies, as their records have them; those of their folders without records."""
        named = dict.fromkeys(record.study for record in self.records)
        return ", ".join(named or dict.fromkeys(folder.name for folder in self.folders))

    @property
    def answer(self) -> list[str]:
        """The sentences that `harness table` prints first; of several studies each begins with its name."""
        several = len(self._parts) > 1
        return [
            f"{part.name}: {sentence}" if several else sentence
            for part in self._parts
            for sentence in part.results.answer.sentences
        ]

    def frame(self) -> pd.DataFrame:
        """A row a record, with every number: `harness.report.frame` has the columns and their units."""
        from harness.report.frame import frame

        return frame(self.records)

    def best(self) -> pd.DataFrame:
        """A row a method: its best setting, chosen on validation loss, as the first table of `harness table` has it.

        A method whose records have no validation losses to choose by has a row for each of its settings.

        The numbers are unrounded and in base units; `harness.report.tables.frames` has the columns and their units.
        """
        from harness.report.tables.frames import chosen_of

        return self._joined(lambda part: chosen_of(part.results.answer))

    def table(self) -> pd.DataFrame:
        """The first table of `harness table` as it is printed: text, with intervals and letters."""
        import pandas as pd

        return self._joined(lambda part: pd.DataFrame(part.table.rows, columns=part.table.columns))

    def pairs(self) -> pd.DataFrame:
        """A row for each two methods that answered the same items, with the difference and its test."""
        from harness.report.tables.frames import pairs_of

        return self._joined(lambda part: pairs_of(part.results.answer.contests))

    def costs(self, price: float | None = None) -> pd.DataFrame:
        """A row for each chosen setting and task: what it costs beside its score, as `harness table --cost` shows it.

        price: dollars for an hour of one device (null: costs are device-hours alone). The numbers are unrounded;
        `harness.report.tables.frames` has the columns and their units. Raises UserError for a price that is not
        positive, and for a study on several kinds of devices, whose hours don't compare.
        """
        from harness.report.tables.frames import costs_of

        require_positive("price", price)
        return self._joined(lambda part: costs_of(part.results.answer, price))

    def items(self) -> pd.DataFrame:
        """A row for each item that a method's chosen setting answered, with each seed.

        Of each task the score is taken that is tested. A study whose files of items are missing has no rows.

        study, model, data, method          text
        seed                                null for an untuned model
        score                               text: TASK/METRIC/FILTER
        subject                             text: the item's, in tasks that have subjects
        item                                the item's number within its subject
        value                               what the answer scored, as its task defines it (1 is right, 0 wrong)
        """
        from harness.report.tables.frames import items_of

        return self._joined(lambda part: items_of(part.results.answer))

    def claims(self, article: str | None = None, long: bool = False) -> pd.DataFrame:
        """A row for each claim of the articles, or of one `article`, with the verdict of all records together.

        long: a row for each place (study, model and data set) where a claim is judged, with the verdict there.

        article, claim                      text: the names of both
        text                                the claim, with vague words made exact in brackets
        depends_on                          text: the settings that tell apart where the claim holds and where it fails
                                            (data, batch size, rank, …), or study, if the claim depends; else null
        studies                             text: the studies where it is judged
        places, agreeing                    in how many places it is judged, and how many of them decide as the verdict
        study, model, data                  text: the place; only with long=True, which lacks the columns above
        verdict                             text: supported, refuted, too small to matter, depends (on the setting),
                                            not decided, or not judged (cells are missing)
        effect, low, high                   what was measured in the place that is shown, with its 95% interval, in the
                                            claim's own unit: a ratio, a fraction of 1, …
        shown                               text: the same with its unit
        seeds, items                        how many seeds of the smaller side and items per model it rests on
        records                             how many records it rests on
        plan                                text: planned, interim (the plan is not finished, so nothing is decided yet)
                                            or exploratory; of several studies the weakest of these
        reason                              text: why nothing is decided, which study decides what, or a remark; empty
                                            without
        command                             text: the command that runs the cells which decide it; null if it is decided
        """
        import pandas as pd

        targets = [part.frames["claims"] for part in plugin.installed() if "claims" in part.frames]
        if not targets:
            raise UserError("claims() requires the plug-in articles, which is not installed.")
        verdicts = plugin.load(targets[0])(article, long)
        studies = [(part.records, part.folder) for part in self._parts]
        return verdicts(studies) if studies else pd.DataFrame()

    def power(self, effect: float, seeds: int) -> str:
        """How many items and seeds find a difference of `effect` (0.02 is 2 points), at the noise of the one study.

        The text that `harness power` prints. Raises UserError if the study has no answers to measure the noise on.
        """
        from harness.report.power import assumptions, describe

        require_positive("effect", effect)
        if effect >= 1 or not isinstance(seeds, int) or seeds < 1:
            raise UserError(f"effect must be below 1 and seeds a positive whole number, got {effect:g} and {seeds!r}.")
        part = self._only("The noise")
        noise, measured = assumptions(part.records, part.folder)
        return describe(effect, seeds, noise, measured)

    @cached_property
    def plot(self) -> Plots:
        """The figures of the one study, such as ``study.plot.pareto()``."""
        from harness.python.plots import Plots

        return Plots(self._only("A figure").results)

    def _only(self, what: str) -> _Part:
        if len(self._parts) != 1:
            has = "there are no records" if not self._parts else f"there are {self.name}; read one"
            raise UserError(f"{what} is of one study; {has}.")
        return self._parts[0]

    def _joined(self, frame_of: Callable[[_Part], pd.DataFrame]) -> pd.DataFrame:
        import pandas as pd

        frames = [frame for part in self._parts if len(frame := frame_of(part))]
        if not frames:
            return frame_of(self._parts[0]) if self._parts else pd.DataFrame()
        return frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True)


class _Part:
    """The records of one folder, and what is computed of them."""

    def __init__(self, folder: Path, records: list[Record]):
        self.folder, self.records = folder, records

    @property
    def name(self) -> str:
        return ", ".join(dict.fromkeys(record.study for record in self.records))

    @cached_property
    def results(self) -> StudyResults:
        from harness.report.figures.study_results import StudyResults

        return StudyResults(self.records, self.folder)

    @cached_property
    def table(self) -> Table:
        """The first table of `harness table`."""
        from harness.report.tables.best import first_table

        return first_table(self.results.answer)
