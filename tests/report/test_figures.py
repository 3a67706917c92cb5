"""What the figures draw of constructed records: the values, how they are told apart, and the files."""

from __future__ import annotations

import math
import re
import warnings
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from panels import draw, legend, points
from records import METHODS, MIB, change, make_record, make_score, make_study, measured

from harness.config import ROOT
from harness.record import Kinds, LossPoint, Source, ValidationPoint, read_study, write
from harness.report import statistics
from harness.report.cost_fronts import pareto
from harness.report.figures import FIGURES, drawings, save, svg
from harness.report.figures.cost import KIND_COLOURS
from harness.report.figures.messages import change_with_rank
from harness.report.figures.study_results import StudyResults
from harness.report.figures.style import HATCHES, MARKERS, PERCENT, error_bar, looks, saved
from harness.report.frame import score_name
from harness.report.pages.curves_block import curves_block
from harness.report.pairwise import contests, items
from harness.report.select import select

QUICKSTART = ROOT / "results" / "reference" / "quickstart"
SVG = "{http://www.w3.org/2000/svg}"
PEFT = ROOT / "results" / "reference" / "peft_llama_3_2_3b"
# experiments are of imported records, differences of items
OF_OURS = [name for name in FIGURES if name not in ("experiments", "differences")]


def titles(name, records, folder=None):
    """The titles of a figure's panels, each on one line."""
    return [" ".join(axes.get_title("left").split()) for axes in FIGURES[name](records, folder).figure.axes]


def swept(method, rank, lr, loss, value, seed=0, **fields):
    """A record of a sweep: its validation loss, its score and a curve."""
    alpha = None if rank is None else 2.0 * rank
    record = make_record(method, rank, alpha, lr, seed, scores=[make_score(value)], **fields)
    record.validation = [ValidationPoint(step, 400 * step, loss + 1 - step / 50) for step in (0, 25, 50)]
    return record


# Accuracy against memory


def test_scores_stand_at_their_memory_with_the_interval_that_the_table_has():
    panel = draw("accuracy_memory", make_study())[0]
    found = dict(zip(legend(panel)[1:6], points(panel), strict=True))
    assert found == {
        method: pytest.approx((METHODS[method][1] / 1024, 100 * METHODS[method][5]))
        for method in ("full", "lora", "qlora", "dora", "galore")
    }
    (bar,) = panel.containers[1].lines[2]  # lora's
    low, high = (float(y) for _, y in bar.get_segments()[0])
    interval = statistics.summary_interval([0.23], [0.03], 200)
    assert (low, high) == pytest.approx((100 * interval.low, 100 * interval.high))


def test_the_front_is_of_settings_that_none_beats():
    panel = draw("accuracy_memory", make_study())[0]
    front = next(line for line in panel.lines if line.get_drawstyle() == "steps-post")
    # qlora, lora, dora, full; galore takes more than dora and scores less
    assert list(front.get_xdata()) == pytest.approx([0.5, 1, 1126 / 1024, 2])
    assert list(front.get_ydata()) == pytest.approx([22, 23, 23.5, 25])


def test_no_setting_is_on_the_front_for_its_test_score_alone():
    records = [swept("lora", 4, 2e-4, 1.0, 0.3), swept("lora", 4, 1e-3, 1.2, 0.9), swept("dora", 4, 2e-4, 1.0, 0.4)]
    panel = draw("accuracy_memory", records)[0]
    front = next(line for line in panel.lines if line.get_drawstyle() == "steps-post")
    assert list(front.get_ydata()) == pytest.approx([30, 40])
    assert 90.0 in [pytest.approx(y) for _, y in points(panel)]


@pytest.mark.parametrize(("objective", "unit"), [("sft", "nats per token"), ("dpo", "nats per pair")])
def test_losses_of_pairs_are_per_pair(objective, unit):
    records = [swept(*each, 0.3) for each in (("lora", 4, 1e-4, 1.2), ("lora", 4, 2e-4, 1.0), ("lora", 8, 2e-4, 1.1))]
    for record in records:
        record.scores = []
        change(record, train={"objective": objective})
    for panel in draw("loss", records):
        assert panel.get_ylabel() == f"validation loss\n({unit})"
    assert draw("rank_sweep", records)[0].get_ylabel() == f"validation loss\n({unit})"
    assert titles("rank_sweep", records) == [f"From rank 4 to 8, lora changes by +0.1 {unit} (not tested)"]
    assert draw("lr_methods", records)[0].get_ylabel() == f"validation loss\n({unit})"


