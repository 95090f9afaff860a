"""ShuffleNetV2 as the scan network of VIM: torchvision's names, no max pooling, feature maps of
every stage (Ma et al. 2018)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fsar_jax.backbones.batch_norm import BatchNorm
from fsar_jax.backbones.depthwise import DepthwiseConv
from fsar_jax.backbones.resnet import conv
from fsar_jax.backbones.scan_maps import ScanMaps
from fsar_jax.stage import Stage

# Uniform in ±1/√fan_in: how torch starts a convolution; torchvision's ShuffleNetV2 has no other
# start.
TORCH_START = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


class ShuffleBlock(nn.Module):
    """Half of the channels pass as they are, the others through 1×1, depthwise 3×3, 1×1; then both
    are interleaved (Fig. 3 c, d).

    With stride 2 the whole input goes through that branch and, as the other half, through depthwise
    3×3 and 1×1.

    Args:
      width: output channels, even.
      stride: 1 or 2; with 1 the input has `width` channels.
      frozen: of every BatchNorm.

    Input [N, h, w, C], output [N, ⌈h / stride⌉, ⌈w / stride⌉, width]. Parameters branch1_<0-3>,
    branch2_<0, 1, 3-6>, as in torchvision.
    """

    width: int
    stride: int
    frozen: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        half = self.width // 2
        pointwise = lambda name, y: conv(half, 1, 1, self.dtype, name, TORCH_START)(y)
        depthwise = lambda name, y: DepthwiseConv(
            (self.stride,) * 2, TORCH_START, self.dtype, name=name
        )(y)
        normal = lambda name, y: BatchNorm(frozen=self.frozen, dtype=self.dtype, name=name)(
            y, train
        )

        if self.stride == 1:
            kept, x = jnp.split(x, 2, axis=-1)
        else:
            kept = normal('branch1_1', depthwise('branch1_0', x))
            kept = nn.relu(normal('branch1_3', pointwise('branch1_2', kept)))
        x = nn.relu(normal('branch2_1', pointwise('branch2_0', x)))
        x = normal('branch2_4', depthwise('branch2_3', x))
        x = nn.relu(normal('branch2_6', pointwise('branch2_5', x)))
        return jnp.stack((kept, x), axis=-1).reshape(
            *x.shape[:-1], self.width
        )  # the channel shuffle of two groups


class ShuffleNetV2(Stage):
    """3×3 stride-2 stem, three stages of `ShuffleBlock`s of which the first has stride 2, 1×1
    convolution conv5; no classifier.

    The max pooling after the stem is left out, so that saliency maps are finer (VIM, Sec. 4.1):
    strides 4, 8, 16. Parameters conv1_<0-1>, stage<2-4>_<i>/branch<1-2>_<j>, conv5_<0-1>, after
    torchvision.

    Args:
      widths: channels of the stem, the three stages, and conv5.
      blocks: how many in each stage.
      frozen: batch norm uses the running statistics in training too.
      dtype: compute dtype; parameters are float32.
      published_start: what its authors start it from; '' for random weights.

    Input frames [N, s, s, 3] float in [0, 1], output `ScanMaps`.
    """

    widths: tuple[int, int, int, int, int] = (24, 48, 96, 192, 1024)
    blocks: tuple[int, int, int] = (4, 8, 4)
    frozen: bool = False
    dtype: Any = jnp.float32
    published_start: str = 'ImageNet'

    @nn.compact
    def __call__(self, frames: jax.Array, train: bool = False) -> ScanMaps:
        normal = lambda name, y: nn.relu(
            BatchNorm(frozen=self.frozen, dtype=self.dtype, name=name)(y, train)
        )
        stem, *widths, last = self.widths
        x = normal(
            'conv1_1',
            conv(stem, 3, 2, self.dtype, 'conv1_0', TORCH_START)(frames.astype(self.dtype)),
        )
        stages = []
        for stage, (width, count) in enumerate(zip(widths, self.blocks, strict=True), start=2):
            for i in range(count):
                x = ShuffleBlock(
                    width, 2 if i == 0 else 1, self.frozen, self.dtype, name=f'stage{stage}_{i}'
                )(x, train)
            stages.append(x)
        return ScanMaps.of(
            stages, normal('conv5_1', conv(last, 1, 1, self.dtype, 'conv5_0', TORCH_START)(x))
        )
