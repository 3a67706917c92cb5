"""Problems of the package reasoning-gym (Stojanovski et al. 2025, arXiv:2505.24760), with its own verifiers.

`data.task` is one of its tasks (gsm_symbolic, chain_sum, …), `data.options` sets its options. Each part is drawn from a
seed of its own, the test first. A question that was drawn before is not taken again, so no part has a question twice
and no two parts share one. Another `data.load.seed` gives a test that nobody can have trained on.

The answer to learn is the worked solution where the task has one (gsm_symbolic), ending in `#### N` as in GSM8K; else
the result alone.
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import functools
import hashlib
import inspect
import json
import random
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from harness.errors import UserError, first_line

OWN = ("seed", "size")  # options that the parts decide
TRIES = 4  # problems that are drawn for each one that is wanted, before the task counts as exhausted
FEWEST_TRIES = 1000
HELD = 8  # data sets that are cached
# These go through sets of texts, whose order each process draws anew.
BY_HASH = ("isomorphic_strings", "knight_swap", "polynomial_multiplication", "ransom_note", "word_ladder")
RUN = re.compile(r"\b(?:eval|parse_expr)\(answer\b")  # sympy's parse_expr evaluates text as Python


@dataclass(frozen=True)
class Problem:
    """A problem: what is learned of it, and the package's own entry, which its verifier takes.

    template: which of the task's templates it was made from; None if the task does not tell.
    """

    question: str
    answer: str
    entry: dict[str, Any]
    template: str | None


def load(
    task: str, options: dict[str, Any], seed: int, train: int, validation: int, test: int
) -> dict[str, list[dict[str, str]]]:
    """Return the splits `train`, `validation` and `test` as lists of `{"question": str, "answer": str}`.

    Raises UserError if the package is missing, for an unknown task or option, and if the task has too few problems, or
    problems without an answer.
    """
    _, parts = _drawn(task, json.dumps(options, sort_keys=True), seed, train, validation, test)
    return {
        part: [{"question": problem.question, "answer": problem.answer} for problem in parts[part]]
        for part in ("train", "validation", "test")
    }


class Verifier:
    """The package's verifier of answers to the test part that `load` returns with the same arguments."""

    def __init__(self, task: str, options: dict[str, Any], seed: int, train: int, validation: int, test: int):
        self._dataset, parts = _drawn(task, json.dumps(options, sort_keys=True), seed, train, validation, test)
        self._problems = {problem.question: problem for problem in parts["test"]}

    @property
    def runs_code(self) -> bool:
        """Whether the verifier evaluates answers as Python."""
        return evaluates(type(self._dataset))

    def score(self, question: str, answer: str) -> float:
        """What `answer` is worth, from 0 to 1: 1 if it is right, as much as the task gives for a part of it."""
        try:
            return float(self._dataset.score_answer(answer, self._problems[question].entry))
        except Exception:  # some verifiers fail on a malformed answer, which is a wrong one
            return 0.0

    def template(self, question: str) -> str | None:
        """The template that `question` was made from; None if the task does not tell."""
        return self._problems[question].template


def evaluates(dataset: type) -> bool:
    """Whether the verifier of the package's class `dataset` evaluates answers as Python."""
    return RUN.search(inspect.getsource(dataset)) is not None


@functools.lru_cache(HELD)
def _drawn(task: str, options: str, seed: int, train: int, validation: int, test: int) -> tuple[Any, dict]:
    """The task's data set of the test part, and the problems of each part."""
    questions: set[str] = set()
    datasets, parts = {}, {}
    for part, count in {"test": test, "validation": validation, "train": train}.items():
        if count < 1:
            raise UserError(f"data.load.{part} must be 1 or more, got {count}.")
        size, own = max(TRIES * count, FEWEST_TRIES), _seed(task, seed, part)
        with _seeded(own):
            datasets[part] = _dataset(task, json.loads(options), own, size)
            parts[part] = _fresh(datasets[part], count, questions)
        if len(parts[part]) < count:
            raise UserError(
                f"data.load.{part} must be at most {len(parts[part])}, the different problems that "
                f"data.task={task} has left of {size} drawn, got {count}."
            )
    return datasets["test"], parts


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """A context in which Python's own random numbers begin at `seed`: some tasks draw from them beside their own."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def _fresh(dataset: Any, count: int, questions: set[str]) -> list[Problem]:
    """The first `count` problems of `dataset` whose questions are not in `questions`, to which they are added."""
    problems: list[Problem] = []
    templates = getattr(dataset, "task_indices", None)  # of gsm_symbolic, the template of each problem
    for index in range(len(dataset)):
        if len(problems) == count:
            break
        entry = dataset[index]
        question = entry["question"].strip()
        if question not in questions:
            questions.add(question)
            template = None if templates is None else str(templates[index])
            problems.append(Problem(question, _answer(entry), entry, template))
    return problems


def _answer(entry: dict[str, Any]) -> str:
    answer = entry["metadata"].get("answer_cot", entry["answer"])
    if not isinstance(answer, str) or not answer.strip():
        name = entry["metadata"]["source_dataset"]
        raise UserError(f"data.task={name} has problems without an answer to learn; take another task.")
    return answer.strip()


def _seed(task: str, seed: int, part: str) -> int:
    # Tasks draw problem i of seed s by the seed s + i, so neighbouring seeds would share nearly all problems.
    return int.from_bytes(hashlib.sha256(f"{task}/{seed}/{part}".encode()).digest()[:4], "big") // 2


def _dataset(task: str, options: dict[str, Any], seed: int, size: int) -> Any:
    """The package's data set. Raises UserError if the package is missing, for an unknown task or a bad option."""
    if find_spec("reasoning_gym") is None:
        raise UserError("data=reasoning_gym requires the extra `gym`: pip install -e '.[gym]' in the project's folder.")
    from reasoning_gym.factory import DATASETS, create_dataset  # an extra, and its import takes seconds

    if task not in DATASETS:
        near = difflib.get_close_matches(task, DATASETS, n=3)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise UserError(f"data.task={task} is unknown to reasoning-gym.{hint}")
    if task in BY_HASH and sys.flags.hash_randomization:
        raise UserError(
            f"data.task={task} requires PYTHONHASHSEED=0 in the environment; else each process draws other problems."
        )
    fields: dict[str, Any] = {
        field.name: field.default for field in dataclasses.fields(DATASETS[task][1]) if field.name not in OWN
    }
    if unknown := sorted(options.keys() - fields):
        raise UserError(f"data.options.{unknown[0]} is no option of data.task={task}, which has: {', '.join(fields)}.")
    try:
        arguments = {
            name: type(fields[name])(value) if isinstance(fields[name], enum.Enum) else value
            for name, value in options.items()
        }
        return create_dataset(task, seed=seed, size=size, **arguments)
    except (AssertionError, ValueError, TypeError) as error:
        why = first_line(error) if str(error) else "out of range"  # many of its assertions have no message
        raise UserError(f"data.options don't fit data.task={task}: {why}.") from error
