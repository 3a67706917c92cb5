"""Records in, figures out, in one style: for each question of the comparison a drawing and what it shows.

    FIGURES["accuracy_memory"](records, folder).figure

Colours are those of Okabe & Ito (Color Universal Design, 2008), told apart with any colour vision; markers, lines and
hatches say the same in grey. A method looks alike in every figure. Drawings have no state outside themselves: pyplot
takes no part, and the same records give the same bytes.
"""

from __future__ import annotations

import io
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence, Sized
from functools import cached_property, wraps
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from harness.record import Record, Score, short
from harness.report import articles
from harness.report.claims import OPEN, REFUTED, SUPPORTED, Verdict
from harness.report.columns import ABSENT, METHODS, Row, group, score_style
from harness.report.forgetting import Comparison, Forgetting, named
from harness.report.frame import KINDS, score_name
from harness.report.headline import FORGOTTEN, LEARNED
from harness.report.pairwise import Contest, Standing, contests, items
from harness.report.select import Choice, select
from harness.report.statistics import Interval, mean_intervals, seeds_interval, summary_interval
from harness.units import count, significant

STYLE = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "errorbar.capsize": 3,
    "figure.constrained_layout.use": True,
    "font.size": 9,
    "grid.color": "0.9",
    "hatch.linewidth": 0.6,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.handlelength": 3,
    "lines.linewidth": 1.4,
    "lines.markersize": 6,
    "savefig.dpi": 150,
    "svg.fonttype": "none",  # text stays text: to be searched, and read out
    "svg.hashsalt": "harness",
    "text.parse_math": False,  # a dollar sign in a name is one
}
COLOURS = ["#000000", "#999999", "#D55E00", "#0072B2", "#56B4E9", "#009E73", "#E69F00", "#CC79A7"]
MARKERS = ["_", "|", "s", "o", "D", "^", "v", "P", "X", "*", "<", ">", "p", "h", "d"]
LINES = [(0, (6, 3)), (0, (1, 2)), "-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (8, 2))]
HATCHES = ["", "///", "..", "xx", "\\\\\\"]
PANELS = 6  # places that a figure shows; more can't be read
LEGEND = 10  # methods that a legend tells apart
BARS = 40


class Drawn(NamedTuple):
    """A figure and one sentence on what it shows; a notebook shows it as a picture."""

    figure: Figure
    caption: str

    def svg(self) -> str:
        """An SVG document without an XML declaration, to be put into HTML as it is."""
        text = self._saved("svg", {"Title": self.caption, "Creator": None, "Date": None, "Format": None}).decode()
        return text[text.index("<svg") :]

    def png(self) -> bytes:
        return self._saved("png", {"Software": None})

    def _repr_png_(self) -> bytes:
        return self.png()

    def _saved(self, kind: str, metadata: dict[str, str | None]) -> bytes:
        file = io.BytesIO()
        with mpl.rc_context(STYLE):
            self.figure.savefig(file, format=kind, metadata=metadata)
        return file.getvalue()


Place = tuple[str, str, str]
Estimated = tuple[float, Interval | None]
Draw = Callable[[Sequence[Record], Path | None], Drawn | None]

FIGURES: dict[str, Draw] = {}
"""By name what draws records, usually those of one study; None where they hold nothing for it.

The second argument is the study's folder, where its items lie; without it intervals are over less.
"""


def drawings(records: Sequence[Record], folder: Path | None) -> dict[str, Drawn]:
    """Every figure that `records` hold something for, by its name in `FIGURES`."""
    study = Study(records, folder)
    found = {name: draw.of(study) for name, draw in FIGURES.items()}
    return {name: drawn for name, drawn in found.items() if drawn}


def svg(records: Sequence[Record], folder: Path | None) -> dict[str, tuple[str, str]]:
    """SVG text and caption of every figure by name, fit to stand together in one HTML page: no two ids are equal."""
    return {
        name: (_with_own_ids(drawn.svg(), name), drawn.caption) for name, drawn in drawings(records, folder).items()
    }


def save(records: Sequence[Record], folder: Path | None, out: Path) -> list[str]:
    """Write NAME.svg and NAME.png of every figure to `out`; the names."""
    found = drawings(records, folder)
    out.mkdir(parents=True, exist_ok=True)
    for name, drawn in found.items():
        (out / f"{name}.svg").write_text(drawn.svg(), encoding="utf-8")
        (out / f"{name}.png").write_bytes(drawn.png())
    return list(found)


def _with_own_ids(text: str, name: str) -> str:
    def own(tag: re.Match) -> str:
        return re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", tag[0])

    return re.sub(r"<[^>]*>", own, text)  # not in texts, whose angle brackets are escaped


# What figures ask of the records


class Study:
    """Records, and what several figures make of them, made once."""

    def __init__(self, records: Sequence[Record], folder: Path | None):
        self.rows, self.folder = group(records), folder

    @cached_property
    def places(self) -> list[Place]:
        return list(dict.fromkeys(row.place for row in self.rows))

    @cached_property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(row.method for row in self.rows))

    @cached_property
    def contests(self) -> dict[tuple[Place, str], Contest]:
        """By place and score."""
        held = contests(self.rows.records, self.folder, self.rows.choices)
        return {(contest.place, contest.score): contest for contest in held}

    @cached_property
    def chosen(self) -> dict[int, Row]:
        """By id the rows that were chosen for their methods."""
        row_of = [row for row in self.rows for _ in row.records]
        rows = [row_of[choice.index[0]] for choice in self.rows.choices if choice.index]
        return {id(row): row for row in rows}

    def finished(self, place: Place) -> list[Row]:
        return [row for row in self.rows if row.place == place and row.finished]

    def shown(self, place: Place) -> list[Row]:
        """Each method's chosen row, or where none could be chosen all that finished."""
        settled = {row.method for row in self.chosen.values() if row.place == place}
        return [row for row in self.finished(place) if id(row) in self.chosen or row.method not in settled]

    def alike(self, *measures: str) -> dict[str, list[Row]]:
        """By title the finished rows that have any of `measures`, apart by the settings of training that were swept.

        What costs memory and time, as a batch's size does, must be equal where they are compared. Of a method it is
        its chosen row; where that was trained otherwise, the first of each rank.
        """
        found = {}
        for place in self.places:
            rows = [row for row in self.finished(place) if any(row.values(name) for name in measures)]
            tuned = [row for row in rows if not _untuned(row)] or rows
            swept = _swept([(row.method, _training(row)) for row in tuned])
            settings = {id(row): {name: of for name, of in _training(row).items() if name in swept} for row in rows}
            for setup in sorted({tuple(sorted(settings[id(row)].items())) for row in tuned}):
                # a model that is not trained has fewer settings, and stands beside all that agree with them
                found[place, setup] = [row for row in rows if settings[id(row)].items() <= dict(setup).items()]
        titles = _titles([place for place, _ in found])
        return {
            ", ".join(filter(None, [title, *(f"train.{name}={of}" for name, of in setup)])): self._one_each(rows)[:BARS]
            for title, ((_, setup), rows) in zip(titles, found.items(), strict=True)
        }

    def _one_each(self, rows: list[Row]) -> list[Row]:
        chosen = {row.method: row for row in rows if id(row) in self.chosen}
        first = {(row.method, row.rank): row for row in reversed(rows) if row.method not in chosen}
        kept = {id(row) for row in (*chosen.values(), *first.values())}
        return [row for row in rows if id(row) in kept]

    def scores(self, place: Place) -> dict[str, Score]:
        """One of each name, of finished rows."""
        return {score_name(s): s for row in self.finished(place) for record in row.measured for s in record.scores}

    def headline(self, place: Place) -> Score | None:
        """The score that tells what was learned: that of the data's own task, else the first."""
        scores = self.scores(place)
        order = [LEARNED.get(place[2]), *(name for name in scores if name not in FORGOTTEN), *scores]
        return next((scores[name] for name in order if name in scores), None)

    def aside(self, place: Place, gained: Score | None) -> Score | None:
        """The score of another task that tells best what was forgotten."""
        scores = {name: s for name, s in self.scores(place).items() if gained and s.task != gained.task}
        return next((scores[name] for name in (*FORGOTTEN, *scores) if name in scores), None)

    def values(self, place: Place, score: Score) -> list[float]:
        contest = self.contests.get((place, score_name(score)))
        return [standing.value for standing in contest.standings] if contest else []

    def change(self, place: Place, score: Score, method: str) -> Interval | None:
        """By how much `method` scores more than base; ends are nan where they are not paired, None where one lacks."""
        contest = self.contests.get((place, score_name(score)))
        values = {standing.choice.label: standing.value for standing in contest.standings} if contest else {}
        if method not in values or "base" not in values:
            return None
        if gap := contest.differences.get((method, "base")):
            return Interval(gap.value, gap.low, gap.high)
        if gap := contest.differences.get(("base", method)):
            return Interval(-gap.value, -gap.high, -gap.low)
        return Interval(values[method] - values["base"], np.nan, np.nan)

    def standing(self, row: Row, name: str) -> Standing | None:
        contest = self.contests.get((row.place, name))
        return next((s for s in contest.standings if s.choice.label == row.method), None) if contest else None

    def interval(self, row: Row, name: str) -> Interval | None:
        """A chosen row's as the table has it; any other's without its items."""
        if id(row) in self.chosen and (standing := self.standing(row, name)):
            return standing.interval
        scores = [score for record in row.measured for score in record.scores if score_name(score) == name]
        return summary_interval([score.value for score in scores], [score.stderr for score in scores])

    def estimate(self, choice: Choice, score: Score | None) -> Estimated | None:
        """A choice's `score`, of None its validation loss, with its interval; None where not every seed has it."""
        records = [self.rows.records[i] for i in choice.index]
        if score is None:
            losses = [record.validation[-1].loss for record in records if record.validation]
            return (choice.loss, seeds_interval(losses)) if choice.loss is not None else None
        name = score_name(score)
        scores = [s for record in records for s in record.scores if score_name(s) == name]
        if len(scores) < len(records):
            return None
        if self.folder and (found := items(self.folder, records, name)):
            interval = mean_intervals([found[0]])[0]
        else:
            interval = summary_interval([s.value for s in scores], [s.stderr for s in scores])
        return float(np.mean([s.value for s in scores])), interval


