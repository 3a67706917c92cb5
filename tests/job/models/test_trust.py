"""What comes with a model is not run unless asked: neither its code nor what pickled weights may hold."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from job_helpers import run_here, tiny
from safetensors.torch import load_file
from transformers import dynamic_module_utils

from harness import gate, settings
from harness.errors import UserError
from harness.job.models import checks, embedded, loading

CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path({mark!r}).touch()
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A copy of the tiny model, to be changed."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    shutil.copytree(embedded.folder("tiny"), tmp_path / "model")
    return tmp_path / "model"


def test_code_of_a_model_is_run_only_if_asked_and_then_recorded(folder, tmp_path):
    mark = tmp_path / "its code ran"
    (folder / "own.py").write_text(CODE.format(mark=str(mark)))
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"has code of its own; if you trust it, set model\.trust_remote_code=true"):
        checks.check(tiny(f"model.path={folder}"))
    assert not mark.exists()

    record = run_here(tmp_path, tiny(f"model.path={folder}", "model.trust_remote_code=true", "eval.tasks=[]"))
    assert record.status == "ok", record.failure
    assert mark.exists()
    assert record.cell.settings.model.trust_remote_code is True
    record.status = "failed"
    assert "it trusts code" in gate.objection(record)


def test_pickled_weights_are_loaded_only_if_asked_and_then_recorded(folder, tmp_path):
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()
    cell = tiny("method=base", f"model.path={folder}", "eval.tasks=[]")
    with pytest.raises(UserError, match=r"has no safetensors, .* set model\.use_safetensors=false"):
        loading.load(cell, torch.device("cpu"))

    asked = tiny("method=base", f"model.path={folder}", "eval.tasks=[]", "model.use_safetensors=false")
    record = run_here(tmp_path, asked)
    assert record.status == "ok", record.failure
    assert record.cell.settings.model.use_safetensors is False
    first = record.fingerprints["model"]
    torch.save({k: v + 1 for k, v in torch.load(folder / "pytorch_model.bin").items()}, folder / "pytorch_model.bin")
    assert loading.fingerprint(asked.settings.model) != first


def test_default_settings_are_no_part_of_a_cell():
    plain = tiny()
    assert settings.plain(plain.settings.model).keys() == {"path", "dtype"}
    assert tiny("model.trust_remote_code=false", "model.use_safetensors=true") == plain
    assert tiny("model.trust_remote_code=true").id != plain.id
