"""Records in, figures out, in one style: for each question of the comparison a drawing and what it shows.

    FIGURES["accuracy_memory"](records, folder).figure

Colours are those of Okabe & Ito (Color Universal Design, 2008), told apart with any colour vision; markers, lines and
hatches say the same in grey. A method looks alike in every figure. Drawings have no state outside themselves: pyplot
takes no part, and the same records give the same bytes.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, wraps
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from harness.record import Record, Score, short
from harness.report import claims
from harness.report.columns import METHODS, Row, group, score_style
from harness.report.frame import KINDS, score_name
from harness.report.select import Choice, select
from harness.report.standings import Contest, Standing, contests, items
from harness.report.stats import Interval, mean_intervals, seeds_interval, summary_interval

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
LINES = ["-", (0, (1, 1)), "-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1, 1, 1)), (0, (8, 2))]
HATCHES = ["", "////", "....", "xxxx", "\\\\\\\\"]
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
    def places(self) -> list[tuple[str, str, str]]:
        return list(dict.fromkeys(row.place for row in self.rows))

    @cached_property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(row.method for row in self.rows))

    @cached_property
    def contests(self) -> dict[tuple[tuple[str, str, str], str], Contest]:
        """By place and score."""
        held = contests(self.rows.records, self.folder, self.rows.choices)
        return {(contest.place, contest.score): contest for contest in held}

    @cached_property
    def chosen(self) -> dict[int, Row]:
        """By id the rows that were chosen for their methods."""
        row_of = [row for row in self.rows for _ in row.records]
        rows = [row_of[choice.index[0]] for choice in self.rows.choices if choice.index]
        return {id(row): row for row in rows}

    def shown(self, place: tuple[str, str, str]) -> list[Row]:
        """Each method's chosen row, or where none could be chosen all that finished."""
        here = [row for row in self.rows if row.place == place and row.finished]
        settled = {row.method for row in here if id(row) in self.chosen}
        return [row for row in here if id(row) in self.chosen or row.method not in settled]

    def headline(self, place: tuple[str, str, str]) -> Score | None:
        """The score that tells what was learned: that of the data's own task, else the first."""
        scores = {score_name(s): s for row in self.rows if row.place == place for r in row.measured for s in r.scores}
        aside = (claims.MMLU, claims.PLAIN_TEXT)
        order = [claims.TASKS.get(place[2]), *(name for name in scores if name not in aside), *scores]
        return next((scores[name] for name in order if name in scores), None)

    def standing(self, row: Row, name: str) -> Standing | None:
        contest = self.contests.get((row.place, name))
        return next((s for s in contest.standings if s.choice.label == row.method), None) if contest else None

    def interval(self, row: Row, name: str) -> Interval | None:
        """A chosen row's as the table has it; any other's without its items."""
        if id(row) in self.chosen and (standing := self.standing(row, name)):
            return standing.interval
        scores = [score for record in row.measured for score in record.scores if score_name(score) == name]
        return summary_interval([score.value for score in scores], [score.stderr for score in scores])

    def estimate(self, choice: Choice, score: Score | None) -> tuple[float, Interval | None] | None:
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


def plain(text: str) -> str:
    """A name as a drawing can hold it: without control characters, which XML forbids, and not longer than a line."""
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    return text if len(text) <= 48 else text[:47] + "…"


