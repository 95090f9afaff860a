"""Checkpoint files: both torch formats and safetensors; hostile, damaged and foreign files."""

import bz2
import collections
import gzip
import lzma
import os
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
import safetensors.numpy
from torch_files import BFLOAT16, WRITERS, Call, Storage, Tensor, write_legacy, write_zip

from fsar_jax.weights import pick_state_dict, read_torch

ARRAYS = {
    'float32': np.linspace(-2, 3, 24, dtype=np.float32).reshape(2, 3, 4),
    'float64': np.array([1e-300, np.pi]),
    'half': np.array([[0.5, -1.25]], np.float16),
    'bfloat16': np.array([1.5, -2.25, 3e30], BFLOAT16),
    'int64': np.array([-(2**40), 7]),
    'bool': np.array([True, False, True]),
    'scalar': np.array(12345, np.int64),
    'empty': np.zeros((0, 3), np.float32),
}


@pytest.fixture(params=WRITERS)
def write(request):
    return WRITERS[request.param]


def assert_same(found, expected, name):
    assert found.dtype == expected.dtype, name
    assert found.shape == expected.shape, name
    np.testing.assert_array_equal(
        found.astype(np.float64), expected.astype(np.float64), err_msg=name
    )


def test_tensors_of_every_type_come_back(write, tmp_path):
    path = tmp_path / 'weights.pth'
    write(path, collections.OrderedDict((name, Tensor(array)) for name, array in ARRAYS.items()))
    content = read_torch(path)
    assert list(content) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert_same(content[name], array, name)


def test_strides_offsets_and_shared_storages(write, tmp_path):
    values = np.arange(24, dtype=np.float32)
    shared = Storage(values)
    path = tmp_path / 'weights.pth'
    write(
        path,
        {
            'rows': Tensor(shared, (4, 6), (6, 1)),
            'transposed': Tensor(shared, (6, 4), (1, 6)),
            'inner': Tensor(shared, (2, 3), (12, 2), 5),
            'expanded': Tensor(shared, (3, 2), (0, 1), 22),
        },
    )
    content = read_torch(path)
    rows = values.reshape(4, 6)
    for name, expected in {
        'rows': rows,
        'transposed': rows.T,
        'inner': np.stack([values[5:11:2], values[17:23:2]]),
        'expanded': np.tile(values[22:], (3, 1)),
    }.items():
        assert_same(content[name], expected, name)
    assert np.shares_memory(content['rows'], content['transposed'])


def test_nested_training_checkpoint(write, tmp_path):
    path = tmp_path / 'checkpoint.pt'
    state = collections.OrderedDict(weight=Tensor(ARRAYS['float32']))
    optimizer = {
        'state': {0: {'momentum_buffer': None}},
        'param_groups': [{'lr': 1e-3, 'betas': (0.9, 0.999)}],
    }
    write(
        path,
        {
            'iteration': 75000,
            'model_state_dict': state,
            'optimizer_state_dict': optimizer,
            'scheduler': {'milestones': collections.Counter({1000: 1})},
        },
    )
    content = read_torch(path)
    assert content['iteration'] == 75000
    assert content['scheduler'] == {'milestones': {1000: 1}}
    assert content['optimizer_state_dict'] == optimizer
    assert_same(pick_state_dict(content, path)['weight'], ARRAYS['float32'], 'weight')


@pytest.mark.parametrize('byteorder', ['little', 'big', None])
def test_byte_order_of_zip_files(byteorder, tmp_path):
    path = tmp_path / 'weights.pth'
    write_zip(
        path, {name: Tensor(array) for name, array in ARRAYS.items()}, byteorder, root='any name'
    )
    content = read_torch(path)
    for name, array in ARRAYS.items():
        assert_same(content[name], array, name)


def test_safetensors(tmp_path):
    path = tmp_path / 'weights.safetensors'
    safetensors.numpy.save_file(ARRAYS, path)
    content = read_torch(path)
    assert set(content) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert_same(content[name], array, name)


