"""A template of generated word problems: wording, numbers and worked steps."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

PEOPLE = ("n", "m", "o")
"""Fields that are three different people."""

Computed = tuple[str, str, str, str]  # a number's letter, and what it is computed from: operand, operator, operand

_NUMBER = re.compile(r"[a-z]=(\d+\.\.\d+|\d+(\|\d+)+|\w+[-+*/][a-z])")
_RULE = re.compile(r"^(\w)=(\w+)([-+*/])(\w)$")
_RESULT = re.compile(r"\[([a-z])=([a-z])([-+*/])([a-z])\]")
_FIELD = re.compile(r"\{(\w+)\}")
_SENTENCE_START = re.compile(r"(?:^|(?<=[.?] ))[a-z]")


def _apply(left: int, operator: str, right: int) -> int:
    match operator:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
    return left // right  # exact: templates derive every dividend from its divisor and quotient


def _computed(pattern: re.Pattern[str], text: str) -> Computed:
    """What `text` says how to compute. Raises ValueError if it does not."""
    match = pattern.search(text)
    if match is None:
        raise ValueError(f"{text!r} computes no number")
    letter, left, operator, right = match.groups()
    return letter, left, operator, right


@dataclass(frozen=True)
class Template:
    """One kind of problem. Raises ValueError if a part of it is malformed, or refers to something it does not have.

    `numbers` lists, in order, free numbers (`a=2..20`, `q=2|4|5`) and numbers derived from earlier ones (`t=a+b`).
    Minuends and dividends are derived, so every choice of free numbers is a valid problem, and the number of keys is a
    product. `questions` are paraphrases, `lines` the worked steps; in a line `[x=a*b]` computes x and shows
    `3 * 4 = 12`. `words` has the choices for other fields; `n`, `m` and `o` are three different people of `names`.
    """

    name: str
    numbers: str
    questions: tuple[str, ...]
    lines: tuple[str, ...]
    names: tuple[str, ...]
    words: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_steps()
        letters = self._check_operands()
        results = {letter for letter, *_ in self.derived[-self.steps :]}
        _check_fields(self.questions, letters - results | self.words.keys())
        _check_fields((_RESULT.sub("", line) for line in self.lines), letters | self.words.keys())

    def _check_numbers(self) -> None:
        numbers = self.numbers.split()
        for number in numbers:
            if _NUMBER.fullmatch(number) is None:
                raise ValueError(f"a number must be like a=2..20, a=2|4|5 or a=b+c, got {number}")
        if len({number[0] for number in numbers}) < len(numbers):
            raise ValueError(f"a number occurs twice in {self.numbers}")
        for letter, values in self.free.items():
            if not values:
                raise ValueError(f"the range of {letter} is empty")

    def _check_steps(self) -> None:
        if not self.questions or not self.lines:
            raise ValueError("a template must have questions and lines")
        for line in self.lines:
            if len(_RESULT.findall(line)) != 1:
                raise ValueError(f"a line must compute one number, like [x=a+b], got {line!r}")

    def _check_operands(self) -> set[str]:
        """The letters of all numbers, after a check that each is computed once, from earlier ones."""
        letters = set(self.free)
        for letter, left, _, right in self.derived:
            for operand in (right,) if left.isdigit() else (left, right):
                if operand not in letters:
                    raise ValueError(f"{letter} is computed from {operand}, which is no earlier number")
            if letter in letters:
                raise ValueError(f"the number {letter} occurs twice")
            letters.add(letter)
        fields = [*letters, *self.words, *PEOPLE]
        if ambiguous := sorted({name for name in fields if fields.count(name) > 1}):
            raise ValueError(f"{', '.join(ambiguous)} must be a number, a word or a person, not two of them")
        return letters

    @property
    def steps(self) -> int:
        """The number of worked steps."""
        return len(self.lines)

    @cached_property
    def free(self) -> dict[str, tuple[int, ...]]:
        """The values each free number may take."""
        values: dict[str, tuple[int, ...]] = {}
        for letter, rule in (part.split("=") for part in self.numbers.split()):
            if ".." in rule:
                low, high = map(int, rule.split(".."))
                values[letter] = tuple(range(low, high + 1))
            elif "|" in rule:
                values[letter] = tuple(map(int, rule.split("|")))
        return values

    @cached_property
    def derived(self) -> tuple[Computed, ...]:
        """Numbers computed from earlier ones: those of the question first, then each step's result."""
        rules = [part.split("=") for part in self.numbers.split()]
        numbers = [_computed(_RULE, f"{letter}={rule}") for letter, rule in rules if letter not in self.free]
        return (*numbers, *(_computed(_RESULT, line) for line in self.lines))

    @cached_property
    def _answer(self) -> str:
        steps = [_RESULT.sub(r"{\2} \3 {\4} = {\1}", line) for line in self.lines]
        last = _computed(_RESULT, self.lines[-1])[0]
        return "\n".join([*steps, f"#### {{{last}}}"])

    @property
    def size(self) -> int:
        """The number of distinct keys."""
        return prod(map(len, self.free.values()))

    def key(self, chosen: tuple[int, ...]) -> str:
        """The identity of a problem: its template and free numbers, in the order of `free`."""
        return f"{self.name}:{','.join(map(str, chosen))}"

    def values(self, chosen: tuple[int, ...]) -> dict[str, int]:
        """All numbers of the problem by letter, including the steps' results."""
        numbers = dict(zip(self.free, chosen, strict=True))
        for letter, left, operator, right in self.derived:
            numbers[letter] = _apply(int(left) if left.isdigit() else numbers[left], operator, numbers[right])
        return numbers

    def render(self, chosen: tuple[int, ...], rng: random.Random) -> dict[str, str]:
        """One item with these numbers, in words that `rng` chooses."""
        fields: dict[str, str | int] = dict(zip(PEOPLE, rng.sample(self.names, len(PEOPLE)), strict=True))
        fields |= {slot: rng.choice(choices) for slot, choices in self.words.items()}
        fields |= self.values(chosen)
        question = rng.choice(self.questions).format_map(fields)
        question = _SENTENCE_START.sub(lambda first: first.group().upper(), question)
        return {"question": question, "answer": self._answer.format_map(fields)}


def _check_fields(texts: Iterable[str], names: set[str]) -> None:
    """Raise ValueError for a field that is neither one of `names` nor a person, and for a bracket that begins none."""
    for text in texts:
        for name in _FIELD.findall(text):
            if name not in names and name not in PEOPLE:
                raise ValueError(f"{{{name}}} is neither a number, a word nor a person at that place")
        if bracket := re.search(r"[][{}]", _FIELD.sub("", text)):
            raise ValueError(f"the text {text!r} has a {bracket[0]} that belongs to no field and no step")
