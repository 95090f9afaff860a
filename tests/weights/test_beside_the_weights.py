"""What lies beside the weights in a checkpoint is not read and not run; tensors of every kind, and
those that cannot be read."""

import argparse
import collections
import datetime
import decimal
import enum
import fractions
import functools
import json
import pathlib
import random
import re
import types
import uuid

import ml_collections
import ml_dtypes
import numpy as np
import pytest
import safetensors
from torch_files import WRITERS, Call, Global, Storage, Tensor, write_zip

from fsar_jax.weights import pick_state_dict, read_torch
from fsar_jax.weights.pickle_file import Opaque, UnreadTensor
from fsar_jax.weights.pickle_names import harmless


@pytest.fixture(params=WRITERS)
def write(request):
    return WRITERS[request.param]


class Colour(enum.Enum):
    RED = 1


class Settings(dict):
    """As easydict, yacs and munch: a dict of a class of its own, with attributes."""


class Run:
    def __init__(self):
        self.best = 0.5


Point = collections.namedtuple('Point', 'x y')


def double(x):
    return 2 * x


BESIDE = {
    'numpy scalar': np.float64(0.75),
    'numpy integer': np.int64(3),
    'numpy array': np.arange(4.0),
    'numpy words': np.array(['a', 'b']),
    'numpy dtype': np.dtype('float32'),
    'numpy random state': np.random.RandomState(0),
    'numpy generator': np.random.default_rng(0),
    'old numpy scalar': Call('numpy.core.multiarray', 'scalar', np.dtype('f8'), 'x'),
    'torch.device': Call('torch', 'device', 'cuda', 0),
    'torch dtype': Global('torch', 'float32'),
    'torch.Size': Call('torch', 'Size', (1, 2)),
    'torch version': Call('torch.torch_version', 'TorchVersion', '2.1.0+cu118'),
    'torch layout': Call('torch.serialization', '_get_layout', 'torch.strided'),
    'Namespace': argparse.Namespace(lr=1e-3, data=pathlib.PurePosixPath('/data')),
    'datetime': datetime.datetime(2020, 1, 2),
    'date': datetime.date(2020, 1, 2),
    'timedelta': datetime.timedelta(1),
    'zone': datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC),
    'posix path': pathlib.PurePosixPath('/a'),
    'windows path': pathlib.PureWindowsPath('c:/a'),
    'uuid': uuid.UUID(int=5),
    'decimal': decimal.Decimal('1.5'),
    'fraction': fractions.Fraction(1, 3),
    'enum': Colour.RED,
    'namespace': types.SimpleNamespace(a=1),
    'deque': collections.deque([1]),
    'chain': collections.ChainMap({'a': 1}),
    'ordered': collections.OrderedDict(a=1),
    'tuple class': Point(1, 2),
    'partial': functools.partial(double, 1),
    'function': double,
    'class': Run,
    'object': Run(),
    'dict class': Settings(a=1),
    'set': {1, 2},
    'frozenset': frozenset([1]),
    'complex': 1 + 2j,
    'bytes': b'\xff\x00',
    'bytearray': bytearray(b'ab'),
    'range': range(3),
    'slice': slice(1),
    'pattern': re.compile('a+'),
    'random state': random.getstate(),
    'random': random.Random(0),
    'config': ml_collections.ConfigDict({'lr': 1}),
    'error': ValueError('no'),
    'huge integer': 10**40,
    'optimizer': Call('torch.optim.adamw', 'AdamW'),
    'schedule': Call('torch.optim.lr_scheduler', 'CosineAnnealingLR'),
    'omegaconf': Call('omegaconf.dictconfig', 'DictConfig'),
    'easydict': Call('easydict', 'EasyDict'),
    'yacs': Call('yacs.config', 'CfgNode'),
    'own class': Call('project.models.resnet', 'Options', 3),
    'module': Call('torch.nn.modules.container', 'Sequential'),
    'sparse': Call('torch._utils', '_rebuild_sparse_tensor', 1, 2),
    'quantized': Call('torch._utils', '_rebuild_qtensor', *range(7)),
    'key of objects': {Point(1, 2): 1, Colour.RED: 2},
}


