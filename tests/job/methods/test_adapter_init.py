"""How adapters start: each by its own formula, on the same training data, and the model's answers stay as they were."""

from __future__ import annotations

import copy
import math
from importlib.util import find_spec
from itertools import islice
from types import SimpleNamespace

import peft
import pytest
import torch
from huggingface_hub import constants
from job_helpers import prepared, run_request, tiny
from peft.tuners.lora.layer import LoraLayer
from peft.utils.integrations import dequantize_module_weight
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, GPT2Config, GPT2LMHeadModel

from harness.errors import UserError
from harness.job.methods import adapter_init
from harness.job.models import adapter_merge, adapting, checks, embedded, saved
from harness.job.training import loop
from harness.record import model_folder

R, SCALING = 8, 2.0  # as in the cells
pytestmark = pytest.mark.filterwarnings("ignore")  # peft says that base weights change, as they should


@pytest.fixture(scope="module")
def base():
    return AutoModelForCausalLM.from_pretrained(embedded.folder("tiny"), dtype=torch.float32)


def started(method: str, *overrides: str) -> tuple:
    bench = prepared(tiny(f"method={method}", "train.max_steps=1", *overrides))
    layers = {n: m for n, m in bench.net.base_model.model.named_modules() if isinstance(m, LoraLayer)}
    assert len(layers) == 14
    return bench, layers


def parts(layer: LoraLayer) -> tuple[Tensor, Tensor]:
    return layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()


def logits(net, bench) -> Tensor:
    net.eval()
    with torch.no_grad():
        return loop.answer_logits(net, bench.held_out[0])


def least_cosine(a: Tensor, b: Tensor) -> float:
    """Of the largest principal angle between the spaces of rows of `a` and `b` (r, n)."""
    a, b = (torch.linalg.qr(x.T)[0] for x in (a, b))
    return float(torch.linalg.svdvals(a.T @ b).min())


@pytest.mark.parametrize("method", ["pissa", "olora", "eva", "corda", "lora_ga"])
def test_nothing_changes_at_first(base, method):
    bench, _ = started(method)
    before, after = logits(base, bench), logits(bench.net, bench)
    assert (after - before).abs().max() < 1e-4 * before.abs().max()


@pytest.mark.parametrize("method", ["pissa", "olora", "corda", "lora_ga"])
def test_an_adapter_that_is_nothing_without_its_start_is_not_saved_alone(method):
    with pytest.raises(UserError, match=r"^save=adapter can't be combined with .* take save=merged"):
        tiny(f"method={method}", "save=adapter")
    tiny(f"method={method}", "save=merged")


@pytest.mark.long
@pytest.mark.parametrize("method", ["eva", "loftq", "adalora", "prompt_tuning", "cartridge"])
def test_a_saved_adapter_comes_back_without_the_training_data(tmp_path, method):
    cell = tiny(f"method={method}", "lr=0.02", "eval.tasks=[]", "infer.repeats=0", "save=adapter")
    path = tmp_path / f"{cell.name}.json"
    record = run_request(cell, "test", path, None, lambda event: None, save="adapter")
    assert record.status == "ok", record.failure
    net = saved.load(record, model_folder(path), torch.device("cpu"))
    bench = prepared(cell)
    loss = loop.answer_loss(net, [bench.held_out[0]], bench.accelerator)
    assert loss == pytest.approx(record.validation[-1].loss, rel=1e-4)


@pytest.mark.parametrize("method", ["lora", "rslora"])
def test_the_initial_update_is_scaled_by_the_formula(method):
    _, layers = started(method, "alpha=24")
    scaling = 24 / (math.sqrt(R) if method == "rslora" else R)
    layer = next(iter(layers.values()))
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    a, b = parts(layer)
    x = torch.randn(3, a.shape[1])
    added = layer(x) - layer.get_base_layer()(x)
    assert torch.allclose(added, scaling * x @ a.T @ b.T, rtol=1e-4, atol=1e-5)


