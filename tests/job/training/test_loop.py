"""The training loop: its loss, its steps and their clock, and what it leaves alone."""

from __future__ import annotations

import math
from contextlib import nullcontext
from statistics import median
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from job_helpers import prepared, tiny, trained
from peft import PeftModel
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from harness.job.measure import timing
from harness.job.models import adapter_merge, embedded
from harness.job.training import loop
from harness.job.training.divergence import Diverged
from harness.settings import TrainSettings

METHODS = ("full", "lora", "dora", "galore")
STEPS = 12


@pytest.fixture(scope="module")
def tuned():
    """Each method trained on the same cell, strongly enough to change: its bench and what the loop measured."""
    out = {}
    for method in METHODS:
        bench = prepared(tiny(f"method={method}", "rank=4", "lr=0.01", f"train.max_steps={STEPS}"))
        before = loop.answer_loss(bench.net, bench.held_out, bench.accelerator)
        measured, _ = trained(bench)
        out[method] = SimpleNamespace(**vars(bench), before=before, measured=measured)
    return out


@pytest.fixture(scope="module")
def original():
    """The tiny model's weights as its folder has them."""
    return dict(AutoModelForCausalLM.from_pretrained(embedded.folder("tiny")).named_parameters())


# Loss


@pytest.mark.parametrize("speedups", ["auto", "off"])
@pytest.mark.parametrize("method", ["full", "dora", "qlora"])
def test_summed_loss_is_the_cross_entropy_of_all_logits(method, speedups):
    bench = prepared(tiny(f"method={method}", "train.batch_size=3", f"speedups={speedups}"))
    if method != "full":
        bench.net.train()
        with torch.no_grad():  # else B A is zero, and so is the gradient of A
            for name, p in bench.net.named_parameters():
                if "lora_B" in name:
                    p.normal_(std=0.1)
    (batch,) = bench.steps[0]
    assert (batch.lengths is None) == (speedups == "off")
    loss = loop.summed_loss(bench.net, batch)
    loss.backward()
    trained = {name: p for name, p in bench.net.named_parameters() if p.requires_grad}
    found = {name: p.grad.clone() for name, p in trained.items()}

    # Each sequence by itself, all its logits, the loss token by token.
    bench.net.zero_grad()
    expected = torch.zeros(())
    for ids, prompt in bench.examples[0]:
        logits = bench.net(input_ids=torch.tensor([ids])).logits[0]
        for at in range(prompt, len(ids)):
            expected = expected + cross_entropy(logits[at - 1], torch.tensor(ids[at]))
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    scale = max(float(p.grad.abs().max()) for p in trained.values())
    for name, p in trained.items():
        assert p.grad.abs().max() > 0, name
        assert (found[name] - p.grad).abs().max() < 2e-6 * scale, name


def test_validation_loss_is_a_mean_over_tokens_not_over_batches():
    bench = prepared(tiny("train.batch_size=2"))
    batches = [micro[0] for micro in bench.steps]
    assert len({b.supervised for b in batches}) > 1
    with torch.no_grad():
        sums = [float(loop.summed_loss(bench.net, b)) for b in batches]
    expected = sum(sums) / sum(b.supervised for b in batches)
    assert loop.answer_loss(bench.net, batches, bench.accelerator) == pytest.approx(expected, rel=1e-6)


# Steps


def test_accumulation_gives_the_gradient_of_the_whole_batch(original):
    # plain SGD, which shows the gradient itself; Adam would hide a wrong scale of it
    sgd = ("method=full", "lr=1", "train.max_grad_norm=1000", "method.optim.optimizer._target_=torch.optim.SGD")
    whole = prepared(tiny(*sgd, "train.batch_size=8"))
    split = prepared(tiny(*sgd, "train.batch_size=4", "train.grad_accum=2"))
    assert split.steps[0][0].supervised != split.steps[0][1].supervised  # a mean of means would be another gradient
    one, two = trained(whole)[0], trained(split)[0]
    assert [p.loss for p in one.loss] == pytest.approx([p.loss for p in two.loss], rel=1e-6)
    other = dict(split.net.named_parameters())
    for name, p in whole.net.named_parameters():
        assert (p - other[name]).abs().max() < 1e-6, name
        assert (p - original[name]).abs().max() > 1e-4, name


