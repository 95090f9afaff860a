"""Self-attention among all patches of a clip, which STRM compares its enrichment with."""

from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from fsar_jax.enrichment.self_attention import SelfAttentionEnrichment
from fsar_jax.fields import setting
from fsar_jax.stage import Shared, Stage


class JointEnrichment(Stage):
    """Jnt-ST (STRM, Table 3 and supplement, Table A1): every patch attends to all L·P² patches of
    its clip, in one or more layers, in the place of patch and frame enrichment.

    The paper gives no formula and nobody released code, so a layer is that of the patch enrichment
    (`SelfAttentionEnrichment`, variants included), on tokens ordered by frame and then by place
    (row S25 of docs/paper_vs_code.md).

    Paper, 5-way 5-shot on the SSv2 of OTAM: 64.7 with one layer and 65.8 with two, where Baseline
    TRM has 62.1 and STRM 68.1; 50% more FLOPs than Baseline TRM, or twice them. At its sizes (L·P²
    = 128 tokens, D = 2048), `benchmarks/flops.py` counts 7.5% and 14.9% more here: attention among
    128 tokens costs 3% of the linear maps beside it, which patch enrichment has too.

    Args:
      joint_layers: how many.
      variant, dropout, dtype: of each layer, as of `SelfAttentionEnrichment`.

    Input patches [B, L, P², D], output of the same shape.
    """

    joint_layers: int = setting(
        1,
        at_least=1,
        at_most=100,
        affects='model',
        help="number of layers of the patch enrichment 'joint_self_attention'; STRM tries 1 and 2",
    )
    variant: str = Shared.variant
    dropout: float = setting(
        0.1, at_least=0, below=1, affects='model', help='dropout rate in training'
    )
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, patches: jax.Array, train: bool = False) -> jax.Array:
        chex.assert_rank(patches, 4)
        clips, length, cells, dim = patches.shape
        tokens = patches.reshape(clips, length * cells, dim)
        for i in range(self.joint_layers):
            layer = SelfAttentionEnrichment(
                variant=self.variant, dropout=self.dropout, dtype=self.dtype, name=f'layer{i + 1}'
            )
            tokens = layer(tokens, train)
        return tokens.reshape(patches.shape)
