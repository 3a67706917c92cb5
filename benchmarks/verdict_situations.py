"""Situations of `make validity` in which the verdict on a claim would be wrong; of the plug-in articles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from simulated import METHODS, Noise, Study, answer, known
from situations import ALIKE, Outcome, inside, situation

from harness.plugins.articles.article import Article
from harness.plugins.articles.beyond_lora import ARTICLE as BEYOND_LORA
from harness.plugins.articles.claims import DEPENDS, OPEN, REFUTED, SUPPORTED, TOO_SMALL, Decision, Judgement, Verdict
from harness.plugins.articles.evidence import Evidence
from harness.plugins.articles.lora_without_regret import ARTICLE as WITHOUT_REGRET
from harness.plugins.articles.merged import merge
from harness.plugins.articles.rules import ATTENTION
from harness.report import statistics
from harness.report.statistics import MemoryPeak

Cases = dict[str, dict[str, Any]]  # arguments of a function, by name of the case
Wrong = Decision | tuple[Decision, ...]


def judgement(study: Study, name: str, article: Article = BEYOND_LORA) -> Judgement:
    """What the rule of an article's claim concludes on a study."""
    return article.claims[name].rule(Evidence(study.records, study.tables))


def verdict(study: Study, name: str, wrong: Wrong, article: Article = BEYOND_LORA) -> Outcome:
    judged = judgement(study, name, article)
    verdicts = (wrong,) if isinstance(wrong, str) else wrong
    return {"wrong": judged.decision in (*verdicts, DEPENDS), "open": judged.decision == OPEN}


# Claims on scores, at the boundary on both sides

NOT_SMALL: tuple[Decision, ...] = (SUPPORTED, REFUTED)
GAIN = {
    "no gain": {"gain": 0.0, "wrong": NOT_SMALL},
    "a gain of 0.5 points": {"gain": 0.005, "wrong": NOT_SMALL},
    "a gain of 0.99 points": {"gain": 0.0099, "wrong": NOT_SMALL},
    "a gain of 1.01 points": {"gain": 0.0101, "wrong": (TOO_SMALL, REFUTED)},
    "a loss of 1.01 points": {"gain": -0.0101, "wrong": (TOO_SMALL, SUPPORTED)},
}


def both(cases: Cases, **more: dict[str, Any]) -> Cases:
    return {
        f"{case}, {name}": {**arguments, **extra} for case, arguments in cases.items() for name, extra in more.items()
    }


SOME = {"3 seeds, sd 1 points": {"seeds": 3, "sd": 1}, "2 seeds, sd 3 points": {"seeds": 2, "sd": 3}}
SOME |= {"3 seeds, sd 0 points": {"seeds": 3, "sd": 0}, "10 seeds, sd 1 points": {"seeds": 10, "sd": 1}}


@situation("dora-mmlu", **both(GAIN, **SOME))
def dora_mmlu(draw: np.random.Generator, gain: float, wrong: Wrong, seeds: int, sd: float) -> Outcome:
    study = Study(draw)
    answer(study, "mmlu", {"lora": 0.5, "dora": 0.5 + gain}, seeds, Noise(seed_points=sd))
    return verdict(study, "dora-mmlu", wrong)


WELL_KNOWN = {"10 seeds, sd 0.5 points, 5,000 items": {"seeds": 10, "sd": 0.5, "clusters": 5_000, "size": 1}}


@situation("dora-task", **both(GAIN, **SOME, **ALIKE, **WELL_KNOWN))
def dora_task(
    draw: np.random.Generator,
    gain: float,
    wrong: Wrong,
    seeds: int,
    sd: float,
    together: float = 0.0,
    clusters: int = 55,
    size: int = 10,
) -> Outcome:
    study, noise = Study(draw), Noise(seed_points=sd, together=together, clusters=clusters, size=size)
    answer(study, "wordmath", {"lora": 0.5, "dora": 0.5 + gain}, seeds, noise)
    return verdict(study, "dora-task", wrong)


BEHIND = {
    "2 points behind, above": {"gap": -0.0201, "wrong": SUPPORTED},
    "2 points behind, below": {"gap": -0.0199, "wrong": REFUTED},
}


