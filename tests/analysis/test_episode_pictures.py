"""Every picture of every method, on a tiny model with random parameters."""

import numpy as np
import pytest
from tiny_run import random_variables, shallow_networks, tiny_config

from fsar_jax.analysis import episode_pictures as pictures
from fsar_jax.analysis import looking, over_episodes
from fsar_jax.analysis.picture_truth import Measure
from fsar_jax.analysis.run_report import Picture, write_report
from fsar_jax.evaluation.evaluate import TrainedModel, episodes_of
from fsar_jax.learner import create_learner
from fsar_jax.mesh import episode_mesh
from fsar_jax.samplers import amplifier
from fsar_jax.training.inputs import open_split
from fsar_jax.training.state import example_episode

SAMPLER = {
    'model.sampler.dense_frames': 6,
    'model.sampler.scan_size': 64,
    'model.sampler.hidden': 8,
    'model.sampler.task_dim': 4,
}


@pytest.fixture(scope='module')
def subjects(tiny_data):
    kept = {}

    def get(method, **changes):
        if method not in kept:
            settings = {'data.dir': str(tiny_data), **(SAMPLER if method == 'vim' else {})}
            config = tiny_config(method, {**settings, **changes}, width=8)
            with shallow_networks():
                learner = create_learner(config.model)
            variables = random_variables(learner, *example_episode(config))
            dataset = open_split(config, 'test', config.eval.query)
            model = TrainedModel(learner, variables, config, episode_mesh(1))
            kept[method] = looking.Subject(method, model, dataset, episodes_of(dataset, config, 6))
        return kept[method]

    return get


# What a method has beside the activation maps, which all have.
EPISODE = {
    'protonet': [],
    'trx': ['matches'],
    'strm': ['matches'],
    'otam': ['alignment'],
    'hyrsm': ['alignment'],
    'ta2n': ['alignment', 'coordination'],
    'mastaf': ['angles'],
    'vim': ['alignment', 'coordination', 'sampling'],
}
STAGES = {
    'trx': ['backbone'],
    'strm': ['backbone', 'patch enrichment', 'frame enrichment'],
    'ta2n': ['backbone', 'temporal transform', 'aligned'],
    'vim': ['all frames', 'chosen frames', 'backbone', 'temporal transform', 'aligned'],
}


@pytest.mark.slow
@pytest.mark.parametrize('method', EPISODE)
def test_every_method_has_its_pictures_and_a_line_for_each_other(subjects, tmp_path, method):
    subject = subjects(method)
    numbers = [3, 0] if method == 'vim' else [3]  # two tasks, for the weights of each
    titles, shown = {}, {}

    def kept():
        for heading, made in pictures.episode_sections(subject, numbers):
            made = list(made)
            titles.update(dict.fromkeys([heading]))
            shown.update({p.name: p.figure for p in made if isinstance(p, Picture)})
            yield heading, made

    page, notes = write_report(tmp_path, method, {}, kept())
    expected = {
        f'episode{number}_{name}' for number in numbers for name in ('activation', *EPISODE[method])
    }
    over_all = {'places', 'task_weights'} if method == 'vim' else set()
    assert shown.keys() == expected | over_all | {'features'}
    for name in shown:
        assert (tmp_path / f'{name}.png').stat().st_size > 3000
        assert (tmp_path / f'{name}.pdf').read_bytes().startswith(b'%PDF')
    assert len(notes) == 6 - len(EPISODE[method]) - 1 + (method != 'vim')  # once, not per episode
    assert all('\n' not in note and ': ' in note for note in notes)
    assert [title.split(':')[0] for title in titles] == [
        *(f'Episode {number}' for number in numbers),
        'Over the episodes above',
        'Features',
    ]
    assert page.read_text().count('<img ') == len(shown)
    if method in STAGES:
        panels = [axis.get_title() for axis in shown['features'].axes]
        assert panels == STAGES[method]
        points = sum(len(c.get_offsets()) for c in shown['features'].axes[0].collections)
        assert points == 2 * (4 - 1) + 2  # all other clips of two classes, and their prototypes


