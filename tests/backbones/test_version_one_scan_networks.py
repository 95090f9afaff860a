"""ShuffleNetV1 and MobileNetV1 against slow ones, in float64 numpy from the published names; their
counts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fsar_jax.backbones import mobilenet_v1
from fsar_jax.backbones.mobilenet_v1 import MobileNetV1
from fsar_jax.backbones.scan import SCAN_NETWORKS
from fsar_jax.backbones.shufflenet_v1 import ShuffleNetV1
from fsar_jax.weights.published import scan_network_from_torch, scan_network_table


class Slow:
    """Layers by their published names, one operation after the other, [N, C, h, w]."""

    def __init__(self, weights):
        self.weights = {name: np.asarray(value, np.float64) for name, value in weights.items()}

    def conv(self, x, name, stride=1, groups=1):
        w = self.weights[f'{name}.weight']
        outputs, inputs, size, _ = w.shape
        assert inputs * groups == x.shape[1]
        padded = np.pad(x, ((0, 0), (0, 0), (size // 2,) * 2, (size // 2,) * 2))
        height, width = (-(-n // stride) for n in x.shape[2:])
        y = np.zeros((len(x), outputs, height, width))
        for o in range(outputs):
            first = o // (outputs // groups) * inputs
            for r in range(height):
                for c in range(width):
                    rows, columns = (slice(i * stride, i * stride + size) for i in (r, c))
                    patch = padded[:, first : first + inputs, rows, columns]
                    y[:, o, r, c] = (patch * w[o]).sum((1, 2, 3))
        return y

    def norm(self, x, name):
        leaf = lambda leaf: self.weights[f'{name}.{leaf}'][:, None, None]
        scaled = (x - leaf('running_mean')) / np.sqrt(leaf('running_var') + 1e-5)
        return scaled * leaf('weight') + leaf('bias')


class SlowShuffleNetV1(Slow):
    def __call__(self, x, blocks=(2, 1, 1), groups=3):
        relu = lambda x: np.maximum(x, 0)
        x = 255 * x[:, ::-1]  # its ToBGRTensor
        x = relu(self.norm(self.conv(x, 'first_conv.0', 2), 'first_conv.1'))
        stages, place = [], 0
        for count in blocks:
            for i in range(count):
                main, stride = f'features.{place}.branch_main', 2 if i == 0 else 1
                y = self.conv(x, f'{main}_1.0', 1, groups if place else 1)
                y = relu(self.norm(y, f'{main}_1.1'))
                y = self.norm(self.conv(y, f'{main}_1.3', stride, y.shape[1]), f'{main}_1.4')
                each = y.shape[1] // groups
                # As megvii's channel_shuffle: each group gets every third channel.
                y = np.stack([y[:, j * groups + i] for i in range(groups) for j in range(each)], 1)
                y = self.norm(self.conv(y, f'{main}_2.0', 1, groups), f'{main}_2.1')
                if stride == 1:
                    x = relu(x + y)
                else:
                    x = np.concatenate([self.pooled(x), relu(y)], 1)
                place += 1
            stages.append(x)
        return (*stages, x)

    def pooled(self, x):
        """The mean over 3×3, zeros around the map included, every second one."""
        padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
        height, width = (-(-n // 2) for n in x.shape[2:])
        cells = [
            [padded[:, :, 2 * r : 2 * r + 3, 2 * c : 2 * c + 3].mean((2, 3)) for c in range(width)]
            for r in range(height)
        ]
        return np.array(cells).transpose(2, 3, 0, 1)


class SlowMobileNetV1(Slow):
    def __call__(self, x):
        relu6 = lambda x: np.clip(x, 0, 6)
        x = relu6(self.norm(self.conv(x, 'conv_stem', 2), 'bn1'))
        maps = []
        for stage, (_, count, first) in enumerate(mobilenet_v1.STAGES):
            for i in range(count):
                block, stride = f'blocks.{stage}.{i}', first if i == 0 else 1
                x = self.conv(x, f'{block}.conv_dw', stride, x.shape[1])
                x = relu6(self.norm(x, f'{block}.bn1'))
                x = relu6(self.norm(self.conv(x, f'{block}.conv_pw'), f'{block}.bn2'))
            maps.append(x)
        return (*maps[2:], x)


def drawn(network):
    """Weights under the published names."""
    rng, weights = np.random.default_rng(0), {}
    for name, entry in scan_network_table(network).items():
        spread = 1.4 / np.sqrt(np.prod(entry.shape[1:])) if len(entry.shape) == 4 else 0.3
        weights[name] = (rng.normal(size=entry.shape) * spread).astype(np.float32)
        if name.endswith('running_var') or (len(entry.shape) == 1 and name.endswith('weight')):
            weights[name] = rng.uniform(0.5, 1.5, entry.shape).astype(np.float32)
    return weights


CASES = {
    'shufflenet': (
        functools.partial(ShuffleNetV1, (6, 24, 48, 96), (2, 1, 1)),
        SlowShuffleNetV1,
        'features.1.branch_main_2.0.weight',
    ),
    'mobilenet': (
        functools.partial(MobileNetV1, width=1 / 16),
        SlowMobileNetV1,
        'blocks.1.0.conv_pw.weight',
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize('case', CASES)
def test_maps_and_gradients_equal_those_of_a_slow_one(case, monkeypatch):
    create, slow, of = CASES[case]
    monkeypatch.setitem(SCAN_NETWORKS, 'narrow', create)
    weights, rng = drawn(create()), np.random.default_rng(1)
    frames = rng.random((2, 32, 32, 3), np.float32)
    channels_first = frames.transpose(0, 3, 1, 2)
    read = lambda weights: scan_network_from_torch(weights, 'narrow')

    # Along one direction of one weight: in numpy by finite differences, here by its derivative.
    step = rng.normal(size=weights[of].shape).astype(np.float32)
    tangent = {name: step if name == of else np.zeros_like(x) for name, x in weights.items()}

    def run(params):
        maps = create().apply(read(weights) | {'params': params}, frames)
        return *maps.stages, maps.last, maps.features

    (*maps, features), pull = jax.vjp(jax.jit(run), read(weights)['params'])
    expected = slow(weights)(channels_first)
    moved = [
        slow(weights | {of: weights[of].astype(np.float64) + side * 1e-6 * step})(channels_first)
        for side in (1, -1)
    ]
    for i, found in enumerate(maps):
        finite = ((moved[0][i] - moved[1][i]) / 2e-6).transpose(0, 2, 3, 1)
        assert min(np.std(finite), np.std(expected[i])) > 1e-2
        np.testing.assert_allclose(
            found.transpose(0, 3, 1, 2), expected[i], atol=2e-4 * max(1, np.abs(expected[i]).max())
        )
        # Pulled back from one direction of this map: one number for each of several draws.
        for _ in range(3):
            direction = rng.normal(size=found.shape).astype(np.float32)
            only = [jnp.zeros_like(y) for y in (*maps, features)]
            only[i] = direction
            (gradient,) = pull(tuple(only))
            slope = sum(
                (g * t).sum()
                for g, t in zip(jax.tree.leaves(gradient), jax.tree.leaves(read(tangent)['params']))
            )
            np.testing.assert_allclose(
                slope, (direction * finite).sum(), atol=2e-4 * np.linalg.norm(finite)
            )
    np.testing.assert_allclose(features, expected[-1].mean((2, 3)), atol=1e-4)


def parameters(network):
    frames = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    params = jax.eval_shape(network.init, jax.random.key(0), frames)['params']
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
    'widths, millions',
    [((48, 480, 960, 1920), 5.4), ((24, 360, 720, 1440), 3.4), ((24, 240, 480, 960), 1.9)],
)
def test_shufflenet_has_the_parameters_that_its_authors_give(widths, millions):
    """With the 1000-way classifier, which has no bias; 2.0×, 1.5× and 1.0×, of 3 groups."""
    assert round((parameters(ShuffleNetV1(widths)) + 1000 * widths[-1]) / 1e6, 1) == millions


def test_mobilenet_has_the_parameters_that_its_authors_give():
    """With the classifier: 4,231,976 of the whole width (timm's mobilenetv1_100), 2.6 M of 0.75."""
    assert parameters(MobileNetV1()) + 1024 * 1000 + 1000 == 4_231_976
    assert round((parameters(MobileNetV1(width=0.75)) + 768 * 1000 + 1000) / 1e6, 1) == 2.6
