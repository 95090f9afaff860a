"""The paired difference of two evaluations on the same episodes; `fsar_jax/compare.py` prints it.

An episode that is easy for one method is usually easy for another. The difference per episode
removes this shared part, so its interval is narrower than the two separate intervals suggest.
"""

from typing import NamedTuple

import numpy as np

from fsar_jax.messages import printable


class PairedDifference(NamedTuple):
    """Accuracy of the second minus that of the first (a fraction), the half-width of its 95%
    interval, and over how many episodes."""

    difference: float
    ci95: float
    num_episodes: int


def paired_difference(first: dict, second: dict) -> PairedDifference:
    """The mean over E episodes of (accuracy of `second` − accuracy of `first`),
    ± 1.96 · σ / sqrt(E) with the σ of these differences.

    Args:
      first, second: contents of two results.json.

    Raises:
      ValueError: they were not measured on the same episodes; one line that says how they differ.
    """
    for key in ('dataset', 'split', 'way', 'shot', 'num_episodes', 'queries', 'episodes_hash'):
        if key in first and key in second and first[key] != second[key]:  # old files have no way
            raise ValueError(
                f'not the same episodes: {key} is {printable(first[key])} in one and '
                f'{printable(second[key])} in the other; evaluate both with the same dataset, '
                'split, seed, way, shot and num_episodes, or with one episodes_file'
            )
    a, b = (np.asarray(r['correct'], np.float64) / r['queries'] for r in (first, second))
    if len(a) != len(b):
        raise ValueError(
            f"not the same episodes: 'correct' has {len(a)} entries in one, {len(b)} in another"
        )
    difference = b - a
    half_width = 1.96 * difference.std() / np.sqrt(len(difference))
    return PairedDifference(float(difference.mean()), float(half_width), len(difference))
