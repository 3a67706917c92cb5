"""Points of a grid that are composed by few compositions in full: the same configurations, and the same errors."""

from __future__ import annotations

from collections.abc import Sequence

import hydra
import pytest
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from harness.config import CONF
from harness.sweep import app
from harness.sweep.app.composing import Composer


@pytest.fixture(scope="module")
def in_full():
    app.register()

    def compose(overrides: Sequence[str]) -> DictConfig:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            return hydra.compose("config", overrides=list(overrides))

    return compose


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["method=galore", "rank=4", "lr=1e-3", "seed=1"],
        ["rank=4", "method=qlora", "model=tiny", "lr_scale=0.5"],  # choices of groups come first, wherever they stand
        ["data=facts", "train.max_steps=3", "eval.tasks=[facts,gsm8k]", "eval.limit=null"],
        ["alpha=${rank}", "rank=2", "study='a b'"],
        ["method.knobs.scale=3", "method=galore"],
        ["method.adapt.r=1", "~method.adapt.r"],
        ["+data.load.train=64", "+method.adapt.note={a: 1}", "data.load.seed=5"],
        ["train.max_steps=3", "++train.max_steps=4"],
        ["++train.max_steps=4", "train.max_steps=3"],
        ["~method.optim.optimizer.fused", "method.optim.optimizer.weight_decay=0.1"],
        ["train={max_steps: 7}", "train.batch_size=3", "rank=1", "rank=2"],
        ["method.adapt.target_modules=[q_proj]", "~method.adapt.lora_dropout"],
    ],
    ids=" ".join,
)
def test_a_point_is_what_hydra_composes(in_full, overrides):
    compose, expected = Composer(in_full), in_full(overrides)
    for _ in range(2):  # what was kept of the first time is as it was
        found = compose(overrides)
        assert found == expected
        found.train.max_steps = 1000


@pytest.mark.parametrize(
    "overrides",
    [
        ["rank=abc"],
        ["rnk=8"],
        ["train.steps=8"],
        ["rank=[1"],
        ["method=lora", "rank=1,2"],
        ["method=lorra"],
        ["method.adapt.use_rslora=true"],
        ["~method.adapt.r", "method.adapt.r=1"],
        ["alpha=${mul:4"],
    ],
    ids=" ".join,
)
def test_an_error_is_hydras(in_full, overrides):
    with pytest.raises((HydraException, OmegaConfBaseException)) as expected:
        in_full(overrides)
    with pytest.raises(expected.type) as found:
        Composer(in_full)(overrides)
    assert str(found.value) == str(expected.value)


@pytest.mark.long
def test_each_choice_of_groups_is_composed_once(in_full):
    composed = []
    compose = Composer(lambda overrides: (composed.append(tuple(overrides)), in_full(overrides))[1])
    points = [[f"method={method}", f"rank={rank}", f"seed={rank}"] for method in ("lora", "full") for rank in (4, 8)]
    found = [compose(point) for point in points]
    assert composed == [("method=lora",), ("method=full",)]
    assert [(config.method.name, config.rank) for config in found] == [
        ("lora", 4),
        ("lora", 8),
        ("full", 4),
        ("full", 8),
    ]
    assert found == [in_full(point) for point in points]
