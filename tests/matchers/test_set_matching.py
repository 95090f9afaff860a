"""HyRSM: the published heads with both losses, and slow sets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import random_variables

import fsar_jax
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
