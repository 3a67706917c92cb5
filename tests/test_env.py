"""What a record says of where it ran, and the warning that something else runs there."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pynvml
import pytest
import torch
from job_helpers import prepared, tiny

from harness import env
from harness.config import ROOT
from harness.errors import UserError
from harness.job import preflight
from harness.job.measure import device
from harness.job.models import structure

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")

# --- provenance


def test_settings_of_memory_and_threads_are_recorded_without_paths(monkeypatch):
    for name in [name for name in os.environ if env.ALLOCATOR.fullmatch(name)]:
        monkeypatch.delenv(name)
    assert env.describe()["allocator"] == {}
    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/x86/libjemalloc.so.2:/home/me/other.so")
    monkeypatch.setenv("MALLOC_CONF", "background_thread:true,prof_prefix:/home/me/prof")
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setenv("GOMP_SPINCOUNT", "100")
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "backend:native")
    monkeypatch.setenv("MY_OMP_TOKEN", "secret")
    assert env.describe()["allocator"] == {
        "GOMP_SPINCOUNT": "100",
        "LD_PRELOAD": "libjemalloc.so.2:other.so",
        "MALLOC_CONF": "background_thread:true,prof_prefix:prof",
        "OMP_NUM_THREADS": "2",
        "PYTORCH_ALLOC_CONF": "backend:native",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    }


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_boot_is_the_same_in_every_process():
    program = "from harness import env; print(env.describe()['boot'])"
    other = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert other.strip() == env.describe()["boot"]
    assert len(other.strip()) == 16, "the id itself stays on its machine"


@pytest.mark.parametrize(("installed", "is_checkout"), [("harness", True), (".venv/site-packages/harness", False)])
def test_the_commit_of_another_projects_checkout_is_not_the_harness_s(tmp_path, monkeypatch, installed, is_checkout):
    """pip installs into a virtual environment that often lies in the folder of the user's own project."""
    git = ("git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    (tmp_path / installed).mkdir(parents=True)
    monkeypatch.setattr(env, "__file__", str(tmp_path / installed / "env.py"))
    facts = env.describe()
    assert (facts["git"] is not None) == is_checkout
    # Where there is no commit, the version alone tells of an upgrade between two cells of a study.
    assert facts["versions"].get("finetune-harness") == (None if is_checkout else env.version_of("finetune-harness"))


def test_the_name_of_the_machine_and_of_its_user_are_not_told(monkeypatch):
    monkeypatch.setenv("USER", "somebody-of-this-name")
    told = json.dumps(env.describe() | device.describe(torch.device("cpu")))
    assert socket.gethostname() not in told.split('"')
    assert "somebody-of-this-name" not in told
    assert os.path.expanduser("~") + "/" not in told


def test_on_a_cpu_the_device_has_no_driver():
    told = device.describe(torch.device("cpu"))
    assert told["threads"] == torch.get_num_threads()
    assert told["device"].pop("type") == "cpu"
    assert set(told["device"]) == {"name", "id", "memory_bytes", "capability", "driver", "cuda", "cudnn"}
    assert set(told["device"].values()) == {None}


@pytest.mark.gpu
@needs_cuda
def test_a_cuda_device_is_told_with_its_driver():
    told = device.describe(torch.device("cuda"))["device"]
    assert None not in told.values()
    assert told["cuda"] == torch.version.cuda


@pytest.mark.parametrize("method", ["full", "qlora"])
def test_the_model_tells_its_dtypes(method):
    net = prepared(tiny(f"method={method}", "speedups=off")).net
    told = structure.describe(net)
    assert set(told["dtypes"]) == ({"float32"} if method == "full" else {"float32", "uint8"})
    assert sum(told["dtypes"].values()) == sum(p.numel() * p.element_size() for p in net.parameters())


# --- a busy machine


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/stat")
def test_a_busy_cpu_is_told_of():
    spinning = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.5)
        words = env.busy(1.0)
    finally:
        spinning.kill()
        spinning.wait()
    assert words is not None
    assert words.startswith("Other processes keep ")
    assert "will not be comparable" in words


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/stat")
def test_half_a_core_is_the_limit(monkeypatch):
    for cores, told in [(0.4, False), (0.9, True)]:
        seconds = iter([0.0, cores * 0.2])
        monkeypatch.setattr(env, "_busy_seconds", lambda seconds=seconds: next(seconds))
        assert (env.busy(0.2) is not None) == told


