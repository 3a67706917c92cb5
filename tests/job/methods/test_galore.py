"""GaLore's randomised projections, held against the whole decomposition of real gradients."""

from __future__ import annotations

import time

import pytest
import torch
from galore_torch import GaLoreAdamW
from galore_torch.galore_projector import GaLoreProjector
from job_helpers import composed, prepared, tiny, trained
from torch import Tensor

from harness.job.methods import optimizers
from harness.job.methods.galore import RandomisedProjector
from harness.job.training import loop

RANK = 16


def projectors(gradient: Tensor, rank: int = RANK) -> tuple[Tensor, Tensor]:
    """The exact and the randomised projection of `gradient` at `rank`."""
    out = []
    for kind in (GaLoreProjector, RandomisedProjector):
        projector = kind(rank, proj_type="std")
        projector.project(gradient, 0)
        out.append(projector.ortho_matrix)
    return out[0], out[1]


def distance(a: Tensor, b: Tensor) -> float:
    """The sine of the largest principal angle between two subspaces: of rows (r, n), or of columns (m, r)."""
    a, b = (x.T if x.shape[0] < x.shape[1] else x for x in (a, b))
    return float(1 - torch.linalg.svdvals(a.T @ b).min() ** 2) ** 0.5 if a.numel() else 0.0


def gradients(*overrides: str) -> dict[str, Tensor]:
    """The gradients of all matrices after one backward pass."""
    bench = prepared(composed("method=galore", "train.max_steps=1", *overrides))
    loop.summed_loss(bench.net, bench.steps[0][0]).backward()
    return {name: weight.grad for name, weight in optimizers.matrices_of(bench.net).items()}


@pytest.mark.parametrize("shape", [(64, 200), (200, 64), (96, 96)])
def test_a_subspace_with_a_gap_is_found(shape):
    torch.manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(shape[0], RANK))
    right, _ = torch.linalg.qr(torch.randn(shape[1], RANK))
    matrix = left @ torch.diag(torch.linspace(10, 5, RANK)) @ right.T + 0.01 * torch.randn(shape)
    exact, randomised = projectors(matrix)
    assert randomised.shape == exact.shape
    assert distance(exact, randomised) < 1e-3


def test_projection_vectors_are_orthonormal_and_own_their_storage():
    torch.manual_seed(0)
    _, randomised = projectors(torch.randn(64, 200))
    assert torch.allclose(randomised.T @ randomised, torch.eye(RANK), atol=1e-5)
    assert randomised.untyped_storage().nbytes() == 4 * 64 * RANK


@pytest.mark.long
@pytest.mark.slow
def test_real_gradients_lose_little_and_updates_are_five_times_as_fast():
    # Singular values of gradients may lie close together at the rank, where subspaces are ill-defined; what GaLore
    # needs is the gradient's energy inside the projection.
    found = gradients("model=smollm2_135m", "data=wordmath_short", "train.batch_size=2")
    seconds = {GaLoreProjector: 0.0, RandomisedProjector: 0.0}
    kept = []
    for name, gradient in found.items():
        energy = {}
        for kind in seconds:
            projector = kind(RANK, proj_type="std")
            start = time.perf_counter()
            low = projector.project(gradient, 0)
            seconds[kind] += time.perf_counter() - start
            energy[kind] = float(low.norm() / gradient.norm()) ** 2
        kept.append((energy[RandomisedProjector] / energy[GaLoreProjector], name))
    assert len(kept) == 210
    assert min(kept)[0] > 0.98, min(kept)
    assert seconds[GaLoreProjector] > 5 * seconds[RandomisedProjector], seconds


def reference(weight: Tensor, gradients: list[Tensor], rank: int, gap: int, scale: float, lr: float) -> list[Tensor]:
    """The weight (m, n) after each step of GaLore's algorithm 2: Adam's moments are of the projected gradient."""
    rows, columns = weight.shape
    first, second, out = 0.0, 0.0, []
    for t, gradient in enumerate(gradients):
        if t % gap == 0:  # new projections; the moments stay as they are
            left, _, right = torch.linalg.svd(gradient, full_matrices=False)
            projection = left[:, :rank] if rows < columns else right[:rank].T  # of the smaller side
        low = projection.T @ gradient if rows < columns else gradient @ projection
        first, second = 0.9 * first + 0.1 * low, 0.999 * second + 0.001 * low**2
        corrected = 1 - 0.9 ** (t + 1), (1 - 0.999 ** (t + 1)) ** 0.5
        step = first / corrected[0] / ((second.sqrt() + 1e-6) / corrected[1])
        weight = weight - lr * scale * (projection @ step if rows < columns else step @ projection.T)
        out.append(weight)
    return out


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (16, 16)])
def test_the_weights_go_as_in_the_algorithm_step_by_step(shape):
    torch.manual_seed(0)
    weight, gradients = torch.randn(shape), [torch.randn(shape) for _ in range(7)]
    expected = reference(weight, gradients, rank=4, gap=3, scale=0.25, lr=0.1)
    parameter = torch.nn.Parameter(weight.clone())
    group = {"params": [parameter], "rank": 4, "update_proj_gap": 3, "scale": 0.25, "proj_type": "std"}
    optimizer = GaLoreAdamW([group], lr=0.1, weight_decay=0.0, no_deprecation_warning=True)
    for gradient, wanted in zip(gradients, expected, strict=True):
        parameter.grad = gradient.clone()
        optimizer.step()
        assert torch.allclose(parameter.detach(), wanted, rtol=1e-4, atol=1e-5)


def test_training_by_it_learns_as_well():
    losses = {}
    for method in ("galore", "galore_rsvd"):
        bench = prepared(tiny(f"method={method}", "rank=8", "lr=0.005", "train.max_steps=20"))
        measured, _ = trained(bench)
        losses[method] = [point.loss for point in measured.loss]
    assert losses["galore_rsvd"][-1] < 0.9 * losses["galore_rsvd"][0]
    assert losses["galore_rsvd"][-1] == pytest.approx(losses["galore"][-1], rel=0.05)


@pytest.mark.parametrize(
    ("method", "epsilon"), [("full", 1e-8), ("galore", 1e-6), ("galore_rsvd", 1e-6), ("galore_8bit", 1e-8)]
)
def test_epsilons_are_those_of_each_package_as_the_page_of_methods_says(method, epsilon):
    bench = prepared(tiny(f"method={method}"))
    assert {group["eps"] for group in bench.optimizer.param_groups} == {epsilon}


def test_a_projection_to_both_sides_is_refused():
    with pytest.raises(ValueError, match="proj_type=std"):
        RandomisedProjector(4, proj_type="full").project(torch.randn(8, 8), 0)
