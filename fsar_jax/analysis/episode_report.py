"""Computes the sections 'misalignment' and 'selection' of results.json: what alignment and sampler
do in the episodes of an evaluation.

config.eval.measured_episodes is the number of episodes. If the records of a dataset say when and
where the action happens (synthetic_actions), windows, offsets and chosen frames are also compared
with this truth.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from fsar_jax.analysis.looking import part
from fsar_jax.analysis.misalignment import (
    action_start,
    aem_score,
    alignment_cost,
    class_probabilities,
    offset_correlation,
    stored_positions,
    temporal_overlap,
)
from fsar_jax.analysis.selection import box_share, is_resampled, saliency_density, share_inside
from fsar_jax.data import loader
from fsar_jax.data.dataset import Videos
from fsar_jax.data.episodes import Episodes, jitter_generator, jitter_seed
from fsar_jax.data.frame_sampling import frame_indices
from fsar_jax.data.frames import centre_crop_offset, resized_size
from fsar_jax.evaluation.evaluate import TrainedModel
from fsar_jax.learner import FewShotLearner, create_learner
from fsar_jax.matchers.offset_masks import OFFSET_SCALE
from fsar_jax.samplers import amplifier
from fsar_jax.stages import frames_read


def describe(learner: FewShotLearner, support: jax.Array, query: jax.Array) -> dict[str, Any]:
    """One episode as the learner sees it. To be called through `apply`, with the arguments of
    `FewShotLearner.__call__`.

    Returns:
      {'class_probabilities': [(of the support [way, shot, L, way], of the query [Q, L, way]), …],
       'auxiliary': of the prediction}. The list has an entry for the sampled frames before the
      temporal transform and, where there is one, an entry for those after it.
    """

    def probabilities(maps):
        frames = maps.mean((-3, -2))
        s, q = frames[:videos].reshape(*support.shape[:2], *frames.shape[1:]), frames[videos:]
        return class_probabilities(s, s), class_probabilities(q, s)

    videos = support.shape[0] * support.shape[1]
    sampled, of_query = (x['frames'] for x in learner.sample(support, query))
    maps = learner.feature_maps(
        jnp.concatenate([sampled.reshape(videos, *sampled.shape[2:]), of_query])
    )
    found = [probabilities(maps)]
    if learner.temporal_transform is not None:
        found.append(probabilities(learner.temporal_transform(maps)[0]))
    return {'class_probabilities': found, 'auxiliary': learner(support, query).auxiliary}


def measure(model: TrainedModel, dataset: Videos, episodes: Episodes) -> dict:
    """{'misalignment': …} and, for a sampler that chooses, {'selection': …}, over the first
    config.eval.measured_episodes of `episodes`.

    Args:
      episodes: their positions index `dataset`.

    Raises:
      ValueError: a position outside the dataset, a clip that is too short or cannot be decoded; one
        line that names it.
    """
    config = model.config
    episodes, seen = look_at(model, dataset, episodes, config.eval.measured_episodes)
    truth = Truth.of(dataset, episodes)
    found = {'misalignment': alignment_measures(seen, truth, episodes, config)}
    if 'query_indices' in seen['auxiliary']:
        found['selection'] = selection_measures(seen['auxiliary'], truth, config)
    return found


def look_at(
    model: TrainedModel, dataset: Videos, episodes: Episodes, count: int
) -> tuple[Episodes, dict[str, Any]]:
    """The first `count` episodes, and what `describe` returns for each of them, stacked.

    Raises:
      ValueError: as `measure`.
    """
    learner, variables, config, _ = model
    episodes = part(episodes, range(min(count, len(episodes))))
    run = jax.jit(lambda variables, *clips: learner.apply(variables, *clips, method=describe))
    seen = [
        jax.tree.map(np.asarray, run(variables, batch['support'][0], batch['query'][0]))
        for batch in loader.episode_batches(dataset, config, episodes, 1, frames_read(config))
    ]
    return episodes, jax.tree.map(lambda *x: np.stack(x), *seen)


def alignment_measures(
    seen: dict[str, Any], truth: 'Truth | None', episodes: Episodes, config: ConfigDict
) -> dict:
    """The section 'misalignment' of results.json: over all queries or, where a measure takes two
    videos, over each query with each support video of its class.

    Args:
      seen: what `describe` returns for each episode, stacked.
      truth: `Truth` or None.

    Returns:
      dict, without what the method does not do:
        episodes: how many.
        action_start: how many queries begin at frame 0 … L−1, or not at all, 'before' any alignment
          and 'after' the temporal transform.
        aem: `aem_score`, likewise 'before' and 'after', and of queries 'rearranged' by M (which an
          M that just averages all frames lowers, too).
        alignment_cost: means of `alignment_cost`.
        truth: `truth_measures`, where the records hold the truth.
    """
    labels = episodes.labels
    # [E, Q, way, …] → [E, Q, …]; [E, way, …, way] → [E, way, …]; [E, way, …] → [E, Q, …]
    of_true_class = lambda x: np.take_along_axis(
        x, labels.reshape(*labels.shape, *[1] * (x.ndim - 2)), 2
    )[:, :, 0]
    own = lambda x: np.moveaxis(np.diagonal(x, axis1=1, axis2=-1), -1, 1)
    by_query = lambda x: x[np.arange(len(labels))[:, None], labels]
    auxiliary = seen['auxiliary']
    window, offsets = auxiliary.get('query_window'), auxiliary.get('offsets')
    moves = of_true_class(auxiliary['evolution']) if 'evolution' in auxiliary else None
    offsets = of_true_class(offsets) if offsets is not None else None

    found: dict[str, Any] = {'episodes': len(labels), 'action_start': {}, 'aem': {}}
    for name, (support, query) in zip(('before', 'after'), seen['class_probabilities']):
        support = by_query(own(support))  # [E, Q, shot, L]
        query = of_true_class(np.moveaxis(query, -1, 2))  # [E, Q, L]
        found['action_start'][name] = np.bincount(
            action_start(query).ravel(), minlength=query.shape[-1] + 1
        ).tolist()
        found['aem'][name] = aem_score(query[:, :, None], support)
    if moves is not None:
        found['aem']['rearranged'] = aem_score(
            np.einsum('eqxy,eqy->eqx', moves, query)[:, :, None], support
        )
    cost = alignment_cost(window, moves, None if offsets is None else offsets / OFFSET_SCALE)
    if cost:
        found['alignment_cost'] = {name: float(value.mean()) for name, value in cost.items()}
    if truth is None:
        return found
    windows = of_clips(auxiliary, 'window')
    offsets = None if is_resampled(auxiliary) else offsets
    return found | {
        'truth': truth_measures(
            truth, episodes, config, windows, offsets, of_clips(auxiliary, 'indices')
        )
    }


def selection_measures(
    auxiliary: dict[str, np.ndarray], truth: 'Truth | None', config: ConfigDict
) -> dict:
    """The section 'selection' of results.json: what a sampler chooses, over all clips of the
    episodes.

    Returns:
      dict, the last two where the records hold the truth:
        places: how often each of the M frames is chosen, a share.
        saliency_density: of a sampler that amplifies, the mean `saliency_density` of the chosen
          frames.
        inside_action: share of frames inside the true action. Of the 'chosen' ones; of
          'evenly_spaced' ones, as without a sampler; and of those that the sampler chose
          'of_another_clip', of the episode before, which is what its habit is worth without looking
          at the clip (null for one episode).
        inside_box: of a sampler that amplifies, share of the 'saliency' that lies in the object's
          box, and of the pixels that show it in the 'amplified' and in the plain 'frame'. Over
          chosen frames where it is visible.
    """
    chosen = of_clips(auxiliary, 'indices')  # [E, clips, T]
    assert chosen is not None, 'the sampler of this model does not choose'
    dense = frames_read(config)
    found: dict[str, Any] = {
        'places': (np.bincount(chosen.ravel(), minlength=dense) / chosen[..., 0].size).tolist()
    }
    saliency = of_clips(auxiliary, 'saliency')
    if saliency is not None:
        found['saliency_density'] = float(saliency_density(saliency).mean())
    if truth is None:
        return found
    inside = lambda indices: share_inside(truth.stored(config, indices), truth.start, truth.end)
    even = truth.evenly_spaced(config, config.episode.frames)
    found['inside_action'] = {
        'chosen': inside(chosen),
        'evenly_spaced': share_inside(even, truth.start, truth.end),
        'of_another_clip': inside(np.roll(chosen, 1, axis=0)) if len(chosen) > 1 else None,
    }
    if saliency is not None:
        size, sampler = config.episode.image_size, create_learner(config.model).sampler
        boxes = truth.boxes(config, truth.stored(config, chosen))  # [E, clips, T, 4]
        shares = []
        for maps, of_maps in zip(saliency, boxes):  # an episode at a time, for memory
            rows, columns = map(np.asarray, sampler.positions(jnp.asarray(maps), size, size))
            shares.append(
                box_share(np.asarray(amplifier.enlarge(maps, size, size)), rows, columns, of_maps)
            )
        found['inside_box'] = {
            name: _or_none(np.nanmean([share[name] for share in shares])) for name in shares[0]
        }
    return found


def of_clips(auxiliary: dict[str, np.ndarray], name: str) -> np.ndarray | None:
    """One output of the prediction for the clips of E episodes, support first: [E, clips, …]. None
    where it has no such output."""
    if f'query_{name}' not in auxiliary:
        return None
    support, query = auxiliary[f'support_{name}'], auxiliary[f'query_{name}']
    return np.concatenate([support.reshape(len(query), -1, *query.shape[2:]), query], 1)


@dataclasses.dataclass(frozen=True, eq=False)
class Truth:
    """When and where the action is in the clips of E episodes, support first.

    Attributes:
      dataset: the split that they are of.
      used: positions [N] of the clips that occur.
      records: of these.
      num_frames: [N], of each.
      row: [E, clips], which of them each clip is.
      start, end: [E, clips], the action's first and last stored frame.
    """

    dataset: Videos
    used: np.ndarray
    records: list
    num_frames: np.ndarray
    row: np.ndarray
    start: np.ndarray
    end: np.ndarray

    @classmethod
    def of(cls, dataset: Videos, episodes: Episodes) -> 'Truth | None':
        """The truth about these episodes; None where the records do not hold it."""
        positions = np.concatenate([episodes.support.reshape(len(episodes), -1), episodes.query], 1)
        used, row = np.unique(positions, return_inverse=True)
        records = [dataset.read(int(position)) for position in used]
        if not all(key in records[0] for key in ('action_start', 'action_end', 'boxes')):
            return None
        row = row.reshape(positions.shape)
        start, end = (
            np.array([int(record[key]) for record in records])[row]
            for key in ('action_start', 'action_end')
        )
        return cls(dataset, used, records, dataset.num_frames[used], row, start, end)

    def evenly_spaced(self, config: ConfigDict, count: int) -> np.ndarray:
        """The stored frames [E, clips, count] that the loader reads of each clip in a test."""
        return np.array(
            [
                frame_indices(
                    int(n),
                    count,
                    config.data.sampling,
                    jitter_generator(jitter_seed(config), self.dataset, int(position)),
                )
                for position, n in zip(self.used, self.num_frames, strict=True)
            ]
        )[self.row]

    def stored(self, config: ConfigDict, chosen: np.ndarray | None = None) -> np.ndarray:
        """The stored frames [E, clips, L] that the learner is given, or of these the `chosen` ones
        [E, clips, T]."""
        read = self.evenly_spaced(config, frames_read(config))
        return read if chosen is None else np.take_along_axis(read, chosen, -1)

    def boxes(self, config: ConfigDict, frames: np.ndarray) -> np.ndarray:
        """x0, y0, x1, y1 of the object at stored frames [E, clips, L], in the pixels of the test
        view. NaN where it is not visible."""
        return np.array(
            [
                [_boxes(self.records[r], p, config) for r, p in zip(*both)]
                for both in zip(self.row, frames)
            ]
        )


def truth_measures(
    truth: 'Truth',
    episodes: Episodes,
    config: ConfigDict,
    windows: np.ndarray | None,
    offsets: np.ndarray | None,
    chosen: np.ndarray | None = None,
) -> dict:
    """Compares windows and offsets with when and where the action is.

    Args:
      truth: of these episodes.
      windows: [E, clips, 2], or None.
      offsets: [E, Q, L', 2] of each query and the support of its class, or None. L' is smaller
        than L where a backbone over clips leaves fewer time steps.
      chosen: [E, clips, L], which of the frames read a sampler took; None for all.

    Returns:
      dict:
        temporal_overlap: mean of `temporal_overlap` over all clips, of the 'whole_clip' (1, 0) and
          of the 'window'.
        offset_correlation: (x, y), null where it is undefined.
        displacement: mean length of the true offset ('before'), and of what is left of it when the
          predicted offset is subtracted ('after'). Half a frame is 1. Of several shots, the mean
          position counts.
    """
    indices = truth.stored(config, chosen)
    whole = np.broadcast_to(np.array([1.0, 0.0]), (*truth.row.shape, 2))
    window = whole if windows is None else windows
    overlap = lambda window: float(temporal_overlap(window, indices, truth.start, truth.end).mean())
    found = {
        'temporal_overlap': {
            'whole_clip': overlap(whole),
            **({'window': overlap(window)} if windows is not None else {}),
        }
    }
    if offsets is None:
        return found

    steps = offsets.shape[2]
    read = indices[..., frame_indices(indices.shape[-1], steps, 'segment')]
    times = window[..., :1] * np.linspace(-1, 1, steps) + window[..., 1:]
    boxes = truth.boxes(config, stored_positions(times, read))  # [E, clips, L', 4]
    centres = (boxes[..., :2] + boxes[..., 2:]) / config.episode.image_size  # half a frame is 1
    split = episodes.support[0].size
    support = centres[:, :split].reshape(*episodes.support.shape, *centres.shape[2:])
    support = support.mean(2)  # [E, way, L, 2]
    true = centres[:, split:] - support[np.arange(len(centres))[:, None], episodes.labels]
    true = create_learner(config.model).matcher.offset_sign * true
    length = lambda x: (
        _or_none(np.nanmean(np.linalg.norm(x, axis=-1))) if np.isfinite(x).any() else None
    )
    return found | {
        'offset_correlation': [_or_none(x) for x in offset_correlation(offsets, true)],
        'displacement': {'before': length(true), 'after': length(true - offsets)},
    }


def _boxes(record, frames, config):
    """`Truth.boxes` of one clip, float64 [L, 4]. frames: [L], NaN beyond the clip; of each the
    nearest stored frame counts."""
    width, height = int(record['width']), int(record['height'])
    resized = resized_size(width, height, config.data.resize)
    scale = min(resized) / min(width, height)
    corner = np.array(centre_crop_offset(*resized, config.episode.image_size))
    boxes = np.asarray(record['boxes'], np.float64)[np.nan_to_num(np.rint(frames)).astype(int)]
    visible = np.isfinite(frames) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    return np.where(visible[:, None], scale * boxes - np.tile(corner, 2), np.nan)


def _or_none(x):
    return float(x) if np.isfinite(x) else None
