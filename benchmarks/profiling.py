"""Where a training step's time goes: a torch profiler trace, and the share of the device's matmul peak that is reached.

    make profile METHOD=dora        # or: python benchmarks/profiling.py --method dora [--batch-size 4 --length 207]

The trace (chrome://tracing, Perfetto) lies in `profiles/METHOD.json`; what is printed counts its steps alone.
"""

from __future__ import annotations

import argparse
import time

import torch
from speed import OurSide
from torch.profiler import ProfilerActivity, profile, record_function

from harness.config import ROOT
from harness.job.data import encoding
from harness.job.measure.live_memory import LiveBytes
from harness.job.measure.timing import matmul_peak, synchronize
from harness.sweep import app

STEPS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="lora")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--length", type=int, default=207)
    arguments = parser.parse_args()
    app.register()
    side = OurSide(arguments.method, "wordmath")
    ids = list(range(1000, 1000 + arguments.length))
    batch = [encoding.Example(ids, arguments.length // 2)] * arguments.batch_size
    side.step(batch)  # kernels are chosen, and the optimizer's state is made
    device = side.accelerator.device
    with LiveBytes(device) as live:
        side.step(batch)
    synchronize()
    start = time.perf_counter()
    for _ in range(STEPS):
        side.step(batch)
    synchronize()
    seconds = (time.perf_counter() - start) / STEPS
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as trace:
        for _ in range(STEPS):
            with record_function("step"):
                side.step(batch)
            synchronize()
    folder = ROOT / "profiles"
    folder.mkdir(exist_ok=True)
    trace.export_chrome_trace(str(folder / f"{arguments.method}.json"))
    peak = matmul_peak(device, torch.bfloat16 if side.accelerator.mixed_precision == "bf16" else torch.float32)
    by = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
    print(trace.key_averages().table(sort_by=by, row_limit=25, max_name_column_width=60))
    tokens, rate = arguments.batch_size * arguments.length, live.flops / seconds
    print(f"{arguments.method}: {tokens} tokens a step in {seconds:.2f} s unobserved, {tokens / seconds:.0f} tokens/s.")
    print(
        f"Its {live.flops / 1e9:.0f} GFLOP are {rate / 1e9:.0f} GFLOP/s, {rate / peak:.0%} of the {peak / 1e9:.0f} "
        f"that large square products reach (precision {side.accelerator.mixed_precision})."
    )
    print(f"The trace is in profiles/{arguments.method}.json.")


if __name__ == "__main__":
    main()
