"""Rules on evaluation and inference: tasks, items, contamination, prompts."""

from __future__ import annotations

import functools
import hashlib
import operator
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from harness import units
from harness.record import Contamination, Inference, Record, Scoring
from harness.report.lint.differences import (
    Sentence,
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
)
from harness.report.lint.environment import ran_with, same_environment
from harness.score_names import task_label
from harness.settings import REWARDS, EvalSettings

eval_of = operator.attrgetter("cell.settings.eval")
CUT = 0.05  # the share of truncated answers above which there is a finding


def evaluation(records: Sequence[Record]) -> Sentences:
    for where, members in places(records):
        unequal: list[Sentence] = []
        same = alike(members, eval_of)
        for name in () if same else ("tasks", "limit", "num_fewshot", "seed", "bertscore", *CHAT):
            subject = f"The setting eval.{name} differs{where}"
            unequal += confounded(subject, members, functools.partial(_eval_setting, name=name))
        yield from unequal or _scored(members, where)


def written_by(records: Sequence[Record]) -> Sentences:
    """Engines have kernels of their own, so of two tokens that are about as likely they may write different ones."""
    for where, members in places(records):
        scored = [r for r in finished(members) if r.scores and r.source is None and not r.cell.settings.behind_api]
        subject = f"Answers were written by different engines{where}"
        yield from differ(subject, scored, _writer, " Score all cells by one: eval.engine.")


def _writer(scored: Record | Scoring) -> str:
    return f"vLLM {scored.vllm.version}" if scored.vllm else "the harness"


def asked_by(records: Sequence[Record]) -> Sentences:
    """Chat answers are a different measurement; completions have log-probabilities, as local models do."""
    if any(record.api for record in records):
        scored = [record for record in records if record.scores]
        yield from differ(
            "Models were queried in different ways",
            scored,
            lambda r: "chat" if r.api and r.api.kind == "chat" else "log-probabilities",
            " Chat scores are not compared with others.",
        )


def cut_off(records: Sequence[Record]) -> Sentences:
    """Truncated answers are mostly wrong; a model that thinks first may be cut off before its answer starts."""
    for where, members in places(records):
        shares = {
            record.cell.name: (record.cut_answers or 0) / record.written_answers
            for record in members
            if record.written_answers and (record.cut_answers or 0) > CUT * record.written_answers
        }
        if cells := [record for record in members if record.cell.name in shares]:
            yield (
                f"{_percent(shares.values())} of the written answers were cut off at their task's limit of tokens"
                f"{where}, in {named(cells, members)}: what a model would have said later is not scored.",
                tuple(shares),
            )
    for record in records:
        if record.api and (record.api.cut or 0) > CUT * record.api.requests:
            yield (
                f"{record.api.cut:,} of {record.api.requests:,} answers of {record.cell.model} were cut off at the "
                "token limit. Give a model that thinks before it answers more tokens: model.thinking=8192.",
                (record.cell.name,),
            )


def refused(records: Sequence[Record]) -> Sentences:
    """A refused request counts as an empty answer, which mostly is wrong: of the filter, not of the model."""
    for record in records:
        if record.api and record.api.refused:
            asked = record.api.refused + record.api.requests
            yield (
                f"The endpoint of {record.cell.model} refused {record.api.refused:,} of {asked:,} requests for their "
                "content; they count as empty answers.",
                (record.cell.name,),
            )


def too_long(records: Sequence[Record]) -> Sentences:
    """Requests whose beginning the model never read, and training records that it read in part."""
    for where, members in places(records):
        if cells := [record for record in members if record.truncated_requests]:
            counts = [record.truncated_requests or 0 for record in cells]
            yield (
                f"{_range(counts)} requests were cut at their beginning{where}, in {named(cells, members)}: the model "
                "has no room for them, so their scores are of other questions.",
                tuple(record.cell.name for record in cells),
            )
        cells = [record for record in members if record.lengths is not None and record.lengths.cut]
        if cells:
            counts = [record.lengths.cut for record in cells if record.lengths is not None]
            yield (
                f"{_range(counts)} training records were cut at train.max_length{where}, in {named(cells, members)}: "
                "their answers lack an end.",
                tuple(record.cell.name for record in cells),
            )


def _range(counts: Sequence[int]) -> str:
    return " to ".join(dict.fromkeys(f"{count:,}" for count in (min(counts), max(counts))))


def _percent(shares: Collection[float]) -> str:
    return " to ".join(dict.fromkeys(f"{share:.0%}" for share in (min(shares), max(shares))))


def drawn(records: Sequence[Record]) -> Sentences:
    for record in records:
        if record.api and "temperature" in record.api.left_out:
            yield (
                f"{record.cell.model} accepts no temperature: its answers are sampled and differ from run to run.",
                (record.cell.name,),
            )


CHAT = ("chat_template", "fewshot_as_multiturn", "system_instruction")  # how questions are formatted


def _eval_setting(record: Record, name: str) -> str | None:
    settings = record.cell.settings.eval
    if settings == EvalSettings():
        return None
    return setting_text(getattr(settings, name) or None) or "not set"


def _scored(members: Sequence[Record], where: str) -> Sentences:
    """Whether cells with the same settings were asked the same items."""
    scored = [record for record in finished(members) if record.scores]
    groups = list(group_by(scored, eval_of).values())
    unequal: list[Sentence] = []
    for task in dict.fromkeys(score.task for record in scored for score in record.scores):
        subject = f"Cells were scored differently on {task_label(task)}{where}"
        items_of = functools.partial(_asked, task=task)
        # Rewards compare a model with the untuned one, which has none.
        able = [[record for record in group if record.train or task != REWARDS] for group in groups]
        unequal += first_of(able, functools.partial(differ, subject, value=items_of, tail=DELTA))
    yield from unequal or first_of(
        groups, lambda group: differ(f"Cells were scored on different items{where}", group, _sample)
    )


