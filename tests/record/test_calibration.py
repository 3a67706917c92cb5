"""Calibrations on disk, and the times that they tell of kernels."""

from __future__ import annotations

import json

import pytest

from harness.errors import UserError
from harness.record import (
    Calibration,
    TimedKernel,
    calibration_path,
    calibrations,
    device_of,
    studies,
    write_calibration,
)

GPU = ["cuda", "NVIDIA H100 80GB HBM3"]


def calibration(*kernels: TimedKernel, device=GPU, torch="2.11", ahead=True, created="2026-01-01") -> Calibration:
    kept = list(kernels) or [TimedKernel("add", "float32 float32 cc", 0, 1000, 1e-3)]
    return Calibration(device, created, torch, 1e-5, ahead, kept)


def test_a_calibration_is_kept_beside_the_records_and_is_no_study(tmp_path):
    written = calibration()
    path = write_calibration(written, tmp_path)
    assert path == tmp_path / "calibration" / "cuda-nvidia-h100-80gb-hbm3.jsonl"
    assert calibrations(tmp_path) == [written]
    assert studies(tmp_path) == []
    assert calibrations(tmp_path / "nowhere") == []


@pytest.mark.parametrize("text", ["", "{", "[]\n[]\n", '{"device": ["cuda"]}\n{"name": 1}\n', "null\n"])
def test_a_damaged_one_is_named(tmp_path, text):
    path = write_calibration(calibration(), tmp_path)
    path.write_text(text)
    with pytest.raises(UserError, match=r"h100-80gb-hbm3\.jsonl is no calibration; remove it"):
        calibrations(tmp_path)


def test_impossible_times_are_named(tmp_path):
    write_calibration(calibration(TimedKernel("add", "f", 0, 8, 0.0)), tmp_path)
    with pytest.raises(UserError, match="is no calibration"):
        calibrations(tmp_path)


def test_one_of_another_device_is_refused(tmp_path):
    path = write_calibration(calibration(), tmp_path)
    path.rename(calibration_path(tmp_path, ["cuda", "NVIDIA L40S"]))
    with pytest.raises(UserError, match="is a calibration of another device, NVIDIA H100 80GB HBM3; remove it"):
        calibrations(tmp_path)


def test_a_size_that_was_timed_takes_its_time_and_others_that_of_their_rate():
    found = calibration(TimedKernel("add", "f c", 0, 1000, 1.0), TimedKernel("add", "f c", 0, 4000, 2.0))
    assert found.seconds("add", "f c", 0, 1000) == 1.0
    assert found.seconds("add", "f c", 0, 4000) == 2.0
    assert 2000 / 2000 < found.seconds("add", "f c", 0, 2000) < 2000 / 1000
    assert found.seconds("add", "f c", 0, 0) == 0.0
    one = calibration(TimedKernel("add", "f c", 0, 1000, 1.0))
    assert one.seconds("add", "f c", 0, 10_000) == 10.0


def test_a_kernel_that_was_not_timed_takes_the_rate_of_its_like():
    products = (TimedKernel("mm", "f cc", 8000, 400, 1.0), TimedKernel("mm", "f cs", 8000, 400, 3.0))
    found = calibration(*products, TimedKernel("add", "f c", 0, 1000, 0.5))
    assert found.seconds("mm", "f cs", 8000, 400) == 3.0
    assert found.seconds("mm", "f ss", 8000, 400) in (1.0, 3.0)  # the same operation
    assert found.seconds("bmm", "f cc", 8000, 400) in (1.0, 3.0)  # a product
    assert found.seconds("exp", "f c", 0, 500) == 0.25


def test_the_host_hides_behind_a_gpu_and_adds_to_a_cpu():
    assert calibration(ahead=True).total(1.0, 200_000, 500) == pytest.approx(2.0)
    assert calibration(ahead=True).total(3.0, 200_000, 500) == 3.0
    assert calibration(ahead=False).total(1.0, 200_000, 100_000) == pytest.approx(4.0)


def test_a_later_calibration_keeps_what_only_the_earlier_one_timed():
    a, b, again = (TimedKernel("add", "f", 0, size, time) for size, time in ((1, 1.0), (2, 1.0), (2, 9.0)))
    earlier, later = calibration(a, again), calibration(b, created="2026-02-02")
    assert later.united(earlier).kernels == [b, a]
    assert later.united(None) is later
    assert later.united(calibration(a, torch="2.12")) is later
    assert later.united(calibration(a, device=["cuda", "B"])) is later


def test_a_device_is_told_by_its_name_and_a_cpu_by_its_threads():
    assert device_of({"device": {"type": "cuda", "name": "A"}, "threads": 4}) == ["cuda", "A"]
    assert device_of({"device": {"type": "cpu"}, "cpu": {"name": "x"}, "threads": 4}) == ["cpu", "x", 4]


def test_the_file_has_a_line_for_each_kernel(tmp_path):
    head, kernel = write_calibration(calibration(), tmp_path).read_text().splitlines()
    assert json.loads(head)["device"] == GPU
    assert json.loads(kernel)["name"] == "add"


def test_a_small_kernel_does_not_tell_the_time_of_a_large_one():
    """A norm of 100 bytes takes as long as one of 10,000: the time is that of other operations of its size."""
    found = calibration(TimedKernel("norm", "f c", 0, 100, 1e-5), TimedKernel("add", "f c", 0, 100_000, 2e-5))
    assert found.seconds("norm", "f c", 0, 100_000) == pytest.approx(2e-5)
    assert found.seconds("norm", "f c", 0, 200) == pytest.approx(2e-5)
