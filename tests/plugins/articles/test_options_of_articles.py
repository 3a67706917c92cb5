"""Options of the commands that judge an article's claims and show its table, on a published study."""

from __future__ import annotations

from tested_settings import Line, lines

from harness.config import ROOT

STUDY = "--study quickstart --results-dir {root}/results/reference"


@lines(
    Line(f"table {STUDY} --article", said="galore"),
    Line(f"claims {STUDY} --format text --wide --article beyond_lora", said="confirmed|refuted|supported|not"),
    f"claims {STUDY} --long --format md --out claims.md",
    Line(f"claims {STUDY} --format csv --article lora_without_regret", said=","),
    Line("claims --published --results-dir {root}/results --format md", said="PiSSA|lora-numerical"),
    Line("claims --published --results-dir {root}/results --long --format csv", said="predicted_low"),
    Line("claims --published --results-dir none", 2, "There are no tables of published results in none/published."),
    Line(f"claims --published {STUDY}", 2, "--published can't be combined with --study"),
    Line("claims --published --article lora_without_regret", 2, "has no claims that are judged on published results"),
    Line(f"claims {STUDY} --format html", said="<table"),
    Line(f"claims {STUDY} --format latex", said="tabular"),
    Line(f"table {STUDY} --article --columns method", 2, "--columns can't be combined with --article"),
    Line(f"table {STUDY} --article --price 2", 2, "--price can't be combined with --article"),
    Line(f"table {STUDY} --article lora_without_regret", 2, "has no table; `claims --article lora_without_regret`"),
)
def test_claims_are_judged_in_every_format(run, tmp_path):
    run(root=ROOT)
    assert "These claims hold" in (tmp_path / "claims.md").read_text()
