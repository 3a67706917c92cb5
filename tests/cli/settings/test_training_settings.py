"""Settings of training, run by the command line: each one's effect on the record."""

from __future__ import annotations

import json
import socket

import pytest
from command_line import own_server
from tested_settings import CELL, SMALL, lines, refused

from harness.record import read_study
from harness.sweep import machines


@pytest.mark.long
@lines(
    f"run {CELL} study=one train.max_steps=4 method=lora alpha=6 lr=1e-3 seed=3 timeout=300 tracker=tensorboard "
    "train.grad_accum=2 train.max_length=64 train.warmup_ratio=0.5 train.schedule=linear train.final_lr=0.2 "
    "train.weight_decay=0.1 train.betas=[0.8,0.9] train.adapter_dropout=0.1 train.loss_on=all "
    "train.data_seed=5 train.max_grad_norm=0.5 train.validate_every=1 train.precision=bf16 train.bucketing=2 "
    "train.gradient_checkpointing=true train.save_every=1 model.upcast=true model.dtype=bfloat16 speedups=off "
    "results_dir=elsewhere"
)
def test_a_cell_is_trained_as_its_settings_say(run, only, tmp_path):
    run()
    record = only("one", "elsewhere")
    cell, train = record.cell, record.cell.settings.train
    assert (cell.rank, cell.alpha, cell.lr, cell.seed) == (4, 6, 1e-3, 3)
    assert (train.grad_accum, train.data_seed, train.loss_on, train.bucketing) == (2, 5, "all", 2)
    assert (train.max_length, train.precision, train.gradient_checkpointing) == (64, "bf16", True)
    optimizer = cell.settings.method.optim["optimizer"]
    assert (optimizer["weight_decay"], train.betas) == (0.1, [0.8, 0.9])
    assert cell.settings.method.adapt["lora_dropout"] == 0.1
    rates = [point.lr for point in record.train.loss]
    assert rates[0] < max(rates) == 1e-3
    assert 2e-4 <= rates[-1] < 1e-3
    assert len(record.validation) == 4
    assert record.cell.settings.speedups == "off"
    assert record.precautions.timeout == 300
    assert record.precautions.save_every == 1
    assert list((tmp_path / "elsewhere" / "one").rglob("events.out.tfevents*"))


@pytest.mark.long
@lines(
    f"run {CELL} study=one train.max_steps=null train.epochs=0.0625 train.packing=true infer.repeats=2 "
    "infer.batch_size=2 infer.large_batch_size=3 infer.prompt_tokens=6 infer.new_tokens=3 lr_scale=2 method.lr=1e-3",
    f"run {CELL} study=two train.max_steps=9 train.max_tokens=150 save=adapter",
    f"run {CELL} study=three train.batch_size=auto train.global_batch=6 eval.tasks=[] save=merged",
)
def test_steps_and_batches_are_as_asked(run, only):
    run()
    one, two, three = map(only, ("one", "two", "three"))
    assert one.cell.lr == 2e-3
    assert one.train.steps == 1  # for four items, packed
    assert {(i.batch_size, i.prompt_tokens, i.new_tokens) for i in one.inference.values()} == {(2, 6, 3)}
    assert {len(i.decode_seconds) for i in one.inference.values()} == {2}
    assert {i.batch_size for i in one.batched_inference.values()} == {3}
    assert len(two.train.loss) < 9
    assert two.train.tokens.raw >= 150
    assert two.saved.form == "adapter"
    assert three.saved.form == "merged"
    assert (three.smaller_batches.batch_size, three.smaller_batches.grad_accum) == (6, 1)


@pytest.mark.long
@lines(
    f"run {CELL} study=two eval.tasks=[] train.devices=2 train.parallel=fsdp model.gradient_checkpointing=true",
    f"run {CELL} study=compiled eval.tasks=[] train.compile=true",
)
def test_devices_and_a_compiler_are_used(run, only):
    run()
    assert only("two").cell.settings.train.gradient_checkpointing
    assert (only("two").cell.settings.train.parallel, only("two").cell.settings.train.devices) == ("fsdp", 2)
    assert only("compiled").train.compile_seconds


