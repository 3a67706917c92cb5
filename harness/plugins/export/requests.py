"""What the plug-in asks of jobs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from harness.protocol import Request


@dataclass(frozen=True)
class ExportModel(Request):
    """Write the saved model of the recorded cell at `record` to the folder `out`, which does not exist.

    to: merged (safetensors), gguf, or ollama (GGUF and a Modelfile). prompt: the prompt template of
    the cell's data, whose first field takes the question; null for the chat template.
    """

    target: ClassVar[str] = "harness.plugins.export.job.exporting:export"

    record: str
    to: Literal["merged", "gguf", "ollama"]
    out: str
    prompt: str | None
