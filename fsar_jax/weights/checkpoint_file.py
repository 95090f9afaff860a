"""Reads .pth (zip and legacy) and .safetensors into numpy, without torch and without running a pickle's code.

Files come from anywhere: every length in one is compared with the size of the file before memory is taken, and every
failure is one line that says what the file is and what to do. pickle_file.py reads the pickles.
"""

from __future__ import annotations

import errno
import io
import json
import math
import pathlib
import stat
import sys
from typing import Any
import zipfile

import ml_dtypes
import numpy as np

from fsar_jax.files import naming
from fsar_jax.messages import listed, one_line, printable
from fsar_jax.weights.pickle_file import RESAVE, Opaque, Refused, UnreadTensor, read_pickle

# Types of torch (torch.float32), of its storages (torch.FloatStorage), and of safetensors (F32).
DTYPES = {name: np.dtype(getattr(ml_dtypes, name, name)) for name in (
    'float32', 'float64', 'float16', 'bfloat16', 'int64', 'int32', 'int16', 'int8', 'uint64', 'uint32', 'uint16', 'uint8', 'bool',
    'complex64', 'complex128', 'float8_e4m3fn', 'float8_e4m3fnuz', 'float8_e5m2', 'float8_e5m2fnuz')}
DTYPES |= {name: np.dtype(getattr(ml_dtypes, name)) for name in ('float8_e8m0fnu',) if hasattr(ml_dtypes, name)}
STORAGES = {'Float': 'float32', 'Double': 'float64', 'Half': 'float16', 'BFloat16': 'bfloat16', 'Long': 'int64', 'Int': 'int32', 'Short': 'int16',
            'Char': 'int8', 'Byte': 'uint8', 'Bool': 'bool', 'ComplexFloat': 'complex64', 'ComplexDouble': 'complex128',
            'QInt8': 'int8', 'QUInt8': 'uint8', 'QInt32': 'int32'}
STORAGE_DTYPES = {f'torch.{kind}Storage': DTYPES[name] for kind, name in STORAGES.items()}
STORAGE_DTYPES |= {f'{module}.UntypedStorage': DTYPES['uint8'] for module in ('torch', 'torch.storage')}
SAFETENSORS = {'F32': 'float32', 'F64': 'float64', 'F16': 'float16', 'BF16': 'bfloat16', 'I64': 'int64', 'I32': 'int32', 'I16': 'int16', 'I8': 'int8',
               'U64': 'uint64', 'U32': 'uint32', 'U16': 'uint16', 'U8': 'uint8', 'BOOL': 'bool', 'C64': 'complex64',
               'F8_E4M3': 'float8_e4m3fn', 'F8_E4M3FNUZ': 'float8_e4m3fnuz', 'F8_E5M2': 'float8_e5m2', 'F8_E5M2FNUZ': 'float8_e5m2fnuz',
               'F8_E8M0': 'float8_e8m0fnu'}
# Tensors that are not a view of one storage → what to do.
UNREAD = {'_rebuild_sparse_tensor': 'a sparse tensor: save x.to_dense()', '_rebuild_sparse_csr_tensor': 'a sparse tensor: save x.to_dense()',
          '_rebuild_qtensor': 'a quantized tensor: save x.dequantize()', '_rebuild_nested_tensor': 'a nested tensor: save a padded one',
          '_rebuild_meta_tensor_no_storage': 'a tensor on the meta device, which has no values',
          '_rebuild_wrapper_subclass': 'a tensor of a class of its own: save a plain one',
          '_rebuild_device_tensor_from_numpy': 'a tensor of an XLA or other device: save x.cpu()',
          '_rebuild_device_tensor_from_cpu_tensor': 'a tensor of an XLA or other device: save x.cpu()',
          '_rebuild_xla_tensor': 'a tensor of an XLA device: save x.cpu()'}

LEGACY_MAGIC = 0x1950a86a20f9469cfc6c
LEGACY_PROTOCOL = 1001
MAX_AXES = 32
MAX_HEADER = 2 ** 24        # of safetensors
MAX_DIRECTORY = 2 ** 24     # of a zip file: its table of contents
MAX_RATIO = 16              # of a zip file: unpacked over packed
SPARE = 2 ** 20             # bytes that a value may take beyond the size of its file

