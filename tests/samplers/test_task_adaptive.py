"""VIM's sampler: the published module, and what it may and may not look at."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_scan import TinyScan

from fsar_jax.layers import sinusoidal_positions
from fsar_jax.samplers import amplifier
from fsar_jax.samplers.task_adaptive import (
    SPATIAL,
    TaskAdaptiveSampler,
    TaskGenerator,
    tiled_class_means,
)
from fsar_jax.weights.convert import convert
from fsar_jax.weights.entries import entries_of
from fsar_jax.weights.vim import SAMPLER, UNUSED

last = lambda x: np.moveaxis(x, -3, -1)  # [..., C, h, w] → [..., h, w, C]


def tiny(**changes):
    return TaskAdaptiveSampler(
        TinyScan(),
        **{
            'frames': 3,
            'variant': 'code',
            'scan_size': 16,
            'hidden': 8,
            'task_dim': 4,
            'num_samples': 40,
            'samples_per_chunk': 16,
            'sigma': 0.2,
            **changes,
        },
    )


def episode(dense=7, size=20, queries=3):
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.integers(0, 256, (*shape, dense, size, size, 3), np.uint8)
    return draw(2, 2), draw(queries)


def run(sampler, support, query, train=False):
    """A whole episode as the learner calls it."""
    way, shot = support.shape[:2]
    scanned = sampler.scan(support.reshape(-1, *support.shape[2:]), train)
    support, query = sampler.sample_episode(
        jax.tree.map(lambda x: x.reshape(way, shot, *x.shape[1:]), scanned),
        sampler.scan(query, train),
        train,
    )
    auxiliary = {f'support_{name}': x for name, x in support.items()} | {
        f'query_{name}': x for name, x in query.items()
    }
    return support['frames'], query['frames'], auxiliary


def variables(sampler):
    """Random values for every parameter, drawn without compiling the start of each."""
    shapes = jax.eval_shape(
        lambda key: sampler.init(key, *episode(), method=run), jax.random.key(0)
    )
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: rng.normal(0.0, 0.5, x.shape).astype(x.dtype), shapes)


def published_variables(f):
    dim, hidden = f.meta['dim'], f.meta['hidden']
    shapes = {'evaluator/kernel': (2 * dim, hidden), 'evaluator/bias': (hidden,)}
    if f.meta['task_adaptive']:
        task = f.meta['z_dim']
        shapes |= {
            'generator/encoder/kernel': (dim, 2 * task),
            'generator/encoder/bias': (2 * task,),
            'generator/frame_weights/kernel': (task, hidden),
            'generator/frame_weights/bias': (hidden,),
        }
    else:
        shapes |= {'score/kernel': (hidden, 1), 'score/bias': (1,)}
    shapes = {f'params/sampler/{path}': shape for path, shape in shapes.items()}
    return convert(f.weights, entries_of(SAMPLER, shapes), UNUSED)['params']['sampler']


@pytest.mark.parametrize('name', ['vim_generator_a', 'vim_generator_b'])
def test_generator_equals_published(published, assert_close_to_published, name):
    f = published(name)
    outputs = f.meta['out']
    generator = TaskGenerator(outputs + f.meta['bias'], f.meta['z_dim'], 'code')
    params = {
        ours: {
            'kernel': jnp.asarray(f.weights[f'{theirs}.weight'].T),
            'bias': jnp.asarray(f.weights[f'{theirs}.bias']),
        }
        for ours, theirs in (('encoder', 'encoder'), ('frame_weights', 'gen'))
    }

    def outputs_of(params, guide, noise):
        theta = generator.apply({'params': params}, guide[None], noise[0])['frames']
        return {
            'weight': theta[:outputs] / jnp.linalg.norm(theta[:outputs]),
            'bias': theta[outputs:],
        }

    def weighted(*x):
        outputs = outputs_of(*x)
        return sum((outputs[key] * y.ravel()).sum() for key, y in f.cotangents.items()), outputs

    weighted = jax.jit(jax.grad(weighted, (0, 1, 2), has_aux=True))
    gradients, ours = weighted(params, f.inputs['task_feature'], f.inputs['noise'])
    for key in f.cotangents:
        assert_close_to_published(ours[key], f.outputs[key].ravel(), key)
    assert_close_to_published(
        gradients[1], f.gradients['task_feature'], 'gradient of the task feature'
    )
    assert_close_to_published(gradients[2], f.gradients['noise'], 'gradient of the noise')
    for name, theirs in (('encoder', 'encoder'), ('frame_weights', 'gen')):
        assert_close_to_published(
            gradients[0][name]['kernel'], f.weight_gradients[f'{theirs}.weight'].T, theirs
        )
        assert_close_to_published(
            gradients[0][name]['bias'], f.weight_gradients[f'{theirs}.bias'], theirs
        )


@pytest.mark.parametrize(
    'name',
    [
        'vim_selector_3shot_a',
        *(
            pytest.param(f'vim_selector_{x}_a', marks=pytest.mark.slow)
            for x in ('plain', '1shot', 'query')
        ),
    ],
)
def test_selector_equals_published(published, assert_close_to_published, name):
    f = published(name)
    meta, size = f.meta, f.meta['img_size']
    videos, dense, adaptive = meta['videos'], meta['M'], bool(meta['task_adaptive'])
    sampler = TaskAdaptiveSampler(
        None,
        frames=meta['k'],
        variant='code',
        hidden=meta['hidden'],
        task_dim=meta.get('z_dim') or 1,
        adaptive=adaptive,
        sigma=meta['sigma'],
        num_samples=meta['num_samples'],
    )
    by_video = lambda x: x.reshape(videos, dense, *x.shape[1:])

    def outputs_of(params, inputs, train):
        sampler_of = lambda method, *x: sampler.apply({'params': params}, *x, method=method)
        features = by_video(inputs['features'])
        guide = features.mean(1)
        if meta['shot'] > 1:
            guide = tiled_class_means(guide, meta['way'])
        if 'weight' in inputs:
            weights = {'frames': inputs['weight'][0]}
        else:
            weights = sampler_of(
                'task_weights', guide, inputs['generator_noise'][0] if adaptive else None
            )
        noise = jnp.asarray(f.inputs['noise'].swapaxes(0, 1))
        _, chosen, scores = sampler_of('choose', features, guide, weights, train, noise)
        maps = by_video(amplifier.stage_saliency([inputs[key] for key in ('f2', 'f3', 'f4')]))
        maps = amplifier.min_max_enlarged(maps, size, size)
        outputs = {
            'scores': scores,
            'selected_features': jnp.einsum('btm,bmc->btc', chosen, features),
            'indices': chosen,
            'guide': jnp.broadcast_to(guide[:, None], features.shape),
            'selected_maps': amplifier.enlarge(
                jnp.einsum('btm,bmhw->bthw', chosen, maps), size, size
            ),
        }
        if adaptive:
            outputs['weight'] = weights['frames'][None]
        return outputs

    inputs = {
        key: last(x) if key in ('f2', 'f3', 'f4') else jnp.asarray(x)
        for key, x in f.inputs.items()
        if key != 'noise'
    }
    params = published_variables(f)
    total = lambda params, inputs: sum(
        (outputs_of(params, inputs, True)[key] * y).sum() for key, y in f.cotangents.items()
    )
    everything = lambda *x: (
        outputs_of(*x, True),
        outputs_of(*x, False),
        jax.grad(total, (0, 1))(*x),
    )
    soft, hard, gradients = jax.jit(everything)(params, inputs)
    for key, value in soft.items():
        assert_close_to_published(value, f.outputs[key], key)
    for key in ('indices', 'selected_features', 'selected_maps'):
        assert_close_to_published(hard[key], f.outputs[f'eval/{key}'], f'{key} at test')
    for key, value in f.gradients.items():
        assert_close_to_published(
            gradients[1][key], last(value) if value.ndim == 4 else value, f'gradient of {key}'
        )
    checked = {'evaluator.1': gradients[0]['evaluator']}
    if 'generator' in gradients[0]:
        checked |= {
            'generator.encoder': gradients[0]['generator']['encoder'],
            'generator.gen': gradients[0]['generator']['frame_weights'],
        }
    if not adaptive:
        checked['evaluator.3'] = gradients[0]['score']
    for theirs, ours in checked.items():
        if f'{theirs}.weight' in f.weight_gradients:
            assert_close_to_published(
                ours['kernel'], f.weight_gradients[f'{theirs}.weight'].T, theirs
            )
            assert_close_to_published(ours['bias'], f.weight_gradients[f'{theirs}.bias'], theirs)


@pytest.mark.slow
@pytest.mark.parametrize(
    'changes',
    [
        dict(variant='paper'),
        dict(variant='code', spatial='crop'),
        dict(variant='code', spatial='learned_crop'),
    ],
)
def test_an_episode_in_training(changes):
    """Shapes; a query's frames depend on the support and on itself, not on another query; every
    parameter has a gradient."""
    sampler = tiny(**changes)
    support, query = episode()
    drawn = variables(sampler)
    ramp = np.linspace(0.0, 1.0, 20, dtype=np.float32)[:, None]

    @jax.jit
    def apply(support, query):
        def value(params):
            found = sampler.apply(
                {**drawn, 'params': params},
                support,
                query,
                True,
                method=run,
                rngs={'sampler': jax.random.key(1)},
            )
            return jnp.square(found[0]).mean() + (found[1] * ramp).mean(), found

        return jax.grad(value, has_aux=True)(drawn['params'])

    gradients, (frames, of_query, auxiliary) = jax.tree.map(np.asarray, apply(support, query))
    assert frames.shape == (2, 2, 3, 20, 20, 3) and of_query.shape == (3, 3, 20, 20, 3)
    assert auxiliary['support_indices'].shape == (2, 2, 3) and auxiliary['query_scores'].shape == (
        3,
        7,
    )
    assert auxiliary['query_dense_features'].shape == (3, 8) and auxiliary[
        'support_selected_features'
    ].shape == (2, 2, 8)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert np.isfinite(gradient).all() and np.abs(gradient).max() > 0, jax.tree_util.keystr(
            path
        )
    changed = np.concatenate([query[:2], 255 - query[2:]])
    _, (_, of_query2, auxiliary2) = jax.tree.map(np.asarray, apply(support, changed))
    np.testing.assert_array_equal(of_query[:2], of_query2[:2])
    for name in auxiliary:
        if name.startswith('query'):
            np.testing.assert_array_equal(auxiliary[name][:2], auxiliary2[name][:2])
    assert not np.array_equal(of_query[2], of_query2[2])

    _, (*_, task) = apply(np.concatenate([255 - support[:1], support[1:]]), query)
    assert np.abs(auxiliary['query_scores'] - task['query_scores']).max() > 1e-6  # the task matters


def scored_by_hand(params, features, guides, summary):
    """Scores [B, M] of scan features [B, M, c] beside guides [B, c], 0 to 1, in float64; `summary`
    [videos, c] is what makes the weights of the task."""
    linear = lambda x, layer: x @ np.float64(layer['kernel']) + layer['bias']
    encoded = linear(summary, params['generator']['encoder']).mean(0)
    task = encoded[: len(encoded) // 2]
    weights = linear(task, params['generator']['frame_weights'])
    scores = np.zeros(features.shape[:2])
    for b, guide in enumerate(guides):
        both = np.concatenate([features[b], np.tile(guide, (len(features[b]), 1))], 1)
        places = np.asarray(sinusoidal_positions(*both.shape), np.float64)
        raw = np.maximum(linear(both + places, params['evaluator']), 0) @ weights
        scores[b] = (raw - raw.min()) / (raw.max() - raw.min())
    return scores


def test_at_test_frames_are_picked_exactly():
    """Those of the highest scores, which are as by hand: the guide of a query is its own mean, that
    of a support video the mean of a class (rows V6 and V7)."""
    sampler = tiny(spatial='none')
    support, query = episode()
    videos = np.concatenate([support.reshape(-1, *support.shape[2:]), query])

    @jax.jit
    def apply(v):
        features = sampler.apply(v, videos, method='scan')['features']
        return *sampler.apply(v, support, query, method=run), features

    drawn = variables(sampler)
    frames, of_query, auxiliary, features = jax.tree.map(np.asarray, apply(drawn))
    means = features.mean(1)
    classes = means[:4].reshape(2, 2, -1).mean(1)[[0, 1, 0, 1]]
    expected = scored_by_hand(
        drawn['params'], features, np.concatenate([classes, means[4:]]), classes
    )
    found = [auxiliary['support_scores'].reshape(4, -1), auxiliary['query_scores']]
    np.testing.assert_allclose(np.concatenate(found), expected, atol=1e-3)
    for indices, scores in zip(auxiliary['query_indices'], expected[4:], strict=True):
        np.testing.assert_array_equal(indices, np.sort(np.argsort(scores)[-3:]))
    assert of_query.dtype == jnp.uint8
    for b, indices in enumerate(auxiliary['query_indices']):
        assert (np.diff(indices) > 0).all()
        np.testing.assert_array_equal(of_query[b], query[b][indices])
    np.testing.assert_array_equal(frames[1, 0], support[1, 0][auxiliary['support_indices'][1, 0]])


def test_one_strategy_for_all_tasks():
    """adaptive=False: per video. Training at the 'schedule' value σ = 0 equals test; a video is
    sampled alike in any batch."""
    sampler = tiny(adaptive=False, spatial='none')
    query = episode()[1]
    drawn = variables(sampler)
    apply = jax.jit(
        lambda videos, sigma, train: sampler.apply(
            {**drawn, 'schedule': {'sigma': sigma}},
            videos,
            train,
            rngs={'sampler': jax.random.key(1)},
        ),
        static_argnums=2,
    )
    sampled, of_hard = (
        jax.tree.map(np.asarray, apply(query, 0.0, train)) for train in (False, True)
    )
    frames, hard = sampled['frames'], of_hard['frames']
    np.testing.assert_allclose(hard, frames.astype(np.float32) / 255.0, atol=1e-6)
    np.testing.assert_array_equal(of_hard['indices'], sampled['indices'])
    np.testing.assert_allclose(
        of_hard['selected_features'], sampled['selected_features'], atol=1e-5
    )
    assert np.abs(np.asarray(apply(query, 0.5, True)['frames']) - hard).max() > 0.05
    moved = np.asarray(apply(query[::-1], 0.0, False)['frames'])
    np.testing.assert_array_equal(moved[::-1], frames)


@pytest.mark.slow
def test_off_at_test_it_takes_evenly_spaced_frames_as_they_are():
    support, query = episode()
    sampler = tiny(at_test=False)
    frames = jax.jit(lambda v: sampler.apply(v, support, query, method=run)[1])(variables(sampler))
    np.testing.assert_array_equal(frames, query[:, [0, 3, 6]])


@pytest.mark.slow
def test_without_a_choice_in_time_it_amplifies_evenly_spaced_frames():
    support, query = episode()
    even = query[:, [0, 3, 6]]
    sampler = tiny(temporal=False, adaptive=False)
    drawn = variables(sampler)
    assert set(drawn['params']) == {'scan_network'}
    frames, auxiliary = jax.jit(lambda v: sampler.apply(v, support, query, method=run)[1:])(drawn)

    @jax.jit
    def expected(saliency):
        positions = amplifier.amplified_positions(saliency, 20, 20, 'code')
        return amplifier.resample(even / np.float32(255.0), *positions)

    np.testing.assert_allclose(frames, expected(auxiliary['query_saliency']), atol=1e-5)


def test_the_warp_of_the_paper_reads_no_black_line_and_leaves_the_published_map_as_it_is():
    maps = jax.random.uniform(jax.random.key(3), (2, 5, 5)) ** 4
    sampler = tiny(warp='paper')
    assert sampler.variant == 'code'
    places = jnp.stack(sampler.positions(maps, 20, 20))
    expected = jnp.stack(amplifier.amplified_positions(maps, 20, 20, 'paper'))
    np.testing.assert_array_equal(places, expected)
    assert places.min() == 0 and jnp.stack(tiny().positions(maps, 20, 20)).min() == -1
    total = lambda sampler, maps: jnp.stack(sampler.positions(maps, 20, 20)).sum()
    moved = lambda sampler: np.abs(jax.grad(lambda maps: total(sampler, maps))(maps)).max()
    assert moved(sampler) == 0 and moved(tiny(variant='paper')) > 0
    assert moved(tiny(variant='paper', warp='code')) == 0


def test_one_warp_for_the_clip_is_by_the_mean_of_the_maps_of_its_frames():
    support, query = episode()
    frame, clip = (tiny(adaptive=False, spatial_per=per) for per in ('frame', 'clip'))
    drawn = variables(frame)
    once = lambda sampler: jax.jit(lambda: sampler.apply(drawn, query))()
    own, shared = once(frame), once(clip)
    np.testing.assert_array_equal(own['indices'], shared['indices'])
    mean = np.asarray(own['saliency']).mean(1, keepdims=True)
    np.testing.assert_allclose(
        shared['saliency'], np.broadcast_to(mean, own['saliency'].shape), rtol=1e-6
    )
    assert np.abs(own['frames'] - shared['frames']).max() > 0.05
    assert frame.frames_look_alike and not clip.frames_look_alike


@pytest.mark.parametrize('spatial', SPATIAL)
def test_all_frames_hold_what_a_test_samples(spatial):
    _, query = episode()
    sampler = tiny(adaptive=False, spatial=spatial)

    @jax.jit
    def both(variables):
        scanned = sampler.apply(variables, query, method='scan')
        every = sampler.apply(variables, scanned, method='all_frames')['frames']
        return every, sampler.apply(variables, query)

    every, sampled = jax.tree.map(np.asarray, both(variables(sampler)))
    assert every.shape == query.shape
    chosen = np.take_along_axis(every, sampled['indices'][..., None, None, None], 1)
    np.testing.assert_allclose(chosen, sampled['frames'], atol=1e-6)


def test_normalized_features_count_the_same_at_any_scale():
    features = np.random.default_rng(0).normal(size=(3, 7, 8)).astype(np.float32)
    drawn = variables(tiny(adaptive=False))

    def scores(scale, normalize):
        sampler = tiny(adaptive=False, normalize_features=normalize)
        x = scale * features
        return sampler.apply(drawn, x, x.mean(1), {}, method='choose')[2]

    np.testing.assert_allclose(scores(1e3, True), scores(10.0, True), atol=1e-3)
    assert np.abs(scores(1e3, False) - scores(10.0, False)).max() > 0.03


def test_normalized_guides_make_the_same_weights_at_any_scale():
    """Of the support; and a query is scored beside a guide of the same kind."""
    features = np.random.default_rng(0).normal(size=(4, 7, 8)).astype(np.float32)
    drawn = variables(tiny(variant='paper'))

    def weights(scale, normalize):
        sampler = tiny(variant='paper', normalize_guide=normalize)
        guides = sampler.apply(drawn, scale * features, 2, method='guides')
        own = sampler.apply(drawn, scale * features, method='guide')
        np.testing.assert_array_equal(own, guides)
        return sampler.apply(drawn, guides, method='task_weights')['frames']

    np.testing.assert_allclose(weights(1e3, True), weights(10.0, True), atol=1e-4)
    assert np.abs(weights(10.0, False) - weights(0.1, False)).max() > 0.03


def test_errors_are_one_line():
    with pytest.raises(ValueError, match='choose 8 frames of a video, but it is given 7'):
        tiny(frames=8).init(jax.random.key(0), *episode(), method=run)
    with pytest.raises(
        ValueError, match="spatial='zoom' is not one of amplify, crop, learned_crop, none"
    ):
        tiny(spatial='zoom').init(jax.random.key(0), *episode(), method=run)
