"""Files made to harm: each is one line, at once, in little memory, and nothing of it is run."""

import contextlib
import json
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from torch_files import Storage, Tensor, write_legacy, write_pickle, write_zip

from fsar_jax.weights import load_backbone, pick_state_dict, read_torch
from fsar_jax.weights.pickle_file import MAX_DEPTH, MAX_OPCODES

TENSORS = b'ctorch._utils\n_rebuild_tensor_v2\n'
STORAGE = (
    b'(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ'
)


def refused(path):
    with pytest.raises(ValueError) as error:
        read_torch(path)
    message = str(error.value)
    assert message.startswith(f'{path}: ')
    assert message.isprintable() and len(message) < 1500
    return message.removeprefix(f'{path}: ')


@pytest.mark.parametrize('depth', [MAX_DEPTH + 1, 20_000, 1_000_000])
def test_a_key_nested_deep(depth, tmp_path):
    path = tmp_path / 'weights.pth'
    write_pickle(path, b'\x80\x02})' + b'\x85' * depth + b'K\x01s.')
    assert 'lie more than 200 deep within each other' in refused(path)


@pytest.mark.parametrize(
    'open_, close',
    [
        (b']', b'a'),
        (b'}N', b's'),
        (b'(', b't'),
        (b'(', b'l'),
        (b'ccollections\nOrderedDict\n)RN', b's'),
    ],
)
def test_values_nested_deep(open_, close, tmp_path):
    path = tmp_path / 'weights.pth'
    write_pickle(path, b'\x80\x02' + open_ * 20_000 + b'N' + close * 20_000 + b'.')
    assert 'lie more than 200 deep within each other' in refused(path)


def test_keys_that_are_tuples_of_tuples_or_long(tmp_path):
    path = tmp_path / 'weights.pth'
    for key in (b'NN\x86\x85', b'(' + b'N' * 17 + b't'):
        write_pickle(path, b'\x80\x02}' + key + b'K\x01s.')
        assert 'a dictionary key that is a deep or long tuple' in refused(path)
    write_pickle(path, b'\x80\x02}K\x01X\x01\x00\x00\x00a\x86K\x07s.')
    assert read_torch(path) == {(1, 'a'): 7}


def test_lists_of_the_same_list_stay_small(tmp_path):
    """2**100 leaves, 100 lists: nothing walks through them."""
    path = tmp_path / 'weights.pth'
    write_pickle(path, b'\x80\x02]q\x00' + b'0]h\x00ah\x00aq\x00' * 100 + b'.')
    found = read_torch(path)
    for _ in range(100):
        assert len(found) == 2 and found[0] is found[1]
        found = found[0]


BOMB = b']q\x00' + b'0]h\x00ah\x00aq\x00' * 100  # its repr has 2**100 parts


@pytest.mark.parametrize(
    'data, message',
    [
        (
            TENSORS + b'(' + STORAGE + b'K\x00(' + BOMB + b't(K\x01ttR',
            'a tensor whose size, stride or offset is no integer',
        ),
        (STORAGE.replace(b'K\x01', BOMB), "the storage '0' does not say its size"),
        (BOMB + b'0}h\x00Ns', None),
        (BOMB + b'0}h\x00\x85Ns', None),
        (BOMB + b'0cos\nsystem\nh\x00\x85R', "its pickle names 'os.system'"),
        (TENSORS + b'h\x00'.join([b'(' + BOMB, b'NNtR']), 'a tensor without a storage'),
    ],
)
def test_no_message_prints_a_list_of_lists_of_lists(data, message, tmp_path):
    path = tmp_path / 'weights.pth'
    write_pickle(path, b'\x80\x02' + data + b'.', {'data/0': bytes(4)})
    if message:
        assert message in refused(path)
    else:
        with pytest.raises(ValueError, match='no state dict inside: its keys are ') as error:
            pick_state_dict(read_torch(path), path)
        assert len(str(error.value)) < 1500


def test_long_names_many_times_take_neither_time_nor_memory(tmp_path):
    path, name = tmp_path / 'weights.pth', b'X' + struct.pack('<I', 2**20) + b'a' * 2**20
    write_pickle(path, b'\x80\x04' + name + b'q\x000(' + b'h\x00h\x00\x93' * 100_000 + b't.')
    tracemalloc.start()
    try:
        assert "its pickle names 'aaa" in refused(path)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_the_state_of_a_dict_sets_nothing(tmp_path):
    path = tmp_path / 'weights.pth'
    state = b'}X\x03\x00\x00\x00getNsb'
    write_pickle(
        path, b'\x80\x02ccollections\nOrderedDict\n)R' + state + b'X\x01\x00\x00\x00aK\x01s.'
    )
    assert read_torch(path) == {'a': 1}


