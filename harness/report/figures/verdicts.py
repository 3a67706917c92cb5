"""The verdicts on the claims of articles."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.report import articles
from harness.report.claims import OPEN, REFUTED, SUPPORTED, Verdict
from harness.report.figures.study_results import StudyResults
from harness.report.figures.style import Drawn, place_titles, plain
from harness.report.tables.entries import ABSENT


def verdicts(study: StudyResults) -> Drawn | None:
    """The verdicts on the claims of each article that the records say something about."""
    judged = {}
    for article in articles.every():
        found = article.verdicts(study.rows.records, study.folder)
        if articles.informative(found):
            judged[article.title] = found
    if not judged:
        return None
    heights = [0.9 + 0.22 * len(found) for found in judged.values()]
    made = Figure(figsize=(7.4, sum(heights)))
    panels = made.subplots(len(judged), height_ratios=heights, squeeze=False)[:, 0]
    for found, axes in zip(judged.values(), panels, strict=True):
        _verdicts(axes, found)
    tallies = "; ".join(f"“{title}”: {articles.tally(found)}" for title, found in judged.items())
    return Drawn(made, f"Verdicts on the claims of {tallies}. Beside each is its effect with a 95% interval.")


def _verdicts(axes: Axes, found: Sequence[Verdict]) -> None:
    titles = place_titles([verdict.place for verdict in found])
    for i, verdict in enumerate(found):
        marker, fill = DECISIONS[verdict.judgement.decision]
        x = list(DECISIONS).index(verdict.judgement.decision)
        axes.plot(x, i, marker=marker, markersize=8, mfc=fill, mec="black", linestyle="")
        effect = articles.effect_text(verdict).strip(ABSENT)
        axes.text(len(DECISIONS) - 0.4, i, effect, va="center", fontsize=8)
    axes.text(len(DECISIONS) - 0.4, -1.35, "effect (95% interval)")
    axes.set_xticks(range(len(DECISIONS)), labels=list(DECISIONS))
    axes.xaxis.tick_top()
    labels = [v.claim.name + (f" ({title})" if title else "") for v, title in zip(found, titles, strict=True)]
    axes.set_yticks(range(len(found)), labels=list(map(plain, labels)))
    axes.set(xlim=(-0.5, 5.6), ylim=(len(found) - 0.5, -0.5))


DECISIONS = {SUPPORTED: ("o", "#0072B2"), REFUTED: ("X", "#D55E00"), OPEN: ("o", "white")}
