"""The names of `efficientnet-lite-pytorch` of ML Illustrated."""

import re

CLASSIFIER = r'_fc\.(weight|bias)'


def published_layer(layer: str) -> str:
    """'blocks_3' → '_blocks.3', 'expand_conv' → '_expand_conv'."""
    return '_' + re.sub(r'_(\d+)$', r'.\1', layer)
