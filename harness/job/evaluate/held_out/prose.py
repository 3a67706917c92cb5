"""Scores of written prose: ROUGE-L and BLEU."""

from __future__ import annotations

import re
from typing import Any

from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer
from sacrebleu.metrics import BLEU

from harness.job.evaluate.held_out import bits


def likeness(doc: dict[str, Any], results: list[Any]) -> dict[str, float]:
    """ROUGE-L and sentence BLEU of the written answer, from 0 to 1, and of the right one the bits per byte if they were
    measured."""
    scores = {"rougeL": ROUGE.score(doc["answer"], results[0])["rougeL"].fmeasure}
    bleu = BLEU_ZH if CJK.search(doc["answer"]) else BLEU_13A
    scores["bleu"] = bleu.sentence_score(results[0], [doc["answer"]]).score / 100
    if len(results) == 2:
        scores["bits_per_byte"] = bits.of_answer(doc, results[1])
    return scores


class _Words(Tokenizer):
    """Words of any script in lower case, where the package's own knows a to z; of Chinese and Japanese, characters."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+", text.lower())


CJK = re.compile(r"[\u3400-\u9fff]")
ROUGE = RougeScorer(["rougeL"], tokenizer=_Words())
# Of single answers, so that models can be compared item by item: orders without a match are smoothed or left out.
BLEU_13A, BLEU_ZH = (BLEU(tokenize=how, effective_order=True) for how in ("13a", "zh"))
