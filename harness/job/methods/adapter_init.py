"""Adapter initialisers that need training data or the weights' files: the functions of a method's slot `init`.

Each function takes the base model, the adapter's config and training batches (`adapting.Samples`), and returns the
adapted model. Its seconds and memory count in the phase `load`.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import peft
import torch
from huggingface_hub import snapshot_download
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.lora.loraga import preprocess_loraga
from peft.tuners.tuners_utils import _maybe_include_all_linear_layers
from peft.utils.integrations import dequantize_module_weight
from peft.utils.loftq_utils import _SafetensorLoader
from peft.utils.other import transpose
from torch import Tensor
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from harness.errors import UserError
from harness.job.models.adapting import Samples
from harness.job.training import loop

GRADIENT = "_peft_loraga_grad"  # where peft keeps that of a layer's weight


def eva(base: PreTrainedModel, config: peft.LoraConfig, samples: Samples, batch: int, batches: int) -> peft.PeftModel:
    """A: leading right singular vectors of each layer's inputs (Paischer et al. 2024, arXiv:2410.07170); B: zeros.

    batch: sequences of a batch, which needs more tokens than the rank. batches: repeated until the vectors converge.
    Raises UserError if no batch has that many: peft would repeat them for ever.
    """
    net = peft.get_peft_model(base, config)
    examples = [*islice(samples(batch), batches)]
    assert config.eva_config is not None  # as the method's file has it
    tokens, needed = max(each.raw for each in examples), round(config.r * config.eva_config.rho)
    if tokens < needed:
        raise UserError(
            f"method.init.batch must give a batch of at least {needed} tokens for rank={config.r}, got {tokens} tokens "
            f"in the longest of method.init.batch={batch}; raise it."
        )
    inputs = [{"input_ids": each.input_ids, "attention_mask": each.attention_mask} for each in examples]
    peft.initialize_lora_eva_weights(net, inputs, show_progress_bar=False)
    return net


def corda(base: PreTrainedModel, config: peft.LoraConfig, samples: Samples, sequences: int) -> peft.PeftModel:
    """A and B: the components of the weights that matter most to `sequences` examples (arXiv:2406.05223)."""
    config = _everywhere(config, base)

    def run() -> None:
        for batch in islice(samples(1), sequences):  # one at a time: padding would count as input
            base(input_ids=batch.input_ids, use_cache=False)

    preprocess_corda(base, config, run)
    return peft.get_peft_model(base, config)


def _everywhere(config: peft.LoraConfig, base: PreTrainedModel) -> peft.LoraConfig:
    """`config` with the names of all linear layers of `base` in place of `all-linear`."""
    named = _maybe_include_all_linear_layers(config, base)
    assert isinstance(named, peft.LoraConfig)  # peft keeps the kind of config
    return named


def lora_ga(
    base: PreTrainedModel, config: peft.LoraConfig, samples: Samples, batch: int, batches: int
) -> peft.PeftModel:
    """A and B: leading singular vectors of the weights' gradients, all of one length (Wang et al. 2024,
    arXiv:2407.05000, algorithm 1).

    Gradients are the mean over `batches` of `batch` sequences, and are held for all targets at once for a moment. peft
    computes them, but its own start has another length: it leaves A's vectors at 1 and multiplies B's by the gradient's
    singular values, so that B is almost zero.
    """
    config = _everywhere(config, base)
    settings = config.lora_ga_config
    assert settings is not None  # as the method's file has it
    if (settings.direction, settings.scale) != ("ArB2r", "stable"):
        raise ValueError("method.adapt.lora_ga_config takes no direction and no scale but its defaults")

    def run() -> None:
        for each in islice(samples(batch), batches):
            (loop.summed_loss(base, each) / each.supervised).backward()

    preprocess_loraga(base, config, run)
    gradients = {layer: vars(layer).pop(GRADIENT) for layer in base.modules() if GRADIENT in vars(layer)}
    net = peft.get_peft_model(base, config)  # without gradients it takes LoRA's own start
    for layer in net.modules():
        if isinstance(layer, LoraLayer) and (gradient := gradients.pop(layer.get_base_layer(), None)) is not None:
            _start_along(gradient, layer, config.r, settings.stable_gamma)
    return net


@torch.no_grad()
def _start_along(gradient: Tensor, layer: LoraLayer, rank: int, gamma: int) -> None:
    """Give `layer` A and B along its weight's `gradient`, and take their product from the weight."""
    transposed = isinstance(layer.get_base_layer(), Conv1D)  # as in GPT-2, whose weights are (in, out)
    left, _, right = torch.svd_lowrank(
        transpose(gradient.float(), transposed), q=min(4 * rank, *gradient.shape), niter=4
    )
    length = len(left) ** 0.25 / gamma**0.5
    a, b = length * right[:, :rank].T, length * left[:, rank : 2 * rank]
    layer.lora_A["default"].get_parameter("weight").copy_(a)
    layer.lora_B["default"].get_parameter("weight").copy_(b)
    weight = layer.get_base_layer().get_parameter("weight")
    weight.copy_(weight.float() - transpose(layer.scaling["default"] * b @ a, transposed))


@torch.no_grad()
def cartridge(base: PreTrainedModel, config: peft.CartridgeConfig, samples: Samples) -> peft.PeftModel:
    """Keys and values: those of the first tokens of the training data (Eyuboglu et al. 2025, arXiv:2506.06266).

    Raises UserError if the data have fewer tokens than the adapter.
    """
    net, count = peft.get_peft_model(base, config), config.num_virtual_tokens
    row = torch.cat([batch.input_ids for batch in islice(samples(1), count)], dim=1)[:, :count]
    if row.shape[1] < count:
        raise UserError(
            f"method=cartridge starts from {count} tokens of the training data, which have {row.shape[1]}; lower "
            "method.knobs.tokens."
        )
    cache = base(input_ids=row, use_cache=True).past_key_values
    peft.initialize_kv_prefix_from_past_key_values(net, past_key_values=cache)
    return net


def loftq(base: PreTrainedModel, config: peft.LoraConfig, _samples: Samples) -> peft.PeftModel:
    """A and B: the leading part of the weights' quantisation error (Li et al. 2023, arXiv:2310.08659), one step.

    The original weights are read from the model's safetensors of the same revision, matrix by matrix. peft's function
    for this is correct for alpha = r only, and requires CUDA.
    """
    net = peft.get_peft_model(base, config)
    place = base.config._name_or_path
    if not Path(place).is_dir():
        place = snapshot_download(place, revision=base.config._commit_hash, local_files_only=True)
    whole = _SafetensorLoader(net, place)
    for name, layer in net.get_base_model().named_modules():
        if isinstance(layer, LoraLayer):
            quantised = dequantize_module_weight(layer.get_base_layer()).float()
            weight = whole.get_tensor(f"{name}.weight").to(quantised)
            if getattr(layer.get_base_layer(), "source_cls", None) is Conv1D:  # as in GPT-2, whose files have (in, out)
                weight = weight.T
            left, sizes, right = torch.linalg.svd(weight - quantised, False)
            halves = (sizes[: config.r] / layer.scaling["default"]).sqrt()
            layer.lora_A["default"].get_parameter("weight").data.copy_(halves[:, None] * right[: config.r])
            layer.lora_B["default"].get_parameter("weight").data.copy_(left[:, : config.r] * halves)
    return net
