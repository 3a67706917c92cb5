"""Inference: what is decoded and how it is timed; merging by closed form; size on disk."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from job_helpers import moved, prepared, tiny
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaConfig

from harness.job.evaluate import decoding, engine
from harness.job.measure import disk_size, inference_speed
from harness.job.models import adapter_merge
from harness.job.training import loop
from harness.settings import InferSettings

INFER = InferSettings(repeats=3, batch_size=2, prompt_tokens=8, new_tokens=5)
# The tiny Llama: hidden size 64, MLP 128, 2 heads of 16 for keys and values, 2 layers, 1,024 pieces.
MATRICES = 2 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128)
WEIGHTS = MATRICES + 2 * 1024 * 64 + 5 * 64  # + embedding and head + norms


def logits(bench: SimpleNamespace, net: nn.Module) -> torch.Tensor:
    """(1, tokens, pieces) where the answers of the first held-out batch are predicted."""
    net.eval()
    with torch.no_grad():
        return loop.answer_logits(net, bench.held_out[0])


# Decoding


@pytest.mark.parametrize("method", ["base", "base_nf4", "lora", "qdora"])
def test_decoding_gives_the_tokens_of_generate(method):
    net = moved(f"method={method}").net.eval()
    prompts = torch.randint(1024, (3, 8), generator=torch.Generator().manual_seed(5))
    tokens, prefill, rest = inference_speed.decode(net, prompts, 6, decoding.greedy)
    generated = net.generate(
        input_ids=prompts,
        attention_mask=torch.ones_like(prompts),
        do_sample=False,
        max_new_tokens=6,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert torch.equal(tokens, generated[:, 8:])
    assert prefill > 0
    assert rest > 0


@pytest.mark.parametrize("method", ["prompt_tuning", "prefix_tuning"])
def test_with_virtual_tokens_decoding_gives_the_tokens_of_whole_passes(method):
    bench = prepared(tiny(f"method={method}"))
    net = bench.net.eval()
    with torch.no_grad():
        for p in net.parameters():
            if p.requires_grad:
                p.normal_(std=0.5)

    @torch.no_grad()
    def whole(ids: torch.Tensor) -> torch.Tensor:
        for _ in range(6):
            ids = torch.cat([ids, net(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
        return ids

    prompts = torch.randint(1024, (3, 8), generator=torch.Generator().manual_seed(5))
    expected = whole(prompts)[:, 8:]
    assert torch.equal(inference_speed.decode(net, prompts, 6, decoding.greedy)[0], expected)
    with net.disable_adapter():
        assert not torch.equal(inference_speed.decode(net, prompts, 6, decoding.greedy)[0], expected)

    # Scored, where prompts of unlike lengths are padded on the left, and an answer may stop.
    lm = engine.Engine(pretrained=net, tokenizer=bench.tokenizer, batch_size=3)
    padded = torch.nn.functional.pad(prompts, (2, 0), value=bench.tokenizer.pad_token_id)
    mask = torch.nn.functional.pad(torch.ones_like(prompts), (2, 0), value=0)
    mask[0] = 1
    found = lm._model_generate(padded, 16, ["no such text"], attention_mask=mask, do_sample=False)
    assert torch.equal(found[1:, 10:], expected[1:])
    assert torch.equal(found[:1, 10:], whole(padded[:1])[:, 10:])
    stop = bench.tokenizer.decode(expected[1, 2:3])
    assert (lm._model_generate(padded[1:2], 16, [stop], attention_mask=mask[1:2])[0, 10:] == expected[1, :3]).all()


class Clocked(nn.Module):
    """A model that takes 5 s for a prompt and 2 s for a token, on a clock of its own; it keeps what it was asked."""

    def __init__(self):
        super().__init__()
        self.config, self.now, self.asked = LlamaConfig(vocab_size=7), 0.0, []

    def forward(self, input_ids, cache, use_cache, logits_to_keep):
        assert use_cache
        assert logits_to_keep == 1
        self.now += 5.0 if input_ids.shape[1] > 1 else 2.0
        self.asked.append((tuple(input_ids.shape), id(cache)))
        return SimpleNamespace(logits=torch.zeros(len(input_ids), 1, 7))


def test_a_round_is_a_prompt_and_the_tokens_after_the_first(monkeypatch):
    model, bench = Clocked(), prepared(tiny("method=base"))
    monkeypatch.setattr(inference_speed, "time", SimpleNamespace(perf_counter=lambda: model.now))
    found = inference_speed.measure(model, ["base"], INFER, bench.accelerator, decoding.greedy)["base"]
    assert (found.batch_size, found.prompt_tokens, found.new_tokens) == (2, 8, 5)
    assert found.prefill_seconds == [5.0] * 3
    assert found.decode_seconds == [4 * 2.0] * 3
    discarded, counted = [(2, 8), (2, 1)], [(2, 8), *[(2, 1)] * 4]
    assert [shape for shape, _ in model.asked] == discarded + 3 * counted
    assert len({cache for _, cache in model.asked[2:7]}) == 1


def test_forms_take_turns_and_the_base_is_without_its_adapter():
    bench = moved("method=lora")
    layer = next(m for m in bench.net.modules() if hasattr(m, "lora_A"))
    seen = []
    layer.register_forward_hook(lambda module, *_: seen.append(module.disable_adapters))
    found = inference_speed.measure(
        bench.net, ["base", "unmerged"], replace(INFER, new_tokens=2), bench.accelerator, decoding.greedy
    )
    assert list(found) == ["base", "unmerged"]
    assert seen == [True, True, False, False] * (1 + 3)  # a prefill and a decode each
    assert not layer.disable_adapters


def test_every_cell_is_given_the_same_prompts():
    seen = []
    for method in ("base", "lora"):
        bench = prepared(tiny(f"method={method}", "seed=3"))
        bench.net.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True)
        inference_speed.measure(bench.net, ["unmerged"], replace(INFER, repeats=1), bench.accelerator, decoding.greedy)
    prompts = [ids for ids in seen if ids.shape[1] == 8]
    assert len(prompts) == 4
    assert all(torch.equal(ids, prompts[0]) for ids in prompts)


# Merging into a quantised base


@pytest.mark.parametrize("method", ["qlora", "qdora"])
def test_a_quantised_base_is_expanded_and_merged(method):
    bench = moved(f"method={method}")
    before = logits(bench, bench.net)
    with bench.net.disable_adapter():
        untuned = logits(bench, bench.net)
    merged, told = adapter_merge.merge(bench.net, bench.held_out[0], bench.accelerator)
    after = logits(bench, merged)
    assert (before - untuned).abs().max() > 0.05  # else there was nothing to merge
    # NF4 is exact to expand: what is left is the order of fp32 sums, some 2**-24 of each of a few hundred terms.
    assert (after - before).abs().max() < 1e-5
    assert told.max_logit_difference == pytest.approx(float((after - before).abs().max()), abs=1e-6)
    assert (told.merged, told.dequantised) == (False, True)
    assert told.seconds > 0
    assert {p.dtype for p in merged.parameters()} == {torch.float32}
    assert not any("lora_" in name or "quant" in name for name in merged.state_dict())
    assert disk_size.weights(merged) == 4 * WEIGHTS


def test_a_merged_quantised_model_has_the_dtype_of_its_base():
    bench = moved("method=qdora", "model.dtype=bfloat16")
    merged, told = adapter_merge.merge(bench.net, bench.held_out[0], bench.accelerator)
    assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}
    assert disk_size.weights(merged) == 2 * WEIGHTS
    assert told.max_logit_difference < 0.1  # bf16 keeps 8 bits of a weight; logits here are below 1


# Size on disk


def test_the_adapters_size_is_that_of_the_saved_file(tmp_path):
    net = moved("method=qdora").net
    net.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    assert disk_size.adapter(net) == file.stat().st_size
    numbers = sum(t.nbytes for t in load_file(file).values())
    assert numbers == 4 * sum(p.numel() for p in net.parameters() if p.requires_grad)
    assert 0 < disk_size.adapter(net) - numbers < 10_000  # the header


def test_tied_weights_are_counted_once():
    net = prepared(tiny("method=base")).net
    assert disk_size.weights(net) == 4 * WEIGHTS
    net.lm_head.weight = net.model.embed_tokens.weight
    assert disk_size.weights(net) == 4 * (WEIGHTS - 1024 * 64)


def test_nf4_is_counted_as_it_is_saved(tmp_path):
    net = prepared(tiny("method=base_nf4")).net
    rest = 4 * (WEIGHTS - MATRICES)
    assert rest + MATRICES / 2 < disk_size.weights(net) < rest + 0.6 * MATRICES + 14 * 2000  # a table of scales each
    net.save_pretrained(tmp_path)
    saved = sum(t.nbytes for t in load_file(tmp_path / "model.safetensors").values())
    assert disk_size.weights(net) == saved
