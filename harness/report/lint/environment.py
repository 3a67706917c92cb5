"""Rules on where cells ran: library versions, devices, code, speed-ups, overlapping runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from harness import units
from harness.grouping import grouped
from harness.record import Instrument, Record, memory_instrument, overlapping, train_memory
from harness.report.lint.differences import (
    Sentences,
    differ,
    environment_part,
    finished,
    group_by,
    named,
    places,
    tuned,
)
from harness.report.reruns import stack

BY_LIBRARIES = re.compile(r"KMP_(DUPLICATE_LIB_OK|INIT_AT_FORK)")  # variables that scikit-learn sets, once imported
OF_GPUS = re.compile(r"PYTORCH_(\w+_)?ALLOC_CONF|TORCH_CUDNN_\w+")  # variables that change nothing on a CPU
INSTRUMENTS: dict[Instrument, str] = {"allocator": "CUDA's allocator", "tensors": "a count of live tensors"}

CLOCKS = 0.03  # clocks further apart than this share are told
POWER_LIMIT = "sw_power_cap"
THROTTLING = {POWER_LIMIT, "hw_slowdown", "sw_thermal_slowdown", "hw_thermal_slowdown", "hw_power_brake"}


def ran_with(record: Record) -> dict[str, str]:
    """The device, precision, threads, library versions and commit of a cell, as far as its record has them."""
    device, cpu, versions, git = (environment_part(record, name) for name in ("device", "cpu", "versions", "git"))
    on_cpu = device.get("type") == "cpu"
    values = {
        "device type": device.get("type"),
        "device": f"{cpu.get('cores')} cores of {cpu.get('name')}" if on_cpu and cpu else device.get("name"),
        "precision": record.environment.get("precision"),
        "threads": record.environment.get("threads"),
        **{package: versions.get(package) for package in ("torch", "transformers", "peft", "lm_eval")},
    }
    if commit := git.get("commit"):
        values["harness commit"] = f"{str(commit)[:12]}{' with uncommitted changes' if git.get('dirty') else ''}"
    return {name: str(value) for name, value in values.items() if value is not None}


def same_environment(
    subject: str, facts: Callable[[Record], dict[str, str]]
) -> Callable[[Sequence[Record]], Sentences]:
    """The rule that `facts` of the environment are equal; its sentence names only those that differ."""

    def rule(records: Sequence[Record]) -> Sentences:
        # a failed cell may have recorded fewer facts than the others
        groups = group_by(records, lambda r: (tuple(facts(r).items()), "unknown" if r.status == "ok" else None))
        distinct = [(dict(own), missing) for own, missing in groups]
        names = dict.fromkeys(name for own, _ in distinct for name in own)
        differing = [name for name in names if len({own.get(name, missing) for own, missing in distinct} - {None}) > 1]
        if differing:
            texts: dict[int, str | None] = {}
            for (own, missing), members in zip(distinct, groups.values(), strict=True):
                values = [(name, own.get(name, missing)) for name in differing]
                text = ", ".join(f"{name} {value}" for name, value in values if value is not None)
                texts |= dict.fromkeys(map(id, members), text or None)
            yield from differ(subject, records, lambda record: texts[id(record)])

    return rule


def versions(record: Record) -> dict[str, str]:
    return {name: str(version) for name, version in environment_part(record, "versions").items() if version is not None}


def versions_of_runs(records: Sequence[Record]) -> Sentences:
    """The rule that all runs of an imported experiment had the same libraries."""
    others = grouped(
        (stack(again.environment), record.cell.name)
        for record in records
        if record.source is not None
        for again in record.repeats
        if stack(again.environment) != stack(record.environment)
    )
    if others:
        parts = [f"{versions} in {units.plural(len(names), 'run')}" for versions, names in sorted(others.items())]
        cells = tuple(dict.fromkeys(name for names in others.values() for name in names))
        yield f"Earlier runs had other library versions than the latest, which move scores: {'; '.join(parts)}.", cells


def device(record: Record) -> dict[str, str]:
    """The device, and the facts about it that change speed or memory."""
    hardware, ran = environment_part(record, "device"), ran_with(record)
    facts = {name: ran.get(name) for name in ("device type", "device", "threads")}
    facts |= {name: hardware.get(name) for name in ("driver", "cuda", "cudnn")}
    facts |= {"allocator": _variables(record)}
    return {name: str(value) for name, value in facts.items() if value is not None}


def _variables(record: Record) -> str | None:
    """The variables that steer memory and threads on its device, but for those of libraries; None without any.

    A cell that reached no device has none: which of its variables would have counted is unknown.
    """
    device_type = environment_part(record, "device").get("type")
    if device_type is None:
        return None
    on_cpu = device_type == "cpu"
    variables = {n: v for n, v in environment_part(record, "allocator").items() if not BY_LIBRARIES.fullmatch(n)}
    return " ".join(f"{n}={v}" for n, v in variables.items() if not (on_cpu and OF_GPUS.fullmatch(n))) or None


def code(records: Sequence[Record]) -> Sentences:
    commits = same_environment("The harness's code differs", _commit)
    sentences = list(commits(records))
    dirty = [record for record in records if environment_part(record, "git").get("dirty")]
    if dirty and not sentences:
        names = tuple(record.cell.name for record in dirty)
        changed = f"The harness had uncommitted changes in {named(dirty, records)}: the exact code is unknown."
        sentences = [(changed, names)]
    yield from sentences


def _commit(record: Record) -> dict[str, str]:
    return {name: value for name, value in ran_with(record).items() if name == "harness commit"}


def speedups(records: Sequence[Record]) -> Sentences:
    """A cell that records other speed-ups but not this one has no use for it (as untuned rows have none for some)."""
    for where, members in places(records):
        with_speedups = [record for record in members if environment_part(record, "speedups")]
        unknown = [r for r in finished(tuned(members)) if with_speedups and not environment_part(r, "speedups")]
        for name in dict.fromkeys(name for record in with_speedups for name in environment_part(record, "speedups")):

            def value(record: Record, name: str = name) -> str | None:
                states = environment_part(record, "speedups")
                return states.get(name) if states else "not recorded"

            yield from differ(f"The speed-up {name} differs{where}", with_speedups + unknown, value)


def memory_instruments(records: Sequence[Record]) -> Sentences:
    """Peaks of CUDA's allocator and peaks of live tensors are different quantities; per place, as they are compared."""
    for where, members in places(records):
        yield from differ(f"Peak memory is measured by different instruments{where}", members, _memory_measured_by)


