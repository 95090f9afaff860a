"""Where a frame is looked at: its saliency map, and the frame resampled so that salient parts take
more room (VIM, Sec. 3.3.3).

Every grid here is separable: output row i is read at one height, output column j at one width, for
all of the frame.
"""

from collections.abc import Sequence
from typing import cast

import chex
import jax
import jax.numpy as jnp

from fsar_jax.layers import einsum_float32, linear_interpolation

RANGE_MARGIN = 1e-4  # added to max − min, of maps as of scores
DENSEST = 4.0  # first cap of the published marginals, in means
CAP_ROUNDS = 5
DENSITY_FLOOR = (
    0.1  # variant='paper': the least salient row has 1/11 of the density of the most salient one
)
CROP_SIDE = 0.75  # of the frame's


def min_max(
    x: jax.Array,
    axes: int | tuple[int, ...] = -1,
    low: jax.Array | None = None,
    high: jax.Array | None = None,
) -> jax.Array:
    """(x − min)/(max − min + 1e-4) over `axes`, float32; or with another `low` and `high` of x."""
    x = x.astype(jnp.float32)
    low = x.min(axes, keepdims=True) if low is None else low
    high = x.max(axes, keepdims=True) if high is None else high
    return (x - low) / (high - low + RANGE_MARGIN)


def enlarge(maps: jax.Array, height: int, width: int) -> jax.Array:
    """Bilinear with aligned corners: [..., h, w] → float32 [..., height, width]."""
    h, w = maps.shape[-2:]
    return _read(
        maps[..., None], jnp.linspace(0.0, h - 1, height), jnp.linspace(0.0, w - 1, width)
    )[..., 0]


def stage_saliency(stages: Sequence[jax.Array]) -> jax.Array:
    """The published map (row V11): the channel means of stages 2, 3 and 4, enlarged to the size of
    stage 2, averaged.

    stages: (f2, f3, f4), each [..., h, w, C] with sizes of its own; returns float32 [..., h2, w2].
    """
    means = [f.astype(jnp.float32).mean(-1) for f in stages]
    maps = [means[0]] + [enlarge(m, *means[0].shape[-2:]) for m in means[1:]]
    return cast(jax.Array, sum(maps)) / 3.0


def min_max_enlarged(maps: jax.Array, height: int, width: int) -> jax.Array:
    """Maps [B, M, h, w] such that, enlarged to the frame, each is `min_max` of the enlarged map.

    Enlarging is linear and keeps constants, so only the range has to be taken at the frame's size;
    video by video, because all maps at that size would take as much memory as the frames.
    """

    def extremes(video):
        large = enlarge(video, height, width)
        return large.min((-2, -1), keepdims=True), large.max((-2, -1), keepdims=True)

    low, high = jax.lax.map(extremes, maps)
    return min_max(maps, low=low, high=high)


def attend_channels(maps: jax.Array) -> jax.Array:
    """f' = αf, α = f fᵀ/√(hw), between the channels of each map [..., h, w, c] (VIM, Eq. 7);
    float32, the same shape.

    Computed as f (fᵀf)/√(hw), the same product: hw × hw numbers instead of c × c, 16 × 16 for 1024
    channels at 4 × 4.
    """
    h, w, c = maps.shape[-3:]
    f = maps.reshape(*maps.shape[:-3], h * w, c)
    between = einsum_float32('...pc,...qc->...pq', f, f) / jnp.sqrt(float(h * w))
    return einsum_float32('...pq,...qc->...pc', between, f.astype(jnp.float32)).reshape(maps.shape)


def weighted_saliency(attended: jax.Array, weights: jax.Array) -> jax.Array:
    """M_s = (1/c) Σ_i w_i f'_i (VIM, Eq. 8): attended [..., h, w, c], weights [c] → float32 [...,
    h, w]."""
    return einsum_float32('...c,c->...', attended, weights) / weights.shape[0]


