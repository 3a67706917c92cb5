"""vLLM as the engine that writes answers: who may ask for it, and that its answers are lm-eval's.

A stand-in for the package answers by transformers, in a process and an environment of its own; real/ has the
real one.
"""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
import torch
from command_line import assert_refused, called
from job_helpers import TINY, composed, no_peak, run_request, tiny  # noqa: F401
from lm_eval.api.instance import Instance
from pythons import make_python, python_with_vllm
from transformers import AutoModelForCausalLM, AutoTokenizer

from harness import settings
from harness.errors import UserError
from harness.job import preflight
from harness.job.evaluate import rescoring
from harness.job.evaluate.plain_model import PlainModel
from harness.job.models import embedded
from harness.plugins.vllm.job.engine import Vllm, VllmEngine
from harness.plugins.vllm.job.process import VllmWriter
from harness.protocol import LocalPaths
from harness.record import VllmUsage, beginnings, model_folder, read
from harness.studies import verify

BOTH = ("eval.tasks=[facts,wordmath]", "infer.repeats=0", "lr=1e-2")  # a task of log-likelihoods, and one of answers
VLLM = (*BOTH, "eval.engine=vllm")
UNMERGED = ("adaption_prompt", "beft", "cartridge", "lily", "p_tuning", "prefix_tuning", "prompt_tuning")


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    return python_with_vllm(tmp_path_factory.mktemp("vllm"))


def run(folder, cell, **options):
    folder.mkdir(exist_ok=True)
    return run_request(cell, "demo", folder / f"{cell.name}.json", None, lambda event: None, **options)


def items(folder, cell):
    return pd.read_parquet(folder / f"{cell.name}.items.parquet")


def test_this_folder_does_not_pass_for_the_library():
    """Which trl, for one, would import: tests/plugins must not be on the path."""
    assert find_spec("vllm") is None


# Who may ask for it


def test_it_is_another_cell_wherever_vllm_is_and_the_default_is_not_named():
    asked, plain = tiny("eval.engine=vllm"), tiny()
    assert asked.id != plain.id == tiny("eval.engine=auto").id
    assert tiny("eval.engine=vllm", "eval.vllm_python=/usr/bin/python3").id == asked.id
    assert "engine" not in settings.plain(plain.settings.eval)


@pytest.mark.parametrize("method", UNMERGED)
def test_methods_whose_adapters_can_not_be_merged_are_refused(method):
    with pytest.raises(UserError, match=r"combined with eval\.engine=vllm: .* cannot be merged into the weights"):
        tiny(f"method={method}", "eval.engine=vllm")


def test_several_devices_are_refused():
    with pytest.raises(UserError, match=r"^train\.devices=2 can't be combined with eval\.engine=vllm, which"):
        tiny("train.devices=2", "eval.engine=vllm")


def test_without_a_python_it_is_refused_before_anything_runs():
    with pytest.raises(UserError, match=r"eval\.engine=vllm requires eval\.vllm_python=, the python of"):
        preflight.check([tiny("eval.engine=vllm")], None)
    preflight.check([tiny()], None, LocalPaths("/no/python"))  # which nobody asks for


def test_a_quantised_base_is_refused_by_what_would_be_merged(python):
    with pytest.raises(UserError, match="requires a base that is not quantised, and method=qlora quantises it: merged"):
        preflight.check([tiny("method=qlora", "eval.engine=vllm")], None, LocalPaths(python))


def test_a_python_is_refused_that_is_none_or_has_no_vllm(tmp_path, python):
    talker = tmp_path / "talker"
    talker.write_text("#!/bin/sh\necho True, of course\n")
    talker.chmod(0o755)
    bare = make_python(tmp_path / "bare")
    for path, words in [
        (f"{tmp_path}/missing", "must be a python that can be run, got .*/missing: No such file or directory"),
        (str(tmp_path), "must be a python that can be run, got .*: Permission denied"),
        (str(talker), "must be a python, and .*/talker does not answer as one"),
        (bare, "requires the package vllm: .*/bin/python -m pip install vllm"),
    ]:
        with pytest.raises(UserError, match=rf"eval\.vllm_python {words}\.$"):
            preflight.check([tiny("eval.engine=vllm")], None, LocalPaths(path))
    preflight.check([tiny("eval.engine=vllm")], None, LocalPaths(python))


# Its answers


