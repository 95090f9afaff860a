"""ProtoNet for videos: distance to the class mean, frame by frame or of the mean frame."""

import chex
import jax
import jax.numpy as jnp

from fsar_jax.enrichment import VideoFeatures
from fsar_jax.fields import setting
from fsar_jax.layers import einsum_float32, norm, unit
from fsar_jax.matchers.matcher import Matcher

COSINE_MARGIN = 0.01  # in the denominator of 'mean_cosine', as published


class Prototypes(Matcher):
    """Prototypical networks (Snell et al. 2017) on frame features. No parameters; paper and code
    agree.

    distance='frame_cosine' is the baseline of TA2N and VIM: logit = −Σ_t (1 − cos(p_t, q_t)), p the
    mean of the class's shots, frame t against frame t (TA2N, Eq. 7 and 8). The other two first
    average the frames, f = mean_t: 'mean_cosine' is the mean over shots of f_q·f_s / (‖f_q‖‖f_s‖ +
    0.01), 'mean_squared_euclidean' is −‖f_q − mean_s f_s‖².
    """

    distance: str = setting(
        'frame_cosine',
        choices=('frame_cosine', 'mean_cosine', 'mean_squared_euclidean'),
        affects='model',
        help='distance of a query to the class mean: frame by frame, or between mean frames',
    )

    def project(self, features: VideoFeatures, train: bool = False) -> jax.Array:
        """Per video: the frames, [B, L, D], or their mean, [B, D]."""
        return features.frames if self.distance == 'frame_cosine' else features.frames.mean(1)

    def __call__(self, support: jax.Array, query: jax.Array, train: bool = False) -> jax.Array:
        """Per episode: support [way, shot, (L,) D], query [Q, (L,) D] → logits float32 [Q, way]."""
        support, query = support.astype(jnp.float32), query.astype(jnp.float32)
        if self.distance == 'frame_cosine':
            logits = frame_cosine_logits(support.mean(1), query)
        elif self.distance == 'mean_cosine':
            lengths = norm(query)[:, None, None] * norm(support)
            logits = (
                einsum_float32('qd,wsd->qws', query, support) / (lengths + COSINE_MARGIN)
            ).mean(-1)
        else:
            logits = -jnp.square(query[:, None] - support.mean(1)).sum(-1)
        chex.assert_shape(logits, (query.shape[0], support.shape[0]))
        return logits


def frame_cosine_logits(prototypes: jax.Array, query: jax.Array) -> jax.Array:
    """−Σ_t (1 − cos(p_t, q_t)) (TA2N, Eq. 7 and 8): prototypes [way, L, D], query [Q, L, D] →
    float32 [Q, way]."""
    return (einsum_float32('qld,wld->qwl', unit(query), unit(prototypes)) - 1.0).sum(-1)
