"""The fairness linter: each rule on a study that breaks it alone, and silence on studies that break none."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from records import ENVIRONMENT, change, make_answered, make_record, make_score, make_study, measured

from harness.__main__ import main
from harness.config import ROOT
from harness.record import Failure, Gpu, Scoring, SmallerBatches, Source, VllmUsage, item_hashes, read_study, write
from harness.report.lint import RULES, findings
from harness.report.tables.table import comparison
from harness.settings import EvalSettings, plain

REFERENCE = sorted(path for path in (ROOT / "results" / "reference").iterdir() if path.is_dir())
METHODS = ("base", "full", "lora", "qlora", "dora", "galore")


def study(*methods, seeds=(0, 1), **fields):
    """Finished records of `methods` (all, if none is named), at other hours of the day, without anything to find."""
    records = []
    for method in methods or METHODS:
        for seed in seeds if method != "base" else (None,):
            record = make_record(method, lr=None if method == "base" else 2e-4, seed=seed, **fields)
            record.started = f"2026-01-02T{len(records):02}:00:00+00:00"
            records.append(record)
    return records


def of(records, method):
    return [record for record in records if record.cell.method == method]


def settings(records, **changes):
    """Set `section__name=value` in the settings of `records`."""
    for record in records:
        for path, value in changes.items():
            section, name = path.split("__")
            change(record, **{section: {name: value}})


def told(records, rule=None):
    """Rule and sentence of all findings; with a rule, the one sentence, which no other may stand beside."""
    found = findings(records)
    if rule is None:
        return [(finding.rule, finding.sentence) for finding in found]
    assert [finding.rule for finding in found] == [rule]
    return found[0].sentence


# Silence


def test_a_fair_study_has_no_finding():
    assert told(study()) == []
    assert told([measured(record) for record in study()]) == []
    assert told([]) == []


@pytest.mark.parametrize("folder", REFERENCE, ids=lambda path: path.name)
def test_what_is_found_in_the_published_studies_is_known(folder):
    records, problems = read_study(folder)
    assert problems == []
    # Full fine-tuning has no rank to try; cells of the study with three seeds ran two at a time.
    known = {"smollm2": ["tries", "tries", "overlap", "contamination"], "quickstart": ["contamination", "seeds"]}
    known["peft_llama_3_2_3b"] = ["training", "targets", "tries", "fingerprints", "versions", "versions of runs"]
    known["peft_llama_3_2_3b"] += ["base", "seeds"]
    known["pilot"] = ["code", "seeds"]  # its skills were tried one after the other, while the harness went on
    known["pilot_skill"] = ["batch", "tries", "seeds"]  # batch sizes are what it tries, with one method
    known["study_lr"] = ["tries", "device", "code"]  # full fine-tuning has a sixth rate; more seeds on another machine
    known["study_targets"] = ["targets", "device", "code", "seeds"]  # what it tries; more seeds of the chosen rates
    known["exposures"] = ["base", "seeds"]  # how long to train all weights is what it tries
    known["study_batch"] = ["batch"]  # which is what it tries
    known["study_facts"] = ["device", "code", "seeds"]  # one seed chooses; the fresh ones ran on another machine
    # One adapter is on three layers; one seed chooses; problems of a kind share words; no untuned model
    known["study_rank"] = ["targets", "tries", "code", "contamination", "base", "seeds"]
    known["study_alpha"] = ["code", "base", "seeds"]  # its sweep's file was changed after the commit; one seed chooses
    known["study_alpha_fresh"] = ["base"]
    known["study_rank_fresh"] = ["contamination", "base"]
    known["study_numerics"] = ["precision", "attention", "tries", "base"]  # what it tries, and what follows
    # One seed chooses; adapters have a fourth rate at rank 32; base_nf4 came later.
    known["study_skill"] = ["tries", "code", "seeds"]
    known["gsm8k_0_5b"] = ["device", "code", "seeds"]  # it ran in parts, on several machines; one seed chooses
    known["study_stability"] = ["code", "seeds"]  # eight more seeds of the better rates; one high rate came later
    known["study_alpha_rank"] = ["code", "overlap"]  # it ran in two parts, two cells at a time
    known["study_memory"] = ["batch", "training", "targets", "tries", "overlap", "seeds"]  # one tiny adapter
    # Ranks are settings of one method, in eight places; problems of a kind share a template, at four numbers of rows;
    # it ran in parts, on two machines, two cells at a time. Its search tries other steps, and more rates where it must.
    parts = ["versions", "device", "code", "overlap"]
    known["rank_for_rows"] = ["tries"] * 8 + parts + ["contamination"] * 8 + ["seeds"]
    known["rank_for_rows_rates"] = ["tokens"] + ["tries"] * 4 + ["contamination"] * 4 + ["base", "seeds"]
    short = {"quickstart", "gsm8k", "memory", "smollm2", "study_facts", "study_memory", "study_skill", "study_speed"}
    rules = [finding.rule for finding in findings(records)]
    assert [rule for rule in rules if rule != "projection"] == known.get(folder.name, ["seeds"])
    assert ("projection" in rules) == (folder.name in short)  # GaLore for fewer steps than it has between projections


def test_what_every_method_has_alike_is_an_axis_of_the_study():
    small, large = study(), study()
    settings(small, train__batch_size=2, train__max_length=256, eval__limit=100)
    settings(large, train__batch_size=8, train__max_length=512, eval__limit=200)
    for record in large:
        record.cell.name += "-large"
        record.started = record.started.replace("01-02", "01-03")
        record.scores = [make_score(0.2, n=100)]
        if record.train:
            record.train.tokens.raw, record.train.batches = 80_000, "c" * 16
    assert told(small + large) == []
    large[-1].status = "oom"  # an axis is one also where a cell of it broke off
    assert [rule for rule, _ in told(small + large)] == ["seeds", "failed"]


def test_what_goes_along_with_a_methods_settings_is_no_axis():
    records = study() + [make_record(r.cell.method, 8, lr=2e-4, seed=r.cell.seed) for r in study() if r.train]
    settings(records, train__batch_size=4)
    assert told(records) == []
    settings([record for record in records if record.cell.rank == 8], train__batch_size=8)
    assert told(records, "batch").startswith("Effective batches differ: 4 sequences per step in full-")


def test_seeds_that_draw_other_batches_are_no_finding():
    records = study(seeds=(0, 1, 2))
    for record in records:
        if record.train:
            record.train.batches, record.train.tokens.raw = f"{record.cell.seed}", 20_000 + record.cell.seed
    assert told(records) == []


def test_models_and_data_are_compared_within_themselves():
    other = study(model="big", data="alpaca")
    for record in other:
        record.cell.name += "-big"
        record.started = record.started.replace("01-02", "01-03")
        record.fingerprints = {"model": "sha256:other"}
        record.environment = record.environment | {"precision": "fp32"}
        if record.train:
            record.train.steps, record.train.batches = 100, "c" * 16
    records = study()
    for record in records:
        record.fingerprints = {"model": "sha256:first"}
    assert told(records + other) == []


# Each rule, broken


def test_unequal_token_budgets():
    records = study()
    for record in of(records, "dora"):
        record.train.tokens.raw = 40_000
    sentence = told(records, "tokens")
    assert sentence == (
        "Token budgets differ: 50 steps over 20,000 raw tokens in full, lora, qlora and galore; "
        "50 steps over 40,000 raw tokens in dora. The same holds for 1 more group of matching cells."
    )
    assert findings(records)[0].cells == tuple(record.cell.name for record in of(records, "dora"))


@pytest.mark.parametrize("name", ["packing", "activation_offload", "compile", "gradient_checkpointing"])
def test_a_switch_that_is_on_in_some_cells(name):
    records = study()
    settings(records, train__batch_size=4)
    settings(of(records, "lora"), **{f"train__{name}": True})
    assert told(records, "training").startswith(f"The setting train.{name} differs: false in full")


@pytest.mark.parametrize(
    ("name", "value", "usual"),
    [
        ("schedule", "linear", "cosine"),
        ("loss_on", "all", "answers"),
        ("weight_decay", 0.1, "0.0"),
        ("final_lr", 0.1, "0.0"),
    ],
)
def test_a_setting_that_some_cells_have_at_its_default(name, value, usual):
    records = study()
    settings(records, train__batch_size=4)
    settings(of(records, "lora"), **{f"train__{name}": value})
    assert told(records, "training").startswith(f"The setting train.{name} differs: {usual} in full")


def test_unequal_numbers_of_steps_are_seen_in_the_settings():
    records = study()
    settings(of(records, "full"), train__max_steps=100)
    for record in of(records, "full"):
        record.train.steps = 100
    assert told(records, "tokens") == (
        "Token budgets differ: 50 steps in lora (2 cells), qlora (2 cells), dora (2 cells) and galore (2 cells); "
        "100 steps in full (2 cells)."
    )


def test_another_order_of_data():
    records = study(seeds=(0,)) + study(seeds=(1,))[1:]
    of(records, "lora")[1].train.batches = "sha256:0123456789abcdef"
    assert told(records, "order") == (
        "Cells with the same seed saw different batches, or the same in another order: "
        "hash bbbbbbbb in full, qlora, dora and galore; hash 01234567 in lora."
    )


@pytest.mark.parametrize("name", ["batch_size", "grad_accum"])
def test_unequal_effective_batches(name):
    records = study()
    settings(records, train__batch_size=4, train__grad_accum=2)
    settings(of(records, "galore"), **{f"train__{name}": 8})
    sentence = told(records, "batch")
    assert "8 sequences per step in full (2 cells)" in sentence
    assert sentence.endswith(
        {"batch_size": "16", "grad_accum": "32"}[name] + " sequences per step in galore (2 cells)."
    )


def test_equal_effective_batches_of_another_shape_are_no_finding():
    records = study()
    settings(records, train__batch_size=8, train__grad_accum=1)
    settings(of(records, "full"), train__batch_size=4, train__grad_accum=2)
    assert told(records) == []


def test_other_settings_of_training():
    records = study()
    settings(records, train__warmup_ratio=0.1)
    settings(of(records, "lora"), train__warmup_ratio=0.0)
    assert told(records, "training").endswith("galore (2 cells); 0.0 in lora (2 cells).")


def adapted(record, **adapt):
    change(record, method={"name": record.cell.method, "adapt": adapt or None})


def test_unequal_targets_of_adapters():
    records = study()
    for record in records:
        peft = record.cell.method in ("lora", "qlora", "dora")
        adapted(record, **({"target_modules": ["q_proj", "v_proj"]} if peft else {}))
    for record in of(records, "dora"):
        adapted(record, target_modules=["v_proj", "q_proj"])  # a set
    assert told(records) == []
    for record in of(records, "dora"):
        adapted(record, target_modules="all-linear", exclude_modules=["lm_head"])
    assert told(records, "targets") == (
        "Target modules of adapters differ: q_proj, v_proj in lora (2 cells) and qlora (2 cells); "
        "all-linear; exclude_modules lm_head in dora (2 cells)."
    )


def test_unequal_precision():
    records = study()
    for record in of(records, "full"):
        record.environment = record.environment | {"precision": "fp32"}
    assert told(records, "precision").endswith("fp32 in full (2 cells).")


def test_weights_of_another_format():
    records = study()
    for record in records:
        nf4 = {"quantization_config": {"_target_": "nf4"}} if record.cell.method == "qlora" else {}
        dtype = "float32" if record.cell.method == "full" else "bfloat16"
        change(record, method={"load": {"dtype": dtype} | nf4})
    assert told(records, "precision").endswith("bf16 with float32 weights in full (2 cells).")
    for record in of(records, "full"):
        record.cell.settings.method.load["dtype"] = "bfloat16"
    assert told(records) == []  # NF4 is what the method is


def test_weights_that_are_upcast_in_some_methods_alone():
    records = study()
    for record in records:
        record.environment["precision"] = "bf16"
        upcast = {"upcast": True} if record.cell.method == "dora" else {}
        change(record, method={"load": {"dtype": "bfloat16"}}, model=upcast)
    text = "bf16 with bfloat16 weights, matrices upcast to float32 in dora (2 cells)."
    assert told(records, "precision").endswith(text)


def test_attention_that_ran_by_another_operation_or_in_another_dtype():
    records = [measured(record) for record in study()]
    assert told(records) == []
    for record in records:
        if record.probe:
            record.probe.attention = {"varlen bfloat16": 28}
    of(records, "qlora")[0].probe.attention = {"varlen bfloat16": 56}  # how often is not what it computes
    assert told(records) == []
    for record in of(records, "dora"):
        record.probe.attention = {"efficient float32": 28}
    assert told(records, "attention").endswith("efficient float32 in dora (2 cells).")


def test_unequal_numbers_of_tries():
    records = study() + [make_record("lora", lr=lr, seed=s, status="oom") for lr in (1e-4, 1e-3) for s in (0, 1)]
    assert told(records)[0] == (
        "tries",
        "The number of settings tried differs between methods: 1 for full, qlora, dora and galore; 3 for lora.",
    )


def test_tries_by_any_setting_are_counted():
    """Three rates times three warm-ups are nine settings to choose among, against three."""
    records = [make_record("lora", lr=lr) for lr in (1e-4, 2e-4, 4e-4)]
    records += [
        make_record("full", lr=lr, settings={"train": {"warmup_ratio": warmup}})
        for lr in (1e-4, 2e-4, 4e-4)
        for warmup in (0.0, 0.1, 0.2)
    ]
    sentences = dict(told(records))
    assert sentences["tries"] == "The number of settings tried differs between methods: 3 for lora; 9 for full."


@pytest.mark.parametrize(
    "evaluated",
    [{"eval": {"limit": 9}}, {"train": {"max_steps": 50, "validation_items": 9}}, {"infer": {"repeats": 9}}],
)
def test_another_evaluation_is_no_further_try(evaluated):
    records = [make_record("lora"), make_record("full"), make_record("full", settings=evaluated)]
    assert "tries" not in dict(told(records))
    stopping = [{"early_stopping": 3}, {"early_stopping": 3, "validation_items": 9}]
    records = [make_record("lora"), *(make_record("full", settings={"train": train}) for train in stopping)]
    assert dict(told(records))["tries"].endswith("1 for lora; 2 for full.")  # each keeps the weights of another step


@pytest.mark.parametrize(
    ("score", "text"),
    [
        ({"n": 100}, "on 100 items, 5-shot"),
        ({"num_fewshot": 0}, "200 items, 0-shot"),
        ({"version": "2.0"}, "version 2.0"),
    ],
)
def test_another_evaluation(score, text):
    records = study()
    for record in of(records, "base"):
        record.scores = [make_score(0.18, **score)]
    sentence = told(records, "evaluation")
    assert sentence.startswith("Cells were scored differently on gsm8k: on 200 items, 5-shot, task version 3.0 in full")
    assert text in sentence
    assert sentence.endswith("in base. Δ is shown only where they match.")


def test_as_many_items_but_others():
    records = study()
    for record in records:
        record.items = item_hashes({"gsm8k": range(200)})
    assert told(records) == []
    for record in of(records, "lora"):
        record.items = item_hashes({"gsm8k": range(1, 201)})
    assert "Cells were scored on different items: " in told(records, "evaluation")


def test_an_untuned_model_has_no_rewards():
    """They compare a model with it."""
    records = study()
    for record in records:
        record.scores = [make_score(0.18), *([make_score(0.6, task="rewards")] if record.train else [])]
    assert told(records) == []
    of(records, "lora")[0].scores.pop()
    assert "not at all in lora-lr0.0002-s0." in told(records, "evaluation")


def test_a_cell_that_was_not_scored_on_all_tasks():
    records = study()
    for record in records[1:]:
        record.scores.append(make_score(task="mmlu"))
    assert told(records, "evaluation").endswith("not at all in base. Δ is shown only where they match.")


def test_other_settings_of_the_evaluation():
    records = study()
    settings(records, eval__limit=200, eval__seed=0)
    settings(of(records, "dora"), eval__limit=None)
    for record in of(records, "dora"):
        record.scores = [make_score(n=1319)]
    assert told(records, "evaluation").endswith("; not set in dora (2 cells).")


@pytest.mark.parametrize("name", ["data", "model"])
def test_other_fingerprints(name):
    records = study()
    for record in records:
        record.fingerprints = {"data": "sha256:" + 64 * "a", "model": "sha256:" + 64 * "a"}
    for record in of(records, "lora"):
        record.fingerprints[name] = "sha256:" + 64 * "b"
    sentence = told(records, "fingerprints")
    assert sentence.startswith(f"Fingerprints of the {name} differ: aaaaaaaaaaaa in base, full (2 cells)")
    assert sentence.endswith("; bbbbbbbbbbbb in lora (2 cells).")


def test_fingerprints_that_differ_within_every_method():
    """A file that was edited halfway: a method's setting would be chosen among cells of two data sets."""
    records = [make_record(method, lr=lr) for method in ("full", "lora") for lr in (1e-4, 2e-4)]
    for record in records:
        record.fingerprints = {"data": "sha256:" + 64 * ("a" if record.cell.lr == 1e-4 else "b")}
    sentences = dict(told(records))
    assert sentences["fingerprints"].startswith("Fingerprints of the data differ: aaaaaaaaaaaa in ")


