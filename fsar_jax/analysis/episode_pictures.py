"""The part of a report that looks inside episodes: from a trained model and its test episodes to
pictures.

looking.py runs the episodes, `FewShotLearner.explain` gives the arrays, and episode_figures.py
draws them. over_episodes.py has the pictures that several episodes make together.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from fsar_jax.analysis import episode_figures, picture_truth
from fsar_jax.analysis.cell_places import cell_places, over_frame, patch_places
from fsar_jax.analysis.episode_report import Truth
from fsar_jax.analysis.looking import Seen, Subject, look, part
from fsar_jax.analysis.over_episodes import (
    compared_features,
    feature_pictures,
    pictures_over_episodes,
)
from fsar_jax.analysis.picture_truth import Clips, Measure
from fsar_jax.analysis.run_report import Picture
from fsar_jax.analysis.selection import is_resampled
from fsar_jax.data.frame_sampling import frame_indices
from fsar_jax.matchers.cross_transformer import compared_tuples
from fsar_jax.messages import printable
from fsar_jax.samplers import amplifier

STAGES = {
    'backbone': 'The length of the features of the backbone at each place.',
    'patch enrichment': 'The same after patch enrichment.',
    'frame enrichment': 'After frame enrichment, which has one feature for a whole frame: the part '
    "of the features at each place, as frame enrichment receives them, that lies along the frame's "
    'enriched feature.',
}
ANGLES = {
    'no attention': 'plain',
    'self-attention': 'self',
    'cross-attention': 'cross',
    'both (MASTAF)': 'fused',
}


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
    measures, clips = measured(seen, subject)
    draw: dict[str, Callable[[], Picture | None]] = {
        'tuple matches: the method compares no tuples of frames': lambda: _matches(
            seen, subject, other, against
        ),
        'activation maps: the backbone gives one cell per frame': lambda: _activations(
            seen, subject, other, against, clips
        ),
        'alignment matrix: the method aligns no frames': lambda: _alignment(seen),
        'window and box: the method has neither temporal transform nor spatial '
        'coordination': lambda: _coordination(seen, subject, clips),
        'chosen frames: the sampler takes all frames that are read': lambda: _sampling(
            seen, subject, clips
        ),
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
                name=f'episode{seen.number}_{picture.name}',
                caption=query + picture.caption + in_numbers(measures, picture.name, seen.position),
            )
        elif first:
            yield lacking


def measured(seen: Seen, subject: Subject) -> tuple[list[Measure], Clips | None]:
    """What the pictures of an episode show, as numbers for all of its queries; and the truth about
    its clips, None where the dataset does not hold it."""
    shown = seen.shown
    near = {name: picture_truth.cosines(*x) for name, x in compared_features(shown).items()}
    measures = picture_truth.nearest_measures('features', near, seen.labels)
    if 'cosine_plain' in shown:
        near = {
            title: shown[f'cosine_{name}']
            for title, name in ANGLES.items()
            if f'cosine_{name}' in shown
        }
        measures += picture_truth.nearest_measures('over angles', near, seen.labels)
    known = None
    if not subject.dataset.extractor:
        known = Truth.of(subject.dataset, part(subject.episodes, [seen.number]))
    if known is None:
        return measures, None
    learner, _, config, _ = subject.model
    clips = picture_truth.clips_of(shown, known, config)
    found = _tuples(shown, learner.matcher)
    true = picture_truth.measures_of(
        shown,
        seen.labels,
        activations(shown, learner.backbone.looks_at),
        (shown[found[0]], found[1]) if found else None,
        clips,
        known,
        config,
        getattr(learner.matcher, 'offset_sign', 1),
    )
    return true + measures, clips


def in_numbers(measures: Sequence[Measure], picture: str, position: int) -> str:
    """The sentence about one query that stands below a picture; '' where nothing is known."""
    words: dict[str, list[str]] = {}
    for measure in measures:
        found = measure.of_query(position) if measure.picture == picture else None
        if found is not None:
            words.setdefault(found[0], []).append(found[1])
    said = '; '.join(f'{number} ({", ".join(others)})' for number, others in words.items())
    return f' In numbers: {said}.' if said else ''


def _attention(seen: Seen | None, subject: Subject | None):
    """(attention [T, shot, T] of the drawn query to its class, tuples [T, ω]), of pairs where there
    are pairs; None without tuples."""
    if seen is None or subject is None:
        return None
    found = _tuples(seen.shown, subject.model.learner.matcher)
    if found is None:
        return None
    return seen.shown[found[0]][seen.position, seen.label], found[1]


def _tuples(shown, matcher):
    """(the name of the attention between tuples, tuples [T, ω]), of pairs where there are pairs;
    None without tuples."""
    names = sorted(n for n in shown if n.startswith('attention_cardinality_'))
    if not names:
        return None
    name = next((n for n in names if n.endswith('_2')), names[0])
    length = shown['query_frame_features'].shape[1]
    return name, compared_tuples(matcher, length, int(name.rpartition('_')[2]))


def _matches(seen, subject, other, against):
    found = _attention(seen, subject)
    if found is None:
        return None
    attention, tuples = found
    chosen = np.argsort(-attention.reshape(len(attention), -1).max(1), kind='stable')[:3].tolist()
    columns = {subject.name: episode_figures.best_matches(attention, tuples, chosen)}
    drawn_query = seen.position
    theirs = other._replace(position=drawn_query) if other is not None else None
    of_other = _attention(theirs, against)
    if of_other is not None and np.array_equal(of_other[1], tuples):
        columns = {against.name: episode_figures.best_matches(*of_other, chosen)} | columns
    length = seen.shown['query_frame_features'].shape[1]
    clip = _pictures(seen.of_query('clip'))
    if len(clip) < length:
        return None
    places = frame_indices(len(clip), length, 'segment')
    support = _pictures(seen.shown['support_clip'][seen.label])
    return Picture(
        'matches',
        'Tuple matches',
        'On top the query, below the support clips of its class. A line joins each frame of a '
        'tuple of the query to the frame of its best match; numbers count frames from 0, and '
        'weights are the attention. As in STRM, Fig. 10 to 14.',
        episode_figures.tuple_matches(clip[places], support[:, places], columns),
    )


def activations(shown: dict[str, np.ndarray], looks_at: float) -> dict[str, np.ndarray]:
    """{stage: [Q, L, H, W]}, how strong the features of the queries are at each place of the
    frames.

    'backbone' and 'patch enrichment' are lengths of features. Frame enrichment has one feature for
    a whole frame, so that STRM's Fig. 5 and 15 can only show the places that it is made of: here
    the part of each place's features that lies along the frame's enriched feature, 0 where it
    points away. {} for a backbone that gives one cell per frame.

    Args:
      shown: the auxiliary of `FewShotLearner.explain`.
      looks_at: of the backbone.
    """
    found: dict[str, np.ndarray] = {}
    cells = np.asarray(shown['query_maps'], np.float32)
    if not _has_cells(cells):
        return found
    height, width = shown['query_clip'].shape[-3:-1]
    rows = cell_places(cells.shape[-3], height, looks_at)
    columns = cell_places(cells.shape[-2], width, looks_at)
    laid = lambda maps: over_frame(maps, rows, columns, height, width)
    size = lambda x: np.linalg.norm(x, axis=-1)
    found['backbone'] = laid(size(cells))
    if 'query_enriched_patches' in shown:
        cells = _grid(np.asarray(shown['query_enriched_patches'], np.float32))
        rows, columns = (patch_places(places, cells.shape[-2]) for places in (rows, columns))
        found['patch enrichment'] = laid(size(cells))
    frames = np.asarray(shown['query_frame_features'], np.float32)
    if not np.array_equal(frames, shown['query_patch_level']):
        along = np.einsum('qlhwc,qlc->qlhw', cells, frames)
        length = np.maximum(size(frames), 1e-12)[..., None, None]
        found['frame enrichment'] = laid(np.maximum(along / length, 0))
    return found


def _activations(seen, subject, other, against, clips):
    def of_drawn(shown, model):
        found = activations(shown, model.learner.backbone.looks_at)
        return {name: maps[seen.position] for name, maps in found.items()}

    own = of_drawn(seen.shown, subject.model)
    theirs = of_drawn(other.shown, against.model) if other is not None else {}
    if not own:
        return None
    rows = {f'{against.name}, {name}': maps for name, maps in theirs.items()}
    rows |= {f'{subject.name}, {name}' if theirs else name: maps for name, maps in own.items()}
    stages = {name: STAGES[name] for name in own}
    return Picture(
        'activation',
        'Activation maps',
        f'{" ".join(stages.values())} Bright is strong, on the scale of its row. As in STRM, Fig. '
        '1, 5 and 15.',
        episode_figures.activation_maps(
            _pictures(seen.of_query('clip')), rows, _objects(seen, subject, clips)
        ),
    )


def _objects(seen, subject, clips):
    """[L, 4], the boxes of the drawn query's object, from 0 to 1 of a frame; None where they are
    not known, or where amplified or cropped frames show it elsewhere."""
    if clips is None or is_resampled(seen.shown):
        return None
    return _boxes_of_query(seen, subject, clips)


def _boxes_of_query(seen, subject, clips):
    boxes = clips.boxes[len(clips.boxes) - len(seen.labels) + seen.position]
    boxes = boxes / subject.model.config.episode.image_size
    # A 3D backbone has fewer boxes than there are frames.
    length = len(seen.of_query('clip'))
    return boxes[np.arange(length) * len(boxes) // length]


def _alignment(seen):
    if 'distances' not in seen.shown and 'evolution' not in seen.shown:
        return None
    classes = list(dict.fromkeys([seen.label, seen.answer]))
    kinds = {seen.label: 'its class', seen.answer: 'the answer'}
    panels = {}
    for label in classes:
        kind = 'its class, the answer' if len(classes) == 1 else kinds[label]
        panel = {'query': _compared(seen, 'query'), 'support': _compared(seen, 'support', label)}
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
        True: 'Dark is far apart. The lines are the cheapest paths through the matrix: one finds '
        "frames of the query for the support's, the other the opposite (for HyRSM: each frame's "
        'nearest one).',
        False: 'What each frame of the support takes from each frame of the query (temporal '
        'coordination); the line is the frame with most weight. TA2N, Fig. 5.',
    }['distances' in seen.shown]
    return Picture(
        'alignment',
        'Alignment matrix',
        'Left the query, top the first support clip of the class. ' + caption,
        episode_figures.alignment_matrices(panels),
    )


def _compared(seen, side, label=0):
    """The frames that are aligned: those of the drawn query, or of the first support clip of a
    class, as a temporal transform reads them."""
    of_clip = lambda x: x[seen.position] if side == 'query' else x[label, 0]
    frames = _pictures(of_clip(seen.shown[f'{side}_clip']))
    if f'{side}_window' not in seen.shown:
        return frames
    return episode_figures.warped_frames(frames, of_clip(seen.shown[f'{side}_window']))


def _paths(seen, label):
    at = lambda name: seen.shown[name][seen.position, label, 0]
    if 'path' in seen.shown:
        return {
            'of the frames of the support': path_cells(at('path'), 0),
            'of the frames of the query': path_cells(at('path_back'), 1),
        }
    distances = at('distances')
    rows, columns = (np.arange(n) for n in distances.shape)
    return {
        "nearest to the query's": np.stack([rows, distances.argmin(1)], 1),
        "nearest to the support's": np.stack([distances.argmin(0), columns], 1),
    }


def path_cells(path: np.ndarray, axis: int) -> np.ndarray:
    """The cells of a path, int [n, 2], (row, column), row by row.

    Args:
      path: [L, L], 1 in the cells of the cheapest path; several that cost the same share it, and
        then the cell that most of them pass counts, the first of equals.
      axis: 0 if the path has a cell in each column, 1 in each row; those whose frame is dropped
        have none.
    """
    cells = path > 0.5
    shared = ~cells.any(axis) & (path.sum(axis) > 0.5)
    most = np.expand_dims(path.argmax(axis), axis)
    numbers = np.expand_dims(np.arange(path.shape[axis]), 1 - axis)
    return np.argwhere(cells | ((numbers == most) & np.expand_dims(shared, axis)))


def _coordination(seen, subject, clips):
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
    frames = _pictures(seen.of_query('clip')), _pictures(seen.shown['support_clip'][seen.label, 0])
    # A 3D backbone leaves fewer time steps than there are frames.
    steps = frame_indices(len(frames[0]), seen.shown['query_maps'].shape[1], 'segment')
    spans: tuple = (None, None)
    if clips is not None:
        shot = seen.support.shape[1]
        videos = shot * seen.support.shape[0]
        spans = clips.span[videos + seen.position], clips.span[seen.label * shot]
    return Picture(
        'coordination',
        'Window and box',
        'The query, and the first support clip of its class. Blue: the window that the temporal '
        'transform (TTM) reads, which the row below shows. Red: the part of both '
        'frames that spatial coordination compares. As in TA2N, Fig. 7 and 10; VIM, Fig. 24 and '
        '25.',
        episode_figures.coordination(
            {
                name: {'frames': clip[steps], 'window': window, 'boxes': box, 'action': span}
                for name, clip, window, box, span in zip(
                    ('query', 'support'), frames, windows, boxes, spans
                )
            }
        ),
    )


def _sampling(seen, subject, clips):
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
            # As the amplifier reads it.
            np.asarray(amplifier.enlarge(seen.of_query('saliency'), *seen.query.shape[2:4]))
            if amplified
            else None,
            _pictures(seen.of_query('clip')) if amplified else None,
            _action_of_read(seen, subject) if clips is not None else None,
            _boxes_of_query(seen, subject, clips) if clips is not None else None,
        ),
    )


def _action_of_read(seen, subject):
    """The first and the last frame of the drawn query's action, counted in those that were read, in
    fractions."""
    known = Truth.of(subject.dataset, part(subject.episodes, [seen.number]))
    clip = known.row.shape[1] - len(seen.labels) + seen.position
    read = known.stored(subject.model.config)[0, clip]
    return np.interp([known.start[0, clip], known.end[0, clip]], read, np.arange(len(read)))


def _angles(seen):
    if 'cosine_plain' not in seen.shown:
        return None
    return Picture(
        'angles',
        'Angle between query and prototypes',
        '0° is the same direction. The star is the true class; the class at the smallest angle is '
        'the answer. As in the appendix of MASTAF, Fig. 1.',
        episode_figures.angles(
            {
                title: seen.shown[f'cosine_{name}'][seen.position]
                for title, name in ANGLES.items()
                if f'cosine_{name}' in seen.shown
            },
            seen.names,
            seen.label,
        ),
    )


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
