"""The comparison table: its numbers by hand, what it says of failed and missing cells, and its four formats."""

from __future__ import annotations

import csv
import io
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
from records import ENVIRONMENT, MIB, change, make_record, make_score, make_study, measured
from rendered import HOSTILE, Tags, caption, row, rows

from harness.config import ROOT
from harness.errors import UserError
from harness.record import Failure, HeldOut, Inference, ValidationPoint, read_study, write
from harness.report.frame import setting_texts
from harness.report.tables.best import tables
from harness.report.tables.columns import COLUMNS
from harness.report.tables.formats import document, render
from harness.report.tables.table import Table, comparison

EXACT_MATCH = "gsm8k, exact match, strict format (%)"


# Numbers


def test_rows_stand_in_the_order_of_methods_then_axes():
    extra = [make_record("zeta"), make_record("adalora"), make_record("lora", 64, 128.0, 2e-4)]
    extra += [make_record("lora", 8, 16.0, 1e-3), make_record("lora", 8, 16.0, 2e-4)]
    found = [(r["Method"], r["Setting"]) for r in rows(comparison(make_study() + extra))]
    assert found == [
        ("base", "–"),
        ("base_nf4", "–"),
        ("full", "lr=2e-5"),
        ("lora", "r=8 α=16 lr=2e-4 *"),
        ("lora", "r=8 α=16 lr=1e-3"),
        ("lora", "r=16 α=32 lr=2e-4"),
        ("lora", "r=64 α=128 lr=2e-4"),
        ("qlora", "r=16 α=32 lr=2e-4 *"),
        ("qlora", "r=64 α=128 lr=2e-4"),
        ("dora", "r=16 α=32 lr=2e-4"),
        ("galore", "r=16 lr=1e-3 scale=0.25"),
        ("adalora", "–"),
        ("zeta", "–"),
    ]


def test_the_numbers_of_a_study():
    table = comparison(make_study())
    assert row(table, "lora") == {
        "Method": "lora",
        "Setting": "r=16 α=32 lr=2e-4",
        "Trainable": "4.88M (3.50%)",  # 4,884,480 of 139,399,488
        "Peak train memory": "1.00 GiB (0.50×)",  # full: 2 GiB
        "Reserved peak": "1.06 GiB",
        "Tokens/s": "500 (1.00×)",
        "Tokens/s amortised": "495 (1.00×)",
        EXACT_MATCH: "23.0 ± 3.0 (+5.0)",  # base: 18.0
        "Validation loss": "1.250",
        "Status": "ok",
    }
    assert row(table, "qlora", "r=16 α=32 lr=2e-4 *")["Peak train memory"] == "512 MiB (0.25×)"
    assert row(table, "galore")["Tokens/s"] == "380 (0.76×)"
    assert row(table, "galore")["Tokens/s amortised"] == "285 (0.58×)"  # 285 / 495
    assert row(table, "base")[EXACT_MATCH] == "18.0 ± 3.0"
    assert row(table, "base_nf4")[EXACT_MATCH] == "16.5 ± 3.0 (−1.5)"
    assert row(table, "full")["Validation loss"] == "1.235"  # 1.2346


def test_the_cost_of_cells_is_shown_at_a_price():
    hour = [make_record("lora", seed=seed) for seed in (0, 1)]
    for record, hours in zip(hour, (1, 3), strict=True):
        record.seconds = 3600.0 * hours
    several = make_record("full", settings={"train": {"max_steps": 50, "devices": 4}})
    several.seconds = 1800.0
    api = make_record("api", settings={"model": {"base_url": "http://localhost/v1"}})
    best, every = tables([*hour, several, api], None, price=2.5)
    assert row(every, "lora")["Cost"] == "$5.00"  # two hours on the mean
    assert row(every, "full")["Cost"] == "$5.00"
    assert row(every, "api")["Cost"] == "–"
    assert row(best, "lora")["Cost"] == "$5.00"
    assert "Cost: the time of a cell's whole job at $2.50 an hour and device" in caption(every)
    assert sorted(every.data.cost.dropna()) == [2.5, 5.0, 7.5]
    without = tables([*hour, several, api], None)
    assert all("Cost" not in table.columns for table in without)
    assert "cost" not in without[1].data


