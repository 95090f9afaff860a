"""torchvision's ShuffleNetV2 and MobileNetV2, and the scan network inside VIM's sampler: places,
round trips, errors."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch_files import Tensor, write_zip

from fsar_jax.backbones.scan import create_scan_network
from fsar_jax.weights import load_scan_network, scan_network_from_torch
from fsar_jax.weights.entries import network_entries, torchvision_layer
from fsar_jax.weights.parameters import shapes_of


def normalised(name, channels):
    return {
        **{
            f'{name}.{leaf}': (channels,)
            for leaf in ('weight', 'bias', 'running_mean', 'running_var')
        },
        f'{name}.num_batches_tracked': (),
    }


def shufflenet_shapes(widths, blocks=(4, 8, 4)):
    """Names and shapes of torchvision's ShuffleNetV2, apart from the code under test."""
    shapes = {'conv1.0.weight': (widths[0], 3, 3, 3), **normalised('conv1.1', widths[0])}
    for stage, (inputs, outputs, count) in enumerate(zip(widths, widths[1:4], blocks), start=2):
        half = outputs // 2
        for b in range(count):
            block = f'stage{stage}.{b}'
            if b == 0:
                shapes |= {
                    f'{block}.branch1.0.weight': (inputs, 1, 3, 3),
                    **normalised(f'{block}.branch1.1', inputs),
                    f'{block}.branch1.2.weight': (half, inputs, 1, 1),
                    **normalised(f'{block}.branch1.3', half),
                }
            shapes |= {
                f'{block}.branch2.0.weight': (half, inputs if b == 0 else half, 1, 1),
                **normalised(f'{block}.branch2.1', half),
                f'{block}.branch2.3.weight': (half, 1, 3, 3),
                **normalised(f'{block}.branch2.4', half),
                f'{block}.branch2.5.weight': (half, half, 1, 1),
                **normalised(f'{block}.branch2.6', half),
            }
    return shapes | {
        'conv5.0.weight': (widths[4], widths[3], 1, 1),
        **normalised('conv5.1', widths[4]),
        'fc.weight': (1000, widths[4]),
        'fc.bias': (1000,),
    }


def mobilenet_shapes():
    """Names and shapes of torchvision's MobileNetV2, apart from the code under test."""
    shapes = {'features.0.0.weight': (32, 3, 3, 3), **normalised('features.0.1', 32)}
    inputs = 32
    for i, outputs in enumerate(
        [16] + [24] * 2 + [32] * 3 + [64] * 4 + [96] * 3 + [160] * 3 + [320], start=1
    ):
        block, hidden, depthwise = (
            f'features.{i}.conv',
            inputs * (1 if i == 1 else 6),
            0 if i == 1 else 1,
        )
        if i > 1:
            shapes |= {
                f'{block}.0.0.weight': (hidden, inputs, 1, 1),
                **normalised(f'{block}.0.1', hidden),
            }
        shapes |= {
            f'{block}.{depthwise}.0.weight': (hidden, 1, 3, 3),
            **normalised(f'{block}.{depthwise}.1', hidden),
        }
        shapes |= {
            f'{block}.{depthwise + 1}.weight': (outputs, hidden, 1, 1),
            **normalised(f'{block}.{depthwise + 2}', outputs),
        }
        inputs = outputs
    return shapes | {
        'features.18.0.weight': (1280, 320, 1, 1),
        **normalised('features.18.1', 1280),
        'classifier.1.weight': (1000, 1280),
        'classifier.1.bias': (1000,),
    }


PUBLISHED = {
    'shufflenet_v2_small': shufflenet_shapes((8, 16, 32, 64, 128), (2, 2, 2)),
    'shufflenet_v2_x0_5': shufflenet_shapes((24, 48, 96, 192, 1024)),
    'mobilenet_v2': mobilenet_shapes(),
}
UNPUBLISHED = ('fc.', 'classifier.')


def drawn(shapes):
    rng = np.random.default_rng(0)
    return {name: rng.random(shape, np.float32) for name, shape in shapes.items()}


