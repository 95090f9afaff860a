"""Convolution whose gradients are fast on XLA's CPU backend, in loops and in large batches too."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# Places of y, of all images together, that a part of the gradient of a kernel sums over.
PLACES = 2**12
# Images times channels of y that it sums over at least: fewer leave most of a vector unit idle.
CHANNELS = 64

Pairs = tuple[tuple[int, int], ...]


def convolution(
    x: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **how: Any
) -> jax.Array:
    """`jax.lax.conv_general_dilated` for `nn.Conv(conv_general_dilated=convolution)`: x [N, …, C],
    kernel [m, …, C, F], in two or three dimensions.

    On a CPU a convolution of clips is one of frames, and the gradients are `input_gradient` and
    `kernel_gradient`, unless `how` asks for groups or for dilation. Forward-mode derivatives
    (`jax.jvp`) do not exist there.
    """
    plain = how.get('feature_group_count', 1) == 1 and not any(
        n != 1 for key in ('lhs_dilation', 'rhs_dilation') for n in how.get(key) or ()
    )
    if jax.default_backend() != 'cpu' or not plain:
        how = {'dimension_numbers': layout(x)} | how
        return lax.conv_general_dilated(x, kernel, strides, padding, **how)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:-1], kernel.shape[:-2], strides, padding)
    strides, padding = tuple(strides), tuple((int(p), int(q)) for p, q in padding)
    if x.ndim == 5:
        return _convolution_of_clips(x, kernel, strides, padding)
    return _convolution_of_frames(x, kernel, strides, padding)


def _convolution_of_clips(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], padding: Pairs
) -> jax.Array:
    """x [N, l, h, w, C], kernel [m, …, C, F]: the m frames that one of y sees as channels of one,
    convolved over space. XLA's CPU backend takes three times as long over time and space at once.
    """
    before, behind = padding[0]
    m, length = len(kernel), (x.shape[1] + before + behind - len(kernel)) // strides[0] + 1
    padded = jnp.pad(x, ((0, 0), padding[0], *((0, 0),) * 3))
    around = [padded[:, t : t + strides[0] * (length - 1) + 1 : strides[0]] for t in range(m)]
    frames = jnp.concatenate(around, -1).reshape(-1, *x.shape[2:4], m * x.shape[-1])
    space = jnp.moveaxis(kernel, 0, 2).reshape(*kernel.shape[1:3], -1, kernel.shape[-1])
    y = _convolution_of_frames(frames, space, strides[1:], padding[1:])
    return y.reshape(len(x), length, *y.shape[1:])


def _convolution_of_frames(x, kernel, strides, padding):
    small = math.prod(x.shape[1:-1]) < math.prod(kernel.shape[:-2])
    return (_product_of_places if small else _convolution)(x, kernel, strides, padding)


def _product_of_places(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], padding: Pairs
) -> jax.Array:
    """For maps [N, h, w, C] of fewer places than the kernel has taps: a product of matrices,
    between all places of x and all of y.

    XLA exchanges map and kernel of such a convolution in a loop, and its CPU backend then takes 35
    times as long.
    """
    size, taps = x.shape[1:-1], kernel.shape[:-2]
    tap_of = [
        _tap_between(n, m, s, *around) for n, m, s, around in zip(size, taps, strides, padding)
    ]
    between = jnp.einsum('hkm,wln,mncf->hwcklf', *(t.astype(kernel.dtype) for t in tap_of), kernel)
    y = x.reshape(len(x), math.prod(x.shape[1:])) @ between.reshape(
        math.prod(size) * x.shape[-1], -1
    )
    return y.reshape(len(x), *(t.shape[1] for t in tap_of), kernel.shape[-1])


def _tap_between(places, taps, stride, before, behind):
    """[places of x, places of y, taps], 1 where that tap joins the two."""
    length = (places + before + behind - taps) // stride + 1
    i, o, t = np.ogrid[:places, :length, :taps]
    return (i == stride * o - before + t).astype(np.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolution(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], padding: Pairs
) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=layout(x))


def _forward(x, kernel, strides, padding):
    return _convolution(x, kernel, strides, padding), (x, kernel)


def _backward(strides, padding, inputs, dy):
    x, kernel = inputs
    return (
        input_gradient(dy, kernel, x.shape[1:-1], strides, padding),
        kernel_gradient(x, dy, kernel.shape[:-2], strides, padding).astype(kernel.dtype),
    )


_convolution.defvjp(_forward, _backward)


def layout(x: jax.Array) -> tuple[str, str, str]:
    """Dimension numbers with channels last: of x [N, …, C], the kernel [m, …, C, F] and y."""
    space = 'DHW'[2 - x.ndim :]
    return f'N{space}C', f'{space}IO', f'N{space}C'


def input_gradient(
    dy: jax.Array,
    kernel: jax.Array,
    size: tuple[int, ...],
    strides: tuple[int, ...],
    padding: Pairs,
) -> jax.Array:
    """The gradient of x, [N, *size, C], from that of y, dy [N, …, F]: dy with strides − 1 zeros
    between places, convolved with the mirrored kernel.

    As JAX writes it, without a mirrored copy of the kernel, XLA's CPU backend takes 30 times as
    long in a loop.
    """
    axes = tuple(range(len(size)))
    mirrored = jnp.flip(kernel, axes).swapaxes(-1, -2)
    around = input_gradient_padding(dy, kernel, size, strides, padding)
    return lax.conv_general_dilated(
        dy, mirrored, (1,) * len(size), around, lhs_dilation=strides, dimension_numbers=layout(dy)
    )


def input_gradient_padding(
    dy: jax.Array,
    kernel: jax.Array,
    size: tuple[int, ...],
    strides: tuple[int, ...],
    padding: Pairs,
) -> Pairs:
    """How many zeros before and behind each axis of dy, spread by its strides, the gradient of
    x [N, *size, C] takes; arguments as of `input_gradient`."""
    return tuple(
        (m - 1 - before, n - s * (k - 1) - 1 + before)
        for m, (before, _), n, s, k in zip(kernel.shape, padding, size, strides, dy.shape[1:])
    )


def kernel_gradient(
    x: jax.Array, dy: jax.Array, taps: tuple[int, ...], strides: tuple[int, ...], padding: Pairs
) -> jax.Array:
    """The gradient of the kernel, [*taps, C, F] float32 (or wider), from x [N, …, C] and that of y,
    dy [N, …, F]: x convolved with dy, where the images are what is summed over, some images at a
    time.

    As JAX writes it, without the arrays being turned, XLA's CPU backend takes 100 times as long in
    a loop. All images at once take up to four times as long, because they leave the caches.
    """
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    around = [
        (before, s * (k - 1) + m - n - before)
        for m, (before, _), n, s, k in zip(taps, padding, x.shape[1:], strides, dy.shape[1:])
    ]
    most = max(PLACES // math.prod(dy.shape[1:-1]), CHANNELS // dy.shape[-1], 1)
    images = max(n for n in range(1, len(x) + 1) if len(x) % n == 0 and n <= most)

    def add_images(total, some):
        x, dy = some
        new = lax.conv_general_dilated(
            x.swapaxes(0, -1),
            jnp.moveaxis(dy, 0, -2),
            (1,) * len(taps),
            around,
            rhs_dilation=strides,
            dimension_numbers=layout(x),
            preferred_element_type=dtype,
        )
        return total + jnp.moveaxis(new, 0, -2), None

    zeros = jnp.zeros((*taps, x.shape[-1], dy.shape[-1]), dtype)
    parts = jax.tree.map(lambda x: x.reshape(-1, images, *x.shape[1:]), (x, dy))
    return lax.scan(add_images, zeros, parts)[0]
