"""HyRSM: the published heads with both losses, and slow sets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import random_variables

import fsar_jax
from fsar_jax.enrichment import VideoFeatures
from fsar_jax.layers import sinusoidal_positions
from fsar_jax.matchers import SetMatching
from fsar_jax.training.losses import episode_loss
from fsar_jax.weights import from_torch


@pytest.mark.slow
@pytest.mark.parametrize('name', ['hyrsm_5shot_a', 'hyrsm_1shot_a', 'hyrsm_5shot_b'])
def test_head_equals_published(published, assert_close_to_published, name):
    f = published(name)
    config = fsar_jax.default_config()
    config.model.backbone.name = 'features'
    config.model.matcher.update(
        name='set_matching',
        heads=f.meta['heads'],
        position=(f.meta['position_A'], f.meta['position_B']),
    )
    config.model.classifier.update(
        classes=f.meta['train_classes'], weight=f.meta['class_loss_weight']
    )
    config.train.loss_reduction = 'mean'
    learner, variables = fsar_jax.create_learner(config.model), from_torch(f.weights, config.model)
    frames = lambda x: x.reshape(-1, 8, 1, 1, x.shape[1])
    support, query = f.support_by_class(frames(f.inputs['support'])), frames(f.inputs['query'])
    real = f.support_by_class(f.inputs['real_support_labels'][:, None])[:, 0, 0]
    labels = f.inputs['query_labels']
    np.testing.assert_array_equal(real[labels], f.inputs['real_query_labels'])

    def related(variables, support, query):
        embed = lambda videos: learner.apply(variables, videos, method='embed')['temporal_matching']
        return SetMatching(f.meta['heads']).apply(
            {'params': variables['params']['matcher']},
            embed(support.reshape(-1, *query.shape[1:])).reshape(*support.shape[:3], -1),
            embed(query),
            method='relate',
        )

    def run(variables, support, query):
        prediction = learner.apply(variables, support, query, train=False)
        return (
            prediction,
            episode_loss(prediction, labels, config, jnp.asarray(real)),
            episode_loss(prediction, labels, config),
            related(variables, support, query),
        )

    def weighted(*inputs):
        prediction, loss, *_ = outputs = run(*inputs)
        return (prediction.logits * f.cotangents['logits']).sum() + loss * f.cotangents[
            'loss'
        ], outputs

    inputs = variables, jnp.asarray(support), jnp.asarray(query)
    weighted = jax.jit(jax.grad(weighted, (0, 1, 2), has_aux=True))
    gradient, (prediction, loss, matching_loss, (s, q)) = weighted(*inputs)
    assert_close_to_published(prediction.logits, f.outputs['logits'], 'logits')
    assert_close_to_published(matching_loss, f.outputs['loss_fewshot'], 'loss of the matching')
    assert_close_to_published(loss, f.outputs['loss'], 'loss')
    classes = f.outputs['class_logits'].reshape(-1, 8, f.meta['train_classes'])
    videos = len(f.inputs['support_labels'])
    assert_close_to_published(
        prediction.auxiliary['support_classes'],
        f.support_by_class(classes[:videos]),
        'support classes',
    )
    assert_close_to_published(
        prediction.auxiliary['query_classes'], classes[videos:], 'query classes'
    )

    assert_close_to_published(s[:, :, 0], f.outputs['support_features'], 'support features')
    assert_close_to_published(q, f.outputs['query_features'], 'query features')

    assert_close_to_published(
        gradient[1], f.support_by_class(frames(f.gradients['support'])), 'gradient of the support'
    )
    assert_close_to_published(gradient[2], frames(f.gradients['query']), 'gradient of the query')
    weight_gradients = {
        k: f.weight_gradients.get(k, np.zeros_like(v)) for k, v in f.weights.items()
    }
    expected = from_torch(weight_gradients, config.model)['params']
    for path, reference in jax.tree_util.tree_leaves_with_path(expected):
        mine = gradient[0]['params']
        for key in path:
            mine = mine[key.key]
        if np.any(reference):  # arrays that the file lacks
            assert_close_to_published(mine, reference, jax.tree_util.keystr(path))


def test_published_dicts_load_without_the_classifier_and_then_have_none(published):
    f = published('hyrsm_1shot_a')
    config = fsar_jax.default_config()
    config.model.backbone.name = 'features'
    config.model.matcher.name = 'set_matching'
    variables = from_torch(f.weights, config.model)
    assert 'classifier' not in variables['params']['matcher']
    clip = np.zeros((1, 8, 1, 1, 32), np.float32)
    prediction = jax.eval_shape(
        fsar_jax.create_learner(config.model).apply, variables, clip[None], clip
    )
    assert set(prediction.auxiliary) == {'temporal_matching'}


def test_paper_sets_are_matched_by_the_mean_nearest_frame_of_each_shot():
    rng = np.random.default_rng(0)
    support, query = (rng.normal(size=s).astype(np.float32) for s in ((3, 2, 4, 8), (5, 4, 8)))
    matcher = SetMatching(heads=2, variant='paper')
    params = random_variables(matcher, support, query)
    both = lambda *x: (*matcher.apply(*x, method='relate'), matcher.apply(*x)[0])
    s, q, logits = map(np.asarray, jax.jit(both)(params, support, query))
    assert s.shape == (5, 3, 2, 4, 8)
    for i, c in ((0, 0), (4, 2), (2, 1)):
        expected = 0.0
        for shot in range(2):
            d = np.linalg.norm(q[i][:, None] - s[i, c, shot][None], axis=-1)
            expected -= (d.min(0).mean() + d.min(1).mean()) / 2
        np.testing.assert_allclose(logits[i, c], expected, rtol=1e-4)


def test_heads_must_divide_the_features():
    config = fsar_jax.default_config()
    config.model.backbone.name = 'features'
    config.model.matcher.update(name='set_matching', heads=5)
    with pytest.raises(
        ValueError, match=r'config\.model\.matcher\.heads=5 must divide the feature dimension, 16'
    ):
        fsar_jax.create_learner(config.model).init(
            jax.random.key(0), jnp.zeros((2, 1, 4, 1, 1, 16)), jnp.zeros((1, 4, 1, 1, 16))
        )


ALL = 1 - 1e-7  # the rate of dropout that leaves nothing


@pytest.mark.slow
@pytest.mark.parametrize('variant', ['code', 'paper'])
def test_each_dropout_is_where_the_published_code_has_it(variant):
    """With nothing left of a part, the rest is what the formulas say (row H9)."""
    way, shot, length, dim = 3, 2, 4, 8
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    support, query = draw(way, shot, length, dim), draw(5, length, dim)
    features = VideoFeatures(query[:, :, None, None], query, query)
    plain = SetMatching(heads=2, variant=variant)
    variables = random_variables(plain, support, query)
    projection = random_variables(plain, features, method='project')
    variables = {'params': {**projection['params'], **variables['params']}}
    of = variables['params']

    def run(drops, method, *inputs):
        rates = tuple(
            ALL if name in drops else 0.0 for name in ('position', 'in', 'weights', 'out')
        )
        matcher = SetMatching(heads=2, variant=variant, relation_dropout=rates)
        rngs = {'dropout': jax.random.key(1)}
        return matcher.apply(variables, *inputs, method=method, train=True, rngs=rngs)

    relu = jax.nn.relu if variant == 'code' else lambda x: x
    if variant == 'code':
        channel = np.arange(dim)
        angle = np.arange(length)[:, None] / 10000.0 ** (2 * channel / dim)
        frames = np.sqrt(dim / 10) * query + np.where(channel % 2, np.cos(angle), np.sin(angle))
    else:
        frames = query + sinusoidal_positions(length, dim)
    np.testing.assert_allclose(run(['in'], 'project', features), relu(frames), atol=1e-5)
    # LayerNorm of nothing is its bias, which every frame of a video then shares.
    of_nothing = run(['position'], 'project', features)
    assert np.ptp(np.asarray(of_nothing), axis=(0, 1)).max() < 1e-5
    assert np.ptp(np.asarray(run([], 'project', features)), axis=(0, 1)).max() > 0.1

    def related(added):
        """Of the query, where `added` is what its token gains across videos."""
        x = query.mean(1) + added
        x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5)
        token = relu(x * of['across']['norm']['scale'] + of['across']['norm']['bias'])
        kernel = of['fuse']['kernel']
        return query @ kernel[:dim] + (token @ kernel[dim:])[:, None] + of['fuse']['bias']

    bias = of['across']['out']['bias']
    _, found = run(['weights'], 'relate', support, query)
    np.testing.assert_allclose(found, related(bias), atol=1e-5)
    _, found = run(['out'], 'relate', support, query)
    np.testing.assert_allclose(found, related(0.0), atol=1e-5)
    _, whole = run([], 'relate', support, query)
    assert np.abs(whole - related(bias)).max() > 1e-3


def test_a_test_has_no_dropout():
    rng = np.random.default_rng(0)
    support, query = (
        jnp.asarray(rng.normal(size=(*shape, 4, 8)), jnp.float32) for shape in ((3, 2), (5,))
    )
    plain = SetMatching(heads=2)
    variables = random_variables(plain, support, query)
    dropped = SetMatching(heads=2, relation_dropout=(0.1, 0.2, 0.1, 0.05))
    logits = [matcher.apply(variables, support, query)[0] for matcher in (plain, dropped)]
    np.testing.assert_array_equal(*logits)
    trained = dropped.apply(variables, support, query, True, rngs={'dropout': jax.random.key(0)})
    assert np.abs(trained[0] - logits[0]).max() > 1e-3


@pytest.mark.slow
def test_the_published_start_of_the_attention_across_videos():
    """Standard deviations √(2 / (D + D/heads)) and 1/√D; of PyTorch's start, 1/√(3 D)."""
    dim, heads = 96, 4
    support, query = jnp.zeros((2, 1, 3, dim)), jnp.zeros((2, 3, dim))
    torch, published = (
        SetMatching(heads=heads, relation_start=start).init(jax.random.key(0), support, query)[
            'params'
        ]['across']
        for start in ('torch', 'published')
    )
    for name in ('query', 'key', 'value', 'out'):
        expected = dim**-0.5 if name == 'out' else (2 / (dim + dim / heads)) ** 0.5
        assert published[name]['kernel'].std() == pytest.approx(expected, rel=0.03)
        assert torch[name]['kernel'].std() == pytest.approx((3 * dim) ** -0.5, rel=0.03)
        assert np.abs(published[name]['kernel']).max() > 3 * expected  # normal, not cut off
