"""Bounds of mutual information where it is known, and the published helpers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsar_jax import mutual_information as mi


def gaussians(rho, samples=512, channels=64, seed=0):
    """Pairs with correlation ρ in each channel, channels independent: −½ log(1 − ρ²) nats per
    channel."""
    rng = np.random.default_rng(seed)
    x, noise = rng.normal(size=(2, samples, channels)).astype(np.float32)
    return x, rho * x + np.sqrt(1 - rho**2, dtype=np.float32) * noise


@pytest.mark.slow
def test_upper_bound_is_above_and_near_the_truth_for_gaussians():
    estimate = jax.jit(mi.feature_information)
    for rho in (0.0, 0.3, 0.6, -0.6, 0.9, 0.95):
        x, y = gaussians(rho)
        truth = -0.5 * np.log(1 - rho**2)
        # The mean over 64 channels of 512 samples deviates by about 0.005. Below by no more than
        # that, above by at most a tenth.
        found = estimate(3.0 * x + 1.0, -2.0 * y - 5.0)  # shift and scale do not matter
        assert truth - 0.005 <= found <= 1.1 * truth + 0.01, (rho, float(found), truth)
    x, y = gaussians(0.9)
    shuffled = estimate(x, np.random.default_rng(1).permutation(y))
    assert 0.0 <= shuffled < 0.01  # no information without the pairing
    # Identical features: the floor of the residual keeps it finite, and its gradient too.
    same, gradient = jax.jit(jax.value_and_grad(mi.feature_information, 1))(x, x)
    assert 1.5 < same < 3.0 and np.isfinite(gradient).all()
    assert np.isfinite(
        jax.jit(jax.grad(mi.feature_information))(jnp.zeros((8, 64)), jnp.zeros((8, 64)))
    ).all()


def test_lower_bound_is_below_and_near_the_truth_for_gaussian_classes():
    """Y = ±1 with equal chance, F = ρ-correlated: F ~ N(y·m, 1). The truth by numerical
    integration."""
    information = jax.jit(mi.label_information)
    logits = lambda m, f: np.float32(np.stack([-m * f, m * f], 1))
    grid = np.linspace(-12, 12, 20001)
    density = lambda m: np.exp(-((grid - m) ** 2) / 2) / np.sqrt(2 * np.pi)
    rng = np.random.default_rng(0)
    for m in (0.2, 0.7, 1.5, 3.0):
        mixture = (density(m) + density(-m)) / 2
        truth = np.trapezoid(density(m) * np.log(density(m) / mixture), grid)
        labels = np.arange(20_000) % 2
        f = rng.normal(size=20_000) + (2 * labels - 1) * m
        exact = information(logits(m, f), labels)
        assert abs(exact - truth) < 0.015  # three deviations at most
        wrong = information(logits(0.4, f), labels)
        assert wrong <= truth + 0.015 and (
            abs(m - 0.4) < 0.3 or wrong < exact
        )  # another classifier: less
        shuffled = information(logits(m, f), rng.permutation(labels))
        assert shuffled < 0.01  # and none without the pairing
    sure = np.float32([[50.0, 0.0], [0.0, 50.0]])
    assert information(sure, np.array([0, 1])) == pytest.approx(np.log(2))


def test_helpers_equal_published(published, assert_close_to_published):
    f = published('vim_mutual_information_a')
    pooled = lambda x: jnp.swapaxes(x.mean((-2, -1)), -1, -2)  # [n, m, C, T, H, W] → [n, m, T, C]
    after, dense = f.inputs['after'], f.inputs['dense_logits'][0]
    before, sampled = f.inputs['before'], f.inputs['sampled_logits'][0]
    labels = f.inputs['labels']
    of_features = lambda before, after: mi.frame_divergence(pooled(before), pooled(after))
    assert_close_to_published(
        jax.jit(of_features)(before, after), f.outputs['feature_feature'], 'feature_feature'
    )
    assert_close_to_published(
        jax.jit(mi.label_loss)(sampled, labels), f.outputs['logits_label'], 'logits_label'
    )
    assert_close_to_published(
        jax.jit(mi.intra_video_loss, static_argnums=3)(dense, sampled, labels, 'code'),
        f.outputs['logits_logits'],
        'logits_logits',
    )
    of_before, of_after = (
        np.asarray(g) * f.cotangents['feature_feature']
        for g in jax.jit(jax.grad(of_features, (0, 1)))(before, after)
    )
    of_dense, of_sampled = map(np.asarray, jax.jit(jax.grad(mi.divergence, (0, 1)))(dense, sampled))
    assert_close_to_published(of_after, f.gradients['after'], 'gradient of after')
    assert_close_to_published(
        of_dense[None] * f.cotangents['logits_logits'],
        f.gradients['dense_logits'],
        'gradient of dense_logits',
    )
    for constant in (of_before, of_sampled, jax.jit(jax.grad(mi.label_loss))(sampled, labels)):
        np.testing.assert_array_equal(constant, 0.0)


def test_losses():
    rng = np.random.default_rng(2)
    labels = np.array([0, 1, 2, 0])
    logits, other = rng.normal(size=(2, 4, 3)).astype(np.float32)
    intra = jax.jit(lambda *x: mi.intra_video_loss(*x, 'paper'))
    # Eq. 28: H(Y) cancels.
    cross = lambda x: -(x - np.log(np.exp(x).sum(-1, keepdims=True)))[np.arange(4), labels].mean()
    np.testing.assert_allclose(
        intra(other, logits, labels), abs(cross(logits) - cross(other)), rtol=1e-5
    )
    of_dense, of_selected = jax.tree.map(
        np.asarray, jax.jit(jax.grad(intra, (0, 1)))(other, logits, labels)
    )
    assert np.abs(of_dense).max() == 0.0 < np.abs(of_selected).max()

    raw, aligned = (
        rng.normal(size=(4, 5, 6)).astype(np.float32),
        rng.normal(size=(4, 3, 5, 6)).astype(np.float32),
    )
    for variant in ('paper', 'code'):
        value, (of_logits, of_raw, of_aligned) = jax.jit(
            jax.value_and_grad(
                lambda x, r, a: mi.inter_video_loss(x, labels, r, a, variant), (0, 1, 2)
            )
        )(logits, raw, aligned)  # noqa: B023
        of_aligned, of_logits = np.asarray(of_aligned), np.asarray(of_logits)
        true_class = aligned[np.arange(4), labels]
        if variant == 'paper':
            expected = np.asarray(
                jax.jit(mi.feature_information)(raw.reshape(20, 6), true_class.reshape(20, 6))
            ) - np.asarray(jax.jit(mi.label_information)(logits, labels))
        else:
            expected = cross(logits) + np.asarray(jax.jit(mi.frame_divergence)(raw, true_class))
        np.testing.assert_allclose(value, expected, rtol=1e-4)
        np.testing.assert_array_equal(of_raw, 0.0)
        chosen = np.zeros((4, 3), bool)
        chosen[np.arange(4), labels] = True
        assert (
            np.abs(of_aligned[chosen]).max() > 0 and np.abs(of_aligned[~chosen]).max() == 0
        )  # the true class only
        assert (np.abs(of_logits).max() > 0) == (variant == 'paper')


def test_prototype_logits():
    rng = np.random.default_rng(3)
    support, query = rng.normal(size=(3, 2, 5)), rng.normal(size=(4, 5))
    mean = support.mean(1)
    cosine = query @ mean.T / np.linalg.norm(query, axis=1)[:, None] / np.linalg.norm(mean, axis=1)
    np.testing.assert_allclose(
        jax.jit(mi.prototype_logits)(support, query), 10 * cosine, rtol=1e-4, atol=1e-5
    )