@situation("dora-full", **both(BEHIND, **SOME))
def dora_full(draw: np.random.Generator, gap: float, wrong: Wrong, seeds: int, sd: float) -> Outcome:
    study = Study(draw)
    answer(study, "wordmath", {"full": 0.5, "dora": 0.5 + gap}, seeds, Noise(seed_points=sd, clusters=55, size=10))
    return verdict(study, "dora-full", wrong)


@situation(
    "galore-facts",
    **both(
        {
            "as good as all": {"gain": 0.0, "wrong": NOT_SMALL},
            "0.5 points better than all": {"gain": 0.005, "wrong": NOT_SMALL},
            "1.01 points better than all": {"gain": 0.0101, "wrong": (TOO_SMALL, REFUTED)},
            "1.01 points worse than one": {"gain": 0.0, "one": 0.0101, "wrong": (TOO_SMALL, SUPPORTED)},
            "0.99 points worse than all": {"gain": -0.0099, "wrong": NOT_SMALL},
        },
        **SOME,
    ),
)
def galore_facts(
    draw: np.random.Generator, gain: float, wrong: Wrong, seeds: int, sd: float, one: float = 0.0
) -> Outcome:
    """one: how much better full fine-tuning is than the other methods."""
    study = Study(draw, "facts")
    values = dict.fromkeys(METHODS, 0.5) | {"galore": 0.5 + gain, "full": 0.5 + one}
    answer(study, "facts", values, seeds, Noise(seed_points=sd, clusters=10, size=40))
    return verdict(study, "galore-facts", wrong)


LOSES = {
    "all lose 1.9 points": {"loss": 0.019, "wrong": SUPPORTED},
    "all lose 2.1 points": {"loss": 0.021, "wrong": REFUTED},
}


@situation("forgetting-mmlu", **both(LOSES, **SOME))
def forgetting_mmlu(draw: np.random.Generator, loss: float, wrong: Wrong, seeds: int, sd: float) -> Outcome:
    study = Study(draw)
    answer(study, "mmlu", {"base": 0.5} | dict.fromkeys(METHODS, 0.5 - loss), seeds, Noise(seed_points=sd))
    return verdict(study, "forgetting-mmlu", wrong)


# Memory

PEAKS = {"3 rates × 3 seeds": {"rates": 3, "seeds": 3}, "8 rates × 2 seeds": {"rates": 8, "seeds": 2}}
PEAKS |= {"1 rate × 10 seeds": {"rates": 1, "seeds": 10}}


def remember(draw: np.random.Generator, methods: dict[str, float], rates: int, seeds: int, sd: float) -> Study:
    """Peaks differ by seed (batches), for all rates of a seed alike."""
    study = Study(draw)
    for method, mib in methods.items():
        for seed in range(seeds):
            own = mib * np.exp(draw.normal(0, sd))
            for lr in range(rates):
                study.add(method, seed, lr=1e-5 * (1 + lr), mib=own)
    return study


HALF = {"just above half": {"ratio": 0.501, "wrong": SUPPORTED}, "just below half": {"ratio": 0.499, "wrong": REFUTED}}


@situation("lora-memory", **both(HALF, **PEAKS))
def lora_memory(draw: np.random.Generator, ratio: float, wrong: Wrong, rates: int, seeds: int) -> Outcome:
    study = remember(draw, {"full": 1000, "lora": 1000 * ratio}, rates, seeds, 0.01)
    return verdict(study, "lora-memory", wrong)


@situation("ratios of memory that varies by 5%", **PEAKS)
def ratio_of_memory(draw: np.random.Generator, rates: int, seeds: int) -> Outcome:
    """Memory that varies by less than is assumed has wider intervals than need be: equal runs may hide a jump."""
    study = remember(draw, {"full": 1000, "lora": 500}, rates, seeds, 0.05)
    lora, full = (
        [MemoryPeak(known(r.probe).peak.weights, r.cell.seed, r.cell.lr) for r in study.records if r.cell.method == m]
        for m in ("lora", "full")
    )
    ratio = statistics.of_memory(lora, full)
    return {"covers": inside(ratio, 0.5), "ratio": ratio.high / ratio.low}