def figure(draw: Callable[[Study], Drawn | None]) -> Draw:
    """Registers a figure in `FIGURES` under its function's name."""

    def styled(study: Study) -> Drawn | None:
        with mpl.rc_context(STYLE):
            return draw(study)

    @wraps(draw)
    def of_records(records: Sequence[Record], folder: Path | None = None) -> Drawn | None:
        return styled(Study(records, folder))

    of_records.of = styled
    FIGURES[draw.__name__] = of_records
    return of_records


# How things look


class Look(NamedTuple):
    colour: str
    marker: str
    line: Any


def looks(methods: Iterable[str]) -> dict[str, Look]:
    """A look for each method: known ones have theirs everywhere, others the next ones by name."""
    others = sorted(set(methods) - set(METHODS))
    parts = zip([*METHODS, *others], cycle(COLOURS), cycle(MARKERS), cycle(LINES), strict=False)
    return {method: Look(*look) for method, *look in parts}


def plain(text: str, most: int = 36) -> str:
    """A name as a drawing can hold it: without control characters, which XML forbids, and not longer than `most`."""
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    return text if len(text) <= most else text[: most - 1] + "…"


def _panels(places: Sequence[Place], width: float = 6.4, height: float = 4.0) -> tuple[Figure, list[Axes]]:
    """A figure with one panel a place."""
    return _titled_panels(_titles(places), width, height)


