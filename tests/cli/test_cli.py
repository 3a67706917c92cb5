"""The command line: what works says so with its exit status, and bad input gets one line that names it."""

from __future__ import annotations

import json
import re
import time

import pytest
from command_line import assert_refused, installed
from records import make_study

from harness.__main__ import main
from harness.config_folders import SWEEPS, published_sweeps
from harness.record import write

TINY = ["model=tiny", "data=facts", "train.max_steps=1", "train.batch_size=2", "eval.limit=1"]


@pytest.fixture
def results(tmp_path):
    """A results folder with the study `demo`."""
    for record in make_study():
        write(record, tmp_path / "results" / "demo" / f"{record.cell.name}.json")
    return tmp_path / "results"


@pytest.mark.parametrize(
    ("line", "culprits"),
    [
        ("frobnicate", ["'frobnicate'", "--help"]),
        ("table --bogus", ["--bogus", "--help"]),
        ("table --format pdf", ["pdf", "latex"]),
        ("table --price 0", ["--price must be positive, got 0."]),
        ("table --columns method,cost", ["--columns cost requires --price"]),
        ("status --study", ["--study"]),
        ("logs", ["CELL", "--help"]),
        ("diff one", ["CELL", "--help"]),
        ("retry", ["requires --failed"]),
        ("logs one --follow --format json", ["--follow", "json"]),
        ("table one --study two", ["one study at a time", "one", "two"]),
    ],
)
def test_a_bad_command_line_is_one_error(capsys, line, culprits):
    assert main(line.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert_refused(err, *culprits)


@pytest.mark.parametrize(
    ("line", "culprits"),
    [
        ("run method=lorra", ["method=lorra", "Did you mean lora?", "galore"]),
        ("run model=tinny", ["model=tinny", "Did you mean tiny?"]),
        ("run method=lroa", ["method=lroa", "Did you mean lora?"]),
        ("run model=meta-llama/Llama-3.1-8B", ["use model=llama_3_1_8b, or model.path=meta-llama/Llama-3.1-8B."]),
        ("run model=me/mine", ["got me/mine; use model.path=me/mine."]),
        ("run data=mine.jsonl", ["use data=local data.path=mine.jsonl."]),
        ("run data=tatsu-lab/alpaca", ["got tatsu-lab/alpaca; use data=alpaca."]),
        ("run data=me/mine", ["got me/mine; a data set of the hub needs a file there, as alpaca.yaml is."]),
        ("run data=nope", ["data=nope", "wordmath"]),
        ("run eval=nope", ["eval=nope", "wordmath"]),
        ("sweep quickstrat", ["quickstrat", "Did you mean quickstart?"]),
        ("run rnk=8", ["There is no setting 'rnk'; did you mean rank?"]),
        ("run max_steps=8", ["'max_steps'", "did you mean train.max_steps?"]),
        ("run train.num_train_epochs=3", ["'train.num_train_epochs'", "did you mean train.epochs?"]),
        ("run train.num_steps=3", ["'train.num_steps'", "did you mean train.max_steps?", "train.max_tokens"]),
        ("run train.learning_rate=1e-4", ["'train.learning_rate'", "did you mean lr?"]),
        ("run eval.tasks=gsm9k", ["eval.tasks must be a list, got gsm9k; write eval.tasks=[gsm9k]."]),
        ("run colour=red", ["'colour'", "--help"]),
        ("run method.adapt.use_rslora=true", ["'method.adapt.use_rslora'", "+"]),
        ("run train.lr=1e-4", ["'train.lr'", "did you mean lr?"]),
        ("run rank=abc", ["rank must be a whole number, got abc."]),
        ("run lr=fast", ["lr must be a number, got fast."]),
        ("run train.packing=maybe", ["train.packing must be true or false, got maybe."]),
        ("run lora", ["got 'lora'; did you mean method=lora?"]),
        ("run quickstart", ["got 'quickstart'; `sweep quickstart` runs the sweep of that name"]),
        ("run --rank=8", ["--rank=8; a setting is KEY=VALUE, without dashes", "`python -m harness run --help`"]),
        ("sweep method=lora rank=8,16, lr=1e-4", ["can't end with a comma, got rank=8,16,; write rank=8,16."]),
        ("run model=/not/there", ["got /not/there; use model.path=/not/there."]),
        ("run +rnak=8", ["There is no setting 'rnak'; did you mean rank?"]),
        ("run ++foo=1", ["There is no setting 'foo'; `run --help` lists them."]),
        ("run +train.max_stpes=1", ["'train.max_stpes'; did you mean train.max_steps?"]),
        ("run +trian.max_steps=1", ["'trian.max_steps'; did you mean train.max_steps?"]),
        ("run +eval.foo=3", ["There is no setting 'eval.foo'; `run"]),
        ("run +model.price.foo=1", ["There is no setting 'model.price.foo'; `run"]),
        ("run +method.rnk=3", ["There is no setting 'method.rnk'; `run"]),
        ("run +rank.foo=3", ["There is no setting 'rank.foo'; did you mean rank?"]),
        ("run +method.knobs.gap=3", ["method.knobs.gap is not read by method=lora."]),
        ("run method=galore +method.knobs.gap=3", ["method=galore; it reads scale, update_proj_gap."]),
        ("run ++data.columns.colour=red", ["data.columns requires data=local, got data=wordmath."]),
        ("run data.path=mine.jsonl", ["data.path requires data=local, got data=wordmath."]),
        ("run ++model.architecture.new=1", ["can't be set: model.architecture is null."]),
        ("run model.architecture.new=1", ["can't be set: model.architecture is null."]),
        ("run model.architecture={hidden_size:64}", ["model.architecture is null", "set it in a file of conf/model/"]),
        ("run method=full method.adapt.r=8", ["method.adapt.r=8 can't be set: method.adapt is null."]),
        ("plan method=full,lora method.adapt.r=8", ["is null; ++method.adapt.r=8 sets it for the methods that have"]),
        ("run +rank=8", ["rank is there already; to change it, write rank=VALUE, without +."]),
        ("run ~rank", ["rank can't be removed", "got ~rank"]),
        ("run ~train", ["train can't be removed", "got ~train"]),
        ("run ~nope", ["'nope' does not exist"]),
        ("sweep +rnak=8,16", ["'rnak'; did you mean rank?"]),
        ("sweep +rnak=8,16 --skip-impossible", ["'rnak'; did you mean rank?"]),
        ("sweep method=lora,dora +hydra.sweeper.params.rnak='1,2'", ["'rnak'; did you mean rank?"]),
        ("plan +rnak=8,16", ["'rnak'; did you mean rank?"]),
        ("plan --advise --device rtx_4090 +rnak=8", ["'rnak'; did you mean rank?"]),
        ("run rank=[1", ["rank=[1"]),
        ("run rank", ["'rank'", "KEY=VALUE"]),
        ("run rank=0", ["rank must be positive, got 0"]),
        ("run alpha=-1", ["alpha must be positive, got -1"]),
        ("run alpha=${foo}", ["alpha", "foo"]),
        ("run lr=0", ["lr must be positive, got 0"]),
        ("run seed=-1", ["seed must be", "got -1"]),
        ("run study=../x", ["study must", "got ../x"]),
        ("run data_root=/not/there", ["data_root must", "got /not/there"]),
        ("run method=lora,dora", ["method=lora,dora", "`sweep`"]),
        ("run method=lora, dora", ["without spaces", "method=lora,dora"]),
        ("sweep method=lora, dora rank=8", ["without spaces", "method=lora,dora"]),
        ("run method=[lora,dora]", ["must be one name a cell", "`sweep method=lora,dora`"]),
        ("sweep method=[lora,dora]", ["must be one name a cell", "`sweep method=lora,dora`"]),
        ("sweep", ["requires a grid", "quickstart"]),
        ("sweep study=quickstart", ["requires a grid", "quickstart"]),
        ("run method=full ++method.adapt.target_modules=[q_proj]", ["can't be set: the method has no `adapt`"]),
        ("sweep method=lora,galore_layer", ["method=galore_layer can't", "`sweep --skip-impossible` leaves such"]),
        ("sweep method=galore_layer --skip-impossible", ["method=galore_layer can't"]),
        ("run --bogus", ["--bogus", "`python -m harness run --help`"]),
        ("run results_dir=/dev/null/x", ["/dev/null/x"]),
        ("sweep method=lora,lorra", ["method=lorra"]),
        ("sweep method=lora,dora rnk=8", ["'rnk'"]),
        ("sweep rank=8,abc", ["rank must be a whole number, got abc"]),
        ("sweep rank=8,0", ["rank must be positive, got 0"]),
        ("sweep method=lora study=a,b", ["study is not an axis"]),
        ("sweep lr=interval(1,2)", ["lr=interval(1,2)", "key=a,b,c"]),
        ("sweep quickstart study=../x", ["study must", "got ../x"]),
    ],
)
def test_bad_settings_are_one_error_and_leave_nothing_behind(inside, tmp_path, line, culprits):
    run = inside(*line.split())
    assert run.returncode == 2
    assert run.stdout == ""
    assert_refused(run.stderr, *culprits)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("axes", ["params: {'+rnak': '8,16'}", "params: {rnak: '8,16'}", "candidates: [+rnak=8]"])
def test_an_axis_of_a_named_sweep_that_is_no_setting_is_one_error(inside, tmp_path, axes):
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "mine.yaml").write_text(f"defaults: [config, _self_]\nhydra: {{sweeper: {{{axes}}}}}\n")
    assert_refused(inside("sweep", "mine").stderr, "'rnak'; did you mean rank?")


