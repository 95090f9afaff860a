"""Chooses which L frames of a clip are used.

There are three rules. With `rng` None (in evaluation), none of them is random:

  'trx'      the published reader of TRX, STRM and TA2N. Training: the start is drawn from the
             first, the end from the last min(5, floor((n - L) / 2)) + 1 frames; test: from frame 1
             to n - 2. L evenly spaced positions between them, truncated. Falls back to 0..n-1 where
             that span would be shorter than L.
  'uniform'  L evenly spaced positions from 0 to n - 1, truncated; no jitter in training.
  'segment'  temporal segment networks (Wang et al., 2016): the clip is cut in L equal segments;
             test: the centre frame of each; training: a random frame of each.

Under every rule, clips with fewer than L frames show all their frames in order, each about L / n
times. `config.data.short_videos` decides whether such clips are used at all.
"""

from __future__ import annotations

import numpy as np

RULES = ('trx', 'uniform', 'segment')
MAX_JITTER = 5  # frames at either end, as published


def frame_indices(
    num_frames: int, length: int, rule: str, rng: np.random.Generator | None = None
) -> np.ndarray:
    """Indices of the frames to use, int32 [length], ascending, in 0..num_frames-1.

    Args:
      num_frames: n, stored frames of the clip, at least 1.
      length: L, frames wanted, at least 1.
      rule: one of RULES.
      rng: draws the training jitter; None gives the test rule.
    """
    if rule not in RULES:
        raise ValueError(
            f'config.data.sampling={rule!r} is not one of {", ".join(map(repr, RULES))}'
        )
    if num_frames < 1 or length < 1:
        raise ValueError(
            f'cannot take {length} frames from a clip of {num_frames}: both must be at least 1'
        )
    if num_frames < length:
        return (np.arange(length) * num_frames // length).astype(np.int32)
    if rule == 'segment':
        part = 0.5 if rng is None else rng.random(length)  # of a segment
        return ((np.arange(length) + part) * num_frames / length).astype(np.int32)
    if rule == 'uniform':
        return evenly_spaced(0, num_frames - 1, num_frames, length)
    if rng is None:
        start, end = (0, num_frames - 1) if num_frames == length else (1, num_frames - 2)
    else:
        first, last, earliest_end, latest_end = frame_index_limits(num_frames, length)
        start = int(rng.integers(first, last, endpoint=True))
        end = int(rng.integers(earliest_end, latest_end, endpoint=True))
    return evenly_spaced(start, end, num_frames, length)


def frame_index_limits(num_frames: int, length: int) -> tuple[int, int, int, int]:
    """Where the 'trx' rule draws in training: start in [0]..[1], end in [2]..[3], all inclusive."""
    jitter = max(0, min(MAX_JITTER, (num_frames - length) // 2))
    return 0, jitter, num_frames - 1 - jitter, num_frames - 1


def evenly_spaced(start: int, end: int, num_frames: int, length: int) -> np.ndarray:
    """`length` positions from `start` to `end`, truncated; from the whole clip if they would span
    less than `length`."""
    if end - start < length:
        start, end = 0, num_frames - 1
    return np.linspace(start, end, length).astype(np.int32)
