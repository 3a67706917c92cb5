"""Compares the times that `plan --device` estimates with what others published of GPUs; renders docs/cards.md.

    python benchmarks/cards.py --data-root DIR --write    # the record and the page, about 10 minutes on 2 cores
    python benchmarks/cards.py --render                   # the page anew, from the record

Below DIR lie `published_speed`, `published_memory`, whose rows have tokens/s, and `peft_results`, as for
benchmarks/plan.py. See benchmarks/published_speed.py for the rows, and for the split by source. All of their programs
have peft's layers as they are, and so have these cells.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import hydra
from published_speed import CHECK, DEVELOP, ENGINES, LeftOut, PublishedRow
from published_speed import rows as published_rows
from tabulate import tabulate

from harness.config import CONF, ROOT
from harness.errors import UserError, about_file
from harness.job.predict.prediction import Predictor
from harness.job.training import fused_dora, fused_lora, uncast_inputs
from harness.sweep import app
from harness.sweep.cells import from_config
from harness.sweep.estimates import card as cards
from harness.sweep.estimates import rates

RECORD = ROOT / "benchmarks" / "measured" / "card_times.json"
PAGE = ROOT / "docs" / "cards.md"
HEAD = "## Against published runs"  # what of the page is made
ENOUGH = 5  # rows of a card that make a range of its own
NEAR = 0.35  # within which nine of ten rows should be


def measure(root: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows that can be compared, each with the work of our cell at the card's rates, and the others."""
    app.register()
    work: dict[str, dict[str, float]] = {}
    compared, left_out = [], []
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        for row in published_rows(root):
            if isinstance(row, LeftOut):
                left_out.append(asdict(row))
                continue
            key = json.dumps([row.card, row.overrides, ENGINES[row.engine].fused])
            if key not in work:
                work[key] = _work(row)
                print(row, file=sys.stderr)
            compared.append(_record(row, work[key]))
    for known in [known for known in compared if known["utilisation"] > 1]:
        compared.remove(known)
        reason = f"it would be {known['utilisation']:.0%} of the card's FLOP/s"
        left_out.append(asdict(LeftOut(known["source"], f"{known['card']} {known['model']} {known['method']}", reason)))
    return {"compared": compared, "left_out": left_out}


def _work(row: PublishedRow) -> dict[str, float]:
    """Of a training step of our cell: as a prediction has it, and its tokens and FLOPs."""
    fused = str(ENGINES[row.engine].fused).lower()
    config = hydra.compose("config", [*row.overrides, "train.max_steps=1", f"train.compile={fused}"])
    predictor = Predictor(None, auto="bf16", kernels="cuda", rates=cards.load(row.card).rates)
    with ExitStack() as stack:
        for module in (uncast_inputs, fused_lora, fused_dora):
            stack.enter_context(mock.patch.object(module, "enable"))
        found = predictor.predict(from_config(config), row.architecture or dict(config.model.architecture))
    return found["work"] | {"tokens": found["shape"]["padded"], "flops": found["flops"]}


def _record(row: PublishedRow, work: dict[str, float]) -> dict[str, Any]:
    utilisation = row.published * work["flops"] / work["tokens"] / (cards.load(row.card).rates.bf16 or 0)
    known = {key: value for key, value in asdict(row).items() if key not in ("overrides", "architecture")}
    return known | {"work": work, "utilisation": utilisation}


def estimated(row: dict[str, Any]) -> float:
    """Tokens/s of a recorded row, by the estimate."""
    work, card = row["work"], cards.load(row["card"])
    return work["tokens"] / rates.seconds(work, card.reached, ENGINES[row["engine"]].launch)


def errors(rows: list[dict[str, Any]]) -> list[float]:
    """By how much the estimated time of each row is longer than the published one."""
    return [row["published"] / estimated(row) - 1 for row in rows]


