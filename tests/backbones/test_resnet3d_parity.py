"""The 3D ResNet-50 against the reference: map, batch statistics and running statistics."""

import jax
import numpy as np

import fsar_jax
from fsar_jax import backbones
from fsar_jax.weights import backbone_from_torch


def test_map_and_running_statistics_equal_the_reference(published, assert_close_to_published):
    f = published('resnet3d50_a')
    config = fsar_jax.default_config().model.backbone
    with config.unlocked():
        config.update(name='resnet3d50', width=f.meta['width'][0])
    variables, module = backbone_from_torch(f.weights, config), backbones.create(config)
    clips, layout = f.inputs['x'].transpose(0, 2, 3, 4, 1), lambda x: x.transpose(0, 2, 3, 4, 1)
    maps = jax.jit(lambda v, x: module.apply(v, x, False))(variables, clips)
    maps = np.asarray(maps)
    assert_close_to_published(maps, layout(f.outputs['map']), 'map')
    assert_close_to_published(maps.mean((1, 2, 3)), f.outputs['pooled'], 'pooled')
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