def test_pareto_by_hand():
    cost_and_score = [(3, 0.9), (1, 0.5), (2, 0.4), (1, 0.6), (3, 0.7)]
    assert pareto(cost_and_score) == [3, 0]
    assert pareto(cost_and_score, higher_is_better=False) == [1, 2]
    assert pareto([]) == []


def test_an_untuned_model_is_a_line_at_its_score():
    panel = draw("accuracy_memory", make_study())[0]
    levels = [line.get_ydata()[0] for line in panel.lines if list(line.get_xdata()) == [0, 1]]
    assert levels == pytest.approx([18.0, 16.5])
    assert legend(panel)[-2:] == ["base", "base_nf4"]


def test_settings_that_were_not_chosen_are_faint_and_have_no_interval():
    panel = draw("accuracy_memory", [swept("lora", 16, 2e-4, 1.0, 0.3), swept("lora", 16, 1e-3, 1.2, 0.4)])[0]
    bars = {y: bar for bar, (_, y) in zip(panel.containers, points(panel), strict=True)}
    assert bars[30.0].has_yerr
    assert not bars[40.0].has_yerr
    assert bars[40.0].lines[0].get_alpha() < 0.5
    assert bars[40.0].lines[0].get_markersize() < bars[30.0].lines[0].get_markersize()
    assert bars[40.0].lines[0].get_markerfacecolor() == "white"


def test_imported_records_have_reserved_memory_alone():
    records = [make_record(method, 16, 32.0, 1e-4) for method in ("lora", "boft")]
    for gib, record in enumerate(records, 17):
        record.parameters = None
        record.phases = {"train": record.phases["train"]}
        record.phases["train"].memory.allocated_peak = None
        record.phases["train"].memory.reserved_p99 = gib * 2**30
    panel = draw("accuracy_memory", records)[0]
    assert points(panel) == [(17, pytest.approx(23)), (18, pytest.approx(23))]
    assert "reserved" in panel.get_xlabel()


def test_of_more_methods_than_a_legend_tells_apart_the_front_is_named():
    records = []
    for i in range(14):
        record = make_record(f"method{i:02}", 16, 32.0, 1e-4, scores=[make_score(0.3 + (0.01 if i == 3 else 0))])
        record.phases["train"].memory.allocated_peak = (1000 + i) * MIB
        records.append(record)
    panel = draw("accuracy_memory", records)[0]
    assert legend(panel) == ["Pareto front", "1  method00", "2  method03", "others"]
    assert [text.get_text() for text in panel.texts] == ["1", "2"]


def test_the_title_says_what_the_answer_decides():
    records, _ = read_study(QUICKSTART)
    assert titles("accuracy_memory", records, QUICKSTART) == ["Undecided. qlora needs the least memory"]
    (said,) = titles("accuracy_memory", make_study())
    assert said == "Undecided. qlora needs the least memory"


def test_differences_from_the_best_method_and_what_the_tests_say_of_them():
    records, _ = read_study(QUICKSTART)
    drawn = FIGURES["differences"](records, QUICKSTART)
    (panel,) = drawn.figure.axes
    (contest,) = [contest for contest in contests(records, QUICKSTART) if contest.primary]
    best, *others = (standing.choice.label for standing in contest.standings)
    assert [tick.get_text() for tick in panel.get_yticklabels()] == others == list(contest.against_best)
    for y, (bar, other) in enumerate(zip(panel.containers, others, strict=True)):
        gap = contest.differences[best, other]
        assert points(panel)[y] == (pytest.approx(-100 * gap.value), y)
        ((low, _), (high, _)) = bar.lines[2][0].get_segments()[0]
        assert (low, high) == pytest.approx((-100 * gap.high, -100 * gap.low))
    markers = [bar.lines[0].get_marker() for bar in panel.containers]
    assert markers == ["X" if contest.corrected[best, other] < 0.05 else "o" for other in others]
    assert set(markers) == {"X", "o"}
    assert legend(panel) == ["different", "equivalent", "not decided"]
    assert titles("differences", records, QUICKSTART) == ["dora, lora and galore tie; full, qlora and base are worse"]


