"""What a person sees: tables fit the terminal, colours repeat words, and nothing that is shown can command it."""

from __future__ import annotations

import subprocess
import sys

import pytest
from on_screen import OnScreen
from records import MIB, make_record, make_study, measured
from rich.cells import cell_len

from harness import protocol, terminal
from harness.record import read_study, write
from harness.report.tables import screen
from harness.report.tables.best import tables
from harness.report.tables.table import Table
from harness.sweep import plan_view
from harness.sweep.app import advising
from harness.sweep.estimates.times import Times
from harness.sweep.planner import Impossible, Plan, Planned
from harness.sweep.progress import SweepProgress
from harness.sweep.runner import BESIDE
from harness.terminal import FittedColumn


@pytest.fixture
def results(tmp_path):
    """A results folder with the study `demo`."""
    for record in make_study():
        write(measured(record), tmp_path / "results" / "demo" / f"{record.cell.name}.json")
    return tmp_path / "results"


# Columns


def test_columns_are_left_out_by_rank_until_the_table_fits():
    columns = [FittedColumn("name", 0, least=6), FittedColumn("last", 2), FittedColumn("first", 1, right=True)]
    rows = [["a-long-name", "x" * 30, "12"], ["b", "y", "3"]]
    for width, kept in ((60, ["name", "last", "first"]), (30, ["name", "first"]), (8, ["name"])):
        table, left_out = terminal.fitted(columns, rows, width)
        shown = terminal.lines(table, width=width)
        assert [name for name in ("name", "last", "first") if name not in left_out] == kept
        assert max(map(cell_len, shown)) <= width
        assert shown[0].split() == kept
    assert "a-long…" in "".join(terminal.lines(terminal.fitted(columns, rows, 14)[0], width=14))


def test_a_text_can_not_command_the_terminal():
    hostile = "\x1b[2J\x1b]0;title\x07a\rb\n\x9b31mc"
    table, _ = terminal.fitted([FittedColumn(hostile)], [[hostile]], 40)
    shown = "\n".join(terminal.lines(table, width=40))
    assert "\x1b" not in shown
    assert "\x9b" not in shown
    assert "\r" not in shown
    assert "ab31mc" in shown


# Tables


@pytest.mark.parametrize("width", [80, 200])
def test_tables_fit_the_terminal_and_begin_with_the_answer(results, width):
    records, _ = read_study(results / "demo")
    shown = terminal.lines(*screen.view(tables(records, results / "demo"), width), width=width)
    assert max(map(cell_len, shown)) <= width
    heads = [line.split() for line in shown if line.startswith(("method", "Method"))]
    assert len(heads) == 2
    for head in heads:
        assert {"Method", "Setting", "Tokens/s"} <= set(head)
    assert any(line.startswith("Not shown at this width: ") for line in shown) == (width == 80)


def test_what_tells_rows_apart_and_a_score_of_each_task_are_shown_at_any_width():
    scores = ["facts, accuracy (%)", "facts, accuracy by length (%)", "math, exact (%)"]
    columns = ["Model", "Data", "Method", "Setting", *scores, "Tokens/s"]
    rows = [
        [f"m-{data}", data, "lora", f"r=16 lr={lr}", *[f"{score} (34.1–64.1)"] * 3, rate]
        for data, lr, score, rate in (("facts", "1e-4", "48.8", "577"), ("math", "2e-4", "38.8", "677"))
    ]
    shown = terminal.lines(*screen.view([Table("t", columns, rows, [], None)], 80), width=80)
    left_out = "\n".join(shown).partition("Not shown at this width: ")[2]
    assert left_out.startswith("facts, accuracy by length (%)")
    assert "math" not in left_out


def test_names_that_have_commas_can_be_told_apart():
    columns = ["Method", "Setting", *(f"task {i}, accuracy by length (%)" for i in range(4))]
    rows = [["lora", f"lr={lr}", *[f"{score}.0 (34.1–64.1)"] * 4] for lr, score in (("1e-4", 48), ("2e-4", 50))]
    shown = terminal.lines(*screen.view([Table("t", columns, rows, [], None)], 60), width=60)
    left_out = " ".join("\n".join(shown).partition("Not shown at this width: ")[2].split()).partition(". --wide")[0]
    assert len(left_out.split("; ")) > 1
    assert set(left_out.split("; ")) <= set(columns)


def test_costs_and_whole_settings_are_shown_beside_the_first_score():
    columns = ["Method", "Setting", "Tries", "Peak train memory", "Tokens/s", "skill, solved (%)", "text, bits ↓"]
    rows = [
        ["lora", f"r=32 α=32 lr={lr}", "3", f"{size} GiB (0.69×, 0.67–0.70)", f"{rate} (0.90×, 0.81–0.99)", *scores]
        for lr, size, rate, *scores in (
            ("1.5e-3", "1.91", "678", "66.0 (62.6–69.2) a", "0.92 (0.89–0.95) c"),
            ("3.5e-3", "2.67", "489", "65.0", "0.98"),
        )
    ]
    shown = terminal.lines(*screen.view([Table("t", columns, rows, [], None)], 80), width=80)
    text = "\n".join(shown)
    assert "1.91 GiB (0.69×)" in text
    assert "678 (0.90×)" in text
    assert "lr=1.5e-3" in text
    assert "lr=3.5e-3" in text
    assert "Not shown at this width: text, bits ↓." in text
    assert max(map(cell_len, shown)) <= 80


