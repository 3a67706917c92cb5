"""The table of verdicts: what stands first, and every character of it."""

from __future__ import annotations

from judged_study import JudgedStudy

from harness import terminal
from harness.config import ROOT
from harness.plugins.articles.article import find
from harness.plugins.articles.verdict_tables import claim_lines, claim_table, claim_tables
from harness.record import read_study
from harness.report.tables import screen
from harness.report.tables.best import tables
from harness.report.tables.formats import document

REFERENCE = ROOT / "results" / "reference"


def test_claims_say_first_which_hold(tmp_path):
    article = find("beyond_lora")
    study = JudgedStudy(tmp_path, article.claims)
    study.add("base", gsm8k=0.2)
    for method in ("lora", "full"):
        study.seeds(method, gsm8k=0.6)
    for record in study.records:
        if record.cell.method == "full":
            record.phases["train"].memory.allocated_peak *= 2
    lines = claim_table(article, article.merged([(study.records, tmp_path)])).answer
    assert lines[-2].startswith("Not decided: ")
    assert lines[-1].startswith("Not judged, since cells are missing: low-rank-spread, ")
    assert len(lines) > 1
    assert any(line.startswith(("These claims hold: ", "These do not hold: ")) for line in lines)


def test_claims_of_several_places_have_one_verdict_and_a_row_for_each_place():
    study = ROOT / "results" / "reference" / "smollm2"
    records, _ = read_study(study)
    article = find("beyond_lora")
    first, places = claim_tables(article, article.merged([(records, study)]))
    hold, not_, depends, open_, _ = first.answer
    assert hold.startswith("These claims hold: lora-parameters, dora-parameters, dora-serving, qlora-memory, ")
    assert "galore-memory, " in not_ or not_.endswith("galore-memory.")
    assert depends == "These depend on the setting: lora-memory, galore-states."
    assert open_.startswith("Not decided: ")
    claims = [row[0] for row in first.rows]
    assert len(set(claims)) == len(claims)
    assert [row[:2] for row in places.rows if row[0] == "dora-memory"] == [
        ["dora-memory", "facts_short"],
        ["dora-memory", "wordmath_short"],
    ]


def test_a_line_a_claim_fits_a_terminal():
    """In 100 columns, with every remark that there may be."""
    article = find("beyond_lora")
    studies = [(read_study(REFERENCE / name)[0], REFERENCE / name) for name in ("study_memory", "study_skill")]
    verdicts = article.merged(studies)
    table = claim_lines(article, verdicts)
    lines = terminal.lines(*screen.view([table], 100), width=100)
    assert max(map(len, lines)) <= 100
    assert sum(line.startswith(tuple(article.claims)) for line in lines) == len(verdicts.judged)
    assert len(lines) < len(verdicts.judged) + 10
    memory = next(line for line in lines if line.startswith("adapters-galore-memory"))
    assert "depends" in memory
    assert "on study" in memory


def test_latex_has_every_character_of_our_own_texts_and_code_as_such():
    folder = ROOT / "results" / "reference" / "quickstart"
    records, article = read_study(folder)[0], find("beyond_lora")
    made = [*tables(records, folder), claim_table(article, article.merged([(records, None)]))]
    text = document(made, "latex")
    assert "[U+" not in text
    assert "of ``Beyond LoRA''" in text
    assert r"\texttt{harness sweep quickstart seed=0,1,2}" in text
    assert r"\texttt{python -m harness sweep forgetting \textquotesingle{}eval.tasks=[wordmath,plain\_text]" in text
    assert "`" not in text.replace("``", "")