def test_pissa_is_the_leading_part_of_the_weights(base):
    _, layers = started("pissa")
    for name, layer in layers.items():
        weight = base.get_submodule(name).weight.detach()
        left, sizes, right = torch.linalg.svd(weight, full_matrices=False)
        leading = left[:, :R] * sizes[:R] @ right[:R]
        a, b = parts(layer)
        assert torch.allclose(SCALING * b @ a, leading, atol=1e-5)
        assert torch.allclose(layer.get_base_layer().weight, weight - leading, atol=1e-5)


def test_olora_is_orthonormal_and_of_the_weights(base):
    _, layers = started("olora")
    for name, layer in layers.items():
        q, r = torch.linalg.qr(base.get_submodule(name).weight.detach())
        a, b = parts(layer)
        assert torch.allclose(b, q[:, :R], atol=1e-5)
        assert torch.allclose(a, r[:R], atol=1e-5)


def inputs(base, bench, sequences: int) -> dict[str, Tensor]:
    """What each linear layer of `base` is given for the first training examples: (tokens, in)."""
    seen: dict[str, list[Tensor]] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, x, name=name: seen.setdefault(name, []).append(x[0][0].detach()))
        for name, module in base.named_modules()
        if name.endswith("_proj")
    ]
    for batch in islice(bench.samples(1), sequences):
        base(input_ids=batch.input_ids)
    for hook in hooks:
        hook.remove()
    return {name: torch.cat(parts) for name, parts in seen.items()}


def test_eva_is_where_the_inputs_vary_most(base):
    bench, layers = started("eva")
    for name, x in inputs(base, bench, 64).items():
        centred = x - x.mean(0)
        exact = torch.linalg.svd(centred, full_matrices=False)[2][:R]
        a, b = parts(layers[name])
        assert not b.any()
        kept, most = (float((centred @ torch.linalg.qr(rows.T)[0]).norm()) for rows in (a, exact))
        assert kept > 0.95 * most, name


def test_corda_keeps_what_the_inputs_need(base):
    bench, layers = started("corda", "method.init.sequences=16")
    for name, x in inputs(base, bench, 16).items():
        weight, layer = base.get_submodule(name).weight.detach(), layers[name]
        a, b = parts(layer)
        taken = SCALING * b @ a
        assert torch.allclose(layer.get_base_layer().weight + taken, weight, atol=1e-4)
        left, sizes, right = torch.linalg.svd(weight, full_matrices=False)
        plain = left[:, :R] * sizes[:R] @ right[:R]
        # Of what the layer answers to these inputs, its part says more than the weights' own leading part does.
        errors = [float((x @ (weight - part).T).norm()) for part in (taken, plain)]
        assert errors[0] < errors[1], name


def test_a_cartridge_starts_as_if_the_model_had_read_the_training_data(base):
    bench = prepared(tiny("method=cartridge", "train.max_steps=1", "method.knobs.tokens=40"))
    read = torch.cat([batch.input_ids for batch in islice(bench.samples(1), 40)], dim=1)[:, :40]
    batch = bench.held_out[0]
    count = len(batch.input_ids)
    after = torch.cat([read.expand(count, -1), batch.input_ids], dim=1)
    mask = torch.cat([torch.ones(count, 40, dtype=torch.long), batch.attention_mask], dim=1)
    base.eval()
    with torch.no_grad():
        expected = base(input_ids=after, attention_mask=mask).logits[:, batch.keep + 40]
    assert torch.allclose(logits(bench.net, bench), expected, atol=1e-4)
    encoder = bench.net.prompt_encoder["default"]
    assert encoder.trainable_embedding.requires_grad
    assert not encoder.frozen_embedding.requires_grad
    assert len(encoder.frozen_embedding) == 1


def test_a_cartridge_longer_than_the_training_data_is_refused():
    with pytest.raises(
        UserError, match=r"^method=cartridge starts from 100000 tokens of the training data, which have "
    ):
        prepared(tiny("method=cartridge", "train.max_steps=1", "method.knobs.tokens=100000"))


