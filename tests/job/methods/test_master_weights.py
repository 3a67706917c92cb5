"""16-bit weights: what a step of theirs keeps, by fp32 masters, stochastic rounding and Kahan summation."""

from __future__ import annotations

import pytest
import torch
from hydra.utils import instantiate
from job_helpers import no_peak, prepared, run_tiny, tiny  # noqa: F401
from smaller import SMALLER
from torch import Tensor

from harness.errors import UserError
from harness.job.measure.live_memory import LiveBytes
from harness.job.methods import optimizers
from harness.job.methods.master_weights import stochastic
from harness.job.predict import prediction
from harness.job.training import loop, probe

BF16 = ("model.dtype=bfloat16", "train.max_grad_norm=null", "train.warmup_ratio=0")
FIVE = ("train.max_steps=5",)


def losses(bench, times: int = 1) -> list[float]:
    """Of steps over the bench's batches, `times` over."""
    bench.net.train()
    taken = []
    for micro in bench.steps * times:
        taken.append(float(loop.take_step(bench.net, bench.optimizer, micro, None, bench.accelerator, str)[0]))
    return taken


def trained(bench) -> dict[str, Tensor]:
    """The matrices of the decoder layers: each weight of theirs has a gradient."""
    return {name: p.detach().clone() for name, p in bench.net.named_parameters() if "proj" in name}


def share(before: dict[str, Tensor], after: dict[str, Tensor]) -> float:
    """Of the weights that are not what they were."""
    moved = sum(int((after[name] != p).sum()) for name, p in before.items())
    return moved / sum(p.numel() for p in before.values())


# Rounding


def test_stochastic_rounding_keeps_the_mean_and_what_bf16_has():
    torch.manual_seed(0)
    wide = torch.tensor([1 + 2**-10, -1 - 3 * 2**-10, 3e-5, -1e-30, 1.5, 0.0, float("inf")])
    many = stochastic(wide.repeat(200_000, 1)).double()
    up, down = many.max(0).values, many.min(0).values
    assert torch.equal(up[4:], wide[4:].double())
    assert torch.equal(down[4:], wide[4:].double())
    places = (up - down)[:4]  # one last place of bf16: 2^-7 from 1 on
    assert (places > 0).all()
    assert float(places[0]) == 2**-7
    assert ((many[:, :4] == up[:4]) | (many[:, :4] == down[:4])).all()
    # The standard error of a mean of 200,000 is at most half a place by their root: 0.0011 of it.
    assert ((many.mean(0) - wide.double())[:4].abs() < 0.005 * places).all()
    assert stochastic(torch.tensor([float("nan")])).isnan().all()


# Master weights


def test_a_usual_rate_moves_a_third_of_bf16_weights_and_all_masters():
    bench = prepared(tiny("method=full", "lr=2e-5", *BF16, "train.max_steps=1"))
    before = trained(bench)
    losses(bench)
    masters = {n: bench.optimizer.state[p]["master"] for n, p in bench.net.named_parameters() if n in before}
    assert share(before, trained(bench)) < 0.45
    assert share({n: p.float() for n, p in before.items()}, masters) > 0.99
    for name, p in trained(bench).items():
        assert p.dtype is torch.bfloat16
        assert torch.equal(p, masters[name].bfloat16()), "the model computes with what its masters round to"


@pytest.mark.long
def test_training_in_16_bits_follows_training_in_fp32():
    """Losses, and how far the weights go along with those of fp32; rounding to the nearest goes elsewhere."""
    lr = "lr=2e-5"
    ways = {
        "fp32": prepared(tiny("method=full", lr, *BF16[1:], *FIVE)),
        "masters": prepared(tiny("method=full", lr, *BF16, *FIVE)),
        "stochastic": prepared(tiny("method=full_bf16", lr, *BF16, *FIVE)),
        "kahan": prepared(tiny("method=full_kahan", lr, *BF16, *FIVE)),
        "nearest": prepared(tiny("method=full", lr, *BF16, *FIVE)),
    }
    plain = ways["nearest"]
    for p in plain.net.parameters():
        p.grad_dtype = p.dtype
    plain.optimizer = plain.accelerator.prepare_optimizer(
        torch.optim.AdamW(plain.net.parameters(), lr=2e-5, weight_decay=0.0)
    )
    went, told = {}, {}
    for name, bench in ways.items():
        before = trained(bench)
        told[name] = losses(bench, 2)
        went[name] = torch.cat([(p.float() - before[n].float()).flatten() for n, p in trained(bench).items()])
    exact, final = went["fp32"], {name: of[-1] for name, of in told.items()}
    along = {name: float(way @ exact / (exact @ exact)) for name, way in went.items()}
    beside = {name: abs(value - final["fp32"]) for name, value in final.items()}
    for name in ("masters", "stochastic", "kahan"):
        assert along[name] == pytest.approx(1, abs=0.03)
        assert beside[name] < beside["nearest"] / 5
    assert along["nearest"] < 0.6


