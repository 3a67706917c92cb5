"""Fixtures that run the command lines of a test, in this process and in one folder."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from command_line import called

from harness.record import Record, read_study

TASK = """\
task: parity
dataset_path: json
dataset_kwargs: {data_files: {test: FILE}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{number}} is"
doc_to_choice: [" even", " odd"]
doc_to_target: "{{answer}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
metadata: {version: 3.0}
"""


@pytest.fixture
def tasks(tmp_path) -> Path:
    """A folder with the task parity."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "parity.jsonl").write_text("".join(json.dumps({"number": i, "answer": i % 2}) + "\n" for i in range(8)))
    (folder / "parity.yaml").write_text(TASK.replace("FILE", str(folder / "parity.jsonl")))
    return folder


@pytest.fixture
def run(request, tmp_path) -> Callable[..., list[CompletedProcess]]:
    """run(**words) runs the lines of the test, with `words` in place of those in braces; returns what came of each.

    {folder} is the folder that they run in.
    """

    def runs(**words: object) -> list[CompletedProcess]:
        done, words = [], {"folder": tmp_path} | words
        for line in request.function.lines:
            arguments = [
                re.sub(r"\{(\w+)\}", lambda found: str(words.get(found[1], found[0])), word)
                for word in shlex.split(line.words)
            ]
            done.append(called(tmp_path, *arguments))
            told = done[-1].stdout + done[-1].stderr
            assert done[-1].returncode == line.status, (line.words, told)
            assert re.search(line.said, " ".join(told.split())), (line.words, told)
            assert "Traceback" not in told, (line.words, told)
        return done

    return runs


@pytest.fixture
def only(tmp_path) -> Callable[[str], Record]:
    """only(study) is the record of a study of one cell, which must have ended well."""

    def read(study: str, results: str = "results") -> Record:
        (record,), problems = read_study(Path(tmp_path) / results / study)
        assert not problems
        assert record.status == "ok", record.failure
        return record

    return read
