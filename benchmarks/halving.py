"""What `sweep stop=asha` saves against the full grid, and how often it finds the same setting.

    make halving                                # both parts, the second one about a quarter of an hour on 2 cores
    python benchmarks/halving.py simulated

*simulated*: studies of several methods whose loss curves come from stochastic gradient descent on a noisy quadratic
(Zhang et al., Which Algorithmic Choices Matter at Which Batch Sizes?, 2019): a low rate is slow, a high one is noisy
until the schedule has fallen, and a higher one diverges. The decisions are those of a job: optuna's pruner.
*real*: sweeps of the tiny model, run in full and with stop=asha, which runs the cells in another order each time.

Writes benchmarks/measured/halving.json, of which benchmarks/HALVING.md is made. A part that was not run this time keeps
what was measured before.
"""

from __future__ import annotations

import argparse
import heapq
import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from harness.__main__ import main as harness
from harness.plugins.halving.config import StopConfig
from harness.plugins.halving.job import halving
from harness.record import Record, StopRule, read_study
from harness.record.files import write_json
from harness.report.select import select

HERE = Path(__file__).parent
MEASURED, DOCUMENT = HERE / "measured" / "halving.json", HERE / "HALVING.md"
RULE = StopRule(StopConfig.first, StopConfig.factor)
GOAL = 0.9  # share of repeats with at most half the tokens for the same choice

# Simulated studies

STEPS, DIMENSIONS, FLOOR = 200, 50, 0.2
RATES = np.geomspace(0.02, 6, 10)  # around the best ones, for a largest curvature of about 1; up to divergence
METHODS, SEEDS = 4, 8
LUCK, ITEMS = 0.01, 0.005  # relative deviations: of a whole curve by its seed, of one validation loss by its items
SITUATIONS = {
    "15 settings a method (5 rates × 3), one cell at a time": {"rates": 5, "others": 3, "workers": 1},
    "15 settings a method (5 rates × 3), 4 cells at a time": {"rates": 5, "others": 3, "workers": 4},
    "10 settings a method (10 rates), one cell at a time": {"rates": 10, "others": 1, "workers": 1},
    "5 settings a method (5 rates), one cell at a time": {"rates": 5, "others": 1, "workers": 1},
}


@dataclass
class SimulatedCell:
    """One cell: its method, the validation losses at its steps (nan from where it diverged on), and their noise."""

    method: int
    losses: np.ndarray
    noise: float

    @property
    def length(self) -> int:
        """Steps until it diverges, or all."""
        lost = np.flatnonzero(np.isnan(self.losses))
        return int(lost[0]) + 1 if len(lost) else STEPS


def descent(draw: np.random.Generator, rate: float, scale: float, noise: float, runs: int) -> np.ndarray:
    """Losses (runs, steps) of descents: θ ← (1 − α h) θ − α √h ε, with curvatures h = scale / i and L = ½ Σ h θ².

    The rate rises over a tenth of the steps and falls along a cosine, as in the harness.
    """
    h = scale / np.arange(1, DIMENSIONS + 1)
    theta = np.ones((runs, DIMENSIONS))
    rise, losses = STEPS // 10, np.empty((runs, STEPS))
    for step in range(STEPS):
        share = (step - rise) / (STEPS - rise)
        alpha = rate * ((step + 1) / (rise + 1) if step < rise else 0.5 * (1 + np.cos(np.pi * share)))
        theta = (1 - alpha * h) * theta - alpha * noise * np.sqrt(h) * draw.normal(size=theta.shape)
        losses[:, step] = FLOOR + 0.5 * (h * theta**2).sum(1)
    losses[losses > 1.5 * losses[:, :1]] = np.nan  # such a cell ends as diverged
    return np.where(np.cumsum(np.isnan(losses), axis=1) > 0, np.nan, losses)


