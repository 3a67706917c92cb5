"""Hands a cell's tuned model over to what serves it: merged weights, GGUF, ollama or vLLM.

    harness export-model STUDY_OR_CELL --to merged|gguf|ollama|vllm --out DIR

Everything lies in DIR then, with a model card from the record. An adapter that vLLM can serve stays an adapter.
"""

from __future__ import annotations

import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness import gate, record
from harness.errors import UserError, about_file
from harness.plugins.export import adapter_config
from harness.plugins.export.requests import ExportModel
from harness.record import Record, Saved, model_card, read
from harness.studies import verify
from harness.studies.find import CellRef
from harness.sweep import runner
from harness.validate import KEEP_BASE

Form = Literal["adapter", "merged", "model", "gguf"]
Target = Literal["merged", "gguf", "ollama", "vllm"]

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # values of vLLM's --max-lora-rank: vllm.config.lora.MaxLoRARanks
# Fields of peft's LoraConfig that change what the adapter computes, and that vLLM's PEFTHelper refuses or ignores.
UNKNOWN_TO_VLLM = (
    *("use_dora", "modules_to_save", "lora_bias", "rank_pattern", "alpha_pattern", "target_parameters"),
    *("trainable_token_indices", "layer_replication", "use_qalora", "use_bdlora", "alora_invocation_tokens"),
    *("arrow_config", "kasa_config", "velora_config", "monteclora_config"),
)
HUB_ID = re.compile(r"\w[\w.-]*(?:/\w[\w.-]*)?", re.ASCII)  # which no command takes for an option


@dataclass(frozen=True)
class ExportedModel:
    """What lies in `folder` now, and the command that serves it. notes: sentences on how it differs from the cell."""

    cell: str
    form: Form
    folder: Path
    command: str
    notes: list[str]


def export(found: CellRef, to: Target, out: Path) -> ExportedModel:
    """Write the model of a cell to `out`, a new or empty folder, all or nothing.

    Raises UserError if the cell has no saved weights, if they are damaged, if `out` is in use, if the model can't take
    that form, or if the adapter names a base that no command should be given.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out must name a new or empty folder, got {out}.")
    known, saved = _known(found)
    folder, target = record.model_folder(found.record), out.absolute()
    form = _form(saved, to, folder, known.cell.settings.method.bits)
    command = _vllm_with_adapter(known, folder, out) if form == "adapter" else _command(known, to, out)
    if saved.form == "adapter" != form:
        _check_mergeable(found, known, folder)
    made = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(made, ignore_errors=True)
    try:
        if form == saved.form:
            shutil.copytree(folder, made)
        else:
            in_job: Any = "merged" if to == "vllm" else to
            prompt = known.question_template
            request = ExportModel(str(found.record.absolute()), in_job, str(made), prompt)
            runner.ask(request, lambda event: None)
        (made / record.CARD).write_text(model_card.text(known, form), encoding="utf-8")
        record.place(made, target)
    except OSError as error:
        raise UserError(about_file(error)) from None
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return ExportedModel(str(found), form, out, command, _notes(known, saved, to, form))


def _form(saved: Saved, to: Target, folder: Path, bits: int | None) -> Form:
    """What the model is to be: whole ones stay as they are, adapters stay adapters where vLLM serves them.

    bits: of a quantised base, which vLLM would take in full, and then it is another model.
    """
    if to in ("gguf", "ollama"):
        return "gguf"
    if saved.form != "adapter":
        return saved.form
    return "adapter" if to == "vllm" and bits is None and _served_by_vllm(adapter_config.complete(folder)) else "merged"


def _known(found: CellRef) -> tuple[Record, Saved]:
    """The record of a cell whose saved weights can be exported, and what it says of them."""
    if not found.record.is_file():
        raise UserError(f"{found} has no record yet; there is nothing to export.")
    known = read(found.record)
    settings = known.cell.settings
    if known.source is not None:
        raise UserError(f"{found} is an imported result of {known.source.project}, without weights.")
    if settings.behind_api or not settings.method.tuned:
        raise UserError(f"{found} is not tuned; there is nothing to export beside the model itself.")
    saved = known.saved
    if saved is None and known.status != "ok":
        raise UserError(f"{found} ended as {known.status}; export a cell that ended as ok.")
    if saved is None or found.study.weights(known) is None:
        start = (settings.method.adapt or {}).get("init_lora_weights")
        save = "merged" if isinstance(start, str) and start not in KEEP_BASE else "adapter"
        raise UserError(
            f"{found} has no saved weights; to train it again and keep them: {found.study.anew(known, save)}."
        )
    if problems := verify.check(found.record):
        raise UserError(problems[0])
    gate.require(known, found.record)
    if saved.form == "adapter":
        adapter_config.complete(record.model_folder(found.record))
    return known, saved


def _check_mergeable(found: CellRef, known: Record, folder: Path) -> None:
    """Raise UserError if the cell's own run could not merge its adapter. Into a quantised base it did not try."""
    merge = known.merge
    if merge is not None and not merge.merged and known.cell.settings.method.bits is None:
        raise UserError(
            f"{found} can't be exported whole: {merge.reason} peft loads the adapter as it is, from {folder}."
        )


