"""Exhaustive temporal alignment: all ordered tuples of frames compared, without learned maps."""

import chex
import jax
import jax.numpy as jnp

from fsar_jax.enrichment import VideoFeatures
from fsar_jax.layers import einsum_float32, frame_tuples, norm
from fsar_jax.matchers.cross_transformer import CrossTransformer, check_cardinalities
from fsar_jax.matchers.matcher import Matcher


class TupleCosine(Matcher):
    """logit = −L (1 − the mean cosine of all tuples of a query with all tuples of a class), which
    VIM takes for a rough upper bound of temporal alignment (Table 19, Sec. 4.4.7).

    A tuple is the concatenated features of its frames, in order, as in TRX; a class is the mean of
    its shots. The mean is over both tuples, then over the cardinalities. L, the number of frames,
    gives it the scale of the frame-wise cosine (row V25 of docs/paper_vs_code.md). No parameters,
    no variants.

    Args:
      cardinalities: Ω; of VIM (2, 3).
    """

    cardinalities: tuple[int, ...] = CrossTransformer.cardinalities

    def check(self, frames: int | None = None) -> None:
        check_cardinalities(self.cardinalities, frames)

    def project(self, features: VideoFeatures, train: bool = False) -> jax.Array:
        """Per video: the frames themselves, [B, L, D]."""
        return features.frames

    def __call__(self, support: jax.Array, query: jax.Array, train: bool = False) -> jax.Array:
        """Per episode: support [way, shot, L, D], query [Q, L, D] → logits float32 [Q, way]."""
        logits = self.logits('qkd,wkd->qw', support.astype(jnp.float32).mean(1), query)
        chex.assert_shape(logits, (query.shape[0], support.shape[0]))
        return logits

    def compare_pairs(self, support: jax.Array, query: jax.Array, train: bool = False) -> jax.Array:
        """Of aligned pairs: support and query [Q, way, L, D] → logits float32 [Q, way]."""
        return self.logits('qwkd,qwkd->qw', support, query)

    def logits(self, subscripts: str, support: jax.Array, query: jax.Array) -> jax.Array:
        """Of the mean tuples of classes and queries, whose products are the mean cosines."""
        cosines = jnp.stack(
            [
                einsum_float32(subscripts, mean_unit_tuple(query, w), mean_unit_tuple(support, w))
                for w in self.cardinalities
            ]
        )
        return -query.shape[-2] * (1.0 - cosines.mean(0))


def mean_unit_tuple(frames: jax.Array, cardinality: int) -> jax.Array:
    """The mean over all tuples t of t / ‖t‖: frames [..., L, D] → float32 [..., cardinality, D].

    It is a weighted sum of the frames for each place in a tuple, so that no tuple is ever built:
    frame l counts there with Σ 1 / ‖t‖ over the tuples that have it.
    """
    frames, length = frames.astype(jnp.float32), frames.shape[-2]
    tuples = frame_tuples(length, cardinality)
    lengths = jnp.maximum(norm(norm(frames)[..., tuples]), 1e-12)  # [..., T]
    places = jax.nn.one_hot(tuples, length) / len(tuples)  # [T, cardinality, L]
    weights = einsum_float32('...t,tkl->...kl', 1.0 / lengths, places)
    return einsum_float32('...kl,...ld->...kd', weights, frames)
