"""The 3D ResNet-50 against the reference: map, batch statistics and running statistics; and with
other strides over time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import get_config

import fsar_jax
from fsar_jax import backbones
from fsar_jax.backbones.resnet3d import Bottleneck3D
from fsar_jax.weights import backbone_from_torch


@pytest.mark.parametrize('train', [False, pytest.param(True, marks=pytest.mark.slow)])
def test_map_and_running_statistics_equal_the_reference(
    published, assert_close_to_published, train
):
    f = published('resnet3d50_a')
    config = fsar_jax.default_config().model.backbone
    with config.unlocked():
        config.update(name='resnet3d50', width=f.meta['width'][0])
    variables, module = backbone_from_torch(f.weights, config), backbones.create(config)
    clips, layout = f.inputs['x'].transpose(0, 2, 3, 4, 1), lambda x: x.transpose(0, 2, 3, 4, 1)
    if not train:
        maps = jax.jit(lambda v, x: module.apply(v, x, False))(variables, clips)
        maps = np.asarray(maps)
        assert_close_to_published(maps, layout(f.outputs['map']), 'map')
        assert_close_to_published(maps.mean((1, 2, 3)), f.outputs['pooled'], 'pooled')
        return
    maps, updated = jax.jit(lambda v, x: module.apply(v, x, True, mutable=['batch_stats']))(
        variables, clips
    )
    assert_close_to_published(
        maps, layout(f.outputs['bn_batch/map']), 'map with batch statistics', 5e-4
    )
    after = {
        key.removeprefix('bn_batch/'): value
        for key, value in f.outputs.items()
        if 'running_' in key
    }
    expected = backbone_from_torch({**f.weights, **after}, config)['batch_stats']
    assert len(jax.tree.leaves(expected)) == len(after) > 100
    jax.tree_util.tree_map_with_path(
        lambda path, a, b: assert_close_to_published(
            a, np.asarray(b), jax.tree_util.keystr(path), 5e-4
        ),
        updated['batch_stats'],
        expected,
    )


@pytest.mark.parametrize('strides', [(1, 1, 1, 1), (2, 1, 1, 1), (1, 1, 1, 2)])
def test_published_weights_load_whatever_the_stride_over_time(published, strides):
    f = published('resnet3d50_a')
    config = fsar_jax.default_config().model.backbone
    with config.unlocked():
        config.update(name='resnet3d50', width=f.meta['width'][0], temporal_stride=strides)
    module = backbones.create(config)
    clips = jax.ShapeDtypeStruct((1, 8, 64, 64, 3), jnp.float32)
    needed = jax.eval_shape(module.init, jax.random.key(0), clips)
    shapes = functools.partial(jax.tree.map, lambda x: x.shape)
    assert shapes(dict(backbone_from_torch(f.weights, config))) == shapes(dict(needed))
    maps = jax.eval_shape(module.apply, needed, clips)
    assert maps.shape == (1, 8 // np.prod(strides), 2, 2, 32 * f.meta['width'][0])


def test_a_block_that_keeps_time_has_the_same_frames_between_those_of_one_that_halves_it():
    x = np.random.default_rng(0).normal(size=(2, 7, 6, 6, 8)).astype(np.float32)
    norm = {'groups': 1, 'frozen': False}
    halves, keeps = (Bottleneck3D(4, stride, norm) for stride in (2, (1, 2, 2)))
    variables = jax.jit(lambda x: halves.init(jax.random.key(0), x, False))(x)
    run = lambda block: jax.jit(lambda x: block.apply(variables, x, False))(x)
    assert run(keeps).shape == (2, 7, 3, 3, 16)
    np.testing.assert_allclose(run(keeps)[:, ::2], run(halves), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize('method', ['strm', 'trx'])
def test_clips_of_eight_steps_are_compared(method):
    config = get_config(method, 'ssv2')
    config.model.backbone.update(
        name='resnet3d50', temporal_stride=(1, 1, 1, 1), batch_norm_groups=1, remat=False
    )
    config.episode.update(shot=1)
    clip = (8, 64, 64, 3)
    support, query = (jax.ShapeDtypeStruct((*x, *clip), jnp.uint8) for x in ((5, 1), (5,)))
    learner = fsar_jax.create_learner(config.model)
    logits = jax.eval_shape(
        lambda s, q: learner.init_with_output(jax.random.key(0), s, q)[0].logits, support, query
    )
    assert logits.shape == (5, 5)
    embedded = jax.eval_shape(
        lambda x: learner.init_with_output(jax.random.key(0), x, method='embed')[0], query
    )
    assert embedded['temporal_matching']['cardinality_2']['keys'].shape == (5, 28, 1152)