def test_inference_measured_in_other_shapes():
    records = [measured(record) for record in study()]
    for record in of(records, "lora"):
        record.inference["merged"].batch_size = 1
    assert "batch size 1" in told(records, "inference")


def environment(records, **changes):
    for record in records:
        record.environment = record.environment | changes


def test_other_versions_are_told_without_those_that_are_the_same():
    records = study()
    environment(of(records, "full")[:1], versions=ENVIRONMENT["versions"] | {"torch": "2.12.0"})
    assert told(records, "versions") == (
        "Library versions differ: torch 2.11.0 in base, lora (2 cells), qlora (2 cells), dora (2 cells), "
        f"full-lr0.0002-s1 and 2 cells more; torch 2.12.0 in {records[1].cell.name.rpartition('-')[0]}."
    )


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"device": {"type": "cuda", "name": "NVIDIA A100"}}, "device NVIDIA A100"),
        ({"threads": 8}, "threads 8"),
        ({"allocator": {"OMP_NUM_THREADS": "1"}}, "allocator OMP_NUM_THREADS=1"),
    ],
)
def test_other_devices(change, text):
    records = study()
    environment(of(records, "dora"), **change)
    assert told(records, "device").endswith(f"{text} in dora (2 cells).")


def test_a_variable_of_gpus_is_no_difference_on_a_cpu():
    records = study()
    environment(of(records, "dora"), allocator={"TORCH_CUDNN_SDPA_DEPRIORITIZED": "1"})
    told(records, "device")
    for record in records:
        record.environment = record.environment | {"device": {"type": "cpu", "name": None}}
    assert told(records) == []


