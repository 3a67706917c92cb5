"""Makes a model need more memory than there is."""

from __future__ import annotations

import torch

from harness.job.methods import optimizers


def build(model, limit, **slot):
    """An optimizer's factory whose model needs more memory than there is for more than `limit` sequences at a time."""

    def hook(model, args, keywords):
        if model.training and int((keywords["position_ids"] == 0).sum()) > limit:
            torch.empty(2**50)

    model.register_forward_pre_hook(hook, with_kwargs=True)
    return optimizers.build(model, **slot)
