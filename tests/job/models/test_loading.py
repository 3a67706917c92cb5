"""Loading and changing the model: what each method trains by closed form, NF4, merging, and input that can't work."""

from __future__ import annotations

import shutil

import pytest
import torch
from accelerate import Accelerator
from architectures import GROUPED, built
from bitsandbytes.nn import Linear8bitLt, Params4bit
from job_helpers import prepared, run_tiny, tiny
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from harness.errors import UserError
from harness.job.data import batching, encoding
from harness.job.measure import device
from harness.job.methods import optimizers
from harness.job.models import (
    adapter_merge,
    adapting,
    checks,
    embedded,
    empty_weights,
    loading,
    quantisation,
    structure,
)
from harness.job.training import loop
from harness.record import read
from harness.settings import ModelSettings

RANK = 8
# The tiny Llama: hidden size 64, MLP 128, 2 heads of 16 for keys and values, 2 layers, 1,024 pieces. (in, out) each.
LINEARS = 2 * [(64, 64), (64, 32), (64, 32), (64, 64), (64, 128), (64, 128), (128, 64)]
MATRICES = sum(i * o for i, o in LINEARS)
TOTAL = MATRICES + 2 * 1024 * 64 + (2 * 2 + 1) * 64  # + embedding and head + norms
LORA = sum(RANK * (i + o) for i, o in LINEARS)
DORA = LORA + sum(o for _, o in LINEARS)
ADDED = {"lora": LORA, "qlora": LORA, "dora": DORA, "qdora": DORA}
TRAINABLE = ADDED | {"base": 0, "base_nf4": 0, "full": TOTAL, "galore": TOTAL}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("records")


@pytest.fixture(scope="module")
def records(folder):
    """Each method, run from load to scores; strongly enough that merging has something to merge."""
    return {method: run_tiny(folder, f"method={method}", f"rank={RANK}", "lr_scale=50") for method in TRAINABLE}


# Counts


@pytest.mark.long
@pytest.mark.parametrize("method", TRAINABLE)
def test_weights_are_counted_by_closed_form(records, method):
    record = records[method]
    assert record.status == "ok", record.failure
    assert record.parameters.trainable == TRAINABLE[method]
    assert record.parameters.total == TOTAL + ADDED.get(method, 0)  # NF4 counts its matrices' elements, not bytes


def test_the_adapter_is_on_every_linear_layer_but_the_head():
    net = prepared(tiny("method=lora")).net
    adapted = {name.rpartition(".")[2] for name, m in net.named_modules() if hasattr(m, "lora_A")}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_the_articles_targets_are_an_override():
    net = prepared(tiny("method=lora", "method.adapt.target_modules=[q_proj,v_proj]")).net
    adapted = {name.rpartition(".")[2] for name, m in net.named_modules() if hasattr(m, "lora_A")}
    assert adapted == {"q_proj", "v_proj"}
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    assert trained == 2 * (RANK * (64 + 64) + RANK * (64 + 32))


# NF4


