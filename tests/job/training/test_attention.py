"""Sequences end to end in one row: for each architecture the logits of each alone, or the padded layout instead."""

from __future__ import annotations

import peft
import pytest
import torch
from flash_on_cpu import flash_on_cpu
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from harness.job.data.encoding import Example
from harness.job.measure.flops import FLOPS
from harness.job.measure.live_memory import LiveBytes
from harness.job.training import attention, loop

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": 64,
    "pad_token_id": 0,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
SUITED = {
    "llama": GROUPED,
    "gpt2": {},
    "gpt_neox": {},
    "phi": {},
    "qwen3": GROUPED,
    "mistral": GROUPED | {"sliding_window": 64},
    "mistral, a window shorter than sequences": GROUPED | {"sliding_window": 4},
    "gemma3_text": GROUPED | {"sliding_window": 4, "sliding_window_pattern": 2},
    "qwen3_moe": GROUPED | EXPERTS,
}
STATEFUL = {
    "mamba": {"state_size": 4},
    "recurrent_gemma": {"num_key_value_heads": 2, "lru_width": 32},
    "lfm2": GROUPED | {"layer_types": ["conv", "full_attention"] * 2},
}
LENGTHS = (9, 3, 3, 14)  # two of a length beside each other
EXAMPLES = [Example([(7 * n + 5 * i) % 60 + 1 for i in range(n)], 2) for n in LENGTHS]


def built(kind: str, **settings) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind.partition(",")[0], **SIZES, **settings)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))  # at its small initial weights attention hardly matters
    return model


def laid(model: torch.nn.Module, speedups: str = "auto") -> tuple[torch.Tensor, dict[str, str]]:
    """The logits where answers are predicted, one sequence after another, and what the layout says of itself."""
    layout, told = attention.layout(model, speedups, pad=0)
    if layout.flat:
        attention.enable(model)
    batch = layout.batch(EXAMPLES)
    with torch.no_grad():
        return loop.answer_logits(model, batch)[batch.targets != -100], told


def alone(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        each = [model(input_ids=torch.tensor([e.ids]), use_cache=False).logits[0, e.prompt - 1 : -1] for e in EXAMPLES]
    return torch.cat(each)


@pytest.mark.parametrize("kind", SUITED)
def test_each_sequence_attends_to_itself_alone(kind):
    model = built(kind, **SUITED[kind])
    expected = alone(model)
    found, told = laid(model)
    assert told == {"padding_free": "on", "answer_logits": "on"}
    assert torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max()))
    # The test would see sequences that run into each other.
    with torch.no_grad():
        row = torch.tensor([[token for e in EXAMPLES for token in e.ids]])
        mixed = model(input_ids=row, position_ids=torch.arange(row.numel())[None], use_cache=False).logits[0]
    assert (mixed[LENGTHS[0] + 1 : LENGTHS[0] + 2] - expected[LENGTHS[0] - 2]).abs().max() > 1e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_cpu_attention_is_as_fine_as_what_it_is_given(monkeypatch, dtype):
    model, seen = built("llama", **SUITED["llama"]).to(dtype), []
    plain = attention.scaled_dot_product_attention

    def attend(*tensors, **keywords):
        seen.append(({tensor.dtype for tensor in tensors}, torch.is_autocast_enabled("cpu")))
        return plain(*tensors, **keywords)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", attend)
    with torch.autocast("cpu", torch.bfloat16):
        laid(model)
    assert seen == [({dtype}, False)] * len(set(LENGTHS)) * model.config.num_hidden_layers


@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_token_of_each_sequence_attends_as_by_torchs_kernel(dtype, scaling):
    torch.manual_seed(0)
    query = torch.randn(5, 6, 1, 8)
    key, value = torch.randn(2, 5, 3, 11, 8).unbind()
    seen = (torch.arange(11) <= torch.tensor([0, 10, 4, 7, 10])[:, None])[:, None, None]
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=seen, scale=scaling, enable_gqa=True
    )
    near = 1e-6 if dtype is torch.float32 else 3e-2
    module = torch.nn.Module()
    module.num_key_value_groups = 2
    found, _ = attention._attend(module, *(tensor.to(dtype) for tensor in (query, key, value)), seen, scaling=scaling)
    assert torch.allclose(found.transpose(1, 2).float(), expected, atol=near)
    assert not torch.allclose(expected, expected.roll(1, dims=0), atol=0.1)


