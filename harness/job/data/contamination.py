"""Compares texts by word n-grams: near-duplicates, and contamination of evaluation items by training data.

Brown et al. (2020, arXiv:2005.14165, appendix C) count an evaluation item as contaminated if it shares an N-gram with
the training data; N is 13, or as few as 8 for shorter items. In the record N is 13, or all words of a shorter item. An
item of fewer than 8 words is compared whole, as every item is: with the training questions, but for the form of both.
Of scripts without spaces between words, each character counts as a word.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from harness.job.data.minhash import MinHashIndex
from harness.job.data.normalising import normalised
from harness.job.data.words import spaced, words_and_numbers
from harness.record import Contamination

NEAR = 0.6  # Jaccard similarity of word 3-grams from which on two texts are near-duplicates
NEAR_WORDS = 3
SHARED_WORDS = 13  # of a shared n-gram
FEWEST_WORDS = 8  # of an item that is looked for inside longer texts
MOST_TEMPLATE = 12  # words that all items begin, or end, with, and that may be their prompt's

Gram = tuple[str, ...]


def grams(text: str, n: int) -> set[Gram]:
    """The word n-grams of `text`, in lower case and without punctuation; of a shorter text all its words."""
    words = words_and_numbers(text.lower())
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


def trained_on(items: Sequence[str], questions: Iterable[str], texts: Iterable[str]) -> Contamination:
    """How many of the evaluation `items` were trained on.

    questions: of the training examples. texts: the same with the answers, in which n-grams are looked for.
    """
    questions = list(questions)
    same = _same(items, questions)
    shared = same | _sharing(items, texts)
    return Contamination(
        words=SHARED_WORDS,
        items=len(items),
        looked_at=sum(bool(normalised(item)) for item in items),
        shared=len(shared),
        same=len(same),
        near=len(_near(items, questions) - same),
    )


def _sharing(items: Sequence[str], texts: Iterable[str]) -> set[int]:
    """The indices of the items that share an n-gram with the training `texts`."""
    where: dict[Gram, list[int]] = defaultdict(list)
    for i, item in enumerate(items):
        own = grams(item, SHARED_WORDS)
        if own and min(map(len, own)) >= FEWEST_WORDS:
            for gram in own:
                where[gram].append(i)
    lengths = {len(gram) for gram in where}
    shared = {gram for text in texts for length in lengths for gram in where.keys() & grams(text, length)}
    return {i for gram in shared for i in where[gram]}


def _same(items: Sequence[str], questions: Iterable[str]) -> set[int]:
    """The indices of the items that are one of the training `questions`, but for form.

    Items of a task come with its prompt ("Question: … Answer:"), so any of the words that all have at their ends may be
    left out.
    """
    in_training = {normalised(question) for question in questions} - {""}
    words = [normalised(item).split() for item in items]
    before = _common(words)
    after = _common([own[before:][::-1] for own in words])
    cuts = [(begin, end) for begin in range(before + 1) for end in range(after + 1)]
    return {
        i
        for i, own in enumerate(words)
        if any(" ".join(own[begin : len(own) - end]) in in_training for begin, end in cuts)
    }


def _common(words: Sequence[Sequence[str]]) -> int:
    """How many words all begin with, at most MOST_TEMPLATE: one word at least is left of each. 0 of a single one."""
    if len(words) < 2:
        return 0
    count = 0
    for column in itertools.islice(zip(*words, strict=False), MOST_TEMPLATE):
        if len(set(column)) > 1:
            break
        count += 1
    return max(0, min(count, min(map(len, words)) - 1))


def _near(items: Sequence[str], questions: Iterable[str]) -> set[int]:
    """The indices of the items that are near-duplicates of one of the training `questions`, both of 13 words or more.

    MinHash finds those that may be, and the similarity itself decides.
    """
    near: set[int] = set()
    of_items = {i: own for i, item in enumerate(items) if (own := _long(item))}
    index = MinHashIndex({i: list(map(" ".join, own)) for i, own in of_items.items()})
    for question in dict.fromkeys(questions):
        if of_items and (own := _long(question)):
            candidates = index.candidates(list(map(" ".join, own))) - near
            near |= {i for i in candidates if len(own & of_items[i]) >= NEAR * len(own | of_items[i])}
    return near


def _long(text: str) -> set[Gram]:
    """The word 3-grams of a text of 13 words or more; none of a shorter one, which is compared whole."""
    words = spaced(normalised(text)).split()
    return grams(" ".join(words), NEAR_WORDS) if len(words) >= SHARED_WORDS else set()
