"""Published training speeds, which the estimate of time is developed with and checked against.

The rows are split by source, and the split was committed before a constant was chosen: constants come from DEVELOP
alone, CHECK is looked at afterwards. A row that can't be compared is left out, with a reason that the page shows.

Their programs are not ours. The cell predicted is ours with their model, method, batch and precision; what else their
program does is in ENGINES: whether it fuses kernels, and what its host takes to begin one.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.sweep.estimates import rates

DEVELOP = (
    "Surogate benchmarks",  # H100, H200, B200, RTX 5090: its own engine, and unsloth by the same authors
    "foundation-model-stack/fms-acceleration",  # A100: transformers' Trainer, with and without fused kernels
)
CHECK = (
    "torchtune README",  # RTX 4090, RTX A6000: its own engine, compiled
    "NeMo AutoModel performance summary",  # H100: its own engine with TransformerEngine
    "huggingface/peft",  # L40S: a plain loop over peft's models
    "Megatron-Bridge performance archive",  # several GPUs
)
FUSED_LAUNCH = 40e-6  # seconds of a host that begins fused kernels from Python: unsloth's 0.6B and 1.7B on four cards
NATIVE_LAUNCH = 5e-6  # of one that begins them from C++ or from compiled code
QKVO = "method.adapt.target_modules=[q_proj,k_proj,v_proj,o_proj]"
QV = "method.adapt.target_modules=[q_proj,v_proj]"
MLP = "method.adapt.target_modules=[gate_proj,up_proj,down_proj]"
QV_MLP = "method.adapt.target_modules=[q_proj,v_proj,gate_proj,up_proj,down_proj]"
QVO_MLP = "method.adapt.target_modules=[q_proj,v_proj,o_proj,gate_proj,up_proj,down_proj]"
FMS = "foundation-model-stack/fms-acceleration scripts/benchmarks/refs/a100_80gb.csv"
QWEN_2_5_7B = {  # from its config
    "model_type": "qwen2",
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
}
CARDS = {"H100": "h100", "1xH100": "h100", "H200": "h200", "B200": "b200", "RTX 5090": "rtx_5090"}
CARDS |= {"RTX 4090": "rtx_4090", "RTX A6000": "rtx_a6000"}
MODELS = {f"Qwen3-{size}": f"qwen3_{size.replace('.', '_').lower()}" for size in ("0.6B", "1.7B", "4B", "8B", "14B")}
MODELS |= {"Qwen3-32B": "qwen3_32b", "Llama-3.1-8B": "llama_3_1_8b", "Llama-3-8B": "llama_3_8b"}
MODELS |= {"Qwen2.5-7B": "qwen3_8b"}  # with the dimensions above


@dataclass(frozen=True)
class Engine:
    """How a program runs its operations. fused: whether neighbouring operations on single numbers are one kernel.

    launch: seconds in which its host begins an operation, or a fused kernel.
    """

    fused: bool
    launch: float


ENGINES = {
    "plain": Engine(False, rates.LAUNCH),  # transformers and peft as they are, as this harness without train.compile
    "unsloth": Engine(True, FUSED_LAUNCH),
    "fused kernels": Engine(True, FUSED_LAUNCH),  # fms-acceleration's, of unsloth's origin
    "surogate": Engine(True, NATIVE_LAUNCH),
    "torchtune": Engine(True, NATIVE_LAUNCH),
    "NeMo": Engine(True, NATIVE_LAUNCH),
}
# Of fms-acceleration's rows, by method and notes: the engine, and what makes our cell the same.
FMS_ROWS = {
    ("full", "plain Trainer"): ("plain", ["method=full_bf16"]),
    ("full", "foak-fast-kernels (fused kernels)"): ("fused kernels", ["method=full_bf16"]),
    ("lora", "plain Trainer"): ("plain", ["method=lora", "rank=16", QKVO]),
    ("lora", "foak-fast-kernels (fused kernels)"): ("fused kernels", ["method=lora", "rank=16", QKVO]),
    ("qlora", "NF4, peft.prepare_model_for_kbit_training upcasts"): (
        "plain",
        ["method=qlora", "rank=16", QKVO, "model.upcast=true"],
    ),
    ("qlora", "NF4, no upcasts"): ("plain", ["method=qlora", "rank=16", QKVO]),
    ("qlora", "accelerated-peft-bnb-foak (fused kernels)"): ("fused kernels", ["method=qlora", "rank=16", QKVO]),
}
# Of torchtune's table of one technique after another, on an A100: the engine, and what makes our cell the same.
TUNE_3B = {
    "cumulative: + packed rows": ("plain", ["method=full_bf16"]),
    "cumulative: + compile": ("torchtune", ["method=full_bf16"]),
    "cumulative: + chunked cross-entropy": ("torchtune", ["method=full_bf16"]),
    "cumulative: + gradient checkpointing": ("torchtune", ["method=full_bf16"]),
    "all of the above": ("torchtune", ["rank=64", QV_MLP]),
}
PEFT_FILES = {  # by file: the method as a reader knows it, and what makes our cell the same
    "lora--llama-3.2-3B-rank32": ("lora", ["method=lora", "rank=32", QV]),
    "lora--llama-3.2-3B-rank32-dora": ("dora", ["method=dora", "rank=32", QV]),
    "lora--llama-3.2-3B-rank10-target-mlp": ("lora on the MLP", ["method=lora", "rank=10", MLP]),
}


@dataclass(frozen=True)
class PublishedRow:
    """A published run that can be compared: its tokens/s, and the overrides of our cell."""

    source: str
    card: str
    model: str
    method: str
    engine: str
    settings: str
    published: float
    overrides: list[str] = field(repr=False)
    architecture: dict[str, Any] | None = None


@dataclass(frozen=True)
class LeftOut:
    """A published run that can't be compared, and why."""

    source: str
    run: str
    reason: str