# First bytes → what the file is and what to do.
FOREIGN = (
    (b'version https://git-lfs', 'a Git LFS pointer, not the weights themselves: run `git lfs pull` where it was cloned, or download the file'),
    (b'\x1f\x8b', 'compressed (gzip): unpack it with gunzip, and give what is inside'),
    (b'BZh', 'compressed (bzip2): unpack it with bunzip2, and give what is inside'),
    (b'\xfd7zXZ\x00', 'compressed (xz): unpack it with unxz, and give what is inside'),
    (b'\x28\xb5\x2f\xfd', 'compressed (zstd): unpack it with unzstd, and give what is inside'),
    (b'7z\xbc\xaf\x27\x1c', 'a 7z archive: unpack it, and give the checkpoint inside'),
    (b'Rar!', 'a RAR archive: unpack it, and give the checkpoint inside'),
    (b'\x89HDF\r\n\x1a\n', 'an HDF5 file (Keras), not of PyTorch: convert it to safetensors under the published names'),
    (b'\x93NUMPY', 'one numpy array (.npy), without names: save a dict of arrays as safetensors'),
    (b'GGUF', 'a GGUF file, not of PyTorch: convert it to safetensors under the published names'),
    (b'%PDF', 'a PDF: give the checkpoint'),
)
HERE = 'what is read here: .pth and .pt of torch.save(model.state_dict()), and .safetensors'


def read_torch(path) -> dict[str, Any]:
    """The content of a checkpoint file, tensors as numpy arrays (views that may share memory; bfloat16 and float8 of ml_dtypes).

    Args:
      path: .pth, .pt in torch's zip or legacy format, or .safetensors; told apart by content.

    Returns:
      What was saved: dicts, lists, tuples, numbers and strings around arrays. Whatever else lies beside them is an `Opaque`, which
      has the name of the object and nothing of it; a tensor that cannot be read is an `UnreadTensor`.

    Raises:
      FileNotFoundError, IsADirectoryError, OSError: with the path.
      ValueError: one line: a damaged or foreign file, or a pickle that names what acts; nothing of it is run.
    """
    path = pathlib.Path(path)
    shown = printable(path, 1000)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise FileNotFoundError(f'{shown}: no such checkpoint file') from None
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f'{shown}: a folder, not a checkpoint file: name the .pth or .safetensors file in it')
    if not stat.S_ISREG(mode):
        raise ValueError(f'{shown}: a pipe, socket or device, not a checkpoint file: copy its content to a file, and give that')
    try:
        with naming(path), path.open('rb') as file:
            return _read(file, path.stat().st_size)
    except Refused as error:
        raise ValueError(f'{shown}: {error}') from None
    except OSError as error:
        if error.errno not in (None, errno.EINVAL):         # EINVAL: a damaged zip file places a part before its start
            raise
        raise ValueError(f'{shown}: {_unreadable(error)}') from None
    except MemoryError:
        raise ValueError(f'{shown}: not enough memory to read its {path.stat().st_size:,} bytes') from None
    except Exception as error:      # a damaged file can fail in any way
        raise ValueError(f'{shown}: {_unreadable(error)}') from None


def _unreadable(error):
    return ('truncated, damaged, or neither a PyTorch checkpoint nor safetensors '
            f'({type(error).__name__} {printable(one_line(error))}): download or copy it again')


def _read(file, size):
    head = file.read(512)
    file.seek(0)
    if not head:
        raise Refused('truncated: the file is empty (0 bytes): download or copy it again')
    for start, reason in FOREIGN:
        if head.startswith(start):
            raise Refused(f'neither a PyTorch checkpoint nor safetensors but {reason}')
    if head.startswith(b'PK\x03\x04'):
        return _read_zip(file, size)
    if head[8:9] == b'{':
        return _read_safetensors(file, size)
    if head[:1] == b'\x80' and head[1:2] <= b'\x05' or head.startswith(b'L%d' % LEGACY_MAGIC):
        return _read_legacy(file, size)
    text = head.lstrip(b'\xef\xbb\xbf \t\r\n').lower()
    if text.startswith((b'<!doctype', b'<html', b'<?xml', b'<head')):
        raise Refused('neither a PyTorch checkpoint nor safetensors but a web page: the download gave a page (a login, a warning, "not found") in '
                      'place of the file: open the address in a browser, and save the file itself')
    if text.startswith(b'{'):
        raise Refused('neither a PyTorch checkpoint nor safetensors but JSON: of a checkpoint in parts this is the index; give one file with all weights')
    if head[257:262] == b'ustar':
        raise Refused('neither a PyTorch checkpoint nor safetensors but a tar archive: unpack it and give the checkpoint inside; where torch itself wrote '
                      f'it, before version 0.1.10: {RESAVE}')
    if head[:1] == b'\x08' and head[2:3] in (b'\x12', b'\x1a', b':'):
        raise Refused('neither a PyTorch checkpoint nor safetensors but ONNX, it seems: give the checkpoint that it was exported from')
    raise Refused(f'truncated, damaged, or neither a PyTorch checkpoint nor safetensors; {HERE}')


