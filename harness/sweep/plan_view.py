"""What `plan` shows: a table of the points of a grid, with bars of memory on a terminal, and how it was obtained."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tabulate import tabulate

from harness import terminal, units
from harness.settings import REFERRING
from harness.sweep import micro_batch
from harness.sweep.cell_status import duration
from harness.sweep.estimates import rates
from harness.sweep.estimates.card import Card
from harness.sweep.estimates.times import Times
from harness.sweep.planner import Impossible, Plan, Planned, phases_of
from harness.sweep.runner import BESIDE, TIGHT
from harness.terminal import FittedColumn

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

HELD = ("weights", "adapters", "optimizer")  # between steps, and as much at the peak
PASSING = ("gradients", "activations")
NAMES = {"cpu": "the CPU's", "cuda": "CUDA's"}
COLUMNS = (
    FittedColumn("cell", 0, least=26),
    FittedColumn("trainable", 5, right=True),
    FittedColumn("resident", 6, right=True),
    FittedColumn(" / ".join(HELD), 8, right=True),
    FittedColumn("peak", 1, right=True),
    FittedColumn("+ " + " / ".join(PASSING), 9, right=True),
    FittedColumn("reserved", 3, right=True),
    FittedColumn("FLOPs", 7, right=True),
    FittedColumn("time", 3, right=True),
    FittedColumn("cost", 2, right=True),
    FittedColumn("fits", 1),
    FittedColumn("batch ≤", 4, right=True),
)
BAR = FittedColumn("memory", 2)
WIDTHS = (48, 24, 12)  # of bars; the widest that leaves room for what is more important
KINDS = {"weights": ("█", "blue"), "adapters": ("▓", "magenta"), "optimizer": ("▒", "yellow")}
KINDS |= {"gradients": ("░", "red"), "activations": ("▪", "green"), "overhead": ("·", "dim")}


def lines(plan: Plan, times: Times) -> list[str]:
    """The table as plain lines, with notes on how its figures were obtained."""
    columns, rows = _table(plan, times)
    header = [column.header for column in columns]
    out = tabulate(rows, header, "simple", disable_numparse=True).splitlines() if rows else []
    out += [""] if rows else []
    notes = [line for note in _notes(plan, times) for line in textwrap.wrap(note, 110)]
    said = [line for sentence in answer(plan, times) for line in textwrap.wrap(sentence, 110)]
    return [*said, *([""] if said else []), *out, *outside(plan), *notes]


def view(plan: Plan, times: Times, width: int) -> list[RenderableType]:
    """The same for a terminal of `width` characters: the columns that fit, and bars of memory by kind."""
    from rich.text import Text

    all_columns, rows = _table(plan, times)
    parts: list[RenderableType] = [Text(sentence, style="bold") for sentence in answer(plan, times)]
    parts += [Text("")] if parts else []
    if rows:
        spare = width - min(terminal.needed(COLUMNS[:1], rows), 30) - 24
        size = next((size for size in WIDTHS if size <= spare), WIDTHS[-1])
        columns = [all_columns[0], BAR, *all_columns[1:]]
        barred: list[list[str | Text]] = [
            [row[0], bar(plan, point, size), *row[1:]] for row, point in zip(rows, plan.predicted, strict=True)
        ]
        table, left_out = terminal.fitted(columns, barred, width)
        parts += [table, Text(""), _legend(plan)]
        if left_out:
            parts.append(Text(f"Not shown at this width: {'; '.join(left_out)}.", style="dim"))
        parts.append(Text(""))
    return parts + [Text(sentence) for sentence in (*outside(plan), *_notes(plan, times))]


def answer(plan: Plan, times: Times) -> list[str]:
    """Which methods fit and what the others need, and how long all that fit train; empty if nothing is predicted."""
    points, room = plan.predicted, units.size(plan.budget)
    lacking = [point for point in points if plan.shortage(point)]
    if not points:
        return []
    if not lacking:
        most = units.size(max(point.taken for point in points) + BESIDE)
        first = f"{_who_fits(plan)} into {room}; the most is {most}."
        return [first, *_time(plan, times), *unknown_lengths(plan, times)]
    methods = dict.fromkeys(point.cell.method for point in points)
    short_of_memory = [method for method in methods if any(point.cell.method == method for point in lacking)]
    fitting = [method for method in methods if method not in short_of_memory]
    clauses = [f"{units.listed(fitting)} {'fits' if len(fitting) == 1 else 'fit'}"] if fitting else []
    beyond = []
    for method in short_of_memory:
        batches = [_largest_batch(plan, point) for point in lacking if point.cell.method == method]
        if all(batches):
            clauses.append(f"{method} needs train.batch_size ≤ {min(batches)}")
        else:
            beyond.append(method)
    if beyond:
        clauses.append(f"{units.listed(beyond)} {'does' if len(beyond) == 1 else 'do'} not fit")
    time = _time(plan, times)
    fitting_time = [f"{_who_fits(plan)}. {time[0]}"] if time else []
    return [f"On {room}: {'; '.join(clauses)}.", *fitting_time, *unknown_lengths(plan, times)]


def _who_fits(plan: Plan) -> str:
    count, all_count = sum(plan.fits(point) for point in plan.predicted), len(plan.points)
    if count < all_count:
        return f"{count} of {units.plural(all_count, 'cell')} {'fits' if count == 1 else 'fit'}"
    return "The cell fits" if count == 1 else f"All {count} cells fit"


def _largest_batch(plan: Plan, point: Planned) -> int:
    """The largest train.batch_size with which a point that does not fit would; 0 for none, or if it is not training
    that is too large."""
    shortage = plan.shortage(point)
    return (point.prediction["largest_batch"] or 0) if shortage is not None and shortage.phase == "train" else 0


def bar(plan: Plan, point: Planned, size: int) -> Text:
    """The peak by kind, `size` characters for the largest peak or the budget, which is a line."""
    from rich.text import Text

    scale = max([plan.budget, *(other.taken + BESIDE for other in plan.predicted)]) / size
    limit = min(size - 1, round(plan.budget / scale))
    cells: list[tuple[str, str]] = []
    reached = 0.0
    for kind, (character, style) in KINDS.items():
        reached += point.taken - point.peak + BESIDE if kind == "overhead" else point.prediction["peak"][kind]
        cells += [(character, style)] * (round(reached / scale) - len(cells))
    cells += [(" ", "")] * (size - len(cells))
    cells[limit] = ("|", "bold")
    return Text.assemble(*cells[:size])


def _legend(plan: Plan) -> Text:
    from rich.text import Text

    parts: list[str | tuple[str, str]] = []
    for kind, (character, style) in KINDS.items():
        parts += [(character, style), f" {kind}  "]
    return Text.assemble(*parts, ("|", "bold"), f" {units.size(plan.budget)}")


def _table(plan: Plan, times: Times) -> tuple[list[FittedColumn], list[list[str]]]:
    """The columns and the rows; without a price no cell has a cost."""
    visible = [i for i, column in enumerate(COLUMNS) if times.price is not None or column.header != "cost"]
    rows = [_row(plan, point, times) for point in plan.predicted]
    return [COLUMNS[i] for i in visible], [[row[i] for i in visible] for row in rows]


def _row(plan: Plan, point: Planned, times: Times) -> list[str]:
    p, seconds, cost = point.prediction, times.seconds(point), times.dollars(point)
    return [
        point.name,
        f"{units.count(p['trainable'])} ({100 * p['trainable'] / p['total']:.3g}%)",
        units.size(sum(p["resident"].values())),
        " / ".join(_short(p["resident"][kind]) for kind in HELD),
        units.size(point.peak),
        " / ".join(_short(p["peak"][kind]) for kind in PASSING),
        "–" if point.reserved is None else units.size(point.reserved),
        units.count(p["flops"] + p["reference_flops"]),
        "–" if seconds is None else told_time(seconds, times.range(point)),
        "–" if cost is None else units.dollars(cost),
        _fit(plan, point),
        _batch(point),
    ]


def told_time(seconds: float, between: tuple[float, float] | None) -> str:
    """A time; where it is known as a range, that: 3 to 5 h. No training takes 0 s."""
    if between is None and 0 < seconds < 0.95:
        return f"{seconds:.1f} s" if seconds >= 0.05 else "<0.1 s"
    if between is None:
        return duration(seconds)
    least, most = map(duration, between)
    if least == most:
        return least
    number, _, unit = least.partition(" ")
    return f"{number} to {most}" if most.endswith(f" {unit}") else f"{least} to {most}"


def outside(plan: Plan) -> list[str]:
    """Sentences on the points without a row, and on what makes points fit."""
    out = []
    for point in plan.points:
        if isinstance(point, Impossible):
            out.append(f"Impossible: {point.name}: {point.reason}")
        elif "unknown" in point.prediction:
            out.append(f"Not predicted: {point.name}: {point.prediction['unknown']}")
    return out + plan.remedies + ([""] if plan.remedies else [])


def _fit(plan: Plan, point: Planned) -> str:
    if (shortage := plan.shortage(point)) is not None:
        return f"no: {shortage.phase}" if "phases" in point.prediction else "no"
    return "yes" if max(phases_of(point).values()) + BESIDE <= TIGHT * plan.budget else "tight"


def _batch(point: Planned) -> str:
    """The largest train.batch_size that fits; with train.batch_size=auto the micro-batch × the accumulation."""
    size = point.prediction["micro_batch"]
    if size is not None:
        batches = micro_batch.planned(point.cell, point.prediction)
        return f"auto: {batches.batch_size} × {batches.grad_accum}"
    largest = point.prediction["largest_batch"]
    return "–" if largest is None else str(largest)


def _notes(plan: Plan, times: Times) -> list[str]:
    notes, possible = [], plan.predicted
    shapes = {tuple(p.prediction["shape"][k] for k in ("sequences", "tokens", "real")) for p in possible}
    for sequences, tokens, real in sorted(shapes):
        source = "from the data" if real else "assumed: each sequence of train.max_length tokens, all in the loss"
        size = f"{units.plural(sequences, 'sequence')}, {units.plural(tokens, 'token')}"
        notes.append(f"Largest batch: {size} ({source}).")
    if possible:
        counted = units.listed(sorted({point.counted for point in possible}, reverse=True))
        precisions = ", ".join(sorted({p.prediction["precision"] for p in possible}))
        notes.append(
            f"Memory: live tensors, in {precisions} with {NAMES[plan.kernels]} kernels. A cell fits if {counted} and "
            f"{units.size(BESIDE)} of overhead are within {units.size(plan.budget)}; above {TIGHT:.0%} it is tight. "
            "batch ≤: the largest train.batch_size that fits; for auto, the micro-batch × the accumulation."
        )
        if plan.kernels == "cuda":
            notes.append("Tables show the allocator's peak, which has kernels' workspaces and rounding beside tensors.")
        if any(point.reserved is not None for point in possible):
            notes.append(
                "Reserved: what CUDA's allocator takes for them, with the expandable segments that jobs have; all "
                "steps are taken to be as large as the largest. Where none is left it gives free memory back, so a "
                "cell may fit that would take more. Of a sharded cell it is not predicted: live tensors must fit."
            )
        if any(p.cell.settings.train.compile for p in possible):
            notes.append(
                "Cells with train.compile=true are counted as uncompiled: torch.compile may change their activations "
                "and their time. At a card's rates, neighbouring operations take the time of one kernel."
            )
        if any(p.cell.settings.method.paged for p in possible):
            notes.append(
                "Moments in paged memory are left out, as CUDA moves them to the host when memory is short: 8 bytes "
                "per trained weight, about 2 with method.adamw=paged_8bit."
            )
        referring = {p.cell.settings.train.objective for p in possible if p.prediction["reference_flops"]}
        if named := [objective for objective in REFERRING if objective in referring]:
            which = " and of ".join(f"train.objective={objective}" for objective in named)
            notes.append(f"FLOPs and time of {which} include a forward pass of the base over all pairs.")
        notes += [_phase_note(plan, point) for point in possible if "phases" in point.prediction]
        notes += [*time_notes(plan, times)]
    return notes


def _phase_note(plan: Plan, point: Planned) -> str:
    """What each phase of a cell takes of a device, and a sharded cell of its machines, and which has too little."""
    sizes = ", ".join(f"{name} {units.size(size)}" for name, size in phases_of(point).items())
    host, shortage = point.prediction.get("host"), plan.shortage(point)
    if host is None:
        sentence = f"{point.name}, by phase: {sizes}, as experts lie in 16 bits until they are packed."
    else:
        others = f", {units.size(host['others'])} on each other one" if point.cell.settings.train.nodes > 1 else ""
        machines = f"{units.size(host['first'])} on its first machine's host{others}"
        sentence = f"{point.name}, by phase: {sizes} a device; {machines}."
    if shortage is None:
        return sentence
    place = "That host has" if shortage.phase == "host" else f"The phase {shortage.phase} does not fit: a device has"
    return f"{sentence} {place} {units.size(shortage.budget)}."


def time_notes(plan: Plan, times: Times) -> list[str]:
    """What times and costs rest on."""
    notes = []
    if times.throughput is not None:
        notes.append(f"Time: training steps, at {times.throughput:g} tokens/s.")
    if times.used:
        notes.append(
            f"Time: training steps, estimated from {units.plural(len(times.used), 'record')} of this device that ran "
            "alone, of a like size."
        )
    others = " of other cells" * bool(times.used)
    if times.calibrated and plan.calibration is not None:
        notes.append(
            f"Time{others}: training steps, estimated from kernels that were timed on "
            f"{plan.calibration['device'][1]} on {plan.calibration['created'][:10]}."
        )
    if times.by_rates and plan.card is not None:
        notes.append(
            f"Time{others}: training steps, estimated from the rates of {plan.card.name} ({_rates(plan.card)}). It is "
            f"the range in which {_published(plan.card)} lie around such estimates; `harness calibrate` on the card "
            "gives one time."
        )
    notes += _left_out(plan, times)
    unlimited = any(point.prediction["shape"]["steps"] is None for point in plan.predicted)
    if times.throughput is None and not (times.used or times.by_rates or times.calibrated or unlimited):
        notes.append(
            "Time: unknown without records of this device that ran alone and are of a like size; `harness calibrate` "
            "times its kernels, --throughput sets a rate, --device a card with published rates."
        )
    tasks = _tasks(plan.predicted)
    if tasks and (times.throughput is not None or times.used or times.by_rates or times.calibrated):
        notes.append(
            f"Loading, validation and the scoring of {', '.join(tasks)} come on top, which may take longer than "
            "training; eval.limit=200 scores 200 items of each task."
        )
    if times.price is not None:
        time = "the estimate within that range," if times.by_rates else "that time"
        notes.append(f"Cost: {time} at {units.dollars(times.price)} an hour and device.")
    elif plan.card is not None:
        notes.append(f"Cost: unknown without a price; --price sets dollars an hour for one {plan.card.name}.")
    return notes


def _left_out(plan: Plan, times: Times) -> list[str]:
    """What times lack that rest on kernels or on rates."""
    notes = []
    if times.undecomposed:
        notes.append(
            f"Time: without the decompositions of gradients by {', '.join(sorted(times.undecomposed))}, which may take "
            "longer than the steps; `harness calibrate` with such a cell times them."
        )
    by_work = times.calibrated or times.by_rates
    if by_work and any(point.cell.settings.train.total_devices > 1 for point in plan.predicted):
        notes.append("Time: without what devices send each other.")
    return notes


def _published(card: Card) -> str:
    return f"published runs of {card.name}" if card.name in rates.SPREADS else "published runs of other cards"


def _rates(card: Card) -> str:
    bf16 = [] if card.bf16_tflops is None else [f"{card.bf16_tflops:g} TFLOP/s in bf16"]
    return ", ".join([*bf16, f"{card.fp32_tflops:g} TFLOP/s in fp32", f"{card.bandwidth_gb:,g} GB/s"])


def _time(plan: Plan, times: Times) -> list[str]:
    """How long the cells that fit and train take in all, in a grid of more than one."""
    fitting = [point for point in plan.predicted if plan.fits(point) and point.prediction["trainable"]]
    durations = [seconds for point in fitting if (seconds := times.seconds(point)) is not None]
    if len(plan.points) < 2 or not durations:
        return []
    costs = [cost for point in fitting if (cost := times.dollars(point)) is not None]
    price = f", {units.dollars(sum(costs))}" if costs else ""
    unknown = f"; the time of {len(fitting) - len(durations)} is unknown" if len(durations) < len(fitting) else ""
    ranges = [times.range(point) or (seconds, seconds) for point in fitting if (seconds := times.seconds(point))]
    least, most = (sum(ends) for ends in zip(*ranges, strict=True))
    in_all = told_time(sum(durations), (least, most) if least < most else None)
    train = f"They train {in_all} in all" if len(fitting) > 1 else f"It trains {in_all}"
    aside = ", scoring aside" if _tasks(fitting) else ""
    return [f"{train}{price}{aside}{unknown}."]


def _tasks(points: Sequence[Planned]) -> list[str]:
    """The tasks that the cells are scored by."""
    return list(dict.fromkeys(task for point in points for task in point.cell.settings.eval.tasks))


def unknown_lengths(plan: Plan, times: Times) -> list[str]:
    """What is assumed of sequences whose lengths are not known here, and how long training takes if it is otherwise.

    As everywhere in the answer, that time is of the cells that fit.
    """
    points: dict[tuple[str, bool], list[Planned]] = {}
    for point in plan.predicted:
        shape = point.prediction["shape"]
        if point.prediction["trainable"] and (lengths := shape.get("lengths", "data")) != "data":
            points.setdefault((lengths, shape["steps"] is None), []).append(point)
    return [
        _without_rows(alike)
        if unlimited
        else ASSUMED_LENGTHS[lengths](alike, [point for point in alike if plan.fits(point)], times)
        for (lengths, unlimited), alike in points.items()
    ]


def _by_characters(points: Sequence[Planned], fitting: Sequence[Planned], times: Times) -> str:
    tokenizers = units.listed(list(dict.fromkeys(point.cell.model for point in points)))
    sentence = (
        f"The tokenizer of {tokenizers} is not on this machine, so times count 4 characters of {_data(points)} as a "
        f"token, and memory counts {_max_length(points)} tokens a sequence, the most."
    )
    span = _span(fitting, times, (4 / 5, 4 / 3))
    return f"{sentence} At 3 to 5 characters a token, training takes {span}." if span else sentence


def _by_the_most(points: Sequence[Planned], fitting: Sequence[Planned], times: Times) -> str:
    sentence = (
        f"The lengths of {_data(points)} are not known here, so each sequence counts {_max_length(points)} tokens, "
        "the most."
    )
    span = _span(fitting, times, (1 / 4, 1))
    return f"{sentence} If the mean is a quarter of that to all of it, training takes {span}." if span else sentence


def _without_rows(points: Sequence[Planned]) -> str:
    return (
        f"How long training takes is unknown: train.epochs counts the rows of {_data(points)}, which are not on this "
        "machine; train.max_steps sets the steps."
    )


ASSUMED_LENGTHS = {"characters": _by_characters, "assumed": _by_the_most}


def _data(points: Sequence[Planned]) -> str:
    return units.listed(list(dict.fromkeys(point.cell.data for point in points)))


def _span(points: Sequence[Planned], times: Times, factors: tuple[float, float]) -> str:
    """The time of all `points`, at least and at most, where tokens are `factors` of what was counted; empty if it is
    unknown."""
    ranges = [times.range(point) or (seconds, seconds) for point in points if (seconds := times.seconds(point))]
    if not ranges:
        return ""
    least, most = (factor * sum(ends) for factor, ends in zip(factors, zip(*ranges, strict=True), strict=True))
    return told_time((least + most) / 2, (least, most)) + " in all" * (len(ranges) > 1)


def _max_length(points: Sequence[Planned]) -> str:
    """The setting, or its values over `points`."""
    lengths = sorted({point.cell.settings.train.validated().max_length for point in points})
    return f"train.max_length={','.join(map(str, lengths))}"


def _short(n: float) -> str:
    """Bytes in short form, such as 1.5G, for lists."""
    return "0" if not n else units.size(n).replace(" GiB", "G").replace(" MiB", "M").replace(" KiB", "K")
