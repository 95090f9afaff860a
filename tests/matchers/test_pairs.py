"""Metrics of aligned pairs (X + VIM), and exhaustive alignment: against loops in float64, their
gradients against differences of these, and behind action coordination."""

import itertools
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_otam import slow_ordered_alignment
from tiny_run import random_variables

import fsar_jax
from fsar_jax.layers import sinusoidal_positions
from fsar_jax.matchers import (
    METRICS,
    ActionCoordination,
    CrossTransformer,
    OrderedAlignment,
    SetMatching,
    TupleCosine,
)
from fsar_jax.matchers.offset_masks import offset_weights
from fsar_jax.matchers.set_matching import channel_positions

QUERIES, WAY, L, D = 2, 3, 4, 8


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def layer_norm(x, p):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p['scale'] + p['bias']


def linear(x, p):
    return x @ p['kernel'] + p.get('bias', 0.0)


def slow_otam(_, support, query):
    def one(s, q):
        d = np.array(
            [[1 - x @ y / (np.linalg.norm(x) * np.linalg.norm(y) + 0.01) for y in s] for x in q]
        )
        return -slow_ordered_alignment(d, 0.1) - slow_ordered_alignment(d.T, 0.1)

    return [
        [one(*pair) for pair in zip(*both, strict=True)]
        for both in zip(support, query, strict=True)
    ]


def slow_trx(params, support, query):
    def one(s, q):
        distances = []
        for w in (2, 3):
            p, positions = params[f'cardinality_{w}'], 0.1 * sinusoidal_positions(L, D)
            tuples = list(itertools.combinations(range(L), w))
            of = lambda x: [np.concatenate([x[i] + positions[i] for i in t]) for t in tuples]
            s_tuples, q_tuples = of(s), of(q)
            keys = [layer_norm(linear(t, p['key']), p['key_norm']) for t in s_tuples]
            values = [linear(t, p['value']) for t in s_tuples]
            total = 0.0
            for t in q_tuples:
                key = layer_norm(linear(t, p['key']), p['key_norm'])
                share = softmax(np.array([key @ k / np.sqrt(len(key)) for k in keys]))
                prototype = sum(a * v for a, v in zip(share, values, strict=True))
                total += np.square(linear(t, p['value']) - prototype).sum()
            distances.append(total / len(tuples))
        return -np.mean(distances)

    return [
        [one(*pair) for pair in zip(*both, strict=True)]
        for both in zip(support, query, strict=True)
    ]


def slow_attention(q, k, v, heads=2):
    width = D // heads
    parts = [slice(h * width, (h + 1) * width) for h in range(heads)]
    return np.concatenate(
        [softmax(q[:, h] @ k[:, h].T / np.sqrt(width)) @ v[:, h] for h in parts], -1
    )


def slow_hyrsm(params, support, query):
    within, across, fuse = params['within'], params['across'], params['fuse']

    def of_video(frames):
        x = np.sqrt(D / 10.0) * frames + channel_positions(L, D)
        q, k, v = np.split(linear(layer_norm(x, within['norm']), within['qkv']), 3, -1)
        return np.maximum(x + linear(slow_attention(q, k, v), within['out']), 0.0)

    def one(classes, c, q):
        classes, q = [of_video(s) for s in classes], of_video(q)
        tokens = np.stack([x.mean(0) for x in (*classes, q)])
        attended = slow_attention(*(linear(tokens, across[x]) for x in ('query', 'key', 'value')))
        z = np.maximum(layer_norm(tokens + linear(attended, across['out']), across['norm']), 0.0)
        fused = lambda x, token: linear(np.concatenate([x, np.tile(token, (L, 1))], -1), fuse)
        s, q = fused(classes[c], z[c]), fused(q, z[-1])
        d = np.array([[1 - x @ y / (np.linalg.norm(x) * np.linalg.norm(y)) for y in s] for x in q])
        return -d.min(1).sum() - d.min(0).sum()

    return [[one(s, c, q[c]) for c in range(WAY)] for s, q in zip(support, query, strict=True)]