# Tensors

def _integers(*values):
    return all(type(value) is int and 0 <= value < 2 ** 63 for value in values)


def _calls(limit, foreign):
    """{torch's function: ours}: tensors as read-only views of the flat arrays that stand for storages.

    limit: bytes that a tensor may take, however it repeats its storage. foreign: the file has the other byte order.
    """
    def tensor(storage, offset, size, stride, _grad=None, _hooks=None, metadata=None):
        if isinstance(storage, Opaque):
            return UnreadTensor(f'a tensor on {printable(storage.name)}: save x.dequantize(), or x.float()')
        if not (isinstance(storage, np.ndarray) and isinstance(size, tuple) and isinstance(stride, tuple)
                and len(size) == len(stride) <= MAX_AXES):
            raise Refused('damaged: a tensor without a storage, size or stride')
        if not _integers(offset, *size, *stride):
            raise Refused(f'damaged: a tensor of size {printable(size)}, stride {printable(stride)}, offset {printable(offset)}')
        if 0 in size:
            return np.zeros(size, storage.dtype)
        last = offset + sum((n - 1) * s for n, s in zip(size, stride))
        if last >= storage.size:
            raise Refused(f'damaged: a tensor of size {size} reaches entry {last} of a storage that has {storage.size}')
        if math.prod(size) * storage.itemsize > limit:
            raise Refused(f'damaged: a tensor of size {size} takes more memory than its whole file, by repeating {storage.size} entries')
        strides = tuple(s * storage.itemsize for s in stride)
        view = np.ndarray(size, storage.dtype, storage.view(np.uint8), offset * storage.itemsize, strides)
        view.flags.writeable = False
        if not isinstance(metadata, dict):
            return view
        if metadata.get('conj') or metadata.get('neg'):      # not yet applied
            return UnreadTensor('a lazily negated or conjugated tensor: save x.resolve_conj().resolve_neg()')
        return view

    def typed(storage, offset, size, stride, grad, hooks, dtype, metadata=None):
        kind = dtype.name.removeprefix('torch.') if isinstance(dtype, Opaque) else printable(dtype)
        if kind not in DTYPES or not isinstance(storage, np.ndarray) or foreign and DTYPES[kind].itemsize > 1:
            return UnreadTensor(f'a tensor of type {printable(kind)}: save x.float()')
        whole = storage.view(np.uint8)
        whole = whole[:whole.size - whole.size % DTYPES[kind].itemsize]
        return tensor(whole.view(DTYPES[kind]), offset, size, stride, grad, hooks, metadata)

    def subclass(function, _kind, arguments, *_):
        call = calls.get(function.name) if isinstance(function, Opaque) else None
        if call is None or call is subclass or not isinstance(arguments, tuple) or len(arguments) > 16:
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
        **{f'torch._utils.{name}': lambda *_, reason=reason: UnreadTensor(reason) for name, reason in UNREAD.items()},
    }
    return calls


def _storages(find, whole_size):
    """The function of persistent ids: find(key, dtype, entries) → flat array; or a part of it, as the legacy format can say."""
    def storage(identity):
        if isinstance(identity, tuple) and len(identity) == 4 and identity[0] == 'module' and isinstance(identity[1], Opaque):
            return identity[1]          # a class, beside its source
        if not (isinstance(identity, tuple) and len(identity) in (5, 6) and identity[0] == 'storage' and isinstance(identity[1], Opaque)
                and isinstance(identity[2], str)):
            raise Refused('refused, nothing was run: its pickle refers to what is not a tensor storage')
        _, kind, key, _, entries, *part = identity
        dtype = STORAGE_DTYPES.get(kind.name.replace('torch.cuda.', 'torch.'))
        if dtype is None:
            return kind
        if not _integers(entries) or entries * dtype.itemsize > whole_size:
            raise Refused(f"damaged: the storage '{printable(key)}' of {printable(entries)} entries is larger than the file")
        array = find(key, dtype, entries)
        if not part or part[0] is None:
            return array
        if not (isinstance(part[0], tuple) and len(part[0]) == 3 and _integers(*part[0][1:])):
            raise Refused(f"damaged: the storage '{printable(key)}' is a part of another, but not said which")
        _, offset, length = part[0]
        return array[offset:offset + length]
    return storage


