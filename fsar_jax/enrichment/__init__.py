"""Stage 3, per video: feature maps [B, L, h, w, C] → enriched frame features [B, L, C].

Table of contents: the same two kinds of token enrichment serve the patches of a frame and the frames of a video.
"""

import flax.struct
import jax
import jax.numpy as jnp

from fsar_jax.enrichment.mlp_mixer import MixerEnrichment
from fsar_jax.enrichment.pooling import adaptive_max_pool
from fsar_jax.enrichment.self_attention import SelfAttentionEnrichment

TOKEN_ENRICHMENTS = {
    'self_attention': SelfAttentionEnrichment,
    'mlp_mixer': MixerEnrichment,
    'none': lambda **_: None,
}


@flax.struct.dataclass
class VideoFeatures:
    """What enrichment hands to the matchers; each takes the level it needs.

    Attributes:
      maps: [B, L, h, w, C], the backbone's.
      patch_level: [B, L, C], H of STRM: spatial mean after patch enrichment (of the maps themselves without it).
      frames: [B, L, C], E of STRM: after frame enrichment (equal to `patch_level` without it).
    """
    maps: jax.Array
    patch_level: jax.Array
    frames: jax.Array


def create(config, level: str):
    """The enrichment of `config.enrichment.patch` or `.frame` (level 'patch' or 'frame'): a Linen module, or None for 'none'."""
    name = config.enrichment[level]
    if name not in TOKEN_ENRICHMENTS:
        raise ValueError(f"config.model.enrichment.{level}='{name}' is not one of {', '.join(TOKEN_ENRICHMENTS)}")
    if config.enrichment.temporal_transform:
        raise ValueError('config.model.enrichment.temporal_transform=True: the temporal transform of TA2N is not part of this version')
    return TOKEN_ENRICHMENTS[name](variant=config.variant, dropout=config.enrichment.dropout, dtype=jnp.dtype(config.dtype))
