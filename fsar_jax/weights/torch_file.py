"""Reads the two formats of torch.save, zip and legacy: a pickle, and the bytes of the storages that
it refers to; and numpy's .npz, which is a zip file too."""

from __future__ import annotations

import io
import math
import sys
import zipfile
from typing import Any

import numpy as np

from fsar_jax.messages import listed, printable
from fsar_jax.weights.pickle_file import MAX_KEY, RESAVE, Opaque, Refused, UnreadTensor, read_pickle
from fsar_jax.weights.tensor_types import DTYPES, MAX_AXES, are_sizes, native

STORAGES = {
    'Float': 'float32',
    'Double': 'float64',
    'Half': 'float16',
    'BFloat16': 'bfloat16',
    'Long': 'int64',
    'Int': 'int32',
    'Short': 'int16',
    'Char': 'int8',
    'Byte': 'uint8',
    'Bool': 'bool',
    'ComplexFloat': 'complex64',
    'ComplexDouble': 'complex128',
    'QInt8': 'int8',
    'QUInt8': 'uint8',
    'QInt32': 'int32',
}
STORAGE_DTYPES = {f'torch.{kind}Storage': DTYPES[name] for kind, name in STORAGES.items()}
STORAGE_DTYPES |= {
    f'{module}.UntypedStorage': DTYPES['uint8'] for module in ('torch', 'torch.storage')
}
# Tensors that are not views of a storage → what they are, and how to save them instead.
UNREAD = {
    '_rebuild_sparse_tensor': 'a sparse tensor: save x.to_dense()',
    '_rebuild_sparse_csr_tensor': 'a sparse tensor: save x.to_dense()',
    '_rebuild_qtensor': 'a quantized tensor: save x.dequantize()',
    '_rebuild_nested_tensor': 'a nested tensor: save a padded one',
    '_rebuild_meta_tensor_no_storage': 'a tensor on the meta device, which has no values',
    '_rebuild_wrapper_subclass': 'a tensor of a class of its own: save a plain one',
    '_rebuild_device_tensor_from_numpy': 'a tensor of another device: save x.cpu()',
    '_rebuild_device_tensor_from_cpu_tensor': 'a tensor of another device: save x.cpu()',
    '_rebuild_xla_tensor': 'a tensor of another device: save x.cpu()',
}

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
MAX_DIRECTORY = 2**24  # of a zip file: bytes of its table of contents
MAX_RATIO = 16  # of a zip file: unpacked over packed
SPARE = 2**20  # bytes that a value may take beyond the size of its file


def read_zip(file: io.BufferedReader, size: int) -> Any:
    """The object in a zip file of <root>/data.pkl and one <root>/data/<key> per storage; of a .npz
    file, {name: array}.

    Args:
      file: at its start.
      size: its bytes.

    Raises:
      Refused, and whatever zipfile raises: the file is damaged, has no data.pkl, or exceeds a
        limit.
    """
    if (claimed := _directory_size(file, size)) > MAX_DIRECTORY:
        raise Refused(f'damaged: a zip file whose table of contents takes {claimed:,} bytes')
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if len(members) < len(archive.infolist()):
            raise Refused('damaged: a zip file that holds two parts of one name')
        roots = [name.removesuffix('data.pkl') for name in members if name.endswith('/data.pkl')]
        numpy = bool(members) and all(name.endswith('.npy') for name in members)
        if len(roots) != 1 and not numpy:
            raise Refused(_no_checkpoint(members))
        root = '' if numpy else roots[0]
        if root + 'constants.pkl' in members:
            raise Refused(
                'a TorchScript program (torch.jit.save), not a state dict: with torch, '
                'torch.save(torch.jit.load("this file").state_dict(), "weights.pth"), and give '
                'that file'
            )
        if sum(member.compress_size for member in members.values()) > size:
            raise Refused(
                'damaged: the parts of this zip file overlap, or are larger than the file'
            )
        if (
            unpacked := sum(member.file_size for member in members.values())
        ) > MAX_RATIO * size + SPARE:
            raise Refused(
                f'a zip file of {size:,} bytes that unpacks to {unpacked:,}, more than '
                f'{MAX_RATIO} times as much: torch does not compress its files; if you trust it, '
                f'{RESAVE}'
            )
        if numpy:
            return {
                name.removesuffix('.npy'): _numpy(name, _member(archive, member))
                for name, member in members.items()
            }

        order = (
            _member(archive, members[root + 'byteorder'])
            if root + 'byteorder' in members
            else b'little'
        )
        if order not in (b'little', b'big'):
            raise Refused(
                f"damaged: its byteorder is '{printable(order.decode('latin1'), 20)}', neither "
                "'little' nor 'big'"
            )
        foreign = order.decode() != sys.byteorder
        contents, arrays = {}, {}

        def find(key, dtype, entries):
            member = members.get(f'{root}data/{key}')
            if member is None:
                raise Refused(f"damaged: the storage '{printable(key)}' is missing")
            if member.file_size != entries * dtype.itemsize:
                raise Refused(
                    f"damaged: the storage '{printable(key)}' has {member.file_size} bytes "
                    f"instead of {entries * dtype.itemsize}"
                )
            if key not in contents:
                contents[key] = np.frombuffer(_member(archive, member), np.uint8)
            if (key, dtype) not in arrays:
                arrays[key, dtype] = native(contents[key], dtype, foreign)
            return arrays[key, dtype]

        whole = max(unpacked, size)
        data = _member(archive, members[root + 'data.pkl'])
        return read_pickle(
            io.BytesIO(data), len(data), _calls(whole + SPARE, foreign), _storages(find, whole)
        )


