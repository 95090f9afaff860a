"""Perturbed top-k: the published numbers, the closed-form Jacobian, the function that is smoothed,
and Optax's estimate."""

from itertools import islice

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fsar_jax.samplers.top_k import evenly_spaced_indicator, hard_top_k, perturbed_top_k

jitted_hard_top_k = jax.jit(hard_top_k, static_argnums=1)


def sorted_top_k(scores, k):
    """The slow and obvious hard top-k: NumPy, one video at a time."""
    indicator = np.zeros((len(scores), k, scores.shape[1]), np.float32)
    for b, row in enumerate(scores):
        indicator[b, np.arange(k), np.sort(np.argsort(-row, kind='stable')[:k])] = 1.0
    return indicator


@pytest.mark.parametrize('name', ['vim_topk_a', pytest.param('vim_topk_b', marks=pytest.mark.slow)])
def test_top_k_equals_published(published, assert_close_to_published, name):
    f = published(name)
    k, sigma = f.meta['k'], np.float32(f.meta['sigma'])
    noise, scores = f.inputs['noise'].swapaxes(0, 1), f.inputs['scores']
    # 16 does not divide the 50 samples: the last chunk is a partial one.
    smoothed = lambda scores, variant: perturbed_top_k(
        noise, scores, k, sigma, f.meta['num_samples'], 16, variant
    )
    gradient_of = lambda s, variant: jax.grad(lambda s: (smoothed(s, variant) * y).sum())(s)
    y = f.cotangents['indicator'].swapaxes(1, 2)
    variants = 'code', 'paper'
    indicator, (gradient, of_paper) = jax.jit(
        lambda s: (smoothed(s, 'code'), [gradient_of(s, variant) for variant in variants])
    )(scores)
    assert_close_to_published(indicator, f.outputs['indicator'].swapaxes(1, 2), 'indicator')
    assert_close_to_published(
        jitted_hard_top_k(scores, k), f.outputs['hard_indicator'].swapaxes(1, 2), 'hard'
    )
    assert_close_to_published(gradient, f.gradients['scores'], 'gradient')

    # variant='paper': the same without the factor k, and with I − hard_top_k(scores) for I.
    # Explicitly, from the samples:
    samples = np.stack(
        [sorted_top_k(f.inputs['scores'] + f.meta['sigma'] * z, k) for z in f.inputs['noise']]
    )
    centred = samples - sorted_top_k(f.inputs['scores'], k)
    jacobian = (
        np.einsum('nbtm,nbj->btmj', centred, f.inputs['noise']) / f.meta['sigma'] / len(samples)
    )
    np.testing.assert_allclose(
        of_paper, np.einsum('btm,btmj->bj', y, jacobian), rtol=1e-4, atol=1e-4
    )


def test_hard_top_k_is_the_sorted_one():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 6, (40, 12)).astype(np.float32)  # full of ties
    for k in (1, 5, 12):
        np.testing.assert_array_equal(jitted_hard_top_k(scores, k), sorted_top_k(scores, k))
    with pytest.raises(ValueError, match='cannot choose 13 of 12 frames'):
        hard_top_k(jnp.asarray(scores), 13)


def test_at_sigma_zero_the_choice_is_hard_and_has_no_gradient():
    scores = np.random.default_rng(0).normal(size=(3, 10)).astype(np.float32)

    @jax.jit
    def run(sigma):
        total = lambda s, sigma: (
            perturbed_top_k(jax.random.key(1), s, 4, sigma, 30, 10, 'paper') * jnp.arange(10)
        ).sum()
        return perturbed_top_k(jax.random.key(1), scores, 4, sigma, 30, 10, 'paper'), jax.grad(
            total, (0, 1)
        )(scores, sigma)

    indicator, gradients = run(0.0)
    hard = np.asarray(jitted_hard_top_k(scores, 4))
    np.testing.assert_array_equal(indicator, hard)
    np.testing.assert_array_equal(gradients[0], 0.0)
    assert gradients[1] == 0.0
    np.testing.assert_array_equal(run(1e-5)[0], hard)  # close to zero, too
    soft, (gradient, _) = jax.tree.map(np.asarray, run(0.5))
    assert (
        np.abs(soft - hard).max() > 0.1
        and np.isfinite(gradient).all()
        and np.abs(gradient).max() > 0
    )
    np.testing.assert_allclose(soft.sum(-1), 1.0, rtol=1e-5)
    assert (np.diff((soft * np.arange(10)).sum(-1)) > 0).all()  # temporal order
    assert (soft.sum(1) <= 1.0 + 1e-5).all()  # no frame is taken twice


