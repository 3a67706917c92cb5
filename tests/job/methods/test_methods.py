"""Each method on the tiny model: it learns, trains what it says and nothing else, and comes back from a file.

The first ten methods have tests of their own: test_model.py, test_merge.py, test_dora.py, test_galore.py.
"""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable
from types import SimpleNamespace

import peft
import pytest
import torch
from accelerate.utils import set_seed
from hydra.utils import instantiate
from job_helpers import prepared, run_tiny, tiny
from omegaconf import OmegaConf
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from smaller import EXTRAS, SMALLER, need_extra
from torch import Tensor, nn

from harness.config import CONF, SWEEPS
from harness.errors import UserError
from harness.job.data.encoding import IGNORED
from harness.job.methods import optimizers
from harness.job.models import adapter_merge, adapting, checks, loading
from harness.job.training import attention, loop

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # peft warns of much that is meant
]
RANK, HIDDEN, LAYERS, STEPS = 8, 64, 2, 5
# (in, out) of each linear layer of the tiny Llama but the head.
BLOCK = [(64, 64), (64, 32), (64, 32), (64, 64), (64, 128), (64, 128), (128, 64)]
LINEARS = LAYERS * BLOCK
NORMS = (2 * LAYERS + 1) * HIDDEN
TOTAL = sum(i * o for i, o in LINEARS) + 2 * 1024 * HIDDEN + NORMS
INS, OUTS, N = sum(i for i, _ in LINEARS), sum(o for _, o in LINEARS), len(LINEARS)
LORA = RANK * (INS + OUTS)


def each(count: Callable[[int, int], int]) -> int:
    """The sum over all linear layers of count(in, out)."""
    return sum(count(i, o) for i, o in LINEARS)


def lokr(i: int, o: int) -> int:
    """Two factors of 4 × 4, and the other of rank 8, or whole where that is smaller."""
    a, b = o // 4, i // 4
    return 16 + (a * b if max(a, b) / 2 <= RANK else RANK * (a + b))


def osf(i: int, o: int) -> int:
    low = min(i, o) - min(i, o) // 2
    return low * (i + 1 + o)


