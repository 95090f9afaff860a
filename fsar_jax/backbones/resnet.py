"""ResNet-18, -34 and -50 as torchvision has them, so that its weights load (He et al. 2016, Table
1), each also as TSM: with channels that move in time (Lin et al. 2019)."""

import dataclasses
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from fsar_jax.backbones.batch_norm import BatchNorm
from fsar_jax.backbones.pointwise import PointwiseConv
from fsar_jax.convolution import convolution
from fsar_jax.fields import Saving, setting
from fsar_jax.stage import Stage

# He et al. 2015, as torchvision starts convolutions: normal, variance 2 / (kernel area · output
# channels).
KAIMING_FAN_OUT = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')

# Mean and deviation of pixels in 0 … 1, of all channels or of each.
SCALINGS: dict[str, tuple] = {
    'unit': (0.0, 1.0),
    'imagenet': ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # of torchvision's weights
    'grey': (0.45, 0.225),  # of the released code of HyRSM and OTAM
    'efficientnet_lite': (127 / 255, 128 / 255),  # (x − 127) / 128 of 0 … 255
    'half': (0.5, 0.5),  # of the AugReg ViTs
    'clip': ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}


def normalize_frames(frames: jax.Array, how: str) -> jax.Array:
    """Frames [B, …, H, W, 3] in [0, 1] → (x − mean) / deviation, by SCALINGS; 'unit' leaves
    them."""
    mean, std = SCALINGS[how]
    if how == 'unit':
        return frames
    if isinstance(mean, float):
        return (frames - mean) / std
    return (frames - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32)