@pytest.mark.long
@pytest.mark.parametrize(
    "added",
    [
        "++rank=4",
        pytest.param("+method.adapt.use_rslora=true", marks=pytest.mark.long),
        pytest.param("++method.load.attn_implementation=eager", marks=pytest.mark.long),
        pytest.param("+method.optim.optimizer.amsgrad=true", marks=pytest.mark.long),
        pytest.param("+data.load.entities=8", marks=pytest.mark.long),
        pytest.param("+data.load.relations=3", marks=pytest.mark.long),
        pytest.param("++method.knobs.scale=1 method=galore", marks=pytest.mark.long),
        "~data.load.seed",
        "~eval",
    ],
)
def test_arguments_of_what_a_slot_names_can_be_added_and_removed(inside, added):
    planned = inside("plan", "model=tiny", "data=facts", "train.max_steps=1", "--device", "cpu", *added.split())
    assert (planned.returncode, planned.stderr) == (0, "")
    assert "can't" not in planned.stdout


def test_impossible_cells_are_named_when_they_are_left_out(inside):
    grid = ("method=lora,galore_layer", "--skip-impossible", "train.nodes=2")  # which this launcher refuses later
    said = inside("sweep", *grid).stderr
    assert "Left out: method=galore_layer can't be combined with train.max_grad_norm=1.0" in said
    assert "adhoc: 1 cell (2 points of the grid, 1 left out), 0 recorded, 1 to run." in said
    assert_refused(said, "requires hydra/launcher=slurm")