def study(draw: np.random.Generator, rates: int, others: int) -> list[SimulatedCell]:
    """The cells of one study. Methods differ in their best rate and noise, another axis (as the rank) a little too."""
    cells = []
    chosen = RATES[:: len(RATES) // rates]
    for method in range(METHODS):
        scale, noise = np.exp(draw.normal(0, 0.5)), 0.1 * np.exp(draw.normal(0, 0.3))
        for _ in range(others):
            own, spread = scale * np.exp(draw.normal(0, 0.3)), noise * np.exp(draw.normal(0, 0.2))
            for rate in chosen:
                runs = descent(draw, rate, own, spread, SEEDS)
                runs *= 1 + draw.normal(0, LUCK, (len(runs), 1))
                measured = runs * (1 + draw.normal(0, ITEMS, runs.shape))
                cells.append(SimulatedCell(method, measured[0], float(np.nanstd(measured[:, -1], ddof=1))))
    return cells


def halved(cells: Sequence[SimulatedCell], workers: int) -> tuple[list[int], int]:
    """The cells that finish under the rule, `workers` of them at a time, and the steps that all took."""
    rungs = halving.rungs(RULE, [1] * STEPS)
    noted: dict[int, list[dict[int, float]]] = {}
    waiting, finished, taken = list(range(len(cells)))[::-1], [], 0

    def course(i: int, begin: float) -> Iterator[tuple[float, int, int]]:
        stops = [step for step in (*rungs, STEPS) if step < cells[i].length] + [cells[i].length]
        return iter([(begin + step, i, step) for step in stops])

    running: list[tuple[float, int, int]] = []
    courses: dict[int, Iterator[tuple[float, int, int]]] = {}

    def start(now: float) -> None:
        if waiting:
            i = waiting.pop()
            courses[i] = course(i, now)
            heapq.heappush(running, next(courses[i]))

    own: dict[int, dict[int, float]] = {}
    for _ in range(workers):
        start(0.0)
    while running:
        now, i, step = heapq.heappop(running)
        if step in rungs and step < cells[i].length:
            losses = own.setdefault(i, {}) | {rungs[step]: float(cells[i].losses[step - 1])}
            rivals = [other for other in noted.setdefault(cells[i].method, []) if other is not own[i]]
            goes_on = halving.goes_on(RULE, losses, rivals)
            if not own[i]:
                noted[cells[i].method].append(own[i])
            own[i].update(losses)
            if goes_on:
                heapq.heappush(running, next(courses[i]))
                continue
        elif not np.isnan(cells[i].losses[-1]):
            finished.append(i)
        taken += step
        start(now)
    return finished, taken


def outcome(cells: Sequence[SimulatedCell], workers: int) -> dict[str, float]:
    finished, taken = halved(cells, workers)
    last = {i: float(cell.losses[-1]) for i, cell in enumerate(cells) if not np.isnan(cell.losses[-1])}

    def equal(method: int | None) -> tuple[bool, bool]:
        """Whether the choice is the same, and whether it is within noise."""
        of = [i for i in last if method in (None, cells[i].method)]
        best, left = min(of, key=last.__getitem__), [i for i in of if i in finished]
        if not left:
            return False, False
        found = min(left, key=last.__getitem__)
        return best == found, last[found] - last[best] <= np.hypot(cells[best].noise, cells[found].noise)

    methods = [equal(method) for method in range(METHODS)]
    same, alike = equal(None)
    return {
        "tokens": taken / (STEPS * len(cells)),
        "same": same,
        "alike": alike,
        "methods_same": float(np.mean([same for same, _ in methods])),
        "methods_alike": float(np.mean([alike for _, alike in methods])),
    }


def simulate(studies: int, folder: Path) -> Iterator[list[dict[str, Any]]]:
    """What came out of each situation, after each of them."""
    found = []
    for name, of in SITUATIONS.items():
        outcomes = []
        for number in range(studies):
            draw = np.random.default_rng([number, of["rates"], of["others"]])
            cells = study(draw, of["rates"], of["others"])
            outcomes.append(outcome([cells[i] for i in draw.permutation(len(cells))], of["workers"]))
        found.append(_summary(name, outcomes))
        yield found


# Real sweeps

CELLS, GRIDS = 10, 4
GRID = (
    *("model=tiny", "method=lora", "rank=8", "lr_scale=0.03,0.1,0.3,1,2,4,8,16,64,1000", "train.max_steps=60"),
    *("train.batch_size=4", "train.precision=fp32", "+data.load.train=512", "+data.load.validation=64"),
    *("data=wordmath", "eval.tasks=[]", "infer.repeats=0"),
)


def real(repeats: int, folder: Path) -> Iterator[list[dict[str, Any]]]:
    """Sweeps of `GRID` with `GRIDS` seeds in full, and halved, each of these in another random order.

    What is recorded in `folder` is not run again.
    """
    whole = [_swept(folder, f"none-{seed}", f"seed={seed}", "stop=none") for seed in range(min(GRIDS, repeats))]
    losses: dict[float | None, list[float]] = {}
    for found in (record for records in whole for record in records if record.status == "ok"):
        losses.setdefault(found.cell.lr, []).append(found.validation[-1].loss)
    noise = {rate: float(np.std(of, ddof=1)) if len(of) > 1 else 0.0 for rate, of in losses.items()}
    outcomes = []
    for number in range(repeats):
        seed = number % len(whole)
        halved = _swept(folder, f"asha-{number}", f"seed={seed}", "stop=asha")
        outcomes.append(_compared(whole[seed], halved, noise))
        yield [_summary(f"the tiny model and LoRA, {CELLS} rates, {len(whole)} seeds, one cell at a time", outcomes)]


def _swept(folder: Path, study: str, *settings: str) -> list[Record]:
    harness(["sweep", *GRID, f"study={study}", f"results_dir={folder}", *settings])
    records, problems = read_study(folder / study)
    if problems or len(records) != CELLS:
        raise RuntimeError(f"{study} has {len(records)} of {CELLS} records. {' '.join(problems)}")
    return records


def _compared(whole: list[Record], halved: list[Record], noise: dict[float | None, float]) -> dict[str, Any]:
    (best,), (found,) = select(whole), select(halved)
    if best.loss is None or found.loss is None:
        raise RuntimeError("No cell of a sweep has a validation loss.")
    same = best.lr == found.lr
    alike = found.loss - best.loss <= np.hypot(noise[best.lr], noise[found.lr])
    outcome = {"tokens": _tokens(halved) / _tokens(whole), "same": same, "alike": bool(alike)}
    return outcome | {"methods_same": float(same), "methods_alike": float(alike)}


def _tokens(records: Sequence[Record]) -> int:
    """Raw tokens of all cells; of a diverged one by its step, as it has no measurement of its training."""
    trained = next(record.train for record in records if record.train and record.status == "ok")
    a_step = trained.tokens.raw / trained.steps

    def of(found: Record) -> int:
        if found.train is not None:
            return found.train.tokens.raw
        if found.failure is None or found.failure.step is None:
            raise RuntimeError(f"{found.cell.name} has neither tokens nor a step that it reached.")
        return round(found.failure.step * a_step)

    return sum(map(of, records))


# The page


def _summary(name: str, outcomes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    half = [o["tokens"] <= 0.5 and bool(o["alike"]) for o in outcomes]
    return {
        "name": name,
        "repeats": len(outcomes),
        "tokens": float(np.mean([o["tokens"] for o in outcomes])),
        "most_tokens": float(np.max([o["tokens"] for o in outcomes])),
        **{
            key: float(np.mean([o[key] for o in outcomes]))
            for key in ("same", "alike", "methods_same", "methods_alike")
        },
        "half_and_alike": float(np.mean(half)),
    }


HEAD = f"""\
# What `sweep stop=asha` saves

Made by `make halving` (`python benchmarks/halving.py`). Each repeat compares a full grid with the same grid under
stop=asha (first rung at {RULE.first:g} of the tokens, factor {RULE.factor}).

- **Tokens**: those of all cells over those of the full grid, the mean and the most in a repeat.
- **Same**: the share of repeats in which the best cell of the study is the same one, and the share of methods whose
  choice is.
- **Within noise**: as *same*, but a choice also counts whose final loss is higher by at most one standard deviation
  over seeds of the difference between both settings.
- **Half**: the share of repeats with at most half the tokens and a best cell within noise.
"""


def advice(simulated: list[dict[str, Any]]) -> str:
    """How many settings a method needs, by the simulated studies."""
    by_settings = {SITUATIONS[of["name"]]["rates"] * SITUATIONS[of["name"]]["others"]: of for of in simulated}
    rows = [f"{n}: {of['half_and_alike']:.0%}, {of['same']:.0%}" for n, of in sorted(by_settings.items())]
    enough = min(n for n, of in by_settings.items() if of["half_and_alike"] >= GOAL)
    return f"""\
## How many settings a method needs

**{enough} or more.** The goal is at most half the tokens for the same choice in 9 of 10 repeats. Settings a method, the
share of simulated studies that reach it within noise, and the share in which the best cell is the very same one:
{"; ".join(rows)}.

- **With few settings** less is saved: whichever comes to a rung first goes on, and so does each that is the best so
  far.
- **With many settings** some are so close that seeds decide between them. Then another one of these is chosen.
- Simulated cells take equally long, so several at a time reach the rungs in the order in which one after another does.
"""


def document(measured: dict[str, list[dict[str, Any]]]) -> str:
    parts = [HEAD]
    for part, about in (("simulated", "Simulated studies of 4 methods"), ("real", "Real sweeps")):
        if part in measured:
            columns = (
                "Study",
                "Repeats",
                "Tokens (most)",
                "Same: cell, methods",
                "Within noise: cell, methods",
                "Half",
            )
            rows = [
                (
                    of["name"],
                    of["repeats"],
                    f"{of['tokens']:.0%} ({of['most_tokens']:.0%})",
                    f"{of['same']:.0%}, {of['methods_same']:.0%}",
                    f"{of['alike']:.0%}, {of['methods_alike']:.0%}",
                    f"{of['half_and_alike']:.0%}",
                )
                for of in measured[part]
            ]
            parts.append(f"## {about}\n\n{tabulate(rows, columns, tablefmt='github')}\n")
    if "simulated" in measured:
        parts.insert(1, advice(measured["simulated"]))
    return "\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=["simulated", "real"], metavar="simulated|real")
    parser.add_argument("--repeats", type=int, metavar="N", help="default: 100 simulated, 10 real")
    parser.add_argument("--folder", type=Path, help="keep the records of real sweeps here, and go on from them")
    options = parser.parse_args(arguments)
    measured = json.loads(MEASURED.read_text(encoding="utf-8")) if MEASURED.exists() else {}
    with tempfile.TemporaryDirectory() as temporary:
        for part, run, usual in (("simulated", simulate, 100), ("real", real, 10)):
            if part not in options.parts:
                continue
            for measured[part] in run(options.repeats or usual, options.folder or Path(temporary)):
                write_json(measured, MEASURED)
                DOCUMENT.write_text(document(measured), encoding="utf-8")


if __name__ == "__main__":
    main()
