"""Claims on DoRA against LoRA at equal rank, and against full fine-tuning."""

from __future__ import annotations

from dataclasses import replace
from statistics import median

from harness.plugins.articles.claims import Bounds, Claims, Judgement, lacking, points, times, unchosen
from harness.plugins.articles.evidence import Evidence
from harness.plugins.articles.rules import counted, gain, time_ratio
from harness.record import Record
from harness.report.frame import decoded_tokens
from harness.report.headline import MMLU
from harness.report.statistics import Interval

CLAIMS = Claims()
BEHIND = 0.02  # by which a score still matches another


def _dora_gain(at: Evidence, score: str) -> Judgement:
    chosen = at.choices("rank")
    ranks = [rank for method, rank in chosen if method == "lora" and ("dora", rank) in chosen]
    if not ranks:
        return unchosen(at, ("lora", "dora"), ["rank"], "lora", "dora of the same rank")
    # Fresh seeds are of the chosen rank alone; the seed that chose it takes no part.
    ranks = [rank for rank in ranks if chosen["lora", rank].confirmed and chosen["dora", rank].confirmed] or ranks
    return gain(at, [chosen["dora", rank] for rank in ranks], [chosen["lora", rank] for rank in ranks], score)


@CLAIMS.claim(
    "dora-task",
    "DoRA beats LoRA at the same rank on the task of the training data (the article: GSM8K; by at least 1 point)",
    "sweep rank",
    points,
)
def dora_task(at: Evidence) -> Judgement:
    return _dora_gain(at, at.learned) if at.learned else lacking("cell with a score of its data's task")


@CLAIMS.claim(
    "dora-mmlu",
    "DoRA beats LoRA at the same rank on MMLU (by at least 1 point)",
    "sweep forgetting data_root=DIR",
    points,
)
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
    if at.learned is None or ("dora",) not in chosen or ("full",) not in chosen:
        return unchosen(at, ("dora", "full"), [], "dora", "full")
    return gain(at, [chosen["dora",]], [chosen["full",]], at.learned, Bounds(low=-BEHIND))


@CLAIMS.claim(
    "dora-parameters",
    "DoRA separates the magnitude at little cost (at most 10% more trainable weights than LoRA at the same rank)",
    "sweep method=lora,dora rank=4,16,64 train.max_steps=1 'eval.tasks=[]' infer.repeats=0 study=sizes",
    times,
)
def dora_parameters(at: Evidence) -> Judgement:
    return counted(at, "dora", "lora", "trainable", 1, 1.1)


@CLAIMS.claim(
    "dora-training",
    "DoRA trains slightly slower than LoRA (a step takes 1 to 1.5 times as long)",
    "sweep seeds",
    times,
)
def dora_training(at: Evidence) -> Judgement:
    return time_ratio(at, "dora", "lora", lambda record: at.numbers(record)["step_seconds_median"], 1, 1.5)


@CLAIMS.claim(
    "dora-serving",
    "Once merged, DoRA is as fast as LoRA at inference (decoding rates within 10%)",
    "sweep seeds",
    times,
)
def dora_serving(at: Evidence) -> Judgement:
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
