"""The named sweeps: each composes to as many cells as its header says, costs about what the header says, and keeps the
ids of its cells: a changed id means that recorded cells are run again.

``python tests/sweep/test_shipped_sweeps.py --write`` renews golden_ids.json after a change that is meant to change ids.
Its `before` stays as it is: the cells by name, without the id, as they were before settings were typed, of the sweeps
whose grids are still those.
"""

from __future__ import annotations

import functools
import json
import re
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from harness.config import ROOT
from harness.config_folders import named_sweeps
from harness.record import read_study
from harness.sweep.app.grid import grid, points
from harness.sweep.app.session import Outcome

sys.path.append(str(ROOT / "benchmarks"))
import sweeps
from sweeps import CORES, H100, PROCESSOR, header, on_h100, seconds

TUNED = ["tune"]  # by trials, each chosen by what the last ones gave
GRIDS = sorted(named_sweeps().keys() - set(TUNED))
# Of published studies one is enough for each run: all their records are there, and their ids are checked by the gate.
QUICK = [name for name, path in named_sweeps().items() if path.parent.name != "published"] + ["study_skill"]
EACH = [name if name in QUICK and name != "methods" else pytest.param(name, marks=pytest.mark.long) for name in GRIDS]
UNIT = {"h": 3600, "minutes": 60}
FILE = Path(__file__).with_name("golden_ids.json")
GOLDEN = json.loads(FILE.read_text(encoding="utf-8"))


@functools.cache  # composing takes its time
def cells(name, *overrides):
    return sweeps.cells(name, list(overrides))


def test_the_sweeps_of_the_article_are_there():
    assert {"article", "rank", "alpha", "lr", "seeds", "forgetting", "facts", "memory"} <= set(GRIDS)


@pytest.mark.long
@pytest.mark.parametrize("name", GRIDS)
def test_a_header_says_what_is_answered_how_many_cells_there_are_and_what_they_cost(name):
    said = header(name)
    assert "?" in said.splitlines()[0]
    found = cells(name)
    assert f"{len(found)} cells" in said
    assert_near(said, "2 cores", sum(seconds(cell, CORES) for cell in found))
    if overrides := on_h100(name):
        # As many of each axis, so as many cells; of those with one seed the mean is near that of all.
        lengths = {o.partition("=")[0]: len(points([o])) for o in overrides}
        assert all(lengths.get(key, len(own)) == len(own) for key, own in axes(name).items())
        some = cells(name, *overrides, *(["seed=0"] if "seed" in axes(name) else []))
        assert_near(said, "one H100", sum(seconds(cell, H100) for cell in some) * len(found) / len(some))


def ids(name: str) -> dict[str, str]:
    return {cell.name: cell.id for cell in cells(name)}


def test_every_grid_has_golden_ids():
    assert sorted(GOLDEN["ids"]) == GRIDS


@pytest.mark.parametrize("name", EACH)
def test_cells_keep_their_ids(name):
    found = ids(name)
    assert found == GOLDEN["ids"][name]
    if name in GOLDEN["before"]:
        assert Counter(cell.rpartition("-")[0] for cell in found) == GOLDEN["before"][name]


def axes(name):
    params = OmegaConf.load(named_sweeps()[name]).hydra.sweeper.get("params", {})
    return {key: points([f"{key}={values}"]) for key, values in params.items()}


def assert_near(said, where, expected):
    """That the header's time is the rule's, to a quarter; the quickstart promises a bound instead."""
    about = re.search(rf"(about|below) ([\d.]+) (h|minutes) on {where}", said)
    assert about, f"no cost on {where}"
    told = float(about[2]) * UNIT[about[3]]
    if about[1] == "below":
        assert expected < 1.25 * told
    else:
        assert told == pytest.approx(expected, rel=0.25)


@pytest.mark.parametrize("name", EACH)
def test_points_are_the_cells_that_a_sweep_composes(compose, cell, name):
    """The first and the last point, composed as `sweep` does, are the first and the last cell of the shorter way."""
    config = compose("hydra/sweeper=grid", config=name, return_hydra_config=True)
    assert config.study == name, "a named sweep has a study of its own"
    overrides = grid(config.hydra.sweeper.params, config.hydra.sweeper.candidates, [])
    found = [made.id for made in cells(name)]
    assert cell(*overrides[0], config=name).id == found[0]
    assert cell(*overrides[-1], config=name).id == found[-1]


def test_the_tasks_of_the_whole_are_those_of_its_data():
    by_data = {cell.data: cell.settings.eval.tasks for cell in cells("article", "method=base")}
    assert by_data == {"wordmath": ["wordmath", "plain_text"], "facts": ["facts", "plain_text"]}


@pytest.mark.parametrize("study", ["gsm8k", "exposures", "study_speed"])  # which ran alone
def test_the_rule_of_costs_is_near_what_was_measured(study):
    records, _ = read_study(ROOT / "results" / "reference" / study)
    assert {record.environment["cpu"]["name"] for record in records} == {PROCESSOR}
    measured = sum(record.seconds for record in records)
    assert sum(seconds(record.cell, CORES) for record in records) == pytest.approx(measured, rel=0.35)


def test_every_method_is_tuned_with_as_many_trials_over_the_same_range():
    config = OmegaConf.load(named_sweeps()["tune"])
    sweeper = config.hydra.sweeper
    assert f"{sweeper.n_trials} cells a method" in header("tune")
    assert list(sweeper.params) == ["lr_scale"], "a factor of each method's own rate"


def plugin():
    try:
        return find_spec("hydra_plugins.hydra_optuna_sweeper")
    except ModuleNotFoundError:
        return None


@pytest.mark.skipif(plugin() is not None, reason="the extra is installed")
def test_tuning_without_its_extra_says_what_to_install(harness):
    run = harness("sweep", "tune")
    assert run.returncode == 2
    assert run.stderr == (
        "error: hydra/sweeper=optuna needs the extra `optuna`: pip install -e '.[optuna]' in the project's folder.\n"
    )


@pytest.mark.slow
@pytest.mark.skipif(plugin() is None, reason="the extra `optuna` is not installed")
def test_trials_minimise_the_validation_loss_and_go_on_where_they_stopped(harness, tmp_path):
    small = ["model=tiny", "train.max_steps=2", "train.batch_size=2", "train.validation_items=4", "eval.tasks=[]"]
    assert harness("sweep", "tune", *small, "hydra.sweeper.n_trials=2").returncode == 0
    again = harness("sweep", "tune", *small, "hydra.sweeper.n_trials=3")
    assert again.returncode == 0
    assert again.stderr.count("is recorded in") == 2
    records, _ = read_study(tmp_path / "results" / "tune")
    assert len(records) == 3
    best = OmegaConf.load(tmp_path / "results" / "tune" / ".harness" / "optimization_results.yaml")
    assert best.best_value == min(record.validation[-1].loss for record in records)


def test_a_cell_without_a_loss_is_no_trial_that_was_won():
    assert float(Outcome("ok", 1.25)) == 1.25
    with pytest.raises(ValueError, match="diverged"):
        float(Outcome("diverged", None))


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        raise SystemExit(__doc__)
    golden = GOLDEN | {"ids": {name: ids(name) for name in GRIDS}}
    FILE.write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")
