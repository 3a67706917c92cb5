"""The article's claims, each judged by a rule of its own on the records of a study: supported, refuted or not decided.

The article is "Beyond LoRA". Where it says "far less" or "a bit", the claim's text says in brackets what is taken for
that. A rule gives an effect and its 95% interval, and a verdict where the whole interval is on one side of what the
claim says. Scores and speeds want two seeds or runs of each side: of one it is not known how another would differ.
Memory and counts of weights are exact. The intervals are of one claim each: of twenty true ones one may well be missed.

That LoRA mixes magnitude and direction, that models behind an API are worth comparing with, and that they can write
training data are no claims here: no record holds the changed weights, nor anything of such models.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import stats as distributions

from harness import units
from harness.record import Inference, Record, micro_batches
from harness.report import statistics
from harness.report.columns import ABSENT
from harness.report.frame import decoded_tokens, frame, measures, score_name
from harness.report.pairwise import items
from harness.report.select import Choice, select
from harness.report.statistics import Interval
from harness.report.table import Table

Decision = Literal["supported", "refuted", "not decided"]
SUPPORTED, REFUTED, OPEN = "supported", "refuted", "not decided"

TASKS = {
    "gsm8k": "gsm8k/exact_match/flexible-extract",
    "metamath": "gsm8k/exact_match/flexible-extract",
    "wordmath": "wordmath/exact_match/flexible-extract",
    "wordmath_short": "wordmath_short/exact_match/flexible-extract",
    "facts": "facts/acc/none",
    "facts_short": "facts_short/acc/none",
}
"""The score that judges what was learned, by data."""
FACTS = ("facts", "facts_short")  # of worlds that no model has read of
COMPLEX = ("gsm8k", "metamath", "wordmath")  # problems of several steps
MMLU, PLAIN_TEXT = "mmlu/acc/none", "plain_text/bits_per_byte/none"
ADAPTERS = ("lora", "qlora", "dora")
TUNED = ("full", *ADAPTERS, "galore")
LOW, HIGH = 4, 16  # ranks: very low ones are at most, those they are compared with at least
ALPHA = 0.05  # a corrected p-value below it is a difference
MATTERS = 0.01  # a gain in a score that is surely smaller is none
FAR = 3.0  # a learning rate that is surely further off than by this factor is another

CAPTION = [
    "Claims are those of the article “Beyond LoRA”; in brackets stands what its words are taken for. One is "
    "supported or refuted where the whole 95% interval of its effect is on one side of what it says. The "
    "intervals are of one claim each: of twenty that are true one may well be missed.",
    "A method (at equal rank: each rank) is judged in its setting of least validation loss, on the same items; "
    "a gain that is surely below a point is none. n is the fewest seeds (of speed and memory: runs) of a side. "
    "Memory and counts of weights are exact.",
]


@dataclass(frozen=True)
class Finding:
    """What a rule found.

    effect: in the claim's unit; its ends are nan where nothing tells them. seeds: the fewest of a side (or runs, for
    speed and memory); items: that each model was asked; records: the names of those it rests on. why: what a verdict
    could not be had for, or what it leaves out; may be empty.
    """

    decision: Decision
    effect: Interval | None = None
    seeds: int | None = None
    items: int | None = None
    records: tuple[str, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class Claim:
    """text: what is claimed, its vague words made exact in brackets. run: what decides it, after python -m harness.

    shown: how an effect is written.
    """

    name: str
    text: str
    run: str
    shown: Callable[[float], str]
    rule: Callable[[Evidence], Finding]


@dataclass(frozen=True)
class Verdict:
    """A claim's finding in one place: study, model and data."""

    claim: Claim
    place: tuple[str, str, str]
    finding: Finding


CLAIMS: dict[str, Claim] = {}


def verdicts(records: Sequence[Record], folder: Path | None) -> list[Verdict]:
    """A verdict on each claim in each place where the records decide it, else in the one where they say most of it.

    The order of `records` does not matter.

    records: usually of one study; folder: where its items lie, without which no scores are compared.
    """
    places = defaultdict(list)
    for record in records:
        places[record.study, record.cell.model, record.cell.data].append(record)
    evidence = {place: Evidence(places[place], folder) for place in sorted(places, key=str)}
    found = []
    for claim in CLAIMS.values():
        each = [Verdict(claim, place, claim.rule(at)) for place, at in evidence.items()]
        decided = [verdict for verdict in each if verdict.finding.decision != OPEN]
        found += (
            decided
            or sorted(each, key=lambda verdict: (verdict.finding.effect is None, not verdict.finding.records))[:1]
        )
    return found