@pytest.mark.parametrize(
    ("processes", "used", "percent", "said"),
    [
        ({}, 2**20, 0, None),
        ({}, 2**29, 9, None),
        ({}, 3 * 2**30, 0, "X is busy with others (3.0 GiB held, 0% utilisation)"),
        ({}, 0, 11, "X is busy with others (0.0 GiB held, 11% utilisation)"),
        (
            {12: 2**31, 34: None},
            2**31,
            99,
            "X is busy with process 12 with 2.0 GiB, process 34 (2.0 GiB held, 99% utilisation)",
        ),
    ],
)
def test_a_busy_gpu_is_told_of_with_who_holds_what(processes, used, percent, said):
    words = device.say_busy("X", processes, used, percent)
    assert words == (said and f"{said}: measured times and memory will not be comparable.")


def test_the_gpu_that_cuda_sees_is_looked_at(monkeypatch):
    """pynvml's functions, with a made-up device behind them."""
    answers = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetHandleByUUID": {"GPU-1f2e": "handle"}.get,
        "nvmlDeviceGetComputeRunningProcesses": lambda handle: [SimpleNamespace(pid=71, usedGpuMemory=2**30)],
        "nvmlDeviceGetMemoryInfo": lambda handle, version: SimpleNamespace(used=2**30),
        "nvmlDeviceGetUtilizationRates": lambda handle: SimpleNamespace(gpu=50),
    }
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, answer)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(name="X", uuid="1f2e"))
    assert "X is busy with process 71 with 1.0 GiB (1.0 GiB held, 50% utilisation)" in device.busy()

    def mute(_):
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    monkeypatch.setattr(pynvml, "nvmlDeviceGetUtilizationRates", mute)
    assert device.busy() is None


def test_without_a_driver_no_gpu_is_busy():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    assert device.busy() is None


@pytest.mark.gpu
@needs_cuda
def test_a_gpu_that_another_process_holds_memory_of_is_busy():
    hold = "import torch; x = torch.empty(2**31, dtype=torch.uint8, device='cuda'); print(flush=True); input()"
    holding = subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        holding.stdout.readline()
        ask = "from harness.job.measure import device; print(device.busy())"
        words = subprocess.run([sys.executable, "-c", ask], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    finally:
        holding.kill()
        holding.wait()
    assert torch.cuda.get_device_name() in words
    assert "measured times and memory will not be comparable" in words


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/stat")
def test_a_sweep_on_a_busy_machine_warns_and_goes_on(inside):
    spinning = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        run = inside("sweep", "model=tiny", "data=facts", "rank=8,9999", "train.max_steps=1")
    finally:
        spinning.kill()
        spinning.wait()
    first, *_ = [line for line in run.stderr.splitlines() if line.startswith(("warning: ", "error: "))]
    assert first.startswith("warning: Other processes keep ")
    assert run.returncode == 2, "the rank is refused: nothing needed to be run for the warning"


@pytest.mark.parametrize(
    ("setting", "overrides"),
    [
        ("train.precision=bf16", ("train.precision=bf16",)),
        ("model.dtype=bfloat16", ("train.precision=auto", "model.dtype=bfloat16")),
    ],
)
def test_a_gpu_without_bf16_arithmetic_is_asked_for_none(monkeypatch, setting, overrides):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    with pytest.raises(UserError, match=rf"{setting} requires a GPU of compute capability 8\.0 or more, got Tesla T4"):
        preflight.check([tiny("method=lora", *overrides)], None)
    device.check_formats(tiny("method=lora", "train.precision=auto").settings)  # which computes in fp32 there
