"""What the pictures of an episode show, as numbers beside the truth, where the records of a dataset
say when and where the action happens (synthetic_actions).

One picture convinces easily. These numbers say it of every query: whether bright places are the
object, whether joined frames show the same moment, and whether windows, boxes and chosen frames
hold the action. Plain arrays in, plain arrays out.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from fsar_jax.analysis.episode_report import Truth
from fsar_jax.analysis.misalignment import stored_positions, temporal_overlap
from fsar_jax.analysis.selection import box_share, is_resampled
from fsar_jax.data.frame_sampling import frame_indices
from fsar_jax.samplers import amplifier

TRUTH = 'the truth'


class Measure(NamedTuple):
    """What a picture shows of each query, as a number, and the number to compare it with.

    Attributes:
      picture: the one that shows it, as its file is called: 'activation', 'matches', …
      name: what is measured.
      values: float [Q] or [Q, n], NaN where it is undefined.
      compared: likewise, of what `other` names.
      other: what the values are compared with; TRUTH where they should be the same.
    """

    picture: str
    name: str
    values: np.ndarray
    compared: np.ndarray
    other: str

    def of_query(self, position: int) -> tuple[str, str] | None:
        """The words for one query, and those about what it is compared with; None where it is
        undefined."""
        both = [x[position] for x in (self.values, self.compared)]
        if not all(np.isfinite(x).any() for x in both):
            return None
        value, compared = (float(np.nanmean(x)) for x in both)
        return f'{self.name} {value:.2f}', f'{self.other}: {compared:.2f}'


class Clips(NamedTuple):
    """When and where the action is in the frames of an episode's clips, support first.

    Attributes:
      read: int [clips, L], which stored frame each frame is that the backbone sees.
      moment: float [clips, L], how far the action is in the frames that are compared, which a
        temporal transform may have moved: 0 up to its first stored frame, 1 from its last on,
        linear between them; NaN beyond the clip.
      boxes, moved_boxes: float [clips, L, 4], x0, y0, x1, y1 of the object in `read`, and in the
        frames that are compared, in pixels of the test view; NaN where it is not visible.
      span: float [clips, 2], the first and the last frame of the action, counted in those of
        `read`, in fractions; NaN where none of them shows it.
    """

    read: np.ndarray
    moment: np.ndarray
    boxes: np.ndarray
    moved_boxes: np.ndarray
    span: np.ndarray


def clips_of(shown: Mapping[str, np.ndarray], truth: Truth, config: ConfigDict) -> Clips:
    """The truth about the clips of one episode.

    Args:
      shown: the auxiliary of `FewShotLearner.explain`.
      truth: of this episode alone.
      config: of the run.
    """
    chosen = _of_clips(shown, 'indices')
    read = truth.stored(config, None if chosen is None else chosen[None])[0]
    # A 3D backbone leaves fewer time steps than there are frames.
    read = read[:, frame_indices(read.shape[1], shown['query_maps'].shape[1], 'segment')]
    start, end = (x[0][:, None].astype(float) for x in (truth.start, truth.end))
    boxes = truth.boxes(config, read[None])[0]
    compared, moved, windows = read.astype(float), boxes, _of_clips(shown, 'window')
    if windows is not None:
        times = windows[:, :1] * np.linspace(-1, 1, read.shape[1]) + windows[:, 1:]
        compared = stored_positions(times, read)
        moved = truth.boxes(config, compared[None])[0]
    moment = np.clip((compared - start) / np.maximum(end - start, 1), 0, 1)
    places = np.arange(read.shape[1])
    ends = np.concatenate([start, end], 1)
    span = np.array([np.interp(x, of_clip, places) for x, of_clip in zip(ends, read)])
    span[(ends[:, 0] > read[:, -1]) | (ends[:, 1] < read[:, 0])] = np.nan
    return Clips(read, moment, boxes, moved, span)


def activation_measures(
    stages: Mapping[str, np.ndarray], boxes: np.ndarray, size: int
) -> list[Measure]:
    """How much of what is bright in a query's row of maps lies in the object's box.

    Args:
      stages: {name: activations [Q, L, size, size]}, laid over the frames. What counts is what a
        place has more than the least of its row, which is what the colours show.
      boxes: [Q, L, 4], in pixels of a frame of `size`.
    """
    found = []
    for name, maps in stages.items():
        bright = maps - maps.min((1, 2, 3), keepdims=True)
        pixels = np.broadcast_to(np.arange(size), (*maps.shape[:2], size))
        share = box_share(bright, pixels, pixels, boxes)
        about = f'{name}: share of what is bright inside the box of the object'
        found.append(
            Measure('activation', about, share['saliency'], share['frame'], 'of the frame')
        )
    return found


def match_measures(
    attention: np.ndarray, tuples: np.ndarray, query: np.ndarray, support: np.ndarray
) -> list[Measure]:
    """How far apart, in the action, the frames are that a query's three strongest matches join:
    beside any tuple of the class, and beside the frames of the same numbers, which need no match.

    Args:
      attention: [Q, T, shot, T], to the tuples of the query's own class.
      tuples: int [T, ω], the frames of each.
      query, support: moments [Q, L] and [Q, shot, L].
    """
    best, anywhere, same = [], [], []
    for weights, of_query, of_support in zip(attention, query, support):
        flat = weights.reshape(len(tuples), -1)
        drawn = np.argsort(-flat.max(1), kind='stable')[:3]
        apart = np.abs(
            of_query[tuples[drawn]][:, None, None] - of_support[:, tuples]
        )  # [3, s, T, ω]
        apart = apart.mean(-1).reshape(len(drawn), -1)
        best.append(apart[np.arange(len(drawn)), flat[drawn].argmax(1)].mean())
        anywhere.append(apart.mean())
        of_number = np.abs(of_query - of_support)[:, tuples[drawn]]  # [shot, 3, ω]
        same.append(of_number.mean())
    name = 'joined frames are apart, as a part of the action,'
    return [
        Measure('matches', name, np.array(best), np.array(compared), other)
        for compared, other in ((anywhere, 'with any tuple'), (same, 'frame by frame'))
    ]


def path_measures(paths: np.ndarray, query: np.ndarray, support: np.ndarray) -> list[Measure]:
    """How far apart, in the action, the frames are that an alignment joins, and how much later in
    the support clip.

    Args:
      paths: [Q, L, L], at least 0: how much it joins a frame of the query (row) to one of the
        support.
      query, support: moments [Q, L] of the query and of the first support clip of its class.
    """
    length = paths.shape[-1]
    apart = np.abs(query[:, :, None] - support[:, None, :])
    later = np.arange(length) - np.arange(length)[:, None]
    # A clip that is d frames later has been less far for d frames.
    true = np.nansum(query - support, -1)
    return [
        Measure(
            'alignment',
            'aligned frames are apart, as a part of the action,',
            _mean(apart, paths),
            _mean(apart, np.eye(length)),
            'frame by frame',
        ),
        Measure(
            'alignment',
            'frames by which the support is later',
            _mean(np.broadcast_to(later, paths.shape), paths),
            true,
            TRUTH,
        ),
    ]


def window_measures(
    windows: np.ndarray, read: np.ndarray, start: np.ndarray, end: np.ndarray
) -> list[Measure]:
    """The overlap of each window (a, b), [Q, 2], with the action from `start` to `end`, [Q]; `read`
    as in `Clips`."""
    whole = np.broadcast_to([1.0, 0.0], windows.shape)
    overlap = lambda x: temporal_overlap(x, read, start, end)
    name = 'overlap of the window with the action'
    return [Measure('coordination', name, overlap(windows), overlap(whole), 'of the whole clip')]


def offset_measures(
    offsets: np.ndarray, query: np.ndarray, support: np.ndarray, size: int
) -> list[Measure]:
    """What is left of the way between the objects when the predicted one is subtracted, and that
    along x and y.

    Args:
      offsets: [Q, L, 2], the object's place in the query minus that in the support; half a frame
        is 1.
      query, support: [Q, L, 4], boxes in pixels of frames of `size`.
    """
    centre = lambda boxes: (boxes[..., :2] + boxes[..., 2:]) / size
    true = centre(query) - centre(support)
    length = lambda x: np.linalg.norm(x, axis=-1)
    name = 'way between the two objects that is left by the boxes, half a frame being 1,'
    found = [Measure('coordination', name, length(true - offsets), length(true), 'before')]
    for axis, side in enumerate(('right', 'down')):
        name = f'way {side} from the object in the support to that in the query'
        found.append(Measure('coordination', name, offsets[..., axis], true[..., axis], TRUTH))
    return found


def choice_measures(
    read: np.ndarray, even: np.ndarray, start: np.ndarray, end: np.ndarray
) -> list[Measure]:
    """The share of the chosen stored frames, [Q, T], that show the action, beside that of `even`
    ones."""
    inside = lambda x: ((x >= start[:, None]) & (x <= end[:, None])).mean(-1)
    name = 'share of the chosen frames inside the action'
    return [Measure('sampling', name, inside(read), inside(even), 'evenly spaced')]


def saliency_measures(saliency: np.ndarray, boxes: np.ndarray, size: int) -> list[Measure]:
    """The share of the saliency, [Q, T, h, w], inside the object's box, [Q, T, 4] in pixels of a
    frame of `size`."""
    maps = np.asarray(amplifier.enlarge(jnp.asarray(saliency), size, size))
    pixels = np.broadcast_to(np.arange(size), (*maps.shape[:2], size))
    share = box_share(maps, pixels, pixels, boxes)
    name = 'share of the saliency inside the box of the object'
    return [Measure('sampling', name, share['saliency'], share['frame'], 'of the frame')]


def cosines(query: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """[Q, way], the cosine of each query with each class.

    Args:
      query: [Q, D] or, where they depend on the class, [Q, way, D].
      classes: [way, D] or, where they depend on the query, [Q, way, D].
    """
    unit = lambda x: x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
    return (unit(query if query.ndim == 3 else query[:, None]) * unit(classes)).sum(-1)


def nearest_measures(
    picture: str, stages: Mapping[str, np.ndarray], labels: np.ndarray
) -> list[Measure]:
    """For each stage whether a query is nearest to its own class.

    Args:
      picture: which shows it.
      stages: {name: [Q, way], how near a query is to each class}.
      labels: int [Q].
    """
    found = []
    for stage, near in stages.items():
        right = (near.argmax(-1) == labels).astype(float)
        chance = np.full(len(labels), 1 / near.shape[-1])
        name = f'{stage}: share of queries nearest to their own class'
        found.append(Measure(picture, name, right, chance, 'chance'))
    return found


def measures_of(
    shown: Mapping[str, np.ndarray],
    labels: np.ndarray,
    stages: Mapping[str, np.ndarray],
    matched: tuple[np.ndarray, np.ndarray] | None,
    clips: Clips,
    truth: Truth,
    config: ConfigDict,
    offset_sign: int = 1,
) -> list[Measure]:
    """The measures of every query of an episode that need its truth, without those that the method
    has nothing for.

    Args:
      shown: the auxiliary of `FewShotLearner.explain`.
      labels: int [Q].
      stages: {name: activations [Q, L, H, W]}, laid over the frames.
      matched: (attention [Q, way, T, shot, T], tuples int [T, ω]) of a cross-transformer, or None.
      clips: of `clips_of`; truth: of this episode alone.
      config: of the run.
      offset_sign: of `ActionCoordination`.
    """
    size = config.episode.image_size
    way, shot = shown['support_maps'].shape[:2]
    own, every = labels * shot, np.arange(len(labels))  # the first support clip of the own class
    of = lambda x: (x[way * shot :], x[own])  # of the queries, and of those clips
    start, end = truth.start[0], truth.end[0]
    found = []
    resampled = is_resampled(shown)
    boxes = clips.boxes[way * shot :]
    if not resampled:
        found += activation_measures(stages, boxes, size)
    if matched is not None:
        attention, tuples = matched
        support = clips.moment[: way * shot].reshape(way, shot, -1)[labels]
        found += match_measures(
            attention[every, labels], tuples, clips.moment[way * shot :], support
        )
    paths = alignment_paths(shown)
    if paths is not None:
        found += path_measures(paths[every, labels], *of(clips.moment))
    if 'query_window' in shown:
        found += window_measures(
            shown['query_window'], *(x[way * shot :] for x in (clips.read, start, end))
        )
    if 'offsets' in shown and not resampled:
        offsets = offset_sign * shown['offsets'][every, labels]
        found += offset_measures(offsets, *of(clips.moved_boxes), size)
    if 'query_indices' in shown:
        even = truth.evenly_spaced(config, clips.read.shape[1])[0]
        found += choice_measures(*(x[way * shot :] for x in (clips.read, even, start, end)))
    if 'query_saliency' in shown:
        found += saliency_measures(shown['query_saliency'], boxes, size)
    return found


def alignment_paths(shown: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """How much a method joins each frame of a query (row) to each of the first support clip of a
    class, [Q, way, L, L]: OTAM's two paths, HyRSM's nearest frames, TA2N's M. None for others."""
    if 'path' in shown:
        return (shown['path'] + shown['path_back'])[:, :, 0]
    if 'distances' in shown:
        distances = shown['distances'][:, :, 0]
        least = lambda axis: distances == distances.min(axis, keepdims=True)
        return least(-1).astype(float) + least(-2)
    return shown['evolution'].swapaxes(-1, -2) if 'evolution' in shown else None


def _mean(values, weights):
    """Weighted mean over the last two axes, of what is finite."""
    weights = np.where(np.isfinite(values), weights, 0)
    total = weights.sum((-2, -1))
    return np.divide(
        np.where(weights > 0, weights * np.nan_to_num(values), 0).sum((-2, -1)),
        total,
        out=np.full(total.shape, np.nan),
        where=total > 0,
    )


def _of_clips(shown, name):
    """One output for all clips, [clips, …], support first; None where there is none."""
    if f'query_{name}' not in shown:
        return None
    support, query = shown[f'support_{name}'], shown[f'query_{name}']
    return np.concatenate([np.reshape(support, (-1, *query.shape[1:])), query])