def test_a_step_that_fails_leaves_autocast(monkeypatch, own_precision):
    """Else what this process predicts next would be computed in bf16."""

    def failing(*_):
        raise RuntimeError("no memory")

    monkeypatch.setattr(loop, "summed_loss", failing)
    accelerator, net = Accelerator(mixed_precision="bf16", cpu=True), torch.nn.Linear(1, 1)
    with pytest.raises(RuntimeError, match="no memory"):
        loop.take_step(net, None, [SimpleNamespace(supervised=1)], None, accelerator, lambda part: None)
    assert not torch.is_autocast_enabled("cpu")


def test_warm_up_rises_linearly_and_half_a_cosine_falls_to_zero():
    factor = loop.rate_factor(TrainSettings(warmup_ratio=0.2), 10)
    assert [factor(i) for i in (0, 1, 2, 6, 10)] == pytest.approx([1 / 3, 2 / 3, 1.0, 0.5, 0.0])
    assert all(factor(i) > factor(i + 1) > 0 for i in range(2, 9))
    assert loop.rate_factor(TrainSettings(warmup_ratio=0.0), 10)(0) == 1.0
    assert loop.rate_factor(TrainSettings(warmup_ratio=0.9), 1)(0) > 0


@pytest.mark.parametrize(
    ("schedule", "final", "expected"),
    [
        ("cosine", 0.1, [0.5, 1.0, 0.55, 0.1]),
        ("linear", 0.0, [0.5, 1.0, 0.5, 0.0]),
        ("linear", 0.2, [0.5, 1.0, 0.6, 0.2]),
        ("constant", 0.0, [0.5, 1.0, 1.0, 1.0]),
    ],
)
def test_after_the_warm_up_the_rate_follows_the_schedule_to_its_end(schedule, final, expected):
    factor = loop.rate_factor(TrainSettings(warmup_ratio=0.1, schedule=schedule, final_lr=final), 9)
    assert [factor(i) for i in (0, 1, 5, 9)] == pytest.approx(expected)


def test_the_schedule_is_what_the_optimizer_steps_at():
    bench = prepared(tiny("lr=0.01", "train.max_steps=4", "train.warmup_ratio=0.25"))
    used = []
    bench.optimizer.optimizer.register_step_pre_hook(lambda o, *_: used.append(o.param_groups[0]["lr"]))
    measured, _ = trained(bench)
    cosine = [0.5 * (1 + math.cos(math.pi * i / 3)) for i in range(3)]
    assert used == pytest.approx([0.01 * f for f in (0.5, *cosine)])
    assert [point.lr for point in measured.loss] == used


def test_gradients_are_clipped_and_their_norm_is_recorded_unclipped():
    bench = prepared(tiny("method=full", "train.max_steps=1", "train.max_grad_norm=0.001"))
    seen = []

    def norm(optimizer, *_):
        grads = [p.grad for g in optimizer.param_groups for p in g["params"]]
        seen.append(float(torch.linalg.vector_norm(torch.stack([g.norm() for g in grads]))))

    bench.optimizer.optimizer.register_step_pre_hook(norm)
    measured, _ = trained(bench)
    assert seen == pytest.approx([0.001], rel=1e-3)
    assert measured.loss[0].grad_norm > 0.1


@pytest.mark.parametrize("method", METHODS)
def test_loss_falls(tuned, method):
    bench = tuned[method]
    after = loop.answer_loss(bench.net, bench.held_out, bench.accelerator)
    assert bench.before == pytest.approx(math.log(1024), abs=0.1)  # an untrained model guesses
    assert after < bench.before - 0.1
    assert bench.measured.loss[-1].loss < bench.measured.loss[0].loss - 0.1