def _titles(places: Sequence[Place]) -> list[str]:
    """What tells the places apart, in full: study, model and data, less what is the same of all."""
    varies = [len(set(parts)) > 1 for parts in zip(*places, strict=True)]
    return [", ".join(part for part, shown in zip(place, varies, strict=True) if shown) for place in places]


def _titled_panels(titles: Sequence[str], width: float = 6.4, height: float = 4.0) -> tuple[Figure, list[Axes]]:
    titles = titles[:PANELS]
    across = min(2, len(titles))
    down = -(-len(titles) // across)
    made = Figure(figsize=(width * across, height * down))
    axes = list(made.subplots(down, across, squeeze=False).flat)
    for panel in axes[len(titles) :]:
        panel.remove()
    for panel, title in zip(axes, titles, strict=False):
        panel.set_title(plain(title))
    return made, axes[: len(titles)]


def _left_out(panels: Sized) -> str:
    """What a caption says of panels that there was no room for."""
    return f" Of {len(panels)} panels the first {PANELS} are shown." if len(panels) > PANELS else ""


def _legend(axes: Axes, handles: Sequence, labels: Sequence[str]) -> None:
    """Beside the panel, where it hides nothing."""
    axes.legend(handles, list(map(plain, labels)), loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0)


def _point(axes: Axes, x: float, y: float, interval: Interval | None, scale: float, look: Look, **style: Any) -> Any:
    """A marker with its interval; all are multiplied by `scale`."""
    error = _error(y, interval, scale) if interval else None
    return axes.errorbar(x, scale * y, yerr=error, marker=look.marker, color=look.colour, linestyle="", **style)


def _error(value: float, interval: Interval, scale: float) -> list[list[float]] | None:
    """The distances to an interval's ends, as matplotlib wants them; None where it has no ends."""
    if np.isnan(interval.low):
        return None
    least, most = (0.0, 1.0) if scale == PERCENT else (-np.inf, np.inf)  # a share is not beyond, whatever Student says
    ends = (value - max(least, interval.low), min(most, interval.high) - value)
    return [[scale * max(0.0, end)] for end in ends]  # rounding may cross them


def _untuned(row: Row) -> bool:
    parameters = row.measured[0].parameters
    return parameters is not None and parameters.trainable == 0


def _swept(tries: Sequence[tuple[str, dict[str, str]]]) -> list[str]:
    """The settings that a method was tried with in several values; what is a method's own is none."""
    values = defaultdict(set)
    for method, settings in tries:
        for name, value in settings.items():
            values[name, method].add(value)
    return sorted({name for (name, _), of in values.items() if len(of) > 1})


def _training(row: Row) -> dict[str, str]:
    """The settings of training that decide what a step costs, or how many there are."""
    train = row.records[0].cell.settings.get("train")  # settings are a free dict
    return {name: str(of) for name, of in train.items() if name != "seed"} if isinstance(train, dict) else {}


def _scaled(score: Score, values: Sequence[float]) -> tuple[str, float]:
    """The name of an axis for `score`, and what its values are to be multiplied by: 100 if they are shares."""
    header, _ = score_style(score, values)
    return plain(header, 60), PERCENT if "(%)" in header else 1.0


def _label(row: Row, rows: Sequence[Row]) -> str:
    """The method, with its setting where `rows` have it in several."""
    several = sum(other.method == row.method for other in rows) > 1
    return f"{row.method} {row.setting}" if several and row.setting else row.method


# Figures


@figure
def accuracy_memory(study: Study) -> Drawn | None:
    """What each setting scores against the memory it trains in, with the chosen ones that no other beats in both."""
    measure = next((name for name in MEMORY if any(row.finished and row.mean(name) for row in study.rows)), None)
    if measure is None:
        return None
    found = {}
    for place in study.places:
        if score := study.headline(place):
            tuned = [row for row in study.finished(place) if row.mean(measure) and score_name(score) in row.scores]
            found |= {place: (tuned, score)} if tuned else {}
    if not found:
        return None
    made, panels = _panels(list(found))
    for (tuned, score), axes in zip(found.values(), panels, strict=False):
        _accuracy_memory(study, axes, tuned, score, measure)
        axes.set_xlabel(f"{MEMORY[measure]} (GiB)")
    return Drawn(
        made,
        f"Score against {MEMORY[measure]}: bars are 95% intervals, small hollow markers settings that were not chosen, "
        "the line is the Pareto front, of chosen settings that no other beats in both; dashed is the untuned model."
        + _left_out(found),
    )


PERCENT = 100.0  # of a share
HOLLOW = {"mfc": "white", "alpha": 0.6, "ms": 4, "capsize": 0}
MEMORY = {
    "train_allocated_peak": "peak train memory",
    "train_reserved_p99": "memory reserved in 99% of training steps",
}


def _accuracy_memory(study: Study, axes: Axes, rows: list[Row], score: Score, measure: str) -> None:
    name = score_name(score)
    untuned = [row for row in study.finished(rows[0].place) if _untuned(row) and name in row.scores]
    title, scale = _scaled(score, [row.scores[name].value for row in [*rows, *untuned]])
    look = looks(study.methods)
    points = [(row.mean(measure) / 2**30, row.scores[name].value) for row in rows]
    # a setting that was not chosen would be on the front for its test score alone
    judged = {id(row) for row in study.shown(rows[0].place)}
    shown = [i for i, row in enumerate(rows) if id(row) in judged]
    front = [shown[i] for i in pareto([points[i] for i in shown], score.higher_is_better)]
    told_apart = len({row.method for row in rows}) <= LEGEND
    handles = {}
    for i, row in enumerate(rows):
        if told_apart:
            of, style = look[row.method], {} if i in shown else HOLLOW
        else:
            of, style = (Look("black", "o", "-"), {}) if i in front else (Look("0.6", ".", "-"), {"elinewidth": 0.8})
        drawn = _point(axes, *points[i], study.interval(row, name), scale, of, **style)
        if i in shown or row.method not in handles:
            handles[row.method] = drawn
    steps = [(points[i][0], scale * points[i][1]) for i in front]
    line = axes.plot(*zip(*steps, strict=True), drawstyle="steps-post", color="0.4", linewidth=1, zorder=1)[0]
    if not told_apart:
        handles = {}
        for number, i in enumerate(front, 1):
            side = {"xytext": (6, 0), "ha": "left"} if i == front[-1] else {"xytext": (-6, 0), "ha": "right"}
            axes.annotate(str(number), steps[number - 1], textcoords="offset points", va="center", **side)
            handles[f"{number}  {_label(rows[i], rows)}"] = Line2D([], [], color="black", marker="o", linestyle="")
        handles["others"] = Line2D([], [], color="0.6", marker=".", linestyle="")
    for row in untuned:
        style = {"color": look[row.method].colour, "linestyle": look[row.method].line}
        handles[row.method] = axes.axhline(scale * row.scores[name].value, **style)
    axes.set_ylabel(title)
    axes.margins(x=0.12, y=0.1)
    _legend(axes, [line, *handles.values()], ["Pareto front", *handles])


def pareto(points: Sequence[tuple[float, float]], higher_is_better: bool = True) -> list[int]:
    """Which points (cost, score) no other has both cheaper and better, cheapest first."""
    sign = 1 if higher_is_better else -1
    front: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -sign * points[i][1])):
        if not front or sign * points[i][1] > sign * points[front[-1]][1]:
            front.append(i)
    return front


