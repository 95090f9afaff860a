"""Measures of a sampler's choice, on plain arrays: how much of it shows the action, where the truth
is known.

`fsar_jax.analysis.episode_report` computes them over the episodes of an evaluation, and
`python -m fsar_jax.analysis.selection --workdir=RUN` (fsar_jax/selection.py) prints and draws them.
"""

import runpy
from collections.abc import Mapping
from typing import Any

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


def places_by_class(frames: np.ndarray, labels: np.ndarray, dense: int) -> dict[int, np.ndarray]:
    """How often the clips of each class choose each of the M frames.

    Args:
      frames: int [N, T], the chosen ones of M, of each clip.
      labels: int [N], the class of each clip.
      dense: M.

    Returns:
      {class: float64 [M]}, shares of its clips; their sum is T.
    """
    counts = np.stack([np.bincount(chosen, minlength=dense) for chosen in frames])
    return {int(label): counts[labels == label].mean(0) for label in np.unique(labels)}


def changed_by_support(frames: np.ndarray, clips: np.ndarray) -> float | None:
    """The share of the chosen frames of a query that another episode, with other support clips,
    does not choose of it: 0 where the choice does not depend on the support set.

    Args:
      frames: int [E, Q, T], the chosen ones of the queries of E episodes.
      clips: int [E, Q], which clip each query is.

    Returns:
      The mean over all pairs of episodes that ask for the same clip; None where no two do.
    """
    missing: list[float] = []
    for clip in np.unique(clips):
        of_clip = frames[clips == clip]
        for i, one in enumerate(of_clip):
            missing += [float(np.mean(~np.isin(one, other))) for other in of_clip[i + 1 :]]
    return float(np.mean(missing)) if missing else None


def is_resampled(shown: Mapping[str, Any]) -> bool:
    """Whether a sampler has amplified or cropped frames, which then show an object elsewhere than
    the records say. shown: the auxiliary of `FewShotLearner.explain`."""
    return 'query_saliency' in shown or 'query_crop' in shown


def push_of_the_loss(
    pushes: np.ndarray, inside: np.ndarray | None = None
) -> dict[str, list[float] | float]:
    """How much of the gradient of the scores is signal.

    Args:
      pushes: [2, E, clips, M], minus the gradient of the loss by the score of each frame, in E
        episodes, each with two draws of the noise.
      inside: bool [E, clips, M], which frames show the action; None where nobody knows.

    Returns:
      dict. The mean push of each place is taken off first, which is what a habit learns from.
        draws_agree: the correlation of the two draws, over all scores. 1 is no noise of the draw.
        towards_action: where `inside` is known and holds for some frames of an episode, not for
          all, (how much frames of the action are pushed up beside
          the others, half-width of its 95% interval over episodes), in units of the mean size of a
          push.
    """
    pushes = np.asarray(pushes, np.float64)
    centred = pushes - pushes.mean((1, 2), keepdims=True)
    one, two = centred.reshape(2, -1)
    scale = np.sqrt((one @ one) * (two @ two))
    found: dict[str, list[float] | float] = {
        'draws_agree': float(one @ two / scale) if scale > 0 else 0.0
    }
    if inside is not None:
        mean = centred.mean(0) / max(float(np.abs(centred).mean()), 1e-300)
        both = inside.any((1, 2)) & (~inside).any((1, 2))  # else there is nothing beside it
        mean, inside = mean[both], inside[both]
        of_episode = lambda which: np.where(which, mean, 0).sum((1, 2)) / which.sum((1, 2))
        towards = of_episode(inside) - of_episode(~inside)
        if len(towards):
            found['towards_action'] = [
                float(towards.mean()),
                float(1.96 * towards.std() / np.sqrt(len(towards))),
            ]
    return found


if __name__ == '__main__':  # the command is above this room
    runpy.run_module('fsar_jax.selection', run_name='__main__', alter_sys=True)
