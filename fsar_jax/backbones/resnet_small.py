"""A residual network for 64×64 frames that two CPU cores can train."""

import flax.linen as nn
import jax

from fsar_jax.backbones.batch_norm import BatchNorm
from fsar_jax.backbones.resnet import (
    TEMPORAL_SHIFT,
    BasicBlock,
    FrameNetwork,
    clip_length_of,
    conv,
    normalize_frames,
    residual_stage,
)
from fsar_jax.fields import setting


class ResNetSmall(FrameNetwork):
    """5×5 stride-4 stem, then one basic block each of 32, 64 and 128 channels: 64×64 frames become
    4×4 maps.

    The coarse stem spares the CPU the full-resolution layers, where a ResNet spends most of its
    time; the 4×4 map is the patch grid of STRM as it is. Same blocks, initialisation and
    conventions as `ResNet`.

    Args:
      width: channels of the stem and the first stage.
      temporal_shift, batch_norm_groups, frozen, normalize, remat, dtype: as of `ResNet`.

    Input frames [B, H, W, 3] float in [0, 1], output maps [B, ⌈H / 16⌉, ⌈W / 16⌉, 4 · width]; with
    temporal_shift both have L frames after B.
    """

    published_start = ''  # nobody has published weights of it

    temporal_shift: bool = setting(False, **TEMPORAL_SHIFT)
    width: int = 32

    @property
    def takes_clips(self) -> bool:
        """Whether frames of a clip see each other."""
        return self.temporal_shift

    @nn.compact
    def __call__(self, frames: jax.Array, train: bool = False) -> jax.Array:
        norm, clip_length = self.norm, clip_length_of(frames, self.temporal_shift)
        x = normalize_frames(frames, self.normalize).astype(self.dtype)
        x = x.reshape(-1, *x.shape[-3:])
        x = conv(self.width, 5, 4, self.dtype, 'conv1')(x)
        x = nn.relu(BatchNorm(**norm, dtype=self.dtype, name='bn1')(x, train))
        for stage in range(3):
            width = self.width * 2**stage
            x = residual_stage(
                x,
                stage + 1,
                1,
                BasicBlock,
                width,
                norm,
                self.dtype,
                self.remat,
                train,
                clip_length=clip_length,
            )
        return x.reshape(*frames.shape[:-3], *x.shape[1:])
