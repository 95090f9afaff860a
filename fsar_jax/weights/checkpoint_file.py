"""Reads .pth (zip and legacy) and .safetensors into numpy, without torch and without running a pickle's code.

A .pth file holds a pickle, and unpickling calls whatever functions the pickle names. The unpickler here resolves
names from a short table only, to stand-ins that rebuild tensors as numpy views or plain containers; any other name
ends the reading.
"""

import collections
import pathlib
import pickle
import sys
from typing import Any
import zipfile

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

STORAGE_DTYPES = {
    'FloatStorage': np.float32, 'DoubleStorage': np.float64, 'HalfStorage': np.float16,
    'BFloat16Storage': ml_dtypes.bfloat16, 'LongStorage': np.int64, 'IntStorage': np.int32,
    'ShortStorage': np.int16, 'CharStorage': np.int8, 'ByteStorage': np.uint8, 'BoolStorage': np.bool_,
}
STATE_DICT_KEYS = ('model_state_dict', 'model_state', 'state_dict')

LEGACY_MAGIC = 0x1950a86a20f9469cfc6c
LEGACY_PROTOCOL = 1001


def read_torch(path) -> dict[str, Any]:
    """The content of a checkpoint file, tensors as numpy arrays (views that may share memory; ml_dtypes.bfloat16).

    Args:
      path: .pth, .pt in torch's zip or legacy format, or .safetensors; told apart by content.

    Returns:
      What was saved: dicts, lists, tuples, numbers and strings around arrays.

    Raises:
      FileNotFoundError: no such file.
      ValueError: one line: a damaged or foreign file, or a pickle that names anything but tensors and containers;
        nothing of it is run.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'{path}: no such checkpoint file')
    with path.open('rb') as file:
        head = file.read(9)
    try:
        if head.startswith(b'PK\x03\x04'):
            return _read_zip(path)
        if head[8:] == b'{':
            return safetensors.numpy.load_file(path)
        return _read_legacy(path)
    except _Refused as error:
        raise ValueError(f'{path}: {error}') from None
    except Exception as error:      # a damaged pickle can fail in any way that its opcodes can
        reason = ' '.join(f'{type(error).__name__} {error}'.split())
        raise ValueError(
            f'{path}: truncated, damaged, or neither a PyTorch checkpoint nor safetensors ({reason})') from None


def pick_state_dict(content: Any, path) -> dict[str, Any]:
    """The state dict in what `read_torch` returned: under one of STATE_DICT_KEYS, or all of it."""
    if isinstance(content, dict):
        for key in STATE_DICT_KEYS:
            if isinstance(content.get(key), dict):
                return content[key]
        if content and all(isinstance(value, np.ndarray) for value in content.values()):
            return content
        found = 'its keys are ' + ', '.join(map(str, list(content)[:10])) if content else 'it is empty'
    else:
        found = f'it holds a {type(content).__name__}'
    raise ValueError(
        f'{path}: no state dict inside: {found}; expected arrays by name, or one of {", ".join(STATE_DICT_KEYS)}')


class _Refused(ValueError):
    """A reason of ours, already in one line."""


class _StorageType:
    """Stands for torch.FloatStorage and the like; holds the dtype."""
    __slots__ = ('dtype',)

    def __init__(self, dtype):
        self.dtype = dtype


class _Unpickler(pickle.Unpickler):
    """Resolves the names of its table only. `storage(key, dtype, numel, view)` gives the flat array of a storage."""

    def __init__(self, file, storage=None):
        super().__init__(file, encoding='utf-8')
        self._storage = storage
        # Stand-ins are made per reading: a pickle can set attributes on what it names, and must reach nothing shared.
        allowed = {
            ('collections', 'OrderedDict'): collections.OrderedDict,
            ('collections', 'Counter'): lambda items=(): dict(items),
            ('collections', 'defaultdict'): lambda factory=None: {},
            ('torch', 'Size'): lambda sizes=(): tuple(sizes),
            ('torch._utils', '_rebuild_tensor'): lambda *tensor: _view(*tensor),
            ('torch._utils', '_rebuild_tensor_v2'): lambda *tensor: _view(*tensor[:4]),
            ('torch._utils', '_rebuild_parameter'): lambda data, *_: data,
        }
        for kind in (dict, list, tuple, set, frozenset, int, float, bool, complex):
            allowed['builtins', kind.__name__] = allowed['__builtin__', kind.__name__] = kind
        for name, dtype in STORAGE_DTYPES.items():
            allowed['torch', name] = _StorageType(np.dtype(dtype))
        self._allowed = allowed

    def find_class(self, module, name):
        if (module, name) not in self._allowed:
            raise _Refused(f'refused, nothing was run: its pickle names {f"{module}.{name}"!r}, '
                           'which is neither a tensor nor a plain container')
        return self._allowed[module, name]

    def persistent_load(self, identity):
        if not (self._storage and isinstance(identity, tuple) and len(identity) in (5, 6)
                and identity[0] == 'storage' and isinstance(identity[1], _StorageType)):
            raise _Refused('refused, nothing was run: its pickle refers to what is not a tensor storage')
        _, kind, key, _, numel, *view = identity
        return self._storage(key, kind.dtype, numel, view[0] if view else None)


def _view(storage, offset, size, stride):
    """The tensor of this size and stride over a flat storage, read-only; checked to lie inside it."""
    if not (isinstance(storage, np.ndarray) and isinstance(size, tuple) and isinstance(stride, tuple)
            and len(size) == len(stride)):
        raise _Refused('damaged: a tensor without a storage, size or stride')
    if not all(isinstance(n, int) and n >= 0 for n in (offset, *size, *stride)):
        raise _Refused(f'damaged: a tensor of size {size}, stride {stride}, offset {offset}')
    last = offset + sum((n - 1) * s for n, s in zip(size, stride))
    if 0 in size:
        return np.zeros(size, storage.dtype)
    if last >= storage.size:
        raise _Refused(
            f'damaged: a tensor of size {size} reaches entry {last} of a storage that has {storage.size}')
    strides = tuple(s * storage.itemsize for s in stride)
    return np.lib.stride_tricks.as_strided(storage[offset:], size, strides, writeable=False)


def _native(data: bytes, dtype: np.dtype, little_endian: bool) -> np.ndarray:
    if little_endian == (sys.byteorder == 'little') or dtype.itemsize == 1:
        return np.frombuffer(data, dtype)
    return np.frombuffer(data, f'u{dtype.itemsize}').byteswap().view(dtype)


def _read_zip(path):
    """<root>/data.pkl, and one file <root>/data/<key> per storage."""
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        roots = [name.removesuffix('data.pkl') for name in names if name.endswith('/data.pkl')]
        if len(roots) != 1:
            raise _Refused('a zip file without data.pkl, so not a PyTorch checkpoint')
        root = roots[0]
        little_endian = root + 'byteorder' not in names or archive.read(root + 'byteorder') == b'little'
        storages = {}

        def storage(key, dtype, numel, _):
            if key not in storages:
                name = f'{root}data/{key}'
                if name not in names:
                    raise _Refused(f'damaged: the storage {key!r} is missing')
                size = archive.getinfo(name).file_size
                if size != numel * dtype.itemsize:
                    raise _Refused(f'damaged: the storage {key!r} has {size} bytes instead of {numel * dtype.itemsize}')
                storages[key] = _native(archive.read(name), dtype, little_endian)
            return storages[key]

        with archive.open(root + 'data.pkl') as file:
            return _Unpickler(file, storage).load()


def _read_legacy(path):
    """Pickles one after the other: magic number, protocol, system facts, object, storage keys; then the storages."""
    limit = path.stat().st_size
    with path.open('rb') as file:
        if _Unpickler(file).load() != LEGACY_MAGIC:
            raise _Refused('neither a PyTorch checkpoint nor safetensors')
        if _Unpickler(file).load() != LEGACY_PROTOCOL:
            raise _Refused(f'a PyTorch checkpoint of another protocol than {LEGACY_PROTOCOL}')
        little_endian = _Unpickler(file).load()['little_endian']
        storages = {}

        def storage(key, dtype, numel, view):
            if not isinstance(numel, int) or not 0 <= numel * dtype.itemsize <= limit:
                raise _Refused(f'damaged: the storage {key!r} of {numel} entries is larger than the file')
            if key not in storages:
                storages[key] = np.empty(numel, dtype)      # filled below: the data comes after the object
            if view is None:
                return storages[key]
            _, offset, length = view
            return storages[key][offset:offset + length]

        content = _Unpickler(file, storage).load()
        for key in _Unpickler(file).load():
            numel = int.from_bytes(file.read(8), 'little' if little_endian else 'big')
            if key not in storages or numel != storages[key].size:
                raise _Refused(f'damaged: the storage {key!r} does not have the size that the tensors say')
            dtype = storages[key].dtype
            data = file.read(numel * dtype.itemsize)
            if len(data) != numel * dtype.itemsize:
                raise _Refused('truncated: it ends inside a storage')
            storages.pop(key)[:] = _native(data, dtype, little_endian)
        if storages:
            raise _Refused(f'damaged: the storage {next(iter(storages))!r} is missing')
        return content