@pytest.mark.parametrize("method", ["base_nf4", "qlora", "qdora"])
def test_nf4_packs_matrices_with_double_quantisation(method):
    net = prepared(tiny(f"method={method}")).net
    packed = {name: p for name, p in net.named_parameters() if isinstance(p, Params4bit)}
    assert len(packed) == len(LINEARS)
    assert sum(p.numel() for p in packed.values()) * 2 == MATRICES
    for name, p in packed.items():
        assert p.dtype == torch.uint8, name
        assert p.quant_state.quant_type == "nf4", name
        assert p.quant_state.nested, name
        assert p.quant_state.state2 is not None, name
    layers = [m for m in net.modules() if isinstance(getattr(m, "weight", None), Params4bit)]
    assert {getattr(m, "compute_dtype", torch.float32) for m in layers} == {torch.float32}  # as train.precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_packed_weights_that_are_shared_out_are_stored_as_the_others_are(dtype):
    name = str(dtype).removeprefix("torch.")
    cell = tiny("method=qlora", "train.devices=2", "train.parallel=fsdp", f"model.dtype={name}")
    net, (outline, _) = (
        loading.load(cell, torch.device("cpu")),
        empty_weights.shell(cell, loading.config_of(cell.settings.model)),
    )
    packed, planned = ([p for p in of.parameters() if isinstance(p, Params4bit)] for of in (net, outline))
    assert {p.dtype for p in packed} == {dtype}
    assert [(p.shape, p.dtype) for p in planned] == [(p.shape, p.dtype) for p in packed]
    assert sum(p.nbytes for p in packed) == MATRICES / 2
    assert structure.count(net) == TOTAL
    assert structure.describe(net)["dtypes"] == {"uint8": MATRICES / 2, name: (TOTAL - MATRICES) * dtype.itemsize}
    plain = loading.load(tiny("method=qlora", f"model.dtype={name}"), torch.device("cpu"))
    bits = (
        [p.data.view(torch.uint8).flatten() for p in of.parameters() if isinstance(p, Params4bit)]
        for of in (net, plain)
    )
    assert all(torch.equal(one, other) for one, other in zip(*bits, strict=True))


@pytest.mark.parametrize("method", ["base_int8", "lora_8bit"])
def test_int8_rounds_each_row_to_its_own_127th(method):
    net, plain = (prepared(tiny(f"method={m}")).net for m in (method, "base"))
    rounded = {name: layer for name, layer in net.named_modules() if isinstance(layer, Linear8bitLt)}
    assert len(rounded) == len(LINEARS)
    for name, layer in rounded.items():
        was = plain.get_submodule(name.removeprefix("base_model.model.").removesuffix(".base_layer")).weight
        scales = layer.weight.SCB[:, None]
        assert (layer.weight.dtype, layer.state.threshold, layer.weight.requires_grad) == (torch.int8, 6.0, False)
        torch.testing.assert_close(scales[:, 0], was.abs().amax(1), rtol=1e-3, atol=0)
        assert (
            (layer.weight * scales / 127 - was).abs() <= 0.51 * scales / 127 + 1e-3 * was.abs()
        ).all()  # by way of fp16


@pytest.mark.long
def test_int8_computes_what_the_model_does_and_counts_as_much(records, tmp_path):
    eight = ("base_int8", "lora_8bit")
    found = records | {m: run_tiny(tmp_path, f"method={m}", f"rank={RANK}", "lr_scale=50") for m in eight}
    assert all(found[method].status == "ok" for method in eight)
    for one, other in (("base", "base_int8"), ("lora", "lora_8bit")):
        one, other = found[one], found[other]
        assert other.probe.flops_per_token == one.probe.flops_per_token
        assert other.parameters == one.parameters
        assert other.validation[-1].loss == pytest.approx(one.validation[-1].loss, rel=1e-3)
        assert other.validation[-1].loss != one.validation[-1].loss
        rows = sum(o for _, o in LINEARS)
        assert one.probe.peak.weights - other.probe.peak.weights == 4 * MATRICES - (MATRICES + 4 * rows)
    tuned = found["lora_8bit"]
    assert [p.loss for p in tuned.train.loss] == pytest.approx([p.loss for p in found["lora"].train.loss], rel=1e-3)
    assert (tuned.merge.merged, tuned.merge.dequantised) == (False, True)
    assert tuned.merge.reason == "Merging would round the weights to 8 bits again."
    assert tuned.disk.model == 4 * TOTAL


def test_nf4_moves_the_model_and_not_far():
    plain, packed = (prepared(tiny(f"method={m}")) for m in ("base", "base_nf4"))
    with torch.no_grad():
        a, b = (loop.answer_logits(x.net, plain.held_out[0]) for x in (plain, packed))
    assert 0 < (a - b).norm() < 0.2 * a.norm()


HALF = ("model.dtype=bfloat16", "train.precision=bf16")


