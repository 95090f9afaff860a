"""What holds for every method, through the learner: on features [L, h, w, C] with matcher and
enrichment as in its config."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fsar_jax
from fsar_jax.matchers import MATCHERS
from fsar_jax.training.losses import episode_loss

METHODS = {
    'ta2n': dict(temporal_transform=True, name='action_coordination'),
    'ta2n_paper': dict(variant='paper', temporal_transform=True, name='action_coordination'),
    'ta2n_spatial_grid': dict(name='action_coordination', temporal=False, spatial='grid'),
    'ta2n_enumerate': dict(name='action_coordination', spatial='enumerate'),
    'hyrsm': dict(name='set_matching', heads=2),
    'hyrsm_paper': dict(variant='paper', name='set_matching', heads=2),
    'mastaf': dict(name='attention_fusion'),
    'mastaf_mean_kernel': dict(name='attention_fusion', kernel='mean', residual=False),
}
# Those that take frames alone are in tests/matchers/test_matchers.py; any other comes by itself.
OF_FRAMES = {'prototypes', 'cross_transformer', 'otam'}
METHODS |= {
    name: dict(name=name)
    for name in MATCHERS
    if name not in OF_FRAMES and name not in {row['name'] for row in METHODS.values()}
}


def method_config(name):
    config = fsar_jax.default_config()
    settings = dict(METHODS[name])
    config.model.backbone.name = 'features'
    config.model.variant = settings.pop('variant', 'code')
    config.model.enrichment.update(
        temporal_transform=settings.pop('temporal_transform', False), dropout=0.0
    )
    config.model.matcher.update(settings)
    config.model.classifier.update(classes=7, weight=0.5)
    return config


@pytest.fixture(scope='module', params=METHODS)
def method(request):
    """(config, learner, variables away from their trivial start, support [3, 2, 4, 4, 4, 32], query
    [5, 4, 4, 4, 32])."""
    config = method_config(request.param)
    learner = fsar_jax.create_learner(config.model)
    keys = jax.random.split(jax.random.key(0), 3)
    support, query = (
        jax.random.normal(keys[0], (3, 2, 4, 4, 4, 32)),
        jax.random.normal(keys[1], (5, 4, 4, 4, 32)),
    )
    variables = jax.jit(learner.init)(keys[2], support, query)
    if 'params' in variables:
        move = lambda x: x + 0.05 * jax.random.normal(jax.random.key(x.size), x.shape)
        variables = {**variables, 'params': jax.tree.map(move, variables['params'])}
    run = jax.jit(lambda v, s, q: learner.apply(v, s, q, train=False))
    return config, learner, variables, support, query, run


@pytest.mark.slow
def test_embed_then_match_is_the_whole(method):
    _, learner, variables, support, query, run = method
    whole = run(variables, support, query)
    embed = jax.jit(lambda videos: learner.apply(variables, videos, train=False, method='embed'))
    s, q = embed(support.reshape(6, *query.shape[1:])), embed(query)
    s = jax.tree.map(lambda x: x.reshape(3, 2, *x.shape[1:]), s)
    parts = jax.jit(lambda s, q: learner.apply(variables, s, q, method='match'))(s, q)
    assert set(parts.auxiliary) == set(whole.auxiliary)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), parts, whole)


def test_classes_permute_and_queries_do_not_see_each_other(method):
    _, _, variables, support, query, run = method
    logits = run(variables, support, query).logits
    assert (
        logits.shape == (5, 3)
        and logits.dtype == jnp.float32
        and np.ptp(logits, axis=1).min() > 1e-3
    )
    order = np.array([2, 0, 1])
    np.testing.assert_allclose(
        run(variables, support[order], query).logits, logits[:, order], rtol=1e-4, atol=1e-4
    )
    others = jnp.concatenate([query[:2], query[:1], query[3:] * 2])
    np.testing.assert_allclose(
        run(variables, support, others).logits[:2], logits[:2], rtol=1e-4, atol=1e-4
    )


@pytest.mark.slow
def test_gradients_are_finite_at_zero_distance_and_at_zero_features(method):
    config, learner, variables, support, query, _ = method
    labels, classes = jnp.array([0, 1, 2, 0, 1]), jnp.array([6, 0, 3])

    @jax.jit
    @jax.value_and_grad
    def loss(inputs):
        params, support, query = inputs
        prediction, _ = learner.apply(
            {**variables, 'params': params},
            support,
            query,
            train=True,
            mutable=['batch_stats'],
            rngs={'dropout': jax.random.key(0)},
        )
        return episode_loss(prediction, labels, config, classes)

    same = jnp.concatenate([support[:, 0], support[:2, 0]])
    for s, q in ((jnp.zeros_like(support), jnp.zeros_like(query)), (support, same)):
        value, gradients = loss((variables.get('params', {}), s, q))
        assert np.isfinite(value)
        for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
            assert np.isfinite(gradient).all(), jax.tree_util.keystr(path)


@pytest.mark.slow
def test_bfloat16_compute_stays_within_one_percent(method):
    config, _, variables, support, query, run = method
    exact = run(variables, support, query).logits
    config = config.copy_and_resolve_references()
    config.model.dtype = 'bfloat16'
    rounded = jax.jit(fsar_jax.create_learner(config.model).apply)(variables, support, query).logits
    assert rounded.dtype == jnp.float32
    assert np.abs(rounded - exact).max() <= 0.01 * np.abs(exact).max()
