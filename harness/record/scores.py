"""How a cell was scored: scores, their cost behind an API, contamination, later scorings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from harness.record.measurements import Phase
from harness.settings import EvalSettings

UNBOUNDED = {"margin"}  # metrics of which more is better, and which are no proportions


@dataclass
class Score:
    """One metric of one task."""

    task: str
    """lm-eval task or group."""
    metric: str
    """Name of the metric."""
    filter: str
    """lm-eval filter that extracts the answer."""
    value: float
    """Mean over items, or of the means of subjects if `by_subject`."""
    stderr: float | None
    """Standard error of the mean over items, which counts `clusters`. null for fewer than two items."""
    n: int
    """Items."""
    num_fewshot: int
    """Examples before each question."""
    version: str
    """Version of the task."""
    higher_is_better: bool
    """Direction of the metric."""
    clusters: int | None = None
    """Groups of items that are alike (subjects, passages, templates), as the standard error counts them. null: it takes
    items as independent."""
    by_subject: bool = False
    """Whether subjects count alike, however many items they have: `weight_by_size: false` of an lm-eval group."""

    @property
    def is_proportion(self) -> bool:
        """Whether the value is a share of items that are right, or a mean of such shares: between 0 and 1."""
        return self.higher_is_better and self.metric not in UNBOUNDED and 0 <= self.value <= 1


@dataclass
class Contamination:
    """Evaluation items of a task that are in the training data, whole or in part: possible contamination."""

    words: int
    """Words per n-gram."""
    items: int
    """Items of the task."""
    looked_at: int
    """Items that were compared: all that have words. In records without `same`, those of 8 words or more."""
    shared: int
    """Items that share an n-gram with the training data, or are a training question. Of an item shorter than an n-gram,
    all its words are compared."""
    same: int | None = None
    """Those of `shared` that are a training question but for Unicode's form, case, white space and punctuation. null in
    records from before they were counted."""
    near: int | None = None
    """Further items that are near-duplicates of a training question: both have 13 words or more, and the Jaccard
    similarity of their word 3-grams is 0.6 or more. null in records from before they were counted."""


@dataclass
class ClassCounts:
    """Of a task whose answers are labels: what items of each class were taken for. A class's recall and F1 follow."""

    labels: list[str]
    """The classes, in alphabetical order."""
    trained: list[int]
    """Records of each class in the training part, before data.limit and data.noise."""
    counts: list[list[int]]
    """Items by true class (rows) and predicted one (columns). A last column has written answers without a label."""


@dataclass
class ApiUsage:
    """Cost of the answers behind the scores, of a model behind an API. Includes answers from before a crash."""

    kind: Literal["completions", "chat"]
    """completions (log-probabilities and text) or chat (text only, in the model's own format). These are different
    measurements."""
    requests: int
    """Answers that the scores rest on."""
    cached: int
    """Answers that another cell of the study had requested and paid for."""
    tries: int
    """Failed requests that the last process repeated."""
    read: int | None
    """Prompt tokens as counted by the endpoint. null if it does not count."""
    written: int | None
    """Answer tokens as counted by the endpoint. null if it does not count."""
    seconds: float
    """Waiting time in seconds, summed over requests. Up to `concurrency` requests wait at a time."""
    concurrency: int
    """Requests at a time."""
    price_read: float | None
    """Dollars per million prompt tokens, from the settings."""
    price_written: float | None
    """Dollars per million answer tokens, from the settings."""
    dollars: float | None
    """Price of the answers that this cell requested. null without prices or counts."""
    cut: int | None = None
    """Answers that ended at their token limit. null if unknown."""
    left_out: list[str] = field(default_factory=list)
    """Task settings that the endpoint refuses. Without temperature, answers are random."""
    refused: int = 0
    """Requests whose content the endpoint refused, beside `requests`. They count as empty answers."""


@dataclass
class VllmUsage:
    """Answers behind the scores that vLLM wrote. Its environment is its own, so its torch is not the record's."""

    version: str
    """Version of vLLM."""
    answers: int
    """Answers."""
    read: int
    """Prompt tokens."""
    written: int
    """Answer tokens."""
    load_seconds: float
    """Seconds until vLLM had loaded and compiled the model."""
    seconds: float
    """Seconds from then on until all answers were written."""


@dataclass
class Judging:
    """A comparison of the cell's answers with another cell's, by a judge behind an API. The score `wins` is the cell's
    share of the items: 1 for an answer that the judge prefers in both orders, 0 if it prefers the other one, 0.5 for a
    tie."""

    task: str
    """Task whose answers were compared."""
    filter: str
    """Filter of the score: judge and other cell."""
    against: str
    """Name of the other cell."""
    against_items: str
    """SHA-256 of the other cell's items."""
    judge: str
    """Name of the judge at its endpoint."""
    host: str
    """Host of the endpoint."""
    started: str
    """Time in UTC."""
    unread: int
    """Items without a readable verdict, which count as ties."""
    requests: int
    """Requests, two for each item whose answers differ, and another for each reply that ended in thoughts."""
    read: int | None
    """Prompt tokens as counted by the endpoint. null if it does not count."""
    written: int | None
    """Answer tokens as counted by the endpoint. null if it does not count."""
    refused: int = 0
    """Items that the endpoint refused to judge, which count as ties."""


@dataclass
class Scoring:
    """A later scoring by `harness score`, of saved weights or of the untuned model."""

    tasks: list[str]
    """Tasks of this scoring, whose scores are in the record."""
    started: str
    """Time in UTC."""
    settings: EvalSettings
    """Evaluation settings."""
    environment: dict[str, Any]
    """As in the record."""
    phases: dict[str, Phase]
    """As in the record."""
    vllm: VllmUsage | None = None
    """As in the record."""


def item_hashes(ids: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """As `Record.items`. ids: those of the scored items by task, in ascending order.

    A record has their hash, since thousands of records of a study may have the same thousands of items.
    """
    texts = {task: json.dumps(list(of_task)) for task, of_task in ids.items()}
    return {task: f"sha256:{hashlib.sha256(text.encode()).hexdigest()}" for task, text in texts.items()}