def rows(root: Path) -> Iterator[PublishedRow | LeftOut]:
    """All published runs below `root`, which holds published_speed, published_memory and peft_results."""
    with (root / "published_speed" / "rows.csv").open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            yield _speed_row(row)
    yield from _fms(root / "published_memory" / "training_memory.csv")
    yield from _torchtune_3b(root / "published_memory" / "training_memory.csv")
    yield from _peft(root / "peft_results")


def _speed_row(row: dict[str, str]) -> PublishedRow | LeftOut:
    source = next((s for s in (*DEVELOP, *CHECK) if row["source"].startswith(s)), row["source"])
    if (reason := _unlike(row, source)) is not None:
        return LeftOut(source, f"{row['gpu']} {row['model']} {row['method']}".strip(), reason)
    method, engine = row["method"].split()[0], _engine(row, source)
    steps = {"Surogate benchmarks": 4, "NeMo AutoModel performance summary": 16}.get(source, 1)
    again = source != "NeMo AutoModel performance summary"
    overrides = [
        f"model={MODELS[row['model']]}",
        f"method={method}",
        f"rank={row['rank']}",
        f"train.batch_size={row['batch']}",
        f"train.max_length={row['seq_len']}",
        f"train.grad_accum={steps}",
        f"train.gradient_checkpointing={str(again).lower()}",
        *([QVO_MLP] if row["targets"] == "q,v,o+mlp" else []),
    ]
    settings = f"{row['batch']} × {row['seq_len']} tokens{', checkpointing' * again}"
    of = QWEN_2_5_7B if row["model"] == "Qwen2.5-7B" else None
    speed = float(row["tokens_per_s"])
    return PublishedRow(source, CARDS[row["gpu"]], row["model"], method, engine, settings, speed, overrides, of)


def _engine(row: dict[str, str], source: str) -> str:
    if source == "Surogate benchmarks":
        return row["method"].split()[1]
    return "torchtune" if source == "torchtune README" else "NeMo"


def _unlike(row: dict[str, str], source: str) -> str | None:
    """Why a row can't be compared."""
    if not row["tokens_per_s"]:
        return "it has no speed"
    if source == "Megatron-Bridge performance archive" or (row["gpu"][0].isdigit() and row["gpu"][0] != "1"):
        return "several GPUs, and what they send each other is not estimated"
    if "fp8" in row["method"]:
        return "its products are in fp8"
    if source == "torchtune README" and row["method"] == "full":
        return "its optimizer's states are on the host by a guess, and what that moves is not published"
    return None


def _fms(path: Path) -> Iterator[PublishedRow]:
    with path.open(encoding="utf-8") as file:
        found = [row for row in csv.DictReader(file) if row["source"] == FMS and "Mistral-7B" in row["model"]]
    for row in found:
        if (of := FMS_ROWS.get((row["method"], row["notes"]))) is not None and row["tokens_per_second"]:
            engine, overrides = of
            shape = [f"train.batch_size={row['micro_batch']}", "train.max_length=4096", "model=mistral_7b"]
            shape += ["train.gradient_checkpointing=true"]
            about = f"{row['micro_batch']} × 4096 tokens, checkpointing, {row['notes']}"
            speed = float(row["tokens_per_second"])
            yield PublishedRow(
                FMS.partition(" ")[0], "a100_80", "Mistral-7B", row["method"], engine, about, speed, overrides + shape
            )


def _torchtune_3b(path: Path) -> Iterator[PublishedRow | LeftOut]:
    source = "torchtune README"
    with path.open(encoding="utf-8") as file:
        found = [row for row in csv.DictReader(file) if row["source"].startswith("pytorch/torchtune")]
    for row in found:
        if (of := TUNE_3B.get(row["notes"])) is None:
            why = "its rows' lengths are unknown" if "baseline" in row["notes"] else "no method here does the same"
            yield LeftOut(source, f"a100_80 Llama-3.2-3B {row['method']}, {row['notes']}", why)
            continue
        engine, overrides = of
        again = row["gradient_checkpointing"]
        overrides = [*overrides, *([] if row["method"] == "full" else [f"method={row['method']}"])]
        shape = [f"train.batch_size={row['micro_batch']}", f"train.max_length={row['tokens_per_row']}"]
        shape += ["model=llama_3_2_3b", f"train.gradient_checkpointing={again}"]
        about = f"{row['micro_batch']} × {row['tokens_per_row']} tokens, {row['notes']}"
        speed = float(row["tokens_per_second"])
        yield PublishedRow(source, "a100_80", "Llama-3.2-3B", row["method"], engine, about, speed, overrides + shape)


def _peft(folder: Path) -> Iterator[PublishedRow]:
    for name, (method, overrides) in PEFT_FILES.items():
        data = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        train, info = data["run_info"]["train_config"], data["train_info"]
        tokens = info["metrics"][-1]["train total tokens"]
        length = round(tokens / train["max_steps"] / train["batch_size"])
        shape = [f"train.batch_size={train['batch_size']}", f"train.max_length={length}", "model=llama_3_2_3b"]
        shape += ["train.gradient_checkpointing=false"]
        about = f"{train['batch_size']} × {length} tokens (mean, without padding)"
        speed = tokens / info["train_time"]
        yield PublishedRow("huggingface/peft", "l40s", "Llama-3.2-3B", method, "plain", about, speed, overrides + shape)
