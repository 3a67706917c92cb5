"""Scoring saved weights again: the same model answers, and what comes is in the record and its items or in neither."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from accelerate import dispatch_model
from job_helpers import no_peak, run_leased, run_request, tiny  # noqa: F401
from records import make_record, sound

from harness import record
from harness.__main__ import main
from harness.errors import UserError
from harness.job.evaluate import rescoring
from harness.job.models import loading, placement
from harness.record import CARD, Saved, model_card, model_folder, read, read_study, settle
from harness.report.pairwise import contests
from harness.settings import EvalSettings
from harness.studies import rescore as sweep
from harness.studies import verify
from harness.sweep import runner
from harness.sweep.store import Study

MORE = EvalSettings(tasks=["wordmath_short"], limit=6, batch_size=8, seed=0)


def scored(path, settings=MORE):
    rescoring.rescore(path, settings, None, lambda event: None)
    return read(path)


def items(path):
    return pd.read_parquet(path.with_suffix(".items.parquet"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Cells with their weights: an adapter that is merged for scoring, two that are not, one whose shapes training
    changed, a whole model, a base."""
    folder = tmp_path_factory.mktemp("rescore") / "demo"
    folder.mkdir()
    for method in ("lora", "qlora", "loftq", "adalora", "full", "base"):
        cell = tiny(f"method={method}", "infer.repeats=0", "lr=1e-2", "eval.limit=12")
        run_request(cell, "demo", folder / f"{cell.name}.json", None, lambda event: None, save="adapter")
    return folder


def of(folder, method):
    (path,) = folder.glob(f"{method}-*.json")
    return path


@pytest.mark.long
def test_a_model_that_was_divided_after_training_is_divided_again(folder, tmp_path, monkeypatch):
    """Over two devices that are one CPU here: with accelerate's hooks, as on GPUs."""
    path, other = (of(Path(shutil.copytree(folder, tmp_path / name / "demo")), "lora") for name in ("one", "other"))
    whole = read(path)
    record.write(replace(whole, environment=whole.environment | {"divided_over": 2}), path)
    load, places = loading.load, []

    def divided(cell, on, over=None):
        places.append(over)
        model = load(cell, on)
        layers = {f"model.layers.{i}": "cpu" for i in range(len(model.model.layers))}
        others = dict.fromkeys(("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head"), "cpu")
        return dispatch_model(model, layers | others, main_device="cpu", force_hooks=True)

    monkeypatch.setattr(loading, "load", divided)
    monkeypatch.setattr(placement, "devices", lambda: [2**20, 2**20])
    found = scored(path)
    assert places == [{0: int(0.9 * 2**20), 1: int(0.9 * 2**20)}]
    monkeypatch.undo()
    assert [(s.task, s.value) for s in found.scores] == [(s.task, s.value) for s in scored(other).scores]


@pytest.mark.parametrize("method", ["lora", "qlora", "loftq", "adalora", "full", "base"])
def test_what_was_saved_answers_as_what_was_trained(folder, method):
    path = of(folder, method)
    first, before = read(path), items(path)
    again = scored(path, first.cell.settings.eval)
    assert again.scores == first.scores
    pd.testing.assert_frame_equal(items(path), before)
    assert again.items == first.items
    assert verify.check(path) == []


def test_further_scores_come_with_their_items_and_whence(folder):
    path = of(folder, "lora")
    first, before = read(path), items(path)
    found = scored(path)
    assert found.scores[: len(first.scores)] == first.scores
    (new,) = found.scores[len(first.scores) :]
    assert (new.task, new.metric, new.n) == ("wordmath_short", "exact_match", 6)
    after = items(path)
    pd.testing.assert_frame_equal(after.iloc[: len(before)], before)
    assert set(after["task"]) == {"facts", "wordmath_short"}
    assert found.items_sha256 != first.items_sha256
    assert verify.check(path) == []
    later = found.rescored[-1]
    assert (later.tasks, later.settings, set(later.phases)) == (["wordmath_short"], MORE, {"load", "score"})
    assert later.started >= first.started
    assert later.environment["versions"]["torch"]
    assert later.environment["speedups"] == {"kept_memory": "on", "continuous_batching": "on"}
    # what the cell itself measured stays
    assert (found.train, found.phases, found.environment) == (first.train, first.phases, first.environment)
    assert (model_folder(path) / CARD).read_text() == model_card.text(found)
    again = scored(path, replace(MORE, limit=3))
    assert [s.n for s in again.scores if s.task == "wordmath_short"] == [3]
    assert [(s.tasks, s.settings.limit) for s in again.rescored if "wordmath_short" in s.tasks] == [
        (["wordmath_short"], 3)
    ]
    assert len(items(path)) == len(before) + 3
    assert verify.check(path) == []