def slow_tuples(_, support, query):
    """The mean cosine of all pairs of ordered tuples."""

    def one(s, q):
        means = []
        for w in (2, 3):
            s_tuples, q_tuples = (
                [x[list(t)].ravel() for t in itertools.combinations(range(L), w)] for x in (s, q)
            )
            means.append(
                np.mean(
                    [
                        a @ b / (np.linalg.norm(a) * np.linalg.norm(b))
                        for a, b in itertools.product(q_tuples, s_tuples)
                    ]
                )
            )
        return -L * (1 - np.mean(means))

    return [
        [one(*pair) for pair in zip(*both, strict=True)]
        for both in zip(support, query, strict=True)
    ]


METRIC = {
    'otam': (OrderedAlignment(), slow_otam),
    'cross_transformer': (CrossTransformer(cardinalities=(2, 3), dim=6), slow_trx),
    'set_matching': (SetMatching(heads=2), slow_hyrsm),
    'tuple_cosine': (TupleCosine(cardinalities=(2, 3)), slow_tuples),
}


def random_pairs(seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(2, QUERIES, WAY, L, D))


def test_the_table_has_every_metric():
    assert set(METRIC) == set(METRICS)


@pytest.mark.parametrize('name', METRIC)
def test_a_metric_of_pairs_equals_loops_and_its_gradient_their_differences(name):
    metric, slow = METRIC[name]
    pairs, change, cotangent = random_pairs(), random_pairs(1), np.array([[1, -2, 3], [2, 1, -1]])
    compare = partial(metric.apply, method='compare_pairs')
    start = SimpleNamespace(init=partial(metric.init, method='compare_pairs'))
    params = random_variables(start, *jnp.float32(pairs)).get('params', {})

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def run(pairs):
        found = compare({'params': params}, *pairs)
        logits = found[0] if isinstance(found, tuple) else found
        return (logits * cotangent).sum(), logits

    gradient, found = run(jnp.float32(pairs))
    exact = jax.tree.map(np.float64, params)
    reference = lambda pairs: np.array(slow(exact, *pairs))
    np.testing.assert_allclose(found, reference(pairs), rtol=2e-4, atol=2e-4)
    step = 1e-5 * change
    slope = (reference(pairs + step) - reference(pairs - step)) / 2e-5
    np.testing.assert_allclose(
        (gradient * change).sum(), (slope * cotangent).sum(), rtol=2e-3, atol=2e-3
    )