def test_records_of_several_devices_have_no_price():
    other = make_record("full", environment=ENVIRONMENT | {"device": {"type": "cuda", "name": "NVIDIA L4"}})
    with pytest.raises(UserError, match="--price requires records of one kind of device, got NVIDIA H100, NVIDIA L4"):
        tables([make_record("lora"), other], None, price=2.5)


def test_amortised_speed_is_shown_where_it_is_measured_even_if_it_is_no_different():
    columns = comparison([make_record("lora"), make_record("full")]).columns
    assert "Tokens/s amortised" in columns
    assert "Tokens/s amortised" not in comparison([make_record("base")]).columns


def test_seeds_are_averaged_and_widen_the_error():
    scores = {0: (0.20, 0.03), 1: (0.24, 0.03), 2: (0.28, 0.03)}
    seeds = [make_record("lora", 16, 32.0, 2e-4, seed, scores=[make_score(*s)]) for seed, s in scores.items()]
    for record, loss in zip(seeds, (1.0, 1.1, 1.5), strict=True):
        record.validation = [ValidationPoint(50, 20_000, loss)]
    table = comparison([*seeds, make_record("base"), make_record("full")])
    lora = row(table, "lora")
    assert lora["Seeds"] == "3"
    assert lora[EXACT_MATCH] == "24.0 ± 3.8 (+6.0)"  # sqrt(0.03² + 0.04² / 3) = sqrt(0.0009 + 0.000533) = 0.0379
    assert lora["Validation loss"] == "1.200"
    assert row(table, "base")["Seeds"] == "–"
    assert row(table, "full")["Seeds"] == "1"
    assert "± is one standard error over items and seeds." in caption(table)
    assert "Means over 1–3 seeds." in caption(table)


def test_a_score_without_its_error_has_none():
    table = comparison([make_record("lora", scores=[make_score(0.5, None)])])
    assert row(table, "lora")[EXACT_MATCH] == "50.0"


def test_scores_that_are_no_shares_keep_their_unit():
    perplexity = {"task": "wikitext", "metric": "word_perplexity", "filter": "none", "higher_is_better": False}
    records = [
        make_record("base", scores=[make_score(20.5, 0.25, **perplexity)]),
        make_record("lora", scores=[make_score(18.25, 0.25, **perplexity)]),
    ]
    assert row(comparison(records), "lora")["wikitext, word_perplexity ↓"] == "18.25 ± 0.25 (−2.250)"


def test_speed_is_compared_at_the_same_rank_or_with_the_first_lora():
    slow, fast = make_record("lora", 8, 16.0, 2e-4), make_record("lora", 16, 32.0, 2e-4)
    slow.train.tokens_per_second_steady, fast.train.tokens_per_second_steady = 100.0, 200.0
    doras = [make_record("dora", 16, 32.0, 2e-4), make_record("dora", 64, 128.0, 2e-4)]
    for record in doras:
        record.train.tokens_per_second_steady = 100.0
    other = make_record("lora", 16, 32.0, 1e-3)
    table = comparison([slow, fast, other, *doras])
    assert row(table, "lora", "r=16 α=32 lr=1e-3")["Tokens/s"] == "500 (2.50×)"
    assert row(table, "dora", "r=16 α=32 lr=2e-4 *")["Tokens/s"] == "100 (0.50×)"
    assert row(table, "dora", "r=64 α=128 lr=2e-4")["Tokens/s"] == "100 (1.00×)"


def test_a_ratio_is_to_a_row_of_the_same_device():
    """Both methods on one card, and the fresh seeds that confirm them on a card that is twice as fast."""
    faster = ENVIRONMENT | {"device": ENVIRONMENT["device"] | {"name": "NVIDIA H200"}}
    records = [make_record(method, seed=0) for method in ("lora", "dora", "qlora")]
    records += [make_record(method, seed=1, environment=faster) for method in ("lora", "dora")]
    for record in records[3:]:
        record.confirmation = True
        record.train.tokens_per_second_steady *= 2
    speed = [r["Tokens/s"] for r in rows(comparison(records))]
    assert [re.search(r"\(.*\)", text)[0] for text in speed[:2]] == ["(1.00×)", "(1.00×)"]  # both of lora
    assert speed[3].rpartition(" ")[2] == speed[4].rpartition(" ")[2] == "(0.70×)"
    assert "×" not in row(comparison([records[3], records[1]]), "dora")["Tokens/s"], "of two devices"