DELTA = " Δ is shown only where they match."


def _asked(record: Record, task: str) -> str:
    score = next((score for score in record.scores if score.task == task), None)
    if score is None:
        return "not at all"
    return f"on {units.plural(score.n, 'item')}, {score.num_fewshot}-shot, task version {score.version}"


def _sample(record: Record) -> str | None:
    return f"hash {hashlib.sha256(hashable(record.items).encode()).hexdigest()[:8]}" if record.items else None


def fingerprints(records: Sequence[Record]) -> Sentences:
    """Also where every method has each: then settings are chosen among cells that had other data or weights."""
    for where, members in places(records):
        # That of a file says what that of the data in it says
        for name in dict.fromkeys(name for record in members for name in record.fingerprints if name != "file"):
            subject = f"Fingerprints of the {name} differ{where}"
            yield from differ(subject, members, functools.partial(_fingerprint, name=name))


def _fingerprint(record: Record, name: str) -> str | None:
    digest = record.fingerprints.get(name)
    return digest[7:19] if digest and digest.startswith("sha256:") else digest


def contaminated(records: Sequence[Record]) -> Sentences:
    for where, members in places(records):
        for task in dict.fromkeys(task for record in members for task in record.contamination):
            of = [record for record in members if task in record.contamination]
            for count, text in OVERLAPS:
                cells = [record for record in of if count(record.contamination[task])]
                if cells:
                    overlaps = [record.contamination[task] for record in cells]
                    counts = [f"{number:,}" for number in sorted({*map(count, overlaps)})]
                    many = " to ".join(dict.fromkeys([counts[0], counts[-1]]))
                    verbs = ONE if many == "1" else SEVERAL
                    kind, meaning = text.format(words=overlaps[0].words, **verbs).split(": ")
                    yield (
                        f"{many} of {overlaps[0].items:,} items of {task_label(task)} {kind}{where}, in "
                        f"{named(cells, members)}: {meaning}.",
                        tuple(record.cell.name for record in cells),
                    )


ONE = {"are": "is", "share": "shares", "are_near": "is a near-duplicate"}
SEVERAL = {"are": "are", "share": "share", "are_near": "are near-duplicates"}
OVERLAPS: tuple[tuple[Callable[[Contamination], int], str], ...] = (
    (
        lambda counts: counts.same or 0,
        "{are} a training question, but for case, spaces and punctuation: the model may repeat what it was shown",
    ),
    (
        lambda counts: counts.shared - (counts.same or 0),
        "{share} a {words}-gram with the training data: possible contamination, or a common template",
    ),
    (
        lambda counts: counts.near or 0,
        "{are_near} of a training question: possible contamination, or a common template",
    ),
)
"""How many items are part of the training data in some way, and what that is and may mean."""


def classes(records: Sequence[Record]) -> Sentences:
    """Classes that an accuracy says nothing of: without a test item, or never recognised."""
    for where, members in places(records):
        for task in dict.fromkeys(task for record in members for task in record.classes):
            cells = [record for record in members if task in record.classes]
            tables = [record.classes[task] for record in cells]
            for i, label in enumerate(tables[0].labels):
                rows = [table.counts[i] for table in tables if table.labels == tables[0].labels]
                if not any(map(sum, rows)):
                    yield (
                        f"No item of {task_label(task)} is of the class {label}{where}: no score says how well it is "
                        "recognised.",
                        (),
                    )
                elif not any(row[i] for row in rows):
                    n = max(map(sum, rows))
                    where_of = f"{task_label(task)}{where}"
                    yield f"No cell recognises any item of the class {label} of {where_of} (n = {n}).", ()


def inference(records: Sequence[Record]) -> Sentences:
    for where, members in places(records):
        subject = f"Inference was measured differently{where}"
        yield from confounded(subject, [r for r in finished(members) if r.inference], _inferred, method_of)


def _inferred(record: Record) -> str:
    speeds = (*record.inference.values(), *record.batched_inference.values())
    return "; ".join(dict.fromkeys(inference_text(speed) for speed in speeds))


def inference_text(speed: Inference) -> str:
    """The shape of an inference measurement."""
    return f"{speed.prompt_tokens} prompt tokens, {speed.new_tokens} new tokens, batch size {speed.batch_size}"


def rescored(records: Sequence[Record]) -> Sentences:
    """Tasks that cells were scored on later, if the environment or the prompts differed."""
    for where, members in places(records):
        for task in dict.fromkeys(task for record in members for later in record.rescored for task in later.tasks):
            scored = [record for record in members if any(score.task == task for score in record.scores)]
            subject = f"Cells were scored on {task_label(task)} in different environments{where}"
            yield from same_environment(subject, functools.partial(_means, task=task))(scored)


def _means(record: Record, task: str) -> dict[str, str]:
    """The environment and the prompt settings that produced the scores of a task."""
    later = next((later for later in record.rescored if task in later.tasks), None)
    settings = later.settings if later else record.cell.settings.eval
    facts = ran_with(replace(record, environment=later.environment) if later else record)
    means = {name: facts.get(name) for name in ("device", "precision", "torch", "transformers", "peft", "lm_eval")}
    means |= {"engine": _writer(later or record)}
    means |= {name: setting_text(getattr(settings, name) or None) or "not set" for name in CHAT}
    return {name: value for name, value in means.items() if value is not None}
