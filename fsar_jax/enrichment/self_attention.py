"""Self-attention among the tokens of one set: STRM's patch-level enrichment (PLE)."""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from fsar_jax.fields import setting
from fsar_jax.layers import POSITION_AMPLITUDE, Linear, einsum_float32, sinusoidal_positions
from fsar_jax.stage import Shared, Stage


class SelfAttentionEnrichment(Stage):
    """α = softmax(q kᵀ) v + x,  f = ψ(α) + α  with ψ three linear maps D → D/2 → D/2 → D (STRM, Eq.
    2 to 4).

    Tokens are the P² patches of a frame (PLE), or the L frames of a video (supplement, Table A2).

    variant='code' departs from the equations as the released code does (rows S1 to S5 of
    docs/paper_vs_code.md): scores are not divided by √D; the attended term is gated by a learned
    scalar that starts at 0; 0.1 × a sinusoid over the tokens is added first and stays in the
    residual; every linear map has a bias. variant='paper' has none of these.

    Args:
      variant: 'code' or 'paper'.
      dropout: rate on the tokens (after the position code) while training.
      dtype: compute dtype; scores and softmax are float32.

    Input tokens [..., N, D], output [..., N, D]. The weights [..., N, N] are sown as
    intermediates/attention.
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

        scores = einsum_float32(
            '...nd,...md->...nm', linear(dim, 'query')(x), linear(dim, 'key')(x)
        )
        attention = jax.nn.softmax(scores if code else scores / jnp.sqrt(dim), axis=-1)
        self.sow('intermediates', 'attention', attention)
        attended = jnp.einsum(
            '...nm,...md->...nd', attention.astype(self.dtype), linear(dim, 'value')(x)
        )
        if code:
            attended = (
                self.param('gamma', nn.initializers.zeros, (1,)).astype(self.dtype) * attended
            )
        alpha = attended + x

        hidden = nn.relu(linear(dim // 2, 'mlp_in')(alpha))
        hidden = nn.relu(linear(dim // 2, 'mlp_hidden')(hidden))
        enriched = linear(dim, 'mlp_out')(hidden) + alpha
        chex.assert_equal_shape([tokens, enriched])
        return enriched