def test_models_are_compared_within_themselves():
    big = [make_record(method, model="big") for method in ("base", "full", "lora")]
    big[1].phases["train"].memory.allocated_peak = 4096 * MIB
    table = comparison([*big, make_record("full", model="small"), make_record("lora", model="small")])
    found = {(r["Model"], r["Method"]): r for r in rows(table)}
    assert "Data" not in table.columns
    assert found["big", "lora"]["Peak train memory"] == "1.00 GiB (0.25×)"
    assert found["small", "lora"]["Peak train memory"] == "1.00 GiB (0.50×)"
    assert found["small", "lora"][EXACT_MATCH] == "23.0 ± 3.0"
    assert "No finished base row for small: Δ is not shown." in caption(table)


def test_the_base_of_other_data_is_the_same_model():
    table = comparison([make_record("base", data="alpaca"), make_record("lora")])
    assert row(table, "lora")[EXACT_MATCH] == "23.0 ± 3.0 (+5.0)"


def test_scores_over_other_items_are_not_compared():
    table = comparison([make_record("base", scores=[make_score(0.18, n=50)]), make_record("lora")])
    assert row(table, "lora")[EXACT_MATCH] == "23.0 ± 3.0"
    assert "Warning: cells were scored differently on gsm8k" in caption(table)


# Columns

COSTS = ["kinds", "resident", "p95", "parts", "projection", "utilisation", "energy", "prefill", "decode"]
COSTS += ["decode_ratio", "merge", "disk", "load", "score_time"]


def test_what_a_cell_cost_in_detail():
    table = comparison([measured(make_record("full")), measured(make_record("lora"))], ["method", "memory", *COSTS])
    lora = {
        "Method": "lora",
        "Peak train memory": "1.00 GiB (0.50×)",
        "Weights / adapters / gradients / optimizer / activations": "513 / 19 / 0 / 37 / 346 MiB",
        "Resident memory": "569 MiB",
        "Step p95": "808 ms",  # 20,000 tokens at 495/s in 50 equal steps
        "Forward / backward / optimizer": "30 / 60 / 10%",
        "Projection share": "0.00%",
        "Utilisation": "32.0%",  # 2e9 operations × 500 × 25,600 / 20,000 padded tokens/s of 4e12
        "Joules/token": "2.50",  # 50,000 over 20,000
        "Prefill tokens/s": "2,048 → 4,096",  # 8 × 128 in 0.5 s, in 0.25 s
        "Decode tokens/s": "400 → 800",  # 8 × 64 in 1.28 s, in 0.64 s
        "Merged decode": "1.00×",
        "Merge time": "125 ms",
        "Size on disk": "18 / 257 MiB",
        "Load time": "2.00 s",
        "Score time": "30.0 s",
    }
    assert row(table, "lora") == lora
    full = row(table, "full")
    assert (full["Prefill tokens/s"], full["Decode tokens/s"]) == ("4,096", "800")
    assert comparison([measured(make_record("base"))], ["decode"]).rows == [["800"]]
    assert (full["Merge time"], full["Size on disk"]) == ("–", "– / 257 MiB")
    text = caption(table)
    assert "Inference was measured with 128 prompt tokens, 65 new tokens, batch size 8, greedy decoding." in text
    assert "Utilisation: counted operations per second of median steps" in text
    assert "Tokens/s:" not in text
    assert "Scores:" not in text


@pytest.mark.parametrize(
    ("mib", "shown"),
    [
        ((20_480, 512, 0, 1, 9_000), "20 / 0.5 / 0 / 0.00098 / 8.8 GiB"),
        ((5_253, 0, 0, 0.25, 12.5), "5,253 / 0 / 0 / 0.25 / 12 MiB"),
        ((0.5, 0.25, 0, 0, 0.125), "512 / 256 / 0 / 0 / 128 KiB"),
    ],
)
def test_kinds_of_memory_share_the_unit_of_the_greatest(mib, shown):
    record = measured(make_record("lora"))
    peak = record.probe.peak
    peak.weights, peak.adapters, peak.gradients, peak.optimizer, peak.activations = (int(n * MIB) for n in mib)
    assert comparison([record], ["kinds"]).rows == [[shown]]


