"""Check a GPU: what the harness promises about GPUs, in one run with a time limit.

    python -m benchmarks.gpu                  # or make gpu; all checks, for one H100 or a 24 GB card
    python -m benchmarks.gpu --random         # on a model of Qwen3-1.7B's shape with random weights
    python -m benchmarks.gpu engine oom       # some checks; the results of the others are kept
    python -m benchmarks.gpu --render         # rewrite GPU.md from the recorded results
    python -m benchmarks.gpu --cpu            # test the script itself on a tiny model, without CUDA checks

Run it in a checkout. It needs no network once its packages are installed; `make gpu-bundle` and then
`make gpu BUNDLE=FOLDER` carry them to a machine without one (bundle.py). torch must be a CUDA build of 2.11 or later.

Each check runs in processes of its own, with a time limit. The most important checks come first; at its own time limit
the script stops and keeps the results so far. Records are in results/gpu, results of the checks in
results/gpu/checks.jsonl; results/gpu/GPU.md is written from both. The exit status is 1 if a check failed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

from harness.errors import UserError, about_file, one_of
from harness.studies import doctor
from harness.sweep.launchers import places

from . import checks, render
from .bench import MODELS, Bench, room

RANDOM, RANDOM_BYTES = "qwen3_1_7b", 5e9
BUILT = MODELS / RANDOM
NEEDED = {"cuda": 2e9, "cpu": 2e8}  # bytes of disk for records, checkpoints and the cache of an embedded model


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "checks", nargs="*", metavar="CHECK", help=f"checks to run, from: {', '.join(checks.CHECKS)} (default: all)"
    )
    parser.add_argument("--minutes", type=float, default=25, help="time limit of the run (default: 25)")
    parser.add_argument("--random", action="store_true", help="use random weights instead of the embedded SmolLM2")
    parser.add_argument("--cpu", action="store_true", help="test the script itself on the CPU, with the tiny model")
    parser.add_argument(
        "--out", type=Path, default=Path("results/gpu"), metavar="DIR", help="study folder (default: results/gpu)"
    )
    parser.add_argument("--render", action="store_true", help="rewrite GPU.md; run nothing")
    options = parser.parse_args(arguments)
    try:
        if not options.render:
            run(options)
        document = render.document(options.out)
        (options.out / "GPU.md").write_text(document, encoding="utf-8")
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(about_file(error), file=sys.stderr)
        return 2
    print(document)
    return int(any(check.status == "failed" for check in render.read(options.out)))


def run(options: argparse.Namespace) -> None:
    """Run the selected checks. Raises UserError if they can't start."""
    until = time.monotonic() + 60 * options.minutes
    for name in options.checks:
        one_of("check", name, checks.CHECKS)
    if options.minutes <= 0:
        raise UserError(f"--minutes must be positive, got {options.minutes:g}.")
    if options.cpu:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    gpus = places.gpus()
    # Of several the first: a Trainer would take them all.
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus[0] if gpus else os.environ.get("CUDA_VISIBLE_DEVICES", "0")
    facts = doctor.examine(options.out, None)
    if facts["job"] is None:
        raise UserError(facts["broken"])
    device = facts["job"]["compute"]["device"]["type"]
    if device != "cuda" and not options.cpu:
        raise UserError(f"A CUDA device is required, torch found {device}; --cpu tests the script itself.")
    room(options.out, NEEDED[device])
    if not options.checks and options.out.exists():
        shutil.rmtree(options.out)
    options.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(options.out, facts, _model(options), until, gpus)
    if options.random:
        bench.build_random(BUILT, RANDOM_BYTES)
    for name in options.checks or checks.CHECKS:
        check = checks.run(name, bench)
        render.add(check, options.out)
        print(f"{check.name}: {check.status} ({check.detail}), {check.seconds:.0f} s", file=sys.stderr, flush=True)


def _model(options: argparse.Namespace) -> list[str]:
    """The overrides that select the model."""
    if options.random:
        return [f"model={RANDOM}", f"model.path={BUILT}"]
    if options.cpu:
        return ["model=tiny"]
    return [f"model={doctor.DEFAULT_MODEL}"]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
