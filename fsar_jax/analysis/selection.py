"""Measures of a sampler's choice, on plain arrays: how much of it shows the action, where the truth
is known.

`fsar_jax.analysis.episode_report` computes them over the episodes of an evaluation.
"""

import numpy as np


def share_inside(frames: np.ndarray, true_start: np.ndarray, true_end: np.ndarray) -> float:
    """Share of the chosen frames that show the action.

    Args:
      frames: int [..., T], which stored frames are chosen.
      true_start, true_end: [...], the first and last stored frame of the action.
    """
    return float(((frames >= true_start[..., None]) & (frames <= true_end[..., None])).mean())


def box_share(
    maps: np.ndarray, rows: np.ndarray, columns: np.ndarray, boxes: np.ndarray
) -> dict[str, np.ndarray]:
    """Which share the object's box has of a saliency map, of the frame that is resampled by it, and
    of the plain frame.

    Args:
      maps: [..., S, S], at least 0.
      rows, columns: [..., S], where the resampled frame reads the plain one, in pixels.
      boxes: [..., 4], x0, y0, x1, y1 in pixels, where pixel i covers [i, i + 1); NaN where the
        object is not visible.

    Returns:
      {'saliency', 'amplified', 'frame'}, [...] each. NaN where the object is not visible,
      'saliency' also where a map is 0.
    """
    size = maps.shape[-1]
    x0, y0, x1, y1 = (boxes[..., i, None] for i in range(4))
    within = lambda positions, low, high: (positions + 0.5 >= low) & (positions + 0.5 < high)
    along_y, along_x = (within(np.arange(size), *ends) for ends in ((y0, y1), (x0, x1)))
    mass, total = np.einsum('...y,...x,...yx->...', along_y, along_x, maps), maps.sum((-2, -1))
    shares = {
        'saliency': np.divide(mass, total, out=np.full(mass.shape, np.nan), where=total > 0),
        'amplified': within(rows, y0, y1).mean(-1) * within(columns, x0, x1).mean(-1),
        'frame': along_y.mean(-1) * along_x.mean(-1),
    }
    return {
        name: np.where(np.isfinite(boxes[..., 0]), share, np.nan) for name, share in shares.items()
    }


def saliency_density(maps: np.ndarray) -> np.ndarray:
    """How evenly a saliency map lies over its frame: its mean over its maximum (VIM, Fig. 18; row
    V23 of docs/paper_vs_code.md). 1 where all cells are equal, near 0 where one of many cells has
    everything.

    Args:
      maps: [..., h, w], at least 0.

    Returns:
      float64 [...].
    """
    maps = np.asarray(maps, np.float64)
    largest = maps.max((-2, -1))
    return np.divide(maps.mean((-2, -1)), largest, out=np.ones(largest.shape), where=largest > 0)
