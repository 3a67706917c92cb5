"""Adapters from the generated data sets to what lm-eval's `custom_dataset` wants: splits of `datasets.Dataset`.

lm-eval calls them with the task's `dataset_kwargs` (the seed, …) and its whole metadata (version, model arguments, …);
the latter says nothing about the data and is swallowed.
"""

from __future__ import annotations

import math

from datasets import Dataset, DatasetDict

from harness.job.data.generators import facts as facts_data
from harness.job.data.generators import plain_text as plain_text_data
from harness.job.data.generators import wordmath as wordmath_data


def _as_datasets(splits: dict[str, list[dict]]) -> DatasetDict:
    return DatasetDict({split: Dataset.from_list(items) for split, items in splits.items()})


def wordmath(seed: int, max_steps: int, test: int, **_metadata: object) -> DatasetDict:
    """The splits of `harness.job.data.generators.wordmath`, train and validation in their default sizes."""
    return _as_datasets(wordmath_data.load(seed, train=1000, test=test, max_steps=max_steps))


def facts(seed: int, entities: int, **_metadata: object) -> DatasetDict:
    """The splits of `harness.job.data.generators.facts`."""
    return _as_datasets(facts_data.load(seed, entities))


def plain_text(**_metadata: object) -> DatasetDict:
    """The passages of `harness.job.data.generators.plain_text`."""
    return _as_datasets(plain_text_data.load())


def bits_per_byte(doc: dict, results: list[tuple[float, bool]]) -> dict[str, float]:
    """Of one passage: the loss of its rest, per byte of it, so that models with other tokenizers can be compared."""
    ((log_likelihood, _greedy),) = results
    return {"bits_per_byte": -log_likelihood / math.log(2) / len(doc["rest"].encode())}
