"""Where a state dict lies in a file and what stands before its names; and values that no weight
has."""

import functools
import json
import logging
import struct

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from test_published import fixture_weights, model_config
from torch_files import Call, Tensor, write_legacy, write_zip

import fsar_jax
from fsar_jax.backbones.scan import create_scan_network
from fsar_jax.weights import (
    backbone_from_torch,
    from_torch,
    load,
    load_backbone,
    load_scan_network,
    pick_state_dict,
    published,
    scan_network_from_torch,
)
from fsar_jax.weights.published import backbone_table, scan_network_table


@functools.cache
def backbone_config():
    config = fsar_jax.default_config().model.backbone
    with config.unlocked():
        config.update(name='resnet18', width=2)
    return config


def drawn(table, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.random(entry.shape, np.float32) for name, entry in table.items()} | {
        'bn1.num_batches_tracked': np.array(7),
        'fc.weight': rng.random((5, 16), np.float32),
        'fc.bias': rng.random(5, np.float32),
    }


@pytest.fixture(autouse=True)
def one_table(monkeypatch):
    """The table of names takes half a second to make, and is the same for all tests here."""
    monkeypatch.setattr(published, 'backbone_table', lambda config: backbone_names())


@functools.cache
def backbone_names():
    return backbone_table(backbone_config())


@functools.cache
def backbone_weights(seed=0):
    return drawn(backbone_names()[0], seed)


def tensors(weights, prefix=''):
    return {prefix + name: Tensor(value) for name, value in weights.items()}


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def loaded(path, content, write=write_zip):
    write(path, content)
    return load_backbone(path, backbone_config())


PREFIXES = [
    '_orig_mod.',
    'module.',
    'module.module.',
    'model.',
    'backbone.',
    'encoder.',
    'net.',
    'resnet.',
    'module._orig_mod.',
    '_orig_mod.module.',
    'model._orig_mod.',
    'module.backbone.',
    'model.encoder.',
    'model.backbone.module.',
    'student.',
    'base_model.',
    'my.own_wrapper.',
    'conv1.',
    'fc.',
    'network.0.',
    '_fsdp_wrapped_module.',
    'feature_extractor.',
]


@pytest.mark.parametrize('prefix', PREFIXES)
def test_what_stands_before_all_names_is_removed_and_said(prefix, tmp_path, caplog):
    weights = backbone_weights()
    with caplog.at_level(logging.WARNING):
        found = loaded(tmp_path / 'a.pth', tensors(weights, prefix))
    assert_same(found, backbone_from_torch(weights, backbone_config()))
    said = caplog.text.count("removed '")
    assert 1 <= said <= 3 and f'of {len(weights)} names' in caplog.text
    for part in ('module.', '_orig_mod.'):
        assert (f"removed '{part}'" in caplog.text) == (
            part in f'.{prefix}'.replace('_module.', '')
        )


def test_wrappers_within_names_are_removed(caplog):
    """A module that was compiled, or given to several GPUs, alone."""
    weights, model = fixture_weights('strm_head_a'), model_config('strm')
    rename = lambda name: name.replace('attn_pat.', 'attn_pat._orig_mod.').replace(
        'fr_enrich.', 'fr_enrich.module.'
    )
    wrapped = {rename(name): value for name, value in weights.items()}
    with caplog.at_level(logging.WARNING):
        assert_same(from_torch(wrapped, model), from_torch(weights, model))
    counts = [
        sum(name.startswith(start) for name in weights) for start in ('fr_enrich', 'attn_pat')
    ]
    assert (
        f"removed 'module.' of multi-GPU training from {counts[0]} of {len(weights)} names"
        in caplog.text
    )
    assert (
        f"removed '_orig_mod.' of torch.compile from {counts[1]} of {len(weights)} names"
        in caplog.text
    )


WRAPPERS = [
    'model',
    'net',
    'teacher',
    'student',
    'model_state_dict',
    'state_dict',
    'model_state',
    'ema',
    'model_ema',
    'ema_state_dict',
    'state_dict_ema',
    'network',
    'module',
    'params',
    'weights',
    'backbone',
    'generator',
    'anything else',
]


