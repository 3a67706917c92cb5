"""Loads a cell's base weights and tokenizer, and changes the model as its method says (slots `load` and `adapt`)."""

from __future__ import annotations

import copy
import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import peft
import torch
from bitsandbytes.functional import QuantState
from bitsandbytes.nn import Int8Params, Linear4bit, Linear8bitLt, Params4bit
from huggingface_hub import hf_hub_download
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from peft.tuners.lora.layer import ParamWrapper
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parallel import DistributedDataParallel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.quantizers import AutoHfQuantizer

from harness import redact
from harness.config import ADAMW
from harness.errors import UserError
from harness.job.data.encoding import Batch
from harness.job.measure import device
from harness.job.methods import optimizers
from harness.job.models import embedded, hub
from harness.record import Cell


class NeedsValues(Exception):
    """A method looks at the weights' values, and so can't be applied to a model that has none."""


Samples = Callable[[int], Iterator[Batch]]  # training batches of so many sequences, padded, in the order of training


def source(model: dict[str, Any]) -> str:
    """What ``from_pretrained`` is given for the settings `model`: a folder, or a hub id."""
    kind, _, name = model["path"].partition(":")
    if kind == "embedded":
        return str(embedded.folder(name))
    if not Path(model["path"]).is_dir():
        hub.settle()
    return model["path"]


def tokenizer(model: dict[str, Any]) -> PreTrainedTokenizerBase:
    """The tokenizer of the settings `model`, which pads and ends texts; UserError if it can't, or is out of reach."""
    path = source(model)
    try:
        found = AutoTokenizer.from_pretrained(path, **which(model))
    except (OSError, ValueError) as error:
        raise _unreachable(path, error) from error
    if found.eos_token_id is None:
        raise UserError(
            f"The tokenizer of {model['path']} has no end-of-text token, which ends answers and pads where no other "
            "token does; name one as eos_token in its tokenizer_config.json."
        )
    if found.pad_token_id is None:
        found.pad_token = found.eos_token  # masked wherever it pads, so it can't be learned
    return found


def load(cell: Cell, on: torch.device) -> PreTrainedModel:
    """The base model on the device `on`, loaded by the method's `load` slot.

    Raises UserError if the model is missing, gated or out of reach.
    """
    model = cell.settings["model"]
    path = source(model)
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            path,
            device_map={"": on},
            use_safetensors=model.get("use_safetensors", True),
            **_loading(cell),
            **which(model),
        )
    except OSError as error:
        raise _unreachable(path, error) from error
    _never_repack(loaded)
    _cap(loaded)
    if model.get("upcast"):
        upcast(loaded)
    return loaded


def _cap(net: PreTrainedModel) -> None:
    """Have `net` cap its attention's logits, if that is its way (Gemma 2): by sdpa transformers 5.17 does not."""
    if getattr(net.config, "attn_logit_softcapping", None) is not None:
        net.set_attn_implementation("eager")


def upcast(net: nn.Module) -> None:
    """Put what `net` has in 16 bits into fp32, but for the matrices that QLoRA packs (and experts in stacks).

    It is what ``peft.prepare_model_for_kbit_training`` does to a quantised model (norms, embeddings, head, biases),
    for any: the residual stream is in fp32 then.
    """
    matrices = {id(weight) for weight in (*optimizers.matrices_of(net).values(), *stacks(net).values())}
    for p in net.parameters():
        if p.dtype in (torch.float16, torch.bfloat16) and id(p) not in matrices:
            p.data = p.data.float()


def _loading(cell: Cell) -> dict[str, Any]:
    """Keywords of ``from_pretrained``, by the method's `load` slot.

    Weights that are packed and to be sharded are stored in the number format of the others: FSDP2 takes no integers.
    """
    slot = instantiate(cell.settings["method"]["load"], _convert_="all")
    if cell.settings["train"].get("parallel") == "fsdp" and "quantization_config" in slot:
        slot["quantization_config"].bnb_4bit_quant_storage = getattr(torch, slot["dtype"])
    return slot


