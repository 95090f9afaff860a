"""What a choice of frames or an alignment is worth that was made for another clip, or for another
pair of clips.

A part that looks at what it is given is better for its own clips than for others. One that has
learned a habit is as good for any.
"""

from typing import Any

import numpy as np
from ml_collections import ConfigDict

from fsar_jax.analysis.episode_report import Truth, of_clips, truth_measures
from fsar_jax.analysis.misalignment import aem_score, stored_positions
from fsar_jax.analysis.picture_truth import path_measures
from fsar_jax.analysis.selection import is_resampled
from fsar_jax.data.episodes import Episodes
from fsar_jax.data.frame_sampling import frame_indices


def null_tests(
    seen: dict[str, Any], truth: Truth | None, episodes: Episodes, config: ConfigDict
) -> dict:
    """The null test of every alignment: its measure with what was predicted for the clip or pair
    itself, and with what was predicted for the one at the same place of the episode before.

    Args:
      seen: what `episode_report.look_at` returns for at least two episodes.
      truth: of these episodes; None where the records do not hold it.

    Returns:
      dict of what the method has; each measure is {'own', 'of_another', …}:
        window: 'overlap' with the action (`temporal_overlap`), beside that of the 'whole_clip';
        offsets: 'displacement' that is left, half a frame being 1, beside that 'before', and
          'correlation' with the true displacement, (x, y);
        moves (M): 'aem', `aem_score` of the rearranged query, and 'apart', how far apart in the
          action the frames are that M joins, as a part of it, beside 'frame_by_frame'.
      Without the truth only 'aem' is left.
    """
    labels, auxiliary = episodes.labels, seen['auxiliary']
    of_class = lambda x: np.take_along_axis(
        x, labels.reshape(*labels.shape, *[1] * (x.ndim - 2)), 2
    )[:, :, 0]
    both = lambda measure, x: {'own': measure(x), 'of_another': measure(np.roll(x, 1, axis=0))}
    windows, chosen = of_clips(auxiliary, 'window'), of_clips(auxiliary, 'indices')
    found: dict[str, Any] = {}
    if windows is not None and truth is not None:
        overlap = lambda x: truth_measures(truth, episodes, config, x, None, chosen)
        whole = overlap(windows)['temporal_overlap']['whole_clip']
        of_window = lambda x: overlap(x)['temporal_overlap']['window']
        found['window'] = {'overlap': {'whole_clip': whole, **both(of_window, windows)}}
    if 'offsets' in auxiliary and truth is not None and not is_resampled(auxiliary):
        of_offsets = lambda x: truth_measures(truth, episodes, config, windows, x, chosen)
        own, other = both(of_offsets, of_class(auxiliary['offsets'])).values()
        found['offsets'] = {
            'displacement': {
                'before': own['displacement']['before'],
                'own': own['displacement']['after'],
                'of_another': other['displacement']['after'],
            },
            'correlation': {
                'own': own['offset_correlation'],
                'of_another': other['offset_correlation'],
            },
        }
    if 'evolution' in auxiliary:
        moves = of_class(auxiliary['evolution'])  # [E, Q, L of the support, L of the query]
        found['moves'] = {'aem': both(lambda m: _aem(m, seen, labels), moves)}
        if truth is not None:
            moments = _moments(truth, config, chosen, windows, moves.shape[-1])
            split = episodes.support[0].size
            support = moments[:, :split].reshape(*episodes.support.shape, -1)[:, :, 0]
            support = np.take_along_axis(support, labels[..., None], 1)
            paths = lambda m: path_measures(
                m.reshape(-1, *m.shape[2:]).swapaxes(-1, -2),
                moments[:, split:].reshape(-1, moments.shape[-1]),
                support.reshape(-1, moments.shape[-1]),
            )[0]
            apart = both(lambda m: float(np.nanmean(paths(m).values)), moves)
            none = float(np.nanmean(paths(moves).compared))
            found['moves']['apart'] = {'frame_by_frame': none, **apart}
    return found


def _aem(moves, seen, labels):
    """`aem_score` of the queries rearranged by M and the support clips of their class."""
    support, query = seen['class_probabilities'][-1]
    own = np.moveaxis(np.diagonal(support, axis1=1, axis2=-1), -1, 1)  # [E, way, shot, L]
    own = own[np.arange(len(labels))[:, None], labels]
    query = np.take_along_axis(query, labels[..., None, None], -1)[..., 0]  # [E, Q, L]
    return aem_score(np.einsum('eqxy,eqy->eqx', moves, query)[:, :, None], own)


def _moments(truth, config, chosen, windows, steps):
    """How far the action is, from 0 to 1, at each compared time step: [E, clips, steps], NaN beyond
    the clip."""
    stored = truth.stored(config, chosen)
    # A backbone over clips leaves fewer time steps than there are frames.
    stored = stored[..., frame_indices(stored.shape[-1], steps, 'segment')]
    read = stored.astype(float)
    if windows is not None:
        times = windows[..., :1] * np.linspace(-1, 1, steps) + windows[..., 1:]
        read = stored_positions(times, stored)
    start, end = truth.start[..., None], truth.end[..., None]
    return np.clip((read - start) / np.maximum(end - start, 1), 0, 1)