@pytest.mark.parametrize("variable", ["OMP_NUM_THREADS", "PYTORCH_CUDA_ALLOC_CONF"])
def test_a_cell_that_reached_no_device_is_no_difference(variable):
    records = study()
    environment(records, device={"type": "cpu", "name": None})
    unfit = make_record("muon", lr=2e-4, seed=0, status="unfit", environment={"allocator": {variable: "1"}})
    assert "device" not in [rule for rule, _ in told([*records, unfit])]


def test_what_a_library_sets_where_it_is_imported_is_no_difference():
    records = study()
    environment(of(records, "dora"), allocator={"KMP_INIT_AT_FORK": "FALSE"})
    assert told(records) == []


def test_a_failed_cell_that_knows_less_of_where_it_ran_is_no_difference():
    records = [*study(), make_record("lora", lr=2e-4, seed=0, status="failed", environment={})]
    assert [rule for rule, _ in told(records)] == ["failed"]


def gpu(**fields):
    known = {"samples": 60, "sm_mhz": 1980.0, "sm_mhz_max": 1980, "memory_mhz": 2619.0, "memory_mhz_max": 2619}
    known |= {"power_limit_watts": 700.0, "celsius": 60, "throttle_reasons": [], "idle_watts": 70.0}
    return Gpu(**(known | fields))


