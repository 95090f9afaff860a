"""Batch normalisation as the published weights were trained with it."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fsar_jax.stage import Stage


class BatchNorm(nn.Module):
    """y = (x − μ) / √(v + ε) · scale + bias per channel (Ioffe and Szegedy 2015), as torch
    computes it.

    In training μ and v come from the batch: v is biased in the normalisation and unbiased in the
    running value, and running ← 0.9 running + 0.1 batch. Flax's own BatchNorm keeps the biased one
    and another momentum, so weights trained further with it would drift from the published recipe.

    Statistics are those of the call: of one episode's frames under `jax.vmap` over episodes (the
    updated running values then get the episodes as leading axis), of all its frames under
    `jax.jit`, however they are sharded.

    Args:
      groups: g > 1 normalises g contiguous chunks of the batch apart and updates the running values
        from the first chunk only: what torch.nn.DataParallel does on g GPUs. The batch must be a
        multiple of g.
      parts: sizes of contiguous parts of the batch, in any unit: (5, 15) for a fourth and the rest.
        Each is normalised apart and updates the running values, in turn, as if the parts were
        batches of their own.
      frozen: use the running values in training too, and leave them as they are.
      epsilon: ε.
      momentum: the share of the old running value, above 0.9; what torch calls its momentum is the
        other share. A stage with another one says so in `Stage.batch_norm_momentum`.
      dtype: of the output. Parameters, statistics and the normalisation itself are float32.

    Input x [B, ..., C], output [B, ..., C]. Collection 'batch_stats': mean, var, float32 [C].
    """

    groups: int = 1
    parts: tuple[int, ...] = (1,)
    frozen: bool = False
    epsilon: float = 1e-5
    momentum: float = Stage.batch_norm_momentum
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        channels = x.shape[-1]
        scale = self.param('scale', nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param('bias', nn.initializers.zeros, (channels,), jnp.float32)
        running_mean = self.variable('batch_stats', 'mean', jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable('batch_stats', 'var', jnp.ones, (channels,), jnp.float32)

        if self.frozen or not train:
            return _normalize(
                x, running_mean.value, running_var.value, scale, bias, self.epsilon
            ).astype(self.dtype)

        sizes = self._chunks(len(x))
        y, mean, var = _normalize_by_batch(x, scale, bias, sizes, self.epsilon)
        if not self.is_initializing() and self.is_mutable_collection('batch_stats'):
            for i in range(0, len(sizes), self.groups):  # the first chunk of each part
                count = sizes[i] * x[0].size // channels
                if count < 2:
                    raise ValueError(
                        'batch norm in training needs more than one value per channel: use larger '
                        "frames, more queries or config.model.backbone.batch_norm='frozen'"
                    )
                unbiased = var[i] * (count / (count - 1))
                old, new = self.momentum, 1 - self.momentum
                running_mean.value = old * running_mean.value + new * mean[i]
                running_var.value = old * running_var.value + new * unbiased
        return y.astype(self.dtype)

    def _chunks(self, images: int) -> tuple[int, ...]:
        """How many of the images each chunk with statistics of its own has: `groups` for each part,
        one after the other."""
        unit = images // sum(self.parts)
        for size in (unit * part for part in self.parts):
            if size % self.groups:
                raise ValueError(
                    f'batch norm in {self.groups} groups needs a multiple of {self.groups} frames, '
                    f'got {size}: change config.model.backbone.batch_norm_groups, or way, shot, '
                    'query or frames of config.episode'
                )
        return tuple(unit * part // self.groups for part in self.parts for _ in range(self.groups))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _normalize_by_batch(
    x: jax.Array, scale: jax.Array, bias: jax.Array, sizes: tuple[int, ...], epsilon: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """x [B, …, C] normalised by the statistics of each chunk of images, and these: y float32, mean
    and biased variance [chunks, C]. No gradient passes through the statistics that are returned.

    Its gradient is written out, because a program has dozens of these: derived by JAX, it would
    take twice as many operations to compile.
    """
    return _forward(x, scale, bias, sizes, epsilon)[0]


def _forward(x, scale, bias, sizes, epsilon):
    mean = _of_chunks(x.astype(jnp.float32), sizes)
    centred = x.astype(jnp.float32) - _of_images(mean, sizes, x.ndim)
    var = _of_chunks(jnp.square(centred), sizes)
    inverse = jax.lax.rsqrt(var + epsilon)
    y = centred * _of_images(inverse * scale, sizes, x.ndim) + bias
    return (y, mean, var), (x, scale, mean, inverse)


def _backward(sizes, epsilon, inputs, gradients):
    """dx = scale / σ · (dy − mean dy − x̂ · mean dy x̂) (Ioffe and Szegedy 2015, Sec. 3)."""
    x, scale, mean, inverse = inputs
    dy = gradients[0]
    of_images = lambda chunks: _of_images(chunks, sizes, x.ndim)
    normal = (x.astype(jnp.float32) - of_images(mean)) * of_images(inverse)
    of_bias, of_scale = _of_chunks(dy, sizes), _of_chunks(dy * normal, sizes)
    dx = of_images(inverse * scale) * (dy - of_images(of_bias) - normal * of_images(of_scale))
    count = np.array(sizes, np.float32)[:, None] * (x[0].size // x.shape[-1])
    return dx.astype(x.dtype), (count * of_scale).sum(0), (count * of_bias).sum(0)


_normalize_by_batch.defvjp(_forward, _backward)


def _belongs(sizes: tuple[int, ...]) -> np.ndarray:
    """1 where an image belongs to a chunk, else 0: float32 [chunks, B]."""
    return np.repeat(np.eye(len(sizes), dtype=np.float32), sizes, 1)


def _of_chunks(x: jax.Array, sizes: tuple[int, ...]) -> jax.Array:
    """The mean of x [B, …, C] over each chunk of images, [chunks, C]."""
    if len(sizes) == 1:
        return x.mean(tuple(range(x.ndim - 1)))[None]
    of_images = x.mean(tuple(range(1, x.ndim - 1)))
    share = _belongs(sizes) / np.array(sizes, np.float32)[:, None]
    return jnp.matmul(share, of_images, precision=jax.lax.Precision.HIGHEST)


def _of_images(of_chunks: jax.Array, sizes: tuple[int, ...], ndim: int) -> jax.Array:
    """What holds of each chunk, [chunks, C], for each of its images: [B, 1, …, C] of `ndim`
    axes."""
    if len(sizes) > 1:
        of_chunks = jnp.matmul(_belongs(sizes).T, of_chunks, precision=jax.lax.Precision.HIGHEST)
    return of_chunks.reshape(-1, *(1 for _ in range(ndim - 2)), of_chunks.shape[-1])


def _normalize(x, mean, var, scale, bias, epsilon):
    return (x.astype(jnp.float32) - mean) * (jax.lax.rsqrt(var + epsilon) * scale) + bias
