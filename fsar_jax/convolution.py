"""Convolution whose gradients are fast on XLA's CPU backend, in loops and in large batches too."""

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# A block has so many places that places · taps · C is at most this: it stays in the second cache.
BLOCK = 2**18
# But at least these, or adding up the gradients of blocks takes longer than the products.
PLACES = 256

Pairs = tuple[tuple[int, int], ...]


def convolution(
    x: jax.Array, kernel: jax.Array, strides: Any, padding: Any, **how: Any
) -> jax.Array:
    """`jax.lax.conv_general_dilated` for `nn.Conv(conv_general_dilated=convolution)`: x [N, …, C],
    kernel [m, …, C, F], in two or three dimensions, channels last.

    On a CPU its gradients are `input_gradient` and `kernel_gradient`, unless `how` asks for groups
    or for dilation. Forward-mode derivatives (`jax.jvp`) do not exist there.
    """
    plain = how.get('feature_group_count', 1) == 1 and not any(
        n != 1 for key in ('lhs_dilation', 'rhs_dilation') for n in how.get(key) or ()
    )
    if jax.default_backend() != 'cpu' or not plain:
        return lax.conv_general_dilated(x, kernel, strides, padding, **how)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:-1], kernel.shape[:-2], strides, padding)
    return _convolution(x, kernel, tuple(strides), tuple((int(p), int(q)) for p, q in padding))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolution(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], padding: Pairs
) -> jax.Array:
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=_layout(x))


def _forward(x, kernel, strides, padding):
    return _convolution(x, kernel, strides, padding), (x, kernel)


def _backward(strides, padding, inputs, dy):
    x, kernel = inputs
    return (
        input_gradient(dy, kernel, x.shape[1:-1], strides, padding),
        kernel_gradient(x, dy, kernel.shape[:-2], strides, padding).astype(kernel.dtype),
    )


_convolution.defvjp(_forward, _backward)


def _layout(x: jax.Array) -> tuple[str, str, str]:
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
    around = [
        (m - 1 - before, n - s * (k - 1) - 1 + before)
        for m, (before, _), n, s, k in zip(kernel.shape, padding, size, strides, dy.shape[1:])
    ]
    return lax.conv_general_dilated(
        dy, mirrored, (1,) * len(size), around, lhs_dilation=strides, dimension_numbers=_layout(dy)
    )


def kernel_gradient(
    x: jax.Array, dy: jax.Array, taps: tuple[int, ...], strides: tuple[int, ...], padding: Pairs
) -> jax.Array:
    """The gradient of the kernel, [*taps, C, F] float32 (or wider), from x [N, …, C] and that of y,
    dy [N, …, F]: for each tap, the product of x at its places [places, C] with dy [places, F],
    summed over blocks of places.

    XLA's CPU backend computes it as a convolution with dy as the kernel, which takes 2 to 4 times
    as long for large batches, whose operands leave the caches, and 100 times in a loop.
    """
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    channels, features = x.shape[-1], dy.shape[-1]
    count, height, *others = dy.shape[:-1]
    places = max(BLOCK // (math.prod(taps) * channels), PLACES)
    rows = _divisor(height, places // math.prod(others))
    images = _divisor(count, places // (height * math.prod(others))) if rows == height else 1
    extent = [s * (n - 1) + 1 for s, n in zip(strides, (rows, *others))]
    every = (slice(None), *(slice(None, None, s) for s in strides))
    offsets = jnp.asarray(list(itertools.product(*map(range, taps))))
    dtype = jnp.promote_types(x.dtype, jnp.float32)

    def add_block(total, block):
        image, row = block // (height // rows) * images, block % (height // rows) * rows
        part = lax.dynamic_slice(
            dy, (image, row, *(0 for _ in others), 0), (images, rows, *others, features)
        ).reshape(-1, features)

        def one_tap(_, offset):
            first = offset.at[0].add(row * strides[0])
            seen = lax.dynamic_slice(x, (image, *first, 0), (images, *extent, channels))[every]
            return None, jnp.matmul(
                seen.reshape(-1, channels).T, part, preferred_element_type=dtype
            )

        return total + lax.scan(one_tap, None, offsets)[1], None

    zeros = jnp.zeros((len(offsets), channels, features), dtype)
    total, _ = lax.scan(add_block, zeros, jnp.arange(count // images * (height // rows)))
    return total.reshape(*taps, channels, features)


def _divisor(number: int, most: int) -> int:
    """The largest divisor of a number up to `most`, at least 1."""
    return max(n for n in range(1, number + 1) if number % n == 0 and n <= max(most, 1))
