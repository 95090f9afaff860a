"""Scan networks: ShuffleNetV2 against the published one, MobileNetV2 against a slow one, shapes,
counts, running statistics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_run import random_variables

from fsar_jax.backbones.depthwise import grouped_convolution, shifted_products
from fsar_jax.backbones.scan import SCAN_NETWORKS, create_scan_network
from fsar_jax.backbones.shufflenet_v2 import ShuffleNetV2
from fsar_jax.weights.published import scan_network_from_torch, scan_network_table


def channels_last(x):
    return x.transpose(0, 2, 3, 1)


NARROW = functools.partial(ShuffleNetV2, widths=(8, 16, 32, 64, 128))


@pytest.mark.slow
@pytest.mark.parametrize(
    'case, name',
    [('shufflenetv2_narrow_a', 'narrow'), ('shufflenetv2_x05_a', 'shufflenet_v2_x0_5')],
)
def test_maps_and_running_statistics_equal_the_published(
    case, name, published, assert_close_to_published, monkeypatch
):
    monkeypatch.setitem(SCAN_NETWORKS, 'narrow', NARROW)
    case, network = published(case), create_scan_network(name)
    variables = scan_network_from_torch(case.weights, name)
    frames = channels_last(case.inputs['x'])

    maps = jax.jit(network.apply)(variables, frames)
    for stage, found in zip(('f2', 'f3', 'f4'), maps.stages, strict=True):
        assert_close_to_published(found, channels_last(case.outputs[stage]), stage)
    assert_close_to_published(maps.features, case.outputs['features'], 'features')
    np.testing.assert_allclose(maps.last.mean((1, 2)), maps.features, atol=1e-5)

    maps, updated = jax.jit(lambda v, x: network.apply(v, x, True, mutable=['batch_stats']))(
        variables, frames
    )
    batch = {
        key.removeprefix('bn_batch/'): value
        for key, value in case.outputs.items()
        if key.startswith('bn_batch/')
    }
    assert_close_to_published(
        maps.stages[2], channels_last(batch['f4']), 'f4 with batch statistics', 5e-4
    )
    assert_close_to_published(
        maps.features, batch['features'], 'features with batch statistics', 5e-4
    )
    after = {key: value for key, value in batch.items() if 'running_' in key}
    expected = scan_network_from_torch(case.weights | after, name)
    assert len(jax.tree.leaves(expected['batch_stats'])) == len(after)
    compare = lambda path, a, b: assert_close_to_published(a, b, jax.tree_util.keystr(path), 5e-4)
    jax.tree_util.tree_map_with_path(compare, updated['batch_stats'], expected['batch_stats'])
    assert np.any(
        np.asarray(updated['batch_stats']['conv5_1']['mean'])
        != np.asarray(variables['batch_stats']['conv5_1']['mean'])
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    'size, taps, stride, padding',
    [
        ((6, 5), 3, (1, 1), ((1, 1),) * 2),
        ((6, 5), 3, (2, 2), ((1, 1),) * 2),
        ((7, 8), 3, (1, 1), ((1, 1),) * 2),
        ((7, 8), 3, (2, 2), ((1, 1),) * 2),
        ((7, 8), 5, (2, 2), ((1, 2), (2, 2))),
        ((3, 5, 6), 3, (1, 2, 2), ((1, 1),) * 3),
    ],
)
def test_what_cpus_compute_is_the_depthwise_convolution(size, taps, stride, padding):
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)
    x, kernel = normal(2, *size, 3), normal(*(taps for _ in size), 1, 3)
    weight = normal(*jax.eval_shape(lambda: grouped_convolution(x, kernel, stride, padding)).shape)

    @jax.jit
    def run(x, kernel):
        found = []
        for convolution in (shifted_products, grouped_convolution):
            y, gradients = jax.vjp(lambda x, k: convolution(x, k, stride, padding), x, kernel)
            found.append((y, *gradients(weight)))
        return found

    for ours, reference in zip(*run(x, kernel), strict=True):
        np.testing.assert_allclose(ours, reference, atol=1e-5)


class SlowMobileNetV2:
    """With running statistics, from torch's names, in float64 numpy: Table 2 and Fig. 4 d, one
    operation after the other."""

    def __init__(self, weights):
        self.weights = {name: np.asarray(value, np.float64) for name, value in weights.items()}

    def conv(self, x, name, stride=1):
        w = self.weights[f'{name}.weight']
        outputs, inputs, size, _ = w.shape
        height, width = (-(-n // stride) for n in x.shape[2:])
        padded = np.pad(x, ((0, 0), (0, 0), (size // 2,) * 2, (size // 2,) * 2))
        y = np.zeros((len(x), outputs, height, width))
        for r in range(height):
            for c in range(width):
                patch = padded[:, :, r * stride : r * stride + size, c * stride : c * stride + size]
                depthwise = inputs == 1 and outputs > 1
                y[:, :, r, c] = (
                    np.einsum('bcij,cij->bc', patch, w[:, 0])
                    if depthwise
                    else np.einsum('bcij,ocij->bo', patch, w)
                )
        return y

    def norm(self, x, name, rectify):
        leaf = lambda leaf: self.weights[f'{name}.{leaf}'][:, None, None]
        y = (x - leaf('running_mean')) / np.sqrt(leaf('running_var') + 1e-5) * leaf(
            'weight'
        ) + leaf('bias')
        return np.clip(y, 0, 6) if rectify else y

    def __call__(self, x):
        x = self.norm(self.conv(x, 'features.0.0', 2), 'features.0.1', True)
        strides = {2: 2, 4: 2, 7: 2, 14: 2}
        maps = {}
        for i in range(1, 18):
            block, y, stride = f'features.{i}.conv', x, strides.get(i, 1)
            layers = [f'{block}.{n}' for n in ((0,) if i == 1 else (0, 1))]
            for layer in layers:
                depthwise = layer == layers[-1]
                y = self.norm(
                    self.conv(y, f'{layer}.0', stride if depthwise else 1), f'{layer}.1', True
                )
            y = self.norm(
                self.conv(y, f'{block}.{len(layers)}'), f'{block}.{len(layers) + 1}', False
            )
            x = maps[i] = x + y if x.shape == y.shape else y
        return (
            maps[6],
            maps[13],
            maps[17],
            self.norm(self.conv(x, 'features.18.0'), 'features.18.1', True),
        )


@pytest.mark.slow
def test_mobilenet_equals_a_slow_one():
    network, rng = create_scan_network('mobilenet_v2'), np.random.default_rng(0)
    weights = {}
    for name, entry in scan_network_table(network).items():
        spread = 1.4 / np.sqrt(np.prod(entry.shape[1:])) if len(entry.shape) == 4 else 0.3
        weights[name] = (rng.normal(size=entry.shape) * spread).astype(np.float32)
        if name.endswith('running_var') or (len(entry.shape) == 1 and name.endswith('weight')):
            weights[name] = rng.uniform(0.5, 1.5, entry.shape).astype(np.float32)
    frames = rng.random((2, 64, 64, 3), np.float32)
    maps = jax.jit(network.apply)(scan_network_from_torch(weights, 'mobilenet_v2'), frames)
    for found, expected in zip(
        (*maps.stages, maps.last),
        SlowMobileNetV2(weights)(frames.transpose(0, 3, 1, 2)),
        strict=True,
    ):
        assert np.abs(expected).max() < 1e3 and np.std(expected) > 1e-2
        np.testing.assert_allclose(
            found, channels_last(expected), atol=2e-4 * max(1, np.abs(expected).max())
        )
    np.testing.assert_allclose(maps.features, maps.last.mean((1, 2)), rtol=1e-5)


# Parameters without the 1000-way classifier of the ImageNet weights, whose totals torchvision and
# the papers give; maps at 64×64.
EXPECTED = {
    'shufflenet_v2_small': (None, ((16, 16), (8, 32), (4, 64)), 128),
    'shufflenet_v2_x0_5': (1_366_792 - 1_025_000, ((16, 48), (8, 96), (4, 192)), 1024),
    'shufflenet_v2_x1_0': (2_278_604 - 1_025_000, ((16, 116), (8, 232), (4, 464)), 1024),
    'shufflenet_v2_x1_5': (3_503_624 - 1_025_000, ((16, 176), (8, 352), (4, 704)), 1024),
    'mobilenet_v2': (3_504_872 - 1_281_000, ((8, 32), (4, 96), (2, 320)), 1280),
    'shufflenet_v1_x2_0': (None, ((16, 480), (8, 960), (4, 1920)), 1920),
    'mobilenet_v1_x0_75': (None, ((8, 192), (4, 384), (2, 768)), 768),
    'efficientnet_lite0': (4_652_008 - 1_281_000, ((8, 40), (4, 112), (2, 320)), 1280),
}


@pytest.mark.parametrize('name', SCAN_NETWORKS)
def test_parameter_counts_maps_and_dtypes(name):
    network = create_scan_network(name, dtype='bfloat16')
    frames = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    maps, variables = jax.eval_shape(
        lambda x: network.init_with_output(jax.random.key(0), x, True), frames
    )
    parameters, stages, channels = EXPECTED[name]
    assert parameters in (None, sum(leaf.size for leaf in jax.tree.leaves(variables['params'])))
    assert [(m.shape, m.dtype) for m in maps.stages] == [
        ((2, size, size, c), jnp.bfloat16) for size, c in stages
    ]
    assert (
        maps.last.shape == (*maps.stages[2].shape[:3], channels) and maps.last.dtype == jnp.bfloat16
    )
    assert maps.features.shape == (2, channels) and maps.features.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}


def test_frozen_batch_norm_trains_with_the_running_statistics():
    network, frames = (
        ShuffleNetV2((4, 4, 4, 4, 8), (1, 1, 1), frozen=True),
        np.random.default_rng(0).random((2, 32, 32, 3), np.float32),
    )
    variables = random_variables(network, frames)
    train = lambda v: network.apply(v, frames, True, mutable=['batch_stats'])
    (maps, updated), at_test = jax.jit(lambda v: (train(v), network.apply(v, frames)))(variables)
    np.testing.assert_allclose(maps.features, at_test.features, rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, updated['batch_stats'], variables['batch_stats'])


def test_unknown_name_is_one_line():
    known = (
        'shufflenet_v2_small, shufflenet_v2_x0_5, shufflenet_v2_x1_0, shufflenet_v2_x1_5, '
        'mobilenet_v2, shufflenet_v1_x2_0, mobilenet_v1_x0_75, efficientnet_lite0'
    )
    with pytest.raises(ValueError, match=f"^the scan network 'vgg' is not one of {known}$"):
        create_scan_network('vgg')
