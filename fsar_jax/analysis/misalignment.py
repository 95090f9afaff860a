"""Measures of misalignment, on plain arrays: how misaligned two clips are, how much a method moves
them, and how far that is from the truth.

The measures come from TA2N's supplement (start of the action; Eq. 10) and from VIM (Eq. 35);
overlap and correlation compare with the true window and offsets. `fsar_jax.analysis.episode_report`
computes them over the episodes of an evaluation.
"""

from typing import cast

import jax
import jax.numpy as jnp
import numpy as np

from fsar_jax.layers import frame_cosine


def class_probabilities(frames: jax.Array, support: jax.Array) -> jax.Array:
    """Probability of each class of an episode at each frame.

    TA2N's supplement takes it from a trained classifier. Novel classes have none, so this is the
    answer of the frame-wise cosine matcher (TA2N, Eq. 7 and 8) to a video that shows this frame
    alone: softmax over the classes of L·cos(frame, mean frame of the class). The mean support frame
    of the episode is subtracted first, because what all frames have in common would make all
    cosines nearly 1.

    Args:
      frames: [..., L, D]; support: [way, shot, L, D]; both spatial means of maps.

    Returns:
      float32 [..., L, way].
    """
    of_class = support.astype(jnp.float32).mean((1, 2))
    centred = frames.reshape(-1, frames.shape[-1]) - of_class.mean(0)
    cosine = frame_cosine('nd,wd->nw', centred, of_class - of_class.mean(0))
    return jax.nn.softmax(frames.shape[-2] * cosine).reshape(*frames.shape[:-1], -1)


def action_start(probabilities: np.ndarray) -> np.ndarray:
    """The first frame t with p_t ≥ 0.5 (TA2N, supplement), L where there is none.

    Args:
      probabilities: [..., L], of the true class.

    Returns:
      int [...].
    """
    begun = np.asarray(probabilities) >= 0.5
    return np.where(begun.any(-1), begun.argmax(-1), begun.shape[-1])


def aem_score(probabilities: np.ndarray, others: np.ndarray) -> float:
    """Action evolution misalignment (AEM): the mean over pairs of videos of 1 − cos(P_i, P_j), from
    0 to 1 (TA2N, Eq. 10; row A20 of docs/paper_vs_code.md).

    Args:
      probabilities, others: [..., L], of the true class at the frames of the two videos of each
        pair.
    """
    a, b = (np.asarray(x, np.float64) for x in (probabilities, others))
    cosine = (a * b).sum(-1) / np.maximum(
        np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1), 1e-12
    )
    return float((1.0 - cosine).mean())


def aem_of_all_pairs(probabilities: np.ndarray) -> float:
    """`aem_score` over all pairs of different videos: [N, L] → its mean, from 0 to 1."""
    p = np.asarray(probabilities, np.float64)
    unit = p / np.maximum(np.linalg.norm(p, axis=-1, keepdims=True), 1e-12)
    count, total = len(p), unit.sum(0)
    return float(1 - (total @ total - (unit * unit).sum()) / (count * (count - 1)))


def alignment_cost(
    window: np.ndarray | None = None,
    evolution: np.ndarray | None = None,
    offsets: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """How much an alignment moves: C = (|1 − a| + |b|) + ‖M − I‖ + ‖O‖ (VIM, Eq. 35), with norms
    over all entries.

    Args:
      window: [..., 2], (a, b); evolution: M, [..., L, L]; offsets: O, [..., L, 2], in [−1, 1] as
        VIM normalises them. A part that is None is left out.

    Returns:
      {'transform', 'rearrangement', 'offset', 'total'}, [...] each.
    """
    cost: dict[str, np.ndarray] = {}
    if window is not None:
        cost['transform'] = np.abs(1.0 - window[..., 0]) + np.abs(window[..., 1])
    if evolution is not None:
        cost['rearrangement'] = np.linalg.norm(
            evolution - np.eye(evolution.shape[-1]), axis=(-2, -1)
        )
    if offsets is not None:
        cost['offset'] = np.linalg.norm(offsets, axis=(-2, -1))
    return {**cost, 'total': cast(np.ndarray, sum(cost.values()))} if cost else {}


def stored_positions(times: np.ndarray, indices: np.ndarray) -> np.ndarray:
    """Which stored frames the times of a clip are: −1 is the first sampled frame, 1 the last, and
    between two neighbours it is linear.

    Args:
      times: [..., n]; indices: int [..., L], the stored frames that were sampled.

    Returns:
      float64 [..., n], NaN beyond the sampled frames.
    """
    last = indices.shape[-1] - 1
    position = (np.asarray(times, np.float64) + 1) / 2 * last
    below = np.clip(position, 0, last - 1).astype(int)
    left, right = (np.take_along_axis(indices, below + i, -1) for i in (0, 1))
    return np.where(np.abs(times) <= 1, left + (position - below) * (right - left), np.nan)


def temporal_overlap(
    window: np.ndarray, indices: np.ndarray, true_start: np.ndarray, true_end: np.ndarray
) -> np.ndarray:
    """Intersection over union, in time, of a window and the true action. A frame is 1 wide.

    Args:
      window: [..., 2], (a, b); (1, 0) is the whole clip. What lies beyond the clip is zeros, and
        does not count.
      indices: int [..., L], the stored frames that were sampled.
      true_start, true_end: [...], the first and last stored frame of the action.

    Returns:
      float64 [...].
    """
    a, b = np.abs(window[..., 0]), window[..., 1]
    ends = np.stack([b - a, b + a], -1)
    start, end = np.moveaxis(stored_positions(np.clip(ends, -1, 1), indices), -1, 0)
    shared = np.minimum(end, true_end) - np.maximum(start, true_start) + 1
    together = np.maximum(end, true_end) - np.minimum(start, true_start) + 1
    beyond = (ends[..., 0] > 1) | (ends[..., 1] < -1)
    return np.where(beyond, 0.0, np.maximum(shared, 0.0) / together)


def offset_correlation(offsets: np.ndarray, true_offsets: np.ndarray) -> np.ndarray:
    """Pearson correlation of predicted and true offsets, along x and along y. NaN where one of them
    does not vary, such as zero offsets.

    Args:
      offsets, true_offsets: [..., 2], (x, y), with the same sign convention; half a frame is 1.
        Entries with a NaN are left out. With variant 'code' the support's mask is centred at −o and
        the query's at o (row A6), so the true offset is the object's position in the query minus
        that in the support; with 'paper' it is the opposite.

    Returns:
      float64 [2].
    """
    a, b = (np.asarray(x, np.float64).reshape(-1, 2) for x in (offsets, true_offsets))
    known = np.isfinite(a + b).all(-1)
    if not known.any():
        return np.full(2, np.nan)
    a, b = (x[known] - x[known].mean(0) for x in (a, b))
    scale = np.sqrt((a * a).sum(0) * (b * b).sum(0))
    return np.divide((a * b).sum(0), scale, out=np.full(2, np.nan), where=scale > 1e-12)
