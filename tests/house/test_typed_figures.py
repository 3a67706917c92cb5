"""Figures that stand in sentences of docs/, where `make publish` renders nothing, are those of the records."""

from __future__ import annotations

import functools
from statistics import fmean

import harness
from harness.config import ROOT
from harness.python.study import RecordedStudy
from harness.record import Record

BITS = "plain_text/bits_per_byte/none"


@functools.cache
def page(name: str) -> str:
    """Its text on one line, so that a phrase may stand on two."""
    return " ".join((ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8").split())


@functools.cache
def study(name: str) -> RecordedStudy:
    return harness.read(ROOT / "results" / "reference" / name)


def losses(name: str, data_set: str, rows: int) -> dict[str | int, list[float]]:
    """The last validation losses of a study of ranks, by rank, or by method without one."""
    by_setting: dict[str | int, list[float]] = {}
    for record in study(name).records:
        data = record.cell.settings.data
        if (data.name, data.limit) == (data_set, rows) and record.validation_loss is not None:
            by_setting.setdefault(record.cell.rank or record.cell.method, []).append(record.validation_loss)
    return by_setting


def test_what_the_quantised_base_of_the_skill_solves_and_forgets():
    best = study("study_skill").best().set_index("method")
    solved, bits = best["value"], best[BITS]
    said = f"solves {solved['base_nf4']:.1%} of the problems where the other solves {solved['base']:.1%}"
    assert said in page("studies")
    by_quantising = (bits["base_nf4"] - bits["base"]) / (bits["qlora"] - bits["base"])
    assert 0.4 < by_quantising < 0.6  # "about half", in two places
    assert "About half of QLoRA's loss is that of quantising" in page("studies")
    assert "About half of what QLoRA loses at 135M is lost by quantising" in page("verdicts")


def test_what_a_fourfold_rate_forgets_on_half_a_billion_weights():
    cells = study("gsm8k_0_5b").frame()
    (base,) = cells[cells["method"] == "base"][BITS]
    (high,) = cells[(cells["method"] == "full") & (cells["lr"] == 8e-5)][BITS]
    assert f"full fine-tuning lost {high - base:.2f} bits per byte (one seed)" in page("studies")


def test_what_lora_gains_on_half_a_billion_weights():
    pairs = study("gsm8k_0_5b").pairs()
    wanted = ("gsm8k/exact_match/flexible-extract", "lora", "base")
    (pair,) = [row for row in pairs.itertuples() if (row.score, row.better, row.other) == wanted]
    assert pair.low > 0
    assert pair.decision == "not decided"  # once all pairs are corrected for
    assert f"LoRA gains {100 * pair.difference:.1f} points" in page("studies")


def test_the_number_of_pairs_of_experiments():
    experiments = len({record.cell.id for record in study("peft_llama_3_2_3b").records})
    assert f"correction for all {experiments * (experiments - 1) // 2:,} pairs" in page("studies")


def test_what_batches_do_to_the_pilot_of_the_skill():
    cells = study("pilot_skill").frame()
    score = "held_out/solved/flexible-extract"
    full = {row["setting"]: row[score] for _, row in cells[cells["method"] == "full"].iterrows()}
    small, large = (full[f"lr=3e-4 train.batch_size={size}"] for size in (8, 32))
    assert f"from {100 * small:.0f} to {100 * large:.0f}%" in page("study-design")


def test_what_the_pilot_of_facts_answers():
    cells = study("exposures").frame()
    (share,) = cells[cells["setting"] == "lr=3e-4 train.max_steps=60"]["facts_short/acc/none"]
    assert f"it answers {share:.0%} of questions" in page("study-design")


def test_the_noise_of_the_skill():
    lines = study("study_skill").power(0.03, 5)
    assert "it takes 15 seeds at least, and with 19 of them 310 items per model" in lines
    assert "Standard deviation between seeds: 2.6 points, 95% interval 1.9 to 3.9" in lines
    said = "seeds differ by 2.6 points (1.9 to 3.9)"
    assert said in page("study-design")
    assert "that takes 15 seeds at least, and with 19 of them 310 items" in page("study-design")


def test_the_losses_of_full_fine_tuning_and_of_ranks_on_many_facts():
    found = losses("rank_for_rows", "facts", 6400)
    means = {setting: fmean(each) for setting, each in found.items()}
    ranks = [means[rank] for rank in (1, 4, 16, 64)]
    assert f"({means['full']:.2f} beside {min(ranks):.2f} to {max(ranks):.2f})" in page("study-design")
    assert 0.4 < means["full"] / max(ranks) < means["full"] / min(ranks) < 0.6  # "about half"
    *others, last = sorted(found[64])
    assert f"ended at {last:.2f}, the others at {others[0]:.2f} to {others[-1]:.2f}" in page("study-design")


def test_dora_s_memory_beside_lora_s():
    peaks: dict[tuple[object, ...], dict[str, list[float]]] = {}
    for record, cell in zip(study("study_memory").records, study("study_memory").frame().itertuples(), strict=True):
        assert record.cell.name == cell.name
        if cell.method in ("lora", "dora") and cell.rank == 16:
            peaks.setdefault(_place(record), {}).setdefault(cell.method, []).append(cell.train_allocated_peak)
    ratios = [fmean(peak["dora"]) / fmean(peak["lora"]) for peak in peaks.values()]
    assert len(ratios) == 8  # "eight settings"
    said = (
        f"DoRA takes {min(ratios):.2f} to {max(ratios):.2f} times LoRA's memory in the eight settings of `study_memory`"
    )
    assert said in page("verdicts")
    best = study("study_speed").best().set_index("method")["train_allocated_peak"]
    assert f"and {best['dora'] / best['lora']:.2f} times in `study_speed`" in page("verdicts")


def _place(record: Record) -> tuple[object, ...]:
    settings = record.cell.settings
    return settings.model.dtype, settings.train.batch_size, settings.train.gradient_checkpointing


def test_the_speed_of_lora_in_the_study_of_speed():
    best = study("study_speed").best().set_index("method")["tokens_per_second_steady"]
    assert f"({best['lora']:.0f} tokens per second of LoRA, not 497)" in page("study-design")


def test_the_least_losses_by_rank_and_alpha():
    by_rate: dict[tuple[int, float], dict[float, list[float]]] = {}
    for record in study("study_alpha_rank").records:
        rank, alpha, lr, loss = record.cell.rank, record.cell.alpha, record.cell.lr, record.validation_loss
        if rank is not None and alpha is not None and lr is not None and loss is not None:
            by_rate.setdefault((rank, alpha), {}).setdefault(lr, []).append(loss)
    means = {setting: {lr: fmean(losses) for lr, losses in each.items()} for setting, each in by_rate.items()}
    best = {setting: min(each, key=each.__getitem__) for setting, each in means.items()}
    assert best == {(4, 8.0): 1.2e-3, (64, 8.0): 1.2e-3, (64, 128.0): 5e-4}
    least = {setting: means[setting][lr] for setting, lr in best.items()}
    said = f"are both at 1.2e-3 ({least[4, 8.0]:.3f} and {least[64, 8.0]:.3f}), and that of rank 64 with alpha = 128"
    assert said in page("study-design")
    assert f"is at 5e-4 ({least[64, 128.0]:.3f}, and {means[64, 128.0][2e-4]:.3f} at 2e-4)" in page("study-design")


def test_what_twice_the_alpha_gains_on_fresh_seeds():
    cells = study("study_alpha_fresh").frame()
    score = cells.groupby("alpha")["held_out/solved/flexible-extract"].mean()
    assert [*score.index] == [16.0, 32.0]
    assert f"`2r` scores {100 * (score[32.0] - score[16.0]):.1f} points more than `r`" in page("studies")
