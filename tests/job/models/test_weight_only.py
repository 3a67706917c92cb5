"""A base in int8 or fp8 by torchao: what its weights are, what a cell on it computes and takes, and what it refuses.

torchao is an extra: all but the refusal without it runs in `make test-torchao`.
"""

from __future__ import annotations

import dataclasses
import sys
from importlib.util import find_spec

import pytest
import torch
from architectures import ARCHITECTURES, built
from job_helpers import no_peak, prepared, run_here, run_request, run_tiny, tiny  # noqa: F401
from peft import PeftModel
from peft.tuners.lora.torchao import TorchaoLoraLinear
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, TorchAoConfig

from harness.errors import UserError
from harness.job.models import checks, embedded, empty_weights, loading, saved, weight_only
from harness.job.predict import prediction
from harness.record import Kinds, model_folder, read

needs_torchao = pytest.mark.skipif(find_spec("torchao") is None, reason="the extra `torchao` is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # torchao's import warns of kernels that a CPU lacks
FORMATS = {"int8wo": torch.int8, "fp8wo": torch.float8_e4m3fn}
SCALES = {"int8wo": 4 + 1, "fp8wo": 4}  # bytes a row: a scale, and torchao's zero point, which is 0
LAYERS = [(64, 64), (64, 32), (64, 32), (64, 64), *[(64, 128)] * 2, (128, 64)] * 2  # inputs and outputs, of tiny
MATRICES, ROWS = sum(i * o for i, o in LAYERS), sum(o for _, o in LAYERS)


def quantised(net: nn.Module) -> dict[str, nn.Module]:
    return {name: layer for name, layer in net.named_modules() if isinstance(layer, weight_only.WeightOnlyLinear)}


@pytest.mark.parametrize("method", ["base_int8wo", "lora_fp8wo"])
def test_without_torchao_a_sentence_names_the_extra_before_anything_is_loaded(monkeypatch, method):
    monkeypatch.setitem(sys.modules, "torchao", None)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    said = r"^A base in int8wo or fp8wo requires the extra `torchao`: pip install -e '\.\[torchao\]' in the project's f"
    with pytest.raises(UserError, match=said):
        checks.check(tiny(f"method={method}"))


@needs_torchao
@pytest.mark.parametrize("form", FORMATS)
def test_each_row_is_rounded_to_eight_bits_of_its_own_scale(form):
    net, plain = (prepared(tiny(f"method={method}")).net for method in (f"lora_{form}", "base"))
    layers = quantised(net)
    assert len(layers) == len(LAYERS)
    for name, layer in layers.items():
        was = plain.get_submodule(name.removeprefix("base_model.model.").removesuffix(".base_layer")).weight
        weight = layer.weight
        assert (weight.qdata.dtype, weight.scale.shape) == (FORMATS[form], (was.shape[0], 1))
        assert not weight.requires_grad
        error, half = (weight.dequantize() - was).abs(), weight.scale / 2
        # Of fp8 three bits follow the leading one, and the least number is 2⁻⁹ of the scale.
        assert (error <= (1.01 * half if form == "int8wo" else was.abs() / 15 + half / 512)).all()
        for dtype in (torch.float32, torch.bfloat16):
            expanded = weight_only._expanded(weight.qdata, weight.scale, dtype)
            assert torch.equal(expanded, weight.dequantize(dtype)), "it is not torchao's own"


@needs_torchao
@pytest.mark.parametrize("form", FORMATS)
def test_a_product_has_torchaos_gradient_and_keeps_no_expanded_matrix(form):
    from torchao import quantize_

    torch.manual_seed(0)
    layer = nn.Linear(64, 48)
    quantize_(layer, getattr(weight_only, form)().quant_type)
    x = torch.randn(3, 5, 64, requires_grad=True)

    def passed() -> tuple[torch.Tensor, torch.Tensor, int]:
        kept: list[torch.Tensor] = []
        with saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
            out = layer(x)
        (gradient,) = torch.autograd.grad(out.square().sum(), x)
        return out.detach(), gradient, sum(t.nbytes for t in kept if t.shape[-2:] in {(48, 64), (64, 48)})

    theirs = passed()
    weight_only.enable(layer)
    ours = passed()
    torch.testing.assert_close(ours[:2], theirs[:2], rtol=1e-4, atol=1e-4)
    assert (ours[2], theirs[2]) == (48 * 64, 4 * 48 * 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype is torch.bfloat16
    assert layer.bias.requires_grad
    layer(x).sum().backward()
    assert layer.bias.grad.unique() == 15


@needs_torchao
@pytest.mark.parametrize("form", FORMATS)
def test_a_cell_learns_as_on_the_unquantised_base_and_takes_a_byte_a_weight(tmp_path, form):
    asked = ("rank=4", "lr_scale=50", "train.max_steps=6")
    plain, tuned = (run_tiny(tmp_path, f"method={method}", *asked) for method in ("lora", f"lora_{form}"))
    base, untuned = (run_tiny(tmp_path, f"method={method}") for method in ("base", f"base_{form}"))
    assert [record.status for record in (plain, tuned, base, untuned)] == ["ok"] * 4
    near = 1e-3 if form == "int8wo" else 5e-3
    assert [p.loss for p in tuned.train.loss] == pytest.approx([p.loss for p in plain.train.loss], rel=near)
    assert tuned.train.loss[-1].loss < tuned.train.loss[0].loss - 0.05
    for one, other in ((plain, tuned), (base, untuned)):
        assert other.validation[-1].loss == pytest.approx(one.validation[-1].loss, rel=near)
        assert other.validation[-1].loss != one.validation[-1].loss
        assert other.probe.flops_per_token == one.probe.flops_per_token
        assert other.probe.peak.activations == one.probe.peak.activations
        assert other.parameters == one.parameters
        smaller = 4 * MATRICES - (MATRICES + SCALES[form] * ROWS)
        assert one.probe.peak.weights - other.probe.peak.weights == smaller
    assert tuned.environment["dtypes"].keys() == {"float32", str(FORMATS[form]).removeprefix("torch.")}
    assert tuned.environment["speedups"]["fused_lora"] == "on"
    assert tuned.inference["unmerged"].new_tokens == 2
    assert tuned.scores[0].n == 4
    assert (tuned.merge.merged, tuned.merge.dequantised) == (False, True)
    assert "to 8 bits again" in tuned.merge.reason
    assert tuned.merge.max_logit_difference < 1e-4
    assert tuned.disk.model == plain.disk.model


@needs_torchao
@pytest.mark.parametrize("shape", ["", "train.gradient_checkpointing=true", "speedups=off", "model.dtype=bfloat16"])
@pytest.mark.parametrize("method", ["base_int8wo", "lora_int8wo", "base_fp8wo", "lora_fp8wo"])
def test_the_plan_of_a_cell_is_what_its_run_measures(tmp_path, method, shape):
    cell = tiny(f"method={method}", "rank=4", "eval.tasks=[]", "infer.repeats=0", *shape.split())
    measured, planned = run_here(tmp_path, cell), prediction.Predictor(None, "fp32", "cpu").predict(cell, None, None)
    assert measured.status == "ok", measured.failure
    assert Kinds(**planned["peak"]) == measured.probe.peak
    resident = dataclasses.replace(measured.probe.resident, activations=0)
    assert Kinds(**planned["resident"] | {"activations": 0}) == resident
    assert (planned["total"], planned["trainable"]) == dataclasses.astuple(measured.parameters)


@torch.no_grad()
def logits(net: nn.Module) -> torch.Tensor:
    return net.eval()(input_ids=torch.arange(3, 40)[None]).logits.float()


@needs_torchao
@pytest.mark.parametrize("save", ["adapter", "merged"])
@pytest.mark.parametrize("form", FORMATS)
def test_plain_peft_and_torchao_compute_the_same_from_the_saved_weights(tmp_path, monkeypatch, form, save):
    cell = tiny(f"method=lora_{form}", "lr_scale=50", "infer.repeats=0", "eval.tasks=[]")
    seen, write = [], saved.write
    monkeypatch.setattr(saved, "write", lambda net, *rest: seen.append(logits(net)) or write(net, *rest))
    path = tmp_path / f"{cell.name}.json"
    run_request(cell, "demo", path, None, lambda event: None, save=save)
    assert (read(path).status, read(path).saved.form) == ("ok", save)
    if save == "merged":
        again = AutoModelForCausalLM.from_pretrained(model_folder(path))
        assert {type(layer) for layer in again.modules() if isinstance(layer, nn.Linear)} == {nn.Linear}
    else:
        config = TorchAoConfig(getattr(weight_only, form)().quant_type)
        folder = embedded.folder("tiny")
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, quantization_config=config)
        assert (logits(base) - seen[0]).abs().max() > 1e-3, "it was not trained"
        again = PeftModel.from_pretrained(base, model_folder(path))
        assert sum(isinstance(layer, TorchaoLoraLinear) for layer in again.modules()) == len(LAYERS)
    torch.testing.assert_close(logits(again), seen[0], rtol=0, atol=1e-4)


@needs_torchao
def test_experts_in_stacks_are_refused_and_what_mambas_kernels_read_is_left(tmp_path):
    mixture = built(tmp_path / "moe", "qwen3_moe", **ARCHITECTURES["qwen3_moe"])
    for method in ("base_int8wo", "lora_fp8wo"):
        with pytest.raises(UserError, match=r"in 4 bits alone; use method=qlora, or method=base_nf4"):
            checks.check(tiny(f"method={method}", "rank=4", f"model.path={mixture}"))
    sizes = {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "chunk_size": 16}
    cell = tiny("method=lora_int8wo", "rank=4", f"model.path={built(tmp_path / 'mamba', 'mamba2', **sizes)}")
    outline = empty_weights.shell(cell, loading.config_of(cell.settings.model))[0]
    loaded = loading.load(cell, torch.device("cpu"))
    for net in (outline.get_base_model(), loaded):
        endings = {name.removesuffix(".base_layer").rpartition(".")[2] for name in quantised(net)}
        assert endings == {"in_proj"}


@needs_torchao
def test_processes_that_share_a_cell_keep_the_matrices_that_each_has_loaded(tmp_path):
    net = prepared(tiny("method=lora_fp8wo")).net
    weight_only.keep_from_broadcast(net)
    file = f"file://{tmp_path}/meeting"
    torch.distributed.init_process_group("gloo", init_method=file, rank=0, world_size=1)
    try:
        shared = DistributedDataParallel(net)  # it would raise on a matrix of torchao
    finally:
        torch.distributed.destroy_process_group()
    assert len(shared.parameters_to_ignore) == len(LAYERS)
