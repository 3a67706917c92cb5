"""The table of verdicts: what stands first, and every character of it."""

from __future__ import annotations

from judged_study import JudgedStudy

from harness.config import ROOT
from harness.plugins.articles.article import find
from harness.record import read_study
from harness.report.tables.best import tables
from harness.report.tables.formats import document


def test_claims_say_first_which_hold(tmp_path):
    article = find("beyond_lora")
    study = JudgedStudy(tmp_path, article.claims)
    study.add("base", gsm8k=0.2)
    for method in ("lora", "full"):
        study.seeds(method, gsm8k=0.6)
    for record in study.records:
        if record.cell.method == "full":
            record.phases["train"].memory.allocated_peak *= 2
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
    assert depends == "These depend on the setting: lora-memory, galore-states."
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
