"""What cells share is made once, for as long as the files behind it stay as they are."""

from __future__ import annotations

import json

import pytest
from job_helpers import composed, tiny

from harness.errors import UserError
from harness.job import prepared_inputs
from harness.job.data import cached


@pytest.fixture(autouse=True)
def nothing_cached() -> None:
    """Inputs that other tests left would be older than the tasks that they share."""
    for cache in (prepared_inputs._made, prepared_inputs._tasks, cached._splits):
        cache.cache_clear()


def of(*overrides: str, data_root: str | None = None) -> prepared_inputs.PreparedInputs:
    return prepared_inputs.inputs_of(tiny(*overrides).settings, data_root)


def test_cells_that_differ_in_the_method_share_all():
    first = of("method=lora", "lr=1e-4")
    assert of("method=dora", "lr=1e-3", "rank=4") is first
    assert len(first.steps) == 3
    assert len(first.held_out) == 4


def test_inputs_are_shared_except_where_settings_differ():
    first, seed, steps = of(), of("seed=1"), of("train.max_steps=2")
    assert seed.steps != first.steps == steps.steps + first.steps[2:]
    assert seed.tasks is first.tasks is steps.tasks
    assert seed.fingerprints == first.fingerprints
    assert of("eval.limit=2").tasks is not first.tasks


def test_an_untuned_model_draws_no_steps():
    assert of("method=base").steps == []


def test_changed_data_are_read_again(tmp_path):
    folder = tmp_path / "openai" / "gsm8k"
    folder.mkdir(parents=True)
    card = "configs:\n- config_name: main\n  data_files:\n  - split: train\n    path: train.jsonl\n"
    (folder / "README.md").write_text(f"---\n{card}---\n")

    def write(count: int) -> None:
        rows = [{"question": f"How much is {i} + 1?", "answer": f"#### {i + 1}"} for i in range(count)]
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    settings = composed("model=tiny", "data=gsm8k", "+data.load.share=0.5", "eval=facts", "eval.limit=4").settings
    write(40)
    first = prepared_inputs.inputs_of(settings, str(tmp_path))
    assert prepared_inputs.inputs_of(settings, str(tmp_path)) is first
    write(50)
    second = prepared_inputs.inputs_of(settings, str(tmp_path))
    assert second.fingerprints["data"] != first.fingerprints["data"]
    assert second.fingerprints["model"] == first.fingerprints["model"]


def test_a_missing_input_is_reported_each_time():
    for _ in range(2):
        with pytest.raises(UserError, match="max_length=5 leaves no token"):
            of("train.max_length=5")