def test_every_method_trains_on_the_same_tokens(tuned):
    measured = [bench.measured for bench in tuned.values()]
    assert len({m.batches for m in measured}) == 1
    assert len({(m.tokens.raw, m.tokens.padded, m.tokens.supervised) for m in measured}) == 1
    tokens = measured[0].tokens
    micro = [batch for step in tuned["lora"].steps for batch in step]
    assert tokens.raw == sum(sum(b.lengths) for b in micro) == measured[0].loss[-1].tokens
    assert tokens.padded == sum(b.input_ids.numel() for b in micro)
    assert tokens.supervised == sum(int((b.targets != -100).sum()) for b in micro)


def test_padding_is_computed_on_and_leaves_losses_and_the_order_as_they_are():
    settings = ("method=lora", "rank=4", "lr=0.01", f"train.max_steps={STEPS}")
    flat, plain = (trained(prepared(tiny(*settings, f"speedups={s}")))[0] for s in ("auto", "off"))
    assert flat.tokens.padded == flat.tokens.raw == plain.tokens.raw < plain.tokens.padded
    assert flat.batches == plain.batches
    assert [p.loss for p in flat.loss] == pytest.approx([p.loss for p in plain.loss], rel=1e-4)


def test_another_seed_trains_in_another_order():
    measured = [trained(prepared(tiny(f"seed={seed}", "train.max_steps=2")))[0] for seed in (0, 0, 1)]
    assert measured[0].batches == measured[1].batches != measured[2].batches
    assert [p.loss for p in measured[0].loss] == [p.loss for p in measured[1].loss]


def test_a_loss_that_is_not_finite_stops_at_its_step():
    bench = prepared(tiny("method=full", "lr=1e36", "train.warmup_ratio=0", "train.max_steps=5"))
    taken = []
    with pytest.raises(Diverged, match="loss became nan at step 2") as stopped:
        trained(bench, report=taken.append)
    assert stopped.value.step == 2
    assert [event["step"] for event in taken] == [1]


def test_under_a_rule_for_hopeless_cells_a_model_that_knows_nothing_any_more_ends_at_once():
    class NeverStops:
        meter = SimpleNamespace(aside=nullcontext)
        ended = None

        def decides_at(self, step):
            return False

        def stops(self, step, validations, accelerator):
            return False

    at = []
    for early_stop in (NeverStops(), None):
        bench = prepared(tiny("method=full", "lr=1e3", "train.warmup_ratio=0", "train.max_steps=4"))
        with pytest.raises(Diverged, match=r"no better than a uniform guess \(6\.93\)") as stopped:
            trained(bench, lambda: 99.0, guess=6.93, early_stop=early_stop)
        at.append(stopped.value.step)
    assert at == [2, 4]


def test_a_validation_loss_that_is_not_finite_is_divergence_too():
    with pytest.raises(Diverged, match="validation loss became nan at step 3"):
        trained(prepared(tiny()), validate=lambda: math.nan)


def test_validation_comes_at_its_intervals_and_after_the_last_step():
    bench = prepared(tiny("train.max_steps=5", "train.validate_every=2"))
    modes, losses = [], iter((3.0, 2.0, 1.0))

    def validate() -> float:
        bench.net.eval()
        return next(losses)

    bench.net.register_forward_pre_hook(lambda net, _: modes.append(net.training))
    measured, points = trained(bench, validate)
    assert [(p.step, p.loss) for p in points] == [(2, 3.0), (4, 2.0), (5, 1.0)]
    assert [p.tokens for p in points] == [measured.loss[i].tokens for i in (1, 3, 4)]
    assert modes == [True] * 5  # dropout would be back on after a validation


# Clock


