"""Studies that lack what a comparison needs: the table is right, and says what can't be concluded."""

from __future__ import annotations

import numpy as np
import pytest
from command_line import installed
from records import make_record, make_score, measured
from rendered import caption, row, rows
from test_best import HEADER, answers, leave

from harness.__main__ import main
from harness.record import Inference, ValidationPoint
from harness.report.answer import answer
from harness.report.pairwise import contests
from harness.report.select import UNVALIDATED, select
from harness.report.tables.best import best, tables
from harness.report.tables.formats import document
from harness.report.tables.rows import group


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "results" / "demo"


def test_of_one_item_nothing_is_compared(folder):
    records = []
    for method, right in (("lora", 1.0), ("full", 0.0)):
        records.append(leave(folder, make_record(method), [right]))
    (contest,) = contests(records, folder)
    assert contest.differences == {}
    table = best(records, folder)
    assert [row(table, method)[HEADER] for method in ("lora", "full")] == ["100.0 (14.7–100.0)", "0.0 (0.0–85.3)"]
    assert "no difference is tested" in caption(table)
    assert "nan" not in document(tables(records, folder), "md")


def test_two_models_and_two_data_sets_are_compared_each_in_its_place(folder):
    records = []
    for model in ("small", "large"):
        for data in ("gsm8k", "facts"):
            for method, share in (("lora", 0.6), ("full", 0.4)):
                made = make_record(method, lr=1e-4, model=model, data=data)
                records.append(leave(folder, made, answers(share, len(records))))
    table = best(records, folder)
    assert table.columns[:3] == ["Model", "Data", "Method"]
    assert len(rows(table)) == 8
    held = contests(records, folder)
    assert [contest.place[1:] for contest in held] == [(m, d) for m in ("small", "large") for d in ("gsm8k", "facts")]
    assert {len(contest.corrected) for contest in held} == {1}
    text = caption(table)
    assert "correction for 4 pairs" in text, "one family a report"
    assert "gsm8k, exact match, strict format (large/facts): lora is significantly better than full." in text


def test_what_is_said_of_a_choice_names_its_data_set_where_there_are_several(folder):
    records = []
    for data, lrs in (("gsm8k", (1e-4, 2e-4)), ("facts", (2e-4, 4e-4))):
        for lr in lrs:
            made = leave(folder, make_record("lora", lr=lr, data=data), answers(0.6, len(records)))
            made.validation = [ValidationPoint(50, 20_000, 1e4 * lr)]
            records.append(made)
        records.append(make_record("full", lr=1e-4, data=data, status="oom"))
    text = caption(best(records, folder))
    assert "† Best value at the edge of its grid in gsm8k; a wider grid may be better: lora lr=0.0001 is" in text
    assert "† Best value at the edge of its grid in facts; a wider grid may be better: lora lr=0.0002 is" in text
    assert "full in facts: no setting chosen, no setting finished with every seed." in text


def test_methods_that_share_other_items_than_most_are_compared_among_themselves(folder):
    records = []
    for method, share, n in (
        ("lora", 0.7, 400),
        ("full", 0.3, 400),
        ("base", 0.2, 400),
        ("dora", 0.8, 300),
        ("qlora", 0.4, 300),
        ("galore", 0.5, 200),
    ):
        for seed in range(2 if method != "base" else 1):
            records.append(leave(folder, make_record(method, lr=1e-4, seed=seed), answers(share, seed, n)))
    (contest,) = contests(records, folder)
    letters = {standing.choice.label: standing.letters for standing in contest.standings}
    assert letters == {"lora": "a", "full": "b", "base": "c", "dora": "a/2", "qlora": "b/2", "galore": None}
    assert contest.paired == [["lora", "full", "base"], ["dora", "qlora"], ["galore"]]
    assert set(contest.corrected) == {("lora", "full"), ("lora", "base"), ("full", "base"), ("dora", "qlora")}
    assert {standing.choice.label for standing in contest.standings if standing.rank} == {"lora", "full", "base"}
    text = caption(best(records, folder))
    assert "Letters with /2: dora and qlora answered other items, and are compared among themselves." in text
    assert "No letter, as items are missing or differ from those of other methods: galore." in text
    assert "correction for 2 pairs, and apart for 2 with untuned models" in text
    (place,) = answer(records, folder).places.values()
    assert (place.decision.take, place.decision.tied) == ("lora", ())
    assert "Not compared, as items are missing or differ: dora, galore and qlora" in " ".join(place.sentences)


