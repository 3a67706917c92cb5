"""`transformers serve` serves an exported model by the command that is printed, and answers as the cell did."""

from __future__ import annotations

import json
import shlex
import subprocess
import sysconfig
import urllib.request
from pathlib import Path

import pytest
from job_helpers import no_peak, noted_answers, run_request, tiny  # noqa: F401
from serving import come_up, free_port

from harness.__main__ import main

pytestmark = [pytest.mark.long, pytest.mark.slow]

PROBLEMS = 4


def test_the_printed_command_serves_the_model_that_was_scored(tmp_path, monkeypatch, capfd):
    """From the cell to the server, in processes of their own but for the cell's."""
    asked = noted_answers(monkeypatch)
    cell = tiny("method=lora", "infer.repeats=0", "lr=1e-2", "eval.tasks=[wordmath_short]", f"eval.limit={PROBLEMS}")
    path = tmp_path / "results" / "demo" / f"{cell.name}.json"
    path.parent.mkdir(parents=True)
    assert run_request(cell, "demo", path, None, lambda event: None, save="adapter").status == "ok"
    out = ["--out", str(tmp_path / "out"), "--results-dir", str(path.parent.parent)]
    capfd.readouterr()
    assert main(["export-model", "lora", "--to", "merged", *out]) == 0
    command = shlex.split(capfd.readouterr().out.splitlines()[-1])
    assert command[0] == "transformers"
    command[0] = str(Path(sysconfig.get_path("scripts")) / command[0])
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen([*command, "--port", str(port := free_port())], stdout=log, stderr=log)
        try:
            come_up(f"http://127.0.0.1:{port}/health")
            told = [ask(port, command[2], *request) for request, _ in asked]
        finally:
            server.terminate()
            server.wait()
    assert len(told) == PROBLEMS
    assert told == [answer for _, answer in asked]
    assert any(told), "it wrote nothing that could be compared"


def ask(port, model, prompt, how):
    """The served model's answer, cut where the task ends it: the server keeps the text that ended it."""
    body = {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": how["max_gen_toks"], "stop": how["until"]}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        text = json.load(answer)["choices"][0]["text"]
    return min((text.partition(stop)[0] for stop in how["until"]), key=len)
