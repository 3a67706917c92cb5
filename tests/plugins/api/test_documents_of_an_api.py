"""Documents, scored by the log-probabilities of an endpoint, as a model here scores them."""

from __future__ import annotations

from pathlib import Path

import pytest
from job_helpers import composed, no_peak, run_here  # noqa: F401
from serving import LogProbabilities
from test_api_cells import ask, cell, estimate

from harness.errors import UserError

HERE = ("method=base", "model=tiny", "train.precision=fp32", "train.validation_items=2", "infer.repeats=0")
TEXTS = ("data=text", "data.path=docs", "eval.tasks=[held_out]", "train.max_length=32")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("docs").mkdir()
    for number in range(20):
        Path(f"docs/{number}.txt").write_text(f"Document {number}. " + f"So {number} it was, {number % 7} times. " * 9)


@pytest.mark.long
def test_documents_have_the_bits_per_byte_that_a_model_here_has(tmp_path):
    own = run_here(tmp_path, composed(*HERE, *TEXTS))
    with LogProbabilities() as site:
        asked = ask(tmp_path, cell(site.base_url, *TEXTS, "model.tokenizer=embedded:tiny"))
    assert asked.status == "ok", asked.failure
    (one,), (other,) = own.scores, asked.scores
    assert (other.task, other.metric, other.n) == ("held_out", "bits_per_byte", 2)
    assert other.value == pytest.approx(one.value, abs=1e-3)
    assert asked.truncated_requests == 0


def test_a_chat_endpoint_is_refused(tmp_path):
    asked = cell("http://127.0.0.1:9/v1", *TEXTS)
    with pytest.raises(UserError, match=r"eval\.tasks=held_out of data=text requires log-probabilities"):
        estimate(tmp_path, asked)
