"""``harness export-model`` writes a cell's tuned model as what serves it, ``harness push`` uploads it to the hub."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from harness.cli.output import begun_study_names, find_cell, print_errors, print_json
from harness.cli.parser import CommandLine, add_cells, add_json, add_repository, add_study
from harness.errors import UserError
from harness.record import CARD, model_card, model_folder, read, read_study

if TYPE_CHECKING:
    from harness.studies.find import CellRef


def add(command_line: CommandLine) -> None:
    group = command_line.group("keep and share")

    parser = group.add(
        export_model,
        "export-model",
        "Write a tuned model as what serves it, and print the command. Of a study it is the chosen cell's.",
        "quickstart --to ollama --out my-model",
    )
    parser.add_argument("model", metavar="STUDY|CELL", help="a study, of which the chosen cell is taken, or a cell")
    parser.add_argument(
        "--to",
        required=True,
        choices=["merged", "gguf", "ollama", "vllm"],
        help="merged safetensors; GGUF for llama.cpp; GGUF with ollama's Modelfile; an adapter for vLLM, merged where "
        "vLLM can't serve it",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new or empty folder; required")
    add_study(parser)
    add_json(parser)

    parser = group.add(push, "push", "Upload a cell's saved weights and their card to the hub.", "lora-r16 me/my-lora")
    add_cells(parser, "cell")
    add_repository(parser)
    add_json(parser)


def export_model(options: argparse.Namespace) -> int:
    """Export the model of a cell."""
    from harness.plugins.export.export_model import export

    exported = export(_cell(options), options.to, options.out)
    for note in exported.notes:
        print(f"warning: {note}", file=sys.stderr)
    if options.format == "json":
        print_json(vars(exported) | {"folder": str(exported.folder)})
    else:
        print(f"{exported.cell}: {exported.form}, in {exported.folder}. To serve it:\n{exported.command}")
    return 0


def _cell(options: argparse.Namespace) -> CellRef:
    """The named cell, or the chosen one of the named study, of which is said why."""
    from harness.studies.find import CellRef

    if options.model not in begun_study_names(options):
        return find_cell(options, options.model)

    from harness.report.chosen import chosen
    from harness.sweep.store import Study

    study = Study(options.results_dir, options.model)
    records, problems = read_study(study.folder)
    print_errors(problems)
    by_place = chosen(records, study.folder)
    if not by_place:
        table = study.command("table")
        raise UserError(f"{study.name} has no chosen cell: no tuned one has a score. `{table}` lists those to name.")
    if len(by_place) > 1:
        names = ", ".join(choice.record.cell.name for choice in by_place.values())
        raise UserError(f"{study.name} compares several models or data sets, so name a cell; chosen are: {names}.")
    (choice,) = by_place.values()
    print(f"{study.name}: {choice.answer}", file=sys.stderr)
    return CellRef(study, choice.record.cell.name)


def push(options: argparse.Namespace) -> int:
    """Upload the saved weights of a cell and their card to the hub.

    UserError if there are no weights, if they differ from what was saved, without a token, or if the hub refuses them.
    """
    from harness.plugins.export import adapter_config
    from harness.studies import verify
    from harness.studies.upload import upload

    cell = find_cell(options, options.cell)
    trained = read(cell.record) if cell.record.is_file() else None
    if trained is None or trained.saved is None or cell.study.weights(trained) is None:
        raise UserError(f"{cell} has no saved weights to push; train it with save=adapter.")
    if problems := verify.check(cell.record):
        raise UserError(problems[0])
    folder = model_folder(cell.record)
    files: dict[str, Path | bytes] = {
        file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()
    }
    # What was saved may name a folder of this machine, which helps nobody elsewhere.
    files[CARD] = model_card.text(trained).encode()
    if trained.saved.form == "adapter":
        config = adapter_config.read(folder) | {"base_model_name_or_path": model_card.base_name(trained)}
        files[adapter_config.NAME] = json.dumps(config, indent=2, sort_keys=True).encode()
    url = upload(str(cell), trained.cell.name, files, options.repo, options.public, "model")
    if options.format == "json":
        print_json({"study": cell.study.name, "cell": cell.name, "url": url})
    else:
        print(url)
    return 0
