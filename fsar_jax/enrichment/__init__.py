"""Stage 3, per video: feature maps [B, L, h, w, C] → enriched frame features [B, L, C].

`TOKEN_ENRICHMENTS` lists the choices for the frames of a video, and `PATCH_ENRICHMENTS` those for
the patches of a frame. Their fields become keys of config.model.enrichment (fsar_jax.fields).
"""

import dataclasses
import math

import flax.struct
import jax
from ml_collections import ConfigDict

from fsar_jax.enrichment.joint_attention import JointEnrichment
from fsar_jax.enrichment.mlp_mixer import MixerEnrichment
from fsar_jax.enrichment.pooling import adaptive_max_pool as adaptive_max_pool
from fsar_jax.enrichment.self_attention import SelfAttentionEnrichment
from fsar_jax.enrichment.temporal_transform import TemporalTransform
from fsar_jax.fields import setting

TOKEN_ENRICHMENTS = {
    'self_attention': SelfAttentionEnrichment,
    'mlp_mixer': MixerEnrichment,
    'none': None,
}
PATCH_ENRICHMENTS = TOKEN_ENRICHMENTS | {'joint_self_attention': JointEnrichment}


@dataclasses.dataclass(frozen=True)
class EnrichmentChoice:
    """The settings of config.model.enrichment that are not fields of an enrichment."""

    patch: str = setting(
        'none',
        choices=PATCH_ENRICHMENTS,
        affects='model',
        help='how the patches of a frame exchange information, or those of the whole clip '
        "('joint_self_attention')",
    )
    frame: str = setting(
        'none',
        choices=TOKEN_ENRICHMENTS,
        affects='model',
        help='how the frames of a clip exchange information',
    )
    temporal_transform: bool = setting(
        False,
        affects='model',
        help='resample each clip in time to the part with the action (TTM of TA2N)',
    )
    patches: int = setting(
        4,
        at_least=1,
        at_most=64,
        affects='model',
        help='P: patch enrichment sees a map as P x P max-pooled patches',
    )


@flax.struct.dataclass
class VideoFeatures:
    """The features of B videos that matchers receive; each matcher uses those that it needs.

    Attributes:
      maps: [B, L, h, w, C], maps of the backbone, after the temporal transform if there is one.
      patch_level: [B, L, C], H of STRM: spatial mean after patch enrichment (of the maps themselves
        without it).
      frames: [B, L, C], E of STRM: after frame enrichment (equal to `patch_level` without it).
      window: float32 [B, 2], (a, b) of the temporal transform; None without it.
      patches, enriched_patches: [B, L, P², C], before and after patch enrichment; None without it.
    """

    maps: jax.Array
    patch_level: jax.Array
    frames: jax.Array
    window: jax.Array | None = None
    patches: jax.Array | None = None
    enriched_patches: jax.Array | None = None

    @property
    def enriched_maps(self) -> jax.Array:
        """[B, L, h, w, C] or [B, L, P, P, C]: maps whose mean over space is `frames`. The enriched
        patches in the place of the maps, where there are some, and what frame enrichment adds to a
        frame at each of its places."""
        maps = self.maps
        if self.enriched_patches is not None:
            side = math.isqrt(self.enriched_patches.shape[2])
            maps = self.enriched_patches.reshape(*maps.shape[:2], side, side, -1)
        if self.frames is self.patch_level:
            return maps
        return maps + (self.frames - self.patch_level).astype(maps.dtype)[:, :, None, None]


def shared(model: ConfigDict) -> dict:
    """{field: value} that the learner has from config.model.enrichment."""
    return {'patches': model.enrichment.patches}


def chosen(model: ConfigDict) -> dict:
    """What config.model chooses: {stage of the learner: (section of config.model, class)}, None for
    a stage that is left out."""
    choice = model.enrichment
    return {
        'temporal_transform': (
            'enrichment',
            TemporalTransform if choice.temporal_transform else None,
        ),
        'patch_enrichment': ('enrichment', PATCH_ENRICHMENTS[choice.patch]),
        'frame_enrichment': ('enrichment', TOKEN_ENRICHMENTS[choice.frame]),
    }
