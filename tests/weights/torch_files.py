"""Writes files in torch's formats without torch: pickles with stand-ins that pickle under torch's
names.

The layout follows torch.serialization (protocol 2 pickles; persistent ids for storages).
"""

import collections
import io
import pickle
import struct
import zipfile

import ml_dtypes
import numpy as np

STORAGES = {
    'float32': 'FloatStorage',
    'float64': 'DoubleStorage',
    'float16': 'HalfStorage',
    'bfloat16': 'BFloat16Storage',
    'int64': 'LongStorage',
    'int32': 'IntStorage',
    'complex64': 'ComplexFloatStorage',
    'uint8': 'ByteStorage',
    'bool': 'BoolStorage',
}


class Global:
    """Pickles as the global `module.name`."""

    def __init__(self, module, name):
        self.module, self.name = module, name

    def __call__(self, *args):
        raise AssertionError('stand-ins are only pickled')


class Storage:
    def __init__(self, array):
        self.array = np.ascontiguousarray(array).reshape(-1)


class Tensor:
    """A tensor over a storage; by default a contiguous one of its own."""

    def __init__(self, storage, size=None, stride=None, offset=0):
        if not isinstance(storage, Storage):
            size = np.shape(storage)
            stride = tuple(int(np.prod(size[i + 1 :])) for i in range(len(size)))
            storage = Storage(storage)
        self.storage, self.size, self.stride, self.offset = (
            storage,
            tuple(size),
            tuple(stride),
            offset,
        )

    def __reduce_ex__(self, protocol):
        return (
            Global('torch._utils', '_rebuild_tensor_v2'),
            (self.storage, self.offset, self.size, self.stride, False, collections.OrderedDict()),
        )


class Call:
    """Pickles as a call of module.name with args: what a malicious file does."""

    def __init__(self, module, name, *args):
        self.module, self.name, self.args = module, name, args

    def __reduce_ex__(self, protocol):
        return Global(self.module, self.name), self.args


class Pickler(
    pickle._Pickler
):  # the Python one: its dispatch can write a global that does not exist here
    def __init__(self, file, legacy, protocol=2):
        super().__init__(file, protocol)
        self.legacy, self.storages = legacy, {}

    def persistent_id(self, obj):
        if not isinstance(obj, Storage):
            return None
        key = next((k for k, s in self.storages.items() if s is obj), str(len(self.storages)))
        self.storages[key] = obj
        identity = (
            'storage',
            Global('torch', STORAGES[obj.array.dtype.name]),
            key,
            'cpu',
            obj.array.size,
        )
        return (*identity, None) if self.legacy else identity

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Global):
            self.write(pickle.GLOBAL + f'{obj.module}\n{obj.name}\n'.encode())
        else:
            super().save(obj, save_persistent_id)


def dump(obj, legacy, protocol=2):
    buffer = io.BytesIO()
    pickler = Pickler(buffer, legacy, protocol)
    pickler.dump(obj)
    return buffer.getvalue(), pickler.storages


def storage_bytes(storage, byteorder='little'):
    array = storage.array
    if byteorder == 'big' and array.dtype.itemsize > 1:
        array = array.view(f'u{array.dtype.itemsize}').byteswap()
    return array.tobytes()


def write_zip(path, obj, byteorder='little', root='archive', protocol=2):
    data, storages = dump(obj, legacy=False, protocol=protocol)
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr(f'{root}/data.pkl', data)
        if byteorder:
            archive.writestr(f'{root}/byteorder', byteorder)
        for key, storage in storages.items():
            archive.writestr(f'{root}/data/{key}', storage_bytes(storage, byteorder))
        archive.writestr(f'{root}/version', '3\n')


def write_legacy(path, obj, protocol=2):
    data, storages = dump(obj, legacy=True, protocol=protocol)
    with open(path, 'wb') as file:
        for head in (
            0x1950A86A20F9469CFC6C,
            1001,
            {
                'protocol_version': 1001,
                'little_endian': True,
                'type_sizes': {'short': 2, 'int': 4, 'long': 4},
            },
        ):
            pickle.dump(head, file, protocol)
        file.write(data)
        pickle.dump(list(storages), file, protocol)
        for storage in storages.values():
            file.write(struct.pack('<q', storage.array.size) + storage_bytes(storage))


WRITERS = {'zip': write_zip, 'legacy': write_legacy}
BFLOAT16 = ml_dtypes.bfloat16


def write_pickle(path, data, parts=(), compression=zipfile.ZIP_STORED, byteorder='little'):
    """A zip file of torch's layout around any pickle, and any parts {name: bytes} beside it."""
    with zipfile.ZipFile(path, 'w', compression) as archive:
        archive.writestr('archive/data.pkl', data)
        archive.writestr('archive/byteorder', byteorder)
        for name, part in dict(parts).items():
            archive.writestr(f'archive/{name}', part)
