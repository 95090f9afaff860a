"""Matchers against the published code and against slow obvious ones. What holds for all of them is
in tests/learner/test_methods.py."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import random_variables

from fsar_jax.enrichment import VideoFeatures
from fsar_jax.layers import TupleLinear, frame_tuples, kept_tuples, norm, unit
from fsar_jax.matchers import CrossTransformer, Prototypes, QueryClassSimilarity


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


def start(matcher, frames):
    return random_variables(matcher, video_features(frames), method='project').get('params', {})


def check_parity(f, matcher, params, expected_gradients, assert_close):
    support, query = f.support_by_class(f.inputs['support']), f.inputs['query']

    def weighted(*x):
        logits = classify(matcher, *x)
        return (logits * f.cotangents['logits']).sum(), logits

    weighted = jax.jit(jax.grad(weighted, (0, 1, 2), has_aux=True))
    gradient, logits = weighted(params, support, query)
    assert_close(logits, f.outputs['logits'], 'logits')
    assert_close(gradient[1], f.support_by_class(f.gradients['support']), 'gradient of the support')
    assert_close(gradient[2], f.gradients['query'], 'gradient of the query')
    jax.tree.map_with_path(
        lambda path, a, b: assert_close(a, b, jax.tree_util.keystr(path)),
        gradient[0],
        expected_gradients,
    )


@pytest.mark.parametrize(
    'name',
    [
        'trm_card2_a',
        'trm_card3_a',
        *(pytest.param(f'trm_{x}', marks=pytest.mark.slow) for x in ('card2_b', 'card4_a')),
    ],
)
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


@pytest.mark.parametrize(
    'name', ['strm_qc_card2_a', pytest.param('strm_qc_card3_a', marks=pytest.mark.slow)]
)
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


@pytest.mark.parametrize('name', ['protonet_a', pytest.param('protonet_b', marks=pytest.mark.slow)])
def test_prototypes_equal_published(published, assert_close_to_published, name):
    f = published(name)
    frames = lambda x: x.mean((-2, -1)) if x.ndim == 5 else x  # [videos, L, C(, h, w)]
    support, query = f.support_by_class(f.inputs['support']), f.inputs['query']

    def logits(support, query):
        flat = support.reshape(-1, *support.shape[2:])
        return classify(
            Prototypes(),
            {},
            frames(flat).reshape(*support.shape[:2], *frames(flat).shape[1:]),
            frames(query),
        )

    def weighted(support, query):
        out = logits(support, query)
        loss = -jax.nn.log_softmax(out)[jnp.arange(len(query)), f.inputs['query_labels']].sum()
        return (out * f.cotangents['logits'].reshape(out.shape)).sum() + loss * f.cotangents[
            'loss_sum'
        ], out

    gradient, out = jax.jit(jax.grad(weighted, (0, 1), has_aux=True))(support, query)
    assert_close_to_published(out, f.outputs['logits'].reshape(len(query), -1), 'logits')
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

    def weighted(*x):
        found = {theirs: classify(Prototypes(ours), {}, *x) for theirs, ours in distances.items()}
        return sum(
            (found[theirs] * cotangent).sum() for theirs, cotangent in f.cotangents.items()
        ), found

    gradient, found = jax.jit(jax.grad(weighted, (0, 1), has_aux=True))(support, query)
    for theirs in distances:
        assert_close_to_published(found[theirs], f.outputs[theirs], theirs)
    assert_close_to_published(
        gradient[0], f.support_by_class(videos(f.gradients['support'])), 'gradient of the support'
    )
    assert_close_to_published(gradient[1], videos(f.gradients['query']), 'gradient of the query')


def random_episode(way=4, shot=2, queries=6, length=5, dim=10):
    rng = np.random.default_rng(3)
    return (
        rng.normal(size=(way, shot, length, dim)).astype(np.float32),
        rng.normal(size=(queries, length, dim)).astype(np.float32),
    )


def test_paper_distance_is_not_squared_and_is_summed_over_cardinalities():
    support, query = random_episode()
    code, paper = (
        CrossTransformer((2, 3), 12, variant, dropout=0.0) for variant in ('code', 'paper')
    )
    params = start(code, query)
    way, T = 4, {2: 10, 3: 10}
    expected = np.zeros((6, way))
    project = lambda videos: paper.apply(
        {'params': params}, video_features(videos), method='project'
    )
    projected = jax.jit(lambda *videos: [project(x) for x in videos])
    q, s = jax.tree.map(np.asarray, projected(query, support.reshape(-1, *support.shape[2:])))
    for w in (2, 3):
        qk, qv = q[f'cardinality_{w}']['keys'], q[f'cardinality_{w}']['values']
        sk, sv = (s[f'cardinality_{w}'][k].reshape(way, -1, 12) for k in ('keys', 'values'))
        for i, c, t in itertools.product(range(6), range(way), range(T[w])):
            score = sk[c] @ qk[i, t] / np.sqrt(12)
            a = np.exp(score - score.max())
            expected[i, c] -= np.linalg.norm(qv[i, t] - (a / a.sum()) @ sv[c]) / T[w]
    np.testing.assert_allclose(classify(paper, params, support, query), expected, rtol=1e-4)


def test_tuple_map_equals_the_concatenated_one():
    frames = np.random.default_rng(0).normal(size=(2, 6, 5)).astype(np.float32)
    for cardinality in (1, 2, 3, 4):
        module = TupleLinear(7, cardinality)
        variables = random_variables(module, frames)
        tuples = frame_tuples(6, cardinality)
        concatenated = frames[:, tuples].reshape(2, len(tuples), -1)
        expected = concatenated @ np.asarray(variables['params']['kernel']) + np.asarray(
            variables['params']['bias']
        )
        found = jax.jit(module.apply)(variables, frames)
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_norm_and_unit_have_finite_gradients_at_zero():
    x = np.zeros((3, 4), np.float32)
    for function in (norm, unit):
        assert np.isfinite(jax.jit(jax.grad(lambda x: function(x).sum()))(x)).all()
    y = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    np.testing.assert_allclose(jax.jit(norm)(y), np.linalg.norm(y, axis=-1), rtol=1e-6)


def test_a_share_of_the_tuples_is_drawn_by_its_seed():
    pairs = frame_tuples(8, 2)
    drawn = {share: kept_tuples(8, 2, share, 3) for share in (0.2, 0.4, 0.6, 0.8, 1.0)}
    assert [len(x) for x in drawn.values()] == [6, 11, 17, 22, 28]
    sets = {share: set(map(tuple, x.tolist())) for share, x in drawn.items()}
    assert sets[0.2] < sets[0.4] < sets[0.6] < sets[0.8] < sets[1.0]
    for share, kept in drawn.items():
        assert list(map(tuple, kept.tolist())) == sorted(sets[share])
    np.testing.assert_array_equal(drawn[1.0], pairs)
    np.testing.assert_array_equal(drawn[0.4], kept_tuples(8, 2, 0.4, 3))
    assert len(kept_tuples(8, 2, 1e-6, 0)) == 1  # never none
    counts = np.zeros((8, 8))
    for seed in range(500):
        for i, j in kept_tuples(8, 2, 0.2, seed):
            counts[i, j] += 1
    each = counts[tuple(pairs.T)] / 500  # 6 of 28 = 0.214 of the draws, deviation 0.018
    assert counts.sum() == 500 * 6 and np.abs(each - 6 / 28).max() < 0.075


@pytest.mark.parametrize('module', [CrossTransformer, QueryClassSimilarity])
def test_only_the_kept_tuples_are_compared(module):
    """Against the features of all tuples, of which some are then left out; by default training
    compares all."""
    _, query = random_episode(queries=2)
    settings = dict(tuples_share=0.3, tuples_seed=5)
    every, some = module((2,), 12, dropout=0.0), module((2,), 12, dropout=0.0, **settings)
    both = module((2,), 12, dropout=0.0, **settings, tuples_share_in_training=True)
    params = start(every, query)
    project = lambda module, train: jax.tree.map(
        np.asarray,
        jax.jit(partial(module.apply, method='project', train=train))(
            {'params': params}, video_features(query)
        ),
    )
    kept = {tuple(pair) for pair in kept_tuples(5, 2, 0.3, 5).tolist()}
    places = [i for i, pair in enumerate(frame_tuples(5, 2).tolist()) if tuple(pair) in kept]
    assert len(places) == 3
    whole = project(every, False)
    part = jax.tree.map(lambda x: x[:, places], whole)
    same = partial(jax.tree.map, partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6))
    same(project(some, False), part)
    same(project(some, True), whole)
    same(project(both, True), part)
