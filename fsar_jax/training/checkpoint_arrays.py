"""The arrays of a state on their way into a checkpoint and back onto devices."""

import jax
import numpy as np
from jax.experimental import multihost_utils

from fsar_jax.messages import printable


def without_key(leaf: jax.Array) -> jax.Array:
    """The leaf, or for a typed PRNG key the integers that are stored."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def on_host(leaf: jax.Array) -> np.ndarray:
    """The whole array in this process's memory.

    On a CPU it may share the memory of a jax.Array. That is safe even when the array is donated:
    JAX does not reuse the memory while this refers to it.
    """
    if not isinstance(leaf, jax.Array):
        return np.array(leaf)
    if not (leaf.is_fully_addressable or leaf.is_fully_replicated):
        leaf = multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(leaf)


def placed(value: np.ndarray, like: jax.Array | jax.ShapeDtypeStruct) -> jax.Array:
    """The value on the devices of `like`, as a typed PRNG key where `like` is one."""
    sharding = getattr(like, 'sharding', None) or jax.sharding.SingleDeviceSharding(
        jax.local_devices()[0]
    )
    array = jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])
    if not _is_key(like):
        return array
    kind = []  # `like` may be a ShapeDtypeStruct, which only a trace can ask for its kind of key
    jax.eval_shape(lambda key: kind.append(jax.random.key_impl(key)), like)
    return jax.random.wrap_key_data(array, impl=kind[0])


def shapes(leaves: dict) -> dict[str, tuple]:
    """{name: (shape, dtype name)}, for typed PRNG keys that of the integers that are stored."""
    leaves = {
        name: jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        for name, leaf in leaves.items()
    }
    return {name: (tuple(leaf.shape), np.dtype(leaf.dtype).name) for name, leaf in leaves.items()}


def differences(saved: dict[str, tuple], wanted: dict[str, tuple]) -> list[str]:
    """In which leaves a checkpoint and the model that is asked for differ, in words.

    Args:
      saved, wanted: as from `shapes`, names such as 'params/conv/kernel'; parameters come first.
    """
    found = []
    for name in sorted(saved | wanted, key=lambda name: (not name.startswith('params'), name)):
        if name not in saved:
            found.append(f'{name} {_described(wanted[name])} is not in the checkpoint')
        elif name not in wanted:
            found.append(
                f'{printable(name)} {_described(saved[name])} is not in the model asked for'
            )
        elif saved[name] != wanted[name]:
            found.append(
                f'{name} is {_described(saved[name])} in the checkpoint, '
                f'{_described(wanted[name])} in the model asked for'
            )
    return found


def _described(shape_and_dtype: tuple) -> str:
    """'float32[4,3]'."""
    shape, dtype = shape_and_dtype
    return f'{dtype}[{",".join(map(str, shape))}]'


def _is_key(leaf) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
