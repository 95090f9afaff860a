"""Matchers against the published code, against slow obvious ones, and against properties that every
matcher has."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsar_jax.enrichment import VideoFeatures
from fsar_jax.layers import TupleLinear, frame_tuples, norm, unit
from fsar_jax.matchers import CrossTransformer, OrderedAlignment, Prototypes, QueryClassSimilarity

MATCHERS = {
    'prototypes': lambda: Prototypes(),
    'mean_cosine': lambda: Prototypes('mean_cosine'),
    'mean_squared_euclidean': lambda: Prototypes('mean_squared_euclidean'),
    'cross_transformer_code': lambda: CrossTransformer((2, 3), 12, 'code', dropout=0.0),
    'cross_transformer_paper': lambda: CrossTransformer((2, 3), 12, 'paper', dropout=0.0),
    'query_similarity_code': lambda: QueryClassSimilarity((2,), 8, 'code', dropout=0.0),
    'query_similarity_paper': lambda: QueryClassSimilarity((2, 3), 8, 'paper', dropout=0.0),
    'otam': lambda: OrderedAlignment(),
    'soft_dtw': lambda: OrderedAlignment('soft_dtw'),
    'drop_dtw': lambda: OrderedAlignment('drop_dtw'),
}


def video_features(frames):
    return VideoFeatures(maps=frames[:, :, None, None], patch_level=frames, frames=frames)


@partial(jax.jit, static_argnums=0)
def classify(matcher, params, support, query):
    """support [way, shot, L, D], query [Q, L, D] → logits, through the two methods that training
    and evaluation call."""
    project = lambda videos: matcher.apply(
        {'params': params}, video_features(videos), method='project'
    )
    way, shot = support.shape[:2]
    s = jax.tree.map(
        lambda x: x.reshape(way, shot, *x.shape[1:]),
        project(support.reshape(way * shot, *support.shape[2:])),
    )
    out = matcher.apply({'params': params}, s, project(query))
    return out[0] if isinstance(out, tuple) else out


def start(matcher, frames, seed=0):
    return matcher.init(jax.random.key(seed), video_features(frames), method='project').get(
        'params', {}
    )


def check_parity(f, matcher, params, expected_gradients, assert_close):
    support, query = f.support_by_class(f.inputs['support']), jnp.asarray(f.inputs['query'])
    assert_close(classify(matcher, params, support, query), f.outputs['logits'], 'logits')
    gradient = jax.grad(
        lambda p, s, q: (classify(matcher, p, s, q) * f.cotangents['logits']).sum(), (0, 1, 2)
    )(params, support, query)
    assert_close(gradient[1], f.support_by_class(f.gradients['support']), 'gradient of the support')
    assert_close(gradient[2], f.gradients['query'], 'gradient of the query')
    jax.tree.map_with_path(
        lambda path, a, b: assert_close(a, b, jax.tree_util.keystr(path)),
        gradient[0],
        expected_gradients,
    )


@pytest.mark.parametrize('name', ['trm_card2_a', 'trm_card2_b', 'trm_card3_a', 'trm_card4_a'])
def test_cross_transformer_equals_published(published, assert_close_to_published, name):
    f = published(name)
    cardinality, dim = f.meta['cardinality'], f.meta['D_out']
    np.testing.assert_array_equal(frame_tuples(f.meta['L'], cardinality), f.inputs['tuples'])

    def tree(w):
        return {
            f'cardinality_{cardinality}': {
                'key': {'kernel': w['k_linear.weight'].T, 'bias': w['k_linear.bias']},
                'value': {'kernel': w['v_linear.weight'].T, 'bias': w['v_linear.bias']},
                'key_norm': {'scale': w['norm_k.weight'], 'bias': w['norm_k.bias']},
            }
        }

    check_parity(
        f,
        CrossTransformer((cardinality,), dim),
        tree(f.weights),
        tree(f.weight_gradients),
        assert_close_to_published,
    )


@pytest.mark.parametrize('name', ['strm_qc_card2_a', 'strm_qc_card3_a'])
def test_query_similarity_equals_published(published, assert_close_to_published, name):
    f = published(name)
    cardinality, dim = f.meta['cardinality'], f.meta['D_out']
    tree = lambda w: {
        f'cardinality_{cardinality}': {
            'projection': {'kernel': w['clsW.weight'].T, 'bias': w['clsW.bias']}
        }
    }
    check_parity(
        f,
        QueryClassSimilarity((cardinality,), dim),
        tree(f.weights),
        tree(f.weight_gradients),
        assert_close_to_published,
    )


@pytest.mark.parametrize('name', ['protonet_a', 'protonet_b'])
def test_prototypes_equal_published(published, assert_close_to_published, name):
    f = published(name)
    frames = lambda x: x.mean((-2, -1)) if x.ndim == 5 else x  # [videos, L, C(, h, w)]
    support, query = f.support_by_class(f.inputs['support']), jnp.asarray(f.inputs['query'])

    def logits(support, query):
        flat = support.reshape(-1, *support.shape[2:])
        return classify(
            Prototypes(),
            {},
            frames(flat).reshape(*support.shape[:2], *frames(flat).shape[1:]),
            frames(query),
        )

    assert_close_to_published(
        logits(support, query), f.outputs['logits'].reshape(len(query), -1), 'logits'
    )

    def weighted(support, query):
        out = logits(support, query)
        loss = -jax.nn.log_softmax(out)[jnp.arange(len(query)), f.inputs['query_labels']].sum()
        return (out * f.cotangents['logits'].reshape(out.shape)).sum() + loss * f.cotangents[
            'loss_sum'
        ]

    gradient = jax.grad(weighted, (0, 1))(jnp.asarray(support), query)
    assert_close_to_published(
        gradient[0], f.support_by_class(f.gradients['support']), 'gradient of the support'
    )
    assert_close_to_published(gradient[1], f.gradients['query'], 'gradient of the query')


def test_mean_frame_prototypes_equal_published(published, assert_close_to_published):
    f = published('protonet_mean_a')
    videos = lambda x: x.reshape(-1, 8, x.shape[1])  # [videos·L, D, 1, 1]
    support, query = f.support_by_class(videos(f.inputs['support'])), videos(f.inputs['query'])
    distances = {
        'logits_cosine': 'mean_cosine',
        'logits_squared_euclidean': 'mean_squared_euclidean',
    }
    weighted = lambda s, q: sum(
        (classify(Prototypes(ours), {}, s, q) * f.cotangents[theirs]).sum()
        for theirs, ours in distances.items()
        if theirs in f.cotangents
    )
    for theirs, ours in distances.items():
        assert_close_to_published(
            classify(Prototypes(ours), {}, support, query), f.outputs[theirs], theirs
        )
    gradient = jax.grad(weighted, (0, 1))(support, query)
    assert_close_to_published(
        gradient[0], f.support_by_class(videos(f.gradients['support'])), 'gradient of the support'
    )
    assert_close_to_published(gradient[1], videos(f.gradients['query']), 'gradient of the query')


def random_episode(way=4, shot=2, queries=6, length=5, dim=10):
    keys = jax.random.split(jax.random.key(3))
    return jax.random.normal(keys[0], (way, shot, length, dim)), jax.random.normal(
        keys[1], (queries, length, dim)
    )


@pytest.mark.parametrize('name', MATCHERS)
def test_permuting_classes_permutes_logits_and_shots_do_not_matter(name):
    matcher, (support, query) = MATCHERS[name](), random_episode()
    params = start(matcher, query)
    logits = classify(matcher, params, support, query)
    assert logits.shape == (6, 4) and logits.dtype == jnp.float32
    order = np.array([2, 0, 3, 1])
    np.testing.assert_allclose(
        classify(matcher, params, support[order], query), logits[:, order], rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(
        classify(matcher, params, support[:, ::-1], query), logits, rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize('name', MATCHERS)
def test_a_query_does_not_see_the_other_queries(name):
    matcher, (support, query) = MATCHERS[name](), random_episode()
    params = start(matcher, query)
    np.testing.assert_allclose(
        classify(matcher, params, support, query[:2]),
        classify(matcher, params, support, query)[:2],
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.slow
@pytest.mark.parametrize('name', MATCHERS)
@pytest.mark.parametrize('where', ['identical videos', 'zeros'])
def test_gradients_are_finite_at_zero_distance_and_at_zero_features(name, where):
    matcher, (support, query) = MATCHERS[name](), random_episode(shot=1)
    params = start(matcher, query)
    if where == 'zeros':
        support, query = jnp.zeros_like(support), jnp.zeros_like(query)
    else:
        query = jnp.concatenate([support[:, 0], query])[:6]
    gradients = jax.grad(lambda p, s, q: classify(matcher, p, s, q).sum(), (0, 1, 2))(
        params, support, query
    )
    for path, g in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(g).all(), jax.tree_util.keystr(path)


def test_paper_distance_is_not_squared_and_is_summed_over_cardinalities():
    support, query = random_episode()
    code, paper = MATCHERS['cross_transformer_code'](), MATCHERS['cross_transformer_paper']()
    params = start(code, query)
    way, T = 4, {2: 10, 3: 10}
    expected = np.zeros((6, way))
    project = lambda videos: jax.tree.map(
        np.asarray, paper.apply({'params': params}, video_features(videos), method='project')
    )
    q, s = project(query), project(support.reshape(-1, *support.shape[2:]))
    for w in (2, 3):
        qk, qv = q[f'cardinality_{w}']['keys'], q[f'cardinality_{w}']['values']
        sk, sv = (s[f'cardinality_{w}'][k].reshape(way, -1, 12) for k in ('keys', 'values'))
        for i, c, t in itertools.product(range(6), range(way), range(T[w])):
            score = sk[c] @ qk[i, t] / np.sqrt(12)
            a = np.exp(score - score.max())
            expected[i, c] -= np.linalg.norm(qv[i, t] - (a / a.sum()) @ sv[c]) / T[w]
    np.testing.assert_allclose(classify(paper, params, support, query), expected, rtol=1e-4)


def test_tuple_map_equals_the_concatenated_one():
    frames = jax.random.normal(jax.random.key(0), (2, 6, 5))
    for cardinality in (1, 2, 3, 4):
        module = TupleLinear(7, cardinality)
        variables = module.init(jax.random.key(1), frames)
        tuples = frame_tuples(6, cardinality)
        concatenated = frames[:, tuples].reshape(2, len(tuples), -1)
        expected = concatenated @ variables['params']['kernel'] + variables['params']['bias']
        np.testing.assert_allclose(module.apply(variables, frames), expected, atol=1e-5)


def test_norm_and_unit_have_finite_gradients_at_zero():
    x = jnp.zeros((3, 4))
    assert np.isfinite(jax.grad(lambda x: norm(x).sum())(x)).all()
    assert np.isfinite(jax.grad(lambda x: unit(x).sum())(x)).all()
    y = jax.random.normal(jax.random.key(0), (3, 4))
    np.testing.assert_allclose(norm(y), np.linalg.norm(y, axis=-1), rtol=1e-6)