def test_gpus_of_one_state_are_no_finding():
    records = study()
    for i, record in enumerate(records):
        record.gpus = [gpu(sm_mhz=1980.0 - 15 * (i % 3), throttle_reasons=["application_clocks"])]
    records[-1].gpus = [gpu(sm_mhz=None, power_limit_watts=None, memory_mhz=None, throttle_reasons=None)]
    assert told(records) == []


def test_throttled_cells():
    records = study()
    for record in records:
        record.gpus = [gpu()]
    for record in of(records, "dora"):
        record.gpus = [gpu(), gpu(throttle_reasons=["sw_thermal_slowdown", "sw_power_cap"])]
    assert told(records, "throttled") == (
        "The GPU throttled (sw_power_cap, sw_thermal_slowdown) in dora (2 cells): speed depends on its temperature and "
        "power."
    )


def test_power_limits():
    records = study()
    for record in records:
        record.gpus = [gpu(power_limit_watts=700.0 if record.cell.method != "full" else 450.0)]
    assert told(records, "power limit").startswith(
        "Power limits of GPUs differ, so speeds are not comparable: 700 W in"
    )
    assert told(records, "power limit").endswith("450 W in full (2 cells).")


def test_clocks():
    records = study()
    for record in records:
        record.gpus = [gpu(sm_mhz=1980.0 if record.cell.method != "full" else 1200.0)]
    sentence = told(records, "clocks")
    assert sentence.startswith("SM clocks differ by more than 3%, so speeds are not comparable: 1,200 MHz in full")
    assert findings(records)[0].cells == tuple(record.cell.name for record in of(records, "full"))