def test_lora_ga_is_along_the_gradient(base):
    bench, layers = started("lora_ga", "method.init.batch=2", "method.init.batches=1")
    base.zero_grad()
    batch = next(iter(bench.samples(2)))
    (loop.summed_loss(base, batch) / batch.supervised).backward()
    for name, layer in layers.items():
        left, _, right = torch.linalg.svd(base.get_submodule(name).weight.grad, full_matrices=False)
        a, b = parts(layer)
        assert least_cosine(a, right[:R]) > 0.99, name
        assert least_cosine(b.T, left[:, R : 2 * R].T) > 0.99, name
        # Algorithm 1: vectors of A and B are of one length, whatever the size of the gradient.
        length = len(left) ** 0.25 / 16**0.5
        for vectors in (a, b.T):
            assert torch.allclose(vectors.norm(dim=1), torch.full((R,), length), rtol=1e-4), name
        frozen = layer.get_base_layer().weight
        assert torch.allclose(frozen + SCALING * b @ a, base.get_submodule(name).weight, atol=1e-5), name
    base.zero_grad()


def test_lora_ga_takes_matrices_that_are_stored_transposed(gpt2):
    _, whole = gpt2
    ids = torch.arange(24)[None] % 64
    with torch.no_grad():
        before = whole(input_ids=ids).logits
    batch = SimpleNamespace(supervised=1)
    config = peft.LoraConfig(
        r=R,
        lora_alpha=2 * R,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        init_lora_weights="lora_ga",
        lora_ga_config=peft.LoraGAConfig(),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "summed_loss", lambda model, _: model(input_ids=ids, labels=ids).loss)
        net = adapter_init.lora_ga(whole, config, lambda _: iter([batch]), 1, 1)
    net.eval()
    with torch.no_grad():
        after = net(input_ids=ids).logits
    assert any(layer.lora_B["default"].weight.any() for layer in net.modules() if isinstance(layer, LoraLayer))
    assert torch.allclose(after, before, atol=1e-4)


def test_lora_ga_has_a_rank_of_half_a_matrix_at_most():
    checks.check(tiny("method=lora_ga", "rank=16"))  # the smallest matrix has 32 rows
    with pytest.raises(UserError, match=r"rank must be at most 16, half the size of the smallest matrix, got rank=17"):
        checks.check(tiny("method=lora_ga", "rank=17"))


def test_eva_has_the_rate_of_lora_whose_scale_it_has():
    eva, lora = tiny("method=eva"), tiny("method=lora")
    assert eva.alpha == lora.alpha
    assert eva.lr == lora.lr


def test_eva_needs_a_batch_of_as_many_tokens_as_its_rank(base):
    eva_config = peft.EvaConfig(rho=2.0)
    config = peft.LoraConfig(r=R, target_modules="all-linear", init_lora_weights="eva", eva_config=eva_config)
    short = SimpleNamespace(raw=2 * R - 1)  # peft would skip it, and wait for another
    with pytest.raises(
        UserError, match=rf"^method\.init\.batch must give a batch of at least 16 tokens for rank={R}, got"
    ):
        adapter_init.eva(copy.deepcopy(base), config, lambda _: iter([short]), 1, 1)


@pytest.mark.parametrize("rank", [1, 7])
def test_an_odd_number_of_reflections_is_refused_as_it_would_turn_the_untuned_model(rank):
    with pytest.raises(UserError, match=f"rank must be even, so that reflections cancel out at first, got rank={rank}"):
        checks.check(tiny("method=hra", f"rank={rank}"))
    checks.check(tiny("method=hra", f"rank={rank + 1}"))


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "corda", "lora_ga"])
@pytest.mark.parametrize("method", ["qlora", "lora_8bit"])
def test_a_start_of_whole_weights_is_refused_on_a_quantised_base(method, start):
    cell = tiny(f"method={method}", f"++method.adapt.init_lora_weights={start}")
    with pytest.raises(UserError, match=f"init_lora_weights={start} requires weights that are not quantised"):
        checks.check(cell)


@pytest.mark.skipif(find_spec("torchao") is None, reason="the extra `torchao` is not installed")
@pytest.mark.parametrize("method", ["lora_int8wo", "lora_fp8wo"])
def test_olora_is_refused_on_a_base_of_torchao(method):
    with pytest.raises(UserError, match="olora takes no weights in int8wo or fp8wo; use method=lora_8bit"):
        checks.check(tiny(f"method={method}", "++method.adapt.init_lora_weights=olora"))