@figure
def rank_sweep(study: Study) -> Drawn | None:
    """What each method scores at each rank, at the learning rate that was chosen for that rank."""
    ranked = defaultdict(list)
    for choice in select(study.rows.data, ("method", "rank")):
        imported = any(study.rows.records[i].source for i in choice.index)  # single experiments, and no sweep
        if choice.rank is not None and not imported:
            ranked[choice.place, choice.method].append(choice)
    found = defaultdict(dict)
    for (place, method), choices in ranked.items():
        score = study.headline(place)
        points = {choice.rank: of for choice in choices if (of := study.estimate(choice, score))}
        if len(points) > 1:
            found[place][method] = points
    if not found:
        return None
    made, panels = _panels(list(found))
    look = looks(study.methods)
    for (place, curves), axes in zip(found.items(), panels, strict=False):
        score = study.headline(place)
        levels = {
            choice.method: of[0]
            for choice in study.rows.choices
            if choice.place == place and choice.method in UNRANKED and (of := study.estimate(choice, score))
        }
        title, scale = "validation loss (nats per token)", 1.0
        if score:
            values = [value for points in curves.values() for value, _ in points.values()]
            title, scale = _scaled(score, [*values, *levels.values()])
        handles = _curves(axes, curves, scale, look)
        for method, value in levels.items():
            style = {"color": look[method].colour, "linestyle": look[method].line, "linewidth": 1}
            handles[method] = axes.axhline(scale * value, **style)
        axes.set(xlabel="rank", ylabel=title)
        _legend(axes, list(handles.values()), list(handles))
    return Drawn(
        made,
        "Score by rank, of methods with several, each rank at its learning rate of least validation loss; bars are 95% "
        "intervals, and level lines what has no rank." + _left_out(found),
    )


