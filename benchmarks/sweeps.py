"""What each named sweep costs, roughly, by a rule: for the headers in `sweeps/`, and held against what was measured.

    python benchmarks/sweeps.py

Seconds of a cell = what it takes beside training and scoring + 6 FLOPs a weight and raw training token at the rate that
the machine achieves + 2 for validation + the items it scores at their rates. `harness plan NAME` counts each
method's own FLOPs and memory instead, on the machine where it is asked.

2 cores of an AMD EPYC: rates measured in results/reference on SmolLM2-135M, those of every task but wordmath
(study_rank), wordmath_short and gsm8k in fp32 and before there were speedups, so costs are rather too high. One H100:
assumed, not measured: a fifth of its dense peak in bf16, and a tenth of a second an item, for a model of 1.7B weights
with batches of 16.
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from tabulate import tabulate

from harness.config import CONF
from harness.config_folders import named_sweeps
from harness.record import Cell
from harness.sweep import app
from harness.sweep.app.grid import points
from harness.sweep.cells import from_config

WEIGHTS = {"smollm2-135m-instruct": 134.5e6, "qwen2.5-coder-0.5b-instruct-q4_k_m": 630e6, "Qwen3-1.7B-Base": 1.72e9}
TOKENS = {"wordmath": 80, "wordmath_short": 48, "facts": 30, "facts_short": 30, "gsm8k": 200}  # raw, an example
TOKENS |= {"chain_sum": 36}  # of two numbers of two digits, the skill of the published studies
TOKENS |= {"synthetic": 60, "synthetic_mixed": 54}  # assumed, not measured: a model's words are more than a template's
GYM = 60  # of a task of reasoning-gym; the pilot's had 35 to 90
ITEMS = {
    "wordmath": 1000,
    "wordmath_short": 500,
    "facts": 200,
    "facts_short": 60,
    "gsm8k": 1319,
    "mmlu": 14042,
    "plain_text": 144,
    "held_out": 1000,
}


@dataclass(frozen=True)
class Machine:
    """flops: achieved in training, a second. beside: seconds of a cell for loading and probing; inference: for that, in
    five rounds of 16 tokens.

    items: seconds that one takes to score, by task.
    """

    flops: float
    beside: float
    inference: float
    items: dict[str, float]


SMALL = {
    "wordmath": 0.09,
    "wordmath_short": 0.03,
    "facts": 0.07,
    "facts_short": 0.07,
    "gsm8k": 1.1,
    "mmlu": 0.6,
    "plain_text": 0.2,
    "held_out": 0.03,
}
PROCESSOR = "AMD EPYC"  # of CORES; an Intel Xeon took three times as long
CORES = Machine(3e11, 5, 15, SMALL)
H100 = Machine(2e14, 60, 30, dict.fromkeys(ITEMS, 0.1))


def cells(name: str, overrides: list[str]) -> list[Cell]:
    """The cells of the named sweep `name` with `overrides`, equal points once, in the order of the grid.

    A group (method, data, …) is composed once for each choice, a plain value set in what was composed: all points of
    a large grid would take minutes.
    """
    sweeper = _composed(name, [], return_hydra_config=True).hydra.sweeper
    axes = [f"{key}={values}" for key, values in (sweeper.params or {}).items()]
    lines = [[*shlex.split(line), *axes, *overrides] for line in sweeper.candidates or [""]]
    return list({cell.id: cell for line in lines for cell in _product(name, line)}.values())


def _product(name: str, overrides: list[str]) -> Iterator[Cell]:
    """The cells of all combinations of the values that `overrides` give their keys, equal points each time."""
    axes: dict[str, list[tuple[str, Any]]] = {}
    for override in OverridesParser.create().parse_overrides(overrides):
        texts = points([str(override.input_line)])
        values = [o.value() for (text,) in texts for o in OverridesParser.create().parse_overrides([text])]
        axes[override.key_or_group] = list(zip((text for (text,) in texts), values, strict=True))
    groups = [key for key in axes if (CONF / key).is_dir()]
    plain = [[(key, value) for _, value in axes[key]] for key in axes if key not in groups]
    for choices in itertools.product(*(axes[group] for group in groups)):
        config = _composed(name, [text for text, _ in choices])
        for combination in itertools.product(*plain):
            for key, value in combination:
                OmegaConf.update(config, key, value, force_add=True)  # a line may add an option: +data.options=…
            yield from_config(config)


def _composed(name: str, overrides: list[str], **keywords: Any) -> DictConfig:
    app.register()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose(name, ["hydra/sweeper=grid", *overrides], **keywords)


def seconds(cell: Cell, machine: Machine) -> float:
    """What `cell` takes on `machine`, by the rule."""
    train, asked = cell.settings.train.validated(), cell.settings.eval
    tokens = TOKENS.get(cell.settings.data.name or "", GYM)
    each = 2 * WEIGHTS[cell.model] * tokens / machine.flops  # an example, forward
    steps = train.max_steps or 0
    trained: float = steps * train.micro_batch * (train.grad_accum or 1)
    if most := train.max_tokens:
        trained = min(trained, most / tokens)
    validated = train.validation_items * (1 + steps // (train.validate_every or steps + 1))
    written = cell.settings.infer.repeats * (cell.settings.infer.new_tokens or 0)
    total = machine.beside + machine.inference * written / (5 * 16)
    total += each * (3 * trained + validated)
    return total + sum(min(asked.limit or ITEMS[task], ITEMS[task]) * machine.items[task] for task in asked.tasks)


def header(name: str) -> str:
    """The comment that opens a sweep's file, without its #s."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), named_sweeps()[name].read_text().splitlines())
    return "\n".join(line[1:].strip() for line in lines)


def on_h100(name: str) -> list[str] | None:
    """The overrides of the command that the header has for one H100, or None."""
    found = re.search(rf"harness sweep {name}\b((?:.*\\\n)*.*)", header(name))
    return shlex.split(found[1].replace("\\\n", " ")) if found else None


def costs() -> Iterator[tuple[str, int, float, float | None]]:
    """Of each sweep that is a grid: its name, its cells, and hours on 2 cores and on one H100."""
    for path in named_sweeps().values():
        if "hydra/sweeper" in path.read_text():
            continue  # its cells are chosen while it runs
        small, overrides = cells(path.stem, []), on_h100(path.stem)
        large = None if overrides is None else sum(seconds(c, H100) for c in cells(path.stem, overrides)) / 3600
        yield path.stem, len(small), sum(seconds(c, CORES) for c in small) / 3600, large


def main() -> None:
    rows = [[name, n, f"{a:.2g}", "–" if b is None else f"{b:.2g}"] for name, n, a, b in costs()]
    print(tabulate(rows, ["sweep", "cells", "hours on 2 cores", "hours on one H100"]))


if __name__ == "__main__":
    main()