def test_lines_of_no_terminal_are_not_padded(results):
    (results / "demo" / ".harness").mkdir(exist_ok=True)
    piped = subprocess.run(
        [sys.executable, "-m", "harness", "status", "--results-dir", str(results)], capture_output=True, text=True
    )
    assert "failed" in piped.stdout
    assert max(map(len, piped.stdout.splitlines())) < 200


def test_a_wide_table_has_all_columns(results):
    records, _ = read_study(results / "demo")
    shown = "\n".join(terminal.lines(*screen.view(tables(records, results / "demo"), terminal.UNLIMITED)))
    assert "Not shown" not in shown
    for column in tables(records, results / "demo")[1].columns:
        assert column.split()[-1] in shown  # long headers are wrapped


def test_the_answer_stands_before_the_table_and_a_command_on_a_line_of_its_own():
    command = "python -m harness sweep method=lora,dora 'method.adapt.target_modules=[q_proj,v_proj]' study=smallest"
    table = Table("t", ["Method"], [["lora"]], [f"open: One seed. To decide it, run `{command}`."], None, answer=["A."])
    shown = terminal.lines(*screen.view([table], 60), width=60)
    assert shown[:3] == ["", "▌ A.", ""]
    assert f"    {command}" in shown


@pytest.mark.long
def test_table_on_a_terminal(results):
    narrow, wide, all_of_it = (
        OnScreen([sys.executable, "-m", "harness", "table", "--results-dir", str(results), *more], columns)
        for columns, *more in ((80,), (200,), (80, "--wide"))
    )
    assert [narrow.end(), wide.end(), all_of_it.end()] == [0, 0, 0]
    assert max(map(len, narrow.display)) <= 80
    assert "|:---" not in "\n".join(narrow.display)
    for shown, whole in ((narrow, False), (wide, True), (all_of_it, True)):
        assert ("Not shown at this width" not in "\n".join(shown.display)) == whole


# Plans


def planned(name, mib):
    kinds = dict(zip(("weights", "adapters", "gradients", "optimizer", "activations"), mib, strict=True))
    peak = {kind: n * MIB for kind, n in kinds.items()}
    prediction = {
        "peak": peak,
        "needed": sum(peak.values()),
        "resident": peak,
        "total": 100,
        "trainable": 10,
        "flops": 1e12,
        "reference_flops": 0.0,
        "precision": "fp32",
    }
    prediction |= {"shape": {"sequences": 8, "tokens": 100, "steps": 10, "raw": 1000, "real": True}}
    prediction |= {"micro_batch": None, "largest_batch": 4}
    return Planned(name, make_record("lora").cell, prediction)


def test_advice_says_what_does_not_fit_at_all():
    small, large, larger = (planned("a", (mib, 0, 0, 0, 0)) for mib in (512, 6144, 8192))
    plan = Plan([small, large, larger], BESIDE + 4 * 2**30, {}, "cuda")
    unknown = Planned("a", small.cell, {"unknown": "its memory can't be predicted"})
    said = advising.too_large(plan, [[larger, large], [small, large], [unknown]])
    assert said == ["lora does not fit: it takes 7.00 GiB."]


@pytest.mark.parametrize("width", [80, 200])
def test_bars_of_memory_stand_against_the_budget(tmp_path, width):
    fits, not_ = planned("small-cell", (512, 64, 64, 128, 256)), planned("large-cell", (4096, 64, 512, 1024, 4096))
    plan = Plan([fits, not_], BESIDE + 4 * 2**30, {"device": {"type": "cpu"}}, "cpu")
    times = Times(tmp_path, plan.environment, "cpu", throughput=100.0)
    shown = terminal.lines(*plan_view.view(plan, times, width), width=width)
    assert max(map(cell_len, shown)) <= width
    small, large = (next(line for line in shown if line.startswith(name)) for name in ("small-cell", "large-cell"))
    assert "yes" in small.split()
    assert "no" in large.split()
    assert small.index("|") == large.index("|")
    assert "█" in small
    assert "█" not in small[small.index("|") :]
    assert "▪" in large[large.index("|") :]
    assert "5.00 GiB" in "\n".join(shown)
    if width == 80:
        left_out = " ".join("\n".join(shown).partition("Not shown at this width: ")[2].split()).partition(".")[0]
        assert set(left_out.split("; ")) <= {column.header for column in plan_view.COLUMNS}


