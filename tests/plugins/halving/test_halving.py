"""Hopeless cells end early: who competes with whom, what optuna's pruner decides, and what a real cell leaves."""

from __future__ import annotations

import pytest

from harness.plugins.halving import PLUGIN
from harness.plugins.halving.job import halving
from harness.plugins.halving.job.halving import Competitor, early_stop
from harness.protocol import EarlyStopping
from harness.record import StopRule

RULE = StopRule(first=0.1, factor=3)
SMALL = (
    *("model=tiny", "rank=8", "train.precision=fp32", "train.max_steps=12", "train.batch_size=2"),
    *("train.validation_items=4", "+data.load.train=64", "+data.load.validation=8", "eval.tasks=[]"),
    "infer.repeats=0",
)


class Aside:
    """In place of a meter, outside of any window."""


@pytest.fixture
def at_rungs(cell, tmp_path):
    """at_rungs(losses, *overrides): why a cell with these losses ends at each rung, None where it goes on."""

    def of(losses, *overrides, rule=RULE, reopened=False):
        ran = early_stop(
            cell(*SMALL, *overrides), EarlyStopping(rule, str(tmp_path), PLUGIN.early_stop), [10] * 100, Aside()
        )
        assert ran.rungs == {10: 0, 30: 1, 90: 2}
        return [ran.ends(step, 10 * step, loss) for step, loss in zip(ran.rungs, losses, strict=False)]

    return of


def test_rungs_lie_at_shares_of_the_tokens_and_before_the_last_step():
    assert halving.rungs(RULE, [10] * 100) == {10: 0, 30: 1, 90: 2}
    assert halving.rungs(RULE, [1, 1, 96, 1, 1]) == {3: 2}  # of several rungs in one step the last one counts
    assert halving.rungs(StopRule(0.5, 2), [10]) == {}
    assert halving.rungs(StopRule(0.9, 2), [10] * 3) == {}


def test_the_first_and_the_best_go_on_and_a_third_of_many():
    def goes_on(loss, *others):
        return halving.goes_on(RULE, {0: loss}, [{0: other} for other in others])

    assert goes_on(5.0)
    assert goes_on(4.0, 5.0)
    assert not goes_on(5.1, 5.0)
    assert goes_on(1.5, 1.0, 2.0, 3.0, 4.0, 5.0)  # 2 of 6
    assert not goes_on(2.5, 1.0, 2.0, 3.0, 4.0, 5.0)


def test_at_a_later_rung_only_those_that_reached_it_compete():
    others = [{0: 1.0, 1: 0.5}, {0: 2.0}, {0: 3.0}]
    assert halving.goes_on(RULE, {0: 1.5, 1: 0.4}, others)
    assert not halving.goes_on(RULE, {0: 0.9, 1: 0.6}, others)


def test_a_hopeless_cell_ends_at_its_first_rung_and_says_why(at_rungs):
    assert at_rungs([2.0, 1.5, 1.2], "lr=1e-3") == [None, None, None]
    (why,) = at_rungs([3.0], "lr=1e-6")
    assert why == (
        "Ended early by stop=asha: its validation loss, 3, is not the best of 2 settings at this point (best: 2)."
    )


def test_the_reason_counts_those_that_go_on(at_rungs):
    for number in range(6):
        at_rungs([1.0 + number], f"lr={number + 1}e-3")
    (why,) = at_rungs([4.5], "lr=1e-6")
    assert "its validation loss, 4.5, is not among the best 2 of 7 settings at this point (best: 1)." in why


@pytest.mark.parametrize(
    "apart",
    [("method=full",), ("data=facts",), ("train.max_steps=24",), ("train.grad_accum=2",), ("train.max_length=64",)],
)
def test_cells_of_another_method_data_or_budget_do_not_compete(at_rungs, apart):
    assert at_rungs([2.0], "lr=1e-3") == [None]
    assert at_rungs([3.0], "lr=1e-6", *apart) == [None]


def test_batch_sizes_compete_where_the_tokens_are_given(at_rungs):
    assert at_rungs([2.0], "lr=1e-3", "train.max_tokens=500") == [None]
    assert at_rungs([3.0], "lr=1e-3", "train.max_tokens=500", "train.batch_size=4")[0].startswith("Ended early")


