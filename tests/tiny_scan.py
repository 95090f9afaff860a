"""A scan network for tests of the sampler."""

import types

import flax.linen as nn


class TinyScan(nn.Module):
    """A scan network of the right form: strided convolutions."""

    @nn.compact
    def __call__(self, frames, train=False):
        stages, x = [], frames
        for i, channels in enumerate((4, 6, 8)):
            x = nn.relu(nn.Conv(channels, (3, 3), strides=2, name=f'conv{i}')(x))
            stages.append(x)
        return types.SimpleNamespace(stages=tuple(stages), last=x, features=x.mean((1, 2)))