def test_chunks_change_nothing():
    rng = np.random.default_rng(0)
    scores, y = (rng.normal(size=s).astype(np.float32) for s in ((2, 9), (2, 3, 9)))

    def run(chunk):
        total = lambda s: (
            perturbed_top_k(jax.random.key(2), s, 3, jnp.float32(0.3), 50, chunk, 'paper') * y
        ).sum()
        return jax.value_and_grad(total)(scores)

    whole, *chunked = jax.jit(lambda: [run(chunk) for chunk in (0, 7, 1000)])()
    for found in chunked:
        for a, b in zip(found, whole, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_gradient_is_that_of_the_smoothed_function():
    """Against central differences of I_σ with common random numbers, and against Optax's
    estimate."""
    k, sigma, samples = 2, 0.5, 200_000
    scores = np.array([[0.3, -0.2, 0.5, 0.1]], np.float32)
    y = np.asarray(jax.random.normal(jax.random.key(3), (1, k, 4)))
    smooth = lambda s, variant: (
        perturbed_top_k(jax.random.key(4), s, k, jnp.float32(sigma), samples, 20_000, variant) * y
    ).sum()
    both = jax.jit(lambda s: [jax.grad(smooth)(s, variant)[0] for variant in ('paper', 'code')])
    ours, of_code = map(np.asarray, both(scores))

    step = 0.1
    moved = scores + np.float32(step) * np.concatenate(
        [np.eye(4, dtype=np.float32), -np.eye(4, dtype=np.float32)]
    )  # eight videos, their own noise
    noise = jax.random.normal(jax.random.key(5), (1, samples, 4))
    value = jax.jit(
        lambda s: (
            perturbed_top_k(noise, s[None], k, jnp.float32(sigma), samples, 20_000, 'paper') * y
        ).sum()
    )
    values = np.array([value(s) for s in moved])
    difference = (values[:4] - values[4:]) / (2 * step)
    # |⟨I, y⟩| is at most 3.3 here, so the estimate deviates by 3.3/(σ√n) = 0.015 at most; the
    # difference by √(3.3²/(2·step·n)) = 0.017, with a bias of order step². 0.05 is three such
    # deviations.
    np.testing.assert_allclose(ours, difference, atol=0.05)
    assert np.abs(ours).max() > 0.3 and np.abs(y).max(-1).sum() < 3.3
    np.testing.assert_allclose(of_code / k, ours, atol=0.05)

    optax_smooth = optax.perturbations.make_perturbed_fun(
        lambda s: hard_top_k(s[None], k)[0], samples, sigma, optax.perturbations.Normal()
    )
    theirs = jax.jit(jax.grad(lambda s: (optax_smooth(jax.random.key(6), s) * y[0]).sum()))(
        scores[0]
    )
    np.testing.assert_allclose(ours, theirs, atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize('variant', ['code', 'paper'])
def test_noise_of_less_variance_has_the_same_gradient_on_average(variant):
    scores = np.array([[0.3, -0.2, 0.5, 0.1, 0.0]], np.float32)
    y = np.asarray(jax.random.normal(jax.random.key(3), (1, 2, 5))) + 3

    def estimates(count, samples, *of):
        """`count` gradients [count, 5] of each (sampling, chunk), compiled together."""

        def gradient(key, sampling, chunk):
            smooth = perturbed_top_k
            value = lambda s: (smooth(key, s, 2, 0.5, samples, chunk, variant, sampling) * y).sum()
            return jax.grad(value)(scores)[0]

        keys = jax.random.split(jax.random.key(4), count)
        run = jax.jit(lambda keys: [jax.vmap(lambda key: gradient(key, *how))(keys) for how in of])
        return map(np.asarray, run(keys))

    samplings = 'antithetic', 'leave_one_out'
    usual, *others = estimates(800, 20, *((s, 0) for s in ('independent', *samplings)))
    in_chunks_and_whole = estimates(2, 21, *((s, chunk) for s in samplings for chunk in (4, 0)))
    for other in others:
        error = np.hypot(usual.std(0), other.std(0)) / np.sqrt(800)
        assert (np.abs(usual.mean(0) - other.mean(0)) < 5 * error).all()
        if variant == 'code':  # its large offset makes most of the variance
            assert other.var(0).max() < 0.5 * usual.var(0).min()
        np.testing.assert_allclose(*islice(in_chunks_and_whole, 2), rtol=1e-4, atol=1e-4)


def test_leave_one_out_by_a_slow_loop():
    rng = np.random.default_rng(0)
    scores, noise = rng.normal(size=(2, 6)).astype(np.float32), rng.normal(size=(2, 9, 6))
    y, noise = rng.normal(size=(2, 3, 6)), noise.astype(np.float32)
    smooth = lambda s: (perturbed_top_k(noise, s, 3, 0.4, 9, 4, 'code', 'leave_one_out') * y).sum()
    for b, gradient in enumerate(jax.grad(smooth)(scores)):
        agreed = [(sorted_top_k(scores[[b]] + 0.4 * z, 3)[0] * y[b]).sum() for z in noise[b]]
        slow = np.zeros(6)
        for s in range(9):
            others = np.mean(agreed[:s] + agreed[s + 1 :])
            slow += 3 * (agreed[s] - others) * noise[b, s] / 0.4 / 9
        np.testing.assert_allclose(gradient, slow, rtol=1e-4, atol=1e-4)


def test_evenly_spaced_frames():
    np.testing.assert_array_equal(
        evenly_spaced_indicator(2, 20, 8).argmax(-1)[1], [0, 2, 5, 8, 10, 13, 16, 19]
    )
    np.testing.assert_array_equal(evenly_spaced_indicator(1, 20, 1).argmax(-1)[0], [0])


def test_evenly_spaced_frames_are_distinct_for_every_count():
    for frames in range(1, 65):
        for k in range(1, frames + 1):
            chosen = np.asarray(evenly_spaced_indicator(1, frames, k))[0].argmax(-1)
            assert len(set(chosen)) == k and (chosen[0], chosen[-1]) == (
                0,
                frames - 1 if k > 1 else 0,
            ), (frames, k)


def test_noise_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r'expected \[B, num_samples, M\] = \(2, 10, 5\)'):
        perturbed_top_k(
            jnp.zeros((10, 2, 5)), jnp.zeros((2, 5)), 2, jnp.float32(0.1), 10, 50, 'paper'
        )
