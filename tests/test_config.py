"""Every shipped config composes to a cell, and settings that can't work are refused by name."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf

from harness.config import CONF
from harness.errors import UserError
from harness.sweep.app import messages
from harness.sweep.cells import from_config
from harness.validate import check

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


UNCLIPPED = "train.max_grad_norm=null"  # as methods that step in the backward pass want it


def data_with_its_objective(data: str) -> list[str]:
    """Overrides for `data`, with the only objective that learns from them, if it is not the default."""
    return [f"data={data}", *(["train.objective=kto"] if data == "local_marked" else [])]


@pytest.fixture(scope="module")
def methods(compose):
    """Each method's configuration, composed once: that takes its time."""
    return {name: compose(f"method={name}", UNCLIPPED) for name in METHODS}


@pytest.fixture(scope="module")
def places(compose):
    """Configurations that have every model, data and eval among them."""
    columns = [MODELS, DATA, EVALS]
    rows = itertools.islice(zip(*map(itertools.cycle, columns), strict=False), max(map(len, columns)))
    return [compose(f"model={m}", *data_with_its_objective(d), f"eval={e}", UNCLIPPED) for m, d, e in rows]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_composes_with_every_model_data_and_eval(methods, places, method):
    for place in places:
        config = copy.copy(place)
        config.method = methods[method].method
        if "train.gradient_checkpointing=true" in config.method.incompatible:  # as large models have it by default
            config.train = copy.copy(place.train)
            config.train.gradient_checkpointing = False
        if "model.dtype!=bfloat16" in config.method.incompatible:
            config.model = copy.copy(place.model)
            config.model.dtype = "bfloat16"
        made = from_config(config)
        options = [f"{name}={value}" for name, value in sorted(place.data.options.items())]
        options += ["kto=0.1"] if place.train.objective == "kto" else []
        assert (made.method, made.data) == (method, " ".join([place.data.name, *options]))
        assert made.settings.model.path
        assert made.settings.eval.tasks


def test_a_method_in_a_composed_configuration_is_as_if_composed_with_it(cell, methods, places):
    for method in ("qlora", "galore", "adalora"):
        config = copy.copy(places[0])
        config.method = methods[method].method
        groups = (f"model={MODELS[0]}", f"data={DATA[0]}", f"eval={EVALS[0]}")
        assert from_config(config) == cell(f"method={method}", *groups, UNCLIPPED)


def targets(node):
    """All `_target_` values at any depth of `node`."""
    if isinstance(node, dict):
        return [v for k, v in node.items() if k == "_target_"] + [t for v in node.values() for t in targets(v)]
    return [t for v in node for t in targets(v)] if isinstance(node, list) else []


@pytest.mark.parametrize(("group", "name"), [("method", m) for m in METHODS] + [("data", d) for d in DATA])
def test_every_slot_names_a_callable(compose, methods, group, name):
    config = methods[name] if group == "method" else compose(f"{group}={name}")
    settings = OmegaConf.to_container(config[group], resolve=True)
    slots = ("adapt", "init", "optim") if group == "method" else ("load",)
    for slot in slots:
        assert settings[slot] is None or "_target_" in settings[slot]
    for target in targets(settings):
        assert callable(get_object(target)), target


def test_a_method_that_is_tuned_has_a_rate_and_an_untuned_one_has_none(methods):
    for name, config in methods.items():
        assert config.method.name == name
        assert (config.method.lr is None) == (config.method.optim is None), name


@pytest.mark.parametrize("rank", [1, 8, 64])
def test_alpha_is_twice_the_rank_unless_given(compose, rank):
    assert compose(f"rank={rank}").alpha == 2 * rank
    assert compose(f"rank={rank}", "alpha=16").alpha == 16


