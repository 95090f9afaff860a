"""The table of backbones: shapes, parameter counts and names, initialisation, compute dtype,
rematerialisation."""

import functools

import flax.traverse_util
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from tiny_run import random_variables

from fsar_jax import backbones
from fsar_jax.backbones.resnet import normalize_frames
from fsar_jax.config import SETTINGS


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


def shapes_of(name, size, batch=2, **changes):
    module = backbones.create(backbone_config(name, **changes))
    return jax.eval_shape(
        lambda: module.init_with_output(jax.random.key(0), jnp.zeros((batch, size, size, 3)), True)
    )


def started(module, size):
    frames = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    key = jax.random.key(0, impl='rbg')  # compiles in a fraction of the time of the default
    return jax.jit(lambda: module.lazy_init(key, frames))()


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


# torchvision's published totals without the 1000-way classifier (512 or 2048 inputs, and biases).
PUBLISHED = {
    'resnet18': (11_689_512 - 513_000, 512),
    'resnet34': (21_797_672 - 513_000, 512),
    'resnet50': (25_557_032 - 2_049_000, 2048),
}


@pytest.mark.parametrize('name', PUBLISHED)
def test_parameter_count_and_map_at_paper_size(name):
    maps, variables = shapes_of(name, 224)
    parameters, channels = PUBLISHED[name]
    assert count(variables['params']) == parameters
    assert maps.shape == (2, 7, 7, channels)
    if name == 'resnet18':
        assert shapes_of(name, 64)[0].shape == (2, 2, 2, channels)
        assert shapes_of(name, 225)[0].shape == (2, 8, 8, channels)


def test_small_network_maps_64_pixels_to_4_by_4():
    maps, variables = shapes_of('resnet_small', 64)
    assert maps.shape == (2, 4, 4, 128)
    assert set(variables['params']) == {'conv1', 'bn1', 'layer1_0', 'layer2_0', 'layer3_0'}
    assert set(variables['params']['layer1_0']) == {'conv1', 'bn1', 'conv2', 'bn2'}
    assert set(variables['params']['layer2_0']) == {
        'conv1',
        'bn1',
        'conv2',
        'bn2',
        'downsample_conv',
        'downsample_bn',
    }
    assert variables['params']['conv1']['kernel'].shape == (5, 5, 3, 32)


def test_every_backbone_is_covered_here():
    covered = {
        *PUBLISHED,
        'resnet_small',
        'features',
        'resnet3d50',  # in test_resnet3d_parity.py
        *(f'efficientnet_lite{i}' for i in range(3)),  # in test_efficientnet_lite.py
        # in test_transformers.py
        *(x for x in backbones.BACKBONES if x.startswith(('vit', 'clip', 'openclip', 'mvit'))),
    }
    assert set(backbones.BACKBONES) == covered, 'test its maps, and name it here with the test'


def test_features_is_the_identity():
    maps = np.random.default_rng(0).normal(size=(3, 2, 2, 5)).astype(np.float32)
    module = backbones.create(backbone_config('features', normalize='imagenet'), 'bfloat16')
    y, variables = module.init_with_output(jax.random.key(0), maps, True)
    np.testing.assert_array_equal(y, maps)
    assert not variables


@pytest.mark.parametrize('name', ['resnet_small', pytest.param('resnet18', marks=pytest.mark.slow)])
def test_initialisation_is_torchvisions(name):
    module = backbones.create(backbone_config(name)).clone(width=24)
    params = started(module, 64)['params']
    kernels = 0
    for path, leaf in flax.traverse_util.flatten_dict(params).items():
        if path[-1] == 'kernel':
            deviation = np.sqrt(2 / (leaf.shape[0] * leaf.shape[1] * leaf.shape[3]))
            margin = 5 / np.sqrt(2 * leaf.size)  # five standard errors of a deviation
            assert abs(np.std(leaf) / deviation - 1) < margin, path
            kernels += leaf.size > 5000
            if leaf.size > 5000:  # normal, not truncated: some values beyond 3 deviations
                assert np.abs(leaf).max() > 3 * deviation, path
        else:
            assert np.all(np.asarray(leaf) == (1 if path[-1] == 'scale' else 0)), path
    assert kernels >= 5


# (x − mean) / deviation of each channel: torchvision's weights, and the released code of HyRSM.
NORMALISATIONS = {
    'unit': ([0.0, 0.0, 0.0], [1.0, 1.0, 1.0]),
    'imagenet': ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    'grey': ([0.45, 0.45, 0.45], [0.225, 0.225, 0.225]),
    'efficientnet_lite': ([127 / 255] * 3, [128 / 255] * 3),
    'half': ([0.5] * 3, [0.5] * 3),
    'clip': ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
}