@pytest.mark.slow
def test_the_baseline_stands_beside_the_method(subjects):
    run, against = subjects('strm'), subjects('trx')
    headings = pictures.episode_sections(run, [1], against)
    _, made = next(iter(headings))
    by_name = {p.name: p for p in made if isinstance(p, Picture)}
    matches = by_name['episode1_matches'].figure
    assert [axis.get_title() for axis in matches.axes] == ['trx', 'strm']
    of_trx, of_strm = (
        {line.get_gid(): line.get_xydata()[0, 0] for line in axis.lines} for axis in matches.axes
    )
    assert of_trx == of_strm  # the same tuples of the query
    rows = [text.get_text() for text in by_name['episode1_activation'].figure.axes[0].texts]
    assert [row for row in rows if 'trx' in row or 'strm' in row] == [
        'trx, backbone',
        'strm, backbone',
        'strm, patch enrichment',
        'strm, frame enrichment',
    ]


@pytest.mark.slow
def test_the_sampler_is_drawn_over_all_frames_that_are_read(subjects):
    """The bars are the scores of the M frames, green the greatest L of them."""
    subject = subjects('vim')
    [seen] = looking.look(subject, [2])
    picture = pictures._sampling(seen, subject, None)
    saliency = [i for i in picture.figure.axes[0].images if str(i.get_gid()).startswith('overlay')]
    enlarged = amplifier.enlarge(seen.of_query('saliency'), 32, 32)
    for image, of_frame in zip(saliency, enlarged, strict=True):  # as the amplifier reads it
        np.testing.assert_array_equal(image.get_array(), of_frame)
    bars = [p for p in picture.figure.axes[0].patches if str(p.get_gid()).startswith('bar')]
    scores = seen.of_query('scores')
    assert len(bars) == len(scores) == 6
    heights = np.array([bar.get_height() for bar in bars])
    np.testing.assert_array_equal(np.argsort(heights), np.argsort(scores))
    green = [
        place
        for place, bar in enumerate(bars)
        if bar.get_facecolor()[1] > 0.6 and bar.get_facecolor()[0] < 0.1
    ]
    assert green == sorted(np.argsort(-scores)[:4].tolist())


@pytest.mark.slow
def test_the_query_that_is_drawn_is_the_first_wrong_one(subjects):
    subject = subjects('protonet')
    for seen in looking.look(subject, range(4)):
        right = seen.logits.argmax(-1) == seen.labels
        assert seen.position == (0 if right.all() else np.argmin(right))
        assert seen.names == [
            subject.dataset.class_names[label] for label in subject.episodes.classes[seen.number]
        ]
        clips = subject.dataset.labels[subject.episodes.query[seen.number]]
        np.testing.assert_array_equal(subject.episodes.classes[seen.number][seen.labels], clips)


def test_the_hardest_episodes_have_the_fewest_right_answers():
    assert looking.hardest([3, 1, 2, 1, 0], 3) == [4, 1, 3]
    assert looking.hardest([1, 1], 20) == [0, 1]


@pytest.mark.slow
def test_other_clips_of_the_classes_become_queries_once(subjects):
    subject = subjects('protonet')
    episodes, names = over_episodes.queries_of_classes(subject, 4)
    own = subject.episodes
    assert episodes.query.shape[1] == own.query.shape[1] and len(names) == 2
    np.testing.assert_array_equal(episodes.support, own.support[[4] * len(episodes)])
    labels = subject.dataset.labels[episodes.query]
    np.testing.assert_array_equal(own.classes[4][episodes.labels], labels)
    assert not set(episodes.query.ravel()) & set(own.support[4].ravel())
    assert len(set(episodes.query.ravel())) == 6


