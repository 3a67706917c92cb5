"""Scores of written prose: ROUGE-L and BLEU."""

from __future__ import annotations

from typing import Any

from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer
from sacrebleu.metrics import BLEU

from harness.job.data.words import HAN_ALONE, spaced, words
from harness.job.evaluate.held_out import bits


def likeness(doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
    """ROUGE-L and sentence BLEU of the written answer, from 0 to 1, and of the right one the bits per byte if they were
    measured."""
    scores = {"rougeL": ROUGE.score(doc["answer"], results[0])["rougeL"].fmeasure}
    bleu = BLEU_ZH if HAN_ALONE.search(doc["answer"]) else BLEU_13A
    scores["bleu"] = bleu.sentence_score(spaced(results[0]), [spaced(doc["answer"])]).score / 100
    if len(results) == 2:
        scores["bits_per_byte"] = bits.of_answer(doc, results[1])
    return scores


class _Words(Tokenizer):
    """Words of any script in lower case, where the package's own knows a to z."""

    def tokenize(self, text: str) -> list[str]:
        return words(text.lower().replace("_", " "))


ROUGE = RougeScorer(["rougeL"], tokenizer=_Words())
# Of single answers, so that models can be compared item by item: orders without a match are smoothed or left out.
BLEU_13A, BLEU_ZH = (BLEU(tokenize=how, effective_order=True) for how in ("13a", "zh"))
