"""The table of verdicts: what stands first, and every character of it."""

from __future__ import annotations

import pytest
from judged_study import JudgedStudy
from plans import make_plan

from harness.config import ROOT
from harness.plugins.articles.article import find
from harness.record import add_plans, read_study
from harness.report.tables.best import tables
from harness.report.tables.formats import document


def test_claims_say_first_which_hold(tmp_path):
    article = find("beyond_lora")
    study = JudgedStudy(tmp_path, article.claims)
    study.add("base", gsm8k=0.2)
    for method in ("lora", "full"):
        study.seeds(method, gsm8k=0.6)
    lines = article.verdict_table(article.verdicts(study.records, tmp_path)).answer
    assert lines[-1].startswith("Not decided: ")
    assert len(lines) > 1
    assert any(line.startswith(("These claims hold: ", "These do not hold: ")) for line in lines)


def test_claims_that_hold_in_some_places_are_told_with_these():
    study = ROOT / "results" / "reference" / "smollm2"
    records, _ = read_study(study)
    article = find("beyond_lora")
    hold, not_, depends, open_ = article.verdict_table(article.verdicts(records, study)).answer
    assert hold.startswith("These claims hold: dora-parameters, qlora-memory, ")
    assert "dora-memory (wordmath_short)" in not_
    assert "galore-memory, " in not_ or not_.endswith("galore-memory.")
    assert depends == "These hold at some settings and not at others: lora-memory, galore-states."
    assert open_.startswith("Not decided: 24 of 40.")


def test_latex_has_every_character_of_our_own_texts_and_code_as_such():
    folder = ROOT / "results" / "reference" / "quickstart"
    records, article = read_study(folder)[0], find("beyond_lora")
    made = [*tables(records, folder), article.verdict_table(article.verdicts(records, None))]
    text = document(made, "latex")
    assert "[U+" not in text
    assert "of ``Beyond LoRA''" in text
    assert r"\texttt{harness sweep quickstart seed=0,1,2}" in text
    assert r"\texttt{python -m harness sweep forgetting \textquotesingle{}eval.tasks=[wordmath,plain\_text]" in text
    assert "`" not in text.replace("``", "")


@pytest.mark.parametrize(
    ("planned", "plan", "verdict", "line"),
    [
        (2, "planned", "supported", "Planned: seeds, items and rules were fixed before the first cell"),
        (3, "interim", "not decided yet (so far: supported)", "Interim, nothing is decided yet. The plan of"),
        (1, "exploratory", "supported", "is in no plan"),
        (0, "exploratory", "supported", "Exploratory. The study has no plan."),
    ],
)
def test_a_verdict_says_whether_it_was_planned(tmp_path, planned, plan, verdict, line):
    article = find("beyond_lora")
    study = JudgedStudy(tmp_path, article.claims)
    for method in ("dora", "full"):
        study.seeds(method, seeds=3, gsm8k=0.6)
    cells = [record for record in study.records if record.cell.seed < planned]
    if cells:
        add_plans(tmp_path, [make_plan(cells, created="2026-01-02T00:00:00+00:00")])
    records = [record for record in study.records if record.cell.seed < 2]
    table = article.verdict_table(article.verdicts(records, tmp_path))
    row = dict(zip(table.columns, next(row for row in table.rows if row[0] == "dora-full"), strict=True))
    assert (row["Plan"], row["Verdict"]) == (plan, verdict)
    assert any(line in sentence for sentence in table.caption)
    holds = [sentence for sentence in table.answer if sentence.startswith("These claims hold: ")]
    assert ("dora-full" in "".join(holds)) == (plan != "interim")
    assert table.data.set_index("claim").loc["dora-full", "plan"] == plan