def _panels(
    places: Sequence[tuple[str, str, str]], width: float = 6.4, height: float = 4.0
) -> tuple[Figure, list[Axes]]:
    """A figure with one panel a place, titled where there are several."""
    places = places[:PANELS]
    across = min(2, len(places))
    down = -(-len(places) // across)
    made = Figure(figsize=(width * across, height * down))
    axes = list(made.subplots(down, across, squeeze=False).flat)
    for panel in axes[len(places) :]:
        panel.remove()
    for panel, (study, model, data) in zip(axes, places, strict=False):
        several_studies = len({place[0] for place in places}) > 1
        if len(places) > 1:
            panel.set_title(plain(", ".join([study] * several_studies + [model, data])))
    return made, axes[: len(places)]


def _caption(text: str, places: Sequence) -> str:
    left = len(places) - PANELS
    return text + (f" The first {PANELS} of {len(places)} models and data sets." if left > 0 else "")


def _legend(axes: Axes, handles: Sequence, labels: Sequence[str]) -> None:
    """Beside the panel, where it hides nothing."""
    axes.legend(handles, list(map(plain, labels)), loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0)


def _point(axes: Axes, x: float, y: float, interval: Interval | None, scale: float, look: Look, **style: Any) -> Any:
    """A marker with its interval; all are multiplied by `scale`."""
    error = [[scale * (y - interval.low)], [scale * (interval.high - y)]] if interval else None
    return axes.errorbar(x, scale * y, yerr=error, marker=look.marker, color=look.colour, linestyle="", **style)


def _untuned(row: Row) -> bool:
    parameters = row.measured[0].parameters
    return parameters is not None and parameters.trainable == 0


def _scaled(score: Score, values: Sequence[float]) -> tuple[str, float]:
    """The name of an axis for `score`, and what its values are to be multiplied by: 100 if they are shares."""
    header, _ = score_style(score, values)
    return plain(header), 100.0 if "(%)" in header else 1.0


def _label(row: Row, rows: Sequence[Row]) -> str:
    """The method, with its setting where `rows` have it in several."""
    several = sum(other.method == row.method for other in rows) > 1
    return f"{row.method} {row.setting}" if several and row.setting else row.method


# Figures


@figure
def accuracy_memory(study: Study) -> Drawn | None:
    """What each setting scores against the memory it trains in, with the settings that none beats in both."""
    measure, said = next(
        (
            (measure, said)
            for measure, said in MEMORY.items()
            if any(row.finished and row.mean(measure) is not None for row in study.rows)
        ),
        (None, ""),
    )
    score_of = {place: score for place in study.places if (score := study.headline(place))}
    points = {
        place: [
            row
            for row in study.rows
            if row.place == place and row.finished and row.mean(measure) is not None and score_name(score) in row.scores
        ]
        for place, score in score_of.items()
        if measure
    }
    places = [place for place, rows in points.items() if rows]
    if not places:
        return None
    made, panels = _panels(places)
    for place, axes in zip(places, panels, strict=False):
        _accuracy_memory(study, axes, points[place], score_of[place], measure)
        axes.set_xlabel(f"{said} (GiB)")
    return Drawn(
        made,
        _caption(
            f"Score against {said}: bars are 95% intervals, hollow markers settings that were not chosen, and the line "
            "is the Pareto front, of settings that none beats in both; dashed is the untuned model.",
            places,
        ),
    )


MEMORY = {
    "train_allocated_peak": "peak train memory",
    "train_reserved_p99": "memory reserved in 99% of training steps",
}


def _accuracy_memory(study: Study, axes: Axes, rows: list[Row], score: Score, measure: str) -> None:
    name = score_name(score)
    untuned = [
        row
        for row in study.rows
        if row.place == rows[0].place and row.finished and _untuned(row) and name in row.scores
    ]
    title, scale = _scaled(score, [row.scores[name].value for row in [*rows, *untuned]])
    look = looks(row.method for row in study.rows)
    front = pareto([(row.mean(measure), row.scores[name].value) for row in rows], score.higher_is_better)
    methods = list(dict.fromkeys(row.method for row in rows))
    told_apart = len(methods) <= LEGEND
    handles = {}
    for i, row in enumerate(rows):
        chosen = id(row) in study.chosen
        of = (
            look[row.method]
            if told_apart
            else Look(COLOURS[3] if i in front else "0.6", "o" if i in front else ".", "-")
        )
        style = {} if chosen or not told_apart else {"mfc": "white", "alpha": 0.6, "ms": 4, "capsize": 0}
        drawn = _point(
            axes, row.mean(measure) / 2**30, row.scores[name].value, study.interval(row, name), scale, of, **style
        )
        if chosen or row.method not in handles:
            handles[row.method] = drawn
    steps = [(rows[i].mean(measure) / 2**30, scale * rows[i].scores[name].value) for i in front]
    line = axes.plot(*zip(*steps, strict=True), drawstyle="steps-post", color="0.4", linewidth=1, zorder=1)[0]
    for row in untuned:
        handles[row.method] = axes.axhline(
            scale * row.scores[name].value,
            color=look[row.method].colour,
            linestyle="--" if row.method == "base" else ":",
        )
    axes.set_ylabel(title)
    axes.margins(x=0.12, y=0.1)
    if told_apart:
        _legend(axes, [*handles.values(), line], [*handles, "Pareto front"])
    else:
        for i in front:
            row = rows[i]
            at = (row.mean(measure) / 2**30, scale * row.scores[name].value)
            axes.annotate(plain(_label(row, rows)), at, xytext=(4, 4), textcoords="offset points", fontsize=7)
        _legend(axes, [line], ["Pareto front"])


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
    rows = study.rows
    choices = [choice for choice in select(rows.data, ("method", "rank")) if choice.index]
    swept = [
        place
        for place in study.places
        if any(len({c.rank for c in choices if c.place == place and c.method == m} - {None}) > 1 for m in study.methods)
    ]
    if not swept:
        return None
    made, panels = _panels(swept)
    for place, axes in zip(swept, panels, strict=False):
        score = study.headline(place)
        curves: dict[str, list[tuple[int | None, float, Interval | None]]] = {}
        for choice in (choice for choice in choices if choice.place == place):
            estimate = study.estimate(choice, score)
            if estimate:
                curves.setdefault(choice.method, []).append((choice.rank, *estimate))
        title, scale = (
            ("validation loss (nats per token)", 1.0)
            if score is None
            else _scaled(score, [y for points in curves.values() for _, y, _ in points])
        )
        _rank_sweep(axes, curves, scale, looks(study.methods))
        axes.set(xlabel="rank", ylabel=title)
    return Drawn(
        made,
        _caption(
            "Score by rank, each rank at its learning rate of least validation loss; bars are 95% intervals, and what "
            "has no rank is a level line.",
            swept,
        ),
    )


def _rank_sweep(axes: Axes, curves: dict[str, list], scale: float, look: dict[str, Look]) -> None:
    handles, ranked = {}, [method for method, points in curves.items() if points[0][0] is not None]
    for method, points in curves.items():
        of = look[method]
        if method not in ranked:
            handles[method] = axes.axhline(scale * points[0][1], color=of.colour, linestyle=of.line, linewidth=1)
            continue
        points = sorted(points, key=lambda point: point[0])
        aside = 2 ** (0.06 * (ranked.index(method) - (len(ranked) - 1) / 2))  # or intervals hide each other
        axes.plot(
            [aside * r for r, _, _ in points], [scale * y for _, y, _ in points], color=of.colour, linestyle=of.line
        )
        for rank, value, interval in points:
            handles[method] = _point(axes, aside * rank, value, interval, scale, of)
    ranks = sorted({rank for points in curves.values() for rank, _, _ in points if rank is not None})
    axes.set_xscale("log", base=2)
    axes.set_xticks(ranks, labels=[str(rank) for rank in ranks])
    axes.minorticks_off()
    _legend(axes, list(handles.values()), list(handles))


@figure
def lr_methods(study: Study) -> Drawn | None:
    """The validation loss of each method at each learning rate, at the rank that served it best there."""
    choices = [choice for choice in select(study.rows.data, ("method", "lr")) if choice.key[1] is not None]
    swept = [
        place
        for place in study.places
        if any(len({c.key for c in choices if c.place == place and c.method == m}) > 1 for m in study.methods)
    ]
    swept = [place for place in swept if any(c.loss is not None for c in choices if c.place == place)]
    if not swept:
        return None
    made, panels = _panels(swept)
    for place, axes in zip(swept, panels, strict=False):
        _lr_methods(axes, [c for c in choices if c.place == place], study.rows.choices)
    return Drawn(
        made,
        _caption(
            "Validation loss (nats per token, mean over seeds) by method and learning rate, the darker the lower: a "
            "frame marks what was chosen for the method, hatching what never finished with every seed.",
            swept,
        ),
    )


def _lr_methods(axes: Axes, choices: list[Choice], best: Sequence[Choice]) -> None:
    methods = list(dict.fromkeys(choice.method for choice in choices))
    rates = sorted({choice.key[1] for choice in choices})
    losses = np.full((len(methods), len(rates)), np.nan)
    for choice in choices:
        if choice.loss is not None:
            losses[methods.index(choice.method), rates.index(choice.key[1])] = choice.loss
    known = losses[~np.isnan(losses)]
    # a rate that nearly diverged must not make all others look alike
    norm = Normalize(known.min(), max(np.quantile(known, 0.75), known.min() + 1e-9))
    axes.imshow(losses, cmap="cividis", norm=norm, aspect="auto")
    framed = {(choice.method, choice.lr) for choice in best if choice.place == choices[0].place}
    for choice in choices:
        x, y = rates.index(choice.key[1]), methods.index(choice.method)
        if choice.loss is None:
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor="0.95", edgecolor="0.6", hatch="////"))
        text = ", ".join(choice.lost) if choice.loss is None else f"{choice.loss:.3f}"
        dark = choice.loss is not None and norm(choice.loss) < 0.5
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5} if choice.loss is None else None
        axes.text(x, y, text, ha="center", va="center", fontsize=8, color="white" if dark else "black", bbox=box)
        if (choice.method, choice.key[1]) in framed:
            axes.add_patch(Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, fill=False, edgecolor=COLOURS[2], linewidth=2.5))
    axes.set_xticks(range(len(rates)), labels=[short(value) for value in rates])
    axes.set_yticks(range(len(methods)), labels=list(map(plain, methods)))
    axes.set_xlabel("learning rate")
    axes.grid(False)


