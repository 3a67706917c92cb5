"""The document benchmarks/RESULTS.md, made of what speed.py measured."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean, median
from typing import Any

from tabulate import tabulate

WALL = "by the clock"
OWN = "in the process's own time"
STEPS = 50  # before losses are compared


def provenance(found: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    timed_by = found.get("clock", WALL)
    return f"{found['where'].replace('1 threads', '1 thread')}, {timed_by}, {found['started'][:10]}; {versions}."


def page(measured: Path, parts: Iterable[str]) -> str:
    """The document, of those `parts` that were measured: the files PART.json in the folder `measured`."""
    out = [
        "# The harness against the plain way",
        "",
        "Made by `make bench`: see `benchmarks/speed.py` and `plain.py`.",
        "",
    ]
    for part in parts:
        file = measured / f"{part}.json"
        if file.is_file():
            found = json.loads(file.read_text(encoding="utf-8"))
            title = part.upper() if part in ("mmlu", "gsm8k") else part.capitalize()
            out += [f"## {title}", "", *RENDERED[part](found), "", provenance(found), ""]
    return "\n".join(out)


def _table(rows: list[list[str]], head: list[str]) -> str:
    return tabulate(rows, head, tablefmt="github", disable_numparse=True)


def _ratio(row: dict[str, Any]) -> str:
    return f"{row['ratio']:.2f}× ({row['least']:.2f}–{row['largest']:.2f})"


def _training(found: dict[str, Any]) -> list[str]:
    rows = [
        [name, f"{r['plain']:.2f} s", f"{r['ours']:.2f} s", _ratio(r), f"{r['raw'] / r['ours']:.0f}", str(r["pairs"])]
        for name, r in found["rows"].items()
    ]
    (first, *_) = found["rows"].values()
    return [
        f"One optimizer step on SmolLM2-135M, rank 16, 4 sequences of {found['text']}'s text: {first['raw']:.0f} "
        f"tokens, {first['padded']:.0f} with the plain way's padding. `dora_fast` is compared with peft's DoRA, "
        "`galore_rsvd` with galore-torch.",
        "",
        _table(rows, ["Method", "Plain step", "Our step", "Faster", "Tokens/s", "Pairs"]),
    ]


def _trainer(found: dict[str, Any]) -> list[str]:
    rows, compiled = [], []
    for name, r in found["rows"].items():
        rows.append([name, f"{r['plain']:.2f} s", f"{r['ours']:.2f} s", _ratio(r), str(r["pairs"])])
        if both := r.get("compiled"):
            seconds = [f"{both['plain']:.2f} s", f"{both['ours']:.2f} s"]
            compiled.append([name, *seconds, _ratio(both), f"{both['compiling']:.0f} s"])
    (first, *_) = found["rows"].values()
    return [
        "One optimizer step, as above, by the Trainer of transformers in the precision of our training (bf16 autocast "
        f"where the CPU has it): {first['raw']:.0f} tokens, {first['padded']:.0f} with the Trainer's padding.",
        "",
        _table(rows, ["Method", "Trainer", "Ours", "Faster", "Pairs"]),
        "",
        "With `train.compile=true`, after compilation, which takes less where a run before this one compiled the same:",
        "",
        _table(compiled, ["Method", "Trainer", "Ours, compiled", "Faster", "Compilation"]),
    ]


def _scored(asked: str, r: dict[str, Any]) -> list[str]:
    same = f"{r['same']} of {r['predictions']}"
    row = [f"{r['plain']:.1f} s", f"{r['ours']:.1f} s", _ratio(r), same, str(r["pairs"])]
    return [
        f"{asked}; the untuned SmolLM2-135M in fp32, by lm-eval's `HFLM` and by our engine. Same predictions: of all "
        "questions, filters and metrics.",
        "",
        _table([row], ["Stock", "Ours", "Faster", "Same predictions", "Pairs"]),
    ]


def _agreement(found: dict[str, Any]) -> list[str]:
    rows = [
        [name, f"{r['plain']:.1f} s", f"{r['ours']:.1f} s", _ratio(r), f"{r['same']} of {r['predictions']}"]
        for name, r in found["rows"].items()
    ]
    return [
        "GSM8K, 5 shots, 8 questions per pair, by lm-eval's `HFLM` and by our engine in the same precision. In bf16 "
        "two orders of the same sum may round differently, and a greedy answer that differs in one token goes on "
        "otherwise.",
        "",
        _table(rows, ["Untuned model", "Stock", "Ours", "Faster", "Same predictions"]),
    ]


def _launches(found: dict[str, Any]) -> list[str]:
    earlier = {(row["model"], row["method"]): row for row in found["before"]}

    def change(row: dict[str, Any], text: Callable[[dict[str, Any]], str]) -> str:
        before = earlier.get((row["model"], row["method"]))
        return text(row) if before is None else f"{text(before)} → {text(row)}"

    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "Operations": lambda row: f"{row['operations']:,}",
        "Roofline": lambda row: f"{1e3 * row['roofline']:.0f} ms",
        "Products and attention": lambda row: f"{row['products']:.0%}",
        "Host": lambda row: f"{1e3 * row['host']:.0f} ms",
    }
    rows = [[r["model"], r["method"], *(change(r, text) for text in columns.values())] for r in found["rows"]]
    return [
        f"What one step of {found['sequences']} sequences of {found['length']} tokens launches on an "
        f"{found['card'].upper()}, rank 16, without gradient checkpointing: counted on tensors without storage on a "
        "GPU that is not there (`benchmarks/launches.py`), before layers had kernels of their own and optimizers "
        "stepped many weights at once → now. Nothing was run on a GPU. Roofline: the least time by the card's rates. "
        f"Products and attention: their share of it. Host: {1e6 * found['host_seconds']:.0f} µs for each operation, "
        "assumed.",
        "",
        _table(rows, ["Model", "Method", *columns]),
    ]


def _sweep(found: dict[str, Any]) -> list[str]:
    rows, ratio = [], []
    for name, r in found["rows"].items():
        phases = r["phases"]
        work = sum(phases.get(p, 0.0) for p in ("train", "validate", "score"))
        measured = sum(phases.get(p, 0.0) for p in ("probe", "infer", "serve"))
        ratio.append(r["ours"] / r["plain"])
        rows.append(
            [
                name,
                f"{r['plain']:.0f} s",
                f"{r['ours']:.0f} s",
                f"{ratio[-1]:.2f}",
                f"{work:.1f} s",
                f"{measured:.1f} s",
                f"{r['ours'] - work - measured:.1f} s",
                f"{100 * r['plain_score']:.1f}",
                f"{100 * r['score']:.1f} ± {100 * r['stderr']:.1f}",
            ]
        )
    total = sum(r["plain"] for r in found["rows"].values())
    head = [
        "Cell",
        "Plain",
        "Ours",
        "Ours / plain",
        "Train, score",
        "Probe, inference",
        "Rest",
        "Plain score",
        "Our score",
    ]
    first, last = found["wholes"]
    return [
        _table(rows, head),
        "",
        f"Our sweep ran before and after the plain cells: {first:.0f} s and {last:.0f} s, with start and checks. The "
        f"plain cells took {total:.0f} s. Ratio: **{mean(found['wholes']) / total:.2f}**; median ratio of the cells: "
        f"{median(ratio):.2f}. Our seconds per cell are the mean of both runs. The plain way does not measure "
        "probe and inference.",
    ]


def _losses(found: dict[str, Any]) -> list[str]:
    def difference(row: dict[str, float], which: str) -> str:
        return f"{row[which] / row['plain'] - 1:+.2%}"

    rows = [
        [name, *(f"{r[when]:.4f}" for when in ("before", "plain", "ours")), difference(r, "ours"), difference(r, "own")]
        for name, r in found["rows"].items()
    ]
    return [
        f"Validation loss on 32 held-out answers of {found['text']} after {STEPS} steps of 4 sequences, computed "
        "in fp32 from the weights that each way trained. Last column: our loss in the precision of training, as "
        "records have it. bf16 also rounds the weights, and so hides small changes of them.",
        "",
        _table(rows, ["Method", "Before", "Plain", "Ours", "Difference", "In training's precision"]),
    ]


def _beside(found: dict[str, Any]) -> list[str]:
    rows = [
        [name, f"{r['plain']:.2f} s", f"{r['ours']:.2f} s", _ratio(r), str(r["pairs"])]
        for name, r in found["rows"].items()
    ]
    return [
        "One step of LoRA on SmolLM2-135M, 4 sequences of wordmath_short, in a cell of its own. By default, a thread "
        "that waits for others spins for milliseconds. Jobs let it sleep soon (`OMP_WAIT_POLICY=passive "
        "GOMP_SPINCOUNT=1000`), unless the environment sets a policy.",
        "",
        _table(rows, ["This machine", "They spin", "They sleep", "Faster", "Pairs"]),
    ]


RENDERED: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "training": _training,
    "trainer": _trainer,
    "mmlu": functools.partial(_scored, "5 shots, 10 questions per subject, 2 subjects per pair"),
    "gsm8k": functools.partial(_scored, "5 shots, 8 questions per pair"),
    "sweep": _sweep,
    "losses": _losses,
    "beside": _beside,
    "agreement": _agreement,
    "launches": _launches,
}
