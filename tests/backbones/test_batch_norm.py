"""Batch normalisation against a slow loop in float64: groups, vmap, running values, gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsar_jax.backbones.batch_norm import BatchNorm


def slow_batch_norm(x, mean, var, scale, bias, groups=1):
    """x [B, h, w, C] in float64: output, running mean and variance after the call, one channel and
    chunk at a time."""
    x, y = x.astype(np.float64), np.zeros(x.shape)
    new_mean, new_var = np.array(mean, np.float64), np.array(var, np.float64)
    size = len(x) // groups
    for g in range(groups):
        part = slice(g * size, (g + 1) * size)
        for c in range(x.shape[-1]):
            values = x[part, ..., c]
            y[part, ..., c] = (values - np.mean(values)) / np.sqrt(np.var(values) + 1e-5) * scale[
                c
            ] + bias[c]
            if g == 0:
                new_mean[c] = 0.9 * new_mean[c] + 0.1 * np.mean(values)
                new_var[c] = 0.9 * new_var[c] + 0.1 * np.var(values, ddof=1)
    return y, new_mean, new_var


def variables_of(rng, channels=3):
    draw = lambda low: (low + rng.random(channels)).astype(np.float32)
    return {
        'params': {'scale': draw(0.5), 'bias': draw(-0.5)},
        'batch_stats': {'mean': draw(-0.5), 'var': draw(0.5)},
    }


def run_train(module, variables, x):
    y, updated = module.apply(variables, x, True, mutable=['batch_stats'])
    return y, updated['batch_stats']


def slow(x, variables, groups=1):
    stats, params = variables['batch_stats'], variables['params']
    return slow_batch_norm(x, stats['mean'], stats['var'], params['scale'], params['bias'], groups)


@pytest.mark.parametrize('groups', [1, 2, 4])
def test_groups_equal_a_loop(groups):
    rng = np.random.default_rng(0)
    variables, x = variables_of(rng), rng.normal(2, 3, (8, 2, 3, 3)).astype(np.float32)
    y, stats = run_train(BatchNorm(groups=groups), variables, x)
    expected, mean, var = slow(x, variables, groups)
    np.testing.assert_allclose(y, expected, atol=2e-5)
    np.testing.assert_allclose(stats['mean'], mean, atol=1e-6)
    np.testing.assert_allclose(stats['var'], var, rtol=1e-6)


@pytest.mark.parametrize('groups', [1, 2])
def test_parts_of_a_batch_equal_batches_of_their_own(groups):
    rng = np.random.default_rng(6)
    variables = variables_of(rng)
    x, cotangent = rng.normal(0, 1, (2, 8, 2, 2, 3)).astype(np.float32)
    x[6:] += 3  # far from the rest: shared statistics would show

    def together(x):
        return run_train(BatchNorm(groups=groups, parts=(3, 1)), variables, x)

    def apart(x):
        first, stats = run_train(BatchNorm(groups=groups), variables, x[:6])
        rest, stats = run_train(BatchNorm(groups=groups), variables | {'batch_stats': stats}, x[6:])
        return jnp.concatenate([first, rest]), stats

    def with_gradient(run):
        loss = lambda x: (jnp.sum((of_x := run(x))[0] * cotangent), of_x)
        (_, outputs), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(x)
        return outputs, gradient

    chex.assert_trees_all_close(with_gradient(together), with_gradient(apart), rtol=1e-5, atol=1e-5)


def test_vmap_gives_each_episode_its_own_statistics():
    rng = np.random.default_rng(1)
    variables, episodes = variables_of(rng), rng.normal(0, 1, (3, 4, 2, 2, 3)).astype(np.float32)
    episodes += np.arange(3).reshape(
        3, 1, 1, 1, 1
    )  # episodes far apart: pooled statistics would show
    run = jax.jit(jax.vmap(lambda x: run_train(BatchNorm(), variables, x)))
    y, stats = run(episodes)
    assert stats['mean'].shape == stats['var'].shape == (3, 3)
    for i, x in enumerate(episodes):
        expected, mean, var = slow(x, variables)
        np.testing.assert_allclose(y[i], expected, atol=2e-5)
        np.testing.assert_allclose(stats['mean'][i], mean, atol=1e-6)
        np.testing.assert_allclose(stats['var'][i], var, rtol=1e-5)


def test_frozen_and_evaluation_use_the_running_values_and_keep_them():
    rng = np.random.default_rng(2)
    variables, x = variables_of(rng), rng.normal(0, 1, (4, 2, 2, 3)).astype(np.float32)
    p, s = variables['params'], variables['batch_stats']
    expected = (x - s['mean']) / np.sqrt(s['var'] + 1e-5) * p['scale'] + p['bias']
    np.testing.assert_allclose(BatchNorm().apply(variables, x, False), expected, atol=1e-5)
    y, stats = run_train(BatchNorm(frozen=True), variables, x)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_array_equal(stats['mean'], s['mean'])
    np.testing.assert_array_equal(stats['var'], s['var'])


def test_gradient_equals_finite_differences_of_the_loop():
    rng = np.random.default_rng(3)
    variables, x = variables_of(rng), rng.normal(0, 1, (4, 1, 2, 3)).astype(np.float32)
    cotangent, direction = rng.normal(size=(2, *x.shape))
    loss = lambda x: jnp.sum(run_train(BatchNorm(groups=2), variables, x)[0] * cotangent)
    along = np.sum(np.asarray(jax.jit(jax.grad(loss))(x)) * direction)
    step = 1e-5
    plus, minus = (
        np.sum(slow(x + s * step * direction, variables, 2)[0] * cotangent) for s in (1, -1)
    )
    np.testing.assert_allclose(along, (plus - minus) / (2 * step), rtol=1e-4)


def test_large_mean_does_not_cancel_the_variance():
    x = (1000 + np.random.default_rng(4).normal(0, 0.1, (16, 4, 4, 1))).astype(np.float32)
    variables = jax.jit(BatchNorm().init)(jax.random.key(0), x)
    _, stats = run_train(BatchNorm(), variables, x)
    np.testing.assert_allclose(
        (stats['var'] - 0.9) / 0.1, np.var(x.astype(np.float64), ddof=1), rtol=2e-3
    )


def test_init_starts_at_mean_0_variance_1_scale_1():
    x = np.ones((2, 2, 2, 3), np.float32) * 5
    variables = BatchNorm().init(jax.random.key(0), x, True)
    assert {k: v.tolist() for k, v in variables['batch_stats'].items()} == {
        'mean': [0.0] * 3,
        'var': [1.0] * 3,
    }
    assert {k: v.tolist() for k, v in variables['params'].items()} == {
        'scale': [1.0] * 3,
        'bias': [0.0] * 3,
    }


def test_bad_batches_are_one_line_errors():
    variables = variables_of(np.random.default_rng(5))
    with pytest.raises(ValueError, match='needs a multiple of 4 frames, got 6'):
        run_train(BatchNorm(groups=4), variables, np.zeros((6, 1, 1, 3), np.float32))
    with pytest.raises(ValueError, match='more than one value per channel'):
        run_train(BatchNorm(), variables, np.zeros((1, 1, 1, 3), np.float32))
