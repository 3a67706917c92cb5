"""`RecordedStudy.claims`: a data frame of the verdicts on the claims of articles."""

from __future__ import annotations

import pytest

import harness
from harness.config import ROOT
from harness.plugins.articles.article import find, names
from harness.plugins.articles.verdict_tables import claim_table
from harness.record import read_study

REFERENCE = ROOT / "results" / "reference"
QUICKSTART = REFERENCE / "quickstart"


def test_claims_are_those_of_the_articles():
    study = harness.read(QUICKSTART)
    claims = study.claims()
    assert set(claims["article"]) == set(names())
    records, _ = read_study(QUICKSTART)
    article = find("beyond_lora")
    verdicts = article.merged([(records, QUICKSTART)])
    own = study.claims("beyond_lora")
    assert own["claim"].tolist() == list(article.claims)
    judged = own[own["verdict"] != "not judged"]
    assert judged["verdict"].tolist() == [merged.judgement.decision for merged in verdicts.judged]
    assert (own["places"] > 0).eq(own["verdict"] != "not judged").all()
    undecided = own["verdict"].isin(["not decided", "not judged"])
    assert own.loc[undecided, "command"].str.startswith("harness sweep ").all()
    assert own.loc[undecided, "reason"].ne("").all()
    assert own.loc[~undecided, "command"].isna().all()
    assert own.loc[~undecided, "effect"].notna().all()
    caption = "\n".join(claim_table(article, verdicts).caption)
    assert all(command in caption for command in own.loc[undecided, "command"])
    with pytest.raises(harness.UserError, match="Did you mean beyond_lora"):
        study.claims("beyond_loar")


def test_claims_use_all_studies_that_were_read():
    studies = harness.read([REFERENCE / "study_memory", REFERENCE / "study_skill"])
    claims = studies.claims("beyond_lora").set_index("claim")
    memory = claims.loc["adapters-galore-memory"]
    assert (memory["verdict"], memory["depends_on"], memory["places"]) == ("depends", "batch size or rank or more", 2)
    assert memory["studies"] == "reference/study_memory, reference/study_skill"
    assert memory["agreeing"] == 0
    places = studies.claims("beyond_lora", long=True)
    of_memory = places[places["claim"] == "adapters-galore-memory"]
    assert dict(zip(of_memory["study"], of_memory["verdict"], strict=True)) == {
        "reference/study_memory": "supported",
        "reference/study_skill": "refuted",
    }
