"""Measures of misalignment by hand, and the report over episodes whose truth is known."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_evaluation import TinyDataset, make_config

from fsar_jax.analysis import misalignment
from fsar_jax.analysis.episode_report import Truth, measure, truth_measures
from fsar_jax.data import episodes as episode_lists
from fsar_jax.evaluation.evaluate import TrainedModel
from fsar_jax.learner import create_learner

pytestmark = pytest.mark.slow
CLIP = np.array([1, 5, 9, 13, 17])  # five sampled frames of a clip of 19


def test_the_action_starts_at_the_first_frame_that_is_half_sure():
    probabilities = np.array([[0.1, 0.4, 0.5, 0.2], [0.9, 0.1, 0.1, 0.1], [0.4, 0.4, 0.4, 0.4]])
    np.testing.assert_array_equal(misalignment.action_start(probabilities), [2, 0, 4])


def test_aem_is_a_mean_over_pairs_of_one_minus_cosine():
    assert misalignment.aem_score([[1, 0], [3, 4]], [[0, 2], [3, 4]]) == pytest.approx(0.5)
    assert misalignment.aem_score([1, 0], [1, 1]) == pytest.approx(1 - 1 / np.sqrt(2))


def test_aem_of_all_pairs_is_that_of_every_pair():
    seen = np.random.default_rng(0).random((7, 4))
    pairs = [(i, j) for i in range(7) for j in range(7) if i != j]
    by_pair = misalignment.aem_score(*(seen[list(side)] for side in zip(*pairs)))
    assert misalignment.aem_of_all_pairs(seen) == pytest.approx(by_pair)
    assert misalignment.aem_of_all_pairs([[0, 2.0], [0, 5.0]]) == pytest.approx(0)


def test_the_probability_of_a_class_is_the_answer_to_a_still_of_the_frame():
    support = jax.random.normal(jax.random.key(0), (3, 2, 4, 6))
    frames = jax.random.normal(jax.random.key(1), (5, 4, 6))
    found = misalignment.class_probabilities(frames, support)
    np.testing.assert_allclose(found.sum(-1), 1.0, rtol=1e-5)
    common = np.asarray(support).mean((0, 1, 2))
    mean, frame = np.asarray(support).mean((1, 2)) - common, np.asarray(frames[3, 2]) - common
    cosine = mean @ frame / np.linalg.norm(mean, axis=-1) / np.linalg.norm(frame)
    np.testing.assert_allclose(
        found[3, 2], np.exp(4 * cosine) / np.exp(4 * cosine).sum(), rtol=1e-5
    )
    np.testing.assert_allclose(
        misalignment.class_probabilities(frames + 100.0, support + 100.0), found, rtol=1e-2
    )


def test_the_cost_of_an_alignment_is_the_sum_of_its_parts():
    offsets = np.zeros((2, 2))
    offsets[1] = 0.6, -0.8
    cost = misalignment.alignment_cost(np.array([0.5, -0.25]), np.full((2, 2), 0.5), offsets)
    assert {name: float(value) for name, value in cost.items()} == pytest.approx(
        {'transform': 0.75, 'rearrangement': 1.0, 'offset': 1.0, 'total': 2.75}
    )
    assert set(misalignment.alignment_cost(evolution=np.eye(3)[None])) == {'rearrangement', 'total'}
    assert misalignment.alignment_cost() == {}


def test_times_become_places_of_stored_frames():
    found = misalignment.stored_positions(np.array([-1.0, -0.75, 0.0, 1.0, 1.1]), CLIP)
    np.testing.assert_allclose(found, [1, 3, 9, 17, np.nan])
    uneven = np.array([[0, 1, 10], [0, 5, 10]])
    np.testing.assert_allclose(
        misalignment.stored_positions(np.array([[-0.5, 0.5]] * 2), uneven), [[0.5, 5.5], [2.5, 7.5]]
    )


@pytest.mark.parametrize(
    'window, start, end, expected',
    [
        ((1.0, 0.0), 1, 17, 1.0),  # all of it
        ((0.5, 0.0), 5, 13, 1.0),  # the middle, exactly
        ((-0.5, 0.0), 5, 13, 1.0),  # mirrored
        ((0.5, 0.0), 1, 17, 9 / 17),  # frames 5 … 13 of 1 … 17
        ((0.5, 0.5), 3, 10, 2 / 15),  # 9 … 17 against 3 … 10
        ((0.5, 1.0), 1, 17, 5 / 17),  # half of it beyond the clip: 13 … 17
        ((0.2, -0.8), 10, 17, 0.0),
        ((0.1, 0.95), 0, 0, 0.0),
        ((0.2, 1.5), 1, 17, 0.0),  # all of it beyond
    ],
)
def test_overlap_with_the_true_action(window, start, end, expected):
    assert misalignment.temporal_overlap(np.array(window), CLIP, start, end) == pytest.approx(
        expected
    )


def test_correlation_of_offsets_leaves_out_what_is_not_visible():
    rng = np.random.default_rng(0)
    true = rng.standard_normal((4, 5, 2))
    predicted = true * [0.5, -2.0] + [0.1, 0.2]
    true[1, 2:] = np.nan
    np.testing.assert_allclose(misalignment.offset_correlation(predicted, true), [1.0, -1.0])
    assert np.isnan(misalignment.offset_correlation(np.zeros_like(true), true)).all()
    assert np.isnan(misalignment.offset_correlation(predicted, np.full_like(true, np.nan))).all()
    other = rng.standard_normal((4, 5, 2))
    known = np.isfinite(true[..., 0])
    expected = [np.corrcoef(other[known][:, i], true[known][:, i])[0, 1] for i in (0, 1)]
    np.testing.assert_allclose(misalignment.offset_correlation(other, true), expected)


class KnownDataset(TinyDataset):
    """With the truth: the action of clip i takes frames 2 … 5, its object is 4 pixels wide at x = i
    % 5, not visible in frame 4."""

    def read(self, position):
        boxes = np.tile(np.array([position % 5, 0, position % 5 + 4, 4], np.float32), (10, 1))
        boxes[4] = 0
        return super().read(position) | {
            'action_start': np.int32(2),
            'action_end': np.int32(5),
            'boxes': boxes,
        }


@pytest.fixture(scope='module')
def setting():
    config = make_config(measured_episodes=3)
    with config.unlocked():
        config.model.enrichment.temporal_transform = True
        config.model.matcher.name = 'action_coordination'
        config.episode.image_size = 12
    dataset = KnownDataset()
    return config, dataset, episode_lists.draw_episodes(dataset, 3, 2, 1, 0, 5)


def test_truth_by_hand(setting):
    config, dataset, episodes = setting
    # The test rule takes frames 1, 3, 5, 8 of 10; (a, b) = (1/3, 0) is the time from 3 to 5, (1, 0)
    # that from 1 to 8.
    windows = np.broadcast_to([1 / 3, 0.0], (5, 9, 2))
    truth = Truth.of(dataset, episodes)
    x = lambda positions: (positions % 5 + 2) / 6  # half a frame is 6 pixels
    e, q = np.indices(episodes.query.shape)
    true = x(episodes.query) - x(episodes.support).mean(2)[e, episodes.labels]
    offsets = np.zeros((5, 3, 4, 2))
    offsets[..., 0] = 0.5 * true[..., None]
    offsets[:, :, 1] = 9.0  # at place 3 + 2/3, frame 4: no box
    found = truth_measures(truth, episodes, config, windows, offsets)
    assert found['temporal_overlap'] == pytest.approx({'whole_clip': 4 / 8, 'window': 3 / 4})
    assert found['offset_correlation'] == [pytest.approx(1.0), None]  # nothing moves along y
    assert found['displacement'] == pytest.approx(
        {'before': np.abs(true).mean(), 'after': np.abs(true).mean() / 2}
    )
    config = config.copy_and_resolve_references()
    config.model.variant = 'paper'
    assert truth_measures(truth, episodes, config, windows, offsets)['offset_correlation'][
        0
    ] == pytest.approx(-1.0)
    # A backbone over clips that leaves two time steps of four: as frames 1 and 3 of each clip.
    fewer = truth_measures(truth, episodes, config, None, np.zeros((5, 3, 2, 2)))
    assert fewer['displacement']['before'] == fewer['displacement']['after'] > 0
    plain = truth_measures(truth, episodes, config, None, None)
    assert plain == {'temporal_overlap': {'whole_clip': pytest.approx(4 / 8)}}
    assert Truth.of(TinyDataset(), episodes) is None


def test_report_of_a_learner_that_aligns_and_of_one_that_does_not(setting, shallow):
    config, dataset, episodes = setting
    for aligns in (True, False):
        if not aligns:
            config = config.copy_and_resolve_references()
            config.model.enrichment.temporal_transform = False
            config.model.matcher.name = 'prototypes'
        learner = create_learner(config.model)
        clips = jnp.zeros((3, 2, 4, 12, 12, 3), jnp.uint8)
        key = jax.random.key(0, impl='rbg')  # compiles in a fraction of the time of the default
        variables = jax.jit(learner.init)(key, clips, clips[:, 0])
        model = TrainedModel(learner, variables, config, mesh=None)
        found = measure(model, dataset, episodes)
        json.dumps(found, allow_nan=False)
        assert list(found) == ['misalignment']
        found = found['misalignment']
        stages = ['before', 'after'] if aligns else ['before']
        assert found['episodes'] == 3 and list(found['action_start']) == stages
        assert all(
            len(counts) == 5 and sum(counts) == 9 for counts in found['action_start'].values()
        )
        assert list(found['aem']) == stages + ['rearranged'] * aligns
        assert all(0 <= score <= 1 for score in found['aem'].values())
        if aligns:
            # The start: (a, b) = (tanh 2, 0), offsets 0.
            assert found['alignment_cost']['transform'] == pytest.approx(1 - np.tanh(2), abs=1e-5)
            assert (
                found['alignment_cost']['offset'] == 0
                and found['alignment_cost']['rearrangement'] > 0.1
            )
            displacement = found['truth']['displacement']
            assert displacement['before'] == displacement['after'] > 0 and found['truth'][
                'offset_correlation'
            ] == [None, None]
            assert found['truth']['temporal_overlap']['window'] == pytest.approx(
                found['truth']['temporal_overlap']['whole_clip'], abs=0.05
            )
        else:
            assert 'alignment_cost' not in found and list(found['truth']) == ['temporal_overlap']
