"""Compares `dora_fast` with peft's DoRA: time and memory of the same training step, in one process.

    python benchmarks/dora.py --out benchmarks/DORA.md     # about 6 minutes on 2 idle cores

Steps alternate in pairs. A ratio is the median over pairs, with the smallest and the largest. Memory is the peak of
live tensors in a step that is not timed. On a busy machine, use `--cpu-time` with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from itertools import product
from pathlib import Path
from statistics import median

import hydra
import torch
from hydra.utils import instantiate
from tabulate import tabulate
from torch.nn.functional import cross_entropy

from harness import env
from harness.config import CONF
from harness.job.measure import device
from harness.job.measure.live_memory import LiveBytes
from harness.job.measure.timing import synchronize
from harness.job.models import adapting, loading
from harness.record import Cell
from harness.sweep import app
from harness.sweep.cells import from_config

SEQUENCES, LENGTH, SUPERVISED = 4, 210, 110  # tokens: of each sequence, and the last of them with a loss
FAST = "method.adapt._target_=harness.job.methods.dora.FastDoraConfig"
MIB = 2**20


class Bench:
    """A cell's model and optimizer, and one batch of random tokens."""

    def __init__(self, cell: Cell, bf16: bool, on: torch.device):
        torch.manual_seed(0)
        base = loading.load(cell, on)
        self.net = adapting.adapt(base, cell).train()
        self.optimizer = instantiate(cell.settings.method.optim, _convert_="all")(self.net)
        self.ids = torch.randint(1000, 40_000, (SEQUENCES, LENGTH), device=on)
        self.bf16 = bf16

    def step(self) -> float:
        """Take one training step. Returns its loss."""
        with torch.autocast(self.ids.device.type, torch.bfloat16, enabled=self.bf16):
            logits = self.net(input_ids=self.ids, use_cache=False, logits_to_keep=SUPERVISED + 1).logits[:, :-1]
        loss = cross_entropy(logits.flatten(0, 1).float(), self.ids[:, -SUPERVISED:].flatten())
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())

    def peak(self) -> int:
        """Peak of live tensors in a step, in bytes, with the optimizer's state in place."""
        self.step()
        with LiveBytes(self.ids.device) as live:
            live.see([list(self.net.parameters()), list(self.net.buffers())])
            live.see([value for state in self.optimizer.state.values() for value in state.values()])
            self.step()
        return live.peak


def compared(method: str, precision: str, pairs: int, clock: Callable[[], float]) -> list[str]:
    """A row of the table: time and memory of both, their ratios, and the largest difference of their losses."""
    settings = ["model=smollm2_135m", f"method={method}", "rank=16", f"train.precision={precision}"]
    cells = [from_config(hydra.compose("config", settings + more)) for more in ([], [FAST])]
    on = device.here()
    sides = [Bench(cell, precision == "bf16", on) for cell in cells]
    peaks = [side.peak() for side in sides]
    seconds: tuple[list[float], list[float]] = ([], [])
    apart = 0.0
    for pair in range(1 + pairs):  # one to warm up
        losses = [0.0, 0.0]
        for at in (0, 1) if pair % 2 else (1, 0):
            synchronize()
            start = clock()
            losses[at] = sides[at].step()
            synchronize()
            if pair:
                seconds[at].append(clock() - start)
        apart = max(apart, abs(losses[1] / losses[0] - 1))
    ratios = sorted(b / a for a, b in zip(*seconds, strict=True))
    return [
        method,
        precision,
        f"{median(seconds[0]):.2f} → {median(seconds[1]):.2f} s",
        f"{median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f})",
        f"{peaks[0] / MIB:,.0f} → {peaks[1] / MIB:,.0f} MiB",
        f"{peaks[1] / peaks[0]:.2f}",
        f"{apart:.1e}",
    ]


HEADER = ["Method", "Precision", "Step, peft → fast", "Ratio", "Peak, peft → fast", "Ratio", "Losses differ by at most"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9, help="timed steps of each")
    parser.add_argument("--cpu-time", action="store_true", help="measure process time, not wall time")
    parser.add_argument("--out", type=Path, help="the table's file; without it, it is printed")
    arguments = parser.parse_args()
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    app.register()
    rows = []
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        for method, precision in product(("dora", "qdora"), ("fp32", "bf16")):
            rows.append(compared(method, precision, arguments.pairs, clock))
            print(*rows[-1], sep="  ", file=sys.stderr, flush=True)
    table = tabulate(rows, HEADER, tablefmt="github", disable_numparse=True)
    where = f"{torch.get_num_threads()} threads of {env.describe()['cpu']['name']}"
    if torch.cuda.is_available():
        where = torch.cuda.get_device_name()
    text = (
        f"# DoRA, peft's and ours\n\nSmolLM2-135M, rank 16 on all linear layers, {SEQUENCES} × {LENGTH} tokens, on "
        f"{where}; peft {version('peft')}, torch {version('torch').partition('+')[0]}. Medians of "
        f"{arguments.pairs} pairs of steps{', in process time' if arguments.cpu_time else ''}.\n\n{table}\n"
    )
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
