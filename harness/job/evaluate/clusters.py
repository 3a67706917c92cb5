"""Which items of a task share something that makes them alike: a passage, a relation, a template."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from harness.job.data.generators import wordmath

PASSAGES = ("passage", "article", "story")  # fields of a document that several questions share
NAMES = ("subject", "template")  # fields that name what questions share


def cluster_of(document: Mapping[str, Any]) -> str | None:
    """A name that items of one cluster share; None for an item that is its own.

    Errors of items in a cluster are correlated, so standard errors count clusters (Miller, arXiv:2411.00640). The leaf
    task, such as a subject of MMLU, is a cluster anyway.
    """
    for field in PASSAGES:
        if isinstance(text := document.get(field), str):
            return hashlib.sha256(text.encode()).hexdigest()[:12]
    for field in NAMES:
        if isinstance(name := document.get(field), str):
            return name
    question = document.get("question")
    return wordmath.template_of(question) if isinstance(question, str) else None
