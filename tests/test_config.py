"""Every shipped config composes to a cell, and settings that can't work are refused by name."""

from __future__ import annotations

import itertools
import math

import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf

from harness.config import CONF, check
from harness.errors import UserError

METHODS, MODELS, DATA, EVALS = (
    sorted(path.stem for path in (CONF / group).glob("*.yaml")) for group in ("method", "model", "data", "eval")
)
STABLE = [
    "method",
    "model",
    "data",
    "eval",
    "rank",
    "alpha",
    "lr",
    "seed",
    "study",
    "results_dir",
    "data_root",
    "train.max_steps",
    "train.batch_size",
    "train.max_length",
    "train.grad_accum",
    "eval.tasks",
    "eval.limit",
    "eval.num_fewshot",
]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_composes_with_every_model_data_and_eval(cell, method):
    columns = [MODELS, DATA, EVALS]
    longest = max(map(len, columns))
    for model, data, evaluation in itertools.islice(zip(*map(itertools.cycle, columns), strict=False), longest):
        made = cell(f"method={method}", f"model={model}", f"data={data}", f"eval={evaluation}")
        assert (made.method, made.data) == (method, data)
        assert made.settings["model"]["path"]
        assert made.settings["eval"]["tasks"]


def targets(node):
    """All `_target_` values at any depth of `node`."""
    if isinstance(node, dict):
        return [v for k, v in node.items() if k == "_target_"] + [t for v in node.values() for t in targets(v)]
    return [t for v in node for t in targets(v)] if isinstance(node, list) else []


@pytest.mark.parametrize(("group", "name"), [("method", m) for m in METHODS] + [("data", d) for d in DATA])
def test_every_slot_names_a_callable(compose, group, name):
    settings = OmegaConf.to_container(compose(f"{group}={name}")[group], resolve=True)
    slots = ("adapt", "optim") if group == "method" else ("load",)
    for slot in slots:
        assert settings[slot] is None or "_target_" in settings[slot]
    for target in targets(settings):
        assert callable(get_object(target)), target


def test_a_method_that_is_tuned_has_a_rate_and_an_untuned_one_has_none(compose):
    for name in METHODS:
        method = compose(f"method={name}").method
        assert (method.lr is None) == (method.optim is None), name


@pytest.mark.parametrize("rank", [1, 8, 64])
def test_alpha_is_twice_the_rank_unless_given(compose, rank):
    assert compose(f"rank={rank}").alpha == 2 * rank
    assert compose(f"rank={rank}", "alpha=16").alpha == 16


def test_lr_is_the_methods_own_times_the_scale(compose):
    for name in METHODS:
        config = compose(f"method={name}")
        assert config.lr == config.method.lr
    assert compose("method=lora", "lr_scale=5").lr == 1e-3  # 2e-4 × 5 is 0.001…02 in floats
    assert compose("method=full", "lr_scale=0.1").lr == 2e-6
    assert compose("method=lora", "lr_scale=5", "lr=3e-4").lr == 3e-4


@pytest.mark.parametrize("key", STABLE)
def test_the_stable_keys_exist(compose, key):
    # A null is given back as it is, only a missing key becomes the default.
    assert OmegaConf.select(compose(), key, default="absent") != "absent"


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("rank=0", "rank"),
        ("rank=-8", "rank"),
        ("alpha=0", "alpha"),
        ("alpha=-1", "alpha"),
        ("lr=0", "lr"),
        ("lr=-1e-4", "lr"),
        ("lr=inf", "lr"),
        ("lr=nan", "lr"),
        ("lr=null", "lr"),
        ("lr_scale=0", "lr_scale"),
        ("seed=-1", "seed"),
        (f"seed={2**32}", "seed"),
        ("train.max_steps=0", "train.max_steps"),
        ("train.batch_size=0", "train.batch_size"),
        ("train.grad_accum=0", "train.grad_accum"),
        ("train.max_length=0", "train.max_length"),
        ("train.validate_every=0", "train.validate_every"),
        ("train.save_every=0", "train.save_every"),
        ("train.warmup_ratio=1", "train.warmup_ratio"),
        ("train.max_grad_norm=0", "train.max_grad_norm"),
        ("train.max_grad_norm=nan", "train.max_grad_norm"),
        ("train.precision=fp8", "train.precision"),
        ("eval.limit=0", "eval.limit"),
        ("eval.num_fewshot=-1", "eval.num_fewshot"),
        ("eval.batch_size=0", "eval.batch_size"),
        ("infer.repeats=-1", "infer.repeats"),
        ("infer.batch_size=0", "infer.batch_size"),
        ("infer.prompt_tokens=0", "infer.prompt_tokens"),
        ("infer.new_tokens=1", "infer.new_tokens"),
        ("model.dtype=int8", "model.dtype"),
        ("retry.statuses=[ok]", "retry.statuses"),
        ("study=../x", "study"),
        ("study=a/../x", "study"),
        ("study=/abs", "study"),
        ("study=''", "study"),
        ("study=.hidden", "study"),
        ("data_root=/not/there", "data_root"),
    ],
)
def test_what_can_not_work_is_refused_by_name(compose, override, key):
    with pytest.raises(UserError, match=rf"^{key}=.*") as refused:
        check(compose(override))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("method=base", "lr=null"),
        ("eval.num_fewshot=0",),
        ("infer.repeats=0",),
        ("study=a/b.c_d-1",),
        ("train.precision=fp32",),
        ("train.save_every=50", "retry.on_oom=true"),
    ],
)
def test_what_can_work_is_not_refused(compose, overrides):
    check(compose(*overrides))


def test_data_root_may_be_any_folder(compose, tmp_path):
    check(compose(f"data_root={tmp_path}"))


def test_what_a_method_can_not_do_is_refused_with_its_reason(compose):
    config = compose("method=galore", "train.grad_accum=2")
    config.method.incompatible = {"train.grad_accum=2": "it steps while it goes backward."}
    with pytest.raises(
        UserError, match=r"^method=galore can't .* train\.grad_accum=2: it steps while it goes backward"
    ):
        check(config)
    config.train.grad_accum = 1
    check(config)


def test_the_product_of_a_missing_factor_is_missing(compose):
    assert compose("method=base").lr is None
    assert math.isclose(compose("method=lora", "lr_scale=0.3333333333").lr, 6.66667e-05)
