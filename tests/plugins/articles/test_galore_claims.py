"""GaLore on new knowledge: against low-rank methods, once its projection was renewed."""

from __future__ import annotations

from dataclasses import replace

import pytest
from judged_study import JudgedStudy

from harness.plugins.articles.beyond_lora import ARTICLE
from harness.plugins.articles.claims import OPEN, REFUTED, SUPPORTED, TOO_SMALL


@pytest.fixture
def study(tmp_path):
    return JudgedStudy(tmp_path, ARTICLE.claims)


def renewed(study, steps, gap):
    for record in study.records:
        if record.cell.method == "galore":
            record.cell.knobs["update_proj_gap"] = gap
            record.train = replace(record.train, steps=steps)


def taught(study, galore, data="facts"):
    for method, value in {"full": 0.9, "lora": 0.5, "qlora": 0.4, "dora": 0.6, "galore": galore}.items():
        study.seeds(method, seeds=8, data=data, **{data: value})


@pytest.mark.parametrize("data", ["facts", "facts_short"])
@pytest.mark.parametrize(("galore", "expected"), [(0.7, SUPPORTED), (0.5, REFUTED), (0.4, REFUTED), (0.6, TOO_SMALL)])
def test_galore_must_beat_each_low_rank_method_and_not_full(study, galore, expected, data):
    taught(study, galore, data)
    renewed(study, 330, 200)
    found = study.judgement("galore-facts")
    assert found.decision == expected
    assert found.effect.value == pytest.approx(galore - 0.6, abs=0.02)
    assert len(found.records) == 32
    assert not any(record.startswith("full") for record in found.records)


@pytest.mark.parametrize(("steps", "gap", "expected"), [(200, 200, OPEN), (201, 200, REFUTED), (30, None, REFUTED)])
def test_a_projection_that_was_never_renewed_is_no_evidence(study, steps, gap, expected):
    taught(study, 0.4)
    renewed(study, steps, gap)
    found = study.judgement("galore-facts")
    assert found.decision == expected
    if expected == OPEN:
        assert found.why == "GaLore's projection was never renewed: 200 steps, update_proj_gap=200"
        assert found.effect is not None


def test_galore_facts_wants_all_low_rank_methods_and_facts(study):
    study.seeds("galore", data="facts", facts=0.8)
    assert study.judgement("galore-facts").why == "No finished lora and qlora and dora"
    study.records.clear()
    study.seeds("galore", gsm8k=0.8)
    assert study.judgement("galore-facts").why == "No finished cell trained on facts"


@pytest.mark.parametrize("name", ["facts", "article"])
def test_the_sweeps_that_decide_it_renew_the_projection(compose, name):
    config = compose("hydra/sweeper=grid", "method=galore", config=name)
    assert config.train.max_steps > config.method.knobs.update_proj_gap
