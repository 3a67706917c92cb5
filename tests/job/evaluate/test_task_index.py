"""The index of tasks is built once, and again when a file of it changes."""

from __future__ import annotations

from pathlib import Path

import pytest
from lm_eval.tasks import TaskManager

from harness.job.evaluate import task_index

TASK = "task: {name}\ndataset_path: json\noutput_type: loglikelihood\n"


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The folders of each index that lm-eval built. Its own tasks are left out: they take seconds."""
    calls: list[str] = []

    def counting(include_path: list[str]) -> TaskManager:
        calls.append(include_path)
        return TaskManager(include_path=include_path, include_defaults=False)

    monkeypatch.setattr(task_index, "TaskManager", counting)
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return calls


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "own"
    made.mkdir()
    (made / "one.yaml").write_text(TASK.format(name="one"))
    return made


def test_the_index_is_read_from_its_file(built, folder):
    first = task_index._with_stock(str(folder))
    again = task_index._with_stock(str(folder))
    assert len(built) == 1
    assert again.task_index == first.task_index
    assert again.all_tasks == ["one"]


def test_a_new_task_has_the_index_built_again(built, folder):
    task_index._with_stock(str(folder))
    (folder / "two.yaml").write_text(TASK.format(name="two"))
    assert task_index._with_stock(str(folder)).all_tasks == ["one", "two"]
    assert len(built) == 2
    assert len([*folder.parent.glob("cache/task_index/*")]) == 1, "the former index is deleted"


def test_python_that_was_compiled_meanwhile_changes_nothing(built, folder):
    task_index._with_stock(str(folder))
    (folder / "__pycache__").mkdir()
    (folder / "__pycache__" / "utils.pyc").write_bytes(b"compiled")
    task_index._with_stock(str(folder))
    assert len(built) == 1


def test_a_damaged_file_is_made_again(built, folder, tmp_path):
    task_index._with_stock(str(folder))
    (file,) = tmp_path.glob("cache/task_index/*.pickle")
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)
    for _ in range(2):
        assert task_index._with_stock(str(folder)).all_tasks == ["one"]
    assert len(built) == 2


def test_where_nothing_can_be_written_the_index_is_built(built, folder, monkeypatch):
    monkeypatch.setenv("HARNESS_CACHE", "/dev/null/nowhere")
    assert task_index._with_stock(str(folder)).all_tasks == ["one"]
