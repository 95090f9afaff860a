"""Reads .safetensors files: the length of the header, the header in JSON, then the data of all
tensors without gaps."""

from __future__ import annotations

import json
import math
import os
import sys
from typing import Any, BinaryIO

import numpy as np

from fsar_jax.messages import printable
from fsar_jax.weights.pickle_file import Refused, UnreadTensor
from fsar_jax.weights.tensor_types import DTYPES, MAX_AXES, are_sizes, native

TYPES = {
    'F32': 'float32',
    'F64': 'float64',
    'F16': 'float16',
    'BF16': 'bfloat16',
    'I64': 'int64',
    'I32': 'int32',
    'I16': 'int16',
    'I8': 'int8',
    'U64': 'uint64',
    'U32': 'uint32',
    'U16': 'uint16',
    'U8': 'uint8',
    'BOOL': 'bool',
    'C64': 'complex64',
    'F8_E4M3': 'float8_e4m3fn',
    'F8_E4M3FNUZ': 'float8_e4m3fnuz',
    'F8_E5M2': 'float8_e5m2',
    'F8_E5M2FNUZ': 'float8_e5m2fnuz',
    'F8_E8M0': 'float8_e8m0fnu',
}

MAX_HEADER = 2**24


def read_safetensors(file: BinaryIO, size: int) -> dict[str, Any]:
    """{name: array} in the order of the file; an `UnreadTensor` for a type that numpy lacks.

    Args:
      file: at its start.
      size: its bytes.

    Raises:
      Refused, and whatever json raises: the header is damaged, or does not describe the file.
    """
    length = int.from_bytes(file.read(8), 'little')
    if length > min(size - 8, MAX_HEADER):
        raise Refused(
            'truncated, damaged, or neither a PyTorch checkpoint nor safetensors: a header of '
            f'{length:,} bytes in a file of {size:,}'
        )
    header = json.loads(file.read(length).decode('utf-8'), object_pairs_hook=_without_duplicates)
    data = np.fromfile(file, np.uint8)
    header.pop('__metadata__', None)
    content: dict[str, Any] = {}
    end = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]['data_offsets']):
        start, stop = entry['data_offsets']
        kind, shape = entry['dtype'], entry['shape']
        if not (
            are_sizes(start, stop, *shape)
            and start == end <= stop <= data.size
            and len(shape) <= MAX_AXES
            and isinstance(kind, str)
        ):
            raise Refused(
                f"truncated, damaged: the place or shape of '{printable(name)}' is wrong, or the "
                "file ends before it: download or copy it again"
            )
        end = stop
        if (dtype := DTYPES.get(TYPES.get(kind, ''))) is None:
            content[name] = UnreadTensor(
                f'a tensor of type {printable(kind)}: save it as float32 (F32)'
            )
            continue
        if math.prod(shape) * dtype.itemsize != stop - start:
            raise Refused(
                f"truncated, damaged: '{printable(name)}' has {stop - start:,} bytes, and not "
                "those of its shape and type"
            )
        content[name] = native(data[start:stop], dtype, sys.byteorder != 'little').reshape(shape)
    if end != data.size:
        raise Refused(
            f'truncated, damaged: {data.size - end:,} bytes after its last tensor: download or '
            'copy it again'
        )
    return content


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The texts that the writer of a .safetensors file put in its header.

    {} for any other file, and for one that is missing or damaged: reading its arrays gives the
    error.
    """
    if not os.path.isfile(path):  # opening a pipe would wait
        return {}
    try:
        with open(path, 'rb') as file:
            length = int.from_bytes(file.read(8), 'little')
            header = json.loads(file.read(length)) if length <= MAX_HEADER else None
    except (OSError, ValueError, RecursionError):
        return {}
    metadata = header.get('__metadata__') if isinstance(header, dict) else None
    return metadata if isinstance(metadata, dict) else {}


def _without_duplicates(pairs):
    if len(found := dict(pairs)) < len(pairs):
        raise Refused('damaged: its header holds a name twice')
    return found
