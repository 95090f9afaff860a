"""Checksums of arrays by name."""

import jax.numpy as jnp
import numpy as np

from fsar_jax.named_arrays import params_hash


def test_params_hash_sees_names_dtypes_shapes_and_bytes_and_not_the_order_of_insertion():
    w, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.zeros(3, np.float32)
    base = params_hash({'dense': {'kernel': w, 'bias': b}})
    assert base == params_hash({'dense': {'bias': jnp.asarray(b), 'kernel': jnp.asarray(w)}})
    assert len(base) == 64
    other = [
        {'dense2': {'kernel': w, 'bias': b}},
        {'dense': {'kernel': w.reshape(3, 2), 'bias': b}},
        {'dense': {'kernel': w.view(np.int32), 'bias': b}},
        {'dense': {'kernel': w + (w == 5), 'bias': b}},
    ]
    assert len({base, *map(params_hash, other)}) == 5