def _directory_size(file, size):
    """Bytes of the table of contents, as the end of a zip file claims. Reading it takes a dozen
    times as much memory."""
    file.seek(max(0, size - 2**16 - 22))
    tail = file.read()
    file.seek(0)
    if (end := tail.rfind(b'PK\x05\x06')) < 0 or end + 22 > len(tail):
        raise Refused(
            'truncated: a zip file, as torch writes, whose end is missing: download or copy it '
            'again'
        )
    # All ones mean that the larger record has it.
    claimed = int.from_bytes(tail[end + 12 : end + 16], 'little') % 0xFFFFFFFF
    large = tail.rfind(b'PK\x06\x06', 0, end)
    return max(
        claimed, int.from_bytes(tail[large + 40 : large + 48], 'little') if large >= 0 else 0
    )


def _no_checkpoint(members):
    inside = [name for name in members if name.endswith(('.pth', '.pt', '.safetensors'))]
    if any(name.endswith('/data.pkl') for name in members):
        return 'a zip file with several data.pkl, so not a PyTorch checkpoint'
    if inside:
        what = f'it holds {listed(inside)}: unpack it, and give that'
    else:
        what = (
            f'it holds {listed(members, 5) or "nothing"}: give what torch.save(model.state_dict(), '
            'path) writes'
        )
    return f'a zip file without data.pkl, so not a PyTorch checkpoint: {what}'


def _member(archive, member):
    if member.flag_bits & 1:
        raise Refused('an encrypted zip file: unpack it, and zip it again without a password')
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise Refused(
            'a zip file with a compression that torch does not use: unpack it, and zip it again '
            'without (zip -0)'
        )
    try:
        data = archive.read(member)
    except zipfile.BadZipFile as error:
        raise Refused(
            f'truncated or damaged: {printable(error)}: download or copy it again (or, if it was '
            'written under torch.serialization.set_crc32_options(False), save it without that)'
        ) from None
    if len(data) != member.file_size:
        raise Refused(
            f"damaged: '{printable(member.filename)}' has {len(data):,} bytes instead of "
            f"{member.file_size:,}"
        )
    return data


def _numpy(name: str, data: bytes) -> np.ndarray | UnreadTensor:
    """The array of one .npy part of a .npz file."""
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        shape, by_column, dtype = np.lib.format.read_array_header_1_0(stream)
    else:
        shape, by_column, dtype = np.lib.format.read_array_header_2_0(stream)
    if dtype.kind not in 'fiub':  # objects are pickles
        return UnreadTensor(f'an array of type {printable(dtype)}: save it as float32')
    start = stream.tell()
    if (
        not are_sizes(*shape)
        or len(shape) > MAX_AXES
        or math.prod(shape) * dtype.itemsize != len(data) - start
    ):
        raise Refused(
            f"damaged: '{printable(name)}' has {len(data) - start:,} bytes, and not those of its "
            'shape and type'
        )
    array = np.frombuffer(data, dtype, offset=start).astype(dtype.newbyteorder('='), copy=False)
    return array.reshape(shape, order='F' if by_column else 'C')