@figure
def loss(study: Study) -> Drawn | None:
    """Training loss against tokens and against time, each method in its chosen setting."""
    curves = {
        place: [(row, curve) for row in study.shown(place) if (curve := loss_curve(row)) is not None]
        for place in study.places
    }
    places = [place for place, found in curves.items() if found][: PANELS // 2]
    if not places:
        return None
    made, panels = _panels([place for place in places for _ in range(2)], width=4.6, height=3.6)
    look = looks(study.methods)
    for i, place in enumerate(places):
        by_tokens, by_time = panels[2 * i : 2 * i + 2]
        if len(places) == 1:
            by_tokens.set_title("")
            by_time.set_title("")
        handles = []
        for row, (tokens, seconds, losses) in curves[place]:
            of = look[row.method]
            style = {"color": of.colour, "linestyle": of.line}
            marks = {"marker": of.marker, "markevery": (0.1, 0.25), "markersize": 4}
            handles += by_tokens.plot(tokens, losses, **style, **marks)
            by_time.plot(seconds, losses, **style, **marks)
            held_out = [record.validation[-1] for record in row.measured if record.validation]
            if held_out:
                mean = np.mean([point.loss for point in held_out])
                for axes, at in ((by_tokens, tokens[-1]), (by_time, seconds[-1])):
                    axes.plot(at, mean, marker=of.marker, mfc="white", mec=of.colour, linestyle="", clip_on=False)
        by_tokens.set(xlabel="raw tokens", ylabel="loss (nats per supervised token)")
        by_time.set(xlabel="seconds of training steps")
        _legend(by_time, handles, [_label(row, [row for row, _ in curves[place]]) for row, _ in curves[place]])
    return Drawn(
        made,
        "Training loss (mean of up to 40 stretches of steps, and over seeds) against the tokens trained on and against "
        "the time in training steps; hollow markers are the last loss on held-out answers.",
    )


def loss_curve(row: Row, parts: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Tokens and seconds at the end of each of up to `parts` stretches of steps, and their mean loss, over seeds.

    None where no seed knows its steps. A seed that took fewer steps than others is left out.
    """
    trains = [record.train for record in row.measured if record.train and len(record.train.loss) > 1]
    trains = [train for train in trains if len(train.loss) == len(train.step_seconds)]
    if not trains:
        return None
    steps = max(len(train.loss) for train in trains)
    trains = [train for train in trains if len(train.loss) == steps]
    stretches = np.array_split(np.arange(steps), min(parts, steps))
    ends = [stretch[-1] for stretch in stretches]
    tokens = np.mean([[train.loss[i].tokens for i in ends] for train in trains], axis=0)
    seconds = np.mean([np.cumsum(train.step_seconds)[ends] for train in trains], axis=0)
    losses = np.mean([[point.loss for point in train.loss] for train in trains], axis=0)
    return tokens, seconds, np.array([losses[stretch].mean() for stretch in stretches])


@figure
def memory(study: Study) -> Drawn | None:
    """What the peak memory of a training step is made of."""
    bars = {
        place: [row for row in study.shown(place) if row.mean("peak_weights") is not None][:BARS]
        for place in study.places
    }
    places = [place for place, rows in bars.items() if rows]
    if not places:
        return None
    made, panels = _panels(places, height=max(2.0, 0.8 + 0.28 * max(map(len, bars.values()))))
    for place, axes in zip(places, panels, strict=False):
        rows = bars[place]
        left = np.zeros(len(rows))
        handles = []
        for kind, colour, hatch in zip(KINDS, KIND_COLOURS, HATCHES, strict=True):
            sizes = np.array([row.mean(f"peak_{kind}") / 2**30 for row in rows])
            handles.append(
                axes.barh(
                    range(len(rows)), sizes, left=left, color=colour, hatch=hatch, edgecolor="black", linewidth=0.5
                )
            )
            left += sizes
        labels = [_label(row, rows) + (" (forward pass)" if _untuned(row) else "") for row in rows]
        axes.set_yticks(range(len(rows)), labels=list(map(plain, labels)))
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("GiB of live tensors at the peak")
        _legend(axes, handles, KINDS)
    return Drawn(
        made,
        _caption(
            "Live tensors at the peak of a training step by what they hold; gradients may be freed by then, and an "
            "untuned model has a forward pass alone.",
            places,
        ),
    )


KIND_COLOURS = ["#0072B2", "#F0E442", "#D55E00", "#56B4E9", "#FFFFFF"]


@figure
def throughput(study: Study) -> Drawn | None:
    """How many tokens a second each method trains on, and writes when it answers."""
    parts = {
        "training": {"tokens_per_second_steady": "median step", "tokens_per_second_amortised": "all steps"},
        "decoding": {
            "base_decode_tokens_per_second": "no adapter",
            "unmerged_decode_tokens_per_second": "unmerged",
            "merged_decode_tokens_per_second": "merged",
        },
    }
    found = []
    for place in study.places:
        for part, measures in parts.items():
            rows = [row for row in study.shown(place) if any(row.mean(measure) is not None for measure in measures)]
            if rows:
                found.append((place, part, measures, rows[:BARS]))
    found = found[:PANELS]
    if not found:
        return None
    most = max(len(rows) for _, _, _, rows in found)
    made, panels = _panels([place for place, _, _, _ in found], width=5.4, height=max(2.2, 0.9 + 0.42 * most))
    several = len({place for place, _, _, _ in found}) > 1
    for (place, part, measures, rows), axes in zip(found, panels, strict=True):
        handles = []
        present = [measure for measure in measures if any(row.mean(measure) is not None for row in rows)]
        thick = 0.8 / len(present)
        for i, (measure, (colour, hatch)) in enumerate(zip(present, RATE_LOOKS, strict=False)):
            at = [j for j, row in enumerate(rows) if row.mean(measure) is not None]
            values = [rows[j].values(measure) for j in at]
            means = [float(np.mean(v)) for v in values]
            spans = [seeds_interval(v) for v in values]
            errors = [
                [m - s.low if s else 0 for m, s in zip(means, spans, strict=True)],
                [s.high - m if s else 0 for m, s in zip(means, spans, strict=True)],
            ]
            handles.append(
                axes.barh(
                    [j + (i - (len(present) - 1) / 2) * thick for j in at],
                    means,
                    thick,
                    xerr=errors if any(spans) else None,
                    color=colour,
                    hatch=hatch,
                    edgecolor="black",
                    linewidth=0.5,
                )
            )
        axes.set_title((", ".join(map(plain, place[1:])) + ": " if several else "") + part)
        axes.set_yticks(range(len(rows)), labels=[plain(_label(row, rows)) for row in rows])
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("tokens/s")
        _legend(axes, handles, [measures[measure] for measure in present])
    return Drawn(
        made,
        "Raw tokens a second in training, by the median step and over all steps, and tokens a second written in "
        "answering; bars are 95% intervals over seeds, where there are several.",
    )


RATE_LOOKS = [("#0072B2", ""), ("#F0E442", "////"), ("#FFFFFF", "....")]


@figure
def forgetting(study: Study) -> Drawn | None:
    """What each method lost of what the base knew against what it gained on the task it was tuned for."""
    found = {}
    for place in study.places:
        gained = study.headline(place)
        if gained is None:
            continue
        aside = [
            contest
            for (where, name), contest in study.contests.items()
            if where == place and name.partition("/")[0] != gained.task
        ]
        aside.sort(key=lambda contest: [claims.MMLU, claims.PLAIN_TEXT, contest.score].index(contest.score))
        for contest in aside[:1]:
            changes = {
                method: (gain, loss)
                for method in study.methods
                if (gain := change(study.contests.get((place, score_name(gained))), method))
                and (loss := change(contest, method))
            }
            if changes:
                found[place] = (gained, contest, changes)
    if not found:
        return None
    made, panels = _panels(list(found))
    look = looks(study.methods)
    for (place, (gained, contest, changes)), axes in zip(found.items(), panels, strict=False):
        kept = next(
            s
            for row in study.rows
            if row.place == place
            for r in row.measured
            for s in r.scores
            if score_name(s) == contest.score
        )
        (x_name, x_scale), (y_name, y_scale) = (
            _scaled(score, [s.value for s in study.contests[place, score_name(score)].standings])
            for score in (gained, kept)
        )
        handles = {}
        for method, (gain, loss) in changes.items():
            of = look[method]
            handles[method] = axes.errorbar(
                x_scale * gain.value,
                y_scale * loss.value,
                xerr=_ends(gain, x_scale),
                yerr=_ends(loss, y_scale),
                color=of.colour,
                marker=of.marker,
                linestyle="",
                elinewidth=1,
            )
        axes.axhline(0, color="0.4", linewidth=0.8)
        axes.axvline(0, color="0.4", linewidth=0.8)
        axes.set(
            xlabel=f"gain in {x_name.replace('(%)', '(points)')}",
            ylabel=f"change of {y_name.replace('(%)', '(points)')}",
        )
        if not kept.higher_is_better:
            axes.invert_yaxis()
        _legend(axes, list(handles.values()), list(handles))
    return Drawn(
        made,
        _caption(
            "Change from the untuned base: to the right what was gained on the task, downwards what was forgotten; "
            "bars are paired 95% intervals over items and seeds.",
            list(found),
        ),
    )


def change(contest: Contest | None, method: str) -> Interval | None:
    """By how much `method` scores more than base; ends are nan where the two are not paired, None where one lacks."""
    if contest is None or method == "base":
        return None
    if gap := contest.differences.get((method, "base")):
        return Interval(gap.value, gap.low, gap.high)
    if gap := contest.differences.get(("base", method)):
        return Interval(-gap.value, -gap.high, -gap.low)
    values = {standing.choice.label: standing.value for standing in contest.standings}
    if method not in values or "base" not in values:
        return None
    return Interval(values[method] - values["base"], np.nan, np.nan)


def _ends(interval: Interval, scale: float) -> list[list[float]] | None:
    if np.isnan(interval.low):
        return None
    return [[scale * (interval.value - interval.low)], [scale * (interval.high - interval.value)]]


@figure
def verdicts(study: Study) -> Drawn | None:
    """What the records make of the article's claims."""
    found = claims.verdicts(study.rows.records, study.folder)
    if not any(verdict.finding.records for verdict in found):
        return None
    shown = claims.table(found)
    effects = [row[shown.columns.index("Effect")] for row in shown.rows]
    several = len({verdict.place for verdict in found}) > 1
    made = Figure(figsize=(7.4, 0.9 + 0.24 * len(found)))
    axes = made.subplots()
    for i, (verdict, effect) in enumerate(zip(found, effects, strict=True)):
        decision = verdict.finding.decision
        marker, fill = DECISIONS[decision]
        x = list(DECISIONS).index(decision)
        axes.plot(x, i, marker=marker, markersize=9, mfc=fill, mec="black", linestyle="")
        axes.text(2.5, i, effect, va="center", fontsize=8)
    axes.set_xticks(range(len(DECISIONS)), labels=list(DECISIONS))
    axes.xaxis.tick_top()
    names = [v.claim.name + (f" ({', '.join(v.place[1:])})" if several else "") for v in found]
    axes.set_yticks(range(len(found)), labels=list(map(plain, names)))
    axes.set(xlim=(-0.5, 4.2), ylim=(len(found) - 0.5, -0.5))
    counts = [f"{sum(v.finding.decision == d for v in found)} {d}" for d in DECISIONS]
    return Drawn(
        made,
        f"Verdicts on the article's claims ({', '.join(counts)}), with the effect that each rests on and its 95% "
        "interval.",
    )


DECISIONS = {claims.SUPPORTED: ("o", "#0072B2"), claims.REFUTED: ("X", "#D55E00"), claims.OPEN: ("o", "white")}
