"""A residual network for 64×64 frames that two CPU cores can train."""

from fsar_jax.backbones.resnet import ResNet


class ResNetSmall(ResNet):
    """5×5 stride-4 stem, then one basic block each of 32, 64 and 128 channels: 64×64 frames become
    4×4 maps.

    The coarse stem spares the CPU the full-resolution layers, where a ResNet spends most of its
    time; the 4×4 map is the patch grid of STRM as it is. Same blocks, initialisation and
    conventions as `ResNet`.

    Args: as of `ResNet`; `width` is that of the stem and the first stage.

    Input frames [B, H, W, 3] float in [0, 1], output maps [B, ⌈H / 16⌉, ⌈W / 16⌉, 4 · width]; with
    temporal_shift both have L frames after B.
    """

    published_start = ''  # nobody has published weights of it

    blocks: tuple[int, ...] = (1, 1, 1)
    width: int = 32
    stem: tuple[int, int] = (5, 4)
    pool: bool = False
