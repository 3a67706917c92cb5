"""GaLore variants: projections from a randomised decomposition, many times faster than the full one; 8-bit moments."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from galore_torch import GaLoreAdamW
from galore_torch.galore_projector import GaLoreProjector

from harness.job.methods.adamw import Bitsandbytes
from harness.job.methods.master_weights import any_sharded
from harness.job.training import distributed

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
        distributed.share_random_numbers()
        left, _, right = torch.svd_lowrank(weights.detach().float(), q=columns, niter=POWERS)
        if type == "right":
            return right[:, :rank].T.contiguous().to(weights.dtype)
        if type == "left":
            return left[:, :rank].contiguous().to(weights.dtype)
        raise ValueError(f"A randomised projection must be right or left, got {type!r}; use proj_type=std.")


class StackProjector:
    """A projector for each matrix of a stack (experts, rows, columns), each in an attribute, as in other states."""

    def __init__(self, projectors: Iterable[GaLoreProjector]):
        vars(self).update({f"expert{number}": projector for number, projector in enumerate(projectors)})

    def project(self, gradient: torch.Tensor, step: int) -> torch.Tensor:
        """The `gradient` of a stack, each matrix projected to its rank."""
        parts = zip(vars(self).values(), gradient, strict=True)
        return torch.stack([projector.project(own, step) for projector, own in parts])

    def project_back(self, update: torch.Tensor) -> torch.Tensor:
        """The projected `update` of a stack in the stack's shape."""
        return torch.stack([part.project_back(own) for part, own in zip(vars(self).values(), update, strict=True)])


def project_stacks(optimizer: GaLoreAdamW) -> None:
    """Have `optimizer` project each matrix of a stack by itself; a projector of its own takes matrices alone."""
    for group in optimizer.param_groups:
        for p in group["params"] if "rank" in group else ():
            if p.ndim == 3:
                kind = type(optimizer.state[p].get("projector") or GaLoreProjector(group["rank"]))
                optimizer.state[p]["projector"] = StackProjector(projector(group, kind) for _ in range(len(p)))


def projector(group: dict[str, Any], kind: type[GaLoreProjector] = GaLoreProjector) -> GaLoreProjector:
    """A projector of the `kind` with the settings of a group of parameters."""
    return kind(**{name: group[name] for name in ("rank", "update_proj_gap", "scale", "proj_type")})


class RandomisedGaLoreAdamW(GaLoreAdamW):
    """galore-torch's GaLoreAdamW with a RandomisedProjector for each matrix."""

    def __init__(self, params: Any, **keywords: Any):
        super().__init__(params, **keywords)
        for group in self.param_groups:
            if "rank" in group:
                for parameter in group["params"]:
                    self.state[parameter]["projector"] = projector(group, RandomisedProjector)


class GroupedGaLoreAdamW(GaLoreAdamW):
    """galore-torch's GaLoreAdamW with the moments of many weights in one operation each: the same steps.

    As many weights are stepped together as have no more values in their moments than the largest weight, so temporary
    tensors take no more memory. A matrix is updated by one product that adds to it.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        weights = [p for group in self.param_groups for p in group["params"]]
        if any_sharded(weights):
            super().step()
            return
        largest = max(map(torch.Tensor.numel, weights), default=0)
        for group in self.param_groups:
            together: list[tuple[torch.Tensor, torch.Tensor]] = []  # weights, and their gradients as projected
            values = 0
            for p in group["params"]:
                if p.grad is None:
                    continue
                gradient = self._projected(group, p, p.grad)
                if together and (values + gradient.numel() > largest or self._steps(p) != self._steps(together[0][0])):
                    self._step(group, together)
                    together, values = [], 0
                together.append((p, gradient))
                values += gradient.numel()
            if together:
                self._step(group, together)

    def _steps(self, p: torch.Tensor) -> int:
        return self.state[p]["step"]

    def _projected(self, group: dict[str, Any], p: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
        """The `gradient` of `p`, projected if its group says so."""
        state = self.state[p]
        state.setdefault("step", 0)
        if "rank" in group:
            if "projector" not in state:
                state["projector"] = projector(group)
            gradient = state["projector"].project(gradient, state["step"])
        for moment in ("exp_avg", "exp_avg_sq"):
            if moment not in state:
                state[moment] = torch.zeros_like(gradient)
        return gradient

    def _step(self, group: dict[str, Any], together: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Step weights of equal numbers of steps by their gradients, as projected."""
        weights, gradients = [p for p, _ in together], [gradient for _, gradient in together]
        states, (beta1, beta2), size = [self.state[p] for p in weights], group["betas"], group["lr"]
        averages, squares = ([state[moment] for state in states] for moment in ("exp_avg", "exp_avg_sq"))
        for state in states:
            state["step"] += 1
        torch._foreach_mul_(averages, beta1)
        torch._foreach_add_(averages, gradients, alpha=1.0 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, gradients, gradients, value=1.0 - beta2)
        updates = torch._foreach_sqrt(squares)
        torch._foreach_add_(updates, group["eps"])
        if group["correct_bias"]:
            count = states[0]["step"]
            size *= math.sqrt(1.0 - beta2**count) / (1.0 - beta1**count)
        updates = torch._foreach_div(averages, updates)
        if "rank" in group:
            for p, state, update in zip(weights, states, updates, strict=True):
                _add_back(p, state["projector"], update, -size)
        else:
            torch._foreach_add_(weights, updates, alpha=-size)
        if group["weight_decay"] > 0.0:
            torch._foreach_mul_(weights, 1.0 - group["lr"] * group["weight_decay"])


def _add_back(p: torch.Tensor, projector: Any, update: torch.Tensor, size: float) -> None:
    """Add `size` times the projected `update` to `p`, as GaLoreProjector.project_back has it."""
    basis = getattr(projector, "ortho_matrix", None)
    if basis is None or isinstance(basis, list | tuple):  # of a stack; of both sides
        p.add_(projector.project_back(update), alpha=size)
        return
    tall = update.shape[0] >= update.shape[1]
    right = projector.proj_type == "right" or (projector.proj_type == "std" and tall)
    right = right or (projector.proj_type == "reverse_std" and update.shape[0] > update.shape[1])
    p.addmm_(*((update, basis) if right else (basis, update)), alpha=size * projector.scale)


PROJECTORS = [GaLoreProjector, RandomisedProjector, StackProjector]  # classes in the optimizer's state beside tensors


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
            state["projector"] = projector(group)
        gradient = state["projector"].project(p.grad, state.get("step", 0))
        low = torch.zeros_like(gradient)
        low.grad = gradient
        self.state[low] = state
        super()._step(group, low, number, index)
        del self.state[low]
        p.add_(state["projector"].project_back(low))
        if group["weight_decay"]:
            p.add_(p, alpha=-group["lr"] * group["weight_decay"])