@pytest.mark.parametrize('key', WRAPPERS)
def test_a_state_dict_is_found_under_any_key(key, tmp_path, caplog):
    weights = backbone_weights()
    with caplog.at_level(logging.WARNING):
        found = loaded(
            tmp_path / 'a.pth',
            {
                'epoch': 3,
                key: tensors(weights),
                'args': Call('argparse', 'Namespace'),
                'optimizer': {'state': {0: {'exp_avg': Tensor(np.ones(3, np.float32))}}},
            },
            write_legacy,
        )
    assert_same(found, backbone_from_torch(weights, backbone_config()))
    usual = key in ('model_state_dict', 'model_state', 'state_dict')
    assert (f"took the weights under '{key}'" in caplog.text) == (not usual)


@pytest.mark.parametrize(
    'keys, prefix',
    [
        (('model', 'state_dict'), ''),
        (('checkpoint', 'net', 'weights'), 'module.'),
        (('a', 'b', 'c', 'd'), 'x.y.'),
    ],
)
def test_a_state_dict_is_found_in_wrappers_in_wrappers(keys, prefix, tmp_path):
    weights = backbone_weights()
    content = tensors(weights, prefix)
    for key in reversed(keys):
        content = {key: content, 'step': 1}
    assert_same(
        loaded(tmp_path / 'a.pth', content), backbone_from_torch(weights, backbone_config())
    )


@pytest.mark.parametrize(
    'taken, others',
    [
        ('model', ['ema']),
        ('model', ['model_ema', 'teacher']),
        ('state_dict', ['ema_state_dict']),
        ('state_dict', ['model', 'ema']),
        ('model_state_dict', ['state_dict']),
        ('net', ['student']),
    ],
)
def test_of_several_the_model_itself_is_taken_and_the_others_are_named(
    taken, others, tmp_path, caplog
):
    weights = backbone_weights()
    content = {key: tensors(backbone_weights(seed)) for seed, key in enumerate(others, start=1)} | {
        taken: tensors(weights)
    }
    with caplog.at_level(logging.WARNING):
        assert_same(
            loaded(tmp_path / 'a.pth', content), backbone_from_torch(weights, backbone_config())
        )
    assert (
        f"took the weights under '{taken}', the model itself by its name, and not those under "
        f"{', '.join(others)}, "
        'which fit too'
    ) in caplog.text


def test_the_outermost_weights_come_first(tmp_path, caplog):
    weights = backbone_weights()
    with caplog.at_level(logging.WARNING):
        assert_same(
            loaded(tmp_path / 'a.pth', tensors(weights) | {'ema': tensors(backbone_weights(1))}),
            backbone_from_torch(weights, backbone_config()),
        )
    assert 'took the outermost weights and not those under ema, which fit too' in caplog.text


@pytest.mark.parametrize(
    'keys', [('student', 'teacher'), ('ema', 'model_ema'), ('model', 'net'), ('a', 'b')]
)
def test_several_of_one_rank_are_an_error_that_lists_them(keys, tmp_path):
    path = tmp_path / 'a.pth'
    with pytest.raises(
        ValueError,
        match=f"^{path}: several state dicts fit: {', '.join(keys)}: save the one that you mean "
        "alone, torch.save",
    ) as error:
        loaded(path, {key: tensors(backbone_weights(i)) for i, key in enumerate(keys)})
    assert '\n' not in str(error.value)


def test_two_networks_in_one_dict_are_an_error_that_lists_them(tmp_path):
    both = tensors(backbone_weights(), 'encoder_q.') | tensors(backbone_weights(1), 'encoder_k.')
    with pytest.raises(
        ValueError,
        match=r"there 2 times, after 'encoder_k\.', 'encoder_q\.': keep only those that you mean",
    ):
        loaded(tmp_path / 'a.pth', both)