def test_decoding_one_by_one_and_in_batches_are_columns_of_their_own():
    record = measured(make_record("lora"))
    record.inference["unmerged"], record.inference["merged"] = (Inference(1, 128, 65, [0.1], [s]) for s in (0.64, 0.32))
    record.batched_inference = {"merged": Inference(16, 128, 65, [0.1], [0.64])}
    table = comparison([record])
    texts = row(table, "lora")
    assert (texts["Decode tokens/s"], texts["Batched decode tokens/s"]) == ("100 → 200", "1,600")  # 16 × 64 / 0.64
    assert comparison([record], ["batched_decode"]).columns == ["Batched decode tokens/s"]
    del record.inference["base"]
    text = caption(table)
    assert "Batched decode: the decoding rate at the large batch size, of all sequences together." in text
    assert "Batched inference was measured with 128 prompt tokens, 65 new tokens, batch size 16, greedy" in text


def test_a_gpu_that_waits_for_python_is_told():
    busy, idle = measured(make_record("full")), measured(make_record("lora"))
    busy.probe.busy_share, busy.probe.kernels = 0.97, 900.0
    idle.probe.busy_share, idle.probe.kernels = 0.31, 4_321.0
    table = comparison([busy, idle])
    assert row(table, "lora")["GPU busy"] == "31.0%"
    assert comparison([idle], ["kernels"]).rows == [["4,321"]]
    assert (
        "Tokens/s measures Python rather than the GPU in lora: kernels run for less than 80.0% of a step (down to "
        "31.0%)."
    ) in caption(table)
    assert "measures Python rather than the GPU in every row:" in caption(comparison([idle]))
    assert "measures Python" not in caption(comparison([busy]))
    assert "measures Python" not in caption(comparison([idle], ["memory"]))


def test_decoding_is_compared_as_the_model_is_served():
    study = [measured(make_record("lora")), measured(make_record("full")), measured(make_record("dora"), 2.0)]
    table = comparison([*study, make_record("galore")], ["method", "decode_ratio"])
    assert [row(table, method)["Merged decode"] for method in ("full", "dora")] == ["1.00×", "0.50×"]
    again = [measured(make_record("lora", seed=1), 1.02), measured(make_record("dora", seed=1), 2.0)]
    dora = row(comparison([*study, *again], ["method", "decode_ratio"]), "dora")["Merged decode"]
    value, low, high = map(float, re.fullmatch(r"(.*)× \((.*)–(.*)\)", dora).groups())
    assert low < value == 0.5 < high  # two runs have an interval; the repeats of one run have none
    assert row(table, "galore")["Merged decode"] == "–"
    assert "No finished lora row" not in caption(table)
    assert "No finished lora row: merged decode ratios are not shown." in caption(
        comparison(study[1:], ["method", "decode_ratio"])
    )


def test_an_adapter_that_was_not_merged_has_one_rate_and_is_not_served():
    record = measured(make_record("qlora"))
    del record.inference["merged"]
    table = comparison([measured(make_record("lora")), record], ["decode", "decode_ratio"])
    assert table.rows == [["400 → 800", "1.00×"], ["400", "–"]]


def test_details_are_averaged_over_seeds():
    records = [measured(make_record("lora", seed=0)), measured(make_record("lora", seed=1), 2.0)]
    table = comparison([*records, measured(make_record("full"))], ["seeds", "decode", "decode_ratio"])
    assert table.rows[1] == ["2", "300 → 600", "1.00×"]  # (400 + 200) / 2, (800 + 400) / 2
    assert table.rows[0][2] == "1.33×"  # 800 / 600; a single run of full has no interval


def test_details_of_few_columns_stand_in_the_default_table():
    old, new = comparison(make_study()), comparison([measured(record) for record in make_study()])
    assert set(new.columns) - set(old.columns) == {
        "Weights / adapters / gradients / optimizer / activations",
        "Remainder",
        "Decode tokens/s",
        "Merged decode",
    }
    assert "Decode" not in caption(old)
    assert "Decode: tokens per second after the first" in caption(new)


