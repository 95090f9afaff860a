"""Stage 2, per frame: frames [B, H, W, 3] → feature maps [B, h, w, C]. `BACKBONES` is the table.

A backbone with `takes_clips` sees whole clips instead: [B, L, H, W, 3] → [B, l, h, w, C].
"""

import functools

import flax.linen as nn
import jax.numpy as jnp

from fsar_jax.backbones.batch_norm import BatchNorm
from fsar_jax.backbones.resnet import BasicBlock, BottleneckBlock, ResNet
from fsar_jax.backbones.resnet3d import ResNet3D
from fsar_jax.backbones.resnet_small import ResNetSmall
from fsar_jax.stage import Stage


class Features(Stage):
    """The identity on maps [B, h, w, C]: for heads on features extracted before, and to check heads
    alone."""

    @nn.compact
    def __call__(self, maps, train: bool = False):
        del train
        return maps


BACKBONES = {
    'features': Features,
    'resnet_small': ResNetSmall,
    'resnet18': functools.partial(ResNet, block=BasicBlock, blocks=(2, 2, 2, 2)),
    'resnet34': functools.partial(ResNet, block=BasicBlock, blocks=(3, 4, 6, 3)),
    'resnet3d50': ResNet3D,
    'resnet50': functools.partial(ResNet, block=BottleneckBlock, blocks=(3, 4, 6, 3)),
}


def create(config, dtype=jnp.float32) -> nn.Module:
    """The backbone that `config.model.backbone` describes.

    Args:
      config: name, batch_norm ('split' and 'joint' concern the learner, 'frozen' this stage),
        batch_norm_groups, normalize, remat; `width` where it is not the published one.
      dtype: compute dtype, or its name; parameters are float32.

    Returns:
      A Linen module: __call__(frames [B, H, W, 3] float in [0, 1], train) → maps [B, h, w, C] of
        `dtype`;
      'features' maps [B, h, w, C] to itself.

    Raises:
      ValueError: a value that is not one of those known.
    """
    choices = {
        'name': BACKBONES,
        'batch_norm': ('split', 'joint', 'frozen'),
        'normalize': ('unit', 'imagenet', 'grey'),
    }
    for key, known in choices.items():
        if config[key] not in known:
            raise ValueError(
                f"config.model.backbone.{key}='{config[key]}' is not one of {', '.join(known)}"
            )
    if config.batch_norm_groups < 1:
        raise ValueError(
            f'config.model.backbone.batch_norm_groups={config.batch_norm_groups} must be at least 1'
        )
    if config.name == 'features':
        return Features()
    width = {'width': config.width} if 'width' in config else {}
    return BACKBONES[config.name](
        groups=config.batch_norm_groups,
        frozen=config.batch_norm == 'frozen',
        normalize=config.normalize,
        remat=config.remat,
        dtype=jnp.dtype(dtype),
        **width,
    )
