"""STRM's query-class similarity: a second classifier on the patch-level enriched frames."""

from collections.abc import Mapping
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fsar_jax.enrichment import VideoFeatures
from fsar_jax.fields import setting
from fsar_jax.layers import TupleLinear, combine_cardinalities, einsum_float32, norm
from fsar_jax.matchers.cross_transformer import (
    CrossTransformer,
    check_cardinalities,
    compared_tuples,
)
from fsar_jax.stage import Loss, Shared, Stage, cross_entropy


class TupleFeatures(nn.Module):
    """z_t = σ(W_clsᵀ [h_t1; …; h_tω]), σ = ReLU (STRM, Sec. 3.3): frames [B, L, D] and tuples
    [T, ω] → [B, T, D″]."""

    cardinality: int
    dim: int
    use_bias: bool
    dtype: Any

    def setup(self) -> None:
        self.projection = TupleLinear(
            self.dim, self.cardinality, use_bias=self.use_bias, dtype=self.dtype
        )

    def __call__(self, frames: jax.Array, tuples: np.ndarray) -> jax.Array:
        return nn.relu(self.projection(frames, tuples))


class QueryClassSimilarity(Stage):
    """M(q, c) = Σ_ω (1/T) Σ_t max_j φ(z_t, z_j) over the class's K·T support tuples (STRM, Eq. 8),
    φ = −‖·‖.

    variant='code' takes the mean over Ω and has a bias in W_cls; variant='paper' the sum and none
    (rows S4, S8, S10). The released code never trains W_cls (row S11); here it is a parameter like
    any other.

    Args:
      cardinalities: Ω, shared with the matcher.
      dim: D″; None for half of the feature dimension, as published.
      variant, cardinality_reduction, dropout, dtype, tuples_…: as in `CrossTransformer`; with its
        values, the same tuples.
      weight: λ of STRM, Eq. 10: of these logits in the decision, and of their loss.
    """

    cardinalities: tuple[int, ...] = CrossTransformer.cardinalities
    dim: int | None = setting(
        None,
        at_least=1,
        affects='model',
        help="D'', width of the projected frame tuples; None: half the feature dimension",
    )
    variant: str = Shared.variant
    cardinality_reduction: str | None = CrossTransformer.cardinality_reduction
    dropout: float = CrossTransformer.dropout
    dtype: Any = jnp.float32
    weight: float = setting(
        0.0,
        at_least=0,
        affects='model',
        help="lambda, weight of STRM's query-class similarity in the logits and in the loss; 0: "
        'leave it out',
    )

    tuples_share: float = CrossTransformer.tuples_share
    tuples_seed: int = CrossTransformer.tuples_seed
    tuples_share_in_training: bool = CrossTransformer.tuples_share_in_training

    def check(self, frames: int | None = None) -> None:
        check_cardinalities(self.cardinalities, frames)

    @nn.compact
    def project(self, features: VideoFeatures, train: bool = False) -> dict[str, jax.Array]:
        """Per video: H [B, L, D] → {cardinality_ω: z [B, T, D″]}."""
        frames = nn.Dropout(self.dropout)(
            features.patch_level.astype(self.dtype), deterministic=not train
        )
        length, width = frames.shape[-2:]
        return {
            f'cardinality_{w}': TupleFeatures(
                w,
                self.dim or width // 2,
                self.variant == 'code',
                self.dtype,
                name=f'cardinality_{w}',
            )(frames, compared_tuples(self, length, w, train))
            for w in self.cardinalities
        }

    def __call__(
        self, support: dict[str, jax.Array], query: dict[str, jax.Array], train: bool = False
    ) -> jax.Array:
        """Per episode: support leaves [way, shot, T, D″], query leaves [Q, T, D″] → logits float32
        [Q, way]."""
        logits = []
        for name in support:
            q = query[name].astype(jnp.float32)
            s = support[name].astype(jnp.float32).reshape(support[name].shape[0], -1, q.shape[-1])
            # Only the nearest tuple counts, so find it without gradients, and measure that one
            # distance exactly.
            squared = jnp.square(s).sum(-1)[None, None] - 2 * einsum_float32('qtd,wsd->qtws', q, s)
            nearest = jnp.argmin(jax.lax.stop_gradient(squared), axis=-1)  # [Q, T, way]
            chosen = jax.vmap(lambda tuples, index: tuples[index], (0, 2), 2)(
                s, nearest
            )  # [Q, T, way, D″]
            logits.append(-norm(q[:, :, None] - chosen).mean(1))
        chex.assert_rank(logits, 2)
        return combine_cardinalities(logits, self.cardinality_reduction, self.variant)

    def decide(self, matching: jax.Array, similarity: jax.Array) -> jax.Array:
        """The logits that decide the class: those of the matcher plus λ times these, as in the
        released code."""
        return matching + self.weight * similarity

    def losses(
        self, outputs: Mapping[str, jax.Array], labels: jax.Array, classes: jax.Array | None = None
    ) -> dict[str, Loss]:
        """L_QC of L = L_TM + λ L_QC (STRM, Eq. 7, 9 and 10): the cross entropy of these logits."""
        return {
            'query similarity': Loss(
                self.weight, cross_entropy(outputs['query_similarity'], labels)
            )
        }