HOSTILE = {
    'os.system': lambda marker: Call('os', 'system', f'touch {marker}'),
    'posix.system': lambda marker: Call('posix', 'system', f'touch {marker}'),
    'builtins.eval': lambda marker: Call('builtins', 'eval', f'open({str(marker)!r}, "w")'),
    '__builtin__.getattr': lambda marker: Call('__builtin__', 'getattr', 1, 'real'),
    'torch.storage._load_from_bytes': lambda marker: Call('torch.storage', '_load_from_bytes', b''),
    'torch.load': lambda marker: Call('torch', 'load', str(marker)),
    'pathlib.Path.touch': lambda marker: Call('pathlib', 'Path.touch', str(marker)),
    'collections.OrderedDict.fromkeys': lambda marker: Call(
        'collections', 'OrderedDict.fromkeys', [1]
    ),
}


@pytest.mark.parametrize('name', HOSTILE)
def test_hostile_pickle_is_refused_by_name_and_runs_nothing(write, name, tmp_path):
    marker, path = tmp_path / 'executed', tmp_path / 'weights.pth'
    write(path, {'weight': Tensor(ARRAYS['float32']), 'extra': HOSTILE[name](marker)})
    with pytest.raises(ValueError) as error:
        read_torch(path)
    assert str(error.value).startswith(
        f"{path}: refused, nothing was run: its pickle names '{name}', "
        'which is neither a tensor nor a plain container: '
    )
    assert str(error.value).endswith(
        'torch.save(model.state_dict(), "weights.pth"), and give that file'
    )
    assert '\n' not in str(error.value)
    assert not marker.exists()


def test_the_hostile_file_would_have_run(tmp_path):
    """The test above can fail: Python's own unpickler runs the same bytes."""
    marker, path = tmp_path / 'executed', tmp_path / 'weights.pth'
    write_zip(path, {'extra': HOSTILE['os.system'](marker)})
    with zipfile.ZipFile(path) as archive:
        pickle.loads(archive.read('archive/data.pkl'))
    assert marker.exists()


def test_every_truncation_is_a_one_line_error(write, tmp_path):
    whole, cut = tmp_path / 'weights.pth', tmp_path / 'cut.pth'
    write(whole, {'a': Tensor(ARRAYS['float32']), 'b': Tensor(ARRAYS['int64'])})
    data = whole.read_bytes()
    for length in [0, 1, 8, 9, 20, *range(30, len(data), 37), len(data) - 1]:
        cut.write_bytes(data[:length])
        with pytest.raises(ValueError, match='truncated|damaged') as error:
            read_torch(cut)
        assert str(error.value).startswith(f'{cut}: ')
        assert '\n' not in str(error.value)


@pytest.mark.parametrize(
    'tensor, message',
    [
        (
            lambda s: Tensor(s, (5, 6), (6, 1)),
            r'size \(5, 6\) reaches entry 29 of a storage that has 24',
        ),
        (lambda s: Tensor(s, (2,), (1,), 23), 'reaches entry 24 of a storage that has 24'),
        (lambda s: Tensor(s, (2,), (-1,), 5), 'damaged: a tensor of size'),
        (lambda s: Tensor(s, (2,), (1,), -2), 'damaged: a tensor of size'),
        (lambda s: Tensor(s, (2, 2), (1,)), 'damaged: a tensor without'),
    ],
)
def test_tensor_outside_its_storage_is_refused(write, tensor, message, tmp_path):
    path = tmp_path / 'weights.pth'
    write(path, {'a': tensor(Storage(np.arange(24, dtype=np.float32)))})
    with pytest.raises(ValueError, match=message):
        read_torch(path)


def test_files_that_are_no_checkpoints(tmp_path):
    with pytest.raises(FileNotFoundError, match='no such checkpoint file'):
        read_torch(tmp_path / 'absent.pth')
    text = tmp_path / 'notes.pth'
    text.write_text('these are not weights, only words\n')
    with pytest.raises(ValueError, match='neither a PyTorch checkpoint nor safetensors'):
        read_torch(text)
    archive = tmp_path / 'frames.zip'
    with zipfile.ZipFile(archive, 'w') as file:
        file.writestr('a.jpg', b'')
    with pytest.raises(ValueError, match='a zip file without data.pkl'):
        read_torch(archive)
    plain = tmp_path / 'plain.pkl'
    plain.write_bytes(pickle.dumps({'a': 1}, protocol=2))
    with pytest.raises(ValueError, match='neither a PyTorch checkpoint nor safetensors'):
        read_torch(plain)
    broken = tmp_path / 'broken.safetensors'
    safetensors.numpy.save_file(ARRAYS, broken)
    broken.write_bytes(broken.read_bytes()[:-3])
    with pytest.raises(ValueError, match='truncated, damaged') as error:
        read_torch(broken)
    assert '\n' not in str(error.value)