def spreads(rows: list[dict[str, Any]]) -> dict[str, tuple[float, float]]:
    """By card with ENOUGH rows, and as "" over all, the least and the most times that runs took of their estimate."""
    ratios: dict[str, list[float]] = {}
    for row in rows:
        for key in (row["card"], ""):
            ratios.setdefault(key, []).append(estimated(row) / row["published"])
    return {card: (round(min(of), 2), round(max(of), 2)) for card, of in ratios.items() if len(of) >= ENOUGH}


def summary(rows: list[dict[str, Any]]) -> str:
    found = [abs(error) for error in errors(rows)]
    near = sum(error <= NEAR for error in found)
    return f"{statistics.median(found):.0%} median error, {near} of {len(found)} rows within {NEAR:.0%}"


def page(record: dict[str, list[dict[str, Any]]], before: str) -> str:
    """The page whose text by hand is `before`, with the comparison."""
    compared = record["compared"]
    cells = [
        [
            "develop" if row["source"] in DEVELOP else "check",
            row["source"],
            row["card"],
            row["engine"],
            f"{row['model']}, {row['method']}",
            row["settings"],
            f"{row['published']:,.0f}",
            f"{estimated(row):,.0f}",
            f"{error:+.0%}",
            f"{row['utilisation']:.0%}",
        ]
        for row, error in zip(compared, errors(compared), strict=True)
    ]
    head = [
        "part",
        "source",
        "card",
        "program",
        "run",
        "settings",
        "tokens/s",
        "estimated",
        "time",
        "of peak",
    ]
    parts = {"develop": DEVELOP, "check": CHECK}
    of = {name: [row for row in compared if row["source"] in sources] for name, sources in parts.items()}
    reasons = Counter((row["source"], row["reason"]) for row in record["left_out"])
    between = ", ".join(
        f"{card or 'all'} {least:g} to {most:g}" for card, (least, most) in sorted(spreads(compared).items())
    )
    return "\n".join(
        [
            before.partition(HEAD)[0] + HEAD,
            "",
            "Made by `python benchmarks/cards.py --data-root ../shared/data --write`; the record is",
            "`benchmarks/measured/card_times.json`. The rows were split by source before a constant was chosen",
            "(`benchmarks/published_speed.py`): constants come from the sources of *develop*, *check* was looked at",
            "afterwards. *time* is by how much the estimated time is longer; *of peak* is the published run's FLOPs",
            "over the card's bf16 rate.",
            "",
            f"- All: {summary(compared)}.",
            *(f"- {name}: {summary(rows)}." for name, rows in of.items()),
            "- Published time over the estimate, which `plan` tells as a range, of cards with five rows or more:",
            f"  {between}.",
            "",
            "The first estimates, with constants from others' measurements alone, were seen beside both parts. Those",
            "of the host, of GeForce cards and of B200 were then set by *develop*. That of A100, measured by others,",
            "was added last, after a look at *check*: its median error was 21% before.",
            "",
            "No row is of this harness. The programs are others', with our cell's operations: *plain* runs them one",
            "after another as the harness does, the others fuse neighbouring ones as `train.compile` does.",
            "",
            tabulate(cells, head, "pipe", disable_numparse=True),
            "",
            "Left out:",
            "",
            *(f"- {source}: {count} × {reason}." for (source, reason), count in reasons.items()),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, metavar="DIR", help="folder of published_speed and the others")
    parser.add_argument("--write", action="store_true", help="renew the committed page and the record")
    parser.add_argument("--render", action="store_true", help="renew the page from its record, predict nothing")
    options = parser.parse_args()
    try:
        if not options.render and options.data_root is None:
            raise UserError("--data-root is required, or --render.")
        found = json.loads(RECORD.read_text(encoding="utf-8")) if options.render else measure(options.data_root)
    except (UserError, OSError) as error:
        print(error if isinstance(error, UserError) else about_file(error), file=sys.stderr)
        sys.exit(2)
    if options.write:
        RECORD.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    if options.write or options.render:
        PAGE.write_text(page(found, PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    else:
        print(page(found, ""))


if __name__ == "__main__":
    main()
