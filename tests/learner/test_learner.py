"""The learner against the published heads, through the public API and published state dicts; and
its own invariants."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import random_variables, tiny_config

import fsar_jax
from fsar_jax.backbones import BatchNorm
from fsar_jax.backbones.resnet import FrameNetwork
from fsar_jax.backbones.resnet3d import ResNet3D
from fsar_jax.backbones.resnet_small import ResNetSmall
from fsar_jax.matchers.matcher import Matcher
from fsar_jax.stage import Stage
from fsar_jax.training.losses import episode_loss

HEADS = ['strm_head_a', 'strm_head_b', 'trx_head_23_a', 'trx_head_23_b', 'trx_head_2_a']


def head_config(f):
    """The config whose learner is the published head of a fixture: features in place of the
    backbone."""
    config = fsar_jax.default_config()
    config.model.backbone.name = 'features'
    config.model.matcher.update(
        name='cross_transformer', cardinalities=tuple(f.meta['cardinalities']), dim=f.meta['D_out']
    )
    if f.meta['case'].startswith('strm'):
        config.model.enrichment.update(patch='self_attention', frame='mlp_mixer')
        config.model.query_similarity.weight = 0.1
    return config


def head_inputs(f):
    """Published [videos·L, D, h, w] → ours: support [way, shot, L, h, w, D], query [Q, L, h, w,
    D]."""
    videos = lambda x: x.transpose(0, 2, 3, 1).reshape(-1, 8, *x.shape[2:], x.shape[1])
    return (
        f.support_by_class(videos(f.inputs['support'])),
        videos(f.inputs['query']),
        f.inputs['query_labels'],
    )


@pytest.mark.slow
@pytest.mark.parametrize('name', HEADS)
def test_head_equals_published(published, assert_close_to_published, name):
    f = published(name)
    config = head_config(f)
    learner = fsar_jax.create_learner(config.model)
    variables = fsar_jax.weights.from_torch(f.weights, config.model)
    support, query, labels = head_inputs(f)

    videos_of = {'support': lambda s, q: s.reshape(-1, *s.shape[2:]), 'query': lambda s, q: q}

    def weighted(variables, support, query):
        prediction = learner.apply(variables, support, query, train=False)
        loss = episode_loss(prediction, labels, config)
        total = (
            prediction.auxiliary['temporal_matching'] * f.cotangents['logits'][0]
        ).sum() + loss / 16 * f.cotangents['loss_task']
        if 'logits_post_pat' in f.cotangents:
            total += (
                prediction.auxiliary['query_similarity'] * f.cotangents['logits_post_pat'][0]
            ).sum()
        return total, (prediction, loss)

    @jax.jit
    def run(*inputs):
        enriched = {
            part: learner.apply(inputs[0], videos(*inputs[1:]), method='enrich')
            for part, videos in videos_of.items()
        }
        return jax.grad(weighted, (0, 1, 2), has_aux=True)(*inputs), enriched

    (gradient, (prediction, loss)), enriched = run(variables, support, query)
    auxiliary = prediction.auxiliary
    assert_close_to_published(
        auxiliary['temporal_matching'], f.outputs['logits'][0], 'temporal matching'
    )
    if 'logits_post_pat' in f.outputs:
        assert_close_to_published(
            auxiliary['query_similarity'], f.outputs['logits_post_pat'][0], 'query similarity'
        )
        assert_close_to_published(
            prediction.logits, f.outputs['logits_for_accuracy'][0], 'logits that decide'
        )
        for part, features in enriched.items():
            H, E = f.outputs[f'{part}_H'], f.outputs[f'{part}_E']
            ours_H, ours_E = features.patch_level, features.frames
            if part == 'support':
                order = np.argsort(f.inputs['support_labels'], kind='stable')
                H, E = H[order], E[order]
            assert_close_to_published(ours_H, H, f'H of the {part}')
            assert_close_to_published(ours_E, E, f'E of the {part}')
    assert_close_to_published(loss / 16, f.outputs['loss_task'], 'loss / tasks per step')

    published_layout = lambda x: x.reshape(-1, *x.shape[-3:]).transpose(0, 3, 1, 2)
    expected = head_inputs(
        type(
            '',
            (),
            {
                'inputs': f.gradients
                | {'support_labels': f.inputs['support_labels'], 'query_labels': labels},
                'support_by_class': f.support_by_class,
            },
        )
    )
    assert_close_to_published(
        published_layout(gradient[1]), published_layout(expected[0]), 'gradient of the support'
    )
    assert_close_to_published(
        published_layout(gradient[2]), published_layout(expected[1]), 'gradient of the query'
    )
    # Weight gradients come as state dicts do, so they travel the same road (buffers and the unused
    # norm have none).
    weight_gradients = {
        k: f.weight_gradients.get(k, np.zeros_like(v)) for k, v in f.weights.items()
    }
    ours, theirs = (
        gradient[0]['params'],
        fsar_jax.weights.from_torch(weight_gradients, config.model)['params'],
    )
    for path, reference in jax.tree_util.tree_leaves_with_path(theirs):
        name = jax.tree_util.keystr(path)
        mine = ours
        for key in path:
            mine = mine[key.key]
        if np.any(reference):  # arrays over 6,000 entries are not in the file
            assert_close_to_published(mine, reference, name)


@pytest.mark.slow
@pytest.mark.parametrize('method', ['protonet', 'strm'])
def test_bfloat16_embeddings_are_numbers_when_compiled(method, full_optimisation):
    """Compiled with all optimisations, which JAX 0.12 on CPUs gets wrong by itself; small networks
    do not show it."""
    learner = fsar_jax.create_learner(tiny_config(method, {'model.dtype': 'bfloat16'}).model)
    learner = learner.clone(backbone=learner.backbone.clone(width=16))
    videos = jax.random.randint(jax.random.key(0), (4, 4, 64, 64, 3), 0, 256).astype(jnp.uint8)
    variables = random_variables(learner, videos[:2, None], videos[2:])
    embeddings = jax.jit(lambda variables: learner.apply(variables, videos, method='embed'))(
        variables
    )
    assert all(jnp.isfinite(x.astype(jnp.float32)).all() for x in jax.tree.leaves(embeddings))


@pytest.mark.parametrize('of', ['maps', 'frames'])
def test_in_bfloat16_a_stage_may_average_what_it_is_given(of):
    """As in the test above, for a matcher and an enrichment that a user writes."""

    class Means(Matcher):
        def project(self, features, train=False):
            x = getattr(features, of)
            return x.mean(tuple(range(1, x.ndim - 1)))

    class Gate(nn.Module):
        @nn.compact
        def __call__(self, tokens, train=False):
            return tokens + tokens.mean(-2, keepdims=True)

    learner = fsar_jax.create_learner(tiny_config('protonet', {'model.dtype': 'bfloat16'}).model)
    gate = Gate() if of == 'frames' else None
    learner = learner.clone(matcher=Means(), patch_enrichment=gate, frame_enrichment=gate)
    videos = jax.random.randint(jax.random.key(0), (8, 4, 32, 32, 3), 0, 256).astype(jnp.uint8)
    embed = functools.partial(learner.apply, method='embed')
    variables = learner.init(jax.random.key(0), videos, method='embed')
    (mean,) = jax.tree.leaves(jax.jit(embed)(variables, videos))
    assert jnp.isfinite(mean.astype(jnp.float32)).all()


@pytest.fixture(scope='module')
def small():
    """A STRM config, variables, an episode of 32×32 frames (3-way 2-shot, 5 queries, L = 4), and
    what is predicted of it."""
    config = fsar_jax.default_config()
    with config.unlocked():
        config.model.backbone.width = 8
    config.model.enrichment.update(patch='self_attention', frame='mlp_mixer', patches=2)
    config.model.matcher.dim = 16
    config.model.query_similarity.weight = 0.1
    rng = np.random.default_rng(0)
    support, query = (rng.integers(0, 256, (*n, 4, 32, 32, 3), np.uint8) for n in ((3, 2), (5,)))
    learner = fsar_jax.create_learner(config.model)
    variables = random_variables(learner, support, query)
    prediction = jax.tree.map(np.asarray, jax.jit(learner.apply)(variables, support, query))
    return config, variables, support, query, prediction


def test_query_similarity_is_added_with_its_weight(small):
    logits, parts = small[-1].logits, small[-1].auxiliary
    assert set(parts) == {'temporal_matching', 'query_similarity'}
    np.testing.assert_allclose(
        logits, parts['temporal_matching'] + 0.1 * parts['query_similarity'], rtol=1e-6
    )


def test_bytes_and_unit_floats_are_the_same_frames(small):
    config, variables, *frames, prediction = small
    run = jax.jit(fsar_jax.create_learner(config.model).apply)
    of_floats = run(variables, *(np.float32(x / 255.0) for x in frames))
    np.testing.assert_allclose(of_floats.logits, prediction.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('mode', ['split', 'joint', 'frozen'])
def test_batch_norm_sees_support_and_query_as_the_config_says(small, mode):
    config, variables, support, query, _ = small
    config = config.copy_and_resolve_references()
    config.model.backbone.batch_norm = mode
    learner = fsar_jax.create_learner(config.model)
    updated = jax.jit(
        lambda: learner.apply(
            variables,
            support,
            query,
            train=True,
            rngs={'dropout': jax.random.key(0)},
            mutable=['batch_stats'],
        )[1]
    )()
    stem = lambda stats: stats['batch_stats']['backbone']['bn1']['mean']
    weight = variables['params']['backbone']['conv1']['kernel']
    mean = lambda videos: jax.lax.conv_general_dilated(
        videos.reshape(-1, 32, 32, 3) / 255.0,
        weight,
        (4, 4),
        ((2, 2), (2, 2)),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    ).mean((0, 1, 2))
    before = stem(variables)
    groups = {
        'split': [support, query],
        'joint': [jnp.concatenate([support.reshape(-1, *query.shape[1:]), query])],
        'frozen': [],
    }[mode]
    expected = before
    for videos in groups:
        expected = 0.9 * expected + 0.1 * mean(videos)
    np.testing.assert_allclose(stem(updated), expected, rtol=1e-4, atol=1e-5)


class OfAUser(Stage):
    """A backbone that knows nothing of parts of a batch."""

    @nn.compact
    def __call__(self, frames, train=False):
        x = nn.Conv(3, (3, 3), (8, 8))(frames)
        return nn.BatchNorm(use_running_average=not train)(x)


class WithSetup(FrameNetwork):
    """A backbone of a user that makes its submodules before the call."""

    def setup(self):
        self.conv = nn.Conv(3, (3, 3), (8, 8))
        self.bn = BatchNorm(**self.norm)

    def __call__(self, frames, train=False):
        return self.bn(self.conv(frames), train)


def test_a_bound_learner_answers_twice(small):
    config, variables, support, query, prediction = small
    bound = fsar_jax.create_learner(config.model).bind(variables)
    for _ in range(2):
        np.testing.assert_allclose(bound(support, query).logits, prediction.logits, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    'backbone, changes',
    [
        (ResNetSmall(width=4, temporal_shift=True, batch_norm_groups=2, remat=True), {}),
        (ResNet3D(width=2, blocks=(1,)), {}),
        (OfAUser(), {}),
        (WithSetup(), {}),
        (WithSetup(), {'trained': False}),
        (ResNetSmall(width=2), {'trained': False}),
        (ResNetSmall(width=2), {'batch_norm': 'frozen'}),
    ],
    ids=['tsm', '3d', 'own', 'setup', 'setup_not_trained', 'not_trained', 'frozen'],
)
def test_one_pass_of_the_backbone_equals_one_for_support_and_one_for_query(backbone, changes):
    """In maps, running statistics and gradients."""
    rng = np.random.default_rng(0)
    support, query = (rng.random((n, 2, 32, 32, 3)).astype(np.float32) for n in (2, 4))
    query /= 2  # shared statistics would show
    config = fsar_jax.default_config()
    config.model.matcher.name = 'prototypes'
    config.model.backbone.update(changes)
    frozen = config.model.backbone.batch_norm == 'frozen'
    backbone = backbone.clone(frozen=True) if frozen else backbone
    learner = fsar_jax.create_learner(config.model, backbone=backbone)
    variables = random_variables(learner, support[:, None], query)

    def maps(params, stats, videos, parts=()):
        maps, updated = learner.apply(
            {'params': params, 'batch_stats': stats},
            videos,
            True,
            parts,
            method='feature_maps',
            mutable=['batch_stats'],
        )
        return maps, updated['batch_stats']

    def together(params):
        both = jnp.concatenate([support, query])
        return maps(params, variables['batch_stats'], both, (len(support), len(query)))

    def apart(params):
        first, stats = maps(params, variables['batch_stats'], support)
        rest, stats = maps(params, stats, query)
        return jnp.concatenate([first, rest]), stats

    def with_gradient(run):
        def loss(params):
            maps, stats = run(params)
            return jnp.sum(jnp.sin(3 * maps)), (maps, stats)

        (_, outputs), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(
            variables['params']
        )
        return outputs, gradient

    (found, grad), (expected, expected_grad) = with_gradient(together), with_gradient(apart)
    chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-5)
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected_grad))
    chex.assert_trees_all_close(grad, expected_grad, rtol=0, atol=max(1e-4 * scale, 1e-30))


@pytest.mark.slow
def test_a_sampler_learns_through_a_backbone_that_is_not_trained():
    """No gradient for the weights of the backbone, but one for the frames before it."""
    rng = np.random.default_rng(0)
    support, query = (rng.random((*n, 2, 8, 8, 3)).astype(np.float32) for n in ((2, 1), (4,)))

    def gradients(trained):
        config = fsar_jax.default_config()
        config.model.matcher.name = 'prototypes'
        config.model.backbone.update(name='resnet_small', trained=trained, batch_norm='frozen')
        with config.unlocked():
            config.model.backbone.width = 2
        learner = fsar_jax.create_learner(config.model)
        variables = random_variables(learner, support, query)

        def logit(params, support):
            return learner.apply(variables | {'params': params}, support, query).logits[0, 0]

        return jax.grad(logit, (0, 1))(variables['params'], support)

    (weights, frames), (kept, same_frames) = jax.jit(
        lambda: [gradients(x) for x in (True, False)]
    )()
    assert any(np.any(x) for x in jax.tree.leaves(weights)) and np.any(frames)
    assert not any(np.any(x) for x in jax.tree.leaves(kept))
    np.testing.assert_allclose(same_frames, frames, rtol=1e-5, atol=1e-7)


def test_bfloat16_compute_keeps_float32_parameters_and_float32_logits_close(small):
    config, variables, support, query, prediction = small
    exact = prediction.logits
    config = config.copy_and_resolve_references()
    config.model.dtype = 'bfloat16'
    learner = fsar_jax.create_learner(config.model)
    rounded = jax.jit(learner.apply)(variables, support, query).logits
    assert rounded.dtype == jnp.float32
    assert np.abs(rounded - exact).max() <= 0.01 * np.abs(exact).max()
    shapes = jax.eval_shape(lambda: learner.init(jax.random.key(0), support, query))
    assert {x.dtype.name for x in jax.tree.leaves(shapes)} == {'float32'}


def test_loss_is_summed_or_averaged_over_queries_and_weighted():
    logits, similarity = np.random.default_rng(0).normal(size=(2, 6, 3)).astype(np.float32)
    labels = np.array([0, 0, 1, 1, 2, 2])
    prediction = fsar_jax.Prediction(
        logits + 0.1 * similarity, {'temporal_matching': logits, 'query_similarity': similarity}
    )

    @jax.jit
    def losses(prediction):
        config = fsar_jax.default_config()
        config.model.query_similarity.weight = 0.3
        found = []
        for config.train.loss_reduction in ('sum', 'mean'):
            found.append(episode_loss(prediction, labels, config))
        return found

    summed, averaged = losses(prediction)
    each = [
        -np.log(np.exp(x)[np.arange(6), labels] / np.exp(x).sum(-1)) for x in (logits, similarity)
    ]
    np.testing.assert_allclose(summed, each[0].sum() + 0.3 * each[1].sum(), rtol=1e-6)
    np.testing.assert_allclose(averaged, each[0].mean() + 0.3 * each[1].mean(), rtol=1e-6)


@pytest.mark.parametrize(
    'key, value, message',
    [
        (
            'model.matcher.name',
            'otter',
            "config.model.matcher.name='otter' is not one of prototypes",
        ),
        ('model.sampler.name', 'x', "config.model.sampler.name='x' is not one of uniform"),
        (
            'model.enrichment.patch',
            'x',
            "config.model.enrichment.patch='x' is not one of self_attention",
        ),
        ('model.backbone.name', 'x', "config.model.backbone.name='x' is not one of features"),
    ],
)
def test_unknown_names_list_the_known_ones(key, value, message):
    config = fsar_jax.default_config()
    config.update_from_flattened_dict({key: value})
    with pytest.raises(ValueError, match=message.replace('.', r'\.')):
        fsar_jax.create_learner(config.model)
