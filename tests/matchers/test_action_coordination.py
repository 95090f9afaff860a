"""TA2N's coordination of pairs: the published modules and heads, the split convolution, chunks and
ablations."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import random_variables

import fsar_jax
from fsar_jax.matchers import ActionCoordination, Prototypes, SetMatching
from fsar_jax.matchers.offset_masks import OffsetPredictor, offset_mask, offset_weights
from fsar_jax.mutual_information import inter_video_loss
from fsar_jax.training.losses import episode_loss
from fsar_jax.weights import from_torch


def maps(x):
    """Published [..., C, T, H, W] → ours [..., L, h, w, C]."""
    return np.moveaxis(x, -4, -1)


def variables_of(weights, **matcher):
    """Variables of the matcher, by way of the published names; what a file lacks is left at
    zero."""
    config = fsar_jax.default_config()
    config.model.backbone.name = 'features'
    config.model.matcher.update(name='action_coordination', **matcher)
    full = dict(weights)
    channels = next(
        (
            w.shape[0]
            for k, w in weights.items()
            if 'net' in k and w.ndim == 3 and not k.startswith('mvnet')
        ),
        0,
    )
    channels = channels or weights['mvnet.0.weight'].shape[1] // 2
    shapes = {
        f'{name}net{kind}.weight': (channels, channels, 1)
        for name in ('key', 'query', 'value')
        for kind in ('', '_multi')
    }
    shapes |= {
        'mvnet.0.weight': (128, 2 * channels, 3, 3, 3),
        'mvnet.0.bias': (128,),
        'mvnet.4.weight': (128, 128, 3, 3, 3),
        'mvnet.4.bias': (128,),
        'mvnet.10.weight': (64, 128, 1),
        'mvnet.10.bias': (64,),
        'mvnet.12.weight': (2, 64, 1),
        'mvnet.12.bias': (2,),
    }
    shapes |= {
        f'mvnet.{i}.{leaf}': (128,)
        for i in (1, 5)
        for leaf in ('weight', 'bias', 'running_mean', 'running_var')
    }
    for name, shape in shapes.items():
        full.setdefault(name, np.zeros(shape, np.float32))
    places = {name: ('align.' if 'multi' in name else 'align.secondstage.') + name for name in full}
    variables = from_torch({places[name]: value for name, value in full.items()}, config.model)
    return {collection: tree['matcher'] for collection, tree in variables.items()}


def pair_layout(x):
    """Ours [Q, way, ...] → published, class slow: [way, Q, ...]."""
    return x.swapaxes(0, 1)


@pytest.mark.parametrize('name', ['ta2n_mask_a', 'ta2n_mask_b'])
def test_masks_equal_published(published, assert_close_to_published, name):
    f = published(name)
    size, offsets = f.meta['resolution'], jnp.asarray(f.inputs['offsets'])

    def weighted(offsets):
        mask = offset_mask(offsets, size, size)
        return (mask * f.cotangents['mask']).sum(), mask

    gradient, mask = jax.jit(jax.grad(weighted, has_aux=True))(offsets)
    assert_close_to_published(mask, f.outputs['mask'], 'mask')
    assert_close_to_published(gradient, f.gradients['offsets'], 'gradient')


@pytest.mark.parametrize('name', ['ta2n_tc_a', pytest.param('ta2n_tc_b', marks=pytest.mark.slow)])
def test_temporal_coordination_equals_published(published, assert_close_to_published, name):
    f = published(name)
    matcher, variables = ActionCoordination(), variables_of(f.weights)
    inputs = maps(f.inputs['support']), maps(f.inputs['query'])

    def weighted(variables, support, query):
        support, _, moved, _ = matcher.apply(variables, support, query, method='coordinate_time')
        outputs = {
            'support': support,
            'query_aligned': pair_layout(query[:, None] + moved[:, :, :, None, None]),
        }
        return sum((y * maps(f.cotangents[key])).sum() for key, y in outputs.items()), outputs

    weighted = jax.jit(jax.grad(weighted, (0, 1, 2), has_aux=True))
    gradients, outputs = weighted(variables, *inputs)
    for key, value in outputs.items():
        assert_close_to_published(value, maps(f.outputs[key]), key)
    for key, value in zip(('support', 'query'), gradients[1:], strict=True):
        assert_close_to_published(value, maps(f.gradients[key]), f'gradient of {key}')
    for key in ('key', 'query', 'value'):
        assert_close_to_published(
            gradients[0]['params'][key]['kernel'],
            f.weight_gradients[f'{key}net.weight'][..., 0].T,
            key,
        )


def published_space(f):
    """A function (predictor, support, aligned query, train) → (outputs, what they update) with the
    weights of the file, and its inputs."""
    matcher = ActionCoordination(perturbation=f.meta['perturb_delta'])
    variables = jax.tree.map(jnp.asarray, variables_of(f.weights))
    predictor = {collection: tree['offsets'] for collection, tree in variables.items()}
    inputs = maps(f.inputs['support']), maps(f.inputs['query_aligned'])
    height, width = f.meta['H'], f.meta['W']

    def run(predictor, support, aligned, train):
        aligned = aligned.swapaxes(0, 1)  # ours: [Q, way, L, h, w, C]
        offsets, updated = OffsetPredictor().apply(
            predictor, support, aligned, train=train, mutable=['batch_stats']
        )
        of_support, of_query = matcher.apply({}, offsets, height, width, method='pooling_weights')
        pairs = jnp.concatenate(
            [
                jnp.einsum('qwlij,wlijc->qwlc', of_support, support),
                jnp.einsum('qwlij,qwlijc->qwlc', of_query, aligned),
            ],
            -1,
        )
        outputs = {
            'pairs': pair_layout(pairs).swapaxes(-1, -2)[..., None, None],
            'offsets': pair_layout(offsets).reshape(-1, *offsets.shape[2:]),
        }
        return outputs, updated

    return run, (predictor, *inputs)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['ta2n_sc_a', 'ta2n_sc_b'])
def test_batch_statistics_of_the_offsets_equal_published(
    published, assert_close_to_published, name
):
    f = published(name)
    run, inputs = published_space(f)
    outputs, updated = jax.jit(lambda *x: run(*x, True))(*inputs)
    for key, value in outputs.items():
        assert_close_to_published(value, f.outputs[f'bn_batch/{key}'], key)
    for ours, theirs in (('bn1', '1'), ('bn2', '5')):
        for leaf in ('mean', 'var'):
            assert_close_to_published(
                updated['batch_stats'][ours][leaf],
                f.outputs[f'bn_batch/mvnet.{theirs}.running_{leaf}'],
                leaf,
            )


@pytest.mark.slow
@pytest.mark.parametrize('name', ['ta2n_sc_a', 'ta2n_sc_b'])
def test_spatial_coordination_equals_published(published, assert_close_to_published, name):
    f = published(name)
    run, inputs = published_space(f)

    def weighted(*x):
        outputs, _ = run(*x, False)
        return sum((y * f.cotangents[key]).sum() for key, y in outputs.items()), outputs

    gradients, outputs = jax.jit(jax.grad(weighted, (0, 1, 2), has_aux=True))(*inputs)
    for key, value in outputs.items():
        assert_close_to_published(value, f.outputs[key], key)
    assert_close_to_published(gradients[1], maps(f.gradients['support']), 'gradient of the support')
    assert_close_to_published(
        gradients[2], maps(f.gradients['query_aligned']), 'gradient of the query'
    )
    ours = gradients[0]['params']
    assert_close_to_published(
        ours['conv1_bias'], f.weight_gradients['mvnet.0.bias'], 'bias of the first convolution'
    )
    assert_close_to_published(
        ours['offset']['kernel'].T[..., None], f.weight_gradients['mvnet.12.weight'], 'last layer'
    )


@pytest.mark.slow
def test_both_coordinations_equal_published(published, assert_close_to_published):
    f = published('ta2n_acm_a')
    matcher, variables = ActionCoordination(), variables_of(f.weights)
    inputs = maps(f.inputs['support']), maps(f.inputs['query'])

    def both(module, prototypes, query):
        prototypes, values, moved, auxiliary = module.coordinate_time(prototypes, query)
        return module.coordinate_space(prototypes, query, values, moved, auxiliary['evolution'])

    def weighted(variables, *inputs):
        p, q, offsets = matcher.apply(variables, *inputs, method=both)
        pairs = pair_layout(jnp.concatenate([p, q], -1)).swapaxes(-1, -2)[..., None, None]
        outputs = {'pairs': pairs, 'offsets': pair_layout(offsets).reshape(-1, *offsets.shape[2:])}
        return sum((y * f.cotangents[key]).sum() for key, y in outputs.items()), outputs

    weighted = jax.jit(jax.grad(weighted, (0, 1, 2), has_aux=True))
    gradients, outputs = weighted(variables, *inputs)
    for key, value in outputs.items():
        assert_close_to_published(value, f.outputs[key], key)
    for key, value in zip(('support', 'query'), gradients[1:], strict=True):
        assert_close_to_published(value, maps(f.gradients[key]), f'gradient of {key}')
    for key in ('key', 'query', 'value'):
        assert_close_to_published(
            gradients[0]['params'][key]['kernel'],
            f.weight_gradients[f'{key}net.weight'][..., 0].T,
            key,
        )


@pytest.mark.parametrize(
    'name', ['ta2n_insupport_a', pytest.param('ta2n_insupport_b', marks=pytest.mark.slow)]
)
def test_prototypes_of_several_shots_equal_published(published, assert_close_to_published, name):
    f = published(name)
    matcher, variables = ActionCoordination(), variables_of(f.weights)
    by_class = lambda x: x.reshape(f.meta['way'], f.meta['shot'], *x.shape[1:])
    support = by_class(maps(f.inputs['support']))

    def weighted(support):
        found, _ = matcher.apply(variables, support, support[:, 0], method='prototypes')
        return (found * maps(f.cotangents['prototype'])).sum(), found

    gradient, found = jax.jit(jax.grad(weighted, has_aux=True))(support)
    assert_close_to_published(found, maps(f.outputs['prototype']), 'prototype')
    assert_close_to_published(gradient, by_class(maps(f.gradients['support'])), 'gradient')


def published_head(f, **changes):
    """A function (support, query) → (logits, loss) with the weights of the file, and its inputs."""
    config = fsar_jax.default_config()
    config.model.backbone.name = 'features'
    config.model.enrichment.temporal_transform = True
    config.model.matcher.update(
        name='action_coordination', perturbation=f.meta['perturb_delta'], **changes
    )
    learner, variables = fsar_jax.create_learner(config.model), from_torch(f.weights, config.model)
    support, query = f.support_by_class(maps(f.inputs['support'])), maps(f.inputs['query'])

    def run(support, query):
        prediction = learner.apply(variables, support, query, train=False)
        return prediction.logits, episode_loss(prediction, f.inputs['query_labels'], config)

    return run, (support, query)


def test_logits_and_loss_of_the_head_equal_published(published, assert_close_to_published):
    """The layer norm over the classes, whose weights are in every published dict, follows by
    option."""
    f = published('ta2n_head_1shot_a')
    run, inputs = published_head(f)
    normalised, _ = published_head(f, distance_norm=True)
    (logits, loss), (norm, _) = jax.jit(lambda *x: (run(*x), normalised(*x)))(*inputs)
    assert_close_to_published(logits, f.outputs['logits'][0], 'logits')
    assert_close_to_published(loss, f.outputs['loss_sum'], 'loss')
    scale, bias = (f.weights[f'protypicalNet.norm_layer.{leaf}'] for leaf in ('weight', 'bias'))
    x = f.outputs['logits'][0].astype(np.float64)
    expected = (
        scale * (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) + bias
    )
    assert_close_to_published(norm, expected, 'normalised logits')


@pytest.mark.slow
@pytest.mark.parametrize('name', ['ta2n_head_1shot_a', 'ta2n_head_5shot_a'])
def test_head_equals_published(published, assert_close_to_published, name):
    f = published(name)
    run, inputs = published_head(f)

    def weighted(support, query):
        logits, loss = run(support, query)
        return (logits * f.cotangents['logits'][0]).sum() + loss * f.cotangents['loss_sum'], (
            logits,
            loss,
        )

    gradient, (logits, loss) = jax.jit(jax.grad(weighted, (0, 1), has_aux=True))(*inputs)
    assert_close_to_published(logits, f.outputs['logits'][0], 'logits')
    assert_close_to_published(loss, f.outputs['loss_sum'], 'loss')
    assert_close_to_published(
        gradient[0], f.support_by_class(maps(f.gradients['support'])), 'gradient of the support'
    )
    assert_close_to_published(gradient[1], maps(f.gradients['query']), 'gradient of the query')


def random_maps(way=3, shot=2, queries=5, length=4, size=4, channels=6):
    rng, clip = np.random.default_rng(5), (length, size, size, channels)
    return (
        rng.normal(size=(way, shot, *clip)).astype(np.float32),
        rng.normal(size=(queries, *clip)).astype(np.float32),
    )


def started(matcher, support, query):
    """Variables whose offsets and batch statistics are not at their trivial start."""
    variables = random_variables(matcher, support, query)
    rng = np.random.default_rng(1)
    move = lambda path, x: (
        np.asarray(x) + 0.3 * rng.normal(size=x.shape).astype(np.float32)
        if 'offset' in str(path[-2:])
        else x
    )
    return {**variables, 'params': jax.tree_util.tree_map_with_path(move, variables['params'])}


@pytest.mark.slow
def test_the_split_convolution_equals_the_one_on_pairs():
    support, query = random_maps(shot=1)
    support = support[:, 0]
    evolution = jax.nn.softmax(jax.random.normal(jax.random.key(1), (5, 3, 4, 4)))
    values = jax.random.normal(jax.random.key(2), (5, 4, 6))
    predictor = OffsetPredictor()
    variables = started(predictor, support, query[:, None])
    moved = jnp.einsum('qwxy,qyc->qwxc', evolution, values)
    whole = predictor.apply(variables, support, query[:, None] + moved[..., None, None, :])
    np.testing.assert_allclose(
        predictor.apply(variables, support, query[:, None], evolution, values), whole, atol=1e-5
    )
    assert np.abs(whole).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize('spatial', ['mask', 'grid', 'enumerate', 'none'])
def test_chunks_of_pairs_change_neither_logits_nor_gradients(spatial):
    support, query = random_maps(size=3)
    matchers = [ActionCoordination(spatial=spatial, pairs_per_chunk=n, frozen=True) for n in (0, 6)]
    variables = started(matchers[0], support, query)

    def run(matcher):
        def total(params):
            logits, auxiliary = matcher.apply(
                {**variables, 'params': params}, support, query, train=True
            )
            return jnp.square(logits).sum(), (logits, auxiliary)

        return jax.jit(jax.grad(total, has_aux=True))(variables['params'])

    (gradients, outputs), (chunked_gradients, chunked_outputs) = map(run, matchers)
    assert jax.tree.structure(outputs) == jax.tree.structure(chunked_outputs)
    # Sums of other parts round otherwise, by as much as their largest terms do.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a, b, rtol=1e-4, atol=1e-4 + 1e-5 * np.abs(b).max()
        ),
        (gradients, outputs),
        (chunked_gradients, chunked_outputs),
    )


def test_without_either_coordination_it_is_the_prototype_matcher():
    support, query = random_maps()
    matcher = ActionCoordination(temporal=False, spatial='none')
    logits, _ = jax.jit(matcher.apply)({}, support, query)
    plain = jax.jit(Prototypes().apply)({}, support.mean((-3, -2)), query.mean((-3, -2)))
    np.testing.assert_allclose(logits, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('variant', ['code', 'paper'])
def test_the_mean_prototype_aligns_pairs_and_no_shots(variant):
    """VIM, Sec. 3.5.1, one pair after the other: the prototype is the mean of the shots, the query
    is brought in step with it."""
    support, query = random_maps(shot=3)
    matcher = ActionCoordination(spatial='none', variant=variant, prototype='mean')
    variables = started(matcher, support, query)
    assert variables['params'].keys() == {'key', 'query', 'value'}
    logits, _ = jax.jit(matcher.apply)(variables, support, query)
    key, ask, value = (
        np.asarray(variables['params'][name]['kernel'], np.float64)
        for name in ('key', 'query', 'value')
    )
    for q, of_query in enumerate(np.asarray(query, np.float64).mean((2, 3))):
        for c, shots in enumerate(np.asarray(support, np.float64)):
            prototype, distance = sum(shots).mean((1, 2)) / 3, 0.0
            for p, frame in zip(prototype, of_query):
                scores = np.array([(p @ key) @ (other @ ask) for other in of_query]) / np.sqrt(
                    len(p)
                )
                share = np.exp(scores) / np.exp(scores).sum()
                x, y = (
                    p + p @ value,
                    frame + sum(s * (other @ value) for s, other in zip(share, of_query)),
                )
                distance += 1 - x @ y / np.linalg.norm(x) / np.linalg.norm(y)
            np.testing.assert_allclose(logits[q, c], -distance, rtol=1e-4)
    aligned = ActionCoordination(spatial='none', variant=variant)
    other, _ = jax.jit(aligned.apply)(started(aligned, support, query), support, query)
    assert np.abs(other - logits).max() > 1e-3


@pytest.mark.parametrize('temporal', (False, True))
def test_order_does_not_matter_without_space(temporal):
    """spatial='none' compares pooled pairs, before or after; and each has the shape of a pair, for
    the losses."""
    rng = np.random.default_rng(3)
    support, query = (
        rng.normal(size=shape).astype(np.float32) for shape in ((4, 1, 3, 2, 2, 6), (5, 3, 2, 2, 6))
    )
    found = []
    for order in ('temporal_first', 'spatial_first'):
        matcher = ActionCoordination(
            temporal=temporal, spatial='none', order=order, variant='paper'
        )
        variables = random_variables(matcher, support, query)
        run = jax.jit(partial(matcher.apply, train=True))
        logits, auxiliary = run(variables, support, query)
        assert auxiliary['aligned_frames'].shape == (5, 4, 3, 6) and auxiliary[
            'query_frames'
        ].shape == (5, 3, 6)
        labels = jnp.array([3, 0, 1, 2, 3])
        loss = jax.jit(inter_video_loss, static_argnums=4)(
            logits, labels, auxiliary['query_frames'], auxiliary['aligned_frames'], 'paper'
        )
        assert np.isfinite(loss)
        found.append(logits)
    np.testing.assert_allclose(*found, rtol=1e-5)


def test_enumerating_whole_offsets_finds_a_shifted_object():
    rng = np.random.default_rng(0)
    still = rng.standard_normal((1, 1, 2, 5, 5, 8)).astype(np.float32)
    query = np.roll(still[:, 0], (1, 2), axis=(2, 3))
    query[:, :, :1], query[:, :, :, :2] = (
        rng.standard_normal((1, 2, 1, 5, 8)),
        rng.standard_normal((1, 2, 5, 2, 8)),
    )
    run = lambda spatial: float(
        jax.jit(ActionCoordination(temporal=False, spatial=spatial).apply)({}, still, query)[0][
            0, 0
        ]
    )
    assert abs(run('enumerate')) < 1e-5 and run('none') < -0.05


def test_enumerated_weights_cover_the_intersection():
    support, query = offset_weights(3)
    assert support.shape == query.shape == (5, 3)
    np.testing.assert_allclose(support.sum(1), 1.0, rtol=1e-6)
    np.testing.assert_array_equal(support[0], [0, 0, 1])  # offset −2: one end each
    np.testing.assert_array_equal(query[0], [1, 0, 0])


@pytest.mark.parametrize('spatial', ['mask', 'grid'])
def test_both_sides_are_averaged_over_the_same_content(spatial):
    """Content moved by half the map: at the offset that says so both averages see it alike, at its
    opposite they do not."""
    matcher = ActionCoordination(spatial=spatial, perturbation=0.0, variant='paper')
    weights = jax.jit(lambda o: matcher.apply({}, o, 9, 9, method='pooling_weights'))
    still, moved = np.zeros((9, 9)), np.zeros((9, 9))
    still[4, 6], moved[4, 3] = 1.0, 1.0
    seen = lambda o: [
        float((w * x).sum())
        for w, x in zip(map(np.asarray, weights(np.float32(o))), (still, moved), strict=True)
    ]
    support, query = seen((0.75, 0.0))
    assert support > 0 and abs(support - query) < 0.3 * support
    assert np.asarray(weights(np.zeros(2, np.float32))[0]).min() >= 0


@pytest.mark.parametrize('variant', ['code', 'paper'])
@pytest.mark.parametrize('height, width', [(1, 1), (1, 3), (2, 1)])
def test_a_map_of_one_cell_is_averaged_as_it_is(variant, height, width):
    """At the largest offsets too, where the printed slope would leave a sum of 0 to divide by."""
    matcher = ActionCoordination(variant=variant)
    pool = jax.jit(
        lambda offset: matcher.apply({}, offset, height, width, True, method='pooling_weights')
    )
    for offset in ((0.0, 0.0), (0.75, 0.75), (-0.75, -0.75), (-0.75, 0.75)):
        weights = pool(np.float32(offset))
        for side in weights:
            np.testing.assert_allclose(np.sum(side), 1.0, rtol=1e-6)
            if (height, width) == (1, 1):
                np.testing.assert_array_equal(side, [[1.0]])


def test_the_paper_does_not_perturb_at_test():
    offsets = np.full((1, 1, 2, 2), 0.3, np.float32)
    run = lambda variant, train: jax.jit(
        lambda o: ActionCoordination(variant=variant).apply(
            {}, o, 7, 7, train, method='pooling_weights'
        )[0]
    )(offsets)
    assert np.abs(np.subtract(run('paper', True), run('paper', False))).max() > 1e-3
    np.testing.assert_array_equal(run('code', True), run('code', False))


@pytest.mark.parametrize('variant', ['code', 'paper'])
def test_the_reference_of_a_class_is_drawn_in_training_alone(variant):
    """Each class is aligned to one of its shots, whichever the key draws, as if it came first."""
    rng = np.random.default_rng(5)
    support = rng.normal(size=(2, 3, 4, 2, 2, 8)).astype(np.float32)
    query = rng.normal(size=(1, 4, 2, 2, 8)).astype(np.float32)
    make = partial(ActionCoordination, variant=variant, spatial='none')
    variables = random_variables(make(), support, query)
    of = lambda matcher: jax.jit(
        lambda support, key, train: matcher.apply(
            variables, support, query, train, rngs={'dropout': key}, method='prototypes'
        )[0],
        static_argnums=2,
    )
    fixed, drawn, seen = of(make()), of(make(reference='random')), set()
    first = [
        np.roll(support, -shot, axis=1)  # the mean over the shots does not see their order
        for shot in range(3)
    ]
    candidates = np.array([fixed(s, jax.random.key(0), True) for s in first])
    for seed in range(8):
        found = np.asarray(drawn(support, jax.random.key(seed), True))
        apart = np.abs(candidates - found).max((2, 3, 4, 5))  # [shot, class]
        assert (np.sort(apart, 0)[0] < 1e-6).all() and (np.sort(apart, 0)[1] > 1e-4).all()
        seen.add(tuple(apart.argmin(0).tolist()))
    assert len({row[0] for row in seen}) == 3 and any(row[0] != row[1] for row in seen)
    at_test = drawn(support, jax.random.key(1), False)
    np.testing.assert_array_equal(at_test, candidates[0])


def test_a_perturbation_halves_and_is_off_at_test():
    rng = np.random.default_rng(6)
    offsets = rng.uniform(-0.6, 0.6, (2, 3, 4, 2)).astype(np.float32)
    halving = ActionCoordination(perturbation=0.2, perturbation_every=40)
    schedule = halving.schedules(1000)['perturbation']
    steps = [0, 39, 40, 79, 80, 399]
    expected = [0.2 * 0.5 ** (step // 40) for step in steps]
    np.testing.assert_allclose([float(schedule(step)) for step in steps], expected, rtol=1e-6)
    assert ActionCoordination().schedules(1000) == {}
    assert ActionCoordination(perturbation_every=40, spatial='grid').schedules(1000) == {}

    def weights(matcher, train, **variables):
        run = lambda v: matcher.apply(v, offsets, 5, 5, train, method='pooling_weights')
        return np.stack(jax.jit(run)(variables))

    constant = lambda amplitude: ActionCoordination(perturbation=amplitude)
    halving = constant(0.2).clone(perturbation_every=40)
    now = weights(halving, True, schedule={'perturbation': np.float32(0.05)})
    np.testing.assert_allclose(now, weights(constant(0.05), True), atol=1e-6)
    assert np.abs(now - weights(constant(0.2), True)).max() > 1e-3
    np.testing.assert_allclose(weights(halving, True), weights(constant(0.2), True), atol=1e-6)
    np.testing.assert_array_equal(weights(halving, False), weights(constant(0.0), False))


def test_a_classifier_that_nothing_would_train_is_refused():
    metric = SetMatching(classes=3, classifier_weight=0.6)
    ActionCoordination(spatial='mask', metric=metric).check(8)
    with pytest.raises(ValueError, match="spatial='enumerate' leaves no aligned clips to train"):
        ActionCoordination(spatial='enumerate', metric=metric).check(8)
    ActionCoordination(spatial='enumerate', metric=metric.clone(classifier_weight=0.0)).check(8)