def test_all_columns_are_those_that_have_a_value():
    old = comparison(make_study(), ["all"])
    assert old.columns[:3] == ["Study", "Model", "Data"]
    assert {"Step p95", "Load time", "Score time"} <= set(old.columns)
    assert not {"Utilisation", "Resident memory", "Merged decode", "Size on disk"} & set(old.columns)
    elsewhere = {"reserved", "job_reserved", "asked", "price", "spent"}  # of imported records, or of models behind APIs
    elsewhere |= {"cost"}  # at a price
    study = [measured(record) for record in make_study()]
    for record in study:
        record.phases.get("train", record.phases["load"]).memory.device_process = 2048 * MIB
        record.batched_inference = record.inference
        if record.train:
            record.probe.busy_share, record.probe.kernels = 0.9, 1200.0
    new = comparison(study, ["all"])
    assert len(new.columns) == len(COLUMNS.keys() - elsewhere)


def test_chosen_columns_stand_in_the_order_asked_for():
    table = comparison(make_study(), ["decode", "method", "method"])
    assert table.columns == ["Decode tokens/s", "Method"]
    assert table.rows[0] == ["–", "base"]


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("fmt", ["md", "html", "latex"])
def test_every_column_renders_alone(name, fmt):
    for records in ([], [make_record("lora", status="unfit")], [measured(r) for r in make_study()]):
        text = render(comparison(records, [name]), fmt)
        assert "U+" not in text
        assert "{within}" not in text


def test_inference_measured_differently_is_warned_of():
    lora, dora = measured(make_record("lora")), measured(make_record("dora"))
    dora.inference["merged"].batch_size = 1
    text = caption(comparison([lora, dora]))
    assert "Warning: inference was measured differently: 128 prompt tokens" in text
    assert "batch size 8, greedy" not in text


def test_an_unknown_column_is_named_with_the_nearest():
    with pytest.raises(UserError, match=r"columns=decoding is unknown\. Did you mean decode\? There is: study, .* all"):
        comparison([], ["decoding"])


def test_columns_are_chosen_on_the_command_line(inside, tmp_path):
    for record in make_study():
        write(measured(record), tmp_path / "results" / "demo" / f"{record.cell.name}.json")
    run = inside("table", "--columns", "method, kinds")
    assert (run.returncode, run.stderr) == (0, "")
    assert "| Method   |   Weights / adapters / gradients / optimizer / activations |" in run.stdout
    assert "Tokens/s" not in run.stdout
    for arguments, said in [
        (["--columns", "metod"], "columns=metod is unknown. Did you mean method?"),
        (["--columns", ""], "columns= is unknown."),
        (["--columns", "all", "--format", "csv"], "--columns can't be combined with --format csv"),
    ]:
        run = inside("table", *arguments)
        assert (run.returncode, run.stdout) == (2, "")
        assert run.stderr.startswith(f"error: {said}")
        assert run.stderr.count("\n") == 1


# Settings


def test_settings_that_differ_are_shown_and_seeds_are_not():
    short, long = ({"train": {"max_steps": n, "seed": n}, "data": {"seed": n}} for n in (50, 100))
    records = [make_record("lora", 16, 32.0, 2e-4, settings=s) for s in (short, long)]
    assert setting_texts(records) == [f"r=16 α=32 lr=2e-4 train.max_steps={n}" for n in (50, 100)]
    assert len(comparison(records).rows) == 2


def test_a_setting_that_only_one_cell_has_is_shown():
    records = [make_record("full"), make_record("full", settings={"train": {"packing": True}})]
    assert setting_texts(records) == ["train.max_steps=50 train.packing=–", "train.max_steps=– train.packing=true"]


def test_a_setting_that_a_methods_file_takes_from_another_is_shown_once():
    """A second one that varies with it, but is no copy, is shown."""
    records = []
    for dtype, packing in (("float32", False), ("bfloat16", True)):
        method = {"load": {"dtype": dtype}, "adapt": {"use_rslora": packing}}
        settings = {"method": method, "model": {"dtype": dtype}, "train": {"packing": packing}}
        records.append(make_record("full", settings=settings))
    assert setting_texts(records)[1] == "method.adapt.use_rslora=true model.dtype=bfloat16 train.packing=true"


# Failed and missing cells


def test_a_failed_cell_is_a_row_with_what_it_measured():
    table = comparison(make_study())
    failed = row(table, "qlora", "r=64 α=128 lr=2e-4")
    assert failed["Status"] == "oom"
    assert failed["Peak train memory"] == "512 MiB"
    assert {failed[c] for c in ("Tokens/s", "Tokens/s amortised", EXACT_MATCH, "Validation loss")} == {"–"}
    assert table.caption[-1].startswith("Failed cells: qlora-r64-")
    assert table.caption[-1].endswith(": CUDA out of memory (train, step 3).")


