"""Mistakes of a first hour: each gets one sentence with the remedy, before a job has loaded any library."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from command_line import assert_refused, forbid_jobs

from harness.__main__ import main
from harness.errors import UserError
from harness.job.data import columns
from harness.sweep.app.messages import quoted

ROWS = "".join(json.dumps({"question": f"{i}?", "answer": f"{i}"}) + "\n" for i in range(40))
LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


@pytest.fixture(autouse=True)
def no_job(tmp_path, monkeypatch):
    """A folder with the files of the mistakes, in which no job may start."""
    monkeypatch.chdir(tmp_path)
    forbid_jobs(monkeypatch)
    Path("mine.jsonl").write_text(ROWS)
    Path("folder.jsonl").mkdir()
    Path("afile").touch()
    Path("model.gguf").touch()
    for name, files in {
        "adapter": {"adapter_config.json": {"base_model_name_or_path": "owner/model"}},
        "empty": {},
        "config": {"config.json": LLAMA},
        "t5": {"config.json": {"model_type": "t5", "is_encoder_decoder": True}, "tokenizer.json": {}},
    }.items():
        Path(name).mkdir()
        for file, content in files.items():
            Path(name, file).write_text(json.dumps(content))


@pytest.mark.parametrize("command", ["run", "sweep"])
@pytest.mark.parametrize(
    ("settings", "culprits"),
    [
        ("model.path=model.gguf", ["model.path=model.gguf is no GGUF file", "name one"]),
        ("model.path=/nowhere/model.gguf", ["There is no file /nowhere/model.gguf; check model.path."]),
        ("model.path=afile", ["got the file afile; name its folder."]),
        ("model.path=adapter", ["is an adapter; name its base model: model.path=owner/model."]),
        ("model.path=empty", ["model.path=empty has no config.json"]),
        ("model.path=config", ["model.path=config has no tokenizer", "tokenizer.json"]),
        ("model.path=t5", ["model.path=t5 is an encoder-decoder"]),
        ("model.path=/nowhere/jürgen", ["There is no folder /nowhere/jürgen; check model.path."]),
        ("model.path=models/mine/last", ["There is no folder", "models/mine/last; check model.path."]),
        ("model=tiny data=local data.path=/nope.jsonl", ["There is no file /nope.jsonl; check data.path"]),
        ("model=tiny data=local data.path=mine.json", ["There is no file mine.json; did you mean mine.jsonl?"]),
        (
            "model=tiny data=local data.path=folder.jsonl",
            ["got the empty folder folder.jsonl"],
        ),
        ("model=tiny data=local data.path=model.gguf", ["data.path must have one of the suffixes .jsonl, .json"]),
        ("model=tiny results_dir=afile", ["results_dir=afile can't be written", "afile is no folder"]),
    ],
)
def test_an_input_of_another_kind_is_refused_at_once(capsys, command, settings, culprits):
    assert main([command, *settings.split(), *(["seed=1,2"] if command == "sweep" else [])]) == 2
    assert_refused(capsys.readouterr().err.splitlines()[-1] + "\n", *culprits)
    assert not Path("results").exists()


@pytest.mark.parametrize(
    ("line", "culprits"),
    [
        ("run batch_size=4", ["did you mean train.batch_size, eval.batch_size or infer.batch_size?"]),
        ("run load_in_4bit=true", ["did you mean method?", "method=qlora"]),
        ("run load_in_8bit=true", ["did you mean method?", "method=lora_8bit"]),
        ("run output_dir=x", ["did you mean results_dir?"]),
        ("run eval=mmlu", ["eval=mmlu is unknown", "eval.tasks=[mmlu]"]),
        ("run model=gpt2", ["model=gpt2 is unknown", "model.path=PATH"]),
        ("run method lora", ["write method=VALUE"]),
        ("run eval.tasks=[wordmath", ["close its brackets"]),
        ("sweep rank=8,,16", ["a value between two commas is missing"]),
        ("run model=tiny rank=1000000000000000000", ["rank is 1000000000000000000, which is not between 0 and"]),
        ("run model=tiny lr=1e150", ["lr is 1e+150, which is not between 0 and"]),
        ("sweep --config-dir nope seed=1,2", ["--config-dir must be a folder of config files, got nope"]),
        ("run method=LoRA", ["Did you mean lora?"]),
        ("run rank=", ["rank must be a whole number, got nothing."]),
        ("run train.early_stopping.patience=2", ["train.early_stopping is one value", "write train.early_stopping=2."]),
        ("run study.x=mine", ["study is one value", "write study=mine."]),
        ("run train.max_steps=abc", ["train.max_steps must be a whole number, got abc."]),
        ("run -m method=lora,dora rank=0", ["rank must be positive, got 0."]),
        ("run --multirun seed=1,2 rank=0", ["rank must be positive, got 0."]),
        ("sweep -m seed=1,2 rank=0", ["rank must be positive, got 0."]),
    ],
)
def test_a_slip_gets_its_remedy(capsys, line, culprits):
    assert main(line.split()) == 2
    assert_refused(capsys.readouterr().err, *culprits)


def test_a_study_that_is_misspelt_has_its_neighbour_named(capsys):
    Path("results/quickstart").mkdir(parents=True)
    Path("results/quickstart/x.json").write_text("{}")
    assert main(["table", "quickstrat"]) == 2
    assert "There is no study quickstrat in results. Did you mean quickstart? There is: " in capsys.readouterr().err


def test_a_study_that_is_named_by_its_folder_is_named_in_two_parts(capsys):
    Path("mine/quickstart").mkdir(parents=True)
    Path("mine/quickstart/x.json").write_text("{}")
    Path("results").mkdir()
    assert main(["table", "mine/quickstart"]) == 2
    assert "--study quickstart --results-dir mine." in capsys.readouterr().err


def test_a_report_is_not_written_to_a_terminal_or_a_folder(capsys, monkeypatch):
    Path("results/mine").mkdir(parents=True)
    Path("results/mine/x.json").write_text("{}")
    assert main(["report", "mine", "--out", "."]) == 2
    assert "--out must be a file, got the folder .; use --out report.html." in capsys.readouterr().err
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["report", "mine"]) == 2
    assert "name its file with --out report.html." in capsys.readouterr().err


def test_the_version_is_told(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"harness {version('finetune-harness')}\n"


@pytest.mark.parametrize(
    ("typed", "for_hydra"),
    [
        ("data.path=jürgen/a.jsonl", "data.path='jürgen/a.jsonl'"),
        ("data.path=/home/jürgen/Eigene Dateien/a.csv", "data.path='/home/jürgen/Eigene Dateien/a.csv'"),
        ("study=a,ü,c", "study=a,'ü',c"),
        ("eval.tasks=[müll,b]", "eval.tasks=['müll',b]"),
        ("data.path='ü'", "data.path='ü'"),
        ("rank=8,16", "rank=8,16"),
    ],
)
def test_letters_beyond_ascii_need_no_quotes(typed, for_hydra):
    assert quoted(typed) == for_hydra


def test_a_path_with_an_umlaut_reaches_the_cell(capsys):
    assert main(["run", "model=tiny", "data=local", "data.path=jürgen/a.jsonl"]) == 2
    assert_refused(capsys.readouterr().err, "There is no file jürgen/a.jsonl")


@pytest.mark.parametrize(
    ("row", "remedy"),
    [
        (
            {"instruction": "a", "output": "b"},
            "data.columns.question=instruction data.columns.answer=output",
        ),
        ({"conversations": [{"from": "human", "value": "a"}]}, "data.columns.messages=conversations"),
        ({"prompt": "a", "completion": "b"}, "data.columns.question=prompt data.columns.answer=completion"),
    ],
)
def test_columns_of_other_trainers_are_named_as_settings(row, remedy):
    with pytest.raises(UserError, match=f"; write {remedy}."):
        columns.mapped([row], [*row], {"question": "question", "answer": "answer"}, None, "mine.json")
