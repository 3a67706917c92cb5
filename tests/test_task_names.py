"""What the text of lm-eval's files says of a name must not refuse a task that its index has."""

from __future__ import annotations

import pytest
from lm_eval.tasks._index import Kind

from harness import task_names
from harness.errors import UserError
from harness.job.evaluate.task_index import stock


def test_names_of_the_index_are_not_refused():
    index = stock().task_index
    tags = [name for name, entry in index.items() if entry.kind is not Kind.TASK]
    assert len(tags) > 100
    task_names.require([*tags[::30], *sorted(index)[::500]])


def test_a_part_of_a_name_is_not_a_name():
    with pytest.raises(UserError, match=r"eval\.tasks=gsm8 is unknown to lm-eval\. Did you mean gsm8k"):
        task_names.require(["mmlu", "gsm8"])


@pytest.mark.long
def test_the_user_s_own_folder_counts(tmp_path):
    (tmp_path / "mine.yaml").write_text("tag: [parity_tasks]\n'task': parity\n")
    with pytest.raises(UserError, match=r"eval\.tasks=parity is unknown"):
        task_names.require(["parity"])
    task_names.require(["parity", "parity_tasks"], str(tmp_path))
    with pytest.raises(UserError, match="Did you mean parity"):
        task_names.require(["parety"], str(tmp_path))