@pytest.mark.parametrize("setting", ["method=lora,dora", "lr=1e-4,2e-4"])
def test_several_values_of_run_are_not_advised_as_a_list_where_there_is_none(inside, setting):
    assert "[" not in inside("run", setting).stderr
    assert "eval.tasks=[facts,wordmath] is one list" in inside("run", "eval.tasks=facts,wordmath").stderr


@pytest.mark.parametrize("command", installed("table", "report", "claims", "lint", "status", "verify", "forgetting"))
def test_a_study_is_named_by_position_as_by_the_option(results, capsys, command):
    write(make_study()[0], results / "zzz" / "zzz.json")
    said = []
    for named in (["demo"], ["--study", "demo"], ["demo", "--study", "demo"]):
        main([command, *named, "--results-dir", str(results)])
        said.append(capsys.readouterr())
    assert "demo" in "".join(said[0])
    assert "zzz" not in "".join(said[0])
    if command == "report":  # which names the command that wrote it
        said = [len(out) > 1000 for out, _ in said]
    assert said[0] == said[1] == said[2]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize(
    ("overrides", "culprits"),
    [
        (["rank=65"], ["rank=65", "proj", "at most"]),
        (["eval.tasks=[gms8k]"], ["gms8k", "Did you mean", "gsm8k"]),
        (["data=gsm8k", "data_root=."], ["data_root=", "openai/gsm8k"]),
        (["model.path=meta-llama/Llama-3.2-1B"], ["meta-llama/Llama-3.2-1B", "model.path"]),
    ],
    ids=["rank", "task", "data_root", "hub"],
)
def test_errors_known_only_to_libraries_are_one_sentence_without_a_record(inside, tmp_path, overrides, culprits):
    run = inside("run", *TINY, *overrides)
    assert run.returncode == 2
    assert run.stdout == ""
    assert_refused(run.stderr, *culprits)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.slow
