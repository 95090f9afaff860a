"""The types that tensors in files have, as numpy types."""

from __future__ import annotations

import ml_dtypes
import numpy as np

# As torch writes them after 'torch.'. Older versions of ml_dtypes lack float8_e8m0fnu.
NAMES = (
    'float32',
    'float64',
    'float16',
    'bfloat16',
    'int64',
    'int32',
    'int16',
    'int8',
    'uint64',
    'uint32',
    'uint16',
    'uint8',
    'bool',
    'complex64',
    'complex128',
    'float8_e4m3fn',
    'float8_e4m3fnuz',
    'float8_e5m2',
    'float8_e5m2fnuz',
    *['float8_e8m0fnu'] * hasattr(ml_dtypes, 'float8_e8m0fnu'),
)
DTYPES = {name: np.dtype(getattr(ml_dtypes, name, name)) for name in NAMES}

MAX_AXES = 32


def are_sizes(*values: object) -> bool:
    """Whether each value is an integer that a size, a stride or an offset in a file can be."""
    return all(type(value) is int and 0 <= value < 2**63 for value in values)


def native(data: np.ndarray, dtype: np.dtype, foreign: bool) -> np.ndarray:
    """Bytes [n] as an array of `dtype`; `foreign` if their order is not that of this machine."""
    unit = dtype.itemsize // 2 if dtype.kind == 'c' else dtype.itemsize
    return (
        data.view(f'u{unit}').byteswap().view(dtype) if foreign and unit > 1 else data.view(dtype)
    )