FOREIGN = {
    'pointer': (
        b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n',
        'a Git LFS pointer, not the weights themselves: run `git lfs pull`',
    ),
    'page': (
        b'\n<!DOCTYPE html><html><head><title>Google Drive - Virus scan warning',
        'a web page: the download gave a page',
    ),
    'page after a mark': (b'\xef\xbb\xbf<HTML>', 'a web page'),
    'index': (
        b'{"metadata": {"total_size": 1}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}',
        'JSON: of a checkpoint in parts this is the index',
    ),
    'gzip': (gzip.compress(b'PK'), 'compressed (gzip): unpack it with gunzip'),
    'bzip2': (bz2.compress(b'PK'), 'compressed (bzip2)'),
    'xz': (lzma.compress(b'PK'), 'compressed (xz)'),
    'zstd': (b'\x28\xb5\x2f\xfd\x00', 'compressed (zstd)'),
    'hdf5': (b'\x89HDF\r\n\x1a\n' + bytes(600), 'an HDF5 file (Keras)'),
    'numpy': (b'\x93NUMPY\x01\x00', 'one numpy array (.npy), without names'),
    'onnx': (
        b'\x08\x07\x12\x07pytorch\x1a\x05' + bytes(50),
        'ONNX, it seems: give the checkpoint that it was exported from',
    ),
    'gguf': (b'GGUF\x03\x00\x00\x00', 'a GGUF file'),
}


@pytest.mark.parametrize('name', FOREIGN)
def test_a_file_of_another_kind_is_named_with_what_to_do(name, tmp_path):
    path, (data, message) = tmp_path / 'weights.pth', FOREIGN[name]
    path.write_bytes(data)
    with pytest.raises(ValueError) as error:
        read_torch(path)
    assert str(error.value).startswith(
        f'{path}: neither a PyTorch checkpoint nor safetensors but '
    ) and message in str(error.value)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
def test_arrays_of_numpy(tmp_path, save):
    arrays = {
        'block_0/kernel': np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32),
        'by_column': np.asfortranarray(np.arange(6, dtype=np.float16).reshape(2, 3)),
        'big_endian': np.arange(3, dtype='>f4'),
        'empty': np.zeros((0, 2)),
        'scalar': np.array(7),
    }
    save(tmp_path / 'weights.npz', **arrays)
    found = read_torch(tmp_path / 'weights.npz')
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype.newbyteorder('=')


def test_damaged_arrays_of_numpy(tmp_path):
    path = tmp_path / 'weights.npz'
    np.savez(path, pickled=np.array([{}], dtype=object), fine=np.ones(2))
    found = read_torch(path)
    assert type(found['pickled']).__name__ == 'UnreadTensor' and found['fine'].sum() == 2
    np.savez(path, a=np.ones((2, 3)))
    with zipfile.ZipFile(path) as archive:
        part = archive.read('a.npy')
    for changed in (part.replace(b'(2, 3)', b'(9, 3)'), part.replace(b'(2, 3)', b'(-2,-3)'[:6])):
        with zipfile.ZipFile(path, 'w') as archive:
            archive.writestr('a.npy', changed)
        with pytest.raises(ValueError, match='damaged'):
            read_torch(path)
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('a.npy', part + bytes(2**22))
    with pytest.raises(ValueError, match='more than 16 times as much'):
        read_torch(path)
    np.savez(path, a=np.ones((2, 300)))
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match='truncated'):
        read_torch(path)


def test_archives_of_another_kind(tmp_path):
    path = tmp_path / 'weights.pth'
    with tarfile.open(path, 'w') as archive:
        archive.addfile(tarfile.TarInfo('storages'))
    with pytest.raises(
        ValueError,
        match='a tar archive: unpack it .* where torch itself wrote it, before version 0.1.10: '
        'where it loads, save',
    ):
        read_torch(path)
    for members, message in (
        (['best/model.pth', 'readme'], 'it holds best/model.pth: unpack it'),
        (
            ['a/data.pkl', 'a/constants.pkl', 'a/code/x.py'],
            r'a TorchScript program \(torch.jit.save\), not a state dict: with torch',
        ),
    ):
        with zipfile.ZipFile(path, 'w') as archive:
            for member in members:
                archive.writestr(member, b'\x80\x02}.')
        with pytest.raises(ValueError, match=message):
            read_torch(path)