@pytest.mark.long
def test_a_cell_has_the_scores_of_the_ordinary_engine_and_says_who_wrote(tmp_path, python, monkeypatch):
    monkeypatch.setenv("STAND_IN_NOTES", str(tmp_path / "notes"))
    plain, asked = tiny(*BOTH), tiny(*VLLM)
    ours, theirs = run(tmp_path, plain), run(tmp_path, asked, local=LocalPaths(python))
    assert theirs.status == "ok", theirs.failure
    assert theirs.scores == ours.scores
    assert {score.task for score in ours.scores} == {"facts", "wordmath"}
    pd.testing.assert_frame_equal(items(tmp_path, asked), items(tmp_path, plain))
    assert (theirs.written_answers, theirs.cut_answers) == (ours.written_answers, ours.cut_answers)
    assert ours.written_answers == 4
    assert ours.vllm is None
    usage = theirs.vllm
    assert (usage.version, usage.answers) == ("0.0.1", 4)
    assert usage.read > 4 * 10
    assert usage.written >= 4
    assert usage.load_seconds > 0 < usage.seconds
    assert theirs.environment["speedups"]["vllm"] == "on"
    told = json.loads((tmp_path / "notes").read_text())
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(told["files"])
    assert told["dtype"] == "float32"
    assert told["max_model_len"] < 512  # the longest request, and not the model's 2048
    assert told["generation_config"] == "vllm"
    assert 0 < told["gpu_memory_utilization"] <= 0.5
    # nothing of it stays
    assert theirs.saved is None
    assert not model_folder(tmp_path / f"{asked.name}.json").exists()
    assert not any(folder.exists() for folder in beginnings(tmp_path / f"{asked.name}.json"))


@pytest.mark.long
@pytest.mark.parametrize("save", ["merged", "adapter"])
def test_weights_that_are_saved_are_read_or_stay_beside(tmp_path, python, monkeypatch, save):
    monkeypatch.setenv("STAND_IN_NOTES", str(tmp_path / "notes"))
    cell = tiny(*VLLM, "eval.tasks=[wordmath]", "eval.limit=1")
    found = run(tmp_path, cell, local=LocalPaths(python), save=save)
    assert (found.status, found.saved.form) == ("ok", save)
    assert json.loads((tmp_path / "notes").read_text())["model"].endswith(".tmp" if save == "merged" else ".scored")
    assert verify.check(tmp_path / f"{cell.name}.json") == []
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_a_task_without_answers_needs_no_vllm(tmp_path, monkeypatch):
    cell = tiny("eval.engine=vllm", "infer.repeats=0")
    monkeypatch.setattr(Vllm, "check", lambda self, settings, local: None)
    found = run(tmp_path, cell, local=LocalPaths("/no/python"))
    assert (found.status, found.vllm) == ("ok", None)
    assert "vllm" not in found.environment["speedups"]


@pytest.fixture(scope="module")
def ordinary():
    """lm-eval's own, one answer at a time: no padding, whose rounding could decide between two tokens."""
    folder = embedded.folder("tiny")
    net = AutoModelForCausalLM.from_pretrained(folder).eval()
    return PlainModel(pretrained=net, tokenizer=AutoTokenizer.from_pretrained(folder), batch_size=1)


def asked(context, **kwargs):
    return Instance("generate_until", {}, (context, kwargs), 0)


@pytest.mark.long
def test_answers_begin_and_end_as_those_of_lm_eval(tmp_path, python, ordinary):
    contexts = [f"Question: Ann has {n} apples.\nAnswer:" for n in range(3)] + ["word " * 3000]
    free = ordinary.generate_until([asked(c, until=[], max_gen_toks=12) for c in contexts], disable_tqdm=True)
    assert all(free)
    ends = [text[-4:-2] for text in free if "�" not in text[-4:-2]]  # within an answer, and across tokens
    assert ends
    kinds = [
        {"until": ends, "max_gen_toks": 12, "do_sample": False},
        {"until": ["never there"], "max_gen_toks": 5, "temperature": 0.0},
        {"until": [ends[0], "<|endoftext|>"]},  # 256 tokens
    ]
    requests = [asked(c, **kind) for kind in kinds for c in contexts]
    ordinary.cut.answers = ordinary.cut.unfinished = 0
    expected = ordinary.generate_until([asked(*r.args[:1], **r.args[1]) for r in requests], disable_tqdm=True)
    counted = ordinary.cut.answers, ordinary.cut.unfinished
    assert 0 < counted[1] < counted[0] == len(requests)
    ordinary.cut.answers = ordinary.cut.unfinished = 0
    folder = tmp_path / "weights"
    ordinary.model.save_pretrained(folder)
    ordinary.tokenizer.save_pretrained(folder)
    writer = VllmWriter(python, folder, "float32", False)
    lm = VllmEngine(ordinary, writer)
    assert lm.generate_until(requests) == expected
    assert (ordinary.cut.answers, ordinary.cut.unfinished) == counted
    assert any(len(one) < len(other) for one, other in zip(expected, free, strict=False))  # something ended early
    assert writer.usage.answers == len(requests)


