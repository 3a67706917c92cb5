"""What makes the cells of a study hard to compare: a pure function of its records, one sentence a finding.

    for finding in findings(records):
        print(finding.sentence)

A difference that every method has alike is an axis of the study (two batch shapes, each run by all) and no finding; nor
is what makes a method what it is: its adapter, its optimizer, NF4 weights, no steps for an untuned row.
"""

from __future__ import annotations

import hashlib
import json
import re
import textwrap
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal

from harness.record import Inference, Probe, Record, behind_api, device_count, fits_itself, micro_batches

# Of an adapter's settings, those that say which modules it changes
TARGETS = ("target_modules", "exclude_modules", "layers_to_transform", "target_parameters")
# Of the training's settings, those that another rule looks at, or that change no result
APART = {"max_steps", "batch_size", "global_batch", "grad_accum", "precision", "validate_every"}
SWITCHES = ("packing", "activation_offload", "compile", "gradient_checkpointing")  # left out where they are off
SHARED = ("devices", "parallel")  # how a step is shared out, which changes neither its batch nor its result
# Rules on what is known of weights that are here alone, and not of a model behind an API
OF_WEIGHTS = {"precision", "fingerprints", "device", "speedups", "base"}
CUT = 0.05  # of a model's answers: as many may be cut off and nothing is said
VALUES, PARTS, EXAMPLES = 4, 4, 3  # at most so many are told; the rest is counted


@dataclass(frozen=True)
class Finding:
    """One sentence on why cells can't be compared as they stand.

    rule: a key of `RULES`; kind: unequal, for what differs between cells that are compared, or incomplete, for what
    the study lacks; cells: names of those that stand apart, in the records' order; none where all are meant.
    """

    study: str
    rule: str
    kind: Literal["unequal", "incomplete"]
    sentence: str
    cells: tuple[str, ...] = ()


def findings(records: Sequence[Record]) -> list[Finding]:
    """All findings on `records`, study by study, in the order of `RULES`."""
    studies = _by(records, lambda record: record.study)
    return [
        Finding(study, rule, kind, sentence, cells)
        for study, members in studies.items()
        for rule, (kind, look) in RULES.items()
        for sentence, cells in look([r for r in members if not behind_api(r.cell)] if rule in OF_WEIGHTS else members)
    ]


def ran_with(record: Record) -> dict[str, str]:
    """What a record's environment, a free dict of which any part may be missing, tells of where the cell ran."""
    device, cpu, versions, git = (_part(record, name) for name in ("device", "cpu", "versions", "git"))
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


# How differences are found and told

Said = Iterable[tuple[str, tuple[str, ...]]]  # sentences, each with the names of the cells that stand apart
Value = Callable[[Record], str | None]


def _method(record: Record) -> str:
    return record.cell.method


def _point(record: Record) -> tuple[Hashable, ...]:
    """What a method is tuned by."""
    cell = record.cell
    return cell.lr, cell.rank, cell.alpha, _hashed(cell.knobs)


def _unit(record: Record) -> tuple[Hashable, ...]:
    return record.cell.method, _point(record)


def _differ(subject: str, records: Sequence[Record], value: Value, tail: str = "") -> Said:
    """A sentence if records, compared within `records`, have more than one value; None is not compared.

    The cells that stand apart are all but those with the commonest value.
    """
    by_value = _by([record for record in records if value(record) is not None], value)
    if len(by_value) < 2:
        return
    ordered = sorted(by_value.items(), key=lambda item: -len(item[1]))
    told = [f"{text} in {_named(cells, records)}" for text, cells in ordered[:VALUES]]
    if rest := sum(len(cells) for _, cells in ordered[VALUES:]):
        told.append(f"others in {_cells(rest)}")
    apart = {id(record) for _, cells in ordered[1:] for record in cells}
    yield f"{subject}: {'; '.join(told)}.{tail}", tuple(r.cell.name for r in records if id(r) in apart)


def _confounded(
    subject: str, records: Sequence[Record], value: Value, unit: Callable[[Record], Hashable] = _unit
) -> Said:
    """As `_differ`, unless every unit has every value: then it is an axis of the study.

    unit: a method in one of its settings; what broken cells did not live to tell is compared between whole methods.
    """
    having = defaultdict(set)
    for record in records:
        having[value(record)].add(unit(record))
    having.pop(None, None)
    if len(set(map(frozenset, having.values()))) > 1:
        yield from _differ(subject, records, value)