def read_legacy(file: io.BufferedReader, size: int) -> Any:
    """The object in a sequence of pickles (magic number, protocol, system information, object,
    storage keys) with the storages after them.

    Args:
      file: at its start.
      size: its bytes.

    Raises:
      Refused: the file is damaged, is a pickle of another kind, or exceeds a limit.
    """
    if read_pickle(file, size) != LEGACY_MAGIC:
        raise Refused(
            'a plain pickle, neither a PyTorch checkpoint nor safetensors: give what '
            'torch.save(model.state_dict(), path) writes'
        )
    if read_pickle(file, size) != LEGACY_PROTOCOL:
        raise Refused(f'a PyTorch checkpoint of another protocol than {LEGACY_PROTOCOL}: {RESAVE}')
    system = read_pickle(file, size)
    little = system.get('little_endian') if isinstance(system, dict) else None
    if not isinstance(little, bool):
        raise Refused('damaged: it does not say its byte order, little_endian: True or False')
    foreign = little != (sys.byteorder == 'little')
    storages, total = {}, 0

    def find(key, dtype, entries):
        nonlocal total
        if key not in storages:
            total += entries * dtype.itemsize
            if total > size:
                raise Refused(
                    'truncated or damaged: its storages together are larger than the file: '
                    'download or copy it again'
                )
            storages[key] = np.empty(entries, dtype)  # filled below, after the object
        whole = storages[key]
        if whole.nbytes != entries * dtype.itemsize or foreign and whole.dtype != dtype:
            raise Refused(f"damaged: the storage '{printable(key)}' has two sizes or types")
        return whole.view(dtype)

    content = read_pickle(file, size, _calls(size + SPARE, foreign), _storages(find, size))
    keys = read_pickle(file, size)
    if not (isinstance(keys, list) and all(isinstance(key, str) for key in keys)):
        raise Refused('damaged: the list of its storages is missing')
    for key in keys:
        entries = int.from_bytes(file.read(8), 'little' if little else 'big')
        if key not in storages or entries != storages[key].size:
            raise Refused(
                f"damaged: the storage '{printable(key)}' does not have the size that the tensors "
                "say"
            )
        array = storages.pop(key)
        data = array.view(np.uint8)
        if file.readinto(data) != data.size:
            raise Refused('truncated: it ends inside a storage: download or copy it again')
        if foreign:
            array[:] = native(data, array.dtype, foreign)
    if storages:
        raise Refused(f"damaged: the storage '{printable(next(iter(storages)))}' is missing")
    return content


def _storages(find, limit):
    """Makes the function for persistent ids: it returns the flat array of a storage, or a part of
    it; for a type that is not read, the `Opaque` of the type.

    Args:
      find: (key, dtype, entries) → the array of a storage.
      limit: bytes that a storage may have.
    """

    def storage(identity):
        if not (
            isinstance(identity, tuple)
            and len(identity) in (4, 5, 6)
            and isinstance(identity[1], Opaque)
        ):
            raise Refused(
                'refused, nothing was run: its pickle refers to what is not a tensor storage'
            )
        if identity[0] == 'module':  # a class, beside its source
            return identity[1]
        if identity[0] != 'storage' or len(identity) == 4 or not isinstance(identity[2], str):
            raise Refused(
                'refused, nothing was run: its pickle refers to what is not a tensor storage'
            )
        _, kind, key, _, entries, *part = identity
        dtype = STORAGE_DTYPES.get(kind.name.replace('torch.cuda.', 'torch.'))
        if dtype is None:
            return kind
        if type(entries) is not int:
            raise Refused(f"damaged: the storage '{printable(key)}' does not say its size")
        if not are_sizes(entries) or entries * dtype.itemsize > limit:
            raise Refused(
                f"truncated or damaged: the storage '{printable(key)}' of {printable(entries)} "
                'entries is larger than the file: download or copy it again'
            )
        array = find(key, dtype, entries)
        if not part or part[0] is None:
            return array
        if not (isinstance(part[0], tuple) and len(part[0]) == 3 and are_sizes(*part[0][1:])):
            raise Refused(
                f"damaged: the storage '{printable(key)}' is a part of another, but not said which"
            )
        _, offset, length = part[0]
        return array[offset : offset + length]

    return storage