def test_only_the_names_that_fit_are_stripped(tmp_path):
    """A prefix is never removed to make a part of the names fit."""
    path, weights = tmp_path / 'a.pth', tensors(backbone_weights(), 'backbone.')
    with pytest.raises(ValueError, match=r"1 unknown: head.weight \[3\] \(without 'backbone.'\)$"):
        loaded(path, weights | {'head.weight': Tensor(np.ones(3, np.float32))})
    del weights['backbone.layer3.0.conv1.weight']
    with pytest.raises(
        ValueError,
        match=r"1 missing: layer3.0.conv1.weight \[8, 4, 3, 3\] \(under 'student'\) \(without "
        r"'backbone.'\)$",
    ):
        loaded(path, {'student': weights} | {'step': 3})


def test_numbers_and_objects_among_the_weights_are_no_weights(tmp_path):
    weights = backbone_weights()
    content = tensors(weights) | {
        'epoch': 3,
        '_metadata': {},
        'cfg': Call('yacs.config', 'CfgNode'),
        '_extra_state': None,
        'lr': 0.1,
        'names': ['a'],
        'n_averaged': Tensor(np.array(3)),
    }
    assert_same(
        loaded(tmp_path / 'a.pth', content), backbone_from_torch(weights, backbone_config())
    )
    with pytest.raises(
        ValueError,
        match=r'1 mis-shaped: conv1.weight expected \[2, 3, 7, 7\] found a sparse tensor: save '
        r'x.to_dense\(\)$',
    ):
        loaded(
            tmp_path / 'a.pth',
            content | {'conv1.weight': Call('torch._utils', '_rebuild_sparse_tensor', 1, 2)},
        )


@pytest.mark.parametrize(
    'wrap',
    [
        lambda w: {'ema': tensors(w, '_orig_mod.')},
        pytest.param(lambda w: tensors(w, 'model.module.'), marks=pytest.mark.slow),
        pytest.param(lambda w: {'model': {'net': tensors(w)}}, marks=pytest.mark.slow),
    ],
)
def test_whole_methods_and_scan_networks_too(wrap, tmp_path):
    path = tmp_path / 'a.pth'
    weights, model = fixture_weights('strm_head_a'), model_config('strm')
    write_zip(path, wrap(weights))
    assert_same(load(path, model), from_torch(weights, model))
    lacking = {
        name: value for name, value in weights.items() if not name.startswith('new_dist_loss')
    }  # as STRM's files
    write_zip(path, wrap(lacking))
    assert_same(load(path, model), from_torch(lacking, model))
    scan = drawn(scan_network_table(create_scan_network('shufflenet_v2_small')))
    del scan['bn1.num_batches_tracked']
    write_zip(path, wrap(scan))
    assert_same(
        load_scan_network(path, 'shufflenet_v2_small'),
        scan_network_from_torch(scan, 'shufflenet_v2_small'),
    )


def test_without_expected_names_the_usual_key_or_the_only_dict_is_picked():
    a, b = {'a': np.ones(1)}, {'b': np.ones(1)}
    assert pick_state_dict({'ema': a, 'model': b}, 'file.pth') is b
    assert pick_state_dict({'model': a, 'state_dict': b}, 'file.pth') is b
    assert pick_state_dict({'net': {'inner': a}}, 'file.pth') is a
    with pytest.raises(
        ValueError, match='^file.pth: several state dicts fit: student, teacher: save'
    ):
        pick_state_dict({'student': a, 'teacher': b}, 'file.pth')
    loop = {'a': np.ones(1)}
    loop['self'] = loop
    assert pick_state_dict(loop, 'file.pth') is loop


def changed(name, value):
    weights = dict(backbone_weights())
    weights[name] = value(weights[name].copy())
    return weights


def filled(value, index=...):
    def fill(array):
        array[index] = value
        return array

    return fill


