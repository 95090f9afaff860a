"""The section 'misalignment' of results.json: the measures of fsar_jax.training.misalignment over the episodes of an evaluation.

config.eval.misalignment_episodes says over how many. Where the records of a dataset say when and where the action happens
(synthetic_actions), windows and offsets are compared with that too.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from fsar_jax.data import loader
from fsar_jax.data.frame_sampling import frame_indices
from fsar_jax.data.frames import resized_size
from fsar_jax.matchers.offset_masks import OFFSET_SCALE
from fsar_jax.training.misalignment import (
    action_start, aem_score, alignment_cost, class_evolution, offset_correlation, stored_places, temporal_overlap)


def describe(learner, support, query):
    """One episode as the learner sees it, to be called through `apply`: arguments as of `FewShotLearner.__call__`.

    Returns:
      {'evolution': [(of the support [way, shot, L, way], of the query [Q, L, way]), …], before the temporal transform and where
      there is one after it, 'auxiliary': the prediction's}.
    """
    def evolution(maps):
        frames = maps.mean((-3, -2))
        s, q = frames[:videos].reshape(*support.shape[:2], *frames.shape[1:]), frames[videos:]
        return class_evolution(s, s), class_evolution(q, s)
    videos = support.shape[0] * support.shape[1]
    maps = learner.feature_maps(jnp.concatenate([support.reshape(videos, *support.shape[2:]), query]))
    evolutions = [evolution(maps)]
    if learner.temporal_transform is not None:
        evolutions.append(evolution(learner.temporal_transform(maps)[0]))
    return {'evolution': evolutions, 'auxiliary': learner(support, query).auxiliary}


def measure(learner, variables, dataset, episodes, config) -> dict:
    """The section 'misalignment' of results.json, over queries and, where it takes two, each query with the support of its class.

    'action_start': how many queries begin at frame 0 … L−1, or not at all; 'aem': Eq. 10; both 'before' any alignment and 'after'
    the temporal transform, and 'aem' also 'rearranged', the query's evolution by M (lowered, too, by an M that just averages all frames).
    'alignment_cost': means of Eq. 35. What the method does not do is left out. 'truth', where the records hold it: `truth_measures`.

    Args:
      learner, variables: as for `fsar_jax.training.evaluation.evaluate_episodes`.
      dataset: with positions that `episodes` index.
      episodes: the first config.eval.misalignment_episodes of them are taken.
    """
    count = min(config.eval.misalignment_episodes, len(episodes))
    episodes = dataclasses.replace(episodes, **{name: getattr(episodes, name)[:count] for name in ('support', 'query', 'labels', 'classes')})
    run = jax.jit(lambda variables, *clips: learner.apply(variables, *clips, method=describe))
    seen = [jax.tree.map(np.asarray, run(variables, batch['support'][0], batch['query'][0]))
            for batch in loader.episode_batches(dataset, config, episodes, 1)]
    seen = jax.tree.map(lambda *x: np.stack(x), *seen)

    labels = episodes.labels
    # [E, Q, way, …] → [E, Q, …]; [E, way, …, way] → [E, way, …]; [E, way, …] → [E, Q, …]
    of_true_class = lambda x: np.take_along_axis(x, labels.reshape(*labels.shape, *[1] * (x.ndim - 2)), 2)[:, :, 0]
    own = lambda x: np.moveaxis(np.diagonal(x, axis1=1, axis2=-1), -1, 1)
    by_query = lambda x: x[np.arange(count)[:, None], labels]
    auxiliary = seen['auxiliary']
    window, offsets = auxiliary.get('query_window'), auxiliary.get('offsets')
    moves = of_true_class(auxiliary['evolution']) if 'evolution' in auxiliary else None
    offsets = of_true_class(offsets) if offsets is not None else None

    found = {'episodes': count, 'action_start': {}, 'aem': {}}
    for name, (support, query) in zip(('before', 'after'), seen['evolution']):
        support, query = by_query(own(support)), of_true_class(np.moveaxis(query, -1, 2))          # [E, Q, shot, L], [E, Q, L]
        found['action_start'][name] = np.bincount(action_start(query).ravel(), minlength=query.shape[-1] + 1).tolist()
        found['aem'][name] = aem_score(query[:, :, None], support)
    if moves is not None:
        found['aem']['rearranged'] = aem_score(np.einsum('eqxy,eqy->eqx', moves, query)[:, :, None], support)
    cost = alignment_cost(window, moves, None if offsets is None else offsets / OFFSET_SCALE)
    if cost:
        found['alignment_cost'] = {name: float(value.mean()) for name, value in cost.items()}
    windows = (auxiliary['support_window'], window) if window is not None else None
    truth = truth_measures(dataset, episodes, config, windows, offsets)
    return found | ({'truth': truth} if truth else {})


def truth_measures(dataset, episodes, config, windows, offsets) -> dict | None:
    """Comparison with when and where the action is; None where the records do not say.

    Args:
      windows: of the support [E, way, shot, 2] and of the query [E, Q, 2], or None; offsets: [E, Q, L, 2] of each query and
        the support of its class, or None.

    Returns:
      'temporal_overlap', mean of `temporal_overlap` over all clips: 'whole_clip' is that of (1, 0), 'window'; 'offset_correlation':
      (x, y), null where it is undefined; 'displacement': mean length of the true offset ('before') and of what the predicted one
      leaves of it ('after'), half a frame being 1. Of several shots, the mean place counts.
    """
    positions = np.concatenate([episodes.support.reshape(len(episodes), -1), episodes.query], 1)      # [E, clips]
    used, row = np.unique(positions, return_inverse=True)
    records = [dataset.read(int(position)) for position in used]
    if not all(key in records[0] for key in ('action_start', 'action_end', 'boxes')):
        return None
    indices = np.array([frame_indices(int(dataset.num_frames[p]), config.episode.frames, config.data.sampling) for p in used])
    row = row.reshape(positions.shape)
    start, end = (np.array([int(record[key]) for record in records])[row] for key in ('action_start', 'action_end'))
    whole = np.broadcast_to(np.array([1.0, 0.0]), (*row.shape, 2))
    window = whole if windows is None else np.concatenate([windows[0].reshape(len(row), -1, 2), windows[1]], 1)
    overlap = lambda window: float(temporal_overlap(window, indices[row], start, end).mean())
    found = {'temporal_overlap': {'whole_clip': overlap(whole), **({'window': overlap(window)} if windows is not None else {})}}
    if offsets is None:
        return found

    times = window[..., :1] * np.linspace(-1, 1, config.episode.frames) + window[..., 1:]
    places = stored_places(times, indices[row])                                                       # [E, clips, L]
    centres = np.array([[_centres(records[r], p, config) for r, p in zip(*both)] for both in zip(row, places)])
    split = episodes.support[0].size
    support = centres[:, :split].reshape(*episodes.support.shape, *centres.shape[2:]).mean(2)         # [E, way, L, 2]
    true = centres[:, split:] - support[np.arange(len(row))[:, None], episodes.labels]
    true = true if config.model.variant == 'code' else -true
    length = lambda x: _or_none(np.nanmean(np.linalg.norm(x, axis=-1))) if np.isfinite(x).any() else None
    return found | {'offset_correlation': [_or_none(x) for x in offset_correlation(offsets, true)],
                    'displacement': {'before': length(true), 'after': length(true - offsets)}}


def _centres(record, places, config):
    """Centre of the box at each place [L], (x, y) with half a frame as 1: float64 [L, 2], NaN where it is not visible."""
    width, height = int(record['width']), int(record['height'])
    scale = min(resized_size(width, height, config.data.resize)) / min(width, height) / (config.episode.image_size / 2)
    boxes = np.asarray(record['boxes'], np.float64)[np.nan_to_num(np.rint(places)).astype(int)]
    visible = np.isfinite(places) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return np.where(visible[:, None], scale * (boxes[:, :2] + boxes[:, 2:]) / 2, np.nan)


def _or_none(x):
    return float(x) if np.isfinite(x) else None
