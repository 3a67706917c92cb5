"""Writes a model of the Llama or Qwen3 family, and its byte-level tokenizer, as GGUF with llama.cpp's `gguf` package.

Names, keys and the order of rows are those of llama.cpp's convert_hf_to_gguf.py, which is in no package of its makers.
What that script knows and this file does not is refused, with the script's command.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from harness.errors import UserError

ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen3": gguf.MODEL_ARCH.QWEN3}  # by config.model_type
CONVERTER = (
    "llama.cpp's converter knows more: export --to merged, then `python convert_hf_to_gguf.py DIR --outfile FILE.gguf` "
    "from https://github.com/ggml-org/llama.cpp"
)
KINDS = {torch.float32: Kind.F32, torch.float16: Kind.F16, torch.bfloat16: Kind.BF16}
FILE_TYPES = {
    torch.float32: gguf.LlamaFileType.ALL_F32,
    torch.float16: gguf.LlamaFileType.MOSTLY_F16,
    torch.bfloat16: gguf.LlamaFileType.MOSTLY_BF16,
}

# How a text is cut before merges, as `tokenizers` describes it, and llama.cpp's name for it (src/llama-vocab.cpp).
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CUTS = {
    ("bytes by words",): "gpt-2",
    ("digits", "bytes by words"): "smollm",
    (_WORDS % "{1,3}", "bytes"): "llama-bpe",
    (_WORDS % "", "bytes"): "qwen2",
}
WHOLE_WORDS = ("llama-bpe",)  # llama.cpp takes words of the vocabulary whole here, and merges everywhere else


def check(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError if `write` has no GGUF for such a model or such a tokenizer."""
    if config.model_type not in ARCHITECTURES:
        raise UserError(f"GGUF of the architecture {config.model_type} can't be written here. {CONVERTER}.")
    rope = config.rope_parameters["rope_type"]
    if rope not in ("default", "llama3") or getattr(config, "use_sliding_window", False) or config.hidden_act != "silu":
        raise UserError(
            f"GGUF of a {config.model_type} with rope_type={rope}, hidden_act={config.hidden_act} or a sliding window "
            f"can't be written here. {CONVERTER}."
        )
    _required_cut(tokenizer)


def _required_cut(tokenizer: PreTrainedTokenizerBase) -> str:
    """As `cut`. Raises UserError for other tokenizers."""
    name = cut(tokenizer)
    if name is None:
        raise UserError(f"GGUF of this model's tokenizer can't be written here. {CONVERTER}.")
    return name


