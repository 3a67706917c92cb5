"""Which score shows what a model learned, by the data set it was tuned on, and which scores show what it forgot."""

from __future__ import annotations

LEARNED = {
    "gsm8k": "gsm8k/exact_match/flexible-extract",
    "metamath": "gsm8k/exact_match/flexible-extract",
    "wordmath": "wordmath/exact_match/flexible-extract",
    "wordmath_short": "wordmath_short/exact_match/flexible-extract",
    "facts": "facts/acc/none",
    "facts_short": "facts_short/acc/none",
}
"""By data set, the score (TASK/METRIC/FILTER) of the task that it trains for."""

MMLU = "mmlu/acc/none"
PLAIN_TEXT = "plain_text/bits_per_byte/none"
FORGOTTEN = (MMLU, PLAIN_TEXT)
"""Scores of tasks that no data set trains for."""