def test_a_failed_seed_is_counted_but_not_averaged():
    bad = make_record("lora", 16, 32.0, 2e-4, 1, status="diverged")
    bad.phases["train"].memory.allocated_peak = 1
    lora = row(comparison([make_record("lora", 16, 32.0, 2e-4, 0), bad, make_record("full")]), "lora")
    assert lora["Status"] == "1 ok, 1 diverged"
    assert lora["Peak train memory"] == "1.00 GiB (0.50×)"


def test_a_failed_full_row_is_no_reference():
    table = comparison([make_record("full", status="oom"), make_record("lora")])
    assert row(table, "lora")["Peak train memory"] == "1.00 GiB"
    assert "No finished full row: memory ratios are not shown." in caption(table)


def test_memory_is_never_the_process_peak():
    record = make_record("lora")
    record.phases["train"].memory.allocated_peak = None
    assert row(comparison([record], ["method", "memory"]), "lora")["Peak train memory"] == "–"
    assert "Peak train memory" not in comparison([record]).columns


def test_a_cell_that_was_not_run_is_a_row_with_the_reason():
    table = comparison([make_record("full", status="unfit"), make_record("lora")])
    assert row(table, "full")["Status"] == "unfit"
    assert set(row(table, "full").values()) == {"full", "unfit", "–"}
    reason = r"It needs 96\.0 GiB of 80\.0 GiB\. Lower the batch size\."
    assert re.fullmatch(rf"Cells not run: full-\S+: {reason}", table.caption[-1])
    assert "Failed cells" not in caption(table)


def test_cells_that_were_not_run_for_one_reason_share_a_line():
    records = [make_record("full", lr=lr, status="unfit") for lr in (1e-5, 2e-5, 3e-5, 4e-5, 5e-5, 6e-5)]
    refused = make_record("muon", status="unfit")
    refused.failure = Failure("check", None, "It does not take experts in stacks; use method=galore.")
    lines = [line for line in comparison([*records, refused, make_record("lora")]).caption if "not run" in line]
    assert len(lines) == 2
    assert re.fullmatch(r"Cells not run: (full-\S+, ){3}full-\S+ and 2 more: It needs 96\.0 .* size\.", lines[0])
    assert re.fullmatch(r"Cells not run: muon-\S+: It does not take experts in stacks; use method=galore\.", lines[1])


def test_missing_references_are_named():
    text = caption(comparison([make_record("dora")]))
    assert "No finished base row: Δ is not shown." in text
    assert "No finished full row: memory ratios are not shown." in text
    assert "No finished lora row: tokens/s ratios are not shown." in text


@pytest.mark.parametrize("fmt", ["md", "csv", "html", "latex"])
def test_no_records_and_only_failed_ones_still_give_a_table(fmt):
    bare = make_record("lora", status="failed", environment={})
    bare.parameters, bare.phases, bare.failure = None, {}, None
    for records in ([], [bare]):
        assert render(comparison(records), fmt).endswith("\n")


# Caption


def test_the_caption_says_what_was_measured_and_where():
    text = caption(comparison(make_study()))
    assert "gsm8k on 200 items, 5-shot, task version 3.0." in text
    assert "Every trained cell took 50 steps over 20,000 raw tokens." in text
    assert "Single seed:" in text
    assert "All cells ran with device type cuda, device NVIDIA H100, precision bf16, threads 2, torch 2.11.0" in text
    assert [line for line in text.splitlines() if line.startswith("Warning")] == [
        "Warning: the number of settings tried differs between methods: 1 for full, lora, dora and galore; 2 for qlora."
    ]


@pytest.mark.parametrize("path", ["owner/name/file.gguf", "embedded:smollm2-135m-instruct"])
def test_the_caption_says_that_weights_were_rounded_before(path):
    record = make_record("lora")
    change(record, model={"path": path})
    assert f"The weights of {record.cell.model} come from a GGUF file" in caption(comparison([record]))
    change(record, model={"path": "owner/name"})
    assert "GGUF" not in caption(comparison([record]))


