"""How well a sampler's choice meets the action: measures on plain arrays, against a known truth.

`fsar_jax.analysis.episode_report` takes them over the episodes of an evaluation.
"""

import numpy as np


def share_inside(places, true_start, true_end) -> float:
    """Share of the chosen frames that show the action. places: int [..., T]; true_start, true_end:
    [...], inclusive."""
    return float(((places >= true_start[..., None]) & (places <= true_end[..., None])).mean())


def box_share(maps, rows, columns, boxes) -> dict[str, np.ndarray]:
    """How much of saliency maps, of the frames resampled by them and of the plain frames the
    object's box takes.

    Args:
      maps: [..., S, S], at least 0; rows, columns: [..., S], where the resampled frame reads the
        plain one, in pixels.
      boxes: [..., 4], x0, y0, x1, y1 in pixels, pixel i covers [i, i + 1); NaN where the object is
        not visible.

    Returns:
      {'saliency', 'amplified', 'frame'}, [...] each, NaN where the object is not visible;
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
