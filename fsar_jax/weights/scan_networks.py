"""Published names of the scan networks that torchvision does not have."""

import re


def shufflenet_v1_layer(layer: str) -> str:
    """The name in megvii's ShuffleNet-Series of a layer of ours: 'branch_main_1.0' of
    'branch_main_1_0'."""
    return re.sub(r'_(\d+)$', r'.\1', layer)


def mobilenet_v1_layer(layer: str) -> str:
    """timm's name of a layer of ours: 'blocks.0.1' of 'blocks_0_1', and 'conv_dw' as it is."""
    return re.sub(r'_(\d+)', r'.\1', layer)
