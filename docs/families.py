"""Writes the page of model families, `docs/families.md`: `python docs/families.py`.

Each family is a random model of two layers with the tokenizer of `model=tiny`. Each method runs on it from loading to
scores in this process, one training step long. What is refused, is refused before any weight is loaded.
"""

from __future__ import annotations

import functools
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import hydra
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSeq2SeqLM

from harness.config import CONF
from harness.errors import UserError
from harness.job.models import embedded, empty_weights, loading, targets
from harness.job.run_cell import run_cell
from harness.protocol import RunCell
from harness.record import Cell, Record
from harness.sweep import app
from harness.sweep.cells import from_config

HEAD = """\
# Model families

Made by `python docs/families.py` with random models of two layers: each method runs on each family in bf16, from
loading to the scores of options and of written answers. A test holds this page. *yes*: the cell ends as `ok`. *no*: it
is refused before any weight is loaded, with the sentence below. These are not measurements of quality, speed or memory.

"""
FOOT = """
## What adapters are on

`target_modules: all-linear`, the default, means the layers in the last column. They are all linear layers, except:

- the head, and gates with a single output;
- **experts**. A decoder layer's part that holds experts is left as it is, with the dense and shared MLPs at the same
  place, whose names peft takes for those of the experts. The sweep says so before it starts, and the record in
  `environment.left_out`. To adapt experts too:
  `'+method.adapt.target_parameters=[experts.down_proj,experts.gate_up_proj]'` (LoRA in 16 bits; peft has no DoRA of
  them, and does not adapt packed ones);
- **Mamba blocks** but for `in_proj`: CUDA's kernels read the weights of the others without calling the layer, so that
  an adapter would not be trained;
- **vision towers** and all else that text does not pass through. They are frozen for every method, also where
  `target_modules` lists names that they share.

`'method.adapt.target_modules=[q_proj,v_proj]'` chooses others by name.

## Experts

- `full` trains them.
- `galore` (also `galore_rsvd`, `galore_layer`, `galore_bf16`) projects the gradient of each expert by itself.
  `galore_8bit`, `muon` and `apollo` refuse them.
- `qlora`, `qdora` and `base_nf4` pack them in 4 bits with bitsandbytes, and dequantise a layer's experts while it
  computes. They are loaded in 16 bits first, which `plan` counts (`no: load`). Methods on a base of
  8 bits (`lora_8bit`, `lora_int8wo`, `lora_fp8wo`, and their untuned models) refuse them.
- Sharded over several devices (`train.parallel=fsdp`), `qlora` and `galore` refuse them; `lora` and `full` do not.

## Images

Only text is trained and scored. A multimodal model is loaded whole, and its language model is tuned. Data with images
are [refused](your-data.md).
"""
TARGET = Path(__file__).with_name("families.md")
METHODS = ("base", "full", "lora", "qlora", "dora", "galore")
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 1024,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
    "initializer_range": 0.2,  # at their small initial weights the layers hardly matter
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
WINDOWED = {"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"]}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
}
MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LOCAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
LATENT = {
    **{"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 2, "topk_group": 1},
    **{"first_k_dense_replace": 1, "num_key_value_heads": 4},
    **{"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8},
}
STATES = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 16}
SIGLIP = {
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4},
    **{"image_size": 28, "patch_size": 14},
}
QWEN_VISION = {"hidden_size": 32, "intermediate_size": 48, "depth": 1, "num_heads": 4, "out_hidden_size": 32}
SECTIONS = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}


@dataclass(frozen=True)
class Family:
    """A family of models, by one of its architectures.

    kind: its ``model_type`` in transformers. settings: of its config, beside SIZES. nested: whether SIZES and GROUPED
    are those of its ``text_config``.
    """

    name: str
    kind: str
    settings: dict[str, Any] = field(default_factory=dict)
    text: dict[str, Any] | None = None

    def config(self) -> Any:
        """Its config, as transformers builds it."""
        if self.text is None:
            return AutoConfig.for_model(self.kind, **SIZES, **self.settings)
        return AutoConfig.for_model(self.kind, text_config=SIZES | self.text, **self.settings)


