"""What a training step launches on a GPU, counted on tensors without storage; a part of `benchmarks/RESULTS.md`.

    python benchmarks/speed.py launches                  # requires a C++ compiler, no GPU; a few minutes
    python benchmarks/launches.py llama_3_1_8b lora      # the operations of one step by name, where they take time

Torch believes that there is a GPU (tests/fake_cuda), so the step takes the ways that it takes there: fused optimizers,
attention over rows of sequences, and the harness's own kernels. Each operation is counted with the least time that it
takes on the card (harness/job/predict/roofline.py). Nothing runs, so nothing is measured: times are bounds.

operations: those that start a kernel; views and allocations are left out.
roofline: seconds of all operations, each at the larger of its FLOPs at the card's rate and its bytes at the rate of the
    card's memory. products: the share of it in matrix products and attention.
host: seconds that a host takes to start the operations, at HOST for each.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import hydra
import torch
from tabulate import tabulate

from harness.config import CONF, ROOT
from harness.job.measure.flops import FLOPS
from harness.job.models import empty_weights
from harness.job.predict import fake_probe, prediction, roofline
from harness.job.predict.fake_tensors import in_groups
from harness.job.predict.shapes import Shape
from harness.sweep import app
from harness.sweep.cells import from_config
from harness.sweep.estimates import card

METHODS = ("full", "lora", "qlora", "dora", "galore")
MODELS = ("llama_3_1_8b", "qwen3_1_7b")
DEVICE = "h100"
DEPTHS = (2, 3)  # in layers
SEQUENCES, LENGTH = 4, 2048
HOST = 6e-6  # seconds from the start of one operation to the next in eager torch with autograd, assumed
SHAPE = ("rank=16", f"train.batch_size={SEQUENCES}", f"train.max_length={LENGTH}", "model.gradient_checkpointing=false")
BEFORE = Path(__file__).parent / "measured" / "launches_before.json"  # of the commit that it names
FAKE = ROOT / "tests" / "fake_cuda"


class Launches(roofline.Roofline):
    """Counts operations, and the seconds of products and of all, of the steps since the last reset."""

    last: Launches

    def reset(self) -> None:
        super().reset()
        self.names: Counter[str] = Counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.products: set[str] = set()
        Launches.last = self

    def add(self, operation: Any, arguments: Any, out: Any, flops: int) -> None:
        launches, seconds = self._part["launches"], self._seconds()
        super().add(operation, arguments, out, flops)
        if self._part["launches"] > launches:
            name = operation._schema.name.partition("::")[2]
            self.names[name] += 1
            self.seconds[name] += self._seconds() - seconds
            if operation._overloadpacket in FLOPS:
                self.products.add(name)

    def _seconds(self) -> float:
        """Of the part of a step so far, at the card's rates."""
        return sum(self._part[kind] for kind in ("products", "attention", "moved"))


def of_step(overrides: list[str]) -> dict[str, Any]:
    """What the second step of the cell of `overrides` launches, on a GPU that torch believes in.

    It is counted at DEPTHS of the model, all layers of which are alike, and extrapolated to its own.
    """
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("config", overrides)
        cell, architecture = from_config(config), dict(config.model.architecture)
    planner = prediction.Predictor(None, "bf16", "cuda", torch.device("cuda:0"), card.load(DEVICE).rates)
    cell.settings = prediction._decided(cell.settings, "bf16")
    shape = Shape([[(LENGTH, 0)] * SEQUENCES], steps=1, raw=0, padded=0, real=False)
    whole, layout = planner._config(cell, architecture)[0], planner._layout(cell, architecture)
    few = []
    with mock.patch.object(fake_probe, "Roofline", Launches), torch.autograd.set_multithreading_enabled(False):
        for depth in DEPTHS:
            planner._probe(cell, empty_weights.with_depth(whole, depth), shape, 1, layout)
            few.append(Launches.last)
    more = (whole.num_hidden_layers - DEPTHS[1]) / (DEPTHS[1] - DEPTHS[0])

    def through(of: Callable[[Launches], Mapping[str, float]]) -> dict[str, float]:
        low, high = map(of, few)
        return {name: high[name] + more * (high[name] - low[name]) for name in high}

    names, seconds = through(lambda counted: counted.names), through(lambda counted: counted.seconds)
    operations, total = round(sum(names.values())), sum(seconds.values())
    products = sum(seconds[name] for name in few[1].products)
    return {
        "operations": operations,
        "roofline": total,
        "products": products / total,
        "host": HOST * operations,
        "names": names,
        "seconds": seconds,
    }


