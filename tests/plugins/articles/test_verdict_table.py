"""The table of verdicts: what stands first, and every character of it."""

from __future__ import annotations

import pytest
from judged_study import JudgedStudy
from plans import make_plan

from harness import terminal
from harness.config import ROOT
from harness.plugins.articles.article import find
from harness.plugins.articles.verdict_tables import claim_lines, claim_table, claim_tables
from harness.record import add_plans, read_study
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
    assert [line.partition(":")[0] for line in lines] == [
        "These claims hold",
        "The effects of these are too small to matter",
        "Not judged, since cells are missing",
    ]
    assert lines[-1].partition(": ")[2].startswith("low-rank-spread, ")


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
    plans = len({merged.plan for merged in verdicts.judged})  # each has a sentence of two lines
    assert len(lines) < len(verdicts.judged) + 8 + 2 * plans
    memory = next(line for line in lines if line.startswith("adapters-galore-memory"))
    assert "depends" in memory
    assert "on batch size or rank" in memory


def test_latex_has_every_character_of_our_own_texts_and_code_as_such():
    folder = ROOT / "results" / "reference" / "quickstart"
    records, article = read_study(folder)[0], find("beyond_lora")
    made = [*tables(records, folder), claim_table(article, article.merged([(records, None)]))]
    text = document(made, "latex")
    assert "[U+" not in text
    assert "of ``Beyond LoRA''" in text
    assert r"\texttt{harness sweep quickstart -{}-confirm 3}" in text
    assert r"\texttt{harness sweep forgetting \textquotesingle{}eval.tasks=[wordmath,plain\_text]" in text
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
    table = claim_table(article, article.merged([(records, tmp_path)]))
    row = dict(zip(table.columns, next(row for row in table.rows if row[0] == "dora-full"), strict=True))
    assert (row["Plan"], row["Verdict"]) == (plan, verdict)
    assert any(line in sentence for sentence in table.caption)
    holds = [sentence for sentence in table.answer if sentence.startswith("These claims hold: ")]
    assert ("dora-full" in "".join(holds)) == (plan != "interim")
    assert table.data.set_index("claim").loc["dora-full", "plan"] == plan


@pytest.mark.parametrize("planned", [0, 3], ids=["exploratory", "interim"])
def test_what_a_plan_will_decide_needs_no_further_command(tmp_path, planned):
    article = find("beyond_lora")
    study = JudgedStudy(tmp_path, article.claims)
    for method in ("dora", "full"):
        study.seeds(method, seeds=3, gsm8k=0.6)
    if planned:
        add_plans(tmp_path, [make_plan(study.records, created="2026-01-02T00:00:00+00:00")])
    one_seed = [record for record in study.records if record.cell.seed == 0]
    verdicts = article.merged([(one_seed, tmp_path)])
    table = claim_table(article, verdicts)
    (line,) = (line for line in table.caption if line.startswith("dora-full: One seed."))
    remarks = {row[0]: row[3] for row in claim_lines(article, verdicts).rows}
    (answer,) = (line for line in table.answer if line.startswith("Not decided: "))
    if planned:
        assert (line, remarks["dora-full"]) == ("dora-full: One seed.", "interim")
        assert not any("To decide it" in each for each in table.caption)
        assert answer.endswith("Below the table is what is left of the plan.")
    else:
        assert "To decide it, run `harness sweep " in line
        assert remarks["dora-full"] == "One seed"
        assert answer.endswith("Below the table is the command that would decide each.")