SINGLE = {
    "single runs, true 1.11": {"ratio": 1.11, "wrong": SUPPORTED},
    "single runs, true 1.09": {"ratio": 1.09, "wrong": REFUTED},
}


@situation("dora-memory", **SINGLE)
def dora_memory(draw: np.random.Generator, ratio: float, wrong: Wrong) -> Outcome:
    return verdict(remember(draw, {"lora": 1000, "dora": 1000 * ratio}, 1, 1, 0.01), "dora-memory", wrong)


# Peaks of runs of a method are equal, but that one run in some jumps, of LoRA or of both methods.
RARE = {f"one run in {n} jumps by 6%": {"share": 1 / n} for n in (10, 5)}
SIDES: Cases = {"of LoRA": {"jumping": ("lora",)}, "of both": {"jumping": ("lora", "full")}}


@situation("lora-memory", **both(both(both(HALF, **RARE), **SIDES), **{f"{n} seeds": {"seeds": n} for n in (2, 3, 10)}))
def jumps(
    draw: np.random.Generator, ratio: float, wrong: Wrong, share: float, jumping: Sequence[str], seeds: int
) -> Outcome:
    """ratio: of the means (of logarithms) of all runs that could be."""
    study = Study(draw)
    for method, mib in (("full", 1000.0), ("lora", 1000 * ratio)):
        for seed in range(seeds):
            jump = np.log(1.06) * ((draw.random() < share) - share if method in jumping else 0.0)
            study.add(method, seed, mib=mib * np.exp(jump))
    return verdict(study, "lora-memory", wrong)


# Claims of several parts, of which all are just so, or one is just not

PARTS: Cases = {
    "all parts just hold": {"off": 0.999, "wrong": REFUTED},
    "the last part just fails": {"off": 0.9, "last": 1.001, "wrong": SUPPORTED},
}
SPREADS: Cases = {
    "equal runs": {"rates": 1, "seeds": 3, "sd": 0.0},
    "single runs": {"rates": 1, "seeds": 1, "sd": 0.01},
}
SPREADS |= {name: {**sizes, "sd": 0.01} for name, sizes in PEAKS.items()}
SPREADS |= {f"{name}, peaks vary by 5%": {**sizes, "sd": 0.05} for name, sizes in PEAKS.items()}


@situation("qlora-memory", **both(PARTS, **SPREADS))
def least_memory(
    draw: np.random.Generator, off: float, wrong: Wrong, rates: int, seeds: int, sd: float, last: float = 0.0
) -> Outcome:
    """off: QLoRA's memory by that of each other method; last: by that of full fine-tuning."""
    mib = dict.fromkeys(METHODS, 1000 / off) | {"qlora": 1000.0, "full": 1000 / (last or off)}
    return verdict(remember(draw, mib, rates, seeds, sd), "qlora-memory", wrong)


@situation("memory-order", **both(PARTS, **SPREADS))
def order_of_memory(
    draw: np.random.Generator, off: float, wrong: Wrong, rates: int, seeds: int, sd: float, last: float = 0.0
) -> Outcome:
    """off: of each part by its limit; last: of GaLore's memory by that of full fine-tuning."""
    mib = {"lora": 1000.0, "qlora": 1000 * off, "dora": 1100 * off, "galore": 1100.0}
    return verdict(remember(draw, mib | {"full": 1100 / (last or off)}, rates, seeds, sd), "memory-order", wrong)


# Of eight settings some are at the limit and the others far on the same side: it does not depend on the setting.
ONE_SIDE = {
    "8 ranks, all at most 1.099": {"ratios": (1.0, 1.099), "wrong": REFUTED},
    "8 ranks, all at least 1.101": {"ratios": (1.3, 1.101), "wrong": SUPPORTED},
    "8 ranks, all just below 1.1": {"ratios": (1.099, 1.099), "wrong": REFUTED},
}


