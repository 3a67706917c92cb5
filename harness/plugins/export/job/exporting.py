"""Writes a saved model as what serves it: merged safetensors, GGUF, or GGUF with ollama's Modelfile."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import AutoConfig, AutoTokenizer

from harness import gate, record
from harness.errors import UserError, about_file, first_line
from harness.job.measure import device
from harness.job.models import adapter_merge, loading, saved
from harness.job.services import Send
from harness.plugins.export.job import gguf_file, modelfile
from harness.plugins.export.requests import ExportModel
from harness.protocol import Result
from harness.record import Record


def export(request: ExportModel, send: Send) -> None:
    """Write the model to the folder `request.out`, and send a result that names it.

    Raises UserError if its adapter can't be merged, if its architecture or tokenizer has no GGUF here, or if the folder
    can't be written.
    """
    path, out = Path(request.record), Path(request.out)
    found = gate.admitted(path)
    try:
        if request.to == "merged":
            _merge(found, record.model_folder(path), out)
        else:
            _convert(found, record.model_folder(path), out, request)
    except OSError as error:
        raise UserError(about_file(error)) from None
    send(Result({"folder": request.out}))


def _convert(found: Record, folder: Path, out: Path, request: ExportModel) -> None:
    """Write GGUF, and for ollama its Modelfile."""
    whole, tokenizer = saved.form_of(found) != "adapter", AutoTokenizer.from_pretrained(folder)
    config = AutoConfig.from_pretrained(folder) if whole else loading.config_of(found.cell.settings.model)
    gguf_file.check(config, tokenizer)
    out.mkdir(parents=True)
    with _whole(found, folder, out) as model:
        gguf_file.write(model, found.cell.name, out / f"{found.cell.name}.gguf")
    if request.to == "ollama":
        text = modelfile.text(f"{found.cell.name}.gguf", tokenizer, request.prompt)
        (out / modelfile.NAME).write_text(text, encoding="utf-8")


@contextmanager
def _whole(found: Record, folder: Path, beside: Path) -> Iterator[Path]:
    """The folder of the whole model: `folder`, or one that is there meanwhile, in which its adapter is merged."""
    if saved.form_of(found) != "adapter":
        yield folder
        return
    with tempfile.TemporaryDirectory(dir=beside) as made:
        _merge(found, folder, Path(made) / "merged")
        yield Path(made) / "merged"


def _merge(found: Record, folder: Path, out: Path) -> None:
    """Merge the adapter in `folder` into its base, and save that and the tokenizer in `out`."""
    net = saved.load(found, folder, device.here())
    try:
        merged = adapter_merge.fold(net)
    except (NotImplementedError, ValueError) as error:
        raise UserError(
            f"{found.cell.name} can't be exported whole: peft can't merge it ({first_line(error)})."
        ) from None
    saved.write_whole(merged, loading.tokenizer(found.cell.settings.model), out)
