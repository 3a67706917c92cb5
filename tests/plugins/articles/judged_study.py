"""Synthetic studies with items, on which the rules of articles are tested."""

from __future__ import annotations

import numpy as np
import pandas as pd
from records import make_record, make_score

from harness.plugins.articles.evidence import Evidence

N = 400
RATES = {"full": 2e-5, "galore": 2e-5}
SCORES = {
    "gsm8k": ("gsm8k", "exact_match", "flexible-extract"),
    "facts": ("facts", "acc", "none"),
    "facts_short": ("facts_short", "acc", "none"),
    "mmlu": ("mmlu", "acc", "none"),
    "plain_text": ("plain_text", "bits_per_byte", "none"),
}


class JudgedStudy:
    """Records, and their items written to `folder`, where rules read them."""

    def __init__(self, folder, claims):
        self.folder, self.claims, self.records = folder, claims, []

    def add(self, method, rank=None, seed=0, *, loss=1.0, data="gsm8k", settings=None, lr=None, alpha=None, **scores):
        """One record; scores: by task the mean, of N items that share their difficulty over all records."""
        untuned = method.startswith("base")
        ranked = None if untuned or method == "full" else rank or 16
        alpha = None if ranked is None or method == "galore" else alpha or 2 * ranked
        lr = None if untuned else lr or RATES.get(method, 2e-4)
        found = [
            make_score(value, task=SCORES[task][0], metric=SCORES[task][1], filter=SCORES[task][2], n=N)
            for task, value in scores.items()
        ]
        record = make_record(method, ranked, alpha, lr, seed, data=data, scores=found, settings=settings)
        record.validation[-1].loss = loss
        self.records.append(record)
        rows = []
        for task, value in scores.items():
            names = dict(zip(("task", "metric", "filter"), SCORES[task], strict=True))
            rows += [{**names, "subject": task, "item": i, "value": v} for i, v in enumerate(self._items(value, seed))]
        pd.DataFrame(rows).to_parquet(self.folder / f"{record.cell.name}.items.parquet") if rows else None
        return record

    def _items(self, value, seed):
        """Right where an item is easy enough; a few answers are other ones with each seed."""
        if value > 1:
            return value + np.random.default_rng(7).normal(size=N) + np.random.default_rng(seed).normal(size=N) / 50
        ease = np.random.default_rng(7).permutation(N) / N
        return (ease + np.random.default_rng(seed).normal(size=N) / 200 < value).astype(float)

    def seeds(self, method, rank=None, seeds=3, **fields):
        for seed in range(seeds):
            self.add(method, rank, seed, **fields)

    def judgement(self, name):
        return self.claims[name].rule(Evidence(self.records, self.folder))
