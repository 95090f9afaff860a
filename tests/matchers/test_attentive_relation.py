"""TARN against a slow and obvious implementation, and its gradient against finite differences."""

import jax
import numpy as np
import pytest
from finite_differences import gradient

from fsar_jax.enrichment import VideoFeatures
from fsar_jax.matchers.attentive_relation import COMPARISONS, AttentiveRelation

WAY, SHOT, QUERIES, LENGTH, DIM, HIDDEN = 3, 2, 2, 3, 4, 2


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def gru(steps, cell):
    """The states of a GRU (Cho et al. 2014) after each step."""
    of = lambda name, x: x @ cell[name]['kernel'] + cell[name].get('bias', 0.0)
    state, states = np.zeros(HIDDEN), []
    for x in steps:
        reset = sigmoid(of('ir', x) + of('hr', state))
        update = sigmoid(of('iz', x) + of('hz', state))
        new = np.tanh(of('in', x) + reset * of('hn', state))
        state = (1 - update) * new + update * state
        states.append(state)
    return states


def compare(q, h, how):
    if how == 'product':
        return np.array([x * y for x, y in zip(q, h)])
    if how == 'difference':
        return np.array([x - y for x, y in zip(q, h)])
    distance = np.sqrt(sum((x - y) ** 2 for x, y in zip(q, h)))
    return np.array([distance, q @ h / np.sqrt((q @ q) * (h @ h))])


def logits_by_loops(support, query, params, how):
    """One query, class, shot and step after the other, in float64."""

    def steps(clip):
        onward = gru(clip, params['onward']['cell'])
        backward = gru(clip[::-1], params['backward']['cell'])[::-1]
        return [np.concatenate(pair) for pair in zip(onward, backward)]

    found = np.zeros((len(query), WAY))
    for q, clip in enumerate(query):
        for c in range(WAY):
            for s in range(SHOT):
                of_query, of_support, compared = steps(clip), steps(support[c, s]), []
                for x in of_query:
                    keys = [
                        y @ params['weigh']['kernel'] + params['weigh']['bias'] for y in of_support
                    ]
                    weights = np.exp([x @ key for key in keys])
                    aligned = sum(w * y for w, y in zip(weights / weights.sum(), of_support))
                    compared.append(compare(x, aligned, how))
                last = gru(compared, params['relate']['cell'])[-1]
                score = last @ params['score']['kernel'] + params['score']['bias']
                found[q, c] += score[0] / SHOT
    return found


@pytest.mark.parametrize('how', COMPARISONS)
def test_logits_and_gradients_are_those_of_the_loops(how):
    rng = np.random.default_rng(0)
    support = rng.normal(size=(WAY, SHOT, LENGTH, DIM))
    query = rng.normal(size=(QUERIES, LENGTH, DIM))
    cotangent = rng.normal(size=(QUERIES, WAY))
    matcher = AttentiveRelation(HIDDEN, how)

    def whole(module, support, query):
        features = lambda x: VideoFeatures(x[:, :, None, None], x, x)
        s, q = module.project(features(support.reshape(-1, LENGTH, DIM))), features(query)
        s = jax.tree.map(lambda x: x.reshape(WAY, SHOT, *x.shape[1:]), s)
        return module(s, module.project(q))

    shapes = jax.eval_shape(
        lambda: matcher.init(
            jax.random.key(0), np.float32(support), np.float32(query), method=whole
        )
    )['params']
    params = jax.tree.map(lambda x: rng.normal(size=x.shape) * 0.7, shapes)
    single = jax.tree.map(np.float32, params)

    @jax.jit
    def run(support, query):
        def weighted(*x):
            logits = matcher.apply({'params': single}, *x, method=whole)
            return (logits * np.float32(cotangent)).sum(), logits

        if how == 'distance_cosine':
            return jax.grad(weighted, (0, 1), has_aux=True)(support, query)
        return None, weighted(support, query)[1]

    slow = lambda s, q: logits_by_loops(s, q, params, how)
    slopes, found = run(np.float32(support), np.float32(query))
    np.testing.assert_allclose(found, slow(support, query), rtol=1e-4, atol=1e-5)
    if how != 'distance_cosine':  # the others are linear in what is compared
        return
    weighted = lambda s, q: (slow(s, q) * cotangent).sum()
    of_query = gradient(lambda x: weighted(support, x), query)
    np.testing.assert_allclose(slopes[1], of_query, rtol=1e-3, atol=1e-4)
    of_shot = gradient(
        lambda x: weighted(np.concatenate([[np.stack([x, support[0, 1]])], support[1:]]), query),
        support[0, 0],
    )
    np.testing.assert_allclose(slopes[0][0, 0], of_shot, rtol=1e-3, atol=1e-4)


def test_the_loss_is_the_binary_cross_entropy_of_the_scores():
    logits, labels = np.float32([[2.0, -1.0, 0.5], [-3.0, 0.0, 1.0]]), np.array([0, 2])
    loss = AttentiveRelation(loss_weight=0.5).losses({'temporal_matching': logits}, labels)
    expected = []
    for scores, label in zip(np.float64(logits), labels):
        others = [-np.log(1 - sigmoid(x)) for c, x in enumerate(scores) if c != label]
        expected.append(-np.log(sigmoid(scores[label])) + np.mean(others))
    np.testing.assert_allclose(loss['matching'].value, expected, rtol=1e-6)
    assert loss['matching'].weight == 0.5
