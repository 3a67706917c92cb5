"""A template of generated word problems: wording, numbers and worked steps."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

from harness.job.data.generators.wordmath_templates.words import NAMES

Computed = tuple[str, str, str, str]  # a number's letter, and what it is computed from: operand, operator, operand

_RULE = re.compile(r"^(\w)=(\w+)([-+*/])(\w)$")
_RESULT = re.compile(r"\[(\w)=(\w)([-+*/])(\w)\]")
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
        raise ValueError(f"{text!r} computes no number.")
    letter, left, operator, right = match.groups()
    return letter, left, operator, right


@dataclass(frozen=True)
class Template:
    """One kind of problem.

    `numbers` lists, in order, free numbers (`a=2..20`, `q=2|4|5`) and numbers derived from earlier ones (`t=a+b`).
    Minuends and dividends are derived, so every choice of free numbers is a valid problem, and the number of keys is a
    product. `questions` are paraphrases, `lines` the worked steps; in a line `[x=a*b]` computes x and shows
    `3 * 4 = 12`. `words` has the choices for other fields; `n`, `m` and `o` are three different people.
    """

    name: str
    numbers: str
    questions: tuple[str, ...]
    lines: tuple[str, ...]
    words: dict[str, tuple[str, ...]] = field(default_factory=dict)

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
        given = [_computed(_RULE, f"{letter}={rule}") for letter, rule in rules if letter not in self.free]
        return (*given, *(_computed(_RESULT, line) for line in self.lines))

    @cached_property
    def _answer(self) -> str:
        shown = [_RESULT.sub(r"{\2} \3 {\4} = {\1}", line) for line in self.lines]
        last = _computed(_RESULT, self.lines[-1])[0]
        return "\n".join([*shown, f"#### {{{last}}}"])

    @property
    def size(self) -> int:
        """The number of distinct keys."""
        return prod(map(len, self.free.values()))

    def key(self, chosen: tuple[int, ...]) -> str:
        """The identity of a problem: its template and free numbers, in the order of `free`."""
        return f"{self.name}:{','.join(map(str, chosen))}"

    def values(self, chosen: tuple[int, ...]) -> dict[str, int]:
        """All numbers of the problem by letter, including the steps' results."""
        known = dict(zip(self.free, chosen, strict=True))
        for letter, left, operator, right in self.derived:
            known[letter] = _apply(int(left) if left.isdigit() else known[left], operator, known[right])
        return known

    def render(self, chosen: tuple[int, ...], rng: random.Random) -> dict[str, str]:
        """One item with these numbers, in words that `rng` chooses."""
        fields: dict[str, str | int] = dict(zip("nmo", rng.sample(NAMES, 3), strict=True))
        fields |= {slot: rng.choice(choices) for slot, choices in self.words.items()}
        fields |= self.values(chosen)
        question = rng.choice(self.questions).format_map(fields)
        question = _SENTENCE_START.sub(lambda first: first.group().upper(), question)
        return {"question": question, "answer": self._answer.format_map(fields)}