def _calls(limit, foreign):
    """{torch's function: ours}. Tensors are read-only views of the flat arrays that stand for
    storages.

    Args:
      limit: bytes that a tensor may take, however often it repeats its storage.
      foreign: whether the file has the other byte order.
    """

    def tensor(storage, offset, size, stride, _grad=None, _hooks=None, metadata=None):
        if isinstance(storage, Opaque):
            return UnreadTensor(
                f'a tensor on {printable(storage.name)}: save x.dequantize(), or x.float()'
            )
        if not (
            isinstance(storage, np.ndarray)
            and isinstance(size, tuple)
            and isinstance(stride, tuple)
            and len(size) == len(stride) <= MAX_AXES
        ):
            raise Refused('damaged: a tensor without a storage, size or stride')
        if any(type(value) is not int for value in (offset, *size, *stride)):
            # Not printed: it may be endless.
            raise Refused('damaged: a tensor whose size, stride or offset is no integer')
        if not are_sizes(offset, *size, *stride):
            raise Refused(
                f'damaged: a tensor of size {printable(size)}, stride {printable(stride)}, offset '
                f'{printable(offset)}'
            )
        if 0 in size:
            return np.zeros(size, storage.dtype)
        last = offset + sum((n - 1) * s for n, s in zip(size, stride))
        if last >= storage.size:
            raise Refused(
                f'damaged: a tensor of size {size} reaches entry {last} of a storage that has '
                f'{storage.size}'
            )
        if math.prod(size) * storage.itemsize > limit:
            raise Refused(
                f'damaged: a tensor of size {size} takes more memory than its whole file, by '
                f'repeating {storage.size} entries'
            )
        if isinstance(metadata, dict) and (metadata.get('conj') or metadata.get('neg')):
            return UnreadTensor(
                'a lazily negated or conjugated tensor: save x.resolve_conj().resolve_neg()'
            )
        strides = tuple(s * storage.itemsize for s in stride)
        view = np.ndarray(
            size, storage.dtype, storage.view(np.uint8), offset * storage.itemsize, strides
        )
        view.flags.writeable = False
        return view

    def typed(storage, offset, size, stride, grad, hooks, dtype, metadata=None):
        kind = dtype.name.removeprefix('torch.') if isinstance(dtype, Opaque) else None
        if (
            kind not in DTYPES
            or not isinstance(storage, np.ndarray)
            or foreign
            and DTYPES[kind].itemsize > 1
        ):
            return UnreadTensor(f'a tensor of type {printable(kind)}: save x.float()')
        whole = storage.view(np.uint8)
        whole = whole[: whole.size - whole.size % DTYPES[kind].itemsize].view(DTYPES[kind])
        return tensor(whole, offset, size, stride, grad, hooks, metadata)

    def subclass(function, _kind, arguments, *_):
        call = calls.get(function.name) if isinstance(function, Opaque) else None
        if (
            call is None
            or call is subclass
            or not isinstance(arguments, tuple)
            or len(arguments) > MAX_KEY
        ):
            return UnreadTensor('a tensor of a class of its own: save x.as_subclass(torch.Tensor)')
        return call(*arguments)

    calls = {
        'torch.Size': lambda sizes=(): tuple(sizes) if isinstance(sizes, list) else sizes,
        'torch._utils._rebuild_tensor': tensor,
        'torch._utils._rebuild_tensor_v2': tensor,
        'torch._utils._rebuild_tensor_v3': typed,
        'torch._utils._rebuild_parameter': lambda data, *_: data,
        'torch._utils._rebuild_parameter_with_state': lambda data, *_: data,
        'torch._tensor._rebuild_from_type': subclass,
        'torch._tensor._rebuild_from_type_v2': subclass,
    }
    for name, reason in UNREAD.items():
        calls[f'torch._utils.{name}'] = lambda *_, reason=reason: UnreadTensor(reason)
    return calls