# How it is served


def _served_by_vllm(told: dict[str, Any]) -> bool:
    """Whether vLLM serves an adapter with this config."""
    lora = told["peft_type"] == "LORA" and told["bias"] == "none" and told["r"] <= RANKS[-1]
    return lora and not any(told.get(name) for name in UNKNOWN_TO_VLLM)


def _vllm_with_adapter(known: Record, folder: Path, out: Path) -> str:
    """The command that serves the adapter of `folder` from its copy in `out`."""
    config, (_, revision) = adapter_config.complete(folder), model_card.base_of(known)
    rank = next(rank for rank in RANKS if rank >= config["r"])
    words = ["vllm", "serve", _checked_base(config["base_model_name_or_path"], known, folder)]
    if revision:
        words += ["--revision", revision]
    words += ["--enable-lora", "--max-lora-rank", str(rank), "--lora-modules", f"{known.cell.name}={out}"]
    return shlex.join(words)


def _checked_base(base: str, known: Record, folder: Path) -> str:
    """`base`, as the adapter in `folder` names it. Raises UserError if it may be an option, or a place of others.

    The folder may be anybody's, and a reader copies the command that is printed.
    """
    own = base == known.cell.settings.model.path and not base.startswith("-")
    local = not model_card.on_hub(known) and Path(base).is_absolute() and Path(base).is_dir()
    if not (own or local or HUB_ID.fullmatch(base)):
        raise UserError(
            f"base_model_name_or_path in {folder / adapter_config.NAME} must be the record's model.path, an id of the "
            f"hub, or the absolute path of a base's folder, got {base!r}."
        )
    return base


def _command(known: Record, to: Target, out: Path) -> str:
    name = known.cell.name
    if to == "vllm":
        return shlex.join(["vllm", "serve", str(out), "--served-model-name", name])
    if to == "merged":
        return shlex.join(["transformers", "serve", str(out)])
    if to == "ollama":
        return shlex.join(["ollama", "create", name.lower(), "-f", str(out / "Modelfile")])
    return shlex.join(["llama-server", "-m", str(out / f"{name}.gguf")])


def _notes(known: Record, saved: Saved, to: Target, form: Form) -> list[str]:
    bits, notes = known.cell.settings.method.bits, []
    if bits is not None:
        notes.append(
            f"It was scored on a base quantised to {bits} bits; this is the same with those weights expanded, up to "
            "rounding, at the size of a full model."
        )
    if to == "vllm" and form == "merged" and saved.form == "adapter":
        notes.append("vLLM does not serve such an adapter, so it is merged.")
    notes.append("It was scored by its likeliest tokens: ask it with a temperature of 0.")
    return notes
