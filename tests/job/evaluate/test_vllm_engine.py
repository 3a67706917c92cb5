"""vLLM as the engine that scores: who may ask for it, and that what is saved for it is the model."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from job_helpers import prepared, tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness import settings
from harness.errors import UserError
from harness.job import preflight
from harness.job.evaluate import scoring, vllm_engine
from harness.settings import EvalSettings


def test_it_is_another_cell_and_the_default_is_not_named():
    asked, plain = tiny("eval.engine=vllm"), tiny()
    assert asked.id != plain.id == tiny("eval.engine=auto").id
    assert "engine" not in settings.plain(plain.settings.eval)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_cuda_it_is_refused_before_anything_runs():
    with pytest.raises(UserError, match=r"eval\.engine=vllm requires a CUDA device"):
        preflight.check([tiny("eval.engine=vllm")], None)


@pytest.mark.parametrize(
    ("method", "installed", "words"),
    [
        ("lora", False, "requires the package vllm"),
        ("qlora", True, "requires a model that is not quantised"),
        ("lora", True, None),
    ],
)
def test_it_is_refused_without_the_package_and_for_a_quantised_model(monkeypatch, method, installed, words):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(vllm_engine, "find_spec", lambda name: installed or None)
    settings = tiny(f"method={method}", "eval.engine=vllm").settings
    if words is None:
        vllm_engine.check(settings)
    else:
        with pytest.raises(UserError, match=words):
            vllm_engine.check(settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_saved_for_it_is_the_model(tmp_path, dtype):
    bench = prepared(tiny("method=base"))
    vllm_engine.save(bench.net, bench.tokenizer, str(tmp_path), dtype)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    for name, weights in bench.net.state_dict().items():
        assert torch.equal(again.state_dict()[name], weights.to(dtype))
    text = "Question: 2 + 2?"
    assert AutoTokenizer.from_pretrained(tmp_path)(text).input_ids == bench.tokenizer(text).input_ids


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available() or find_spec("vllm") is None, reason="needs CUDA and vllm")
def test_it_scores_about_as_the_model_does_where_it_is():
    settings = EvalSettings(["facts"], limit=20, num_fewshot=2, seed=0, batch_size=8)
    bench = prepared(tiny("method=base"))
    tasks = scoring.Tasks(settings, None)
    ours, *_ = scoring.score(bench.net, bench.tokenizer, tasks, 8, None)
    theirs, _, used = scoring.score(bench.net, bench.tokenizer, tasks, 8, None, engine="vllm")
    assert used == {"vllm": "on"}
    assert [s.value for s in theirs] == pytest.approx([s.value for s in ours], abs=0.15)