def _native(data: np.ndarray, dtype: np.dtype, foreign: bool) -> np.ndarray:
    """Bytes as an array; foreign: they are in the other order than this machine's."""
    unit = dtype.itemsize // 2 if dtype.kind == 'c' else dtype.itemsize
    return data.view(f'u{unit}').byteswap().view(dtype) if foreign and unit > 1 else data.view(dtype)


# Formats

def _read_zip(file, size):
    """<root>/data.pkl, and one file <root>/data/<key> per storage."""
    if (claimed := _directory_size(file, size)) > MAX_DIRECTORY:
        raise Refused(f'damaged: a zip file whose table of contents takes {claimed:,} bytes')
    with zipfile.ZipFile(file) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if len(members) < len(archive.infolist()):
            raise Refused('damaged: a zip file that holds two parts of one name')
        roots = [name.removesuffix('data.pkl') for name in members if name.endswith('/data.pkl')]
        if len(roots) != 1:
            raise Refused(_no_checkpoint(members))
        root = roots[0]
        if root + 'constants.pkl' in members:
            raise Refused('a TorchScript program (torch.jit.save), not a state dict: with torch, '
                          'torch.save(torch.jit.load("this file").state_dict(), "weights.pth"), and give that file')
        if sum(member.compress_size for member in members.values()) > size:
            raise Refused('damaged: the parts of this zip file overlap, or are larger than the file')
        if (unpacked := sum(member.file_size for member in members.values())) > MAX_RATIO * size + SPARE:
            raise Refused(f'a zip file of {size:,} bytes that unpacks to {unpacked:,}, more than {MAX_RATIO} times as much: '
                          f'torch does not compress its files; if you trust it, {RESAVE}')

        def read(name):
            member = members[name]
            if member.flag_bits & 1:
                raise Refused('an encrypted zip file: unpack it, and zip it again without a password')
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise Refused('a zip file with a compression that torch does not use: unpack it, and zip it again without (zip -0)')
            try:
                data = archive.read(name)
            except zipfile.BadZipFile as error:
                raise Refused(f'truncated or damaged: {printable(error)}: download or copy it again (or, if it was written under '
                              'torch.serialization.set_crc32_options(False), save it without that)') from None
            if len(data) != member.file_size:
                raise Refused(f"damaged: '{printable(name)}' has {len(data):,} bytes instead of {member.file_size:,}")
            return data

        order = read(root + 'byteorder') if root + 'byteorder' in members else b'little'
        if order not in (b'little', b'big'):
            raise Refused(f"damaged: its byteorder is '{printable(order.decode('latin1'), 20)}', neither 'little' nor 'big'")
        foreign = order.decode() != sys.byteorder
        contents, arrays = {}, {}

        def find(key, dtype, entries):
            name = f'{root}data/{key}'
            if name not in members:
                raise Refused(f"damaged: the storage '{printable(key)}' is missing")
            if members[name].file_size != entries * dtype.itemsize:
                raise Refused(f"damaged: the storage '{printable(key)}' has {members[name].file_size} bytes instead of {entries * dtype.itemsize}")
            if key not in contents:
                contents[key] = np.frombuffer(read(name), np.uint8)
            if (key, dtype) not in arrays:
                arrays[key, dtype] = _native(contents[key], dtype, foreign)
            return arrays[key, dtype]

        whole = max(unpacked, size)
        pickled = read(root + 'data.pkl')
        return read_pickle(io.BytesIO(pickled), len(pickled), _calls(whole + SPARE, foreign), _storages(find, whole))


def _directory_size(file, size):
    """Bytes of the table of contents that the end of a zip file claims: reading it takes a dozen times as much memory."""
    start = max(0, size - 2 ** 16 - 22)
    file.seek(start)
    tail = file.read()
    file.seek(0)
    if (end := tail.rfind(b'PK\x05\x06')) < 0 or end + 22 > len(tail):
        raise Refused('truncated: a zip file, as torch writes, whose end is missing: download or copy it again')
    claimed = int.from_bytes(tail[end + 12:end + 16], 'little')
    big = tail.rfind(b'PK\x06\x06', 0, end)
    return max(claimed % 0xffffffff, int.from_bytes(tail[big + 40:big + 48], 'little') if big >= 0 else 0)


