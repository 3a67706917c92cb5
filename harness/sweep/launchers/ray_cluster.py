"""What a Ray cluster must have before cells are sent to it: Ray itself lets them wait forever, silently."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

from harness.errors import UserError


def require_gpus(settings: DictConfig) -> None:
    """Raise UserError if the cluster has fewer GPUs than a cell asks for.

    settings: `hydra.launcher.ray`. Connects to the cluster as the launcher does, which then finds itself connected.
    """
    gpus = settings.remote.get("num_gpus") or 0
    if not gpus:
        return
    import ray

    if not ray.is_initialized():
        options: Any = OmegaConf.to_container(settings.init, resolve=True)
        ray.init(**options)
    there = ray.cluster_resources().get("GPU", 0)
    if there < gpus:
        raise UserError(
            f"hydra.launcher.ray.remote.num_gpus={gpus:g} requires a cluster with GPUs, got {there:g}; on a cluster "
            "without GPUs add hydra.launcher.ray.remote.num_gpus=0."
        )