def test_other_code():
    records = study()
    environment(of(records, "dora"), git={"commit": "fedcba9876543210", "dirty": False})
    assert told(records, "code").endswith("harness commit fedcba987654 in dora (2 cells).")


def test_uncommitted_changes():
    records = study()
    environment(records, git={"commit": "fedcba9876543210", "dirty": True})
    sentence = told(records, "code")
    assert sentence.startswith("The harness had uncommitted changes in base, full (2 cells)")
    environment(of(records, "lora"), git={"commit": "fedcba9876543210", "dirty": False})
    assert "harness commit fedcba987654 in lora (2 cells)." in told(records, "code")


def test_speedups_that_not_all_had():
    records = study()
    environment(records, speedups={"padding_free": "on", "shared_prefix": "off: sliding window"})
    environment(of(records, "base"), speedups={"shared_prefix": "off: sliding window"})  # nothing is trained
    assert told(records) == []
    environment(of(records, "qlora"), speedups={"padding_free": "off: NF4", "shared_prefix": "off: sliding window"})
    sentence = told(records, "speedups")
    assert sentence.startswith("The speed-up padding_free differs: on in full (2 cells)")
    assert sentence.endswith("; off: NF4 in qlora (2 cells).")
    environment(of(records, "qlora"), speedups=None)
    assert [rule for rule, _ in told(records)] == ["speedups", "speedups"]  # an old record tells of neither


def test_old_records_tell_nothing_of_speedups():
    assert all("speedups" not in record.environment for record in study())


def test_measurements_of_others_among_our_own():
    records = study()
    for record in of(records, "lora"):
        record.source = Source("peft", "lora.json", "0" * 64, [])
    assert "peft in lora (2 cells)" in told(records, "source")


# Another cell on the machine


def machine(records, **facts):
    environment(records, **facts)
    return records


@pytest.mark.parametrize(
    "facts", [{"boot": "5f0c"}, {"cpu": {"name": "Xeon", "cores": 2, "memory_bytes": 25_276_510_208}}]
)
def test_cells_that_ran_at_the_same_time(facts):
    records = machine(study(), **facts)
    assert told(records) == []
    records[3].started = records[2].started.replace(":00:00", ":01:58")  # 2 s before the other's 120 s are over
    assert "Other cells ran on the machine at the same time, which affects speed and memory, in full" in told(
        records, "overlap"
    )
    assert findings(records)[0].cells == (records[2].cell.name, records[3].cell.name)


def test_a_short_cell_within_a_long_one_and_the_one_after_it():
    records = machine(study(), boot="5f0c")
    records[1].seconds = 3 * 3600.0 - 600
    assert len(findings(records)[0].cells) == 3
    assert records[4].cell.name not in findings(records)[0].cells


def test_cells_that_follow_each_other_do_not_run_at_once():
    records = machine(study(), boot="5f0c")
    records[3].started = records[2].started.replace(":00:00", ":01:59")  # the second in which the other may have ended
    assert told(records) == []


def test_cells_on_two_machines_do_not_disturb_each_other():
    records = study()
    for i, record in enumerate(records):
        record.started = records[0].started
        machine([record], boot=str(i))
    assert told(records) == []


def test_cells_on_two_gpus_of_a_machine_do_not_disturb_each_other():
    records = machine(study(), boot="5f0c")
    for i, record in enumerate(records):
        record.started = records[0].started
        environment([record], device={"type": "cuda", "name": "H100", "id": str(i)})
    assert told(records) == []


def test_of_several_gpus_one_is_enough_to_meet_on():
    records = machine(study("full", "lora", seeds=(0,)), boot="5f0c")
    environment(records[:1], device={"type": "cuda", "name": "H100", "id": "a+b"})
    for id, met in (("c", False), ("b", True)):
        environment(records[1:], device={"type": "cuda", "name": "H100", "id": id})
        records[1].started = records[0].started
        assert ("overlap" in [finding.rule for finding in findings(records)]) == met


def test_where_a_cell_ran_may_be_unknown():
    records = study()
    for record in records:
        record.started = records[0].started
    assert told(records) == []


def test_a_cell_that_was_not_run_disturbs_nobody():
    records = machine([*study(), make_record("lora", lr=2e-4, status="unfit")], boot="5f0c")
    records[-1].started = records[0].started
    assert [rule for rule, _ in told(records)] == ["failed"]


# Several devices


