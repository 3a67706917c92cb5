"""The engine of vLLM, by its stand-in, run by the command line."""

from __future__ import annotations

import json

import pytest
from pythons import python_with_vllm
from tested_settings import CELL, lines

from harness.__main__ import main


@lines(
    f"run {CELL} method=base study=vllm eval.tasks=[wordmath_short] eval.engine=vllm eval.vllm_python={{python}}",
    "score vllm --study vllm --tasks facts --limit 2 --results-dir results --format json --vllm-python {python}",
    "score vllm --study vllm --tasks facts --limit 3 --replace --format text --vllm-python {python}",
)
@pytest.mark.long
def test_answers_are_written_as_settings_say(run, only, tmp_path):
    *_, as_json, _ = run(python=python_with_vllm(tmp_path / "vllm"))
    assert only("vllm").cell.settings.eval.engine == "vllm"
    assert json.loads(as_json.stdout)[0]["tasks"]


def test_an_engine_that_is_unknown_is_refused_with_those_that_there_are(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["run", "eval.engine=tgi"]) == 2
    assert "eval.engine=tgi is unknown. There is: auto, vllm." in capsys.readouterr().err