@pytest.mark.slow
def test_the_aligned_pairs_are_what_the_metric_sees_whole_and_in_chunks():
    metric = CrossTransformer(dim=6)
    matcher = ActionCoordination(metric=metric, prototype='mean', inter_weight=1.0, spatial='none')
    support, query = (
        np.random.default_rng(i).normal(size=(*n, L, 2, 2, 4)).astype(np.float32)
        for i, n in enumerate(((WAY, 2), (3,)))
    )
    variables = random_variables(matcher, support, query)

    @jax.jit
    def run(support, query):
        whole = partial(matcher.apply, method='compare', prototypes_too=True)
        logits, seen = whole(variables, support.mean(1), query)
        p, q = seen['aligned_prototypes'], seen['aligned_frames']
        params = {'params': variables['params']['metric']}
        alone = metric.apply(params, p, q, method='compare_pairs')
        in_chunks, _ = matcher.clone(pairs_per_chunk=2 * WAY).apply(variables, support, query)
        return logits, seen, alone, in_chunks

    logits, seen, alone, in_chunks = run(support, query)
    assert seen['aligned_prototypes'].shape == seen['aligned_frames'].shape == (3, WAY, L, 4)
    assert np.ptp(seen['aligned_frames'], axis=1).max() > 1e-3  # each class sees another query
    np.testing.assert_allclose(logits, alone, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(in_chunks, logits, rtol=1e-4, atol=1e-5)
    losses = matcher.losses(seen | {'temporal_matching': logits}, jnp.array([0, 1, 2]))
    assert losses.keys() == {'matching', 'L_inter'}


STRM = {
    'matcher.name': 'cross_transformer',
    'matcher.dim': 6,
    'enrichment.patch': 'self_attention',
    'enrichment.frame': 'mlp_mixer',
    'enrichment.patches': 2,
    'query_similarity.weight': 0.1,
}
HYRSM = {'matcher.name': 'set_matching', 'matcher.heads': 2, 'variant': 'paper'}


@pytest.mark.slow
@pytest.mark.parametrize('x, align_at_test', [(STRM, True), (HYRSM, False)], ids=['strm', 'hyrsm'])
def test_without_alignment_x_behind_it_is_x(x, align_at_test):
    """With one shot; the enrichments of STRM come along."""
    support, query = (
        np.random.default_rng(i).normal(size=n).astype(np.float32)
        for i, n in enumerate(((WAY, 1, L, 4, 4, D), (2, L, 4, 4, D)))
    )
    config = fsar_jax.default_config()
    config.model.backbone.name = 'features'
    config.model.enrichment.dropout = 0.0
    config.update_from_flattened_dict({f'model.{key}': value for key, value in x.items()})
    learner = fsar_jax.create_learner(config.model)
    variables = random_variables(learner, support, query)
    config.model.align_at_test = align_at_test
    config.model.matcher.update(name='action_coordination', metric=x['matcher.name'])
    if align_at_test:
        config.model.matcher.update(temporal=False, spatial='none')
    behind = fsar_jax.create_learner(config.model)
    params = dict(variables['params'])
    params['matcher'] = {'metric': params['matcher']}
    found, expected = jax.jit(
        lambda params: (
            behind.apply({'params': params}, support, query).logits,
            learner.apply(variables, support, query).logits,
        )
    )(params)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_the_classifier_sees_the_frames_of_every_pair():
    matcher = ActionCoordination(
        metric=SetMatching(heads=2, classes=7, classifier_weight=0.5),
        temporal=False,
        spatial='none',
    )
    labels, classes = np.array([2, 0]), np.array([6, 0, 3])
    scores = {
        part: np.random.default_rng(i).normal(size=(2, WAY, L, 7))
        for i, part in enumerate(('support_classes', 'query_classes'))
    }
    outputs = scores | {'temporal_matching': np.zeros((2, WAY)), 'query_frames': None}
    loss = matcher.losses(outputs, labels, classes)['classifier']
    expected = []
    for q, c, x in np.ndindex(2, WAY, L):
        for part, true in (('support_classes', classes[c]), ('query_classes', classes[labels[q]])):
            expected.append(-np.log(softmax(scores[part][q, c, x])[true]))
    assert loss.weight == 0.5 and loss.kind == 'training classes'
    np.testing.assert_allclose(loss.value, np.mean(expected), rtol=1e-5)
    shape = jax.ShapeDtypeStruct((2, WAY, L, D), np.float32)
    run = lambda *x: matcher.metric.init_with_output(jax.random.key(0), *x, method='compare_pairs')
    (_, found), _ = jax.eval_shape(run, shape, shape)
    assert {name: x.shape for name, x in found.items()} == dict.fromkeys(scores, (2, WAY, L, 7))


def slow_weights(height, width, step):
    """(of the support, of the query) at each offset: a cell counts with what of it lies inside."""
    size = lambda n: int((n - 1) / step)
    for y in np.arange(-size(height), size(height) + 1) * step:
        for x in np.arange(-size(width), size(width) + 1) * step:
            for_side = []
            for sign in (1, -1):
                w = np.zeros((height, width))
                for i, j in itertools.product(range(height), range(width)):
                    out = [
                        max(0, -(cell + sign * o), cell + sign * o - (n - 1))
                        for cell, o, n in ((i, y, height), (j, x, width))
                    ]
                    w[i, j] = max(0, 1 - out[0]) * max(0, 1 - out[1])
                for_side.append(w / w.sum())
            yield for_side


def test_offsets_between_whole_ones_weigh_the_cells_at_the_edge_by_their_part():
    for step in (1.0, 0.5):
        expected = np.moveaxis(np.array(list(slow_weights(3, 4, step))), 1, 0)
        for side, rows, columns in zip(expected, *(offset_weights(n, step) for n in (3, 4))):
            both = np.einsum('yi,xj->yxij', rows, columns)
            np.testing.assert_allclose(both.reshape(-1, 3, 4), side, atol=1e-6)
    whole, halves = (offset_weights(3, step)[0] for step in (1.0, 0.5))
    np.testing.assert_array_equal(whole, halves[::2])


@pytest.mark.parametrize('metric', [None, 'tuple_cosine'])
def test_exhaustive_alignment_equals_loops_over_the_offsets(metric):
    """With the cosine each pair of frames has an offset of its own, with tuples the pair of clips;
    and the gradient goes to the maps at the best."""
    tuples = METRIC['tuple_cosine'][0] if metric else None
    matcher = ActionCoordination(
        temporal=False, spatial='enumerate', offset_step=0.5, metric=tuples
    )
    maps = np.random.default_rng(0).normal(size=(2, 2, L, 2, 3, D))
    change = np.random.default_rng(1).normal(size=maps.shape)

    def reference(maps):
        scores = []
        for weights in slow_weights(2, 3, 0.5):
            s, q = (np.einsum('ij,nlijc->nlc', w, x) for w, x in zip(weights, maps, strict=True))
            pairs = np.array([[s, np.stack([one, one])] for one in q]).swapaxes(0, 1)
            if metric:
                scores.append(slow_tuples(None, *pairs))
            else:
                unit = pairs / np.linalg.norm(pairs, axis=-1, keepdims=True)
                scores.append((unit[0] * unit[1]).sum(-1))
        best = np.max(scores, 0)
        return best if metric else -(1 - best).sum(-1)

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def run(maps):
        logits = matcher.apply({}, maps[0][:, None], maps[1])[0]
        return logits[0, 1], logits

    gradient, found = run(jnp.float32(maps))
    np.testing.assert_allclose(found, reference(maps), rtol=1e-4, atol=1e-4)
    step = 1e-6 * change
    slope = (reference(maps + step) - reference(maps - step))[0, 1] / 2e-6
    np.testing.assert_allclose((gradient * change).sum(), slope, rtol=2e-3, atol=2e-3)


@pytest.mark.slow
def test_in_training_the_offsets_share_one_dropout_mask_a_clip():
    """Otherwise the best offset would be the one of the luckiest mask."""
    metric = CrossTransformer(cardinalities=(2,), dim=6, dropout=0.3)
    matcher = ActionCoordination(temporal=False, spatial='enumerate', metric=metric)
    maps = np.random.default_rng(0).normal(size=(2, 3, L, 2, 3, D)).astype(np.float32)
    params = random_variables(matcher, maps[0][:, None], maps[1])['params']
    run = jax.jit(
        lambda maps, key: matcher.apply(
            {'params': params}, maps[0][:, None], maps[1], train=True, rngs={'dropout': key}
        )[0]
    )
    for key in jax.random.split(jax.random.key(0), 3):
        at_each = []
        for weights in slow_weights(2, 3, 1.0):
            of_offset = np.einsum('sij,snlijc->snlc', np.stack(weights), maps)
            at_each.append(run(jnp.float32(of_offset[..., None, None, :]), key))
        np.testing.assert_allclose(run(maps, key), np.max(at_each, 0), rtol=1e-4, atol=1e-4)
    assert np.abs(run(maps, jax.random.key(1)) - run(maps, jax.random.key(2))).max() > 0.01


@pytest.mark.parametrize('metric', [None, 'tuple_cosine', 'cross_transformer'])
def test_a_query_that_is_moved_nowhere_is_the_same_for_every_class(metric):
    """The offsets are tried on pairs where M moves the query to each class, and once for all
    classes where it does not: equal for values of zero."""
    settings = dict(spatial='enumerate', metric=METRIC[metric][0] if metric else None)
    support, query = np.random.default_rng(0).normal(size=(2, 3, L, 2, 3, D)).astype(np.float32)
    moving, still = (ActionCoordination(temporal=t, **settings) for t in (True, False))
    variables = random_variables(moving, support[:, None], query)
    zero = lambda path, leaf: 0 * leaf if str(path[1].key).startswith('value') else leaf
    variables = jax.tree_util.tree_map_with_path(zero, variables)
    logits = [
        jax.jit(matcher.apply)(variables, support[:, None], query)[0] for matcher in (moving, still)
    ]
    assert np.ptp(logits[0]) > 0.01
    np.testing.assert_allclose(*logits, rtol=1e-5, atol=1e-5)
