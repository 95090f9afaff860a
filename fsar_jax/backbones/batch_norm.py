"""Batch normalisation as the published weights were trained with it."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

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
      frozen: use the running values in training too, and leave them as they are.
      epsilon: ε.
      momentum: the share of the old running value, above 0.9; what torch calls its momentum is the
        other share. A stage with another one says so in `Stage.batch_norm_momentum`.
      dtype: of the output. Parameters, statistics and the normalisation itself are float32.

    Input x [B, ..., C], output [B, ..., C]. Collection 'batch_stats': mean, var, float32 [C].
    """

    groups: int = 1
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

        if x.shape[0] % self.groups:
            raise ValueError(
                f'batch norm in {self.groups} groups needs a multiple of {self.groups} frames, got '
                f'{x.shape[0]}: '
                'change config.model.backbone.batch_norm_groups, or way, shot, query or frames of '
                'config.episode'
            )
        chunks = x.reshape(self.groups, x.shape[0] // self.groups, *x.shape[1:]).astype(jnp.float32)
        axes = tuple(range(1, chunks.ndim - 1))
        mean = chunks.mean(axes, keepdims=True)
        var = jnp.square(chunks - mean).mean(axes, keepdims=True)
        y = _normalize(chunks, mean, var, scale, bias, self.epsilon)
        y = y.reshape(x.shape).astype(self.dtype)

        if not self.is_initializing() and self.is_mutable_collection('batch_stats'):
            count = chunks[0].size // channels
            if count < 2:
                raise ValueError(
                    'batch norm in training needs more than one value per channel: use larger '
                    "frames, more queries or config.model.backbone.batch_norm='frozen'"
                )
            batch_mean, batch_var = (
                jax.lax.stop_gradient(s[0].reshape(channels)) for s in (mean, var)
            )
            unbiased = batch_var * (count / (count - 1))
            old, new = self.momentum, 1 - self.momentum
            running_mean.value = old * running_mean.value + new * batch_mean
            running_var.value = old * running_var.value + new * unbiased
        return y


def _normalize(x, mean, var, scale, bias, epsilon):
    return (x.astype(jnp.float32) - mean) * (jax.lax.rsqrt(var + epsilon) * scale) + bias
