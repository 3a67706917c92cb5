"""Others' measurements as records: peft's published results, and files that lm-eval itself wrote in these tests."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import re
import shutil

import lm_eval
import pandas as pd
import pytest
from job_helpers import DATA, prepared, tiny
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager
from peft_result import RUN
from records import reseal

from harness.__main__ import main
from harness.config import ROOT
from harness.plugins.exchange.importers import collect, store
from harness.record import item_hashes, read_study
from harness.report.figures import FIGURES
from harness.report.frame import frame
from harness.report.lint import findings
from harness.report.tables.best import tables
from harness.report.tables.table import comparison

PUBLISHED = DATA / "peft_results"
RERUNS = DATA / "peft_reruns"
needs_reruns = pytest.mark.skipif(not RERUNS.is_dir(), reason=f"{RERUNS} (peft's results on four days) is not there")
needs_published = pytest.mark.skipif(not PUBLISHED.is_dir(), reason=f"{PUBLISHED} (peft's results) is not there")


def run(*arguments):
    return main(["import", *map(str, arguments)])


# A run as peft's suite writes it, shortened: what follows from each number is worked out by hand below


@pytest.fixture
def published(tmp_path):
    """published(*path_and_value …) writes RUN, changed, to a folder of results; it returns the folder."""

    def write(name="lora", changes=()):
        value = copy.deepcopy(RUN)
        for path, new in dict(changes).items():
            *parents, last = path.split(".")
            part = value
            for key in parents:
                part = part[int(key) if isinstance(part, list) else key]
            part[last] = new
        folder = tmp_path / "published"
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(value))
        return folder

    return write


def only(project, folder):
    (found,) = collect(project, folder, "study")
    return found


# peft


def test_what_peft_measured_is_told_and_the_rest_is_null(published):
    record = only("peft", published()).record
    row = frame([record]).iloc[0].to_dict()
    cell = record.cell
    assert (cell.method, cell.model, cell.data) == ("lora", "Llama-3.2-3B", "metamath")
    assert (cell.rank, cell.alpha, cell.lr, cell.seed, cell.knobs) == (32, 64.0, 1e-4, 0, {"experiment": "rank32"})
    assert cell.name.startswith("lora-r32-a64-lr1e-4-s0-")
    assert (row["trainable"], row["total"], row["adapter_bytes"]) == (9_000, 3_000_000, 36_000)
    assert (row["train_reserved_p99"], row["job_reserved_peak"]) == (20_000, 22_000)
    assert (row["steps"], row["raw_tokens"]) == (500, 300_000)
    assert row["tokens_per_second_amortised"] == pytest.approx(2000)  # (100 × 1000 + 50 × 4000) / 150
    assert row["train_seconds"] == 150.0
    assert row["gsm8k/accuracy/none"] == 631 / 1319
    assert row["gsm8k/accuracy/none:stderr"] == pytest.approx(math.sqrt(631 / 1319 * 688 / 1319 / 1318))
    assert row["gsm8k/accuracy/none:n"] == 1319
    assert row["finewiki/loss_increase/none"] == 0.05
    unknown = ["train_allocated_peak", "train_reserved_peak", "train_process_peak", "peak_weights", "model_bytes"]
    unknown += ["tokens_per_second_steady", "step_seconds_median", "validation_loss", "utilisation", "load_seconds"]
    unknown += ["finewiki/loss_increase/none:stderr"]
    assert all(pd.isna(row[name]) for name in unknown)
    assert record.train.tokens.padded is None
    assert record.train.batches is None


def test_the_source_is_kept(published):
    folder = published()
    record = only("peft", folder).record
    assert (record.source.project, record.source.file) == ("peft", "lora.json")
    assert len(record.source.sha256) == 64
    assert record.environment["versions"]["peft"] == "0.19.2 (d787f51bbaa1)"
    assert record.environment["device"] == {"name": "NVIDIA L40S"}
    assert record.fingerprints == {"model": "hub:13af", "data": "hub:gsm8k@7403,metamath@aa4f"}
    assert record.cell.settings.method.adapt["target_modules"] == ["q_proj", "v_proj"]  # a set there


@pytest.mark.parametrize(
    ("adapter", "method"),
    [
        (None, "full"),
        ({"peft_type": "LORA", "r": 8, "use_dora": True, "lora_alpha": 16}, "dora"),
        ({"peft_type": "PREFIX_TUNING"}, "prefix_tuning"),
    ],
)
def test_methods_have_the_names_of_the_harness(published, adapter, method):
    record = only("peft", published(changes={"run_info.peft_config": adapter})).record
    assert record.cell.method == method
    assert record.cell.rank == (adapter or {}).get("r")
    if adapter is None:
        assert (record.disk.adapter, record.disk.model) == (None, 36_000)


def test_a_size_that_peft_could_not_measure_is_null(published):
    assert only("peft", published(changes={"train_info.file_size": 99_999_999})).record.disk is None


@pytest.mark.parametrize(
    ("error", "status"),
    [("CUDA out of memory. Tried to allocate 2 GiB\nmore", "oom"), ("manually canceled", "failed"), ("", "failed")],
)
def test_a_run_that_broke_off_is_a_row_with_its_reason(published, error, status):
    changes = {"run_info.error_msg": error, "train_info.status": "canceled", "train_info.metrics": []}
    record = only("peft", published(changes=changes)).record
    assert (record.status, record.failure.reason) == (status, error.splitlines()[0] if error else "canceled")
    assert record.train is None
    assert record.scores == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"train_info": {}}, "it has no 'metrics'"),
        ({"train_info.metrics": None}, "it has no 'step'"),
        ({"run_info.peft_config": {"peft_type": "LORA", "r": "32"}}, "rank should be of type int"),
        ({"run_info.total_time": float("nan")}, "JSON"),
        ({"run_info": []}, "list"),
        ({"run_info.total_time": -5.0}, "seconds is -5.0, which is not between 0 and"),
        ({"run_info.created_at": "2026-01-31"}, "started is '2026-01-31', which is no date and time with a time zone"),
    ],
)
def test_a_file_that_is_no_result_is_named_and_nothing_is_written(published, tmp_path, capsys, changes, reason):
    published()
    folder = published("zz", changes)
    assert run("peft", folder, "--results-dir", tmp_path / "results") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "zz.json is no result file of peft" in err
    assert reason in err
    assert not (tmp_path / "results").exists()


def test_another_test_set_is_not_taken_for_gsm8k(published, tmp_path, capsys):
    metrics = copy.deepcopy(RUN["train_info"]["metrics"])
    metrics[-1]["test accuracy"] = 0.5
    assert run("peft", published(changes={"train_info.metrics": metrics}), "--results-dir", tmp_path) == 2
    assert "its accuracy on gsm8k is no share of 1,319 items" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b'{"run_info": {"cr', b"\xff\xfe", b"[1, 2]", b"3", b"{}", b"[" * 100_000])
@pytest.mark.parametrize("project", ["peft", "lm-eval"])
def test_torn_and_foreign_files_are_one_sentence(tmp_path, capsys, project, content):
    path = tmp_path / "results_1.json"
    path.write_bytes(content)
    assert run(project, path, "--results-dir", tmp_path / "results") == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {path}")
    assert err.count("\n") == 1
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["peft", "absent"], "There is no file or folder absent."),
        (["peft", "."], "There is no *.json in ."),
        (["lm-eval", "."], "There is no results_*.json in ."),
        (["wandb", "."], "invalid choice: 'wandb'"),
        (["peft", ".", "--study", "../x"], "--study must name a folder"),
        (["peft"], "required: PATH"),
    ],
)
def test_bad_arguments_are_one_sentence(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_importing_twice_changes_nothing(published, tmp_path, capsys):
    published()
    changes = {"run_info.peft_config.use_dora": True, "run_info.experiment_name": "lora/llama-3.2-3B-dora"}
    folder = published("dora", changes)
    results = tmp_path / "results"
    assert run("peft", folder, "--results-dir", results) == 0
    assert "2 new, 0 changed, 0 unchanged" in capsys.readouterr().out
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (results / "peft").iterdir()}
    assert run("peft", folder, "--results-dir", results) == 0
    assert "0 new, 0 changed, 2 unchanged" in capsys.readouterr().out
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (results / "peft").iterdir()} == before


LATER = {"run_info.created_at": "2026-08-01T00:00:00+00:00", "train_info.metrics.2.test accuracy": 600 / 1319}


def test_runs_of_one_experiment_are_one_record_whatever_the_order(published, tmp_path, capsys):
    published("old")
    # Between the two peft's config got a setting, and the suite one
    settings = {"run_info.peft_config.use_qalora": False, "run_info.train_config.use_gc": False}
    folder = published("new", LATER | settings | {"run_info.total_time": 7.0})
    for place, order in (("a", ["old", "new"]), ("b", ["new", "old"]), ("c", ["new", "old", "new", "old"])):
        for name in order:
            assert run("peft", folder / f"{name}.json", "--results-dir", tmp_path, "--study", place) == 0
    capsys.readouterr()
    assert run("peft", folder, "--results-dir", tmp_path, "--study", "d") == 0
    assert "1 new, 0 changed, 0 unchanged records, with 1 earlier run of the same" in capsys.readouterr().out
    found = []
    for place in "abcd":
        (record,), problems = read_study(tmp_path / place)
        assert (record.seconds, record.source.file, problems) == (7.0, "new.json", [])
        (repeat,) = record.repeats
        assert (repeat.number, repeat.started, repeat.seconds) == (2, "2026-07-15T05:41:18+00:00", 1000.0)
        assert [score.value for score in (record.scores[0], repeat.scores[0])] == [600 / 1319, 631 / 1319]
        found.append(dataclasses.replace(record, study=""))
    assert found[0] == found[1] == found[2] == found[3]


def test_the_same_run_in_two_folders_is_no_repeat(published, tmp_path):
    published("one")
    folder = published("another")
    assert run("peft", folder, "--results-dir", tmp_path) == 0
    ((record,), _) = read_study(tmp_path / "peft")
    assert record.repeats == []


def test_a_run_with_other_settings_is_no_repeat(published, tmp_path, capsys):
    published("old", {"run_info.train_config.max_seq_length": 512})
    folder = published("new", LATER)
    assert run("peft", folder, "--results-dir", tmp_path) == 0
    assert f"{folder / 'old.json'} was skipped: another run of the same experiment" in capsys.readouterr().out
    ((record,), _) = read_study(tmp_path / "peft")
    assert (record.source.file, record.repeats) == ("new.json", [])


def test_a_cell_of_the_harness_is_not_replaced(published, tmp_path, capsys):
    folder = published()
    assert run("peft", folder, "--results-dir", tmp_path) == 0
    (path,) = (tmp_path / "peft").iterdir()
    value = json.loads(path.read_text())
    value["source"] = None
    reseal(path, value)
    before = path.read_bytes()
    assert run("peft", folder, "--results-dir", tmp_path) == 2
    assert "is a cell that the harness ran; import into another --study" in capsys.readouterr().err
    assert path.read_bytes() == before


# Experiments that were run again


@pytest.fixture
def repeated(published, tmp_path):
    """repeated(experiments, before, after, …) is the table of experiments with these numbers of right items in runs."""

    def table(**experiments):
        for name, runs in experiments.items():
            for day, right in enumerate(runs, start=1):
                changes = {
                    "run_info.experiment_name": f"lora/llama-3.2-3B-{name}",
                    "run_info.created_at": f"2026-07-0{day}T00:00:00+00:00",
                    "train_info.metrics.2.test accuracy": right / 1319,
                    "meta_info.package_info.torch-version": f"2.{day}.0+cu130",
                }
                folder = published(f"{name}-{day}", changes)
        store(collect("peft", folder, "peft"), tmp_path / "peft")
        records, problems = read_study(tmp_path / "peft")
        assert problems == []
        first, second = tables(records, tmp_path / "peft")
        assert second.title == "peft"
        return first

    return table


def test_experiments_are_sorted_and_told_apart_where_they_can_be(repeated):
    table = repeated(best=[700], near=[690], worst=[300])
    assert table.title == "peft: all experiments by score"
    lines = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [line["Setting"].partition("experiment=")[2].split()[0] for line in lines] == ["best", "near", "worst"]
    assert [(line["Better than"], line["Worse than"]) for line in lines] == [("3", "–"), ("3", "–"), ("–", "1, 2")]
    # Jeffreys' interval of 700 of 1319
    assert [line["#"] for line in lines] == ["1", "2", "3"]
    assert lines[0]["gsm8k, accuracy (%)"] == "53.1 (50.4–55.8)"
    assert (lines[0]["Reserved in 99% of steps"], lines[0]["Tokens/s amortised"]) == ("20 KiB", "2,000")
    assert table.caption[0].startswith("2 of 3 pairs of experiments differ significantly")
    assert "No experiment ran twice, so they exclude the variance between runs." in table.caption[1]


def test_neighbours_that_an_experiment_differs_from_are_a_range(repeated):
    table = repeated(best=[900], a=[300], b=[299], c=[298], worst=[10])
    better = [row[table.columns.index("Better than")] for row in table.rows]
    worse = [row[table.columns.index("Worse than")] for row in table.rows]
    assert better == ["2–5", "5", "5", "5", "–"]
    assert worse == ["–", "1", "1", "1", "1–4"]


def test_runs_that_differ_widen_intervals_and_shifts_of_libraries_are_named(repeated, tmp_path):
    # Each falls by 40 items with the newer libraries, give or take 30
    table = repeated(a=[700, 690], b=[600, 530], c=[500, 490], d=[400, 330], e=[700])
    (line,) = [row for row in table.rows if "experiment=e" in row[2]]
    interval = line[table.columns.index("gsm8k, accuracy (%)")]
    low, high = (float(end) for end in interval.partition("(")[2].rstrip(")").split("–"))
    assert high - low > 1.2 * (55.8 - 50.4)
    assert "4 experiments ran more than once" in table.caption[1]
    (shift,) = [
        text for text in table.caption if text.startswith("From torch 2.1.0, transformers 5.13.1 to torch 2.2.0")
    ]
    records, _ = read_study(tmp_path / "peft")
    (found,) = [finding for finding in findings(records) if finding.rule == "versions of runs"]
    assert found.sentence.endswith("which move scores: torch 2.1.0, transformers 5.13.1 in 4 runs.")
    assert len(found.cells) == 4
    assert "the same 4 experiments changed by −3.0 (−7.2 to +1.1) points" in shift
    earlier = [row[table.columns.index("Earlier runs")] for row in table.rows]
    assert sorted(earlier) == ["30.3", "37.9", "45.5", "53.1", "–"]


def test_none_and_all_right_have_intervals_that_are_not_empty(repeated):
    table = repeated(none=[0, 0], few=[3, 3], all=[1319, 1319])
    scores = [row[table.columns.index("gsm8k, accuracy (%)")] for row in table.rows]
    assert scores == ["100.0 (99.8–100.0)", "0.2 (0.1–0.6)", "0.0 (0.0–0.2)"]


def test_the_best_on_validation_items_is_marked(repeated, published, tmp_path):
    published("x-1", {"run_info.experiment_name": "lora/x", "train_info.metrics.1.valid accuracy": 0.5})
    table = repeated(y=[700])
    settings = [row[table.columns.index("Setting")] for row in table.rows]
    assert [setting.endswith(" *") for setting in settings] == [False, True]
    assert table.caption[-1].startswith("* The best of its method by the source's accuracy on its validation items")


def test_the_figure_of_experiments_shows_the_spread_of_runs(repeated, published, tmp_path):
    p99 = "train_info.accelerator_memory_reserved_99th"
    published("near-1", {p99: 20 * 2**30, "run_info.experiment_name": "lora/llama-3.2-3B-near"})
    published("worst-1", {p99: 18 * 2**30, "run_info.experiment_name": "lora/llama-3.2-3B-worst"})
    repeated(best=[700, 710])
    records, _ = read_study(tmp_path / "peft")
    best = next(record for record in records if record.cell.knobs["experiment"] == "best")
    best.phases["train"].memory.reserved_p99 = 24 * 2**30
    best.repeats[0].memory.reserved_p99 = 21 * 2**30
    (panel,) = FIGURES["experiments"](records, None).figure.axes
    bars = {round(bar.lines[0].get_xdata()[0]): bar for bar in panel.containers}
    assert set(bars) == {18, 20, 24}
    across = bars[24].lines[2][0].get_segments()[0]
    assert [round(x, 6) for x, _ in across] == [21, 24]
    assert FIGURES["accuracy_memory"](records, None) is None


@needs_reruns
def test_what_peft_published_on_four_days_shows_how_far_runs_differ(tmp_path):
    store(collect("peft", RERUNS, "peft"), tmp_path)
    records, problems = read_study(tmp_path)
    assert problems == []
    assert sum(len(record.repeats) == 2 for record in records) == 24
    table, _ = tables(records, tmp_path)
    assert len(table.rows) == len(records) > 60
    (newer,) = [text for text in table.caption if text.startswith("From torch 2.9.0")]
    assert "changed by −1.6 (−2.0 to −1.3) points" in newer
    pairs = re.match(r"([\d,]+) of ([\d,]+) pairs", table.caption[0])
    differ, of = (int(number.replace(",", "")) for number in pairs.groups())
    assert 0.4 < differ / of < 0.6


@needs_published
def test_all_that_peft_published_becomes_a_table(tmp_path):
    found = collect("peft", PUBLISHED, "peft")
    summary = store(found, tmp_path)
    records, problems = read_study(tmp_path)
    assert problems == []
    assert len(records) == len(summary.new) == len(list(PUBLISHED.glob("*.json"))) > 30
    table = comparison(records)
    assert len(table.rows) == len(records)  # no two are taken for seeds of one
    assert {"Reserved in 99% of steps", "Reserved in the whole job", "Tokens/s amortised"} <= set(table.columns)
    assert not {"Peak train memory", "Tokens/s", "Validation loss"} & set(table.columns)
    lora = next(dict(zip(table.columns, row, strict=True)) for row in table.rows if "=rank32" in row[1])
    assert lora["gsm8k, accuracy (%)"] == "47.8 ± 1.4"
    caption = "\n".join(table.caption)
    assert "Reserved in the whole job includes the evaluation, so it is not the memory of training." in caption
    assert "its peak of the whole job includes generation for the evaluations" in caption
    assert caption.count("Imported from the results that huggingface/peft publishes") == 1


@needs_published
def test_the_front_of_published_results():
    records = [imported.record for imported in collect("peft", PUBLISHED, "peft")]
    (panel,) = FIGURES["experiments"](records, None).figure.axes
    rows = [(r.phases["train"].memory.reserved_p99, r.scores[0].value) for r in records if r.status == "ok"]
    front = [(x, y) for x, y in rows if not any(a <= x and b >= y and (a, b) != (x, y) for a, b in rows)]
    (line,) = (line for line in panel.lines if line.get_drawstyle() == "steps-post")
    drawn = zip(line.get_xdata(), line.get_ydata(), strict=True)
    assert list(drawn) == [pytest.approx((x / 2**30, 100 * y)) for x, y in sorted(front)]
    assert sum(hasattr(bar, "lines") for bar in panel.containers) == len(rows)


# lm-eval


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A folder that lm-eval wrote of the tiny model: two tasks, one of them in a group with its twin, and all items."""
    folder = tmp_path_factory.mktemp("lm_eval")
    bench = prepared(tiny("method=base"))
    bench.net.save_pretrained(folder / "tiny-model")
    bench.tokenizer.save_pretrained(folder / "tiny-model")
    tasks = folder / "tasks"
    tasks.mkdir()
    ours = ROOT / "harness" / "job" / "evaluate" / "tasks"
    for name in ("one", "two"):
        (tasks / f"facts_{name}.yaml").write_text(f"include: {ours / 'facts.yaml'}\ntask: facts_{name}\n")
    (tasks / "world.yaml").write_text(
        "group: world\ntask: [facts_one, facts_two]\n"
        "aggregate_metric_list: [{metric: acc, weight_by_size: true}]\nmetadata: {version: 3}\n"
    )
    manager = TaskManager(include_path=[str(ours), str(tasks)], include_defaults=False)
    tracker = EvaluationTracker(output_path=str(folder / "out"))
    result = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(folder / "tiny-model"), "dtype": "float32"},
        tasks=["world", "wordmath"],
        samples={"facts_one": list(range(10)), "facts_two": list(range(10, 30)), "wordmath": [0, 2, 4]},
        batch_size=10,
        device="cpu",
        task_manager=manager,
        evaluation_tracker=tracker,
        log_samples=True,
    )
    samples = result.pop("samples")
    tracker.save_results_aggregated(results=result, samples=samples)
    for name, items in samples.items():
        tracker.save_results_samples(task_name=name, samples=items)
    return folder / "out", result