def test_a_model_attends_so_within_a_context_and_then_as_before():
    model = built("llama", **GROUPED)
    with attention.enabled(model):
        assert model.config._attn_implementation == attention.NAME
    assert model.config._attn_implementation == "sdpa"
    attention.enable(model)
    with attention.enabled(model):
        pass
    assert model.config._attn_implementation == attention.NAME


@pytest.mark.parametrize("kind", STATEFUL)
def test_layers_that_carry_a_state_get_padded_batches(kind):
    model = built(kind, **STATEFUL[kind])
    found, told = laid(model)
    assert told["padding_free"] == "off: the model has layers that are not attention"
    expected = alone(model)
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))


def test_other_attention_than_sdpa_is_left_as_it_is():
    model = built("llama", **GROUPED)
    model.set_attn_implementation("eager")
    found, told = laid(model)
    assert told["padding_free"] == "off: the model's attention is eager"
    assert torch.allclose(found, alone(model), atol=1e-4)


def test_virtual_tokens_get_padded_batches():
    model = peft.get_peft_model(
        built("llama", **GROUPED), peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    )
    assert attention.unsuited(model) == "the method puts tokens of its own before each sequence"


def test_adapters_that_depend_on_a_whole_batch_get_padded_batches():
    config = peft.LilyConfig(task_type="CAUSAL_LM", r=2, stride_A=1, num_B=2, target_modules=["q_proj"])
    model = peft.get_peft_model(built("llama", **GROUPED), config)
    torch.manual_seed(0)
    for name, p in model.named_parameters():
        if "lily_" in name:
            torch.nn.init.normal_(p)
    expected, on = laid(model, "off")[0], laid(model)
    assert on[1]["padding_free"] == "off: the method's adapters depend on all tokens of a batch"
    assert torch.allclose(on[0], expected, atol=1e-5)


def test_outside_a_row_and_asked_off_it_is_plain_attention():
    model = built("llama", **GROUPED)
    expected = alone(model)
    attention.enable(model)
    assert torch.equal(alone(model), expected)
    found, told = laid(model, "off")
    assert set(told.values()) == {"off: asked for"}
    assert torch.allclose(found, expected, atol=1e-4)


# Keys that sequences share


def test_attention_to_two_sets_of_keys_merges_into_attention_to_both():
    torch.manual_seed(0)
    query, key, value = (4 * torch.randn(1, 3, n, 16) for n in (7, 20, 20))
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value)[0].transpose(0, 1)
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    parts = []
    for begin, end in ((0, 13), (13, 20)):
        out, sums = kernel(query, key[:, :, begin:end], value[:, :, begin:end])[:2]
        parts.append((out[0].transpose(0, 1), sums[0]))
    assert torch.allclose(attention.merged(*parts), expected, atol=1e-5)
    assert (parts[0][0] - expected).abs().max() > 0.1
    assert (parts[1][0] - expected).abs().max() > 0.1


# CUDA's kernel for rows, on tensors without storage, which need no GPU

QUERY, KEY, VALUE = (6, 17), (2, 17), (2, 17)  # heads, and tokens of sequences of 9, 3 and 5


def kernel(dtype: torch.dtype, autocast: bool = False, bounds: bool = True, width: int = 32) -> LiveBytes:
    """What attention over a row of such queries, keys and values, forward and backward, was seen to do."""
    module, lengths = torch.nn.Module(), (9, 3, 5)
    live = LiveBytes(torch.device("cpu"))
    with FakeTensorMode():
        query, key, value = (
            torch.empty(1, *shape, width, dtype=dtype, requires_grad=True) for shape in (QUERY, KEY, VALUE)
        )
        row = attention.SequenceRow(lengths, 0, attention.bounds_of(lengths, query.device) if bounds else None)
        with attention.over(row), live, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            attended, _ = attention._attend(module, query, key, value, None)
            live.mark("backward")
            attended.sum().backward()
        assert attended.shape == (1, 17, 6, width)
        assert (key.grad.shape, key.grad.dtype) == (key.shape, dtype)
    return live


@pytest.mark.parametrize(
    ("dtype", "autocast", "ran"),
    [
        (torch.bfloat16, False, "varlen bfloat16"),
        (torch.float32, True, "varlen bfloat16"),  # queries of fp32 weights, or of a residual stream in fp32
        (torch.float32, False, "flash_for_cpu float32"),  # which the kernel does not take
    ],
)
def test_queries_reach_the_kernel_for_rows_in_the_dtype_of_autocast(dtype, autocast, ran):
    assert kernel(dtype, autocast).attention == {ran: 1 if "varlen" in ran else 3}


