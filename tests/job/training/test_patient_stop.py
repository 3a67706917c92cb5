"""train.early_stopping: training ends after validations without a gain, and the best step's weights are scored."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from job_helpers import composed, no_peak, run_here  # noqa: F401
from records import make_record, measured
from torch import nn

from harness.errors import UserError
from harness.job import run_cell
from harness.job.measure.phases import Meter
from harness.job.phases.train import validate
from harness.job.training.early_stop import PatientStop
from harness.record import BestStep, ValidationPoint
from harness.report.lint import findings
from harness.validate import check

QUICK = (
    *("model=tiny", "method=full", "data=wordmath_short", "++data.load.train=64", "++data.load.validation=8"),
    *("train.batch_size=2", "train.validation_items=8", "train.precision=fp32", "infer.repeats=0", "eval.tasks=[]"),
)


def stop_after(losses: list[float], patience: int, gain: float = 0.0) -> tuple[int, BestStep, float]:
    """The step at which training ends by these `losses`, one a step; the best step, and the weight it leaves."""
    net = nn.Linear(1, 1, bias=False)
    stop = PatientStop(patience, gain, net, Meter(torch.device("cpu")))
    validations = []
    for step, loss in enumerate(losses, start=1):
        with torch.no_grad():
            net.weight.fill_(step)
        validations.append(ValidationPoint(step, 10 * step, loss))
        if stop.stops(step, validations, Accelerator(cpu=True)):
            break
    return step, stop.restore(validations, len(losses)), net.weight.item()


def test_it_ends_after_validations_without_a_gain_and_restores_the_best():
    step, best, weight = stop_after([3.0, 2.0, 2.5, 2.1, 1.0], patience=2)
    assert (step, best.step, best.ended_early, weight) == (4, 2, True, 2.0)
    assert [point.step for point in best.later] == [3, 4]


def test_a_gain_that_is_too_small_counts_as_none_but_its_weights_are_the_best():
    step, best, weight = stop_after([3.0, 2.99, 2.98, 1.0], patience=2, gain=0.1)
    assert (step, best.step, best.later, weight) == (3, 3, [], 3.0)
    assert best.ended_early


def test_to_the_end_the_best_step_is_scored_too():
    step, best, weight = stop_after([3.0, 1.0, 2.0], patience=5)
    assert (step, best.step, best.ended_early, weight) == (3, 2, False, 2.0)


def test_a_step_without_validation_decides_nothing():
    stop = PatientStop(1, 0.0, nn.Linear(1, 1), Meter(torch.device("cpu")))
    assert not stop.stops(1, [], Accelerator(cpu=True))
    assert not stop.stops(2, [ValidationPoint(1, 10, 1.0)], Accelerator(cpu=True))
    assert stop.restore([], 2) is None


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("train.early_stopping=2",), "train.early_stopping requires train.validate_every, the steps between valid"),
        (("train.early_stopping_gain=0.1",), "train.early_stopping_gain=0.1 requires train.early_stopping."),
        (
            ("train.early_stopping=2", "train.validate_every=1", "train.save_every=5"),
            "train.early_stopping can't be combined with train.save_every=5: checkpoints do not keep",
        ),
        (
            ("train.early_stopping=2", "train.validate_every=1", "train.devices=2"),
            "train.early_stopping can't be combined with train.devices=2: it is for one device.",
        ),
    ],
)
def test_what_it_needs_is_said(compose, overrides, said):
    with pytest.raises(UserError) as told:
        check(compose(*overrides))
    assert str(told.value).startswith(said)


def test_the_default_leaves_ids_as_they_are(cell):
    assert cell("model=tiny").id == cell("model=tiny", "train.early_stopping=null").id
    early = ("train.early_stopping=2", "train.validate_every=5")
    assert cell("model=tiny", "train.validate_every=5").id != cell("model=tiny", *early).id
    assert cell("model=tiny", *early).id != cell("model=tiny", *early, "train.early_stopping_gain=0.1").id


@pytest.mark.long
@pytest.mark.slow
def test_a_cell_that_gets_worse_is_scored_at_its_best_step(tmp_path, monkeypatch):
    """At that rate the model worsens: it ends early, and its last recorded loss is that of the weights it has."""
    more = ("train.max_steps=12", "train.validate_every=1", "train.schedule=constant", "lr=0.1")
    scored = []

    def score(cell, model, loaded, recording):
        scored.append(validate(cell, model, loaded).loss)

    monkeypatch.setattr(run_cell, "score", score)
    plain = run_here(tmp_path / "plain", composed(*QUICK, *more))
    losses = [point.loss for point in plain.validation]
    record = run_here(tmp_path / "early", composed(*QUICK, *more, "train.early_stopping=2"))
    assert record.status == "ok", record.failure
    assert record.best.ended_early
    assert record.train.steps < plain.train.steps
    taken = losses[: record.train.steps]
    assert record.best.step == taken.index(min(taken)) + 1
    assert record.validation[-1].loss == pytest.approx(min(taken))
    assert scored == pytest.approx([losses[-1], min(taken)])
    assert len(record.validation) + len(record.best.later) == record.train.steps


def test_lint_says_which_cells_were_scored_before_their_end():
    early, whole = measured(make_record("lora", 16, 32.0, 1e-4)), measured(make_record("full", None, None, 1e-5))
    early.best = BestStep(25, True, [ValidationPoint(50, 20_000, 2.0)])
    (finding,) = [each for each in findings([early, whole]) if each.rule == "early stopping"]
    assert finding.sentence.startswith(
        "train.early_stopping scored 1 of 2 tuned cells before the last step they took, "
    )
    assert finding.cells == (early.cell.name,)
