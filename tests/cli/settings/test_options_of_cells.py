"""Options of the commands that run, load, keep and remove cells, on a study that is made here."""

from __future__ import annotations

import pytest
from tested_settings import CELL, Line, lines

PLACES = "--data-root {folder} --vllm-python {folder}/python --include-path {tasks}"


@lines(
    Line(f"run {CELL} study=broken eval.tasks=[] timeout=0.05", 1),
    Line(f"run {CELL} study=broken eval.tasks=[] timeout=0.05 seed=1", 1),
    Line(f"retry --failed --study broken --results-dir results timeout=0.05 {PLACES} --format text", 1, "failed"),
    Line("retry --failed --study broken timeout=300 --format json", said='"status": "ok"'),
    f"run {CELL} study=kept save=adapter",
    Line("logs lora --study kept --results-dir results --format text"),
    Line("logs lora --study kept --format json", said='"log":'),
    Line("logs lora --study kept --follow"),
    Line(f"reproduce kept --cells 1 --seed 1 --results-dir results {PLACES} --format text --wide", said="agree"),
    Line("reproduce kept --cells 1 --format md --out again.md"),
    Line("reproduce kept --cells 1 --format csv", said=","),
    Line("reproduce kept --cells 1 --format html", said="<table"),
    Line("reproduce kept --cells 1 --format latex", said="tabular"),
    "rm lora --study kept --results-dir results --yes --format text",
    Line("rm broken/lora-r4-a8-lr2e-4-s1 --study broken --yes --format json", said='"removed"'),
)
@pytest.mark.long
def test_cells_are_repeated_and_removed(run, tasks, tmp_path):
    run(tasks=tasks)
    assert (tmp_path / "again.md").read_text().startswith("**")
    assert not list((tmp_path / "results" / "kept").glob("lora*"))
    assert len(list((tmp_path / "results" / "broken").glob("lora*.json"))) == 1
