"""Stages own their losses and schedules; the learner collects them and `episode_loss` adds them."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_run import get_config

import fsar_jax
from fsar_jax import backbones, enrichment, matchers, samplers
from fsar_jax.stage import Loss, Stage
from fsar_jax.training.losses import episode_loss

WAY, SHOT, LENGTH, CHANNELS, CLASSES = 3, 2, 4, 6, 7
LABELS = np.array([0, 1, 2, 1])
OUTPUTS = {
    'temporal_matching': (4, WAY),
    'query_similarity': (4, WAY),
    'position_matching': (4, 5, WAY),
    'support_classes': (WAY, SHOT, LENGTH, CLASSES),
    'query_classes': (4, LENGTH, CLASSES),
    'global_classes': (4, WAY, 5, CLASSES),
    'support_dense_features': (WAY, SHOT, CHANNELS),
    'query_dense_features': (4, CHANNELS),
    'support_selected_features': (WAY, SHOT, CHANNELS),
    'query_selected_features': (4, CHANNELS),
    'query_frames': (4, LENGTH, CHANNELS),
    'aligned_frames': (4, WAY, LENGTH, CHANNELS),
}


def losses_of(learners, outputs, classes=None):
    """What `losses` of each learner gives, in its order, compiled as one program."""
    losses = []

    @jax.jit
    def values(outputs):
        losses.extend(learner.losses(outputs, LABELS, classes) for learner in learners)
        return [{name: loss.value for name, loss in found.items()} for found in losses]

    return [
        {name: loss._replace(value=np.asarray(values[name])) for name, loss in found.items()}
        for values, found in zip(values(outputs), losses)
    ]


@pytest.fixture(scope='module')
def outputs():
    """Every output that any loss is of."""
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in OUTPUTS.items()}


@pytest.mark.parametrize(
    'method, preset, expected',
    [
        ('protonet', '', {'matcher/matching': 1.0}),
        ('trx', '', {'matcher/matching': 1.0}),
        ('otam', '', {'matcher/matching': 1.0}),
        ('ta2n', '', {'matcher/matching': 1.0}),
        ('strm', '', {'matcher/matching': 1.0, 'query_similarity/query similarity': 0.1}),
        ('hyrsm', '', {'matcher/matching': 1.0, 'matcher/classifier': 0.6}),
        ('mastaf', '', {'matcher/matching': 0.5, 'matcher/classifier': 1.0}),
        ('vim', '', {'matcher/matching': 1.0, 'sampler/L_intra': 0.5, 'matcher/L_inter': 1.0}),
        ('vim', 'trx', {'matcher/matching': 1.0, 'sampler/L_intra': 0.5, 'matcher/L_inter': 1.0}),
        ('vim', 'trx-sampler', {'matcher/matching': 1.0, 'sampler/L_intra': 0.5}),
        (
            'vim',
            'hyrsm',
            {
                'matcher/matching': 1.0,
                'matcher/classifier': 0.6,
                'sampler/L_intra': 0.5,
                'matcher/L_inter': 1.0,
            },
        ),
        (
            'vim',
            'strm',
            {
                'matcher/matching': 1.0,
                'query_similarity/query similarity': 0.1,
                'sampler/L_intra': 0.5,
                'matcher/L_inter': 1.0,
            },
        ),
    ],
)
def test_losses_of_every_method_in_the_order_of_addition(outputs, method, preset, expected):
    """Float addition depends on the order, and a resumed run repeats every bit."""
    config = get_config(method, preset)
    learner, classes = fsar_jax.create_learner(config.model), np.array([6, 0, 3])
    losses = {}

    @jax.jit
    def run(outputs):
        losses.update(learner.losses(outputs, LABELS, classes))
        prediction = fsar_jax.Prediction(outputs['temporal_matching'], outputs)
        whole = episode_loss(prediction, LABELS, config, classes)
        return whole, {name: loss.value for name, loss in losses.items()}

    found, each = run(outputs)
    assert list(losses) == list(expected)
    assert {name: loss.weight for name, loss in losses.items()} == expected
    by_hand = np.float32(0)
    for name, loss in losses.items():
        values = np.broadcast_to(np.asarray(each[name]), (4,))
        by_hand += loss.weight * (
            values.sum() if config.train.loss_reduction == 'sum' else values.mean()
        )
    np.testing.assert_allclose(found, by_hand, rtol=1e-6)


def test_the_information_losses_are_weighted_and_counted_per_query(outputs):
    def total(outputs, pair, reduction='sum'):
        config = get_config('vim')
        with config.unlocked():
            config.model.sampler.intra_weight, config.model.matcher.inter_weight = pair
            config.train.loss_reduction = reduction
        prediction = fsar_jax.Prediction(outputs['temporal_matching'], outputs)
        return episode_loss(prediction, LABELS, config)

    @jax.jit
    def totals(outputs):
        weights = (0.0, 0.0), (1.0, 0.0), (2.0, 0.0), (0.0, 1.0), (2.0, 1.0)
        return *(total(outputs, pair) for pair in weights), total(outputs, (1.0, 1.0), 'mean')

    none, one, two, alignment, both, mean = map(float, totals(outputs))
    assert abs(one - none) > 1e-4 and abs(alignment - none) > 1e-4
    np.testing.assert_allclose(
        [two - none, both - none],
        [2 * (one - none), 2 * (one - none) + alignment - none],
        rtol=1e-3,
    )
    np.testing.assert_allclose(mean, (one + alignment - none) / 4, rtol=1e-4)


def test_classifiers_are_trained_on_training_classes_only(outputs):
    """HyRSM on every frame of support and query, MASTAF on the query's positions by its true
    class."""
    classes = np.array([6, 0, 3])
    cross = lambda x, label: np.log(np.exp(x).sum(-1)) - x[..., label]
    of_frames = [
        cross(outputs['support_classes'][c, s, t], classes[c])
        for c in range(WAY)
        for s in range(SHOT)
        for t in range(LENGTH)
    ]
    of_frames += [
        cross(outputs['query_classes'][q, t], classes[LABELS[q]])
        for q in range(4)
        for t in range(LENGTH)
    ]
    of_positions = [
        cross(outputs['global_classes'][q, LABELS[q], p], classes[LABELS[q]])
        for q in range(4)
        for p in range(5)
    ]
    for method, each in (('hyrsm', of_frames), ('mastaf', of_positions)):
        learner = fsar_jax.create_learner(get_config(method).model)
        [found] = losses_of([learner], outputs, classes)
        np.testing.assert_allclose(found['matcher/classifier'].value, np.mean(each), rtol=1e-5)
        assert 'matcher/classifier' not in losses_of([learner], outputs)[0]


def test_which_variant_of_a_loss_counts_is_the_stages_own(outputs):
    learner = fsar_jax.create_learner(get_config('vim').model)
    matcher = learner.clone(matcher=learner.matcher.clone(inter_variant='code'))
    sampler = learner.clone(sampler=learner.sampler.clone(variant='code'))
    whole, matcher, sampler = losses_of([learner, matcher, sampler], outputs)
    assert matcher['matcher/L_inter'].value != whole['matcher/L_inter'].value
    assert matcher['sampler/L_intra'].value == whole['sampler/L_intra'].value
    assert sampler['matcher/L_inter'].value == whole['matcher/L_inter'].value
    assert sampler['sampler/L_intra'].value != whole['sampler/L_intra'].value


class Consistent(Stage):
    """A frame enrichment with a loss and a schedule of its own."""

    def __call__(self, frames, train=False):
        strength = self.get_variable('schedule', 'strength', 1.0)
        return frames * strength

    def losses(self, outputs, labels, classes=None):
        return {'margin': Loss(2.0, jnp.square(outputs['temporal_matching']).mean(), 'regulariser')}

    def schedules(self, num_steps):
        return {'strength': optax.linear_schedule(1.0, 0.0, num_steps)}


def test_a_new_stage_brings_its_loss_and_its_schedule(outputs):
    learner = fsar_jax.create_learner(get_config('protonet').model)
    learner = learner.clone(frame_enrichment=Consistent(), backbone=backbones.Features())
    [losses] = losses_of([learner], outputs)
    assert list(losses) == ['matcher/matching', 'frame_enrichment/margin']
    schedules = learner.schedules(10)
    assert list(schedules) == ['frame_enrichment']
    now = jax.tree.map(lambda schedule: schedule(5), schedules)
    assert now['frame_enrichment']['strength'] == 0.5
    maps = np.random.default_rng(0).normal(size=(2, 3, 1, 1, 8)).astype(np.float32)
    enrich = jax.jit(
        lambda schedule: learner.apply({'schedule': schedule}, maps, method='enrich').frames
    )
    np.testing.assert_allclose(enrich(now), 0.5 * np.asarray(enrich({})))


@pytest.mark.parametrize(
    'module',
    [
        *backbones.BACKBONES.values(),
        enrichment.MixerEnrichment,
        enrichment.SelfAttentionEnrichment,
        enrichment.TemporalTransform,
        matchers.QueryClassSimilarity,
        samplers.UniformSampler,
        samplers.MotionGuidedSampler,
        samplers.TaskAdaptiveSampler,
    ],
)
def test_every_stage_can_be_asked(module):
    assert issubclass(getattr(module, 'func', module), Stage)
    assert issubclass(Stage, nn.Module)