@pytest.mark.long
def test_vllm_writes_the_answers_and_the_harness_computes_the_likelihoods(tmp_path, python, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = [{"question": f"Tell of {i}.", "answer": f"This is a story of {i} that goes on."} for i in range(60)]
    Path("mine.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    own = ("model=tiny", "train.precision=fp32", "train.validation_items=2", "data=local", "data.path=mine.jsonl")
    own += ("eval.tasks=[held_out]", "eval.limit=2", "eval.batch_size=4", "infer.repeats=0")
    items_of = {}
    for engine in ("auto", "vllm"):
        cell = composed(*own, "method=base", f"eval.engine={engine}")
        done = run(tmp_path, cell, local=LocalPaths(python))
        assert done.status == "ok", done.failure
        items_of[engine] = items(tmp_path, cell).drop(columns="prediction")
    assert done.vllm.answers == 2
    assert len(items_of["vllm"]) == 6, "ROUGE-L, BLEU and bits per byte of two answers"
    pd.testing.assert_frame_equal(items_of["vllm"], items_of["auto"])


def test_what_is_to_be_sampled_stays_with_the_ordinary_engine(ordinary, tmp_path):
    lm = VllmEngine(ordinary, VllmWriter("/no/python", tmp_path, "float32", False))
    torch.manual_seed(0)
    (answer,) = lm.generate_until([asked("Question:", until=[], max_gen_toks=4, do_sample=True, temperature=1.0)])
    assert answer
    assert lm.used == {"vllm": "off: generation is set to do_sample, temperature"}
    assert lm._writer.usage is None


# When it fails


@pytest.mark.long
def test_when_it_dies_the_cell_keeps_its_weights_and_is_scored_from_there(tmp_path, python, monkeypatch):
    cell = tiny(*VLLM)
    path = tmp_path / f"{cell.name}.json"
    expected = run(tmp_path / "whole", cell, local=LocalPaths(python))
    monkeypatch.setenv("STAND_IN_FAULT", "writing is killed")
    failed = run(tmp_path, cell, local=LocalPaths(python))
    assert (failed.status, failed.failure.phase, failed.saved.form) == ("failed", "score", "merged")
    assert "SIGKILL" in failed.failure.reason
    assert (failed.scores, failed.items, failed.vllm) == ([], {}, None)
    assert failed.train == read(path).train is not None
    assert verify.check(path) == []
    with pytest.raises(UserError, match=r"is not scored: .*SIGKILL"):
        rescoring.rescore(path, cell.settings.eval, None, lambda event: None, LocalPaths(python))
    assert read(path) == failed
    monkeypatch.delenv("STAND_IN_FAULT")
    rescoring.rescore(path, cell.settings.eval, None, lambda event: None, LocalPaths(python))
    done = read(path)
    assert (done.status, done.failure, done.saved) == ("ok", None, None)
    assert done.scores == expected.scores
    assert isinstance(done.rescored[0].vllm, VllmUsage)
    assert not model_folder(path).exists()
    assert verify.check(path) == []


@pytest.mark.long
def test_a_part_of_the_scores_leaves_the_cell_as_failed(tmp_path, python, monkeypatch):
    cell = tiny(*VLLM)
    path = tmp_path / f"{cell.name}.json"
    monkeypatch.setenv("STAND_IN_FAULT", "loading short")
    failed = run(tmp_path, cell, local=LocalPaths(python), save="adapter")
    assert (failed.status, failed.saved.form) == ("failed", "adapter")
    assert failed.failure.reason.startswith("vLLM ran out of memory")
    part = settings.EvalSettings(tasks=["facts"], limit=2, batch_size=8, seed=0)
    rescoring.rescore(path, part, None, lambda event: None)
    found = read(path)
    assert (found.status, {(score.task, score.n) for score in found.scores}) == ("failed", {("facts", 2)})
    assert found.saved.form == "adapter"


@pytest.mark.long
@pytest.mark.slow
def test_retry_goes_on_with_scoring_and_trains_nothing(tmp_path, python):
    package = tmp_path / "broken" / "vllm"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('libcudart.so: cannot open shared object file')")
    broken = make_python(tmp_path / "venv", package.parent)
    sweep = ["sweep", *TINY, *VLLM, "method=lora", "seed=0,1", "study=demo"]
    words = "vLLM failed while it loaded the model: ImportError: libcudart.so: cannot open shared object file."
    failed = called(tmp_path, *sweep, f"eval.vllm_python={broken}")
    assert failed.returncode == 1
    assert failed.stderr.count(words) == 2, failed.stderr
    paths = sorted((tmp_path / "results" / "demo").glob("*.json"))
    before = [read(path) for path in paths]
    assert [(found.status, found.saved.form) for found in before] == [("failed", "merged")] * 2
    retry = ["retry", "--study", "demo", "--failed"]
    refused = called(tmp_path, *retry)
    assert refused.returncode == 2
    assert_refused(refused.stderr, "eval.engine=vllm requires eval.vllm_python=", "--vllm-python")
    again = called(tmp_path, *retry, "--vllm-python", broken)
    assert again.returncode == 1
    assert words in again.stderr
    assert [read(path) for path in paths] == before
    assert called(tmp_path, *retry, "--vllm-python", python).returncode == 0
    after = [read(path) for path in paths]
    assert [(found.status, found.saved, found.train) for found in after] == [("ok", None, f.train) for f in before]
    assert all(found.vllm.answers == 4 for found in after)
    assert all({score.task for score in found.scores} == {"facts", "wordmath"} for found in after)
    assert "cannot open shared object file" in paths[0].with_suffix(".log").read_text()  # vLLM's own words
    assert called(tmp_path, *sweep, f"eval.vllm_python={python}").returncode == 0  # has nothing left to run
    assert [read(path) for path in paths] == after
