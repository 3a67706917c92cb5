"""Files of lm-eval whose models share a base stay several records: our own export, adapters, names."""

from __future__ import annotations

import json

from harness.__main__ import main
from harness.config import ROOT
from harness.plugins.exchange.exports.lm_eval import write
from harness.record import read_study

QUICKSTART = ROOT / "results" / "reference" / "quickstart"


def imported(files, tmp_path):
    arguments = ["import", "lm-eval", str(files), "--study", "back", "--results-dir", str(tmp_path / "results")]
    assert main(arguments) == 0
    records, problems = read_study(tmp_path / "results" / "back")
    assert not problems
    return records


def test_our_own_export_comes_back_cell_by_cell(tmp_path):
    records, _ = read_study(QUICKSTART)
    write(records, QUICKSTART, tmp_path / "files")
    back = {record.cell.method: record for record in imported(tmp_path / "files", tmp_path)}
    assert set(back) == {record.cell.method for record in records}
    for record in records:
        again = back[record.cell.method]
        for axis in ("rank", "alpha", "lr", "seed", "data", "knobs"):
            assert getattr(again.cell, axis) == getattr(record.cell, axis), axis
        assert [score.value for score in again.scores] == [score.value for score in record.scores]
        assert again.repeats == []


def test_adapters_and_names_of_one_base_are_told_apart(tmp_path, capsys):
    record, *_ = read_study(QUICKSTART)[0]
    (file,) = write([record], QUICKSTART, tmp_path / "one")
    value = json.loads(file.read_text())
    del value["config"]["finetune_harness"]
    for i, (adapter, name) in enumerate(
        [("lora/final", "m"), ("dora/final", "m"), (None, "tuned-a"), (None, "tuned-b")]
    ):
        value["config"]["model_args"] = {"pretrained": "org/m"} | ({"peft": adapter} if adapter else {})
        value |= {"model_name": name, "date": value["date"] + 1}
        path = tmp_path / "files" / str(i) / f"results_2026-01-0{i + 1}T00-00-00.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(value))
    assert len(imported(tmp_path / "files", tmp_path)) == 4
    capsys.readouterr()
    assert main(["table", "--results-dir", str(tmp_path / "results")]) == 0
    text = capsys.readouterr().out
    for part in ("lora/final", "dora/final", "tuned-a", "tuned-b"):
        assert part in text
