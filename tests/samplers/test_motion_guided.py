"""Sampling by motion against a slow implementation, and what must hold for any clip."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsar_jax.data.frame_sampling import frame_indices
from fsar_jax.samplers import motion_guided
from fsar_jax.samplers.motion_guided import MotionGuidedSampler

motion_indices = partial(jax.jit, static_argnums=(1,))(motion_guided.motion_indices)


def walk(steps, size=4, seed=0):
    """A video [M, size, size, 3] whose frames t and t - 1 differ by about steps[t] on average."""
    rng = np.random.default_rng(seed)
    changes = np.asarray(steps)[:, None, None, None] * rng.uniform(
        0.5, 1.5, (len(steps), size, size, 3)
    )
    return np.cumsum(changes * rng.choice([-1, 1], changes.shape), axis=0).astype(np.float32)


def one_by_one(video, count, mu, draws):
    """The frame indices of one video, in float64 and with loops."""
    video = np.asarray(video, np.float64)
    motion = [np.abs(video[t] - video[t - 1]).mean() for t in range(1, len(video))]
    motion = [motion[0], *motion]
    if sum(motion) == 0:
        motion = [1.0] * len(motion)
    share = np.array([(s / sum(motion)) ** mu for s in motion])
    share = share / share.sum()
    taken = []
    for i in range(count):
        reached, t = share[0], 0
        while reached <= (i + draws[i]) / count and t < len(video) - 1:
            t += 1
            reached += share[t]
        while taken and t <= taken[-1]:
            t += 1
        taken.append(t)
    for i in range(count):
        taken[i] = min(taken[i], len(video) - count + i)
    return taken


@pytest.mark.parametrize('mu', [0.5, 1.0])
def test_indices_equal_the_slow_ones(mu):
    rng = np.random.default_rng(1)
    videos = np.stack(
        [
            walk(rng.gamma(shape, size=20), seed=b)
            for b, shape in enumerate([0.05, 0.2, 0.2, 1, 1, 5])
        ]
    )
    draws = rng.random((6, 8))
    for u in (draws, np.full((6, 8), 0.5)):
        found = motion_indices(videos, 8, mu, None if (u == 0.5).all() else u)
        assert found.dtype == jnp.int32
        np.testing.assert_array_equal(
            found, [one_by_one(video, 8, mu, row) for video, row in zip(videos, u)]
        )


def still(length):
    return np.full((length, 2, 2, 3), 7, np.uint8)


def cut(length, at):
    """Nothing moves but for one cut before frame `at`: all motion in one frame, or in the first
    two."""
    video = still(length)
    video[at:] = 200
    return video


@pytest.mark.parametrize('count', [1, 5, 12])
def test_indices_are_ascending_and_distinct(count):
    noise = np.random.default_rng(0).integers(0, 256, (12, 2, 2, 3), np.uint8)
    uneven = [walk(steps, size=2) for steps in ([1e-6] * 11 + [1e6], [1e6] + [1e-6] * 11)]
    cuts = [cut(12, at) for at in (1, 2, 6, 10, 11)]
    videos = np.stack([still(12), *cuts, *uneven, noise]).astype(np.float32)
    for place in (None, 0.0, 1 - 1e-7):
        draws = None if place is None else np.full((len(videos), count), place, np.float32)
        indices = np.asarray(motion_indices(videos, count, 0.5, draws))
        assert np.all(np.diff(indices, axis=1) > 0) and indices.min() >= 0 and indices.max() < 12


@pytest.mark.parametrize('length, count', [(20, 8), (16, 8), (7, 7), (9, 2), (1, 1)])
def test_still_clip_is_sampled_uniformly(length, count):
    np.testing.assert_array_equal(
        np.asarray(motion_indices(still(length)[None], count, 0.5))[0],
        frame_indices(length, count, 'segment'),
    )


def test_repeats_go_to_the_next_frames_and_back_from_the_end():
    videos = np.stack([cut(12, 6), cut(12, 11)])
    np.testing.assert_array_equal(motion_indices(videos, 4, 0.5), [[6, 7, 8, 9], [8, 9, 10, 11]])


def test_window_with_motion_gets_more_frames_and_smoothing_fewer():
    steps = np.full(20, 0.1)
    steps[8:14] = 2.0
    inside = lambda mu: float(
        np.mean(np.isin(motion_indices(walk(steps)[None], 8, mu), range(8, 14)))
    )
    uniform = np.mean(np.isin(frame_indices(20, 8, 'segment'), range(8, 14)))
    assert inside(0.0) == uniform
    assert inside(1.0) >= inside(0.5) > uniform


def test_the_scale_of_the_pixels_does_not_matter():
    video = np.random.default_rng(3).integers(0, 256, (1, 20, 2, 2, 3), np.uint8)
    np.testing.assert_array_equal(
        motion_indices(video, 8, 0.5), motion_indices(video.astype(np.float32) / 255, 8, 0.5)
    )


def test_module_takes_frames_at_test_and_draws_them_in_training():
    videos = np.random.default_rng(4).integers(0, 256, (3, 20, 2, 2, 3), np.uint8)
    sampler = MotionGuidedSampler(frames=8)
    sampled = jax.jit(sampler.apply)({}, videos)
    taken = np.asarray(sampled['frames'])
    np.testing.assert_array_equal(sampled['indices'], motion_indices(videos, 8, 0.5))
    assert taken.dtype == jnp.uint8
    for b, indices in enumerate(np.asarray(motion_indices(videos, 8, 0.5))):
        np.testing.assert_array_equal(taken[b], videos[b, indices])
    draw = jax.jit(
        lambda seed: sampler.apply({}, videos, True, rngs={'sampler': jax.random.key(seed)})[
            'frames'
        ]
    )
    assert draw(0).shape == (3, 8, 2, 2, 3)
    np.testing.assert_array_equal(draw(0), draw(0))
    assert not np.array_equal(draw(0), draw(1))


def test_too_few_frames_are_named():
    with pytest.raises(
        ValueError, match='cannot take 8 of 5 scanned frames by motion: lower config.episode.frames'
    ):
        motion_indices(still(5)[None], 8, 0.5)
