"""How a stage or a method states its published torch names: a table of one line per layer.

A table maps the published name of a layer to our path of it, and names the transform of its kernel:

    {'temporal_atte.fc': ('matcher/across/out', 'linear')}

The shapes, and which arrays the layer has (weight, bias, running statistics), follow from our own
parameters, so a table states neither. A line whose path the model at hand does not have is skipped.
'{}' in both names counts layers of one kind: in ours it stands for any number, in theirs for how
many such layers our model made before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

# Published layer or array → (ours, transform: a key of fsar_jax.weights.entries.TRANSFORMS).
Table = Mapping[str, tuple[str, str]]


class TorchNames(NamedTuple):
    """The published names of a method, found by its matcher.

    fsar_jax.weights.published.METHODS lists those of the published codes. A new matcher stays one
    file: it carries its own as the class attribute `published`.

    Attributes:
      backbone: what stands before the names of the backbone.
      sequence: whether the backbone is a torch.nn.Sequential (conv1, bn1, relu, max pool, layer1,
        …), whose parts have numbers instead of names.
      table: the layers of the matcher.
      unused: regular expression of the names in published files that nothing here needs.
    """

    backbone: str = 'backbone'
    sequence: bool = False
    table: Table = {}
    unused: str = ''