def test_a_method_on_more_devices_than_the_others_is_told():
    records = study()
    settings(of(records, "lora"), train__devices=2, train__parallel="ddp")
    assert told(records, "training").startswith("The setting train.devices differs: 1 in full (2 cells), qlora")
    assert told(records, "training").endswith("; 2 in lora (2 cells).")
    settings(of(records, "qlora"), train__nodes=2, train__devices=2, train__parallel="ddp")
    assert [sentence.partition(" (2 cells)")[0] for _, sentence in told(records)] == [
        "The setting train.devices differs: 1 in full",
        "The setting train.nodes differs: 1 in full",
    ]
    settings(of(records, "qlora"), train__nodes=1, train__devices=1, train__parallel=None)
    settings(of(records, "full"), train__devices=2, train__parallel="fsdp")
    rules = [sentence.partition(":")[0] for _, sentence in told(records)]
    assert rules == ["The setting train.devices differs", "The setting train.parallel differs"]


def test_the_table_says_on_how_many_devices_cells_trained():
    records = study()
    assert not any("device" in line for line in comparison(records).caption if line.startswith("Cells trained"))
    settings(of(records, "full"), train__devices=2, train__parallel="fsdp")
    told = "Cells trained on 1 device or 2 devices (fsdp): tokens/s is the sum over devices, memory is the largest"
    assert any(line.startswith(told) for line in comparison(records).caption)
    settings(of(records, "lora"), train__nodes=2, train__devices=4, train__parallel="ddp")
    told = "Cells trained on 1 device or 2 devices (fsdp) or 8 devices of 2 machines (ddp): tokens/s is the sum"
    assert any(line.startswith(told) for line in comparison(records).caption)


def test_devices_that_every_method_has_alike_are_an_axis_on_the_same_batches():
    records = study("full", "lora", seeds=(0,))
    two = study("full", "lora", seeds=(0,))
    settings(two, train__devices=2, train__parallel="ddp")
    for record, later in zip(two, ("03", "04"), strict=True):
        record.started = f"2026-01-02T{later}:00:00+00:00"
    assert [rule for rule, _ in told([*records, *two])] == ["base", "seeds"]
    two[0].train.batches = "sha256:other"
    assert "order" in [rule for rule, _ in told([*records, *two])]


# GaLore per layer


def per_layer(name, **optim):
    records = study(name)
    for record in records:
        record.started = record.started.replace("01-02", f"01-0{len(name)}")
        change(record, method={"name": name, "optim": {"per_layer": True, **optim}})
    return records


def test_low_rank_per_layer_wants_a_row_of_plain_adamw_per_layer():
    galore = per_layer("galore_layer", matrices={"rank": 16})
    sentence = told(study() + galore, "per layer")
    assert "Per-layer updates save memory by themselves" in sentence
    assert "the saving of low rank in galore_layer (2 cells) can't be separated from it." in sentence
    assert told(study() + galore + per_layer("full_layer")) == []
    assert told(study() + per_layer("full_layer")) == []


@pytest.mark.parametrize(("steps", "gap", "kept"), [(200, 200, True), (201, 200, False), (200, None, False)])
def test_low_rank_gradients_that_kept_their_first_projection_are_named(steps, gap, kept):
    records = study("base", "lora", "galore")
    for record in of(records, "galore"):
        record.cell.knobs["update_proj_gap"] = gap
    for record in records:
        if record.train:
            record.train.steps = steps
    if not kept:
        assert told(records) == []
        return
    sentence = told(records, "projection")
    assert sentence == (
        "galore's projection was never renewed (200 steps, update_proj_gap=200): such a run says little of longer ones."
    )
    assert findings(records)[0].cells == tuple(record.cell.name for record in of(records, "galore"))


def test_the_shipped_methods_per_layer_are_known_by_their_settings(cell):
    rows = {}
    for name in ("galore_layer", "adamw_layer"):
        rows[name] = per_layer(name)
        for record in rows[name]:
            change(record, method=vars(cell(f"method={name}", "train.max_grad_norm=null").settings.method))
    assert "per layer" in dict(told(study() + rows["galore_layer"]))
    assert "per layer" not in dict(told(study() + rows["galore_layer"] + rows["adamw_layer"]))


# What a study lacks


def test_no_base():
    assert told(study("lora", "full")) == [("base", "No finished base row: Δ is not shown.")]
    assert told(study("lora", "base", data="a") + study("lora", data="b")) == []
    unscored = study("lora", "full")
    for record in unscored:
        record.scores = []
    assert told(unscored) == []


def test_one_seed():
    assert told(study(seeds=(0,)), "seeds") == "Single seed: error bars exclude seed-to-seed variance."
    assert told(study("base")) == []


def test_one_seed_that_chose_where_several_fresh_ones_compare():
    records = study(seeds=(0,))
    fresh = study("full", "lora", seeds=(1, 2))
    for record in fresh:
        record.confirmation = True
    expected = "Settings were chosen by a single seed; fresh seeds compare the chosen ones."
    assert told(records + fresh, "seeds") == expected


def test_unequal_numbers_of_seeds():
    records = [r for r in study(seeds=(0, 1, 2)) if (r.cell.method, r.cell.seed) not in (("dora", 1), ("dora", 2))]
    assert told(records, "seeds").endswith("; 1 seed in dora.")


def test_failed_cells_are_named_with_their_reasons():
    found = findings(make_study())
    assert [finding.rule for finding in found] == ["tries", "seeds", "failed"]
    assert found[-1].sentence.startswith("Failed cells: qlora-r64-a128-")
    assert found[-1].sentence.endswith(": CUDA out of memory (train, step 3).")
    assert len(found[-1].cells) == 1


# As a whole