def resample(frames: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Frames [..., H, W, C] read bilinearly at heights `rows` [..., H'] and widths `columns` [...,
    W'], in pixels of the frame.

    Zero outside the frame. Two small products instead of a gather: the same numbers for a separable
    grid, and faster on accelerators, in the backward pass above all. Gradients go to frames and
    positions.

    Returns:
      [..., H', W', C], the dtype of frames.
    """
    chex.assert_equal_shape_prefix([frames, rows, columns], rows.ndim - 1)
    return _read(frames, rows, columns).astype(frames.dtype)


def amplified_positions(
    maps: jax.Array, height: int, width: int, variant: str
) -> tuple[jax.Array, jax.Array]:
    """Inverse-transform sampling of a saliency map: (rows [..., height], columns [..., width]),
    positions in pixels.

    The marginals are the maxima over the other axis of the enlarged map (VIM, Eq. 9).
    variant='paper' inverts their cumulative sums at evenly spaced points (Eq. 10 and 11): from the
    first pixel to the last, none outside the frame, the identity for a flat map, and
    differentiable. variant='code' is row V13: marginals capped and refilled, the first cell set to
    1, the first row and column a pixel outside of the frame, no gradient.

    Args:
      maps: [..., h, w], at least 0.
    """
    if variant == 'code':
        maps = jax.lax.stop_gradient(maps)
    large = enlarge(maps, height, width)
    rows, columns = large.max(-1), large.max(-2)
    if variant == 'code':
        return tuple(_published_inverse(v) for v in _capped(rows, columns))
    return _inverse(rows + DENSITY_FLOOR), _inverse(columns + DENSITY_FLOOR)


def cropped_positions(maps: jax.Array, height: int, width: int) -> tuple[jax.Array, jax.Array]:
    """A window of CROP_SIDE of the frame's sides around the map's centre of mass, enlarged to the
    frame: (rows, columns).

    The window's size is fixed and its place continuous, so that the map has a gradient ('Cropping'
    of VIM, Table 10, which leaves the rest open). Near an edge the window is moved into the frame.

    Args:
      maps: [..., h, w], at least 0.
    """
    return _window(maps.sum(-1), height), _window(maps.sum(-2), width)


def placed_positions(places: jax.Array, height: int, width: int) -> tuple[jax.Array, jax.Array]:
    """A window of CROP_SIDE of the frame's sides at a given place, enlarged to the frame: (rows,
    columns).

    Args:
      places: [..., 2], row and column from 0, the window at the edge, to 1, at the other.
    """
    return _window_at(places[..., 0], height), _window_at(places[..., 1], width)


def positions(
    maps: jax.Array, height: int, width: int, spatial: str, variant: str
) -> tuple[jax.Array, jax.Array]:
    """(rows, columns) that spatial='amplify', 'crop' or 'learned_crop' reads a frame at, as the
    functions above; `maps` are places [..., 2] for the last."""
    if spatial == 'amplify':
        return amplified_positions(maps, height, width, variant)
    return (placed_positions if spatial == 'learned_crop' else cropped_positions)(
        maps, height, width
    )


def _read(frames, rows, columns):
    """frames [..., H, W, C] at rows [..., H'] and columns [..., W'] → float32 [..., H', W', C]."""
    dtype = frames.dtype if jnp.issubdtype(frames.dtype, jnp.floating) else jnp.float32
    of_rows = linear_interpolation(rows, frames.shape[-3]).astype(dtype)
    of_columns = linear_interpolation(columns, frames.shape[-2]).astype(dtype)
    lines = einsum_float32('...iy,...yxc->...ixc', of_rows, frames.astype(dtype)).astype(dtype)
    return einsum_float32('...jx,...ixc->...ijc', of_columns, lines)


def _inverse(density):
    """Positions [..., S] where the piecewise linear cumulative sum of `density` [..., S] > 0
    reaches i/(S − 1)."""
    size = density.shape[-1]
    steps = (density[..., 1:] + density[..., :-1]) / 2.0
    steps = steps / steps.sum(-1, keepdims=True)
    reached = jnp.cumsum(steps, -1) - steps  # at the left end of each step
    points = jnp.linspace(0.0, 1.0, size)[:, None]
    # Summed over all steps: how much of each lies before the point.
    position = jnp.clip((points - reached[..., None, :]) / steps[..., None, :], 0.0, 1.0).sum(-1)
    return jnp.clip(position, 0.0, size - 1)


def _capped(*marginals):
    """Each marginal [..., S] in units of its mean, five times cut at the smaller of the two maxima
    and refilled to the mean 1.

    One that is 0 everywhere becomes flat.
    """
    marginals = [m / jnp.maximum(m.mean(-1, keepdims=True), 1e-12) for m in marginals]
    for i in range(CAP_ROUNDS):
        cap = jnp.minimum(*(m.max(-1, keepdims=True) for m in marginals))
        cap = jnp.minimum(cap, DENSEST) if i == 0 else cap
        marginals = [jnp.minimum(m, cap) for m in marginals]
        marginals = [m + (1.0 - m.mean(-1, keepdims=True)) for m in marginals]
    return marginals


def _published_inverse(density):
    """The released sampler's positions [..., S] for a density [..., S] with mean 1: position 0 is
    −1, one pixel outside."""
    size = density.shape[-1]
    reached = jnp.cumsum(density.at[..., 0].set(1.0), -1)
    points = jnp.arange(size) * reached[..., -1:] / size
    cell = (reached[..., None, :] < points[..., None]).sum(-1)  # the first with reached ≥ point
    at_cell = jnp.take_along_axis(reached, cell, -1)
    before = jnp.where(cell > 0, jnp.take_along_axis(reached, jnp.maximum(cell - 1, 0), -1), 0.0)
    return cell + (points - at_cell) / (at_cell - before)


def _window(mass, size):
    """Positions [..., size] of a window of CROP_SIDE · size pixels around the centre of `mass`
    [..., n]."""
    n, side = mass.shape[-1], round(CROP_SIDE * size)
    mass = mass.astype(jnp.float32) + RANGE_MARGIN  # without any: the middle
    centre = (mass * jnp.linspace(0.0, size - 1, n)).sum(-1) / mass.sum(-1)
    start = jnp.clip(centre - (side - 1) / 2, 0.0, size - side)
    return start[..., None] + jnp.linspace(0.0, side - 1, size)


def _window_at(place, size):
    """Positions [..., size] of such a window that begins at `place` [...] of all that is beside
    it."""
    side = round(CROP_SIDE * size)
    return (place * (size - side))[..., None] + jnp.linspace(0.0, side - 1, size)