def _no_checkpoint(members):
    if any(name.endswith('/data.pkl') for name in members):
        return 'a zip file with several data.pkl, so not a PyTorch checkpoint'
    if members and all(name.endswith('.npy') for name in members):
        what = 'it is a .npz of numpy: save its arrays as safetensors, safetensors.numpy.save_file(dict(numpy.load(path)), "weights.safetensors")'
    elif any(name.endswith(('.pth', '.pt', '.safetensors')) for name in members):
        what = f'it holds {listed(name for name in members if name.endswith((".pth", ".pt", ".safetensors")))}: unpack it, and give that'
    else:
        what = f'it holds {listed(members, 5)}; {HERE}'
    return f'a zip file without data.pkl, so not a PyTorch checkpoint: {what}'


def _read_legacy(file, size):
    """Pickles one after the other: magic number, protocol, system facts, object, storage keys; then the storages."""
    if read_pickle(file, size) != LEGACY_MAGIC:
        raise Refused(f'a plain pickle, neither a PyTorch checkpoint nor safetensors: torch.save its state dict; {HERE}')
    if read_pickle(file, size) != LEGACY_PROTOCOL:
        raise Refused(f'a PyTorch checkpoint of another protocol than {LEGACY_PROTOCOL}: {RESAVE}')
    facts = read_pickle(file, size)
    little = facts.get('little_endian') if isinstance(facts, dict) else None
    if not isinstance(little, bool):
        raise Refused('damaged: it does not say its byte order, little_endian: True or False')
    foreign = little != (sys.byteorder == 'little')
    storages, total = {}, 0

    def find(key, dtype, entries):
        nonlocal total
        if key not in storages:
            total += entries * dtype.itemsize
            if total > size:
                raise Refused('damaged: its storages together are larger than the file')
            storages[key] = np.empty(entries, dtype)      # filled below: the data comes after the object
        whole = storages[key]
        if whole.nbytes != entries * dtype.itemsize or foreign and whole.dtype != dtype:
            raise Refused(f"damaged: the storage '{printable(key)}' has two sizes or types")
        return whole if whole.dtype == dtype else whole.view(dtype)

    content = read_pickle(file, size, _calls(size + SPARE, foreign), _storages(find, size))
    keys = read_pickle(file, size)
    if not (isinstance(keys, list) and all(isinstance(key, str) for key in keys)):
        raise Refused('damaged: the list of its storages is missing')
    for key in keys:
        entries = int.from_bytes(file.read(8), 'little' if little else 'big')
        if key not in storages or entries != storages[key].size:
            raise Refused(f"damaged: the storage '{printable(key)}' does not have the size that the tensors say")
        array = storages.pop(key)
        if file.readinto(array.view(np.uint8)) != array.nbytes:
            raise Refused('truncated: it ends inside a storage: download or copy it again')
        if foreign:
            array[:] = _native(array.view(np.uint8), array.dtype, foreign)
    if storages:
        raise Refused(f"damaged: the storage '{printable(next(iter(storages)))}' is missing")
    return content


def _read_safetensors(file, size):
    """Length of the header, the header (JSON: name → type, shape, place), and the data, which the tensors fill without gaps."""
    length = int.from_bytes(file.read(8), 'little')
    if length > min(size - 8, MAX_HEADER):
        raise Refused(f'truncated, damaged, or neither a PyTorch checkpoint nor safetensors: a header of {length:,} bytes in a file of {size:,}')
    header = json.loads(file.read(length).decode('utf-8'), object_pairs_hook=_without_duplicates)
    data = np.fromfile(file, np.uint8)
    header.pop('__metadata__', None)
    content, end = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]['data_offsets']):
        start, stop = entry['data_offsets']
        kind, shape = entry['dtype'], entry['shape']
        if not (_integers(start, stop, *shape) and start == end <= stop <= data.size and isinstance(kind, str) and len(shape) <= MAX_AXES):
            raise Refused(f"truncated, damaged: the place or shape of '{printable(name)}' is wrong, or the file ends before it: "
                          'download or copy it again')
        end = stop
        if (dtype := DTYPES.get(SAFETENSORS.get(kind))) is None:
            content[name] = UnreadTensor(f'a tensor of type {printable(kind)}: save it as float32 (F32)')
            continue
        if math.prod(shape) * dtype.itemsize != stop - start:
            raise Refused(f"truncated, damaged: '{printable(name)}' has {stop - start:,} bytes, and not those of its shape and type")
        content[name] = _native(data[start:stop], dtype, sys.byteorder != 'little').reshape(shape)
    if end != data.size:
        raise Refused(f'truncated, damaged: {data.size - end:,} bytes after its last tensor: download or copy it again')
    return content


def _without_duplicates(pairs):
    if len(found := dict(pairs)) < len(pairs):
        raise Refused('damaged: its header holds a name twice')
    return found
