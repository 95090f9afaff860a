"""The pictures of a report that several episodes make together: where a sampler takes its frames,
the weights that it generates, and the t-SNE of features."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fsar_jax.analysis import figures, picture_truth
from fsar_jax.analysis.episode_report import Truth
from fsar_jax.analysis.looking import Seen, Subject, look_through, part
from fsar_jax.analysis.run_report import Picture
from fsar_jax.data.episodes import Episodes

CLIPS_PER_CLASS = 20  # in the t-SNE of features
FEWEST_POINTS = 6  # clips of a t-SNE


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
            f'Share of the {len(chosen)} clips of the episodes above that choose each frame; the '
            'line, where it is known, is the share that show the action in it. As in VIM, Fig. 15.',
            figures.chosen_places(
                np.bincount(chosen.ravel(), minlength=dense) / len(chosen),
                action_of_clips(subject, [seen.number for seen in kept]),
            ),
        )
    weights = [seen.shown['task_weights'] for seen in kept if 'task_weights' in seen.shown]
    if not weights:
        yield 't-SNE of w₂: the method generates no weights for a task'
    elif len(weights) < 2:
        yield 't-SNE of w₂: one episode is one task; ask for more with --episodes'
    else:
        draws = weights[0].shape[0]
        within, between, length = spread(np.stack(weights))
        tasks = np.repeat(np.arange(len(weights)), draws)
        yield Picture(
            'task_weights',
            'Weights that the sampler generates',
            f't-SNE of w₂ for each episode (a task): {draws - 1} draws of its noise, and without '
            f'noise the triangle. Two draws of one task are {within:.3g} apart, two tasks '
            f'{between:.3g}, where the mean length of w₂ is {length:.3g}. As in VIM, Fig. 13.',
            figures.scatter(
                {'w₂': figures.tsne(np.concatenate(weights))},
                tasks,
                [f'episode {seen.number}' for seen in kept],
                np.arange(len(tasks)) % draws == 0,
                kinds=('with noise', 'without'),
            ),
        )


def action_of_clips(subject: Subject, numbers: Sequence[int]) -> np.ndarray | None:
    """[M], the share of the clips of these episodes that show the action in each frame that is
    read; None where the dataset does not say."""
    known = Truth.of(subject.dataset, part(subject.episodes, numbers))
    if known is None:
        return None
    read = known.stored(subject.model.config)
    inside = (read >= known.start[..., None]) & (read <= known.end[..., None])
    return inside.mean((0, 1))


def spread(weights: np.ndarray) -> tuple[float, float, float]:
    """(mean distance of two draws of one task, of two tasks without noise, mean length).

    Args:
      weights: [tasks, 1 + draws, D], first without noise.
    """
    apart = lambda x: np.linalg.norm(x[..., :, None, :] - x[..., None, :, :], axis=-1)
    mean = lambda x: float(x[..., ~np.eye(x.shape[-1], dtype=bool)].mean())
    return (
        mean(apart(weights[:, 1:])),
        mean(apart(weights[:, 0])),
        float(np.linalg.norm(weights, axis=-1).mean()),
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
    right: dict[str, list] = {}
    for seen in look_through(subject, episodes):
        for title, features in clip_features(seen.shown, seen.labels).items():
            stages.setdefault(title, []).append(features)
        near = {
            name: picture_truth.cosines(*x) for name, x in compared_features(seen.shown).items()
        }
        for title, scores in near.items():
            right.setdefault(title, []).append(scores.argmax(-1) == seen.labels)
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
        'prototypes, the mean of the support clips (triangles). Below, how many are nearer to the '
        'prototype of their class than to all others by the angle of the features themselves. '
        + (
            'Aligned: each clip with the prototype of its own class. '
            if any('aligned' in title for title in panels)
            else ''
        )
        + 'As in TA2N, Fig. 3 and 8; VIM, Fig. 11 and 12.',
        figures.scatter(
            panels,
            groups,
            names,
            np.arange(len(groups)) >= len(first),
            {
                title: f'{np.concatenate(of_stage)[first].mean():.0%} nearest to their class'
                for title, of_stage in right.items()
            },
            ('clip', 'prototype'),
        ),
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


def clip_features(
    shown: dict[str, np.ndarray], labels: np.ndarray | None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{stage: (of the queries [Q, D], of the classes [way, D] or for each query [Q, way, D])}:
    features of whole clips, means over frames. 'aligned' are those that each query has with its
    own class, of `labels` [Q]; None leaves them out."""

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
    if 'aligned_prototypes' in shown and labels is not None:
        own = shown['aligned_frames'][np.arange(len(labels)), labels]
        found['aligned'] = own.mean(1), shown['aligned_prototypes'].mean(2)
    return found


def compared_features(shown: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """As `clip_features`, but what is aligned with every class, not with the own one alone, which
    nobody knows at test time."""
    seen = {name: x for name, x in clip_features(shown, None).items()}
    if 'aligned_prototypes' in shown:
        seen['aligned'] = tuple(
            np.asarray(shown[f'aligned_{what}'], np.float32).mean(2)
            for what in ('frames', 'prototypes')
        )
    return seen
