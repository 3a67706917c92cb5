"""The real vLLM and the harness's own engine answer the same problems with the same weights.

Both take the likeliest token. Their kernels round differently, so that where two tokens are about as likely they may
take different ones, and write on differently from there. Everything else would be a fault.
"""

from __future__ import annotations

import os

import pytest
import torch
from accelerate.state import AcceleratorState
from job_helpers import DATA, composed, needs_data, no_peak, run_request  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness.job import prepared_inputs
from harness.job.evaluate import scoring
from harness.job.evaluate.engine import Engine
from harness.plugins.vllm.job.process import VllmWriter
from harness.protocol import LocalPaths
from harness.record import model_folder
from harness.studies import verify

PYTHON = os.environ.get("HARNESS_VLLM_PYTHON")
PROBLEMS, LIMIT = 50, 96  # tokens of an answer
# Logits apart at which rounding may decide: those of fp32 are computed to about 1e-4. In bf16 vLLM rounds the residual
# stream too, which the harness has in fp32: to 1/256 of itself, after each layer.
MARGINS = {"fp32": 1e-3, "bf16": 0.5}

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(PYTHON is None, reason="HARNESS_VLLM_PYTHON names no python with vllm"),
    needs_data,
]


@pytest.mark.parametrize("precision", MARGINS)
def test_answers_differ_only_where_two_tokens_are_about_as_likely(tmp_path, monkeypatch, precision):
    seen: dict[str, list] = {}
    prepare, write, generate = scoring.Tasks.__init__, VllmWriter.write, Engine.generate_until

    def with_short_answers(self, *given):
        prepare(self, *given)
        for task in self.leaves.values():
            task.config.generation_kwargs["max_gen_toks"] = LIMIT

    def noted_write(self, prompts, *how):
        seen["prompts"], seen["theirs"] = prompts, write(self, prompts, *how)
        return seen["theirs"]

    def noted_generate(self, requests, disable_tqdm=False):
        seen["ours"] = generate(self, requests, disable_tqdm)
        return seen["ours"]

    monkeypatch.setattr(scoring.Tasks, "__init__", with_short_answers)
    monkeypatch.setattr(VllmWriter, "write", noted_write)
    monkeypatch.setattr(Engine, "generate_until", noted_generate)
    AcceleratorState._reset_state(True)  # the one before computed in another precision
    cell = composed(
        *("model=smollm2_135m", "method=lora", "rank=8", "data=gsm8k", "eval=gsm8k", "eval.engine=vllm"),
        *(f"eval.limit={PROBLEMS}", "eval.num_fewshot=2", "model.dtype=float32", f"train.precision={precision}"),
        *("train.max_steps=2", "train.batch_size=2", "train.validation_items=2", "infer.repeats=0"),
    )
    path = tmp_path / f"{cell.name}.json"
    found = run_request(cell, "demo", path, str(DATA), lambda event: None, save="merged", local=LocalPaths(PYTHON))
    assert found.status == "ok", found.failure
    assert verify.check(path) == []
    assert found.vllm.answers == PROBLEMS
    assert found.vllm.version[0].isdigit()

    net = AutoModelForCausalLM.from_pretrained(model_folder(path), dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model_folder(path))
    tasks = prepared_inputs.tasks(cell.settings.eval, cell.settings.data, str(DATA))
    autocast = torch.bfloat16 if precision == "bf16" else None
    scores, *_ = scoring.score(net, tokenizer, tasks, 16, autocast)
    apart = []
    for index, (prompt, tokens) in enumerate(zip(seen["prompts"], seen["theirs"], strict=True)):
        ours = seen["ours"][index]
        theirs = tokenizer.decode(tokens, skip_special_tokens=True)
        if cut(theirs, prompt.stop) != ours:
            apart.append((index, *parting(net, tokenizer, prompt.tokens, tokens, ours, autocast)))
    print(f"\n{len(apart)} of {PROBLEMS} answers differ in {precision}: (problem, token, logits apart) {apart}")
    print(f"vLLM {found.vllm}; scores {[s.value for s in found.scores]}, ours {[s.value for s in scores]}")
    assert all(gap < MARGINS[precision] for *_, gap in apart)
    assert precision == "bf16" or len(apart) < PROBLEMS / 2


def cut(text, stops):
    return min((text.partition(stop)[0] for stop in stops if stop), key=len)


@torch.inference_mode()
def parting(net, tokenizer, prompt, tokens, ours, autocast):
    """Which token of vLLM's answer is the first that the model here does not write after those before, and how far its
    logit is below that of the one it writes.

    ours: the text that the model here wrote; the two begin with the same tokens. autocast: to a dtype, or null.
    """
    begin = next(
        n for n in range(len(tokens), -1, -1) if ours.startswith(tokenizer.decode(tokens[:n], skip_special_tokens=True))
    )
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        logits = net(torch.tensor([[*prompt, *tokens]])).logits[0, len(prompt) - 1 : -1].float()
    gaps = logits.max(dim=-1).values - logits.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    at = next((n for n in range(begin, len(tokens)) if gaps[n] > 0), None)
    # In bf16 the engine, which reads a token at a time, rounds otherwise than this pass over all of them.
    assert at is not None or autocast is not None, "the texts differ, but the model here writes vLLM's tokens"
    return (begin, 0.0) if at is None else (at, float(gaps[at]))