def test_many_cells_are_counted_and_some_are_named():
    records = study("base", "lora", seeds=range(20))
    for record in of(records, "lora")[:8]:
        environment([record], threads=4)
    sentence = told(records, "device")
    assert sentence == (
        "Devices differ: threads 2 in base, lora-lr0.0002-s8, lora-lr0.0002-s9, lora-lr0.0002-s10 and 9 cells more; "
        "threads 4 in lora-lr0.0002-s0, lora-lr0.0002-s1, lora-lr0.0002-s2 and 5 cells more."
    )


def test_every_finding_has_a_rule_and_stands_in_the_table():
    records = [*study(seeds=(0,)), make_record("lora", lr=1e-3, status="oom")]
    environment(of(records, "full"), threads=4)
    found = findings(records)
    assert {finding.rule for finding in found} == {"tries", "device", "seeds", "failed"} <= set(RULES)
    text = "\n".join(comparison(records).caption)
    for finding in found:
        assert finding.sentence[1:] in text


def test_resumed_training():
    records = study()
    of(records, "dora")[0].train.resumed_at = [20, 40]
    of(records, "lora")[0].train.resumed_at = [50]  # after the last step, to be scored
    sentence = told(records, "resumed")
    dora = of(records, "dora")[0].cell.name
    short = dora.removesuffix(f"-{of(records, 'dora')[0].cell.id[:6]}")
    assert sentence == (
        f"Training was interrupted and resumed from a checkpoint in {short}: its speed is that of several processes."
    )
    assert findings(records)[0].cells == (dora,)
    assert f"Warning: {sentence[0].lower()}{sentence[1:]}" in comparison(records).caption


def test_tasks_that_were_scored_later_by_other_means():
    records = study()
    for record in records:
        record.scores.append(make_score(task="arc_easy", filter="none"))
        settings = EvalSettings(["arc_easy"], limit=200)
        record.rescored = [Scoring(["arc_easy"], record.started, settings, dict(record.environment), {})]
    assert told(records) == []
    later = [record.rescored[0] for record in of(records, "dora")]
    later[0].environment["precision"] = "fp32"
    later[1].settings = replace(later[1].settings, chat_template=True)
    sentence = told(records, "rescored")
    assert sentence.startswith(
        "Cells were scored on arc_easy in different environments: precision bf16, chat_template not set in base, "
    )
    assert "; precision fp32, chat_template not set in dora-lr0.0002-s0;" in sentence
    assert sentence.endswith("precision bf16, chat_template true in dora-lr0.0002-s1.")
    for record in of(records, "dora"):
        record.rescored = []  # with the cell itself, by the same means
    assert told(records) == []


def test_smaller_micro_batches_than_asked_for():
    records = study()
    settings(records, train__batch_size=8, train__grad_accum=1)
    after = [Failure("train", 3, "no memory")]
    for record in of(records, "full"):
        record.smaller_batches = SmallerBatches(4, 2, after)
    sentence = told(records, "smaller batches")
    assert sentence == (
        "After running out of memory, full (2 cells) ran with smaller micro-batches (4 × 2 instead of 8 × 1): speed "
        "and memory are not comparable."
    )
    of(records, "dora")[0].smaller_batches = SmallerBatches(1, 8, 3 * after)
    assert "(4 × 2 instead of 8 × 1 and 1 × 8 instead of 8 × 1)" in told(records, "smaller batches")
    assert any("smaller micro-batches" in line for line in comparison(records).caption)


def test_micro_batches_that_were_chosen_for_the_device():
    records = study()
    settings(records, train__batch_size="auto", train__global_batch=8, train__grad_accum=1)
    for record in records:
        record.smaller_batches = SmallerBatches(4, 2, [], 4) if record.cell.seed is not None else None
    assert told(records) == []
    (told_of,) = (line for line in comparison(records).caption if "train.batch_size=auto" in line)
    assert told_of.endswith("that fit the device's memory: 4 × 2 in full, lora, qlora, dora, galore.")
    for record in of(records, "full"):
        record.smaller_batches = SmallerBatches(1, 8, [Failure("probe", None, "no memory")], 2)
    sentence = told(records, "chosen batches")
    assert sentence.startswith("Automatic micro-batches differ, so speed and memory are not comparable: ")
    assert "1 × 8 in full (2 cells)" in sentence
    for record in of(records, "full"):
        record.smaller_batches = SmallerBatches(4, 2, [], 4)
    settings(of(records, "lora"), train__global_batch=16)
    assert "16 sequences per step in lora (2 cells)" in told(records, "batch")


def test_studies_are_looked_at_one_by_one():
    records = study(study="a") + study("full", "lora", study="b")
    assert [(finding.study, finding.rule) for finding in findings(records)] == [("b", "base")]


def test_any_environment_is_bearable():
    records = study()
    for record, broken in zip(
        records, ({}, {"git": "x"}, {"versions": None}, {"device": 3}, {"cpu": []}), strict=False
    ):
        record.environment = broken
    assert "versions" in [rule for rule, _ in told(records)]