def back_to_torch(variables):
    """{torchvision's name: array} from our variables: the inverse, written apart from the
    tables."""
    leaves = {
        'kernel': 'weight',
        'scale': 'weight',
        'bias': 'bias',
        'mean': 'running_mean',
        'var': 'running_var',
    }
    arrays = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        *modules, last = (key.key for key in path[1:])
        name = '.'.join([*modules, leaves[last]])
        arrays[name.replace('_', '.').replace('running.', 'running_')] = (
            np.transpose(leaf, (3, 2, 0, 1)) if leaf.ndim == 4 else np.asarray(leaf)
        )
    return arrays


@pytest.mark.parametrize(
    'name', [pytest.param(x, marks=[pytest.mark.slow] * (x == 'mobilenet_v2')) for x in PUBLISHED]
)
def test_round_trip(name, caplog):
    weights = drawn(PUBLISHED[name])
    with caplog.at_level(logging.WARNING):
        variables = scan_network_from_torch(weights, name)
    assert 'left out the classifier of the scan network: ' in caplog.text
    network = create_scan_network(name)
    expected = jax.eval_shape(lambda: network.init(jax.random.key(0), jnp.zeros((1, 64, 64, 3))))
    shape = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree)
    assert shape(variables) == shape(expected)
    back = back_to_torch(variables)
    kept = {
        key for key in weights if not key.startswith(UNPUBLISHED) and not key.endswith('tracked')
    }
    assert set(back) == kept
    for key in kept:
        np.testing.assert_array_equal(back[key], weights[key], key)


def test_table_with_prefixes_is_the_scan_network_of_the_sampler():
    shapes, _ = shapes_of(create_scan_network('shufflenet_v2_small'), (1, 64, 64, 3))
    plain, inside = (
        network_entries(shapes, torchvision_layer),
        network_entries(shapes, torchvision_layer, 'backbone.', 'sampler/scan_network/'),
    )
    assert len(plain) == len(inside)
    for (name, entry), (name_inside, entry_inside) in zip(plain.items(), inside.items()):
        collection, _, path = entry.path.partition('/')
        assert (
            name_inside == f'backbone.{name}'
            and entry_inside.path == f'{collection}/sampler/scan_network/{path}'
        )
        assert entry_inside[1:] == entry[1:]
    assert inside['backbone.stage2.0.branch1.0.weight'] == (
        'params/sampler/scan_network/stage2_0/branch1_0/kernel',
        'conv',
        (8, 1, 3, 3),
    )


def test_from_a_file(tmp_path):
    weights, path = drawn(PUBLISHED['shufflenet_v2_small']), tmp_path / 'shufflenet.pth'
    write_zip(path, {f'module.{name}': Tensor(value) for name, value in weights.items()})
    jax.tree.map(
        np.testing.assert_array_equal,
        load_scan_network(path, 'shufflenet_v2_small'),
        scan_network_from_torch(weights, 'shufflenet_v2_small'),
    )


def test_what_does_not_fit_is_in_one_error(tmp_path):
    weights, path = drawn(PUBLISHED['shufflenet_v2_small']), tmp_path / 'shufflenet.pth'
    del weights['stage3.1.branch2.4.running_var']
    weights['maxpool.weight'] = np.zeros(3, np.float32)
    weights['conv1.0.weight'] = np.zeros((24, 3, 3, 3), np.float32)
    write_zip(path, {name: Tensor(value) for name, value in weights.items()})
    with pytest.raises(ValueError) as error:
        load_scan_network(path, 'shufflenet_v2_small')
    assert str(error.value) == (
        f'{path}: the state dict is not one of the model that config.model describes: '
        '1 missing: stage3.1.branch2.4.running_var [16]; 1 unknown: maxpool.weight [3]; '
        '1 mis-shaped: conv1.0.weight expected [8, 3, 3, 3] found [24, 3, 3, 3]'
    )
    with pytest.raises(
        ValueError, match="the scan network 'resnet18' is not one of shufflenet_v2_small"
    ):
        load_scan_network(path, 'resnet18')
