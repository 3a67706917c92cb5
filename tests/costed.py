"""A study of four methods that differ in cost and score, for tests of what weighs the two."""

from __future__ import annotations

import numpy as np
import pandas as pd
from records import make_record, make_score

from harness.record import ValidationPoint, write

HOURS = {"lora": 1.0, "full": 3.0, "dora": 2.0, "galore": 4.0}
SHARES = {"lora": 0.60, "full": 0.61, "dora": 0.45, "galore": 0.30}


def costed_study(folder, seeds=(0,)):
    """Its records, in `folder` too. LoRA and full can't be told apart, full costs three times as much; DoRA and GaLore
    are worse and cost more."""
    difficulty, records = np.random.default_rng(0).random(400), []
    for method, share in SHARES.items():
        for seed in seeds:
            record = make_record(method, seed=seed)
            record.validation = [ValidationPoint(50, 20_000, 1.0)]
            record.seconds = 3600 * HOURS[method] * (1 + 0.01 * seed)
            noise = np.random.default_rng([7, int(100 * share), *([seed] if seed else [])]).normal(0, 0.05, 400)
            values = (difficulty + noise < share).astype(float)
            score = make_score(n=400, value=float(values.mean()), stderr=float(values.std(ddof=1) / 20))
            record.scores = [score]
            of = {
                "task": score.task,
                "subject": score.task,
                "hash": "0",
                "filter": score.filter,
                "metric": score.metric,
            }
            items = pd.DataFrame({"item": range(400), "value": values, "prediction": "1", "target": "1"} | of)
            write(record, folder / f"{record.cell.name}.json")
            items.to_parquet(folder / f"{record.cell.name}.items.parquet", index=False)
            records.append(record)
    return records
