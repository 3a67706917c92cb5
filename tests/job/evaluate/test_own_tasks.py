"""A user's own folder of lm-eval tasks: what it adds, what is refused, and that no record makes anyone load it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from job_helpers import no_peak, run_request, tiny  # noqa: F401

from harness import record
from harness.errors import UserError
from harness.gate import objection
from harness.job import preflight, prepared_inputs
from harness.job.evaluate import rescoring, scoring, task_index
from harness.job.evaluate.task_index import IncludedTasks
from harness.protocol import LocalPaths
from harness.settings import DataSettings, EvalSettings, plain

TASK = """\
task: {name}
custom_dataset: !function mine.docs
output_type: multiple_choice
test_split: test
doc_to_text: !function mine.asked
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 3.0}}
"""
CODE = """\
from datasets import Dataset, DatasetDict

BEGIN = "{begin}"

def docs(**_):
    rows = [{{"number": i, "choices": ["even", "odd"], "answer": i % 2}} for i in range(8)]
    return DatasetDict({{"test": Dataset.from_list(rows)}})

def asked(doc):
    return BEGIN + str(doc["number"]) + " is"
"""


STOCK = task_index.stock


@pytest.fixture(scope="module", autouse=True)
def no_stock():
    """lm-eval's thousands of files take long to read; ours stand for them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(task_index, "stock", task_index.ours)
        yield


def folder(at: Path, name: str = "parity", begin: str = "") -> str:
    at.mkdir(exist_ok=True)
    (at / "parity.yaml").write_text(TASK.format(name=name))
    (at / "mine.py").write_text(CODE.format(begin=begin))
    return str(at)


@pytest.mark.long
def test_its_tasks_are_scored_beside_the_harnesss_own(tmp_path):
    cell = tiny("method=base", "eval.tasks=[parity,facts]", "infer.repeats=0")
    path, local = tmp_path / f"{cell.name}.json", LocalPaths(include_path=folder(tmp_path / "mine"))
    preflight.check([cell], None, local)
    found = run_request(cell, "demo", path, None, lambda event: None, local=local)
    assert found.status == "ok", found.failure
    assert {(s.task, s.version, s.n) for s in found.scores if s.metric == "acc"} == {
        ("parity", "3.0", 4),
        ("facts", "1.0", 4),
    }


def test_the_folder_is_neither_of_the_cell_nor_of_the_record(tmp_path):
    where = folder(tmp_path / "mine")
    asked, plainly = tiny("eval.tasks=[parity]", f"eval.include_path={where}"), tiny("eval.tasks=[parity]")
    assert asked.id == plainly.id
    assert where not in json.dumps(plain(asked.settings))


@pytest.mark.long
def test_a_record_does_not_load_it(tmp_path):
    cell = tiny("method=base", "eval.tasks=[facts]", "infer.repeats=0")
    where, path = folder(tmp_path / "mine"), tmp_path / f"{cell.name}.json"
    run_request(cell, "demo", path, None, lambda event: None, local=LocalPaths(include_path=where))
    assert objection(record.read(path)) is None
    more = EvalSettings(tasks=["parity"], batch_size=8, seed=0)
    with pytest.raises(UserError, match=r"eval\.tasks=parity is unknown to lm-eval\. A task of your own requires"):
        rescoring.rescore(path, more, None, lambda event: None)
    rescoring.rescore(path, more, None, lambda event: None, LocalPaths(include_path=where))
    assert {s.task for s in record.read(path).scores} == {"facts", "parity"}


@pytest.mark.long
def test_a_prompt_that_its_code_changes_is_asked_anew(tmp_path):
    def asked(begin: str) -> str:
        where = folder(tmp_path / "mine", begin=begin)
        tasks = prepared_inputs.tasks(EvalSettings(tasks=["parity"], seed=0), DataSettings(), None, where)
        task = tasks.leaves["parity"]
        task.build_all_requests(samples=tasks.sample["parity"])
        return task.instances[0].args[0]

    assert [asked(""), asked("Number ")] == ["0 is", "Number 0 is"]


def test_what_is_no_folder_of_tasks_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"eval\.include_path must be a folder of lm-eval tasks, got /no/folder\."):
        IncludedTasks.in_folder("/no/folder")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"eval\.include_path=\S+empty has no YAML file of a task"):
        scoring.Tasks(EvalSettings(tasks=["facts"]), None, None, IncludedTasks.in_folder(str(tmp_path / "empty")))


@pytest.mark.parametrize("name", ["facts", "held_out"])
def test_a_task_may_not_hide_another(tmp_path, name):
    include = IncludedTasks.in_folder(folder(tmp_path / "mine", name))
    with pytest.raises(UserError, match=rf"has a task {name}, as has lm-eval; rename it"):
        scoring.Tasks(EvalSettings(tasks=[name]), None, None, include)


@pytest.mark.long
@pytest.mark.slow
def test_nor_a_stock_task(tmp_path, monkeypatch):
    monkeypatch.setattr(task_index, "stock", STOCK)
    include = IncludedTasks.in_folder(folder(tmp_path / "mine", "gsm8k"))
    with pytest.raises(UserError, match="has a task gsm8k, as has lm-eval; rename it"):
        scoring.Tasks(EvalSettings(tasks=["facts"]), None, None, include)
    found = task_index.index_of(["parity", "gsm8k"], IncludedTasks.in_folder(folder(tmp_path / "other")))
    assert {"parity", "gsm8k", "facts"} <= set(found.all_tasks)
