"""An adapter on weights that head and embedding share is merged into its own side alone."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

from harness.job.models import adapter_merge


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens", "q_proj"])
def test_a_tied_model_computes_the_same_when_it_is_merged_and_saved(tmp_path, target):
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=True)
    adapter = LoraConfig(r=4, target_modules=[target], task_type="CAUSAL_LM", init_lora_weights=False)
    net = get_peft_model(AutoModelForCausalLM.from_config(config), adapter).eval()
    ids = torch.arange(12)[None]
    with torch.no_grad():
        before = net(ids).logits
        merged = adapter_merge.fold(net)
        assert torch.allclose(merged(ids).logits, before, atol=1e-4)
        merged.save_pretrained(tmp_path)
        assert torch.allclose(AutoModelForCausalLM.from_pretrained(tmp_path)(ids).logits, before, atol=1e-4)
    assert merged.config.tie_word_embeddings == (target == "q_proj")
