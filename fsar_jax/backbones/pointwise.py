"""The 1×1 convolution of all networks."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fsar_jax.convolution import layout


class PointwiseConv(nn.Module):
    """y = x k at every place of a map, without bias: [N, h, w, C] → [N, ⌈h / s⌉, ⌈w / s⌉,
    features].

    Args:
      features: output channels.
      stride: s of each axis of the map; their number is that of its axes.
      kernel_init: initialiser of k [1, 1, C, features], which is the shape that nn.Conv has too.
      dtype: compute dtype; k is float32.

    A clip [N, l, h, w, C] has three strides and k [1, 1, 1, C, features].
    """

    features: int
    stride: tuple[int, ...]
    kernel_init: nn.initializers.Initializer
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*(1 for _ in self.stride), x.shape[-1], self.features)
        kernel = self.param('kernel', self.kernel_init, shape, jnp.float32)
        compute = dot_product if jax.default_backend() == 'cpu' else convolution
        return compute(x.astype(self.dtype), kernel.astype(self.dtype), self.stride)


def convolution(x: jax.Array, kernel: jax.Array, stride: tuple[int, ...]) -> jax.Array:
    """As the accelerators' libraries have it: x [N, h, w, C], kernel [1, 1, C, F]; or with one axis
    more each."""
    return jax.lax.conv_general_dilated(x, kernel, stride, 'VALID', dimension_numbers=layout(x))


def dot_product(x: jax.Array, kernel: jax.Array, stride: tuple[int, ...]) -> jax.Array:
    """The same as one product of matrices [places, C] and [C, F], for XLA's CPU backend: forward
    and backward pass of the convolution take 1.3 to 3.5 times as long there
    (benchmarks/convolutions.py). With the axes of the map left apart, the gradient of the kernel
    would first copy that of y, three times as long again."""
    x = x[:, *(slice(None, None, s) for s in stride)]
    y = x.reshape(-1, x.shape[-1]) @ kernel.reshape(kernel.shape[-2:])
    return y.reshape(*x.shape[:-1], kernel.shape[-1])