@pytest.mark.parametrize(
    'data, message',
    [
        (b'\x80\x02Nr\x00\x00\x00\x10.', 'a memo index of 268,435,456 in a file of'),
        (b'\x80\x02Nr\xff\xff\xff\xff.', 'a memo index of 4,294,967,295'),
        (
            b'\x80\x02Np' + b'9' * 4000 + b'\n.',
            'a memo index of 9,999,999,999,999,999,999,999,999,999,99… in a file of',
        ),
        (b'\x80\x02Np-1\n.', 'a memo index of -1 in a file of'),
        (b'\x80\x02h\x05.', 'asks for memo 5, which it never set'),
        (
            b'\x80\x02g' + b'9' * 4000 + b'\n.',
            'asks for memo 9,999,999,999,999,999,999,999,999,999,99…, which it never set',
        ),
        (
            b'\x80\x04\x8e' + struct.pack('<Q', 2**60) + b'.',
            'a value of 1,152,921,504,606,846,976 bytes',
        ),
        (
            b'\x80\x04\x8d' + struct.pack('<Q', 2**63) + b'.',
            'a value of 9,223,372,036,854,775,808 bytes',
        ),
        (b'\x80\x05\x96' + struct.pack('<Q', 2**40) + b'.', 'a value of 1,099,511,627,776 bytes'),
        (b'\x80\x02X\xff\xff\xff\x7f.', 'a value of 2,147,483,647 bytes'),
        (b'\x80\x02T\xff\xff\xff\xff.', 'a value of -1 bytes'),
        (b'\x80\x02\x8b\xff\xff\xff\x7f.', 'an integer of 2,147,483,647 bytes'),
        (
            b'\x80\x04\x95' + struct.pack('<Q', 2**60) + b'N.',
            'a frame of 1,152,921,504,606,846,976 bytes',
        ),
        (b'\x80\x09N.', 'a pickle of protocol 9'),
        (b'\x80\x02NN.', 'ends before its object is whole'),
        (b'\x80\x02R.', 'takes from an empty stack'),
        (b'\x80\x02t.', 'without a mark'),
        (b'\x80\x02NNR.', 'makes an object without arguments'),
        (b'\x80\x02N)R.', 'calls what is no name'),
        (b'\x80\x02}(Nu.', 'a key without a value'),
        (b'\x80\x02NNa.', 'appends to what is no list'),
        (b'\x80\x02NNNs.', 'sets items of what is no dict'),
        (b'\x80\x02\x82\x01.', "b'\\x82' is no opcode of a pickle that torch writes"),
        (b'\x80\x02P0\n.', "b'P' is no opcode"),
        (b'\x80\x02NQ.', 'refers to what is not a tensor storage'),
        (
            b'\x80\x02' + TENSORS + b'(' + STORAGE + b'K\x00tR.',
            "'torch._utils._rebuild_tensor_v2' with 2 arguments",
        ),
        (b'\x80\x02' + TENSORS + b'(' + b'N' * 1000 + b'tR.', 'with 1,000 arguments'),
        (b'\x80\x02ccollections\nOrderedDict\n(]NatR.', 'an OrderedDict that is not made of pairs'),
        (b'\x80\x04NN\x93.', 'names something that is no name'),
        (b'\x80\x02c' + b'a' * 10_000 + b'\nb\n.', 'a line of its pickle has no end'),
        (
            b'\x80\x02}\x8b\x80\x00\x00\x00' + b'\x7f' * 128 + b'Ns.',
            'a dictionary key that is a huge integer',
        ),
    ],
)
def test_impossible_pickles(data, message, tmp_path):
    path = tmp_path / 'weights.pth'
    write_pickle(path, data, {'data/0': bytes(4)})
    assert message in refused(path)


def test_more_steps_than_any_checkpoint_has(tmp_path, monkeypatch):
    monkeypatch.setattr('fsar_jax.weights.pickle_file.MAX_OPCODES', 1000)
    path = tmp_path / 'weights.pth'
    write_pickle(path, b'\x80\x02](' + b'N' * 1001 + b'e.')
    assert 'its pickle has more than 1,000 steps' in refused(path)
    pairs = (
        b'\x80\x02]('
        + b'NN\x86' * 150
        + b'eq\x000]'
        + b'(ccollections\nOrderedDict\nh\x00\x85Re' * 10
        + b'.'
    )
    write_pickle(path, pairs)  # 600 steps and ten copies of 150 items
    assert 'its pickle has more than 1,000 steps' in refused(path)
    assert MAX_OPCODES >= 1_000_000  # a list of ImageNet's indices beside the weights