def _named(cells: Sequence[Record], among: Sequence[Record]) -> str:
    """`cells` in words: methods all of whose cells are meant by their names, the others by examples."""
    everyone, parts, single = _by(among, _method), [], []
    for method, members in _by(cells, _method).items():
        if len(members) < len(everyone[method]):
            single += members
        else:
            parts.append((method if len(members) == 1 else f"{method} ({_cells(len(members))})", len(members)))
    names = _short_names(among)
    shown = parts[:PARTS] + [(names[id(record)], 1) for record in single[:EXAMPLES]]
    told, rest = [text for text, _ in shown], len(cells) - sum(n for _, n in shown)
    return _listed([*told, *([f"{_cells(rest)} more"] if rest else [])])


def _listed(texts: Sequence[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def _short_names(records: Sequence[Record]) -> dict[int, str]:
    """Names without the id where that leaves them apart, by the identity of the record."""
    short = {id(record): record.cell.name.removesuffix(f"-{record.cell.id[:6]}") for record in records}
    count = defaultdict(int)
    for name in short.values():
        count[name] += 1
    return {id(r): short[id(r)] if count[short[id(r)]] == 1 else r.cell.name for r in records}


def _cells(n: int) -> str:
    return f"{n} cell{'s' if n != 1 else ''}"


def _by(records: Iterable[Record], key: Callable[[Record], Hashable]) -> dict[Any, list[Record]]:
    groups = defaultdict(list)
    for record in records:
        groups[key(record)].append(record)
    return dict(groups)


def _places(records: Sequence[Record]) -> list[tuple[str, list[Record]]]:
    """Cells are compared within one model and data; each with words that say which, if there are several."""
    places = _by(records, lambda record: (record.cell.model, record.cell.data))
    return [(f" ({'/'.join(place)})" if len(places) > 1 else "", members) for place, members in places.items()]


def _finished(records: Iterable[Record]) -> list[Record]:
    return [record for record in records if record.status == "ok"]


def _tuned(records: Iterable[Record]) -> list[Record]:
    return [record for record in records if record.cell.seed is not None]


def _part(record: Record, name: str) -> dict[str, Any]:
    part = record.environment.get(name)
    return part if isinstance(part, dict) else {}


def _slot(record: Record, *path: str) -> Any:
    """A resolved setting, or None where the record's settings, a free dict, have none."""
    found: Any = record.cell.settings
    for name in path:
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _text(value: Any) -> str | None:
    """A setting as text; lists in an order of their own, as they are sets."""
    if isinstance(value, list):
        return ", ".join(sorted(map(str, value)))
    return None if value is None else value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _hashed(value: Any) -> str:
    return json.dumps(value, sort_keys=True) if value else repr(value)


# Training


def _tokens(records: Sequence[Record]) -> Said:
    for where, members in _places(records):
        tuned, subject = _tuned(members), f"Token budgets differ{where}"
        planned = list(_confounded(subject, tuned, lambda r: _steps(_slot(r, "train", "max_steps"))))
        yield from planned or _first(_alike(tuned), lambda group, s=subject: _differ(s, group, _budget))


def _steps(n: Any) -> str | None:
    return None if n is None else f"{n:,} steps"


def _budget(record: Record) -> str | None:
    train = record.train
    return f"{train.steps:,} steps over {train.tokens.raw:,} raw tokens" if train else None


def _alike(records: Sequence[Record]) -> list[list[Record]]:
    """Finished cells that should have trained on the same batches: those of one seed, data and training settings."""

    def key(record: Record) -> tuple[Hashable, ...]:
        train = {name: value for name, value in (_slot(record, "train") or {}).items() if name not in SHARED}
        return record.cell.seed, _hashed(train), record.fingerprints.get("data")

    return list(_by([record for record in _finished(records) if record.train], key).values())


def _first(groups: Sequence[list[Record]], look: Callable[[list[Record]], Said]) -> Said:
    """The sentence on the first group that has one, with a word on how many others have."""
    said = [sentence for group in groups for sentence in look(group)]
    if said:
        sentence, _ = said[0]
        more = f"{len(said) - 1} more group{'s' if len(said) > 2 else ''} of cells that should be alike"
        yield (
            sentence + (f" Likewise in {more}." if len(said) > 1 else ""),
            tuple(name for _, cells in said for name in cells),
        )


def _order(records: Sequence[Record]) -> Said:
    for where, members in _places(records):
        groups = [same for group in _alike(_tuned(members)) for same in _by(group, _budget).values()]
        subject = f"Cells of one seed saw different batches, or in another order{where}"
        yield from _first(groups, lambda group, subject=subject: _differ(subject, group, _batches))


def _batches(record: Record) -> str | None:
    return f"hash {record.train.batches.removeprefix('sha256:')[:8]}" if record.train.batches else None


def _batch(records: Sequence[Record]) -> Said:
    for where, members in _places(records):
        yield from _confounded(f"Effective batches differ{where}", _tuned(members), _effective)


def _effective(record: Record) -> str | None:
    name = "global_batch" if fits_itself(record.cell) else "batch_size"
    size, accum = _slot(record, "train", name), _slot(record, "train", "grad_accum")
    return f"{size * (accum or 1)} sequences a step" if size else None


def _training(records: Sequence[Record]) -> Said:
    for where, members in _places(records):
        tuned = _tuned(members)
        names = dict.fromkeys(name for record in tuned for name in _slot(record, "train") or {} if name not in APART)
        for name in names:
            if name != "seed":
                subject = f"The setting train.{name} differs{where}"
                yield from _confounded(subject, tuned, lambda r, name=name: _trained(r, name))


def _trained(record: Record, name: str) -> str | None:
    if name == "devices":
        return str(device_count(record.cell.settings))
    settings = _slot(record, "train") or {}
    return _text(settings.get(name, False if name in SWITCHES and settings else None))


def _targets(records: Sequence[Record]) -> Said:
    """Of adapters that name modules at all: what full fine-tuning or a prompt changes is their nature."""
    for where, members in _places(records):
        yield from _confounded(f"Targets of adapters differ{where}", members, _target)


def _target(record: Record) -> str | None:
    adapter = _slot(record, "method", "adapt")
    if not isinstance(adapter, dict) or adapter.get("target_modules") is None:
        return None
    texts = {name: _text(adapter.get(name)) for name in TARGETS}
    others = [f"{name} {text}" for name, text in texts.items() if text is not None and name != "target_modules"]
    return "; ".join([str(texts["target_modules"]), *others])


def _precision(records: Sequence[Record]) -> Said:
    for where, members in _places(records):
        known = [record for record in members if record.status == "ok" or record.environment.get("precision")]
        yield from _confounded(f"Precisions differ{where}", known, _precise, _method)


def _precise(record: Record) -> str:
    dtype = _slot(record, "method", "load", "dtype")  # of the weights that are not quantised
    computed = record.environment.get("precision") or "unknown precision"
    upcast = ", but for matrices upcast to float32" if _slot(record, "model", "upcast") else ""
    return f"{computed} over {dtype} weights{upcast}" if dtype else str(computed)


def _attention(records: Sequence[Record]) -> Said:
    for where, members in _places(records):
        yield from _confounded(f"Attention was computed in different ways{where}", members, _attended, _method)


def _attended(record: Record) -> str | None:
    """The operations that the probe saw; older records don't tell."""
    return attention_text(record.probe) if record.probe else None


def attention_text(probe: Probe) -> str | None:
    """Which operations of attention ran, and in which dtypes."""
    return ", ".join(sorted(probe.attention)) or None


def _tries(records: Sequence[Record]) -> Said:
    """Settings that a method was tried in, by its axes and knobs; failed ones were tried too."""
    for where, members in _places(records):
        tuned = _by(_tuned(members), _method)
        counts = {method: len({_point(record) for record in cells}) for method, cells in tuned.items()}
        numbers = sorted(set(counts.values()))
        if len(numbers) < 2:
            continue
        told = []
        for n in numbers:
            methods = [method for method, count in counts.items() if count == n]
            more = [f"{len(methods) - PARTS} methods more"] if len(methods) > PARTS else []
            told.append(f"{n} of {_listed([*methods[:PARTS], *more])}")
        fewer = [r.cell.name for method, cells in tuned.items() if counts[method] < numbers[-1] for r in cells]
        yield f"Methods were tried in unequal numbers of settings{where}: {'; '.join(told)}.", tuple(fewer)


# Evaluation and what it is of


def _evaluation(records: Sequence[Record]) -> Said:
    for where, members in _places(records):
        said = []
        for name in ("tasks", "limit", "num_fewshot", "seed", "engine", *CHAT):
            subject = f"The setting eval.{name} differs{where}"
            said += _confounded(subject, members, lambda r, name=name: _eval_setting(r, name))
        yield from said or _scored(members, where)


def _asked_by(records: Sequence[Record]) -> Said:
    """A chat is another measurement; completions have the log-probabilities that a model which is here gives."""
    if any(record.api for record in records):
        scored = [record for record in records if record.scores]
        yield from _differ(
            "Models were asked in different ways",
            scored,
            lambda r: "by chat" if r.api and r.api.kind == "chat" else "with log-probabilities",
            " Scores by chat are compared with no others.",
        )


def _cut_off(records: Sequence[Record]) -> Said:
    """Answers without their end are mostly wrong, and a model that thinks first may be cut off before it begins one."""
    for record in records:
        if record.api and (record.api.cut or 0) > CUT * record.api.requests:
            yield (
                f"Of {record.api.requests:,} answers of {record.cell.model}, {record.api.cut:,} were cut off at their "
                "limit of tokens; a model that thinks before it answers needs room for that: model.thinking=8192.",
                (record.cell.name,),
            )


def _drawn(records: Sequence[Record]) -> Said:
    for record in records:
        if record.api and "temperature" in record.api.left_out:
            yield (
                f"{record.cell.model} takes no temperature: its answers are drawn at random, and would be others "
                "another time.",
                (record.cell.name,),
            )


CHAT = ("chat_template", "fewshot_as_multiturn", "system_instruction")  # how a question is put, where not plainly


def _eval_setting(record: Record, name: str) -> str | None:
    settings = _slot(record, "eval")
    if not isinstance(settings, dict):
        return None
    return _text(settings.get(name)) or ("auto" if name == "engine" else "not set")


def _scored(members: Sequence[Record], where: str) -> Said:
    """What cells of the same settings were asked: the same number of items, and the same items."""
    scored = [record for record in _finished(members) if record.scores]
    groups = list(_by(scored, lambda record: _hashed(_slot(record, "eval"))).values())
    said = []
    for task in dict.fromkeys(score.task for record in scored for score in record.scores):
        subject = f"Cells were scored differently on {task}{where}"
        told = _first(groups, lambda g, s=subject, t=task: _differ(s, g, lambda r: _asked(r, t), DELTA))
        said += told
    samples: dict[int, str | None] = {}  # thousands of records share one list of thousands of items

    def sample(record: Record) -> str | None:
        if id(record.items) not in samples:
            samples[id(record.items)] = _sample(record)
        return samples[id(record.items)]

    yield from said or _first(
        groups, lambda group: _differ(f"Cells were scored on different items{where}", group, sample)
    )


DELTA = " Δ is given where they match."


def _asked(record: Record, task: str) -> str:
    score = next((score for score in record.scores if score.task == task), None)
    if score is None:
        return "not at all"
    return f"on {score.n:,} items, {score.num_fewshot}-shot, task version {score.version}"


def _sample(record: Record) -> str | None:
    return f"hash {hashlib.sha256(_hashed(record.items).encode()).hexdigest()[:8]}" if record.items else None


def _fingerprints(records: Sequence[Record]) -> Said:
    for where, members in _places(records):
        for name in dict.fromkeys(name for record in members for name in record.fingerprints):
            subject = f"Fingerprints of the {name} differ{where}"
            yield from _confounded(subject, members, lambda r, name=name: _fingerprint(r, name), _method)


def _fingerprint(record: Record, name: str) -> str | None:
    told = record.fingerprints.get(name)
    return told[7:19] if told and told.startswith("sha256:") else told


def _contaminated(records: Sequence[Record]) -> Said:
    for where, members in _places(records):
        for task in dict.fromkeys(task for record in members for task in record.contamination):
            cells = [r for r in members if task in r.contamination and r.contamination[task].shared]
            if cells:
                found = [record.contamination[task] for record in cells]
                counts = [f"{count:,}" for count in sorted({overlap.shared for overlap in found})]
                many = " to ".join(dict.fromkeys([counts[0], counts[-1]]))
                yield (
                    f"{many} of {found[0].items:,} items of {task} share {found[0].words} words in a row with what was "
                    f"trained on{where}, in {_named(cells, members)}: they may be remembered, or both be of one "
                    "template.",
                    tuple(record.cell.name for record in cells),
                )


def _inference(records: Sequence[Record]) -> Said:
    for where, members in _places(records):
        subject = f"Inference was measured differently{where}"
        yield from _confounded(subject, [r for r in _finished(members) if r.inference], _inferred, _method)


def _inferred(record: Record) -> str:
    return "; ".join(dict.fromkeys(inference_text(speed) for speed in record.inference.values()))


def inference_text(speed: Inference) -> str:
    """How one form of a model was made to answer."""
    return f"{speed.prompt_tokens} tokens read and {speed.new_tokens} written, {speed.batch_size} sequences at a time"


# Where cells ran


def _environment(subject: str, facts: Callable[[Record], dict[str, str]]) -> Callable[[Sequence[Record]], Said]:
    """The rule that `facts` of the environment are the same; those alone are told that differ."""

    def rule(records: Sequence[Record]) -> Said:
        # A failed cell may know less than the others
        told = {id(r): defaultdict(lambda ok=r.status == "ok": "unknown" if ok else None, facts(r)) for r in records}
        names = dict.fromkeys(name for known in told.values() for name in known)
        differing = [name for name in names if len({known[name] for known in told.values()} - {None}) > 1]

        def value(record: Record) -> str | None:
            known = told[id(record)]
            return ", ".join(f"{name} {known[name]}" for name in differing if known[name] is not None) or None

        yield from _differ(subject, records, value)

    return rule


def _versions(record: Record) -> dict[str, str]:
    return {name: str(version) for name, version in _part(record, "versions").items() if version is not None}


def _device(record: Record) -> dict[str, str]:
    """The device, and what on it changes speed or memory."""
    device, told = _part(record, "device"), ran_with(record)
    known = {name: told.get(name) for name in ("device type", "device", "threads")}
    known |= {name: device.get(name) for name in ("driver", "cuda", "cudnn")}
    known |= {"allocator": _text(_part(record, "allocator") or None)}
    return {name: str(value) for name, value in known.items() if value is not None}


def _code(records: Sequence[Record]) -> Said:
    commits = _environment("The harness's code differs", lambda r: _chosen(ran_with(r), "harness commit"))
    said = list(commits(records))
    dirty = [record for record in records if _part(record, "git").get("dirty")]
    if dirty and not said:
        names = tuple(record.cell.name for record in dirty)
        said = [(f"The harness had uncommitted changes in {_named(dirty, records)}: what ran can't be told.", names)]
    yield from said


def _chosen(facts: dict[str, str], name: str) -> dict[str, str]:
    return {name: facts[name]} if name in facts else {}


def _speedups(records: Sequence[Record]) -> Said:
    """A speed-up that a cell's record does not name, while it names others, has no place in it (an untuned row's)."""
    for where, members in _places(records):
        told = [record for record in members if _part(record, "speedups")]
        silent = [r for r in _finished(_tuned(members)) if told and not _part(r, "speedups")]
        for name in dict.fromkeys(name for record in told for name in _part(record, "speedups")):

            def value(record: Record, name: str = name) -> str | None:
                known = _part(record, "speedups")
                return known.get(name) if known else "not told"

            yield from _differ(f"The speed-up {name} differs{where}", told + silent, value)


def _sources(records: Sequence[Record]) -> Said:
    yield from _differ(
        "Measurements of different projects stand together",
        records,
        lambda record: f"those of {record.source.project if record.source else 'the harness'}",
    )


def _overlap(records: Sequence[Record]) -> Said:
    """Cells that ran while another did, GPU by GPU. Starts are in whole seconds, so less than one tells nothing."""
    together: dict[int, Record] = {}
    on = defaultdict(list)
    for record in records:
        for gpu in _gpus(record) if record.seconds else ():
            on[gpu].append(record)
    for members in on.values():
        running: Record | None = None  # of those seen so far, the one that ends last
        for record in sorted(members, key=_start):
            if running is not None and _start(record) + 1 < _start(running) + running.seconds:
                together |= {id(running): running, id(record): record}
            if running is None or _start(record) + record.seconds > _start(running) + running.seconds:
                running = record
    if together:
        cells = [record for record in records if id(record) in together]
        yield (
            f"Memory and speed were measured while another cell ran on the machine, in {_named(cells, records)}.",
            tuple(record.cell.name for record in cells),
        )


def _start(record: Record) -> float:
    return datetime.fromisoformat(record.started).timestamp()


def _gpus(record: Record) -> list[Hashable]:
    """The boot with each GPU; of older records the processor and its memory, to the byte hardly another machine's."""
    cpu = _part(record, "cpu")
    boot = record.environment.get("boot") or (cpu.get("memory_bytes") and (cpu.get("name"), cpu.get("memory_bytes")))
    return [(boot, gpu) for gpu in str(_part(record, "device").get("id")).split("+")] if boot else []


def _per_layer(records: Sequence[Record]) -> Said:
    """A method that steps each layer in the backward pass says so in its optim slot: ``per_layer: true``."""
    for where, members in _places(records):
        stepped = [record for record in members if _slot(record, "method", "optim", "per_layer")]
        projected = [record for record in stepped if _slot(record, "method", "optim", "matrices")]
        if projected and len(projected) == len(stepped):
            yield (
                f"Updates of one layer at a time save memory by themselves, as no two layers' gradients are held: "
                f"without a row of plain AdamW per layer{where}, what low rank saves in "
                f"{_named(projected, members)} can't be told from it.",
                tuple(record.cell.name for record in projected),
            )


def _resumed(records: Sequence[Record]) -> Said:
    """One that had no step left to take when it was resumed was timed as a whole."""
    cells = [r for r in records if r.train and any(step < r.train.steps for step in r.train.resumed_at)]
    if cells:
        yield (
            f"Training broke off and was resumed from a checkpoint in {_named(cells, records)}: its speed is that of "
            "several processes.",
            tuple(record.cell.name for record in cells),
        )


def _rescored(records: Sequence[Record]) -> Said:
    """Tasks that a cell was scored on after it had ended, and what that was done with where it was not the same."""
    for where, members in _places(records):
        for task in dict.fromkeys(task for record in members for later in record.rescored for task in later.tasks):
            scored = [record for record in members if any(score.task == task for score in record.scores)]
            rule = _environment(f"{task} was scored by unequal means{where}", lambda r, task=task: _means(r, task))
            yield from rule(scored)


def _means(record: Record, task: str) -> dict[str, str]:
    """By what the scores of a task were made: where, with which versions, and how its questions were put."""
    later = next((later for later in record.rescored if task in later.tasks), None)
    settings = (later.settings if later else _slot(record, "eval")) or {}
    facts = ran_with(replace(record, environment=later.environment) if later else record)
    told = {name: facts.get(name) for name in ("device", "precision", "torch", "transformers", "peft", "lm_eval")}
    told |= {"engine": settings.get("engine", "auto")} | {name: _text(settings.get(name)) or "not set" for name in CHAT}
    return {name: value for name, value in told.items() if value is not None}


def _smaller(records: Sequence[Record]) -> Said:
    cells = [record for record in records if record.smaller_batches and not fits_itself(record.cell)]
    if cells:
        shapes = _listed(list(dict.fromkeys(map(_shapes, cells)))[:VALUES])
        yield (
            f"Out of memory as they were asked for, {_named(cells, records)} ran in smaller micro-batches ({shapes}): "
            "speed and memory are not comparable.",
            tuple(record.cell.name for record in cells),
        )


def _fitting(records: Sequence[Record]) -> Said:
    """Micro-batches of train.batch_size=auto, which the method's memory decides; a fixed one beside them counts too."""
    for where, members in _places(records):
        if any(fits_itself(record.cell) for record in members):
            subject = f"The micro-batches that fit differ, so speed and memory are not comparable{where}"
            yield from _confounded(subject, _tuned(members), micro_batches_text)


def micro_batches_text(record: Record) -> str | None:
    """The micro-batches that a cell's steps were taken in, such as ``8 × 4``; None where it is not known."""
    ran = micro_batches(record)
    return ran and f"{ran[0]} × {ran[1]}"


def _shapes(record: Record) -> str:
    ran, (size, accum) = record.smaller_batches, (_slot(record, "train", k) for k in ("batch_size", "grad_accum"))
    return f"{ran.batch_size} × {ran.grad_accum} in place of {size} × {accum or 1}"


# What a study lacks


def _base(records: Sequence[Record]) -> Said:
    """A base row is of its model, whatever its data: the weights are the same."""
    models = _by(records, lambda record: record.cell.model)
    wanting = [
        model
        for model, members in models.items()
        if not any(r.cell.method == "base" and r.status == "ok" and r.scores for r in members)
        and any(record.scores for record in members)
    ]
    if wanting:
        where = f" for {', '.join(wanting)}" if len(wanting) < len(models) else ""
        yield f"No finished base row{where}: Δ can't be shown.", ()


def _seeds(records: Sequence[Record]) -> Said:
    rows = _by(_tuned(_finished(records)), lambda r: (r.cell.model, r.cell.data, _point(r), _unseeded(r)))
    counts = {len(members) for members in rows.values()}
    if counts == {1}:
        yield "One seed: how results vary from seed to seed is not in the errors.", ()
    elif len(counts) > 1:
        cells = {id(record): len(members) for members in rows.values() for record in members}
        known = [record for record in records if id(record) in cells]
        yield from _differ("Numbers of seeds differ", known, lambda r: f"{cells[id(r)]} seeds")


def _unseeded(record: Record) -> str:
    """All settings but the seeds: what cells share that repeat each other."""

    def without(value: Any) -> Any:
        return {k: without(v) for k, v in value.items() if k != "seed"} if isinstance(value, dict) else value

    return _hashed([record.cell.method, without(record.cell.settings)])


def _failed(records: Sequence[Record]) -> Said:
    refused = [record for record in records if record.status == "unfit"]
    failed = [record for record in records if record.status not in ("ok", "unfit")]
    for subject, cells in (("Cells that were not run", refused), ("Failed cells", failed)):
        if cells:
            reasons = "; ".join(f"{record.cell.name}: {_reason(record)}" for record in cells)
            yield f"{subject}: {reasons}.", tuple(record.cell.name for record in cells)


def _reason(record: Record) -> str:
    failure = record.failure
    if failure is None:
        return record.status
    clause = re.split(r"[.;]\s|\n", failure.reason.strip())[0].rstrip(".;")
    place = failure.phase + (f", step {failure.step}" if failure.step is not None else "")
    return f"{textwrap.shorten(clause, 100, placeholder=' …')} ({place})"


RULES: dict[str, tuple[Literal["unequal", "incomplete"], Callable[[Sequence[Record]], Said]]] = {
    "tokens": ("unequal", _tokens),
    "order": ("unequal", _order),
    "batch": ("unequal", _batch),
    "training": ("unequal", _training),
    "targets": ("unequal", _targets),
    "precision": ("unequal", _precision),
    "attention": ("unequal", _attention),
    "tries": ("unequal", _tries),
    "evaluation": ("unequal", _evaluation),
    "asked by": ("unequal", _asked_by),
    "cut off": ("unequal", _cut_off),
    "drawn": ("unequal", _drawn),
    "fingerprints": ("unequal", _fingerprints),
    "inference": ("unequal", _inference),
    "versions": ("unequal", _environment("Library versions differ", _versions)),
    "device": ("unequal", _environment("Devices differ", _device)),
    "code": ("unequal", _code),
    "speedups": ("unequal", _speedups),
    "source": ("unequal", _sources),
    "overlap": ("unequal", _overlap),
    "per layer": ("unequal", _per_layer),
    "resumed": ("unequal", _resumed),
    "smaller batches": ("unequal", _smaller),
    "chosen batches": ("unequal", _fitting),
    "rescored": ("unequal", _rescored),
    "contamination": ("incomplete", _contaminated),
    "base": ("incomplete", _base),
    "seeds": ("incomplete", _seeds),
    "failed": ("incomplete", _failed),
}
