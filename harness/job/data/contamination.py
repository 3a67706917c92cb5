"""How alike texts are, by runs of words: near-duplicates, what stands in an evaluation, and what of one was trained on.

Brown et al. (2020, arXiv:2005.14165, appendix C) count an evaluation item as seen if it shares a run of N words with
the training data, N being 13 or, where items are shorter, as few as 8. For the record N is 13, of a shorter item all
its words; one of fewer than 8 words tells nothing and is not looked at.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable

from harness.record import Overlap

NEAR = 0.6  # Jaccard similarity of the word 3-grams of two texts, from which on they are near-duplicates
NEAR_WORDS = 3
SHARED_WORDS = 13  # a run that two texts share
FEWEST_WORDS = 8  # of an item that can be looked for

Gram = tuple[str, ...]


def grams(text: str, n: int) -> set[Gram]:
    """All runs of `n` words of `text`, in lower case and without punctuation; of a shorter text the whole."""
    words = re.findall(r"\d+(?:[.,]\d+)*|\w+", text.lower())
    return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))} if words else set()


class Texts:
    """A growing collection, to be asked for what is like a text."""

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
        """The greatest Jaccard similarity of `text` to one of the collection, 0 to 1."""
        own = grams(text, NEAR_WORDS)
        shared = Counter(i for gram in own for i in self._where.get(gram, ()))
        return max((n / (len(own) + self._sizes[i] - n) for i, n in shared.items()), default=0.0)


class Evaluation:
    """Items that no training text may be like."""

    def __init__(self, texts: Iterable[str]):
        texts = list(texts)
        self._near = Texts(texts)
        self._runs = {gram for text in texts for gram in grams(text, SHARED_WORDS)}
        self._lengths = {len(gram) for gram in self._runs}

    def overlaps(self, text: str) -> bool:
        """Whether `text` shares a run of words with an item, holds a shorter one, or is a near-duplicate of one."""
        shared = any(not self._runs.isdisjoint(grams(text, length)) for length in self._lengths)
        return shared or self._near.nearest(text) >= NEAR


def trained_on(items: Iterable[str], texts: Iterable[str]) -> Overlap:
    """How many of the evaluation `items` share a run of words with the `texts` that were trained on."""
    runs = [grams(item, SHARED_WORDS) for item in items]
    looked_at = [i for i, own in enumerate(runs) if own and min(map(len, own)) >= FEWEST_WORDS]
    where: dict[Gram, list[int]] = defaultdict(list)
    for i in looked_at:
        for gram in runs[i]:
            where[gram].append(i)
    lengths = {len(gram) for gram in where}
    shared = {gram for text in texts for length in lengths for gram in where.keys() & grams(text, length)}
    found = {i for gram in shared for i in where[gram]}
    return Overlap(words=SHARED_WORDS, items=len(runs), looked_at=len(looked_at), shared=len(found))
