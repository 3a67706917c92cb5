"""The points of a grid, as one would type each."""

from __future__ import annotations

import pytest

from harness.errors import UserError
from harness.sweep.app.grid import grid, points


def test_every_combination_is_a_point_and_a_later_override_replaces_an_earlier_one():
    assert points(["rank=4,8", "lr=1e-3", "rank=2,16"]) == [["rank=2", "lr=0.001"], ["rank=16", "lr=0.001"]]
    assert grid({"seed": "0,1"}, ["method=base", "method=lora rank=4"], ["seed=2"]) == [
        ["method=base", "seed=2"],
        ["method=lora", "rank=4", "seed=2"],
    ]


def test_a_switch_is_shown_as_it_was_typed():
    assert points(["train.packing=true", "save=null"]) == [["train.packing=true", "save=null"]]
    assert points(["train.packing=true,false"]) == [["train.packing=true"], ["train.packing=false"]]


def test_a_pattern_stands_for_the_names_in_its_group():
    class Loader:
        def get_group_options(self, group, results_filter):
            return {"method": ["full", "lora", "loraplus", "pissa"]}.get(group, [])

    assert points(["method=glob(lora*)"], Loader()) == [["method=lora"], ["method=loraplus"]]
    assert points(["method=glob(*,exclude=lora*)"], Loader()) == [["method=full"], ["method=pissa"]]
    for pattern in ("method=glob(x*)", "rank=glob(*)"):
        with pytest.raises(UserError, match=r"matches nothing in conf/"):
            points([pattern], Loader())


def test_a_range_of_an_optimizer_is_no_axis_of_a_grid():
    with pytest.raises(UserError, match=r"^A grid requires key=a,b,c, got lr=interval\(0,1\)\.$"):
        points(["lr=interval(0,1)"])
