"""Claims on LoRA: its parameters, its memory, and its stability at very low rank."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from harness.plugins.articles.claims import OPEN, Bounds, Claims, Judgement, judged, lacking, points, times, unchosen
from harness.plugins.articles.evidence import Evidence
from harness.plugins.articles.rules import ATTENTION, adapt_settings, exact, memory_ratio
from harness.record import Record
from harness.report import statistics
from harness.report.frame import TRAIN_MEMORY
from harness.report.statistics import ALPHA, Interval, Outcomes

CLAIMS = Claims()
LOW, HIGH = 4, 16  # very low ranks are at most LOW; they are compared with ranks of at least HIGH
SMALLEST = {"q_proj", "v_proj"}  # the matrices of the smallest adapter
CUT = 10_000.0  # times fewer trainable parameters
WORSE = 1.1  # times the loss of its first step: a run that ends above that has diverged


@CLAIMS.claim(
    "lora-parameters",
    "LoRA reduces trainable parameters by up to 10,000× (with the smallest adapter: rank 1 on queries and values)",
    "sweep method=lora rank=1 'method.adapt.target_modules=[q_proj,v_proj]' train.max_steps=1 'eval.tasks=[]' "
    "infer.repeats=0 study=smallest",
    times,
)
def lora_parameters(at: Evidence) -> Judgement:
    """Exact. Only the smallest possible adapter can refute it, and one on fewer matrices than that is no evidence."""
    cells = [(r, r.parameters) for r in at.of("lora") if r.parameters and not _smaller(r)]
    if not cells:
        return lacking("lora on queries and values of all layers")
    least, parameters = min(cells, key=lambda cell: cell[1].trainable)
    cut = (parameters.total - parameters.trainable) / parameters.trainable
    smallest = least.cell.rank == 1 and set(adapt_settings(least).get("target_modules", ())) == SMALLEST
    unfair = "" if smallest or cut > CUT else "A smaller adapter is possible"
    return exact(cut, Bounds(low=CUT, ratio=True), None, (least.cell.name,), unfair)


def _smaller(record: Record) -> bool:
    """Whether the adapter is on some layers alone, or on attention without queries or without values."""
    adapt = adapt_settings(record)
    targets = adapt.get("target_modules")
    lacks = isinstance(targets, list) and set(targets) <= ATTENTION and not set(targets) >= SMALLEST
    return bool(adapt.get("layers_to_transform")) or lacks


@CLAIMS.claim("lora-memory", "LoRA reduces memory drastically (to at most half of full's peak)", "sweep memory", times)
def lora_memory(at: Evidence) -> Judgement:
    return memory_ratio(at, "lora", "full", TRAIN_MEMORY, 0, 0.5)


@CLAIMS.claim(
    "low-rank-spread",
    "LoRA is unstable at very low rank: validation losses vary between seeds (at ranks up to 4, at least twice as much "
    "as at 16 and above)",
    "sweep seeds",
    times,
)
def low_rank_spread(at: Evidence) -> Judgement:
    """The ratio of two standard deviations, each pooled over ranks: `statistics.spread_ratio`."""
    chosen = {rank: choice for (method, rank), choice in at.choices("rank").items() if method == "lora" and rank}
    groups = [[c for r, c in chosen.items() if r <= LOW], [c for r, c in chosen.items() if r >= HIGH]]
    if not all(groups):
        return unchosen(at, ["lora"], ["rank"], f"lora at ranks up to {LOW}", f"at {HIGH} and above")
    used = tuple(record.cell.name for group in groups for record in at.chosen(*group))
    losses = [[[r.validation[-1].loss for r in at.chosen(c) if r.validation] for c in group] for group in groups]
    seeds = min(len(values) for group in losses for values in group)
    if (spreads := statistics.spread_ratio(losses[0], losses[1])) is None:
        return Judgement(OPEN, None, seeds, None, used, "No variation between seeds to compare")
    judgement = judged(spreads.among, Bounds(low=2.0, ratio=True), seeds, used)
    return replace(judgement, why="Too few seeds") if judgement.decision == OPEN else judgement


@CLAIMS.claim(
    "low-rank-divergence",
    "LoRA is unstable at very low rank: more runs diverge (or end with a loss a tenth above their first) at ranks up "
    "to 4 than at 16 and above, at the same learning rates (at least 10 points more)",
    "sweep rank lr_scale=2,5,15,50",
    points,
)
def low_rank_divergence(at: Evidence) -> Judgement:
    """`statistics.difference_of_shares`, within learning rates; a setting is a rank at a rate."""
    settings = defaultdict(list)
    for record in at.records:
        rank = record.cell.rank
        ended = record.cell.method == "lora" and record.status in ("ok", "diverged")
        if ended and rank and (rank <= LOW or rank >= HIGH):
            settings[record.cell.lr, rank].append(record)
    outcomes: dict[float | None, tuple[list[Outcomes], list[Outcomes]]] = defaultdict(lambda: ([], []))
    for (lr, rank), members in settings.items():
        diverged = sum(map(_diverged, members))
        outcomes[lr][rank >= HIGH].append(Outcomes(diverged, len(members)))
    strata = {lr: sides for lr, sides in outcomes.items() if all(sides)}
    if not strata:
        return lacking(f"lora at ranks up to {LOW}", f"at {HIGH} and above")
    _, worth = statistics.difference_of_shares(strata)

    def intervals(comparisons: int) -> Interval:
        return statistics.difference_of_shares(strata, ALPHA / comparisons)[0]

    used = tuple(record.cell.name for (lr, _), members in settings.items() if lr in strata for record in members)
    judgement = judged(intervals, Bounds(low=0.1), round(worth), used, by_seeds=False)
    if judgement.decision != OPEN:
        return judgement
    runs = min(sum(o.runs for sides in strata.values() for o in sides[i]) for i in (0, 1))
    return replace(
        judgement, why="Too few settings: runs of a setting end alike" if worth < runs / 2 else "Too few runs"
    )


def _diverged(record: Record) -> bool:
    """Whether a run was lost, or ended worse than it began: its status says so only of one that knows nothing more."""
    if record.status == "diverged":
        return True
    if not record.validation or not record.train or not record.train.loss:
        return False
    return record.validation[-1].loss > WORSE * record.train.loss[0].loss
