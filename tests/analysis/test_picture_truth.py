"""The numbers below the pictures, by hand."""

import numpy as np
import pytest
from test_misalignment import KnownDataset
from tiny_evaluation import make_config

from fsar_jax.analysis import picture_truth
from fsar_jax.analysis.episode_report import Truth
from fsar_jax.analysis.picture_truth import TRUTH
from fsar_jax.data import episodes as episode_lists
from fsar_jax.layers import frame_tuples


def test_the_words_for_a_query_are_left_out_where_nothing_is_known():
    values = np.array([[0.25, np.nan], [np.nan, np.nan]])
    measure = picture_truth.Measure('activation', 'share', values, np.full((2, 2), 0.1), 'chance')
    assert measure.of_query(0) == ('share 0.25', 'chance: 0.10')
    assert measure.of_query(1) is None


def test_what_is_bright_inside_a_box():
    maps = np.full((1, 2, 8, 8), 3.0)
    maps[0, :, 2:4, 2:4] = 4.0  # the only places above the least of the row
    maps[0, :, 6, 6] = 8.0
    boxes = np.array([[[2.0, 2.0, 4.0, 4.0], [np.nan] * 4]])
    [found] = picture_truth.activation_measures({'backbone': maps}, boxes, 8)
    assert found.values[0, 0] == 4 / 9 and found.compared[0, 0] == 4 / 64
    assert np.isnan(found.values[0, 1])
    words, compared = found.of_query(0)
    assert words.startswith('backbone: ') and words.endswith(' 0.44')
    assert compared == 'of the frame: 0.06'


def test_matches_join_frames_of_one_moment_or_do_not():
    tuples = frame_tuples(4, 2)  # (0,1), (0,2), (0,3), (1,2), (1,3), (2,3)
    moments = np.array([0.0, 0.0, 0.5, 1.0])
    attention = np.zeros((2, 6, 1, 6))
    attention[0, range(6), 0, range(6)] = [3, 0, 0, 2, 0, 1]  # each tuple with itself
    attention[1, range(6), 0, 5] = [3, 2, 1, 0, 0, 0]  # all with the end
    found, same = picture_truth.match_measures(
        attention, tuples, np.stack([moments] * 2), np.stack([moments] * 2)[:, None]
    )
    # (0,1), (0,2) and (0,3) to (2,3): 0.5 and 1, 0.5 and 0.5, 0.5 and 0
    np.testing.assert_allclose(found.values, [0, (0.75 + 0.5 + 0.25) / 3])
    every = [
        np.abs(moments[tuples[row]] - moments[tuples]).mean() for row in (0, 1, 2)
    ]  # of the second query
    assert found.compared[1] == pytest.approx(np.mean(every))
    assert same.compared.tolist() == [0, 0] and same.other == "frame by frame"


def test_a_path_is_as_late_as_the_support():
    query = np.array([[0.0, 1 / 3, 2 / 3, 1.0, 1.0, 1.0]])
    support = np.array([[0.0, 0.0, 0.0, 1 / 3, 2 / 3, 1.0]])  # two frames later
    path = np.zeros((1, 6, 6))
    path[0, range(4), range(2, 6)] = 1
    apart, later = picture_truth.path_measures(path, query, support)
    assert apart.values == pytest.approx(0) and later.values == pytest.approx(2)
    assert later.compared == pytest.approx(2) and later.other == TRUTH
    assert apart.compared == pytest.approx(np.abs(query - support).mean())
    beyond = np.where(np.arange(6) < 5, support, np.nan)  # black frames do not count
    apart, _ = picture_truth.path_measures(path, query, beyond)
    assert apart.values == pytest.approx(0)


def test_offsets_that_are_right_leave_nothing():
    support = np.tile([0.0, 0.0, 4.0, 4.0], (1, 3, 1))
    query = support + [4.0, 2.0, 4.0, 2.0]
    left, right, down = picture_truth.offset_measures(
        np.tile([0.5, 0.25], (1, 3, 1)), query, support, 16
    )
    assert left.values == pytest.approx(np.zeros((1, 3))) and left.compared[0, 0] == pytest.approx(
        np.hypot(0.5, 0.25)
    )
    assert right.compared[0, 0] == 0.5 and down.compared[0, 0] == 0.25


def test_the_nearest_class_of_each_stage():
    classes = np.eye(3)
    query = np.array([[2.0, 1.0, 0.0], [0.0, 0.2, 0.1], [0.1, 0.9, 0.3]])
    near = {'backbone': picture_truth.cosines(query, classes)}
    near['aligned'] = picture_truth.cosines(np.stack([query] * 3, 1), np.stack([classes] * 3))
    for found in picture_truth.nearest_measures('features', near, np.array([0, 1, 2])):
        assert found.values.tolist() == [1, 1, 0] and found.compared.tolist() == [1 / 3] * 3


def test_moments_and_boxes_follow_a_temporal_transform():
    """The test rule takes frames 1, 3, 5 and 8 of 10; the action of every clip takes 2 to 5, and
    its object is not visible in frame 4."""
    config, dataset = make_config(), KnownDataset()
    config.episode.image_size = 12
    episodes = episode_lists.draw_episodes(dataset, 3, 2, 1, 0, 1)
    truth = Truth.of(dataset, episodes)
    maps = np.zeros((3, 4, 1, 1, 8))
    shown = {'query_maps': maps}
    plain = picture_truth.clips_of(shown, truth, config)
    np.testing.assert_array_equal(plain.read[0], [1, 3, 5, 8])
    np.testing.assert_allclose(plain.moment, np.tile([0, 1 / 3, 1, 1], (9, 1)))
    np.testing.assert_allclose(plain.span, np.tile([0.5, 2.0], (9, 1)))
    early = {'support_indices': np.zeros((3, 2, 4), int), 'query_indices': np.zeros((3, 4), int)}
    only_first = picture_truth.clips_of(shown | early, truth, config)  # frame 1, before the action
    assert (only_first.read == 1).all() and np.isnan(only_first.span).all()
    windows = np.tile([1 / 3, 0.0], (9, 1))  # from frame 3 to 5
    shown |= {'support_window': windows[:6].reshape(3, 2, 2), 'query_window': windows[6:]}
    moved = picture_truth.clips_of(shown, truth, config)
    np.testing.assert_array_equal(moved.read, plain.read)
    np.testing.assert_allclose(moved.moment[0], np.array([3, 11 / 3, 13 / 3, 5]) / 3 - 2 / 3)
    visible = np.isfinite(moved.moved_boxes[0, :, 0])
    assert visible.tolist() == [True, False, False, True]  # frames 3, 4, 4 and 5
    np.testing.assert_array_equal(moved.boxes, plain.boxes)
    shown['query_window'] = np.tile([1.0, 1.0], (3, 1))  # the second half lies beyond the clip
    assert np.isnan(picture_truth.clips_of(shown, truth, config).moment[-1, 2:]).all()
