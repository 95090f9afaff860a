"""Recognises checkpoint files by their content, and reads them into numpy arrays without torch.

Files may come from anywhere: every length in one is checked against the size of the file before any
memory is taken, and every failure is one line that says what the file is and what to do.
torch_file.py and safetensors_file.py read the formats.
"""

from __future__ import annotations

import errno
import os
import pathlib
import stat
from typing import Any

from fsar_jax.files import naming
from fsar_jax.messages import one_line, printable
from fsar_jax.weights.pickle_file import RESAVE, Refused
from fsar_jax.weights.safetensors_file import read_safetensors
from fsar_jax.weights.torch_file import LEGACY_MAGIC, read_legacy, read_zip

NEITHER = 'neither a PyTorch checkpoint nor safetensors'
READ_HERE = (
    'what is read here: .pth and .pt of torch.save(model.state_dict()), .safetensors, and .npz'
)

# First bytes → what the file is, and what to do.
FOREIGN = (
    (
        b'version https://git-lfs',
        'a Git LFS pointer, not the weights themselves: run `git lfs pull` where it was cloned, '
        'or download the file',
    ),
    (b'\x1f\x8b', 'compressed (gzip): unpack it with gunzip, and give what is inside'),
    (b'BZh', 'compressed (bzip2): unpack it with bunzip2, and give what is inside'),
    (b'\xfd7zXZ\x00', 'compressed (xz): unpack it with unxz, and give what is inside'),
    (b'\x28\xb5\x2f\xfd', 'compressed (zstd): unpack it with unzstd, and give what is inside'),
    (b'7z\xbc\xaf\x27\x1c', 'a 7z archive: unpack it, and give the checkpoint inside'),
    (b'Rar!', 'a RAR archive: unpack it, and give the checkpoint inside'),
    (
        b'\x89HDF\r\n\x1a\n',
        'an HDF5 file (Keras): convert it to safetensors under the published names',
    ),
    (b'\x93NUMPY', 'one numpy array (.npy), without names: save a dict of arrays as safetensors'),
    (b'GGUF', 'a GGUF file: convert it to safetensors under the published names'),
    (b'%PDF', 'a PDF: give the checkpoint'),
)
PAGES = (b'<!doctype', b'<html', b'<?xml', b'<head')


def read_torch(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a checkpoint file, with tensors as numpy arrays.

    Args:
      path: a .pth or .pt file in torch's zip or legacy format, .safetensors or .npz. The content
        decides, not the suffix.

    Returns:
      What was saved: dicts, lists, tuples, numbers and strings around arrays, which may be views of
      shared memory (bfloat16 and float8 are types of ml_dtypes). Any other object is an `Opaque`,
      which keeps its name and nothing else; a tensor that cannot be read is an `UnreadTensor`.

    Raises:
      FileNotFoundError, IsADirectoryError, OSError: with the path.
      ValueError: one line. The file is damaged or of another kind, or its pickle names something
        that acts; nothing in it is run.
    """
    path = pathlib.Path(path)
    shown = printable(path, 1000)
    try:
        about = path.stat()
    except FileNotFoundError:
        raise FileNotFoundError(f'{shown}: no such checkpoint file') from None
    if stat.S_ISDIR(about.st_mode):
        raise IsADirectoryError(
            f'{shown}: a folder, not a checkpoint file: name the .pth or .safetensors file in it'
        )
    if not stat.S_ISREG(about.st_mode):
        raise ValueError(
            f'{shown}: a pipe, socket or device, not a checkpoint file: copy its content to a '
            'file, and give that'
        )
    try:
        with naming(path), path.open('rb') as file:
            return _read(file, about.st_size)
    except Refused as error:
        reason = str(error)
    except OSError as error:
        # EINVAL: a damaged zip file places a part before its start.
        if error.errno not in (None, errno.EINVAL):
            raise
        reason = _damaged(error)
    except MemoryError:
        reason = f'not enough memory to read its {about.st_size:,} bytes'
    except Exception as error:  # a damaged file can fail in any way
        reason = _damaged(error)
    raise ValueError(f'{shown}: {reason}')


def _damaged(error):
    reason = f'{type(error).__name__} {printable(one_line(error))}'
    return f'truncated, damaged, or {NEITHER} ({reason}): download or copy it again'


def _read(file, size):
    head = file.read(512)
    file.seek(0)
    if not head:
        raise Refused('truncated: the file is empty (0 bytes): download or copy it again')
    for start, reason in FOREIGN:
        if head.startswith(start):
            raise Refused(f'{NEITHER} but {reason}')
    if head.startswith(b'PK\x03\x04'):
        return read_zip(file, size)
    if head[8:9] == b'{':
        return read_safetensors(file, size)
    if head[:1] == b'\x80' and head[1:2] <= b'\x05' or head.startswith(b'L%d' % LEGACY_MAGIC):
        return read_legacy(file, size)
    text = head.lstrip(b'\xef\xbb\xbf \t\r\n').lower()
    if text.startswith(PAGES):
        raise Refused(
            f'{NEITHER} but a web page: the download gave a page (a login, a warning, "not '
            'found") in place of the file: open the address in a browser, and save the file '
            'itself'
        )
    if text.startswith(b'{'):
        raise Refused(
            f'{NEITHER} but JSON: of a checkpoint in parts this is the index; give one file with '
            'all weights'
        )
    if head[257:262] == b'ustar':
        raise Refused(
            f'{NEITHER} but a tar archive: unpack it and give the checkpoint inside; where torch '
            f'itself wrote it, before version 0.1.10: {RESAVE}'
        )
    if head[:1] == b'\x08' and head[2:3] in (b'\x12', b'\x1a', b':'):
        raise Refused(
            f'{NEITHER} but ONNX, it seems: give the checkpoint that it was exported from'
        )
    raise Refused(f'truncated, damaged, or {NEITHER}; {READ_HERE}')