@pytest.mark.long
@lines(
    refused(f"run {CELL} train.activation_offload=true", r"train\.activation_offload=true"),
    refused(f"run {CELL} train.nodes=2", r"train\.nodes=2 .* within 1 seconds"),
)
def test_what_is_not_here_is_refused_as_documented(run, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    for name, value in (("NODE_RANK", "0"), ("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", port)):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(machines, "SECONDS", 1.0)
    with own_server():
        run()


@pytest.mark.long
@lines(
    f"run {SMALL} study=pairs data=local_preference data_root={{folder}} data.path=pairs.jsonl train.objective=dpo "
    "train.preference_beta=0.3",
)
def test_pairs_are_trained_on_by_their_objective(run, only, tmp_path):
    pairs = [{"prompt": f"Say {i}", "chosen": f"It is {i}.", "rejected": f"It is {i + 1}."} for i in range(60)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    run()
    train = only("pairs").cell.settings.train
    assert (train.objective, train.preference_beta) == ("dpo", 0.3)


@pytest.mark.long
@lines(
    f"run {SMALL} study=marked data=local_marked data_root={{folder}} data.path=marked.jsonl train.objective=kto "
    "data.columns.mark=liked",
)
def test_marked_answers_are_trained_on_by_kto(run, only, tmp_path):
    rows = [{"prompt": f"Say {i}", "completion": f"It is {i}.", "liked": i % 2 == 0} for i in range(60)]
    (tmp_path / "marked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run()
    record = only("marked")
    assert (record.cell.data, record.own_data.good) == ("marked.jsonl kto=0.1", 30)


@pytest.mark.long
@lines(
    f"run {SMALL} study=margins data=local_preference data_root={{folder}} data.path=pairs.jsonl "
    "train.objective=simpo train.preference_beta=2 train.preference_margin=0.7",
)
def test_the_margin_of_simpo_is_recorded_with_its_rewards(run, only, tmp_path):
    pairs = [{"prompt": f"Say {i}", "chosen": f"It is {i}.", "rejected": f"It is {i + 1}."} for i in range(60)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    run()
    record = only("margins")
    assert (record.cell.settings.train.objective, record.cell.settings.train.preference_margin) == ("simpo", 0.7)
    rewards = record.validation[-1].rewards
    assert rewards.margin == pytest.approx(rewards.chosen - rewards.rejected)


@pytest.mark.long
@lines(
    f"run {CELL} study=early method=lora eval.tasks=[] train.max_steps=6 train.validate_every=1 train.early_stopping=1 "
    "train.early_stopping_gain=50 method.init_seed=3"
)
def test_training_ends_without_a_gain_from_adapters_of_their_own_seed(run, only):
    run()
    record = only("early")
    assert record.cell.settings.method.init_seed == 3
    assert (record.cell.settings.train.early_stopping, record.cell.settings.train.early_stopping_gain) == (1, 50)
    assert record.train.steps == 2  # no fall is as large as 50 nats
    assert record.best.ended_early
    assert len(record.validation) + len(record.best.later) == 2


@lines(
    f"sweep {CELL} study=swept eval.tasks=[] lr=1e-3,1e-4 method=lora hydra/launcher=local_parallel hydra/sweeper=grid",
    f"run {CELL} study=shared method=galore method.knobs.scale=1 eval.tasks=[]",
    f"run {CELL} study=shared method=galore method.knobs.scale=1 eval.tasks=[] repeat=true",
    f"run {CELL} study=shared method=lora seed=7 confirmation=true eval.tasks=[] retry.on_oom=true "
    "retry.statuses=[failed,oom]",
)
@pytest.mark.long
def test_cells_of_a_study_are_swept_repeated_and_marked(run, tmp_path):
    run()
    swept, _ = read_study(tmp_path / "results" / "swept")
    assert [record.status for record in swept] == ["ok", "ok"]
    (galore, lora), _ = (
        sorted(found, key=lambda r: r.cell.method) for found in read_study(tmp_path / "results/shared")
    )
    assert galore.cell.knobs["scale"] == 1
    assert len(galore.repeats) == 1
    assert lora.confirmation
    assert lora.precautions.on_oom