def dtypes(net) -> dict[str, set[torch.dtype]]:
    """Dtypes of the matrices that QLoRA packs, of adapters, and of all other weights."""
    found = {"matrices": set(), "adapters": set(), "others": set()}
    matrices = {id(weight) for weight in optimizers.matrices_of(structure.inner(net)).values()}
    for name, p in net.named_parameters():
        kind = "adapters" if "lora_" in name else "matrices" if id(p) in matrices else "others"
        found[kind].add(p.dtype)
    return found


@pytest.mark.parametrize("upcast", [False, True])
def test_unquantised_weights_have_one_dtype_in_all_methods(upcast):
    asked = (*HALF, f"model.upcast={str(upcast).lower()}")
    lora, qlora, full = (prepared(tiny(f"method={method}", *asked)).net for method in ("lora", "qlora", "full"))
    half = torch.bfloat16
    others = {torch.float32 if upcast else half}
    assert dtypes(lora) == {"matrices": {half}, "adapters": {torch.float32}, "others": others}
    assert dtypes(qlora) == {"matrices": {torch.uint8}, "adapters": {torch.float32}, "others": others}
    assert dtypes(full) == {"matrices": {half}, "adapters": set(), "others": others}
    assert {name for name, p in qlora.named_parameters() if p.requires_grad} == {
        name for name, p in lora.named_parameters() if p.requires_grad
    }
    # The residual stream, and so what attention is asked in, follows from them.
    seen = []
    for net in (lora, qlora):
        head = structure.inner(net).get_output_embeddings()
        hook = head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].dtype))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            net(input_ids=torch.ones(1, 3, dtype=torch.long))
        hook.remove()
    assert seen == [*others] * 2


@pytest.mark.long
def test_an_upcast_model_runs_from_load_to_scores_and_is_merged_as_it_was_trained(tmp_path, own_precision):
    record = run_tiny(tmp_path, "method=qlora", *HALF, "model.upcast=true")
    assert record.status == "ok", record.failure
    assert record.merge.dequantised
    assert record.merge.max_logit_difference < 0.05
    assert record.environment["attention"] == "end_to_end"
    assert set(record.environment["dtypes"]) == {"float32", "uint8"}
    assert record.probe.attention.keys() == {"flash_for_cpu float32"}
    cell = tiny("method=qlora", *HALF, "model.upcast=true")
    net = adapting.adapt(loading.load(cell, torch.device("cpu")), cell)
    batch = batching.Layout(flat=False, pad=0).batch([encoding.Example([1, 2, 3, 4], 2)])
    merged, _ = adapter_merge.merge(net, batch, Accelerator(mixed_precision="bf16"))
    assert dtypes(merged)["matrices"] == {torch.bfloat16}
    assert dtypes(merged)["others"] == {torch.float32}


def test_upcast_weights_need_autocast():
    with pytest.raises(UserError, match=r"model\.upcast=true requires train\.precision=bf16"):
        checks.check_device(tiny("method=lora", "model.dtype=bfloat16", "model.upcast=true").settings)


def test_the_compute_dtype_is_the_devices_own_unless_said(monkeypatch):
    assert device.compute_dtype("fp32") is torch.float32
    assert device.compute_dtype("bf16") is torch.bfloat16
    for has, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(device, "_bf16_pays", lambda has=has: has)
        assert device.compute_dtype("auto") is dtype
        assert quantisation.nf4("auto").bnb_4bit_compute_dtype is dtype


# Merging, as recorded; test_train.py compares the logits


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_adapters_are_merged_and_the_difference_is_recorded(records, method):
    merge = records[method].merge
    assert merge.merged
    assert not merge.dequantised
    assert 0 < merge.max_logit_difference < 1e-4
    assert 0 < merge.seconds < records[method].phases["merge"].seconds
    assert list(records[method].phases)[-4:] == ["infer", "merge", "serve", "score"]