def counted(cells: list[list[str]]) -> list[dict[str, Any]]:
    """What `of_step` says of each of `cells`, in a process where torch believes that there is a GPU."""
    libraries, headers = (Path(torch.__file__).parent / name for name in ("lib", "include"))
    with tempfile.TemporaryDirectory() as folder:
        hooks = Path(folder) / "hooks.so"
        build = ["g++", "-shared", "-fPIC", "-std=c++20", "-O1", str(FAKE / "hooks.cpp"), "-o", str(hooks)]
        build += [f"-I{headers}", f"-I{headers}/torch/csrc/api/include", f"-L{libraries}", "-lc10", "-ltorch_cpu"]
        subprocess.run(build, check=True)
        places = [ROOT, ROOT / "tests", FAKE]
        environment = os.environ | {"LD_LIBRARY_PATH": str(libraries), "LD_PRELOAD": str(hooks)}
        environment |= {"PYTHONPATH": os.pathsep.join(map(str, places))}
        command = [sys.executable, __file__, "--there"]
        run = subprocess.run(command, input=json.dumps(cells), stdout=subprocess.PIPE, env=environment, text=True)
    if run.returncode:
        raise SystemExit(run.returncode)
    return [json.loads(line) for line in run.stdout.splitlines()]


def cell_of(model: str, method: str) -> list[str]:
    return [f"model={model}", f"method={method}", *SHAPE]


def launches(pairs: int, data_root: str | None) -> dict[str, Any]:
    """What steps of the core methods launch, by model and method."""
    asked = [(model, method) for model in MODELS for method in METHODS]
    kept = ("operations", "roofline", "products", "host")
    rows = [
        {"model": model, "method": method} | {name: row[name] for name in kept}
        for (model, method), row in zip(asked, counted([cell_of(*of) for of in asked]), strict=True)
    ]
    before = json.loads(BEFORE.read_text(encoding="utf-8"))["rows"]
    return {
        "rows": rows,
        "before": before,
        "card": DEVICE,
        "sequences": SEQUENCES,
        "length": LENGTH,
        "host_seconds": HOST,
    }


def _there() -> None:
    steps = importlib.import_module("steps")  # of tests/fake_cuda
    app.register()
    cells = json.load(sys.stdin)
    steps.pretend()
    with in_groups():
        for overrides in cells:
            print(json.dumps(of_step(overrides)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=MODELS[0])
    parser.add_argument("method", nargs="?", default="lora")
    parser.add_argument("overrides", nargs="*", help="further settings of the cell")
    parser.add_argument("--there", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.there:
        _there()
        return
    (row,) = counted([cell_of(arguments.model, arguments.method) + arguments.overrides])
    names = sorted(row["names"], key=lambda name: -row["seconds"][name])
    rows = [[name, round(row["names"][name]), f"{1e3 * row['seconds'][name]:.2f}"] for name in names]
    print(tabulate(rows, ["Operation", "Times", "ms by roofline"], tablefmt="github"))
    print(
        f"\n{row['operations']} operations, {1e3 * row['roofline']:.0f} ms by roofline, {row['products']:.0%} of it "
        f"products and attention; {1e3 * row['host']:.0f} ms of a host."
    )


if __name__ == "__main__":
    main()
