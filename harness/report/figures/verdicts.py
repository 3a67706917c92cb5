"""The verdicts on the claims of articles."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from harness.report import articles
from harness.report.claims import OPEN, REFUTED, SUPPORTED, Verdict
from harness.report.figures.study_results import StudyResults
from harness.report.figures.style import Drawn, left_out, place_titles, plain, titled_panels
from harness.report.tables.entries import ABSENT


def verdicts(study: StudyResults) -> Drawn | None:
    """The verdicts on the claims of each article that the records say something about."""
    judged = {article.title: found for article, found in study.judged}
    if not judged:
        return None
    panels = _by_place(judged)
    titles = [f"{title}: {articles.tally(found)}" for title, found in panels.items()]
    made, places = titled_panels(titles, *(0.7 + 0.14 * len(found) for found in panels.values()))
    for found, axes in zip(panels.values(), places, strict=False):
        _verdicts(axes, found)
    tallies = "; ".join(f"“{title}”: {articles.tally(found)}" for title, found in judged.items())
    return Drawn(
        made,
        f"Verdicts on the claims of {tallies}. Beside each is its effect with a 95% interval." + left_out(panels),
    )


def _by_place(judged: Mapping[str, Sequence[Verdict]]) -> dict[str, list[Verdict]]:
    """The verdicts of each article and place, by the panel's title."""
    places = list(dict.fromkeys(verdict.place for found in judged.values() for verdict in found))
    where = dict(zip(places, place_titles(places), strict=True))
    panels = defaultdict(list)
    for title, found in judged.items():
        for verdict in found:
            panels[", ".join(filter(None, [title, where[verdict.place]]))].append(verdict)
    return panels


def _verdicts(axes: Axes, found: Sequence[Verdict]) -> None:
    for i, verdict in enumerate(found):
        marker, fill = DECISIONS[verdict.judgement.decision]
        x = list(DECISIONS).index(verdict.judgement.decision)
        axes.plot(x, i, marker=marker, mfc=fill, mec="black", mew=0.6, linestyle="")
        effect = re.sub(r" points(?= to |\))", "", articles.effect_text(verdict)).strip(ABSENT)
        axes.text(len(DECISIONS) - 0.4, i, effect, va="center", fontsize=6)
    axes.text(len(DECISIONS) - 0.4, -0.9, "effect (95% interval)", fontsize=6)
    axes.set_xticks(range(len(DECISIONS)), labels=list(DECISIONS), rotation=40, ha="left", fontsize=6)
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(found)), labels=[plain(verdict.claim.name, 28) for verdict in found], fontsize=6)
    axes.set(xlim=(-0.5, len(DECISIONS) - 0.5), ylim=(len(found) - 0.5, -0.5))


DECISIONS = {SUPPORTED: ("o", "#0072B2"), REFUTED: ("X", "#D55E00"), OPEN: ("o", "white")}
