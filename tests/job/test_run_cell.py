"""A cell from load to scores, and what is left of it when it breaks on the way."""

from __future__ import annotations

import ast
import dataclasses
import shutil
import weakref
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from job_helpers import run_here, run_request, run_tiny, tiny

from harness.errors import UserError
from harness.job import preflight
from harness.job.evaluate import scoring
from harness.job.measure.live_memory import LiveBytes
from harness.job.methods import optimizers
from harness.job.models import adapter_merge, embedded
from harness.job.reporter import Reporter
from harness.job.training import loop
from harness.record import Record, item_hashes, read

PHASES = ["load", "probe", "train", "infer", "merge", "serve", "score"]  # of a LoRA cell


def recorded(folder: Path, *overrides: str) -> Record:
    """Run such a cell; its record as it lies on the disk."""
    result = run_tiny(folder, *overrides)
    (path,) = folder.glob("*.json")
    found = read(path)
    assert found == result
    return found


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    """A LoRA cell's folder, its record, and the events it reported."""
    folder, events = tmp_path_factory.mktemp("lora"), []
    cell = tiny("method=lora", "train.max_steps=4", "train.validate_every=2")
    path = folder / f"{cell.name}.json"
    run_request(cell, "study", path, None, events.append)
    return folder, read(path), events


# A whole cell


def losses(folder: Path, *overrides: str) -> list[float]:
    record = recorded(folder, "method=lora", "lr=0.01", "eval.tasks=[]", "infer.repeats=0", *overrides)
    assert record.status == "ok", record.failure
    return [point.loss for point in record.train.loss]


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    return losses(tmp_path_factory.mktemp("usual"))


@pytest.mark.parametrize(
    "override",
    [
        "train.schedule=constant",
        "train.final_lr=0.5",
        "train.weight_decay=0.5",
        "train.betas=[0.5,0.9]",
        "train.adapter_dropout=0.3",
        "train.loss_on=all",
        "train.data_seed=1",
    ],
)
def test_a_setting_of_training_changes_it(tmp_path, usual, override):
    assert losses(tmp_path, override) != usual


def test_passes_are_as_many_steps_as_they_take(tmp_path):
    taken = losses(tmp_path, "train.max_steps=null", "train.epochs=0.1")  # 7 of 64 items, 2 a step
    assert len(taken) == 4
    (path,) = tmp_path.glob("*.json")
    assert (read(path).train.steps, read(path).cell.settings.train.epochs) == (4, 0.1)


@pytest.mark.parametrize("method", ["full", "adalora", "galore_layer"])
def test_the_optimizer_is_gone_before_inference_and_scoring(tmp_path, monkeypatch, method):
    live, references, held = LiveBytes(torch.device("cpu")), [], {}
    take_step, enter = loop.take_step, Reporter.enter

    def stepped(model, optimizer, *rest):
        told = take_step(model, optimizer, *rest)
        live.see(optimizers.state(optimizer), "optimizer")
        references.append(weakref.ref(optimizer))
        return told

    def entered(reporter, phase):
        held[phase] = (live.now_by_kind.optimizer, [ref for ref in references if ref() is not None])
        enter(reporter, phase)

    monkeypatch.setattr(loop, "take_step", stepped)
    monkeypatch.setattr(Reporter, "enter", entered)
    record = run_tiny(tmp_path, f"method={method}", "train.max_grad_norm=null", "infer.repeats=0", "eval.limit=2")
    assert record.status == "ok", record.failure
    assert live.peak >= record.probe.resident.optimizer > 0
    gone = {phase: left for phase, left in held.items() if phase not in ("load", "probe", "train")}
    assert gone.keys() >= {"merge", "score"}
    assert gone == dict.fromkeys(gone, (0, []))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("method", ["full", "qlora"])