def test_only_the_steps_are_on_the_clock(monkeypatch):
    seconds = [9.0, 5.0, 4.0, 2.0, 1.0, 4.0]
    bench = prepared(tiny(f"train.max_steps={len(seconds)}", "train.validate_every=1"))
    now, durations = 0.0, iter(seconds)

    def passes(amount: float) -> None:
        nonlocal now
        now += amount

    def validate() -> float:
        passes(1000)
        return 1.0

    monkeypatch.setattr(timing, "clock", lambda: now)
    bench.net.register_forward_hook(lambda *_: passes(0.5 if bench.net.training else 0.0))
    bench.optimizer.optimizer.register_step_post_hook(lambda *_: passes(next(durations)))
    raw = [micro[0].raw for micro in bench.steps]
    measured, _ = trained(bench, validate, report=lambda event: passes(1000), begin=lambda step: passes(1000))
    assert measured.step_seconds == [s + 0.5 for s in seconds]
    assert measured.laps == {"forward": [0.5] * 6, "backward": [0.0] * 6, "optimizer": seconds}
    assert measured.warmup_steps == 3
    steady = median(raw[i] / (seconds[i] + 0.5) for i in (3, 4, 5))
    assert measured.tokens_per_second_steady == pytest.approx(steady)
    assert measured.tokens_per_second_amortised == pytest.approx(sum(raw) / 28.0)


def test_a_single_step_has_no_steady_rate():
    measured, _ = trained(prepared(tiny("train.max_steps=1")))
    assert (measured.steps, measured.tokens_per_second_steady) == (1, None)
    assert measured.tokens_per_second_amortised > 0


def test_a_run_shorter_than_the_warm_up_keeps_its_last_step():
    measured, _ = trained(prepared(tiny("train.max_steps=2")))
    assert (measured.steps, measured.warmup_steps) == (2, 1)
    last = measured.loss[1].tokens - measured.loss[0].tokens
    assert measured.tokens_per_second_steady == pytest.approx(last / measured.step_seconds[1])


# Weights


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_frozen_weights_stay_to_the_bit(tuned, original, method):
    net = tuned[method].net
    assert isinstance(net, PeftModel)
    frozen = {
        name.replace(".base_layer", ""): p for name, p in net.get_base_model().named_parameters() if "lora_" not in name
    }
    assert frozen.keys() == original.keys()
    for name, p in frozen.items():
        assert torch.equal(p, original[name]), name


@pytest.mark.parametrize("method", ["full", "galore"])
def test_every_weight_is_trained(tuned, original, method):
    found = dict(tuned[method].net.named_parameters())
    assert found.keys() == original.keys()
    for name, p in found.items():
        assert not torch.equal(p, original[name]), name


def test_galore_keeps_its_state_at_rank_and_adamw_whole(tuned):
    bench = tuned["galore"]
    shapes = {name: (p.shape, bench.optimizer.state[p]["exp_avg"].shape) for name, p in bench.net.named_parameters()}
    projected = {name for name in shapes if name.endswith("proj.weight")}
    assert len(projected) == 2 * 7
    for name, (weight, state) in shapes.items():
        if name in projected:
            assert sorted(state) == [4, max(weight)], name
        else:
            assert state == weight, name


def test_merging_leaves_the_logits_as_they_are(tuned):
    for method in ("lora", "dora"):
        bench = tuned[method]
        batch = bench.held_out[0]

        def logits(net, batch=batch):
            net.eval()
            with torch.no_grad():
                return loop.answer_logits(net, batch)

        before = logits(bench.net)
        with bench.net.disable_adapter():
            untuned = logits(bench.net)
        merged, told = adapter_merge.merge(bench.net, batch, bench.accelerator)
        after = logits(merged)
        assert (before - untuned).abs().max() > 0.1  # else there was nothing to merge
        assert (after - before).abs().max() < 1e-4
        assert told.merged
        assert told.max_logit_difference == pytest.approx(float((after - before).abs().max()), abs=1e-6)
        assert not any("lora_" in name for name, _ in merged.named_parameters())