@situation("dora-memory", **both(ONE_SIDE, **{"2 seeds": {"seeds": 2}, "3 seeds": {"seeds": 3}}))
def depends(draw: np.random.Generator, ratios: tuple[float, float], wrong: Wrong, seeds: int) -> Outcome:
    study = Study(draw)
    for i in range(8):
        for method, ratio in (("lora", 1.0), ("dora", ratios[i % 2])):
            for seed in range(seeds):
                study.add(method, seed, rank=2**i, mib=1000 * ratio * np.exp(draw.normal(0, 0.01)))
    return verdict(study, "dora-memory", wrong)


# Times

SLOW = {"no spells": {"spells": 0.0}, "slow spells": {"spells": 0.1}}
ORDERS = {"by method": {"order": "method"}, "by seed": {"order": "seed"}, "at random": {"order": "random"}}


def timed(
    draw: np.random.Generator,
    ratio: float,
    rates: int,
    seeds: int,
    order: str,
    spells: float,
    methods: Sequence[str] = METHODS,
) -> Study:
    """Runs that differ by 3%, on a machine that is now and then 1.3 times as slow for about four cells."""
    cells = [(method, lr, seed) for method in methods for lr in range(rates) for seed in range(seeds)]
    if order == "seed":
        cells.sort(key=lambda cell: cell[2])
    if order == "random":
        cells = [cells[i] for i in draw.permutation(len(cells))]
    study, slow = Study(draw), False
    for i, (method, lr, seed) in enumerate(cells):
        slow = (draw.random() > 0.25) if slow else (draw.random() < spells)
        seconds = 0.1 * (ratio if method == "dora" else 1) * np.exp(draw.normal(0, 0.03)) * (1.3 if slow else 1)
        study.add(method, seed, lr=1e-5 * (1 + lr), seconds=seconds, start=2 * i)
    return study


SPEED = {"dora-training": (1.5, 1.0), "dora-serving": (1.1, 1 / 1.1)}
LIMITS = {"just above": {"times": 1.005, "wrong": SUPPORTED}, "just below": {"times": 0.995, "wrong": REFUTED}}


@situation("dora-training at 1.5", **both(both(LIMITS, **SLOW), **ORDERS))
def dora_training(draw: np.random.Generator, times: float, wrong: Wrong, spells: float, order: str) -> Outcome:
    return verdict(timed(draw, 1.5 * times, 3, 3, order, spells), "dora-training", wrong)


@situation("dora-serving at 1.1", **both(both(LIMITS, **SLOW), **ORDERS))
def dora_serving(draw: np.random.Generator, times: float, wrong: Wrong, spells: float, order: str) -> Outcome:
    return verdict(timed(draw, 1.1 * times, 3, 3, order, spells), "dora-serving", wrong)


# Learning rates

CLAIMED = {f"best at {best:g}": {"best": best, "wrong": REFUTED} for best in (2e-5, 5e-5, 5.9e-5)}
CLAIMED |= {f"best at {best:g}": {"best": best, "wrong": SUPPORTED} for best in (6.1e-5, 7e-5, 9e-5)}
GRIDS = {f"grid moved by {100 * part:g}% of a step": {"moved": part} for part in (0, 0.25, 0.5, 0.75)}


@situation("lr-full", **both(CLAIMED, **GRIDS))
def lr_full(draw: np.random.Generator, best: float, wrong: Wrong, moved: float) -> Outcome:
    study = Study(draw)
    for lr in 8e-6 * 2.5 ** (np.arange(6) + moved - 1):
        for seed in range(2):
            study.add("full", seed, lr=float(lr), loss=1 + 0.1 * np.log(lr / best) ** 2 + draw.normal(0, 0.02))
    judged = judgement(study, "lr-full")
    covers = np.nan if judged.effect is None else inside(judged.effect, best)
    return {"wrong": judged.decision == wrong, "open": judged.decision == OPEN, "covers at least": covers}


ONE: Cases = {f"losses differ by {100 * sd:g}%": {"sd": sd} for sd in (0.02, 0.06, 0.1)}
NEAR: Cases = {
    f"best at {best:g}": {"best": best, "wrong": wrong} for best, wrong in ((5.9e-5, REFUTED), (6.1e-5, SUPPORTED))
}


