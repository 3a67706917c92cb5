"""What makes two points of a grid one cell, and what a cell is called."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from harness.config import ROOT
from harness.errors import UserError
from harness.record import read_study, short
from harness.settings import plain

THEN = "eval.batch_size=16"  # the default until it became auto
ID_OF = """
import sys
sys.path.insert(0, "tests")
import conftest
print(conftest.cell.__wrapped__(conftest.compose.__wrapped__())(*sys.argv[1:]).id)
"""


@pytest.mark.parametrize(
    ("method", "unused"),
    [
        ("full", ["rank=8", "rank=64", "alpha=3", "rank=64 alpha=1"]),
        ("galore", ["alpha=1", "alpha=64"]),
        ("base", ["rank=8", "alpha=3", "lr=1e-2", "lr_scale=2", "seed=7", "train.max_steps=3", "train.grad_accum=4"]),
        ("base_nf4", ["rank=8", "lr=1e-2", "seed=7"]),
    ],
)
def test_points_that_mean_the_same_run_are_one_cell(cell, method, unused):
    plain = cell(f"method={method}")
    for overrides in unused:
        other = cell(f"method={method}", *overrides.split())
        assert (other.id, other.name) == (plain.id, plain.name), overrides


def test_points_that_mean_different_runs_are_different_cells(cell):
    points = [
        ("method=lora",),
        ("method=lora", "rank=8"),
        ("method=lora", "alpha=64"),
        ("method=lora", "lr=1e-4"),
        ("method=lora", "seed=1"),
        ("method=lora", "train.max_steps=3"),
        ("method=lora", "eval.limit=3"),
        ("method=lora", "infer.new_tokens=32"),
        ("method=lora", "infer.repeats=0"),
        ("method=lora", "data=facts"),
        ("method=lora", "model=tiny"),
        ("method=lora", "model.upcast=true"),
        ("method=qlora",),
        ("method=dora",),
        ("method=full",),
        ("method=full", "seed=1"),
        ("method=galore",),
        ("method=galore", "rank=8"),
        ("method=galore", "method.knobs.scale=4"),
        ("method=base",),
        ("method=base", "eval.limit=3"),
        ("method=base", "infer.repeats=1"),
        ("method=base", "train.max_length=64"),
        ("method=base_nf4",),
    ]
    made = [cell(*point) for point in points]
    assert len({c.id for c in made}) == len(points)
    assert len({c.name for c in made}) == len(points)


def test_how_inference_would_be_timed_is_no_part_of_a_cell_without_it(cell):
    assert cell("infer.repeats=0", "infer.new_tokens=32").id == cell("infer.repeats=0").id


def test_where_a_cell_runs_and_is_stored_does_not_change_its_id(cell, tmp_path):
    elsewhere = ["study=other", "results_dir=/elsewhere", f"data_root={tmp_path}", "retry.statuses=[]"]
    assert all(cell("method=lora", place).id == cell("method=lora").id for place in elsewhere)


def test_precautions_do_not_change_a_cells_id(cell):
    for other in ("train.save_every=10", "retry.on_oom=true"):
        assert cell("method=lora", other) == cell("method=lora")
        assert cell("method=base", other) == cell("method=base")


def test_settings_that_came_later_leave_the_ids_of_recorded_cells(cell):
    assert cell("method=lora", THEN).id.startswith("6be935973ab6")
    assert cell("method=base", THEN).id.startswith("77d330acfd8e")
    chat = ("eval.chat_template", "eval.fewshot_as_multiturn", "eval.unsafe_code")
    typed = [f"{name}=false" for name in chat] + ["eval.system_instruction=null", "save=none", "tracker=null"]
    assert cell("method=lora", *typed) == cell("method=lora")
    for asked in (["chat_template=true"], ["chat_template=true", "fewshot_as_multiturn=true"], ["unsafe_code=true"]):
        assert cell("method=lora", *(f"eval.{one}" for one in asked)).id != cell("method=lora").id
    with pytest.raises(UserError, match=r"requires eval\.chat_template=true"):
        cell("method=lora", "eval.fewshot_as_multiturn=true")


def test_one_device_is_no_part_of_a_cell_and_several_are(cell):
    for other in ("train.devices=1", "train.nodes=1", "train.parallel=fsdp"):
        assert cell("method=lora", other) == cell("method=lora")
        assert cell("method=base", "train.devices=2", other) == cell("method=base")
    assert cell("method=base", "train.nodes=2") == cell("method=base")
    assert not {"devices", "nodes", "parallel"} & plain(cell("method=lora").settings.train).keys()
    made = [cell("method=lora", *s.split()) for s in ("", "train.devices=2", "train.devices=4")]
    made.append(cell("method=lora", "train.devices=2", "train.parallel=fsdp"))
    made += [cell("method=lora", "train.nodes=2", *s.split()) for s in ("", "train.devices=2", "train.parallel=fsdp")]
    assert len({c.id for c in made}) == 7


def test_cells_that_are_recorded_keep_their_ids(cell):
    records, _ = read_study(ROOT / "results" / "reference" / "memory")
    assert len(records) == 12
    for of in (record.cell for record in records):
        size = of.settings.train.batch_size
        assert cell(f"method={of.method}", f"train.batch_size={size}", THEN, config="memory").id == of.id


def test_new_settings_do_not_change_ids_of_earlier_cells(cell):
    """Ids as recorded before data could be limited, made noisy, or packed."""
    defaults = (
        "data.limit=null",
        "data.noise=0",
        "data.prompt_if_empty=null",
        "train.packing=false",
        "model.upcast=false",
    )
    lora = cell("method=lora", "data=gsm8k")
    assert cell("method=lora", "data=gsm8k", *defaults) == lora
    assert plain(lora.settings.data).keys() == {"name", "load", "prompt"}
    assert "packing" not in plain(lora.settings.train)
    changed = ("data.limit=10", "data.noise=0.1", "data.prompt_if_empty=A", "train.packing=true")
    assert len({lora.id, *(cell("method=lora", "data=gsm8k", setting).id for setting in changed)}) == 5


def test_data_that_are_changed_are_data_of_their_own(cell):
    assert cell("data=facts", "data.limit=10", "data.noise=0.1").data == "facts limit=10 noise=0.1"
    base = cell("method=base", "data=facts", "data.noise=0.1")
    assert base.data == "facts noise=0.1"
    assert base.id != cell("method=base", "data=facts").id


def test_the_data_of_recorded_studies_are_settings_as_they_were(cell):
    """What `sweep quickstart` and `sweep gsm8k` make of lora's is what is recorded in results/reference."""
    for study in ("quickstart", "gsm8k"):
        records, _ = read_study(ROOT / "results" / "reference" / study)
        (recorded,) = [record.cell for record in records if record.cell.method == "lora"]
        points = [f"{axis}={getattr(recorded, axis)}" for axis in ("rank", "lr", "seed")]
        made = cell("method=lora", *points, "study=other", config=study)
        assert made.settings.data == recorded.settings.data


