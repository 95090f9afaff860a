"""Checkpoint files: both torch formats and safetensors; hostile, damaged and foreign files."""

import collections
import pickle
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
    'int64': np.array([-2 ** 40, 7]),
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
    np.testing.assert_array_equal(found.astype(np.float64), expected.astype(np.float64), err_msg=name)


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
    write(path, {'rows': Tensor(shared, (4, 6), (6, 1)), 'transposed': Tensor(shared, (6, 4), (1, 6)),
                 'inner': Tensor(shared, (2, 3), (12, 2), 5), 'expanded': Tensor(shared, (3, 2), (0, 1), 22)})
    content = read_torch(path)
    rows = values.reshape(4, 6)
    for name, expected in {'rows': rows, 'transposed': rows.T, 'inner': np.stack([values[5:11:2], values[17:23:2]]),
                           'expanded': np.tile(values[22:], (3, 1))}.items():
        assert_same(content[name], expected, name)
    assert np.shares_memory(content['rows'], content['transposed'])


def test_nested_training_checkpoint(write, tmp_path):
    path = tmp_path / 'checkpoint.pt'
    state = collections.OrderedDict(weight=Tensor(ARRAYS['float32']))
    optimizer = {'state': {0: {'momentum_buffer': None}}, 'param_groups': [{'lr': 1e-3, 'betas': (0.9, 0.999)}]}
    write(path, {'iteration': 75000, 'model_state_dict': state, 'optimizer_state_dict': optimizer,
                 'scheduler': {'milestones': collections.Counter({1000: 1})}})
    content = read_torch(path)
    assert content['iteration'] == 75000
    assert content['scheduler'] == {'milestones': {1000: 1}}
    assert content['optimizer_state_dict'] == optimizer
    assert_same(pick_state_dict(content, path)['weight'], ARRAYS['float32'], 'weight')


@pytest.mark.parametrize('byteorder', ['little', 'big', None])
def test_byte_order_of_zip_files(byteorder, tmp_path):
    path = tmp_path / 'weights.pth'
    write_zip(path, {name: Tensor(array) for name, array in ARRAYS.items()}, byteorder, root='any name')
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
    'collections.OrderedDict.fromkeys': lambda marker: Call('collections', 'OrderedDict.fromkeys', [1]),
}


@pytest.mark.parametrize('name', HOSTILE)
def test_hostile_pickle_is_refused_by_name_and_runs_nothing(write, name, tmp_path):
    marker, path = tmp_path / 'executed', tmp_path / 'weights.pth'
    write(path, {'weight': Tensor(ARRAYS['float32']), 'extra': HOSTILE[name](marker)})
    with pytest.raises(ValueError) as error:
        read_torch(path)
    assert str(error.value).startswith(f"{path}: refused, nothing was run: its pickle names '{name}', "
                                       'which is neither a tensor nor a plain container: ')
    assert str(error.value).endswith('torch.save(model.state_dict(), "weights.pth"), and give that file')
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


@pytest.mark.parametrize('tensor, message', [
    (lambda s: Tensor(s, (5, 6), (6, 1)), r'size \(5, 6\) reaches entry 29 of a storage that has 24'),
    (lambda s: Tensor(s, (2,), (1,), 23), 'reaches entry 24 of a storage that has 24'),
    (lambda s: Tensor(s, (2,), (-1,), 5), 'damaged: a tensor of size'),
    (lambda s: Tensor(s, (2,), (1,), -2), 'damaged: a tensor of size'),
    (lambda s: Tensor(s, (2, 2), (1,)), 'damaged: a tensor without'),
])
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


def test_a_huge_storage_claim_is_refused_before_memory_is_taken(tmp_path):
    path = tmp_path / 'weights.pth'
    write_legacy(path, {'a': Tensor(ARRAYS['float32'])})
    data = path.read_bytes()
    claim = data.index(b'cpu') + data[data.index(b'cpu'):].index(b'K\x18')          # BININT1 24 entries
    path.write_bytes(data[:claim] + b'J\xff\xff\xff\x7f' + data[claim + 2:])        # BININT 2147483647
    with pytest.raises(ValueError, match='2147483647 entries is larger than the file'):
        read_torch(path)


@pytest.mark.parametrize('content, message', [
    ({'epoch': 3, 'weights': {}}, 'no state dict inside: its keys are epoch, weights; expected arrays by name, or one of'),
    ([1], 'no state dict inside: it holds a list'),
    ({}, 'no state dict inside: it is empty'),
])
def test_no_state_dict_inside(content, message):
    with pytest.raises(ValueError, match=message):
        pick_state_dict(content, 'file.pth')


@pytest.mark.parametrize('key', ['model_state_dict', 'model_state', 'state_dict'])
def test_state_dict_is_found_under_the_usual_keys(key):
    assert pick_state_dict({'epoch': 1, key: {'a': np.ones(1)}}, 'file.pth').keys() == {'a'}
