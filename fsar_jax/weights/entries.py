"""Turns tables of published names into entries: for each published array, where it goes, how it is
turned, and its shape."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from fsar_jax.torch_names import Table

Shape = tuple[int | None, ...]  # None: a size that nothing tells


class Transform(NamedTuple):
    """How a published array becomes ours.

    Attributes:
      array: the published array → ours.
      shape: our shape → the published one.
    """

    array: Callable[[np.ndarray], np.ndarray]
    shape: Callable[[Shape], Shape]


TRANSFORMS = {
    # A plain copy: biases, scales, statistics.
    'copy': Transform(lambda x: x, lambda shape: shape),
    # [out, in] → [in, out]
    'linear': Transform(lambda x: x.T, lambda shape: shape[::-1]),
    # Convolutions that see one cell, so linear maps of ours: [out, in, 1, …] → [in, out]
    'conv1d': Transform(lambda x: x[..., 0].T, lambda shape: (*shape[::-1], 1)),
    'conv2d': Transform(lambda x: x[..., 0, 0].T, lambda shape: (*shape[::-1], 1, 1)),
    'points': Transform(lambda x: x[..., 0, 0, 0].T, lambda shape: (*shape[::-1], 1, 1, 1)),
    # [out, in, h, w] → [h, w, in, out]
    'conv': Transform(
        lambda x: x.transpose(2, 3, 1, 0), lambda shape: (shape[3], shape[2], *shape[:2])
    ),
    # [out, in, d, h, w] → [d, h, w, in, out]
    'conv3d': Transform(
        lambda x: x.transpose(2, 3, 4, 1, 0), lambda shape: (shape[4], shape[3], *shape[:3])
    ),
    # Tokens of a transformer: [1, N, D] → [N, D], and [D] → [1, 1, D]
    'tokens': Transform(lambda x: x[0], lambda shape: (1, *shape)),
    'token': Transform(lambda x: x[None, None], lambda shape: shape[2:]),
}


class Entry(NamedTuple):
    """Where a published array goes.

    Attributes:
      path: ours, from the collection on: 'params/backbone/conv1/kernel'.
      transform: key of TRANSFORMS.
      shape: of the published array; None for a size that nothing tells.
    """

    path: str
    transform: str
    shape: Shape


# Our leaves → the published ones, in the order in which torch lists them.
LEAVES = {
    'kernel': 'weight',
    'scale': 'weight',
    'bias': 'bias',
    'mean': 'running_mean',
    'var': 'running_var',
}
TORCHVISION = {'downsample_conv': 'downsample.0', 'downsample_bn': 'downsample.1'}


def entries_of(table: Table, shapes: Mapping[str, Shape]) -> dict[str, Entry]:
    """{published name: entry} of our arrays that `table` names, in its order.

    Args:
      table: see fsar_jax.torch_names.
      shapes: {'params/matcher/across/out/kernel': shape} of our arrays, in the order in which the
        model makes them.
    """
    entries = {}
    for published, (ours, transform) in table.items():
        layer = re.escape(ours).replace(r'\{\}', r'\d+')
        matches = [
            re.fullmatch(rf'(?:params|batch_stats)/({layer})(?:/([^/]+))?', path) for path in shapes
        ]
        found = [match for match in matches if match]
        layers = list(dict.fromkeys(match[1] for match in found))
        order = lambda match: (layers.index(match[1]), [None, *LEAVES].index(match[2]))
        for match in sorted(found, key=order):
            name = published.replace('{}', str(layers.index(match[1])))
            leaf = match[2]
            kind = transform if leaf in (None, 'kernel') else 'copy'
            entries[f'{name}.{LEAVES[leaf]}' if leaf else name] = Entry(
                match[0], kind, TRANSFORMS[kind].shape(shapes[match[0]])
            )
    return entries


def torchvision_layer(layer: str) -> str:
    """torchvision's name of a layer of ours: '_' for '.', but for TORCHVISION."""
    return TORCHVISION.get(layer, layer.replace('_', '.'))


def network_entries(
    shapes: Mapping[str, Shape],
    layer_name: Callable[[str], str] = torchvision_layer,
    published: str = '',
    ours: str = '',
) -> dict[str, Entry]:
    """{published name: entry} of a network of convolutions and batch norms.

    Args:
      shapes: {'params/layer1_0/conv1/kernel': shape} of the network's arrays.
      layer_name: our name of a layer ('layer1_0') → the published one ('layer1.0').
      published, ours: what to put before the names and the paths: 'backbone.',
        'sampler/scan_network/'.
    """
    entries = {}
    for path, shape in sorted(shapes.items()):
        collection, *layers, leaf = path.split('/')
        theirs = [layer_name(layer) for layer in layers]
        kind = 'copy' if leaf != 'kernel' else 'conv3d' if len(shape) == 5 else 'conv'
        entries[published + '.'.join([*theirs, LEAVES[leaf]])] = Entry(
            f'{collection}/{ours}' + '/'.join([*layers, leaf]), kind, TRANSFORMS[kind].shape(shape)
        )
    return entries