def table(found: Sequence[Verdict]) -> Table:
    """The verdicts as a table; `data` has a row each, with the names of the records and the numbers unrounded."""
    places = {name: [v.place[i] for v in found] for i, name in enumerate(("Study", "Model", "Data"))}
    columns = {name: texts for name, texts in places.items() if len(set(texts)) > 1}
    columns |= {
        "Claim": [v.claim.name for v in found],
        "Verdict": [v.finding.decision for v in found],
        "Effect": [_effect(v) for v in found],
        "n": [_size(v.finding) for v in found],
        "Records": [str(len(v.finding.records)) for v in found],
    }
    counts = [f"{[v.finding.decision for v in found].count(d)} {d}" for d in (SUPPORTED, REFUTED, OPEN)]
    studies = ", ".join(sorted(set(places["Study"])))
    return Table(
        title=f"{studies}: the article's claims: {', '.join(counts)}",
        columns=list(columns),
        rows=[list(row) for row in zip(*columns.values(), strict=True)],
        caption=[
            *(f"{claim.name}: {claim.text}." for claim in dict.fromkeys(v.claim for v in found)),
            *(f"{_where(v, columns)}: {v.finding.why}." for v in found if v.finding.why and v.finding.decision != OPEN),
            *(
                f"What decides {_where(v, columns)}: python -m harness {v.claim.run} ({v.finding.why})"
                for v in found
                if v.finding.decision == OPEN
            ),
            *CAPTION,
            "--format csv names the records.",
        ],
        data=pd.DataFrame([_data(v) for v in found]),
    )


def _effect(v: Verdict) -> str:
    effect, shown = v.finding.effect, v.claim.shown
    if effect is None:
        return ABSENT
    if math.isnan(effect.low) or effect.low == effect.high:
        return shown(effect.value)
    return f"{shown(effect.value)} ({shown(effect.low)} to {shown(effect.high)})"


def _size(finding: Finding) -> str:
    parts = [] if finding.seeds is None else [f"{finding.seeds}"]
    return " × ".join(parts + ([] if finding.items is None else [f"{finding.items:,} items"])) or ABSENT


def _where(v: Verdict, columns: dict[str, list[str]]) -> str:
    """The claim's name, with its place where the table has several."""
    shown = [name for name, column in zip(v.place, ("Study", "Model", "Data"), strict=True) if column in columns]
    return " ".join([v.claim.name, *(["of"] if shown else []), *shown])


def _data(v: Verdict) -> dict:
    study, model, data = v.place
    values = asdict(v.finding) | {"records": " ".join(v.finding.records)}
    effect = v.finding.effect or Interval(math.nan, math.nan, math.nan)
    del values["effect"]
    place = {"study": study, "model": model, "data": data}
    claim = {"claim": v.claim.name, "text": v.claim.text, "run": f"python -m harness {v.claim.run}"}
    return claim | place | {"effect": effect.value, "low": effect.low, "high": effect.high} | values


# How effects are written


def _times(value: float) -> str:
    return f"{value:,.0f}×" if value >= 100 else f"{units.significant(value, 3)}×"


def _points(value: float) -> str:
    return f"{100 * value:+.1f} points".replace("-", "−")


def _percent(value: float) -> str:
    return f"{100 * value:+.1f}%".replace("-", "−")


def _rate(value: float) -> str:
    return f"{value:.1e}"


# What rules ask of the records


class Evidence:
    """The records of one place, and their items."""

    def __init__(self, records: Sequence[Record], folder: Path | None):
        self.records, self._folder = records, folder
        self._choices: dict[tuple[str, ...], list[Choice]] = {}

    @cached_property
    def data(self) -> str:
        return self.records[0].cell.data

    @cached_property
    def _frame(self) -> pd.DataFrame:
        return frame(self.records)

    def of(self, *methods: str) -> list[Record]:
        """The finished records of `methods`."""
        return [r for r in self.records if r.cell.method in methods and r.status == "ok"]

    def choices(self, *by: str) -> dict[tuple, Choice]:
        """What was chosen for each method (by "rank": for each of its ranks, …), where something could be."""
        if by not in self._choices:
            self._choices[by] = select(self._frame, ("method", *by))
        return {choice.key: choice for choice in self._choices[by] if choice.index}

    def chosen(self, *choices: Choice) -> list[Record]:
        """The records of `choices`, by seed."""
        found = [self.records[i] for choice in choices for i in choice.index]
        return sorted(found, key=lambda record: record.cell.seed or 0)

    def sample(self, choices: Sequence[Choice], score: str) -> tuple[np.ndarray, tuple] | None:
        """(seeds, items) values of `score`, the mean over `choices`, and which items the columns are.

        None where the choices lack them, or were not asked the same.
        """
        groups = [self.chosen(choice) for choice in choices]
        scored = all(score in map(score_name, record.scores) for group in groups for record in group)
        if self._folder is None or not scored:
            return None
        found = [items(self._folder, group, score) for group in groups]
        if not all(found) or len({which for _, which in found}) > 1:
            return None
        seeds = min(len(values) for values, _ in found)
        return np.mean([values[:seeds] for values, _ in found], axis=0), found[0][1]


