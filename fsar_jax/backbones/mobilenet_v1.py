"""MobileNetV1 as a scan network: timm's names, feature maps at three scales (Howard et al. 2017,
Table 1)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fsar_jax.backbones.batch_norm import BatchNorm
from fsar_jax.backbones.depthwise import DepthwiseConv
from fsar_jax.backbones.resnet import KAIMING_FAN_OUT, conv
from fsar_jax.backbones.scan_maps import ScanMaps
from fsar_jax.stage import Stage

STEM = 32
# Output channels, blocks, stride of the first.
STAGES = ((64, 1, 1), (128, 2, 2), (256, 2, 2), (512, 6, 2), (1024, 2, 2))
SCANNED = (2, 3, 4)  # stages that end at strides 8, 16 and 32


class SeparableConv(nn.Module):
    """Depthwise 3×3 with the stride, then 1×1, each with batch norm and ReLU6 (Fig. 3).

    Input [N, h, w, C], output [N, ⌈h / stride⌉, ⌈w / stride⌉, width]. Parameters conv_dw, bn1,
    conv_pw, bn2, as in timm.
    """

    width: int
    stride: int
    frozen: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        normal = lambda name, y: nn.relu6(
            BatchNorm(frozen=self.frozen, dtype=self.dtype, name=name)(y, train)
        )
        x = DepthwiseConv((self.stride,) * 2, KAIMING_FAN_OUT, self.dtype, name='conv_dw')(x)
        x = normal('bn1', x)
        return normal('bn2', conv(self.width, 1, 1, self.dtype, 'conv_pw')(x))


class MobileNetV1(Stage):
    """3×3 stride-2 stem, 13 separable convolutions, ReLU6 as in the public weights; no classifier.

    Parameters conv_stem, bn1, blocks_<0-4>_<i>/…, after timm, whose mobilenetv1_100 has width 1.
    Files of width 0.75, which VIM's Table 9 takes, exist for TensorFlow alone.

    Args:
      width: factor of all channels.
      frozen: batch norm uses the running statistics in training too.
      dtype: compute dtype; parameters are float32.

    Input frames [N, s, s, 3] float in [0, 1], output `ScanMaps` with maps of 256, 512 and 1024
    times `width` channels at strides 8, 16, 32; `last` is the last of them.
    """

    published_start = 'ImageNet'

    width: float = 1.0
    frozen: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, frames: jax.Array, train: bool = False) -> ScanMaps:
        channels = lambda count: int(count * self.width)
        x = conv(channels(STEM), 3, 2, self.dtype, 'conv_stem')(frames.astype(self.dtype))
        x = nn.relu6(BatchNorm(frozen=self.frozen, dtype=self.dtype, name='bn1')(x, train))
        scanned = []
        for stage, (width, count, stride) in enumerate(STAGES):
            for i in range(count):
                x = SeparableConv(
                    channels(width),
                    stride if i == 0 else 1,
                    self.frozen,
                    self.dtype,
                    name=f'blocks_{stage}_{i}',
                )(x, train)
            if stage in SCANNED:
                scanned.append(x)
        return ScanMaps.of(scanned, x)