def copied(evaluated, folder):
    """The files of `evaluated`, copied; the folder and the one with the results."""
    shutil.copytree(evaluated[0], folder)
    (path,) = folder.rglob("results_*.json")
    return folder, path


@pytest.mark.long
def test_scores_are_those_that_lm_eval_wrote(evaluated):
    record = only("lm-eval", evaluated[0]).record
    found = {(s.task, s.metric, s.filter): s for s in record.scores}
    assert set(found) == {
        ("world", "acc", "none"),
        ("wordmath", "exact_match", "strict-match"),
        ("wordmath", "exact_match", "flexible-extract"),
    }
    world, told = found["world", "acc", "none"], evaluated[1]["results"]["world"]
    assert (world.value, world.stderr) == (told["acc,none"], told["acc_stderr,none"])
    assert 0 < world.value < 1
    assert (world.n, world.num_fewshot, world.version, world.higher_is_better) == (30, 0, "3", True)
    assert found["wordmath", "exact_match", "strict-match"].n == 3
    assert (record.cell.method, record.cell.model, record.cell.seed) == ("lm-eval", "tiny-model", None)
    assert (record.train, record.parameters, record.phases) == (None, None, {})
    assert record.environment["precision"] == "fp32"
    assert record.environment["versions"]["lm_eval"] == lm_eval.__version__