def test_lr_is_the_methods_own_times_the_scale(compose, methods):
    for config in methods.values():
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
        ("train.grad_accum=0", "train.grad_accum"),
        ("train.max_length=0", "train.max_length"),
        ("train.validate_every=0", "train.validate_every"),
        ("train.save_every=0", "train.save_every"),
        ("train.warmup_ratio=1", "train.warmup_ratio"),
        ("train.epochs=0", "train.epochs"),
        ("train.epochs=nan", "train.epochs"),
        ("train.schedule=step", "train.schedule"),
        ("train.final_lr=1.5", "train.final_lr"),
        ("train.weight_decay=-0.1", "train.weight_decay"),
        ("train.betas=[0.9]", "train.betas"),
        ("train.betas=[0.9,1]", "train.betas"),
        ("train.adapter_dropout=1", "train.adapter_dropout"),
        ("train.loss_on=prompt", "train.loss_on"),
        ("train.data_seed=-1", "train.data_seed"),
        ("train.max_grad_norm=0", "train.max_grad_norm"),
        ("train.max_grad_norm=nan", "train.max_grad_norm"),
        ("train.precision=fp8", "train.precision"),
        ("data.limit=0", "data.limit"),
        ("data.noise=1.1", "data.noise"),
        ("eval.limit=0", "eval.limit"),
        ("eval.num_fewshot=-1", "eval.num_fewshot"),
        ("infer.repeats=-1", "infer.repeats"),
        ("infer.batch_size=0", "infer.batch_size"),
        ("infer.prompt_tokens=0", "infer.prompt_tokens"),
        ("infer.new_tokens=1", "infer.new_tokens"),
        ("model.dtype=int8", "model.dtype"),
        ("retry.statuses=[ok]", "retry.statuses"),
        ("retry.statuses=[[1]]", "retry.statuses"),
        ("method.adamw=null", "method.adamw"),
        ("study=../x", "study"),
        ("study=a/../x", "study"),
        ("study=/abs", "study"),
        ("study=''", "study"),
        ("study=.hidden", "study"),
        ("data_root=/not/there", "data_root"),
    ],
)
def test_impossible_settings_are_refused_by_name(compose, override, key):
    with pytest.raises(UserError, match=rf"^{key}(=| must .*, got )") as refused:
        check(compose(override))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("train.batch_size=0",), r"train\.batch_size must be a positive number or auto, got 0\."),
        (("train.batch_size=most",), r"train\.batch_size must be a positive number or auto, got most\."),
        (("eval.batch_size=0",), r"eval\.batch_size must be a positive number or auto, got 0\."),
        (("eval.batch_size=most",), r"eval\.batch_size must be a positive number or auto, got most\."),
        (("train.batch_size=auto",), r"train\.batch_size=auto requires train\.global_batch, the sequences of a step\."),
        (
            ("train.batch_size=auto", "train.global_batch=8", "train.grad_accum=2"),
            r"train\.batch_size=auto requires train\.grad_accum=1, got 2: it accumulates by itself\.",
        ),
        (("train.global_batch=8",), r"train\.global_batch=8 requires train\.batch_size=auto; a step of .*8 has 8 "),
        (("train.batch_size=auto", "train.global_batch=0"), r"train\.global_batch must be 1 or more, got 0"),
        (
            ("train.batch_size=auto", "train.global_batch=9", "train.devices=2"),
            r"train\.devices=2 can't share train\.global_batch=9, .*take a multiple of 2",
        ),
        (
            ("train.batch_size=auto", "train.global_batch=8", "method=adamw_layer", UNCLIPPED),
            r"method=adamw_layer can't be combined with train\.batch_size=auto: .*gradients cannot accumulate",
        ),
    ],
)
def test_a_batch_that_is_none_or_is_said_twice_is_refused(compose, overrides, said):
    with pytest.raises(UserError, match=f"^{said}") as refused:
        check(compose(*overrides))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("train.max_steps=null",), r"train\.max_steps=null requires train\.epochs\."),
        (("train.epochs=3", "train.max_steps=50"), r"train\.epochs=3 requires train\.max_steps=null, got 50\."),
        (
            ("train.final_lr=0.1", "train.schedule=constant"),
            r"train\.final_lr=0\.1 requires train\.schedule=cosine or linear, got constant\.",
        ),
        (
            ("train.adapter_dropout=0.1", "method=full"),
            r"train\.adapter_dropout=0\.1 can't .* method=full: no dropout\.",
        ),
        (
            ("train.weight_decay=0.1", "method=adafactor"),
            r"train\.weight_decay=0\.1 can't .* method=adafactor, which has",
        ),
        (
            ("train.max_steps=null", "train.epochs=2", "method=adalora"),
            r"method=adalora can't be combined with train\.max_steps=null: it plans its ranks",
        ),
        (
            ("train.early_stopping=3", "train.validate_every=10", "method=adalora"),
            r"method=adalora can't be combined with train\.early_stopping=3: it prunes up to its last steps",
        ),
        (("train.max_steps=1", "method=adalora"), r"method=adalora can't .* train\.max_steps=1: it measures ranks"),
        (
            ("train.betas=[0.9,0.95]", "method=adafactor"),
            r"train\.betas requires a method that steps by AdamW, got adaf",
        ),
    ],
)
def test_training_settings_that_contradict_each_other_or_the_method_are_refused(compose, overrides, said):
    with pytest.raises(UserError, match=f"^{said}") as refused:
        check(compose(*overrides))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