def test_one_of_a_thing_has_no_plural():
    record = make_record("lora")
    record.train.steps = 1
    record.scores = [replace(score, n=1) for score in record.scores]
    text = caption(comparison([record]))
    assert "gsm8k on 1 item, 5-shot" in text
    assert "Every trained cell took 1 step over 20,000 raw tokens." in text


def test_the_caption_says_what_memory_leaves_out():
    plain, compiled, paged = (measured(make_record(method)) for method in ("lora", "dora", "qlora"))
    change(compiled, train={"compile": True})
    change(paged, method={"optim": {"optimizer": {"_target_": "harness.job.methods.adamw.PagedEightBitAdamW"}}})
    found = caption(comparison([plain, compiled, paged]))
    assert "uncompiled layers, also with train.compile=true: dora." in found
    assert "Memory excludes moments in paged memory" in found
    assert "is short: qlora; 8 bytes" in found
    assert "Memory" not in caption(comparison([plain, compiled, paged], columns=["steady"]))
    assert "excludes" not in caption(comparison([plain]))


def test_unequal_training_is_warned_of():
    long = make_record("lora")
    long.train.steps, long.train.tokens.raw = 100, 40_000
    text = caption(comparison([make_record("full"), long]))
    assert "Trained cells took 50–100 steps over 20,000–40,000 raw tokens." in text
    told = "50 steps over 20,000 raw tokens in full; 100 steps over 40,000 raw tokens in lora"
    assert f"Warning: token budgets differ: {told}." in text


def test_unequal_environments_are_warned_of():
    other = ENVIRONMENT | {"versions": {"torch": "2.12.0"}, "precision": "fp32"}
    text = caption(comparison([make_record("full"), make_record("lora", environment=other)]))
    assert "Warning: library versions differ: torch 2.11.0, transformers 5.1.0, peft 0.18.0" in text
    assert "torch 2.12.0, transformers unknown, peft unknown, lm_eval unknown in lora." in text
    assert "Warning: precisions differ: bf16 in full; fp32 in lora." in text
    assert "All cells ran with device type cuda, device NVIDIA H100, threads 2" in text


# Formats


