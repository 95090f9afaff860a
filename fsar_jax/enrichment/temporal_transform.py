"""Temporal transform: TA2N's first stage, which warps each video to the duration of its action."""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from fsar_jax.backbones.batch_norm import BatchNorm
from fsar_jax.convolution import convolution
from fsar_jax.fields import setting
from fsar_jax.layers import Linear, einsum_float32, linear_interpolation, torch_conv3d
from fsar_jax.stage import Shared, Stage

WIDTHS = (64, 128)  # of the two convolutions
WINDOW_START = (2.0, 0.0)  # before tanh: at first nearly the whole clip, (a, b) = (0.964, 0)


class TemporalTransform(Stage):
    """f̂ = T_φ(f), φ = (a, b) = L(f): the clip resampled along time at a·t + b, t ∈ [−1, 1] (TA2N,
    Eq. 1).

    L is two 3D convolutions with batch norm, max pooling and ReLU, a maximum over what is left, and
    two linear maps with tanh. The paper leaves it open; this is the released network (rows A1, A2
    and A15 of docs/paper_vs_code.md), in both variants.

    Args:
      dropout: rate on the maps, before everything else, while training.
      frozen: batch norm uses running statistics in training too.
      align_at_test: False leaves test clips as they are, (a, b) = (1, 0).
      prepared: for a test whose frames come as `prepare` makes them.
      dtype: compute dtype; positions and (a, b) are float32.

    Input maps [B, L, h, w, C]; output (maps [B, L, h, w, C], window float32 [B, 2] = (a, b)).
    """

    needs_maps = True

    dropout: float = setting(
        0.1, at_least=0, below=1, affects='model', help='dropout rate in training'
    )
    frozen: bool = False
    align_at_test: bool = Shared.align_at_test
    prepared: bool = False
    dtype: Any = jnp.float32

    def prepare(self, maps: jax.Array) -> jax.Array:
        """What depends on one frame alone, so that a test computes it once per frame and not once
        per clip that is made of it: maps [..., h, w, C] → [..., h, w, C + 192], behind the map what
        the three time steps of the first kernel make of it. `over_time` adds these up."""
        kernel: jax.Array = self.get_variable('params', 'conv1')['kernel'].astype(self.dtype)
        steps, *sides, channels, features = kernel.shape
        maps = maps.astype(self.dtype)
        products = convolution(
            maps.reshape(-1, *maps.shape[-3:]),
            jnp.moveaxis(kernel, 0, 3).reshape(*sides, channels, steps * features),
            (1, 1),
            'SAME',
        )
        return jnp.concatenate([maps, products.reshape(*maps.shape[:-1], -1)], -1)

    @nn.compact
    def __call__(self, maps: jax.Array, train: bool = False) -> tuple[jax.Array, jax.Array]:
        chex.assert_rank(maps, 5)
        if self.prepared:
            maps, products = jnp.split(maps, [maps.shape[-1] - 3 * WIDTHS[0]], -1)
        if not (train or self.align_at_test or self.is_initializing()):
            return maps, jnp.broadcast_to(jnp.array([1.0, 0.0]), (len(maps), 2))
        maps = nn.Dropout(self.dropout)(maps.astype(self.dtype), deterministic=not train)
        x = maps
        for i, features in enumerate(WIDTHS, start=1):
            if i == 1 and self.prepared:
                x = over_time(products) + self.get_variable('params', 'conv1')['bias']
            else:
                x = torch_conv3d(x, features, self.dtype, f'conv{i}')
            x = BatchNorm(frozen=self.frozen, dtype=self.dtype, name=f'bn{i}')(x, train)
            x = nn.relu(_halve(x))
        x = nn.relu(Linear(32, dtype=self.dtype, name='linear')(x.max((1, 2, 3))))
        last = nn.Dense(
            2,
            kernel_init=nn.initializers.zeros,
            dtype=jnp.float32,
            name='window',
            bias_init=lambda key, shape, dtype: jnp.asarray(WINDOW_START, dtype),
        )
        window = jnp.tanh(last(x))
        return warp(maps, window), window


def over_time(products: jax.Array) -> jax.Array:
    """A convolution over three time steps from what each step makes of each frame: products
    [B, L, ..., 3·F] → [B, L, ..., F], beyond the clip zero."""
    before, same, after = jnp.split(products, 3, -1)
    moved = lambda x, pad: jnp.pad(x, [(0, 0), pad] + [(0, 0)] * (x.ndim - 2))
    return moved(before[:, :-1], (1, 0)) + same + moved(after[:, 1:], (0, 1))


def warp(maps: jax.Array, window: jax.Array) -> jax.Array:
    """Frame j of the result is read at a·t_j + b by linear interpolation, t_j = −1 + 2j/(L−1);
    beyond the clip there is zero.

    Args:
      maps: [B, L, …].
      window: float32 [B, 2], (a, b).

    Returns:
      Like maps. Gradients go to maps and window.
    """
    length = maps.shape[1]
    times = jnp.linspace(-1.0, 1.0, length)
    position = (
        (window[:, :1] * times + window[:, 1:] + 1.0) / 2.0 * (length - 1)
    )  # [B, L], in frames
    weights = linear_interpolation(position, length).astype(maps.dtype)
    return einsum_float32('bjs,bs...->bj...', weights, maps).astype(maps.dtype)


def _halve(x):
    """2 × 2 × 2 max pooling; an axis of length 1 stays."""
    size = tuple(min(2, n) for n in x.shape[1:4])
    return nn.max_pool(x, size, size)
