"""The page of docs/ that shows published measurements beside their predictions; of the record alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tabulate import tabulate

from harness import units

NEAR = 0.05  # a difference that needs no reason
NO_REASON = "Not established."
# Of each source: what a reader must know of its figures, and where it is.
SOURCES = {
    "foundation-model-stack/fms-acceleration": (
        "`torch.cuda.max_memory_allocated` and what is allocated after training, to the byte. Rows of exactly 4,096 "
        "tokens, gradient checkpointing, FlashAttention 2, adapters in fp32 with dropout 0.1."
    ),
    "Lightning-AI/litgpt": (
        "`torch.cuda.max_memory_allocated` in 10⁹ bytes, three or four digits. Its configurations have micro-batches, "
        "ranks and targets where the data says `?`; Alpaca's longest sequences are cut at 512 tokens. No checkpointing."
        " Of QLoRA bitsandbytes 0.42 keeps the inputs of all products until the next step's logits replace its own: a "
        "prediction has those of two steps with the longest rows."
    ),
    "pytorch/torchtune": (
        "Peak of active bytes, in GiB with one decimal. Each row adds a technique to the one above; LoRA and QLoRA are "
        "of rank 64 on q, v, output and the MLP, as its configurations say."
    ),
    "modelscope/ms-swift": (
        "`torch.cuda.max_memory_reserved`, so with the allocator's fragments and unused blocks; a prediction is of "
        "allocated bytes, and a lower bound. One sequence of at most 2,048 tokens (its `tuner.json`)."
    ),
}


def page(rows: list[dict[str, Any]], reserved: Sequence[str] = ()) -> str:
    """The page in Markdown, of the record's comparisons. reserved: its section on reserved memory."""
    out = ["# The plan against published GPUs", ""]
    out += [
        "`plan` predicts memory by running the training step on tensors without storage. This page holds its",
        "instruments against what other projects measured on GPUs. For each of their programs the model's code, the",
        "loss, the optimizer and the order of frees were set to what its source does (`benchmarks/programs/`). No",
        "constant was fitted to a row.",
        "",
        "**No row here is made by `harness plan`.** Each runs a program that was written by hand after another",
        "trainer's source, with the plan's instruments. `harness plan` itself is compared with our own runs and with",
        "what PEFT published in [benchmarks/PLAN.md](../benchmarks/PLAN.md), and its times in",
        "[Cards and prices](cards.md). It takes models of transformers' own classes. Qwen-7B and santacoder come with",
        "code of their own, for older versions of transformers: `plan` can't predict them. The rows of Qwen-7B below",
        "are of a hand-written program alone.",
        "",
        "Made by `python benchmarks/plan.py published further --data-root ../shared/data --write`; the records are",
        "`published_memory.json` and `further_memory.json` in `benchmarks/measured`. The further rows, of one GPU and",
        "with a published figure, are in `further_published.csv` there, copied from the documents that are named.",
        "",
        *_summary(rows),
        "",
        *reserved,
    ]
    for source in dict.fromkeys(row["source"] for row in rows):
        name, _, document = source.partition(" ")
        out += [f"## {name}: {document}", ""]
        if name in SOURCES:
            out += [SOURCES[name], ""]
        out += [_table([row for row in rows if row["source"] == source]), ""]
    return "\n".join(out)


def _summary(rows: list[dict[str, Any]]) -> list[str]:
    resident = [row for row in rows if row["resident"] and row["predicted_resident"]]
    exact = [row for row in resident if abs(_off(row, "resident")) <= 0.01]
    predicted = [row for row in rows if row["predicted_peak"]]
    known = [row for row in predicted if not row["unknown"] and not _reserved(row)]
    near = [row for row in known if abs(_off(row, "peak")) <= NEAR]
    far = [row for row in predicted if abs(_off(row, "peak")) > 0.1]
    settled = [row for row in far if not row["unknown"]]
    unreasoned = [row for row in settled if not row["why"]]
    return [
        f"- Resident memory is within 1% for {len(exact)} of the {len(resident)} rows that publish it.",
        f"- The peak is within 5% for {len(near)} of the {len(known)} rows that publish allocated memory and whose "
        "settings are known.",
        f"- {len([row for row in predicted if _reserved(row)])} rows publish reserved memory, which is more.",
        f"- {len([row for row in rows if row['unknown']])} rows have unknown settings; {len(rows) - len(predicted)} of "
        "them have no prediction.",
        f"- {len(far)} predictions of the peak are more than 10% off: {len(far) - len(settled)} of rows with unknown "
        f"settings; of the other {len(settled)}, {len(unreasoned)} have no established reason.",
    ]


def _reserved(row: dict[str, Any]) -> bool:
    return row["source"].startswith("modelscope/ms-swift")


def _off(row: dict[str, Any], which: str) -> float:
    return row[f"predicted_{which}"] / row[which] - 1


def _table(rows: list[dict[str, Any]]) -> str:
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "model": lambda row: row["model"].partition("/")[2] or row["model"],
        "method": lambda row: row["method"],
        "settings": lambda row: row["settings"],
        "published peak": lambda row: units.size(row["peak"]),
        "predicted peak": lambda row: units.size(row["predicted_peak"]) if row["predicted_peak"] else "–",
        "difference": lambda row: f"{_off(row, 'peak'):+.2%}" if row["predicted_peak"] else "–",
    }
    if any(row["resident"] for row in rows):
        columns["published resident"] = lambda row: units.size(row["resident"]) if row["resident"] else "–"
        columns["resident difference"] = lambda row: (
            f"{_off(row, 'resident'):+.3%}" if row["resident"] and row["predicted_resident"] else "–"
        )
    columns["highest in"] = lambda row: row["part"] or "–"
    columns["remarks"] = _remarks
    return tabulate(
        [[cell(row) for cell in columns.values()] for row in rows], list(columns), "pipe", disable_numparse=True
    )


def _remarks(row: dict[str, Any]) -> str:
    if not row["predicted_peak"]:
        return f"No prediction: {row['unknown']}"
    parts = [f"Settings unknown: {row['unknown']}"] if row["unknown"] else []
    if abs(_off(row, "peak")) > NEAR and not row["unknown"]:
        parts.append(row["why"] or NO_REASON)
    return " ".join(parts)