def cut(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """llama.cpp's name of how a byte-level BPE tokenizer cuts texts; None for any other tokenizer."""
    if not tokenizer.is_fast:
        return None
    told = json.loads(tokenizer.backend_tokenizer.to_str())
    model, before, normal = told["model"], told["pre_tokenizer"], told["normalizer"]
    if model["type"] != "BPE" or model["byte_fallback"] or before is None:
        return None
    steps = before["pretokenizers"] if before["type"] == "Sequence" else [before]
    name = CUTS.get(tuple(map(_step, steps)))
    normalised = normal is not None and normal["type"] != "NFC"  # texts are mostly in NFC; llama.cpp takes them as such
    return None if normalised or model["ignore_merges"] is not (name in WHOLE_WORDS) else name


def _step(told: dict[str, Any]) -> str:
    if told["type"] == "ByteLevel" and not told["add_prefix_space"]:
        return "bytes by words" if told["use_regex"] else "bytes"
    if told["type"] == "Digits" and told["individual_digits"]:
        return "digits"
    if told["type"] == "Split" and told["behavior"] == "Isolated" and not told["invert"]:
        return told["pattern"].get("Regex", "")
    return ""


def write(model: Path, name: str, out: Path) -> None:
    """Write the model in the folder `model`, for which `check` holds, to the file `out`, in the dtype of its matrices.

    name: what GGUF calls it. Raises OSError.
    """
    config, tokenizer = AutoConfig.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    family = ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(out, gguf.MODEL_ARCH_NAMES[family])
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_file_type(FILE_TYPES[_dtype(model)])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_shape(writer, config)
    _add_vocabulary(writer, model, tokenizer, config.vocab_size)
    for told, array, kind in _tensors(model, config):
        writer.add_tensor_info(told, array.shape, np.dtype(np.float32), gguf_bytes(array.shape, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for _, array, kind in _tensors(model, config):  # read again, so that there is never more than one in memory
        writer.write_tensor_data(gguf.quants.quantize(array, kind))
    writer.close()


def gguf_bytes(shape: tuple[int, ...], kind: Kind) -> int:
    """Bytes of a tensor in GGUF."""
    values, size = gguf.GGML_QUANT_SIZES[kind]
    return math.prod(shape) // values * size


def _add_shape(writer: gguf.GGUFWriter, config: PretrainedConfig) -> None:
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _add_vocabulary(writer: gguf.GGUFWriter, model: Path, tokenizer: PreTrainedTokenizerBase, size: int) -> None:
    """size: rows of the embedding, of which some may have no token."""
    by_id = {number: token for token, number in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    tokens, types = [], []
    for number in range(size):
        if number not in by_id:
            types.append(gguf.TokenType.UNUSED)
        elif number in added:
            types.append(gguf.TokenType.CONTROL if added[number].special else gguf.TokenType.USER_DEFINED)
        else:
            types.append(gguf.TokenType.NORMAL)
        tokens.append(by_id.get(number, f"[PAD{number}]"))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_required_cut(tokenizer))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    special = gguf.SpecialVocab(model, load_merges=True, n_vocab=size)
    ids = tokenizer("x")["input_ids"]
    special.add_special_token = {"bos": ids[0] == tokenizer.bos_token_id, "eos": ids[-1] == tokenizer.eos_token_id}
    special.add_to_gguf(writer, quiet=True)


def _tensors(model: Path, config: PretrainedConfig) -> Iterator[tuple[str, np.ndarray, Kind]]:
    """GGUF's name, the values in fp32, and how they are to be stored; matrices as they are, vectors in fp32."""
    names = gguf.get_tensor_name_map(ARCHITECTURES[config.model_type], config.num_hidden_layers)
    if config.rope_parameters["rope_type"] == "llama3":
        yield "rope_freqs.weight", _llama3_factors(config), Kind.F32
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            for key in weights.keys():  # noqa: SIM118, it is no dict
                value = weights.get_tensor(key)
                kind = KINDS[value.dtype] if value.ndim > 1 else Kind.F32
                if config.model_type == "llama" and ".self_attn." in key:
                    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
                    value = _interleaved(value, heads.get(key.split(".")[-2]))
                name = names.get_name(key, try_suffixes=(".weight", ".bias"))
                if name is None:
                    raise UserError(f"GGUF has no name for the weight {key}. {CONVERTER}.")
                yield name, value.float().numpy(), kind


def _interleaved(value: torch.Tensor, heads: int | None) -> torch.Tensor:
    """Rows of queries or keys, in the order in which llama.cpp rotates them: pairs side by side, not in two halves."""
    if heads is None:
        return value
    halves = value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:])
    return halves.transpose(1, 2).reshape(value.shape).contiguous()


def _llama3_factors(config: PretrainedConfig) -> np.ndarray:
    """By how much each frequency of Llama 3's rotary embedding is divided, shape [head / 2].

    As ``_compute_llama3_parameters`` in transformers/modeling_rope_utils.py.
    """
    rope = config.rope_parameters
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    waves = 2 * math.pi * rope["rope_theta"] ** (np.arange(0, head, 2) / head)
    turns = rope["original_max_position_embeddings"] / waves
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    share = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - share) / rope["factor"] + share)).astype(np.float32)


def _dtype(model: Path) -> torch.dtype:
    """The dtype of the first matrix."""
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, "pt") as weights:
            for key in weights.keys():  # noqa: SIM118
                if (value := weights.get_tensor(key)).ndim > 1:
                    return value.dtype
    raise UserError(f"{model} has no matrices.")
