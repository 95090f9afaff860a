"""MatchingNet against a slow and obvious implementation."""

import jax
import numpy as np
import pytest
from tiny_run import get_config

import fsar_jax
from fsar_jax.matchers.matching_net import MatchingNet
from fsar_jax.training.losses import episode_loss

WAY, SHOT, LENGTH, DIM = 3, 2, 4, 6
LABELS = np.array([0, 2, 1, 2, 0])


@pytest.fixture(scope='module')
def frames():
    """Frame features of the support [way, shot, L, D] and of five queries [Q, L, D]."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(WAY, SHOT, LENGTH, DIM)), rng.normal(size=(5, LENGTH, DIM))


def probabilities(support, query, scale):
    """One query and one support clip after the other, in float64."""
    found = np.zeros((len(query), WAY))
    for q, clip in enumerate(query):
        attention = np.zeros((WAY, SHOT))
        for c in range(WAY):
            for s in range(SHOT):
                x, y = clip.mean(0), support[c, s].mean(0)
                attention[c, s] = np.exp(scale * x @ y / (np.linalg.norm(x) * np.linalg.norm(y)))
        found[q] = attention.sum(1) / attention.sum()
    return found


def predict(frames, **settings):
    """The logits and the loss of the learner, from maps of one cell."""
    config = get_config('matching_net')
    with config.unlocked():
        config.model.backbone.name = 'features'
        config.model.matcher.update(settings)
        config.train.loss_reduction = 'sum'
    learner = fsar_jax.create_learner(config.model)
    support, query = (np.float32(x)[..., None, None, :] for x in frames)

    @jax.jit
    def run(support, query):
        prediction = learner.apply({}, support, query)
        return prediction.logits, episode_loss(prediction, LABELS, config)

    return tuple(map(np.asarray, run(support, query)))


@pytest.mark.parametrize('settings', [{}, {'scale': 1.0}, {'scale': 10.0}])
def test_probability_is_the_attention_paid_to_a_class(frames, settings):
    logits, loss = predict(frames, **settings)
    expected = probabilities(*frames, settings.get('scale', 100.0))
    np.testing.assert_allclose(np.exp(logits), expected, rtol=1e-3, atol=1e-7)
    of_class = expected[np.arange(len(LABELS)), LABELS]
    np.testing.assert_allclose(loss, -np.log(of_class).sum(), rtol=1e-3)


def test_the_loss_is_the_cross_entropy_of_the_logits(frames):
    logits, loss = predict(frames)
    np.testing.assert_allclose(
        loss,
        -(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))[
            np.arange(len(LABELS)), LABELS
        ].sum(),
        rtol=1e-5,
    )
    np.testing.assert_allclose(predict(frames, loss_weight=0.5)[1], 0.5 * loss, rtol=1e-6)


def test_one_close_clip_is_enough():
    """What tells it from prototypes: the mean of the first class is at right angles to the query,
    one of its clips is the query."""
    x, y, z = np.eye(3)
    clips = np.stack([[x, -x], [y + 0.5 * x, y + 0.5 * x]])[:, :, None]
    logits = jax.jit(MatchingNet().apply)({}, clips.mean(2), x[None])
    assert logits.argmax() == 0 and z @ clips[0, 0, 0] == 0
