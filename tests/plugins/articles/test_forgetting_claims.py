"""What tuning forgets, by kind: against the base that a method started from, in tasks that were not trained."""

from __future__ import annotations

from dataclasses import replace

import pytest
from judged_study import SCORES, JudgedStudy

from harness.plugins.articles.beyond_lora import ARTICLE
from harness.plugins.articles.claims import OPEN, REFUTED, SUPPORTED

SCORES["ifeval"] = ("ifeval", "prompt_level_strict_acc", "none")
NF4 = {"method": {"name": "qlora", "load": {"quantization_config": {"load_in_4bit": True}}, "adapt": {}, "optim": {}}}


@pytest.fixture
def study(tmp_path):
    return JudgedStudy(tmp_path, ARTICLE.claims)


def large(study):
    """The models of `study` have 2B weights."""
    for record in study.records:
        record.parameters = replace(record.parameters, total=2_000_000_000)


KINDS = [
    ("forgetting-mmlu", "mmlu", 0.5, 0.4, 0.5),
    ("forgetting-reasoning", "gsm8k", 0.5, 0.4, 0.5),
    ("forgetting-format", "ifeval", 0.5, 0.4, 0.5),
    ("forgetting-text", "plain_text", 2.0, 2.2, 2.001),
]


@pytest.mark.parametrize(("name", "task", "base", "lost", "kept"), KINDS)
def test_each_kind_is_a_claim_of_its_own(study, name, task, base, lost, kept):
    study.add("base", data="facts", **{task: base})
    study.seeds("lora", data="facts", **{task: kept})
    large(study)
    assert study.judgement(name).decision == REFUTED
    study.seeds("full", data="facts", **{task: lost})
    large(study)
    found = study.judgement(name)
    assert (found.decision, found.why) == (SUPPORTED, "full loses most")
    assert found.effect.value == pytest.approx(abs(lost - base), abs=0.01)
    assert [n for n, *_ in KINDS if study.judgement(n).effect] == [name]
    study.records = [record for record in study.records if record.cell.method != "base"]
    assert (study.judgement(name).decision, study.judgement(name).why) == (OPEN, "No finished base and tuned method")


@pytest.mark.parametrize("name", ["forgetting-mmlu", "forgetting-reasoning"])
def test_a_small_model_has_nothing_to_lose(study, name):
    study.add("base", data="facts", gsm8k=0.5, mmlu=0.5)
    study.seeds("full", data="facts", gsm8k=0.4, mmlu=0.4)
    found = study.judgement(name)
    assert (found.decision, found.effect is None) == (OPEN, False)
    assert found.why == "Needs ≥ 1B"


def test_what_was_trained_is_not_forgotten(study):
    study.add("base", gsm8k=0.5)
    study.seeds("full", gsm8k=0.4)
    large(study)
    why = study.judgement("forgetting-reasoning").why
    assert why == "No finished cell scored in a reasoning task that was not trained"


def test_qlora_is_held_against_the_quantised_base(study):
    """Quantising costs 0.3 bits per byte, tuning 0.01."""
    study.add("base", data="facts", plain_text=2.0)
    study.seeds("lora", data="facts", plain_text=2.01)
    study.seeds("qlora", data="facts", plain_text=2.31, settings=NF4)
    found = study.judgement("forgetting-text")
    assert (found.decision, found.why) == (REFUTED, "lora loses most; without qlora")
    study.add("base_nf4", data="facts", plain_text=2.3)
    found = study.judgement("forgetting-text")
    assert found.decision == REFUTED
    assert "without" not in found.why
    assert len(found.records) == 1 + 3 + 1 + 3


def test_galore_with_one_projection_is_left_out(study):
    study.add("base", data="facts", plain_text=2.0)
    study.seeds("lora", data="facts", plain_text=2.0)
    study.seeds("galore", data="facts", plain_text=2.4)
    assert study.judgement("forgetting-text").decision == SUPPORTED
    for record in study.records:
        if record.cell.method == "galore":
            record.cell.knobs["update_proj_gap"] = 200
    found = study.judgement("forgetting-text")
    assert (found.decision, found.why) == (REFUTED, "lora loses most; without galore")
