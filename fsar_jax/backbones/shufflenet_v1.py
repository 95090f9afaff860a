"""ShuffleNetV1 as a scan network: the names of megvii's ShuffleNet-Series, no max pooling, feature
maps of every stage (Zhang et al. 2018)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fsar_jax.backbones.batch_norm import BatchNorm
from fsar_jax.backbones.depthwise import DepthwiseConv
from fsar_jax.backbones.resnet import conv
from fsar_jax.backbones.scan_maps import ScanMaps
from fsar_jax.backbones.shufflenet_v2 import TORCH_START
from fsar_jax.stage import Stage


class GroupedPointwise(nn.Module):
    """1×1 convolution without bias between groups of channels: [N, h, w, C] → [N, h, w, features].
    Group i of the output sees group i of the input alone.

    Args:
      features: output channels, a multiple of groups, as C is.
      groups: how many; 1 is the ordinary convolution.

    Parameter kernel [1, 1, C / groups, features], as that of nn.Conv(feature_group_count=groups).
    One product of matrices a group instead, because XLA is slow at grouped convolutions on a CPU.
    """

    features: int
    groups: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inputs = x.shape[-1] // self.groups
        shape = (1, 1, inputs, self.features)
        kernel = self.param('kernel', TORCH_START, shape, jnp.float32).astype(self.dtype)
        parts = zip(
            jnp.split(x.astype(self.dtype).reshape(-1, x.shape[-1]), self.groups, axis=-1),
            jnp.split(kernel[0, 0], self.groups, axis=-1),
            strict=True,
        )
        y = jnp.concatenate([x @ kernel for x, kernel in parts], axis=-1)
        return y.reshape(*x.shape[:-1], self.features)


class ShuffleUnit(nn.Module):
    """Grouped 1×1, depthwise 3×3, channel shuffle, grouped 1×1; plus the input. The paper shuffles
    before the depthwise convolution (Fig. 2 b, c), which is the same but for the order of names.

    With stride 2 the input is averaged over 3×3 and concatenated in the place of the sum.

    Args:
      width: output channels.
      stride: 1 or 2; with 1 the input has `width` channels.
      groups: of the 1×1 convolutions.
      first_groups: of the first of them; 1 where the input has few channels (Sec. 3.2).
      frozen: of every BatchNorm.

    Input [N, h, w, C], output [N, ⌈h / stride⌉, ⌈w / stride⌉, width]. Parameters
    branch_main_1_<0, 1, 3, 4> and branch_main_2_<0, 1>, as published.
    """

    width: int
    stride: int
    groups: int
    first_groups: int
    frozen: bool
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        outputs = self.width - (x.shape[-1] if self.stride == 2 else 0)
        pointwise = lambda name, features, groups, y: GroupedPointwise(
            features, groups, self.dtype, name=name
        )(y)
        normal = lambda name, y: BatchNorm(frozen=self.frozen, dtype=self.dtype, name=name)(
            y, train
        )
        y = pointwise('branch_main_1_0', self.width // 4, self.first_groups, x)
        y = nn.relu(normal('branch_main_1_1', y))
        y = DepthwiseConv((self.stride,) * 2, TORCH_START, self.dtype, name='branch_main_1_3')(y)
        y = normal('branch_main_1_4', y)
        # In megvii's order, the inverse of the paper's: group g gets channels g, g + groups, …
        y = y.reshape(*y.shape[:-1], -1, self.groups).swapaxes(-1, -2).reshape(y.shape)
        y = normal('branch_main_2_1', pointwise('branch_main_2_0', outputs, self.groups, y))
        if self.stride == 1:
            return nn.relu(x + y)
        averaged = nn.avg_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        return jnp.concatenate([averaged, nn.relu(y)], axis=-1)


class ShuffleNetV1(Stage):
    """3×3 stride-2 stem, three stages of `ShuffleUnit`s of which the first has stride 2; no
    classifier.

    The max pooling after the stem is left out, as of ShuffleNetV2 (VIM, Sec. 4.2): strides 4, 8,
    16. Parameters first_conv_<0-1>, features_<i>/branch_main_<1-2>_<j>, after megvii's
    ShuffleNet-Series, whose file for 2.0x and 3 groups fits (VIM, Table 9 takes it).

    Args:
      widths: channels of the stem and the three stages.
      blocks: how many in each stage.
      groups: of the 1×1 convolutions.
      frozen: batch norm uses the running statistics in training too.
      dtype: compute dtype; parameters are float32.

    Input frames [N, s, s, 3] float in [0, 1], RGB, which the first layer sees as BGR from 0 to 255,
    as megvii trained it. Output `ScanMaps` whose `last` is that of stage 4.
    """

    published_start = 'ImageNet'

    widths: tuple[int, int, int, int] = (48, 480, 960, 1920)
    blocks: tuple[int, int, int] = (4, 8, 4)
    groups: int = 3
    frozen: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, frames: jax.Array, train: bool = False) -> ScanMaps:
        stem, *widths = self.widths
        frames = 255.0 * frames[..., ::-1]
        x = conv(stem, 3, 2, self.dtype, 'first_conv_0', TORCH_START)(frames.astype(self.dtype))
        normal = BatchNorm(frozen=self.frozen, dtype=self.dtype, name='first_conv_1')
        x, stages, place = nn.relu(normal(x, train)), [], 0
        for width, count in zip(widths, self.blocks, strict=True):
            for i in range(count):
                x = ShuffleUnit(
                    width,
                    2 if i == 0 else 1,
                    self.groups,
                    self.groups if place else 1,
                    self.frozen,
                    self.dtype,
                    name=f'features_{place}',
                )(x, train)
                place += 1
            stages.append(x)
        return ScanMaps.of(stages, x)
