"""The first table of a study as data frames: the same choices, intervals and verdicts."""

from __future__ import annotations

import pandas as pd
import pytest
from records import make_record, make_score, make_study

from harness.config import ROOT
from harness.record import read_study
from harness.report.answer import answer
from harness.report.pairwise import contests
from harness.report.tables.best import best
from harness.report.tables.frames import chosen_of, pairs_of

QUICKSTART = ROOT / "results" / "reference" / "quickstart"


@pytest.fixture(scope="module")
def records():
    return read_study(QUICKSTART)[0]


def test_chosen_settings_are_those_of_the_table(records):
    data, table = chosen_of(answer(records, QUICKSTART)), best(records, QUICKSTART)
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert list(data["method"]) == [row["Method"] for row in rows]
    (score,) = [column for column in table.columns if column.endswith("(%)")]
    for told, row in zip(data.itertuples(), rows, strict=True):
        assert row["Setting"].startswith(told.setting or "–")
        assert row[score] == f"{100 * told.value:.1f} ({100 * told.low:.1f}–{100 * told.high:.1f}) {told.letters}"
        peak = told.train_allocated_peak
        assert row["Peak train memory"].startswith(
            "–" if pd.isna(peak) else (f"{peak / 2**30:.2f} GiB", f"{peak / 2**20:.0f} MiB")
        )


@pytest.mark.parametrize("higher", [True, False])
def test_standing_counts_from_the_best_whichever_way_is_better(higher):
    scores = {"lora": 0.3, "dora": 0.2, "galore": 0.1}
    records = [
        make_record(method, model=model, scores=[make_score(value, higher_is_better=higher)])
        for model in ("small", "large")
        for method, value in scores.items()
    ]
    data = chosen_of(answer([*records, make_record("full", scores=[])], None))
    of_scored = data[data["value"].notna()]
    assert of_scored["standing"].tolist() == 2 * [*range(1, 4)][:: 1 if higher else -1]
    assert data[data["value"].isna()]["standing"].isna().all()


def test_pairs_are_decided_as_the_letters_are(records):
    study = answer(records, QUICKSTART)
    data = chosen_of(study).set_index("method")["letters"]
    compared = pairs_of(study.contests)
    assert len(compared) == 15
    for pair in compared.itertuples():
        share = bool(set(data[pair.better]) & set(data[pair.other]))
        assert (pair.decision == "different") == (not share)
        assert (pair.corrected < 0.05) == (not share)
        assert pair.low <= pair.difference <= pair.high
        assert pair.difference >= 0
        assert pair.p <= pair.corrected


def test_equivalence_is_decided_against_the_best_method_alone(records):
    (contest,) = [contest for contest in contests(records, QUICKSTART) if contest.primary]
    first, second, third = (standing.choice.label for standing in contest.standings[:3])
    contest.equivalent.append(third)
    assert contest.decision(third) == "equivalent"
    assert contest.decision(third, second) == "not decided"
    assert list(contest.against_best)[:2] == [second, third]
    assert contest.decision("base") == contest.decision("base", first) == "different"


def test_without_items_nothing_is_tested_and_failed_methods_are_rows():
    records = [*make_study(), make_record("dora", 8, 16.0, 1e-3, data="other", status="oom")]
    study = answer(records, None)
    assert pairs_of(study.contests).empty
    assert {"better", "other", "decision"} <= set(pairs_of(study.contests))
    data = chosen_of(study)
    assert data["letters"].isna().all()
    (failed,) = data[data["data"] == "other"].itertuples()
    assert (failed.seeds, failed.tries) == (0, 1)
    assert pd.isna(failed.setting)
    assert pd.isna(failed.value)
