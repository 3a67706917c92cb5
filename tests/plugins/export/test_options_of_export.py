"""Options of the commands that hand a tuned model over, on a cell that is trained here."""

from __future__ import annotations

import hub
import pytest
from tested_settings import CELL, Line, lines


@lines(
    f"run {CELL} study=kept save=adapter",
    "export-model lora --study kept --results-dir results --to merged --out merged --format text",
    Line("export-model lora --study kept --to gguf --out gguf --format json", said='"form"'),
    "export-model lora --study kept --to ollama --out ollama",
    Line("export-model lora --study kept --to vllm --out vllm", said="vllm serve"),
    "push lora me/mine --study kept --results-dir results --public --format text",
    Line("push lora me/mine --study kept --public --format json", said='"url"'),
)
@pytest.mark.long
def test_a_model_is_exported_and_pushed(run, monkeypatch, tmp_path):
    with hub.uploads(monkeypatch) as taken:
        run()
    assert [made["visibility"] for made in taken.made] == ["public", "public"]
    assert list((tmp_path / "merged").glob("*.safetensors"))
    assert list((tmp_path / "gguf").glob("*.gguf"))
    assert (tmp_path / "ollama" / "Modelfile").is_file()