def test_a_seed_that_two_versions_ran_counts_once(folder):
    """The later version writes a setting that the earlier one lacks, so that the cells have two ids."""
    records = []
    for seed in range(2):
        records.append(leave(folder, make_record("lora", lr=1e-4, seed=seed), answers(0.6, seed)))
    again = make_record("lora", lr=1e-4, seed=0, settings={"new": {"switch": False}})
    again.started = "2026-03-01T00:00:00+00:00"
    again.environment = again.environment | {"versions": {"torch": "9.9"}}
    assert again.cell.id != records[0].cell.id
    records.append(leave(folder, again, answers(0.5, 7)))
    (choice,) = select(records)
    assert choice.index == (1, 2)
    shown, every = tables(records, folder)
    assert row(shown, "lora")["Seeds"] == "2"
    assert row(every, "lora")["Seeds"] == "2"
    assert f"Left out, as a later run has the same setting and seed: {records[0].cell.name}." in caption(every)


@pytest.mark.parametrize(
    ("new_tokens", "seconds"), [(1, [0.0] * 3), (0, [0.1] * 3), (65, [0.0] * 3), (65, []), (1, [])]
)
def test_a_decoding_that_took_no_time_or_wrote_nothing_has_no_rate(folder, new_tokens, seconds, capsys):
    """Of foreign records; a run that was not timed gives its time to none beside it."""
    records = []
    for seed in range(2):
        for method in ("lora", "dora"):
            made = measured(make_record(method, 16, lr=1e-4, seed=seed))
            if (method, seed) != ("lora", 1):
                made.inference = {name: Inference(8, 128, new_tokens, [0.2] * 3, seconds) for name in made.inference}
            records.append(leave(folder, made, answers(0.6, seed)))
    for command in installed("table", "claims", "lint"):
        assert main([command, "--results-dir", str(folder.parent)]) in (0, 1)
        assert "nan" not in capsys.readouterr().out
    (lora, dora) = (next(r for r in group(records) if r.method == method) for method in ("lora", "dora"))
    assert [record.cell.seed for record, _ in lora.served] == [1]
    assert dora.served == []


def test_a_finished_run_is_not_replaced_by_one_that_failed(folder):
    good = leave(folder, make_record("lora", lr=1e-4), answers(0.6, 0))
    bad = make_record("lora", lr=1e-4, status="failed", settings={"new": {"switch": False}})
    bad.started = "2026-03-01T00:00:00+00:00"
    (choice,) = select([good, bad])
    assert (choice.index, choice.lost) == ((0,), {})


def test_a_method_whose_cells_all_failed_is_a_row_with_its_reason(folder):
    records = [leave(folder, make_record("lora", lr=1e-4), answers(0.6, 0))]
    records += [make_record("full", lr=lr, status=status) for lr, status in ((1e-5, "oom"), (1e-4, "diverged"))]
    table = best(records, folder)
    full = row(table, "full")
    assert (full["Setting"], full["Tries"], full[HEADER]) == ("–", "2 (1 oom, 1 diverged)", "–")
    assert "full: no setting chosen, no setting finished with every seed." in caption(table)
    assert "only lora has this score" in caption(table)


def test_a_loss_that_is_no_number_does_not_choose(folder):
    records = []
    for lr, loss in ((1e-4, 1.0), (2e-4, float("nan"))):
        made = leave(folder, make_record("lora", lr=lr), answers(0.6, 0))
        made.validation = [ValidationPoint(50, 20_000, loss)]
        records.append(made)
    table = best(records, folder)
    assert [(cells["Setting"], cells["Validation loss"]) for cells in rows(table)] == [
        ("lr=1e-4", "1.000"),
        ("lr=2e-4", "nan"),
    ]
    assert UNVALIDATED in caption(table)


def test_one_method_of_several_seeds_has_an_interval_and_no_letter(folder):
    records = [leave(folder, make_record("lora", lr=1e-4, seed=seed), answers(0.6, seed)) for seed in range(3)]
    table = best(records, folder)
    (cells,) = rows(table)
    value = float(np.mean([record.scores[0].value for record in records]))
    assert cells[HEADER].startswith(f"{100 * value:.1f} (")
    assert cells[HEADER].endswith(")")
    assert "only lora has this score" in caption(table)


def test_a_score_that_one_seed_lacks_is_not_shown(folder):
    records = [leave(folder, make_record("lora", lr=1e-4, seed=seed), answers(0.6, seed)) for seed in range(2)]
    records += [leave(folder, make_record("full", lr=1e-4, seed=seed), answers(0.5, seed)) for seed in range(2)]
    records[0].scores = [make_score(0.5, task="other")]
    held = {contest.score.partition("/")[0]: contest for contest in contests(records, folder)}
    assert [s.choice.label for s in held["gsm8k"].standings] == ["full"]
