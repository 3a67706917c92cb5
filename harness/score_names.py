"""What scores are called where people read them: "skill, solved" for TASK/METRIC/FILTER.

A task's name is the `task_alias` of its own YAML (harness/job/evaluate/tasks/); lm-eval's tasks keep lm-eval's names.
Which way is better is the score's `higher_is_better`, from the same file.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

TASK_FILES = Path(__file__).parent / "job" / "evaluate" / "tasks"
HELD_OUT_NAMES = {"solved": "skill"}
"""The task `held_out`, which has no file, by its metric: the problems of a skill have a verifier."""
METRICS = {
    "acc": "accuracy",
    "acc_norm": "accuracy by length",
    "exact_match": "exact match",
    "f1_macro": "macro-F1",
    "bits_per_byte": "bits per byte",
    "loss_increase": "loss increase",
    "rougeL": "ROUGE-L",
    "bleu": "BLEU",
    "bertscore": "BERTScore F1",
}
CHAT = " (chat)"
"""What ends the name of a task that a chat endpoint answered."""
FILTERS = {"none": "", "flexible-extract": "", "strict-match": "strict format"}


def score_label(task: str, metric: str, answer_filter: str) -> str:
    """Such as "skill, solved" and "skill, solved, strict format"."""
    parts = (task_label(task, metric), METRICS.get(metric, metric), FILTERS.get(answer_filter, answer_filter))
    return ", ".join(part for part in parts if part)


def task_label(task: str, metric: str = "") -> str:
    """metric: tells what the items of `held_out` are; "" where a sentence is about items alone."""
    name, chat = (task.removesuffix(CHAT), CHAT) if task.endswith(CHAT) else (task, "")
    if name == "held_out":
        return HELD_OUT_NAMES.get(metric, "held-out data") + chat
    return _aliases().get(name, name) + chat


@cache
def _aliases() -> dict[str, str]:
    """By task, the `task_alias` of its file. Read by lines: YAML's own loader refuses lm-eval's `!function`."""
    aliases = {}
    for path in sorted(TASK_FILES.glob("*.yaml")):
        values = dict(re.findall(r"^(task|task_alias): *(.+?) *$", path.read_text(encoding="utf-8"), re.MULTILINE))
        if "task_alias" in values:
            aliases[values.get("task", path.stem)] = values["task_alias"]
    return aliases
