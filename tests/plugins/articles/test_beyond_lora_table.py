"""The article's table: convergence by hand, the rules behind its columns, and the article's words beside them."""

from __future__ import annotations

import pytest
from records import make_record, make_study, measured

from harness.__main__ import main
from harness.config import ROOT
from harness.plugins.articles.beyond_lora.table import WORDS, convergence
from harness.plugins.articles.beyond_lora.table import table as article
from harness.record import ValidationPoint, read_study, write
from harness.report.tables.formats import render
from harness.report.tables.rows import group


def curve(record, *losses):
    """`record`, validated every 1,000 tokens."""
    record.validation = [ValidationPoint(i, 1000 * i, loss) for i, loss in enumerate(losses, 1)]
    return record


def cells(table, method):
    (found,) = [dict(zip(table.columns, row, strict=True)) for row in table.rows if row[0] == method]
    return found


def speeds(*records):
    rows = group(records)
    found = convergence([row for row in rows if row.records[0].train], rows)
    return {row.method: found[id(row)] for row in rows if id(row) in found}


def test_convergence_by_hand():
    lora = curve(make_record("lora", 16, 32.0, 2e-4), 3.0, 2.0, 1.0)
    full = curve(make_record("full", None, None, 2e-5), 2.5, 1.75, 1.5)  # what both get to: the target
    found = speeds(lora, full)
    assert found["lora"].tokens.value == 2500  # halfway from 2.0 to 1.0
    assert found["full"].tokens.value == 3000
    assert found["lora"].mean == 2.0
    assert found["full"].mean == pytest.approx((2.125 + 1.625) / 2)


def test_curves_begin_with_the_base_if_each_method_has_its_own():
    base = make_record("base")  # 2.345
    lora = curve(make_record("lora", 16, 32.0, 2e-4), 1.5, 1.0)
    full = curve(make_record("full", None, None, 2e-5), 2.0, 1.845)
    assert speeds(base, lora, full)["lora"].tokens.value == pytest.approx(1000 * (2.345 - 1.845) / (2.345 - 1.5))
    without = speeds(lora, full)["lora"]
    assert (without.tokens.value, without.within) == (1000, True)
    nf4 = {"method": {"name": "qlora", "load": {"quantization_config": {"double_quant": True}}}}
    qlora = curve(make_record("qlora", 16, 32.0, 2e-4, settings=nf4), 1.5, 1.0)
    assert speeds(base, lora, full, qlora)["lora"].within, "the quantised base is not there"
    found = speeds(base, make_record("base_nf4"), full, qlora)["qlora"]  # 2.401
    assert found.tokens.value == pytest.approx(1000 * (2.401 - 1.845) / (2.401 - 1.5))


def test_convergence_over_seeds_has_an_interval():
    lora = [curve(make_record("lora", 16, 32.0, 2e-4, seed), 3.0, 1.0 + seed / 10) for seed in (0, 1)]
    full = [curve(make_record("full", None, None, 2e-5, seed), 3.0, 2.0) for seed in (0, 1)]
    tokens = speeds(*lora, *full)["lora"].tokens
    one, other = 1500, 1000 + 1000 / 1.9
    assert tokens.value == pytest.approx((one + other) / 2)
    assert tokens.high - tokens.value == pytest.approx(12.706 * (other - one) / 2, rel=1e-4)  # t of one degree


def test_the_target_is_what_every_seed_gets_to_also_one_that_rises_again():
    lora = curve(make_record("lora", 16, 32.0, 2e-4), 3.0, 1.0, 1.5)
    full = [curve(make_record("full", None, None, 2e-5, seed), 4.0, last) for seed, last in ((0, 1.5), (1, 2.5))]
    found = speeds(lora, *full)
    assert found["lora"].tokens == (1250, 1250, 1250)  # 2.5, of full's second seed
    assert found["full"].tokens.value == pytest.approx((1600 + 2000) / 2)
    assert cells(article([lora, *full], None), "lora")["Convergence"].startswith("1.25K tokens, mean loss")


def test_the_table_of_a_study():
    table = article([measured(record) for record in make_study()], None)
    assert [row[0] for row in table.rows] == ["full", "lora", "qlora", "dora", "galore"]
    lora = cells(table, "lora")
    assert lora["Trainable parameters"] == "4.88M (3.50%); “cuts trainable parameters by up to 10,000×”"
    assert lora["Complexity"].startswith("2 settings (rank, alpha); a step takes 0.8")
    assert lora["Best for"] == "speed"
    assert cells(table, "full")["Best for"] == "convergence"
    assert cells(table, "qlora")["Best for"].startswith("least memory")
    assert cells(table, "full")["Complexity"].startswith("no settings; a step takes 1.25× lora's")
    assert cells(table, "galore")["Complexity"].startswith("2 settings (rank, scale)")
    assert cells(table, "galore")["Best for"].endswith("“wholly new knowledge”")
    assert set(table.data["method"]) == {"full", "lora", "qlora", "dora", "galore"}


def test_every_word_of_the_article_has_its_cell():
    table = article(make_study(), None)
    for (method, column), words in WORDS.items():
        assert cells(table, method)[column].endswith(f"“{words}”")


def test_one_validation_is_no_curve():
    records = make_study()
    for record in records:
        record.validation = record.validation[-1:]
    table = article(records, None)
    assert cells(table, "lora")["Convergence"].startswith("–")
    assert "No convergence of full, lora, qlora, dora, galore" in table.caption[-1]


def test_a_score_that_the_base_has_too_is_nobodys_strength():
    for study, told in (("quickstart", True), ("gsm8k", False)):
        folder = ROOT / "results" / "reference" / study
        table = article(read_study(folder)[0], folder)
        assert ("(tied with " in cells(table, "dora")["Best for"]) == told


def test_nothing_tuned_is_an_empty_table():
    table = article([make_record("base")], None)
    assert table.rows == []
    assert render(table, "md")


def test_the_command(tmp_path, capsys):
    for record in make_study():
        write(record, tmp_path / "demo" / f"{record.cell.name}.json")
    assert main(["table", "--article", "--results-dir", str(tmp_path)]) == 0
    assert "needs the least memory" in capsys.readouterr().out
    assert main(["table", "--article", "--columns", "method", "--results-dir", str(tmp_path)]) == 2
    assert "--article" in capsys.readouterr().err
