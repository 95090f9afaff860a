"""The part of a report that looks inside episodes: from a trained model and its test episodes to
pictures.

`FewShotLearner.explain` gives the arrays, episode_figures.py draws them, and figures.py draws the
t-SNE of features.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from fsar_jax.analysis import episode_figures, figures
from fsar_jax.analysis.run_report import Picture
from fsar_jax.data import loader
from fsar_jax.data.dataset import Videos
from fsar_jax.data.episodes import Episodes
from fsar_jax.evaluation.evaluate import TrainedModel
from fsar_jax.layers import frame_tuples
from fsar_jax.messages import printable
from fsar_jax.stages import frames_read

CLIPS_PER_CLASS = 20  # in the t-SNE of features
FEWEST_POINTS = 6  # clips of a t-SNE


class Subject(NamedTuple):
    """A model to look into.

    Attributes:
      name: for a reader.
      model: the trained model.
      dataset: the split of its test episodes.
      episodes: all of them; positions index `dataset`.
    """

    name: str
    model: TrainedModel
    dataset: Videos
    episodes: Episodes


class Seen(NamedTuple):
    """One episode as a model sees it.

    Attributes:
      number: which of the test episodes.
      support, query: uint8 [way, shot, M, H, W, 3] and [Q, M, H, W, 3], the frames that are read.
      labels: int [Q].
      names: of the classes, [way].
      logits: float [Q, way].
      shown: {name: array}, the auxiliary of `FewShotLearner.explain`.
      position: which query is drawn: the first that is answered wrong, or the first.
    """

    number: int
    support: np.ndarray
    query: np.ndarray
    labels: np.ndarray
    names: list[str]
    logits: np.ndarray
    shown: dict[str, np.ndarray]
    position: int

    @property
    def label(self) -> int:
        """The true class of the drawn query."""
        return int(self.labels[self.position])

    @property
    def answer(self) -> int:
        """The class that the model gives it."""
        return int(self.logits[self.position].argmax())

    def of_query(self, name: str) -> np.ndarray:
        """An output of the drawn query: 'maps', 'indices', …"""
        return self.shown[f'query_{name}'][self.position]


def look(subject: Subject, numbers: Sequence[int]) -> Iterator[Seen]:
    """Runs the episodes of these numbers, one after the other.

    Raises:
      ValueError: a clip that is too short or cannot be decoded; one line that names it.
    """
    episodes = part(subject.episodes, numbers)
    for number, seen in zip(numbers, _look(subject, episodes)):
        yield seen._replace(number=int(number))


def _look(subject, episodes):
    learner, variables, config, _ = subject.model
    explain = _compiled(learner)
    batches = loader.episode_batches(subject.dataset, config, episodes, 1, frames_read(config))
    for index, batch in enumerate(batches):
        support, query = batch['support'][0], batch['query'][0]
        prediction = jax.tree.map(np.asarray, explain(variables, support, query))
        labels = episodes.labels[index]
        wrong = np.flatnonzero(prediction.logits.argmax(-1) != labels)
        yield Seen(
            number=index,
            support=support,
            query=query,
            labels=labels,
            names=[subject.dataset.class_names[label] for label in episodes.classes[index]],
            logits=prediction.logits,
            shown=prediction.auxiliary,
            position=int(wrong[0]) if len(wrong) else 0,
        )


_programs: dict = {}


def _compiled(learner):
    if learner not in _programs:
        _programs[learner] = jax.jit(lambda *args: learner.apply(*args, method='explain'))
    return _programs[learner]


def part(episodes: Episodes, numbers: Sequence[int]) -> Episodes:
    """Some of the episodes, in this order."""
    fields = (field.name for field in dataclasses.fields(episodes))
    return dataclasses.replace(
        episodes, **{name: getattr(episodes, name)[np.asarray(numbers, int)] for name in fields}
    )


def hardest(correct: Sequence[int], count: int) -> list[int]:
    """The episodes with the fewest right answers, fewest first; of equals the first."""
    return np.argsort(np.asarray(correct), kind='stable')[:count].tolist()


def episode_sections(
    subject: Subject, numbers: Sequence[int], against: Subject | None = None
) -> Iterator[tuple[str, Iterator[Picture | str]]]:
    """(heading, pictures) of each episode, then of all of them together.

    Args:
      subject: the model.
      numbers: which of its test episodes.
      against: another model with the same test episodes, drawn beside it where that says something.
    """
    others = look(against, numbers) if against else iter([None] * len(numbers))
    kept: list[Seen] = []
    for seen, other in zip(look(subject, numbers), others):
        right = int((seen.logits.argmax(-1) == seen.labels).sum())
        heading = f'Episode {seen.number}: {right} of {len(seen.labels)} queries right'
        yield heading, episode_pictures(seen, subject, other, against, first=not kept)
        small = {
            name: x
            for name, x in seen.shown.items()
            if name in ('task_weights', 'support_indices', 'query_indices')
        }
        kept.append(seen._replace(support=seen.support[:, :, 0], shown=small))
    yield 'Over the episodes above', pictures_over_episodes(kept, subject)
    yield 'Features', feature_pictures(subject, numbers[0])


def episode_pictures(
    seen: Seen,
    subject: Subject,
    other: Seen | None = None,
    against: Subject | None = None,
    first: bool = True,
) -> Iterator[Picture | str]:
    """The pictures of one episode; with `first`, also a line for each that the method has nothing
    for, which is the same in every episode."""
    true, answer = (printable(seen.names[i], 60) for i in (seen.label, seen.answer))
    verdict = 'which is right' if seen.label == seen.answer else f'but it shows “{true}”'
    query = f'Query {seen.position + 1}, answered “{answer}”, {verdict}. '
    draw: dict[str, Callable[[], Picture | None]] = {
        'tuple matches: the method compares no tuples of frames': lambda: _matches(
            seen, subject, other, against
        ),
        'activation maps: the backbone gives one cell per frame': lambda: _activations(
            seen, subject, other, against
        ),
        'alignment matrix: the method aligns no frames': lambda: _alignment(seen),
        'window and box: the method has neither temporal transform nor spatial '
        'coordination': lambda: _coordination(seen, subject),
        'chosen frames: the sampler takes all frames that are read': lambda: _sampling(seen),
        'angles: the method has no self- and cross-attention to compare': lambda: _angles(seen),
    }
    if subject.dataset.extractor:
        draw = {why: make for why, make in draw.items() if why.startswith('angles')}
        if first:
            yield (
                'pictures with frames: the run reads the features in config.data.features, which '
                'hold no frames to draw'
            )
    for lacking, make in draw.items():
        picture = make()
        if picture is not None:
            yield picture._replace(
                name=f'episode{seen.number}_{picture.name}', caption=query + picture.caption
            )
        elif first:
            yield lacking


def _attention(seen: Seen | None):
    """(attention [T, shot, T] of the drawn query to its class, tuples [T, ω]), of pairs where there
    are pairs; None without tuples."""
    names = sorted(n for n in seen.shown if n.startswith('attention_cardinality_')) if seen else []
    if not names or seen is None:
        return None
    name = next((n for n in names if n.endswith('_2')), names[0])
    attention = seen.shown[name][seen.position, seen.label]
    length = seen.shown['query_frame_features'].shape[1]
    return attention, frame_tuples(length, int(name.rpartition('_')[2]))


def _matches(seen, subject, other, against):
    found = _attention(seen)
    if found is None:
        return None
    attention, tuples = found
    chosen = np.argsort(-attention.reshape(len(attention), -1).max(1), kind='stable')[:3].tolist()
    columns = {subject.name: episode_figures.best_matches(attention, tuples, chosen)}
    drawn_query = seen.position
    of_other = _attention(other._replace(position=drawn_query)) if other is not None else None
    if of_other is not None and len(of_other[1]) == len(tuples):
        columns = {against.name: episode_figures.best_matches(*of_other, chosen)} | columns
    length = seen.shown['query_frame_features'].shape[1]
    clip = _pictures(seen.of_query('clip'))
    if len(clip) < length:
        return None
    places = episode_figures.middle_frames(length, len(clip))
    support = _pictures(seen.shown['support_clip'][seen.label])
    return Picture(
        'matches',
        'Tuple matches',
        'On top the query, below the support clips of its class. A line joins each frame of a '
        'tuple of the query to the frame of its best match; numbers count frames from 0, and '
        'weights are the attention. As in STRM, Fig. 10 to 14.',
        episode_figures.tuple_matches(clip[places], support[:, places], columns),
    )


def _activations(seen, subject, other, against):
    rows = {}
    size = lambda maps: np.linalg.norm(np.asarray(maps, np.float32), axis=-1)
    if other is not None and _has_cells(other.shown['query_maps']):
        theirs = other._replace(position=seen.position)
        rows[f'{against.name}, backbone'] = size(theirs.of_query('maps'))
        if 'query_enriched_patches' in other.shown:
            rows[f'{against.name}, enriched'] = size(_grid(theirs.of_query('enriched_patches')))
    if _has_cells(seen.shown['query_maps']):
        rows[f'{subject.name}, backbone' if rows else 'backbone'] = size(seen.of_query('maps'))
    if 'query_enriched_patches' in seen.shown:
        rows['enriched'] = size(_grid(seen.of_query('enriched_patches')))
    if not rows:
        return None
    before = ' before and after patch enrichment' if 'enriched' in rows else ''
    return Picture(
        'activation',
        'Activation maps',
        f'The length of the features at each place{before}: bright is strong, on the scale of its '
        'row. As in STRM, Fig. 1, 5 and 15.',
        episode_figures.activation_maps(_pictures(seen.of_query('clip')), rows),
    )


def _alignment(seen):
    if 'distances' not in seen.shown and 'evolution' not in seen.shown:
        return None
    classes = list(dict.fromkeys([seen.label, seen.answer]))
    kinds = {seen.label: 'its class', seen.answer: 'the answer'}
    panels = {}
    for label in classes:
        kind = 'its class, the answer' if len(classes) == 1 else kinds[label]
        panel = {
            'query': _pictures(seen.of_query('clip')),
            'support': _pictures(seen.shown['support_clip'][label, 0]),
        }
        if 'distances' in seen.shown:
            values = seen.shown['distances'][seen.position, label, 0]
            panel |= {
                'values': values,
                'label': 'distance of two frames',
                'paths': _paths(seen, label),
            }
        else:  # M is over (support, query)
            values = seen.shown['evolution'][seen.position, label].T
            best = np.stack([values.argmax(0), np.arange(values.shape[1])], 1)
            panel |= {
                'values': values,
                'label': 'weight of a query frame',
                'paths': {'most weight': best},
            }
        panels[f'{kind}: {seen.names[label]}'] = panel
    caption = {
        True: 'Dark is far apart. The lines are the cheapest paths through the matrix, of the '
        "query's frames and of the support's (for HyRSM: each frame's nearest one).",
        False: 'What each frame of the support takes from each frame of the query (temporal '
        'coordination); the line is the frame with most weight. TA2N, Fig. 5.',
    }['distances' in seen.shown]
    return Picture(
        'alignment',
        'Alignment matrix',
        'Left the query, top the first support clip of the class. ' + caption,
        episode_figures.alignment_matrices(panels),
    )


def _paths(seen, label):
    at = lambda name: seen.shown[name][seen.position, label, 0]
    if 'path' in seen.shown:
        return {
            'query to support': np.argwhere(at('path') > 0.5),
            'support to query': np.argwhere(at('path_back') > 0.5),
        }
    distances = at('distances')
    rows, columns = (np.arange(n) for n in distances.shape)
    return {
        "nearest to the query's": np.stack([rows, distances.argmin(1)], 1),
        "nearest to the support's": np.stack([distances.argmin(0), columns], 1),
    }


def _coordination(seen, subject):
    if 'query_window' not in seen.shown and 'offsets' not in seen.shown:
        return None
    windows: tuple = (None, None)
    if 'query_window' in seen.shown:
        windows = seen.of_query('window'), seen.shown['support_window'][seen.label, 0]
    boxes: tuple = (None, None)
    if 'offsets' in seen.shown:
        sign = subject.model.learner.matcher.offset_sign
        of_support, of_query = episode_figures.overlap_boxes(
            seen.shown['offsets'][seen.position, seen.label], sign
        )
        boxes = of_query, of_support
    clips = _pictures(seen.of_query('clip')), _pictures(seen.shown['support_clip'][seen.label, 0])
    # A 3D backbone leaves fewer time steps than there are frames.
    steps = episode_figures.middle_frames(seen.shown['query_maps'].shape[1], len(clips[0]))
    return Picture(
        'coordination',
        'Window and box',
        'The query, and the first support clip of its class. Blue: the window that the temporal '
        'transform reads; the row below shows the frames that it reads. Red: the part of both '
        'frames that spatial coordination compares. As in TA2N, Fig. 7 and 10; VIM, Fig. 24 and '
        '25.',
        episode_figures.coordination(
            {
                name: {'frames': frames[steps], 'window': window, 'boxes': box}
                for name, frames, window, box in zip(('query', 'support'), clips, windows, boxes)
            }
        ),
    )


def _sampling(seen):
    if 'query_indices' not in seen.shown:
        return None
    amplified = 'query_saliency' in seen.shown
    return Picture(
        'sampling',
        'Chosen frames',
        "The sampler's score of each frame that was read, green where it is chosen"
        + (
            '; where the chosen ones are salient; and how the model sees them, with salient parts '
            'enlarged'
            if amplified
            else ''
        )
        + '. As in VIM, Fig. 14, 23 and 25.',
        episode_figures.sampler_choice(
            seen.query[seen.position],
            seen.of_query('indices'),
            seen.of_query('scores') if 'query_scores' in seen.shown else None,
            seen.of_query('saliency') if amplified else None,
            _pictures(seen.of_query('clip')) if amplified else None,
        ),
    )


def _angles(seen):
    if 'cosine_plain' not in seen.shown:
        return None
    stages = {
        'no attention': 'plain',
        'self-attention': 'self',
        'cross-attention': 'cross',
        'both (MASTAF)': 'fused',
    }
    return Picture(
        'angles',
        'Angle between query and prototypes',
        '0° is the same direction. The star is the true class; the class at the smallest angle is '
        'the answer. As in the appendix of MASTAF, Fig. 1.',
        episode_figures.angles(
            {
                title: seen.shown[f'cosine_{name}'][seen.position]
                for title, name in stages.items()
                if f'cosine_{name}' in seen.shown
            },
            seen.names,
            seen.label,
        ),
    )


def pictures_over_episodes(kept: Sequence[Seen], subject: Subject) -> Iterator[Picture | str]:
    """What several episodes show together: where a sampler takes its frames, and the weights that
    it generates for each task."""
    if 'query_indices' in kept[0].shown:
        chosen = np.concatenate(
            [
                seen.shown[name].reshape(-1, seen.shown[name].shape[-1])
                for seen in kept
                for name in ('support_indices', 'query_indices')
            ]
        )
        dense = kept[0].query.shape[1]
        yield Picture(
            'places',
            'Where the chosen frames lie',
            f'Share of the {len(chosen)} clips of the episodes above that choose each frame. As in '
            'VIM, Fig. 15.',
            figures.chosen_places(np.bincount(chosen.ravel(), minlength=dense) / len(chosen)),
        )
    weights = [seen.shown['task_weights'] for seen in kept if 'task_weights' in seen.shown]
    if not weights:
        yield 't-SNE of w₂: the method generates no weights for a task'
    elif len(weights) < 2:
        yield 't-SNE of w₂: one episode is one task; ask for more with --episodes'
    else:
        draws = weights[0].shape[0]
        tasks = np.repeat(np.arange(len(weights)), draws)
        yield Picture(
            'task_weights',
            'Weights that the sampler generates',
            f't-SNE of w₂ for each episode (a task): {draws - 1} draws of its noise, and without '
            'noise the triangle. As in VIM, Fig. 13.',
            figures.scatter(
                {'w₂': figures.tsne(np.concatenate(weights))},
                tasks,
                [f'episode {seen.number}' for seen in kept],
                np.arange(len(tasks)) % draws == 0,
            ),
        )


def feature_pictures(subject: Subject, number: int) -> Iterator[Picture | str]:
    """t-SNE of clip features, stage by stage, for the classes of one episode (TA2N, Fig. 3 and 8;
    VIM, Fig. 11 and 12).

    The episode's support clips stay; other clips of its classes, at most CLIPS_PER_CLASS each, are
    its queries.
    """
    episodes, names = queries_of_classes(subject, number)
    count = len(episodes.labels.ravel())
    labels = episodes.labels.ravel()
    stages: dict[str, list] = {}
    for seen in _look(subject, episodes):
        for title, features in clip_features(seen).items():
            stages.setdefault(title, []).append(features)
    _, first = np.unique(episodes.query.ravel(), return_index=True)  # without what fills a batch
    if len(first) < FEWEST_POINTS:
        yield f't-SNE of features: {len(first)} clips are too few for it'
        return
    way = len(names)
    panels, groups = {}, np.concatenate([labels[first], np.arange(way)])
    for title, parts in stages.items():
        query = np.concatenate([of_query for of_query, _ in parts])
        prototypes = np.stack([of_class for _, of_class in parts], 0)
        if prototypes.ndim == 4:  # one for each query: of a class, the mean over its queries
            prototypes = prototypes.reshape(count, way, -1)
            prototypes = np.stack([prototypes[labels == c, c].mean(0) for c in range(way)])
        else:
            prototypes = prototypes[0]
        panels[title] = figures.tsne(np.concatenate([query[first], prototypes]))
    yield Picture(
        'features',
        'Features of clips',
        f't-SNE of {len(first)} clips of the classes of episode {number} (circles) and of their '
        'prototypes, the mean of the support clips (triangles). '
        + (
            'Aligned: each clip with the prototype of its own class. '
            if any('aligned' in title for title in panels)
            else ''
        )
        + 'As in TA2N, Fig. 3 and 8; VIM, Fig. 11 and 12.',
        figures.scatter(panels, groups, names, np.arange(len(groups)) >= len(first)),
    )


def queries_of_classes(subject: Subject, number: int) -> tuple[Episodes, list[str]]:
    """The other clips of an episode's classes, as queries of episodes with the same support and as
    many queries as it has, so that nothing is compiled again; the last one is filled up with clips
    that occurred. And the names of the classes."""
    dataset, episodes = subject.dataset, subject.episodes
    support, classes = episodes.support[number], episodes.classes[number]
    clips, labels = [], []
    for label, of_class in enumerate(classes):
        others = np.setdiff1d(np.flatnonzero(dataset.labels == of_class), support)
        clips += others[:CLIPS_PER_CLASS].tolist()
        labels += [label] * len(others[:CLIPS_PER_CLASS])
    width = episodes.query.shape[1]
    rows = -(-len(clips) // width)
    query, of_query = (
        np.resize(np.array(x, np.int32), rows * width).reshape(rows, width) for x in (clips, labels)
    )
    repeat = lambda x: np.broadcast_to(x, (rows, *x.shape))
    return (
        Episodes(repeat(support), query, of_query, repeat(classes)),
        [dataset.class_names[label] for label in classes],
    )


def clip_features(seen: Seen) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{stage: (of the queries [Q, D], of the classes [way, D] or for each query [Q, way, D])}:
    features of whole clips, means over frames."""
    shown = seen.shown

    def of_both(name: str, axes: Any) -> tuple[np.ndarray, np.ndarray]:
        query, support = (shown[f'{side}_{name}'] for side in ('query', 'support'))
        mean = lambda x: np.asarray(x, np.float32).mean(axes)
        return mean(query), mean(support).mean(1)

    found: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    if 'query_scores' in shown:
        found['all frames'] = of_both('dense_features', ())
        found['chosen frames'] = of_both('selected_features', ())
    found['backbone'] = of_both('maps', (-4, -3, -2))
    if 'query_warped_maps' in shown:
        found['temporal transform'] = of_both('warped_maps', (-4, -3, -2))
    if 'query_enriched_patches' in shown:
        found['patch enrichment'] = of_both('patch_level', -2)
    if not np.array_equal(shown['query_frame_features'], shown['query_patch_level']):
        found['frame enrichment'] = of_both('frame_features', -2)
    if 'aligned_prototypes' in shown:
        own = shown['aligned_frames'][np.arange(len(seen.labels)), seen.labels]
        found['aligned'] = own.mean(1), shown['aligned_prototypes'].mean(2)
    return found


def _pictures(clip):
    """Frames as uint8, from floats in [0, 1] too."""
    if clip.dtype == np.uint8:
        return clip
    return np.rint(255 * np.clip(np.asarray(clip, np.float32), 0, 1)).astype(np.uint8)


def _has_cells(maps):
    return maps.shape[-3] * maps.shape[-2] > 1


def _grid(patches):
    """[L, P², C] → [L, P, P, C]."""
    side = round(patches.shape[-2] ** 0.5)
    return patches.reshape(*patches.shape[:-2], side, side, patches.shape[-1])
