"""The architectures that ship with the model configs build, without the hub, models of the published sizes."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoConfig, AutoModelForCausalLM

from harness.config import CONF

MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
SETTINGS = {name: OmegaConf.to_container(OmegaConf.load(CONF / "model" / f"{name}.yaml")) for name in MODELS}
SHIPPED = [name for name in MODELS if SETTINGS[name].get("architecture")]

# As published, tied weights once; not derived from the dimensions, so that a wrong one shows in the sum.
PARAMETERS = {
    "llama_3_1_70b": 70_553_706_496,
    "llama_3_1_8b": 8_030_261_248,
    "llama_3_2_1b": 1_235_814_400,
    "llama_3_2_3b": 3_212_749_824,
    "llama_3_8b": 8_030_261_248,
    "mistral_7b": 7_248_023_552,
    "qwen2_5_coder_0_5b": 494_032_768 + 151_936 * 896,  # the file has a head beside the embedding
    "qwen3_0_6b": 596_049_920,
    "qwen3_14b": 14_768_307_200,
    "qwen3_1_7b": 1_720_574_976,
    "qwen3_32b": 32_762_123_264,
    "qwen3_4b": 4_022_468_096,
    "qwen3_8b": 8_190_735_360,
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_has_an_architecture_unless_it_is_embedded(name):
    assert (name in SHIPPED) != SETTINGS[name]["path"].startswith("embedded:")


@pytest.mark.parametrize("name", SHIPPED)
def test_an_architecture_builds_the_published_number_of_parameters(compose, name):
    architecture = OmegaConf.to_container(compose(f"model={name}").model.architecture)
    config = AutoConfig.for_model(**architecture)
    # A misspelt dimension would only lie in the config, unused, beside the default it was to replace.
    assert set(architecture) <= set(type(config)().to_dict()), "the model's config knows no such dimension"
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