def test_on_cuda_the_allocator_is_asked(tmp_path, own_precision, method):
    record = recorded(tmp_path, f"method={method}", "train.precision=auto")
    assert (record.status, record.environment["device"]["type"]) == ("ok", "cuda")
    for phase in record.phases.values():
        assert 0 < phase.memory.allocated_peak <= phase.memory.reserved_peak
    weights = 4 * record.parameters.total
    if method == "full":  # weights, gradients and Adam's two moments, all in fp32
        assert record.phases["train"].memory.allocated_peak >= 4 * weights
        # By kind it is the instrument's count, which rounds nothing and knows no workspaces
        peak = sum(dataclasses.astuple(record.probe.peak))
        assert peak <= record.phases["probe"].memory.allocated_peak <= 1.1 * peak + 64 * 2**20


def test_a_record_is_complete(lora):
    _, record, _ = lora
    assert (record.status, record.failure, record.study) == ("ok", None, "study")
    assert list(record.phases) == PHASES
    # On CPU tensors are counted one by one, which would slow what is timed.
    counted = {name for name, phase in record.phases.items() if phase.memory.allocated_peak}
    assert counted == {"load", "probe"}
    assert record.train.steps == len(record.train.step_seconds) == len(record.train.loss) == 4
    assert [point.step for point in record.validation] == [2, 4]
    assert 0 < record.held_out.tokens <= record.held_out.bytes + record.cell.settings.train.validation_items
    assert {score.metric for score in record.scores} == {"acc", "acc_norm"}
    assert record.fingerprints.keys() == {"data", "model"}
    assert all(f.startswith("sha256:") for f in record.fingerprints.values())
    assert record.environment["precision"] == "fp32"
    assert record.environment["versions"]["torch"] == metadata.version("torch")
    assert record.environment["device"]["type"] == "cpu"
    assert record.seconds > 0


def test_the_items_lie_beside_the_record(lora):
    folder, record, _ = lora
    items = pd.read_parquet(folder / f"{record.cell.name}.items.parquet")
    assert record.items == item_hashes({"facts": sorted(items["item"].unique().tolist())})
    assert len(items) == 4 * 2  # items, metrics
    for score in record.scores:
        assert items.loc[items["metric"] == score.metric, "value"].mean() == score.value


def test_progress_is_reported(lora):
    events = lora[2]
    assert [e["phase"] for e in events if not {"step", "answered"} & e.keys()] == ["start", *PHASES, "recorded"]
    steps = [e for e in events if "step" in e]
    assert [(e["phase"], e["step"], e["of"]) for e in steps] == [("train", i, 4) for i in range(1, 5)]
    assert all(e["tokens_per_second"] > 0 for e in steps)
    scored = [(e["phase"], e["answered"], e["of"]) for e in events if "answered" in e]
    assert scored[-1] == ("score", 4 * 4, 4 * 4)  # items, choices
    assert all(answered <= of == 16 for _, answered, of in scored)


def test_the_same_cell_gives_the_same_numbers(lora, tmp_path):
    _, first, _ = lora
    again = run_here(tmp_path, first.cell)
    assert [p.loss for p in again.train.loss] == [p.loss for p in first.train.loss]
    assert again.validation == first.validation
    assert again.scores == first.scores


def test_an_untuned_cell_has_no_training(tmp_path):
    record = recorded(tmp_path, "method=base")
    assert record.status == "ok"
    assert list(record.phases) == ["load", "probe", "validate", "infer", "merge", "score"]
    assert record.train is None
    assert [point.step for point in record.validation] == [0]
    assert record.scores


@pytest.mark.long
@pytest.mark.parametrize("task", ["facts", "wordmath_short"])
def test_without_speedups_the_results_are_the_same(tmp_path, task):
    settings = ("method=lora", "lr=0.01", f"eval={task}", "eval.limit=8", "train.precision=fp32")
    fast, plain = (recorded(tmp_path / s, *settings, f"speedups={s}") for s in ("auto", "off"))
    assert fast.cell.id != plain.cell.id
    assert [p.loss for p in fast.train.loss] == pytest.approx([p.loss for p in plain.train.loss], rel=1e-4)
    assert fast.validation[-1].loss == pytest.approx(plain.validation[-1].loss, rel=1e-4)
    assert fast.train.batches == plain.train.batches
    assert fast.scores == plain.scores
    one, other = (pd.read_parquet(next((tmp_path / s).glob("*.parquet"))) for s in ("auto", "off"))
    keys = ["task", "subject", "item", "filter", "metric"]
    one, other = (items.sort_values(keys, ignore_index=True) for items in (one, other))
    if task == "facts":  # log-likelihoods, whose last digits depend on the order of sums
        likelihoods = [np.array([ast.literal_eval(text) for text in items.pop("prediction")]) for items in (one, other)]
        np.testing.assert_allclose(*likelihoods, atol=1e-3)
    pd.testing.assert_frame_equal(one, other)
    used = fast.environment["speedups"]
    assert used.pop("fused_loss") == "on: chunked"
    used.pop("layer_kernels")  # for CUDA alone
    scored = {"shared_prefix"} if task == "facts" else {"continuous_batching"}
    assert used == dict.fromkeys({"padding_free", "answer_logits", "kept_memory", "fused_lora"} | scored, "on")
    assert set(plain.environment["speedups"].values()) == {"off: asked for"}