def test_paired_tests_take_what_was_scored_later(folder):
    for method in ("lora", "full", "base"):
        scored(of(folder, method), replace(MORE, tasks=["plain_text"], limit=8))
    records, _ = read_study(folder)
    (contest,) = [c for c in contests(records, folder) if c.score.startswith("plain_text")]
    assert len(contest.standings) == 3
    assert len(contest.differences) == 3
    assert all(standing.value > 0 for standing in contest.standings)  # bits a byte
    assert not contest.higher_is_better


def test_an_edited_card_stays(folder):
    path = of(folder, "full")
    (model_folder(path) / CARD).write_text("Mine.")
    scored(path)
    assert (model_folder(path) / CARD).read_text() == "Mine."


def test_another_base_is_not_scored_in_its_place(folder, tmp_path):
    found = read(of(folder, "base"))
    found.fingerprints["model"] = "sha256:0"
    path = tmp_path / f"{found.cell.name}.json"
    record.write(found, path)
    before = path.read_bytes()
    with pytest.raises(UserError, match="its base model has changed"):
        scored(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("at", ["before the items", "between the two", "never"])
def test_scores_and_items_are_added_both_or_neither(folder, tmp_path, monkeypatch, at):
    """The process ends at the worst moments: what is left is what was before, or all of it."""
    found = read(of(folder, "base"))
    path = tmp_path / f"{found.cell.name}.json"
    for source in (of(folder, "base"), of(folder, "base").with_suffix(".items.parquet")):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    move, calls = os.replace, []

    def dies(source, target):
        if Path(target).parent == tmp_path:  # others are of requests that are kept
            calls.append(str(target))
        if (at, len(calls)) in (("before the items", 2), ("between the two", 3)):  # the first is of the waiting record
            raise KeyboardInterrupt
        move(source, target)

    monkeypatch.setattr(os, "replace", dies)
    other = replace(MORE, tasks=["facts_short"], limit=2)
    if at == "never":
        scored(path, other)
    else:
        with pytest.raises(KeyboardInterrupt):
            scored(path, other)
    monkeypatch.undo()
    settle(path)
    assert verify.check(path) == []
    assert ("facts_short" in {s.task for s in read(path).scores}) == (at != "before the items")
    assert {p.name for p in tmp_path.iterdir()} == {path.name, f"{path.stem}.items.parquet"}


@pytest.mark.slow
@pytest.mark.long
def test_a_job_that_is_killed_while_it_scores_is_told(folder):
    found, study = read(of(folder, "base")), Study(folder.parent, "demo")
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    def kill(event):
        if event.phase == "load":
            holder = runner._server._holder.process.pid
            (job,) = Path(f"/proc/{holder}/task/{holder}/children").read_text().split()
            os.kill(int(job), signal.SIGKILL)

    said = (
        rf"^{found.cell.name} is not scored: The cell's process was killed by SIGKILL .* in {found.cell.name}\.log\.$"
    )
    with study.lease(found.cell) as lease, pytest.raises(UserError, match=said):
        runner.score(found.cell, study, lease, MORE, None, kill)
    assert study.log(found.cell).exists()
    assert before == {path: path.read_bytes() for path in before}


# Which cells are scored


@pytest.fixture
def study(tmp_path):
    """A study of records that are sound: a base, a tuned cell with weights and one without, a failed one."""
    study = Study(tmp_path, "demo")
    for method, save, status in (("base", 0, "ok"), ("lora", 1, "ok"), ("dora", 0, "ok"), ("full", 0, "oom")):
        found = make_record(method, seed=0 if method != "base" else None, status=status)
        cell = tiny(f"method={method}")
        found.cell = cell
        path = sound(found, study.folder)
        if save:
            model_folder(path).mkdir()
            (model_folder(path) / "adapter_model.safetensors").write_text("weights")
            found.saved = Saved("adapter", record.hashes(model_folder(path)))
            record.write(found, path)
    return study


def asked(study, *texts, tasks=("facts",), replace=False):
    found = sweep.plan(study.folder.parent, ["demo"], texts, list(tasks), replace)
    return [(r.cell.method, tasks) for _, r, tasks in found.todo], found


def test_a_study_is_scored_with_its_base_and_without_what_has_no_weights(study):
    todo, found = asked(study, "demo")
    assert todo == [("base", ["facts"]), ("lora", ["facts"])]
    (refused,) = found.refused
    assert refused.startswith("dora-")
    assert "it has no saved weights; to train it again and keep them: `python -m harness rm demo/dora-" in refused
    assert f"--results-dir {study.folder.parent}`" in refused


def test_the_base_of_a_named_cell_is_scored_along(study):
    assert asked(study, "lora")[0] == [("lora", ["facts"]), ("base", ["facts"])]
    todo, found = asked(study, "demo/full")
    assert todo == [("base", ["facts"])]
    assert "it ended as oom" in found.refused[0]


def test_a_task_is_scored_again_only_when_told(study):
    assert asked(study, "lora", tasks=["gsm8k"])[0] == []  # what make_record has
    assert [name.partition("-")[0] for name in asked(study, "lora", tasks=["gsm8k"])[1].known] == ["lora", "base"]
    assert asked(study, "lora", tasks=["gsm8k", "facts"])[0] == [("lora", ["facts"]), ("base", ["facts"])]
    assert asked(study, "lora", tasks=["gsm8k"], replace=True)[0] == [("lora", ["gsm8k"]), ("base", ["gsm8k"])]


def test_what_a_dead_process_left_is_settled_and_a_live_ones_is_not(study):
    (path,) = study.folder.glob("lora-*.json")
    record.write(read(path), record.pending(path))
    with study.lease(read(path).cell):
        asked(study, "demo")
        assert record.pending(path).exists()
    asked(study, "demo")
    assert not record.pending(path).exists()
    assert verify.check(path) == []


def test_weights_that_were_changed_are_not_scored(study):
    (path,) = study.folder.glob("lora-*.json")
    (model_folder(path) / "adapter_model.safetensors").write_text("others")
    todo, found = asked(study, "lora")
    assert todo == [("base", ["facts"])]
    assert "the hashes differ" in found.refused[0]


def test_merged_weights_of_a_model_that_was_scored_unmerged_are_not_scored(study):
    (path,) = study.folder.glob("lora-*.json")
    found = read(path)
    found.saved.form, found.merge = "merged", record.Merge(False, "quantised")
    record.write(found, path)
    assert "its saved, merged weights are not the model that was scored" in asked(study, "lora")[1].refused[0]


def test_a_cell_is_asked_as_before_but_for_what_the_command_says():
    found = make_record("lora")
    before = EvalSettings(tasks=["gsm8k"], limit=9, num_fewshot=5, batch_size=8, seed=3, unsafe_code=True)
    before = replace(before, chat_template=True, fewshot_as_multiturn=True, system_instruction="Briefly.")
    found.cell = replace(found.cell, settings=replace(found.cell.settings, eval=before))
    expected = replace(before, tasks=["mmlu"], limit=None, unsafe_code=False)
    assert sweep.eval_settings(found, {}, ["mmlu"]) == expected
    plain = {"chat_template": False, "fewshot_as_multiturn": False, "num_fewshot": 0, "limit": 7}
    assert sweep.eval_settings(found, plain, ["mmlu"]) == replace(expected, **plain)
    without = sweep.eval_settings(found, {"chat_template": False}, ["mmlu"])
    assert without == replace(expected, chat_template=False, fewshot_as_multiturn=False)
    with pytest.raises(UserError, match="requires --chat-template"):
        sweep.eval_settings(found, {"chat_template": False, "fewshot_as_multiturn": True}, ["mmlu"])


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("nobody --tasks facts", "There is no cell nobody in demo"),
        ("demo", "--tasks"),
        ("demo --tasks facts --limit 0", "must be a positive number, got 0"),
        ("demo --tasks facts --fewshot-as-multiturn", "requires --chat-template"),
    ],
)
def test_a_bad_command_is_one_sentence(study, capsys, line, said):
    assert main(["score", "--results-dir", str(study.folder.parent), *line.split()]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert said in told


@pytest.mark.long
@pytest.mark.slow
def test_the_command_scores_in_processes_of_its_own(tmp_path, capsys):
    study = Study(tmp_path, "demo")
    study.folder.mkdir()
    for method in ("base", "lora"):
        cell = tiny(f"method={method}", "infer.repeats=0", "eval.limit=2")
        assert run_leased(cell, study, None, lambda event: None, save="adapter").status == "ok"
    command = ["score", "demo", "--results-dir", str(tmp_path), "--limit", "3", "--format", "json"]
    assert main([*command, "--tasks", "facts_short"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(one["cell"].partition("-")[0], one["tasks"]) for one in told] == [
        ("base", ["facts_short"]),
        ("lora", ["facts_short"]),
    ]
    records, problems = read_study(study.folder)
    assert problems == []
    assert all([s.n for s in r.scores if s.task == "facts_short"] == [3, 3] for r in records)
    assert verify.study(tmp_path, "demo")[:2] == (2, [])
    assert study.running() == {}
    assert main([*command, "--tasks", "facts_short"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == []
    assert err.startswith("Scored already (--replace scores again): base-")
    before = {path: path.read_bytes() for path in study.folder.iterdir() if path.is_file()}
    assert main([*command, "--tasks", "factz"]) == 2
    assert "is unknown to lm-eval" in capsys.readouterr().err
    assert before == {path: path.read_bytes() for path in study.folder.iterdir() if path.is_file()}
