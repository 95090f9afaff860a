"""Two small files that torch 2.13 itself wrote (tests/fixtures/write_torch_files.py), in its zip
and its legacy format."""

import pathlib

import numpy as np
import pytest

from fsar_jax.weights import read_torch
from fsar_jax.weights.pickle_file import Opaque, UnreadTensor
from fsar_jax.weights.tensor_types import DTYPES

FIXTURES = pathlib.Path(__file__).parents[1] / 'fixtures'
TYPES = (
    'float32',
    'float64',
    'float16',
    'bfloat16',
    'int64',
    'int32',
    'int16',
    'int8',
    'uint8',
    'uint16',
    'uint32',
    'uint64',
    'complex64',
    'complex128',
    'float8_e4m3fn',
    'float8_e5m2',
)


@pytest.mark.parametrize('name', ['torch_2.13_zip.pth', 'torch_2.13_legacy.pth'])
def test_what_torch_wrote_comes_back(name):
    content = read_torch(FIXTURES / name)
    x = np.arange(12.0).reshape(3, 4)
    expected = {kind: x.astype(DTYPES[kind]) for kind in TYPES} | {
        'bool': x > 5,
        'scalar': np.array(7),
        'empty': np.zeros((0, 3), np.float32),
    }
    x = x.astype(np.float32)
    expected |= {
        'transposed': x.T,
        'strided': x[::2, 1::2],
        'expanded': np.tile(x[:, :1], 5),
        'parameter': x,
        'buffer': x,
    }
    found = content['model']
    assert found.keys() == expected.keys()
    for key, array in expected.items():
        assert (found[key].dtype, found[key].shape) == (array.dtype, array.shape), key
        assert (
            np.ascontiguousarray(found[key]).tobytes() == np.ascontiguousarray(array).tobytes()
        ), key
    assert np.shares_memory(found['float32'], found['transposed'])
    beside = {key: value.name for key, value in content.items() if type(value) is Opaque}
    assert beside == {
        'args': 'argparse.Namespace',
        'device': 'torch.device',
        'dtype': 'torch.float32',
        'whole': 'torch.nn.modules.linear.Linear',
    }
    assert isinstance(content['sparse'], UnreadTensor)
    assert content['optimizer']['state'][0]['exp_avg'].shape == (2, 2)