@situation("lr-full of one seed", **both(NEAR, **ONE))
def lr_full_of_one_seed(draw: np.random.Generator, best: float, wrong: Wrong, sd: float) -> Outcome:
    """A curve as steep as those of the published studies: a loss doubles at six times the best rate, or a sixth."""
    study = Study(draw)
    for lr in best * 2.5 ** (np.arange(-3, 4) + draw.random() - 0.5):
        loss = np.exp(0.2 * np.log(lr / best) ** 2 + draw.normal(0, sd))
        study.add("full", 0, lr=float(lr), loss=float(loss))
    return verdict(study, "lr-full", wrong)


SIZES: Cases = {
    "both just below the limit": {"bests": (5.9e-5, 5.9e-5), "wrong": REFUTED},
    "both just above the limit": {"bests": (6.1e-5, 6.1e-5), "wrong": SUPPORTED},
    "one far below, one just below": {"bests": (2e-5, 5.9e-5), "wrong": REFUTED},
    "one far above, one just above": {"bests": (2e-4, 6.1e-5), "wrong": SUPPORTED},
}


@situation("lr-full at 2 batch sizes", **SIZES)
def lr_full_of_batches(draw: np.random.Generator, bests: Sequence[float], wrong: Wrong) -> Outcome:
    """A curve of its own at each batch size: on one side of the limit both, so it does not depend on the batch size."""
    study = Study(draw)
    for size, best in zip((4, 32), bests, strict=True):
        for lr in best * 2.5 ** (np.arange(-3, 4) + draw.random() - 0.5):
            for seed in range(2):
                loss = 1 + 0.1 * np.log(lr / best) ** 2 + draw.normal(0, 0.02)
                study.add("full", seed, lr=float(lr), loss=float(loss), train={"batch_size": size})
    return verdict(study, "lr-full", wrong)


ADAPTERS: Cases = {
    "all just above": {"off": 1.02, "wrong": REFUTED},
    "one just below": {"off": 2.5, "last": 0.98, "wrong": SUPPORTED},
}


@situation("lr-adapters", **both(ADAPTERS, **{"2 seeds": {"seeds": 2}, "5 seeds": {"seeds": 5}}))
def lr_adapters(draw: np.random.Generator, off: float, wrong: Wrong, seeds: int, last: float = 0.0) -> Outcome:
    """off: the best rate of each adapter by the limit; last: of DoRA."""
    study = Study(draw)
    for method in ("lora", "qlora", "dora"):
        best = 2e-4 / 3 * (last if last and method == "dora" else off)
        for lr in best * 2.5 ** (np.arange(-3, 4) + draw.random() - 0.5):
            for seed in range(seeds):
                study.add(method, seed, lr=float(lr), loss=1 + 0.1 * np.log(lr / best) ** 2 + draw.normal(0, 0.02))
    return verdict(study, "lr-adapters", wrong)


TEN = {"30.5 times": {"times": 30.5, "wrong": SUPPORTED}, "29.5 times": {"times": 29.5, "wrong": REFUTED}}


@situation("lr-ratio of LoRA Without Regret", **TEN)
def lr_ratio(draw: np.random.Generator, times: float, wrong: Wrong) -> Outcome:
    study = Study(draw)
    for method, best in (("full", 4e-5), ("lora", 4e-5 * times)):
        for lr in best * 2.5 ** (np.arange(-3, 4) + draw.random() - 0.5):
            for seed in range(2):
                study.add(method, seed, lr=float(lr), loss=1 + 0.1 * np.log(lr / best) ** 2 + draw.normal(0, 0.02))
    return verdict(study, "lr-ratio", wrong, WITHOUT_REGRET)


# Spread and divergence

TAILS = {"normal": {"tail": "normal"}, "lognormal": {"tail": "lognormal"}, "t with 4 degrees": {"tail": "t"}}
SPREAD = {
    "as much": {"ratio": 1.0, "wrong": NOT_SMALL},
    "spread ratio 1.4": {"ratio": 1.4, "wrong": NOT_SMALL},
    "spread ratio 1.43": {"ratio": 1.43, "wrong": (TOO_SMALL, REFUTED)},
    "spread ratio 1/1.43": {"ratio": 1 / 1.43, "wrong": (TOO_SMALL, SUPPORTED)},
}