def test_paths_that_are_no_files(tmp_path):
    with pytest.raises(
        IsADirectoryError,
        match='a folder, not a checkpoint file: name the .pth or .safetensors file in it',
    ):
        read_torch(tmp_path)
    pipe = tmp_path / 'pipe.pth'
    os.mkfifo(pipe)
    for path in (pipe, '/dev/zero'):
        with pytest.raises(
            ValueError, match=f'^{path}: a pipe, socket or device, not a checkpoint file'
        ):
            read_torch(path)
    empty = tmp_path / 'empty.pth'
    empty.touch()
    with pytest.raises(
        ValueError, match=r'truncated: the file is empty \(0 bytes\): download or copy it again'
    ):
        read_torch(empty)
    with pytest.raises(OSError, match='File name too long'):
        read_torch(tmp_path / ('x' * 300))


def test_a_flipped_bit_in_a_zip_file_is_found(tmp_path):
    path = tmp_path / 'weights.pth'
    write_zip(path, {'a': Tensor(np.full(100, 1.5, np.float32))})
    data = bytearray(path.read_bytes())
    data[data.index(np.full(100, 1.5, np.float32).tobytes()) + 50] ^= 4
    path.write_bytes(data)
    with pytest.raises(
        ValueError,
        match="truncated or damaged: Bad CRC-32 for file 'archive/data/0': download or copy it "
        "again",
    ):
        read_torch(path)


def test_legacy_files_of_protocol_1_and_of_another_byte_order(tmp_path):
    path = tmp_path / 'weights.pth'
    write_legacy(path, {'a': Tensor(np.arange(3.0)), 'b': Tensor(np.arange(3, dtype=np.complex64))})
    data = path.read_bytes()
    swapped = data.replace(b'little_endianq\x02\x88', b'little_endianq\x02\x89')
    assert swapped != data
    for array in (np.arange(3.0), np.arange(3, dtype=np.complex64)):
        swapped = swapped.replace(
            b'\x03' + bytes(7) + array.tobytes(), bytes(7) + b'\x03' + array.byteswap().tobytes()
        )
    path.write_bytes(swapped)
    content = read_torch(path)
    np.testing.assert_array_equal(content['a'], np.arange(3.0))
    np.testing.assert_array_equal(content['b'], np.arange(3))
    path.write_bytes(data.replace(b'little_endianq\x02\x88', b'little_endianq\x02N'))
    with pytest.raises(ValueError, match='it does not say its byte order'):
        read_torch(path)
    write_legacy(path, {'a': Tensor(np.arange(3.0)), 'bool': True, 'epoch': 2**70}, protocol=1)
    content = read_torch(path)
    assert content.pop('a').tolist() == [0, 1, 2]
    assert content == {'bool': True, 'epoch': 2**70}


def test_a_huge_storage_claim_is_refused_before_memory_is_taken(tmp_path):
    path = tmp_path / 'weights.pth'
    write_legacy(path, {'a': Tensor(ARRAYS['float32'])})
    data = path.read_bytes()
    claim = data.index(b'cpu') + data[data.index(b'cpu') :].index(b'K\x18')  # BININT1 24 entries
    path.write_bytes(data[:claim] + b'J\xff\xff\xff\x7f' + data[claim + 2 :])  # BININT 2147483647
    with pytest.raises(ValueError, match='2147483647 entries is larger than the file'):
        read_torch(path)


@pytest.mark.parametrize(
    'content, message',
    [
        (
            {'epoch': 3, 'weights': {}},
            'no state dict inside: its keys are epoch, weights; expected arrays by name, or one of',
        ),
        ([1], 'no state dict inside: it holds a list'),
        ({}, 'no state dict inside: it is empty'),
    ],
)
def test_no_state_dict_inside(content, message):
    with pytest.raises(ValueError, match=message):
        pick_state_dict(content, 'file.pth')


@pytest.mark.parametrize('key', ['model_state_dict', 'model_state', 'state_dict'])
def test_state_dict_is_found_under_the_usual_keys(key):
    assert pick_state_dict({'epoch': 1, key: {'a': np.ones(1)}}, 'file.pth').keys() == {'a'}
