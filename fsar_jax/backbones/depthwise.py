"""The depthwise convolution of the light networks."""

from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

from fsar_jax.convolution import convolution

DIAGONAL_UP_TO = 128  # channels

Padding = tuple[tuple[int, int], tuple[int, int]]  # of height and width, before and behind


class DepthwiseConv(nn.Module):
    """y[c] = x[c] ∗ k[c], one m×m kernel per channel, without bias: [N, h, w, C] → [N, ⌈h / s⌉,
    ⌈w / s⌉, C].

    Args:
      stride: s.
      kernel_init: initialiser of k [m, m, 1, C], which is the shape that
        nn.Conv(feature_group_count=C) has too.
      dtype: compute dtype; k is float32.
      size: m.
      padding: of height and of width, before and behind; None for m // 2 everywhere.
      diagonal_up_to: most channels for which a CPU takes `diagonal_convolution`.
    """

    stride: int
    kernel_init: nn.initializers.Initializer
    dtype: Any = jnp.float32
    size: int = 3
    padding: Padding | None = None
    diagonal_up_to: int = DIAGONAL_UP_TO

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, 1, x.shape[-1])
        kernel = self.param('kernel', self.kernel_init, shape, jnp.float32)
        padding = self.padding or ((self.size // 2,) * 2,) * 2
        compute = grouped_convolution
        if jax.default_backend() == 'cpu':
            compute = (
                diagonal_convolution if x.shape[-1] <= self.diagonal_up_to else shifted_products
            )
        return compute(x.astype(self.dtype), kernel.astype(self.dtype), self.stride, padding)


def grouped_convolution(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding = ((1, 1), (1, 1))
) -> jax.Array:
    """The convolution as the accelerators' libraries have it: x [N, h, w, C], kernel [m, m, 1,
    C]."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        padding,
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        feature_group_count=x.shape[-1],
    )


def diagonal_convolution(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding = ((1, 1), (1, 1))
) -> jax.Array:
    """The same as an ordinary convolution whose kernel [m, m, C, C] is zero between channels: C
    times the operations, and for few channels yet faster on XLA's CPU backend, which is slow at
    grouped convolutions and at their gradients.

    Gradients of shufflenet_v2_small by one core, a frame of 64 pixels: 1.05 ms, and 1.6 ms as nine
    shifted products, which compile twice as long; of shufflenet_v2_x0_5 (C up to 96): 4.9 and 6.5
    ms; of mobilenet_v2 (C up to 960): 163 and 24 ms.
    """
    diagonal = kernel * jnp.eye(x.shape[-1], dtype=kernel.dtype)
    return convolution(x, diagonal, (stride, stride), padding)


def shifted_products(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding = ((1, 1), (1, 1))
) -> jax.Array:
    """The same as m² shifted products, summed in float32, for many channels: half the time of the
    grouped convolution on a CPU."""
    padded = jnp.pad(x, ((0, 0), *padding, (0, 0))).astype(jnp.float32)
    taps = kernel.shape[:2]
    height, width = ((n - m) // stride * stride + 1 for n, m in zip(padded.shape[1:], taps))
    products = (
        padded[:, i : i + height : stride, j : j + width : stride]
        * kernel[i, j, 0].astype(jnp.float32)
        for i in range(kernel.shape[0])
        for j in range(kernel.shape[1])
    )
    return cast(jax.Array, sum(products)).astype(x.dtype)
