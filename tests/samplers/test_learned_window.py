"""The learned place of a window: against loops in numpy, its gradient, and what it may look at."""

import functools

import jax
import numpy as np

from fsar_jax.samplers.learned_window import WindowPolicy


def slow(params, maps):
    """One clip after the other, one frame after the other, float64; the GRU as torch writes it."""
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    linear = lambda x, p: (
        x @ np.float64(p['kernel']) + (np.float64(p['bias']) if 'bias' in p else 0)
    )
    gru, places = params['gru'], []
    for clip in np.float64(maps):
        state, of_clip = np.zeros(gru['hn']['kernel'].shape[0]), []
        for frame in clip:
            x = np.tanh(linear(frame, params['squeeze'])).reshape(-1)
            x = np.tanh(linear(x, params['encoder']))
            reset = sigmoid(linear(x, gru['ir']) + linear(state, gru['hr']))
            update = sigmoid(linear(x, gru['iz']) + linear(state, gru['hz']))
            new = np.tanh(linear(x, gru['in']) + reset * linear(state, gru['hn']))
            state = (1 - update) * new + update * state
            of_clip.append(sigmoid(linear(state, params['place'])))
        places.append(of_clip)
    return np.array(places)


def drawn(policy, maps):
    shapes = jax.eval_shape(policy.init, jax.random.key(0), maps)['params']
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape).astype(np.float32), shapes)


def test_places_and_their_gradients_equal_those_of_a_slow_one():
    rng, policy = np.random.default_rng(0), WindowPolicy(3)
    maps = rng.normal(size=(2, 4, 2, 2, 5)).astype(np.float32)
    params, weight = drawn(policy, maps), rng.normal(size=(2, 4, 2))

    def loss(params, maps):
        places = policy.apply({'params': params}, maps)
        return (places * weight).sum(), places

    (slopes, of_maps), places = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, maps)
    np.testing.assert_allclose(places, slow(params, maps), atol=1e-5)
    assert not of_maps.any()  # as published
    for path, slope in jax.tree_util.tree_leaves_with_path(slopes):
        step = rng.normal(size=slope.shape)

        def moved(side):
            move = lambda p, x: np.float64(x) + (side * 1e-6 * step if p == path else 0)
            there = jax.tree_util.tree_map_with_path(move, params)
            return (slow(there, maps) * weight).sum()

        finite = (moved(1) - moved(-1)) / 2e-6
        assert np.abs(slope).max() > 1e-4
        np.testing.assert_allclose((slope * step).sum(), finite, rtol=1e-3, atol=1e-5)


def test_a_clip_does_not_depend_on_the_others_and_a_frame_on_those_before():
    rng, policy = np.random.default_rng(0), WindowPolicy(3)
    maps = rng.normal(size=(2, 4, 2, 2, 5)).astype(np.float32)
    changed = maps.copy()
    changed[1, 2:] += 1
    run = jax.jit(functools.partial(policy.apply, {'params': drawn(policy, maps)}))
    before, after = np.asarray(run(maps)), np.asarray(run(changed))
    np.testing.assert_allclose(before[0], after[0], atol=1e-6)
    np.testing.assert_allclose(before[1, :2], after[1, :2], atol=1e-6)
    assert np.abs(before[1, 2:] - after[1, 2:]).min() > 0
