"""--skip-impossible leaves out what only a job can tell not to work, as rows with their reasons."""

from __future__ import annotations

import json

import pytest
from architectures import ARCHITECTURES, built
from command_line import called

CELL = (
    *("study=moe", "model=tiny", "model.path=m", "rank=4", "train.max_steps=1", "train.batch_size=2", "eval=facts"),
    *("eval.limit=2", "infer.repeats=0", "+data.load.train=32", "+data.load.validation=4", "train.validation_items=2"),
)
REFUSED = {
    "muon": "The optimizer of method=muon does not work here: it does not take experts in stacks; use ",
    "lora_8bit": "method=lora_8bit can't be applied to m: bitsandbytes packs the experts in stacks, ",
}


@pytest.mark.long
@pytest.mark.slow
def test_a_method_that_a_model_refuses_does_not_refuse_the_grid(tmp_path):
    built(tmp_path / "m", "qwen3_moe", **ARCHITECTURES["qwen3_moe"])
    refused = called(tmp_path, "sweep", "method=muon,lora_8bit", "--skip-impossible", *CELL)
    assert refused.returncode != 0  # as nothing can run
    assert refused.stderr.splitlines()[-1].startswith(f"error: {REFUSED['muon']}")

    hinted = called(tmp_path, "sweep", "method=lora,muon", *CELL)
    assert hinted.returncode == 2
    assert hinted.stderr.splitlines()[-1].startswith(f"error: {REFUSED['muon']}")
    assert hinted.stderr.endswith(" `sweep --skip-impossible` leaves such cells out.\n")
    alone = called(tmp_path, "sweep", "method=muon", *CELL)
    assert "--skip-impossible" not in alone.stderr, "it would leave nothing"

    done = called(tmp_path, "sweep", "method=lora,muon,lora_8bit", "--skip-impossible", *CELL)
    assert done.returncode == 0, done.stderr
    assert "Done: 1 ok, 2 unfit." in done.stderr
    assert "method=lora leaves the experts of m as they are" in done.stderr
    records = {}
    for path in (tmp_path / "results" / "moe").glob("*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        records[record["cell"]["method"]] = record
    assert {name: record["status"] for name, record in records.items()} == {
        "lora": "ok", "muon": "unfit", "lora_8bit": "unfit",
    }  # fmt: skip
    for name, reason in REFUSED.items():
        assert records[name]["failure"]["phase"] == "check"
        assert records[name]["failure"]["reason"].startswith(reason)
        assert records[name]["environment"]["allocator"] == records["lora"]["environment"]["allocator"]
    table = called(tmp_path, "table", "moe")
    assert "Cells not run: lora_8bit" in table.stdout
    assert "devices differ" not in table.stdout
