"""Claims on DoRA against LoRA at equal rank, and against full fine-tuning."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import median

from harness.plugins.articles.beyond_lora.lora import spread
from harness.plugins.articles.beyond_lora.table import curve, reach
from harness.plugins.articles.claims import OPEN, REFUTED, Bounds, Judgement, judged, lacking, times, unchosen
from harness.plugins.articles.evidence import Evidence
from harness.plugins.articles.rules import counted, exact, gain, time_ratio
from harness.record import Record
from harness.report import statistics
from harness.report.frame import decoded_tokens
from harness.report.headline import MMLU
from harness.report.select import Choice
from harness.report.statistics import Interval

BEHIND = 0.02  # by which a score still matches another
EQUIVALENT = 1.25  # times as many tokens, or as few, that count as equally fast


def _at_equal_ranks(at: Evidence) -> tuple[list[Choice], list[Choice]] | None:
    """DoRA's and LoRA's chosen settings at each rank that both have; None if there is none."""
    chosen = at.choices("rank")
    ranks = [rank for method, rank in chosen if method == "lora" and ("dora", rank) in chosen]
    # Fresh seeds are of the chosen rank alone; the seed that chose it takes no part.
    ranks = [rank for rank in ranks if chosen["lora", rank].confirmed and chosen["dora", rank].confirmed] or ranks
    if not ranks:
        return None
    return [chosen["dora", rank] for rank in ranks], [chosen["lora", rank] for rank in ranks]


def _dora_gain(at: Evidence, score: str) -> Judgement:
    sides = _at_equal_ranks(at)
    return gain(at, *sides, score) if sides else _no_equal_ranks(at)


def _no_equal_ranks(at: Evidence) -> Judgement:
    return unchosen(at, ("lora", "dora"), ["rank"], "lora", "dora of the same rank")


def dora_task(at: Evidence) -> Judgement:
    return _dora_gain(at, at.learned) if at.learned else lacking("cell with a score of its data's task")


def dora_mmlu(at: Evidence) -> Judgement:
    return _dora_gain(at, MMLU)


def dora_full(at: Evidence) -> Judgement:
    chosen = at.choices()
    if at.learned is None or ("dora",) not in chosen or ("full",) not in chosen:
        return unchosen(at, ("dora", "full"), [], "dora", "full")
    return gain(at, [chosen["dora",]], [chosen["full",]], at.learned, Bounds(low=-BEHIND))


def dora_parameters(at: Evidence) -> Judgement:
    return counted(at, "dora", "lora", "trainable", 1, 1.1)


def dora_training(at: Evidence) -> Judgement:
    return time_ratio(at, "dora", "lora", lambda record: at.numbers(record)["step_seconds_median"], 1, 1.5)


def dora_serving(at: Evidence) -> Judgement:
    """An identity, of which the ratio of decoding rates is a check: the effect is that of the weights' sizes.

    Merged weights of equal size are the same matrices of the same base, whose rates are equal by construction. Where no
    record has their size, the rates decide. Rates that differ all the same leave the claim open.
    """
    rates = _serving_rates(at)
    sizes = {method: {_merged_bytes(record) for record in at.finished(method)} - {None} for method in ("dora", "lora")}
    if not all(sizes.values()):
        return rates
    used = tuple(record.cell.name for record in at.finished("dora", "lora") if _merged_bytes(record))
    bounds = Bounds(1 / 1.1, 1.1, ratio=True)
    if sizes["dora"] != sizes["lora"]:
        dora, lora = (max(size for size in sizes[method] if size) for method in ("dora", "lora"))
        same = exact(dora / lora, bounds, None, used)
        return replace(same, decision=REFUTED, why="Merged weights differ in size", corrected=None)
    if rates.decision == REFUTED:
        why = "Merged weights have one size, but the measured rates differ: look at what else ran"
        return replace(rates, decision=OPEN, why=why, by_seeds=False, corrected=None)
    why = "Merged, both have the same matrices of the base"
    if rates.effect is not None:
        value, low, high = rates.effect
        ends = "" if math.isnan(low) else f" ({times(low)} to {times(high)})"
        why += f"; measured ratio of rates: {times(value)}{ends}"
    return replace(exact(1.0, bounds, None, used), why=why)


def _serving_rates(at: Evidence) -> Judgement:
    """The ratio of decoding rates."""
    slower = time_ratio(at, "dora", "lora", _token_seconds, 1 / 1.1, 1.1)
    if slower.effect is None:
        return slower
    value, low, high = slower.effect
    return replace(slower, effect=Interval(1 / value, 1 / high, 1 / low))


def _token_seconds(record: Record) -> float | None:
    """Median seconds of a decoded token of the merged model."""
    speed = record.inference.get("merged")
    if speed is None or not speed.decode_seconds or not (tokens := decoded_tokens(speed)):
        return None
    return median(speed.decode_seconds) / tokens


def _merged_bytes(record: Record) -> int | None:
    """The size of all weights as they are served, if the adapter is merged into them."""
    merged = record.merge is not None and record.merge.merged
    return record.disk.model if merged and record.disk else None


def dora_stability(at: Evidence) -> Judgement:
    sides = _at_equal_ranks(at)
    if sides is None:
        return _no_equal_ranks(at)
    dora, lora = ([at.chosen(choice) for choice in side] for side in sides)
    return spread(lora, dora)


def dora_convergence(at: Evidence) -> Judgement:
    chosen = at.choices()
    if ("dora",) not in chosen or ("full",) not in chosen:
        return unchosen(at, ("dora", "full"), [], "dora", "full")
    sides = [at.chosen(chosen[method,]) for method in ("dora", "full")]
    runs = [record for side in sides for record in side]
    used = tuple(record.cell.name for record in runs)
    if min(len(record.validation) for record in runs) < 2:
        return Judgement(OPEN, records=used, why="No validations during training (train.validate_every)")
    target = max(min(point.loss for point in record.validation) for record in runs)
    tokens = [{record.cell.seed: reach(*curve(record), target) for record in side} for side in sides]
    seeds = min(map(len, tokens))
    if (ratio := statistics.of_losses(tokens[:1], tokens[1:])) is None:
        return Judgement(OPEN, None, seeds, None, used, "One seed")
    early = any(record.validation[0].loss <= target for record in runs)
    unfair = "A run reached the common loss before its first validation" if early else ""
    return judged(ratio.among, Bounds(1 / EQUIVALENT, EQUIVALENT, ratio=True), ratio.units, used, unfair=unfair)