@pytest.mark.long
def test_ten_thousand_records_take_seconds():
    records = []
    for i in range(10_000):
        record = make_record(METHODS[1 + i % 5], 16, 32.0, 2e-4 * (1 + i // 50), i % 10)
        record.started = f"2026-01-{1 + i // 500:02}T{i % 24:02}:{i % 60:02}:00+00:00"
        record.environment = record.environment | {"boot": "5f0c"}
        records.append(record)
    start = time.process_time()
    found = findings(records)
    assert time.process_time() - start < 5
    assert [finding.rule for finding in found] == ["overlap", "base"]
    assert max(len(finding.sentence) for finding in found) < 500


# The command


def written(records, results):
    for record in records:
        write(record, results / record.study / f"{record.cell.name}.json")


def test_the_command_tells_findings_by_its_exit_status(tmp_path, capsys):
    written(study(study="fair"), tmp_path)
    written(study("full", "lora", study="unfair"), tmp_path)
    assert main(["lint", "--results-dir", str(tmp_path), "--study", "fair"]) == 0
    assert capsys.readouterr().out == "fair: no findings on 11 cells\n"
    assert main(["lint", "--results-dir", str(tmp_path)]) == 1
    told = "fair: no findings on 11 cells\nunfair: 1 finding on 4 cells\n- No finished base row: Δ is not shown.\n"
    assert capsys.readouterr().out == told


def test_bad_input_of_the_command(tmp_path, capsys):
    assert main(["lint", "--results-dir", str(tmp_path)]) == 2
    assert main(["lint", "--results-dir", str(tmp_path), "--study", "nope"]) == 2
    written(study(study="fair"), tmp_path)
    (tmp_path / "fair" / "torn.json").write_text("{")
    capsys.readouterr()
    assert main(["lint", "--results-dir", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert "no findings" in out
    assert "torn.json" in err


# Models behind an API


def test_of_a_model_behind_an_api_nothing_is_wanted_that_only_weights_have():
    assert told([*study("base", "lora"), make_answered("completions")]) == []
    assert told([make_answered(name=name) for name in ("one", "other")]) == []


def test_answers_that_were_cut_off_and_such_as_are_drawn_at_random():
    records = [
        *study("base"),
        make_answered("chat", "thinks", cut=11, left_out=["stop", "temperature"]),
        make_answered("chat", "fits", cut=10),
        make_answered("chat", "unknown", cut=None),
    ]
    thinks = records[1].cell.name
    found = {"cut off": [], "drawn": []}
    for finding in findings(records):
        if finding.rule in found:
            found[finding.rule].append((finding.sentence, finding.cells))
    assert found["cut off"] == [
        (
            "11 of 200 answers of thinks were cut off at the token limit. Give a model that thinks before it answers "
            "more tokens: model.thinking=8192.",
            (thinks,),
        )
    ]
    assert found["drawn"] == [
        ("thinks accepts no temperature: its answers are sampled and differ from run to run.", (thinks,))
    ]


def test_answers_that_were_cut_off_at_their_tasks_limit():
    records = study("base", "lora", seeds=(0,))
    for record, cut in zip(records, (11, 10), strict=True):
        record.written_answers, record.cut_answers = 200, cut
    assert dict(told(records))["cut off"] == (
        "6% of the written answers were cut off at their task's limit of tokens, in base: what a model would have said "
        "later is not scored."
    )
    records[1].cut_answers = 60
    assert dict(told(records))["cut off"].startswith("6% to 30% of the written answers")
    records[0].written_answers = records[1].written_answers = 0  # log-likelihoods alone
    records[0].cut_answers = records[1].cut_answers = 0
    assert "cut off" not in dict(told(records))


def test_requests_that_an_endpoint_refused():
    records = [*study("base"), make_answered("chat", "strict", requests=199, refused=1), make_answered("chat", "fits")]
    assert dict(told(records))["refused"] == (
        "The endpoint of strict refused 1 of 200 requests for their content; they count as empty answers."
    )
    records[1].api.refused = 0
    assert "refused" not in dict(told(records))


def test_answers_by_different_engines():
    """Also where each method was scored by both, as by an axis: no cell is to be compared with one of the other."""
    records = study("base", "lora", "dora")
    assert "written by" not in dict(told(records))
    for record in records:
        if record.cell.seed == 0:
            change(record, eval={"engine": "vllm"})
            record.vllm = VllmUsage("0.32.0", 4, 100, 50, 30.0, 5.0)
    assert dict(told(records))["written by"] == (
        "Answers were written by different engines: the harness in base, lora-lr0.0002-s1 and dora-lr0.0002-s1; vLLM "
        "0.32.0 in lora-lr0.0002-s0 and dora-lr0.0002-s0. Score all cells by one: eval.engine."
    )
    for record in records:
        record.vllm = VllmUsage("0.32.0", 4, 100, 50, 30.0, 5.0)
    records[0].vllm.version = "0.33.0"
    assert "vLLM 0.33.0 in base" in dict(told(records))["written by"]
    for record in records:
        record.vllm = None  # no task asked for written answers
    assert "written by" not in dict(told(records))


def test_models_that_were_asked_in_different_ways():
    records = [*study("base"), make_answered("completions", "sure"), make_answered("chat", "chatty")]
    sure, chatty = (record.cell.name for record in records[1:])
    assert told(records, "asked by") == (
        f"Models were queried in different ways: log-probabilities in base and {sure}; chat in {chatty}. "
        "Chat scores are not compared with others."
    )


def test_an_imported_records_settings_that_are_no_settings_are_left_out():
    record = make_record("lora")
    record.cell = replace(record.cell, settings=replace(record.cell.settings, other={"train": "text"}))
    assert record.cell.settings.train_dict() == plain(record.cell.settings.train)
    assert not [finding for finding in findings([record, make_record("dora")]) if "text" in finding.sentence]