def test_zeros_that_unpack_to_more_than_sixteen_times_the_file(tmp_path):
    path = tmp_path / 'weights.pth'
    write_pickle(path, b'\x80\x02}.', {'data/0': bytes(2**23)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 10_000
    message = refused(path)
    assert 'that unpacks to 8,388,6' in message and 'more than 16 times as much' in message


def test_a_deflated_file_within_reason_is_read(tmp_path):
    whole, packed = tmp_path / 'whole.pth', tmp_path / 'packed.pth'
    values = np.random.default_rng(0).random(1000, np.float32)
    write_zip(whole, {'a': Tensor(values)})
    with (
        zipfile.ZipFile(whole) as source,
        zipfile.ZipFile(packed, 'w', zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    np.testing.assert_array_equal(read_torch(packed)['a'], values)


@pytest.mark.parametrize('order', [b'Little', b'middle', b'', b'little\n', b'\x1b[31mbig'])
def test_a_byte_order_that_there_is_not(order, tmp_path):
    path = tmp_path / 'weights.pth'
    write_pickle(path, b'\x80\x02}.', byteorder=order)
    assert "neither 'little' nor 'big'" in refused(path)


def test_zip_tables_of_contents_that_lie(tmp_path):
    path = tmp_path / 'weights.pth'
    write_zip(path, {'a': Tensor(np.arange(1000, dtype=np.float32))})
    data = bytearray(path.read_bytes())
    entry = data.rindex(b'PK\x01\x02', 0, data.rindex(b'archive/data/0'))
    size = data.rindex(struct.pack('<II', 4000, 4000))
    assert entry < size
    data[size : size + 8] = struct.pack('<II', 2**31, 4000)
    path.write_bytes(data)
    assert 'the parts of this zip file overlap, or are larger than the file' in refused(path)
    data[size : size + 8] = struct.pack('<II', 4000, 2**31)
    path.write_bytes(data)
    assert 'that unpacks to 2,147,4' in refused(path)
    end = data.rindex(b'PK\x05\x06')
    data[end + 12 : end + 16] = struct.pack('<I', 2**31)
    path.write_bytes(data)
    assert 'whose table of contents takes 2,147,483,648 bytes' in refused(path)
    path.write_bytes(data[:end])
    assert 'whose end is missing' in refused(path)


@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_two_parts_of_one_name_and_two_checkpoints(tmp_path):
    path = tmp_path / 'weights.pth'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('a/data.pkl', b'\x80\x02}.')
        archive.writestr('a/data.pkl', b'\x80\x02].')
    assert 'holds two parts of one name' in refused(path)
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('a/data.pkl', b'\x80\x02}.')
        archive.writestr('b/data.pkl', b'\x80\x02].')
    assert 'several data.pkl' in refused(path)


def test_a_tensor_that_repeats_one_value_beyond_its_file(tmp_path):
    path = tmp_path / 'weights.pth'
    for write in (write_zip, write_legacy):
        write(path, {'a': Tensor(Storage(np.ones(1, np.float32)), (2**31,), (0,))})
        assert 'takes more memory than its whole file' in refused(path)
    write_zip(path, {'a': Tensor(Storage(np.ones(1, np.float32)), (0, 2**62, 2**62), (1, 1, 1))})
    refused(path)
    write_zip(path, {'a': Tensor(Storage(np.ones(1, np.float32)), (1,) * 33, (1,) * 33)})
    assert 'without a storage, size or stride' in refused(path)


def test_storages_larger_than_their_file(tmp_path):
    path = tmp_path / 'weights.pth'
    write_legacy(path, {str(i): Tensor(np.arange(1000, dtype=np.float32)) for i in range(3)})
    data = path.read_bytes()
    data = data.replace(b'M\xe8\x03', b'M\xd0\x07')  # 2000 entries each
    path.write_bytes(data)
    assert 'its storages together are larger than the file' in refused(path)
    write_pickle(
        path,
        b'\x80\x02' + STORAGE.replace(b'K\x01', b'\x8a\x09' + (2**63).to_bytes(9, 'little')) + b'.',
    )
    assert "the storage '0' of 9223372036854775808 entries is larger than the file" in refused(path)


@pytest.mark.parametrize(
    'header, data, message',
    [
        ({'a': {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 8]}}, 4, 'the place or shape'),
        ({'a': {'dtype': 'F32', 'shape': [2], 'data_offsets': [-8, 0]}}, 8, 'the place or shape'),
        (
            {'a': {'dtype': 'F32', 'shape': [2**40], 'data_offsets': [0, 8]}},
            8,
            'not those of its shape and type',
        ),
        (
            {
                'a': {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 8]},
                'b': {'dtype': 'F32', 'shape': [2], 'data_offsets': [4, 12]},
            },
            12,
            'the place or shape',
        ),
        (
            {'a': {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 8]}},
            12,
            '4 bytes after its last tensor',
        ),
        (
            {'a': {'dtype': 'F32', 'shape': [True, 2], 'data_offsets': [0, 8]}},
            8,
            'the place or shape',
        ),
        ({'a': 3}, 8, 'truncated, damaged'),
        ({'a': {}}, 8, 'truncated, damaged'),
    ],
)
def test_safetensors_whose_header_lies(header, data, message, tmp_path):
    path, header = tmp_path / 'weights.safetensors', json.dumps(header).encode()
    path.write_bytes(struct.pack('<Q', len(header)) + header + bytes(data))
    assert message in refused(path)


def test_safetensors_headers_that_are_too_long_too_deep_or_double(tmp_path):
    path = tmp_path / 'weights.safetensors'
    path.write_bytes(struct.pack('<Q', 2**60) + b'{}')
    assert 'a header of 1,152,921,504,606,846,976 bytes in a file of 10' in refused(path)
    deep = b'{"a":' + b'[' * 100_000
    path.write_bytes(struct.pack('<Q', len(deep)) + deep)
    assert 'truncated, damaged' in refused(path)
    entry = b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    double = b'{' + entry + b',' + entry + b'}'
    path.write_bytes(struct.pack('<Q', len(double)) + double + bytes(4))
    assert 'holds a name twice' in refused(path)


FORGED = 'conv1.weight\n\x1b[2K\rerror: none\u202e\x9b'


@pytest.mark.parametrize(
    'make',
    [
        lambda name: {'weights': name, FORGED: 1},
        lambda name: {
            'conv1.weight': Tensor(np.ones(1, np.float32)),
            FORGED: Tensor(np.ones(1, np.float32)),
        },
        lambda name: {'x' * 2**20: Tensor(np.ones(1, np.float32))},
        lambda name: {FORGED: {'conv1.weight': Tensor(np.ones(1, np.float32))}},
        lambda name: dict.fromkeys(map(str, range(3000)), Tensor(np.ones(1, np.float32))),
    ],
)
def test_names_from_a_file_cannot_forge_a_line(make, tmp_path):
    import fsar_jax

    config = fsar_jax.default_config().model.backbone
    with config.unlocked():
        config.update(name='resnet18', width=4)
    path = tmp_path / f'weights{FORGED[12:]}.pth'
    write_zip(path, make(None))
    with pytest.raises(ValueError) as error:
        load_backbone(path, config)
    assert str(error.value).isprintable() and len(str(error.value)) < 6000


def test_a_name_of_a_pickle_cannot_forge_a_line(tmp_path):
    path = tmp_path / 'weights.pth'
    name = 'system\nerror: none\x1b[2K' + 'x' * 2**20
    write_pickle(
        path, b'\x80\x04\x8c\x02os' + b'X' + struct.pack('<I', len(name)) + name.encode() + b'\x93.'
    )
    assert r"its pickle names 'os.system\nerror: none\x1b[2Kxxx" in refused(path)


def test_memory_stays_small(tmp_path):
    """What costs memory in Python's unpickler: memo indices of 2**28, sets of one byte each, a bomb
    of zeros."""
    write_pickle(tmp_path / 'memo.pth', b'\x80\x02Nr\x00\x00\x00\x10' * 100 + b'.')
    write_pickle(tmp_path / 'sets.pth', b'\x80\x04' + b'\x8f0' * 100_000 + b'N.')
    write_pickle(
        tmp_path / 'bomb.pth', b'\x80\x02}.', {'data/0': bytes(2**26)}, zipfile.ZIP_DEFLATED
    )
    tracemalloc.start()
    try:
        for path in sorted(tmp_path.glob('*.pth')):
            with contextlib.suppress(ValueError):
                read_torch(path)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()
