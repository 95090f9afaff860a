"""The depthwise convolution of the light networks, and of MViT."""

import functools
import itertools
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from fsar_jax.convolution import input_gradient_padding, layout

Padding = tuple[tuple[int, int], ...]  # of height and width (and time first), before and behind


class DepthwiseConv(nn.Module):
    """y[c] = x[c] ∗ k[c], one m×m kernel per channel, without bias: [N, h, w, C] → [N, ⌈h / s⌉,
    ⌈w / s⌉, C].

    Args:
      stride: s, of each axis of the map; their number is that of its axes.
      kernel_init: initialiser of k [m, m, 1, C], which is the shape that
        nn.Conv(feature_group_count=C) has too.
      dtype: compute dtype; k is float32.
      size: m.
      padding: of each axis, before and behind; None for m // 2 everywhere.

    A clip [N, l, h, w, C] has three strides and k [m, m, m, 1, C].
    """

    stride: tuple[int, ...]
    kernel_init: nn.initializers.Initializer
    dtype: Any = jnp.float32
    size: int = 3
    padding: Padding | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        axes = len(self.stride)
        shape = (*(self.size for _ in range(axes)), 1, x.shape[-1])
        kernel = self.param('kernel', self.kernel_init, shape, jnp.float32)
        padding = self.padding or ((self.size // 2,) * 2,) * axes
        compute = shifted_products if jax.default_backend() == 'cpu' else grouped_convolution
        return compute(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, padding)


def grouped_convolution(
    x: jax.Array, kernel: jax.Array, stride: tuple[int, ...], padding: Padding
) -> jax.Array:
    """The convolution as the accelerators' libraries have it: x [N, …, C], kernel [m, …, 1, C]."""
    return jax.lax.conv_general_dilated(
        x, kernel, stride, padding, dimension_numbers=layout(x), feature_group_count=x.shape[-1]
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def shifted_products(
    x: jax.Array, kernel: jax.Array, stride: tuple[int, ...], padding: Padding
) -> jax.Array:
    """The same as m² (m³) shifted products, summed in float32: XLA's CPU backend is slow at grouped
    convolutions, and at their gradients up to a hundred times (benchmarks/convolutions.py).

    Forward-mode derivatives (`jax.jvp`) do not exist.
    """
    padded = _padded(x, padding)
    size = tuple((n - m) // s + 1 for n, m, s in zip(padded.shape[1:], kernel.shape, stride))
    products = (
        _shifted(padded, tap, stride, size) * kernel[*tap, 0].astype(jnp.float32)
        for tap in _taps(kernel)
    )
    return cast(jax.Array, sum(products)).astype(x.dtype)


def _forward(x, kernel, stride, padding):
    return shifted_products(x, kernel, stride, padding), (x, kernel)


def _backward(stride, padding, inputs, dy):
    x, kernel = inputs
    around = input_gradient_padding(dy, kernel, x.shape[1:-1], stride, padding)
    between = ((*pair, s - 1) for pair, s in zip(around, stride, strict=True))
    spread = jax.lax.pad(dy, jnp.zeros((), dy.dtype), ((0, 0, 0), *between, (0, 0, 0)))
    axes = range(len(stride))
    mirrored = jnp.flip(kernel, tuple(axes))
    dx = shifted_products(spread, mirrored, tuple(1 for _ in axes), tuple((0, 0) for _ in axes))

    def add_image(totals, image):
        x, dy = (i[None].astype(jnp.float32) for i in image)
        padded = _padded(x, padding)
        return [
            total + (_shifted(padded, tap, stride, dy.shape[1:-1]) * dy)[0]
            for total, tap in zip(totals, _taps(kernel), strict=True)
        ], None

    # One image at a time, because XLA's CPU backend takes ten times as long to sum over all.
    start = [jnp.zeros(dy.shape[1:], jnp.float32) for _ in _taps(kernel)]
    totals, _ = jax.lax.scan(add_image, start, (x, dy))
    dk = jnp.stack([total.sum(tuple(axes)) for total in totals]).reshape(kernel.shape)
    return dx, dk.astype(kernel.dtype)


shifted_products.defvjp(_forward, _backward)


def _padded(x: jax.Array, padding: Padding) -> jax.Array:
    return jnp.pad(x, ((0, 0), *padding, (0, 0))).astype(jnp.float32)


def _taps(kernel: jax.Array) -> list[tuple[int, ...]]:
    """The places (i, j) of a kernel [m, m, 1, C], or (t, i, j)."""
    return list(itertools.product(*map(range, kernel.shape[:-2])))


def _shifted(
    padded: jax.Array, tap: tuple[int, ...], stride: tuple[int, ...], size: tuple[int, ...]
) -> jax.Array:
    """What each place of y [N, *size, C] sees at this tap of the kernel."""
    seen = zip(tap, size, stride, strict=True)
    return padded[:, *(slice(t, t + s * (n - 1) + 1, s) for t, n, s in seen)]
