"""Claims on DoRA against LoRA at equal rank, and against full fine-tuning."""

from __future__ import annotations

import math

from harness.articles.rules import STRADDLES, everywhere, gain, matched, ratio
from harness.record import Inference
from harness.report import statistics
from harness.report.claims import OPEN, Claims, Judgement, judge, lacking, points, times
from harness.report.evidence import Evidence
from harness.report.frame import decoded_tokens
from harness.report.headline import LEARNED, MMLU
from harness.report.statistics import Interval

CLAIMS = Claims()


def _dora_gain(at: Evidence, score: str) -> Judgement:
    chosen = at.choices("rank")
    ranks = [rank for method, rank in chosen if method == "lora" and ("dora", rank) in chosen]
    if not ranks:
        return lacking("lora", "dora of the same rank")
    return gain(at, [chosen["dora", rank] for rank in ranks], [chosen["lora", rank] for rank in ranks], score)


@CLAIMS.claim(
    "dora-task",
    "DoRA beats LoRA at the same rank on the task of the training data (the article: GSM8K)",
    "sweep rank",
    points,
)
def dora_task(at: Evidence) -> Judgement:
    return _dora_gain(at, LEARNED[at.data]) if at.data in LEARNED else lacking("cell with a score of its data's task")


@CLAIMS.claim("dora-mmlu", "DoRA beats LoRA at the same rank on MMLU", "sweep forgetting data_root=DIR", points)
def dora_mmlu(at: Evidence) -> Judgement:
    return _dora_gain(at, MMLU)


@CLAIMS.claim(
    "dora-full",
    "DoRA matches full fine-tuning on the task of the training data (at most 2 points behind)",
    "sweep lr",
    points,
)
def dora_full(at: Evidence) -> Judgement:
    chosen = at.choices()
    if at.data not in LEARNED or ("dora",) not in chosen or ("full",) not in chosen:
        return lacking("dora", "full")
    return gain(at, [chosen["dora",]], [chosen["full",]], LEARNED[at.data], lambda effect: judge(effect, low=-0.02))


@CLAIMS.claim(
    "dora-parameters",
    "DoRA separates the magnitude at little cost (at most 10% more trainable weights than LoRA at the same rank)",
    "sweep method=lora,dora rank=4,16,64 train.max_steps=1 eval.tasks=[] infer.repeats=0 study=sizes",
    times,
)
def dora_parameters(at: Evidence) -> Judgement:
    return ratio(at, "dora", "lora", "trainable", 1, 1.1, exact=True)


@CLAIMS.claim(
    "dora-training",
    "DoRA trains slightly slower than LoRA (a step takes 1 to 1.5 times as long)",
    "sweep seeds",
    times,
)
def dora_training(at: Evidence) -> Judgement:
    return ratio(at, "dora", "lora", "step_seconds_median", 1, 1.5)


@CLAIMS.claim(
    "dora-serving",
    "Once merged, DoRA is as fast as LoRA at inference (decoding rates within 10%)",
    "sweep seeds",
    times,
)
def dora_serving(at: Evidence) -> Judgement:
    """The ratio of decoding rates."""
    pairs = []
    for where, *sides in matched(at, "dora", "lora"):
        speeds = [[(r, speed) for r in side if (speed := r.inference.get("merged"))] for side in sides]
        if not all(speeds):
            continue
        seconds = [[_token_seconds(speed) for _, speed in side] for side in speeds]
        effect = statistics.speed_ratio(*seconds)
        used = tuple(record.cell.name for side in speeds for record, _ in side)
        runs = min(map(len, speeds))
        if effect is None or runs < 2:
            value = effect.value if effect else math.nan
            pairs.append((where, Judgement(OPEN, Interval(value, math.nan, math.nan), runs, None, used, "One run")))
        else:
            decision = judge(effect, 1 / 1.1, 1.1)
            why = STRADDLES if decision == OPEN else ""
            pairs.append((where, Judgement(decision, effect, runs, None, used, why)))
    return everywhere(pairs, 1 / 1.1, 1.1) if pairs else lacking("merged dora", "lora with inference measured")


def _token_seconds(speed: Inference) -> list[float]:
    return [seconds / decoded_tokens(speed) for seconds in speed.decode_seconds]