def claim(name: str, text: str, run: str, shown: Callable[[float], str]) -> Callable:
    """Registers a rule in `CLAIMS`."""

    def register(rule: Callable[[Evidence], Finding]) -> Callable[[Evidence], Finding]:
        CLAIMS[name] = Claim(name, text, run, shown, rule)
        return rule

    return register


def judge(effect: Interval, low: float = -math.inf, high: float = math.inf) -> Decision:
    """Whether the effect is between `low` and `high`, if its interval tells."""
    if low < effect.low and effect.high < high:
        return SUPPORTED
    return REFUTED if effect.high < low or effect.low > high else OPEN


def better(gain: Interval) -> Decision:
    """Whether there is a gain; one that is surely below a point is none."""
    return SUPPORTED if gain.low > 0 else REFUTED if gain.high < MATTERS else OPEN


def _lacking(*what: str) -> Finding:
    return Finding(OPEN, why=f"No finished {' and '.join(what)}")


def _gain(
    at: Evidence,
    ones: Sequence[Choice],
    others: Sequence[Choice],
    score: str,
    decide: Callable[[Interval], Decision] = better,
) -> Finding:
    """By how much the mean score of `ones` exceeds that of `others`, paired on items."""
    records = [*at.chosen(*ones), *at.chosen(*others)]
    names = tuple(record.cell.name for record in records)
    one, other = at.sample(ones, score), at.sample(others, score)
    if one is None or other is None or one[1] != other[1]:
        return Finding(OPEN, records=names, why=f"No {score.partition('/')[0]} scores of the same items")
    found = statistics.differences([one[0], other[0]])[0, 1]
    effect = Interval(found.value, found.low, found.high)
    counts = [
        len(values)
        for values, side in ((one[0], ones), (other[0], others))
        if at.chosen(*side)[0].cell.seed is not None
    ]
    decision, why = decide(effect), ""
    if min(counts) < 2:
        decision, why = OPEN, "One seed"
    elif decision == OPEN:
        why = "The interval holds both"
    return Finding(decision, effect, min(counts), one[0].shape[1], names, why)


def _matched(at: Evidence, one: str, other: str) -> Iterator[tuple[str, list[Record], list[Record]]]:
    """Finished records of two methods that differ in nothing else that costs: equal batches, and at equal rank the
    same layers adapted, where both adapt."""
    sides = [defaultdict(list), defaultdict(list)]
    ranked = all(any(r.cell.rank is not None for r in at.of(method)) for method in (one, other))
    adapting = all(any(_adapt(r) for r in at.of(method)) for method in (one, other))
    for side, method in zip(sides, (one, other), strict=True):
        for record in at.of(method):
            train = {k: v for k, v in _training(record).items() if k != "seed"}
            adapt = (
                {k: v for k, v in _adapt(record).items() if k not in ("use_dora", "lora_alpha")} if adapting else None
            )
            took = micro_batches(record)
            side[json.dumps([train, adapt, took], sort_keys=True), record.cell.rank if ranked else None].append(record)
    for key, members in sides[0].items():
        if key not in sides[1]:
            continue
        by_rank = defaultdict(list)
        for record in members:
            by_rank[record.cell.rank].append(record)
        for rank, group in by_rank.items():
            size, _ = micro_batches(group[0]) or (None, None)
            yield f"r={rank}, train.batch_size={size}", group, sides[1][key]


def _training(record: Record) -> dict[str, Any]:
    """The settings of its training loop; none where a record of other hands has something else there."""
    train = record.cell.settings.get("train")
    return train if isinstance(train, dict) else {}


def _adapt(record: Record) -> dict[str, Any]:
    """How the model was adapted, as far as the record's settings, a free dict, tell."""
    method = record.cell.settings.get("method")
    return (method.get("adapt") or {}) if isinstance(method, dict) else {}


