"""Models that are written as GGUF: what readers of the format find in it, and what is refused."""

from __future__ import annotations

import json

import gguf
import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from with_llama_cpp import continues_as, needs_llama_cpp

from harness.errors import UserError
from harness.job.models import embedded
from harness.plugins.export.job import gguf_file


def bytewise():
    return AutoTokenizer.from_pretrained(embedded.folder("tiny"))


@torch.no_grad()
def logits(net):
    return net.eval()(input_ids=torch.arange(3, 40)[None]).logits.float()


@pytest.mark.long
@needs_llama_cpp
@pytest.mark.parametrize("tied", [True, False])
def test_llama_cpp_reads_a_qwen3(tmp_path, tied):
    """With the norms of its queries and keys, and heads wider than their share of the hidden size."""
    tokenizer = bytewise()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        initializer_range=0.3,  # so that no two tokens are about as likely
        tie_word_embeddings=tied,
    )
    torch.manual_seed(0)
    net = Qwen3ForCausalLM(config)
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if name.endswith("norm.weight"):
                weight.uniform_(0.5, 2.0)
    net.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    gguf_file.check(config, tokenizer)
    gguf_file.write(tmp_path, "it", tmp_path / "it.gguf")
    read_back = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "it.gguf").tensors}
    norms = read_back["blk.1.attn_q_norm.weight"].data
    np.testing.assert_array_equal(norms, net.model.layers[1].self_attn.q_norm.weight.detach())
    assert ("output.weight" in read_back) is not tied
    continues_as(net.eval(), tokenizer, tmp_path / "it.gguf")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_sixteen_bits_and_llama_3s_frequencies_survive(tmp_path, dtype):
    """By transformers, which does not read the frequencies, and so is told them."""
    rope = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 64}
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=1030, num_key_value_heads=2, rope_parameters=rope, **shape)
    torch.manual_seed(0)
    net = LlamaForCausalLM(config).to(dtype)
    net.save_pretrained(tmp_path)
    bytewise().save_pretrained(tmp_path)
    gguf_file.write(tmp_path, "it", tmp_path / "it.gguf")
    again = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="it.gguf", config=config, dtype=torch.float32)
    torch.testing.assert_close(logits(again), logits(net.float()), rtol=0, atol=1e-5)
    factors = again.model.rotary_emb.inv_freq * 1e4 ** (torch.arange(0, 16, 2) / 16)
    torch.testing.assert_close(torch.from_numpy(gguf_file._llama3_factors(config)), 1 / factors)


def test_models_without_a_gguf_here_are_refused_with_the_converters_command():
    tokenizer = bytewise()
    gguf_file.check(LlamaConfig(), tokenizer)
    gguf_file.check(Qwen3Config(), tokenizer)
    yarn = {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4, "original_max_position_embeddings": 2048}
    for config, said in (
        (LlamaConfig(rope_parameters=yarn), "rope_type=yarn"),
        (LlamaConfig(hidden_act="gelu"), "hidden_act=gelu"),
        (Qwen3Config(use_sliding_window=True), "a sliding window"),
    ):
        with pytest.raises(UserError, match=f"{said}.*python convert_hf_to_gguf.py DIR"):
            gguf_file.check(config, tokenizer)
    told = json.loads(tokenizer.backend_tokenizer.to_str())
    told["pre_tokenizer"]["add_prefix_space"] = True
    tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(told))
    with pytest.raises(UserError, match="this model's tokenizer can't be written here"):
        gguf_file.check(LlamaConfig(), tokenizer)
