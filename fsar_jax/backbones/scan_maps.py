"""What a scan network tells the sampler of a video."""

from collections.abc import Iterable

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class ScanMaps:
    """Feature maps of N frames at three scales, and of the last layer.

    Attributes:
      stages: (f2, f3, f4), each [N, h, w, C], each of half the size of the one before.
      last: [N, h, w, c], after batch norm and the rectifier; of the size of f4.
      features: [N, c] float32, the spatial mean of `last`.
    """

    stages: tuple[jax.Array, jax.Array, jax.Array]
    last: jax.Array
    features: jax.Array

    @classmethod
    def of(cls, stages: Iterable[jax.Array], last: jax.Array) -> 'ScanMaps':
        f2, f3, f4 = stages
        return cls((f2, f3, f4), last, last.astype(jnp.float32).mean((1, 2)))