def test_the_architecture_is_no_part_of_a_cell(cell):
    shipped = cell("method=lora", "model=llama_3_2_1b")
    assert "architecture" not in plain(shipped.settings.model)
    for other in ("model.architecture=null", "model.architecture.hidden_size=64", "+model.architecture.new=1"):
        assert cell("method=lora", "model=llama_3_2_1b", other) == shipped


def test_a_default_that_is_typed_is_the_default(cell):
    typed = ["lr=2e-4", "lr=0.0002", "alpha=32", "alpha=32.0", "rank=16", "seed=0", "lr_scale=1"]
    assert {cell("method=lora", setting).id for setting in typed} == {cell("method=lora").id}
    assert cell("method=lora", "lr=1e-3").id == cell("method=lora", "lr_scale=5").id


def test_axes_that_a_method_does_not_use_are_null(cell):
    used = {name: cell(f"method={name}", "seed=3") for name in ("lora", "galore", "full", "base")}
    axes = {name: (c.rank, c.alpha, c.lr, c.seed) for name, c in used.items()}
    assert axes == {
        "lora": (16, 32, 2e-4, 3),
        "galore": (16, None, 2e-5, 3),
        "full": (None, None, 2e-5, 3),
        "base": (None, None, None, None),
    }
    assert used["galore"].knobs["scale"] == 2
    assert used["lora"].knobs == {}


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ("method=lora", "lora-r16-a32-lr2e-4-s0"),
        ("method=lora alpha=0.5 lr=1.5e-3 seed=12", "lora-r16-a0.5-lr1.5e-3-s12"),
        ("method=galore rank=4", "galore-r4-lr2e-5-s0"),
        ("method=full", "full-lr2e-5-s0"),
        ("method=base_nf4", "base_nf4"),
        ("method=lora method.name='../a b'", ".._a_b-r16-a32-lr2e-4-s0"),  # no path, and one word
        ("method=lora method.name=''", "_-r16-a32-lr2e-4-s0"),  # no option
    ],
)
def test_a_name_reads_method_axes_and_the_head_of_the_id(cell, overrides, name):
    made = cell(*re.split(r" (?=\w[\w.]*=)", overrides))
    assert made.name == f"{name}-{made.id[:6]}"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (16, "16"),
        (32.0, "32"),
        (0.5, "0.5"),
        (0.01, "0.01"),
        (2e-4, "2e-4"),
        (0.001, "1e-3"),
        (1.5e-5, "1.5e-5"),
        (0.00999999999, "1e-2"),
        (1e-10, "1e-10"),
        (0, "0"),
        (-2e-4, "-2e-4"),
    ],
)
def test_numbers_are_written_as_people_type_them(value, text):
    assert short(value) == text