UNRANKED = ("base", "full")


def _curves(axes: Axes, curves: dict[str, dict[int, Estimated]], scale: float, look: dict[str, Look]) -> dict[str, Any]:
    """Draws values by rank; the handle of each method."""
    handles = {}
    for i, (method, points) in enumerate(curves.items()):
        aside = 2 ** (0.06 * (i - (len(curves) - 1) / 2))  # or intervals hide each other
        points = sorted(points.items())
        x, y = [aside * rank for rank, _ in points], [scale * value for _, (value, _) in points]
        axes.plot(x, y, color=look[method].colour, linestyle=look[method].line)
        for rank, (value, interval) in points:
            handles[method] = _point(axes, aside * rank, value, interval, scale, look[method])
    ranks = sorted({rank for points in curves.values() for rank in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ranks, labels=[str(rank) for rank in ranks])
    axes.minorticks_off()
    return handles


@figure
def lr_methods(study: Study) -> Drawn | None:
    """The validation loss of each method at each learning rate, at the rank that served it best there."""
    tried = defaultdict(list)
    for choice in select(study.rows.data, ("method", "lr")):
        if choice.key[1] is not None:
            tried[choice.place].append(choice)
    found = {
        place: choices
        for place, choices in tried.items()
        if len(choices) > len({choice.method for choice in choices}) and any(c.loss is not None for c in choices)
    }
    if not found:
        return None
    made, panels = _panels(list(found))
    for choices, axes in zip(found.values(), panels, strict=False):
        _lr_methods(axes, choices, study.rows.choices)
    return Drawn(
        made,
        "Validation loss (nats per token, mean over seeds) by method and learning rate, the darker the lower: a frame "
        "marks what was chosen for the method, hatching what never finished with every seed." + _left_out(found),
    )


def _lr_methods(axes: Axes, choices: list[Choice], best: Sequence[Choice]) -> None:
    methods = list(dict.fromkeys(choice.method for choice in choices))
    rates = sorted({choice.key[1] for choice in choices})
    losses = np.full((len(methods), len(rates)), np.nan)
    for choice in choices:
        losses[methods.index(choice.method), rates.index(choice.key[1])] = (
            np.nan if choice.loss is None else choice.loss
        )
    known = losses[~np.isnan(losses)]
    # up to the third quartile: a rate that nearly diverged must not make all others look alike
    norm = Normalize(known.min(), max(np.quantile(known, 0.75), known.min() + 1e-9))
    axes.imshow(losses, cmap="cividis", norm=norm, aspect="auto")
    framed = {(choice.method, choice.lr) for choice in best if choice.place == choices[0].place}
    for choice in choices:
        x, y = rates.index(choice.key[1]), methods.index(choice.method)
        style: dict[str, Any] = {"color": "black"}
        if choice.loss is None:
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor="0.95", edgecolor="0.6", hatch="////"))
            style["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
        elif norm(choice.loss) < 0.5:
            style["color"] = "white"
        if (choice.method, choice.key[1]) in framed:
            style["fontweight"] = "bold"
            for colour, width in (("black", 4), ("white", 1.5)):  # seen on dark and on light
                frame = {"fill": False, "edgecolor": colour, "linewidth": width}
                axes.add_patch(Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, **frame))
        text = ", ".join(choice.lost) if choice.loss is None else significant(choice.loss)
        axes.text(x, y, text, ha="center", va="center", fontsize=8, **style)
    axes.set_xticks(range(len(rates)), labels=[short(value) for value in rates])
    axes.set_yticks(range(len(methods)), labels=list(map(plain, methods)))
    axes.set_xlabel("learning rate")
    axes.grid(False)