def _ratio(at: Evidence, one: str, other: str, measure: str, low: float, high: float, exact: bool = False) -> Finding:
    """Whether `one`'s measure over `other`'s is between `low` and `high`, wherever both were measured alike.

    exact: it has no error, and one run of each is enough. The effect is the one that is nearest to failing.
    """
    found = []
    for where, ones, others in _matched(at, one, other):
        sides = [[v for r in side if (v := measures(r)[measure]) is not None] for side in (ones, others)]
        if not all(sides):
            continue
        effect = statistics.ratio_interval(*sides)
        value = float(np.mean(sides[0]) / np.mean(sides[1]))
        if effect is None:
            effect = Interval(value, value, value) if exact else Interval(value, math.nan, math.nan)
        decision = judge(effect, low, high)
        why = "One run" if math.isnan(effect.low) else "The interval holds both" if decision == OPEN else ""
        names = tuple(record.cell.name for record in (*ones, *others))
        found.append((where, Finding(decision, effect, min(map(len, sides)), None, names, why)))
    return _everywhere(found, low, high) if found else _lacking(one, other)


def _everywhere(found: list[tuple[str, Finding]], low: float, high: float) -> Finding:
    """One finding of several that should agree: the one nearest to failing; not decided where they differ."""
    worst = min((f for _, f in found), key=lambda f: min(f.effect.value - low, high - f.effect.value))
    decisions = {finding.decision for _, finding in found}
    names = tuple(dict.fromkeys(name for _, finding in found for name in finding.records))
    decision, why = worst.decision, worst.why
    if len(decisions) > 1:
        decision = OPEN
        why = "; ".join(f"{finding.decision} at {where}" for where, finding in found)
    return Finding(decision, worst.effect, min(f.seeds for _, f in found), None, names, why)


# LoRA


@claim(
    "lora-parameters",
    "LoRA cuts trainable parameters by up to 10,000× (its smallest adapter here: rank 1 on the queries and values)",
    "sweep method=lora rank=1 'method.adapt.target_modules=[q_proj,v_proj]' train.max_steps=1 eval.tasks=[] "
    "infer.repeats=0 study=smallest",
    _times,
)
def lora_parameters(at: Evidence) -> Finding:
    """Exact. A smaller cut refutes it only where no adapter can be smaller."""
    cells = [record for record in at.of("lora") if record.parameters]
    if not cells:
        return _lacking("lora")
    least = min(cells, key=lambda record: record.parameters.trainable)
    cut = (least.parameters.total - least.parameters.trainable) / least.parameters.trainable
    smallest = least.cell.rank == 1 and set(_adapt(least).get("target_modules", ())) == {"q_proj", "v_proj"}
    decision = SUPPORTED if cut >= 10_000 else REFUTED if smallest else OPEN
    why = "Smaller adapters can be made" if decision == OPEN else ""
    return Finding(decision, Interval(cut, cut, cut), None, None, (least.cell.name,), why)


@claim("lora-memory", "LoRA cuts memory drastically (to half of full's peak, or less)", "sweep memory", _times)
def lora_memory(at: Evidence) -> Finding:
    return _ratio(at, "lora", "full", "train_allocated_peak", 0, 0.5, exact=True)


@claim(
    "low-rank-spread",
    "LoRA is unstable at very low rank: over seeds, validation losses at ranks up to 4 spread (at least twice as much "
    "as at 16 and above)",
    "sweep seeds",
    _times,
)
def low_rank_spread(at: Evidence) -> Finding:
    """The ratio of standard deviations, each pooled over ranks; its interval by the F distribution."""
    chosen = {choice.rank: choice for (method, rank), choice in at.choices("rank").items() if method == "lora" and rank}
    groups = [[c for r, c in chosen.items() if r <= LOW], [c for r, c in chosen.items() if r >= HIGH]]
    if not all(groups):
        return _lacking(f"lora at ranks up to {LOW}", f"at {HIGH} and above")
    names = tuple(record.cell.name for group in groups for record in at.chosen(*group))
    losses = [[[r.validation[-1].loss for r in at.chosen(c) if r.validation] for c in group] for group in groups]
    freedom = [sum(max(0, len(values) - 1) for values in group) for group in losses]
    seeds = min(len(values) for group in losses for values in group)
    squares = [sum(len(values) * np.var(values) for values in group if values) for group in losses]
    if not all(freedom) or not all(squares):
        return Finding(OPEN, None, seeds, None, names, "No spread over seeds to compare")
    ratio = (squares[0] / freedom[0]) / (squares[1] / freedom[1])
    ends = ratio / distributions.f.ppf(statistics.TAILS[::-1], *freedom)
    effect = Interval(*(float(value) ** 0.5 for value in (ratio, *ends)))
    decision = judge(effect, low=2)
    return Finding(decision, effect, seeds, None, names, "Too few seeds" if decision == OPEN else "")