def test_gradients_add_up_in_fp32():
    bench = prepared(tiny("method=full", *BF16))
    dtypes = set()
    for p in bench.net.parameters():
        p.register_post_accumulate_grad_hook(lambda p: dtypes.add(p.grad.dtype))
    losses(bench)
    assert dtypes == {torch.float32}


def test_an_fp32_model_has_no_masters():
    bench = prepared(tiny("method=full"))
    assert type(bench.optimizer.optimizer) is torch.optim.AdamW


def test_steps_in_the_backward_pass_are_the_same_steps():
    benches = [prepared(tiny(f"method={m}", "lr=0.003", *BF16, *FIVE)) for m in ("full", "adamw_layer")]
    assert losses(benches[0]) == losses(benches[1])
    for a, b in zip(*(bench.net.parameters() for bench in benches), strict=True):
        assert torch.equal(a, b)


# Memory


# Bytes a weight of what is kept between steps, beside the weights' own 2, and of gradients.
@pytest.mark.parametrize(("method", "kept", "gradients"), [("full", 12, 4), ("full_bf16", 4, 2), ("full_kahan", 6, 2)])
def test_master_weights_count_as_optimizer_state(method, kept, gradients):
    bench = prepared(tiny(f"method={method}", *BF16))
    build = instantiate(bench.cell.settings.method.optim, _convert_="all")
    live = LiveBytes(torch.device("cpu"))
    found = probe.steps(bench.net, set(), build, bench.steps[0], None, bench.accelerator, live)
    weights, tensors = sum(p.numel() for p in bench.net.parameters()), len(list(bench.net.parameters()))
    assert found.gradients == gradients * weights
    assert found.resident.optimizer == found.peak.optimizer == kept * weights + 4 * tensors


def test_galore_keeps_all_in_bf16():
    bench = prepared(tiny("method=galore_bf16", *BF16))
    losses(bench)
    for p in bench.net.parameters():
        state = optimizers._opened(bench.optimizer.state[p]["inner"])
        kept = [t for part in (state, state.get("projector", {})) for t in part.values() if isinstance(t, Tensor)]
        assert {t.dtype for t in kept} == {torch.bfloat16}
        if "projector" in state:
            assert state["projector"]["ortho_matrix"].untyped_storage().nbytes() == 2 * 8 * min(p.shape)


def test_galore_with_all_its_savings_keeps_little_but_the_weights():
    """Beside 2 bytes a weight: large moments in blocks of 8 bits, and no gradient after a step."""
    bench = prepared(tiny("method=galore_8bit_layer", "train.max_grad_norm=null", *BF16))
    losses(bench)
    largest = max(bench.net.parameters(), key=Tensor.numel)
    state = optimizers._opened(bench.optimizer.state[largest]["inner"])
    assert {state[moment].dtype for moment in ("state1", "state2")} == {torch.uint8}
    assert {p.dtype for p in bench.net.parameters()} == {torch.bfloat16}
    assert all(p.grad is None for p in bench.net.parameters())


@pytest.mark.long
def test_on_several_devices_gradients_have_the_weights_dtype():
    ddp, fsdp = (
        prediction.Predictor(None, "fp32").predict(
            tiny("method=full", *BF16, "train.devices=2", f"train.parallel={way}"), None
        )
        for way in ("ddp", "fsdp")
    )
    weights = ddp["trainable"]
    assert ddp["resident"]["gradients"] == 2 * weights
    assert ddp["resident"]["optimizer"] == pytest.approx(12 * weights, rel=0.01)
    assert fsdp["resident"]["optimizer"] == pytest.approx(6 * weights, rel=0.01)


# Cells


def test_a_cell_is_trained_scored_and_recorded(tmp_path):
    found = {
        method: run_tiny(tmp_path, f"method={method}", *BF16, "infer.repeats=0", *SMALLER.get(method, []))
        for method in ("full", "galore_bf16", "galore_8bit_layer")
    }
    for record in found.values():
        assert record.status == "ok", record.failure
        assert record.environment["dtypes"].keys() == {"bfloat16"}
        assert {score.n for score in record.scores} == {4}
        assert record.merge.max_logit_difference is None
    assert len({record.cell.id for record in found.values()}) == 3


@pytest.mark.parametrize("method", ["full_bf16", "full_kahan", "galore_bf16", "galore_8bit_layer"])
def test_rounding_is_of_bf16_weights_alone(method):
    with pytest.raises(
        UserError, match=rf"^method={method} can't be .* model\.dtype=float32: it requires model\.dtype="
    ):
        tiny(f"method={method}", "train.max_grad_norm=null")
