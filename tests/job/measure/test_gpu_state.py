"""The state of a GPU in training, through the real pynvml over a stand-in of NVIDIA's library."""

from __future__ import annotations

import time

import pynvml
import pytest
import torch
from fake_nvml import H100, FakeNvml, install
from job_helpers import run_tiny

from harness.job import local_cell
from harness.job.measure import nvml
from harness.job.measure.energy import Energy
from harness.job.measure.gpu_state import GpuSampler, summary
from harness.job.measure.nvml import Reading
from harness.record import Gpu


def test_a_reading_of_an_h100(monkeypatch):
    device = install(monkeypatch, FakeNvml("GPU-1f2e", H100))
    assert nvml.reading(device) == Reading(1980, 2619, 700.0, 41, ())
    assert nvml.reading(device) == Reading(1755, 2619, 700.0, 63, ("sw_power_cap",))
    assert nvml.watts(device) == 71.25
    energy = Energy(device)
    assert Energy.between(energy.read(), energy.read()) == 2.5


def test_every_reason_has_a_name(monkeypatch):
    bits = {name: getattr(pynvml, f"nvmlClocksThrottleReason{name}") for name in nvml.REASONS}
    answers = H100 | {"nvmlDeviceGetCurrentClocksThrottleReasons": [sum(bits.values()), *bits.values()]}
    device = install(monkeypatch, FakeNvml("GPU-1f2e", answers))
    assert nvml.reading(device).throttle_reasons == tuple(nvml.REASONS.values())
    for name in nvml.REASONS.values():
        assert nvml.reading(device).throttle_reasons == (name,)


def test_what_a_consumer_card_does_not_tell_leaves_the_rest_known(monkeypatch):
    answers = {name: of for name, of in H100.items() if name.endswith(("ClockInfo", "Temperature"))}
    device = install(monkeypatch, FakeNvml("GPU-1f2e", answers))
    assert nvml.reading(device) == Reading(1980, 2619, None, 41, None)
    assert nvml.watts(device) is None
    assert Energy(device).read() is None


def test_under_mig_the_instance_is_found_and_tells_nothing(monkeypatch):
    device = install(monkeypatch, FakeNvml("MIG-9a", {}), uuid="9a")
    assert nvml.reading(device) == Reading(None, None, None, None, None)
    assert nvml.watts(device) is None


@pytest.mark.parametrize(
    "library", [FakeNvml("GPU-another", H100), FakeNvml("GPU-1f2e", H100, absent=("nvmlInitWithFlags",))]
)
def test_without_an_answer_at_all_there_is_no_reading(monkeypatch, library):
    device = install(monkeypatch, library)
    assert nvml.reading(device) is None


def test_an_old_driver_lacks_a_function(monkeypatch):
    lacking = FakeNvml("GPU-1f2e", H100, absent=("nvmlDeviceGetCurrentClocksThrottleReasons",))
    device = install(monkeypatch, lacking)
    assert nvml.reading(device) == Reading(1980, 2619, 700.0, 41, None)


def test_a_state_is_the_median_and_the_extremes_of_readings():
    readings = [
        Reading(1980, 2619, 700.0, 50, ()),
        Reading(1755, 2619, 650.0, 61, ("sw_power_cap", "sw_thermal_slowdown")),
        Reading(1700, 1593, 700.0, 55, ("sw_power_cap",)),
        Reading(210, 405, 700.0, 40, ("gpu_idle",)),  # between two kernels
    ]
    assert summary(readings, 71.25) == Gpu(
        samples=3,
        sm_mhz=1755,
        sm_mhz_max=1980,
        memory_mhz=2619,
        memory_mhz_max=2619,
        power_limit_watts=650.0,
        celsius=61,
        throttle_reasons=["sw_power_cap", "sw_thermal_slowdown"],
        idle_watts=71.25,
    )
    assert summary(readings[3:], None).sm_mhz == 210  # there is no other
    assert summary(readings[3:], None).throttle_reasons == []


def test_unknown_is_null():
    nothing = Gpu(0, None, None, None, None, None, None, None, None)
    assert summary([], None) == nothing
    found = summary([Reading(None, None, None, None, None)], None)
    assert found == Gpu(1, None, None, None, None, None, None, None, None)


def test_a_window_is_sampled_and_read_once_more_at_its_end(monkeypatch):
    device = install(monkeypatch, FakeNvml("GPU-1f2e", H100))
    with GpuSampler(device, 71.25, period=60) as short:
        pass
    assert short.state() == Gpu(1, 1980, 1980, 2619, 2619, 700.0, 41, [], 71.25)
    with GpuSampler(device, None, period=0.005) as sampler:
        time.sleep(0.2)
    state = sampler.state()
    assert state.samples > 3
    assert (state.sm_mhz, state.celsius, state.throttle_reasons) == (1980, 63, ["sw_power_cap"])


def test_two_windows_are_one_state(monkeypatch):
    sampler = GpuSampler(install(monkeypatch, FakeNvml("GPU-1f2e", H100)), None, period=60)
    assert sampler.states() == []
    for samples in (1, 2):
        with sampler:
            pass
        assert sampler.state().samples == samples
    assert sampler.state().throttle_reasons == ["sw_power_cap"]


def test_the_state_while_decoding_is_timed_is_kept(monkeypatch, tmp_path):
    """The cell runs on the CPU; its samplers ask about a GPU whose second reading is throttled."""
    card = install(monkeypatch, FakeNvml("GPU-1f2e", H100))
    monkeypatch.setattr(local_cell, "GpuSampler", lambda on, idle: GpuSampler(card, idle, period=60))
    record = run_tiny(tmp_path, "method=lora")
    assert [gpu.samples for gpu in record.gpus] == [1]
    assert [gpu.samples for gpu in record.decoding_gpus] == [2]  # unmerged, then merged
    assert record.decoding_gpus[0].throttle_reasons == ["sw_power_cap"]


def test_a_failed_window_has_its_readings(monkeypatch):
    device = install(monkeypatch, FakeNvml("GPU-1f2e", H100))
    sampler = GpuSampler(device, None, period=60)
    with pytest.raises(ZeroDivisionError), sampler:
        raise ZeroDivisionError
    assert sampler.state().samples == 1


def test_on_cpu_nothing_is_sampled(tmp_path):
    with GpuSampler(torch.device("cpu"), None) as sampler:
        pass
    assert sampler.state() is None
    record = run_tiny(tmp_path, "infer.large_batch_size=8")
    assert record.gpus == record.decoding_gpus == []
    assert (record.probe.busy_share, record.probe.kernels) == (None, None)
    assert record.position is None
    assert {form: speed.batch_size for form, speed in record.inference.items()} == dict.fromkeys(record.inference, 1)
    assert record.batched_inference.keys() == record.inference.keys() == {"base", "unmerged", "merged"}
    assert {speed.batch_size for speed in record.batched_inference.values()} == {8}