def test_a_run_ends_with_what_it_measured_and_where_that_is(inside, tmp_path):
    shown = ["train.max_steps=2", "infer.repeats=0", "train.validation_items=2", "study=one"]
    run = inside("run", *TINY, "method=lora", *shown)
    assert run.returncode == 0, run.stderr
    first, *scores, last = run.stdout.splitlines()
    assert re.fullmatch(r"validation loss \d\S+, \d+ tokens/s, peak train memory \d+ MiB", first)
    assert [score.partition(":")[0] for score in scores] == ["facts, accuracy", "facts, accuracy by length"]
    assert (tmp_path / last.removeprefix("record: ")).is_file()


@pytest.mark.long
@pytest.mark.slow
def test_the_index_of_stock_tasks_is_read_once_for_all_jobs(inside):
    for _ in range(2):
        start = time.monotonic()
        assert_refused(inside("sweep", *TINY, "eval.tasks=[gms8k]").stderr, "gms8k")
    assert time.monotonic() - start < 4  # it takes over ten


@pytest.mark.parametrize("command", ["table", "status"])
def test_without_results_there_is_nothing_to_show(tmp_path, capsys, command):
    assert main([command, "--results-dir", str(tmp_path / "absent")]) == 2
    assert_refused(capsys.readouterr().err, "absent", "--results-dir")
    assert main([command, "--results-dir", str(tmp_path)]) == 2
    assert_refused(capsys.readouterr().err, "no records", str(tmp_path))


@pytest.mark.parametrize("command", ["table", "status"])
def test_an_unknown_study_is_told_from_those_there_are(results, capsys, command):
    assert main([command, "--results-dir", str(results), "--study", "dmeo"]) == 2
    assert_refused(capsys.readouterr().err, "dmeo", "demo")


@pytest.mark.parametrize("command", ["table", "status"])
def test_bad_records_are_named_and_the_good_ones_are_shown(results, capsys, command):
    assert main([command, "--results-dir", str(results)]) == 0
    whole, err = capsys.readouterr()
    assert err == ""

    (results / "demo" / "truncated.json").write_text('{"schema": 1, "ce')
    (results / "demo" / "foreign.json").write_text(json.dumps({"name": "package"}))
    assert main([command, "--results-dir", str(results)]) == 1
    out, err = capsys.readouterr()
    assert out == whole
    first, second = err.splitlines()
    assert first.startswith("error: ")
    assert second.startswith("error: ")
    assert "foreign.json" in first
    assert "truncated.json" in second