class Curve(NamedTuple):
    tokens: np.ndarray
    seconds: np.ndarray
    losses: np.ndarray


@figure
def loss(study: Study) -> Drawn | None:
    """Loss against tokens and against time, each method in its chosen setting."""
    kind = next((kind for kind, curve in LOSSES.items() if any(curve(row) for row in study.rows if row.finished)), None)
    if kind is None:
        return None
    curves = {place: [(row, of) for row in study.shown(place) if (of := LOSSES[kind](row))] for place in study.places}
    found = [place for place, drawn in curves.items() if drawn]
    made, panels = _panels([place for place in found for _ in range(2)], width=4.6, height=3.6)
    look = looks(study.methods)
    for place, by_tokens, by_time in zip(found, panels[::2], panels[1::2], strict=False):
        handles = []
        for i, (row, (tokens, seconds, losses)) in enumerate(curves[place]):
            of = look[row.method]
            every = (i % 5, 5) if len(losses) > 10 else 1
            style = {"color": of.colour, "linestyle": of.line, "marker": of.marker, "markevery": every, "markersize": 5}
            handles += by_tokens.plot(tokens, losses, **style)
            by_time.plot(seconds, losses, **style)
        by_tokens.xaxis.set_major_locator(MaxNLocator(5))
        by_tokens.xaxis.set_major_formatter(lambda tokens, _: count(tokens))
        by_tokens.set(xlabel="raw tokens", ylabel=f"{kind} loss (nats per token)")
        by_time.set(xlabel="seconds of training steps")
        rows = [row for row, _ in curves[place]]
        _legend(by_time, handles, [_label(row, rows) for row in rows])
    return Drawn(
        made,
        f"{kind.capitalize()} loss, mean over seeds, against the tokens trained on and against the time that training "
        f"steps took; {'held-out answers' if kind == 'validation' else 'each point is the mean of a stretch of steps'}."
        + _left_out(panels),
    )


def validation_curve(row: Row) -> Curve | None:
    """Tokens, seconds of training and mean loss over seeds, at each validation; None with fewer than three."""
    records = [record for record in row.measured if record.train and len(record.validation) > 2]
    records = [r for r in records if len(r.train.step_seconds) >= r.validation[-1].step]
    if not records:
        return None
    steps = [point.step for point in records[0].validation]
    records = [record for record in records if [point.step for point in record.validation] == steps]
    seconds = [np.concatenate([[0.0], np.cumsum(record.train.step_seconds)])[steps] for record in records]
    tokens, losses = ([[getattr(p, of) for p in r.validation] for r in records] for of in ("tokens", "loss"))
    return Curve(*(np.mean(values, axis=0) for values in (tokens, seconds, losses)))