def test_a_group_that_does_not_weigh_by_size_is_known_by_its_value(evaluated, tmp_path):
    folder, path = copied(evaluated, tmp_path / "lm_eval")
    written = json.loads(path.read_text())
    results = written["results"]
    results["facts_one"]["acc,none"], results["facts_two"]["acc,none"] = 0.5, 0.25  # of 10 and of 20 items
    for value, by_subject in ((0.375, True), (1 / 3, False)):
        results["world"]["acc,none"] = value
        path.write_text(json.dumps(written))
        assert run("lm-eval", folder, "--results-dir", tmp_path / "results", "--study", f"of-{by_subject}") == 0
        records, _ = read_study(tmp_path / "results" / f"of-{by_subject}")
        assert [s.by_subject for record in records for s in record.scores if s.task == "world"] == [by_subject]


def test_items_lie_beside_the_record_and_mean_its_scores(evaluated, tmp_path):
    store(collect("lm-eval", evaluated[0], "lm-eval"), tmp_path)
    (record,), _ = read_study(tmp_path)
    items = pd.read_parquet(tmp_path / f"{record.cell.name}.items.parquet")
    assert list(items) == ["task", "subject", "item", "hash", "filter", "metric", "value", "prediction", "target"]
    assert record.items == item_hashes({"facts_one": range(10), "facts_two": range(10, 30), "wordmath": [0, 2, 4]})
    for score in record.scores:
        values = items.query("task == @score.task and metric == @score.metric and filter == @score.filter")["value"]
        assert len(values) == score.n
        assert values.mean() == pytest.approx(score.value)


