"""Writes the page of all methods, `docs/methods.md`, from their files: `python docs/catalogue.py`.

The comment at the top of a file says what the method is and where it comes from. The settings are those of the composed
file. What a method trains and keeps is what `plan` counts on a model without weights.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from omegaconf import OmegaConf

import harness
from harness import units
from harness.config import CONF, ROOT
from harness.errors import UserError
from harness.record import Cell
from harness.sweep import app, planner
from harness.sweep.cells import from_config
from harness.sweep.planner import Impossible, Planned

RESULTS = ROOT / "results"
TARGET = Path(__file__).with_name("methods.md")
MODEL, RANK = "smollm2_135m", 16
DTYPE = "model.dtype!=bfloat16"  # of methods that train weights in bf16
STUDY = "reference/study_speed"  # whose records say what the core methods take
CORE = {  # the methods that a newcomer compares: what each adapts, and when to take it
    "full": ("all weights", "memory is no limit, or as the reference for all others"),
    "lora": ("a low-rank sum beside each linear layer", "first: little memory, fast, one small file to keep"),
    "qlora": ("as LoRA, on a base of 4 bits", "the 16-bit base does not fit, or a larger model is wanted"),
    "dora": ("as LoRA, and the length of each weight row", "LoRA falls short and slower steps are no matter"),
    "galore": ("all weights, by low-rank gradients", "all weights are to be trained and AdamW does not fit"),
}
HEAD = f"""\
# Methods

Compare these five first. Memory and speed are those of the study
[`study_speed`](study-design.md) (SmolLM2-135M on 2 idle CPU cores, batches of 8), as ratios to LoRA: on a GPU, and on a
larger model, `harness plan` and your own sweep say more.

{{core}}
Below are these five, then all others by family. The page is made from `conf/method/` by `make publish`. *Trains* and
*keeps* are what `harness plan` counts for `model={MODEL} rank={RANK}` (with `model.dtype=bfloat16` where a
method requires it): the weights that are trained, and the optimizer's state between steps. A new method is
[one file](adding/method.md).
"""


@dataclass
class Entry:
    """One method.

    about: lines of the comment at the top of its file; settings: `method` of the composed config; cell: its cell, or
    the reason why it has none.
    """

    name: str
    about: list[str]
    settings: dict[str, Any]
    cell: Cell | str


def entries(*names: str) -> list[Entry]:
    """Methods, sorted by name, composed for MODEL at RANK. names: which (none: all)."""
    app.register()
    found = []
    for path in sorted((CONF / "method").glob("*.yaml")):
        if names and path.stem not in names:
            continue
        # Some methods refuse clipping, and it does not change the counts.
        asked = [f"method={path.stem}", f"model={MODEL}", f"rank={RANK}", "train.max_grad_norm=null"]
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            config = hydra.compose("config", asked)
            if DTYPE in config.method.incompatible:
                config = hydra.compose("config", [*asked, "model.dtype=bfloat16"])
        settings: Any = OmegaConf.to_container(config.method, resolve=True)
        try:
            cell: Cell | str = from_config(config)
        except UserError as error:
            cell = str(error)
        found.append(Entry(path.stem, about(path.read_text(encoding="utf-8")), settings, cell))
    return found


def about(text: str) -> list[str]:
    """Lines of the comment at the top of a file, without #."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    return [line[1:].strip() for line in lines]


def _adapter(entry: Entry) -> str:
    """The class of what is put beside the weights; "" if nothing is."""
    return ((entry.settings["adapt"] or {}).get("_target_") or "").rpartition(".")[2]


PROMPTS = ("PromptTuningConfig", "PromptEncoderConfig", "PrefixTuningConfig", "CartridgeConfig", "AdaptionPromptConfig")
FAMILIES: dict[str, Callable[[Entry], bool]] = {  # the first that holds; by the settings, so that a new method has one
    "The five to compare first": lambda entry: entry.name in CORE,
    "Untuned models": lambda entry: entry.settings["optim"] is None,
    "Full fine-tuning: other optimizers": lambda entry: not _adapter(entry),
    "LoRA on a base of 4 or 8 bits": lambda entry: "quant" in json.dumps(entry.settings["load"]),
    "LoRA with another start, optimizer or scale": lambda entry: _adapter(entry) in ("LoraConfig", "FastDoraConfig"),
    "Prompts and prefixes": lambda entry: _adapter(entry) in PROMPTS,
    "A part of the model's own weights": lambda entry: _adapter(entry) in ("only", "LNTuningConfig"),
    "Other adapters": lambda entry: True,
}


def by_family(methods: Sequence[Entry]) -> Iterator[tuple[str, list[Entry]]]:
    """The families that have methods, and these by name; the five in the order of CORE."""
    members: dict[str, list[Entry]] = {name: [] for name in FAMILIES}
    for entry in methods:
        members[next(name for name, holds in FAMILIES.items() if holds(entry))].append(entry)
    first = next(iter(FAMILIES))
    members[first].sort(key=lambda entry: [*CORE].index(entry.name))
    yield from ((name, entries) for name, entries in members.items() if entries)


def section(entry: Entry, prediction: dict[str, Any]) -> str:
    out = [f"### {entry.name}", "", *entry.about, ""]
    if entry.settings["lr"] is not None:
        own = "".join(f", `method.knobs.{k}={v}`" for k, v in entry.settings["knobs"].items())
        out.append(f"- Settings: `lr={entry.settings['lr']:g}`{own}")
    if why := prediction.get("impossible") or prediction.get("unknown"):
        out.append(f"- Not counted: {why}")
    elif prediction["trainable"]:
        share = 100 * prediction["trainable"] / prediction["total"]
        state = units.size(prediction["resident"]["optimizer"])
        out.append(f"- Trains {units.count(prediction['trainable'])} weights ({share:.3g}%), keeps {state}")
    out += [f"- Not with `{setting}`: {reason}" for setting, reason in entry.settings["incompatible"].items()]
    return "\n".join(out).rstrip() + "\n"


def _prediction(point: Planned | Impossible) -> dict[str, Any]:
    return {"impossible": point.reason} if isinstance(point, Impossible) else point.prediction


def core_table() -> str:
    """The core methods: what each adapts, what it takes by the records of STUDY, and when to take it."""
    best = harness.read(RESULTS / STUDY).best().set_index("method")
    memory, speed = best["train_allocated_peak"], best["tokens_per_second_steady"]
    rows = ["| Method | Trains | Memory | Tokens/s | Take it when |", "| --- | --- | --- | --- | --- |"]
    for name, (adapts, when) in CORE.items():
        ratios = [f"{values[name] / values['lora']:.2f}×" for values in (memory, speed)]
        rows.append(f"| [{name}](#{name}) | {adapts} | {' | '.join(ratios)} | {when} |")
    return "\n".join(rows) + "\n"


def catalogue() -> str:
    methods = entries()
    planned = planner.make([(entry.name, entry.cell) for entry in methods], {}, None, None).points
    sections = {e.name: section(e, _prediction(point)) for e, point in zip(methods, planned, strict=True)}
    parts = [HEAD.format(core=core_table())]
    for family, members in by_family(methods):
        parts += [f"## {family}\n", *(sections[entry.name] for entry in members)]
    return "\n".join(parts)


if __name__ == "__main__":
    TARGET.write_text(catalogue(), encoding="utf-8")