def test_a_plan_begins_with_its_answer(tmp_path):
    fits, not_ = planned("small-cell", (512, 64, 64, 128, 256)), planned("large-cell", (4096, 64, 512, 1024, 4096))
    budget = BESIDE + 4 * 2**30

    def said(*points):
        plan = Plan([*points], budget, {"device": {"type": "cpu"}}, "cpu")
        times = Times(tmp_path, plan.environment, "cpu", throughput=100.0)
        sentences = plan_view.answer(plan, times)
        assert plan_view.lines(plan, times)[: len(sentences)] == sentences
        return sentences

    assert said(fits) == ["The cell fits into 5.00 GiB; the most is 2.00 GiB."]
    all_fit, time = said(fits, fits)
    assert all_fit == "All 2 cells fit into 5.00 GiB; the most is 2.00 GiB."
    assert time == "They train 20 s in all."
    impossible = Impossible("lora", "rank must be at most 64.")
    assert said(fits, impossible) == ["1 of 2 cells fits into 5.00 GiB; the most is 2.00 GiB.", "It trains 10 s."]
    assert said(fits, fits, impossible)[0].startswith("2 of 3 cells fit into 5.00 GiB")
    assert said(fits, fits, not_)[1] == "2 of 3 cells fit. They train 20 s in all."
    untuned = planned("base", (512, 0, 0, 0, 128))
    untuned.prediction["trainable"] = 0
    assert said(untuned, fits, fits)[1] == "They train 20 s in all."
    endless = planned("by-epochs", (512, 64, 64, 128, 256))
    endless.prediction["shape"]["steps"] = None
    assert said(untuned, fits, fits, endless)[1] == "They train 20 s in all; the time of 1 is unknown."
    not_.prediction["largest_batch"] = 7
    assert said(not_) == ["On 5.00 GiB: lora needs train.batch_size ≤ 7."]
    not_.prediction["largest_batch"] = None
    assert said(not_) == ["On 5.00 GiB: lora does not fit."]
    assert said() == []


# Sweeps


@pytest.mark.parametrize("width", [80, 200])
def test_a_running_sweep_shows_what_ran_runs_and_failed(width):
    done, failed, running, *left = (
        measured(make_record("full")),
        make_record("dora", 16, status="oom"),
        *(make_record("lora", 16, seed=seed) for seed in range(3)),
    )
    progress = SweepProgress([record.cell for record in (done, failed, running, *left)])
    for record in (done, failed):
        progress.start(record.cell)
        progress.end(record)
    progress.start(running.cell)
    progress.update(
        protocol.Progress("train", 7, 50, loss=2.125, tokens_per_second=512.0, memory_bytes=2**30, seconds_left=300.0)
    )
    shown = terminal.lines(progress.view(width, 24), width=width)
    assert max(map(cell_len, shown)) <= width
    assert shown[0] == "2 of 5 cells ended, 1 failed, about 9 min to go."
    rows = {line.split()[0]: line for line in shown[1:] if line.strip()}
    assert {"ok", "oom", "running"} <= rows.keys()
    for text in ("train 7/50", "5 min", "2.125", "1.00 GiB", *(["512", "2 min"] if width == 200 else [])):
        assert text in rows["running"] + rows["ok"]
    assert f"{failed.cell.name} oom: CUDA out of memory." in " ".join(shown)


def test_a_long_sweep_fits_the_height_of_the_terminal():
    records = [make_record("lora", 16, seed=seed, status="failed" if seed % 2 else "ok") for seed in range(100)]
    progress = SweepProgress([record.cell for record in records])
    for record in records[:60]:
        progress.start(record.cell)
        progress.end(record)
    shown = terminal.lines(progress.view(80, 24), width=80)
    assert len(shown) <= 24
    assert any("more that have ended" in line for line in shown)


@pytest.mark.slow
@pytest.mark.long
def test_a_sweep_on_a_terminal_is_one_table_and_ends_with_the_answer(tmp_path):
    settings = [
        "model=tiny",
        "data=facts",
        "train.max_steps=2",
        "train.batch_size=2",
        "eval.limit=8",
        "infer.repeats=0",
    ]
    grid = ["method=lora,dora", "rank=4", *settings, "train.validation_items=2", "study=live"]
    shown = OnScreen([sys.executable, "-m", "harness", "sweep", *grid], 80, 30, cwd=tmp_path)
    shown.until("running")
    assert shown.end(300) == 0
    text = "\n".join(shown.display)
    assert text.count("2 of 2 cells ended.") == 1
    assert text.count("state  ") == 1
    assert sum(line.split()[:1] == ["ok"] for line in shown.display) == 2
    done = next(i for i, line in enumerate(shown.display) if line.startswith("Done: 2 ok."))
    assert "table live` renders the table." in " ".join(shown.display[done : done + 2])
    assert "No method is recommended: " in " ".join(shown.display[done:])
    again = OnScreen([sys.executable, "-m", "harness", "sweep", *grid], 80, 30, cwd=tmp_path)
    assert again.end(60) == 0
    assert "No method is recommended: " in " ".join(again.display), "with nothing left to run, too"