def training_curve(row: Row, parts: int = 20) -> Curve | None:
    """Tokens and seconds at the end of each of up to `parts` stretches of steps, and their mean loss, over seeds.

    None where no seed knows its steps. A seed that took fewer of them than others is left out.
    """
    trains = [record.train for record in row.measured if record.train and len(record.train.loss) > 1]
    steps = max((len(train.loss) for train in trains), default=0)
    trains = [train for train in trains if len(train.loss) == len(train.step_seconds) == steps]
    if not trains:
        return None
    stretches = np.array_split(np.arange(steps), min(parts, steps))
    ends = [stretch[-1] for stretch in stretches]
    tokens = np.mean([[train.loss[i].tokens for i in ends] for train in trains], axis=0)
    seconds = np.mean([np.cumsum(train.step_seconds)[ends] for train in trains], axis=0)
    losses = np.mean([[point.loss for point in train.loss] for train in trains], axis=0)
    return Curve(tokens, seconds, np.array([losses[stretch].mean() for stretch in stretches]))


LOSSES = {"validation": validation_curve, "training": training_curve}


@figure
def memory(study: Study) -> Drawn | None:
    """What the peak memory of a training step is made of."""
    found = study.alike("peak_weights")
    if not found:
        return None
    made, panels = _bar_panels(found, per_bar=0.28)
    for rows, axes in zip(found.values(), panels, strict=False):
        left = np.zeros(len(rows))
        handles = []
        for kind, colour, hatch in zip(KINDS, KIND_COLOURS, HATCHES, strict=True):
            sizes = np.array([row.mean(f"peak_{kind}") / 2**30 for row in rows])
            style = {"color": colour, "hatch": hatch, **EDGE}
            handles.append(axes.barh(range(len(rows)), sizes, left=left, **style))
            left += sizes
        _bar_axes(axes, [_label(row, rows) + (" (forward pass)" if _untuned(row) else "") for row in rows])
        axes.set_xlabel("GiB of live tensors at the peak")
        _legend(axes, handles, KINDS)
    return Drawn(
        made,
        "Live tensors at the peak of a training step by what they hold; gradients may be freed by then, and an untuned "
        "model has a forward pass alone." + _left_out(found),
    )


KIND_COLOURS = ["#0072B2", "#F0E442", "#D55E00", "#56B4E9", "#FFFFFF"]


@figure
def throughput(study: Study) -> Drawn | None:
    """How many tokens a second each method trains on, and writes when it answers."""
    found = {(title, part): rows for part, measures in RATES.items() for title, rows in study.alike(*measures).items()}
    if not found:
        return None
    titles = {title for title, _ in found}
    named = {part if len(titles) == 1 else f"{title}: {part}": rows for (title, part), rows in found.items()}
    made, panels = _bar_panels(named, per_bar=0.4)
    for ((_, part), rows), axes in zip(found.items(), panels, strict=False):
        present = {name: said for name, said in RATES[part].items() if any(row.values(name) for row in rows)}
        handles = []
        for i, (measure, (colour, hatch)) in enumerate(zip(present, RATE_LOOKS, strict=False)):
            thick = 0.8 / len(present)
            at = [(j + (i - (len(present) - 1) / 2) * thick, row.values(measure)) for j, row in enumerate(rows)]
            at = [(y, values) for y, values in at if values]
            means = [float(np.mean(values)) for _, values in at]
            spans = [
                seeds_interval(values) or Interval(mean, mean, mean)
                for (_, values), mean in zip(at, means, strict=True)
            ]
            style = {"color": colour, "hatch": hatch, **EDGE}
            if any(span.low < span.high for span in spans):
                style["xerr"] = np.array([[span.value - span.low, span.high - span.value] for span in spans]).T
            handles.append(axes.barh([y for y, _ in at], means, thick, **style))
        _bar_axes(axes, [_label(row, rows) for row in rows])
        axes.set_xlabel("tokens/s")
        _legend(axes, handles, list(present.values()))
    return Drawn(
        made,
        "Raw tokens a second in training, by the median step and over all steps, and tokens a second written in "
        "answering; intervals are over seeds (95%), where there are several." + _left_out(found),
    )


RATES = {
    "training": {"tokens_per_second_steady": "median step", "tokens_per_second_amortised": "all steps"},
    "decoding": {
        "base_decode_tokens_per_second": "without adapter",
        "unmerged_decode_tokens_per_second": "unmerged",
        "merged_decode_tokens_per_second": "merged",
    },
}
EDGE = {"edgecolor": "black", "linewidth": 0.5}


def _bar_panels(found: dict[str, list], per_bar: float) -> tuple[Figure, list[Axes]]:
    """Titled panels of horizontal bars, high enough for the panel with most of them."""
    most = max(map(len, found.values()))
    return _titled_panels(list(found), height=max(2.0, 0.8 + per_bar * most))


