"""The gradients that a CPU takes are those of the library's convolution."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from fsar_jax import convolution as module
from fsar_jax.convolution import convolution

# size of x, taps, strides, padding: of the networks, then odd ones.
CASES = {
    '3x3': ((8, 8), (3, 3), (1, 1), ((1, 1), (1, 1))),
    '3x3, every second place': ((8, 6), (3, 3), (2, 2), ((1, 1), (1, 1))),
    'stem': ((16, 12), (5, 5), (4, 4), ((2, 2), (2, 2))),
    'patches': ((12, 8), (4, 4), (4, 4), 'VALID'),
    'as TensorFlow pads': ((9, 8), (3, 3), (2, 2), 'SAME'),
    'clips': ((4, 5, 6), (3, 3, 3), (1, 2, 2), ((1, 1),) * 3),
    'stem of clips': ((5, 8, 6), (7, 7, 7), (1, 2, 2), ((3, 3),) * 3),
    'clips, every second frame': ((5, 4, 6), (3, 2, 1), (2, 1, 2), ((1, 0), (0, 1), (0, 0))),
    'clips, frames that no window sees': ((7, 4, 4), (2, 3, 3), (4, 2, 1), 'VALID'),
    'a last column that no window sees': ((8, 8), (3, 2), (2, 3), ((0, 0), (1, 0))),
    'fewer places than taps': ((2, 2), (3, 3), (1, 1), ((1, 1), (1, 1))),
    'one place': ((1, 1), (3, 3), (2, 2), ((1, 1), (1, 1))),
    'fewer places than taps, as TensorFlow pads': ((3, 2), (5, 3), (2, 1), 'SAME'),
    'clips of few places': ((4, 2, 2), (3, 3, 3), (1, 1, 1), ((1, 1),) * 3),
    'clips of few places, strides': ((5, 1, 2), (3, 3, 3), (2, 1, 2), ((0, 1), (1, 1), (2, 0))),
    'more padding than kernel': ((4, 3), (2, 2), (1, 2), ((3, 2), (2, 4))),
}


def slow_kernel_gradient(x, dy, taps, strides, padding):
    x = np.pad(x, ((0, 0), *padding, (0, 0)))
    total = np.zeros((*taps, x.shape[-1], dy.shape[-1]))
    for tap in itertools.product(*map(range, taps)):
        for place in itertools.product(*map(range, dy.shape[1:-1])):
            seen = (s * p + t for s, p, t in zip(strides, place, tap))
            total[tap] += x[:, *seen].T @ dy[:, *place]
    return total


@pytest.mark.parametrize(
    'case, places', [*((case, 60) for case in CASES), ('3x3', 1), ('3x3', 200), ('clips', 2**12)]
)
def test_values_and_gradients_are_those_of_the_library(case, places, monkeypatch):
    """With one image at a time, some, and all."""
    monkeypatch.setattr(module, 'PLACES', places)
    monkeypatch.setattr(module, 'CHANNELS', 1)
    size, taps, strides, padding = CASES[case]
    ours, theirs = (
        nn.Conv(5, taps, strides, padding, use_bias=False, conv_general_dilated=form)
        for form in (convolution, None)
    )
    x = np.random.default_rng(0).normal(size=(6, *size, 3)).astype(np.float32)
    variables = theirs.init(jax.random.key(0), x)

    def run(layer):
        y, gradients = jax.vjp(layer.apply, variables, x)
        return y, gradients(jnp.cos(y))

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), run(ours), run(theirs))
    dy = np.asarray(jnp.cos(ours.apply(variables, x)))
    pads = (
        jax.lax.padtype_to_pads(size, taps, strides, padding)
        if isinstance(padding, str)
        else padding
    )
    by_hand = slow_kernel_gradient(x, dy, taps, strides, pads)
    found = module.kernel_gradient(x, dy, taps, strides, tuple(pads))
    np.testing.assert_allclose(found, by_hand, atol=1e-4)


def test_finite_differences_in_float64():
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x, kernel = rng.normal(size=(2, 5, 5, 2)), rng.normal(size=(3, 3, 2, 3))
        f = lambda x, k: jnp.sin(convolution(x, k, (2, 1), ((1, 1), (0, 1)))).sum()
        check_grads(f, (x, kernel), order=1, modes=['rev'], eps=1e-5, atol=1e-7, rtol=1e-7)


def test_maps_of_few_places_are_products():
    """XLA would exchange map and kernel, which its CPU backend is slow at."""
    x, kernel = jnp.ones((6, 2, 2, 3)), jnp.ones((3, 3, 3, 5))
    both = jax.grad(lambda *z: convolution(*z, (1, 1), ((1, 1),) * 2).sum(), (0, 1))
    assert 'conv_general_dilated' not in str(jax.make_jaxpr(both)(x, kernel))


def test_episodes_apart_and_a_narrow_dtype():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(3, 4, 6, 6, 2)), jnp.bfloat16)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 2, 4)), jnp.bfloat16)
    loss = lambda form: (
        lambda k: jax.vmap(
            lambda x: jnp.square(form(x, k, (1, 1), ((1, 1), (1, 1)))).astype(jnp.float32).sum()
        )(x).sum()
    )
    library = lambda x, k, strides, padding: jax.lax.conv_general_dilated(
        x, k, strides, padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    ours, theirs = (jax.grad(loss(form))(kernel) for form in (convolution, library))
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        ours.astype(np.float32), theirs.astype(np.float32), rtol=3e-2, atol=1.0
    )


@pytest.mark.parametrize('how', [{'feature_group_count': 2}, {'rhs_dilation': (2, 2)}])
def test_groups_and_dilation_stay_with_the_library(how):
    x, kernel = jnp.ones((1, 8, 8, 4)), jnp.ones((3, 3, 4 // how.get('feature_group_count', 1), 2))
    layout = {'dimension_numbers': ('NHWC', 'HWIO', 'NHWC')}
    expected = jax.lax.conv_general_dilated(x, kernel, (1, 1), 'VALID', **layout, **how)
    np.testing.assert_array_equal(
        convolution(x, kernel, (1, 1), 'VALID', **layout, **how), expected
    )


def test_an_accelerator_gets_the_libraries_convolution(monkeypatch):
    x, kernel = jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2))
    monkeypatch.setattr(jax, 'default_backend', lambda: 'tpu')
    f = lambda k: convolution(
        x, k, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    ).sum()
    assert 'scan' not in str(jax.make_jaxpr(jax.grad(f))(kernel))
