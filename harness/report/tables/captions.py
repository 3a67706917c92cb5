"""The caption of a comparison: what the columns mean, how cells ran, what makes them hard to compare."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from harness import units
from harness.record import Record
from harness.report.lint import Finding
from harness.report.lint.drift import drift_text, drifts
from harness.report.lint.environment import ran_with
from harness.report.lint.evaluation import inference_text
from harness.report.lint.training import micro_batches_text
from harness.report.memory import instruments
from harness.report.tables.columns import COLUMNS
from harness.report.tables.entries import CHOSEN, SEVERAL_DEVICES, THROTTLED, share, speed_marks
from harness.report.tables.rows import Row, Rows, several_seeds
from harness.score_names import task_label

MEANINGS = {
    THROTTLED: "Speed of a GPU that throttled while it was timed.",
    SEVERAL_DEVICES: "Mean speed of cells that ran on different devices; it compares with no other row's.",
}
BUSY = 0.8  # below this share of a step, what the host does decides the speed


def caption(rows: Rows, names: list[str], scored: bool) -> list[str]:
    """The caption: meanings of the columns `names`, scores (if `scored`), how cells ran, and findings of the linter."""
    records = [record for row in rows for record in row.records]
    lines = [*(_scores_caption(rows) if scored else []), *_columns_caption(rows, names)]
    inference = any(COLUMNS[name].topic == "inference" for name in names)
    lines += _inference_caption(records) if inference else []
    if rows.chosen and "setting" in names:
        lines.append(f"{CHOSEN.strip()} marks the setting with the least validation loss of its method.")
    lines += [*_training_caption(records), *_batches_caption(rows), *_devices_caption(records)]
    if any(COLUMNS[name].topic == "memory" for name in names):
        lines += _memory_caption(rows)
    lines += meanings_of_marks(rows) if any(COLUMNS[name].topic in ("speed", "inference") for name in names) else []
    lines += _busy_caption(rows) if any(COLUMNS[name].topic in ("speed", "busy") for name in names) else []
    lines += [*_seeds_caption(rows), *rounded_weights(records)]
    lines += [*map(drift_text, drifts(records)), *_environment_caption(records)]
    lines += dict.fromkeys(note for record in records if record.source for note in record.source.notes)
    if rows.superseded:
        superseded = ", ".join(record.cell.name for record in rows.superseded)
        lines.append(f"Left out, as a later run has the same setting and seed: {superseded}.")
    if any(record.status != "ok" for record in records):
        lines.append("Ratios and Δ are shown for finished rows only.")
    of_no_column = {"evaluation": not scored, "base": not scored, "inference": not inference}
    relevant = [finding for finding in rows.findings if not of_no_column.get(finding.rule)]
    return lines + list(dict.fromkeys(map(_finding_line, relevant)))


def _finding_line(finding: Finding) -> str:
    sentence = finding.sentence
    return f"Warning: {sentence[0].lower()}{sentence[1:]}" if finding.kind == "unequal" else sentence


def _scores_caption(rows: list[Row]) -> list[str]:
    variants: dict[str, dict[str, None]] = defaultdict(dict)
    metrics: dict[str, str] = {}
    for record in (record for row in rows for record in row.measured):
        for score in record.scores:
            metrics.setdefault(score.task, score.metric)
            items = units.plural(score.n, "item")
            variants[score.task][f"{items}, {score.num_fewshot}-shot, task version {score.version}"] = None
    if not variants:
        return ["No cell has a score."]
    scored = [f"{_named(task, metrics[task])} on {', or on '.join(of)}" for task, of in variants.items()]
    return [
        f"Scores: {'; '.join(scored)}.",
        "± is one standard error over items"
        + (" and seeds." if several_seeds(rows) else ".")
        + " Brackets: Δ, the change from the base row of the same model (in points for %).",
    ]


def _named(task: str, metric: str) -> str:
    """Its name for people and, if that is another, the one that settings take."""
    label = task_label(task, metric)
    return task if label == task else f"{label} ({task})"


def _columns_caption(rows: Rows, names: list[str]) -> list[str]:
    """The meanings of the columns, one line per topic, and the ratios that lack a reference row."""
    within = " (Within the same model and data.)" if len({row.place for row in rows}) > 1 else ""
    columns = [COLUMNS[name] for name in names]
    topics: dict[str, list[str]] = defaultdict(list)
    for column in columns:
        meaning = column.meaning(rows) if callable(column.meaning) else column.meaning
        if meaning:
            topics[column.topic].append(meaning.replace("{within}", within))
    lines = [" ".join(meanings) for meanings in topics.values()]
    for method, ratios, measure in dict.fromkeys(column.reference for column in columns if column.reference):
        lines += _missing(rows, method, ratios, measure)
    return list(dict.fromkeys(lines))  # two columns may have the same reference


def _inference_caption(records: list[Record]) -> list[str]:
    """The shape of the inference measurement, if it is the same for all finished cells."""
    finished = [record for record in records if record.status == "ok"]
    lines = []
    for name, speeds in (("Inference", "inference"), ("Batched inference", "batched_inference")):
        variants = {inference_text(speed) for record in finished for speed in getattr(record, speeds).values()}
        if len(variants) == 1:
            lines.append(f"{name} was measured with {variants.pop()}, greedy decoding.")
    return lines


def _missing(rows: list[Row], method: str, ratios: str, measure: str) -> list[str]:
    """A line if there is no finished `method` row with `measure` to compare with, in some place or in all."""
    there = {r.place for r in rows if r.method == method and r.finished and r.mean(measure) is not None}
    here = [row for row in rows if not row.records[0].cell.settings.behind_api]
    missing = list(dict.fromkeys(row.place for row in here if row.place not in there))
    if not missing and rows:
        return []
    where = f" for {', '.join('/'.join(place[1:]) for place in missing)}" if there else ""
    return [f"No finished {method} row{where}: {ratios} are not shown."]


def _training_caption(records: list[Record]) -> list[str]:
    """Steps and tokens of the finished cells. Tokens may differ between seeds, which draw different examples."""
    alike = defaultdict(set)
    for record in records:
        if record.train and record.status == "ok":
            key = (record.study, record.cell.model, record.cell.data, record.cell.seed)
            alike[key].add((record.train.steps, record.train.tokens.raw))
    if not alike:
        return ["No cell finished training."] if any(record.cell.seed is not None for record in records) else []
    budgets = set.union(*alike.values())
    steps, tokens = _span((s for s, _ in budgets), "step"), _span((t for _, t in budgets), "raw token")
    if len(budgets) == 1:
        return [f"Every trained cell took {steps} over {tokens}."]
    equal = ", equal for equal model, data and seed" if all(len(group) == 1 for group in alike.values()) else ""
    return [f"Trained cells took {steps} over {tokens}{equal}."]


def _batches_caption(rows: list[Row]) -> list[str]:
    """The micro-batches of cells with train.batch_size=auto."""
    methods_by_shape: dict[str, dict[str, None]] = defaultdict(dict)
    for row in rows:
        for record in row.records:
            if record.cell.settings.train.sizes_itself and (ran := micro_batches_text(record)) is not None:
                methods_by_shape[ran][row.method] = None
    if not methods_by_shape:
        return []
    shapes = "; ".join(f"{ran} in {', '.join(methods)}" for ran, methods in methods_by_shape.items())
    return [f"train.batch_size=auto chose micro-batches that fit the device's memory: {shapes}."]


def _devices_caption(records: list[Record]) -> list[str]:
    """The number of devices that cells trained on, if any cell used several."""
    trained = [record.cell.settings.train for record in records if record.train]
    layouts = sorted({(train.total_devices, train.nodes, train.parallel or "") for train in trained})
    if not layouts or layouts[-1][0] == 1:
        return []
    devices = " or ".join(_devices_text(*each) for each in layouts)
    return [f"Cells trained on {devices}: tokens/s is the sum over devices, memory is the largest of a device."]


def _devices_text(devices: int, nodes: int, parallel: str) -> str:
    machines = f" of {nodes} machines" if nodes > 1 else ""
    return f"{devices} devices{machines} ({parallel})" if devices > 1 else "1 device"


def _memory_caption(rows: list[Row]) -> list[str]:
    """What the memory of trained cells leaves out."""
    trained = [(row.method, record.cell.settings) for row in rows for record in row.records if record.probe]
    paged = dict.fromkeys(method for method, settings in trained if settings.method.paged)
    compiled = dict.fromkeys(method for method, settings in trained if settings.train.compile)
    lines = []
    if paged:
        lines.append(
            "Memory excludes moments in paged memory, which CUDA moves to the host when memory is short: "
            f"{', '.join(paged)}; 8 bytes per trained weight (about 2 in 8 bits)."
        )
    if compiled:
        on_cuda = "allocator" in instruments(record for row in rows for record in row.records)
        what = "Memory by kind" if on_cuda else "Memory"  # the allocator's peak is of what ran
        lines.append(f"{what} is counted with uncompiled layers, also with train.compile=true: {', '.join(compiled)}.")
    return lines


def meanings_of_marks(rows: Iterable[Row]) -> list[str]:
    """What the marks of speeds in `rows` mean."""
    marks = {mark for row in rows for mark in speed_marks(row)}
    return [f"{mark.strip()} {meaning}" for mark, meaning in MEANINGS.items() if mark.strip() in marks]


def _busy_caption(rows: list[Row]) -> list[str]:
    """Which rows measure the host, if any."""
    busy = {id(row): value for row in rows if (value := row.mean("gpu_busy_share")) is not None}
    idle = [row for row in rows if busy.get(id(row), 1.0) < BUSY]
    if not idle:
        return []
    which = "in every row" if len(idle) == len(busy) else f"in {', '.join(dict.fromkeys(row.method for row in idle))}"
    lowest = min(busy.values())
    return [
        f"Tokens/s measures Python rather than the GPU {which}: kernels run for less than {share(BUSY)} of a step "
        f"(down to {share(lowest)}). A larger batch or model, or train.compile=true, keeps the GPU busy."
    ]


def rounded_weights(records: Iterable[Record]) -> list[str]:
    """That the models' weights were rounded before they were tuned."""
    models = dict.fromkeys(record.cell.model for record in records if record.cell.settings.model.from_gguf)
    if not models:
        return []
    return [
        f"The weights of {', '.join(models)} come from a GGUF file, which rounds them to few bits: compare scores "
        "with one another, not with those of the unquantised model."
    ]