@pytest.mark.parametrize("setting", ["direction=ArBr", "scale=unit"])
def test_lora_ga_refuses_settings_that_it_does_not_follow(setting):
    with pytest.raises(ValueError, match="lora_ga_config takes no direction and no scale but its defaults"):
        started("lora_ga", f"+method.adapt.lora_ga_config.{setting}")


@pytest.mark.parametrize("alpha", [8, 16])
def test_loftq_gives_back_most_of_what_quantising_takes(base, alpha):
    bench, layers = started("loftq", f"alpha={alpha}")
    for name, layer in layers.items():
        lost = base.get_submodule(name).weight.detach() - dequantize_module_weight(layer.get_base_layer())
        a, b = parts(layer)
        sizes = torch.linalg.svdvals(lost)
        rest = lost - alpha / R * b @ a
        assert float(rest.norm()) == pytest.approx(float(sizes[R:].norm()), rel=1e-3), name
    plain = prepared(tiny("method=qlora", "train.max_steps=1"))
    exact = logits(base, bench)
    near, far = ((logits(net, bench) - exact).norm() for net in (bench.net, plain.net))
    assert near < far


@pytest.mark.parametrize("init", ["true", "olora"])
@pytest.mark.parametrize("method", ["qlora", "lora_8bit"])
def test_a_start_that_changes_the_base_is_not_made_again_where_it_is_merged(method, init):
    bench = prepared(tiny(f"method={method}", "train.max_steps=1", f"++method.adapt.init_lora_weights={init}"))
    before = logits(bench.net, bench)
    merged = adapter_merge.fold(bench.net)
    assert (logits(merged, bench) - before).abs().max() < 0.15 * before.std()


@pytest.fixture
def gpt2(tmp_path):
    """A model whose matrices are stored as (in, out), quantised to NF4 and as it was."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=64, n_embd=64, n_layer=1, n_head=4, n_positions=32)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    return (
        GPT2LMHeadModel.from_pretrained(tmp_path, quantization_config=nf4, dtype=torch.float32),
        GPT2LMHeadModel.from_pretrained(tmp_path, dtype=torch.float32),
    )


def test_loftq_reads_matrices_that_are_stored_transposed(gpt2):
    quantised, whole = gpt2
    config = peft.LoraConfig(r=R, lora_alpha=R, target_modules="all-linear", task_type="CAUSAL_LM")
    net = adapter_init.loftq(quantised, config, lambda _: iter(()))
    for name, layer in net.base_model.model.named_modules():
        if isinstance(layer, LoraLayer):
            lost = whole.get_submodule(name).weight.detach().T - dequantize_module_weight(layer.get_base_layer())
            a, b = parts(layer)
            rest = torch.linalg.svdvals(lost)[R:].norm()
            assert float((lost - b @ a).norm()) == pytest.approx(float(rest), rel=1e-3), name


def test_loftq_reads_the_revision_that_was_quantised(gpt2, tmp_path, monkeypatch):
    quantised, whole = gpt2
    cache = tmp_path / "models--some--model"
    pinned, newest = "1" * 40, "2" * 40
    for revision, weights in ((pinned, whole), (newest, GPT2LMHeadModel(whole.config))):
        weights.save_pretrained(cache / "snapshots" / revision)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(newest)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    quantised.config._name_or_path, quantised.config._commit_hash = "some/model", pinned
    config = peft.LoraConfig(r=R, lora_alpha=R, target_modules="all-linear", task_type="CAUSAL_LM")
    net = adapter_init.loftq(quantised, config, lambda _: iter(()))
    layer = next(m for m in net.modules() if isinstance(m, LoraLayer))
    lost = whole.transformer.h[0].attn.c_attn.weight.detach().T - dequantize_module_weight(layer.get_base_layer())
    a, b = parts(layer)
    assert float((lost - b @ a).norm()) < 0.9 * float(lost.norm())


def test_olora_is_refused_where_peft_takes_it_for_another_matrix(gpt2):
    with torch.device("meta"):  # as a plan has it
        planned = GPT2LMHeadModel(gpt2[1].config)
    for model in (gpt2[1], planned):
        with pytest.raises(ValueError, match="olora takes no layers that are stored as"):
            adapting.adapt(model, tiny("method=olora"))
