"""Exports: lm-eval's own tools read what is written in its layout; Parquet and CSV hold every number of all studies."""

from __future__ import annotations

import json
import re

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lm_eval.result_schema import EvalResults
from lm_eval.utils import get_file_datetime, get_latest_filename, get_results_filenames, make_table, sanitize_model_name
from records import make_record, make_score, make_study

from harness.__main__ import main
from harness.config import ROOT
from harness.plugins.exchange.exports import lm_eval
from harness.plugins.exchange.importers import collect
from harness.record import read_study, write

GSM8K = ROOT / "results" / "reference" / "gsm8k"
IDENTITY = ["--study", "gsm8k", "--results-dir", str(GSM8K.parent)]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The records of a published study with a group of 57 subjects, and what `export` made of each, by its cell."""
    out = tmp_path_factory.mktemp("lm_eval")
    records, _ = read_study(GSM8K)
    assert main(["export", *IDENTITY, "--out", str(out)]) == 0
    return records, {path.parent.name.partition("__")[2]: path for path in out.rglob("*.json")}


def table_of(path, column="results"):
    """The values in the table that lm-eval prints of a file, by task, filter and metric."""
    lines = make_table(json.loads(path.read_text()), column).splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    found, task = {}, None
    for name, version, kind, shots, metric, _, value, _, error in rows:
        task = name or task
        found[task.lstrip("- "), kind, metric] = (
            version,
            shots,
            float(value),
            error if error == "N/A" else float(error),
        )
    return found


def test_lm_eval_finds_the_files_by_their_names(exported):
    records, paths = exported
    assert set(paths) == {record.cell.name for record in records}
    for path in paths.values():
        assert get_results_filenames([str(path)]) == [str(path)]
        assert get_latest_filename([str(path), f"{path.parent}/results_2000-01-01T00-00-00.json"]) == str(path)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d\.\d{6}\.json", get_file_datetime(path.name))
        value = json.loads(path.read_text())
        assert path.parent.name == value["model_name_sanitized"] == sanitize_model_name(value["model_name"])


@pytest.mark.long
def test_lm_eval_prints_the_scores_of_the_record(exported):
    records, paths = exported
    for record in records:
        shown = table_of(paths[record.cell.name])
        for score in record.scores:
            shots, value, error = shown[score.task, score.filter, score.metric][1:]
            assert (shots, value, error) == (str(score.num_fewshot), round(score.value, 4), round(score.stderr, 4))
        assert table_of(paths[record.cell.name], "groups").keys() == {("mmlu", "none", "acc")}


def test_the_files_have_what_lm_evals_have_and_nothing_else_on_top(exported):
    _, paths = exported
    known = set(EvalResults.__annotations__)
    for path in paths.values():
        value = json.loads(path.read_text())
        assert set(value) <= known
        missing = {name for name in known - set(value) if not name.startswith(("tokenizer_", "samples"))}
        assert missing <= {"eot_token_id", "max_length"}


def test_subjects_stand_below_their_group_with_their_own_items(exported):
    records, paths = exported
    for record in records:
        value = json.loads(paths[record.cell.name].read_text())
        subjects = value["group_subtasks"]["mmlu"]
        items = pd.read_parquet(GSM8K / f"{record.cell.name}.items.parquet").query("task == 'mmlu'")
        assert set(subjects) == set(items["subject"])
        for subject, own in items.groupby("subject")["value"]:
            assert value["results"][subject]["acc,none"] == pytest.approx(own.mean())
            assert value["n-samples"][subject]["effective"] == len(own)
        assert "mmlu" not in value["n-samples"]
        assert "mmlu" not in value["configs"]
        assert value["higher_is_better"]["mmlu"] == {"acc": True}


def test_the_importer_reads_the_same_scores_back(exported):
    records, paths = exported
    for record in records:
        (back,) = collect("lm-eval", paths[record.cell.name], "back")
        wanted = {(s.task, s.metric, s.filter): (s.value, s.stderr, s.n, s.num_fewshot) for s in record.scores}
        assert {
            (s.task, s.metric, s.filter): (s.value, s.stderr, s.n, s.num_fewshot) for s in back.record.scores
        } == wanted
        assert back.record.started == record.started


def test_the_method_and_its_axes_are_with_the_config(exported):
    records, paths = exported
    lora = next(record for record in records if record.cell.method == "lora")
    config = json.loads(paths[lora.cell.name].read_text())["config"]
    told = config["finetune_harness"]
    assert (told["method"], told["rank"], told["lr"], told["seed"]) == ("lora", 16, 0.001, 0)
    assert config["limit"] == 57
    assert config["model_num_parameters"] == lora.parameters.total


def test_writing_again_replaces_and_cells_without_scores_are_left_out(tmp_path):
    records = [make_record("lora", 16, 32.0, 2e-4), make_record("full", None, None, 1e-4, status="oom")]
    assert lm_eval.write(records, tmp_path, tmp_path / "out") == lm_eval.write(records, tmp_path, tmp_path / "out")
    assert len(list((tmp_path / "out").rglob("*.json"))) == 1


@pytest.mark.parametrize("items", [b"no parquet", None])
def test_items_that_are_none_are_one_sentence(tmp_path, capsys, items):
    record = make_record("lora")
    write(record, tmp_path / "demo" / f"{record.cell.name}.json")
    path = tmp_path / "demo" / f"{record.cell.name}.items.parquet"
    if items is None:
        pq.write_table(pa.table({"task": ["gsm8k"], "value": [1.0]}), path)
    else:
        path.write_bytes(items)
    assert main(["export", "demo", "--results-dir", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {path} can't be read as items (")


def test_an_unknown_error_is_said_as_lm_eval_says_it(tmp_path):
    record = make_record("lora", 16, 32.0, 2e-4, scores=[make_score(0.2, None, version="main")])
    (path,) = lm_eval.write([record], tmp_path, tmp_path / "out")
    assert table_of(path) == {("gsm8k", "strict-match", "exact_match"): ("main", "5", 0.2, "N/A")}


# Parquet and CSV


def test_parquet_holds_the_numbers_of_csv_with_their_types(tmp_path):
    for record in make_study():
        write(record, tmp_path / "results" / "demo" / f"{record.cell.name}.json")
    arguments = ["table", "--results-dir", str(tmp_path / "results")]
    for kind in ("csv", "parquet"):
        assert main([*arguments, "--format", kind, "--out", str(tmp_path / f"cells.{kind}")]) == 0
    cells = pd.read_parquet(tmp_path / "cells.parquet")
    assert str(cells["rank"].dtype) == "Int64"
    assert cells["chosen"].dtype == bool
    typed = pd.read_csv(tmp_path / "cells.csv")
    assert list(typed) == list(cells)
    assert len(typed) == len(cells) == len(make_study())
    for name in cells.select_dtypes("number"):
        assert typed[name].astype(float).to_numpy() == pytest.approx(
            cells[name].astype("float64").to_numpy(dtype=float, na_value=float("nan")), nan_ok=True
        )


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_all_studies_are_one_table(tmp_path, kind):
    for name in ("one", "two"):
        record = make_record("lora", 16, 32.0, 2e-4, study=name, scores=[make_score(task=name)])
        write(record, tmp_path / "results" / name / f"{record.cell.name}.json")
    out = tmp_path / f"cells.{kind}"
    assert main(["table", "--results-dir", str(tmp_path / "results"), "--format", kind, "--out", str(out)]) == 0
    cells = pd.read_csv(out) if kind == "csv" else pd.read_parquet(out)
    assert list(cells["study"]) == ["one", "two"]
    assert cells["two/exact_match/strict-match"].isna().tolist() == [True, False]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--format", "parquet"], "--format parquet requires --out FILE: Parquet is not text."),
        (["--format", "parquet", "--columns", "method"], "--columns can't be combined with --format parquet"),
    ],
)
def test_parquet_that_can_not_be_written_is_one_sentence(tmp_path, capsys, arguments, said):
    record = make_record("lora", 16, 32.0, 2e-4)
    write(record, tmp_path / "results" / "demo" / f"{record.cell.name}.json")
    assert main(["table", "--results-dir", str(tmp_path / "results"), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
