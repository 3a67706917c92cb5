"""method.init_seed: the seed of an adapter's first weights, apart from that of the batches' order."""

from __future__ import annotations

import pytest
import torch
from job_helpers import composed, no_peak, run_here  # noqa: F401

from harness.job import run_cell

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
