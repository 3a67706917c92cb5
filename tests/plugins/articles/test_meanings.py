"""What articles say in their claims: complete, bounded, and shown."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from records import make_record

from harness.plugins.articles.article import every, find
from harness.plugins.articles.claims import OPEN, SUPPORTED, Claim, Judgement, Meaning, from_size, read_claims, times
from harness.plugins.articles.evidence import Evidence
from harness.plugins.articles.meanings import explanation, said
from harness.record import Parameters
from harness.report.statistics import Interval

ALL = [
    pytest.param(claim, id=f"{article.name}-{name}") for article in every() for name, claim in article.claims.items()
]


@pytest.mark.parametrize("claim", ALL)
def test_a_claim_has_a_sentence_a_quantity_a_bound_and_limits(claim):
    assert all(getattr(claim.meaning, part).strip() for part in ("sentence", "measured", "bound", "limits"))
    assert not [text for _, text in explanation(claim) if text.rstrip("”").endswith(".")], "they are closed where shown"


@pytest.mark.parametrize("claim", ALL)
def test_the_text_of_a_claim_states_its_bound(claim):
    """In brackets, or as its ratio; its numbers are those that the reason is given for."""
    bracket = re.search(r"\((.+)\)", claim.text)
    assert bracket, claim.text
    limits = re.findall(r"[\d.]+(?= points?| bits per byte|×|%| times)", bracket[1])
    assert all(limit in claim.meaning.bound + claim.meaning.measured for limit in limits), (limits, claim.meaning.bound)


def test_quotes_are_marked_and_the_rest_is_a_paraphrase():
    for article in every():
        for claim in article.claims.values():
            ((_, sentence), *_) = explanation(claim)
            assert sentence.startswith("“") == claim.meaning.quoted
            assert sentence.endswith("(a paraphrase)") != claim.meaning.quoted


def test_all_claims_are_said_with_what_a_smaller_model_cannot_decide():
    claims = find("beyond_lora").claims
    text = said(claims)
    assert text.count("\n- **") + 1 == len(claims)
    assert text.count("    - The article: ") == text.count("    - Can't show: ") == len(claims)
    assert [name for name, claim in claims.items() if claim.least_model] == [
        *("dora-mmlu", "forgetting-mmlu", "forgetting-reasoning")
    ]
    assert text.count("    - Model: Needs ≥ 1B.") == 3


ENTRY = "{text: One (bound), run: sweep one, unit: times, measured: a, bound: b, limits: c, %s}"


def described(tmp_path, *entries: str, rules: str = "one two") -> dict[str, Claim]:
    file = tmp_path / "claims.yaml"
    file.write_text("".join(f"{name}: {entry}\n" for name, entry in zip(("one", "two"), entries, strict=False)))
    return read_claims(file, dict.fromkeys(rules.split(), lambda at: Judgement(OPEN)))


def test_a_claim_is_what_its_file_says_and_its_rule(tmp_path):
    claims = described(tmp_path, ENTRY % "quote: Q", ENTRY % "paraphrase: P, least_model: 1.0e+9", rules="two one")
    one, two = claims.values()
    assert (one.name, one.text, one.run, one.shown, one.least_model) == ("one", "One (bound)", "sweep one", times, 0)
    assert one.meaning == Meaning("Q", "a", "b", "c", quoted=True)
    assert (two.meaning.sentence, two.meaning.quoted, two.least_model) == ("P", False, 1e9)


def test_a_claim_without_a_rule_and_a_rule_without_a_claim_are_refused(tmp_path):
    entries = [ENTRY % "quote: Q", ENTRY % "quote: Q"]
    with pytest.raises(ValueError, match="No rule judges two"):
        described(tmp_path, *entries, rules="one")
    with pytest.raises(ValueError, match="No claim is named three"):
        described(tmp_path, *entries, rules="one two three")


@pytest.mark.parametrize("more", ["quote: Q, paraphrase: P", "least_model: 1", "quote: Q, unit: parsecs"])
def test_a_claim_has_a_unit_and_one_sentence_of_the_article(tmp_path, more):
    with pytest.raises(ValueError, match=r"one requires a unit of times, points, .* either a quote or a paraphrase"):
        described(tmp_path, ENTRY % more, rules="one")


@pytest.mark.parametrize(
    ("parameters", "expected"), [(134_515_008, OPEN), (940_000_000, OPEN), (999_885_952, SUPPORTED), (3e9, SUPPORTED)]
)
def test_a_small_model_decides_nothing_that_needs_a_larger_one(parameters, expected):
    record = make_record("base")
    record.parameters = Parameters(int(parameters), 0)
    judgement = Judgement(SUPPORTED, Interval(2, 1, 3), corrected=lambda comparisons: SUPPORTED)
    sized = from_size(lambda at: judgement, 1e9)(Evidence([record], None))
    assert sized.decision == expected
    assert sized.effect == judgement.effect
    if expected == OPEN:
        assert sized.why == "Needs ≥ 1B"
        assert sized.corrected is None


def test_what_lacks_an_effect_or_a_size_stays_as_it_is():
    lacking = Judgement(OPEN, why="No finished dora")
    assert from_size(lambda at: lacking, 1e9)(Evidence([make_record("base")], None)) == lacking
    bare = replace(make_record("base"), parameters=None)
    known = Judgement(SUPPORTED, Interval(2, 1, 3))
    assert from_size(lambda at: known, 1e9)(Evidence([bare], None)) == known
