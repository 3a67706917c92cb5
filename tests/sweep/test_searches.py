"""A sweeper that tunes has a search of its own for each method; a grid is one run of Hydra."""

from __future__ import annotations

import pytest

from harness.config_folders import named_sweeps
from harness.sweep.app import _searches

TUNE = named_sweeps()["tune"]
GRID = named_sweeps()["quickstart"]


@pytest.mark.parametrize(
    ("file", "overrides", "methods"),
    [
        (TUNE, ["method=lora,full", "rank=8"], ["lora", "full"]),
        (TUNE, ["method=lora"], ["lora"]),
        (TUNE, ["method=lora,full", "hydra/sweeper=grid"], ["lora,full"]),
        (GRID, ["method=lora,full"], ["lora,full"]),
        (None, ["method=lora,full"], ["lora,full"]),
        (None, ["method=lora,full", "hydra/sweeper=optuna"], ["lora", "full"]),
    ],
)
def test_each_method_is_searched_by_itself(file, overrides, methods):
    searches = _searches(file, overrides)
    assert [next(each for each in search if each.startswith("method=")) for search in searches] == [
        f"method={method}" for method in methods
    ]
    others = sorted(each for each in overrides if not each.startswith("method="))
    assert all(sorted(each for each in search if not each.startswith("method=")) == others for search in searches)


def test_a_file_of_the_users_own_may_choose_one_group_by_another(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("defaults:\n  - data: facts\n  - eval: ${data}\n  - override hydra/sweeper: optuna\n")
    assert len(_searches(file, ["method=lora,full"])) == 2
