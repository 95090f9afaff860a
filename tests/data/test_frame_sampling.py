"""Frame indices: the published tables exactly, and what every rule promises."""

import pathlib

import numpy as np
import pytest

from fsar_jax.data import frame_sampling

FIXTURES = pathlib.Path(__file__).parents[1] / 'fixtures'
TABLES = {4: 'frame_indices_L4_a.npz', 8: 'frame_indices_L8_a.npz'}


class Draws:
    """Stands in for a generator: hands out the listed integers and records the limits it was asked
    for."""

    def __init__(self, *values):
        self.values, self.limits = list(values), []

    def integers(self, low, high, endpoint):
        assert endpoint
        self.limits += [low, high]
        return self.values.pop(0)


@pytest.mark.parametrize('length', TABLES)
def test_test_rule_equals_the_published_reader(length):
    table = np.load(FIXTURES / TABLES[length])
    ours = [frame_sampling.frame_indices(n, length, 'trx') for n in table['in/n_frames'].tolist()]
    np.testing.assert_array_equal(ours, table['out/test_indices'])


@pytest.mark.parametrize('length', TABLES)
def test_training_rule_equals_the_published_reader_for_the_same_draws(length):
    table = np.load(FIXTURES / TABLES[length])
    limits = dict(zip(table['in/n_frames'].tolist(), table['out/train_draw_limits'].tolist()))
    for (n, start, end), expected in zip(
        table['in/train_draws'].tolist(), table['out/train_indices']
    ):
        draws = Draws(start, end)
        np.testing.assert_array_equal(
            frame_sampling.frame_indices(n, length, 'trx', draws), expected
        )
        assert draws.limits == limits[n], (
            f'start and end of a clip of {n} frames are drawn from the wrong frames'
        )


@pytest.mark.parametrize('length', TABLES)
def test_draw_limits_equal_the_published_reader(length):
    table = np.load(FIXTURES / TABLES[length])
    ours = [frame_sampling.frame_index_limits(n, length) for n in table['in/n_frames'].tolist()]
    np.testing.assert_array_equal(ours, table['out/train_draw_limits'])


@pytest.mark.parametrize('rule', frame_sampling.RULES)
@pytest.mark.parametrize('train', [False, True])
def test_every_rule_gives_ascending_frames_of_the_clip(rule, train):
    rng = np.random.default_rng(0)
    for n in range(1, 70):
        for length in (1, 2, 8, 16):
            indices = frame_sampling.frame_indices(n, length, rule, rng if train else None)
            assert indices.dtype == np.int32 and indices.shape == (length,)
            assert indices.min() >= 0 and indices.max() < n
            assert (np.diff(indices) >= 0).all()


@pytest.mark.parametrize('rule', frame_sampling.RULES)
def test_a_clip_of_exactly_l_frames_is_used_whole(rule):
    np.testing.assert_array_equal(frame_sampling.frame_indices(8, 8, rule), np.arange(8))


@pytest.mark.parametrize('rule', frame_sampling.RULES)
def test_short_clips_repeat_every_frame_equally(rule):
    assert frame_sampling.frame_indices(2, 8, rule).tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert frame_sampling.frame_indices(3, 4, rule).tolist() == [0, 0, 1, 2]
    assert frame_sampling.frame_indices(1, 4, rule).tolist() == [0, 0, 0, 0]


def test_segment_takes_the_centre_at_test_and_any_frame_of_its_segment_in_training():
    assert frame_sampling.frame_indices(16, 4, 'segment').tolist() == [2, 6, 10, 14]
    rng = np.random.default_rng(0)
    drawn = np.array([frame_sampling.frame_indices(16, 4, 'segment', rng) for _ in range(400)])
    for segment in range(4):
        assert set(drawn[:, segment]) == set(range(4 * segment, 4 * segment + 4))


def test_uniform_spans_the_clip_and_has_no_jitter():
    expected = [0, 3, 6, 9]
    assert frame_sampling.frame_indices(10, 4, 'uniform').tolist() == expected
    assert (
        frame_sampling.frame_indices(10, 4, 'uniform', np.random.default_rng(1)).tolist()
        == expected
    )


def test_wrong_arguments_are_named():
    with pytest.raises(
        ValueError, match=r"config.data.sampling='dense' is not one of 'trx', 'uniform', 'segment'"
    ):
        frame_sampling.frame_indices(10, 4, 'dense')
    with pytest.raises(ValueError, match='cannot take 4 frames from a clip of 0'):
        frame_sampling.frame_indices(0, 4, 'trx')