def conv(
    features: int,
    size: int,
    stride: int,
    dtype: DTypeLike,
    name: str,
    kernel_init: nn.initializers.Initializer = KAIMING_FAN_OUT,
) -> nn.Conv | PointwiseConv:
    """Convolution without bias, padded by size // 2 on every side.

    'SAME' would pad an even map on the far side only at stride 2, and so shift the features.
    """
    if size == 1:
        return PointwiseConv(features, (stride, stride), kernel_init, dtype, name=name)
    padding = [(size // 2, size // 2)] * 2
    return nn.Conv(
        features,
        (size, size),
        (stride, stride),
        padding=padding,
        use_bias=False,
        kernel_init=kernel_init,
        dtype=dtype,
        param_dtype=jnp.float32,
        conv_general_dilated=convolution,
        name=name,
    )


def shift_in_time(x: jax.Array, clip_length: int) -> jax.Array:
    """The first eighth of the channels from the following frame of a clip, the second eighth from
    the preceding one, zeros beyond its ends; the rest stays (TSM: Lin et al. 2019, Sec. 3).

    Args:
      x: [B · L, h, w, C], clip by clip; clip_length: L. 0 returns x.
    """
    if not clip_length:
        return x
    clips, part = x.reshape(-1, clip_length, *x.shape[1:]), x.shape[-1] // 8
    beyond = jnp.zeros_like(clips[:, :1, ..., :part])
    following = jnp.concatenate([clips[:, 1:, ..., :part], beyond], 1)
    previous = jnp.concatenate([beyond, clips[:, :-1, ..., part : 2 * part]], 1)
    return jnp.concatenate([following, previous, clips[..., 2 * part :]], -1).reshape(x.shape)


class BasicBlock(nn.Module):
    """relu(F(x) + x), F two 3×3 convolutions, the first with the stride (He et al. 2016, Fig. 5
    left).

    Args:
      width: output channels.
      stride: of the block; with it, or where the channels change, the shortcut is a 1×1 convolution
        and batch norm.
      norm: keyword arguments of every BatchNorm.
      clip_length: above 0, F begins with `shift_in_time` of clips of so many frames.

    Input [B, h, w, C], output [B, ⌈h / stride⌉, ⌈w / stride⌉, width · expansion].
    """

    expansion = 1
    width: int
    stride: int
    norm: dict
    dtype: Any = jnp.float32
    clip_length: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = shift_in_time(x, self.clip_length)
        y = conv(self.width, 3, self.stride, self.dtype, 'conv1')(y)
        y = nn.relu(BatchNorm(**self.norm, dtype=self.dtype, name='bn1')(y, train))
        y = conv(self.width, 3, 1, self.dtype, 'conv2')(y)
        y = BatchNorm(**self.norm, dtype=self.dtype, name='bn2')(y, train)
        return nn.relu(y + shortcut(x, y.shape[-1], self.stride, self.norm, self.dtype, train))


class BottleneckBlock(nn.Module):
    """relu(F(x) + x), F 1×1, 3×3, 1×1 to 4 · width (He et al. 2016, Fig. 5 right); otherwise as
    `BasicBlock`.

    The stride sits in the 3×3 convolution, as in torchvision's weights; the paper has it in the
    first 1×1.
    """

    expansion = 4
    width: int
    stride: int
    norm: dict
    dtype: Any = jnp.float32
    clip_length: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = shift_in_time(x, self.clip_length)
        y = conv(self.width, 1, 1, self.dtype, 'conv1')(y)
        y = nn.relu(BatchNorm(**self.norm, dtype=self.dtype, name='bn1')(y, train))
        y = conv(self.width, 3, self.stride, self.dtype, 'conv2')(y)
        y = nn.relu(BatchNorm(**self.norm, dtype=self.dtype, name='bn2')(y, train))
        y = conv(self.width * self.expansion, 1, 1, self.dtype, 'conv3')(y)
        y = BatchNorm(**self.norm, dtype=self.dtype, name='bn3')(y, train)
        return nn.relu(y + shortcut(x, y.shape[-1], self.stride, self.norm, self.dtype, train))


def shortcut(
    x: jax.Array, channels: int, stride: int, norm: dict[str, Any], dtype: DTypeLike, train: bool
) -> jax.Array:
    """x, or its projection where a block changes its shape; called in a block, whose submodules
    these become."""
    if stride == 1 and x.shape[-1] == channels:
        return x
    x = conv(channels, 1, stride, dtype, 'downsample_conv')(x)
    return BatchNorm(**norm, dtype=dtype, name='downsample_bn')(x, train)


def residual_stage(
    x: jax.Array,
    stage: int,
    count: int,
    block: type[nn.Module],
    width: int,
    norm: dict[str, Any],
    dtype: DTypeLike,
    remat: bool,
    train: bool,
    stride: int | tuple[int, ...] = 2,
    **options: int,
) -> jax.Array:
    """`count` blocks named layer<stage>_<i>; from stage 2 on the first has `stride`.

    With `remat` each block is computed again in the backward pass, and only its input kept.
    `options` are further fields of the block.
    """
    if remat:
        block = nn.remat(block, static_argnums=(2,))  # 0 is the module, 1 x, 2 train
    for i in range(count):
        first = i == 0 and stage > 1
        one = block(width, stride if first else 1, norm, dtype, name=f'layer{stage}_{i}', **options)
        x = one(x, train)
    return x


# The line of a setting. Its default is that of the published weights, where these tell.
NORMALIZE: dict[str, Any] = dict(
    choices=tuple(SCALINGS),
    affects='model',
    factor='N',
    own_default=True,
    help='input scaling after / 255: none, by mean and std of ImageNet (the default of DINOv2), by '
    'mean 0.45 and std 0.225 (of MViT), to (x - 127) / 128 of 0 … 255 (of EfficientNet-Lite), by '
    '0.5 and 0.5 (of the other ViTs), or by mean and std of CLIP (of clip and openclip)',
)


class PixelNetwork(Stage):
    """What all backbones that take frames or clips have in common.

    Args:
      normalize: a key of SCALINGS, applied to the input.
      remat: recompute residual blocks in the backward pass.
      dtype: compute dtype; parameters are float32.
    """

    looks_at = 0.0  # its maps are padded on all sides

    normalize: str = setting('unit', kw_only=True, **NORMALIZE)
    remat: bool = setting(
        False,
        kw_only=True,
        affects='cost',
        saving=Saving(0, ('training',), True),
        help='recompute residual blocks in the backward pass: less memory, about a third more time',
    )
    dtype: Any = dataclasses.field(default=jnp.float32, kw_only=True)

    def input_scaling(self) -> dict[str, Any]:
        mean, std = (x if isinstance(x, tuple) else (x,) * 3 for x in SCALINGS[self.normalize])
        return {'name': self.normalize, 'mean': mean, 'std': std}


class FrameNetwork(PixelNetwork):
    """What the backbones with batch norm have in common. Each BatchNorm takes `**self.norm`.

    Args:
      batch_norm_groups, frozen, parts: of every BatchNorm.
      normalize, remat, dtype: as of `PixelNetwork`.
    """

    published_start = 'ImageNet'  # what the authors of the methods start it from

    batch_norm_groups: int = setting(
        1,
        kw_only=True,
        at_least=1,
        affects='model',
        factor='B',
        help='number of parts of a batch with statistics of their own; 4: as DataParallel on '
        'four GPUs',
    )
    frozen: bool = dataclasses.field(default=False, kw_only=True)
    parts: tuple[int, ...] = dataclasses.field(default=(1,), kw_only=True)

    @property
    def norm(self) -> dict[str, Any]:
        """Arguments of every BatchNorm."""
        return {'groups': self.batch_norm_groups, 'frozen': self.frozen, 'parts': self.parts}

    @nn.nowrap  # a call that Linen knows of would reserve the names of the children
    def in_parts(self, parts: tuple[int, ...]) -> Stage:
        return self.clone(parent=self.scope and self.scope.rewound(), parts=parts)


class ResNet(FrameNetwork):
    """7×7 stride-2 stem, 3×3 stride-2 max pool, four stages of residual blocks; no final pooling or
    classifier. `temporal_shift` makes it a TSM.

    Parameters: conv1, bn1, layer<1-4>_<i>/{conv1, bn1, …, downsample_conv, downsample_bn}, after
    torchvision.

    Args:
      block: BasicBlock or BottleneckBlock.
      blocks: how many in each stage.
      width: channels of the stem and the first stage; later stages double them. 64 in every
        published network.
      stem: kernel size and stride of the first convolution.
      pool: whether a max pool follows it.
      temporal_shift: every block begins with `shift_in_time`, and the network takes clips.
      batch_norm_groups, frozen, normalize, remat, dtype: as of `FrameNetwork`.

    Input frames [B, H, W, 3] float in [0, 1], output maps [B, ⌈H / 32⌉, ⌈W / 32⌉, 8 · width ·
    expansion]; with temporal_shift both have L frames after B.
    """

    temporal_shift: bool = setting(
        False,
        kw_only=True,
        affects='model',
        help='every residual block exchanges a quarter of its channels with the frames before and '
        'after (TSM), so the network takes clips',
    )
    block: type[nn.Module] = BasicBlock
    blocks: tuple[int, ...] = (2, 2, 2, 2)
    width: int = 64
    stem: tuple[int, int] = (7, 2)
    pool: bool = True

    @property
    def takes_clips(self) -> bool:
        """Whether frames of a clip see each other."""
        return self.temporal_shift

    @nn.compact
    def __call__(self, frames: jax.Array, train: bool = False) -> jax.Array:
        chex.assert_rank(frames, 5 if self.takes_clips else 4)
        norm, clip_length = self.norm, frames.shape[1] if self.takes_clips else 0
        x = normalize_frames(frames, self.normalize).astype(self.dtype)
        x = conv(self.width, *self.stem, self.dtype, 'conv1')(x.reshape(-1, *x.shape[-3:]))
        x = nn.relu(BatchNorm(**norm, dtype=self.dtype, name='bn1')(x, train))
        if self.pool:
            x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for stage, count in enumerate(self.blocks):
            width = self.width * 2**stage
            x = residual_stage(
                x,
                stage + 1,
                count,
                self.block,
                width,
                norm,
                self.dtype,
                self.remat,
                train,
                clip_length=clip_length,
            )
        return x.reshape(*frames.shape[:-3], *x.shape[1:])