def _memory_measured_by(record: Record) -> str | None:
    instrument = memory_instrument(record)
    return None if instrument is None or train_memory(record) is None else INSTRUMENTS[instrument]


def throttled(records: Sequence[Record]) -> Sentences:
    """Cells whose GPU lowered its clocks; clocks that were set by hand are another rule's."""
    cells = {id(record): why for record in records if (why := throttling(record))}
    slowed = [record for record in records if id(record) in cells]
    if slowed:
        reasons = sorted({name for names in cells.values() for name in names})
        yield (
            f"The GPU throttled ({', '.join(reasons)}) in {named(slowed, records)}: speed depends on its temperature "
            "and power.",
            tuple(record.cell.name for record in slowed),
        )


def throttling(record: Record) -> set[str]:
    """Why a GPU lowered its clocks while the cell was timed; empty if none did, or none is known to have."""
    gpus = (*record.gpus, *record.decoding_gpus)
    return {reason for gpu in gpus for reason in gpu.throttle_reasons or ()} & THROTTLING


def power_limits(records: Sequence[Record]) -> Sentences:
    yield from differ("Power limits of GPUs differ, so speeds are not comparable", records, _power_limit)


def _power_limit(record: Record) -> str | None:
    limits = sorted({gpu.power_limit_watts for gpu in record.gpus if gpu.power_limit_watts is not None})
    return " and ".join(f"{limit:.0f} W" for limit in limits) or None


def clocks(records: Sequence[Record]) -> Sentences:
    """Median clocks in training that are further apart than boost clocks drift by themselves."""
    for name, words in (("sm_mhz", "SM clocks"), ("memory_mhz", "Memory clocks")):
        lowest = [(record, min(readings)) for record in records if (readings := _clocks(record, name))]
        if not lowest:
            continue
        (slow, low), (fast, high) = (pick(lowest, key=lambda of: of[1]) for pick in (min, max))
        if high > low * (1 + CLOCKS):
            apart = tuple(record.cell.name for record, clock in lowest if high > clock * (1 + CLOCKS))
            yield (
                f"{words} differ by more than {CLOCKS:.0%}, so speeds are not comparable: {low:,.0f} MHz in "
                f"{named([slow], records)}, {high:,.0f} MHz in {named([fast], records)}.",
                apart,
            )


def _clocks(record: Record, name: str) -> list[float]:
    return [value for gpu in record.gpus if (value := getattr(gpu, name)) is not None]


def sources(records: Sequence[Record]) -> Sentences:
    yield from differ(
        "The study mixes measurements of different projects",
        records,
        lambda record: record.source.project if record.source else "this harness",
    )


def overlap(records: Sequence[Record]) -> Sentences:
    """Cells that ran at the same time on one GPU."""
    together = overlapping(records)
    if together:
        cells = [record for record in records if id(record) in together]
        yield (
            f"Other cells ran on the machine at the same time, which affects speed and memory, in "
            f"{named(cells, records)}.",
            tuple(record.cell.name for record in cells),
        )