def _seeds_caption(rows: list[Row]) -> list[str]:
    counts = {len(row.measured) for row in rows if row.measured[0].cell.seed is not None}
    return [f"Means over {_span(counts, 'seed')}."] if counts and counts != {1} else []


def _environment_caption(records: list[Record]) -> list[str]:
    """The facts of the environment that all cells share. A failed cell may have recorded fewer facts than the others.

    Cells of models behind an API have none.
    """
    here = [record for record in records if not record.cell.settings.behind_api]
    environments = [(record.status == "ok", ran_with(record)) for record in here]
    same = []
    for name in dict.fromkeys(name for _, environment in environments for name in environment):
        texts = {environment.get(name, "unknown") for ok, environment in environments if ok or name in environment}
        same += [f"{name} {text}" for text in texts if len(texts) == 1]
    which = "All cells" if len(here) == len(records) else "All cells of local models"
    return [f"{which} ran with {', '.join(same)}."] if same else []


def groups_line(counts: Sequence[int]) -> str:
    """How many groups of items the errors count; one number for each set of items."""
    listed = ", ".join(map(str, counts))
    return f"Items come in groups (subjects, passages or templates: {listed}); intervals and tests account for that."


def _span(values: Iterable[int], what: str) -> str:
    low, *others = sorted(set(values))
    return f"{low:,}–{others[-1]:,} {what}s" if others else units.plural(low, what)