@claim(
    "low-rank-divergence",
    "LoRA is unstable at very low rank: more of its runs diverge at ranks up to 4 (by 10 points and more of all) than "
    "at 16 and above, at the same learning rates",
    "sweep rank lr_scale=2,5,15,50",
    _points,
)
def low_rank_divergence(at: Evidence) -> Finding:
    """The difference of two shares, its interval by Newcombe (Stat. Med. 17, 1998, method 10)."""
    runs = [r for r in at.records if r.cell.method == "lora" and r.cell.rank and r.status in ("ok", "diverged")]
    sides = [[r for r in runs if r.cell.rank <= LOW], [r for r in runs if r.cell.rank >= HIGH]]
    shared = set.intersection(*({r.cell.lr for r in side} for side in sides))
    sides = [[r for r in side if r.cell.lr in shared] for side in sides]
    if not all(sides):
        return _lacking(f"lora at ranks up to {LOW}", f"at {HIGH} and above")
    shares, lows, highs = [], [], []
    for side in sides:
        found = distributions.binomtest(sum(r.status == "diverged" for r in side), len(side))
        ends = found.proportion_ci(method="wilson")
        shares, lows, highs = [*shares, found.statistic], [*lows, ends.low], [*highs, ends.high]
    value = shares[0] - shares[1]
    below = math.hypot(shares[0] - lows[0], highs[1] - shares[1])
    above = math.hypot(highs[0] - shares[0], shares[1] - lows[1])
    effect = Interval(value, value - below, value + above)
    decision = judge(effect, low=0.1)
    names = tuple(record.cell.name for side in sides for record in side)
    why = "Too few runs" if decision == OPEN else ""
    return Finding(decision, effect, min(map(len, sides)), None, names, why)


# DoRA


def _dora_gain(at: Evidence, score: str) -> Finding:
    chosen = at.choices("rank")
    ranks = [rank for method, rank in chosen if method == "lora" and ("dora", rank) in chosen]
    if not ranks:
        return _lacking("lora", "dora of the same rank")
    return _gain(at, [chosen["dora", rank] for rank in ranks], [chosen["lora", rank] for rank in ranks], score)


@claim(
    "dora-task",
    "DoRA beats LoRA at the same rank on what they were tuned for (the article: GSM8K)",
    "sweep rank",
    _points,
)
def dora_task(at: Evidence) -> Finding:
    return _dora_gain(at, TASKS[at.data]) if at.data in TASKS else _lacking("score of the data's own task")


@claim("dora-mmlu", "DoRA beats LoRA at the same rank on MMLU", "sweep forgetting data_root=DIR", _points)
def dora_mmlu(at: Evidence) -> Finding:
    return _dora_gain(at, MMLU)


@claim(
    "dora-full",
    "DoRA matches full fine-tuning on what both were tuned for (it is at most 2 points behind)",
    "sweep lr",
    _points,
)
def dora_full(at: Evidence) -> Finding:
    chosen = at.choices()
    if at.data not in TASKS or ("dora",) not in chosen or ("full",) not in chosen:
        return _lacking("dora", "full")
    return _gain(at, [chosen["dora",]], [chosen["full",]], TASKS[at.data], lambda effect: judge(effect, low=-0.02))


@claim(
    "dora-parameters",
    "DoRA keeps the magnitude apart at little cost (it trains at most 10% more weights than LoRA at the same rank)",
    "sweep method=lora,dora rank=4,16,64 train.max_steps=1 eval.tasks=[] infer.repeats=0 study=sizes",
    _times,
)
def dora_parameters(at: Evidence) -> Finding:
    return _ratio(at, "dora", "lora", "trainable", 1, 1.1, exact=True)


@claim(
    "dora-training",
    "DoRA trains a bit slower than LoRA (a step takes more, but at most 1.5 times as long)",
    "sweep seeds",
    _times,
)
def dora_training(at: Evidence) -> Finding:
    return _ratio(at, "dora", "lora", "step_seconds_median", 1, 1.5)


@claim(
    "dora-serving",
    "Once merged, DoRA answers as fast as LoRA (within 10%)",
    "sweep seeds",
    _times,
)
def dora_serving(at: Evidence) -> Finding:
    """The ratio of decoding rates."""
    found = []
    for where, *sides in _matched(at, "dora", "lora"):
        speeds = [[(r, speed) for r in side if (speed := r.inference.get("merged"))] for side in sides]
        if not all(speeds):
            continue
        seconds = [[_token_seconds(speed) for _, speed in side] for side in speeds]
        effect = statistics.speed_ratio(*seconds)
        names = tuple(record.cell.name for side in speeds for record, _ in side)
        runs = min(map(len, speeds))
        if effect is None or runs < 2:
            value = effect.value if effect else math.nan
            found.append((where, Finding(OPEN, Interval(value, math.nan, math.nan), runs, None, names, "One run")))
        else:
            decision = judge(effect, 1 / 1.1, 1.1)
            why = "The interval holds both" if decision == OPEN else ""
            found.append((where, Finding(decision, effect, runs, None, names, why)))
    return _everywhere(found, 1 / 1.1, 1.1) if found else _lacking("merged dora", "lora with inference measured")


