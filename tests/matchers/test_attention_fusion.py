"""MASTAF: attention and head of the published code, and what its ablations take away."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import random_variables

import fsar_jax
from fsar_jax.matchers import AttentionFusion
from fsar_jax.training.losses import episode_loss
from fsar_jax.weights import from_torch


def maps(x):
    """Published [..., C, d, h, w] → ours [..., L, h, w, C]."""
    return np.moveaxis(x, -4, -1)


def positions(x):
    """Published [..., C, d, h, w] → ours [..., P, C]."""
    x = maps(x)
    return x.reshape(*x.shape[:-4], -1, x.shape[-1])


def head_config(classes=None):
    config = fsar_jax.default_config()
    config.model.backbone.name = 'features'
    config.model.matcher.update(name='attention_fusion')
    config.model.classifier.classes = classes
    return config


@pytest.mark.slow
@pytest.mark.parametrize('name', ['mastaf_cam_a', 'mastaf_cam_b'])
def test_attention_equals_published(published, assert_close_to_published, name):
    f = published(name)
    config = head_config()
    load = lambda weights: {
        k: tree['matcher']
        for k, tree in from_torch({f'cam.{k}': v for k, v in weights.items()}, config.model).items()
    }
    variables = load(f.weights)
    inputs = positions(f.inputs['f1'][0]), positions(f.inputs['f2'][0])

    def run(variables, classes, queries, train):
        a, updated = AttentionFusion().apply(
            variables, classes, queries, train, method='attention', mutable=['batch_stats']
        )
        return {
            'f1_self': classes * a['class_self'][..., None],
            'f2_self': queries * a['query_self'][..., None],
            'f1_cross': classes * a['class_cross'][..., None],
            'f2_cross': queries[:, None] * a['query_cross'][..., None],
        }, updated

    def weighted(*x):
        outputs, _ = run(*x, False)
        return sum(
            (y * positions(f.cotangents[key][0])).sum() for key, y in outputs.items()
        ), outputs

    both = lambda *x: (jax.grad(weighted, (0, 1, 2), has_aux=True)(*x), run(*x, True))
    (gradient, at_test), (training, updated) = jax.jit(both)(variables, *inputs)
    for prefix, outputs in (('', at_test), ('bn_batch/', training)):
        for key, value in outputs.items():
            assert_close_to_published(value, positions(f.outputs[prefix + key][0]), prefix + key)
    for leaf in ('mean', 'var'):
        assert_close_to_published(
            updated['batch_stats']['kernel']['bn'][leaf],
            f.outputs[f'bn_batch/conv1.bn.running_{leaf}'],
            leaf,
        )

    assert_close_to_published(
        gradient[1], positions(f.gradients['f1'][0]), 'gradient of the classes'
    )
    assert_close_to_published(
        gradient[2], positions(f.gradients['f2'][0]), 'gradient of the queries'
    )
    expected = load({k: f.weight_gradients.get(k, np.zeros_like(v)) for k, v in f.weights.items()})[
        'params'
    ]
    jax.tree_util.tree_map_with_path(
        lambda path, mine, theirs: assert_close_to_published(
            mine, theirs, jax.tree_util.keystr(path)
        ),
        gradient[0]['params'],
        expected,
    )


@pytest.mark.parametrize(
    'name', ['mastaf_head_a', pytest.param('mastaf_head_b', marks=pytest.mark.slow)]
)
def test_head_equals_published(published, assert_close_to_published, name):
    f = published(name)
    config = head_config(f.meta['train_classes'])
    config.model.matcher.update(alpha=f.meta['alpha'], loss_weight=f.meta['loss_weight_on_nearest'])
    config.model.classifier.weight = 1.0
    config.train.loss_reduction = 'mean'
    learner, variables = fsar_jax.create_learner(config.model), from_torch(f.weights, config.model)
    support, query = f.support_by_class(maps(f.inputs['support'])), maps(f.inputs['query'])
    labels, real_labels = f.inputs['query_labels'], f.inputs['real_query_labels']
    real = np.zeros(f.meta['way'], np.int32)
    real[labels] = real_labels  # of the other classes nothing is asked

    def run(variables, support, query):
        prediction = learner.apply(variables, support, query, train=False)
        return (
            prediction,
            episode_loss(prediction, labels, config, jnp.asarray(real)),
            episode_loss(prediction, labels, config),
        )

    def weighted(*inputs):
        prediction, loss, _ = outputs = run(*inputs)
        return (prediction.logits * f.cotangents['scores'][0]).sum() + loss * f.cotangents[
            'loss'
        ], outputs

    inputs = variables, jnp.asarray(support), query
    gradient, (prediction, loss, nearest) = jax.jit(jax.grad(weighted, (0, 1, 2), has_aux=True))(
        *inputs
    )
    auxiliary, count = prediction.auxiliary, len(labels)
    assert_close_to_published(prediction.logits, f.outputs['scores'][0], 'scores')
    at_places = f.outputs['position_scores'].reshape(count, f.meta['way'], -1).swapaxes(-1, -2)
    assert_close_to_published(auxiliary['position_matching'], at_places, 'scores of positions')
    of_true_class = np.asarray(auxiliary['global_classes'])[np.arange(count), labels]
    published_logits = (
        f.outputs['global_logits'].reshape(count, f.meta['train_classes'], -1).swapaxes(-1, -2)
    )
    assert_close_to_published(of_true_class, published_logits, 'global logits')
    assert_close_to_published(nearest, 0.5 * f.outputs['loss_nearest'], 'loss of the positions')
    assert_close_to_published(loss, f.outputs['loss'], 'loss')
    assert_close_to_published(
        gradient[1], f.support_by_class(maps(f.gradients['support'])), 'gradient of the support'
    )
    assert_close_to_published(gradient[2], maps(f.gradients['query']), 'gradient of the query')
    weight_gradients = {
        k: f.weight_gradients.get(k, np.zeros_like(v)) for k, v in f.weights.items()
    }
    expected = from_torch(weight_gradients, config.model)['params']
    jax.tree_util.tree_map_with_path(
        lambda path, mine, theirs: assert_close_to_published(
            mine, theirs, jax.tree_util.keystr(path)
        ),
        gradient[0]['params'],
        expected,
    )


@pytest.fixture(scope='module')
def episode():
    rng = np.random.default_rng(2)
    return (
        rng.normal(size=(3, 2, 12, 6)).astype(np.float32),
        rng.normal(size=(4, 12, 6)).astype(np.float32),
    )


def test_alpha_adds_the_score_of_self_attention(episode):
    """To the logits, and to the scores of positions that training minimises."""

    @jax.jit
    def run(alpha):
        logits, auxiliary = AttentionFusion(alpha=alpha, kernel='mean').apply({}, *episode)
        return logits, auxiliary['position_matching']

    for none, half, whole in zip(run(0.0), run(0.5), run(1.0), strict=True):
        whole, half, none = map(np.asarray, (whole, half, none))
        np.testing.assert_allclose(whole - none, 2 * (half - none), atol=1e-4)
        assert np.abs(np.subtract(whole, none)).max() > 0.1


def test_without_the_residual_attention_is_a_distribution(episode):
    support, query = episode

    @jax.jit
    def run(*inputs):
        matchers = (AttentionFusion(kernel='mean', residual=residual) for residual in (True, False))
        return [matcher.apply({}, *inputs, method='attention') for matcher in matchers]

    found = [map(np.asarray, jax.tree.leaves(x)) for x in run(support.mean(1), query)]
    for with_residual, without in zip(*found, strict=True):
        np.testing.assert_allclose(without.sum(-1), 1.0, rtol=1e-5)
        np.testing.assert_allclose(with_residual, without + 1.0, rtol=1e-6)


def test_a_lone_query_skips_batch_norm_in_the_code_only(episode):
    support, query = episode
    for variant, alike in (('code', False), ('paper', True)):
        matcher = AttentionFusion(variant=variant)
        variables = random_variables(matcher, support, query)
        attention = partial(matcher.apply, variables, support.mean(1), method='attention')
        run = jax.jit(lambda *queries: [attention(q)['query_self'][0] for q in queries])
        assert np.allclose(*run(query, query[:1]), atol=1e-6) == alike


def slowly(support, query, fusion, alpha=1.0, temperature=0.025, scale=7.0):
    """(logits [Q, way], position scores [Q, P, way]) with the mean relation as the kernel, place by
    place."""
    support, query = np.float64(support), np.float64(query)
    cosine = lambda a, b: a @ b / np.sqrt((a @ a) * (b @ b))

    def attended(own, other):
        """The mean over the places of `own`, weighted by how they relate to those of `other`."""
        places = range(len(own))
        relation = np.array([[cosine(own[x], other[y]) for y in places] for x in places])
        kernel = [np.mean([relation[x, y] for x in places]) for y in places]
        scores = [np.mean([relation[x, y] * kernel[y] for y in places]) for x in places]
        weight = np.exp(np.array(scores) / temperature)
        return np.mean([own[x] * (1 + weight[x] / weight.sum()) for x in places], 0)

    logits = np.zeros((len(query), len(support)))
    positions = np.zeros((len(query), query.shape[1], len(support)))
    for c, shots in enumerate(support):
        prototype = shots.mean(0)
        for q, clip in enumerate(query):
            pairs = {
                'both': [
                    (1.0, attended(clip, prototype), attended(prototype, clip)),
                    (alpha, attended(clip, clip), attended(prototype, prototype)),
                ],
                'self': [(1.0, attended(clip, clip), attended(prototype, prototype))],
                'none': [(1.0, clip.mean(0), prototype.mean(0))],
            }[fusion]
            logits[q, c] = scale * sum(w * cosine(a, b) for w, a, b in pairs)
            for place in range(len(clip)):
                positions[q, place, c] = scale * sum(
                    w * cosine(clip[place], b) for w, _, b in pairs
                )
    return logits, positions


@pytest.mark.parametrize(
    'fusion, constants',
    [
        ('both', {}),
        ('self', {}),
        ('none', {}),
        ('both', {'alpha': 0.0}),  # cross-attention alone
        ('self', {'attention_temperature': 0.1, 'score_scale': 3.0}),
    ],
)
def test_scores_equal_slow_loops(episode, fusion, constants):
    matcher = AttentionFusion(fusion=fusion, kernel='mean', **constants)
    episode = episode[0][:2, :, :7], episode[1][:2, :7]
    logits, auxiliary = jax.jit(partial(matcher.apply, {}))(*episode)
    named = {'attention_temperature': 'temperature', 'score_scale': 'scale', 'alpha': 'alpha'}
    expected = slowly(*episode, fusion, **{named[key]: x for key, x in constants.items()})
    np.testing.assert_allclose(logits, expected[0], atol=2e-5)
    np.testing.assert_allclose(auxiliary['position_matching'], expected[1], atol=2e-5)
    assert matcher.batch_norm_passes(2) == {'both': 4, 'self': 2, 'none': 0}[fusion]
    assert matcher.batch_norm_passes(1) == {'both': 3, 'self': 1, 'none': 0}[fusion]


@pytest.mark.parametrize('fusion', ['self', 'none'])
def test_gradients_of_the_ablations_equal_finite_differences(episode, fusion):
    support, query = (np.float32(x[:2, :, :3] if x.ndim == 4 else x[:2, :3]) for x in episode)
    matcher = AttentionFusion(fusion=fusion, kernel='mean')
    weight = np.random.default_rng(3).normal(size=(2, 2))
    total = lambda s, q: (matcher.apply({}, s, q)[0] * weight).sum()
    gradients = jax.jit(jax.grad(total, (0, 1)))(support, query)
    slow = lambda s, q: (slowly(s, q, fusion)[0] * weight).sum()
    step = 1e-5
    for argument, gradient in enumerate(gradients):
        for index in [(0,) * gradient.ndim, (1,) * gradient.ndim, (-1,) * gradient.ndim]:
            moved = []
            for sign in (1, -1):
                inputs = [np.float64(support), np.float64(query)]
                inputs[argument][index] += sign * step
                moved.append(slow(*inputs))
            np.testing.assert_allclose(
                gradient[index], (moved[0] - moved[1]) / (2 * step), rtol=2e-3, atol=2e-4
            )


@pytest.mark.parametrize('fusion', ['self', 'none'])
def test_without_cross_attention_the_classifier_sees_the_query_by_itself(episode, fusion):
    support, query = episode
    matcher = AttentionFusion(fusion=fusion, kernel='mean', classes=5)
    rng = np.random.default_rng(4)
    weights = {'kernel': rng.normal(size=(6, 5)), 'bias': rng.normal(size=5)}
    weights = {name: x.astype(np.float32) for name, x in weights.items()}
    variables = {'params': {'classifier': weights}}

    @jax.jit
    def run(support, query):
        classes = matcher.apply(variables, support, query)[1]['global_classes']
        seen = matcher.apply({}, support.mean(1), query, method='attention')['query_self']
        return classes, seen, matcher.apply({}, support, query, method='explain')

    classes, seen, shown = run(support, query)
    assert classes.shape == (4, 3, 12, 5)
    expected = (query * np.asarray(seen)[..., None]) @ weights['kernel'] + weights['bias']
    for row in range(3):
        np.testing.assert_allclose(classes[:, row], expected, rtol=1e-4, atol=1e-4)
    assert sorted(shown) == ['cosine_plain', 'cosine_self'][: 1 + (fusion == 'self')]


@pytest.mark.slow
def test_the_published_start_of_the_kernel_network():
    """Standard deviation √(2 / outputs) of the weights (row M12); of PyTorch's, 1/√(3 inputs)."""
    positions = 400
    support, query = jnp.ones((2, 1, positions, 3)), jnp.ones((2, positions, 3))
    torch, published = (
        AttentionFusion(kernel_start=start).init(jax.random.key(0), support, query)['params'][
            'kernel'
        ]
        for start in ('torch', 'published')
    )
    for name, inputs, outputs in (('squeeze', positions, 6), ('expand', 6, positions)):
        weights = published[name]['kernel']
        assert weights.std() == pytest.approx((2 / outputs) ** 0.5, rel=0.05)
        assert torch[name]['kernel'].std() == pytest.approx((3 * inputs) ** -0.5, rel=0.05)
        np.testing.assert_array_equal(published[name]['bias'], torch[name]['bias'])
