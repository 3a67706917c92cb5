"""Plans of models of which there is a config and nothing else."""

from __future__ import annotations

import pytest
from architectures import GROUPED, SIZES
from command_line import assert_refused, called
from transformers import AutoConfig

KINDS = ("qwen2", "qwen3", "gemma3_text", "gpt2", "bloom", "ctrl")  # their tokenizers each miss files in another way


@pytest.fixture
def folder(tmp_path):
    for kind in KINDS:
        AutoConfig.for_model(kind, **SIZES, **GROUPED).save_pretrained(tmp_path / kind)
    return tmp_path


@pytest.mark.long
@pytest.mark.slow
def test_a_plan_needs_neither_tokenizer_nor_weights(folder):
    models = ",".join(f"./{kind}" for kind in KINDS)
    told = called(folder, "plan", f"model.path={models}", "method=lora", "rank=4", "data=facts", "train.max_length=64")
    assert told.returncode == 0, told.stderr
    assert "Impossible" not in told.stdout
    assert f"{8 * 64} tokens (assumed: each sequence of train.max_length tokens" in told.stdout.replace("\n", " ")
    assert sum(line.startswith("lora-r4") for line in told.stdout.splitlines()) == len(KINDS)
    assert "from the data" not in told.stdout


@pytest.mark.parametrize("kind", ["qwen2", "ctrl"])
def test_a_run_without_a_tokenizer_is_refused_in_one_sentence(folder, kind):
    told = called(folder, "run", f"model.path=./{kind}", "method=lora", "data=facts", "eval=facts", "rank=4")
    assert told.returncode == 2
    assert_refused(told.stderr, kind)