@pytest.mark.parametrize('name', BESIDE)
def test_what_lies_beside_the_weights_is_no_obstacle(write, name, tmp_path):
    path = tmp_path / 'weights.pth'
    write(
        path,
        {
            'extra': BESIDE[name],
            'state_dict': {'a': Tensor(np.arange(3.0))},
            'after': [BESIDE[name], 7],
        },
    )
    content = read_torch(path)
    np.testing.assert_array_equal(pick_state_dict(content, path)['a'], np.arange(3.0))
    assert content['after'][1] == 7


@pytest.mark.parametrize('protocol', range(2, 6))
def test_every_protocol(protocol, tmp_path):
    path = tmp_path / 'weights.pth'
    write_zip(
        path,
        {
            'extra': [value for key, value in BESIDE.items() if key not in ('old numpy scalar',)],
            'a': Tensor(np.arange(3.0)),
        },
        protocol=protocol,
    )
    np.testing.assert_array_equal(read_torch(path)['a'], np.arange(3.0))


def test_an_opaque_object_has_a_name_and_nothing_else(tmp_path):
    path = tmp_path / 'weights.pth'
    write_zip(path, {'args': argparse.Namespace(lr=1), 'run': Run(), 'cfg': Settings(a=1)})
    content = read_torch(path)
    assert [type(value) for value in content.values()] == [Opaque] * 3
    assert [value.name for value in content.values()] == [
        'argparse.Namespace',
        f'{__name__}.Run',
        f'{__name__}.Settings',
    ]
    assert repr(content['args']) == '<argparse.Namespace, not read>'
    assert not hasattr(content['args'], 'lr') and not hasattr(content['args'], '__dict__')


@pytest.mark.parametrize(
    'name',
    [
        'os.system',
        'posix.system',
        'nt.system',
        'subprocess.Popen',
        'builtins.eval',
        'builtins.exec',
        '__builtin__.apply',
        'builtins.getattr',
        'builtins.__import__',
        'builtins.open',
        'builtins.print',
        'importlib.import_module',
        'runpy.run_path',
        'webbrowser.open',
        'socket.socket',
        'shutil.rmtree',
        'pty.spawn',
        'ctypes.CDLL',
        'marshal.loads',
        'types.CodeType',
        'types.FunctionType',
        'operator.attrgetter',
        'functools.reduce',
        'io.open',
        'sys.exit',
        'timeit.timeit',
        'bdb.Bdb.run',
        'pip.main',
        'pip._internal.main',
        'setuptools.setup',
        'commands.getoutput',
        'imp.load_source',
        'pathlib.Path.touch',
        'collections.OrderedDict.fromkeys',
        'enum.sys.modules',
        'datetime.sys.modules',
        'logging.os.system',
        'torch.load',
        'torch.hub.load',
        'torch.jit.load',
        'torch.storage._load_from_bytes',
        'torch.utils.collect_env.run',
        'torch.serialization.load',
        'torch.nn.os.system',
        'torch.serialization.os.system',
        'torch._utils._import_dotted_name',
        'numpy.load',
        'numpy.testing._private.utils.runstring',
        'numpy.f2py.crackfortran.getlincoef',
        'copyreg.pickle',
        'requests.get',
        'antigravity.geohash',
        'code.InteractiveInterpreter',
        'pickle.loads',
        '_pickle.loads',
        'telnetlib.Telnet',
    ],
)
def test_what_acts_is_refused(name):
    assert not harmless(name)


SAVED = {
    'uint16': 'uint16',
    'uint32': 'uint32',
    'uint64': 'uint64',
    'float8_e4m3fn': ml_dtypes.float8_e4m3fn,
    'float8_e5m2': ml_dtypes.float8_e5m2,
}


class TypedTensor:
    """As torch writes the types that have no storage class of their own."""

    def __init__(self, array, name):
        self.array, self.name = array, name

    def __reduce_ex__(self, protocol):
        return Global('torch._utils', '_rebuild_tensor_v3'), (
            Storage(self.array.view(np.uint8)),
            1,
            (len(self.array) - 1,),
            (1,),
            False,
            collections.OrderedDict(),
            Global('torch', self.name),
        )


@pytest.mark.parametrize('name', SAVED)
def test_types_without_a_storage_class(write, name, tmp_path):
    path, array = tmp_path / 'weights.pth', np.arange(5).astype(SAVED[name])
    write(path, {'a': TypedTensor(array, name)})
    found = read_torch(path)['a']
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found.astype(np.float32), [1, 2, 3, 4])


