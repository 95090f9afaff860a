"""MobileNetV2 as a scan network: torchvision's names, feature maps at three scales (Sandler et al.
2018, Table 2)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fsar_jax.backbones.batch_norm import BatchNorm
from fsar_jax.backbones.depthwise import DepthwiseConv
from fsar_jax.backbones.resnet import KAIMING_FAN_OUT, conv
from fsar_jax.backbones.scan_maps import ScanMaps
from fsar_jax.stage import Stage

# Expansion, output channels, blocks, stride of the first.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
SCANNED = (2, 4, 6)  # stages that end at strides 8, 16 and 32


class InvertedResidual(nn.Module):
    """1×1 to `expansion` times the channels, depthwise 3×3 with the stride, linear 1×1; plus the
    input where shapes agree (Fig. 4 d).

    Input [N, h, w, C], output [N, ⌈h / stride⌉, ⌈w / stride⌉, width]. Parameters conv_<i>_0,
    conv_<i>_1 for each rectified layer, then conv_<i>, conv_<i + 1>, as in torchvision; without
    expansion the first layer is missing.
    """

    width: int
    stride: int
    expansion: int
    frozen: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        inputs, layer, y = x.shape[-1], 0, x
        normal = lambda name, y: BatchNorm(frozen=self.frozen, dtype=self.dtype, name=name)(
            y, train
        )
        if self.expansion != 1:
            y = conv(inputs * self.expansion, 1, 1, self.dtype, 'conv_0_0')(y)
            y, layer = nn.relu6(normal('conv_0_1', y)), 1
        y = DepthwiseConv((self.stride,) * 2, KAIMING_FAN_OUT, self.dtype, name=f'conv_{layer}_0')(
            y
        )
        y = nn.relu6(normal(f'conv_{layer}_1', y))
        y = normal(f'conv_{layer + 2}', conv(self.width, 1, 1, self.dtype, f'conv_{layer + 1}')(y))
        return x + y if self.stride == 1 and inputs == self.width else y


class MobileNetV2(Stage):
    """3×3 stride-2 stem, 17 inverted residuals, 1×1 convolution to 1280 channels, ReLU6 throughout;
    no classifier.

    Parameters features_0_<0-1>, features_<1-17>/conv_…, features_18_<0-1>, after torchvision.

    Args:
      frozen: batch norm uses the running statistics in training too.
      dtype: compute dtype; parameters are float32.

    Input frames [N, s, s, 3] float in [0, 1], output `ScanMaps` with maps of 32, 96 and 320
    channels at strides 8, 16, 32.
    """

    published_start = 'ImageNet'

    frozen: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, frames: jax.Array, train: bool = False) -> ScanMaps:
        normal = lambda name, y: nn.relu6(
            BatchNorm(frozen=self.frozen, dtype=self.dtype, name=name)(y, train)
        )
        x = normal(
            'features_0_1', conv(32, 3, 2, self.dtype, 'features_0_0')(frames.astype(self.dtype))
        )
        place, scanned = 1, []
        for stage, (expansion, width, count, stride) in enumerate(STAGES):
            for i in range(count):
                x = InvertedResidual(
                    width,
                    stride if i == 0 else 1,
                    expansion,
                    self.frozen,
                    self.dtype,
                    name=f'features_{place}',
                )(x, train)
                place += 1
            if stage in SCANNED:
                scanned.append(x)
        return ScanMaps.of(
            scanned,
            normal(f'features_{place}_1', conv(1280, 1, 1, self.dtype, f'features_{place}_0')(x)),
        )
