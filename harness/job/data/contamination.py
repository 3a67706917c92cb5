"""Compares texts by word n-grams: near-duplicates, and contamination of evaluation items by training data.

Brown et al. (2020, arXiv:2005.14165, appendix C) count an evaluation item as contaminated if it shares an N-gram with
the training data; N is 13, or as few as 8 for shorter items. In the record N is 13, or all words of a shorter item; an
item of fewer than 8 words is not checked.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable

from harness.record import Contamination

NEAR = 0.6  # Jaccard similarity of word 3-grams from which on two texts are near-duplicates
NEAR_WORDS = 3
SHARED_WORDS = 13  # of a shared n-gram
FEWEST_WORDS = 8  # of an item that is checked

Gram = tuple[str, ...]


def grams(text: str, n: int) -> set[Gram]:
    """The word n-grams of `text`, in lower case and without punctuation; of a shorter text all its words."""
    words = re.findall(r"\d+(?:[.,]\d+)*|\w+", text.lower())
    return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))} if words else set()


class Texts:
    """A growing collection of texts that finds near-duplicates."""

    def __init__(self, texts: Iterable[str] = ()):
        self._sizes: list[int] = []
        self._where: dict[Gram, list[int]] = defaultdict(list)
        for text in texts:
            self.add(text)

    def add(self, text: str) -> None:
        own = grams(text, NEAR_WORDS)
        for gram in own:
            self._where[gram].append(len(self._sizes))
        self._sizes.append(len(own))

    def nearest(self, text: str) -> float:
        """The highest Jaccard similarity of `text` to a text of the collection, 0 to 1."""
        own = grams(text, NEAR_WORDS)
        shared = Counter(i for gram in own for i in self._where.get(gram, ()))
        return max((n / (len(own) + self._sizes[i] - n) for i, n in shared.items()), default=0.0)


class Evaluation:
    """Evaluation items that training texts must not resemble."""

    def __init__(self, texts: Iterable[str]):
        texts = list(texts)
        self._near = Texts(texts)
        self._runs = {gram for text in texts for gram in grams(text, SHARED_WORDS)}
        self._lengths = {len(gram) for gram in self._runs}

    def overlaps(self, text: str) -> bool:
        """Whether `text` shares an n-gram with an item, contains a shorter item, or is a near-duplicate of one."""
        shared = any(not self._runs.isdisjoint(grams(text, length)) for length in self._lengths)
        return shared or self._near.nearest(text) >= NEAR


def trained_on(items: Iterable[str], texts: Iterable[str]) -> Contamination:
    """How many of the evaluation `items` share an n-gram with the training `texts`."""
    runs = [grams(item, SHARED_WORDS) for item in items]
    looked_at = [i for i, own in enumerate(runs) if own and min(map(len, own)) >= FEWEST_WORDS]
    where: dict[Gram, list[int]] = defaultdict(list)
    for i in looked_at:
        for gram in runs[i]:
            where[gram].append(i)
    lengths = {len(gram) for gram in where}
    shared = {gram for text in texts for length in lengths for gram in where.keys() & grams(text, length)}
    found = {i for gram in shared for i in where[gram]}
    return Contamination(words=SHARED_WORDS, items=len(runs), looked_at=len(looked_at), shared=len(found))
