"""GaLore whose projections come from a randomised decomposition, many times faster than the whole one."""

from __future__ import annotations

from typing import Any

import torch
from galore_torch import GaLoreAdamW
from galore_torch.galore_projector import GaLoreProjector

from harness.job.methods.adamw import Bitsandbytes

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


class EightBitGaLoreAdamW(Bitsandbytes):
    """galore-torch's GaLoreAdamW8bit: the same steps by today's bitsandbytes, in which the weights stay where they are.

    Its own class puts a small tensor in the place of each weight for the time of its step, and waits for CUDA after
    each; and it hands over arguments by their place, which have other meanings now: a limit on each update's size in
    proportion to the weights', which are zeros when GaLore has them updated, stopped all matrices but large ones.
    """

    def __init__(self, params: Any, lr: float, weight_decay: float, no_deprecation_warning: bool):
        """no_deprecation_warning: of GaLoreAdamW alone."""
        super().__init__("adam", params, lr=lr, weight_decay=weight_decay, optim_bits=8)

    def _step(self, group: dict[str, Any], p: torch.Tensor, number: int, index: int) -> None:
        """Step `p`, a matrix by what AdamW does to zeros with the projected gradient."""
        if "rank" not in group:
            super()._step(group, p, number, index)
            return
        state = self.state[p]
        if "projector" not in state:
            names = ("rank", "update_proj_gap", "scale", "proj_type")
            state["projector"] = GaLoreProjector(**{name: group[name] for name in names})
        gradient = state["projector"].project(p.grad, state.get("step", 0))
        low = torch.zeros_like(gradient)
        low.grad = gradient
        self.state[low] = state
        super()._step(group, low, number, index)
        del self.state[low]
        p.add_(state["projector"].project_back(low))
        if group["weight_decay"]:
            p.add_(p, alpha=-group["lr"] * group["weight_decay"])
