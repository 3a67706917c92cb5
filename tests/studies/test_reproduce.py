"""Published cells run again: which ones, and that a record that was altered is found out."""

from __future__ import annotations

import json

import pytest
from command_line import assert_refused
from records import make_record, reseal, sound

from harness.errors import UserError
from harness.record import Source, read_study
from harness.studies import reproduce


def test_the_sample_is_of_finished_cells_of_our_own_and_repeats_with_its_seed():
    records = [make_record("lora", rank, 32.0, 2e-4) for rank in range(1, 20)]
    imported = make_record("full")
    imported.source = Source("peft", "a.json", "", [])
    able = [*records, imported, make_record("dora", status="failed")]
    drawn = [reproduce.sample("demo", able, 5, seed) for seed in (0, 0, 1)]
    names = [[record.cell.name for record in found] for found in drawn]
    assert names[0] == names[1] != names[2]
    every = reproduce.sample("demo", able, 19, 0)
    assert {record.cell.name for record in every} == {record.cell.name for record in records}
    with pytest.raises(UserError, match=r"^--cells must be at most 19, the cells of demo that can run .*, got 20\.$"):
        reproduce.sample("demo", able, 20, 0)
    with pytest.raises(UserError, match=r"^demo has no finished cell that this harness ran with local weights"):
        reproduce.sample("demo", [imported], 1, 0)


def test_bad_input_is_one_sentence(inside, tmp_path):
    sound(make_record("lora", 16, 32.0, 2e-4), tmp_path / "results" / "demo")
    for arguments, said in {
        ("demo", "--cells", "2"): "--cells must be at most 1",
        ("demo", "--cells", "0"): "must be a positive number, got 0",
        ("other",): "There is no study other in results; there is: demo.",
        (): "the following arguments are required: STUDY",
    }.items():
        run = inside("reproduce", *arguments)
        assert run.returncode == 2
        assert_refused(run.stderr, said)


@pytest.mark.long
@pytest.mark.slow
def test_a_cell_agrees_with_itself_and_not_with_a_record_whose_loss_was_altered(inside, tmp_path):
    tiny = ("model=tiny", "train.max_steps=2", "train.batch_size=2", "train.validation_items=2", "infer.repeats=0")
    swept = inside("sweep", *tiny, "method=lora", "data=facts", "eval.limit=4", "study=s", "save=adapter")
    assert swept.returncode == 0, swept.stderr
    run = inside("reproduce", "s", "--cells", "1", "--format", "csv")
    assert run.returncode == 0, run.stderr
    ((before,), (after,)) = (read_study(tmp_path / "results" / name)[0] for name in ("s", "reproduced/s"))
    assert after.cell == before.cell
    assert (after.study, after.saved) == ("reproduced/s", None)
    assert after.validation == before.validation
    path = tmp_path / "results" / "s" / f"{before.cell.name}.json"
    value = json.loads(path.read_text())
    value["validation"][-1]["loss"] *= 1.1
    reseal(path, value)
    run = inside("reproduce", "s", "--cells", "1", "--format", "md")
    assert run.returncode == 1, run.stderr
    assert "0 of 1 cells agree" in run.stdout
    assert f"{before.cell.name} disagrees in validation loss: " in run.stdout