def which(model: dict[str, Any]) -> dict[str, Any]:
    """Keywords of ``from_pretrained``: the revision, and whether code that comes with the model may run."""
    return {"revision": model["revision"] or "main", "trust_remote_code": trusted(model)}


def trusted(model: dict[str, Any]) -> bool:
    """Whether the code that comes with the model of these settings may run."""
    return model.get("trust_remote_code", False)


def _weights(model: dict[str, Any]) -> str:
    """What the files of the weights that are loaded are called; a record tells only of pickled ones."""
    return "*.safetensors" if model.get("use_safetensors", True) else "*.bin"


def nf4(compute_dtype: str, double_quant: bool = True) -> BitsAndBytesConfig:
    """NF4 (QLoRA, Dettmers et al. 2023, section 3), its products computed in `compute_dtype`: auto, bf16 or fp32."""
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=device.compute_dtype(compute_dtype),
    )


def int8() -> BitsAndBytesConfig:
    """LLM.int8() (Dettmers et al. 2022, section 3): rows in 8 bits, columns of features above 6 in 16.

    On a CPU bitsandbytes quantises what comes into a layer while the model answers alone; training computes with the
    weights expanded.
    """
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)  # tells of its rounding at every call
    return BitsAndBytesConfig(load_in_8bit=True)


def adapt(base: PreTrainedModel, cell: Cell, samples: Samples | None = None, saved: Path | None = None) -> nn.Module:
    """`base` changed by the method's `adapt` slot: a peft model, or `base` itself.

    samples: for an adapter whose start (slot `init`) needs data; without them, or without values, it starts as any.
    saved: the folder of an adapter to be taken as it was saved, with the shapes that training gave it.
    """
    slots = cell.settings["method"]
    if slots["adapt"] is None:
        return base
    change = instantiate(slots["adapt"], _convert_="all")
    if not isinstance(change, peft.PeftConfig):
        return change(base)
    everywhere = getattr(change, "target_modules", None) == "all-linear"
    matrices, experts = optimizers.matrices_of(base), stacks(base)
    if everywhere and experts and hasattr(change, "target_parameters"):
        # Peft would go by the model's name, and adapt routers too, which no other method here takes for a matrix.
        change.target_modules, change.target_parameters = set(matrices), set(experts)
    try:
        net = _adapted(base, change, slots.get("init"), samples, saved)
    except ValueError as error:
        if not (everywhere and experts):
            raise
        others = ",".join(sorted({name.rpartition(".")[2] for name in matrices}))
        reason = _first_line(error).rstrip(".")
        raise ValueError(f"{reason}; method.adapt.target_modules=[{others}] leaves its experts as they are.") from error
    if everywhere and experts:
        _check_reach(net, matrices | experts)
    if base.dtype is torch.float32:
        for layer in _frozen(net):
            layer.register_forward_hook(_whole)
    return net


def _adapted(
    base: PreTrainedModel,
    config: peft.PeftConfig,
    init: dict[str, Any] | None,
    samples: Samples | None,
    saved: Path | None,
) -> nn.Module:
    if saved is not None:
        return peft.PeftModel.from_pretrained(base, saved)
    if init is not None and samples is not None:
        return instantiate(init, _convert_="all")(base, config, samples)
    plain = init is not None or base.device.type == "meta"
    return peft.get_peft_model(base, _plain(config) if plain else config)


def _plain(config: peft.PeftConfig) -> peft.PeftConfig:
    """`config` with its weights beginning in no way of their own: where there are no values, nothing comes of them."""
    if isinstance(getattr(config, "init_lora_weights", None), str):
        config.init_lora_weights = True
    return config


def only(model: PreTrainedModel, names: str) -> PreTrainedModel:
    """`model` with all weights frozen but those in whose name the regular expression `names` is found."""
    for name, p in model.named_parameters():
        p.requires_grad_(re.search(names, name) is not None)
    if not count(model, trainable=True):
        raise ValueError(f"no weight's name has {names}")
    return model


