"""The harness from Python: what its functions return, that they leave no trace, and that the pages say so."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pandas as pd
import pytest
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from matplotlib.figure import Figure
from records import make_record, make_study

import harness
from harness import plugin
from harness.config import CONF, ROOT
from harness.config_folders import named_sweeps
from harness.errors import UserError
from harness.python import plots
from harness.python.launching import undisturbed
from harness.python.overrides import key_of, overrides_of, text
from harness.record import read_study, write
from harness.report.figures import FIGURES
from harness.report.tables.best import tables
from harness.sweep.app.grid import points

sys.path.append(str(ROOT / "docs"))
import reference

REFERENCE = ROOT / "results" / "reference"
QUICKSTART = REFERENCE / "quickstart"
PYTHON = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
TINY = {"model": "tiny", "data": "facts", "max_steps": 1, "batch_size": 2, "validation_items": 2, "repeats": 0}
UNSCORED = {"eval.tasks": []}


@pytest.fixture(scope="module")
def study():
    return harness.read(QUICKSTART)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# Import


def test_import_takes_no_time_and_loads_nothing_heavy():
    code = (
        "import sys, time; start = time.perf_counter(); import harness; took = time.perf_counter() - start; "
        "heavy = {'torch', 'pandas', 'numpy', 'hydra', 'omegaconf', 'matplotlib'} & sys.modules.keys(); "
        "print(took); assert not heavy, heavy"
    )
    runs = [subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True) for _ in range(5)]
    assert [run.stderr for run in runs] == [""] * 5
    assert min(float(run.stdout) for run in runs) < 0.1


def test_the_package_says_that_it_is_typed():
    assert (ROOT / "harness" / "py.typed").is_file()
    assert '"py.typed"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_every_name_of_the_api_is_there_and_a_wrong_one_is_not():
    assert {"read", "plan", "run", "sweep", "UserError", "Record", "RecordedStudy"} == set(harness.__all__)
    assert set(harness.__all__) <= set(dir(harness))
    assert all(getattr(harness, name).__doc__ for name in harness.__all__)
    with pytest.raises(AttributeError, match="no attribute 'sweeps'"):
        _ = harness.sweeps


def test_sweep_is_a_function_and_the_room_of_that_name():
    """Whatever was imported before."""
    code = "import inspect, harness; {}; print(callable(harness.sweep), *inspect.signature(harness.sweep).parameters)"
    for before in ("import harness.sweep.store", "from harness.sweep import lease", "pass"):
        ran = subprocess.run([sys.executable, "-c", code.format(before)], cwd=ROOT, capture_output=True, text=True)
        assert ran.stdout.startswith("True name fit budget"), ran.stderr


# Reading


def test_a_study_has_what_its_table_prints(study):
    records, _ = read_study(QUICKSTART)
    first = tables(records, QUICKSTART)[0]
    assert study.answer == list(first.answer)
    assert study.table().columns.tolist() == first.columns
    assert study.table().to_numpy().tolist() == first.rows
    assert [record.cell.name for record in study.records] == [record.cell.name for record in records]
    assert len(study) == len(study.frame()) == 6
    assert study.problems == []
    assert repr(study) == "<RecordedStudy quickstart: 6 records>"


def test_best_settings_are_the_rows_of_the_table_in_numbers():
    study = harness.read(REFERENCE / "smollm2")
    best, printed = study.best(), study.table()
    assert len(best) == len(printed) > 5
    for number, row in zip(best.to_dict("records"), printed.to_dict("records"), strict=True):
        assert number["method"] == row["Method"]
        assert row["Tries"].startswith(str(number["tries"]))
        assert row["Seeds"] in (str(number["seeds"]), "–")
        loss = number["validation_loss"]
        assert row["Validation loss"].startswith("–" if pd.isna(loss) else f"{loss:#.4g}".rstrip("."))
        for ratio, column in (("memory_ratio", "Peak train memory"), ("speed_ratio", "Tokens/s")):
            assert ("×" in row[column]) == (not pd.isna(number[ratio]))
            if not pd.isna(number[ratio]):
                assert f"({number[ratio]:.2f}×" in row[column]
            if not pd.isna(number[f"{ratio}_low"]):
                assert f", {number[f'{ratio}_low']:.2f}–{number[f'{ratio}_high']:.2f})" in row[column]
        own = number[number["score"]]
        assert own == number["value"]


def test_a_study_shows_its_answer_and_table_in_a_notebook(study):
    shown = study._repr_html_()
    assert all(
        f'<th scope="row">{method}</th>' in shown or f">{method}</th>" in shown for method in study.best().method
    )
    assert "No method is recommended: one seed compares trained models, not methods." in shown
    assert "<script" not in shown


def test_records_of_others_can_not_put_markup_into_a_notebook(tmp_path):
    record = make_record("<script>alert(1)")
    write(record, tmp_path / "demo" / f"{record.cell.name}.json")
    shown = harness.read(tmp_path / "demo")._repr_html_()
    assert "<script" not in shown
    assert "&lt;script&gt;alert(1)" in shown


@pytest.mark.parametrize("study", ["<script>alert(1)</script>", "../demo", "", "a b", "demo\n"])
def test_a_record_whose_study_is_no_folders_name_is_not_read(tmp_path, study):
    record = make_record(study=study)
    write(record, tmp_path / "demo" / f"{record.cell.name}.json")
    with pytest.raises(UserError) as error:
        harness.read(tmp_path / "demo")
    assert f"is a damaged record (study is {study!r}, which must name a folder by letters" in str(error.value)


def test_a_record_shows_itself_in_one_line(study):
    class Printer:
        def text(self, shown):
            self.shown = shown

    printer = Printer()
    study.records[-1]._repr_pretty_(printer, False)
    assert re.fullmatch(
        r"<Record quickstart/\S+: ok, validation loss \S+, one-step word problems, exact match \S+>", printer.shown
    )


def test_bad_records_are_named_and_the_others_read(tmp_path):
    for record in make_study():
        write(record, tmp_path / "demo" / f"{record.cell.name}.json")
    (tmp_path / "demo" / "bad.json").write_text("{")
    found = harness.read(str(tmp_path / "demo"))
    assert len(found) == len(make_study())
    assert len(found.problems) == 1
    assert "bad.json is not complete JSON" in found.problems[0]
    assert repr(found) == f"<RecordedStudy demo: {len(found)} records, 1 problem>"
    assert "bad.json is not complete JSON" in found._repr_html_()


def test_a_folder_without_any_good_record_is_refused(folder):
    (folder / "bad").mkdir()
    (folder / "bad" / "cell.json").write_text("{")
    with pytest.raises(
        harness.UserError, match=r"^There are no good records in bad: \S*cell\.json is not complete JSON"
    ):
        harness.read("bad")


def test_several_folders_are_read_together(study):
    both = harness.read([QUICKSTART, REFERENCE / "memory"])
    assert len(both) == 18
    assert both.best()["study"].drop_duplicates().tolist() == ["quickstart", "reference/memory"]
    assert both.answer[: len(study.answer)] == [f"quickstart: {sentence}" for sentence in study.answer]
    with pytest.raises(harness.UserError, match=r"^A figure is of one study; there are quickstart, reference/memory;"):
        _ = both.plot


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("nowhere", r"^There is no folder nowhere\.$"),
        ("demo", r"^There is no folder demo\. Did you mean results/demo\?$"),
        ("results", r"^results holds no records itself, but studies: demo; read one of them\.$"),
        ("empty", r"^There are no records in empty; run a sweep first\.$"),
        ([], r"^`read` requires the folder of a study, got an empty list\.$"),
        (None, r"^`read` requires the folder of a study, or a list of them, got None\.$"),
        ([5], r"^`read` requires the folder of a study, or a list of them, got \[5\]\.$"),
        (["results/demo", "copy"], r"^results/demo and copy both have records of the study demo; unite them by "),
    ],
)
def test_a_folder_that_is_no_study_is_refused(folder, given, sentence):
    (folder / "empty").mkdir()
    for record in make_study():
        write(record, folder / "results" / "demo" / f"{record.cell.name}.json")
    if isinstance(given, list) and "copy" in given:
        shutil.copytree(folder / "results" / "demo", folder / "copy")
    with pytest.raises(harness.UserError, match=sentence):
        harness.read(given)


def test_items_are_the_answers_behind_the_scores(study):
    items = study.items()
    assert items.groupby("method").size().nunique() == 1
    means = items.groupby("method")["value"].mean()
    assert means.to_dict() == pytest.approx(study.best().set_index("method")["value"].to_dict())


@pytest.mark.long
def test_power_is_that_of_the_command(study, inside, tmp_path):
    (tmp_path / "results").symlink_to(ROOT / "results")
    said = inside("power", "--study", "reference/quickstart", "--effect", "0.05", "--seeds", "3")
    assert study.power(0.05, 3) == said.stdout
    for effect, seeds in ((5, 3), (0.05, 2.5), (0.05, 0), ("0.02", 3)):
        with pytest.raises(harness.UserError, match="effect must be"):
            study.power(effect, seeds)


def test_figures_are_those_of_the_command_and_what_is_missing_is_said(study):
    assert {*plots.drawable(), "accuracy_memory"} == {*FIGURES, "pareto", "lost_won"}
    records, _ = read_study(QUICKSTART)
    drawn = {name for name, plot in FIGURES.items() if plot(records, QUICKSTART)}
    assert {plots.FILES.get(name, name) for name in study.plot.available} == drawn | {"lost_won"}
    for name in study.plot.available:
        figure = getattr(study.plot, name)()
        assert isinstance(figure, Figure)
        assert study.plot.caption(name)
    assert study.plot.pareto()._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(harness.UserError, match="holds nothing to draw for rank_sweep"):
        study.plot.rank_sweep()
    with pytest.raises(harness.UserError, match="Did you mean pareto"):
        study.plot.caption("paretto")


# Columns


@functools.cache
def documented(name):
    """A pattern of the columns of a function, as its docstring has them."""
    parts = {
        "KIND": r"\w+",
        "FORM": "(base|unmerged|merged)",
        "TASK/METRIC/FILTER": "[^/:]+/[^/:]+/[^/:]+",
        "…": r"\w+",
    }
    patterns = []
    for column in reference.documented_columns(reference.COLUMNS[name]):
        assert column.meaning
        for written in column.names:
            pattern = re.escape(written)
            for word, of in parts.items():
                pattern = pattern.replace(re.escape(word), of)
            patterns.append(pattern)
    return patterns


@pytest.mark.parametrize("where", ["quickstart", "smollm2", "memory", "peft_llama_3_2_3b", "study_facts"])
def test_every_column_is_documented(where):
    study = harness.read(REFERENCE / where)
    for name in ("frame", "best", "pairs", "items", *(name for part in plugin.installed() for name in part.frames)):
        frame = getattr(study, name)
        columns = [
            *frame().columns,
            *(frame(long=True).columns if "long" in inspect.signature(frame).parameters else ()),
        ]
        patterns = documented(name)
        assert not [column for column in columns if not any(re.fullmatch(pattern, column) for pattern in patterns)]
        fixed = [pattern for pattern in patterns if re.fullmatch(r"\w+", pattern)]
        assert set(fixed) <= {*columns}, name


def test_the_page_has_every_column_and_figure():
    assert reference.python_page() == PYTHON, "`make publish` renews it"
    for name in reference.COLUMNS:
        table = PYTHON[PYTHON.index(f"### {name}\n") :].partition("\n### ")[0]
        assert table.count("\n| `") == len(reference.documented_columns(reference.COLUMNS[name])) > 5


# Settings by name


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("rank", "rank"),
        ("method", "method"),
        ("methods", "method"),
        ("max_steps", "train.max_steps"),
        ("batch_size", "train.batch_size"),
        ("tasks", "eval.tasks"),
        ("repeats", "infer.repeats"),
        ("train.max_length", "train.max_length"),
        ("++method.adapt.use_rslora", "++method.adapt.use_rslora"),
        ("unheard_of", "unheard_of"),
    ],
)
def test_a_name_means_one_setting(name, key):
    assert key_of(name) == key


def test_a_name_of_several_settings_is_refused():
    with pytest.raises(
        harness.UserError, match=r"^limit is ambiguous; give data\.limit or eval\.limit in `settings`\.$"
    ):
        key_of("limit")


def test_values_are_written_as_hydra_reads_them():
    import numpy as np

    values = [
        1,
        1.5,
        1e-05,
        True,
        None,
        "lora",
        "a b",
        "it's",
        "back\\slash",
        "end\\",
        "null",
        "",
        "a,b",
        "[x]",
        "${x}",
    ]
    values += [[1, 2], ["a b", "c"], {"a": 1, "b": [1, None]}, Path("/tmp/a b"), np.int64(3), np.float64(0.5)]
    expected = [value.tolist() if hasattr(value, "tolist") else value for value in values]
    expected = [os.fspath(value) if isinstance(value, Path) else value for value in expected]
    from hydra.core.override_parser.overrides_parser import OverridesParser

    for value, read in zip(values, expected, strict=True):
        (override,) = OverridesParser.create().parse_overrides([f"key={text(value)}"])
        got = override.value()
        assert (got.text if hasattr(got, "text") else got) == read


def test_a_list_is_an_axis_unless_the_setting_is_one():
    axes = {"rank": [8, 16], "seed": range(2), "lr": (1e-4,), "tasks": ["facts", "gsm8k"], "betas": [[0.9, 0.95], None]}
    overrides = overrides_of(axes, {"train.max_length": 256}, (), grid=True)
    assert overrides == [
        "rank=8,16",
        "seed=0,1",
        "lr=0.0001",
        "eval.tasks=[facts,gsm8k]",
        "train.betas=[0.9,0.95],null",
        "train.max_length=256",
    ]
    assert len(points(overrides)) == 8
    assert overrides_of({"eval": None, "tracker": None}, None, (), grid=False) == ["~eval", "tracker=null"]


@pytest.mark.parametrize(
    ("named", "settings", "sentence"),
    [
        ({"rank": [8, 16]}, None, r"^rank must be one value, got \[8,16\]; `sweep` runs a cell for each\.$"),
        ({"rank": 8}, {"rank": 16}, r"^rank is given twice; give it once\.$"),
        ({"max_steps": 8}, {"train.max_steps": 16}, r"^train\.max_steps is given twice"),
        ({"rank": object()}, None, r"^A setting must be a number, .*, got object\.$"),
        ({"quite": True}, None, r"^There is no setting 'quite'; did you mean quiet\?$"),
    ],
)
def test_bad_settings_are_refused(named, settings, sentence):
    with pytest.raises(harness.UserError, match=sentence):
        overrides_of(named, settings, ("quiet",), grid=False)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: harness.run(learning_rate=1e-4), "^There is no setting 'learning_rate'; did you mean lr"),
        (lambda: harness.run(method="lroa"), r"^method=lroa is unknown\. Did you mean lora\?"),
        (lambda: harness.run(model="tiny", rank=0), r"^rank must be positive, got 0\.$"),
        (lambda: harness.run(budget="24GiB"), r"^budget must be a sum of money, such as 5USD, got 24GiB\.$"),
        (lambda: harness.sweep("quickstrt"), r"^sweep=quickstrt is unknown\. Did you mean quickstart\?"),
        (lambda: harness.sweep("quickstart", budget="24GiB"), "^budget in bytes requires fit=True"),
        (lambda: harness.sweep("quickstart", device="cpu"), "^device requires fit=True"),
        (lambda: harness.sweep("quickstart", order="best"), "^order must be random or grid, got best"),
        (lambda: harness.sweep("quickstart", drift=0), "^drift must be positive, got 0"),
        (lambda: harness.sweep("quickstart", confirm=-1), "^confirm must be positive, got -1"),
        (lambda: harness.sweep(study="nothing"), "^`sweep` requires a grid"),
        (lambda: harness.plan(price=0), r"^price must be positive, got 0\.$"),
        (lambda: harness.plan(throughput=-1), r"^throughput must be positive, got -1\.$"),
        (lambda: harness.plan(budget="much"), "^'much' is no size in bytes"),
        (lambda: harness.plan(config_dir="nowhere"), "nowhere"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(folder, call, sentence):
    before = state()
    with pytest.raises(harness.UserError, match=sentence) as refused:
        call()
    assert "\n" not in str(refused.value)
    assert state() == before
    assert list(folder.iterdir()) == []


# What a call leaves


def state():
    """What a program may rely on."""
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    hydra = (
        GlobalHydra.instance().hydra,
        HydraConfig.instance().cfg,
        id(Plugins.instance()),
        id(ConfigStore.instance()),
    )
    return (
        *(os.getcwd(), dict(os.environ), [*sys.argv], handlers, sys.excepthook, sys.stdout, sys.stderr, hydra),
        sorted(ConfigStore.instance().repo),
    )


@pytest.mark.slow
def test_a_cell_is_run_and_its_record_returned(folder, capsys):
    before = state()
    record = harness.run(**TINY, method="lora", rank=4, settings=UNSCORED)
    assert (record.status, record.cell.rank, record.train.steps) == ("ok", 4, 1)
    said = capsys.readouterr()
    assert said.out == ""
    assert f"[1/1] {record.cell.name} ok" in said.err
    assert f"record: results/adhoc/{record.cell.name}.json" in said.err
    again = harness.run(**TINY, method="lora", rank=4, settings=UNSCORED, quiet=True)
    assert again == record
    assert capsys.readouterr() == ("", "")
    assert state() == before


@pytest.mark.slow
def test_a_cell_that_fails_has_a_record(folder):
    settings = UNSCORED | {"timeout": 0.001}
    record = harness.run(**TINY, method="lora", rank=4, settings=settings, quiet=True)
    assert record.status == "failed"
    assert record.failure.reason


@pytest.mark.long
@pytest.mark.slow
def test_a_sweep_resumes_and_is_what_the_command_line_would_run(folder, capsys):
    axes = {"method": ["lora", "galore"], "rank": [4, 8], "study": "demo", "settings": UNSCORED}
    before = state()
    first = harness.sweep(**TINY, **{**axes, "rank": [4]})
    assert [record.status for record in first.records] == ["ok", "ok"]
    assert "demo: 2 cells, 0 recorded, 2 to run." in capsys.readouterr().err
    study = harness.sweep(**TINY, **axes)
    assert "demo: 4 cells, 2 recorded, 2 to run." in capsys.readouterr().err
    assert sorted(study.frame()["rank"]) == [4, 4, 8, 8]
    assert len(harness.sweep(**TINY, **axes, quiet=True)) == 4
    assert capsys.readouterr() == ("", "")
    assert state() == before
    assert study.folders == (folder / "results" / "demo",)
    noted = (folder / "results" / "demo" / "commands.txt").read_text()
    assert "sweep model=tiny data=facts train.max_steps=1 train.batch_size=2" in noted
    assert "method=lora,galore rank=4,8 study=demo eval.tasks=[]" in noted.replace("'", "")


@pytest.mark.long
@pytest.mark.slow
def test_it_works_in_a_notebook_in_a_thread_and_within_a_hydra_app(folder):
    """A notebook has a running loop; a program may have its own Hydra."""
    call = functools.partial(harness.run, **TINY, method="lora", rank=4, settings=UNSCORED, quiet=True)

    async def within_a_loop():
        return call(), await asyncio.to_thread(call)

    with initialize_config_dir(str(CONF), version_base="1.3"):
        before = state()
        here, there = asyncio.run(within_a_loop())
        assert state()[-1:] == before[-1:]
        assert GlobalHydra.instance().hydra is before[7][0]
    assert here == there


@pytest.mark.long
@pytest.mark.slow
def test_a_script_without_a_main_guard_and_a_session_without_a_file(folder):
    code = (
        f"import harness; print(harness.run(**{TINY}, method='lora', rank=4, settings={UNSCORED}, quiet=True).status)"
    )
    (folder / "script.py").write_text(code)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for command in (["script.py"], ["-c", code]):
        ran = subprocess.run(
            [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
        )
        assert (ran.stdout, ran.stderr) == ("ok\n", "")


def test_an_interrupt_is_said_and_raised(capsys):
    before = state()
    with pytest.raises(KeyboardInterrupt), undisturbed():
        raise KeyboardInterrupt
    assert capsys.readouterr().err == "Interrupted. Cells that finished are saved.\n"
    assert state() == before


def test_what_a_command_changes_is_restored(folder, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    before = state()
    with undisturbed():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        sys.argv = ["other"]
        os.environ.pop("HYDRA_FULL_ERROR")
        ConfigStore.instance().store(name="theirs", node={})
        os.chdir("/")
        print("seen on standard error")
    assert state() == before


def test_threads_take_turns():
    order, inside = [], threading.Event()

    def other():
        inside.wait()
        with undisturbed():
            order.append("other")

    thread = threading.Thread(target=other)
    thread.start()
    with undisturbed():
        inside.set()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "other"]


# Plan


@pytest.mark.long
@pytest.mark.slow
def test_a_plan_is_that_of_the_command(folder, inside):
    plan = harness.plan(
        "qwen3_1_7b", methods=["lora", "full"], batch_size=[8], budget="24GiB", quiet=True, max_steps=10
    )
    printed = inside(
        "plan", "model=qwen3_1_7b", "method=lora,full", "train.batch_size=8", "train.max_steps=10", "--budget", "24GiB"
    )
    assert plan["cell"].tolist() == re.findall(r"^(\S+-s0-\S+)  ", printed.stdout, re.MULTILINE)
    assert plan["fits"].tolist() == [True, False]
    assert plan["limited_by"].fillna("").tolist() == ["", "optimizer"]
    assert plan["method"].tolist() == ["lora", "full"]
    for peak in plan["peak"]:
        assert f"{peak / 2**30:.2f} GiB" in printed.stdout
    assert (
        plan[[f"peak_{kind}" for kind in ("weights", "adapters", "gradients", "optimizer", "activations")]].sum(axis=1)
        == plan["peak"]
    ).all()
    assert (plan["budget"] == 24 * 2**30).all()
    patterns = documented("plan")
    assert all(any(re.fullmatch(pattern, column) for pattern in patterns) for column in plan)
    assert {pattern for pattern in patterns if re.fullmatch(r"\w+", pattern)} <= {*plan.columns}


@pytest.mark.long
@pytest.mark.slow
def test_a_plan_has_a_row_for_what_can_not_run(folder, capsys):
    plan = harness.plan(model="tiny", rank=[0, 8], settings={"eval.tasks": []})
    assert plan["fits"].tolist() == [False, True]
    assert plan["limited_by"].fillna("").tolist() == ["settings", ""]
    assert plan["reason"].tolist()[0] == "rank must be positive, got 0."
    assert capsys.readouterr().out == ""


# Pages


def blocks(page, language="python"):
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


@pytest.mark.long
@pytest.mark.slow
def test_the_page_of_python_runs_as_it_stands(folder, capfd):
    (folder / "results").mkdir()
    (folder / "results" / "reference").symlink_to(REFERENCE)
    names: dict[str, object] = {}
    assert len(blocks(PYTHON)) >= 7
    for block in blocks(PYTHON):
        exec(compile(block, "docs/python.md", "exec"), names)
    said = capfd.readouterr()
    assert "<RecordedStudy quickstart: 6 records>" in said.out
    assert "There is no setting 'learning_rate'; did you mean lr?" in said.out
    assert "Nothing to run: all cells are recorded." in said.err
    assert (folder / "pareto.pdf").is_file()


def test_what_is_too_long_to_run_is_a_call_that_can_be():
    """The named sweep exists, and its axes are settings."""
    for block in [*blocks(PYTHON, "py"), *blocks(README)]:
        for name, key, values in re.findall(r'harness\.sweep\("(\w+)", (\w+)=(\[.*?\])\)', block):
            assert name in named_sweeps()
            assert overrides_of({key: eval(values)}, None, (), grid=True) == ["seed=0,1,2"]
    assert "harness.sweep" in README


def test_the_example_of_the_readme_reads(folder):
    (block,) = blocks(README)
    (folder / "results").mkdir()
    (folder / "results" / "quickstart").symlink_to(QUICKSTART)
    names: dict[str, object] = {}
    exec(block, names)
    assert len(eval("study.best()", names)) == 6


def test_notebooks_use_the_api_alone():
    import json

    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        source = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        assert "import harness\n" in source
        assert not re.findall(r"(?:from|import) harness\.\S+", source), path.name
