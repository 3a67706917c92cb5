"""Compares the times that `plan --device` estimates with what others published of GPUs; renders docs/cards.md.

    python benchmarks/cards.py --data-root DIR --write    # the record and the page, about 3 minutes on 2 cores
    python benchmarks/cards.py --render                   # the page anew, from the record

Below DIR lie `published_memory`, whose rows have tokens/s, and `peft_results`, as for benchmarks/plan.py. Their
programs are not ours: the cell predicted is ours with their model, method, batch and precision, so a difference is also
one of programs. All of theirs have peft's layers as they are, and so have these cells.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import hydra
from tabulate import tabulate

from harness.config import CONF, ROOT
from harness.errors import UserError, about_file
from harness.job.predict.prediction import Predictor
from harness.job.training import fused_lora, uncast_inputs
from harness.sweep import app
from harness.sweep.cells import from_config
from harness.sweep.estimates import card as cards

RECORD = ROOT / "benchmarks" / "measured" / "card_times.json"
PAGE = ROOT / "docs" / "cards.md"
HEAD = "## Against published runs"  # what of the page is made
FMS = "foundation-model-stack/fms-acceleration scripts/benchmarks/refs/a100_80gb.csv"
MISTRAL = "mistralai/Mistral-7B-v0.1"
QKVO = "method.adapt.target_modules=[q_proj,k_proj,v_proj,o_proj]"
QV = "method.adapt.target_modules=[q_proj,v_proj]"
# What of a published row's notes says that its program is near ours, and what makes our cell the same.
# Full fine-tuning is left out: theirs steps bf16 weights by AdamW alone, which no method here does.
PLAIN = {
    ("lora", "plain Trainer"): ["method=lora", "rank=16", QKVO],
    ("qlora", "NF4, no upcasts"): ["method=qlora", "rank=16", QKVO],
}
PEFT = {  # by file: the method as a reader knows it, and the same
    "lora--llama-3.2-3B-rank32": ("lora", ["method=lora", "rank=32", QV]),
    "lora--llama-3.2-3B-rank32-dora": ("dora", ["method=dora", "rank=32", QV]),
    "lora--llama-3.2-3B-rank10-target-mlp": (
        "lora on the MLP",
        ["method=lora", "rank=10", "method.adapt.target_modules=[gate_proj,up_proj,down_proj]"],
    ),
}


def measure(root: Path) -> list[dict[str, Any]]:
    """A row a published run: its tokens/s, and the most that the card's rates allow."""
    app.register()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return [*_fms(root / "published_memory" / "training_memory.csv"), *_peft(root / "peft_results")]


def _fms(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if (row["source"], row["model"]) == (FMS, MISTRAL)]
    found = []
    for row in rows:
        if (settings := PLAIN.get((row["method"], row["notes"]))) is not None:
            shape = [f"train.batch_size={row['micro_batch']}", "train.max_length=4096"]
            most = _most("a100_80", ["model=mistral_7b", *settings, *shape, "train.gradient_checkpointing=true"])
            about = f"{row['micro_batch']} × 4096 tokens, checkpointing, {row['notes']}"
            found.append(_row(FMS.partition(" ")[0], "a100_80", "Mistral-7B", row["method"], about) | most)
            found[-1]["published"] = float(row["tokens_per_second"])
    return found


def _peft(folder: Path) -> list[dict[str, Any]]:
    found = []
    for name, (method, settings) in PEFT.items():
        data = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        train, info = data["run_info"]["train_config"], data["train_info"]
        tokens = info["metrics"][-1]["train total tokens"]
        length = round(tokens / train["max_steps"] / train["batch_size"])
        shape = [f"train.batch_size={train['batch_size']}", f"train.max_length={length}"]
        most = _most("l40s", ["model=llama_3_2_3b", *settings, *shape, "train.gradient_checkpointing=false"])
        about = f"{train['batch_size']} × {length} tokens (mean, without padding)"
        found.append(_row("huggingface/peft", "l40s", "Llama-3.2-3B", method, about) | most)
        found[-1]["published"] = tokens / info["train_time"]
    return found


def _row(source: str, card: str, model: str, method: str, settings: str) -> dict[str, Any]:
    return {"source": source, "card": card, "model": model, "method": method, "settings": settings}


def _most(card: str, overrides: list[str]) -> dict[str, float]:
    """Tokens/s of our cell at the rates of the card, as `most`, and its FLOPs a token."""
    config = hydra.compose("config", overrides)
    rates = cards.load(card).rates
    predictor = Predictor(None, auto="bf16", kernels="cuda", rates=rates)
    with mock.patch.object(uncast_inputs, "enable"), mock.patch.object(fused_lora, "enable"):
        found = predictor.predict(from_config(config), dict(config.model.architecture))
    padded = found["shape"]["padded"]
    return {"most": padded / found["least_seconds"], "flops": found["flops"] / padded}


def slower(rows: list[dict[str, Any]]) -> tuple[float, float, float]:
    """How many times the least time published runs took: the mean of the cards' medians, the least and the most."""
    ratios: dict[str, list[float]] = {}
    for row in rows:
        ratios.setdefault(row["card"], []).append(row["most"] / row["published"])
    every = [ratio for of_card in ratios.values() for ratio in of_card]
    mean = statistics.mean(map(statistics.median, ratios.values()))
    return round(mean, 1), round(min(every), 1), round(max(every), 1)


def page(rows: list[dict[str, Any]], before: str) -> str:
    """The page whose text by hand is `before`, with the comparison."""
    cells = [
        [
            row["source"],
            row["card"],
            f"{row['model']}, {row['method']}",
            row["settings"],
            f"{row['published']:,.0f}",
            f"{row['most']:,.0f}",
            f"{row['most'] / row['published']:.2f}",
            f"{row['published'] * row['flops'] / cards.load(row['card']).rates.bf16:.0%}",
        ]
        for row in rows
    ]
    head = ["source", "card", "run", "settings", "published tokens/s", "at the card's rates", "slower", "utilisation"]
    mean, least, most = slower(rows)
    return "\n".join(
        [
            before.partition(HEAD)[0] + HEAD,
            "",
            "Made by `python benchmarks/cards.py --data-root ../shared/data --write`; the record is",
            "`benchmarks/measured/card_times.json`. *slower* is how many times the least time a run took; utilisation",
            "is its FLOPs over the card's bf16 rate.",
            "",
            f"The mean of both cards' medians is {mean:g}, by which `plan` multiplies;",
            f"the ends are {least:g} and {most:g}.",
            "Full fine-tuning is left out: theirs steps bf16 weights by AdamW alone, which no method here does.",
            "",
            tabulate(cells, head, "pipe", disable_numparse=True),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="folder of published_memory and peft_results")
    parser.add_argument("--write", action="store_true", help="renew the committed page and the record")
    parser.add_argument("--render", action="store_true", help="renew the page from its record, predict nothing")
    options = parser.parse_args()
    try:
        if not options.render and options.data_root is None:
            raise UserError("--data-root is required, or --render.")
        rows = json.loads(RECORD.read_text(encoding="utf-8")) if options.render else measure(options.data_root)
    except (UserError, OSError) as error:
        print(error if isinstance(error, UserError) else about_file(error), file=sys.stderr)
        sys.exit(2)
    if options.write:
        RECORD.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if options.write or options.render:
        PAGE.write_text(page(rows, PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(page(rows, ""))


if __name__ == "__main__":
    main()
