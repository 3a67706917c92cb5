"""Mistakes of a first hour: each gets one sentence with the remedy in five seconds, before a job loads a library."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
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
    Path("begun.gguf").write_bytes(b"GGUF\x03\x00\x00\x00\x05")
    for name, files in {
        "adapter": {"adapter_config.json": {"base_model_name_or_path": "owner/model"}},
        "empty": {},
        "config": {"config.json": LLAMA},
        "t5": {"config.json": {"model_type": "t5", "is_encoder_decoder": True}, "tokenizer.json": {}},
    }.items():
        Path(name).mkdir()
        for file, content in files.items():
            Path(name, file).write_text(json.dumps(content))


@pytest.fixture(autouse=True)
def in_five_seconds(no_job):
    """Of the processor, as other tests run beside this one and a disk may be cold; nothing is waited for, either."""
    began, computed = time.perf_counter(), time.process_time()
    yield
    assert time.process_time() - computed < 5
    assert time.perf_counter() - began < 30


@pytest.mark.parametrize("command", ["run", "sweep"])
@pytest.mark.parametrize(
    ("settings", "culprits"),
    [
        ("model.path=model.gguf", ["model.path=model.gguf is no GGUF file", "name one"]),
        ("model.path=begun.gguf", ["model.path=begun.gguf has no weights; get the whole file again."]),
        ("eval.tasks=[gsm8kk]", ["eval.tasks=gsm8kk is unknown to lm-eval. Did you mean gsm8k or"]),
        ("eval.tasks=[wordmaths,mmlu]", ["eval.tasks=wordmaths is unknown to lm-eval. Did you mean wordmath"]),
        ("eval.tasks=[nothing_like_it]", ["A task of your own requires eval.include_path="]),
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


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("run rank=-1", "rank must be positive, got -1."),
        ("run rank=1.5", "rank must be a whole number, got 1.5."),
        ("run rank=[8,16]", "rank must be a whole number, got [8,16]."),
        ("run lr=0", "lr must be positive, got 0."),
        ("run lr=abc", "lr must be a number, got abc."),
        ("run alpha=-3", "alpha must be positive, got -3."),
        ("run seed=-1", "seed must be at least 0 and below 2**32, got -1."),
        ("run seed=1,2", "seed=1,2 names several values: `sweep` runs them all."),
        ("run train.max_steps=0", "train.max_steps must be 1 or more, got 0."),
        ("run train.batch_size=many", "train.batch_size must be a positive number or auto, got many."),
        ("run train.grad_accum=0", "train.grad_accum must be 1 or more, got 0."),
        ("run train.max_length=0", "train.max_length must be 1 or more, got 0."),
        ("run train.warmup_ratio=1.5", "train.warmup_ratio must be at least 0 and below 1, got 1.5."),
        ("run train.schedule=step", "train.schedule=step is unknown. There is: cosine, linear, constant."),
        ("run train.precision=fp8", "train.precision=fp8 is unknown."),
        ("run train.objective=ppo", "train.objective=ppo is unknown. Did you mean ipo?"),
        ("run train.epochs=0", "train.epochs must be positive, got 0."),
        ("run train.epochs=1 train.max_steps=5", "train.epochs=1 requires train.max_steps=null, got 5."),
        ("run train.global_batch=12", "train.global_batch=12 requires train.batch_size=auto"),
        ("run train.early_stopping=2", "train.early_stopping requires train.validate_every"),
        ("run train.data_seed=-1", "train.data_seed must be at least 0 and below 2**32, got -1."),
        ("run train.save_every=0", "train.save_every must be 1 or more, or null, got 0."),
        ("run eval.tasks=wordmath", "eval.tasks must be a list, got wordmath; write eval.tasks=[wordmath]."),
        ("run eval.limit=0", "eval.limit must be 1 or more, got 0."),
        ("score demo --tasks mmlu --num-fewshot few", "must be a number or `task`, got few"),
        ("run eval.num_fewshot=-1", "eval.num_fewshot must be 0 or more, got -1."),
        ("run eval.batch_size=0", "eval.batch_size must be a positive number or auto, got 0."),
        ("run eval.engine=tgi", "eval.engine=tgi is unknown. There is: auto"),
        (
            "run method=lora +method.adapt.rank_pattern=abc",
            "method.adapt.rank_pattern must have a positive integer by layer, as {q_proj:8}, got abc.",
        ),
        (
            "run method=lora +method.adapt.rank_pattern={q_proj:0.5}",
            "method.adapt.rank_pattern must have a positive integer by layer, as {q_proj:8}, got {'q_proj': 0.5}.",
        ),
        (
            "run method=lora +method.adapt.alpha_pattern=[1]",
            "method.adapt.alpha_pattern must have a positive number by layer, as {q_proj:8}, got [1].",
        ),
        ("run infer.repeats=-1", "infer.repeats must be 0 or more, got -1."),
        ("run data=alpaca2", "data=alpaca2 is unknown. Did you mean alpaca?"),
        ("run data=local", "data=local requires data.path=FILE with one of the suffixes .jsonl"),
        ("run data=text", "data=text requires data.path=FOLDER of texts"),
        ("run data.path=mine.jsonl", "data.path requires data=local, got data=wordmath."),
        ("run data=mine.jsonl", "use data=local data.path=mine.jsonl."),
        ("run data=tatsu-lab/alpaca", "data must be a name in conf/data/, got tatsu-lab/alpaca"),
        ("run model=tinny", "model=tinny is unknown. Did you mean tiny?"),
        ("run model=meta-llama/Llama-3.1-8B", "use model=llama_3_1_8b, or model.path=meta-llama/Llama-3.1-8B."),
        ("run model.path=", "has no config.json; name the folder that a model was saved in."),
        ("run model.dtype=fp12", "model.dtype=fp12 is unknown. There is: float32, bfloat16, float16."),
        ("run method=lorra", "method=lorra is unknown. Did you mean"),
        ("run method=", "method= is unknown."),
        ("run method=[lora,dora]", "method must be one name a cell, got [lora,dora]; for one cell each, use `sweep "),
        ("run method.rank=8", "There is no setting 'method.rank'; did you mean rank?"),
        ("run study=..", "study must name a folder by letters, digits,"),
        ("run save=adaptor", "save=adaptor is unknown. Did you mean adapter?"),
        ("run speedups=maybe", "speedups=maybe is unknown. There is: auto, off."),
        ("run learning_rate=1e-4", "There is no setting 'learning_rate'; did you mean lr?"),
        ("run max_steps=4", "There is no setting 'max_steps'; did you mean train.max_steps?"),
        ("run foo=1", "There is no setting 'foo'; `run --help` lists them."),
        ("run +foo=1", "There is no setting 'foo'; `run --help` lists them."),
        ("run +rank=8", "rank is there already; to change it, write rank=VALUE, without +."),
        ("run ~lr", "lr can't be removed, as every cell has it; give it another value"),
        ("run foo", "An override must be KEY=VALUE, got 'foo'; `run --help` lists the settings"),
        ("run lora", "An override must be KEY=VALUE, got 'lora'; did you mean method=lora?"),
        ("run lr 1e-3", "An override must be KEY=VALUE, got 'lr'; write lr=VALUE, without spaces."),
        ("run =3", "An override must be KEY=VALUE, got '=3'"),
        ("run +data.columns.\u4e3b=a", "; before = are the letters a to z alone, as in +data.columns.topic=COLUMN"),
        ("run data=local data.path=\udce9.csv", "Settings must be text in the encoding of the terminal, which is"),
        ("run --lr 1e-3", "unrecognized arguments: --lr; a setting is KEY=VALUE, without dashes;"),
        ("sweep quickstart --dry-run", "`harness plan` shows a grid and runs none of it;"),
        ("run quickstart", "`sweep quickstart` runs the sweep of that name, one at a time."),
        ("run hydra/launcher=nope", "hydra/launcher=nope is unknown. There is: basic, local_parallel"),
        ("sweep", "`sweep` requires a grid: KEY=A,B,C, or one of alpha, "),
        ("sweep nope", "sweep=nope is unknown. There is: alpha, "),
        ("sweep quickstrat", "sweep=quickstrat is unknown. Did you mean quickstart?"),
        ("sweep quickstart smollm2", "`sweep smollm2` runs the sweep of that name, one at a time."),
        (
            "sweep method=lora,galore method.knobs.scale=1,2",
            "no knob 'scale'; apollo, apollo_mini, galore, galore_8bit,",
        ),
        ("run method=galore method.knobs.scalee=1", "No method has a knob 'scalee'; did you mean scale?"),
        ("sweep method=lora,lorra", "method=lorra is unknown. Did you mean"),
        ("sweep rank=8,16, alpha=32", "A value can't end with a comma, got rank=8,16,; write rank=8,16."),
        ("sweep rank=8, 16", "Values are separated by commas without spaces, got rank=8, 16; write rank=8,16."),
        ("sweep rank=8 16", "An override must be KEY=VALUE, got '16'"),
        ("sweep 'rank=range(1,3'", "close its brackets, and put it into quotes for the shell."),
        ("sweep seed=1,2 hydra/launcher=slurmm", "Did you mean slurm?"),
        ("sweep seed=1,2 --budget", "argument --budget: expected one argument"),
        ("sweep seed=1,2 --budget lots", "'lots' is no size in bytes; write it as 24GB"),
        ("sweep seed=1,2 --confirm 0", "argument --confirm: must be a positive number, got 0"),
        ("plan --budget 24", "'24' is no size in bytes; write it as 24GB"),
        ("plan --device h1000", "--device=h1000 is unknown. Did you mean h100?"),
        ("plan --device a100", "--device=a100 is unknown. Did you mean a100_40 or a100_80?"),
        ("plan data=local data.path=/nope.jsonl", "There is no file /nope.jsonl; check data.path"),
        ("plan nope=1", "There is no setting 'nope'"),
        ("table nope", "There is no study nope in results"),
        ("table demo --format xml", "argument --format: invalid choice: 'xml'"),
        ("status nope", "There is no study nope in results; there is: demo."),
        ("status demo --watch --format json", "--watch can't be combined with --format json."),
        ("view demo --port 99999", "--port must lie between 0 and 65535, got 99999."),
        ("view demo --port abc", "argument --port: invalid int value: 'abc'"),
        ("report nope --out x.html", "There is no study nope in results"),
        ("doctor now", "unrecognized arguments: now"),
        ("lint nope", "There is no study nope in results"),
        ("forgetting nope", "There is no study nope in results"),
        ("verify nope", "There is no study nope in results"),
        ("diff one two", "There is no cell one in demo."),
        ("logs one", "There is no cell one in demo."),
        ("logs", "the following arguments are required: CELL"),
        ("retry to --failed", "got to. A study is named by --study to."),
        ("retry demo", "`retry` requires --failed: the cells that failed, diverged or ran out of memory."),
        ("power demo", "the following arguments are required: --effect, --seeds"),
        ("tabel demo", "There is no command 'tabel'. Did you mean table?"),
        ("--nope", "There is no command '--nope'."),
    ],
)
def test_a_mistake_is_one_sentence(capsys, command, says):
    Path("results/demo").mkdir(parents=True)
    Path("results/demo/x.json").write_text("{}")
    assert main(shlex.split(command)) == 2
    assert_refused(capsys.readouterr().err, says)
    assert [path.name for path in Path("results/demo").iterdir()] == ["x.json"]


def test_a_mistake_is_answered_as_fast_by_a_process_of_its_own():
    done = subprocess.run([sys.executable, "-m", "harness", "run", "rank=0"], capture_output=True, text=True)
    assert done.returncode == 2
    assert_refused(done.stderr, "rank must be positive, got 0.")


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
