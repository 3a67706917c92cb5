"""Scoring on a GPU that is not there (tests/fake_cuda): what enters it is one list of integers a row."""

from __future__ import annotations

import json

import pytest
from on_fake_cuda import run_there

from harness.job.evaluate.engine import ROW, UNREAD

LAYERS = 2  # of the model


@pytest.fixture(scope="module")
def scored(tmp_path_factory) -> dict[str, dict]:
    run = run_there("scoring.py", "", tmp_path_factory.mktemp("fake_cuda"))
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout)


@pytest.mark.long
def test_log_likelihoods_take_one_list_of_integers_a_row_and_are_seldom_read(scored):
    choices = scored["choices"]
    assert choices["used"] == {"shared_prefix": "on"}
    assert choices["mixed"] == []
    assert all(len(shape) == 1 and shape[0] < 3 * ROW["cuda"] for shape in choices["entered"])
    rows = len(choices["entered"])
    assert rows > 10, "few rows show little"
    # The log-probabilities of all tokens, and whether they are the likeliest, for many rows at a time.
    assert 2 <= choices["read"] <= 2 * (rows // UNREAD["cuda"] + 1)
    # Of each layer and row a call for its sequences, and where they share keys another; and never a mask.
    assert set(choices["attention"]) == {"varlen bfloat16"}
    assert LAYERS * rows < choices["attention"]["varlen bfloat16"] <= 2 * LAYERS * rows


@pytest.mark.long
def test_answers_take_a_token_of_each_and_its_place(scored):
    answers = scored["answers"]
    assert answers["used"] == {"continuous_batching": "on"}
    assert answers["mixed"] == []
    assert all(len(shape) == 1 for shape in answers["entered"])
    assert [8] in answers["entered"]  # four answers at a time
    assert answers["attention"]["varlen bfloat16"] >= 2 * LAYERS
