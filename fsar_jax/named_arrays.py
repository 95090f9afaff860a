"""The arrays of a tree by name, and checksums of them."""

import hashlib
from concurrent import futures

import jax
import numpy as np

from fsar_jax.stage import ArrayTree


def by_name(tree: ArrayTree) -> dict:
    """{'params/conv/kernel': leaf}, in the order of the tree."""
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in paths}


def params_hash(params: ArrayTree) -> str:
    """SHA-256, hexadecimal, of a parameter tree: name, dtype, shape and bytes of each array, in the
    order of their names."""
    digest, arrays = hashlib.sha256(), by_name(params)
    for name in sorted(arrays):
        value = np.ascontiguousarray(arrays[name])
        digest.update(f'{name} {value.dtype.name} {value.shape}\n'.encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def state_hash(arrays: dict[str, np.ndarray]) -> str:
    """SHA-256, hexadecimal, of the arrays of a checkpoint: name, dtype, shape and SHA-256 of the
    bytes of each, in the order of their names. The arrays are hashed in parallel."""

    def line(name):
        array = arrays[name]
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        return f'{name} {array.dtype.name} {array.shape} {hashlib.sha256(data).hexdigest()}\n'

    with futures.ThreadPoolExecutor() as pool:  # hashlib releases the interpreter lock
        return hashlib.sha256(''.join(pool.map(line, sorted(arrays))).encode()).hexdigest()
