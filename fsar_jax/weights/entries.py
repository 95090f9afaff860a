"""Rows of the tables of published names: where an array goes and how it is turned."""

from typing import Any, NamedTuple

import jax

TRANSFORMS = {
    'copy': lambda x: x,
    'linear': lambda x: x.T,  # [out, in] → [in, out]
    'conv': lambda x: x.transpose(2, 3, 1, 0),  # [out, in, h, w] → [h, w, in, out]
    'conv1d': lambda x: x[..., 0].T,  # [out, in, 1] → [in, out], a linear map
    'conv2d': lambda x: x[..., 0, 0].T,  # [out, in, 1, 1] → [in, out]
    'conv3d': lambda x: x.transpose(2, 3, 4, 1, 0),  # [out, in, d, h, w] → [d, h, w, in, out]
    'points': lambda x: x[..., 0, 0, 0].T,  # [out, in, 1, 1, 1] → [in, out]
}


class Entry(NamedTuple):
    """One row: where a published array goes.

    Attributes:
      path: ours, from the collection on: 'params/backbone/conv1/kernel'.
      transform: key of TRANSFORMS.
      shape: of the published array; None for a size that cannot be known.
    """

    path: str
    transform: str
    shape: tuple[int | None, ...]


# Our leaf → (published leaf, transform), for convolutions and batch norms.
BACKBONE_LEAVES = {
    ('params', 'kernel'): ('weight', 'conv'),
    ('params', 'scale'): ('weight', 'copy'),
    ('params', 'bias'): ('bias', 'copy'),
    ('batch_stats', 'mean'): ('running_mean', 'copy'),
    ('batch_stats', 'var'): ('running_var', 'copy'),
}
BACKBONE_MODULES = {'downsample_conv': 'downsample.0', 'downsample_bn': 'downsample.1'}


def torchvision_rows(
    variables: dict[str, Any], published: str = '', ours: str = ''
) -> dict[str, Entry]:
    """Rows of a network of convolutions and batch norms with torchvision's names, read off its
    variables (arrays or shapes).

    Our module names are torchvision's with '_' for '.', but for BACKBONE_MODULES. `published` and
    `ours` are put before the names and the paths: 'backbone.', 'sampler/scan_network/'.
    """
    table = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        collection, *modules, last = (key.key for key in path)
        name, transform = BACKBONE_LEAVES[collection, last]
        theirs = [BACKBONE_MODULES.get(module, module.replace('_', '.')) for module in modules]
        transform = 'conv3d' if transform == 'conv' and leaf.ndim == 5 else transform
        shape = (
            leaf.shape
            if transform == 'copy'
            else (leaf.shape[-1], leaf.shape[-2], *leaf.shape[:-2])
        )
        table[published + '.'.join([*theirs, name])] = Entry(
            f'{collection}/{ours}' + '/'.join([*modules, last]), transform, shape
        )
    return table


def linear(
    published: str,
    ours: str,
    outputs,
    inputs,
    transform: str = 'linear',
    bias: bool = True,
    window=(),
) -> dict[str, Entry]:
    """Rows of a linear map or convolution: weight [outputs, inputs, *window], and bias [outputs]
    where there is one."""
    rows = {
        f'{published}.weight': Entry(f'params/{ours}/kernel', transform, (outputs, inputs, *window))
    }
    if bias:
        rows[f'{published}.bias'] = Entry(f'params/{ours}/bias', 'copy', (outputs,))
    return rows


def layer_norm(published: str, ours: str, width) -> dict[str, Entry]:
    """Rows of a LayerNorm over `width` values."""
    return {
        f'{published}.weight': Entry(f'params/{ours}/scale', 'copy', (width,)),
        f'{published}.bias': Entry(f'params/{ours}/bias', 'copy', (width,)),
    }


def batch_norm(published: str, ours: str, width) -> dict[str, Entry]:
    """Rows of a batch norm over `width` channels, with its running statistics."""
    return layer_norm(published, ours, width) | {
        f'{published}.running_mean': Entry(f'batch_stats/{ours}/mean', 'copy', (width,)),
        f'{published}.running_var': Entry(f'batch_stats/{ours}/var', 'copy', (width,)),
    }