def randlora(i: int, o: int) -> int:
    bases = -(-min(i, o) // 32)
    return bases * (32 + min(i, o))


# What is trained, by closed form. Each file's own knobs, at rank 8, but for SMALLER.
ADAPTERS = {
    "adalora": each(lambda i, o: 2 * RANK * (i + o + 1)),  # twice the rank at first
    "adamss": each(lambda i, o: 4 * min(i, o) + o),
    "adaption_prompt": 2 * (100 * HIDDEN + 1),
    "beft": LAYERS * 32,
    "boft": 4 * INS + OUTS,
    "c3a": each(lambda i, o: i * o // 32),
    "cartridge": 49 * LAYERS * 2 * 32,
    "corda": LORA,
    "deft": LORA,
    "delora": LORA + N,
    "eva": LORA,
    "fourierft": 1000 * N,
    "frod": each(lambda i, _: i + int(0.01 * i * i)),
    "glora": 2 * LORA,
    "gralora": LORA,
    "hira": LORA,
    "hra": RANK * INS,
    "ia3": LAYERS * (64 + 32 + 32 + 64 + 64 + 64 + 128),
    "lily": sum(RANK * i + 2 * RANK * o for i, o in BLOCK) + 2 * RANK * N,
    "ln_tuning": NORMS,
    "loftq": LORA,
    "loha": 2 * LORA,
    "lokr": each(lokr),
    "lora_ga": LORA,
    "lorafa": RANK * OUTS,
    "loraplus": LORA,
    "miss": RANK * OUTS,
    "oft": INS // 32 * (32 * 31 // 2),
    "olora": LORA,
    "osf": each(osf),
    "p_tuning": 20 * HIDDEN + 3 * (HIDDEN + 1) * HIDDEN,
    "peanut": LORA,
    "pissa": LORA,
    "prefix_tuning": 50 * LAYERS * 2 * 32,
    "prompt_tuning": 20 * HIDDEN,
    "psoft": N * (RANK * (RANK - 1) // 2 + 2 * RANK),
    "pvera": N * 2 * 256 + OUTS,
    "randlora": each(randlora),
    "riemannian": LORA,
    "road": 2 * OUTS,
    "rslora": LORA,
    "shira": LORA,
    "supertuning": each(lambda i, o: int(i * o * (1 - 0.99))),
    "tinylora": 64 * N,
    "unilora": 256,
    "vblora": 1024 * 32 + each(lambda i, o: 4 * 1024 * (i + o) // 32),
    "vera": 256 * N + OUTS,
    "waveft": 2048 * N,
}
WHOLE = ("adafactor", "adamw_8bit", "adamw_layer", "apollo", "apollo_mini", "galore_8bit", "galore_layer", "muon")
PARTS = {"bitfit": NORMS}  # of the model's own weights
ELSEWHERE = {"base", "base_nf4", "base_int8", "full", "lora", "qlora", "lora_8bit", "dora", "dora_fast", "qdora"}
ELSEWHERE |= {"galore", "galore_rsvd"}
ELSEWHERE |= {"base_int8wo", "lora_int8wo", "base_fp8wo", "lora_fp8wo"}  # test_weight_only.py
ELSEWHERE |= {"qlora_paged"}  # test_adamw.py
ELSEWHERE |= {"full_bf16", "full_kahan", "galore_bf16", "galore_8bit_layer"}  # test_master_weights.py
UNMERGED = {
    **dict.fromkeys(("adaption_prompt", "cartridge", "p_tuning", "prefix_tuning", "prompt_tuning"), "tokens"),
    "beft": "no bias",
    "lily": "not supported",
    "loftq": "4 bits",
}


@functools.cache
def place() -> SimpleNamespace:
    """What all methods have in common: the model, the examples. To load and encode them again would take most time."""
    bench = prepared(tiny("method=base", "train.batch_size=2"))
    return SimpleNamespace(
        base=bench.net, samples=bench.samples, accelerator=bench.accelerator, device=bench.net.device
    )


def bench_of(method: str, *overrides: str) -> SimpleNamespace:
    """As `prepared` gives it, but for the batches: the first two examples over and over, and the next two held out."""
    cell = tiny(f"method={method}", f"rank={RANK}", *SMALLER.get(method, []), *overrides)
    set_seed(0)
    quantised = "quantization_config" in cell.settings.method.load
    base = loading.load(cell, place().device) if quantised else copy.deepcopy(place().base)
    net = adapting.adapt(base, cell, place().samples)
    batches = place().samples(2)
    bench = SimpleNamespace(cell=cell, net=net, batch=next(batches), held_out=next(batches))
    bench.accelerator, bench.norm = place().accelerator, cell.settings.train.max_grad_norm
    bench.optimizer = instantiate(cell.settings.method.optim, _convert_="all")(net)
    return bench


def learn(bench: SimpleNamespace) -> list[float]:
    """Losses of steps on the first batch, over and over."""
    bench.net.train()
    return [
        float(loop.take_step(bench.net, bench.optimizer, [bench.batch], bench.norm, bench.accelerator, str)[0])
        for _ in range(STEPS)
    ]


def logits(bench: SimpleNamespace, net: nn.Module) -> Tensor:
    """(rows, tokens, pieces) where the answers of the first held-out batch are predicted."""
    net.eval()
    with torch.no_grad():
        return loop.answer_logits(net, bench.held_out)


def state_bytes(optimizer) -> int:
    return sum(value.nbytes for kept in optimizers.state(optimizer) for value in tensors(kept))


def tensors(value) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return [tensor for part in values for tensor in tensors(part)]


def moved(net: nn.Module, before: dict[str, Tensor]) -> set[str]:
    now = net.state_dict(keep_vars=True)
    assert now.keys() == before.keys()
    return {name for name, value in now.items() if isinstance(value, Tensor) and not torch.equal(value, before[name])}


def snapshot(net: nn.Module) -> dict[str, Tensor]:
    return {name: v.detach().clone() for name, v in net.state_dict().items() if isinstance(v, Tensor)}


FILES = sorted(path.stem for path in (CONF / "method").glob("*.yaml"))


def test_every_method_is_tested_here_or_elsewhere():
    assert sorted([*ADAPTERS, *WHOLE, *PARTS, *ELSEWHERE]) == FILES


def test_the_sweep_of_all_methods_has_all_that_run_anywhere():
    swept = OmegaConf.load(SWEEPS / "methods.yaml").hydra.sweeper.params.method.split(", ")
    elsewhere = [*EXTRAS, "full_bf16", "full_kahan", "galore_bf16", "galore_8bit_layer", "qlora_paged"]
    assert sorted([*swept, *elsewhere]) == FILES


# Adapters


@pytest.mark.parametrize("method", ADAPTERS)
def test_an_adapter_learns_is_all_that_moves_and_comes_back(tmp_path, method):
    rate = {"c3a": 0.1, "fourierft": 0.1, "osf": 0.003, "pvera": 0.005, "rslora": 0.005}.get(method, 0.02)
    bench = bench_of(method, f"lr={rate}")
    net, before = bench.net, snapshot(bench.net)
    trained = {name for name, p in net.named_parameters(remove_duplicate=False) if p.requires_grad}  # layers may share
    assert sum(p.numel() for p in net.parameters() if p.requires_grad) == ADAPTERS[method]
    losses = learn(bench)
    assert losses[-1] < losses[0] - 1e-3, losses
    assert moved(net, before) == trained
    kind = net.active_peft_config
    prefix = "prompt_" if kind.is_prompt_learning else PEFT_TYPE_TO_PREFIX_MAPPING[kind.peft_type]
    assert all(prefix.removesuffix("prompt_") in name for name in trained)

    if method != "adalora":  # which also measures what matters: test_optim.py
        # Adam's two moments, and a tensor that counts its steps, but for one that has a plain number for it.
        counters = 0 if method == "lorafa" else sum(p.requires_grad for p in net.parameters())
        assert state_bytes(bench.optimizer) == 2 * 4 * ADAPTERS[method] + 4 * counters

    after = logits(bench, net)
    net.save_pretrained(tmp_path, save_embedding_layers=False)
    if bench.cell.settings.method.init:  # the start takes data, or gives the base other weights
        again = bench_of(method).net
        peft.set_peft_model_state_dict(again, peft.load_peft_weights(tmp_path))
    else:
        again = peft.PeftModel.from_pretrained(copy.deepcopy(place().base), tmp_path)
    assert torch.allclose(logits(bench, again), after, atol=1e-5)

    merged, told = adapter_merge.merge(net, bench.held_out, bench.accelerator)
    if method in UNMERGED:
        assert UNMERGED[method] in told.reason
    else:
        assert told.merged, told.reason
        assert not isinstance(merged, peft.PeftModel)
    if not isinstance(merged, peft.PeftModel):
        assert (logits(bench, merged) - after).abs().max() < 1e-5 * max(10, float(after.abs().max()))


def test_every_kind_of_adapter_that_peft_has_is_a_method_or_can_not_be_one():
    without = {
        "CPT": "its tokens are those of examples that a context is made of, which no file can name",
        "MULTITASK_PROMPT_TUNING": "needs task ids, and a prompt that was trained on other tasks",
        "POLY": "needs task ids",
        "SHADOW": "peft 0.21 raises in a forward pass of transformers 5's Llama",
        "TRAINABLE_TOKENS": "trains the embeddings of tokens that the data brings, and nothing else",
        "XLORA": "mixes adapters that were trained before",
    }
    named = {OmegaConf.select(OmegaConf.load(CONF / "method" / f"{method}.yaml"), "adapt._target_") for method in FILES}
    configs = {kind.value: f"peft.{config.__name__}" for kind, config in peft.PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    assert {kind for kind, config in configs.items() if config not in named} == without.keys()


def test_blocks_of_another_size_than_asked_are_refused():
    bench_of("oft", "method.knobs.block_size=64")
    with pytest.raises(ValueError, match=r"oft_block_size must divide .*, 64 of model\..*q_proj, got 24"):
        bench_of("oft", "method.knobs.block_size=24")


def test_an_adapter_leaves_the_environment_as_it_was(monkeypatch):
    """peft's BOFT, without a CUDA compiler, leaves CC and CXX at gcc, by which torch.compile's code can't be linked."""
    monkeypatch.setattr(peft.tuners.boft.layer, "_FBD_CUDA", None)
    monkeypatch.setenv("CC", "mine")
    monkeypatch.delenv("CXX", raising=False)
    before = dict(os.environ)
    bench_of("boft")
    assert dict(os.environ) == before


@pytest.mark.parametrize("method", ["prompt_tuning", "p_tuning", "prefix_tuning", "cartridge"])
def test_tokens_before_a_sequence_move_no_target(method):
    bench = bench_of(method)
    assert attention.unsuited(bench.net) == attention.PROMPTED
    batch = bench.batch
    labels = torch.full_like(batch.input_ids, IGNORED)
    labels[:, batch.keep + 1] = batch.targets
    bench.net.eval()
    theirs = bench.net(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels).loss
    assert float(loop.summed_loss(bench.net, batch)) / batch.supervised == pytest.approx(float(theirs), rel=1e-5)


def test_a_prompt_starts_as_tokens_of_the_vocabulary():
    bench = bench_of("prompt_tuning")
    vocabulary = bench.net.get_input_embeddings().weight
    start = bench.net.prompt_encoder["default"].embedding.weight
    assert start.requires_grad
    assert (torch.cdist(start, vocabulary).argmin(1).unique().numel()) > 15, "20 tokens, most of them different"
    assert all(any(torch.equal(row, token) for token in vocabulary) for row in start)


@pytest.mark.parametrize(("method", "own"), [("prefix_tuning", 50), ("prompt_tuning", 20), ("lora", 0)])
def test_tokens_before_a_sequence_take_positions_of_the_model(method, own):
    settings, room = tiny(f"method={method}").settings, 2048 - own
    checks.check_length(settings, room)
    but = f" but for {own} of the method's own tokens" if own else ""
    with pytest.raises(
        UserError, match=f"^Sequences must have at most {room} tokens, the positions of .*tiny{but}, got"
    ):
        checks.check_length(settings, room + 1)


def test_every_layer_attends_to_an_adaption_prompt():
    bench = bench_of("adaption_prompt")
    layers = bench.net.base_model.model.model.layers
    assert all(hasattr(layer.self_attn, "adaption_prompt") for layer in layers)


@pytest.mark.parametrize("method", ["adalora", "eva", "prompt_tuning", "prefix_tuning", "beft"])
def test_a_whole_cell_is_recorded(tmp_path, method):
    record = run_tiny(tmp_path, f"method={method}", f"rank={RANK}", *SMALLER.get(method, []))
    assert record.status == "ok", record.failure
    assert record.parameters.trainable == ADAPTERS[method]
    assert {score.n for score in record.scores} == {4}
    if method in UNMERGED:
        assert not record.merge.merged
        assert list(record.inference) == ["base", "unmerged"]
    else:
        assert record.merge.merged
        assert list(record.inference) == ["base", "unmerged", "merged"]
    if "tuning" in method:
        assert set(record.environment["speedups"].values()) >= {f"off: {attention.PROMPTED}", "on"}


# Weights of the model itself


@pytest.mark.parametrize("method", PARTS)
def test_parts_of_the_weights_are_all_that_moves(method):
    bench = bench_of(method, "lr=0.05")
    before, trained = snapshot(bench.net), {n for n, p in bench.net.named_parameters() if p.requires_grad}
    losses = learn(bench)
    assert losses[-1] < losses[0] - 1e-3
    assert sum(p.numel() for p in bench.net.parameters() if p.requires_grad) == PARTS[method]
    assert moved(bench.net, before) == trained
    assert all("norm" in name for name in trained)
    assert state_bytes(bench.optimizer) == 2 * 4 * PARTS[method] + 4 * len(trained)


def test_biases_are_trained_where_there_are_some_and_no_weights_are_refused():
    net = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    net.norm = nn.LayerNorm(4)
    adapting.only(net, r"\.bias$|norm[^.]*\.weight$")
    assert {n for n, p in net.named_parameters() if p.requires_grad} == {"0.bias", "1.bias", "norm.bias", "norm.weight"}
    with pytest.raises(UserError, match=r"method=bitfit can't be applied to .*no weight's name matches nothing"):
        checks.check(tiny("method=bitfit", "method.adapt.names=nothing"))


# Of each matrix (in, out), and of each vector, the bytes that an optimizer keeps.
MATRICES = [*LINEARS, (HIDDEN, 1024), (HIDDEN, 1024)]
APOLLO = sum(min(RANK, i, o) * max(i, o) for i, o in LINEARS)
KEPT = {
    "adafactor": 4 * (sum(i + o for i, o in MATRICES) + NORMS) + 4 * (len(MATRICES) + 5),
    "adamw_layer": 2 * 4 * TOTAL + 4 * (len(MATRICES) + 5),
    "apollo": 2 * 4 * (APOLLO + 2 * 1024 * HIDDEN + NORMS) + 4 * N,
    "apollo_mini": 2 * 4 * (sum(max(i, o) for i, o in LINEARS) + 2 * 1024 * HIDDEN + NORMS) + 4 * N,
    "muon": 4 * sum(i * o for i, o in LINEARS) + 2 * 4 * (2 * 1024 * HIDDEN + NORMS) + 4 * (2 + 5),
}


@pytest.mark.parametrize("method", WHOLE)
def test_an_optimizer_moves_all_weights_and_keeps_what_it_says(method):
    need_extra(method)
    bench = bench_of(method, "lr=0.003")
    before = snapshot(bench.net)
    losses = learn(bench)
    assert losses[-1] < losses[0] - 0.05, losses
    assert moved(bench.net, before) == {name for name, _ in bench.net.named_parameters()}
    if method in KEPT:
        projections = sum(
            t.nbytes
            for kept in bench.optimizer.state.values()
            if "projector" in kept
            for t in tensors(vars(kept["projector"]))
        )
        assert state_bytes(bench.optimizer) - projections == KEPT[method]


def test_eight_bit_moments_take_a_quarter():
    whole, eight = bench_of("full"), bench_of("adamw_8bit")
    for bench in (whole, eight):
        learn(bench)
    # The norms are too small for blocks; a block of 256 has a scale in fp32, each optimizer two tables of 256 values.
    large, small = (sum(p.numel() for p in whole.net.parameters() if (p.numel() < 4096) is s) for s in (False, True))
    held = {t.data_ptr(): t.nbytes for kept in optimizers.state(eight.optimizer) for t in tensors(kept)}
    scales = sum(-(-p.numel() // 256) * 4 for p in whole.net.parameters() if p.numel() >= 4096)
    assert sum(held.values()) == 2 * (large + scales + 4 * small + 4 * 256)
