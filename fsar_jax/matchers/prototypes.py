"""ProtoNet for videos: frame-wise cosine distance to the class mean."""

import chex
import flax.linen as nn
import jax.numpy as jnp

from fsar_jax.enrichment import VideoFeatures
from fsar_jax.layers import unit


class Prototypes(nn.Module):
    """logit = −Σ_t (1 − cos(p_t, q_t)) with p the mean of the class's shots, frame t against frame t.

    The baseline that TA2N and VIM start from (Snell et al. 2017; TA2N Eq. 7 and 8). No parameters, no variants.
    """

    def project(self, features: VideoFeatures, train: bool = False):
        """Per video: the frames themselves, [B, L, D]."""
        return features.frames

    def __call__(self, support, query, train: bool = False):
        """Per episode: support [way, shot, L, D], query [Q, L, D] → logits float32 [Q, way]."""
        prototypes = support.astype(jnp.float32).mean(1)
        cosine = jnp.einsum('qld,wld->qwl', unit(query), unit(prototypes))
        chex.assert_shape(cosine, (query.shape[0], support.shape[0], support.shape[2]))
        return -(1.0 - cosine).sum(-1)
