"""The process that vLLM is in: how it fails, and that it never outlives the harness. A stand-in fails as vllm does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tqdm
from pythons import STAND_IN, make_python

from harness.config import ROOT
from harness.errors import UserError
from harness.plugins.vllm.job import process
from harness.plugins.vllm.job.process import Prompt, VllmFailed, VllmWriter

PROMPTS = [Prompt([1, 2, 3], ["\n"], [0], 5), Prompt([1] * 40, [], [], 7)]


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """One with the stand-in for vllm and tqdm, and nothing else."""
    folder, packages = tmp_path_factory.mktemp("vllm"), Path(tqdm.__file__).parents[1]
    beside = folder / "beside"
    beside.mkdir()
    (beside / "tqdm").symlink_to(packages / "tqdm")
    return make_python(folder / "venv", STAND_IN, beside)


def failure(python, folder):
    with pytest.raises(VllmFailed) as raised:
        VllmWriter(python, folder, "float32", False).write(PROMPTS, 0.5)
    sentence = str(raised.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    return sentence


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (
            "loading short",
            "vLLM ran out of memory while it loaded the model: ValueError: Free memory on device cuda:0 (1.0/80.0 GiB) "
            "is less than desired GPU memory utilization.",
        ),
        (
            "loading raises",
            "vLLM failed while it loaded the model: RuntimeError: Unsupported configuration. More.",
        ),
        ("loading exits", "vLLM's process ended with exit status 3 while it loaded the model."),
        ("writing raises", "vLLM failed while it wrote answers: RuntimeError: Unsupported configuration. More."),
        (
            "writing is killed",
            "vLLM's process was killed by SIGKILL (the kernel does so when memory runs out) while it wrote answers.",
        ),
    ],
)
def test_a_failure_is_one_sentence(monkeypatch, python, tmp_path, fault, sentence):
    monkeypatch.setenv("STAND_IN_FAULT", fault)
    assert failure(python, tmp_path) == sentence


@pytest.mark.long
def test_silence_has_an_end_and_leaves_no_process(monkeypatch, python, tmp_path):
    monkeypatch.setenv("STAND_IN_NOTES", str(tmp_path / "notes"))
    for fault, limit, sentence in [
        ("loading hangs", "LOADED_WITHIN", "vLLM gave no sign of life for 2 seconds while it loaded the model."),
        ("writing hangs", "ANSWERED_WITHIN", "vLLM gave no sign of life for 2 seconds while it wrote answers."),
    ]:
        monkeypatch.setenv("STAND_IN_FAULT", fault)
        with monkeypatch.context() as patched:
            patched.setattr(process, limit, 2.0)
            assert failure(python, tmp_path) == sentence
        assert not alive(json.loads((tmp_path / "notes").read_text())["pid"])


def test_a_python_that_is_gone_or_cannot_import_vllm_is_said_to(tmp_path):
    gone = f"{tmp_path}/gone"
    assert failure(gone, tmp_path) == "eval.vllm_python can't be run: No such file or directory."
    bare = make_python(tmp_path / "bare")
    words = "vLLM failed while it loaded the model: ModuleNotFoundError: No module named 'vllm'."
    assert failure(bare, tmp_path) == words
    with pytest.raises(UserError, match="requires the package vllm"):
        process.check(bare)


def test_it_ends_with_the_harness_however_that_ends(monkeypatch, python, tmp_path):
    monkeypatch.setenv("STAND_IN_FAULT", "writing hangs")
    monkeypatch.setenv("STAND_IN_NOTES", str(tmp_path / "notes"))
    code = (
        "from pathlib import Path; from harness.plugins.vllm.job.process import Prompt, VllmWriter;"
        f"VllmWriter({python!r}, Path({str(tmp_path)!r}), 'float32', False).write([Prompt([1], [], [], 2)], 0.5)"
    )
    job = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    until = time.monotonic() + 60
    while not (tmp_path / "notes").is_file() or not (tmp_path / "notes").read_text():
        assert time.monotonic() < until
        time.sleep(0.2)
    worker = json.loads((tmp_path / "notes").read_text())["pid"]
    assert alive(worker)
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    while alive(worker):
        assert time.monotonic() < until
        time.sleep(0.2)


def test_the_model_is_as_long_as_the_longest_request(monkeypatch, python, tmp_path):
    monkeypatch.setenv("STAND_IN_FAULT", "loading raises")
    monkeypatch.setenv("STAND_IN_NOTES", str(tmp_path / "notes"))
    failure(python, tmp_path)
    told = json.loads((tmp_path / "notes").read_text())
    assert (told["max_model_len"], told["gpu_memory_utilization"], told["dtype"]) == (47, 0.5, "float32")
    assert told["trust_remote_code"] is False
