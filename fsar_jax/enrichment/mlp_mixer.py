"""MLP-mixer over the tokens of one set: STRM's frame-level enrichment (FLE)."""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from fsar_jax.fields import setting
from fsar_jax.layers import POSITION_AMPLITUDE, Linear, sinusoidal_positions
from fsar_jax.stage import Shared, Stage


class MixerEnrichment(Stage):
    """H* = σ(Hᵀ W_t1) W_t2 + Hᵀ across tokens, then E = σ(H*ᵀ W_r1) W_r2 + H*ᵀ across channels
    (STRM, Eq. 5 and 6).

    Tokens are the L frames of a video (FLE), or the P² patches of a frame (supplement, Table A2).
    W_t are N×N and shared by the channels, W_r are D×D and shared by the tokens, σ is ReLU; the
    weights do not depend on the sample.

    variant='code' (rows S4 to S6 of docs/paper_vs_code.md): 0.1 × a sinusoid over the tokens is
    added first and stays in the residual, and every linear map has a bias. variant='paper':
    neither.

    Args:
      variant: 'code' or 'paper'.
      dropout: rate on the tokens (after the position code) while training.
      dtype: compute dtype.

    Input tokens [..., N, D], output [..., N, D].
    """

    variant: str = Shared.variant
    dropout: float = setting(
        0.1, at_least=0, below=1, affects='model', help='dropout rate in training'
    )
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool = False) -> jax.Array:
        code = self.variant == 'code'
        count, dim = tokens.shape[-2:]
        linear = lambda features, name: Linear(features, use_bias=code, dtype=self.dtype, name=name)

        x = tokens.astype(self.dtype)
        if code:
            x = x + POSITION_AMPLITUDE * jnp.asarray(sinusoidal_positions(count, dim), self.dtype)
        x = nn.Dropout(self.dropout)(x, deterministic=not train)

        across = linear(count, 'token_out')(nn.relu(linear(count, 'token_in')(x.swapaxes(-1, -2))))
        mixed = across.swapaxes(-1, -2) + x
        enriched = linear(dim, 'channel_out')(nn.relu(linear(dim, 'channel_in')(mixed))) + mixed
        chex.assert_equal_shape([tokens, enriched])
        return enriched