@pytest.mark.parametrize("method", ["lora", "full", "qlora", "lora_8bit"])
def test_gradients_are_never_in_float16(compose, method, precision):
    said = rf"model\.dtype=float16 can't .* method={method}, which trains: .* use model\.dtype=bfloat16, or float32"
    with pytest.raises(UserError, match=f"^{said}"):
        check(compose("model.dtype=float16", f"method={method}", f"train.precision={precision}"))


def test_rows_are_filled_in_the_order_drawn_or_cut_by_length(compose):
    with pytest.raises(UserError, match=r"train\.packing fills rows .* train\.bucketing would change; take one\."):
        check(compose("train.packing=true", "train.bucketing=4"))


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("method=base", "lr=null"),
        ("method=base", "model.dtype=float16"),
        ("eval.num_fewshot=0",),
        ("infer.repeats=0",),
        ("study=a/b.c_d-1",),
        ("train.precision=fp32",),
        ("train.max_grad_norm=null",),
        ("train.epochs=2.5",),
        ("train.epochs=1", "train.weight_decay=0.1", "train.adapter_dropout=0.1", "method=base"),
        ("train.betas=[0.9,0.95]", "method=galore"),
        ("train.weight_decay=0.1", "train.betas=[0.9,0.95]", "method=loraplus"),
        ("train.weight_decay=0.1", "train.betas=[0.9,0.95]", "method=lorafa"),
        ("train.weight_decay=0.1", "train.adapter_dropout=0.1", "train.betas=[0.9,0.95]", "method=qdora"),
        ("train.save_every=50", "retry.on_oom=true"),
        ("train.batch_size=auto", "train.global_batch=8", "train.devices=2"),
    ],
)
def test_possible_settings_are_not_refused(compose, overrides):
    check(compose(*overrides))


def test_data_root_may_be_any_folder(compose, tmp_path):
    check(compose(f"data_root={tmp_path}"))


def test_settings_that_a_method_does_not_support_are_refused(compose):
    config = compose("method=galore", "train.grad_accum=2")
    config.method.incompatible = {"train.grad_accum=2": "it steps while it goes backward."}
    with pytest.raises(
        UserError, match=r"^method=galore can't .* train\.grad_accum=2: it steps while it goes backward"
    ):
        check(config)
    config.train.grad_accum = 1
    check(config)
    config.method.incompatible = {"train.validate_every!=null": "it does not."}
    check(config)
    config.train.validate_every = 5
    with pytest.raises(UserError, match=r"can't be combined with train\.validate_every=5: it does not"):
        check(config)


@pytest.mark.parametrize(
    ("method", "knob", "kind"),
    [
        ("galore", "scale", "a positive number"),
        ("prefix_tuning", "tokens", "a positive number"),
        ("adaption_prompt", "layers", "a number, at least 0"),
    ],
)
@pytest.mark.parametrize("value", ["abc", "null", "true", "[]", "-1"])
def test_a_knob_is_a_number_where_its_default_is_one(compose, method, knob, kind, value):
    with pytest.raises(UserError) as refused:
        check(compose(f"method={method}", f"method.knobs.{knob}={value}"))
    assert str(refused.value).startswith(f"method.knobs.{knob} must be {kind}, got ")


def test_a_knob_may_be_zero_where_that_is_its_default(compose):
    check(compose("method=adaption_prompt", "method.knobs.layers=0"))
    check(compose("method=galore", "method.knobs.scale=0.25"))
    with pytest.raises(UserError, match=r"^method\.knobs\.tokens must be a positive number, got 0\.$"):
        check(compose("method=prefix_tuning", "method.knobs.tokens=0"))


def test_the_product_of_a_missing_factor_is_missing(compose):
    assert compose("method=base").lr is None
    assert math.isclose(compose("method=lora", "lr_scale=0.3333333333").lr, 6.66667e-05)


@pytest.mark.parametrize("override", ["eval=null", "model=null", "method=1", "eval={}"])
def test_a_group_is_chosen_by_name(override):
    with pytest.raises(UserError, match=rf"^{override.partition('=')[0]}=.* is unknown\. There is: "):
        messages.require_choices([override])