@pytest.mark.parametrize("method", ["qlora", "qdora"])
def test_quantised_models_are_scored_unmerged_and_say_why(records, method):
    merge = records[method].merge
    assert not merge.merged
    assert "4 bits" in merge.reason
    assert merge.dequantised
    assert 0 < merge.max_logit_difference < 1e-4
    assert list(records[method].phases)[-4:] == ["infer", "score", "merge", "serve"]


@pytest.mark.parametrize("method", ["base", "base_nf4", "full", "galore"])
def test_without_an_adapter_there_is_nothing_to_merge(records, method):
    merge = records[method].merge
    assert (merge.merged, merge.reason, merge.seconds) == (False, "The method has no adapter.", None)


# Inference and size on disk, as recorded; test_infer.py tests how they are measured


@pytest.mark.parametrize("method", TRAINABLE)
def test_inference_is_measured_in_every_form_that_the_model_has(records, method):
    forms = ["base", "unmerged", "merged"] if method in ADDED else ["merged"] if TRAINABLE[method] else ["base"]
    assert list(records[method].inference) == forms
    for inference in records[method].inference.values():
        assert (inference.batch_size, inference.prompt_tokens, inference.new_tokens) == (1, 8, 2)
        assert len(inference.prefill_seconds) == len(inference.decode_seconds) == 1
        assert min(inference.prefill_seconds + inference.decode_seconds) > 0


@pytest.mark.parametrize("method", TRAINABLE)
def test_the_size_on_disk_is_known_by_closed_form(records, method):
    disk = records[method].disk
    if method in ADDED:
        assert 0 < disk.adapter - 4 * ADDED[method] < 10_000  # the file's header
    else:
        assert disk.adapter is None
    if method == "base_nf4":
        assert 4 * (TOTAL - MATRICES) + MATRICES / 2 < disk.model < 4 * TOTAL
    else:
        assert disk.model == 4 * TOTAL


def test_inference_can_be_left_out(tmp_path):
    record = run_tiny(tmp_path, "method=lora", "infer.repeats=0")
    assert (record.status, record.inference) == ("ok", {})
    assert not record.phases.keys() & {"infer", "serve"}
    assert record.merge.merged


# Input that can't work


@pytest.mark.parametrize("method", ["lora", "dora", "qlora", "galore"])
def test_a_rank_above_the_smallest_target_names_it(method):
    checks.check(tiny(f"method={method}", "rank=32"))
    with pytest.raises(
        UserError, match=r"rank must be at most 32, the size of \S*[kv]_proj \(32 × 64\) in .*, got rank=33"
    ):
        checks.check(tiny(f"method={method}", "rank=33"))


def test_rank_is_held_against_its_targets_alone():
    checks.check(tiny("method=lora", "rank=33", "method.adapt.target_modules=[q_proj]"))
    checks.check(tiny("method=full", "rank=33"))


def test_targets_that_are_not_there_are_named():
    with pytest.raises(UserError, match=r"method=lora can't be applied to .*c_attn"):
        checks.check(tiny("method=lora", "method.adapt.target_modules=[c_attn]"))


def test_a_keyword_that_peft_does_not_know_is_named():
    with pytest.raises(UserError, match=r"method=lora can't be applied to .*use_dorra"):
        checks.check(tiny("method=lora", "+method.adapt.use_dorra=true"))


def test_a_bias_of_an_adapter_that_can_not_be_merged_is_refused():
    with pytest.raises(UserError, match=r"lora_bias=true requires .* bias, unlike model\.layers\.0\.self_attn\.q_proj"):
        checks.check(tiny("method=lora", "+method.adapt.lora_bias=true"))


def test_a_bias_of_an_adapter_is_merged_into_that_of_its_layer(tmp_path):
    model = built(tmp_path / "model", "qwen2", **GROUPED)
    where = ("method.adapt.target_modules=[q_proj,v_proj]", "+method.adapt.lora_bias=true")
    short = ("train.max_steps=2", "eval.tasks=[]", "train.precision=fp32", "model.dtype=float32")
    record = run_tiny(tmp_path, f"model.path={model}", "method=lora", *where, *short)
    assert record.status == "ok", record.failure
    assert record.merge.merged
    assert record.merge.max_logit_difference < 1e-4