def _token_seconds(speed: Inference) -> list[float]:
    return [seconds / decoded_tokens(speed) for seconds in speed.decode_seconds]


# Memory


@claim(
    "qlora-memory",
    "QLoRA needs the least memory of all ways to tune",
    "sweep memory",
    _times,
)
def qlora_memory(at: Evidence) -> Finding:
    """Over the next of the others."""
    others = [method for method in ("full", "lora", "dora", "galore") if at.of(method)]
    if not at.of("qlora") or len(others) < 4:
        return _lacking("qlora", "all of full, lora, dora and galore")
    found = [(other, _ratio(at, "qlora", other, "train_allocated_peak", 0, 1, exact=True)) for other in others]
    return _all(found, 0, 1)


@claim(
    "dora-memory",
    "DoRA takes as much memory as LoRA (within 10%)",
    "sweep memory",
    _times,
)
def dora_memory(at: Evidence) -> Finding:
    return _ratio(at, "dora", "lora", "train_allocated_peak", 1 / 1.1, 1.1, exact=True)


@claim(
    "adapters-galore-memory",
    "LoRA and DoRA take less memory than GaLore",
    "sweep memory",
    _times,
)
def adapters_galore_memory(at: Evidence) -> Finding:
    found = [(m, _ratio(at, m, "galore", "train_allocated_peak", 0, 1, exact=True)) for m in ("lora", "dora")]
    return _all(found, 0, 1)


@claim(
    "galore-memory",
    "GaLore takes far less memory than AdamW on all weights (at most two thirds of full's peak)",
    "sweep memory",
    _times,
)
def galore_memory(at: Evidence) -> Finding:
    return _ratio(at, "galore", "full", "train_allocated_peak", 0, 2 / 3, exact=True)


@claim(
    "galore-states",
    "GaLore's low-rank gradients shrink the optimizer's states (to half of AdamW's, or less)",
    "sweep memory",
    _times,
)
def galore_states(at: Evidence) -> Finding:
    return _ratio(at, "galore", "full", "peak_optimizer", 0, 0.5, exact=True)


@claim(
    "memory-order",
    "In memory, QLoRA < LoRA ≈ DoRA (within 10%) < GaLore < full",
    "sweep memory",
    _times,
)
def memory_order(at: Evidence) -> Finding:
    """Refuted by any of its parts; the effect is of the part that is nearest to failing, or has."""
    parts = {
        ("qlora", "lora"): (0, 1),
        ("dora", "lora"): (1 / 1.1, 1.1),
        ("dora", "galore"): (0, 1),
        ("galore", "full"): (0, 1),
    }
    found = [
        (f"{one}/{other}", _ratio(at, one, other, "train_allocated_peak", low, high, exact=True))
        for (one, other), (low, high) in parts.items()
    ]
    failed = [(part, finding) for part, finding in found if finding.decision == REFUTED]
    if not failed:
        return _all(found, 0, 1)
    part, finding = failed[0]
    names = tuple(dict.fromkeys(name for _, f in found for name in f.records))
    return Finding(REFUTED, finding.effect, finding.seeds, None, names, f"{part} is not as claimed")


def _all(found: list[tuple[str, Finding]], low: float, high: float) -> Finding:
    """A finding that holds if all do, and fails if one does."""
    if lacking := [finding for _, finding in found if finding.effect is None]:
        return lacking[0]
    names = tuple(dict.fromkeys(name for _, finding in found for name in finding.records))
    worst = min((f for _, f in found), key=lambda f: min(f.effect.value - low, high - f.effect.value))
    decisions = [finding.decision for _, finding in found]
    decision = REFUTED if REFUTED in decisions else OPEN if OPEN in decisions else SUPPORTED
    shown = next(f for _, f in found if f.decision == decision) if decision != SUPPORTED else worst
    why = "; ".join(f"{of}: {f.why or f.decision}" for of, f in found if f.decision == OPEN) if decision == OPEN else ""
    return Finding(decision, shown.effect, min(f.seeds for _, f in found), None, names, why)


# GaLore


@claim(
    "galore-weights",
    "GaLore trains all weights (as full fine-tuning does)",
    "sweep method=full,galore train.max_steps=1 eval.tasks=[] infer.repeats=0 study=sizes",
    _times,
)
def galore_weights(at: Evidence) -> Finding:
    return _ratio(at, "galore", "full", "trainable", 1 - 1e-9, 1 + 1e-9, exact=True)


