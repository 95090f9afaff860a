"""The depthwise 3×3 convolution of the light networks."""

from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp

DIAGONAL_UP_TO = 128  # channels


class DepthwiseConv(nn.Module):
    """y[c] = x[c] ∗ k[c], one 3×3 kernel per channel, padded by 1, without bias: [N, h, w, C] → [N,
    ⌈h / s⌉, ⌈w / s⌉, C].

    Args:
      stride: s.
      kernel_init: initialiser of k [3, 3, 1, C], which is the shape that
        nn.Conv(feature_group_count=C) has too.
      dtype: compute dtype; k is float32.
    """

    stride: int
    kernel_init: nn.initializers.Initializer
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param('kernel', self.kernel_init, (3, 3, 1, x.shape[-1]), jnp.float32)
        compute = grouped_convolution
        if jax.default_backend() == 'cpu':
            compute = diagonal_convolution if x.shape[-1] <= DIAGONAL_UP_TO else shifted_products
        return compute(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)


def grouped_convolution(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The convolution as the accelerators' libraries have it: x [N, h, w, C], kernel [3, 3, 1,
    C]."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((1, 1), (1, 1)),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        feature_group_count=x.shape[-1],
    )


def diagonal_convolution(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The same as an ordinary convolution whose kernel [3, 3, C, C] is zero between channels: C
    times the operations, and for few channels yet faster on XLA's CPU backend, which is slow at
    grouped convolutions and at their gradients.

    Gradients of shufflenet_v2_small by one core, a frame of 64 pixels: 1.05 ms, and 1.6 ms as nine
    shifted products, which compile twice as long; of shufflenet_v2_x0_5 (C up to 96): 4.9 and 6.5
    ms; of mobilenet_v2 (C up to 960): 163 and 24 ms.
    """
    diagonal = kernel * jnp.eye(x.shape[-1], dtype=kernel.dtype)
    return jax.lax.conv_general_dilated(
        x, diagonal, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )


def shifted_products(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """The same as nine shifted products, summed in float32, for many channels: half the time of the
    grouped convolution on a CPU."""
    height, width = ((size - 1) // stride * stride + 1 for size in x.shape[1:3])
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))).astype(jnp.float32)
    products = (
        padded[:, i : i + height : stride, j : j + width : stride]
        * kernel[i, j, 0].astype(jnp.float32)
        for i in range(3)
        for j in range(3)
    )
    return cast(jax.Array, sum(products)).astype(x.dtype)