def test_an_adapter_that_makes_another_base_is_refused():
    with pytest.raises(UserError, match=r"method=lora can't be applied to .*: layer_replication makes a deeper model"):
        checks.check(tiny("method=lora", "+method.adapt.layer_replication=[[0,2],[1,2]]"))


def test_no_layer_is_replaced_by_a_kernel_of_the_hub(monkeypatch):
    """As transformers 5.25 does by itself; earlier ones must be asked for it."""
    given, load = {}, AutoModelForCausalLM.from_pretrained

    def noted(path, **how):
        given.update(how)
        return load(path, **how)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", noted)
    model = loading.load(tiny("method=lora"), torch.device("cpu"))
    assert given["use_kernels"] is False
    assert not model.use_kernels


def test_an_unknown_embedded_model_is_named():
    with pytest.raises(UserError, match=r"embedded model=tinny is unknown\. Did you mean tiny"):
        checks.check(tiny("model.path=embedded:tinny"))


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(UserError, match=f"{tmp_path} has no model"):
        checks.check(tiny(f"model.path={tmp_path}"))


def test_a_folder_without_weights_is_named(tmp_path):
    shutil.copytree(embedded.folder("tiny"), tmp_path / "tiny", ignore=shutil.ignore_patterns("*.safetensors"))
    cell = tiny(f"model.path={tmp_path / 'tiny'}")
    with pytest.raises(UserError, match="has no model"):
        loading.load(cell, torch.device("cpu"))


def test_a_path_that_is_no_folder_says_what_to_check(tmp_path):
    with pytest.raises(UserError, match=r"nowhere.*no such local folder.*model=smollm2_135m"):
        checks.check(tiny(f"model.path={tmp_path / 'nowhere'}"))


# Loading


def test_a_tokenizer_without_padding_pads_with_its_end_of_text(tmp_path):
    shutil.copytree(embedded.folder("tiny"), tmp_path / "tiny")
    config = tmp_path / "tiny" / "tokenizer_config.json"
    config.write_text(config.read_text().replace('"pad_token": "<|padding|>"', '"x": null'))
    tokenizer = loading.tokenizer(tiny(f"model.path={tmp_path / 'tiny'}").settings.model)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id


def test_the_fingerprint_follows_the_weights(tmp_path):
    copy = tmp_path / "elsewhere"
    shutil.copytree(embedded.folder("tiny"), copy)
    settings = ModelSettings(path=str(copy))
    first = loading.fingerprint(ModelSettings(path="embedded:tiny"))
    assert loading.fingerprint(settings) == first
    (file,) = copy.glob("*.safetensors")
    weights = load_file(file)
    weights["model.norm.weight"][0] += 1e-3
    save_file(weights, file, metadata={"format": "pt"})
    assert loading.fingerprint(settings) != first


def test_the_seed_decides_how_the_adapter_starts():
    nets = [prepared(tiny("method=lora", f"seed={seed}")).net for seed in (0, 0, 1)]
    starts = [torch.cat([p.flatten() for n, p in net.named_parameters() if "lora_A" in n]) for net in nets]
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])


def test_the_adapter_starts_as_no_change():
    base = AutoModelForCausalLM.from_pretrained(embedded.folder("tiny"))
    for method in ("lora", "dora"):
        bench = prepared(tiny(f"method={method}"))
        ids = bench.held_out[0].input_ids
        with torch.no_grad():
            assert (bench.net(input_ids=ids).logits - base(input_ids=ids).logits).abs().max() < 1e-5


def test_records_of_all_methods_read_back(records, folder):
    for record in records.values():
        assert read(folder / f"{record.cell.name}.json") == record