# Cells that break; each breaks for real


def test_without_tasks_a_cell_has_its_cost_alone(tmp_path):
    record = recorded(tmp_path, "method=lora", "eval.tasks=[]")
    assert (record.status, record.scores, list(record.phases)) == ("ok", [], PHASES[:-1])
    assert not list(tmp_path.glob("*.parquet"))


def test_breaking_in_load(tmp_path):
    shutil.copytree(embedded.folder("tiny"), tmp_path / "torn")
    with open(tmp_path / "torn" / "model.safetensors", "r+b") as weights:
        weights.truncate(1000)
    record = recorded(tmp_path, "method=full", f"model.path={tmp_path / 'torn'}")
    assert (record.status, record.failure.phase, record.failure.step) == ("failed", "load", None)
    assert record.failure.reason.startswith("SafetensorError: ")
    assert list(record.phases) == ["load"]
    assert (record.parameters, record.train, record.scores) == (None, None, [])


def test_a_number_format_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"method\.load\.dtype must be .*, got float99"):
        recorded(tmp_path, "method=full", "method.load.dtype=float99")


def test_an_optimizer_that_is_not_there(tmp_path):
    record = recorded(tmp_path, "method=full", "method.optim.optimizer._target_=torch.optim.Adamw")
    assert (record.status, record.failure.phase, record.failure.step) == ("failed", "probe", None)
    assert "torch.optim.Adamw" in record.failure.reason
    assert record.parameters.trainable > 0
    assert list(record.phases) == ["load"]


def test_breaking_in_the_probe(tmp_path):
    # L-BFGS wants a closure, which the loop does not give
    lbfgs = ["method.optim.optimizer._target_=torch.optim.LBFGS"]
    lbfgs += [f"~method.optim.optimizer.{key}" for key in ("weight_decay", "fused")]
    record = recorded(tmp_path, "method=full", *lbfgs)
    assert (record.status, record.failure.phase) == ("failed", "probe")
    assert record.failure.reason.startswith("TypeError: ")
    assert record.phases["probe"].seconds > 0
    assert record.train is None


def test_diverging(tmp_path):
    record = recorded(tmp_path, "method=full", "lr=1e36", "train.warmup_ratio=0")
    assert (record.status, record.failure.phase, record.failure.step) == ("diverged", "train", 2)
    assert "lower lr" in record.failure.reason
    assert list(record.phases) == ["load", "probe", "train"]


def test_diverging_at_the_last_step(tmp_path):
    record = recorded(tmp_path, "method=full", "lr=1e36", "train.warmup_ratio=0", "train.max_steps=1")
    assert (record.status, record.failure.phase, record.failure.step) == ("diverged", "train", 1)
    assert "validation loss" in record.failure.reason


def test_a_model_that_ends_at_the_loss_of_a_guess_has_diverged(tmp_path):
    record = recorded(tmp_path, "method=full", "lr=1e3", "train.warmup_ratio=0", "train.max_steps=1")
    assert (record.status, record.failure.phase, record.failure.step) == ("diverged", "train", 1)
    assert "no better than a uniform guess (6.93)" in record.failure.reason


