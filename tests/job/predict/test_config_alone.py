"""What a prediction takes of a model's folder that has a config alone, for every causal family of transformers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from huggingface_hub.errors import StrictDataclassError
from job_helpers import tiny
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from harness.job.predict import examples, prediction, workers
from harness.protocol import PlannedCell
from harness.record import Cell


def of(cell: Cell, path: str) -> Cell:
    settings = cell.settings
    return replace(cell, settings=replace(settings, model=replace(settings.model, path=path)))


@pytest.mark.long
def test_without_a_tokenizers_files_lengths_are_assumed(tmp_path):
    cell, drawn, built = tiny("method=lora"), [], 0
    assert examples.draw(cell, None) is not None
    for kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        try:
            AutoConfig.for_model(kind).save_pretrained(tmp_path / kind)
        except StrictDataclassError:  # one is not valid by its own defaults
            continue
        built += 1
        if examples.draw(of(cell, str(tmp_path / kind)), None) is not None:
            drawn.append(kind)
    assert built > 100
    assert drawn == []


@pytest.mark.long
def test_a_family_that_fails_without_values_leaves_the_others_their_figures(monkeypatch):
    one, other = of(tiny("method=lora"), "org/one"), tiny("method=lora")
    predict = prediction.Predictor.predict

    def failing(self, cell, *rest):
        if cell is one:
            raise KeyError("first layer forward")
        return predict(self, cell, *rest)

    monkeypatch.setattr(prediction.Predictor, "predict", failing)
    predictor = prediction.Predictor(None, "fp32")
    told, figures = workers._predict(predictor, [PlannedCell(one, None), PlannedCell(other, None)], 2**34)
    assert told == {
        "unknown": "Memory of org/one can't be predicted, as it fails without values (KeyError: 'first layer forward')."
    }
    assert figures["total"] > 0
