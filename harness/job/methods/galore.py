"""GaLore variants: projections from a randomised decomposition, many times faster than the full one; 8-bit moments."""

from __future__ import annotations

from typing import Any

import torch
from galore_torch import GaLoreAdamW
from galore_torch.galore_projector import GaLoreProjector

from harness.job.methods.adamw import Bitsandbytes

# Enough by Halko, Martinsson & Tropp (2011, arXiv:0909.4061, section 1.6).
OVERSAMPLE = 10  # columns beyond the rank
POWERS = 2  # power iterations


class RandomisedProjector(GaLoreProjector):
    """galore-torch's projector with singular vectors from Halko et al.'s randomised subspace iteration.

    It keeps only r vectors; the full decomposition keeps all of them alive behind its first r.
    """

    def get_orthogonal_matrix(self, weights: torch.Tensor, rank: int, type: str) -> Any:
        """The leading right (r, n) or left (m, r) singular vectors of `weights` (m, n), in its dtype."""
        columns = min(rank + OVERSAMPLE, *weights.shape)
        left, _, right = torch.svd_lowrank(weights.detach().float(), q=columns, niter=POWERS)
        if type == "right":
            return right[:, :rank].T.contiguous().to(weights.dtype)
        if type == "left":
            return left[:, :rank].contiguous().to(weights.dtype)
        raise ValueError(f"A randomised projection must be right or left, got {type!r}; use proj_type=std.")


class RandomisedGaLoreAdamW(GaLoreAdamW):
    """galore-torch's GaLoreAdamW with a RandomisedProjector for each matrix."""

    def __init__(self, params: Any, **keywords: Any):
        super().__init__(params, **keywords)
        for group in self.param_groups:
            if "rank" in group:
                names = ("rank", "update_proj_gap", "scale", "proj_type")
                for parameter in group["params"]:
                    self.state[parameter]["projector"] = RandomisedProjector(**{name: group[name] for name in names})


PROJECTORS = [GaLoreProjector, RandomisedProjector]  # classes in the optimizer's state beside tensors


class EightBitGaLoreAdamW(Bitsandbytes):
    """galore-torch's GaLoreAdamW8bit with today's bitsandbytes: the same steps, with weights that stay in place.

    galore-torch's class replaces each weight by a small tensor during its step, and waits for CUDA after each. It also
    passes arguments by position, which have other meanings now: a limit on each update relative to the weights, which
    are zeros in GaLore's update, stopped all but large matrices.
    """

    def __init__(self, params: Any, lr: float, weight_decay: float, no_deprecation_warning: bool):
        """no_deprecation_warning: ignored, for GaLoreAdamW only."""
        super().__init__("adam", params, lr=lr, weight_decay=weight_decay, optim_bits=8)

    def _step(self, group: dict[str, Any], p: torch.Tensor, number: int, index: int) -> None:
        """Step `p`: a matrix by AdamW's update of zeros with the projected gradient."""
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