def stacks(net: nn.Module) -> dict[str, nn.Parameter]:
    """Weights by name that hold a matrix for each expert of a mixture: (experts, rows, columns), in no linear layer."""
    return {
        f"{name}.{own}": weight
        for name, module in net.named_modules()
        if not isinstance(module, _ConvNd)
        for own, weight in module.named_parameters(recurse=False)
        if weight.ndim == 3 and min(weight.shape) > 1
    }


def _check_reach(net: nn.Module, wanted: dict[str, nn.Parameter]) -> None:
    """Raise ValueError if a weight that `all-linear` means got no adapter."""
    layers = (module.get_base_layer() for module in net.modules() if isinstance(module, BaseTunerLayer))
    reached = {id(weight) for layer in layers for weight in layer.parameters(recurse=False)}
    if missed := [name for name, weight in wanted.items() if id(weight) not in reached]:
        raise ValueError(
            f"peft gives {len(missed)} of {len(wanted)} matrices no adapter, such as {missed[0]}; name its targets."
        )


def _whole(_layer: nn.Module, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
    """A frozen layer's output in fp32, for what an adapter adds to it.

    Autocast rounds that output to bf16, and what is smaller than half its last place would be lost in the sum: an
    adapter begins that small. In a model whose other sums are in fp32 it would learn measurably slower for it.
    """
    return output.float()


def forget_adapters(net: nn.Module) -> None:
    """Take off what `adapt` put on frozen layers, after their adapters are gone."""
    for module in net.modules():
        module._forward_hooks = type(module._forward_hooks)(
            (key, hook) for key, hook in module._forward_hooks.items() if hook is not _whole
        )


def _frozen(net: nn.Module) -> list[nn.Module]:
    """The layers to whose outputs adapters add theirs; what is added to a stack's weights adds to no output."""
    layers = (module for module in net.modules() if isinstance(module, BaseTunerLayer))
    return [layer.get_base_layer() for layer in layers if not isinstance(layer, ParamWrapper)]


def check(cell: Cell) -> None:
    """Raise UserError if the model can't be had, a rank is above the smallest matrix it would apply to, or the
    optimizer does not take the model's weights or is not for this machine.

    Needs the model's config only: the model is built without storage. A method that looks at weights is not checked.
    """
    precision = cell.settings["train"]["precision"]
    if cell.settings["model"].get("upcast") and device.compute_dtype(precision) is not torch.bfloat16:
        raise UserError(
            "model.upcast=true requires train.precision=bf16: its matrices stay in 16 bits, and only autocast "
            "multiplies those with activations in fp32."
        )
    if device.here().type != "cuda":
        asked = [value for _, value in redact.leaves(cell.settings["method"])]
        for kind in ("paged", "paged_8bit"):
            if ADAMW[kind] in asked:
                raise UserError(f"method.adamw={kind} requires a CUDA device.")
    with suppress(NeedsValues):  # then the job itself will tell
        net = outline(cell, config_of(cell.settings["model"]), 2)
        if cell.settings["train"].get("gradient_checkpointing") and not inner(net).supports_gradient_checkpointing:
            raise UserError(
                f"train.gradient_checkpointing=true requires an architecture that transformers can checkpoint, and "
                f"{type(inner(net)).__name__} is none; take train.gradient_checkpointing=false."
            )
        if (slot := cell.settings["method"]["optim"]) is not None:
            try:
                instantiate(slot, _convert_="all")(net)
            except UserError:
                raise
            except (TypeError, ValueError) as error:
                raise UserError(f"method={cell.method} has no optimizer here: {_first_line(error)}") from error
            except Exception:
                pass  # it may be for want of values; if not, the cell fails, and its record says why


def config_of(model: dict[str, Any]) -> PretrainedConfig:
    """The architecture of the settings `model`, weights left where they are; UserError if it can't be had."""
    path = source(model)
    try:
        return AutoConfig.from_pretrained(path, **which(model))
    except (OSError, ValueError) as error:
        raise _unreachable(path, error) from error


def check_length(model: dict[str, Any], tokens: int) -> None:
    """Raise UserError if the model has no positions for sequences of so many tokens."""
    positions = getattr(config_of(model).get_text_config(), "max_position_embeddings", None)
    if positions is not None and tokens > positions:
        raise UserError(
            f"Sequences of {tokens} tokens are beyond the {positions} positions of {model['path']}; "
            f"train.max_length={positions} cuts them."
        )


def alike(config: PretrainedConfig, trusted: bool = False) -> bool:
    """Whether all decoder layers have the same kind and shapes, so that a few can stand for all."""
    with torch.device("meta"):
        layers = decoder_layers(AutoModelForCausalLM.from_config(config, trust_remote_code=trusted), config)
    if layers is None:
        return False
    shapes = {tuple((name, p.shape) for name, p in layer.named_parameters()) for layer in layers}
    return len(shapes) == 1 and len(set(getattr(config.get_text_config(), "layer_types", None) or [])) <= 1


def with_depth(config: PretrainedConfig, depth: int) -> PretrainedConfig:
    """`config` with `depth` decoder layers, all alike."""
    config = copy.deepcopy(config)
    text = config.get_text_config()
    text.num_hidden_layers = depth
    if vars(text).get("layer_types"):  # of some it is a property, that follows
        text.layer_types = text.layer_types[:1] * depth
    return config


def decoder_layers(model: nn.Module, config: PretrainedConfig) -> nn.ModuleList | None:
    """The layers that `config` says how many there are of; None where a model has no such list."""
    depth = getattr(config.get_text_config(), "num_hidden_layers", None)
    lists = (module for module in model.modules() if isinstance(module, nn.ModuleList))
    return next((layers for layers in lists if len(layers) == depth), None)


def outline(cell: Cell, config: PretrainedConfig, depth: int) -> nn.Module:
    """As `shell`, with `depth` layers to stand for all, unless all are alike no more or the method wants more."""
    if alike(config, trusted(cell.settings["model"])):
        with suppress(UserError):
            return shell(cell, with_depth(config, depth))[0]
    return shell(cell, config)[0]


def shell(cell: Cell, config: PretrainedConfig) -> tuple[nn.Module, set[str]]:
    """The cell's model on the device "meta", quantised and adapted, and the names of its adapters' parameters.

    Raises UserError if the method can't be applied, or a rank is above the smallest matrix it would apply to, and
    NeedsValues.
    """
    path = cell.settings["model"]["path"]
    slot = _loading(cell)
    dtype = getattr(torch, slot["dtype"], None)
    if not isinstance(dtype, torch.dtype):
        raise UserError(f"method.load.dtype={slot['dtype']} is none of torch's number formats, such as bfloat16.")
    keywords = {key: slot[key] for key in ("attn_implementation",) if key in slot}
    keywords |= {"trust_remote_code": trusted(cell.settings["model"])}
    try:
        with torch.device("meta"):
            base = AutoModelForCausalLM.from_config(config, dtype=dtype, **keywords)
            _cap(base)
            if (quantization := slot.get("quantization_config")) is not None:
                quantizer = AutoHfQuantizer.from_config(quantization)
                quantizer.preprocess_model(base, dtype=dtype, device_map={"": "meta"})
                quantizer.postprocess_model(base)
                _pack(base, dtype)
                _check_packed(base)
            if cell.settings["model"].get("upcast"):
                upcast(base)
            _check_experts(base, cell)
            own = {id(p) for p in base.parameters()}
            net = adapt(base, cell)
    except (ValueError, InstantiationException) as error:  # peft knows no such targets, or no such keyword
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        raise UserError(f"method={cell.method} can't be applied to {path}: {_first_line(cause or error)}") from error
    except (NotImplementedError, RuntimeError) as error:
        if "meta" not in str(error).lower():
            raise
        raise NeedsValues from error
    _check_rank(net, cell)
    return net, {name for name, p in net.named_parameters() if id(p) not in own}


def _check_experts(base: nn.Module, cell: Cell) -> None:
    """Raise ValueError if the method would pass over the experts of a mixture in what gives it its name."""
    slots, experts = cell.settings["method"], sum(weight.numel() for weight in stacks(base).values())
    passed_over = {
        "quantised": slots["load"].get("quantization_config"),
        "matrices to its optimizer": (slots["optim"] or {}).get("matrices"),
    }
    for what, asked in passed_over.items():
        if experts and asked:
            share = f"{experts / count(base):.0%} of its weights, those of the experts,"
            raise ValueError(f"{share} lie in stacks that would not be {what}; take a method that needs it not.")


def _pack(net: nn.Module, dtype: torch.dtype) -> None:
    """Give each matrix on "meta" that is to be quantised the form, and scales, that quantising its `dtype` would give.

    Of 8-bit ones no features are taken for outliers: how many there are only values tell.
    """
    for module in net.modules():
        if isinstance(module, Linear8bitLt):
            shape = (module.out_features, module.in_features)
            module.weight = Int8Params(torch.empty(shape, dtype=torch.int8, device="meta"), requires_grad=False)
            module.state.CB, module.state.SCB = module.weight, torch.empty(shape[0], device="meta")
            module.state.threshold = 0.0
        if isinstance(module, Linear4bit):
            weight, shape = module.weight, torch.Size((module.out_features, module.in_features))
            scales = -(-shape.numel() // weight.blocksize)

            def empty(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
                return torch.empty(size, dtype=dtype, device="meta")

            state = {"shape": shape, "dtype": dtype, "blocksize": weight.blocksize, "code": empty(16)}
            if weight.compress_statistics:  # double quantisation: QLoRA, section 3
                nested = QuantState(empty(-(-scales // 256)), code=empty(256), blocksize=256, dtype=torch.float32)
                state |= {"absmax": empty(scales, dtype=torch.uint8), "offset": empty(), "state2": nested}
            else:
                state |= {"absmax": empty(scales)}
            size = (shape.numel() + 1) // 2 // weight.quant_storage.itemsize
            module.quant_state = QuantState(quant_type=weight.quant_type, **state)
            module.weight = Params4bit(
                empty(size, 1, dtype=weight.quant_storage),
                requires_grad=False,
                quant_state=module.quant_state,
                blocksize=weight.blocksize,
                compress_statistics=weight.compress_statistics,
                quant_type=weight.quant_type,
                quant_storage=weight.quant_storage,
                bnb_quantized=True,
                module=module,
            )
    _never_repack(net)


def _check_packed(net: nn.Module) -> None:
    """Raise ValueError if `net`, on "meta", multiplies with a packed matrix itself, past the layer that expands it."""
    try:
        with torch.no_grad():
            net(input_ids=torch.ones(1, 2, dtype=torch.long))
    except Exception as error:  # of all else that can't be told without values, the job itself will tell
        if any(name in str(error) for name in ("uint8", "unsigned char", "Byte", "int8", "signed char", "Char")):
            raise ValueError(
                "the model multiplies with weights of linear layers itself, which can't be done in 4 or 8 bits; "
                "take a method that does not quantise them."
            ) from error


def _never_repack(net: nn.Module) -> None:
    """Keep bitsandbytes from repacking its weights in the first evaluation on an AVX-512 CPU with bf16.

    It would round their scales to bf16, and from then on no gradient would flow through them.
    """
    for module in net.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False


def _check_rank(net: nn.Module, cell: Cell) -> None:
    if cell.rank is None:
        return
    path = cell.settings["model"]["path"]
    shapes = _ranked(net, cell)
    if not shapes:
        raise UserError(f"method={cell.method} applies to no matrix of {path}; check its target_modules.")
    name, shape = min(shapes.items(), key=lambda item: min(item[1]))
    if cell.rank > min(shape):
        raise UserError(
            f"rank={cell.rank} is above the size of {name} ({shape[0]} × {shape[1]}) in {path}; "
            f"take a rank of at most {min(shape)}, or other targets."
        )


def _ranked(model: nn.Module, cell: Cell) -> dict[str, tuple[int, int]]:
    """Shapes by name of the matrices that the cell's rank applies to: adapted ones, or those GaLore projects."""
    if cell.settings["method"]["adapt"] is None:
        return {name: tuple(weight.shape) for name, weight in optimizers.matrices_of(model).items()}
    layers = {name: module for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
    weights = {name: _weight(layer) for name, layer in layers.items()}
    return {
        name: tuple(weight.quant_state.shape if hasattr(weight, "quant_state") else weight.shape)[-2:]
        for name, weight in weights.items()
        if weight is not None
    }


def prompted(net: nn.Module) -> bool:
    """Whether `net` puts tokens of its own before each sequence."""
    return isinstance(net, peft.PeftModel) and net.active_peft_config.is_prompt_learning


def _weight(layer: BaseTunerLayer) -> nn.Parameter | None:
    """The weight that an adapter is of: a matrix, or a stack of them."""
    return layer.get_param() if isinstance(layer, ParamWrapper) else getattr(layer.get_base_layer(), "weight", None)


def inner(net: nn.Module) -> PreTrainedModel:
    """The transformers model in `net`, which may be a peft model, and wrapped for several devices."""
    if isinstance(net, DistributedDataParallel):
        net = net.module
    return net.get_base_model() if isinstance(net, peft.PeftModel) else net


def count(net: nn.Module, trainable: bool = False) -> int:
    """Weights of `net`; a 4-bit matrix holds two in a byte and counts both, however the bytes are stored."""
    return sum(
        p.numel() * (2 * p.itemsize if type(p).__name__ == "Params4bit" else 1)
        for p in net.parameters()
        if p.requires_grad or not trainable
    )


def fingerprint(model: dict[str, Any]) -> str:
    """What the weights are: the sha256 of a folder's files of them, or a hub id with its resolved commit."""
    path = source(model)
    if Path(path).is_dir():
        digest = hashlib.sha256()
        for file in sorted(Path(path).glob(_weights(model))):
            with open(file, "rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return f"sha256:{digest.hexdigest()}"
    try:
        file = hf_hub_download(path, "config.json", revision=model["revision"])
    except (OSError, ValueError) as error:
        raise _unreachable(path, error) from error
    return f"{path}@{Path(file).parent.name}"  # the hub's cache has a folder for each commit


def state(model: dict[str, Any]) -> str:
    """Whether the files behind the settings `model` are still the same: where they are, their sizes and times."""
    path = source(model)
    files = sorted(Path(path).glob(_weights(model)))
    return "\0".join([path, *(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)])


def describe(net: nn.Module) -> dict[str, Any]:
    """dtypes: bytes of the parameters by dtype (NF4 is uint8, however stored)."""
    dtypes: dict[str, int] = {}
    for parameter in net.parameters():
        packed = type(parameter).__name__ == "Params4bit"
        name = "uint8" if packed else str(parameter.dtype).removeprefix("torch.")
        dtypes[name] = dtypes.get(name, 0) + parameter.nbytes
    return {"dtypes": dtypes}


def _unreachable(path: str, error: Exception) -> UserError:
    """The remedy for a model that did not load, in one sentence."""
    if "trust_remote_code" in str(error):
        return UserError(f"{path} comes with code of its own; if you trust it, model.trust_remote_code=true runs it.")
    if "model.safetensors" in str(error) and (not Path(path).is_dir() or any(Path(path).glob("*.bin"))):
        return UserError(
            f"{path} holds no safetensors; pickled weights can run code: if you trust them, "
            "model.use_safetensors=false loads them."
        )
    if Path(path).is_dir():
        folder = os.path.abspath(path)
        return UserError(f"The folder {folder} holds no model that transformers can load ({_first_line(error)}).")
    remedy = "no local folder is called so; check model.path and the connection, or use the embedded model=smollm2_135m"
    return hub.refused(f"The model {path}", error, remedy)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
