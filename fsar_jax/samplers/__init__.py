"""Stage 1: which frames of a video are looked at, and how they are warped. Table of contents.

A sampler that goes by the video alone (`per_episode` False) has `__call__(videos [B, M, H, W, 3],
train)` → {'frames': [B, L, H, W, 3]} and what else it has to say of its choice, per video. One that
goes by the task (`per_episode` True) has `scan(videos, train)` → pytree with leading axis B, which
evaluation keeps, and `sample_episode(support, query, train)` on leaves [way, shot, …] and [Q, …] →
such a dict for the support and one for the query. A new sampler is one file and one line.
"""

import jax.numpy as jnp

from fsar_jax.backbones.scan import create_scan_network
from fsar_jax.samplers.motion_guided import MotionGuidedSampler
from fsar_jax.samplers.task_adaptive import TaskAdaptiveSampler
from fsar_jax.samplers.uniform import UniformSampler

SAMPLERS = {
    'uniform': lambda model: UniformSampler(),
    'motion_guided': lambda model: MotionGuidedSampler(
        frames=model.sampler.frames,
        smoothing=model.sampler.smoothing,
        at_test=model.sampler.at_test,
    ),
    'task_adaptive': lambda model: TaskAdaptiveSampler(
        scan_network=create_scan_network(
            model.sampler.scan_network,
            frozen=model.backbone.batch_norm == 'frozen',
            dtype=jnp.dtype(model.dtype),
        ),
        variant=model.sampler.variant,
        dtype=jnp.dtype(model.dtype),
        **{
            name: model.sampler[name]
            for name in (
                'frames',
                'scan_size',
                'temporal',
                'spatial',
                'adaptive',
                'hidden',
                'task_dim',
                'sigma',
                'num_samples',
                'samples_per_chunk',
                'at_test',
                'sigma_schedule',
                'sigma_end',
                'sigma_factor',
                'sigma_steps',
                'intra_weight',
            )
        },
    ),
}


def create(model):
    """The sampler of `model.sampler.name` (config.model): a Linen module."""
    if model.sampler.name not in SAMPLERS:
        raise ValueError(
            f"config.model.sampler.name='{model.sampler.name}' is not one of {', '.join(SAMPLERS)}"
        )
    return SAMPLERS[model.sampler.name](model)