def test_every_normalisation_is_by_hand():
    assert NORMALISATIONS.keys() == set(SETTINGS['model.backbone.normalize'].choices)
    frames = np.random.default_rng(0).random((2, 3, 4, 5, 3), np.float32)
    for how, (mean, deviation) in NORMALISATIONS.items():
        by_hand = np.empty_like(frames)
        for channel in range(3):
            by_hand[..., channel] = (frames[..., channel] - mean[channel]) / deviation[channel]
        np.testing.assert_allclose(normalize_frames(frames, how), by_hand, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('name', ['resnet_small', 'resnet18', 'resnet3d50'])
def test_a_backbone_normalises_its_input(name):
    """As text: its computation, and that of the plain one behind the same normalisation."""
    size = (1, 4, 32, 32, 3) if name == 'resnet3d50' else (1, 32, 32, 3)
    frames = jax.ShapeDtypeStruct(size, jnp.float32)
    plain = backbones.create(backbone_config(name))
    variables = jax.eval_shape(lambda x: plain.init(jax.random.key(0), x), frames)
    trace = lambda function: str(jax.make_jaxpr(function)(variables, frames))
    for how in NORMALISATIONS if name == 'resnet_small' else ('imagenet',):
        module = backbones.create(backbone_config(name, normalize=how))
        assert trace(module.apply) == trace(
            lambda variables, x, how=how: plain.apply(variables, normalize_frames(x, how))
        ), how


@pytest.fixture(scope='module')
def small():
    """A small network's variables, frames, and a function that gives value, maps, statistics and
    gradient of one training call."""
    frames = np.random.default_rng(0).random((4, 64, 64, 3), np.float32)
    module = backbones.create(backbone_config('resnet_small'))
    variables = random_variables(module, frames)
    target = np.random.default_rng(1).normal(size=(4, 4, 4, 128)).astype(np.float32)

    def train(dtype='float32', **changes):
        module = backbones.create(backbone_config('resnet_small', **changes), dtype)

        @jax.jit
        def step(params):
            def loss(params):
                maps, updated = module.apply(
                    dict(variables, params=params), frames, True, mutable=['batch_stats']
                )
                return jnp.mean(maps.astype(jnp.float32) * target), (maps, updated['batch_stats'])

            return jax.value_and_grad(loss, has_aux=True)(params)

        (value, (maps, stats)), gradient = step(variables['params'])
        return value, maps, stats, gradient

    return variables, frames, functools.cache(train)


@pytest.mark.slow
def test_remat_changes_no_number(small):
    _, _, train = small
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        train(),
        train(remat=True),
    )


def test_remat_is_of_each_block(small):
    variables, frames, _ = small
    module = backbones.create(backbone_config('resnet_small', remat=True))
    trace = jax.make_jaxpr(lambda: module.apply(variables, frames, True, mutable=['batch_stats']))()
    names = [equation.primitive.name for equation in trace.eqns]
    recomputed = [name for name in names if 'remat' in name or 'checkpoint' in name]
    assert len(recomputed) == 3, f'one per block, found {recomputed} among {set(names)}'


@pytest.mark.slow
def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters(small):
    _, frames, train = small
    plain = train()
    module = backbones.create(backbone_config('resnet_small'), 'bfloat16')
    initial = jax.eval_shape(lambda: module.init(jax.random.key(0), frames))
    assert {leaf.dtype for leaf in jax.tree.leaves(initial)} == {jnp.dtype('float32')}

    value, maps, stats, gradient = train(dtype='bfloat16')
    assert maps.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves((stats, gradient))} == {jnp.dtype('float32')}
    difference = np.asarray(maps, np.float32) - np.asarray(plain[1])
    assert np.sqrt(np.mean(difference**2)) < 0.05 * np.sqrt(np.mean(np.asarray(plain[1]) ** 2))
    for a, b in zip(jax.tree.leaves(stats), jax.tree.leaves(plain[2])):
        np.testing.assert_allclose(a, b, rtol=0.02, atol=0.02)


def test_backbone_under_vmap_has_each_episodes_statistics(small):
    variables, frames, _ = small
    module = backbones.create(backbone_config('resnet_small'))
    episodes = np.stack([frames, 0.3 * frames[::-1] ** 2])
    train = lambda x: module.apply(variables, x, True, mutable=['batch_stats'])
    maps, updated = jax.jit(jax.vmap(train))(episodes)
    one_by_one = jax.jit(train)
    for i, (expected, stats) in enumerate(map(one_by_one, episodes)):
        np.testing.assert_allclose(maps[i], expected, rtol=1e-3, atol=1e-4)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-5), updated, stats
        )


@pytest.mark.parametrize(
    'change, message',
    [
        (
            dict(name='resnet51'),
            "config.model.backbone.name='resnet51' is not one of features, resnet_small, resnet18",
        ),
        (
            dict(batch_norm='sync'),
            "config.model.backbone.batch_norm='sync' is not one of split, joint, frozen",
        ),
        (
            dict(normalize='zero'),
            "config.model.backbone.normalize='zero' is not one of unit, imagenet",
        ),
        (
            dict(batch_norm_groups=0),
            'config.model.backbone.batch_norm_groups=0 is too small, it must be at least 1',
        ),
    ],
)
def test_wrong_values_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        backbones.create(backbone_config(**dict(dict(name='resnet18'), **change)))
