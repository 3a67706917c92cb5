"""The figures of one study, each by a method of its own."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from harness.errors import UserError, one_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from harness.report.figures.study_results import StudyResults
    from harness.report.figures.style import Drawn

FILES = {"pareto": "accuracy_memory"}  # figures whose file `harness figures` names otherwise


class Plots:
    """Draws one study. Each figure is a matplotlib Figure, made without pyplot; a notebook displays it.

    Each method raises UserError if the study holds nothing for its figure.
    """

    def __init__(self, results: StudyResults):
        self._results = results
        self._drawn = cache(self._draw)

    @property
    def available(self) -> list[str]:
        """The names of the figures that the study holds something for."""
        return [name for name in names() if self._drawn(name) is not None]

    def caption(self, name: str) -> str:
        """The caption of a figure, which says what its marks mean."""
        one_of("figure", name, names())
        return self._required(name).caption

    def pareto(self) -> Figure:
        """Score of each setting against its training memory, with the Pareto front of the chosen settings."""
        return self._required("pareto").figure

    def differences(self) -> Figure:
        """The score of each method minus that of the best one, with its interval and what the tests say."""
        return self._required("differences").figure

    def experiments(self) -> Figure:
        """Score of each imported experiment against the memory that its training reserved."""
        return self._required("experiments").figure

    def rank_sweep(self) -> Figure:
        """Score of each method by rank, each rank at its chosen learning rate."""
        return self._required("rank_sweep").figure

    def lr_methods(self) -> Figure:
        """Validation loss of each method by learning rate, at its best rank for that rate."""
        return self._required("lr_methods").figure

    def loss(self) -> Figure:
        """Loss against tokens and against time, each method in its chosen setting."""
        return self._required("loss").figure

    def memory(self) -> Figure:
        """Peak memory of a training step by kind of tensor."""
        return self._required("memory").figure

    def throughput(self) -> Figure:
        """Tokens per second of each method in training and in decoding."""
        return self._required("throughput").figure

    def forgetting(self) -> Figure:
        """Change on another task against change on the trained task, for each method."""
        return self._required("forgetting").figure

    def verdicts(self) -> Figure:
        """The effects on which the claims of each article are judged, with their intervals and what is claimed."""
        return self._required("verdicts").figure

    def lost_won(self) -> Figure:
        """The items that tuning lost and won against the untuned model."""
        return self._required("lost_won").figure

    def _required(self, name: str) -> Drawn:
        drawn = self._drawn(name)
        if drawn is None and name not in drawable():
            raise UserError(f"There is no figure {name}: the plug-in that draws it is not installed.")
        if drawn is None:
            raise UserError(f"The study holds nothing to draw for {name}; `plot.available` lists the figures it has.")
        return drawn

    def _draw(self, name: str) -> Drawn | None:
        from harness.report.figures import FIGURES
        from harness.report.figures.forgetting import lost_won
        from harness.report.forgetting import forgetting

        if name != "lost_won":
            plot = FIGURES.get(FILES.get(name, name))
            return None if plot is None else plot.drawing(self._results)
        folder = self._results.folder
        return None if folder is None else lost_won(forgetting(self._results.rows.records, folder))


def names() -> list[str]:
    """The names of all figures."""
    return [name for name in vars(Plots) if not name.startswith("_") and name not in ("available", "caption")]


def drawable() -> list[str]:
    """`names`, without those whose plug-in is not installed."""
    from harness.report.figures import FIGURES

    return [name for name in names() if FILES.get(name, name) in {*FIGURES, "lost_won"}]
