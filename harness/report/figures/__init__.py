"""Records in, figures out, in one style: for each question of the comparison a drawing and its caption.

    FIGURES["accuracy_memory"](records, folder).figure

Colours are those of Okabe & Ito (Color Universal Design, 2008), which any colour vision distinguishes; markers,
lines and hatches carry the same information in grey. A method looks the same in every figure. Drawings use no global
state (no pyplot): the same records give the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl

from harness import plugin
from harness.record import Record
from harness.report.figures.accuracy import accuracy_memory
from harness.report.figures.cost import memory, throughput
from harness.report.figures.curves import loss
from harness.report.figures.differences import differences
from harness.report.figures.experiments import experiments
from harness.report.figures.forgetting import forgetting
from harness.report.figures.study_results import StudyResults
from harness.report.figures.style import STYLE, Drawn
from harness.report.figures.tuning import lr_methods, rank_sweep


@dataclass(frozen=True)
class Plot:
    """A figure to draw: called with the records of a study and its folder, where the items are (None: no items).

    Without items, intervals of scores cover less. Returns None if the records hold nothing to draw.
    """

    draw: Callable[[StudyResults], Drawn | None]

    def __call__(self, records: Sequence[Record], folder: Path | None = None) -> Drawn | None:
        return self.drawing(StudyResults(records, folder))

    def drawing(self, study: StudyResults) -> Drawn | None:
        with mpl.rc_context(STYLE):
            return self.draw(study)


def _of_plugin(target: str) -> Callable[[StudyResults], Drawn | None]:
    """A plug-in's figure, whose module is imported when it is drawn."""
    return lambda study: plugin.load(target)(study)


FIGURES = {
    draw.__name__: Plot(draw)
    for draw in (
        *(accuracy_memory, differences, experiments, rank_sweep, lr_methods),
        *(loss, memory, throughput, forgetting),
    )
}
FIGURES |= {name: Plot(_of_plugin(target)) for part in plugin.installed() for name, target in part.figures.items()}


def drawings(records: Sequence[Record], folder: Path | None) -> dict[str, Drawn]:
    """Every figure that `records` have data for, by its name in `FIGURES`."""
    return drawings_of(StudyResults(records, folder))


def drawings_of(study: StudyResults) -> dict[str, Drawn]:
    """`drawings` of the records of `study`."""
    by_name = {name: plot.drawing(study) for name, plot in FIGURES.items()}
    return {name: drawing for name, drawing in by_name.items() if drawing}


def svg(records: Sequence[Record], folder: Path | None) -> dict[str, tuple[str, str]]:
    """SVG text and caption of every figure by name; ids are unique, so that one HTML page can hold them all."""
    return svg_of(StudyResults(records, folder))


def svg_of(study: StudyResults) -> dict[str, tuple[str, str]]:
    """`svg` of the records of `study`."""
    return {name: (_with_own_ids(drawing.svg(), name), drawing.caption) for name, drawing in drawings_of(study).items()}


def save(records: Sequence[Record], folder: Path | None, out: Path) -> list[str]:
    """Write NAME.svg and NAME.png of every figure to `out`; returns the names."""
    by_name = drawings(records, folder)
    out.mkdir(parents=True, exist_ok=True)
    for name, drawing in by_name.items():
        (out / f"{name}.svg").write_text(drawing.svg(), encoding="utf-8")
        (out / f"{name}.png").write_bytes(drawing.png())
    return list(by_name)


def _with_own_ids(text: str, name: str) -> str:
    def own(tag: re.Match[str]) -> str:
        return re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", tag[0])

    return re.sub(r"<[^>]*>", own, text)  # texts are not matched: their angle brackets are escaped