def test_tensors_of_a_class_of_their_own(write, tmp_path):
    """torch.nn.Buffer, and a user's subclass: the tensor itself is all of it."""
    path, function = tmp_path / 'weights.pth', Global('torch._utils', '_rebuild_tensor_v2')
    shared = Storage(np.arange(4, dtype=np.float32))
    subclass = Call(
        'torch._tensor',
        '_rebuild_from_type_v2',
        function,
        Global('torch', 'Tensor'),
        (shared, 1, (2,), (1,), False, collections.OrderedDict()),
        {'persistent': True},
    )
    write(
        path,
        {
            'buffer': subclass,
            'parameter': Call(
                'torch._utils', '_rebuild_parameter', subclass, True, collections.OrderedDict()
            ),
            'loop': Call(
                'torch._tensor',
                '_rebuild_from_type_v2',
                Global('torch._tensor', '_rebuild_from_type_v2'),
                1,
                (1, 2, 3),
                None,
            ),
        },
    )
    content = read_torch(path)
    np.testing.assert_array_equal(content['buffer'], [1, 2])
    np.testing.assert_array_equal(content['parameter'], [1, 2])
    assert isinstance(content['loop'], UnreadTensor)


@pytest.mark.parametrize(
    'value, words',
    [
        (
            Call('torch._utils', '_rebuild_sparse_tensor', 1, 2),
            r'a sparse tensor: save x.to_dense()',
        ),
        (
            Call('torch._utils', '_rebuild_qtensor', *range(7)),
            r'a quantized tensor: save x.dequantize()',
        ),
        (
            Call('torch._utils', '_rebuild_meta_tensor_no_storage', *range(4)),
            r'a tensor on the meta device, which has no values',
        ),
        (
            TypedTensor(np.zeros(5, np.uint8), 'float4_e2m1fn_x2'),
            'a tensor of type float4_e2m1fn_x2: save x.float()',
        ),
    ],
)
def test_tensors_that_cannot_be_read_say_what_they_are(write, value, words, tmp_path):
    path = tmp_path / 'weights.pth'
    write(path, {'a': value, 'b': Tensor(np.zeros(1))})
    found = read_torch(path)['a']
    assert isinstance(found, UnreadTensor) and found.name == words


def test_every_type_of_safetensors(tmp_path):
    path = tmp_path / 'weights.safetensors'
    kinds = {
        'F8_E4M3': ml_dtypes.float8_e4m3fn,
        'F8_E5M2': ml_dtypes.float8_e5m2,
        'BF16': ml_dtypes.bfloat16,
        'U16': np.uint16,
        'U32': np.uint32,
        'U64': np.uint64,
        'F64': np.float64,
        'BOOL': np.bool_,
        'C64': np.complex64,
    }
    arrays = {name: np.arange(1, 4).astype(kind) for name, kind in kinds.items()} | {
        'F4': np.zeros(2, np.uint8)
    }
    header, data = {}, b''
    for name, array in arrays.items():
        header[name] = {
            'dtype': name,
            'shape': [4 if name == 'F4' else 3],
            'data_offsets': [len(data), len(data) + array.nbytes],
        }
        data += array.tobytes()
    write_safetensors(path, header, data)
    content = read_torch(path)
    assert content['F4'].name == 'a tensor of type F4: save it as float32 (F32)'
    for name, kind in kinds.items():
        assert content[name].dtype == kind
        np.testing.assert_array_equal(
            content[name].astype(np.complex64), arrays[name].astype(np.complex64)
        )
    assert {name for name, _ in safetensors.deserialize(path.read_bytes())} == set(
        arrays
    )  # the library reads it too


def write_safetensors(path, header, data):
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, 'little') + text + data)


def test_a_whole_module_says_how_to_save_it(write, tmp_path):
    path = tmp_path / 'model.pth'
    write(path, Call('torchvision.models.resnet', 'ResNet'))
    words = (
        r"it holds an object of class 'torchvision.models.resnet.ResNet', which only its own code "
        r"can load: where it loads, "
        r'save the state dict alone, torch.save\(model.state_dict\(\), "weights.pth"\)'
    )
    with pytest.raises(ValueError, match=words) as error:
        pick_state_dict(read_torch(path), path)
    write(path, {'epoch': 3, 'model': Call('project', 'Net')})
    with pytest.raises(
        ValueError,
        match=r'its keys are epoch, model; objects, .*: model \(project.Net\): where it loads',
    ):
        pick_state_dict(read_torch(path), path)
    assert '\n' not in str(error.value)