def test_without_samples_there_are_scores_alone(evaluated, tmp_path):
    folder, _ = copied(evaluated, tmp_path / "out")
    store(collect("lm-eval", folder, "lm-eval"), tmp_path / "study")
    for path in folder.rglob("samples_*"):
        path.unlink()
    found = only("lm-eval", folder)
    assert (found.items, found.record.items) == (None, {})
    summary = store([found], tmp_path / "study")
    assert summary.changed == [found.record.cell.name]
    assert [path.suffix for path in (tmp_path / "study").iterdir()] == [".json"]


def test_samples_hold_whatever_stands_in_a_document(evaluated, tmp_path):
    """lm-eval writes them without escapes, so that Python's `splitlines` would cut a line in two."""
    folder, _ = copied(evaluated, tmp_path / "out")
    samples = next(folder.rglob("samples_wordmath_*"))
    lines = [json.loads(line) | {"target": "7\u2028seven\x85"} for line in samples.read_text().splitlines()]
    samples.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    found = only("lm-eval", folder)
    assert set(found.items.query("subject == 'wordmath'")["target"]) == {"7\u2028seven\x85"}


def test_torn_samples_are_named(evaluated, tmp_path, capsys):
    folder, _ = copied(evaluated, tmp_path / "out")
    samples = next(folder.rglob("samples_wordmath_*"))
    samples.write_text(samples.read_text()[:-40])
    assert run("lm-eval", folder, "--results-dir", tmp_path / "results") == 2
    err = capsys.readouterr().err
    assert samples.name in err
    assert err.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_a_group_that_only_bundles_is_its_members(evaluated, tmp_path):
    folder, path = copied(evaluated, tmp_path / "out")
    value = json.loads(path.read_text())
    value["results"]["world"] = {"alias": "world", "acc,none": "N/A"}
    value["config"]["model_args"] = "pretrained=org/model,peft=runs/lora-16/"
    path.write_text(json.dumps(value))
    record = only("lm-eval", folder).record
    assert {score.task: score.n for score in record.scores} == {"facts_one": 10, "facts_two": 20, "wordmath": 3}
    assert (record.cell.model, record.cell.knobs) == ("model", {"peft": "lora-16"})


