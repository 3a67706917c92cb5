"""Rules on training: token budgets, batches, settings, adapter targets, precision, number of tries."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Sequence
from typing import Any

from harness import units
from harness.record import Probe, Record, SmallerBatches, micro_batches
from harness.report.frame import trained_texts
from harness.report.lint.differences import (
    PARTS,
    VALUES,
    Sentences,
    alike,
    confounded,
    differ,
    finished,
    first_of,
    group_by,
    hashable,
    method_of,
    named,
    places,
    setting_text,
    tuned,
)
from harness.settings import TrainSettings, plain

# Settings of an adapter that select the modules it changes
TARGETS = ("target_modules", "exclude_modules", "layers_to_transform", "target_parameters")
# Settings of training that another rule checks, or that do not change results
APART = {"max_steps", "batch_size", "global_batch", "grad_accum", "precision", "validate_every"}
SHARED = ("devices", "nodes", "parallel")  # how a step is distributed; changes neither its batch nor its result


def token_budgets(records: Sequence[Record]) -> Sentences:
    for where, members in places(records):
        trained, subject = tuned(members), f"Token budgets differ{where}"
        planned = list(confounded(subject, trained, lambda r: _steps(r.cell.settings.train.max_steps)))
        yield from planned or first_of(_same_batches(trained), functools.partial(differ, subject, value=_budget))


def _steps(n: Any) -> str | None:
    return None if n is None else units.plural(n, "step")


def _budget(record: Record) -> str | None:
    train = record.train
    return f"{units.plural(train.steps, 'step')} over {units.plural(train.tokens.raw, 'raw token')}" if train else None


def _same_batches(records: Sequence[Record]) -> list[list[Record]]:
    """Groups of finished cells that should have the same batches: equal seed, data and training settings."""

    def key(record: Record) -> tuple[Hashable, ...]:
        settings = record.cell.settings
        imported = hashable(settings.other.get("train"))
        return record.cell.seed, _undistributed(settings.train), imported, record.fingerprints.get("data")

    return list(group_by([record for record in finished(records) if record.train], key).values())


@functools.lru_cache(maxsize=1024)  # most cells of a study have the same
def _undistributed(train: TrainSettings) -> str:
    return hashable({name: value for name, value in plain(train).items() if name not in SHARED})


def batch_order(records: Sequence[Record]) -> Sentences:
    for where, members in places(records):
        groups = [same for group in _same_batches(tuned(members)) for same in group_by(group, _budget).values()]
        subject = f"Cells with the same seed saw different batches, or the same in another order{where}"
        yield from first_of(groups, functools.partial(differ, subject, value=_batches))


def _batches(record: Record) -> str | None:
    train = record.train
    return f"hash {train.batches.removeprefix('sha256:')[:8]}" if train and train.batches else None


def effective_batches(records: Sequence[Record]) -> Sentences:
    for where, members in places(records):
        yield from confounded(f"Effective batches differ{where}", tuned(members), _effective)


def _effective(record: Record) -> str | None:
    train = record.cell.settings.train
    return f"{train.micro_batch * (train.grad_accum or 1)} sequences per step" if train.micro_batch else None


def training_settings(records: Sequence[Record]) -> Sentences:
    for where, members in places(records):
        trained = tuned(members)
        if alike(trained, lambda record: (record.cell.settings.train, record.cell.settings.other)):
            continue
        settings = {id(record): record.cell.settings.train_dict() for record in trained}
        names = dict.fromkeys(name for of in settings.values() for name in of if name not in APART)
        for name in names:
            if name != "seed":
                subject = f"The setting train.{name} differs{where}"
                yield from confounded(subject, trained, functools.partial(_trained, settings=settings, name=name))


def _trained(record: Record, settings: dict[int, dict[str, Any]], name: str) -> str | None:
    """A setting of training in words. `settings`, by the record's id, lack neutral defaults, and what an import did
    not tell."""
    if record.source is None:
        return setting_text(getattr(record.cell.settings.train, name, None))  # an imported record has other settings
    return setting_text(settings[id(record)].get(name))


def adapter_targets(records: Sequence[Record]) -> Sentences:
    """Only for adapters that name modules: what full fine-tuning or a prompt changes is part of the method."""
    for where, members in places(records):
        yield from confounded(f"Target modules of adapters differ{where}", members, _target)


def _target(record: Record) -> str | None:
    adapter = record.cell.settings.method.adapt
    if adapter is None or adapter.get("target_modules") is None:
        return None
    texts = {name: setting_text(adapter.get(name)) for name in TARGETS}
    others = [f"{name} {text}" for name, text in texts.items() if text is not None and name != "target_modules"]
    return "; ".join([str(texts["target_modules"]), *others])


def precision(records: Sequence[Record]) -> Sentences:
    for where, members in places(records):
        with_precision = [record for record in members if record.status == "ok" or record.environment.get("precision")]
        yield from confounded(f"Precisions differ{where}", with_precision, _precise, method_of)


def _precise(record: Record) -> str:
    dtype = record.cell.settings.method.load.get("dtype")  # of unquantised weights
    computed = record.environment.get("precision") or "unknown precision"
    upcast = ", matrices upcast to float32" if record.cell.settings.model.upcast else ""
    return f"{computed} with {dtype} weights{upcast}" if dtype else str(computed)


def attention(records: Sequence[Record]) -> Sentences:
    for where, members in places(records):
        yield from confounded(f"Attention implementations differ{where}", members, _attended, method_of)


def _attended(record: Record) -> str | None:
    return attention_text(record.probe) if record.probe else None


def attention_text(probe: Probe) -> str | None:
    """The attention operations that the probe saw, with their dtypes; None if it saw none."""
    return ", ".join(sorted(probe.attention)) or None


def tries(records: Sequence[Record]) -> Sentences:
    """How many settings of each method were trained; failed ones count too."""
    texts = dict(zip(map(id, records), trained_texts(records), strict=True))
    for where, members in places(records):
        methods = group_by(tuned(members), method_of)
        counts = {method: len({texts[id(record)] for record in cells}) for method, cells in methods.items()}
        numbers = sorted(set(counts.values()))
        if len(numbers) < 2:
            continue
        parts = []
        for n in numbers:
            equal = [method for method, count in counts.items() if count == n]
            more = [f"{len(equal) - PARTS} more methods"] if len(equal) > PARTS else []
            parts.append(f"{n} for {units.listed([*equal[:PARTS], *more])}")
        fewer = [r.cell.name for method, cells in methods.items() if counts[method] < numbers[-1] for r in cells]
        yield f"The number of settings tried differs between methods{where}: {'; '.join(parts)}.", tuple(fewer)


def _optim(record: Record) -> dict[str, Any]:
    return record.cell.settings.method.optim or {}


def per_layer(records: Sequence[Record]) -> Sentences:
    """Methods that update each layer during the backward pass have ``per_layer: true`` in their optim slot."""
    for where, members in places(records):
        stepped = [record for record in members if _optim(record).get("per_layer")]
        projected = [record for record in stepped if _optim(record).get("matrices")]
        if projected and len(projected) == len(stepped):
            yield (
                f"Per-layer updates save memory by themselves, since only one layer's gradients are held at a time. "
                f"Without a row of plain per-layer AdamW{where}, the saving of low rank in "
                f"{named(projected, members)} can't be separated from it.",
                tuple(record.cell.name for record in projected),
            )


def first_projections(records: Sequence[Record]) -> Sentences:
    """Methods of low-rank gradients whose runs kept their first projection."""
    for (method, why), cells in group_by(records, lambda record: (record.cell.method, never_renewed(record))).items():
        if why:
            yield (
                f"{method}'s projection was never renewed ({why}): such a run says little of longer ones.",
                tuple(record.cell.name for record in cells),
            )


def never_renewed(record: Record) -> str:
    """How many steps a run took, if it is of low-rank gradients and kept its first projection; else empty.

    galore-torch projects anew at step 0, update_proj_gap, twice that, and so on. Within one projection the update of a
    matrix stays in one space of low rank, as that of an adapter does: it is the changes of space that GaLore adds.
    """
    gap = record.cell.knobs.get("update_proj_gap")
    steps = record.train.steps if record.train else None
    return f"{units.plural(steps, 'step')}, update_proj_gap={gap}" if gap and steps and steps <= gap else ""


def resumed(records: Sequence[Record]) -> Sentences:
    """Cells that were resumed with steps left to take; others were timed as a whole."""
    cells = [r for r in records if r.train and any(step < r.train.steps for step in r.train.resumed_at)]
    if cells:
        yield (
            f"Training was interrupted and resumed from a checkpoint in {named(cells, records)}: its speed is that of "
            "several processes.",
            tuple(record.cell.name for record in cells),
        )


def smaller_batches(records: Sequence[Record]) -> Sentences:
    fixed_size = [record for record in records if not record.cell.settings.train.sizes_itself]
    shapes = {id(record): _shapes(ran, record) for record in fixed_size if (ran := record.smaller_batches)}
    cells = [record for record in fixed_size if id(record) in shapes]
    if cells:
        texts = units.listed(list(dict.fromkeys(shapes.values()))[:VALUES])
        yield (
            f"After running out of memory, {named(cells, records)} ran with smaller micro-batches ({texts}): speed "
            "and memory are not comparable.",
            tuple(record.cell.name for record in cells),
        )


def fitting_batches(records: Sequence[Record]) -> Sentences:
    """Micro-batches of train.batch_size=auto depend on the method's memory; fixed ones are compared with them too."""
    for where, members in places(records):
        if any(record.cell.settings.train.sizes_itself for record in members):
            subject = f"Automatic micro-batches differ, so speed and memory are not comparable{where}"
            yield from confounded(subject, tuned(members), micro_batches_text)


def micro_batches_text(record: Record) -> str | None:
    """The micro-batches of a step as size × number, such as ``8 × 4``; None if unknown."""
    ran = micro_batches(record)
    return ran and f"{ran[0]} × {ran[1]}"


def _shapes(ran: SmallerBatches, record: Record) -> str:
    train = record.cell.settings.train
    return f"{ran.batch_size} × {ran.grad_accum} instead of {train.batch_size} × {train.grad_accum or 1}"
