"""From a feature map to a fixed grid of patches."""

import jax
import jax.numpy as jnp


def adaptive_max_pool(maps: jax.Array, size: int) -> jax.Array:
    """Maximum over a size × size grid of cells that cover the map, overlapping where it does not
    divide (STRM, Sec. 4).

    Cell r spans rows ⌊rh/size⌋ … ⌈(r+1)h/size⌉−1, columns likewise; a map smaller than the grid
    repeats its cells.

    Args:
      maps: [..., h, w, C].
      size: P, cells per side.

    Returns:
      [..., P², C], row-major.
    """
    height, width, channels = maps.shape[-3:]
    if (height, width) == (size, size):
        return maps.reshape(*maps.shape[:-3], size * size, channels)
    span = lambda cell, extent: slice(cell * extent // size, -(-(cell + 1) * extent // size))
    cells = [
        maps[..., span(r, height), span(c, width), :].max((-3, -2))
        for r in range(size)
        for c in range(size)
    ]
    return jnp.stack(cells, axis=-2)