def test_a_study_with_bad_records_alone_is_no_table(results, capsys):
    for path in (results / "demo").glob("*.json"):
        path.write_text("{")
    assert main(["table", "--results-dir", str(results)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "no records to render" in err


def test_a_table_goes_where_it_is_told(results, tmp_path, capsys):
    assert main(["table", "--results-dir", str(results)]) == 0
    shown = capsys.readouterr().out
    assert "galore" in shown
    out = tmp_path / "new" / "table.md"
    assert main(["table", "--results-dir", str(results), "--out", str(out)]) == 0
    assert out.read_text() == shown
    assert capsys.readouterr().out == ""


def test_a_table_that_can_not_be_written_is_one_error(results, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["table", "--results-dir", str(results), "--out", str(tmp_path / "file" / "table.md")]) == 2
    assert_refused(capsys.readouterr().err, str(tmp_path / "file"))
    assert main(["table", "--results-dir", str(results), "--out", str(tmp_path)]) == 2
    assert_refused(capsys.readouterr().err, str(tmp_path))


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_the_commands(capsys, arguments):
    assert main(arguments) == 0
    out = capsys.readouterr().out
    commands = ("run", "sweep", "table", "status", "logs", "diff", "score", "retry", "rm")
    assert all(f"\n  {command} " in out for command in commands)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("run --help", " base, base_fp8wo, base_int8, base_int8wo, base_nf4, "),
        ("sweep --help", " base, base_fp8wo, base_int8, base_int8wo, base_nf4, "),
        ("plan --help", " train.grad_accum=1 (int: micro-batches) "),
        ("run --cfg job", "grad_accum: 1"),
        ("run rank=4 --cfg job train.max_steps=3", "max_steps: 3"),
        ("sweep quickstart --cfg job", "study: quickstart"),
    ],
)
def test_settings_are_shown_without_running_anything(inside, tmp_path, line, said):
    run = inside(*line.split())
    assert (run.returncode, run.stderr) == (0, "")
    assert said in " ".join(run.stdout.split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("line", ["sweep", "sweep nope", "run --help"])
def test_the_sweeps_for_ones_own_model_are_offered(inside, line):
    """Those of published studies are only counted."""
    run = inside(*line.split())
    said = " ".join((run.stdout + run.stderr).split())
    assert len(published_sweeps()) > 20
    assert f"and {len(published_sweeps())} of published studies in sweeps/published/" in said
    assert {path.stem for path in SWEEPS.glob("*.yaml")} <= set(re.findall(r"\w+", said))
    assert "study_" not in said


@pytest.mark.parametrize("name", ["alpha", "study_alpha"])
def test_a_named_sweep_can_be_neither_misspelt_nor_replaced(inside, tmp_path, name):
    assert_refused(inside("sweep", f"{name}a").stderr, f"Did you mean {name}?")
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / f"{name}.yaml").write_text("defaults: [config, _self_]\nstudy: mine\n")
    assert_refused(inside("sweep", name).stderr, f"sweeps/{name}.yaml", "another name")


@pytest.mark.parametrize("defaults", ["", "defaults: [_self_]\n", "defaults: [override model: tiny]\n"])
@pytest.mark.parametrize("more", [[], ["seed=1"]])
def test_a_sweep_of_ones_own_without_the_defaults_is_told_what_it_lacks(inside, tmp_path, defaults, more):
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "mine.yaml").write_text(f"{defaults}rank: 8\n")
    assert_refused(inside("sweep", "mine", *more).stderr, "must begin its list `defaults` with config")


@pytest.mark.parametrize("line", ["run rank=0", "sweep rank=8,abc", "run --cfg job", "run --help"])
def test_a_process_says_what_its_main_function_says(harness, inside, tmp_path, line):
    process, here = harness(*line.split()), inside(*line.split())
    assert (process.returncode, process.stdout, process.stderr) == (here.returncode, here.stdout, here.stderr)
    assert list(tmp_path.iterdir()) == []


def test_help_of_the_table_comes_at_once(harness):
    start = time.monotonic()
    assert harness("table", "--help").returncode == 0
    assert time.monotonic() - start < 1