@pytest.mark.slow
def test_maps_after_frame_enrichment_are_the_part_along_the_frame(subjects):
    """Of STRM: the mean over the places of what lies along E is the part of H that does, where no
    place points away."""
    [seen] = looking.look(subjects('strm'), [0])
    found = pictures.activations(seen.shown, 0.0)
    assert list(found) == ['backbone', 'patch enrichment', 'frame enrichment']
    assert all(maps.shape == (*seen.query.shape[:2], 32, 32) for maps in found.values())
    cells = np.asarray(seen.shown['query_enriched_patches'])[1, 2]
    frame = np.asarray(seen.shown['query_frame_features'])[1, 2]
    along = np.maximum(cells @ frame / np.linalg.norm(frame), 0)
    # 2 × 2 patches of 2 × 2 cells, of which the first looks at pixel 0 and the last at 16
    np.testing.assert_allclose(found['frame enrichment'][1, 2, 0, 0], along[0], rtol=1e-5)
    np.testing.assert_allclose(found['frame enrichment'][1, 2, -1, -1], along[3], rtol=1e-5)
    np.testing.assert_allclose(
        found['patch enrichment'][1, 2, -1, 0], np.linalg.norm(cells[2]), rtol=1e-5
    )


@pytest.mark.slow
def test_the_matrix_shows_the_frames_that_the_window_reads(subjects):
    [seen] = looking.look(subjects('ta2n'), [3])
    way, shot = seen.support.shape[:2]
    seen.shown['query_window'] = np.tile([0.2, 0.5], (len(seen.labels), 1))
    seen.shown['support_window'] = np.tile([1.0, 0.0], (way, shot, 1))
    axis = pictures._alignment(seen).figure.axes[0]
    drawn = {image.get_extent()[3]: image for image in axis.images[1:] if image.get_extent()[0] < 0}
    clip = pictures._pictures(seen.of_query('clip'))
    # t from 0.3 to 0.7 is frame 1.95 to 2.55 of 0 to 3
    for row, frame in enumerate((2, 2, 2, 3)):
        np.testing.assert_array_equal(drawn[row].get_array(), clip[frame])


def test_how_far_the_weights_of_tasks_are_apart():
    weights = np.zeros((2, 3, 2))
    weights[0] = [[3, 4], [3, 4], [3, 5]]  # two draws are 1 apart
    weights[1] = [[0, 0], [0, 2], [0, 5]]  # and 3; the tasks without noise 5
    within, between, length = over_episodes.spread(weights)
    assert (within, between) == (2, 5)
    assert length == pytest.approx(np.mean([5, 5, 34**0.5, 0, 2, 5]))


def test_what_has_one_number_is_said_once():
    measure = lambda picture, name, value, true, other: Measure(
        picture, name, np.array([value]), np.array([true]), other
    )
    measures = [
        measure('matches', 'apart', 0.1, 0.3, 'with any tuple'),
        measure('matches', 'apart', 0.1, 0.2, 'frame by frame'),
        measure('matches', 'later', 1.0, 2.0, 'the truth'),
        measure('activation', 'bright', np.nan, 0.1, 'of the frame'),
    ]
    assert pictures.in_numbers(measures, 'matches', 0) == (
        ' In numbers: apart 0.10 (with any tuple: 0.30, frame by frame: 0.20); '
        'later 1.00 (the truth: 2.00).'
    )
    assert pictures.in_numbers(measures, 'activation', 0) == ''


def test_a_path_that_others_share_is_drawn_whole():
    path = np.array([[1.0, 0.4, 0.0, 0.0], [0.0, 0.6, 0.5, 0.0], [0.0, 0.0, 0.5, 0.2]])
    # the last frame of the support is dropped by most paths
    assert pictures.path_cells(path, 0).tolist() == [[0, 0], [1, 1], [1, 2]]
    assert pictures.path_cells(path.T, 1).tolist() == [[0, 0], [1, 1], [2, 1]]


@pytest.mark.slow
def test_each_path_has_a_cell_for_the_frames_that_its_line_names(subjects):
    [seen] = looking.look(subjects('otam'), [1])
    lines = {line.get_label(): line for line in pictures._alignment(seen).figure.axes[0].lines}
    columns, rows = (
        lines[f'of the frames of the {side}'].get_data()[axis] - 0.5
        for side, axis in (('support', 0), ('query', 1))
    )
    length = seen.shown['distances'].shape[-1]
    assert sorted(columns) == sorted(rows) == list(range(length))
