"""Learned positions of a transformer at another grid than they were trained on."""

import jax
import jax.numpy as jnp
import numpy as np


def resize_positions(positions: jax.Array, height: int, width: int, how: str) -> jax.Array:
    """Positions [P, P, D] of a grid → [height, width, D], bicubic as `how` says; as they are where
    the grid is the same. float32."""
    if positions.shape[:2] == (height, width):
        return positions
    return jnp.einsum(
        'hp,wq,pqd->hwd',
        cubic_weights(positions.shape[0], height, how),
        cubic_weights(positions.shape[1], width, how),
        positions,
        precision=jax.lax.Precision.HIGHEST,
    )


def cubic_weights(old: int, new: int, how: str) -> np.ndarray:
    """Weights float32 [new, old] of cubic convolution (Keys 1981) from `old` cells to `new`.

    Args:
      how: 'antialias' averages over the covered cells where the grid shrinks, with a = −0.5: timm
        and open_clip, and DINOv2 with registers. 'corners' keeps the first and the last cell in
        place, with a = −0.75: torchvision's `interpolate_embeddings`. 'offset' steps by
        old / (new + 0.1), with a = −0.75 and no averaging: DINOv2 without registers.
    """
    cells = np.arange(new)[:, None]
    if how == 'antialias':
        step = old / new
        weights = _cubic((np.arange(old) - (cells + 0.5) * step + 0.5) / max(step, 1.0), -0.5)
        return (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    if how == 'corners':
        centre = cells * ((old - 1) / max(new - 1, 1))
    else:
        centre = (cells + 0.5) * (old / (new + 0.1)) - 0.5
    taps = np.floor(centre) + np.arange(-1, 3)
    weights = np.zeros((new, old))
    # Taps beyond the border read the cell at the border.
    np.add.at(weights, (cells, np.clip(taps, 0, old - 1).astype(int)), _cubic(taps - centre, -0.75))
    return weights.astype(np.float32)


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def linear_weights(old: int, new: int) -> np.ndarray:
    """Weights float32 [new, old] of linear interpolation from `old` cells to `new`, whose borders
    coincide."""
    centre = np.clip((np.arange(new)[:, None] + 0.5) * (old / new) - 0.5, 0, old - 1)
    return np.maximum(0.0, 1.0 - np.abs(centre - np.arange(old))).astype(np.float32)
