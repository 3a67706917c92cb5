"""`RecordedStudy.claims`: a data frame of the verdicts on the claims of articles."""

from __future__ import annotations

import pytest

import harness
from harness.config import ROOT
from harness.plugins.articles.article import find, names
from harness.record import read_study

QUICKSTART = ROOT / "results" / "reference" / "quickstart"


def test_claims_are_those_of_the_articles():
    study = harness.read(QUICKSTART)
    claims = study.claims()
    assert set(claims["article"]) == set(names())
    records, _ = read_study(QUICKSTART)
    article = find("beyond_lora")
    verdicts = article.verdicts(records, QUICKSTART)
    own = study.claims("beyond_lora")
    assert own["verdict"].tolist() == [verdict.judgement.decision for verdict in verdicts]
    undecided = own["verdict"] == "not decided"
    assert own.loc[undecided, "command"].str.startswith("python -m harness sweep ").all()
    assert own.loc[undecided, "reason"].ne("").all()
    assert own.loc[~undecided, "command"].isna().all()
    assert own.loc[~undecided, "effect"].notna().all()
    caption = "\n".join(article.verdict_table(verdicts).caption)
    assert all(command in caption for command in own.loc[undecided, "command"])
    with pytest.raises(harness.UserError, match="Did you mean beyond_lora"):
        study.claims("beyond_loar")
