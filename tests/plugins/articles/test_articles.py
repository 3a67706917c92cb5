"""Articles are found by folder; each keeps to the protocol."""

from __future__ import annotations

import pandas as pd
import pytest

from harness.__main__ import main
from harness.config import ROOT
from harness.plugins.articles.article import Article, every, find, names
from harness.plugins.articles.verdict_tables import claim_lines, claim_table
from harness.record import read_study


def test_every_folder_is_an_article():
    folders = {path.parent.name for path in (ROOT / "harness" / "plugins" / "articles").glob("*/__init__.py")}
    assert {"beyond_lora", "lora_without_regret"} <= folders == set(names())


@pytest.mark.parametrize("article", every(), ids=lambda article: article.name)
def test_an_article_keeps_to_the_protocol(article):
    assert isinstance(article, Article)
    assert article == find(article.name)
    assert article.title
    assert article.source
    assert article.caption
    assert [claim.name for claim in article.claims.values()] == list(article.claims)
    assert all(claim.run.startswith("sweep ") for claim in article.claims.values())


@pytest.mark.parametrize("command", [["claims"], ["table"]], ids=" ".join)
def test_an_unknown_article_is_one_sentence(command, capsys):
    results = ["--study", "reference/quickstart", "--results-dir", str(ROOT / "results")]
    assert main([*command, "--article", "beyond_laura", *results]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "beyond_laura" in line
    assert "beyond_lora" in line


def test_a_claims_data_are_values_that_a_file_can_hold():
    records, _ = read_study(ROOT / "results" / "reference" / "quickstart")
    article = find("beyond_lora")
    verdicts = article.merged([(records, None)])
    data = pd.concat([claim_lines(article, verdicts).data, claim_table(article, verdicts).data])
    values = [value for row in data.to_dict("records") for value in row.values()]
    assert len(values) > 100
    assert not [value for value in values if callable(value)]
