"""What a GPU, or the build of torch for it, has no kernels for is refused in one sentence before anything runs."""

from __future__ import annotations

import pytest
import torch
from command_line import called
from job_helpers import tiny

from harness.errors import UserError
from harness.job import preflight
from harness.job.measure import device

IN_FP32 = ("train.precision=fp32", "model.dtype=float32")
USE = r"; use train\.precision=fp32 model\.dtype=float32\.$"


@pytest.fixture
def card(monkeypatch):
    """card(name, major, minor, *built): has torch, built for these, find such a GPU."""

    def there(name: str, major: int, minor: int, *built: str) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: major >= 8)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (major, minor))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: name)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: [*built])

    return there


@pytest.mark.parametrize(("name", "minor"), [("Tesla V100-SXM2-16GB", 0), ("Tesla T4", 5)])
@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_float16_is_refused_where_attention_has_no_kernel_for_it(card, name, minor, precision):
    card(name, 7, minor)
    asked = tiny("method=base", f"train.precision={precision}", "model.dtype=float16")
    with pytest.raises(
        UserError, match=rf"^model\.dtype=float16 requires .* 8\.0 or more, got {name} \(7\.{minor}\){USE}"
    ):
        preflight.check([asked], None)
    for method in ("lora", "full", "base"):
        device.check_formats(tiny(f"method={method}", *IN_FP32).settings)


def test_a_plan_for_such_a_card_says_so(tmp_path):
    cell = ("model=tiny", "method=base", "data=facts", "model.dtype=float16")
    planned = called(tmp_path, "plan", *cell, "--device", "t4")
    assert "model.dtype=float16 requires a GPU of compute capability 8.0 or more, got t4; use" in planned.stdout


@pytest.mark.parametrize("method", ["base_nf4", "base_int8"])
def test_a_quantised_base_is_not_computed_in_two_formats_of_sixteen_bits(method):
    """torch: Unexpected floating ScalarType in at::autocast::prioritize."""
    settings = (f"method={method}", "model.dtype=float16")
    with pytest.raises(
        UserError, match=r"^model\.dtype=float16 can't be combined with a quantised base and .*bfloat16\.$"
    ):
        preflight.check([tiny(*settings, "train.precision=bf16")], None)
    device.check_formats(tiny(*settings, "train.precision=fp32").settings)


CU130 = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")


@pytest.mark.parametrize(
    ("name", "capability", "built", "lacks"),
    [
        ("Tesla V100-SXM2-16GB", (7, 0), CU130, "sm_70"),
        ("Tesla T4", (7, 5), CU130, None),
        ("NVIDIA L40S", (8, 9), CU130, None),  # runs code for 8.6
        ("NVIDIA H100", (9, 0), ("sm_80", "sm_90a"), None),
        ("NVIDIA B200", (10, 0), ("sm_80", "sm_90"), "sm_100"),
        ("NVIDIA B200", (10, 0), ("sm_80", "compute_90"), None),  # compiled as it starts
        ("AMD Instinct MI300X", (9, 4), ("gfx942",), None),
    ],
)
def test_a_build_of_torch_without_code_for_the_card_is_refused(card, name, capability, built, lacks):
    card(name, *capability, *built)
    settings = tiny("method=lora", *IN_FP32).settings
    if lacks is None:
        device.check_formats(settings)
        return
    with pytest.raises(UserError, match=rf"^torch \S+ has no kernels for {name} .*; install .* that has {lacks}\.$"):
        device.check_formats(settings)


def test_8_bits_are_refused_where_there_are_no_such_products(card):
    settings = tiny("method=lora_8bit", *IN_FP32).settings
    card("Tesla V100-SXM2-16GB", 7, 0)
    with pytest.raises(
        UserError, match=r"^A base in 8 bits requires .* 7\.5 or more, got Tesla V100-SXM2-16GB \(7\.0\)"
    ):
        device.check_formats(settings)
    for method in ("lora_int8wo", "lora_fp8wo"):  # their products are in 16 bits or in fp32
        device.check_formats(tiny(f"method={method}", *IN_FP32).settings)
    card("Tesla T4", 7, 5)
    device.check_formats(settings)


@pytest.mark.parametrize(
    ("kind", "release", "limits"),
    [
        ("cuda", "5.15.153.1-microsoft-standard-WSL2", [(0.75, torch.device("cuda"))]),
        ("cuda", "6.8.0-45-generic", []),
        ("cpu", "5.15.153.1-microsoft-standard-WSL2", []),
    ],
)
def test_only_in_wsl_is_torch_kept_to_the_memory_that_is_free(monkeypatch, kind, release, limits):
    """Its driver moves what exceeds the GPU to the system's memory."""
    kept = []
    monkeypatch.setattr("platform.release", lambda: release)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (6 * 2**30, 8 * 2**30))
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda *limit: kept.append(limit))
    device.keep_to_its_memory(torch.device(kind))
    assert kept == limits
