"""Makes a model come to harm in the second of several devices."""

from __future__ import annotations

import functools
import os
import signal
import sys
from unittest import mock

import torch
from peft.optimizers import create_lorafa_optimizer  # noqa: F401 (named in a test's settings)

import harness.job.phases.probe
from harness.job.methods import optimizers

harness.job.phases.probe.matmul_peak = lambda *_: 1e9  # the look at the device's speed takes longer than all else here


def build(model, harm="none", **slot):
    """An optimizer's factory whose model comes to `harm` in the second rank, in the third step of training."""
    print(f"rank {os.environ.get('RANK')} is process {os.getpid()}", file=sys.stderr)
    made, passes = optimizers.build(model, **slot), []
    for part in getattr(made, "parts", ()):
        if isinstance(part, torch.optim.Muon):
            part.step = unrounded(part.step)

    def hook(model, args, keywords):
        passes.append(model.training)
        if harm == "hungry" and int((keywords["position_ids"] == 0).sum()) > 1:
            torch.empty(2**50)
        if passes.count(True) == 5:  # two in the probe
            if harm == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            if harm == "raises":
                raise RuntimeError("as it was told")

    if os.environ.get("RANK") == "1":
        model.register_forward_pre_hook(hook, with_kwargs=True)
        if harm == "drifts":
            made.register_step_post_hook(lambda *_: next(model.parameters()).data.add_(1e-3))
    return made


def unrounded(step):
    """Muon's step without its rounding to bf16, which depends on the CPU and on how matrices are divided."""

    @functools.wraps(step)
    def in_fp32(closure=None):
        with mock.patch.object(torch.Tensor, "bfloat16", torch.Tensor.float):
            return step(closure)

    return in_fp32
