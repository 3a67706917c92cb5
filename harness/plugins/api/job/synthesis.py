"""Has a model behind an API write new training problems, checks them, and writes them with their provenance.

Answers are kept in a journal (`NAME.answers.jsonl`) and never asked again: a stopped call, or one that needs more
problems, resumes from there. Problems follow from its answers alone, in the order of asking, so neither concurrency nor
interruptions change them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness import record
from harness.errors import UserError
from harness.job.data import contamination, sources, synthetic
from harness.job.data.encoding import Item
from harness.job.evaluate import scoring
from harness.plugins.api.job import arithmetic
from harness.plugins.api.job.client import Client, Messages, token_totals
from harness.plugins.api.job.journal import Journal, JournalEntry, write_lines
from harness.plugins.api.requests import Synthesize
from harness.protocol import Report
from harness.settings import EvalSettings

PROMPTS = 1  # the version of what stands below; provenance names it
TASKS = {
    "paraphrase": "Here is a problem:\n\n{examples}\n\nPut its question in other words, with other names and another "
    "setting, but with the same numbers, so that the answer comes to the same. Work the answer out again in the same "
    "manner.",
    "harder": "Here is a problem:\n\n{examples}\n\nWrite a harder one of the same kind: it takes more steps, or larger "
    "numbers. Work its answer out in the same manner.",
    "new": "Here are problems:\n\n{examples}\n\nWrite another one that could stand beside them, about something else "
    "and solved in another way. Work its answer out in the same manner.",
}
FINAL = " The answer ends in a line of its own, #### and the result as a number."
FORMAT = ' Reply with one JSON object with the keys "question" and "answer", both texts, and with nothing else.'
SEEDS = {"paraphrase": 1, "harder": 1, "new": 3}
EXAMPLES = 3  # of each reason, in the report of what was rejected
TOKENS, TEMPERATURE = 1024, 1.0  # of an answer
MEASURES = {
    "near_duplicate": (
        f"Jaccard similarity of the questions' word {contamination.NEAR_WORDS}-grams of {contamination.NEAR} or more"
    ),
    "evaluation": f"a shared run of {contamination.SHARED_WORDS} words, or a near-duplicate",
}


@dataclass(frozen=True)
class Question:
    """One request to the model. key: a hash of all that its answer depends on, except chance."""

    key: str
    kind: str
    seeds: list[int]
    messages: Messages


def synthesize(request: Synthesize, report: Report) -> dict[str, Any]:
    """Ask until there are `request.n` problems, or `request.most` questions were asked. Returns the written summary.

    report: called with the progress, and with warnings. Raises UserError if the source or the evaluation can't be
    loaded, or if the model does not answer; answers so far are kept.
    """
    out = Path(request.out)
    client = Client(request.base_url, request.model, request.timeout, lambda sentence: report({"warning": sentence}))
    seeds = _seeds(request)
    sieve = Sieve(seeds, _evaluation(request.eval, request.data_root))
    journal = Journal(out.with_suffix(".answers.jsonl"), client)
    before = len(journal.answers)
    questions = _questions(seeds, request, client.host)
    asked = 0
    while len(sieve.kept) < request.n and asked < request.most:
        some = list(itertools.islice(questions, min(request.n - len(sieve.kept), request.most - asked)))
        refusals = journal.ask_all(
            [(question.key, question.messages) for question in some],
            request.concurrency,
            lambda: report({"asked": len(journal.answers) - before}),
            max_tokens=TOKENS,
            temperature=TEMPERATURE,
        )
        for question in some:
            if question.key in refusals:
                sieve.reject(question, "", "refused by the endpoint", refusals[question.key])
            else:
                sieve.judge(question, journal.answers[question.key])
        asked += len(some)
        report({"kept": len(sieve.kept)})
    write_lines(out, sieve.kept)
    summary = _summary(request, client.host, asked, sieve, journal, before)
    record.write_json(summary, out.with_suffix(".report.json"))
    return summary


def _seeds(request: Synthesize) -> list[Item]:
    if request.file is not None:
        seeds = synthetic.read(Path(request.file))
    elif request.data is not None:
        seeds = sources.splits(request.data, request.data_root)["train"]
    else:
        raise ValueError("A request for problems must name a file or a data set.")
    if not seeds:
        raise UserError("The source of the seed problems is empty.")
    return seeds


def _evaluation(settings: EvalSettings, data_root: str | None) -> contamination.Evaluation:
    """All items of the tasks of `settings`, not only a sample."""
    tasks = scoring.Tasks(replace(settings, limit=None), data_root)
    return contamination.Evaluation(
        str(task.doc_to_text(doc)) for task in tasks.leaves.values() for doc in task.eval_docs
    )


# What is asked


def _questions(seeds: Sequence[Item], request: Synthesize, host: str) -> Iterator[Question]:
    """Questions without end, the kinds in turn; the same for the same seeds, model and random seed."""
    worked = all(arithmetic.final(seed["answer"]) is not None for seed in seeds)
    for number in itertools.count():
        kind = request.kinds[number % len(request.kinds)]
        drawn = random.Random(f"{request.seed} {number}").sample(range(len(seeds)), min(SEEDS[kind], len(seeds)))
        shown = [json.dumps({k: seeds[i][k] for k in ("question", "answer")}, ensure_ascii=False) for i in drawn]
        text = TASKS[kind].format(examples="\n".join(shown)) + (FINAL if worked else "") + FORMAT
        messages = [{"role": "user", "content": text}]
        of = json.dumps([request.model, host, PROMPTS, number, messages])
        yield Question(hashlib.sha256(of.encode()).hexdigest(), kind, drawn, messages)


# What is kept


class Sieve:
    """Keeps answers that are correct problems, new, and in no evaluation; counts rejected ones by reason.

    seeds: what the problems are made from. If all of them end in `#### N`, problems must too.
    """

    def __init__(self, seeds: Sequence[Item], evaluation: contamination.Evaluation):
        self._seeds, self._evaluation = seeds, evaluation
        self._finals = [arithmetic.final(seed["answer"]) for seed in seeds]
        self._known = contamination.Texts(seed["question"] for seed in seeds)
        self._made = contamination.Texts()
        self.kept: list[dict[str, Any]] = []
        self.rejected: Counter[str] = Counter()
        self.examples: dict[str, list[dict[str, str]]] = defaultdict(list)

    def judge(self, question: Question, answered: JournalEntry) -> None:
        item = synthetic.parse(answered.text)
        if not answered.whole:
            self.reject(question, answered.text, "cut off", f"longer than {TOKENS} tokens")
        elif item is None:
            self.reject(question, answered.text, "format", 'no JSON object with the texts "question" and "answer"')
        elif (flaw := self._flaw(question, item)) is not None:
            self.reject(question, answered.text, *flaw)
        else:
            self._made.add(item["question"])
            self.kept.append(self._with_provenance(question, answered, item))

    def reject(self, question: Question, text: str, reason: str, why: str) -> None:
        """Count an answer with this text as rejected for a `reason`, in a word or two and in full: `why`."""
        self.rejected[reason] += 1
        if len(self.examples[reason]) < EXAMPLES:
            self.examples[reason].append({"kind": question.kind, "why": why, "text": text})

    def _flaw(self, question: Question, item: Item) -> tuple[str, str] | None:
        """The first reason to reject `item`, in a word or two and in full; None if there is none."""
        steps, final = arithmetic.steps(item["answer"]), arithmetic.final(item["answer"])
        if None not in self._finals and final is None:
            return "format", "no last line #### N"
        if wrong := [step for step in steps if not step.right]:
            return "arithmetic", f"{wrong[0].text}, but it comes to {float(wrong[0].found):g}"
        if final is not None and steps and final not in {step.said for step in steps}:
            return "arithmetic", f"{float(final):g} is the result of no step"
        if question.kind == "paraphrase" and final != self._finals[question.seeds[0]]:
            return "arithmetic", "a paraphrase comes to something else than its seed"
        for known, what in ((self._known, "a seed"), (self._made, "another")):
            if (alike := known.nearest(item["question"])) >= contamination.NEAR:
                return f"near-duplicate of {what}", f"similarity {alike:.2f}"
        if self._evaluation.overlaps(item["question"]):
            return "in the evaluation", MEASURES["evaluation"]
        return None

    def _with_provenance(self, question: Question, answered: JournalEntry, item: Item) -> dict[str, Any]:
        seeds = [self._seeds[i]["question"] for i in question.seeds]
        return {
            "question": item["question"].strip(),
            "answer": item["answer"].strip(),
            "provenance": {
                "model": answered.model,
                "host": answered.host,
                "kind": question.kind,
                "seeds": [hashlib.sha256(seed.encode()).hexdigest()[:16] for seed in seeds],
                "prompts": PROMPTS,
                "date": answered.date,
                "steps_checked": len(arithmetic.steps(item["answer"])),
            },
        }


def _summary(request: Synthesize, host: str, asked: int, sieve: Sieve, journal: Journal, before: int) -> dict[str, Any]:
    """What was made, from what, why answers were rejected, and tokens: null if the server does not report them."""
    answers = list(journal.answers.values())
    kept = [item["provenance"] for item in sieve.kept]
    return {
        "model": request.model,
        "host": host,
        "prompts": PROMPTS,
        "source": Path(request.file).name if request.file is not None else request.data and request.data.name,
        "evaluation": request.eval.tasks,
        "measures": MEASURES,
        "asked": asked,
        "kept": len(kept),
        "kept_by_kind": dict(Counter(p["kind"] for p in kept)),
        "kept_without_checked_steps": sum(not p["steps_checked"] for p in kept),
        "rejected": {
            reason: {"count": n, "examples": sieve.examples[reason]} for reason, n in sieve.rejected.most_common()
        },
        "tokens": token_totals(answers),
        "tokens_of_this_call": token_totals(answers[before:]),
    }
