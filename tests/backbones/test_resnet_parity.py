"""Residual networks against the reference, through fsar_jax.weights: running and batch
statistics."""

import pathlib

import jax
import ml_collections
import numpy as np
import pytest

from fsar_jax import backbones
from fsar_jax.weights import backbone_from_torch

FIXTURES = pathlib.Path(__file__).parents[1] / 'fixtures'


def backbone_config(name, **changes):
    settings = dict(
        name=name,
        weights=None,
        batch_norm='split',
        batch_norm_groups=1,
        normalize='unit',
        remat=False,
    )
    return ml_collections.ConfigDict(settings | changes)


def assert_close(found, reference, tolerance, what):
    error = np.abs(np.asarray(found) - reference).max()
    assert error <= tolerance * max(1.0, np.abs(reference).max()), f'{what}: off by {error}'


@pytest.mark.parametrize(
    'name',
    [*(pytest.param(x, marks=pytest.mark.slow) for x in ('resnet18', 'resnet34')), 'resnet50'],
)
def test_map_and_running_statistics_equal_the_reference(name):
    with np.load(FIXTURES / f'{name}_a.npz') as z:
        fixture = dict(z)
    config = backbone_config(name, width=8)
    weights = {key[2:]: value for key, value in fixture.items() if key.startswith('w/')}
    variables = backbone_from_torch(weights, config)
    frames = fixture['in/x'].transpose(0, 2, 3, 1)
    learner = backbones.create(config)

    maps = jax.jit(lambda v, x: learner.apply(v, x, False))(variables, frames)
    maps = np.asarray(maps)
    assert_close(maps, fixture['out/map'].transpose(0, 2, 3, 1), 1e-4, 'map')
    assert_close(maps.mean((1, 2)), fixture['out/pooled'], 1e-4, 'pooled')

    train = jax.jit(lambda v, x: learner.apply(v, x, True, mutable=['batch_stats']))
    maps, updated = jax.tree.map(np.asarray, train(variables, frames))
    assert_close(
        maps, fixture['out/bn_batch/map'].transpose(0, 2, 3, 1), 5e-4, 'map with batch statistics'
    )
    assert_close(
        maps.mean((1, 2)), fixture['out/bn_batch/pooled'], 5e-4, 'pooled with batch statistics'
    )

    after = {
        key.removeprefix('out/bn_batch/'): value
        for key, value in fixture.items()
        if 'running_' in key and 'bn_batch' in key
    }
    expected = backbone_from_torch(dict(weights, **after), config)['batch_stats']
    assert len(jax.tree.leaves(expected)) == len(after)
    compare = lambda path, a, b: assert_close(a, np.asarray(b), 5e-4, jax.tree_util.keystr(path))
    jax.tree_util.tree_map_with_path(compare, updated['batch_stats'], expected)