def _bar_axes(axes: Axes, labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels=list(map(plain, labels)))
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.grid(axis="y", visible=False)


RATE_LOOKS = [("#0072B2", ""), ("#F0E442", "///"), ("#FFFFFF", "..")]


@figure
def forgetting(study: Study) -> Drawn | None:
    """What each method lost of what the base knew against what it gained on the task it was tuned for."""
    found = {}
    for place in study.places:
        gained = study.headline(place)
        kept = study.aside(place, gained)
        tuned = list(dict.fromkeys(row.method for row in study.finished(place) if not _untuned(row)))
        changes = {
            method: both
            for method in tuned
            if kept and None not in (both := tuple(study.change(place, score, method) for score in (gained, kept)))
        }
        found |= {place: (gained, kept, changes)} if changes else {}
    if not found:
        return None
    made, panels = _panels(list(found))
    look = looks(study.methods)
    for (place, (gained, kept, changes)), axes in zip(found.items(), panels, strict=False):
        names, scales = zip(*(_scaled(score, study.values(place, score)) for score in (gained, kept)), strict=True)
        handles = []
        for method, (x, y) in changes.items():
            of = look[method]
            style = {"color": of.colour, "marker": of.marker, "mfc": "none", "ms": 8, "elinewidth": 0.8, "alpha": 0.9}
            errors = {"xerr": _error(x.value, x, scales[0]), "yerr": _error(y.value, y, scales[1])}
            handles.append(axes.errorbar(x.value * scales[0], y.value * scales[1], linestyle="", **errors, **style))
        axes.axhline(0, color="0.4", linewidth=0.8)
        axes.axvline(0, color="0.4", linewidth=0.8)
        x_name, y_name = (name.replace("(%)", "(points)") for name in names)
        axes.set(xlabel=f"change of {x_name}", ylabel=f"change of {y_name}")
        if not gained.higher_is_better:
            axes.invert_xaxis()
        if not kept.higher_is_better:
            axes.invert_yaxis()
        _legend(axes, handles, list(changes))
    return Drawn(
        made,
        "Change from the untuned base: to the right what was gained on the task, downwards what was forgotten; bars "
        "are 95% intervals, paired by item." + _left_out(found),
    )


@figure
def verdicts(study: Study) -> Drawn | None:
    """The verdicts on the claims of each article that the records say something about."""
    judged = {}
    for article in articles.every():
        found = article.verdicts(study.rows.records, study.folder)
        if any(verdict.judgement.records for verdict in found):
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
    titles = _titles([verdict.place for verdict in found])
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


# Of what `harness forgetting` compares


def lost_won(found: Forgetting) -> Drawn | None:
    """Which share of the items each method lost of what the base had right, and which it won; None without any."""
    scores = dict.fromkeys((c.place, c.score) for c in found.comparisons)
    if not scores:
        return None
    wheres = _titles([place for place, _ in scores])
    titles = [f"{where}: {named(of)}" if where else named(of) for where, (_, of) in zip(wheres, scores, strict=True)]
    grouped = [[c for c in found.comparisons if (c.place, c.score) == of] for of in scores]
    with mpl.rc_context(STYLE):
        made, panels = _bar_panels(dict(zip(titles, grouped, strict=True)), per_bar=0.3)
        for of_it, axes in zip(grouped, panels, strict=False):
            _lost_won(axes, of_it)
    return Drawn(
        made,
        "Items that the untuned base had right and the tuned model has wrong (lost), and the other way round (won); "
        "the change is won less lost, with its 95% interval, paired by item." + _left_out(scores),
    )


def _lost_won(axes: Axes, compared: list[Comparison]) -> None:
    at, shares = range(len(compared)), [PERCENT / c.total.items for c in compared]
    lost = [-c.total.lost * share for c, share in zip(compared, shares, strict=True)]
    won = [c.total.won * share for c, share in zip(compared, shares, strict=True)]
    handles = [axes.barh(at, lost, color="#D55E00", **EDGE), axes.barh(at, won, color="#56B4E9", hatch="..", **EDGE)]
    style = {"marker": "D", "color": "black", "mfc": "white", "ms": 4, "linestyle": ""}
    for y, change in enumerate(c.total.change for c in compared):
        if change:
            value, *ends = (PERCENT * end for end in change[:3])
            handles[2:] = [axes.errorbar(value, y, xerr=[[abs(value - end)] for end in ends], **style)]
    axes.axvline(0, color="0.4", linewidth=0.8)
    _bar_axes(axes, [c.label for c in compared])
    axes.set_xlabel("% of the items")
    _legend(axes, handles, ["lost", "won", "change"])
