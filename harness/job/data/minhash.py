"""Finds sets that are alike without comparing all pairs: MinHash (Broder 1997) with bands (Leskovec et al., chapter 3).

The share of equal numbers in two signatures is about the Jaccard similarity s of their sets. Sets are candidates if all
ROWS numbers of one of BANDS bands are equal, which has the probability 1 - (1 - s**ROWS)**BANDS: 0.99 at s = 0.6, 0.23
at 0.3. Thirty lines of numpy, where a package (datasketch) would be a dependency more; numbers are the same everywhere.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

BANDS, ROWS = 32, 4
HASHES = np.random.default_rng(0).integers(0, 2**63, (2, BANDS * ROWS, 1), dtype=np.uint64)
FACTORS, SUMMANDS = HASHES[0] * np.uint64(2) + np.uint64(1), HASHES[1]  # multiply-shift hashing takes odd factors


class MinHashIndex:
    """Sets of texts by key, to find those that may be like another set."""

    def __init__(self, sets: Mapping[int, Sequence[str]]):
        self._where: dict[tuple[int, bytes], list[int]] = defaultdict(list)
        for key, texts in sets.items():
            for band in _bands(texts):
                self._where[band].append(key)

    def candidates(self, texts: Sequence[str]) -> set[int]:
        """The keys of the sets that share a band with that of `texts`."""
        return {key for band in _bands(texts) for key in self._where.get(band, ())}


def _bands(texts: Sequence[str]) -> list[tuple[int, bytes]]:
    """The bands of the signature of a set that is not empty, each with its number."""
    codes = np.array([zlib.crc32(text.encode()) for text in texts], dtype=np.uint64)
    signature = ((FACTORS * codes + SUMMANDS) >> np.uint64(32)).min(axis=1).astype(np.uint32)
    return [(number, band.tobytes()) for number, band in enumerate(signature.reshape(BANDS, ROWS))]