@pytest.mark.parametrize(
    ("overrides", "head"),
    [
        (["method=base", THEN], "77d330acfd8e"),
        (["method=lora", THEN], "6be935973ab6"),
        (["method=qdora", "rank=8", THEN], "635ff5c305e9"),
        (["method=galore", "model=tiny", "data=facts_short", "train.grad_accum=2"], "31ed9a2c4d11"),
    ],
)
def test_ids_are_those_of_recorded_cells(cell, overrides, head):
    """Settings that came later (a method's `init`) are no part of a cell that does without them."""
    assert cell(*overrides).id.startswith(head)


def test_how_an_adapter_starts_is_a_part_of_its_cell(cell):
    assert "init" not in plain(cell("method=lora").settings.method)
    assert cell("method=eva").id != cell("method=eva", "method.init.batches=2").id


def test_ids_are_the_same_in_every_process(cell):
    overrides = ["method=qlora", "rank=8", "data=facts"]
    ids = {
        subprocess.run(
            [sys.executable, "-c", ID_OF, *overrides],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert ids == {cell(*overrides).id}


@pytest.mark.parametrize(
    ("number", "overrides"),
    [
        ("train.max_grad_norm=inf", []),
        ("method.knobs.scale=nan", ["method=galore"]),
        ("+data.load.share=-inf", []),
    ],
)
def test_settings_are_finite_numbers(cell, number, overrides):
    key, _, value = number.removeprefix("+").partition("=")
    with pytest.raises(UserError, match=rf"^{re.escape(key)} must be a finite number, got {value};"):
        cell(*overrides, number)


def test_settings_that_no_record_could_be_read_with_are_refused(cell):
    """A record with a longer line is left out of every table: the cell would have run for nothing."""

    def with_prompt_of(letters):
        return cell("data=local", "data.path=mine.jsonl", "data.prompt='{question}" + "a" * letters + "'")

    with_prompt_of(900_000)
    with pytest.raises(UserError) as refused:
        with_prompt_of(1_100_000)
    assert re.fullmatch(
        r"The settings of a cell must take at most 1,048,576 bytes as JSON, got 1,10\d,\d+\.", str(refused.value)
    )
