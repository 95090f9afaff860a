"""Stage 3, per video: feature maps [B, L, h, w, C] → enriched frame features [B, L, C].

Table of contents: the same two kinds of token enrichment serve the patches of a frame and the
frames of a video.
"""

import flax.struct
import jax
import jax.numpy as jnp

from fsar_jax.enrichment.mlp_mixer import MixerEnrichment
from fsar_jax.enrichment.pooling import adaptive_max_pool
from fsar_jax.enrichment.self_attention import SelfAttentionEnrichment
from fsar_jax.enrichment.temporal_transform import TemporalTransform

TOKEN_ENRICHMENTS = {
    'self_attention': SelfAttentionEnrichment,
    'mlp_mixer': MixerEnrichment,
    'none': lambda **_: None,
}


@flax.struct.dataclass
class VideoFeatures:
    """What enrichment hands to the matchers; each takes the level it needs.

    Attributes:
      maps: [B, L, h, w, C], the backbone's, after the temporal transform where there is one.
      patch_level: [B, L, C], H of STRM: spatial mean after patch enrichment (of the maps themselves
        without it).
      frames: [B, L, C], E of STRM: after frame enrichment (equal to `patch_level` without it).
      window: float32 [B, 2], (a, b) of the temporal transform; None without it.
    """

    maps: jax.Array
    patch_level: jax.Array
    frames: jax.Array
    window: jax.Array | None = None


def create(config, level: str):
    """The enrichment of `config.enrichment.patch` or `.frame` (level 'patch' or 'frame'): a Linen
    module, or None for 'none'."""
    name = config.enrichment[level]
    if name not in TOKEN_ENRICHMENTS:
        raise ValueError(
            f"config.model.enrichment.{level}='{name}' is not one of {', '.join(TOKEN_ENRICHMENTS)}"
        )
    return TOKEN_ENRICHMENTS[name](
        variant=config.variant, dropout=config.enrichment.dropout, dtype=jnp.dtype(config.dtype)
    )


def create_temporal_transform(config):
    """The temporal transform of `config.enrichment.temporal_transform` (config.model): a Linen
    module, or None for False."""
    if not config.enrichment.temporal_transform:
        return None
    return TemporalTransform(
        dropout=config.enrichment.dropout,
        frozen=config.backbone.batch_norm == 'frozen',
        at_test=config.align_at_test,
        dtype=jnp.dtype(config.dtype),
    )