@pytest.mark.parametrize("name", ["differences", "memory", "throughput", "accuracy_memory"])
def test_two_methods_have_room(name):
    """matplotlib warns where titles and labels leave none for the panel."""
    found, _ = read_study(QUICKSTART)
    pair = [record for record in found if record.cell.method in ("lora", "dora")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = FIGURES[name](pair, QUICKSTART)
        drawn.png()
    least = 0.15 * drawn.figure.get_window_extent().height
    assert all(panel.get_window_extent().height > least for panel in drawn.figure.axes)


def test_letters_that_the_font_lacks_are_text_of_an_svg_without_a_warning():
    figure = Figure()
    figure.text(0, 0, "数据")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        saved(figure, "png", {})
        assert "数据" in saved(figure, "svg", {"Date": None}).decode()


# Ranks and learning rates


def ranks():
    return [
        *(
            swept("lora", rank, lr, 1 + (lr != 2e-4), value)
            for rank, value in ((4, 0.2), (64, 0.3))
            for lr in (2e-4, 1e-3)
        ),
        *(swept("dora", rank, 2e-4, 1.0, value) for rank, value in ((4, 0.25), (64, 0.35))),
        swept("galore", 16, 2e-4, 1.0, 0.5),
        swept("full", None, 2e-5, 1.0, 0.4),
        make_record("base"),
    ]


def test_each_rank_scores_at_its_chosen_learning_rate():
    panel = draw("rank_sweep", ranks())[0]
    assert legend(panel) == ["lora", "dora", "base", "full"]  # galore has one rank
    for method, values in {"lora": [20, 30], "dora": [25, 35]}.items():
        (line,) = (
            of
            for of in panel.lines
            if of.get_linestyle() == mpl_line(method) and len(of.get_xdata()) == 2 and of.get_ydata()[0] == values[0]
        )
        assert list(line.get_ydata()) == pytest.approx(values)
        assert np.log2(line.get_xdata()) == pytest.approx([2, 6], abs=0.1)
    assert [tick.get_text() for tick in panel.get_xticklabels()] == ["4", "64"]


def test_the_title_says_by_how_much_scores_change_with_rank():
    each = [f"{method} changes by +10.0 points (not tested)" for method in ("lora", "dora")]
    assert titles("rank_sweep", ranks()) == [f"From rank 4 to 64, {' and '.join(each)}"]


def test_the_title_has_the_interval_of_losses_that_are_paired_by_seed():
    losses = {4: (1.5, 1.7), 64: (1.2, 1.46)}
    records = [swept("lora", rank, 2e-4, loss, 0.2, seed) for rank in losses for seed, loss in enumerate(losses[rank])]
    for record in records:
        record.scores = []
    # -0.27 and Student's t of one degree of freedom, 12.706, times 0.03
    assert titles("rank_sweep", records) == ["From rank 4 to 64, lora changes by −0.27 nats per token (−0.65 to +0.11)"]


def test_the_title_has_the_interval_of_scores_that_are_paired_by_item():
    folder = ROOT / "results" / "reference" / "smollm2"
    records = [record for record in read_study(folder)[0] if record.cell.data == "wordmath_short"]
    study = StudyResults([record for record in records if record.cell.method in ("lora", "full")], folder)
    low, high = (choice for choice in select(study.rows.records, ("method", "rank")) if choice.method == "lora")
    score = study.headline(low.place)
    change = study.gap(high, low, score)
    answered = [items(folder, study.records(choice), score_name(score))[0] for choice in (high, low)]
    difference = statistics.differences(answered)[0, 1]
    assert (change.low, change.high) == (difference.low, difference.high)
    assert change.value == pytest.approx(study.estimate(high, score)[0] - study.estimate(low, score)[0])
    value, *ends = (f"{100 * part:+.1f}".replace("-", "−") for part in (change.value, change.low, change.high))
    said = f"From rank {low.rank} to {high.rank}, lora changes by {value} points ({' to '.join(ends)})"
    assert titles("rank_sweep", study.rows.records, folder) == [said]


def test_of_many_methods_the_title_names_those_whose_change_is_shown():
    names = ("lora", "dora", "rslora", "pissa")
    changes = dict.fromkeys(names, statistics.Interval(0.1, -0.2, 0.4))
    ranks = dict.fromkeys(names, (4, 64))
    assert change_with_rank(changes, ranks, "points") == "From rank 4 to 64, no method is shown to change"
    changes["dora"] = statistics.Interval(-0.3, -0.4, -0.1)
    assert change_with_rank(changes, ranks, "points") == "From rank 4 to 64, dora is shown to change"
    ranks["lora"] = (1, 64)
    changes["lora"] = statistics.Interval(0.3, 0.1, 0.4)
    said = "From its lowest rank to its highest, lora and dora are shown to change"
    assert change_with_rank(changes, ranks, "points") == said


def mpl_line(method):
    return looks([method])[method].line


def test_without_scores_ranks_are_compared_by_loss():
    records = [swept("lora", rank, 2e-4, loss, 0.2, seed) for rank, loss in ((4, 1.5), (64, 1.2)) for seed in (0, 1)]
    for record in records:
        record.scores = []
    panel = draw("rank_sweep", records)[0]
    assert "validation loss" in panel.get_ylabel()
    assert [y for _, y in points(panel)] == pytest.approx([1.5, 1.2])


def test_imported_results_are_no_rank_sweep():
    records = [swept("lora", rank, 2e-4, 1.0, 0.2) for rank in (4, 64)]
    assert FIGURES["rank_sweep"](records, None)
    for record in records:
        record.source = Source("peft", "a.json", "0" * 64, [])
    assert FIGURES["rank_sweep"](records, None) is None


def test_losses_by_rate_at_the_best_rank():
    rates = {2e-5: 1.5, 2e-4: 1.1, 1e-3: 1.3}
    records = [swept("lora", rank, lr, loss + rank / 100, 0.2) for lr, loss in rates.items() for rank in (4, 8)]
    records += [swept("full", None, 2e-5, 1.2, 0.2), make_record("full", None, None, 1e-3, status="diverged")]
    panel = draw("lr_methods", records)[0]
    curves = {len(line.get_xdata()): line for line in panel.lines if line.get_linestyle() != "None"}
    assert (curves[1].get_xdata()[0], curves[1].get_ydata()[0]) == pytest.approx((2e-5, 1.2))  # of full
    assert list(curves[3].get_xdata()) == [2e-5, 2e-4, 1e-3]
    assert list(curves[3].get_ydata()) == pytest.approx([1.54, 1.14, 1.34])  # of lora, at its best rank
    rings = [line for line in panel.lines if line.get_markerfacecolor() == "none"]
    around = [(line.get_xdata()[0], line.get_ydata()[0]) for line in rings]
    assert around == [pytest.approx((2e-5, 1.2)), pytest.approx((2e-4, 1.14))]
    (lost,) = [line for line in panel.lines if line.get_marker() == "x"]
    assert lost.get_xdata()[0] == 1e-3
    assert legend(panel) == ["full", "lora"]
    assert titles("lr_methods", records) == ["Chosen rates: full 2e-5, lora 2e-4"]


def test_a_confirmed_rate_is_ringed_at_its_fresh_seeds_and_the_line_has_those_that_chose():
    records = [swept("lora", 8, lr, loss, 0.2) for lr, loss in {2e-5: 1.5, 2e-4: 1.1, 1e-3: 1.3}.items()]
    for seed, loss in ((1, 1.2), (2, 1.3)):
        records.append(swept("lora", 8, 2e-4, loss, 0.2, seed))
        records[-1].confirmation = True
    panel = draw("lr_methods", records)[0]
    (curve,) = [line for line in panel.lines if len(line.get_xdata()) == 3]
    assert list(curve.get_ydata()) == pytest.approx([1.5, 1.1, 1.3])
    (ring,) = [line for line in panel.lines if line.get_markerfacecolor() == "none"]
    assert (ring.get_xdata()[0], ring.get_ydata()[0]) == pytest.approx((2e-4, 1.25))
    assert panel.get_ylim()[0] < 1.1
    ((curve_data,),) = [curves_block(StudyResults(records, None))["rates"]]
    (point,) = [point for point in curve_data["points"] if point["chosen"]]
    assert (point["y"], point["fresh"]["y"]) == (1.1, 1.25)
    assert point["fresh"]["low"] < 1.25 < point["fresh"]["high"]
    assert point["setting"] != point["fresh"]["setting"]


def test_a_rate_that_nearly_diverged_does_not_flatten_all_others():
    losses = {1e-4: 1.2, 2e-4: 1.1, 5e-4: 1.0, 1e-3: 1.1, 2e-3: 40.0}
    panel = draw("lr_methods", [swept("lora", 8, lr, loss, 0.2) for lr, loss in losses.items()])[0]
    low, high = panel.get_ylim()
    assert low < 1.0
    assert 1.2 < high < 1.3


# Loss


def test_validation_loss_against_tokens_and_seconds():
    records = [swept("lora", 16, 2e-4, 1.0, 0.2, seed) for seed in (0, 1)]
    records[1].validation[-1].loss = 1.2
    assert titles("loss", records) == ["lora ends with the least validation loss, 1.10", ""]
    by_tokens, by_time = draw("loss", records)
    (line,) = by_tokens.lines
    assert list(line.get_xdata()) == [0, 10_000, 20_000]
    assert list(line.get_ydata()) == pytest.approx([2.0, 1.5, 1.1])
    assert list(by_time.lines[0].get_xdata()) == pytest.approx([0, 10_000 / 495, 20_000 / 495])
    assert {"0", "5.00K", "10.0K"} <= {tick.get_text() for tick in by_tokens.get_xticklabels()}


def test_training_loss_in_stretches_where_nothing_was_validated_on_the_way():
    record = make_record("lora", 16, 32.0, 2e-4)
    record.train.loss = [LossPoint(step, 400 * step, float(step), 2e-4, 1.0) for step in range(1, 51)]
    by_tokens, by_time = draw("loss", [record])
    (line,) = by_tokens.lines
    assert len(line.get_xdata()) == 20
    assert list(line.get_ydata())[:2] == pytest.approx([2.0, 5.0])  # of steps 1 to 3, and 4 to 6
    assert line.get_xdata()[-1] == 20_000
    assert by_time.lines[0].get_xdata()[-1] == pytest.approx(50 * 20_000 / 495 / 50)


# Memory and speed


def test_bars_of_memory_are_stacked_by_kind():
    panel = draw("memory", [measured(make_record("lora", 16, 32.0, 2e-4)), measured(make_record("base"))])[0]
    assert [tick.get_text() for tick in panel.get_yticklabels()] == ["base (forward pass)", "lora"]
    widths = [container[1].get_width() * 1024 for container in panel.containers]
    assert widths == pytest.approx([513, 19, 0, 37, 346])
    starts = [container[1].get_x() * 1024 for container in panel.containers]
    assert starts == pytest.approx([0, 513, 532, 532, 569])
    assert legend(panel) == ["weights", "adapters", "gradients", "optimizer", "activations"]


def test_memory_of_unlike_batches_is_kept_apart():
    records = []
    for size in (2, 8):
        for method, least in (("lora", 2), ("dora", 8)):
            settings = {"train": {"batch_size": size, "seed": 0}}
            record = measured(make_record(method, 16, 32.0, 2e-4, settings=settings))
            record.validation[-1].loss = 1.0 if size == least else 2.0  # a choice by which unlike ones would meet
            record.probe.peak = Kinds(size * MIB, 0, 0, 0, 0)
            records.append(record)
    panels = draw("memory", [*records, measured(make_record("base", settings={"train": {"batch_size": 8}}))])
    assert [panel.get_title("left").partition(":")[0] for panel in panels] == [
        "train.batch_size=2",
        "train.batch_size=8",
    ]
    shown = [[tick.get_text() for tick in panel.get_yticklabels()] for panel in panels]
    assert shown == [["lora", "dora"], ["base (forward pass)", "lora", "dora"]]
    assert [bar.get_width() * 1024 for bar in panels[0].containers[0]] == pytest.approx([2, 2])


def test_throughput_of_training_and_of_answering():
    records = [measured(make_record("lora", 16, 32.0, 2e-4, seed)) for seed in (0, 1)]
    records[1].train.tokens_per_second_steady = 600.0
    training, decoding = draw("throughput", records)
    assert (training.get_title("left"), decoding.get_title("left")) == ("training", "decoding")
    assert legend(training) == ["median step", "all steps", "without adapter", "unmerged", "merged"]
    steady, amortised = [bars for bars in training.containers if hasattr(bars, "patches")]
    assert steady[0].get_width() == pytest.approx(550)
    assert amortised[0].get_width() == pytest.approx(495)
    interval = statistics.seeds_interval([500.0, 600.0])
    low, high = (x for x, _ in steady.errorbar.lines[2][0].get_segments()[0])
    assert (low, high) == pytest.approx((interval.low, interval.high))
    rates = [bars[0].get_width() for bars in decoding.containers if hasattr(bars, "patches")]
    assert rates == pytest.approx([8 * 64 / 0.512, 8 * 64 / 1.28, 8 * 64 / 0.64])


# Forgetting


def mmlu(value):
    return make_score(value, task="mmlu", metric="acc", filter="none")


def test_forgetting_stands_against_gain_in_points():
    records = [
        make_record("base", scores=[make_score(0.18), mmlu(0.40)]),
        make_record("base_nf4", scores=[make_score(0.16), mmlu(0.39)]),
        make_record("lora", 16, 32.0, 2e-4, scores=[make_score(0.23), mmlu(0.37)]),
        make_record("full", None, None, 2e-5, scores=[make_score(0.25), mmlu(0.41)]),
    ]
    panel = draw("forgetting", records)[0]
    assert legend(panel) == ["full", "lora"]
    assert points(panel) == [pytest.approx((7, 1)), pytest.approx((5, -3))]
    assert panel.get_ylabel() == "change of\nmmlu, accuracy (points)"
    assert titles("forgetting", records) == ["Changes of mmlu are not tested"]


def test_what_is_better_lower_is_forgotten_downwards():
    def text(value):
        kinds = {"task": "plain_text", "metric": "bits_per_byte", "filter": "none"}
        return make_score(value, higher_is_better=False, **kinds)

    records = [
        make_record("base", scores=[make_score(0.18), text(1.0)]),
        make_record("lora", 16, 32.0, 2e-4, scores=[make_score(0.23), text(1.2)]),
    ]
    panel = draw("forgetting", records)[0]
    assert points(panel) == [pytest.approx((5, 0.2))]
    assert panel.yaxis_inverted()


# What holds of all


def everything():
    """Records that hold something for every figure."""
    records = [measured(record) for record in ranks()]
    for record in records:
        record.scores.append(mmlu(0.3))
    return records


@pytest.mark.parametrize("name", OF_OURS)
def test_no_figure_without_anything_to_draw(name):
    assert FIGURES[name]([], None) is None
    assert FIGURES[name]([make_record("lora", 16, 32.0, 2e-4, status=s) for s in ("failed", "unfit")], None) is None
    assert FIGURES[name](everything(), None) is not None


def read_in_a_column(name, found):
    """A figure is as wide as a column of a paper, no text is cut or smaller than 6 points, and it has one legend."""
    found.draw_without_rendering()
    width, height = found.bbox.size
    assert width / found.dpi == pytest.approx(3.3)
    assert len(found.legends) == 1
    assert not any(axes.get_legend() for axes in found.axes)
    texts = [text for text in found.findobj(Text) if text.get_text() and text.get_visible()]
    assert min(text.get_fontsize() for text in texts) >= 6
    drawn, margin = found.get_tightbbox(), 0.02
    assert drawn.x0 >= -margin
    assert drawn.y0 >= -margin
    assert drawn.x1 <= width / found.dpi + margin
    assert drawn.y1 <= height / found.dpi + margin


@pytest.mark.parametrize("name", OF_OURS)
def test_a_figure_can_be_read_in_a_column_of_a_paper(name):
    read_in_a_column(name, FIGURES[name](everything(), None).figure)


@pytest.mark.parametrize("folder", [QUICKSTART, PEFT], ids=lambda folder: folder.name)
def test_published_figures_can_be_read_in_a_column_of_a_paper(folder):
    found = drawings(read_study(folder)[0], folder)
    assert {"differences" if folder == QUICKSTART else "experiments"} <= set(found)
    for name, drawn in found.items():
        read_in_a_column(name, drawn.figure)


def test_methods_are_told_apart_without_colours():
    many = [*METHODS, *(f"method{i}" for i in range(8))]
    assert len({look.marker for look in looks(many).values()}) == len(many) == len(MARKERS)
    lines = {str(look.line) for method, look in looks(METHODS).items() if method in METHODS}
    assert len(lines) == len(METHODS)
    assert len(set(HATCHES)) == len(KIND_COLOURS) == len(HATCHES)
    panel = draw("rank_sweep", ranks())[0]
    curves = [
        line.get_linestyle() for line in panel.lines if len(line.get_xdata()) == 2 and line.get_linestyle() != "None"
    ]
    assert len(curves) == 4


def test_a_method_looks_alike_in_every_study():
    assert looks(["lora"])["lora"] == looks(["aardvark", "lora"])["lora"]


@pytest.mark.long
def test_png_and_svg_of_each_are_written_the_same_bytes_each_time(tmp_path):
    records = everything()
    for out in ("one", "other"):
        assert save(records, None, tmp_path / out) == OF_OURS
    written = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert written == sorted(f"{name}.{kind}" for name in OF_OURS for kind in ("png", "svg"))
    for name in written:
        content = (tmp_path / "one" / name).read_bytes()
        assert content == (tmp_path / "other" / name).read_bytes()
        assert content.startswith(b"\x89PNG" if name.endswith("png") else b"<svg")


@pytest.mark.long
def test_drawings_of_one_page_share_no_id_and_name_themselves():
    found = svg(everything(), None)
    assert list(found) == OF_OURS
    ids = []
    for text, caption in found.values():
        tree = ET.fromstring(text)
        assert tree.find(f"{SVG}title").text == caption
        own = [element.get("id") for element in tree.iter() if element.get("id")]
        used = re.findall(r'(?:href="#|url\(#)([^")]+)', text)
        assert used
        assert set(used) <= set(own)
        ids += own
    assert len(ids) == len(set(ids))


HOSTILE = "<script>alert(1)</script>$x_1$\x00\n_&"


def test_hostile_names_are_text():
    records = [make_record(HOSTILE, 16, 32.0, 2e-4, model="$\\frac{$"), make_record("lora", 16, 32.0, 2e-4)]
    text, _ = svg(records, None)["accuracy_memory"]
    tree = ET.fromstring(text)
    assert not [element for element in tree.iter() if "script" in element.tag]
    shown = ["".join(element.itertext()) for element in tree.iter(f"{SVG}text")]
    assert "<script>alert(1)</script>$x_1$  _&" in shown
    assert "1 GiB" not in shown


def test_several_models_have_panels_of_their_own():
    records = [make_record("lora", 16, 32.0, 2e-4, model=f"model{i}") for i in range(8)]
    drawn = FIGURES["accuracy_memory"](records, None)
    assert [panel.get_title("left").partition(":")[0] for panel in drawn.figure.axes] == [f"model{i}" for i in range(6)]
    assert "the first 6 of 8 panels" in drawn.caption


def test_intervals_of_committed_records_are_those_over_their_items():
    records, _ = read_study(QUICKSTART)
    drawn = drawings(records, QUICKSTART)
    panel = drawn["accuracy_memory"].figure.axes[0]
    full = next(record for record in records if record.cell.method == "full")  # the best one pays for being picked
    bars = dict(zip(legend(panel)[1:], panel.containers, strict=False))
    low, high = (float(y) / 100 for _, y in bars["full"].lines[2][0].get_segments()[0])
    answers, _ = items(QUICKSTART, [full], score_name(full.scores[0]))
    assert answers.clustered  # by template
    (expected,) = statistics.mean_intervals([answers])
    assert (low, high) == pytest.approx(expected[1:])
    assert math.isfinite(low)


@pytest.mark.long
def test_the_command_says_what_it_drew_and_what_not(inside, tmp_path):
    record = measured(make_record("lora", 16, 32.0, 2e-4))
    write(record, tmp_path / "results" / "demo" / "lora.json")
    run = inside("figures")
    assert run.returncode == 0, run.stderr
    of_core, of_plugins = ["accuracy_memory", "memory", "throughput"], ["verdicts"]
    drawn = of_core + [name for name in of_plugins if name in FIGURES]
    assert run.stdout.startswith(f"results/demo/figures: {', '.join(drawn)}; no records for ")
    assert sorted(path.stem for path in (tmp_path / "results/demo/figures").glob("*.png")) == drawn
    run = inside("figures", "--study", "none")
    assert run.returncode == 2
    assert run.stderr == "error: There is no study none in results; there is: demo.\n"


def test_the_interval_of_a_share_ends_where_shares_do():
    wide = statistics.Interval(0.4, -0.3, 1.1)
    assert error_bar(0.4, wide, PERCENT) == [[pytest.approx(40)], [pytest.approx(60)]]
    assert error_bar(0.4, wide, 1.0) == [[pytest.approx(0.7)], [pytest.approx(0.7)]]