@claim(
    "galore-facts",
    "GaLore is best for wholly new knowledge (better than full fine-tuning, LoRA, QLoRA and DoRA on facts that no "
    "model can have known)",
    "sweep facts",
    _points,
)
def galore_facts(at: Evidence) -> Finding:
    """Supported if it is better than each, p-values corrected by Holm; refuted if it surely gains nothing over one."""
    chosen = at.choices()
    if at.data not in FACTS:
        return _lacking("cell that was tuned on facts")
    if wanting := [method for method in TUNED if (method,) not in chosen]:
        return _lacking(*wanting)
    found = {m: _gain(at, [chosen["galore",]], [chosen[m,]], TASKS[at.data]) for m in TUNED if m != "galore"}
    if lacking := [finding for finding in found.values() if finding.effect is None]:
        return lacking[0]
    rival = min(found.values(), key=lambda finding: finding.effect.value)
    samples = [at.sample([chosen[m,]], TASKS[at.data])[0] for m in ("galore", *found)]
    p = statistics.holm([statistics.differences([samples[0], other])[0, 1].p for other in samples[1:]])
    decisions = [finding.decision for finding in found.values()]
    won = all(decision == SUPPORTED for decision in decisions) and p.max() < ALPHA
    decision = SUPPORTED if won else REFUTED if REFUTED in decisions else OPEN
    names = tuple(dict.fromkeys(name for finding in found.values() for name in finding.records))
    seeds = min(finding.seeds for finding in found.values())
    why = "" if decision != OPEN else rival.why or "Not for all after correction"
    return Finding(decision, rival.effect, seeds, rival.items, names, why)


# Ranks, alpha and learning rates


@claim(
    "rank-capacity",
    "Complex tasks want r = 64 or 128 (better than 8 or 16 on problems of several steps)",
    "sweep rank",
    _points,
)
def rank_capacity(at: Evidence) -> Finding:
    """The mean over methods and ranks, each rank at its best learning rate."""
    if at.data not in COMPLEX:
        return _lacking("cell that was tuned on problems of several steps")
    chosen = at.choices("rank")
    groups = [[chosen[m, r] for m in ADAPTERS for r in ranks if (m, r) in chosen] for ranks in ((64, 128), (8, 16))]
    methods = [{choice.method for choice in group} for group in groups]
    groups = [[c for c in group if c.method in set.intersection(*methods)] for group in groups]
    if not all(groups):
        return _lacking("adapters of rank 64 or 128", "8 or 16")
    return _gain(at, *groups, TASKS[at.data])


def _alpha_gain(at: Evidence, times: int) -> Finding:
    chosen = at.choices("rank", "alpha")
    pairs = [
        (choice, chosen[method, rank, times * rank])
        for (method, rank, alpha), choice in chosen.items()
        if method in ADAPTERS and rank and alpha == 2 * rank and (method, rank, times * rank) in chosen
    ]
    if not pairs or at.data not in TASKS:
        return _lacking("adapters with alpha = 2r", f"alpha = {'' if times == 1 else times}r")
    return _gain(at, *zip(*pairs, strict=True), TASKS[at.data])


@claim("alpha-r", "alpha = 2r is better than alpha = r, each at its best learning rate", "sweep alpha", _points)
def alpha_r(at: Evidence) -> Finding:
    return _alpha_gain(at, 1)


@claim("alpha-4r", "alpha = 2r is better than alpha = 4r, each at its best learning rate", "sweep alpha", _points)
def alpha_4r(at: Evidence) -> Finding:
    return _alpha_gain(at, 4)


def _best_rate(at: Evidence, methods: Sequence[str]) -> Finding:
    """The best learning rates of `methods`, their geometric mean as the effect; never decided.

    The interval is what seeds and grid leave: for each seed of each method its best rate is known to lie between the
    middles towards the rates tried beside it.
    """
    means, lows, highs, names, counts = [], [], [], [], []
    for method in methods:
        choice = at.choices().get((method,))
        if choice is None:
            return _lacking(method)
        axes = (choice.rank, choice.alpha)
        beside = [r for r in at.of(method) if (r.cell.rank, r.cell.alpha) == axes and r.cell.lr and r.validation]
        names += [record.cell.name for record in beside]
        rates = sorted({record.cell.lr for record in beside})
        by_seed = defaultdict(list)
        for record in beside:
            by_seed[record.cell.seed].append((record.validation[-1].loss, record.cell.lr))
        best = [min(losses)[1] for losses in by_seed.values()]
        if not best:
            return Finding(OPEN, why=f"No validation losses of {method} by learning rate")
        if {rates[0], rates[-1]} & set(best):
            why = f"{method}'s best rate is at an end of those tried" if len(rates) > 1 else f"One rate of {method}"
            return Finding(OPEN, None, len(best), None, tuple(names), why)
        means.append(float(np.mean(np.log(best))))
        places = [rates.index(rate) for rate in best]
        lows.append(min(math.sqrt(rates[i] * rates[i - 1]) for i in places))
        highs.append(max(math.sqrt(rates[i] * rates[i + 1]) for i in places))
        counts.append(len(best))
    effect = Interval(math.exp(float(np.mean(means))), min(lows), max(highs))
    return Finding(OPEN, effect, min(counts), None, tuple(names), "One seed" if min(counts) < 2 else "")


