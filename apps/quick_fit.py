"""The quick hash-grid fit that other fits begin with: a radiance field finds a scene's surfaces within seconds."""

from __future__ import annotations

from dataclasses import replace

import torch

from ..datasets.scene import Scene
from ..renderers.pose_deltas import PoseConfig
from ..renderers.robust import RobustConfig
from .fit import Budget, Job, fit


def quick_fit(
    scene: Scene,
    seed: int,
    device: torch.device,
    budget: Budget,
    robust: RobustConfig,
    poses: PoseConfig | None = None,
) -> Job:
    """The fit, done; it says that it is. It corrects cameras' poses if told how."""
    from .recipes import ngp

    length = f"{budget.steps} steps" if budget.seconds is None else f"{budget.seconds:.0f} s"
    print(
        f"{scene.name}: a hash-grid fit finds the surfaces{'' if poses is None else ' and cameras'} first, {length}",
        flush=True,
    )
    config = ngp.Config(robust=robust)
    if poses is not None:
        config = replace(config, refine_poses=True, poses=poses)
    job = config.build(scene, seed, device)
    fit(job, budget, config.after_step())
    return job