@situation("low-rank-spread, 10 seeds", **both(SPREAD, **TAILS))
def low_rank_spread(draw: np.random.Generator, ratio: float, wrong: Wrong, tail: str) -> Outcome:
    study = Study(draw)
    kinds = {"normal": lambda: draw.normal(), "t": lambda: draw.standard_t(4) / 2**0.5}
    kinds["lognormal"] = lambda: (np.exp(draw.normal()) - np.exp(0.5)) / (np.exp(2) - np.exp(1)) ** 0.5
    for rank, scale in ((4, ratio), (16, 1.0)):
        for seed in range(10):
            study.add("lora", seed, rank=rank, loss=2 + 0.02 * scale * kinds[tail]())
    return verdict(study, "low-rank-spread", wrong)


MORE = {
    "as many": {"more": 0.0, "wrong": NOT_SMALL},
    "9 points more": {"more": 0.09, "wrong": NOT_SMALL},
    "11 points more": {"more": 0.11, "wrong": (TOO_SMALL, REFUTED)},
    "11 points fewer": {"more": -0.11, "wrong": (TOO_SMALL, SUPPORTED)},
}
RUNS = {"runs of a setting alike": {"alike": True}, "runs apart": {"alike": False}}


@situation("low-rank-divergence, 8 rates × 5 seeds", **both(MORE, **RUNS))
def low_rank_divergence(draw: np.random.Generator, more: float, wrong: Wrong, alike: bool) -> Outcome:
    study = Study(draw)
    for lr in range(8):
        for ranks, share in (((2, 4), 0.2 + more), ((16, 64), 0.2)):
            for rank in ranks:
                together = draw.random() < share
                for seed in range(5):
                    lost = together if alike else draw.random() < share
                    study.add("lora", seed, lr=1e-4 * (1 + lr), rank=rank, status="diverged" if lost else "ok")
    return verdict(study, "low-rank-divergence", wrong)


# Losses

HIGHER = {
    "equal losses": {"ratio": 1.0, "wrong": NOT_SMALL},
    "0.5% higher": {"ratio": 1.005, "wrong": NOT_SMALL},
    "0.9% higher": {"ratio": 1.009, "wrong": NOT_SMALL},
    "1.1% higher": {"ratio": 1.011, "wrong": (TOO_SMALL, REFUTED)},
    "1.1% lower": {"ratio": 1 / 1.011, "wrong": (TOO_SMALL, SUPPORTED)},
}
FEW: Cases = {f"{n} seeds": {"seeds": n} for n in (2, 3, 10)}
FEW |= {"10 seeds, losses differ by 0.3%": {"seeds": 10, "sd": 0.003}}


def tried(study: Study, levels: np.ndarray, method: str, least: float, sd: float, **settings: Any) -> None:
    """Three rates of a method, the middle one is best: losses differ by `sd`, and seeds move all by `levels`."""
    for step in (-1, 0, 1):
        for seed, level in enumerate(levels):
            loss = least * np.exp(level + 0.1 * step**2 + study.draw.normal(0, sd))
            study.add(method, seed, lr=1e-4 * 3.0**step, loss=float(loss), **settings)


@situation("layers-rank", **both(HIGHER, **FEW))
def layers(draw: np.random.Generator, ratio: float, wrong: Wrong, seeds: int, sd: float = 0.03) -> Outcome:
    """ratio: of the loss of adapters on attention alone to that of adapters on all layers."""
    study, levels = Study(draw), draw.normal(0, 0.03, seeds)
    tried(study, levels, "lora", 1.0, sd)
    tried(study, levels, "lora", ratio, sd, adapt={"target_modules": sorted(ATTENTION)})
    return verdict(study, "layers-rank", wrong, WITHOUT_REGRET)


@situation("batch-penalty", **both(HIGHER, **FEW))
def batches(draw: np.random.Generator, ratio: float, wrong: Wrong, seeds: int, sd: float = 0.03) -> Outcome:
    """ratio: of LoRA's penalty at a batch of 32 to that at a batch of 4."""
    study, levels = Study(draw), draw.normal(0, 0.03, seeds)
    for method, size, least in (("full", 4, 1.0), ("full", 32, 0.8), ("lora", 4, 1.1), ("lora", 32, 0.88 * ratio)):
        tried(study, levels, method, least, sd, train={"batch_size": size})
    return verdict(study, "batch-penalty", wrong, WITHOUT_REGRET)


