"""TA2N's spatial coordination: from the maps of a support-query pair to an offset per frame, and
from it to pooling weights."""

from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fsar_jax.backbones.batch_norm import BatchNorm
from fsar_jax.convolution import convolution
from fsar_jax.layers import Linear, linear_interpolation, torch_conv3d, torch_start

OFFSET_SCALE = 0.75  # row A5 of docs/paper_vs_code.md
DIRECTIONS: tuple[tuple[int, int], ...] = (
    (0, 0),
    (0, 1),
    (1, 0),
    (0, -1),
    (-1, 0),
    (1, 1),
    (-1, -1),
    (1, -1),
    (-1, 1),
)  # (x, y)


class OffsetPredictor(nn.Module):
    """O = S(Cat(f̃_s, f̃_q)), offsets of every frame of every pair (TA2N, Eq. 4; network of its
    Table 5).

    The first convolution sees both maps side by side, 2C channels per pair. It is linear, so the
    part of each video is computed once per video, and what temporal coordination adds to a pair,
    which is constant in space, once per query frame and kernel tap: for 25 queries of 5 classes at
    7×7×2048 about 100 times fewer products, and no pair of maps is ever built.

    Args:
      frozen: batch norm uses running statistics in training too.
      dtype: compute dtype; offsets are float32.

    Inputs:
      support: [way, L, h, w, C].
      query: [Q, 1, L, h, w, C], or with `way` in place of 1 where the maps already differ per pair.
      evolution, values: [Q, way, L, L] and [Q, L, C]; Σ_y evolution[…, y]·values[y] is added to the
      query maps of a pair.

    Output offsets (x, y): float32 [Q, way, L, 2], in (−0.75, 0.75) of half the map.
    """

    frozen: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        support: jax.Array,
        query: jax.Array,
        evolution: jax.Array | None = None,
        values: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        channels, width = support.shape[-1], 128
        start = torch_start(27 * 2 * channels)
        kernel = self.param(
            'conv1_kernel', start, (3, 3, 3, 2 * channels, width), jnp.float32
        ).astype(self.dtype)
        bias = self.param('conv1_bias', start, (width,), jnp.float32).astype(self.dtype)
        of_support, of_query = kernel[..., :channels, :], kernel[..., channels:, :]
        x = _conv(support, of_support) + _conv(query, of_query) + bias  # [Q, way, L, h, w, 128]
        if evolution is not None and values is not None:
            x = x + spread_over_space(
                evolution.astype(self.dtype),
                values.astype(self.dtype),
                of_query,
                *support.shape[2:4],
            )
        queries, way = x.shape[:2]
        x = x.reshape(queries * way, *x.shape[2:])
        x = nn.relu(
            _halve_space(BatchNorm(frozen=self.frozen, dtype=self.dtype, name='bn1')(x, train))
        )
        x = torch_conv3d(x, width, self.dtype, 'conv2')
        x = nn.relu(
            _halve_space(BatchNorm(frozen=self.frozen, dtype=self.dtype, name='bn2')(x, train))
        )
        x = nn.relu(Linear(64, dtype=self.dtype, name='linear')(x.max((2, 3))))
        zeros = nn.initializers.zeros
        offsets = jnp.tanh(
            nn.Dense(2, kernel_init=zeros, bias_init=zeros, dtype=jnp.float32, name='offset')(x)
        )
        return OFFSET_SCALE * offsets.reshape(queries, way, -1, 2)


def spread_over_space(
    evolution: jax.Array, values: jax.Array, kernel: jax.Array, height: int, width: int
) -> jax.Array:
    """3×3×3 convolution, zero padded, of maps that are constant in space: frame x of pair (q, c) is
    Σ_y evolution[q, c, x, y]·values[q, y].

    Args:
      evolution: [Q, way, L, L]; values: [Q, L, C]; kernel: [3, 3, 3, C, F]; height, width: of the
        maps.

    Returns:
      [Q, way, L, height, width, F].
    """
    length = evolution.shape[2]
    taps = jnp.einsum('qyc,tnmcf->qytnmf', values, kernel)
    padded = jnp.pad(evolution, ((0, 0), (0, 0), (1, 1), (0, 0)))
    shifted = jnp.stack([padded[:, :, t : t + length] for t in range(3)])  # rows x−1, x, x+1
    sums = jnp.einsum('tqwxy,qytnmf->qwxnmf', shifted, taps)
    inside = lambda size: jnp.asarray(
        [[0 <= i + n - 1 < size for n in range(3)] for i in range(size)], values.dtype
    )
    return jnp.einsum('qwxnmf,in,jm->qwxijf', sums, inside(height), inside(width))


