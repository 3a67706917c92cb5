"""method.init_seed: the seed of an adapter's first weights, apart from that of the batches' order."""

from __future__ import annotations

import pytest
import torch
from accelerate.utils import set_seed
from job_helpers import composed, no_peak, prepared, run_here, tiny  # noqa: F401
from smaller import SMALLER
from torch import Tensor, nn

from harness.job import run_cell
from harness.job.models import adapting

QUICK = (
    *("model=tiny", "method=lora", "rank=4", "data=wordmath_short", "++data.load.train=64", "train.max_steps=1"),
    *("++data.load.validation=8", "train.batch_size=2", "train.validation_items=2", "infer.repeats=0", "eval.tasks=[]"),
    "train.precision=fp32",
)


def test_the_default_and_methods_that_draw_nothing_leave_ids_as_they_are(cell):
    for method in ("lora", "full", "base"):
        plain = cell("model=tiny", f"method={method}")
        assert plain.id == cell("model=tiny", f"method={method}", "method.init_seed=null").id
        assert (plain.id == cell("model=tiny", f"method={method}", "method.init_seed=5").id) == (method != "lora")


def drawn(net: nn.Module) -> list[Tensor]:
    """All tensors of `net`, also those that peft keeps in plain dicts, such as FourierFT's positions."""
    kept = [part for module in net.modules() for part in vars(module).values() if isinstance(part, dict)]
    held = [value for part in kept for value in part.values() if isinstance(value, Tensor)]
    return [*net.parameters(), *net.buffers(), *held]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "method",
    ["adamss", "fourierft", "frod", "pvera", "randlora", "shira", "tinylora", "unilora", "vera", "waveft"],
)
def test_what_peft_draws_by_generators_of_its_own_follows_the_seeds(method):
    cells = {
        "plain": ("seed=1",),
        "other": ("seed=2",),
        "apart": ("seed=1", "method.init_seed=2"),
        "again": ("seed=3", "method.init_seed=2"),
    }
    tensors = {}
    for name, seeds in cells.items():
        cell = tiny(f"method={method}", "rank=4", *SMALLER.get(method, []), *seeds)
        base = prepared(tiny("method=base")).net
        set_seed(0)  # peft's own generators alone differ
        tensors[name] = drawn(adapting.adapt(base, cell))

    def alike(one: str, other: str) -> bool:
        pairs = zip(tensors[one], tensors[other], strict=True)
        return all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)

    assert not alike("plain", "other")
    assert alike("other", "apart")
    assert alike("apart", "again")


def test_seeds_of_a_method_are_one_setting(cell):
    adapts = [cell("model=tiny", "method=shira", f"seed={seed}").settings.method for seed in (0, 1)]
    assert adapts[0] == adapts[1]


def test_a_seed_that_the_method_gives_stays(cell):
    own = cell("model=tiny", "method=vera", "seed=3", "+method.adapt.projection_prng_key=9")
    net = adapting.adapt(prepared(tiny("method=base")).net, own)
    assert net.peft_config["default"].projection_prng_key == 9


@pytest.mark.long
@pytest.mark.slow
def test_first_weights_and_order_of_batches_have_seeds_of_their_own(tmp_path, monkeypatch):
    first, prepare = [], run_cell.prepare

    def noting(cell, model, loaded):
        first.append(torch.cat([p.detach().flatten() for name, p in model.named_parameters() if "lora_A" in name]))
        return prepare(cell, model, loaded)

    monkeypatch.setattr(run_cell, "prepare", noting)
    settings = {
        "plain": ("seed=1",),
        "apart": ("seed=1", "method.init_seed=7"),
        "other": ("seed=2", "method.init_seed=7"),
    }
    records = {name: run_here(tmp_path / name, composed(*QUICK, *more)) for name, more in settings.items()}
    assert {record.status for record in records.values()} == {"ok"}
    plain, apart, other = first
    assert torch.equal(apart, other)
    assert not torch.equal(plain, apart)
    batches = {name: record.train.batches for name, record in records.items()}
    assert batches["plain"] == batches["apart"] != batches["other"]
