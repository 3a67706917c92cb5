"""How far each method is from the best one."""

from __future__ import annotations

from matplotlib.axes import Axes

from harness.report.figures import style
from harness.report.figures.messages import against_best
from harness.report.figures.study_results import BARS, StudyResults
from harness.report.frame import score_name
from harness.report.pairwise import MARGIN, Contest


def differences(study: StudyResults) -> style.Drawn | None:
    """The score of each method minus that of the best one, with its interval and what the tests say."""
    by_place: dict[style.Place, tuple[Contest, str, float]] = {}
    for place in study.places:
        if (score := study.headline(place)) is None:
            continue
        contest = study.contests.get((place, score_name(score)))
        if contest and contest.against_best:
            by_place[place] = (contest, *style.axis_scale(score, study.values(place, score)))
    if not by_place:
        return None
    most = max(len(contest.against_best) for contest, *_ in by_place.values())
    messages = {place: study.answer.plan.title(against_best(contest)) for place, (contest, *_) in by_place.items()}
    figure, panels = style.place_panels(messages, height=1.4 + 0.17 * min(most, BARS))
    for (contest, title, scale), axes in zip(by_place.values(), panels, strict=False):
        _differences(axes, contest, scale)
        unit = title.replace("(%)", "(points)")
        axes.set_xlabel(f"{unit}, minus that of {contest.standings[0].choice.label}")
    style.add_legend(figure, {said: style.legend_point(look, mfc=fill) for said, (look, fill) in LOOKS.items()})
    return style.Drawn(
        figure,
        "Difference from the best method by the score of the data's task, with 95% intervals, paired by item. What the "
        "tests say is corrected for all pairs, so an interval that excludes 0 may belong to an undecided pair. Grey: "
        f"differences of up to {style.PERCENT * MARGIN:g} points, within which methods count as equivalent."
        + style.left_out(by_place),
    )


LOOKS = {
    "different": (style.Look("#D55E00", "X", ""), "#D55E00"),
    "equivalent": (style.Look("#0072B2", "s", ""), "#0072B2"),
    "not decided": (style.Look("#000000", "o", ""), "white"),
}


def _differences(axes: Axes, contest: Contest, scale: float) -> None:
    gaps = list(contest.against_best.items())[:BARS]
    if scale == style.PERCENT:
        axes.axvspan(-style.PERCENT * MARGIN, style.PERCENT * MARGIN, color="0.9", zorder=0)
    axes.axvline(0, color="0.4", linewidth=0.8)
    for y, (other, gap) in enumerate(gaps):
        look, fill = LOOKS[contest.decision(other)]
        error = [[scale * (gap.high - gap.value)], [scale * (gap.value - gap.low)]]  # the sign is turned
        how: style.Style = {"color": look.colour, "marker": look.marker, "mfc": fill, "elinewidth": 0.8}
        axes.errorbar(-scale * gap.value, y, xerr=error, linestyle="", **how)
    style.label_bars(axes, [other for other, _ in gaps])