@pytest.mark.parametrize(
    'name, value, message',
    [
        (
            'conv1.weight',
            filled(np.nan, (0, 0, 0, 0)),
            r'1 with NaN or infinite values: conv1.weight \(1 of 294 values\)',
        ),
        (
            'layer1.0.bn1.running_mean',
            filled(np.inf),
            r'1 with NaN or infinite values: layer1.0.bn1.running_mean \(2 of 2 values\)',
        ),
        (
            'layer1.0.bn1.running_var',
            filled(np.nan),
            r'1 with NaN or infinite values: layer1.0.bn1.running_var \(2 of 2 values\)',
        ),
        (
            'layer1.0.bn1.running_var',
            filled(-0.5, 1),
            r'1 with a negative running variance: layer1.0.bn1.running_var \(-0.5\)',
        ),
        (
            'bn1.weight',
            lambda x: x.astype(np.int64),
            r'1 of a type that no weight has: bn1.weight \(int64\)',
        ),
        ('bn1.weight', lambda x: x > 0, r'1 of a type that no weight has: bn1.weight \(bool\)'),
        (
            'bn1.weight',
            lambda x: x.astype(np.complex64),
            r'1 of a type that no weight has: bn1.weight \(complex64\)',
        ),
        (
            'bn1.weight',
            lambda x: x.astype(np.float64) * 1e300,
            r'1 beyond the range of float32: bn1.weight \(2 of 2 values\)',
        ),
    ],
)
def test_values_that_no_weight_has(name, value, message, tmp_path):
    path = tmp_path / 'a.pth'
    with pytest.raises(
        ValueError,
        match=f'^{path}: the state dict has weights that no model can use: {message}: its training '
        'failed, or',
    ):
        loaded(path, tensors(changed(name, value)))
    with pytest.raises(ValueError, match=message):
        backbone_from_torch(changed(name, value), backbone_config())


def test_ten_of_many_bad_entries_are_named_and_all_counted():
    weights = {
        name: np.full_like(value, np.nan)
        for name, value in backbone_weights().items()
        if value.dtype.kind == 'f'
    }
    with pytest.raises(
        ValueError,
        match=r'100 with NaN or infinite values: bn1.running_mean .* and 90 more: its training',
    ) as error:
        backbone_from_torch(weights, backbone_config())
    assert len(str(error.value)) < 1000


def test_zero_scales_and_zero_variances_are_weights():
    """A residual block may start with a scale of 0, a dead channel has the variance 0; what has no
    use may hold anything."""
    weights = changed('layer1.0.bn2.weight', filled(0)) | {
        'layer1.0.bn2.running_var': np.zeros(2, np.float32),
        'fc.bias': np.full(5, np.nan),
    }
    found = backbone_from_torch(weights, backbone_config())
    assert not found['params']['layer1_0']['bn2']['scale'].any()


@pytest.mark.parametrize(
    'kind',
    [np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2, np.float64],
)
def test_any_floating_type_becomes_float32(kind, tmp_path):
    path = tmp_path / 'a.safetensors'
    weights = {
        name: value.astype(kind) if value.dtype.kind == 'f' else value
        for name, value in backbone_weights().items()
    }
    write_safetensors(path, weights)
    found = load_backbone(path, backbone_config())
    assert {leaf.dtype.name for leaf in jax.tree.leaves(found)} == {'float32'}
    np.testing.assert_array_equal(
        found['params']['conv1']['kernel'][1, 2, 0],
        weights['conv1.weight'][:, 0, 1, 2].astype(np.float32),
    )


def write_safetensors(path, arrays):
    """With the library, where it knows the type; FP8 by the format's own words."""
    names = {'float8_e4m3fn': 'F8_E4M3', 'float8_e5m2': 'F8_E5M2', 'bfloat16': 'BF16'}
    if not any(array.dtype.name in names for array in arrays.values()):
        return safetensors.numpy.save_file(arrays, path)
    header, data = {}, b''
    for name, array in arrays.items():
        kind = names.get(array.dtype.name, 'I64')
        header[name] = {
            'dtype': kind,
            'shape': array.shape,
            'data_offsets': [len(data), len(data) + array.nbytes],
        }
        data += array.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack('<Q', len(text)) + text + data)
