"""Cells that ended early by a rule: they are never chosen, count as they are, and stay so."""

from __future__ import annotations

import json

import pytest
from real_sweeps import NINE_STEPS
from records import make_record, measured
from rich.console import Console

from harness import plugin
from harness.errors import UserError
from harness.python.launching import chosen
from harness.record import Failure, StopRule, ValidationPoint, write
from harness.report.lint import findings
from harness.report.select import select
from harness.report.tables.best import best
from harness.report.tables.table import comparison
from harness.studies.status import study_status, view
from harness.sweep.app.pending import to_run
from harness.sweep.app.point import point_of
from harness.sweep.app.session import Outcome, Session
from harness.sweep.store import Study

RULE = StopRule(0.15, 4)


def pruned(lr: float, step: int, loss: float, **more):
    """A cell that was ended at `step` with `loss`, which may be lower than others' at the end."""
    record = make_record("lora", 16, 32.0, lr, status="pruned", **more)
    record.failure = Failure("train", step, "Ended early by stop=asha: its validation loss is not among the best.")
    record.validation, record.stop = [ValidationPoint(step, 100 * step, loss)], RULE
    return record


def finished(lr: float, loss: float, **more):
    record = measured(make_record("lora", 16, 32.0, lr, **more))
    record.validation, record.stop = [ValidationPoint(50, 20_000, loss)], RULE
    return record


@pytest.fixture
def records():
    return [finished(1e-4, 1.0), finished(2e-4, 0.9), pruned(1e-3, 6, 0.5), pruned(1e-5, 6, 2.0), pruned(2e-3, 17, 0.8)]


def test_a_pruned_cell_is_never_chosen_however_low_its_loss(records):
    (choice,) = select(records)
    assert (choice.lr, choice.loss, choice.tries, choice.lost) == (2e-4, 0.9, 5, {"pruned": 3})
    assert choice.edges == ()  # rates on both sides were tried
    assert [[record.cell.lr for record in setting] for setting in chosen(records)] == [[2e-4]]


def test_a_setting_with_a_pruned_seed_is_not_chosen():
    (choice,) = select(
        [finished(1e-4, 1.0), pruned(1e-4, 6, 0.1, seed=1), finished(2e-4, 2.0), finished(2e-4, 2.0, seed=1)]
    )
    assert choice.lr == 2e-4


def test_the_table_and_lint_say_at_which_step_cells_were_pruned(records, tmp_path):
    table = comparison(records)
    statuses = [row[table.columns.index("Status")] for row in table.rows]
    assert sorted(statuses) == ["ok", "ok", "pruned at step 17", "pruned at step 6", "pruned at step 6"]
    (finding,) = [finding for finding in findings(records) if finding.rule == "pruned"]
    assert finding.sentence.startswith("stop=asha ended 3 of 5 cells early, at step 6 (2 cells), step 17 (1 cell): ")
    assert finding.cells == tuple(record.cell.name for record in records[2:])
    assert any(finding.sentence in line for line in table.caption)
    assert not [finding for finding in findings(records) if finding.rule in ("failed", "stop")]
    assert best(records, tmp_path).rows[0][best(records, tmp_path).columns.index("Tries")] == "5 (3 pruned)"


def test_lint_names_cells_under_another_rule(records):
    records[0].stop = None
    (finding,) = [finding for finding in findings(records) if finding.rule == "stop"]
    assert "none in " in finding.sentence
    assert "stop=asha (first rung at 0.15 of the tokens, factor 4) in " in finding.sentence


def test_status_counts_pruned_cells_apart_from_failed_ones(records, tmp_path):
    study = Study(tmp_path, "demo")
    for record in records:
        write(record, study.path(record.cell))
        study.log(record.cell).write_text("what the cell printed\n")
    status = study_status(tmp_path, "demo")
    assert status.counts == {"done": 2, "running": 0, "failed": 0, "left": 0, "pruned": 3}
    assert json.loads(json.dumps(status.to_json()))["pruned"] == 3
    shown = Console(width=120)
    with shown.capture() as captured:
        shown.print(*view(status, 120))
    assert "train 17" in captured.get()
    assert "what the cell printed" not in captured.get()


def test_a_sweep_with_pruned_cells_ends_well_and_runs_none_again(records, compose):
    session = Session(outcomes=[Outcome.of_record(record) for record in records])
    assert session.exit_status == 0
    assert not to_run(records[2], point_of(compose(*NINE_STEPS), []))
    assert to_run(records[2], point_of(compose(*NINE_STEPS, "retry.statuses=[pruned]"), []))


def test_a_sampler_is_told_a_pruned_cells_loss_at_its_rung(records):
    assert [float(Outcome.of_record(record)) for record in records] == [1.0, 0.9, 0.5, 2.0, 0.8]
    failed = finished(1e-2, 3.0, status="failed")
    assert Outcome.of_record(failed).loss is None


def test_removing_a_cell_removes_what_it_noted_at_its_rungs(records, tmp_path):
    study = Study(tmp_path, "demo")
    write(records[2], study.path(records[2].cell))
    noted = tmp_path / "demo" / ".harness" / "rungs" / f"{records[2].cell.name}.json"
    noted.parent.mkdir(parents=True)
    noted.write_text("{}")
    study.remove(records[2].cell.name)
    assert not noted.exists()


def test_a_rule_that_no_plugin_has_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(plugin, "installed", lambda: ())
    study = Study(tmp_path, "demo")
    assert study.early_stopping(None) is None
    with pytest.raises(UserError, match="requires a plug-in that ends cells"):
        study.early_stopping(RULE)
