"""The temporal transform of TA2N: published outputs, batch statistics and gradients; and what a
window does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import random_variables

from fsar_jax.enrichment import TemporalTransform
from fsar_jax.enrichment.temporal_transform import warp
from fsar_jax.weights.convert import convert
from fsar_jax.weights.entries import entries_of
from fsar_jax.weights.parameters import shapes_of
from fsar_jax.weights.published import COUNTER
from fsar_jax.weights.ta2n import TEMPORAL_TRANSFORM


def maps(x):
    """Published [n, C, T, H, W] → ours [B, L, h, w, C]."""
    return np.moveaxis(x, 1, -1)


@pytest.mark.parametrize('name', ['ta2n_ttm_a', pytest.param('ta2n_ttm_b', marks=pytest.mark.slow)])
def test_module_equals_published(published, assert_close_to_published, name):
    f = published(name)
    x = maps(f.inputs['x'])
    shapes, _ = shapes_of(TemporalTransform(), x.shape)
    shapes = {path.replace('/', '/temporal_transform/', 1): shapes[path] for path in shapes}
    entries = entries_of(TEMPORAL_TRANSFORM, shapes)

    def load(weights):
        weights = {f'align.firststage.{name}': value for name, value in weights.items()}
        converted = convert(weights, entries, COUNTER)
        return {key: tree['temporal_transform'] for key, tree in converted.items()}

    variables = load(f.weights)
    run = lambda variables, x, train: TemporalTransform(dropout=0.0).apply(
        variables, x, train, mutable=['batch_stats']
    )

    def weighted(variables, x):
        outputs = run(variables, x, False)
        return (outputs[0][0] * maps(f.cotangents['aligned'])).sum(), outputs

    both = lambda *x: (jax.grad(weighted, (0, 1), has_aux=True)(*x), run(*x, True))
    (gradients, (at_test, _)), (training, updated) = jax.jit(both)(variables, x)
    for prefix, (aligned, window) in (('', at_test), ('bn_batch/', training)):
        assert_close_to_published(aligned, maps(f.outputs[f'{prefix}aligned']), f'{prefix}aligned')
        assert_close_to_published(window, f.outputs[f'{prefix}theta'], f'{prefix}theta')
    for ours, theirs in (('bn1', '1'), ('bn2', '5')):
        for leaf in ('mean', 'var'):
            assert_close_to_published(
                updated['batch_stats'][ours][leaf],
                f.outputs[f'bn_batch/locnet.{theirs}.running_{leaf}'],
                leaf,
            )

    assert_close_to_published(gradients[1], maps(f.gradients['x']), 'gradient of the maps')
    expected = load({k: f.weight_gradients.get(k, np.zeros_like(v)) for k, v in f.weights.items()})[
        'params'
    ]
    for path, reference in jax.tree_util.tree_leaves_with_path(expected):
        mine = gradients[0]['params']
        for key in path:
            mine = mine[key.key]
        if np.any(reference):  # arrays over 6,000 entries are not in the file
            assert_close_to_published(mine, reference, jax.tree_util.keystr(path))


def test_windows_shrink_shift_mirror_and_end_in_zeros():
    clip = np.arange(1.0, 6.0, dtype=np.float32)[None, :, None]
    run = jax.jit(warp)
    read = lambda a, b: np.asarray(run(clip, np.float32([[a, b]])))[0, :, 0]
    np.testing.assert_allclose(read(1.0, 0.0), [1, 2, 3, 4, 5], atol=1e-6)
    np.testing.assert_allclose(read(-1.0, 0.0), [5, 4, 3, 2, 1], atol=1e-6)
    np.testing.assert_allclose(read(0.5, 0.0), [2, 2.5, 3, 3.5, 4], atol=1e-6)
    np.testing.assert_allclose(read(1.0, 0.5), [2, 3, 4, 5, 0], atol=1e-6)


def test_it_starts_with_nearly_the_whole_clip_and_learns_from_there():
    x = np.random.default_rng(0).normal(size=(3, 8, 4, 4, 5)).astype(np.float32)
    module = TemporalTransform()
    key = jax.random.key(1, impl='rbg')  # compiles in a fraction of the time of the default
    variables = jax.jit(module.init)(key, x)

    def total(params):
        warped, window = module.apply({**variables, 'params': params}, x)
        return jnp.square(warped).sum(), window

    gradient, window = jax.jit(jax.grad(total, has_aux=True))(variables['params'])
    np.testing.assert_allclose(window, np.tile(np.tanh([2.0, 0.0]), (3, 1)), atol=1e-6)
    assert np.abs(gradient['window']['kernel']).max() > 0


@pytest.mark.parametrize('length', [1, 5])
def test_frames_that_are_prepared_alone_give_the_same(length):
    x = np.random.default_rng(0).normal(size=(2, 7, 5, 4, 3)).astype(np.float32)
    chosen = np.sort(np.random.default_rng(1).permuted(np.tile(np.arange(7), (2, 1)), axis=1))
    chosen = chosen[:, :length]
    plain, prepared = TemporalTransform(), TemporalTransform(prepared=True)
    variables = random_variables(plain, x[:, :length])
    take = lambda x: np.take_along_axis(np.asarray(x), chosen[..., None, None, None], 1)

    @jax.jit
    def both(variables, x, of_clip, prepared_clip):
        return plain.apply(variables, of_clip), prepared.apply(variables, prepared_clip)

    frames = take(plain.apply(variables, x, method='prepare'))
    assert frames.shape == (2, length, 5, 4, 3 + 192)
    expected, found = both(variables, x, take(x), frames)
    for ours, theirs in zip(found, expected):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
