"""The headline memory: one instrument a device, told in every caption, and never compared with the other."""

from __future__ import annotations

from records import MIB, make_record, measured

from harness.record import Record, memory_remainder, train_memory
from harness.report.figures.accuracy import accuracy_memory
from harness.report.figures.study_results import StudyResults
from harness.report.lint import findings
from harness.report.tables.best import best
from harness.report.tables.table import comparison

CPU = {"type": "cpu", "name": None}


def on_cpu(record: Record) -> Record:
    record.environment = record.environment | {"device": CPU | {"matmul_flops_per_second": 4e12}}
    return record


def gpu_record(method: str = "lora", **fields) -> Record:
    """On CUDA: 1,024 MiB by the allocator for lora, where tensors by kind add up to 915 MiB."""
    return measured(make_record(method, **fields))


def test_on_cuda_it_is_the_allocators_peak_and_kinds_leave_a_remainder():
    record = gpu_record()
    assert train_memory(record) == 1024 * MIB
    assert memory_remainder(record) == 109 * MIB
    record.phases["train"].memory.allocated_peak = 900 * MIB
    assert memory_remainder(record) == -15 * MIB
    record.phases["train"].memory.allocated_peak = None  # the probe's tensors are no stand-in
    assert train_memory(record) is None


def test_on_cpu_it_is_the_peak_of_live_tensors():
    record = on_cpu(gpu_record())
    assert train_memory(record) == 915 * MIB
    assert memory_remainder(record) is None


def test_the_table_has_reserved_and_driver_beside_it_and_says_the_remainder():
    record = gpu_record()
    record.phases["train"].memory.device_process = 1900 * MIB
    table = comparison([record])
    texts = dict(zip(table.columns, table.rows[0], strict=True))
    assert texts["Peak train memory"] == "1.00 GiB"
    assert (texts["Reserved peak"], texts["Driver's figure"]) == ("1.06 GiB", "1.86 GiB")
    assert texts["Remainder"] == "109 MiB"
    text = "\n".join(table.caption)
    assert "Memory: peak of CUDA's allocator over training;" in text
    assert "are live tensors at the peak of a probe step" in text
    record.phases["train"].memory.allocated_peak = 900 * MIB
    assert comparison([record], ["remainder"]).rows == [["−15 MiB"]]
    on_a_cpu = comparison([on_cpu(gpu_record())])
    assert "Remainder" not in on_a_cpu.columns
    assert "Memory: peak of live tensors in a training step;" in "\n".join(on_a_cpu.caption)
    assert "add up to that peak" in "\n".join(on_a_cpu.caption)


def test_two_instruments_have_no_ratio_and_no_mean():
    gpu_lora, cpu_full = gpu_record("lora"), on_cpu(gpu_record("full"))
    table = comparison([cpu_full, gpu_lora], ["memory"])
    assert table.rows == [["915 MiB (1.00×)"], ["1.00 GiB"]]
    assert "these two are not compared" in "\n".join(table.caption)
    first = best([cpu_full, gpu_lora], None)
    column = first.columns.index("Peak train memory")
    assert [row[column] for row in first.rows] == ["915 MiB (1.00×)", "1.00 GiB"]
    seeds = [gpu_record("lora", seed=0), on_cpu(gpu_record("lora", seed=1))]
    assert comparison(seeds, ["memory"]).rows == [["–"]]


def test_lint_tells_of_two_instruments():
    records = [on_cpu(gpu_record("full")), gpu_record("lora")]
    (found,) = [finding for finding in findings(records) if finding.rule == "memory"]
    assert found.kind == "unequal"
    assert found.sentence == (
        "Peak memory is measured by different instruments: a count of live tensors in full; CUDA's allocator in lora."
    )
    assert not [finding for finding in findings([gpu_record("full"), gpu_record("lora")]) if finding.rule == "memory"]


def test_the_figure_draws_one_instrument_and_names_it(tmp_path):
    records = [gpu_record("lora"), gpu_record("dora"), on_cpu(gpu_record("full"))]
    drawn = accuracy_memory(StudyResults(records, tmp_path))
    assert "the peak of CUDA's allocator over training" in drawn.caption