def offset_mask(
    offset: jax.Array, height: int, width: int, slope: float | None = None
) -> jax.Array:
    """Soft masks around shifted maps: 1 where |x + o| < 1, falling linearly to 0 outside (TA2N, Eq.
    11, for −o).

    With g_j = −1 + 2j/(R−1) + o: m_j = 1 where |g_j| < 1, else max(0, 1 − γ(|g_j| − 1)); mask[y, x]
    = m_y(o_y)·m_x(o_x).

    Args:
      offset: float32 [..., 2], (x, y).
      slope: γ; None for (R − 1)/2, which is 3 for 7 cells and one cell wide for any R (row A7).

    Returns:
      float32 [..., height, width].
    """

    def along(o, size):
        if size == 1:  # the only cell: all of the average, which γ must not make 0 / 0
            return jnp.ones_like(o)[..., None]
        g = jnp.abs(jnp.linspace(-1.0, 1.0, size) + o[..., None])
        return jnp.where(
            g < 1.0,
            1.0,
            jnp.maximum(0.0, 1.0 - (g - 1.0) * ((size - 1) / 2 if slope is None else slope)),
        )

    return along(offset[..., 1], height)[..., :, None] * along(offset[..., 0], width)[..., None, :]


def mask_weights(
    offset: jax.Array,
    height: int,
    width: int,
    perturbation: float | jax.Array,
    slope: float | None = None,
    directions: tuple[tuple[int, int], ...] = DIRECTIONS,
) -> jax.Array:
    """Pooling weights of one side of a pair: the mean over perturbed offsets of mask / its sum
    (TA2N, Eq. 5 and what follows it).

    Args:
      offset: float32 [..., 2]; perturbation: amplitude of the perturbations, 0 for none.

    Returns:
      float32 [..., height, width], summing to 1. Memory: one mask at a time, not one per direction.
    """
    total: jax.Array | float = 0.0
    if isinstance(perturbation, float) and not perturbation:
        directions = ((0, 0),)
    for direction in directions:
        mask = offset_mask(
            offset + perturbation * jnp.asarray(direction, jnp.float32), height, width, slope
        )
        total = total + mask / mask.sum((-2, -1), keepdims=True)
    return cast(jax.Array, total / len(directions))


def grid_weights(offset: jax.Array, height: int, width: int) -> jax.Array:
    """Pooling weights of one side of a pair by resampling: a grid over the intersection, read
    bilinearly and averaged.

    The alternative of TA2N, Table 4 ('grid-based') and VIM, Table 13 ('affine'): along x the grid
    has the points (1 − |o|/2)·t − o/2 for t in −1 … 1. Reading and averaging are linear, so they
    are weights like those of a mask. Arguments and result as `mask_weights`.
    """

    def along(o, size):
        o = o[..., None]
        position = (
            ((1.0 - jnp.abs(o) / 2) * jnp.linspace(-1.0, 1.0, size) - o / 2 + 1.0)
            / 2.0
            * (size - 1)
        )
        return linear_interpolation(position, size).mean(-2)

    return along(offset[..., 1], height)[..., :, None] * along(offset[..., 0], width)[..., None, :]


def offset_weights(size: int, step: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Averages over the intersection, along one axis of the maps, for every offset that is a
    multiple of `step` cells: float32 [offsets, size] of the support, and of the query. Between
    whole offsets, a cell at the edge counts with the part of it that lies inside: the weights of
    the neighbours, interpolated."""
    most = int((size - 1) / step + 1e-6)
    offsets, cells = step * np.arange(-most, most + 1)[:, None], np.arange(size)

    def along(offsets):
        beyond = np.maximum(-(cells + offsets), cells + offsets - (size - 1))
        inside = np.clip(1.0 - beyond, 0.0, 1.0)
        return (inside / inside.sum(-1, keepdims=True)).astype(np.float32)

    return along(offsets), along(-offsets)


def _conv(x, kernel):
    flat = x.reshape(-1, *x.shape[-4:]).astype(kernel.dtype)
    y = convolution(flat, kernel, (1, 1, 1), [(1, 1)] * 3)
    return y.reshape(*x.shape[:-1], -1)


def _halve_space(x):
    """1 × 2 × 2 max pooling; an axis of length 1 stays."""
    size = (1, *(min(2, n) for n in x.shape[2:4]))
    return nn.max_pool(x, size, size)
