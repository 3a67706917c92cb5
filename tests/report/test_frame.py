"""The frame's numbers by hand, and nulls for what a record lacks."""

from __future__ import annotations

import pandas as pd
import pytest
from records import MIB, make_record, measured

from harness.record import Inference, Tokens, Train
from harness.report.frame import frame


def one(record):
    """The record's row as a dict."""
    return frame([record]).iloc[0].to_dict()


def test_nulls_and_no_zeros_for_what_was_not_measured():
    table = frame([make_record("lora", 16, status="oom"), make_record("base")])
    absent = ["steps", "tokens_per_second_steady", "validation_loss", "gsm8k/exact_match/strict-match"]
    assert table.loc[0, absent].isna().all()
    assert table.loc[0, "trainable_share"] == pytest.approx(4_884_480 / 139_399_488)
    assert table.loc[1, ["rank", "seed", "train_allocated_peak"]].isna().all()
    assert table.loc[1, "trainable"] == 0


def test_old_records_have_the_same_columns_and_nulls():
    old, new = frame([make_record("lora")]), frame([measured(make_record("lora"))])
    assert list(old.columns) == list(new.columns)
    assert list(old.dtypes) == list(new.dtypes)
    null = {name for name in old.columns if old[name].isna().all()} - {name for name in new if new[name].isna().all()}
    assert {"peak_weights", "resident", "gradients", "forward_share", "projection_share", "utilisation"} <= null
    assert {"joules_per_token", "merged_decode_tokens_per_second", "merge_seconds", "model_bytes"} <= null
    assert old.loc[0, "train_allocated_peak"] == 1024 * MIB  # the phase's
    assert old.loc[0, "step_seconds_p95"] == pytest.approx(20_000 / 495 / 50)


def test_a_seed_of_the_evaluation_is_a_setting():
    once = [make_record("lora", 16, settings={"eval": {"seed": seed}}) for seed in (0, 1)]
    assert list(frame(once)["setting"]) == ["r=16 eval.seed=0", "r=16 eval.seed=1"]
    assert list(frame([make_record("lora", 16, seed=seed) for seed in (0, 1)])["setting"]) == ["r=16", "r=16"]


def test_a_seed_of_the_evaluation_that_goes_with_the_seed_is_a_setting_all_the_same():
    """Else one cell more would make settings of what were repeats."""
    both = [make_record("lora", 16, seed=seed, settings={"eval": {"seed": seed}}) for seed in (0, 1)]
    assert list(frame(both)["setting"]) == ["r=16 eval.seed=0", "r=16 eval.seed=1"]


def test_a_seed_of_generated_data_is_a_setting():
    """Cells of the same seed on other problems are no repeats of each other, of which the last alone would count."""
    cells = [make_record("lora", 16, settings={"data": {"load": {"seed": seed}}}) for seed in (0, 1, 2)]
    assert list(frame(cells)["setting"]) == [f"r=16 data.load.seed={seed}" for seed in (0, 1, 2)]


def test_what_takes_the_seed_of_the_training_is_no_setting():
    """SHiRA draws its masks by it."""
    drawn = [make_record("shira", 16, seed=s, settings={"method": {"adapt": {"random_seed": s}}}) for s in (0, 1)]
    assert list(frame(drawn)["setting"]) == ["r=16", "r=16"]
    apart = [make_record("shira", 16, settings={"method": {"adapt": {"random_seed": seed}}}) for seed in (0, 1)]
    assert list(frame(apart)["setting"]) == [f"r=16 method.adapt.random_seed={seed}" for seed in (0, 1)]


def test_a_new_setting_that_is_off_does_not_split_old_cells():
    adapt = {"method": {"name": "lora", "adapt": {"r": 16}}}
    off = {"method": {"name": "lora", "adapt": {"r": 16, "use_rslora": False}}}
    on = {"method": {"name": "lora", "adapt": {"r": 16, "use_rslora": True}}}
    assert list(frame([make_record("lora", 16, settings=s) for s in (adapt, off)])["setting"]) == ["r=16", "r=16"]
    assert len(set(frame([make_record("lora", 16, settings=s) for s in (adapt, on)])["setting"])) == 2


def test_a_setting_of_zero_is_not_one_of_null():
    cells = [make_record("lora", 16, settings={"train": {"data_seed": seed}}) for seed in (None, 0)]
    assert list(frame(cells)["setting"]) == ["r=16 train.data_seed=–", "r=16 train.data_seed=0"]


def test_unfit_cells_have_a_reason_and_no_numbers():
    row = one(make_record("full", status="unfit"))
    assert (row["status"], row["failed_phase"]) == ("unfit", "plan")
    assert row["reason"].startswith("It needs 96.0 GiB")