def test_both_kernels_count_the_same_operations():
    rows, sequences = kernel(torch.bfloat16), kernel(torch.bfloat16, bounds=False)
    assert (rows.attention, sequences.attention) == ({"varlen bfloat16": 1}, {"flash_for_cpu bfloat16": 3})
    products = 2 * 6 * 32 * (9**2 + 3**2 + 5**2)
    assert rows.flops == sequences.flops == (2 + 5) * products


def test_the_kernels_flops_can_be_read_from_bounds_that_have_values():
    query = torch.empty(17, 6, 32, device="meta")
    known, plain = attention.bounds_of((9, 3, 5), torch.device("cpu")), torch.tensor([0, 9, 12, 17], dtype=torch.int32)
    flops = FLOPS[torch.ops.torch_attn._varlen_attn]
    assert flops(query, query, query, known, known) == flops(query, query, query, plain, plain)


def test_the_kernel_takes_fewer_heads_of_keys_as_they_are():
    """Forward it holds queries, keys and values, what comes of them, and a sum for each query; nothing expanded."""
    queries, keys = 2 * 6 * 17 * 32, 2 * 2 * 17 * 32
    forward = kernel(torch.bfloat16).windows[""]
    assert queries + 2 * keys + queries <= forward.total < queries + 2 * keys + queries + keys


LATENT = {
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 12,
    "first_k_dense_replace": 4,
    "num_key_value_heads": 4,
}


@pytest.mark.parametrize(
    ("kind", "settings"), [("deepseek_v3", LATENT), ("llama", {"num_key_value_heads": 2, "head_dim": 12})]
)
def test_the_kernel_of_rows_has_heads_of_any_width(kind, settings):
    """The kernel itself takes one width of queries, keys and values, and none but multiples of 8."""
    model = built(kind, **settings).to(torch.bfloat16)
    expected = alone(model)
    attention.enable(model, "cuda")
    assert attention.in_one_kernel(model, torch.bfloat16)
    batch = attention.layout(model, "auto", pad=0)[0].batch(EXAMPLES)
    with torch.no_grad(), flash_on_cpu():
        found = loop.answer_logits(model, batch)[batch.targets != -100]
    assert torch.allclose(found, expected, atol=3e-2 * float(expected.abs().max()))


def test_in_fp32_the_kernel_of_a_gpu_is_given_keys_for_all_heads(monkeypatch):
    """Given fewer, torch would compute all scores at once, and keep them for the backward pass."""
    seen = []

    def attend(query, key, value, **how):
        seen.append((key.shape[1], how["enable_gqa"]))
        return query

    monkeypatch.setattr(attention, "scaled_dot_product_attention", attend)
    monkeypatch.setattr(attention, "_as_autocast", lambda *tensors: tensors)  # torch knows no autocast of "meta"
    query, key = (torch.empty(1, heads, 17, 32, device="meta") for heads in (6, 2))  # what is no CPU is a GPU
    row = attention.SequenceRow((9, 3, 5), 0, attention.bounds_of((9, 3, 5), query.device))
    with attention.over(row):
        attention._attend(torch.nn.Module(), query, key, key, None)
    assert seen == [(6, False)] * 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu_it_is_the_same(dtype):
    model = built("llama", **GROUPED).to("cuda", dtype)
    layout, _ = attention.layout(model, "auto", pad=0)
    batch = layout.batch(EXAMPLES).to("cuda")
    with torch.no_grad():
        expected = loop.answer_logits(model, batch)  # kept apart by transformers' mask
        attention.enable(model)
        found = loop.answer_logits(model, batch)
    near = 1e-4 if dtype is torch.float32 else 3e-2
    assert torch.allclose(found, expected, atol=near * float(expected.abs().max()))


@pytest.mark.parametrize(("width", "ran"), [(256, {"varlen bfloat16": 1}), (264, {"flash_for_cpu bfloat16": 3})])
def test_heads_too_wide_for_the_kernel_of_rows_take_another(width, ran):
    """The kernel refuses them in the first step; Gemma's have 256 channels, and some have more."""
    assert kernel(torch.bfloat16, width=width).attention == ran
    model = built("llama", num_key_value_heads=2, head_dim=width)
    assert attention.in_one_kernel(model, torch.bfloat16) is ("varlen bfloat16" in ran)