def test_markdown_lines_are_of_equal_width():
    lines = [line for line in render(comparison(make_study()), "md").splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 8
    assert len({len(line) for line in lines}) == 1


def test_markdown_cells_stay_in_their_columns():
    lines = render(comparison([make_record(name) for name in HOSTILE]), "md").splitlines()
    grid = [line for line in lines if line.startswith("|")]
    assert len(grid) == 2 + len(HOSTILE)
    assert {line.replace("\\|", "").count("|") for line in grid} == {grid[0].count("|")}
    assert "\x1b" not in "".join(lines)
    assert any(line.startswith("| \\<script>") for line in grid)


def test_csv_holds_raw_numbers():
    found = list(csv.DictReader(io.StringIO(render(comparison(make_study()), "csv"))))
    galore = found[-1]
    assert galore["method"] == "galore"
    assert galore["train_allocated_peak"] == str(1331 * MIB)
    assert galore["rank"] == "16"
    assert galore["alpha"] == ""
    assert float(galore["gsm8k/exact_match/strict-match"]) == 0.225
    assert [r["gsm8k/exact_match/strict-match"] for r in found if r["status"] == "oom"] == [""]


def test_html_is_whole_and_escapes_hostile_names():
    records = [make_record(name, study=HOSTILE[0], environment={"precision": HOSTILE[0]}) for name in HOSTILE]
    records[0].scores = [make_score(task=HOSTILE[0], version=HOSTILE[4])]
    records[1].status = "failed"
    page = render(comparison(records), "html")
    tags = Tags()
    tags.feed(page)
    names = [tag for tag, _ in tags.tags]
    assert page.startswith("<!DOCTYPE html>")
    assert tags.open == []
    assert not {"script", "img"} & set(names)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert names.count("caption") == 1
    assert sum(attributes.get("scope") == "row" for _, attributes in tags.tags) == len(HOSTILE)


def test_a_command_in_markdown_can_be_pasted():
    command = "`harness sweep 'method.adapt.target_modules=[q_proj,v_proj]' a|b`"
    table = Table("t", ["a"], [["x<b> [y]"]], [f"Run {command}, not `<i>` but [this] or <that>; p < 1%."], None)
    text = render(table, "md")
    assert f"Run {command.replace('|', chr(92) + '|')}, not `<i>` but \\[this] or \\<that>; p < 1%." in text
    assert "x\\<b> \\[y]" in text


def test_latex_is_escaped():
    record = make_record(r"a_b & 50% $x$ #1 {y} ~ ^ \input", 16, 32.0, 2e-4)
    text = render(comparison([record, make_record("base")]), "latex")
    escaped = r"a\_b \& 50\% \$x\$ \#1 \{y\} \textasciitilde{} \textasciicircum{} \textbackslash{}input"
    assert escaped in text
    assert r"r=16 $\alpha$=32 lr=2e-4" in text
    assert r"23.0 $\pm$ 3.0 (+5.0)" in text
    assert text.isascii()


def test_latex_has_accents_and_code_points_of_other_alphabets():
    text = render(Table("t", ["a"], [["Übung ße\u0301 Şık 数"]], [], None), "latex")
    assert r"\"{U}bung \ss{}\'{e} \c{S}\i{}k [U+6570]" in text
    assert text.isascii()


def test_latex_has_rules_the_answer_and_every_caveat():
    folder = ROOT / "results" / "reference" / "quickstart"
    made = tables(read_study(folder)[0], folder)
    text = document(made, "latex")
    assert made[0].answer
    assert [text.count(rule) for rule in ("\\toprule", "\\midrule", "\\bottomrule")] == [2, 2, 2]
    for part in re.findall(r"\\begin\{(\w+)\}", text):
        assert text.count(f"\\begin{{{part}}}") == text.count(f"\\end{{{part}}}")
    words = set(re.sub(r"\\[a-z]+|[^A-Za-z]", " ", text).split())
    for table in made:
        for line in (*table.answer, *table.caption):
            assert set(re.findall(r"[A-Za-z]+", line)) <= words, line


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_latex_compiles(tmp_path):
    names = [*HOSTILE, "[x]", "--long--", "*"]
    records = make_study() + [make_record(name, settings={"x": name}) for name in names]
    (tmp_path / "table.tex").write_text(render(comparison(records), "latex"), encoding="utf-8")
    (tmp_path / "main.tex").write_text(
        "\\documentclass{article}\n\\usepackage{booktabs,graphicx}\n\\begin{document}\n\\input{table}\n\\end{document}\n"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=120)
    assert done.returncode == 0, done.stdout
    assert (tmp_path / "main.pdf").stat().st_size > 0


def test_an_unknown_format_is_named():
    with pytest.raises(ValueError, match="fmt must be one of md, csv, html, latex, got pdf"):
        render(comparison([]), "pdf")


def test_nothing_heavy_is_imported(tmp_path):
    write(make_record("lora"), tmp_path / "lora.json")
    program = """
import sys
from dataclasses import replace
from pathlib import Path
import harness.report
assert "pandas" not in sys.modules
from harness.record import read_study
from harness.report.tables.formats import render
from harness.report.tables.table import Table, comparison
table = comparison(read_study(Path(sys.argv[1]))[0])
for fmt in ("md", "csv", "html", "latex"):
    render(table, fmt)
heavy = {"torch", "transformers", "peft", "lm_eval", "hydra"}
loaded = [name for name in sys.modules if name in heavy or name.startswith(("harness.job", "harness.sweep."))]
assert not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_models_of_different_tokenizers_are_compared_by_bits_per_byte():
    """The same 1,000 bytes in 250 tokens of 1.2 nats, and in 500 tokens of 0.7 nats."""
    records = [make_record("lora", model=name) for name in ("long", "short")]
    for record, loss, tokens in zip(records, (1.2, 0.7), (250, 500), strict=True):
        record.validation = [ValidationPoint(50, 20_000, loss)]
        record.held_out = HeldOut(tokens, 1_000)
    table = comparison(records)
    column = [cells[table.columns.index("Answers, bits/byte ↓")] for cells in table.rows]
    assert column == ["0.4328", "0.5049"]  # 1.2 · 250 / 1000 / ln 2, and 0.7 · 500 / 1000 / ln 2
    assert "Bits per byte of the validation answers" in "\n".join(table.caption)
    assert "Answers, bits/byte ↓" not in comparison(records[:1]).columns
    assert "Answers, bits/byte ↓" in comparison(records[:1], ["answer_bits"]).columns
