"""Joules, from counters that a test writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from harness.job.measure.energy import Energy

CPU = torch.device("cpu")


def powercap(folder: Path, *packages: tuple[int, int]) -> Path:
    for i, (used, span) in enumerate(packages):
        for name in (f"intel-rapl:{i}", f"intel-rapl:{i}:0"):  # the part is counted in the package
            (folder / name).mkdir(parents=True, exist_ok=True)
            (folder / name / "energy_uj").write_text(f"{used}\n")
            (folder / name / "max_energy_range_uj").write_text(f"{span}\n")
    return folder


def test_joules_add_up_over_packages_and_wraps(tmp_path):
    energy = Energy(CPU, powercap(tmp_path, (1_000_000, 50_000_000), (49_000_000, 50_000_000)))
    before = energy.read()
    powercap(tmp_path, (3_500_000, 50_000_000), (2_000_000, 50_000_000))
    assert Energy.between(before, energy.read()) == pytest.approx(2.5 + 3.0)


def test_without_a_readable_counter_there_are_no_joules(tmp_path):
    assert Energy(CPU, tmp_path).read() is None
    folder = powercap(tmp_path, (1, 2))
    (folder / "intel-rapl:0" / "energy_uj").unlink()
    energy = Energy(CPU, folder)
    assert energy.read() is None
    assert Energy.between(energy.read(), energy.read()) is None