def _near(found: Finding, rate: float) -> Finding:
    """Whether the rates found are within a factor of `FAR` of `rate`."""
    if found.effect is None or found.why:
        return found
    decision = judge(found.effect, rate / FAR, rate * FAR)
    why = "The interval holds both" if decision == OPEN else ""
    return Finding(decision, found.effect, found.seeds, None, found.records, why)


@claim(
    "lr-adapters",
    "2e-4 is the learning rate for PEFT (LoRA's, QLoRA's and DoRA's best are within 3×)",
    "sweep lr",
    _rate,
)
def lr_adapters(at: Evidence) -> Finding:
    return _near(_best_rate(at, ADAPTERS), 2e-4)


@claim("lr-full", "2e-5 is the learning rate for full fine-tuning (its best is within 3×)", "sweep lr", _rate)
def lr_full(at: Evidence) -> Finding:
    return _near(_best_rate(at, ["full"]), 2e-5)


@claim(
    "lr-ratio",
    "PEFT wants ten times the learning rate of full fine-tuning (3 to 30 times)",
    "sweep lr",
    _times,
)
def lr_ratio(at: Evidence) -> Finding:
    one, other = _best_rate(at, ADAPTERS), _best_rate(at, ["full"])
    for side in (one, other):
        if side.effect is None or side.why:
            return Finding(OPEN, None, side.seeds, None, side.records, side.why)
    a, b = one.effect, other.effect
    effect = Interval(a.value / b.value, a.low / b.high, a.high / b.low)
    return _near(Finding(OPEN, effect, min(one.seeds, other.seeds), None, one.records + other.records), 10)


# Forgetting


def _forgotten(at: Evidence, score: str, least: float, lower_is_better: bool) -> Finding:
    """Of the method that loses most against the base: supported if it surely lost `least`, Holm-corrected over the
    methods; refuted if each surely lost less."""
    chosen = at.choices()
    methods = [method for method in TUNED if (method,) in chosen]
    if ("base",) not in chosen or not methods:
        return _lacking("base", "tuned method")
    found, ps = {}, []
    for method in methods:
        sides = [[chosen["base",]], [chosen[method,]]]
        if lower_is_better:
            sides.reverse()
        finding = _gain(at, *sides, score, lambda effect: judge(effect, low=least))
        if finding.effect is None:
            return finding
        found[method] = finding
        ps.append(statistics.differences([at.sample(side, score)[0] for side in sides])[0, 1].p)
    corrected = dict(zip(methods, statistics.holm(ps), strict=True))
    worst = max(found, key=lambda method: found[method].effect.value)
    names = tuple(dict.fromkeys(name for finding in found.values() for name in finding.records))
    lost = [m for m, finding in found.items() if finding.decision == SUPPORTED and corrected[m] < ALPHA]
    decision = SUPPORTED if lost else OPEN
    if all(finding.decision == REFUTED for finding in found.values()):
        decision = REFUTED
    shown = found[worst]
    why = f"{worst} most" if decision != OPEN else shown.why or f"{worst}: not after correction"
    return Finding(decision, shown.effect, min(f.seeds for f in found.values()), shown.items, names, why)


@claim(
    "forgetting-mmlu",
    "Tuning forgets catastrophically (the method that forgets most loses 2 points and more of the base's MMLU)",
    "sweep forgetting data_root=DIR",
    _points,
)
def forgetting_mmlu(at: Evidence) -> Finding:
    return _forgotten(at, MMLU, 0.02, lower_is_better=False)


@claim(
    "forgetting-text",
    "Tuning forgets catastrophically (the method that forgets most needs 0.05 bits a byte more for plain English)",
    "sweep forgetting 'eval.tasks=[wordmath,plain_text]'",
    lambda value: f"{round(value, 3) + 0.0:+.3f} bits a byte".replace("-", "−"),
)
def forgetting_text(at: Evidence) -> Finding:
    return _forgotten(at, PLAIN_TEXT, 0.05, lower_is_better=True)
