"""The drift of a machine by hand, and what the table and the linter say of it."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from records import ENVIRONMENT, make_record

from harness.__main__ import main
from harness.record import Record, Repeat, write
from harness.report.frame import frame
from harness.report.lint import findings
from harness.report.lint.drift import Drift, drift_text, drifts
from harness.report.select import select
from harness.report.statistics import Interval
from harness.report.tables.table import comparison

ON = ENVIRONMENT | {"boot": "one"}


def at(record: Record, hour: int, rate: float) -> Record:
    record.started, record.train.tokens_per_second_steady = f"2026-01-02T{hour:02}:00:00+00:00", rate
    record.environment = ON
    return record


def repeat(number: int, hour: int, rate: float | None, **fields) -> Repeat:
    known = {"status": "ok", "seconds": 60.0, "environment": ON, "position": None, "validation_loss": 1.25}
    known |= {"memory": None, "gpus": []}
    started = f"2026-01-02T{hour:02}:00:00+00:00"
    return Repeat(number=number, started=started, tokens_per_second_steady=rate, **(known | fields))


def study(*rates: float) -> list[Record]:
    """lora, repeated each two hours at `rates`, and full, half a percent slower, in the hour after the first run."""
    first, *later = rates
    lora = at(make_record("lora", 16, 32.0, 2e-4), 0, first)
    lora.repeats = [repeat(i + 2, 2 * (i + 1), rate) for i, rate in enumerate(later)]
    last = at(make_record("dora", 16, 32.0, 2e-4), 2 * len(later), 250.0)
    return [lora, at(make_record("full", None, None, 2e-5), 1, 0.995 * first), last]


def test_the_slope_of_exact_decay_is_its_rate():
    (drift,) = drifts(study(*(500 * math.exp(-0.01 * hour) for hour in (0, 2, 4, 6))))
    assert drift.per_hour == pytest.approx((-0.01, -0.01, -0.01))
    assert (drift.runs, drift.hours, drift.study_hours) == (4, 6, 6)
    assert drift.over_study == pytest.approx(-0.06)


def test_the_interval_is_students():
    (drift,) = drifts(study(*(math.exp(log) for log in (6.0, 6.2, 6.1, 6.3))))
    # hours 0, 2, 4, 6: spread 20; slope (-3×6.0 - 6.2 + 6.1 + 3×6.3) / 20 = 0.04; residuals -.03, .09, -.09, .03
    assert drift.per_hour.value == pytest.approx(0.04)
    half = 4.302653 * math.sqrt((2 * 0.03**2 + 2 * 0.09**2) / 2 / 20)  # t of two degrees of freedom
    assert (drift.per_hour.low, drift.per_hour.high) == pytest.approx((0.04 - half, 0.04 + half))
    assert drift.over_study == 0.0  # the interval includes no drift


def test_two_runs_have_no_interval_and_no_warning():
    records = study(500, 400)
    (drift,) = drifts(records)
    assert drift.over_study == 0.0
    assert "(interval unknown with two runs; 2 runs in 2.0 h)" in drift_text(drift)
    assert "drift" not in {finding.rule for finding in findings(records)}


def test_the_table_says_the_drift_and_warns_of_differences_below_it():
    records = study(*(500 * math.exp(-0.01 * hour) for hour in (0, 2, 4, 6)))
    text = "\n".join(comparison(records).caption)
    name = records[0].cell.name
    assert (
        f"Drift of the machine: tokens/s of {name} changed by −1% per hour (95% interval −1% to −1%; 4 runs in 6.0 h)."
    ) in text
    assert (
        "Warning: the machine's drift of 6.0% in tokens/s over the study's 6.0 h exceeds the differences of 1 of 3 "
        "pairs of settings."
    ) in text
    slow = study(*(500 * math.exp(-0.0001 * hour) for hour in (0, 2, 4, 6)))
    assert "drift" not in {finding.rule for finding in findings(slow)}


def test_runs_on_another_machine_and_broken_runs_tell_nothing():
    records = study(500)
    elsewhere = replace(repeat(2, 2, 400.0), environment=ON | {"boot": "another"})
    records[0].repeats = [elsewhere, repeat(3, 4, None, status="failed")]
    assert drifts(records) == []


def test_repeats_are_neither_seeds_nor_rows():
    plain, repeated = study(500), study(500, 490, 480)
    assert len(frame(repeated)) == len(frame(plain)) == 3
    assert [choice.index for choice in select(repeated)] == [choice.index for choice in select(plain)]
    assert comparison(repeated).rows == comparison(plain).rows
    assert "seeds" in {finding.rule for finding in findings(repeated)}  # a single seed still


def test_lint_prints_the_drift(tmp_path, capsys):
    for record in study(*(500 * math.exp(-0.0001 * hour) for hour in (0, 2, 4, 6))):
        record.study = "mine"
        write(record, tmp_path / "mine" / f"{record.cell.name}.json")
    main(["lint", "--results-dir", str(tmp_path)])
    assert "changed by −0.01% per hour (95% interval −0.01% to −0.01%; 4 runs in 6.0 h)." in capsys.readouterr().out


def test_an_interval_of_a_few_minutes_is_wide_and_written_in_full():
    drift = Drift("cell", 3, 0.2, Interval(0.032, -10.4, 10.4), 0.2)
    assert "changed by +3.2% per hour (95% interval −1,000% to +1,000%; 3 runs in 0.2 h)." in drift_text(drift)
