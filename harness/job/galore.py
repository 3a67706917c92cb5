"""GaLore whose projections come from a randomised decomposition, many times faster than the whole one."""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.optim.optimizer import Optimizer2State
from galore_torch import GaLoreAdamW, GaLoreAdamW8bit
from galore_torch.galore_projector import GaLoreProjector

OVERSAMPLE = 10  # columns beyond the rank, and
POWERS = 2  # iterations: what Halko, Martinsson & Tropp (2011, arXiv:0909.4061, section 1.6) find to be enough


class RandomisedProjector(GaLoreProjector):
    """galore-torch's projector, its singular vectors found by Halko et al.'s randomised subspace iteration.

    It keeps the r vectors alone, where the whole decomposition keeps all of them alive behind its first r.
    """

    def get_orthogonal_matrix(self, weights: torch.Tensor, rank: int, type: str) -> Any:
        """The leading right (r, n) or left (m, r) singular vectors of `weights` (m, n), in its dtype."""
        columns = min(rank + OVERSAMPLE, *weights.shape)
        left, _, right = torch.svd_lowrank(weights.detach().float(), q=columns, niter=POWERS)
        if type == "right":
            return right[:, :rank].T.contiguous().to(weights.dtype)
        if type == "left":
            return left[:, :rank].contiguous().to(weights.dtype)
        raise ValueError(f"A randomised projection is right or left, not {type!r}; take proj_type=std.")


class RandomisedGaLoreAdamW(GaLoreAdamW):
    """galore-torch's GaLoreAdamW with a RandomisedProjector for each matrix."""

    def __init__(self, params: Any, **keywords: Any):
        super().__init__(params, **keywords)
        for group in self.param_groups:
            if "rank" in group:
                names = ("rank", "update_proj_gap", "scale", "proj_type")
                for parameter in group["params"]:
                    self.state[parameter]["projector"] = RandomisedProjector(**{name: group[name] for name in names})


PROJECTORS = [GaLoreProjector, RandomisedProjector]  # what such optimizers keep in their state beside tensors


class EightBitGaLoreAdamW(GaLoreAdamW8bit):
    """galore-torch's GaLoreAdamW8bit, made right for today's bitsandbytes, and also where there is no CUDA device.

    Its own `__init__` hands over arguments by their place, which have other meanings now: a limit on each update's size
    in proportion to the weights', which are zeros when GaLore has them updated, stopped all matrices but large ones.
    """

    def __init__(self, params: Any, lr: float, weight_decay: float, no_deprecation_warning: bool):
        """no_deprecation_warning: of GaLoreAdamW alone."""
        Optimizer2State.__init__(self, "adam", params, lr=lr, weight_decay=weight_decay, optim_bits=8)

    def step(self, closure: Any = None) -> Any:
        """As galore-torch steps, which waits for CUDA after each weight."""
        if torch.cuda.is_available():
            return super().step(closure)
        wait = torch.cuda.synchronize
        torch.cuda.synchronize = lambda: None
        try:
            return super().step(closure)
        finally:
            torch.cuda.synchronize = wait