def test_cells_under_another_rule_do_not_compete(at_rungs):
    assert at_rungs([2.0], "lr=1e-3") == [None]
    assert at_rungs([3.0], "lr=1e-6", rule=StopRule(0.0999, 3)) == [None]


def test_the_first_seed_at_a_rung_decides_for_its_setting(at_rungs):
    assert at_rungs([2.0, 1.5], "lr=1e-3", "seed=0") == [None, None]
    assert at_rungs([9.0], "lr=1e-3", "seed=1") == [None]
    assert at_rungs([3.0], "lr=1e-6", "seed=0")[0].startswith("Ended early")
    (why,) = at_rungs([1.0], "lr=1e-6", "seed=1")
    assert why.startswith("Ended early by stop=asha, as lora-")
    assert why.endswith(", the same setting with another seed, was.")
    # The loss of the second seed, 9.0, is no competitor of its own: the best third of two is one.
    assert at_rungs([2.5], "lr=1e-4", "seed=0")[0].startswith("Ended early")


def test_a_seed_that_decides_at_a_later_rung_is_not_held_against_others_at_an_earlier_one(at_rungs):
    assert at_rungs([2.0], "lr=1e-3", "seed=0") == [None]
    assert at_rungs([2.05, 1.2], "lr=1e-3", "seed=1") == [None, None]
    assert at_rungs([1.9], "lr=2e-3") == [None]
    (why,) = at_rungs([1.95], "lr=3e-3")
    assert "its validation loss, 1.95, is not the best of 3 settings at this point (best: 1.9)." in why


def test_a_cell_that_is_run_again_ends_or_goes_on_as_before(at_rungs):
    assert at_rungs([2.0], "lr=1e-3") == [None]
    assert at_rungs([1.0], "lr=1e-4") == [None]
    assert at_rungs([2.0, 1.5], "lr=1e-3") == [None, None]


def test_a_damaged_file_does_not_compete(at_rungs, tmp_path):
    (tmp_path / "torn.json").write_text("{")
    assert at_rungs([3.0], "lr=1e-6") == [None]


def test_seeds_of_a_setting_are_one_and_knobs_are_others(cell):
    first, seed, other = (
        Competitor.of_cell(cell(*SMALL, *overrides), RULE)
        for overrides in ((), ("seed=1",), ("train.weight_decay=0.1",))
    )
    assert first.setting == seed.setting != other.setting
    assert first.group == seed.group == other.group


@pytest.mark.long
@pytest.mark.slow
def test_real_cells(cell, tmp_path):
    """One cell that finishes, with the losses that it has without a rule, and one that is pruned."""
    from job_helpers import run_request

    competing = EarlyStopping(RULE, str(tmp_path / "rungs"), PLUGIN.early_stop)

    def ran(name, *overrides, early_stopping=competing):
        own = cell(*SMALL, "method=full", "train.warmup_ratio=0", *overrides)
        (tmp_path / name).mkdir()
        path = tmp_path / name / f"{own.name}.json"
        return run_request(own, "mine", path, None, lambda e: None, early_stopping=early_stopping)

    whole = ran("whole", "lr=1e-3", early_stopping=None)
    good = ran("good", "lr=1e-3")
    assert (good.status, good.stop, whole.stop) == ("ok", RULE, None)
    assert [point.loss for point in good.train.loss] == [point.loss for point in whole.train.loss]
    assert good.validation[-1] == whole.validation[-1]
    steps = [point.step for point in good.validation]
    assert len(steps) == 4
    assert steps[0] < 3 < steps[1] < 6 < steps[2] < 12 == steps[3]
    assert good.train.steps == len(good.train.step_seconds) == 12

    poor = ran("poor", "lr=1e-7")
    assert (poor.status, poor.failure.phase, poor.failure.step) == ("pruned", "train", steps[0])
    assert "is not the best of 2 settings" in poor.failure.reason
    assert poor.train.steps == steps[0]
    assert poor.train.tokens.raw == poor.validation[-1].tokens == good.validation[0].tokens
    assert [phase for phase in poor.phases if phase in ("merge", "score")] == []
