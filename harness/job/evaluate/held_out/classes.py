"""Scores of answers that are labels: what each item is taken for, macro-F1 item by item, and counts of both."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from harness.job.data.labels import Labels
from harness.job.data.words import MARKS, UNSPACED
from harness.job.evaluate.held_out import matching
from harness.record import ClassCounts

MACRO_F1 = "f1_macro"  # the metric's name
BEGIN, END = rf"(?:(?<!\w)|(?<=[{UNSPACED}]))", rf"(?![{MARKS}])(?:(?!\w)|(?=[{UNSPACED}]))"  # of a word
NONE = "(no label)"  # the prediction of a written answer that names no label, or several


def prediction(responses: Sequence[Any], labels: Sequence[str]) -> str:
    """The label that lm-eval's responses to an item mean: one text, or of each label its log-likelihood."""
    if isinstance(responses[0], str):
        return written_label(responses[0], labels)
    likelihoods = [likelihood for likelihood, _is_greedy in responses]
    return labels[int(np.argmax(likelihoods))]


def written_label(text: str, labels: Sequence[str]) -> str:
    """The label that `text` is but for form, or the only one that stands in it; else NONE."""
    forms = {matching.plain(label): label for label in labels}
    plain = matching.plain(matching.final(text))
    if plain in forms:
        return forms[plain]
    inside = [label for form, label in forms.items() if re.search(rf"{BEGIN}{re.escape(form)}{END}", plain)]
    longest = [label for label in inside if not any(label != other and label in other for other in inside)]
    return longest[0] if len(longest) == 1 else NONE


def macro_f1(targets: Sequence[str], predictions: Sequence[str]) -> list[float]:
    """A value of each item. Their mean is macro-F1, the mean of F1 over the classes that `targets` have.

    The value is macro-F1 and what the item adds to it at the margin, so that the standard error of the mean is that of
    macro-F1 (the delta method), and differences between models can be tested item by item.
    """
    true, guess = np.array(targets, dtype=object), np.array(predictions, dtype=object)
    values = np.zeros(len(true))
    classes = sorted({*targets})
    for name in classes:
        is_true, is_guess = (true == name).astype(float), (guess == name).astype(float)
        size = (is_true + is_guess).mean()
        f1 = 2 * (is_true * is_guess).mean() / size
        values += f1 + (2 * is_true * is_guess - f1 * (is_true + is_guess)) / size
    return (values / len(classes)).tolist()


def counts(items: pd.DataFrame, labels: Labels) -> ClassCounts:
    """How often items of each class were given each label. items: rows of the metric MACRO_F1 of one task."""
    columns = [*labels.texts, NONE]
    table = {(true, guess): 0 for true in labels.texts for guess in columns}
    for pair in zip(items["target"], items["prediction"], strict=True):
        table[pair] += 1
    rows = [[table[true, guess] for guess in columns] for true in labels.texts]
    return ClassCounts([*labels.texts], [*labels.trained], rows)