def test_breaking_in_merge_keeps_what_was_measured(tmp_path, monkeypatch):
    def broken(*args):
        raise RuntimeError("the adapter\n is   torn")

    monkeypatch.setattr(adapter_merge, "merge", broken)  # nothing real does once the validation loss is finite
    record = recorded(tmp_path, "method=lora")
    assert (record.status, record.failure.phase) == ("failed", "merge")
    assert record.failure.reason == "RuntimeError: the adapter"
    assert list(record.phases) == ["load", "probe", "train", "infer", "merge"]
    assert record.train.steps == 3
    assert record.validation


def test_breaking_in_score_keeps_what_was_measured(tmp_path, monkeypatch):
    def broken(*args, **keywords):
        raise RuntimeError("The tokenizer can't spell it.")

    monkeypatch.setattr(scoring, "score", broken)
    cell = tiny("method=lora")
    record = run_here(tmp_path, cell)
    assert (record.status, record.failure.phase, record.failure.step) == ("failed", "score", None)
    assert list(record.phases) == PHASES
    assert record.train.steps == 3
    assert record.validation
    assert record.merge.merged
    assert read(tmp_path / f"{cell.name}.json") == record


def test_a_quantised_model_that_does_not_fit_expanded_keeps_its_scores(tmp_path, monkeypatch):
    def large(*args):
        raise torch.OutOfMemoryError("CUDA out of memory.")  # as the allocator says it

    monkeypatch.setattr(adapter_merge, "merge", large)
    record = recorded(tmp_path, "method=qlora")
    assert (record.status, record.failure, record.disk) == ("ok", None, None)
    assert record.scores
    assert list(record.inference) == ["base", "unmerged"]
    assert not record.merge.dequantised
    assert record.merge.reason.endswith("the model did not fit: OutOfMemoryError: CUDA out of memory.")


def test_a_quantised_model_that_does_not_fit_expanded_saves_its_adapter(tmp_path, monkeypatch):
    def large(*args):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(adapter_merge, "merge", large)
    cell = tiny("method=qlora", "eval.tasks=[]")
    record = run_here(tmp_path, cell, save="merged")
    assert (record.status, record.saved.form) == ("ok", "adapter")
    assert record.merge.reason.endswith("CUDA out of memory. Its adapter is saved instead.")
    assert (tmp_path / cell.name / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(("save", "saved"), [("adapter", "adapter"), ("merged", "adapter"), ("none", None)])
def test_a_quantised_model_that_can_not_be_scored_has_saved_its_adapter(tmp_path, monkeypatch, save, saved):
    def large(*args, **keywords):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(scoring, "score", large)
    record = run_here(tmp_path, tiny("method=qlora"), save=save)
    assert (record.status, record.failure.phase) == ("oom", "score")
    assert (record.saved and record.saved.form) == saved


# Bad input leaves no record


@pytest.mark.parametrize(
    ("override", "said"),
    [("rank=33", "rank=33"), ("eval.tasks=[factz]", "factz"), ("data.load.train=1000000", "1000000")],
)
def test_bad_input_is_refused_before_anything_is_run(tmp_path, override, said):
    cell = tiny(override)
    with pytest.raises(UserError, match=said):
        preflight.check([tiny(), cell], None)
    with pytest.raises(UserError, match=said):
        run_here(tmp_path, cell)
    assert list(tmp_path.iterdir()) == []


def test_bad_input_that_only_loading_shows_leaves_no_record_either(tmp_path):
    with pytest.raises(UserError, match=r"train\.max_length=8 leaves no token of the answer"):
        run_tiny(tmp_path, "train.max_length=8")
    assert list(tmp_path.iterdir()) == []


def test_a_check_looks_at_what_cells_share_once(monkeypatch):
    looked = []

    def counted(name: str, real):
        return lambda *args: looked.append(name) or real(*args)

    monkeypatch.setattr(preflight.scoring, "Tasks", counted("Tasks", preflight.scoring.Tasks))
    monkeypatch.setattr(preflight.cached, "splits", counted("splits", preflight.cached.splits))
    preflight.check([tiny(f"rank={rank}") for rank in (2, 4, 8)] + [tiny("eval.limit=8")], None)
    assert sorted(looked) == ["Tasks", "Tasks", "splits"]
