"""EfficientNet-Lite0, -Lite1 and -Lite2: EfficientNet (Tan and Le 2019) without squeeze-and-excite
and with ReLU6, as Google's TPU repository published it and `efficientnet-lite-pytorch` converted
it."""

import math
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fsar_jax.backbones.batch_norm import BatchNorm
from fsar_jax.backbones.depthwise import DepthwiseConv
from fsar_jax.backbones.pointwise import PointwiseConv
from fsar_jax.backbones.resnet import KAIMING_FAN_OUT, NORMALIZE, FrameNetwork, normalize_frames
from fsar_jax.backbones.scan_maps import ScanMaps
from fsar_jax.convolution import convolution
from fsar_jax.fields import setting

# Of Lite0: kernel, stride of the first block, expansion, output channels, blocks.
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
STEM, HEAD = 32, 1280  # channels; the same in every Lite
SCANNED = (2, 4, 6)  # stages that end at strides 8, 16 and 32
EPSILON = 1e-3  # of every batch norm
# He et al. 2015 for the one input channel that a depthwise kernel has.
DEPTHWISE_START = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal')


def rounded_width(channels: int, multiplier: float) -> int:
    """`channels` times the multiplier, to the nearest multiple of 8 that is at least 90% of it."""
    exact = channels * multiplier
    width = max(8, int(exact + 4) // 8 * 8)
    return width + 8 if width < 0.9 * exact else width


def blocks_of(width: float, depth: float) -> Iterator[tuple[int, int, int, int, bool]]:
    """(kernel, stride, expansion, output channels, whether a scanned stage ends with it) of every
    block; the first and the last stage keep their one block whatever the depth."""
    for stage, (kernel, stride, expansion, channels, count) in enumerate(STAGES):
        fixed = stage in (0, len(STAGES) - 1)
        count = count if fixed else math.ceil(count * depth)
        for i in range(count):
            scanned = stage in SCANNED and i == count - 1
            yield (
                kernel,
                stride if i == 0 else 1,
                expansion,
                rounded_width(channels, width),
                scanned,
            )


def same_padding(x: jax.Array, kernel: int, stride: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """TensorFlow's 'SAME' padding of maps [N, h, w, C]: what makes the output ⌈size / stride⌉, the
    smaller half before. An even map at stride 2 is padded behind alone."""
    height, width = jax.lax.padtype_to_pads(x.shape[1:3], (kernel,) * 2, (stride,) * 2, 'SAME')
    return height, width


class InvertedResidual(nn.Module):
    """1×1 to `expansion` times the channels, depthwise with the stride, linear 1×1; plus the input
    where shapes agree.

    Args:
      width: output channels.
      kernel, stride: of the depthwise convolution.
      expansion: 1 leaves out the first 1×1.
      norm: keyword arguments of every BatchNorm.
      drop: in training, the probability with which an episode's frame skips the block (drop
        connect, Huang et al. 2016); the others are divided by 1 − drop.

    Input [N, h, w, C], output [N, ⌈h / stride⌉, ⌈w / stride⌉, width].
    """

    width: int
    kernel: int
    stride: int
    expansion: int
    norm: dict
    drop: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        inputs, y = x.shape[-1], x
        normal = lambda name, y: BatchNorm(**self.norm, dtype=self.dtype, name=name)(y, train)
        if self.expansion != 1:
            y = pointwise(inputs * self.expansion, self.dtype, 'expand_conv')(y)
            y = nn.relu6(normal('bn0', y))
        y = DepthwiseConv(
            (self.stride,) * 2,
            DEPTHWISE_START,
            self.dtype,
            self.kernel,
            same_padding(y, self.kernel, self.stride),
            name='depthwise_conv',
        )(y)
        y = nn.relu6(normal('bn1', y))
        y = normal('bn2', pointwise(self.width, self.dtype, 'project_conv')(y))
        if self.stride != 1 or inputs != self.width:
            return y
        if train and self.drop:
            y = nn.Dropout(self.drop, broadcast_dims=(1, 2, 3), deterministic=False)(y)
        return x + y


def pointwise(features: int, dtype: Any, name: str) -> PointwiseConv:
    """1×1 convolution without bias."""
    return PointwiseConv(features, (1, 1), KAIMING_FAN_OUT, dtype, name=name)


class EfficientNetLite(FrameNetwork):
    """3×3 stride-2 stem, seven stages of inverted residuals, 1×1 convolution to 1280 channels,
    ReLU6 throughout; no pooling and no classifier.

    Convolutions are padded as TensorFlow's 'SAME' (`same_padding`), for the size of the frames at
    hand; the PyTorch conversion pads for its native size always, which is the same there and at
    every multiple of 32 (Lite0). Batch norm has ε = 1e-3 and momentum 0.99.

    Native sizes: 224 px (Lite0), 240 (Lite1), 260 (Lite2); any other works.

    Parameters: conv_stem, bn0, blocks_<i>/{expand_conv, bn0, depthwise_conv, bn1, project_conv,
    bn2}, conv_head, bn1.

    Args:
      width_multiplier, depth_multiplier: of the channels and blocks of all stages, except the
        blocks of the first and the last.
      drop_connect: see the setting; the rate grows from 0 at the first block to this at the end.
        Needs rngs={'dropout': key} in training.
      batch_norm_groups, frozen, normalize, remat, dtype: as of `FrameNetwork`.

    Input frames [B, H, W, 3] float in [0, 1], output maps [B, ⌈H / 32⌉, ⌈W / 32⌉, 1280].
    """

    looks_at = 1.0  # its maps are padded behind

    batch_norm_momentum = 0.99

    normalize: str = setting('efficientnet_lite', kw_only=True, **NORMALIZE)
    width_multiplier: float = 1.0
    depth_multiplier: float = 1.0
    drop_connect: float = setting(
        0.0,
        kw_only=True,
        at_least=0,
        below=1,
        affects='training',
        help='highest probability with which a frame skips a residual block in training '
        '(stochastic depth); 0.2 in the ImageNet training of EfficientNet',
    )

    @property
    def norm(self) -> dict[str, Any]:
        """Arguments of every BatchNorm."""
        return super().norm | {'epsilon': EPSILON, 'momentum': self.batch_norm_momentum}

    def __call__(self, frames: jax.Array, train: bool = False) -> Any:
        return self.maps(frames, train)[-1]

    @nn.compact
    def maps(self, frames: jax.Array, train: bool) -> list[jax.Array]:
        """Maps [B, h, w, C] at strides 8, 16 and 32, before the 1×1 convolution, and the output
        after it."""
        normal = lambda name, y: nn.relu6(
            BatchNorm(**self.norm, dtype=self.dtype, name=name)(y, train)
        )
        x = normalize_frames(frames, self.normalize).astype(self.dtype)
        stem = nn.Conv(
            STEM,
            (3, 3),
            (2, 2),
            padding='SAME',
            use_bias=False,
            kernel_init=KAIMING_FAN_OUT,
            dtype=self.dtype,
            param_dtype=jnp.float32,
            conv_general_dilated=convolution,
            name='conv_stem',
        )
        x = normal('bn0', stem(x))
        # 0 is the module, 1 x, 2 train
        block = nn.remat(InvertedResidual, static_argnums=(2,)) if self.remat else InvertedResidual
        blocks = list(blocks_of(self.width_multiplier, self.depth_multiplier))
        maps = []
        for i, (kernel, stride, expansion, width, scanned) in enumerate(blocks):
            drop = self.drop_connect * i / len(blocks)
            x = block(
                width, kernel, stride, expansion, self.norm, drop, self.dtype, name=f'blocks_{i}'
            )(x, train)
            if scanned:
                maps.append(x)
        return [*maps, normal('bn1', pointwise(HEAD, self.dtype, 'conv_head')(x))]


class ScanningEfficientNetLite(EfficientNetLite):
    """The same as a scan network: `ScanMaps`, of Lite0 with 40, 112 and 320 channels. It scales
    its input itself, as its pretrained weights expect."""

    def __call__(self, frames: jax.Array, train: bool = False) -> ScanMaps:
        *stages, last = self.maps(frames, train)
        return ScanMaps.of(stages, last)
