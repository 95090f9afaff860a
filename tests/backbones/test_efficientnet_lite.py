"""EfficientNet-Lite against efficientnet-lite-pytorch 0.1.0, with the published ImageNet weights,
and what it does in training."""

import math

import jax
import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from fsar_jax import backbones


def lite_config(size=0, **changes):
    settings = dict(name=f'efficientnet_lite{size}', normalize='efficientnet_lite')
    return ConfigDict(dict(settings, batch_norm='split', **changes))


# Parameters and running statistics of the published files, classifier left out; blocks.
PUBLISHED = {0: (3_371_008, 42_016, 16), 1: (4_135_680, 53_664, 21), 2: (4_811_072, 58_096, 21)}
NATIVE = {0: 224, 1: 240, 2: 260}


@pytest.mark.parametrize('size', PUBLISHED)
def test_parameters_and_maps_at_the_native_size(size):
    network = backbones.create(lite_config(size))
    frames = jax.ShapeDtypeStruct((2, NATIVE[size], NATIVE[size], 3), jnp.float32)
    maps, variables = jax.eval_shape(
        lambda x: network.init_with_output(jax.random.key(0), x), frames
    )
    side = math.ceil(NATIVE[size] / 32)
    assert maps.shape == (2, side, side, 1280) and maps.dtype == jnp.float32
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    blocks = sum(name.startswith('blocks_') for name in variables['params'])
    found = (count(variables['params']), count(variables['batch_stats']), blocks)
    assert found == PUBLISHED[size]
