"""The arrays that a learner needs, under their published names, read off the learner itself.

Some sizes are in no config: the feature dimension where features are given, the number of frames,
the cells of a map. Making the learner at two sizes shows which axes follow from one; the arrays of
the file then tell it.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
from ml_collections import ConfigDict

from fsar_jax.backbones import Features
from fsar_jax.learner import create_learner
from fsar_jax.samplers.uniform import UniformSampler
from fsar_jax.torch_names import Table
from fsar_jax.weights.convert import is_array
from fsar_jax.weights.entries import Entry, entries_of

MANY = 20_160  # channels, while they are unknown: a multiple of any usual number of heads
FRAMES = 16  # while they are unknown: more than the tuples of any model have


class Sizes(NamedTuple):
    """Sizes of an episode of feature maps, [way, 1, frames, side, side, channels]."""

    channels: int
    frames: int = FRAMES
    side: int = 16
    way: int = 2


Axis = tuple[str, int]  # published name, axis of the array


def head_entries(
    model: ConfigDict, tables: Iterable[Table], channels: int | None
) -> Callable[[Mapping[str, Any]], dict[str, Entry]]:
    """The published names of all that a learner has between backbone and logits.

    Args:
      model: config.model.
      tables: of published names.
      channels: of the backbone's output; None where the arrays must tell.

    Returns:
      {published name: array} of a file → {published name: entry} of all that the learner needs. The
      arrays tell the sizes that are in no config, and change no name.

    Raises:
      ValueError: the learner has parameters that no table names.
    """
    learner = create_learner(model, backbone=Features(), sampler=UniformSampler())
    tables = list(tables)

    def at(sizes: Sizes) -> dict[str, Entry]:
        video = (sizes.frames, sizes.side, sizes.side, sizes.channels)
        shapes, _ = shapes_of(learner, (sizes.way, 1, *video), (1, *video))
        found = {
            name: entry for table in tables for name, entry in entries_of(table, shapes).items()
        }
        nameless = set(shapes) - {entry.path for entry in found.values()}
        if nameless:
            raise ValueError(
                'no published state dict is known for the model that config.model describes, '
                f'because of its {", ".join(sorted(nameless))}'
            )
        return found

    sizes = Sizes(channels or MANY)
    entries = at(sizes)
    axes = _axes(entries)

    def following(**change: int) -> list[Axis]:
        moved = _axes(at(sizes._replace(**change)))
        return [axis for axis, size in axes.items() if moved[axis] != size]

    of_any_size = following(side=sizes.side + 1, way=sizes.way + 1)
    of_frames = [a for a in following(frames=sizes.frames + 1) if a not in of_any_size]
    of_channels = following(channels=2 * sizes.channels) if channels is None else []

    def solved(arrays: Mapping[str, Any]) -> dict[str, Entry]:
        values: dict[Axis, int | None] = {**axes, **dict.fromkeys(of_any_size)}
        for same, size in ((of_frames, sizes.frames), (of_channels, sizes.channels)):
            value = _most_common({axis: axes[axis] for axis in same}, size, arrays)
            values |= {a: None if value is None else axes[a] * value // size for a in same}
        return {
            name: entry._replace(shape=tuple(values[name, i] for i in range(len(entry.shape))))
            for name, entry in entries.items()
        }

    return solved


def shapes_of(
    module: nn.Module, *inputs: tuple[int, ...], method: str | None = None
) -> tuple[dict[str, tuple[int, ...]], Any]:
    """What a module has and gives, without computing anything.

    Args:
      inputs: shapes of the float32 arrays that `method` (default `__call__`) takes.

    Returns:
      {'params/matcher/across/out/kernel': shape} of its arrays, in the order in which it makes
      them; and its output as a tree of jax.ShapeDtypeStruct.
    """
    shapes: dict[str, tuple[int, ...]] = {}

    def start(*arrays: jax.Array) -> Any:
        output, variables = module.init_with_output(
            jax.random.key(0), *arrays, train=False, method=method
        )
        # Kept here, because what leaves eval_shape is sorted by name.
        for path, array in flax.traverse_util.flatten_dict(variables, sep='/').items():
            shapes[path] = array.shape
        return output

    output = jax.eval_shape(start, *(jax.ShapeDtypeStruct(x, 'float32') for x in inputs))
    return shapes, output


def _axes(entries: Mapping[str, Entry]) -> dict[Axis, int]:
    return {
        (name, axis): size
        for name, entry in entries.items()
        for axis, size in enumerate(entry.shape)
        if size is not None
    }


def _most_common(axes: Mapping[Axis, int], size: int, arrays: Mapping[str, Any]) -> int | None:
    """What most arrays say of a size, so that one mis-shaped array is found out; None without any.

    axes: {axis: its length}, each following from the size where that is `size`.
    """
    votes: collections.Counter[int] = collections.Counter()
    for (name, axis), length in axes.items():
        array = arrays.get(name)
        if is_array(array) and array.ndim > axis and length % size == 0:
            value, rest = divmod(array.shape[axis], length // size)
            votes.update([] if rest else [value])
    return votes.most_common(1)[0][0] if votes else None