# One claim in several studies. All are at the limit, or all but one, which is far on the same side: none is on the
# other, and among many studies one is soon there by chance.

STUDIES = {"2 studies": {"studies": 2}, "5 studies": {"studies": 5}, "12 studies": {"studies": 12}}
PLACES: Cases = both(HALF, **STUDIES)
PLACES |= both({f"{case}, errors of the studies alike": {**at, "alike": 0.8} for case, at in HALF.items()}, **STUDIES)
FAR: Cases = {
    "one far above half, the others just above": {"ratio": 0.501, "far": 0.75, "wrong": (SUPPORTED, DEPENDS)},
    "one far below half, the others just below": {"ratio": 0.499, "far": 0.25, "wrong": (REFUTED, DEPENDS)},
    "one far below half, the others above by a standard error": {"ratio": 0.52, "far": 0.25, "wrong": SUPPORTED},
    "one far above half, the others just above at both batch sizes": {
        "ratio": 0.501,
        "far": 0.75,
        "sizes": (4, 32),
        "wrong": (SUPPORTED, DEPENDS),
    },
}
PLACES |= both(FAR, **STUDIES)


@situation("lora-memory over studies", **PLACES)
def memory_over_studies(
    draw: np.random.Generator,
    ratio: float,
    wrong: Wrong,
    studies: int,
    alike: float = 0.0,
    far: float = 0.0,
    sizes: Sequence[int] = (4,),
) -> Outcome:
    """Studies of 3 seeds, whose peaks vary by 5%. alike: the share of this variance that all studies have in common.
    far: the ratio in the first study, if it has another one."""
    decision = _over_studies(draw, [far or ratio, *[ratio] * (studies - 1)], alike, sizes)
    wrong_ones = (wrong,) if isinstance(wrong, str) else wrong
    return {"wrong": decision in (wrong_ones if far else (*wrong_ones, DEPENDS)), "open": decision == OPEN}


TRUTHS: Cases = {
    "2 of 5 far above half, 3 far below": {"ratios": (0.75, 0.75, 0.25, 0.25, 0.25), "right": DEPENDS},
    "2 of 5 far above half, 3 at half": {"ratios": (0.75, 0.75, 0.5, 0.5, 0.5), "right": REFUTED},
    "3 of 5 far below half, 2 at half": {"ratios": (0.25, 0.25, 0.25, 0.5, 0.5), "right": SUPPORTED},
    "5 of 5 above half by 3 standard errors": {"ratios": (0.565,) * 5, "right": REFUTED},
    "5 of 5 below half by 3 standard errors": {"ratios": (0.442,) * 5, "right": SUPPORTED},
}


@situation("lora-memory found over studies", **TRUTHS)
def memory_found_over_studies(draw: np.random.Generator, ratios: Sequence[float], right: Decision) -> Outcome:
    decision = _over_studies(draw, ratios)
    return {"wrong": decision not in (right, OPEN), "open": decision == OPEN, "found": decision == right}


def _over_studies(
    draw: np.random.Generator, ratios: Sequence[float], alike: float = 0.0, sizes: Sequence[int] = (4,)
) -> Decision:
    """The verdict on lora-memory over studies with these ratios of LoRA's memory to full's."""
    claim, verdicts = BEYOND_LORA.claims["lora-memory"], []
    shape = (len(sizes), 2, 3)
    common = draw.normal(0, 0.05, shape)
    for at, ratio in enumerate(ratios):
        errors = alike**0.5 * common + (1 - alike) ** 0.5 * draw.normal(0, 0.05, shape)
        study = Study(draw)
        for (size, method, seed), error in np.ndenumerate(errors):
            mib = 1000 * (ratio if method else 1.0) * np.exp(error)
            study.add(("full", "lora")[method], seed, mib=mib, train={"batch_size": sizes[size]})
        verdicts.append(Verdict(claim, (f"{at}", "model", "data"), judgement(study, claim.name)))
    (merged,) = merge(verdicts).judged
    return merged.judgement.decision