def test_memory_by_kind():
    record = measured(make_record("lora"))
    record.phases["train"].memory.device_process = 2000 * MIB
    row = one(record)
    assert (row["train_allocated_peak"], row["memory_instrument"]) == (1024 * MIB, "allocator")
    assert row["train_memory_remainder"] == (1024 - 915) * MIB
    kinds = ("weights", "adapters", "gradients", "optimizer", "activations")
    assert [row[f"peak_{kind}"] / MIB for kind in kinds] == [513, 19, 0, 37, 346]
    assert row["resident"] == 569 * MIB
    assert row["gradients"] == 19 * MIB
    assert row["train_reserved_peak"] == 1088 * MIB
    assert row["train_device_process"] == 2000 * MIB
    assert row["train_process_peak"] == 3000 * MIB
    record.environment = {"device": {"type": "cpu"}}
    row = one(record)
    assert (row["train_allocated_peak"], row["memory_instrument"]) == (915 * MIB, "tensors")
    assert pd.isna(row["train_memory_remainder"])


def test_the_probe_of_an_untuned_model_is_no_training():
    table = frame([measured(make_record("base"))])
    assert table.loc[0, ["train_allocated_peak", "utilisation"]].isna().all()
    assert table.loc[0, "resident"] == 513 * MIB


def test_a_cell_that_failed_in_the_probe_shows_how_far_it_came():
    record = make_record("lora", status="oom")
    record.phases["probe"] = record.phases.pop("train")
    assert one(record)["train_allocated_peak"] == 1024 * MIB


def test_the_parts_of_a_step():
    record = measured(make_record("galore"))
    # Ten steps of 1 s but for two with a new projection; the first, with one too, is the warm-up
    seconds = [9.0, 1.0, 1.0, 1.0, 1.0, 5.0, 1.0, 1.0, 1.0, 1.0]
    record.train = Train(10, Tokens(1_000, 2_000, 500), seconds, 1, 100.0, 1000 / 22, [], "b")
    record.train.laps = {"forward": [0.25] * 10, "backward": [0.5] * 10, "optimizer": [s - 0.8 for s in seconds]}
    record.train.joules, record.probe.flops_per_token = 4_000.0, 5e9
    row = one(record)
    assert row["step_seconds_median"] == 1.0
    assert row["step_seconds_p95"] == pytest.approx(3.4)  # at 7.6 of 0…8: 1 + 0.6 × (5 - 1)
    assert row["forward_share"] == pytest.approx(2.5 / 22)
    assert row["backward_share"] == pytest.approx(5 / 22)
    assert row["optimizer_share"] == pytest.approx(14 / 22)  # 22 - 10 × 0.8
    assert row["projection_share"] == pytest.approx(12 / 22)  # laps of 8.2 and 4.2 s against 0.2 s
    assert row["utilisation"] == pytest.approx(5e9 * 100 * 2_000 / 1_000 / 4e12)
    assert row["joules_per_token"] == 4.0


@pytest.mark.parametrize("device", [None, "cpu", {}, {"matmul_flops_per_second": None}])
def test_no_utilisation_without_the_peak_of_the_device(device):
    record = measured(make_record("lora"))
    record.environment = {"device": device}
    assert frame([record])["utilisation"].isna().all()


def test_inference():
    record = measured(make_record("lora"))
    record.inference["merged"] = Inference(4, 100, 11, [0.3, 0.2, 0.1], [2.0, 9.0, 1.0])
    record.inference["unmerged"] = Inference(4, 100, 1, [0.4], [0.0])  # the first token is the only one
    row = one(record)
    assert row["merged_prefill_tokens_per_second"] == pytest.approx(2_000)  # 4 × 100 / 0.2
    assert row["merged_decode_tokens_per_second"] == pytest.approx(20)  # 4 × 10 / 2
    assert row["merged_first_token_seconds"] == pytest.approx(0.2)
    assert row["merged_token_seconds"] == pytest.approx(0.2)  # 2 / 10
    assert row["unmerged_first_token_seconds"] == pytest.approx(0.4)
    table = frame([record])
    assert table.loc[0, ["unmerged_decode_tokens_per_second", "unmerged_token_seconds"]].isna().all()


def test_the_rest_of_a_job():
    row = one(measured(make_record("lora")))
    assert (row["load_seconds"], row["train_seconds"], row["score_seconds"]) == (2.0, 60.0, 30.0)
    assert (row["merge_seconds"], row["logit_difference"]) == (0.125, 0.001)
    assert (row["adapter_bytes"], row["model_bytes"]) == (18 * MIB, 257 * MIB)


def test_a_warm_up_after_a_resume_is_left_out_like_the_first():
    record = make_record("lora")
    record.train.step_seconds, record.train.warmup_steps = [9.0, 1.0, 1.0, 9.0, 1.0], 1
    assert one(record)["step_seconds_p95"] > 1
    record.train.resumed_at = [3]
    assert one(record)["step_seconds_p95"] == one(record)["step_seconds_median"] == 1