FAMILIES = (
    Family("Llama", "llama", GROUPED),
    Family("Qwen3", "qwen3", GROUPED | {"tie_word_embeddings": True}),
    Family("Qwen3-MoE", "qwen3_moe", GROUPED | MIXTURE),
    Family("Qwen3-Next", "qwen3_next", GROUPED | MIXTURE | LINEAR | {"shared_expert_intermediate_size": 32}),
    Family("Qwen3.5", "qwen3_5", {"vision_config": QWEN_VISION}, GROUPED | LINEAR),
    Family("Mixtral", "mixtral", GROUPED | LOCAL),
    Family("gpt-oss", "gpt_oss", GROUPED | LOCAL | WINDOWED),
    Family("Gemma 3, text", "gemma3_text", GROUPED | WINDOWED),
    Family("Gemma 3, multimodal", "gemma3", {"vision_config": SIGLIP, "mm_tokens_per_image": 4}, GROUPED | WINDOWED),
    Family("Phi-4", "phi3", {"num_key_value_heads": 2}),
    Family("Granite", "granite", {"num_key_value_heads": 2}),
    Family(
        "Granite 4 hybrid",
        "granitemoehybrid",
        {
            "num_key_value_heads": 2,
            **LOCAL,
            **STATES,
            "shared_intermediate_size": 32,
            "layer_types": ["mamba", "attention"],
        },
    ),
    Family("OLMo 2", "olmo2", {"num_key_value_heads": 2}),
    Family("SmolLM3", "smollm3", {"num_key_value_heads": 2}),
    Family("GPT-2", "gpt2"),
    Family("DeepSeek-V3", "deepseek_v3", LATENT),
    Family("GLM-4", "glm4", GROUPED),
    Family("Mamba 2", "mamba2", {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 16}),
    Family("Falcon-H1", "falcon_h1", {"num_key_value_heads": 2, **STATES, "mamba_d_ssm": 64}),
    Family("Qwen2.5-VL", "qwen2_5_vl", {"vision_config": QWEN_VISION}, GROUPED | SECTIONS),
    Family("Qwen3-VL", "qwen3_vl", {"vision_config": QWEN_VISION}, GROUPED | SECTIONS),
    Family("T5", "t5", {"d_kv": 8, "d_ff": 48}),
)

OVERRIDES = (
    *("model=tiny", "rank=4", "train.precision=bf16", "train.max_steps=1", "train.batch_size=2"),
    *("train.validation_items=2", "+data.load.train=32", "+data.load.validation=4"),
    *("eval.tasks=[facts,wordmath_short]", "eval.limit=2"),
    *("infer.repeats=1", "infer.prompt_tokens=4", "infer.new_tokens=2"),
)


def built(family: Family, folder: Path) -> Path:
    """A random model of `family` in `folder`, as its own files on the hub have it, with the tokenizer of `tiny`."""
    torch.manual_seed(0)
    config = family.config()
    kinds = (AutoModelForImageTextToText, AutoModelForCausalLM, AutoModelForSeq2SeqLM)
    kind = next(kind for kind in kinds if type(config) in kind._model_mapping)
    kind.from_config(config).save_pretrained(folder)
    for file in embedded.folder("tiny").glob("*token*"):
        shutil.copy(file, folder)
    return folder


@functools.cache
def composed(method: str) -> Cell:
    """The cell of `method` on the model `tiny`."""
    app.register()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return from_config(hydra.compose("config", [*OVERRIDES, f"method={method}"]))


def cell_of(model: Path, method: str) -> Cell:
    """The cell of `method` on the model in the folder `model`."""
    cell = composed(method)
    return replace(cell, settings=replace(cell.settings, model=replace(cell.settings.model, path=str(model))))


def outcome(model: Path, method: str, out: Path) -> Record | UserError:
    """What running `method` on the model in the folder `model` leads to."""
    cell = cell_of(model, method)
    try:
        return run_cell(RunCell(cell, "families", str(out / f"{cell.name}.json")), lambda event: None)
    except UserError as error:
        return error


@dataclass(frozen=True)
class Row:
    """A family's row of the table.

    results: yes, no, or how it failed, by method. reasons: of those that are no, with the methods. adapted: the last
    parts of the names of the layers that adapters are on.
    """

    family: Family
    results: dict[str, str]
    reasons: dict[str, list[str]]
    adapted: str


def row(family: Family, folder: Path) -> Row:
    """Run each method on a model of `family`, which is built in `folder`."""
    model = built(family, folder / "model")
    results, reasons = {}, dict[str, list[str]]()
    for method in METHODS:
        out = folder / method
        out.mkdir()
        end = outcome(model, method, out)
        if isinstance(end, Record):
            results[method] = "yes" if end.status == "ok" else f"{end.status}: {end.failure and end.failure.reason}"
        else:
            results[method] = "no"
            reasons.setdefault(str(end).replace(str(model), "The model"), []).append(method)
    return Row(family, results, reasons, adapted(model) if results["lora"] == "yes" else "")


def adapted(model: Path) -> str:
    """The layers that LoRA adapts in the model in the folder `model`, as a list of code."""
    cell = cell_of(model, "lora")
    net = empty_weights.shell(cell, loading.config_of(cell.settings.model))[0]
    names = [name for name, layer in net.named_modules() if isinstance(layer, BaseTunerLayer)]
    return " ".join(f"`{leaf}`" for leaf in targets.leaves(names).split(","))


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown, with the reasons below."""
    lines = [["Family", "`model_type`", *(f"`{method}`" for method in METHODS), "Adapters on"]]
    lines.append(["---"] * len(lines[0]))
    lines += [[r.family.name, f"`{r.family.kind}`", *(r.results[m] for m in METHODS), r.adapted] for r in rows]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    notes = [
        f"- {r.family.name}, {', '.join(f'`{method}`' for method in methods)}: {reason}\n"
        for r in rows
        for reason, methods in r.reasons.items()
    ]
    return text + "".join(["\nRefused:\n\n", *notes] if notes else [])


def page(families: Sequence[Family] = FAMILIES) -> str:
    """The page, from a run of each pair."""
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for number, family in enumerate(families):
            own = Path(folder) / str(number)
            own.mkdir()
            rows.append(row(family, own))
    return HEAD + table(rows) + FOOT


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    TARGET.write_text(page(), encoding="utf-8")