def small_result(folder, **fields):
    """A file as lm-eval writes it, of one task with a score."""
    value = {
        "config": {"model_args": "pretrained=org/model"},
        "results": {"t0": {"acc,none": 0.5}},
        "n-samples": {"t0": {"effective": 10}},
        "n-shot": {"t0": 0},
        "versions": {"t0": 1},
        "date": 1_700_000_000.0,
        "total_evaluation_time_seconds": "5",
    }
    folder.mkdir(exist_ok=True)
    (folder / "results_2026.json").write_text(json.dumps(value | fields))
    return folder


def test_groups_that_stand_in_many_others_are_looked_at_once(tmp_path):
    children = {f"g{i}": [f"g{i + 1}", f"g{i + 1}", "t0"] for i in range(60)} | {"g60": ["t0", "g0"], "top": ["g0"]}
    record = only("lm-eval", small_result(tmp_path, group_subtasks=children)).record
    assert [(score.task, score.n) for score in record.scores] == [("t0", 10)]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"n-samples": {"t0": {"effective": 0}}}, "scores[0].n is 0, which is not between 1 and"),
        ({"total_evaluation_time_seconds": "-5"}, "seconds is -5.0, which is not between 0 and"),
        ({"group_subtasks": {"t0": ["t1"], "t1": ["t1"], "top": ["t0"]}}, "its group 't0' has no tasks"),
        ({"date": 1e300}, "out of range"),
    ],
)
def test_a_result_that_no_reader_would_take_is_not_written(tmp_path, capsys, fields, reason):
    folder = small_result(tmp_path / "out", **fields)
    assert run("lm-eval", folder, "--results-dir", tmp_path / "results") == 2
    err = capsys.readouterr().err
    assert "is no result file of lm-eval" in err
    assert reason in err
    assert err.count("\n") == 1
    assert not (tmp_path / "results").exists()


def test_a_token_among_lm_evals_arguments_is_not_kept(evaluated, tmp_path):
    folder, path = copied(evaluated, tmp_path / "out")
    value = json.loads(path.read_text())
    value["config"]["model_args"] = "pretrained=org/model,token=some token,peft=https://user:word@host/lora"
    path.write_text(json.dumps(value))
    record = only("lm-eval", folder).record
    assert record.cell.settings.method.load == {"token": "***", "peft": "https://***@host/lora"}


def test_lm_eval_rows_stand_in_a_table(evaluated, tmp_path, capsys):
    results = tmp_path / "results"
    for _ in range(2):
        assert run("lm-eval", evaluated[0], "--results-dir", results) == 0
    out = capsys.readouterr().out
    assert "1 new, 0 changed, 0 unchanged" in out
    assert "0 new, 0 changed, 1 unchanged" in out
    assert main(["table", "--results-dir", str(results), "--study", "lm-eval"]) == 0
    shown = capsys.readouterr().out
    assert "| lm-eval  |" in shown
    assert "world, accuracy (%)" in shown
    assert "Imported from output files of lm-eval" in shown
