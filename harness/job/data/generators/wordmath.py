"""Generated word problems in GSM8K's schema: a reasoning data set that needs no download.

`load()` returns splits of items `{"question": str, "answer": str}`. The answer is a worked solution, one short line
a step (`Mia pays 3 * 4 = 12 dollars.`), and a last line `#### N`, as in GSM8K but without calculator annotations. One
quarter of the items has one step, one quarter two, and so on up to four. The numbers are small (operands mostly up to
20, results up to 200 after one step and up to 1000 later), so that a model of some hundred million parameters can
learn the task in minutes; the variety is in the calculations.

An item's key is its template and its numbers. A hash of the key alone decides the split, so a problem is never in two
splits, whatever its names, wording or seed: a training item of one seed is no test item of another.

All numbers are at least 2, so that nouns beside them are plurals.

The templates and words are YAML: the files of `wordmath_templates/`, of which `one_step.yaml` explains the fields.
"""

from __future__ import annotations

import functools
import hashlib
import random
import re

from harness.job.data.generators.wordmath_templates import loading
from harness.job.data.generators.wordmath_templates.template import Template

SHARES = {"train": 0.80, "validation": 0.05, "test": 0.15}
"""The share of keys in each split."""


def templates() -> tuple[Template, ...]:
    """All templates, those of one step first."""
    return tuple(template for group in loading.templates().values() for template in group)


def split_of(key: str) -> str:
    """The split of a key, the same on every machine and for every seed."""
    place = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
    if place < SHARES["test"]:
        return "test"
    return "validation" if place < SHARES["test"] + SHARES["validation"] else "train"


def template_of(question: str) -> str | None:
    """The name of the template that a question was made from; None if it is from none."""
    return next((name for name, form in _forms() if form.fullmatch(question)), None)


@functools.cache
def _forms() -> tuple[tuple[str, re.Pattern], ...]:
    """The questions of all templates, with any number or word in each field."""
    forms = []
    for template in templates():
        for question in template.questions:
            parts = re.split(r"\{(\w+)\}", question)
            numbers = set(template.values(tuple(values[0] for values in template.free.values())))
            fields = [r"\d+" if name in numbers else r"[^\d.?]+?" for name in parts[1::2]]
            texts = [re.escape(text) for text in parts[::2]]
            form = texts[0] + "".join(field + text for field, text in zip(fields, texts[1:], strict=True))
            forms.append((template.name, re.compile(form, re.IGNORECASE)))
    return tuple(forms)


def capacity(split: str, max_steps: int = 4) -> int:
    """The most items that `load` returns for a split.

    Each number of steps has an equal share of the items, so the fewest problems, those of one step, set the limit. It
    is nine tenths of the split's expected share: a hash divides only nearly evenly, and drawing the last keys by chance
    takes long.
    """
    by_steps = loading.templates()
    groups = [by_steps[steps] for steps in range(1, max_steps + 1)]
    return max_steps * min(int(0.9 * SHARES[split] * sum(t.size for t in group)) for group in groups)


def _draw(split: str, count: int, seed: int, max_steps: int) -> list[dict[str, str]]:
    rng = random.Random(f"wordmath/{seed}/{split}")
    by_steps = loading.templates()
    items: list[dict[str, str]] = []
    seen: set[str] = set()
    order: list[int] = []
    while len(items) < count:
        if not order:  # each block of `max_steps` items has every number of steps once, so the first n are balanced
            order = rng.sample(range(1, max_steps + 1), max_steps)
        template = rng.choice(by_steps[order[-1]])
        numbers = tuple(rng.choice(values) for values in template.free.values())
        key = template.key(numbers)
        if key in seen or split_of(key) != split:
            continue
        order.pop()
        seen.add(key)
        items.append(template.render(numbers, rng))
    return items


def load(
    seed: int = 0, train: int = 4000, validation: int = 200, test: int = 1000, max_steps: int = 4
) -> dict[str, list[dict[str, str]]]:
    """Return the splits `train`, `validation` and `test` as lists of `{"question": str, "answer": str}`.

    Problems have one to `max_steps` steps, each equally often. Splits are drawn independently: the first n items are
    the same for all sizes. Raises ValueError for more items than distinct problems, or more than four steps.
    """
    if max_steps not in loading.FILES:
        raise ValueError(f"wordmath's max_steps must be 1 to 4, got {max_steps}")
    sizes = {"train": train, "validation": validation, "test": test}
    for split, count in sizes.items():
        most = capacity(split, max_steps)
        if not 0 <= count <= most:
            raise ValueError(f"wordmath's {split} must be 0 to {most} items, got {count}")
    return {split: _draw(split, count, seed, max_steps) for split, count in sizes.items()}
