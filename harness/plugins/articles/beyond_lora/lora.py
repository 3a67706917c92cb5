"""Claims on LoRA: its parameters, its memory, its stability at very low rank, and what it learns."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean

from harness.plugins.articles.beyond_lora import gpt3
from harness.plugins.articles.beyond_lora.data_sets import FACTS, NUMERICAL, trained_on
from harness.plugins.articles.claims import OPEN, Bounds, Judgement, judged, lacking, times, unchosen
from harness.plugins.articles.evidence import Evidence
from harness.plugins.articles.rules import adapt_settings, exact, gain, memory_ratio
from harness.record import Record
from harness.report import statistics
from harness.report.frame import TRAIN_MEMORY
from harness.report.statistics import ALPHA, Interval, Outcomes

LOW, HIGH = 4, 16  # very low ranks are at most LOW; they are compared with ranks of at least HIGH
CUT = 10_000.0  # times fewer trainable parameters
WORSE = 1.1  # times the loss of its first step: a run that ends above that has diverged
NEAR = 10.0  # a rate within this factor of the best one of its rank is one that a user may take

TWICE = math.sqrt(2)
"""Times the standard deviation from which as sure a mean takes twice the seeds."""
SPREADS = Bounds(low=TWICE, small=(1 / TWICE, TWICE), ratio=True, margin="1.4 times", more="more", less="less")

TENTH = 0.1
SHARES = Bounds(low=TENTH, small=(-TENTH, TENTH), margin="10 points", more="more", less="fewer")


def lora_parameters(at: Evidence) -> Judgement:
    """Exact, of the model that the article means; the remark has the smallest adapter of the records."""
    cells = [(record, counts) for record in at.finished("lora") if (counts := record.parameters) and counts.trainable]
    if not cells:
        return lacking("lora")
    least, parameters = min(cells, key=lambda cell: cell[1].trainable)
    own = (parameters.total - parameters.trainable) / parameters.trainable
    cut = gpt3.weights() / gpt3.adapter(rank=1)
    judgement = exact(cut, Bounds(low=CUT, ratio=True), None, (least.cell.name,))
    rank = "" if least.cell.rank is None else f" (r={least.cell.rank})"
    why = f"Counted on {gpt3.NAME}; the smallest adapter of {least.study}{rank} cuts {least.cell.model} by {times(own)}"
    return replace(judgement, why=why)


def lora_memory(at: Evidence) -> Judgement:
    return memory_ratio(at, "lora", "full", TRAIN_MEMORY, 0, 0.5)


def low_rank_spread(at: Evidence) -> Judgement:
    chosen = {rank: choice for (method, rank), choice in at.choices("rank").items() if method == "lora" and rank}
    low, high = [c for r, c in chosen.items() if r <= LOW], [c for r, c in chosen.items() if r >= HIGH]
    if not low or not high:
        return unchosen(at, ["lora"], ["rank"], f"lora at ranks up to {LOW}", f"at {HIGH} and above")
    return spread(*([at.chosen(choice) for choice in side] for side in (low, high)))


def spread(ones: Sequence[Sequence[Record]], others: Sequence[Sequence[Record]]) -> Judgement:
    """The judgement on the claim that last validation losses vary more between the seeds of `ones` than of `others`.

    Each is the records of several settings. The effect is the ratio of two standard deviations, each pooled over
    settings: `statistics.spread_ratio`.
    """
    used = tuple(record.cell.name for side in (ones, others) for group in side for record in group)
    losses = [[[r.validation[-1].loss for r in group if r.validation] for group in side] for side in (ones, others)]
    seeds = min(len(values) for side in losses for values in side)
    if (ratio := statistics.spread_ratio(losses[0], losses[1])) is None:
        return Judgement(OPEN, None, seeds, None, used, "No variation between seeds to compare")
    return judged(ratio.among, SPREADS, seeds, used)


def low_rank_divergence(at: Evidence) -> Judgement:
    """`statistics.difference_of_shares`, within learning rates of adapters on the same layers; a setting is a rank at a
    rate."""
    settings: dict[tuple[str, float, int], list[Record]] = defaultdict(list)
    for record in at.records:
        rank = record.cell.rank
        ended = record.cell.method == "lora" and record.status in ("ok", "diverged")
        if ended and record.cell.lr and rank and (rank <= LOW or rank >= HIGH):
            settings[_layers(record), record.cell.lr, rank].append(record)
    usable = _usable([record for members in settings.values() for record in members])
    near = {setting: members for setting, members in settings.items() if usable(*setting)}
    outcomes: dict[tuple[str, float], tuple[list[Outcomes], list[Outcomes]]] = defaultdict(lambda: ([], []))
    for (layers, lr, rank), members in near.items():
        outcomes[layers, lr][rank >= HIGH].append(Outcomes(sum(map(_diverged, members)), len(members)))
    strata = {stratum: sides for stratum, sides in outcomes.items() if all(sides)}
    if not strata:
        return lacking(f"lora at ranks up to {LOW}", f"at {HIGH} and above, at rates near the best")
    _, worth = statistics.difference_of_shares(strata)

    def intervals(comparisons: float) -> Interval:
        return statistics.difference_of_shares(strata, ALPHA / comparisons)[0]

    used = tuple(r.cell.name for (layers, lr, _), members in near.items() if (layers, lr) in strata for r in members)
    judgement = judged(intervals, SHARES, round(worth), used, by_seeds=False)
    runs = min(sum(o.runs for sides in strata.values() for o in sides[i]) for i in (0, 1))
    if judgement.decision == OPEN and worth < runs / 2:
        return replace(judgement, why="Too few settings: runs of a setting end alike")
    return judgement


def _layers(record: Record) -> str:
    """The settings of its adapter but for its rank, and alpha, which most studies change with it: where it is."""
    return json.dumps({k: v for k, v in adapt_settings(record).items() if k not in ("r", "lora_alpha")}, sort_keys=True)


def _usable(records: Sequence[Record]) -> Callable[[str, float, int], bool]:
    """Whether a rate is within NEAR of the best of a rank on these layers, which has the least mean of the last
    validation losses."""
    losses: dict[tuple[str, int], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        loss = record.validation_loss
        if record.cell.rank and record.cell.lr and record.status == "ok" and loss is not None:
            losses[_layers(record), record.cell.rank][record.cell.lr].append(loss)
    best = {place: min(by_rate, key=lambda lr: fmean(by_rate[lr])) for place, by_rate in losses.items()}
    far = math.log(NEAR) + 1e-9  # rounding
    return lambda layers, lr, rank: (layers, rank) in best and abs(math.log(lr / best[layers, rank])) <= far


def _diverged(record: Record) -> bool:
    """Whether a run was lost, or ended worse than it began: its status says so only of one that knows nothing more."""
    if record.status == "diverged":
        return True
    loss = record.validation_loss
    if loss is None or not record.train or not record.train.loss:
        return False
    return loss > WORSE * record.train.loss[0].loss


def lora_numerical(at: Evidence) -> Judgement:
    if not trained_on(at, NUMERICAL):
        return lacking("cell trained on problems whose answers are numbers")
    return _full_gain(at)


def lora_niche(at: Evidence) -> Judgement:
    if not trained_on(at, FACTS):
        return lacking("cell trained on facts")
    return _full_gain(at)


def _full_gain(at: Evidence) -> Judgement:
    chosen = at.choices()
    if at.learned is None:
        return lacking("cell with a score of its data's task")
    if ("full",) not in chosen or ("lora",) not in chosen:
        return unchosen(at, ("full", "lora"), [], "full", "lora")
    return gain(at, [chosen["full",]], [chosen["lora",]], at.learned)
