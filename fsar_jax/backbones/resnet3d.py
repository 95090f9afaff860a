"""3D ResNet-50 over whole clips, with the names of the public Kinetics-700 + Moments weights (Hara
et al. 2018)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from fsar_jax.backbones.batch_norm import BatchNorm
from fsar_jax.backbones.pointwise import PointwiseConv
from fsar_jax.backbones.resnet import (
    KAIMING_FAN_OUT,
    FrameNetwork,
    normalize_frames,
    residual_stage,
)
from fsar_jax.convolution import convolution
from fsar_jax.fields import setting


def conv3d(
    features: int, size: int, stride: int | tuple[int, int, int], dtype: DTypeLike, name: str
) -> nn.Conv | PointwiseConv:
    """Convolution over time and space without bias, padded by size // 2 on every side."""
    if size == 1:
        strides = (stride,) * 3 if isinstance(stride, int) else stride
        return PointwiseConv(features, strides, KAIMING_FAN_OUT, dtype, name=name)
    return nn.Conv(
        features,
        (size,) * 3,
        stride,
        padding=[(size // 2, size // 2)] * 3,
        use_bias=False,
        kernel_init=KAIMING_FAN_OUT,
        dtype=dtype,
        param_dtype=jnp.float32,
        conv_general_dilated=convolution,
        name=name,
    )


class Bottleneck3D(nn.Module):
    """relu(F(x) + x), F 1×1×1, 3×3×3 with the stride over time, rows and columns (one number for
    all), 1×1×1 to 4 · width: [B, l, h, w, C] → [B, ⌈l/s⌉, ⌈h/s⌉, ⌈w/s⌉, 4 · width]."""

    width: int
    stride: int | tuple[int, int, int]
    norm: dict
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        normal = lambda name, y: BatchNorm(**self.norm, dtype=self.dtype, name=name)(y, train)
        stride = (self.stride,) * 3 if isinstance(self.stride, int) else self.stride
        y = nn.relu(normal('bn1', conv3d(self.width, 1, (1, 1, 1), self.dtype, 'conv1')(x)))
        y = nn.relu(normal('bn2', conv3d(self.width, 3, stride, self.dtype, 'conv2')(y)))
        y = normal('bn3', conv3d(4 * self.width, 1, (1, 1, 1), self.dtype, 'conv3')(y))
        if stride != (1, 1, 1) or x.shape[-1] != y.shape[-1]:
            x = normal(
                'downsample_bn', conv3d(4 * self.width, 1, stride, self.dtype, 'downsample_conv')(x)
            )
        return nn.relu(y + x)


class ResNet3D(FrameNetwork):
    """7×7×7 stem with stride (1, 2, 2), 3×3×3 stride-2 max pool, four stages of bottlenecks
    (shortcut type B); no classifier.

    The published network halves the time steps four times, so a clip of 16 frames leaves one, and
    methods that compare frames see none to compare. STRM (Sec. 4.1: +1.5 over TRX on SSv2) does not
    say how it kept them (row S27 of docs/paper_vs_code.md). With temporal_stride (1, 1, 1, 1) all
    stay; the parameters are the same, so published weights load.

    Args: as `ResNet`; `blocks` per stage.
      temporal_stride: over time, of each stage in order; that of the first is the max pool's, which
        belongs to it (He et al. 2016, Table 1).

    Input clips [B, L, H, W, 3] float in [0, 1], output maps [B, ⌈L / product of the temporal
    strides⌉, ⌈H / 32⌉, ⌈W / 32⌉, 32 · width].
    """

    takes_clips = True
    temporal_stride: tuple[int, int, int, int] = setting(
        (2, 2, 2, 2),
        kw_only=True,
        at_least=1,
        at_most=2,
        affects='model',
        help='stride over time of each stage; the published (2, 2, 2, 2) leaves one time step of '
        '16 frames, (1, 1, 1, 1) all of them',
    )
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64

    @nn.compact
    def __call__(self, clips: jax.Array, train: bool = False) -> jax.Array:
        norm = self.norm
        x = normalize_frames(clips, self.normalize).astype(self.dtype)
        x = conv3d(self.width, 7, (1, 2, 2), self.dtype, 'conv1')(x)
        x = nn.relu(BatchNorm(**norm, dtype=self.dtype, name='bn1')(x, train))
        x = nn.max_pool(x, (3, 3, 3), (self.temporal_stride[0], 2, 2), padding=((1, 1),) * 3)
        for stage, count in enumerate(self.blocks):
            x = residual_stage(
                x,
                stage + 1,
                count,
                Bottleneck3D,
                self.width * 2**stage,
                norm,
                self.dtype,
                self.remat,
                train,
                stride=(self.temporal_stride[stage], 2, 2),
            )
        return x
